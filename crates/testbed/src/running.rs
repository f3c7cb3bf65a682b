//! A broker that runs, and what a test may do to it.

use crate::broker::{Broker, Service, Wanted};
use crate::docker::{self, Daemon, Data, Owner, Project, Spec};
use crate::probe;
use crate::process::{self, Group, Launch, Process, Run};
use crate::programs::Program;
use crate::recipe::{self, Ports};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// How long a broker may take to stop by itself.
const GRACE: Duration = Duration::from_secs(20);

/// Where a broker comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Somebody else runs it; the environment says where.
    External,
    /// A container of ours.
    Container,
    /// A process of ours, by a program of the system.
    Process,
    /// A process of ours, by a program fetched for it.
    Fetched,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::External => "external",
            Self::Container => "container",
            Self::Process => "process",
            Self::Fetched => "process (fetched)",
        })
    }
}

/// A broker that answers. Dropping it ends it, with its data, unless somebody else runs it.
#[derive(Debug)]
pub struct Running {
    broker: Broker,
    version: String,
    source: Source,
    doors: BTreeMap<Service, SocketAddr>,
    ready_timeout: Duration,
    how: How,
}

#[derive(Debug)]
enum How {
    External,
    Native(Box<Native>),
    Container(Box<Container>),
}

#[derive(Debug)]
struct Container {
    /// `None` only while it is let go of.
    project: Option<Project>,
    /// Claimed for as long as it may come back.
    _ports: Ports,
}

impl Container {
    fn project(&self) -> Result<&Project> {
        self.project.as_ref().context("the container is gone")
    }
}

#[derive(Debug)]
struct Native {
    program: Program,
    launch: Launch,
    run: Run,
    /// Claimed for as long as it may come back.
    _ports: Ports,
    stays: bool,
    /// It is not ours to end any more.
    left: bool,
    /// `None` after a stop or a kill.
    process: Option<Process>,
}

impl Drop for Native {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        if let Some(process) = self.process.take() {
            process.kill();
        }
        self.run.remove();
    }
}

impl Running {
    /// One that somebody else runs; it is asked whether it answers.
    pub(crate) fn external(
        broker: Broker,
        doors: BTreeMap<Service, SocketAddr>,
        limit: Duration,
    ) -> Result<Self> {
        probe::until_ready(broker, &doors, limit, || Ok(()))?;
        Ok(Self {
            broker,
            version: String::new(),
            source: Source::External,
            doors,
            ready_timeout: limit,
            how: How::External,
        })
    }

    /// A process of ours.
    pub(crate) fn native(program: Program, limit: Duration, stays: bool) -> Result<Self> {
        let ports = Ports::claim(program.broker)?;
        let mut run = Run::create(if stays { "up" } else { process::ENDS }, program.broker.name())?;
        let launch = recipe::prepare(&program, &run, &ports).inspect_err(|_| run.remove())?;
        let mut running = Self {
            broker: program.broker,
            version: program.version.clone(),
            source: if program.fetched { Source::Fetched } else { Source::Process },
            doors: ports.addresses(),
            ready_timeout: limit,
            how: How::Native(Box::new(Native {
                program,
                launch,
                run,
                _ports: ports,
                stays,
                left: false,
                process: None,
            })),
        };
        running.start()?;
        Ok(running)
    }

    /// A container of ours, its data on the disk so that a restart finds it.
    pub(crate) fn container(
        daemon: &Arc<Daemon>,
        wanted: &Wanted,
        limit: Duration,
        owner: Owner,
    ) -> Result<Self> {
        let broker = wanted.broker;
        let image = docker::images::resolve(daemon, broker, wanted.version.as_deref())?.image;
        let ports = Ports::claim(broker)?;
        let doors = ports.addresses();
        let numbers = doors.iter().map(|(service, address)| (*service, address.port())).collect();
        let spec = Spec { data: Data::Disk, owner, ..Spec::broker(broker, image.clone(), &numbers) };
        let project = Project::up(daemon, spec)?;
        let name = project.name().to_owned();
        let project = Some(project);
        let mut running = Self {
            broker,
            version: image.rsplit_once(':').map_or_else(String::new, |(_, tag)| tag.to_owned()),
            source: Source::Container,
            doors,
            ready_timeout: limit,
            how: How::Container(Box::new(Container { project, _ports: ports })),
        };
        if let Err(error) = running.wait_until_ready() {
            // One that would stay is not removed by being dropped.
            docker::remove(daemon, &name)?;
            return Err(error);
        }
        Ok(running)
    }

