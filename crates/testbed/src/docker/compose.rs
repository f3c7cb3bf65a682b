//! One broker as a Compose project of its own.

use super::daemon::Daemon;
use super::owner::{MARK, Owner, Reaper, projects, remove};
use super::workspace;
use crate::broker::{Broker, Service};
use crate::run::{last_lines, output};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

/// How long containers may take until they are healthy, in seconds.
const READY_SECONDS: &str = "180";

/// Where a broker keeps its data; gone after [`Project::down`] in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Data {
    /// In memory: quick, and lost when the container stops.
    #[default]
    Memory,
    /// In a volume on the disk: there again after [`Project::restart`] and [`Project::kill`].
    Disk,
}

/// What to bring up.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The name of the compose file and of the service in it.
    pub service: String,
    /// The image, as [`images::resolve`](super::images::resolve) gives it.
    pub image: String,
    /// The loopback port for each door, by its name. One that is missing gets its usual port.
    pub ports: BTreeMap<String, u16>,
    /// Where it keeps its data.
    pub data: Data,
    /// Who it belongs to.
    pub owner: Owner,
}

impl Spec {
    /// A broker on these ports, with its data in memory, for this process.
    pub fn broker(broker: Broker, image: String, ports: &BTreeMap<Service, u16>) -> Self {
        let ports = ports.iter().map(|(service, port)| (service.name().to_owned(), *port)).collect();
        Self { service: broker.name().to_owned(), image, ports, data: Data::Memory, owner: Owner::Us }
    }

    /// Postroad itself, of an image that [`images::postroad`](super::images::postroad) built.
    pub fn postroad(image: String, jsonlog: u16) -> Self {
        let ports = BTreeMap::from([("jsonlog".to_owned(), jsonlog)]);
        Self { service: "postroad".into(), image, ports, data: Data::Memory, owner: Owner::Us }
    }
}

/// A broker in a container, healthy when it was made.
#[derive(Debug)]
pub struct Project {
    daemon: Arc<Daemon>,
    spec: Spec,
    name: String,
    reaper: Option<Reaper>,
}

impl Project {
    /// Brings it up and waits for its healthcheck. The error carries the end of the broker's log, and
    /// nothing of it is left.
    pub fn up(daemon: &Arc<Daemon>, spec: Spec) -> Result<Self> {
        super::sweep(daemon);
        let name = spec.owner.project(&spec.service)?;
        let reaper = match spec.owner {
            Owner::Us => Some(Reaper::start(daemon, &name)?),
            Owner::Kept(_) => None,
        };
        let mut project = Self { daemon: Arc::clone(daemon), spec, name, reaper };
        if let Err(error) = project.start() {
            let log = project.log_tail(40).unwrap_or_default();
            let down = project.remove();
            let error =
                error.context(format!("{} did not come up; the end of its log:\n{log}", project.name));
            return Err(match down {
                Ok(()) => error,
                Err(down) => error.context(format!("{down:#}")),
            });
        }
        Ok(project)
    }

    /// Whether a project that stays is there, running or not.
    pub fn exists(daemon: &Daemon, name: &str) -> Result<bool> {
        Ok(projects(daemon)?.contains(name))
    }

    /// The name of the project, which everything it has is labelled with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port of a door on 127.0.0.1, by its name (`amqp`, `web-stomp` …).
    pub fn port(&self, door: &str) -> Option<u16> {
        self.spec.ports.get(door).copied()
    }

    /// The last lines of the broker's log.
    pub fn log_tail(&self, lines: usize) -> Result<String> {
        let count = lines.to_string();
        let text = output(self.compose().args(["logs", "--no-color", "--no-log-prefix", "--tail", &count]))?;
        Ok(last_lines(&text, lines))
    }

    /// A clean stop and a new start, until it is healthy again.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// A clean stop, as `docker stop` does it; gives the exit code. [`Self::start`] brings it back.
    pub fn stop(&self) -> Result<i32> {
        output(self.compose().args(["stop", self.service()]))?;
        let id = output(self.compose().args(["ps", "--all", "--quiet", self.service()]))?;
        let code =
            output(self.daemon.docker().args(["inspect", "--format", "{{.State.ExitCode}}", id.trim()]))?;
        code.trim().parse().with_context(|| format!("exit code {code}"))
    }

