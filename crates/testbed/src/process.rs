//! A server as a process group of ours, which ends when we do, however we end.
//!
//! Three helpers see to it, all plain `sh`, each with a pipe from us for its stdin, which the system closes
//! when our process is gone: a *keeper*, which is there before the directory is and removes it, a *gate* before
//! the server, which starts it only when told to, and a *watcher* beside it, which kills the group and then
//! removes the directory. So there is no moment at which our death leaves anything behind.

use crate::places;
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Every process of a run has it in its environment, also those that left the group.
pub(crate) const MARK: &str = "POSTROAD_TESTBED_RUN";
const LOG: &str = "broker.log";
/// What names of runs begin with that end with us.
pub(crate) const ENDS: &str = "run";
/// How often a state that will change by itself is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(10);

const KEEPER: &str = r#"read -r leave || rm -rf -- "$1" || rm -rf -- "$1""#;
const GATE: &str = r#"read -r go && exec "$@" </dev/null"#;
const WATCHER: &str = r#"
read -r leave && exit 0
kill -s KILL -- "-$1" 2>/dev/null
for file in /proc/[0-9]*/environ; do
    if grep -qsF "$4=$2" "$file"; then pid=${file#/proc/}; kill -s KILL "${pid%/environ}" 2>/dev/null; fi
done
rm -rf -- "$3" || rm -rf -- "$3"
"#;

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
}

impl Launch {
    pub(crate) fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new(), env: Vec::new() }
    }

    pub(crate) fn args<T: Into<OsString>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The command, without the settings that somebody has for servers of his own.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["POSTROAD_", "RABBITMQ_", "ERL_"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A directory for the files of one server, and its name, which is in the environment of its processes.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    /// Of one that ends with us.
    keeper: Option<Helper>,
}

impl Run {
    /// Makes the directory. `prefix` is `run` for one that ends with us and `up` for one that stays.
    pub(crate) fn create(prefix: &str, what: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}-{}-{number}-{what}", std::process::id());
        let dir = places::runs()?.join(&name);
        let keeper = (prefix == ENDS).then(|| Helper::start(KEEPER, [dir.as_os_str()])).transpose()?;
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self { name, dir, keeper })
    }

    /// One that another process made, or left.
    pub(crate) fn of(name: String, dir: PathBuf) -> Self {
        Self { name, dir, keeper: None }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join(LOG)
    }

    /// Removes the directory, also while the last process writes its last file.
    pub(crate) fn remove(&mut self) {
        for _ in 0..50 {
            if fs::remove_dir_all(&self.dir).is_ok() || !self.dir.exists() {
                break;
            }
            std::thread::sleep(POLL);
        }
        if let Some(keeper) = self.keeper.take() {
            keeper.dismiss();
        }
    }
}

/// The last `lines` lines of a log.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(64 * 1024)..]).into_owned();
    let skip = text.lines().count().saturating_sub(lines);
    text.lines().skip(skip).collect::<Vec<_>>().join("\n")
}

/// A process group, known by its leader and by the mark of its run.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) leader: i32,
    pub(crate) run: String,
}

impl Group {
    fn pid(&self) -> Result<Pid> {
        Pid::from_raw(self.leader).context("no process id")
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process_group(self.pid()?, signal).with_context(|| format!("signalling group {}", self.leader))
    }

    /// Its processes that run.
    pub(crate) fn members(&self) -> Vec<i32> {
        let leader = self.leader.to_string();
        // Fields 3 to 5: the state, the parent, the group.
        let in_group = |pid: &i32| stat(*pid).is_some_and(|s| s.split(' ').nth(2) == Some(&leader));
        all_processes().filter(|pid| is_alive(*pid)).filter(in_group).collect()
    }

    /// `kill -9` for the group and for all that carry its mark.
    pub(crate) fn kill(&self) {
        // A number alone may be somebody else's by now.
        if is_marked(self.leader, &self.run) || !marked(&self.run).is_empty() {
            let _ = self.signal(Signal::KILL);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let left = marked(&self.run);
            if left.is_empty() || Instant::now() > deadline {
                return;
            }
            for pid in left.into_iter().filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(POLL);
        }
    }

    /// SIGTERM to the leader, and `kill -9` for what is left after `grace`. Only for groups whose leader
    /// is not our child; those are stopped by [`Process::stop`].
    pub(crate) fn stop(&self, grace: Duration) {
        if is_marked(self.leader, &self.run) {
            if let Ok(pid) = self.pid() {
                let _ = self.signal(Signal::CONT);
                let _ = kill_process(pid, Signal::TERM);
            }
            let deadline = Instant::now() + grace;
            while is_marked(self.leader, &self.run) && Instant::now() < deadline {
                std::thread::sleep(POLL);
            }
        }
        self.kill();
    }
}

/// Whether a process runs; one that has ended and was not waited for does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|fields| !fields.starts_with(['Z', 'X']))
}

/// What the system says of a process, from the third field of `/proc/PID/stat` on.
pub(crate) fn stat(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may contain anything, also brackets.
    Some(text.rsplit_once(") ")?.1.to_owned())
}

fn all_processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn is_marked(pid: i32, run: &str) -> bool {
    let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    let mark = format!("{MARK}={run}");
    if environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()) {
        return true;
    }
    // Redis writes its title over its environment, but works in the directory of its run.
    let at = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    at.components().any(|part| part.as_os_str().to_string_lossy().split(' ').next() == Some(run))
}

