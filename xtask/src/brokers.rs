//! The brokers of one `test-all`: where they come from, and that nothing of them stays.

use crate::sh;
use anyhow::{Result, bail, ensure};
use postroad_testbed::docker::{self, Daemon, Life, Project, Spec, images};
use postroad_testbed::{Broker, Mode, Options, Port, Testbed, Wanted};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the container tests use.
const IN_CONTAINERS: [&str; 9] = [
    "redis@7.0",
    "beanstalkd@1.12",
    "mosquitto@2.0.21",
    "mosquitto@2.0.11",
    "nats@2.15",
    "nats@2.10",
    "nats-streaming@0.25.6",
    "rabbitmq@4.0",
    "rabbitmq@3.10",
];

/// How long helpers may take that clean up after processes that have just ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// What took how long.
pub(crate) type Times = Vec<(String, Duration)>;

pub(crate) struct Brokers {
    daemon: Option<Arc<Daemon>>,
}

impl Brokers {
    /// Gets everything that the tests will start, so that no test waits for a download; says what took how long.
    pub(crate) fn ready(docker: bool, native: bool) -> Result<(Self, Times)> {
        ensure!(!(docker && native), "--docker or --native, not both");
        let mut times = Times::new();
        let mut took = |what: String, start: Instant| {
            println!("{what} ({:.1} s)", start.elapsed().as_secs_f64());
            times.push((what, start.elapsed()));
        };
        // Unpacked packages are quicker to have than images that must be built.
        let mut daemon = None;
        if docker {
            let start = Instant::now();
            // One that is started here goes with us, however we end.
            let found = Daemon::find_or_start(Life::Owned)?;
            took(format!("Docker {}, Compose {}", found.version, found.compose_version()?), start);
            daemon = Some(Arc::new(found));
        }
        let brokers = Self { daemon };
        println!("brokers run as {}", if brokers.are_containers() { "containers" } else { "processes" });
        match &brokers.daemon {
            Some(daemon) => {
                for name in IN_CONTAINERS {
                    let start = Instant::now();
                    let wanted: Wanted = name.parse()?;
                    let image = images::resolve(daemon, wanted.broker, wanted.version.as_deref())?;
                    took(format!("{} {}", image.image, image.how), start);
                }
            }
            None => {
                let options = Options { mode: Some(Mode::Native), ..Options::default() };
                for broker in Broker::ALL {
                    let start = Instant::now();
                    let running = Testbed::start(broker, &options)?;
                    took(format!("{broker} {}", running.version()), start);
                }
            }
        }
        Ok((brokers, times))
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
        let port = Port::claim()?;
        let project = Project::up(daemon, Spec::postroad(image.image, port.number()))?;
        let worked = work(&format!("jsonlog://127.0.0.1:{}", port.number()));
        if worked.is_err() {
            println!("{}", project.log_tail(40)?);
        }
        project.down()?;
        worked
    }

    /// Sees that nothing is left of brokers whose processes have ended, and stops a daemon that was started here.
    pub(crate) fn gone(self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut left = postroad_testbed::leftovers()?;
            if let Some(daemon) = &self.daemon {
                left.extend(docker::leftovers(daemon)?);
            }
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "brokers are left: {left:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