    /// What a command in the container prints.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        output(self.compose().args(["exec", "--no-TTY", self.service()]).args(command))
    }

    /// `kill -9` of all its processes. [`Self::start`] brings it back.
    pub fn kill(&self) -> Result<()> {
        output(self.compose().args(["kill", "--signal", "KILL", self.service()])).map(drop)
    }

    /// Starts what is stopped, until it is healthy.
    pub fn start(&self) -> Result<()> {
        let mut up = self.compose();
        up.args([
            "up",
            "--detach",
            "--wait",
            "--wait-timeout",
            READY_SECONDS,
            "--pull",
            "never",
            "--no-build",
        ]);
        output(up.arg(self.service())).map(drop)
    }

    /// Freezes all its processes; connections stay open and nobody answers.
    pub fn pause(&self) -> Result<()> {
        output(self.compose().args(["pause", self.service()])).map(drop)
    }

    /// The end of [`Self::pause`].
    pub fn unpause(&self) -> Result<()> {
        output(self.compose().args(["unpause", self.service()])).map(drop)
    }

    /// Removes containers, networks and volumes, and checks that nothing is left.
    pub fn down(mut self) -> Result<()> {
        self.remove()
    }

    fn service(&self) -> &str {
        &self.spec.service
    }

    fn remove(&mut self) -> Result<()> {
        // By its file first; by its labels, whatever that left. Its data go, so nobody waits for a clean stop.
        let down = output(self.compose().args(["down", "--volumes", "--remove-orphans", "--timeout", "0"]));
        remove(&self.daemon, &self.name)?;
        let left = projects(&self.daemon)?.contains(&self.name);
        ensure!(!left, "{} is still there after it was removed: {down:?}", self.name);
        if let Some(reaper) = self.reaper.take() {
            reaper.leave();
        }
        Ok(())
    }

    fn compose(&self) -> Command {
        let mut compose = self.daemon.compose();
        compose.arg("--project-name").arg(&self.name).arg("--file").arg(file(&self.spec.service));
        compose.args(["--progress", "plain"]).env(MARK, &self.name);
        for (variable, value) in environment(&self.spec) {
            compose.env(variable, value);
        }
        compose
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if self.reaper.is_some()
            && let Err(error) = self.remove()
        {
            // The reaper, which was not told to leave, tries again.
            eprintln!("testbed: {error:#}");
        }
    }
}

/// The compose file of a service.
pub(crate) fn file(service: &str) -> PathBuf {
    workspace().join("compose").join(format!("{service}.yml"))
}

/// What the compose file is told: `POSTROAD_IMAGE_RABBITMQ`, `POSTROAD_PORT_RABBITMQ_WEB_STOMP` …
fn environment(spec: &Spec) -> Vec<(String, String)> {
    let upper = |name: &str| name.to_uppercase().replace('-', "_");
    let broker = upper(&spec.service);
    let data = match spec.data {
        Data::Memory => "memory",
        Data::Disk => "disk",
    };
    let mut variables =
        vec![(format!("POSTROAD_IMAGE_{broker}"), spec.image.clone()), ("POSTROAD_DATA".into(), data.into())];
    for (door, port) in &spec.ports {
        variables.push((format!("POSTROAD_PORT_{broker}_{}", upper(door)), port.to_string()));
    }
    variables
}

/// Whether Compose understands a file, with our variables and without. The error is what it says.
pub fn check(daemon: &Daemon, file: &std::path::Path) -> Result<String> {
    let mut compose = daemon.compose();
    compose.arg("--file").arg(file).args(["config"]);
    output(&mut compose).with_context(|| format!("{} is no compose file", file.display()))
}

#[cfg(test)]
mod tests {
    use super::{Spec, environment, file};
    use crate::broker::Broker;
    use std::collections::{BTreeMap, BTreeSet};

    fn every() -> Vec<Spec> {
        let brokers = Broker::ALL.into_iter().map(|broker| {
            let ports: BTreeMap<_, _> = broker.services().iter().copied().zip(21000..).collect();
            Spec::broker(broker, "image".into(), &ports)
        });
        brokers.chain([Spec::postroad("image".into(), 21000)]).collect()
    }

    #[test]
    fn every_variable_that_we_set_is_read_by_the_file_and_the_other_way_round() {
        for spec in every() {
            let text = std::fs::read_to_string(file(&spec.service)).unwrap();
            let set: BTreeSet<String> = environment(&spec).into_iter().map(|(name, _)| name).collect();
            let read: BTreeSet<String> = text
                .split("${")
                .skip(1)
                .filter_map(|rest| Some(rest.split_once(":-")?.0.to_owned()))
                .filter(|name| name != "POSTROAD_ADVERTISED_HOST")
                .collect();
            assert_eq!(set, read, "{}", spec.service);
        }
    }

    #[test]
    fn every_port_is_published_on_loopback_only() {
        for spec in every() {
            let text = std::fs::read_to_string(file(&spec.service)).unwrap();
            let (_, after) = text.split_once("    ports:\n").unwrap();
            let ports: Vec<&str> = after.lines().take_while(|line| line.starts_with("      - ")).collect();
            assert_eq!(ports.len(), spec.ports.len(), "{}", spec.service);
            for line in ports {
                assert!(line.starts_with("      - 127.0.0.1:${POSTROAD_PORT_"), "{}: {line}", spec.service);
            }
        }
    }
}
