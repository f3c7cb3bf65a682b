//! Servers under measurement: each on its own loopback port and directory, ready by a protocol
//! probe, watched through /proc, killed by its own handle.

use crate::sh;
use crate::tools::{self, Needed};
use anyhow::{Context, Result, bail, ensure};
use postroad_testbed::{Broker, Mode, Options, Running, Service, Testbed};
use rustix::process::{Pid, Signal};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Which server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Postroad,
    Redis,
    Beanstalkd,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Postroad, Self::Redis, Self::Beanstalkd];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postroad => "postroad",
            Self::Redis => "redis",
            Self::Beanstalkd => "beanstalkd",
        }
    }

    fn tool(self) -> Option<&'static Needed> {
        match self {
            Self::Postroad => None,
            Self::Redis => Some(&tools::REDIS),
            Self::Beanstalkd => Some(&tools::BEANSTALKD),
        }
    }

    /// What to send to see whether it answers, and how its answer starts.
    fn probe(self) -> (&'static [u8], &'static [u8]) {
        match self {
            Self::Postroad => (b"", b"hello postroad/"),
            Self::Redis => (b"PING\r\n", b"+PONG"),
            Self::Beanstalkd => (b"stats\r\n", b"OK "),
        }
    }
}

/// A kind of server: how it is started, and how it is known to be ready.
pub(crate) trait Peer: Copy {
    fn name(self) -> &'static str;
    /// The program to run, if it is here; `ours` is the postroad binary.
    fn program(self, ours: &Path) -> Option<PathBuf>;
    /// Prepares `dir` and gives the command for a server in it.
    fn command(self, program: &Path, dir: &Path, port: u16) -> Result<Command>;
    /// Asks once; its answer, if it is ready.
    fn answer(self, addr: SocketAddr) -> Option<String>;
    /// How it makes a record durable before it answers, in its own words, which may be in its answer.
    fn mode(self, answer: &str) -> Result<String>;
    /// Which of the testbed's brokers it is, and its door, if the testbed is to start it: `program` and `command`
    /// are not asked then.
    fn testbed(self) -> Option<(Broker, Service)> {
        None
    }
}

impl Peer for Kind {
    fn name(self) -> &'static str {
        Self::name(self)
    }

    fn program(self, ours: &Path) -> Option<PathBuf> {
        match self.tool() {
            Some(tool) => tool.find(),
            None => ours.is_file().then(|| ours.to_path_buf()),
        }
    }

    fn command(self, program: &Path, dir: &Path, port: u16) -> Result<Command> {
        let mut command = Command::new(program);
        let port = port.to_string();
        match self {
            Self::Postroad => {
                command.arg("serve").arg("--data").arg(dir.join("data"));
                command.args([
                    "--jsonlog",
                    &format!("127.0.0.1:{port}"),
                    "--mqtt",
                    "off",
                    "--lines",
                    "off",
                    "--http",
                    "off",
                ]);
            }
            Self::Redis => {
                command.args(["--bind", "127.0.0.1", "--port", &port, "--daemonize", "no", "--save", ""]);
                command.args(["--appendonly", "yes", "--appendfsync", "always"]);
                // A rewrite of the log in the middle of a measurement would be unfair to it.
                command.args(["--auto-aof-rewrite-percentage", "0", "--loglevel", "warning"]);
                command.arg("--dir").arg(dir);
            }
            Self::Beanstalkd => {
                command.args(["-l", "127.0.0.1", "-p", &port, "-f", "0"]).arg("-b").arg(dir);
            }
        }
        Ok(command)
    }

    fn answer(self, addr: SocketAddr) -> Option<String> {
        let (ask, expect) = self.probe();
        try_probe(addr, ask, expect)
    }

    fn mode(self, answer: &str) -> Result<String> {
        Ok(match self {
            Self::Postroad => {
                let mode = answer.split_whitespace().find(|word| word.starts_with("sync="));
                let mode = mode.context("the greeting has no sync=")?;
                ensure!(mode == "sync=fdatasync", "postroad runs with {mode}: nothing to compare");
                mode.into()
            }
            Self::Redis => "appendonly yes, appendfsync always".into(),
            Self::Beanstalkd => "-b DIR -f 0 (fsync at every write)".into(),
        })
    }
}