    /// Which broker it is.
    pub fn broker(&self) -> Broker {
        self.broker
    }

    /// Its version; of a container the tag of its image; empty if somebody else runs it.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Where it comes from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The address of a door; an error if this broker has no such door, or an external one whose address
    /// the environment does not say.
    pub fn address(&self, service: Service) -> Result<SocketAddr> {
        self.doors.get(&service).copied().with_context(|| {
            let variable = self.broker.variable(service);
            format!("{} has no {} here (an external one is named by {variable})", self.broker, service.name())
        })
    }

    /// All doors and their addresses.
    pub fn addresses(&self) -> &BTreeMap<Service, SocketAddr> {
        &self.doors
    }

    /// `amqp://127.0.0.1:21000`
    pub fn url(&self, service: Service) -> Result<String> {
        Ok(format!("{}://{}", service.scheme(), self.address(service)?))
    }

    /// Its process group, if it is a process of ours and runs.
    pub fn process_id(&self) -> Option<i32> {
        match &self.how {
            How::Native(native) => native.process.as_ref().map(|process| process.group.leader),
            How::Container(_) | How::External => None,
        }
    }

    /// Where its files are, if it is a process of ours.
    pub fn dir(&self) -> Option<&Path> {
        match &self.how {
            How::Native(native) => Some(&native.run.dir),
            How::Container(_) | How::External => None,
        }
    }

    fn not_ours<T>(&self, what: &str) -> Result<T> {
        bail!("cannot {what} {}: somebody else runs it", self.broker)
    }

    /// Starts it again after [`Running::stop`] or [`Running::kill`]: same data, same ports. Returns when it is ready.
    pub fn start(&mut self) -> Result<()> {
        match &mut self.how {
            How::Native(native) if native.process.is_some() => return Ok(()),
            How::Native(native) => {
                native.process = Some(Process::start(&native.launch, &native.run, native.stays)?);
            }
            How::Container(container) => container.project()?.start()?,
            How::External => return self.not_ours("start"),
        }
        self.wait_until_ready()
    }

