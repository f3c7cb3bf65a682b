//! Brokers that are to stand until they are taken down (`cargo xtask up`): they are listed in one state file.

use crate::broker::{Broker, Service, Wanted};
use crate::process::Group;
use crate::running::{Left, Running, Source};
use crate::{Options, Testbed, places, probe};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;

/// A broker that was brought up and left.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Which one.
    pub broker: Broker,
    /// Its version.
    pub version: String,
    /// Where it comes from, in words.
    pub source: String,
    /// Its doors.
    pub doors: BTreeMap<Service, SocketAddr>,
    left: Left,
}

impl Standing {
    /// Whether its doors answer now.
    pub fn probe(&self) -> Result<()> {
        probe::once(self.broker, &self.doors)
    }

    /// Whether anything of it is there, answering or not.
    pub fn exists(&self) -> bool {
        self.left.exists()
    }

    /// What to look for in a list of processes or containers.
    pub fn handle(&self) -> String {
        match &self.left {
            Left::Process { group, .. } => format!("pid {}", group.leader),
            Left::Container { project } => format!("project {project}"),
        }
    }

    /// The last lines of what it printed.
    pub fn log_tail(&self, lines: usize) -> Result<String> {
        self.left.log_tail(lines)
    }

    /// Whether `wanted` means this one.
    pub fn is(&self, wanted: &Wanted) -> bool {
        let version = |version: &String| crate::version_matches(&self.version, version);
        self.broker == wanted.broker && wanted.version.as_ref().is_none_or(version)
    }

    fn of(running: Running) -> Result<Self> {
        let broker = running.broker();
        let (version, source) = (running.version().to_owned(), running.source().to_string());
        let doors = running.addresses().clone();
        Ok(Self { broker, version, source, doors, left: running.leave()? })
    }

    fn to_json(&self) -> Value {
        let doors: BTreeMap<_, _> =
            self.doors.iter().map(|(service, address)| (service.name(), address.to_string())).collect();
        let left = match &self.left {
            Left::Process { group, dir } => json!({ "leader": group.leader, "run": group.run, "dir": dir }),
            Left::Container { project } => json!({ "project": project }),
        };
        json!({
            "broker": self.broker.name(), "version": self.version, "source": self.source, "doors": doors,
            "left": left,
        })
    }

    fn from_json(json: &Value) -> Option<Self> {
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        let doors = json["doors"].as_object()?.iter();
        let doors =
            doors.map(|(name, address)| Some((Service::named(name)?, address.as_str()?.parse().ok()?)));
        Some(Self {
            broker: json["broker"].as_str()?.parse().ok()?,
            version: text("version")?,
            source: text("source")?,
            doors: doors.collect::<Option<_>>()?,
            left: left_from(&json["left"])?,
        })
    }
}

fn left_from(json: &Value) -> Option<Left> {
    if let Some(project) = json["project"].as_str() {
        return Some(Left::Container { project: project.into() });
    }
    let run = json["run"].as_str().filter(|run| run.starts_with("up-"))?.to_owned();
    let leader = json["leader"].as_i64()?.try_into().ok()?;
    Some(Left::Process { group: Group { leader, run }, dir: json["dir"].as_str()?.into() })
}

/// The brokers that stand, locked against other commands that change them.
#[derive(Debug)]
pub struct Up {
    standing: Vec<Standing>,
    _lock: File,
}

impl Up {
    /// Reads the state file.
    pub fn open() -> Result<Self> {
        let lock = File::create(places::testbed()?.join("up.lock"))?;
        lock.lock()?;
        let file = Self::file()?;
        let text = if file.exists() { fs::read_to_string(&file)? } else { "[]".into() };
        let json: Vec<Value> =
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
        let standing = json.iter().map(Standing::from_json).collect::<Option<Vec<_>>>();
        let standing = standing.with_context(|| format!("{} is not understood", file.display()))?;
        Ok(Self { standing, _lock: lock })
    }

    fn file() -> Result<PathBuf> {
        Ok(places::testbed()?.join("up.json"))
    }

    fn save(&self) -> Result<()> {
        let file = Self::file()?;
        if self.standing.is_empty() && file.exists() {
            return Ok(fs::remove_file(file)?);
        }
        let json: Vec<Value> = self.standing.iter().map(Standing::to_json).collect();
        let aside = file.with_extension("new");
        fs::write(&aside, serde_json::to_vec_pretty(&json)?)?;
        Ok(fs::rename(aside, file)?)
    }

    /// Those that stand.
    pub fn standing(&self) -> &[Standing] {
        &self.standing
    }

    /// Forgets those of which nothing is there any more, as after a boot; gives what they were.
    pub fn forget_gone(&mut self) -> Result<Vec<Standing>> {
        let (here, gone) = std::mem::take(&mut self.standing).into_iter().partition(Standing::exists);
        self.standing = here;
        for standing in &gone {
            let standing: &Standing = standing;
            standing.left.remove_files();
        }
        self.save()?;
        Ok(gone)
    }

    /// Brings one up that outlives us; gives it as it is if it stands already.
    pub fn up(&mut self, wanted: &Wanted, options: &Options) -> Result<Standing> {
        if let Some(at) = self.standing.iter().position(|standing| standing.is(wanted)) {
            // Whoever answers on its ports after a boot may be somebody else.
            let standing = &self.standing[at];
            if standing.exists() && standing.probe().is_ok() {
                return Ok(standing.clone());
            }
            self.standing.remove(at).left.end()?;
            self.save()?;
        }
        let running = Testbed::resolve(wanted, options, true)?;
        if *running.source() == Source::External {
            bail!("{wanted} is named by the environment; there is nothing to bring up");
        }
        let standing = Standing::of(running)?;
        self.standing.push(standing.clone());
        self.save()?;
        Ok(standing)
    }

    /// Takes down what `wanted` means, or all; gives what it was.
    pub fn down(&mut self, wanted: Option<&Wanted>) -> Result<Vec<Standing>> {
        let meant = |standing: &Standing| wanted.is_none_or(|wanted| standing.is(wanted));
        let mut gone = Vec::new();
        while let Some(at) = self.standing.iter().position(meant) {
            self.standing[at].left.end()?;
            gone.push(self.standing.remove(at));
            self.save()?;
        }
        Ok(gone)
    }
}
