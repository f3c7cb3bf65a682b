//! A whole `cargo xtask test-all`, its orchestration and its brokers, is killed midway or made to fail, and must
//! leave nothing: no process, listening port, file, container, network or volume.
//!
//! Orphans become children of this process, so none of them can hide; and so the tests here run one by one.
#![cfg(target_os = "linux")]

use postroad_testbed::docker::{self, Daemon};
use postroad_testbed::places;
use rustix::process::{Pid, Signal, kill_process, kill_process_group, set_child_subreaper};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long helpers may take to clean up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing may be there until it is believed that nothing comes.
const SETTLED: Duration = Duration::from_secs(1);
/// How often the processes of a run are looked at.
const GLANCE: Duration = Duration::from_millis(20);

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    guard
}

/// From the state on: state, parent, group …
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// Everything below this process that runs.
fn descendants() -> BTreeSet<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in pids {
        if let Some(stat) = stat(pid).filter(|stat| stat[0] != "Z" && stat[0] != "X") {
            children.entry(stat[1].parse().unwrap()).or_default().push(pid);
        }
    }
    let (mut found, mut open) = (BTreeSet::new(), vec![std::process::id() as i32]);
    while let Some(pid) = open.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            found.insert(*child);
            open.push(*child);
        }
    }
    found
}

fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Ports that somebody listens on, by the number of the socket.
fn listening() -> BTreeMap<String, u16> {
    let mut found = BTreeMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[3] == "0A" {
                let port = u16::from_str_radix(fields[1].rsplit_once(':').unwrap().1, 16).unwrap();
                found.insert(fields[9].to_owned(), port);
            }
        }
    }
    found
}

fn ports_of(pids: &BTreeSet<i32>) -> BTreeSet<u16> {
    let listening = listening();
    let links = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok()).flatten();
    let sockets = links.filter_map(|link| Some(fs::read_link(link.ok()?.path()).ok()?.display().to_string()));
    let number = |socket: String| Some(socket.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    sockets.filter_map(number).filter_map(|number| listening.get(&number).copied()).collect()
}

/// What is seen of a run, while it lasts, to look for it when it is over.
struct Watch {
    temporary: tempfile::TempDir,
    daemon: Option<Daemon>,
    pids: BTreeSet<i32>,
    ports: BTreeSet<u16>,
}