    /// Waits until every door answers; an error shows the end of its log.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let (broker, limit, doors) = (self.broker, self.ready_timeout, self.doors.clone());
        let ready = probe::until_ready(broker, &doors, limit, || match &mut self.how {
            How::Native(native) => match native.process.as_mut().map(Process::ended) {
                Some(Ok(Some(status))) => bail!("{broker} ended at its start: {status}"),
                Some(Err(error)) => Err(error),
                _ => Ok(()),
            },
            How::Container(_) | How::External => Ok(()),
        });
        ready
            .map(drop)
            .map_err(|error| error.context(format!("{broker}: its log ends\n{}", self.log_tail(40))))
    }

    /// Lets it stop by itself (SIGTERM). Its data stays for [`Running::start`].
    pub fn stop(&mut self) -> Result<()> {
        match &mut self.how {
            How::Native(native) => match native.process.take() {
                Some(process) => {
                    process.stop(GRACE).with_context(|| format!("stopping {}", native.program.broker))
                }
                None => Ok(()),
            },
            How::Container(container) => container.project()?.stop().map(drop),
            How::External => self.not_ours("stop"),
        }
    }

    /// Ends it without a chance to write anything (`kill -9`). Its data stays for [`Running::start`].
    pub fn kill(&mut self) -> Result<()> {
        match &mut self.how {
            How::Native(native) => {
                if let Some(process) = native.process.take() {
                    process.kill();
                }
                Ok(())
            }
            How::Container(container) => container.project()?.kill(),
            How::External => self.not_ours("kill"),
        }
    }

    /// [`Running::stop`], then [`Running::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// Freezes it: its sockets stay open and nothing answers (SIGSTOP to all its processes, or
    /// `docker pause`).
    pub fn pause(&mut self) -> Result<()> {
        match &self.how {
            How::Container(container) => container.project()?.pause(),
            _ => self.signal("pause", Signal::STOP),
        }
    }

    /// Ends [`Running::pause`].
    pub fn resume(&mut self) -> Result<()> {
        match &self.how {
            How::Container(container) => container.project()?.unpause(),
            _ => self.signal("resume", Signal::CONT),
        }
    }

    fn signal(&self, what: &str, signal: Signal) -> Result<()> {
        match &self.how {
            How::Native(native) => {
                let process = native.process.as_ref();
                process.with_context(|| format!("cannot {what} what does not run"))?.group.signal(signal)
            }
            _ => self.not_ours(what),
        }
    }

    /// The last lines of what it printed; empty if somebody else runs it.
    pub fn log_tail(&self, lines: usize) -> String {
        match &self.how {
            How::Native(native) => process::tail(&native.run.log(), lines),
            How::Container(container) => container
                .project()
                .and_then(|project| project.log_tail(lines))
                .unwrap_or_else(|error| format!("no log: {error:#}")),
            How::External => String::new(),
        }
    }

    /// A command of the broker's own that lies beside its program, with its environment: `rabbitmqctl`,
    /// `rabbitmq-diagnostics`, `mosquitto_ctrl`.
    pub fn tool(&self, name: &str) -> Result<Command> {
        let How::Native(native) = &self.how else { bail!("{} is not a process of ours", self.broker) };
        let beside = native.program.file.with_file_name(name);
        if !beside.is_file() {
            bail!("there is no {}", beside.display());
        }
        Ok(native.launch.command(&beside))
    }

    /// Lets it run on when we end; [`Left::end`] ends it.
    pub(crate) fn leave(mut self) -> Result<Left> {
        // What is taken out of `how` is not ours to remove any more.
        match std::mem::replace(&mut self.how, How::External) {
            How::Native(mut native) => {
                let group = native.process.take().context("it does not run")?.detach();
                native.left = true;
                Ok(Left::Process { group, dir: native.run.dir.clone() })
            }
            How::Container(container) => {
                // A kept project is not removed when it is dropped.
                Ok(Left::Container { project: container.project()?.name().to_owned() })
            }
            How::External => self.not_ours("leave"),
        }
    }
}

/// A server that was left running.
#[derive(Clone, Debug)]
pub(crate) enum Left {
    /// A process group and its directory.
    Process { group: Group, dir: PathBuf },
    /// A Compose project.
    Container { project: String },
}

impl Left {
    /// Stops it, by itself if it can, and removes its files.
    pub(crate) fn end(&self) -> Result<()> {
        match self {
            Self::Process { group, .. } => {
                group.stop(GRACE);
                self.remove_files();
                Ok(())
            }
            Self::Container { project } => docker::remove(&Daemon::find()?, project),
        }
    }

    /// Removes the files of one whose processes are gone.
    pub(crate) fn remove_files(&self) {
        if let Self::Process { group, dir } = self {
            Run::of(group.run.clone(), dir.clone()).remove();
        }
    }

    /// Whether anything of it is there.
    pub(crate) fn exists(&self) -> bool {
        match self {
            Self::Process { group, .. } => !process::marked(&group.run).is_empty(),
            Self::Container { project } => {
                Daemon::find().and_then(|daemon| Project::exists(&daemon, project)).unwrap_or(false)
            }
        }
    }

    /// The last lines of what it printed.
    pub(crate) fn log_tail(&self, lines: usize) -> Result<String> {
        match self {
            Self::Process { dir, group } => {
                let run = Run::of(group.run.clone(), dir.clone());
                Ok(process::tail(&run.log(), lines))
            }
            Self::Container { project } => {
                let daemon = Daemon::find()?;
                let ids = daemon
                    .docker()
                    .args(["ps", "-aq", "--filter"])
                    .arg(format!("label=com.docker.compose.project={project}"))
                    .output()?;
                let ids = String::from_utf8_lossy(&ids.stdout).into_owned();
                let id = ids.lines().next().context("its container is gone")?;
                let out = daemon.docker().args(["logs", "--tail", &lines.to_string(), id]).output()?;
                let texts =
                    [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                Ok(texts.concat())
            }
        }
    }
}