/// How long a server may take to answer: one in Java on a busy machine needs seconds.
const START: Duration = Duration::from_secs(30);

/// A running server. Dropping it kills it and removes its directory.
pub(crate) struct Server<P: Peer = Kind> {
    pub(crate) kind: P,
    pub(crate) addr: SocketAddr,
    /// How it makes a record durable before it answers, in its own words.
    pub(crate) mode: String,
    dir: PathBuf,
    process: Process,
}

/// Who holds it.
enum Process {
    Ours { program: PathBuf, child: Child },
    Testbed(Box<Running>),
}

impl<P: Peer> Server<P> {
    /// Starts it in a new directory below `target`, so that its files are on the disk the build uses.
    pub(crate) fn start(kind: P, ours: &Path) -> Result<Self> {
        static NUMBER: AtomicU16 = AtomicU16::new(0);
        if let Some((broker, door)) = kind.testbed() {
            return Self::from_testbed(kind, broker, door);
        }
        let program = kind.program(ours).with_context(|| format!("{} is not here", kind.name()))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = sh::target().join("bench").join(format!("run-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let port = free_port()?;
        let child = spawn(kind, &program, &dir, port).inspect_err(|_| drop(fs::remove_dir_all(&dir)))?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let process = Process::Ours { program, child };
        let mut server = Self { kind, addr, mode: String::new(), dir, process };
        server.mode = server.wait_until_ready(START)?;
        Ok(server)
    }

    fn from_testbed(kind: P, broker: Broker, door: Service) -> Result<Self> {
        let options = Options { mode: Some(Mode::Native), ..Options::default() };
        let running = Testbed::start(broker, &options)?;
        let addr = running.address(door)?;
        let dir = running.dir().context("somebody else runs it: it cannot be measured")?.to_path_buf();
        let process = Process::Testbed(Box::new(running));
        let mut server = Self { kind, addr, mode: String::new(), dir, process };
        server.mode = server.wait_until_ready(START)?;
        Ok(server)
    }

    /// Waits for the probe's answer; gives the sync mode.
    fn wait_until_ready(&mut self, limit: Duration) -> Result<String> {
        let start = Instant::now();
        loop {
            if let Some(answer) = self.kind.answer(self.addr) {
                return self.kind.mode(&answer);
            }
            if let Process::Ours { child, .. } = &mut self.process
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended at its start: {status}\n{}", self.kind.name(), self.log());
            }
            if start.elapsed() > limit {
                bail!(
                    "{} does not answer on {} after {limit:?}\n{}",
                    self.kind.name(),
                    self.addr,
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// `kill -9`, then the same command on the same directory. Gives the time from the start to the greeting.
    pub(crate) fn kill_and_restart(&mut self) -> Result<Duration> {
        match &mut self.process {
            Process::Ours { child, .. } => child.kill()?,
            Process::Testbed(running) => running.kill()?,
        }
        self.restart()
    }

    /// The same for a server that saves at its end: it is asked to end.
    pub(crate) fn end_and_restart(&mut self) -> Result<Duration> {
        match &mut self.process {
            Process::Ours { child, .. } => {
                rustix::process::kill_process(Pid::from_child(child), Signal::TERM)?;
            }
            Process::Testbed(running) => running.stop()?,
        }
        self.restart()
    }

    fn restart(&mut self) -> Result<Duration> {
        let start = match &mut self.process {
            Process::Ours { program, child } => {
                child.wait()?;
                let start = Instant::now();
                *child = spawn(self.kind, program, &self.dir, self.addr.port())?;
                start
            }
            Process::Testbed(running) => {
                let start = Instant::now();
                running.start()?;
                start
            }
        };
        self.wait_until_ready(Duration::from_secs(120))?;
        Ok(start.elapsed())
    }

    /// Its processes: one of ours is one, the testbed's have helpers in their group.
    fn processes(&self) -> Vec<String> {
        match &self.process {
            Process::Ours { child, .. } => vec![child.id().to_string()],
            Process::Testbed(running) => running.process_id().map_or_else(Vec::new, group),
        }
    }

    /// CPU time used so far by all its threads, user and system, in microseconds.
    pub(crate) fn cpu_us(&self) -> Result<f64> {
        self.sum(cpu_us_of)
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        self.sum(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib: u64 =
                line.and_then(|l| l.split_whitespace().next()?.parse().ok()).context("no VmRSS")?;
            Ok(kib * 1024)
        })
    }

    fn sum<T: std::iter::Sum>(&self, of: impl Fn(&str) -> Result<T>) -> Result<T> {
        let pids = self.processes();
        // Helpers come and go; the server itself stays.
        let known: Vec<T> = pids.iter().filter_map(|pid| of(pid).ok()).collect();
        ensure!(!known.is_empty(), "{} is gone\n{}", self.kind.name(), self.log());
        Ok(known.into_iter().sum())
    }

    /// Bytes of the files in its directory.
    pub(crate) fn bytes_on_disk(&self) -> u64 {
        fn sum(dir: &Path) -> u64 {
            let Ok(entries) = fs::read_dir(dir) else { return 0 };
            entries
                .flatten()
                .map(|entry| match entry.metadata() {
                    Ok(meta) if meta.is_dir() => sum(&entry.path()),
                    Ok(meta) => meta.len(),
                    Err(_) => 0,
                })
                .sum()
        }
        sum(&self.dir)
    }

    /// The end of what it printed.
    pub(crate) fn log(&self) -> String {
        if let Process::Testbed(running) = &self.process {
            return running.log_tail(20);
        }
        let text = fs::read(self.dir.join("server.log")).unwrap_or_default();
        let tail = &text[text.len().saturating_sub(2000)..];
        String::from_utf8_lossy(tail).into_owned()
    }
}

impl<P: Peer> Drop for Server<P> {
    fn drop(&mut self) {
        // The testbed takes away its own.
        if let Process::Ours { child, .. } = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn spawn(kind: impl Peer, program: &Path, dir: &Path, port: u16) -> Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("server.log"))?;
    let mut command = kind.command(program, dir, port)?;
    // The bench measures the defaults, not somebody's settings.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("POSTROAD_")) {
        command.env_remove(name);
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

fn try_probe(addr: SocketAddr, ask: &[u8], expect: &[u8]) -> Option<String> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(ask).ok()?;
    let mut answer = Vec::new();
    let mut piece = [0; 512];
    while !answer.contains(&b'\n') {
        let n = stream.read(&mut piece).ok()?;
        if n == 0 {
            return None;
        }
        answer.extend_from_slice(&piece[..n]);
    }
    answer.starts_with(expect).then(|| String::from_utf8_lossy(&answer).into_owned())
}

/// A loopback port that nobody listens on, below the range the system hands to clients.
pub(crate) fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 8000) as u16;
    for _ in 0..2000 {
        let port = 22000 + (start + NEXT.fetch_add(7, Ordering::Relaxed)) % 10000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between 22000 and 32000")
}

/// The processes of a group.
fn group(leader: i32) -> Vec<String> {
    let leader = leader.to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let pids = pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Behind the name: the state, the parent, the group.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(2) == Some(&leader))
    })
    .collect()
}

/// CPU time of a process, `self` for this one, in microseconds.
pub(crate) fn cpu_us_of(pid: &str) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = cpu_ticks(&stat).context("/proc/PID/stat is not understood")?;
    Ok(ticks as f64 * 1e6 / rustix::param::clock_ticks_per_second() as f64)
}

/// Fields 14 and 15 of `/proc/PID/stat`. The name before them may contain anything, even `)`.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "17 (a ) b) S 1 17 17 0 -1 4194560 100 0 0 0 250 130 9 9 20 0 4 0 1 2 3";
        assert_eq!(super::cpu_ticks(stat), Some(380));
        assert_eq!(super::cpu_ticks("17 (a) S 1"), None);
    }

    #[test]
    fn a_group_has_its_children() {
        let own = rustix::process::getpgrp().as_raw_nonzero().get();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = super::group(own).contains(&child.id().to_string());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
        assert_eq!(super::group(-1), [""; 0]);
    }
}
