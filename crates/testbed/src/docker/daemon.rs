//! Is there a daemon and a Compose that works? If not, and where it may be done: get them.

use super::cache;
use crate::process::{MARK, is_alive};
use crate::run::{last_lines, output, output_within, which};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Where a daemon of ours has its socket and its locks. A short path (sockets want one), gone after a boot.
const RUN: &str = "/run/postroad-testbed";
/// How long `docker info` may take.
const ANSWER: Duration = Duration::from_secs(20);
/// How long a daemon may take to come up, or to stop with its containers.
const CHANGE: Duration = Duration::from_secs(60);
/// What is built where there is no Compose.
const COMPOSE: &str = "v2.40.3";
/// The first Compose with configs in the file itself.
const OLDEST_COMPOSE: (u32, u32, u32) = (2, 23, 1);

/// Starts a daemon, waits until its owner is gone, then until nobody else uses it, and stops it.
/// Arguments: the lock, the log, the directory of its run-time state, then the daemon and its arguments. Says the daemon's process id.
const KEEPER: &str = r#"
trap : HUP INT TERM
lock=$1 log=$2 exec=$3
shift 3
"$@" </dev/null >>"$log" 2>&1 &
pid=$!
echo "$pid"
exec >/dev/null
while read -r _; do :; done
exec 9<"$lock"
flock -x 9
kill -s TERM "$pid"
wait "$pid"
for mount in "$exec"/netns/*; do umount "$mount"; done 2>/dev/null
rm -rf "$exec"
"#;

/// What a daemon that has stopped leaves in its directory, its mount included.
const CLEAR: &str = r#"for mount in "$1"/netns/*; do umount "$mount"; done 2>/dev/null; rm -rf "$1""#;

/// How long a daemon that we start stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// As long as the [`Daemon`] that started it, however its process ends, and while others use it.
    Owned,
    /// Until [`stop_kept`].
    Kept,
}

/// A Docker daemon that answers, and a Compose that works with it.
#[derive(Debug)]
pub struct Daemon {
    /// `DOCKER_HOST`, where it is not the usual one.
    host: Option<String>,
    compose: Compose,
    /// The version that `docker info` gave.
    pub version: String,
    /// Held shared while a daemon of ours is used, so that who started it does not stop it.
    in_use: Option<File>,
    keeper: Option<Child>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Compose {
    Plugin,
    Program(PathBuf),
}

impl Daemon {
    /// A daemon that is there and a Compose that works. The error says what is missing and how to get it.
    pub fn find() -> Result<Self> {
        let mut found =
            Self::answering().context("no Docker daemon answers (`cargo xtask up --install` starts one)")?;
        found.compose = find_compose().with_context(|| {
            let (a, b, c) = OLDEST_COMPOSE;
            format!("no Docker Compose {a}.{b}.{c} or newer (`cargo xtask up --install` builds one)")
        })?;
        Ok(found)
    }

    /// [`Self::find`], and where something is missing it is got: Debian's packages, a daemon, a Compose
    /// by `go build`. Needs root. A daemon that was found is left as it is.
    pub fn find_or_start(life: Life) -> Result<Self> {
        let mut found = match Self::answering() {
            Ok(found) => found,
            Err(_) => Self::start(life)?,
        };
        found.compose = match find_compose() {
            Some(compose) => compose,
            None => build_compose()?,
        };
        Ok(found)
    }

    /// The client, pointed at this daemon.
    pub fn docker(&self) -> Command {
        let mut docker = Command::new("docker");
        self.point(&mut docker);
        docker
    }

    /// Compose, pointed at this daemon; settings that somebody has for projects of his own are left out.
    pub fn compose(&self) -> Command {
        let mut compose = match &self.compose {
            Compose::Plugin => {
                let mut docker = self.docker();
                docker.arg("compose");
                docker
            }
            Compose::Program(path) => {
                let mut program = Command::new(path);
                self.point(&mut program);
                program
            }
        };
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["COMPOSE_", "POSTROAD_PORT_", "POSTROAD_IMAGE_"].iter().any(|prefix| text.starts_with(prefix))
            {
                compose.env_remove(&name);
            }
        }
        // All services of a file can be named, whatever their profiles.
        compose.env("COMPOSE_PROFILES", "*");
        compose
    }

    /// The `DOCKER_HOST` of a daemon that is not the usual one.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The version of Compose.
    pub fn compose_version(&self) -> Result<String> {
        let version = output_within(self.compose().args(["version", "--short"]), ANSWER)?;
        Ok(version.trim().to_owned())
    }

    /// The lock that keeps a daemon of ours alive, for helpers that outlive us.
    pub(crate) fn lock_file(&self) -> Option<PathBuf> {
        self.in_use.is_some().then(lock_path)
    }

    fn point(&self, command: &mut Command) {
        if let Some(host) = &self.host {
            command.env("DOCKER_HOST", host);
        }
    }

    fn at(host: Option<String>, in_use: Option<File>) -> Result<Self> {
        let mut daemon =
            Self { host, compose: Compose::Plugin, version: String::new(), in_use, keeper: None };
        let info = output_within(daemon.docker().args(["info", "--format", "{{.ServerVersion}}"]), ANSWER)?;
        info.trim().clone_into(&mut daemon.version);
        // Some clients exit with 0 although there is no server.
        ensure!(!daemon.version.is_empty(), "docker info names no server");
        Ok(daemon)
    }

    fn answering() -> Result<Self> {
        Self::at(None, None).or_else(|usual| Self::ours().map_err(|_| usual))
    }

    /// A daemon that we, or another run, started before.
    fn ours() -> Result<Self> {
        let in_use = File::open(lock_path())?;
        in_use.lock_shared()?;
        Self::at(Some(ours_host()), Some(in_use))
    }

    fn start(life: Life) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "only root can start a Docker daemon");
        if which("dockerd").is_none() || which("docker").is_none() || which("iptables").is_none() {
            apt_install(&["docker.io", "iptables"])?;
        }
        let dockerd = which("dockerd").context("there is no dockerd, also after docker.io was installed")?;
        let data = cache().join("docker");
        fs::create_dir_all(&data)?;
        fs::create_dir_all(RUN)?;
        let (lock, log) = (lock_path(), Path::new(RUN).join("dockerd.log"));
        let in_use = File::options().create(true).append(true).open(&lock)?;
        in_use.lock_shared()?;
        fs::write(&log, "")?;

        // No bridge of its own: every Compose project makes one, and takes it away.
        let mut args: Vec<String> = vec!["--bridge".into(), "none".into(), "--host".into(), ours_host()];
        for (flag, path) in [("--data-root", data), ("--exec-root", exec_dir()), ("--pidfile", pid_file())] {
            args.push(flag.into());
            args.push(path.display().to_string());
        }
        let mut keeper = match life {
            Life::Owned => {
                let mut sh = Command::new("sh");
                sh.args(["-c", KEEPER, "postroad-keeper"])
                    .args([&lock, &log, &exec_dir(), &dockerd])
                    .args(&args);
                sh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).env_remove(MARK);
                // A Ctrl-C is for us; the keeper sees our end by its stdin.
                Some(sh.process_group(0).spawn().context("starting sh")?)
            }
            Life::Kept => None,
        };
        let pid = match &mut keeper {
            Some(keeper) => {
                let stdout = keeper.stdout.take().context("the keeper has no stdout")?;
                let mut line = String::new();
                BufReader::new(stdout).read_line(&mut line)?;
                line.trim().parse::<i32>().context("the keeper did not start dockerd")?
            }
            None => {
                let (out, err) =
                    (File::options().append(true).open(&log)?, File::options().append(true).open(&log)?);
                let mut command = Command::new(&dockerd);
                command
                    .args(&args)
                    .stdin(Stdio::null())
                    .stdout(out)
                    .stderr(err)
                    .process_group(0)
                    .env_remove(MARK);
                command.spawn().context("starting dockerd")?.id() as i32
            }
        };
        // From here a failure ends what was started: the keeper by `Drop`, a kept one below.
        let mut daemon = Self {
            host: Some(ours_host()),
            compose: Compose::Plugin,
            version: String::new(),
            in_use: Some(in_use),
            keeper,
        };
        let deadline = Instant::now() + CHANGE;
        loop {
            let info =
                output_within(daemon.docker().args(["info", "--format", "{{.ServerVersion}}"]), ANSWER);
            match info.map(|version| version.trim().to_owned()) {
                Ok(version) if !version.is_empty() => {
                    daemon.version = version;
                    return Ok(daemon);
                }
                _ if !is_alive(pid) || Instant::now() > deadline => {
                    let _ = kill_process(Pid::from_raw(pid).context("no process id")?, Signal::TERM);
                    let said = last_lines(&fs::read_to_string(&log).unwrap_or_default(), 20);
                    bail!("dockerd did not come up; {}:\n{said}", log.display());
                }
                _ => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(mut keeper) = self.keeper.take() else { return };
        drop(self.in_use.take());
        let used_by_others = File::open(lock_path()).is_ok_and(|lock| lock.try_lock().is_err());
        drop(keeper.stdin.take());
        // While others use it, the keeper waits for them, without us.
        let deadline = Instant::now() + CHANGE;
        while !used_by_others && matches!(keeper.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Stops a daemon that was started to stay; says whether there was one. An error if somebody uses it.
pub fn stop_kept() -> Result<bool> {
    let Some(pid) = fs::read_to_string(pid_file()).ok().and_then(|text| text.trim().parse::<i32>().ok())
    else {
        return Ok(false);
    };
    // A number in a file may be another process by now.
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if !is_alive(pid) || !String::from_utf8_lossy(&command_line).contains(RUN) {
        return Ok(false);
    }
    let lock = File::open(lock_path())?;
    ensure!(lock.try_lock().is_ok(), "the daemon {pid} is in use by another run; it is left running");
    kill_process(Pid::from_raw(pid).context("no process id")?, Signal::TERM)?;
    let deadline = Instant::now() + CHANGE;
    while is_alive(pid) {
        ensure!(Instant::now() < deadline, "dockerd {pid} does not stop");
        thread::sleep(Duration::from_millis(20));
    }
    let mut clear = Command::new("sh");
    output(clear.args(["-c", CLEAR, "postroad-clear"]).arg(exec_dir())).map(|_| true)
}

fn exec_dir() -> PathBuf {
    Path::new(RUN).join("exec")
}

fn lock_path() -> PathBuf {
    Path::new(RUN).join("lock")
}

fn pid_file() -> PathBuf {
    Path::new(RUN).join("docker.pid")
}

fn ours_host() -> String {
    format!("unix://{RUN}/docker.sock")
}

pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "only root can install {}", packages.join(", "));
    let apt = which("apt-get")
        .with_context(|| format!("install {} by hand: no apt-get here", packages.join(", ")))?;
    // Old package lists name files that are gone; a failure here may still leave usable lists.
    let lists = output(Command::new(&apt).args(["update", "-q"]));
    let mut install = Command::new(&apt);
    install.args(["install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]);
    install.args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    output(&mut install).map_err(|error| match lists {
        Ok(_) => error,
        Err(lists) => error.context(format!("{lists:#}")),
    })?;
    Ok(())
}

fn find_compose() -> Option<Compose> {
    let works = |command: &mut Command| {
        let version = output_within(command.args(["version", "--short"]), ANSWER).ok()?;
        (parse_version(&version)? >= OLDEST_COMPOSE).then_some(())
    };
    if works(Command::new("docker").arg("compose")).is_some() {
        return Some(Compose::Plugin);
    }
    let ours = cache().join("bin/docker-compose");
    let found = [Some(ours), which("docker-compose")].into_iter().flatten();
    found.into_iter().find(|path| works(&mut Command::new(path)).is_some()).map(Compose::Program)
}

/// `docker-compose` by `go build`; Debian's own is too old, and upstream's is not a package.
fn build_compose() -> Result<Compose> {
    let module = "github.com/docker/compose/v2";
    let go = which("go").with_context(|| format!("building Docker Compose {COMPOSE} needs Go"))?;
    let work = tempfile::tempdir()?;
    fs::write(work.path().join("go.mod"), "module postroad-compose\n\ngo 1.24\n")?;
    let target = cache().join("bin/docker-compose");
    // Its module has `replace` lines, so `go install` refuses it.
    output(Command::new(&go).args(["get", &format!("{module}/cmd@{COMPOSE}")]).current_dir(work.path()))?;
    let flags = format!("-s -w -X {module}/internal.Version={COMPOSE}");
    let mut build = Command::new(&go);
    build.args(["build", "-ldflags", &flags, "-o"]).arg(&target).arg(format!("{module}/cmd"));
    output(build.current_dir(work.path()))?;
    find_compose().with_context(|| format!("{} was built and does not work", target.display()))
}

/// `v2.40.3-desktop.1` → (2, 40, 3)
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers =
        text.trim().trim_start_matches('v').split(['.', '-', '+']).map_while(|part| part.parse().ok());
    Some((numbers.next()?, numbers.next()?, numbers.next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::{OLDEST_COMPOSE, parse_version};

    #[test]
    fn old_composes_are_told_apart() {
        assert_eq!(parse_version("v2.40.3-desktop.1\n"), Some((2, 40, 3)));
        assert!(parse_version("1.29.2").unwrap() < OLDEST_COMPOSE);
        assert!(parse_version("2.9.0").unwrap() < OLDEST_COMPOSE);
        assert!(parse_version("5.0.0").unwrap() > OLDEST_COMPOSE);
        assert_eq!(parse_version("dev"), None);
    }
}
