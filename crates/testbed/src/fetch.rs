//! Getting a broker that the system does not have, without installing it: Debian's packages unpacked into
//! `target/peers`, Go programs built into `target/tools`.

use crate::broker::{Broker, Wanted};
use crate::places;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The one release of nats-streaming-server that there will be.
pub const NATS_STREAMING: &str = "0.25.6";

/// How a broker is got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// A package of Debian.
    Package(&'static str),
    /// A Go program: module path with version.
    Go(String),
}

impl Way {
    /// The way for `wanted`.
    pub fn of(wanted: &Wanted) -> Self {
        let version = wanted.version.as_deref();
        match wanted.broker {
            Broker::RabbitMq => Self::Package("rabbitmq-server"),
            Broker::Mosquitto => Self::Package("mosquitto"),
            Broker::Redis => Self::Package("redis-server"),
            Broker::Beanstalkd => Self::Package("beanstalkd"),
            Broker::Nats => {
                let version = version.map_or_else(|| "latest".into(), |version| format!("v{version}"));
                Self::Go(format!("github.com/nats-io/nats-server/v2@{version}"))
            }
            Broker::NatsStreaming => Self::Go(format!(
                "github.com/nats-io/nats-streaming-server@v{}",
                version.unwrap_or(NATS_STREAMING)
            )),
        }
    }

    /// The command by which a person would install it for the whole system.
    pub fn by_hand(&self) -> String {
        match self {
            Self::Package(package) => format!("apt-get install {package}"),
            Self::Go(module) => format!("go install {module}"),
        }
    }

    /// Why it cannot be gone here, if so.
    pub fn obstacle(&self) -> Option<&'static str> {
        match self {
            Self::Package(_) if which("apt-get").is_none() => Some("there is no apt-get"),
            Self::Package(_) if which("dpkg").is_none() => Some("there is no dpkg"),
            Self::Go(_) if which("go").is_none() => Some("there is no go (1.21 or newer)"),
            _ => None,
        }
    }
}

/// What Debian's packages were unpacked into.
pub(crate) fn root() -> PathBuf {
    places::peers().join("root")
}

/// Where unpacked programs find their libraries, and Erlang itself.
pub(crate) fn environment() -> Vec<(OsString, OsString)> {
    let libs = ["usr/lib", "lib"].iter().filter_map(|lib| fs::read_dir(root().join(lib)).ok()).flatten();
    let libs = libs.filter_map(|entry| Some(entry.ok()?.path()));
    let libs = libs.filter(|path| path.to_string_lossy().contains("-linux-gnu"));
    let mut env = Vec::new();
    if let Ok(libs) = std::env::join_paths(libs) {
        env.push(("LD_LIBRARY_PATH".into(), libs));
    }
    let erlang = root().join("usr/lib/erlang/bin");
    if erlang.is_dir() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::iter::once(erlang).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(dirs) {
            env.push(("PATH".into(), path));
        }
    }
    env
}

/// The first file called `name` on `PATH` or where Debian keeps daemons.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Fetches it. One process at a time does; the others wait, and find it there.
pub fn fetch(wanted: &Wanted) -> Result<()> {
    let way = Way::of(wanted);
    if let Some(obstacle) = way.obstacle() {
        bail!("{wanted} is not here and {obstacle} to get it by (`{}`)", way.by_hand());
    }
    let lock = File::create(places::testbed()?.join("fetch.lock"))?;
    lock.lock()?;
    if crate::programs::find(wanted).is_some() {
        return Ok(());
    }
    match &way {
        Way::Package(package) => unpack(package),
        Way::Go(module) => go_install(module),
    }
    .with_context(|| format!("getting {wanted}"))
}

fn go_install(module: &str) -> Result<()> {
    let tools = places::tools();
    fs::create_dir_all(&tools)?;
    let go = which("go").context("there is no go")?;
    // In an empty directory: a go.mod above would be asked for versions.
    let aside = tempfile::tempdir()?;
    run(Command::new(go).args(["install", module]).env("GOBIN", tools).current_dir(aside.path()))
}

fn unpack(package: &str) -> Result<()> {
    let (debs, root) = (places::peers().join("debs"), root());
    fs::create_dir_all(debs.join("partial"))?;
    fs::create_dir_all(&root)?;
    let download = || {
        // `install --download-only` brings what the package needs and this system lacks, and installs nothing.
        run(Command::new("apt-get")
            .args(["install", "--download-only", "--yes", "--no-install-recommends", "-q", "-o"])
            .arg(format!("Dir::Cache::archives={}", debs.display()))
            .args(["-o", "APT::Sandbox::User=root", package])
            .env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if let Err(first) = download() {
        // Lists that are old name files that are gone; only root may renew them.
        run(Command::new("apt-get").args(["update", "-q"])).map_err(|_| first)?;
        download()?;
    }
    for entry in fs::read_dir(&debs)? {
        let file = entry?.path();
        if file.extension().is_some_and(|ext| ext == "deb") {
            run(Command::new("dpkg").arg("--extract").arg(&file).arg(&root))?;
        }
    }
    relocate_erlang(&root)
}

/// Debian's `erl` looks for Erlang where the package would install it.
fn relocate_erlang(root: &Path) -> Result<()> {
    let home = root.join("usr/lib/erlang");
    let script = home.join("bin/erl");
    let Ok(text) = fs::read_to_string(&script) else { return Ok(()) };
    let moved = text.replace("ROOTDIR=/usr/lib/erlang\n", &format!("ROOTDIR='{}'\n", home.display()));
    fs::write(&script, moved).with_context(|| format!("changing {}", script.display()))
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {program}"))?;
    if out.status.success() {
        return Ok(());
    }
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    bail!("{program} {}: {}\n{}", args.join(" "), out.status, String::from_utf8_lossy(&out.stderr))
}

#[cfg(test)]
mod tests {
    use super::Way;

    #[test]
    fn the_way_to_a_broker_names_its_version() {
        assert_eq!(Way::of(&"redis".parse().unwrap()), Way::Package("redis-server"));
        let nats = Way::of(&"nats@2.10.27".parse().unwrap());
        assert_eq!(nats.by_hand(), "go install github.com/nats-io/nats-server/v2@v2.10.27");
        let stan = Way::of(&"nats-streaming".parse().unwrap());
        assert!(stan.by_hand().ends_with("@v0.25.6"));
    }
}
