//! The brokers of one `test-all`: where they come from, and that nothing of them stays.

use crate::sh;
use anyhow::{Result, bail, ensure};
use postroad_testbed::docker::{self, Daemon, Life, Project, Spec, images};
use postroad_testbed::{Broker, Mode, Options, Testbed, Wanted};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Instant;

/// What the container tests use: every broker, and two generations of RabbitMQ.
const IN_CONTAINERS: [&str; 7] =
    ["redis", "beanstalkd", "mosquitto", "nats", "nats-streaming", "rabbitmq@3.10", "rabbitmq@4.0"];

pub(crate) struct Brokers {
    daemon: Option<Arc<Daemon>>,
    /// The daemon was started here.
    own: bool,
}

impl Brokers {
    /// Gets everything that the tests will start, so that no test waits for a download.
    pub(crate) fn ready(docker: bool, native: bool) -> Result<Self> {
        ensure!(!(docker && native), "--docker or --native, not both");
        let brokers = match (docker, native, Daemon::find()) {
            (true, _, Err(why)) => {
                println!("{why:#}; starting one");
                Self { daemon: Some(Daemon::find_or_start(Life::Kept)?.into()), own: true }
            }
            (true, _, Ok(daemon)) => Self { daemon: Some(daemon.into()), own: false },
            // Unpacked packages are quicker to have than images that must be built.
            (false, ..) => Self { daemon: None, own: false },
        };
        println!("brokers run as {}", if brokers.are_containers() { "containers" } else { "processes" });
        match &brokers.daemon {
            Some(daemon) => {
                for name in IN_CONTAINERS {
                    let start = Instant::now();
                    let wanted: Wanted = name.parse()?;
                    let image = images::resolve(daemon, wanted.broker, wanted.version.as_deref())?;
                    println!("{name}: {} ({:.1} s)", image.image, start.elapsed().as_secs_f64());
                }
            }
            None => {
                let options = Options { mode: Some(Mode::Native), ..Options::default() };
                for broker in Broker::ALL {
                    let start = Instant::now();
                    let running = Testbed::start(broker, &options)?;
                    println!("{broker} {} ({:.1} s)", running.version(), start.elapsed().as_secs_f64());
                }
            }
        }
        Ok(brokers)
    }

    /// As `POSTROAD_TESTBED` says it.
    pub(crate) fn mode(&self) -> &'static str {
        if self.are_containers() { "docker" } else { "native" }
    }

    pub(crate) fn are_containers(&self) -> bool {
        self.daemon.is_some()
    }

    /// Our own broker in a container while `work` runs.
    pub(crate) fn with_postroad(&self, work: impl FnOnce(&str) -> Result<()>) -> Result<()> {
        let Some(daemon) = &self.daemon else { bail!("there is no daemon") };
        let image = images::postroad(daemon, &sh::target().join("debug/postroad"))?;
        // Free a moment ago; nobody else looks for ports here.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let project = Project::up(daemon, Spec::postroad(image.image, port))?;
        let worked = work(&format!("jsonlog://127.0.0.1:{port}"));
        if worked.is_err() {
            println!("{}", project.log_tail(40)?);
        }
        project.down()?;
        worked
    }

    /// Stops what was started here, and sees that nothing is left.
    pub(crate) fn gone(self) -> Result<()> {
        let Some(daemon) = self.daemon else { return Ok(()) };
        let left = docker::projects(&daemon)?;
        drop(daemon);
        if self.own {
            docker::stop_kept()?;
        }
        ensure!(left.is_empty(), "containers are left: {left:?}");
        Ok(())
    }
}
