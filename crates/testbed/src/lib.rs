//! Real brokers for tests: an external one, one in a container, or a process of our own.
//!
//! ```no_run
//! use postroad_testbed::{Broker, Options, Service, Testbed};
//!
//! let mut redis = Testbed::start(Broker::Redis, &Options::default())?;
//! println!("{} {} at {}", redis.broker(), redis.version(), redis.url(Service::Redis)?);
//! redis.kill()?; // kill -9
//! redis.start()?; // same port, same data
//! # anyhow::Ok(())
//! ```
//!
//! It comes from the first of these that there is:
//!
//! 1. the environment: `POSTROAD_TEST_REDIS_URL=redis://10.0.0.7:6379` (further doors as
//!    `POSTROAD_TEST_RABBITMQ_STREAM_URL`; a door that is not named is not there);
//! 2. a container, where a Docker daemon answers and Compose works;
//! 3. a program of the system;
//! 4. a program fetched into the target directory: Debian's package, unpacked but not installed, or `go install`.
//!
//! When a call returns, every door has answered in its own protocol. All calls block; from async code use
//! `spawn_blocking`. What was started here ends with its [`Running`], and with this process, also if that is killed.

mod broker;
pub mod debian;
pub mod docker;
pub mod fetch;
mod left;
pub mod places;
mod ports;
pub mod probe;
mod process;
pub mod programs;
mod recipe;
pub mod run;
mod running;
pub mod supervise;
pub mod wire;

pub use broker::{Broker, STAN_CLUSTER, Service, Wanted, version_matches};
pub use left::{Standing, Up};
pub use ports::Port;
pub use running::{Running, Source};

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

/// Where a broker may come from.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Mode {
    /// The first that there is.
    #[default]
    Auto,
    /// Only a container (or the environment).
    Container,
    /// Only a process (or the environment).
    Native,
}

impl Mode {
    /// From `POSTROAD_TESTBED`: `auto`, `docker` or `native`; unset is `auto`.
    pub fn from_environment() -> Result<Self> {
        match std::env::var("POSTROAD_TESTBED").as_deref() {
            Err(_) | Ok("" | "auto") => Ok(Self::Auto),
            Ok("docker") => Ok(Self::Container),
            Ok("native") => Ok(Self::Native),
            Ok(other) => bail!("POSTROAD_TESTBED={other}: it is auto, docker or native"),
        }
    }
}

/// How a broker is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it may come from; `None` leaves it to `POSTROAD_TESTBED`.
    pub mode: Option<Mode>,
    /// Whether a program that is not here may be fetched (default: yes).
    pub fetch: bool,
    /// How long it may take until every door answers (default: 60 seconds).
    pub ready_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { mode: None, fetch: true, ready_timeout: Duration::from_secs(60) }
    }
}

/// Starts brokers.
#[derive(Clone, Copy, Debug)]
pub struct Testbed;

impl Testbed {
    /// A broker, ready. `Broker::Redis`, or a [`Wanted`] with a version.
    pub fn start(wanted: impl Into<Wanted>, options: &Options) -> Result<Running> {
        Self::resolve(&wanted.into(), options, false)
    }

    fn resolve(wanted: &Wanted, options: &Options, stays: bool) -> Result<Running> {
        process::sweep()?;
        if let Some(doors) = external(wanted.broker)? {
            return Running::external(wanted.broker, doors, options.ready_timeout);
        }
        let mode = options.mode.map_or_else(Mode::from_environment, Ok)?;
        if mode != Mode::Native {
            let owner = if stays {
                docker::Owner::Kept(wanted.to_string().replace(['@', '.'], "-"))
            } else {
                docker::Owner::Us
            };
            match docker::Daemon::find() {
                Ok(daemon) => {
                    return Running::container(&Arc::new(daemon), wanted, options.ready_timeout, owner);
                }
                Err(error) if mode == Mode::Container => return Err(error),
                Err(_) => {}
            }
        }
        let program = if options.fetch {
            programs::find_or_fetch(wanted)?
        } else {
            programs::find(wanted).with_context(|| {
                format!("{wanted} is not here; get it by `{}`", fetch::Way::of(wanted).by_hand())
            })?
        };
        Running::native(program, options.ready_timeout, stays)
    }
}

/// Names of brokers that ran as processes and whose owners are gone, with files or processes that are still there:
/// those of a run that was killed a moment ago, or of one whose helpers were killed, too.
pub fn leftovers() -> Result<Vec<String>> {
    Ok(process::leftovers()?.into_iter().map(|run| run.name).collect())
}

/// The doors that the environment names, if it names the main one.
fn external(broker: Broker) -> Result<Option<BTreeMap<Service, SocketAddr>>> {
    let mut doors = BTreeMap::new();
    for service in broker.services() {
        let variable = broker.variable(*service);
        let Ok(url) = std::env::var(&variable) else { continue };
        let address = resolve_url(&url, service.usual_port()).with_context(|| format!("{variable}={url}"))?;
        doors.insert(*service, address);
    }
    Ok(doors.contains_key(&broker.services()[0]).then_some(doors))
}

/// `amqp://guest:guest@host:5672/%2f` → the address of `host:5672`.
fn resolve_url(url: &str, usual_port: u16) -> Result<SocketAddr> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let place = rest.split(['/', '?']).next().unwrap_or(rest);
    let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
    let has_port = place.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let place = if has_port { place.to_owned() } else { format!("{place}:{usual_port}") };
    place.to_socket_addrs()?.next().context("it has no address")
}

#[cfg(test)]
mod tests {
    use super::resolve_url;

    #[test]
    fn the_address_of_a_url_is_found() {
        for (url, address) in [
            ("redis://127.0.0.1:7000", "127.0.0.1:7000"),
            ("127.0.0.1", "127.0.0.1:9"),
            ("amqp://guest:gu@est@127.0.0.1:5673/%2f?heartbeat=5", "127.0.0.1:5673"),
            ("http://[::1]:80/api", "[::1]:80"),
        ] {
            assert_eq!(resolve_url(url, 9).unwrap(), address.parse().unwrap(), "{url}");
        }
        assert!(resolve_url("redis://:0:x", 9).is_err());
    }
}
