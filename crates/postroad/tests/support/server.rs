//! The server process: started, killed, restarted on the same data and port, and always stopped.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Client, PATIENCE, free_port};

/// How a server is started.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    config: String,
    env: Vec<(String, String)>,
    nofile: Option<u32>,
    data: Option<PathBuf>,
    arguments: Vec<String>,
    program: Vec<String>,
    door: Option<u16>,
}

impl Setup {
    /// A further argument of `serve`.
    #[allow(dead_code, reason = "for tests of other doors")]
    pub(crate) fn argument(mut self, text: &str) -> Self {
        self.arguments.push(text.to_owned());
        self
    }

    /// Another program than ours; `{port}` and `{data}` in its words are filled in. To be started with [`Setup::launch`].
    #[allow(dead_code, reason = "for tests that are tested on other brokers")]
    pub(crate) fn program(mut self, words: &[&str]) -> Self {
        self.program = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The port of another program.
    #[allow(dead_code, reason = "for tests that are tested on other brokers")]
    pub(crate) fn door(mut self, port: u16) -> Self {
        self.door = Some(port);
        self
    }

    /// Text of the configuration file.
    pub(crate) fn config(toml: &str) -> Self {
        Self { config: toml.to_owned(), ..Self::default() }
    }

    /// A variable of the server's environment. `LD_PRELOAD` reaches the server only, not its shell.
    pub(crate) fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.env.push((key.to_owned(), value.into()));
        self
    }

    /// How many files the server may open.
    pub(crate) fn nofile(mut self, limit: u32) -> Self {
        self.nofile = Some(limit);
        self
    }

    /// Another data directory than one inside the test's own temporary directory.
    pub(crate) fn data(mut self, path: &Path) -> Self {
        self.data = Some(path.to_owned());
        self
    }

    /// Starts and waits for the greeting.
    pub(crate) fn start(self) -> Server {
        let mut server = self.launch();
        server.wait_ready();
        server
    }

    /// Starts without waiting, for servers that are expected to refuse.
    pub(crate) fn launch(self) -> Server {
        let home = tempfile::Builder::new().prefix("postroad-test-").tempdir().expect("temp dir");
        let data = self.data.clone().unwrap_or_else(|| home.path().join("data"));
        let port = free_port();
        let (child, watcher) = self.spawn(home.path(), &data, port);
        Server { setup: self, home, data, port, child, watcher }
    }

    fn spawn(&self, home: &Path, data: &Path, port: u16) -> (Child, Watcher) {
        let nofile = self.nofile.unwrap_or(20_000);
        let mut vars = String::new();
        for (key, value) in &self.env {
            use std::fmt::Write;
            write!(vars, " '{key}={value}'").expect("a string");
        }
        // It waits for its watcher: there is no moment at which our death would leave a server behind.
        let script = format!(
            "read -r go || exit 1; ulimit -n {nofile} 2>/dev/null; exec env{vars} \"$0\" \"$@\" </dev/null"
        );
        let append = |name: &str| -> File {
            OpenOptions::new().create(true).append(true).open(home.join(name)).expect("log file")
        };
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        if self.program.is_empty() {
            command.args([env!("CARGO_BIN_EXE_postroad"), "serve", "--data"]).arg(data);
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
            command.args(&self.arguments);
        } else {
            let door = self.door.unwrap_or(port).to_string();
            let place = data.display().to_string();
            command.args(
                self.program.iter().map(|word| word.replace("{port}", &door).replace("{data}", &place)),
            );
        }
        command
            .current_dir(home)
            .stdin(Stdio::piped())
            .stdout(append("stdout.log"))
            .stderr(append("stderr.log"));
        if !self.config.is_empty() {
            let path = home.join("postroad.toml");
            fs::write(&path, &self.config).expect("config file");
            command.arg("--config").arg(path);
        }
        let mut child = command.spawn().expect("sh starts");
        let watcher = Watcher::start(child.id(), home);
        let mut gate = child.stdin.take().expect("a pipe");
        gate.write_all(b"go\n").expect("sh reads");
        (child, watcher)
    }
}