impl Watch {
    fn new(daemon: Option<Daemon>) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        Self { temporary, daemon, pids: BTreeSet::new(), ports: BTreeSet::new() }
    }

    fn look(&mut self) {
        self.pids.extend(descendants());
    }

    /// Directories of servers that processes of the run started.
    fn runs(&self) -> Vec<String> {
        let names = fs::read_dir(places::runs().unwrap()).unwrap().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let ours = |name: &String| {
            let owner = name.split('-').nth(1).and_then(|pid| pid.parse().ok());
            owner.is_some_and(|pid| self.pids.contains(&pid))
        };
        names.filter(ours).collect()
    }

    /// Compose projects with anything in the daemon that processes of the run own.
    fn projects(&self) -> Vec<String> {
        let Some(daemon) = &self.daemon else { return Vec::new() };
        let ours = |name: &String| {
            let owner = name.split('-').nth(3).and_then(|pid| pid.parse().ok());
            owner.is_some_and(|pid| self.pids.contains(&pid))
        };
        docker::projects(daemon).unwrap().into_iter().filter(ours).collect()
    }

    fn note_ports(&mut self) {
        self.ports.extend(ports_of(&self.pids));
        for project in self.projects() {
            let mut ps = self.daemon.as_ref().unwrap().docker();
            ps.args(["ps", "--format", "{{.Ports}}", "--filter"]);
            let out = ps.arg(format!("label=com.docker.compose.project={project}")).output().unwrap();
            let text = String::from_utf8(out.stdout).unwrap();
            let port = |rest: &str| rest.split("->").next()?.parse::<u16>().ok();
            self.ports.extend(text.split("127.0.0.1:").skip(1).filter_map(port));
        }
    }

    fn left_now(&self) -> Vec<String> {
        let mut left: Vec<String> =
            descendants().into_iter().map(|pid| format!("process {pid}: {}", command_line(pid))).collect();
        left.extend(self.runs().into_iter().map(|name| format!("directory {name}")));
        let files = fs::read_dir(self.temporary.path()).unwrap().flatten();
        left.extend(files.map(|entry| format!("file {}", entry.path().display())));
        let listening: BTreeSet<u16> = listening().into_values().collect();
        left.extend(self.ports.intersection(&listening).map(|port| format!("port {port}")));
        left.extend(self.projects().into_iter().map(|name| format!("project {name}")));
        left
    }

    /// What is still there when nothing is about to clean up any more.
    fn left(&self, patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        loop {
            let left = self.left_now();
            if left.is_empty() {
                // What a killed client asked a daemon for may come late.
                std::thread::sleep(SETTLED);
                return self.left_now();
            }
            if Instant::now() > deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A `test-all` under way.
struct Run {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    reader: Option<JoinHandle<()>>,
    said: Vec<String>,
    watch: Watch,
}

impl Run {
    fn start(mode: &str, daemon: Option<Daemon>) -> Self {
        let watch = Watch::new(daemon);
        let mut child = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["test-all", mode, "--only", "brokers"])
            .env("TMPDIR", watch.temporary.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        // It ends when nobody has the other end any more, so it also waits for whoever is left.
        let reader = std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines, reader: Some(reader), said: Vec::new(), watch }
    }

    /// Until it has said that it has this broker, and at least one runs.
    fn until_it_has(&mut self, broker: &str) {
        self.until(1, |said| said.iter().any(|line| line.starts_with(broker)));
    }

    /// Until this test runs, with so many brokers at once. Gives its process.
    fn until_test(&mut self, test: &str, brokers: usize) -> Pid {
        let name = format!("/deps/{test}-");
        let process = || descendants().into_iter().find(|pid| command_line(*pid).contains(&name));
        self.until(brokers, |_| process().is_some());
        Pid::from_raw(process().expect("the test ended")).unwrap()
    }

    fn until(&mut self, brokers: usize, mut holds: impl FnMut(&[String]) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(300);
        loop {
            self.watch.look();
            self.said.extend(self.lines.try_iter());
            let runs = self.watch.runs().into_iter().filter(|name| !name.ends_with("test-all")).count();
            if holds(&self.said) && runs + self.watch.projects().len() >= brokers {
                self.watch.note_ports();
                if !self.watch.ports.is_empty() {
                    break;
                }
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?} by itself:\n{}", self.said.join("\n"));
            assert!(Instant::now() < deadline, "it never comes so far:\n{}", self.said.join("\n"));
            std::thread::sleep(GLANCE);
        }
        println!(
            "{} processes, ports {:?}, {:?}, {:?}",
            descendants().len(),
            self.watch.ports,
            self.watch.runs(),
            self.watch.projects()
        );
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for its end; nothing of it may be there then.
    fn leaves_nothing(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + Duration::from_secs(300);
        let status = loop {
            self.watch.look();
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.said.join("\n"));
            std::thread::sleep(GLANCE);
        };
        let start = Instant::now();
        let left = self.watch.left(PATIENCE);
        assert!(left.is_empty(), "{status}, and left: {left:#?}");
        println!("{status}, nothing left after {:?}", start.elapsed());
        self.reader.take().unwrap().join().unwrap();
        self.said.extend(self.lines.try_iter());
        (status, self.said.join("\n"))
    }
}

#[test]
fn interrupted_from_the_terminal_while_brokers_come_up() {
    let _alone = alone();
    let mut run = Run::start("--native", None);
    run.until_it_has("beanstalkd");
    kill_process_group(run.pid(), Signal::INT).unwrap();
    run.leaves_nothing();
}

#[test]
fn its_process_group_killed_while_brokers_come_up() {
    let _alone = alone();
    let mut run = Run::start("--native", None);
    run.until_it_has("redis");
    kill_process_group(run.pid(), Signal::KILL).unwrap();
    run.leaves_nothing();
}

#[test]
fn terminated_while_tests_run() {
    let _alone = alone();
    let mut run = Run::start("--native", None);
    run.until_test("probe", 3);
    kill_process(run.pid(), Signal::TERM).unwrap();
    run.leaves_nothing();
}

#[test]
fn killed_alone_while_tests_run() {
    let _alone = alone();
    let mut run = Run::start("--native", None);
    run.until_test("probe", 3);
    kill_process(run.pid(), Signal::KILL).unwrap();
    run.leaves_nothing();
}

#[test]
fn a_test_that_dies_fails_the_run_which_still_stops_everything() {
    let _alone = alone();
    let mut run = Run::start("--native", None);
    let test = run.until_test("probe", 3);
    kill_process(test, Signal::KILL).unwrap();
    let (status, said) = run.leaves_nothing();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("FAILED  tests: brokers") && said.contains("ok      brokers gone"), "{said}");
}

#[test]
fn killed_while_containers_run() {
    let _alone = alone();
    if std::env::var("POSTROAD_TESTBED").is_ok_and(|mode| mode == "native") {
        return;
    }
    for signal in [Signal::KILL, Signal::INT] {
        let daemon = match Daemon::find() {
            Ok(daemon) => daemon,
            Err(error) => return println!("not run: a killed run with containers ({error:#})"),
        };
        let mut run = Run::start("--docker", Some(daemon));
        run.until_test("docker", 2);
        kill_process_group(run.pid(), signal).unwrap();
        run.leaves_nothing();
    }
}

/// What the tests above look for would be seen.
#[test]
fn a_leak_of_each_kind_is_seen() {
    let _alone = alone();
    let mut watch = Watch::new(None);
    assert_eq!(watch.left(Duration::ZERO), [""; 0]);
    // It leaves its parent, its session, its environment and its directory.
    let hidden = "cd / && setsid env -i PATH=\"$PATH\" sleep 4567 </dev/null >/dev/null 2>&1 &";
    assert!(Command::new("sh").args(["-c", hidden]).status().unwrap().success());
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let us = std::process::id() as i32;
    watch.ports = ports_of(&BTreeSet::from([us]));
    assert!(watch.ports.contains(&listener.local_addr().unwrap().port()));
    fs::write(watch.temporary.path().join("forgotten"), "").unwrap();
    watch.pids.insert(us);
    let directory = places::runs().unwrap().join(format!("run-{us}-0-redis"));
    fs::create_dir(&directory).unwrap();
    // The process has begun when it has this name.
    let seen = |what: &str| watch.left_now().iter().any(|left| left.contains(what));
    let deadline = Instant::now() + PATIENCE;
    while !seen("sleep 4567") && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let left = watch.left(Duration::ZERO);
    fs::remove_dir(&directory).unwrap();
    for pid in descendants() {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
    for what in ["sleep 4567", "/forgotten", "directory run-", "port "] {
        assert!(left.iter().any(|left| left.contains(what)), "{what} is not in {left:?}");
    }
    drop(listener);
    fs::remove_file(watch.temporary.path().join("forgotten")).unwrap();
    assert_eq!(watch.left(PATIENCE), [""; 0]);
    assert!(!Path::new(&directory).exists());
}
