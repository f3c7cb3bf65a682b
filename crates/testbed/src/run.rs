//! Finding programs, and running them with an end in sight.

use anyhow::{Context, Result, bail};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What a command prints on stdout. An exit other than 0 is an error that carries what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let line = line_of(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start: {line}"))?;
    if !out.status.success() {
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        bail!("{line}: {}\n{}{}", out.status, last_lines(&stdout, 40), last_lines(&stderr, 40));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Like [`output`], but a command that hangs is killed: a daemon may accept and never answer.
pub fn output_within(command: &mut Command, limit: Duration) -> Result<String> {
    let line = line_of(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start: {line}"))?;
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let reader = thread::spawn(move || (read(&mut stdout), read(&mut stderr)));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{line}: no answer within {limit:?}");
        }
        thread::sleep(Duration::from_millis(10));
    };
    let (stdout, stderr) = reader.join().unwrap_or_default();
    if !status.success() {
        bail!("{line}: {status}\n{}{}", last_lines(&stdout, 40), last_lines(&stderr, 40));
    }
    Ok(stdout)
}

fn read(from: &mut Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // What was read before a failure is still worth showing.
        let _ = from.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The first file called `name` on `PATH` or where Debian keeps daemons.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The end of a text, each line ended.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().flat_map(|line| [line, "\n"]).collect()
}

/// A command as somebody would type it.
pub fn line_of(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let mut line = program.rsplit('/').next().unwrap_or(&program).to_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::{last_lines, output, output_within};
    use std::process::Command;
    use std::time::{Duration, Instant};

    #[test]
    fn a_failure_says_what_was_run_and_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo out; echo why >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("sh -c") && text.contains("why") && text.contains("out"), "{text}");
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let start = Instant::now();
        let error = output_within(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(30), "it was waited for");
        assert!(error.to_string().contains("no answer"), "{error}");
        let mut quick = Command::new("echo");
        assert_eq!(output_within(quick.arg("hello"), Duration::from_secs(20)).unwrap(), "hello\n");
    }

    #[test]
    fn the_end_of_a_log_is_shown() {
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc\n");
        assert_eq!(last_lines("", 2), "");
    }
}