/// Kills a server and removes its directory when this process is gone, however it went: then its pipe ends.
struct Watcher {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Watcher {
    fn start(server: u32, home: &Path) -> Self {
        let script = "read -r leave && exit 0; kill -s KILL \"$1\"; rm -rf -- \"$2\" || rm -rf -- \"$2\"";
        let mut child = Command::new("sh")
            .args(["-c", script, "sh", &server.to_string()])
            .arg(home)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Control-C in a terminal goes to the group of the test; the watcher outlives it.
            .process_group(0)
            .spawn()
            .expect("sh starts");
        let pipe = child.stdin.take();
        Self { child, pipe }
    }

    /// When the server has been waited for: its number may be somebody else's from now on.
    fn dismiss(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            let _ = pipe.write_all(b"leave\n");
        }
        let _ = self.child.wait();
    }
}

/// A running (or killed) server. Dropping it ends the process and removes its directory.
pub(crate) struct Server {
    setup: Setup,
    home: TempDir,
    data: PathBuf,
    port: u16,
    child: Child,
    watcher: Watcher,
}

impl Server {
    /// A server with nothing configured.
    pub(crate) fn start() -> Self {
        Setup::default().start()
    }

    pub(crate) fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new connection, its greeting read.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.port).unwrap_or_else(|error| panic!("connect: {error}\n{}", self.stderr()))
    }

    /// A new connection, or the reason why there is none.
    pub(crate) fn try_client(&self) -> std::io::Result<Client> {
        Client::connect(self.port)
    }

    pub(crate) fn wait_ready(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            if Client::connect(self.port).is_ok() {
                return;
            }
            if let Some(status) = self.child.try_wait().expect("wait") {
                panic!("the server ended at start: {status}\n{}", self.stderr());
            }
            assert!(Instant::now() < end, "no greeting in {PATIENCE:?}\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `kill -9`, and waits for the end.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Asks it to end in good order.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Makes it stand still, with its connections open.
    #[allow(dead_code, reason = "not all tests that share this pause it")]
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    #[allow(dead_code, reason = "not all tests that share this pause it")]
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().expect("kill");
        assert!(done.success(), "kill -s {name} {}", self.pid());
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait_exit(&mut self, patience: Duration) -> ExitStatus {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < end, "still running after {patience:?}\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// True while the process runs.
    pub(crate) fn alive(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Starts again on the same data and port; does not wait for the greeting.
    pub(crate) fn respawn(&mut self) {
        self.watcher.dismiss();
        (self.child, self.watcher) = self.setup.spawn(self.home.path(), &self.data, self.port);
    }

    /// Another configuration from the next start on.
    pub(crate) fn set_config(&mut self, toml: &str) {
        toml.clone_into(&mut self.setup.config);
    }

    /// Starts again after an end, without the environment of the first start.
    pub(crate) fn restart_plain(&mut self) {
        self.setup.env.clear();
        self.restart();
    }

    /// Starts again after an end, and waits for the greeting.
    pub(crate) fn restart(&mut self) {
        self.respawn();
        self.wait_ready();
    }

    /// `kill -9` and start again.
    pub(crate) fn bounce9(&mut self) {
        self.kill9();
        self.restart();
    }

    /// All that was written to stderr, over all starts.
    pub(crate) fn stderr(&self) -> String {
        let bytes = fs::read(self.home.path().join("stderr.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Resident memory in KiB.
    pub(crate) fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the server lives");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    }

    /// Processor time used so far, in seconds.
    pub(crate) fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the server lives");
        let after = stat.rsplit(')').next().expect("stat");
        let ticks: u64 =
            after.split_whitespace().skip(11).take(2).map(|text| text.parse::<u64>().expect("ticks")).sum();
        ticks as f64 / 100.0
    }

    /// All segment files of the logs, sorted.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.data.join("streams")];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|ext| ext == "jsonl") {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.watcher.dismiss();
        if std::thread::panicking() {
            let text = self.stderr();
            let tail: Vec<&str> = text.lines().rev().take(15).collect();
            println!("--- the end of the server's stderr ({}):", self.data.display());
            for line in tail.iter().rev() {
                println!("{line}");
            }
        }
    }
}