/// The processes of a run, by their environment or the directory they work in.
pub(crate) fn marked(run: &str) -> Vec<i32> {
    all_processes().filter(|pid| is_marked(*pid, run)).collect()
}

/// `command` behind the gate, with its environment and directory; its output goes where ours goes.
pub(crate) fn gated(command: &Command) -> Command {
    let mut gated = Command::new("sh");
    gated.args(["-c", GATE, "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => gated.env(name, value),
            None => gated.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        gated.current_dir(dir);
    }
    gated
}

/// A running server whose leader is our child.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pub(crate) group: Group,
    watcher: Option<Helper>,
}

/// A shell that does its work when its stdin ends, unless it is told to leave.
#[derive(Debug)]
struct Helper {
    child: Child,
    pipe: ChildStdin,
}

impl Helper {
    fn start<T: AsRef<OsStr>>(script: &str, args: impl IntoIterator<Item = T>) -> Result<Self> {
        let mut child = Command::new("sh")
            .args(["-c", script, "sh"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not one of those that a watcher above us ends.
            .env_remove(MARK)
            // Control-C in a terminal goes to the group of the test; the helper outlives it.
            .process_group(0)
            .spawn()
            .context("cannot start sh")?;
        let pipe = child.stdin.take().context("sh has no stdin")?;
        Ok(Self { child, pipe })
    }

    fn watch(group: &Group, dir: &Path) -> Result<Self> {
        let leader = group.leader.to_string();
        Self::start(WATCHER, [leader.as_ref(), group.run.as_ref(), dir.as_os_str(), MARK.as_ref()])
    }

    fn dismiss(mut self) {
        let _ = self.pipe.write_all(b"leave\n");
        drop(self.pipe);
        let _ = self.child.wait();
    }
}

impl Process {
    /// Starts it in a group of its own, its output appended to the run's log. `stays`: it is to outlive us.
    pub(crate) fn start(launch: &Launch, run: &Run, stays: bool) -> Result<Self> {
        let log = File::options().create(true).append(true).open(run.log())?;
        let mut command = launch.command(Path::new("sh"));
        command.args(["-c", GATE, "sh"]).arg(&launch.program).args(&launch.args);
        command.env(MARK, &run.name).current_dir(&run.dir).stdout(log.try_clone()?).stderr(log);
        Self::spawn(command, run, stays)
    }

    /// Starts a command that waits at the gate, in a group of its own, and lets it through when it is watched.
    pub(crate) fn spawn(mut gated: Command, run: &Run, stays: bool) -> Result<Self> {
        let mut child = gated.stdin(Stdio::piped()).process_group(0).spawn().context("cannot start sh")?;
        let group = Group { leader: child.id() as i32, run: run.name.clone() };
        let mut gate = child.stdin.take().context("sh has no stdin")?;
        let watcher = if stays { None } else { Some(Helper::watch(&group, &run.dir)?) };
        gate.write_all(b"go\n").context("opening the gate")?;
        Ok(Self { child, group, watcher })
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// Its exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGTERM to the leader; an error if it had to be killed after `grace`.
    pub(crate) fn stop(mut self, grace: Duration) -> Result<()> {
        let _ = self.group.signal(Signal::CONT);
        if let Some(pid) = Pid::from_raw(self.group.leader) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + grace;
        let mut ended = false;
        while !ended && Instant::now() < deadline {
            ended = self.ended()?.is_some();
            if !ended {
                std::thread::sleep(POLL);
            }
        }
        self.end();
        ensure!(ended, "it did not stop within {grace:?} and was killed");
        Ok(())
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// Lets go of it without ending it.
    pub(crate) fn detach(mut self) -> Group {
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
        self.group.clone()
    }

    fn end(&mut self) {
        // Not by its mark alone: a process that is just being started shows no environment.
        let _ = self.group.signal(Signal::KILL);
        let _ = self.child.wait();
        self.group.kill();
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
    }
}

/// The runs whose owners are gone, which their watchers should have taken away by now, or will soon.
pub(crate) fn leftovers() -> Result<Vec<Run>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(places::runs()?)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("run-").and_then(|rest| rest.split('-').next()?.parse::<i32>().ok());
        if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            found.push(Run::of(name, entry.path()));
        }
    }
    Ok(found)
}

/// Ends what dead owners left (their watchers were killed, too) and removes its files.
pub(crate) fn sweep() -> Result<()> {
    for mut run in leftovers()? {
        for pid in marked(&run.name).into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        run.remove();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{ENDS, POLL, Run, is_alive};
    use std::process::Command;
    use std::time::{Duration, Instant};

    #[test]
    fn who_dies_before_anything_is_started_leaves_no_directory() {
        let run = Run::create(ENDS, "nothing").unwrap();
        let dir = run.dir.clone();
        assert!(dir.is_dir());
        // As the system does it when a process is killed: its ends of pipes are closed, and nothing else.
        drop(run);
        let deadline = Instant::now() + Duration::from_secs(20);
        while dir.exists() {
            assert!(Instant::now() < deadline, "{} is left", dir.display());
            std::thread::sleep(POLL);
        }
    }

    #[test]
    fn a_process_that_has_ended_is_not_alive_before_it_is_waited_for() {
        let mut child =
            Command::new("sh").args(["-c", "read -r _"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        assert!(is_alive(pid));
        drop(child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(20);
        while is_alive(pid) {
            assert!(Instant::now() < deadline, "a zombie counts as alive");
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
