//! Getting a broker that the system does not have, without installing it: Debian's packages unpacked
//! ([`debian`]), Go programs built into `target/tools`.

use crate::broker::{Broker, Wanted};
use crate::run::{output, which};
use crate::{debian, places};
use anyhow::{Context, Result, bail};
use std::fs;
use std::process::Command;

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
            Self::Package(_) => debian::obstacle(),
            Self::Go(_) if which("go").is_none() => Some("there is no go (1.21 or newer)"),
            _ => None,
        }
    }
}

/// Fetches it. One process at a time does; the others wait, and find it there.
pub fn fetch(wanted: &Wanted) -> Result<()> {
    let way = Way::of(wanted);
    if let Some(obstacle) = way.obstacle() {
        bail!("{wanted} is not here and {obstacle} to get it by (`{}`)", way.by_hand());
    }
    let _one_at_a_time = places::fetching()?;
    if crate::programs::find(wanted).is_some() {
        return Ok(());
    }
    match &way {
        Way::Package(package) => debian::unpack(&[package]),
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
    output(Command::new(go).args(["install", module]).env("GOBIN", tools).current_dir(aside.path())).map(drop)
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
