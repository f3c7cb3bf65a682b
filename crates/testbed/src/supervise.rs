//! A command that cannot leave anything behind: what it starts ends with it, and it ends with us.

use crate::process::{ENDS, Group, MARK, Process, Run, marked};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// How long helpers may take that clean up after processes that have just ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a supervised command ended.
#[derive(Debug)]
pub struct Ended {
    /// As it said itself.
    pub status: ExitStatus,
    /// Processes that it had left when it ended, and that are gone now.
    pub left: Vec<String>,
    /// Files that it had left in its temporary directory, and that are gone now; of a directory one that is in it.
    pub files: Vec<PathBuf>,
}

/// Runs a command in a process group and with a temporary directory (`TMPDIR`) of its own. When it ends, and when
/// we end, by whatever signal, both are taken away, with processes that left the group but not their environment.
pub fn run(what: &str, command: &Command) -> Result<Ended> {
    let mut run = Run::create(ENDS, what)?;
    let temporary = run.dir.join("tmp");
    let ended = fs::create_dir(&temporary).context("making its temporary directory").and_then(|()| {
        let mut gated = crate::process::gated(command);
        gated.env("TMPDIR", &temporary).env(MARK, &run.name);
        let mut process = Process::spawn(gated, &run, false)?;
        let status = process.wait()?;
        let mut left = left_by(&process.group);
        let patience = Instant::now() + PATIENCE;
        while !left.is_empty() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(50));
            left = left_by(&process.group);
        }
        process.kill();
        let files = fs::read_dir(&temporary)?.flatten().map(|entry| sample(entry.path())).collect();
        Ok(Ended { status, left, files })
    });
    run.remove();
    ended
}

/// Processes in the group or with its mark, as somebody would look for them.
fn left_by(group: &Group) -> Vec<String> {
    let mut pids = marked(&group.run);
    pids.extend(group.members());
    pids.sort_unstable();
    pids.dedup();
    pids.into_iter().map(|pid| format!("process {pid}: {}", command_line(pid))).collect()
}

/// A file of a directory: its own name often says nothing.
fn sample(path: PathBuf) -> PathBuf {
    let first = fs::read_dir(&path).ok().and_then(|mut entries| entries.next()?.ok());
    first.map_or(path, |entry| entry.path())
}

fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

#[cfg(test)]
mod tests {
    use super::run;
    use std::process::Command;

    fn shell(script: &str) -> super::Ended {
        run("test", Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn a_command_that_leaves_nothing_is_said_to() {
        let ended = shell("touch $TMPDIR/a; sleep 0.01 & wait; rm $TMPDIR/a; exit 7");
        assert_eq!((ended.status.code(), ended.left), (Some(7), Vec::new()));
        assert!(ended.files.is_empty());
    }

    #[test]
    fn a_process_and_a_file_that_stay_are_named_and_taken_away() {
        let ended = shell("sleep 1234 & setsid sleep 4321 & echo x > $TMPDIR/left; sleep 0.2");
        assert!(ended.status.success());
        assert!(ended.files.len() == 1 && ended.files[0].ends_with("left") && !ended.files[0].exists());
        for what in ["sleep 1234", "sleep 4321"] {
            assert!(ended.left.iter().any(|left| left.contains(what)), "{what}: {:?}", ended.left);
        }
        for left in ended.left {
            let pid = left.strip_prefix("process ").and_then(|rest| rest.split(':').next()?.parse().ok());
            assert!(!super::command_line(pid.unwrap()).contains("sleep"), "{left}");
        }
    }
}
