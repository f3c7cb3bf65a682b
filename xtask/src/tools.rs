//! The programs that tests and the bench want besides brokers, and where they come from.

use anyhow::{Result, bail};
use postroad_testbed::debian::{self, Tool};
use std::path::PathBuf;

/// A program, and what does not run without it.
pub(crate) struct Needed {
    pub(crate) tool: Tool,
    pub(crate) needed_for: &'static str,
}

impl Needed {
    const fn new(name: &'static str, package: &'static str, needed_for: &'static str) -> Self {
        Self { tool: Tool { name, file: name, package }, needed_for }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.tool.name
    }

    /// Its path, if it is here.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        debian::find(&self.tool)
    }
}

pub(crate) const NC: Needed = Needed {
    // Debian has more than one `nc`.
    tool: Tool { name: "nc", file: "nc.openbsd", package: "netcat-openbsd" },
    needed_for: "black-box tests with netcat",
};
pub(crate) const JQ: Needed = Needed::new("jq", "jq", "black-box tests that read the log");
pub(crate) const REDIS: Needed = Needed::new("redis-server", "redis-server", "bench against Redis");
pub(crate) const BEANSTALKD: Needed = Needed::new("beanstalkd", "beanstalkd", "bench against beanstalkd");

pub(crate) const MOSQUITTO_PUB: Needed =
    Needed::new("mosquitto_pub", "mosquitto-clients", "tests with mosquitto's clients");
pub(crate) const MOSQUITTO_SUB: Needed =
    Needed::new("mosquitto_sub", "mosquitto-clients", "tests with mosquitto's clients");

/// All of them.
pub(crate) const ALL: [&Needed; 6] = [&NC, &JQ, &REDIS, &BEANSTALKD, &MOSQUITTO_PUB, &MOSQUITTO_SUB];

/// Gets those that are not here; gives back those that cannot be had, with the reason in `stderr`.
pub(crate) fn ensure(all: &[&'static Needed]) -> Vec<&'static Needed> {
    let tools: Vec<&Tool> = all.iter().map(|needed| &needed.tool).collect();
    if let Err(error) = debian::fetch(&tools) {
        eprintln!("xtask: {error:#}");
    }
    all.iter().copied().filter(|needed| needed.find().is_none()).collect()
}

/// `cargo xtask peers`.
pub(crate) fn run(_: &[String]) -> Result<()> {
    let missing = ensure(&ALL);
    for needed in ALL {
        match needed.find() {
            Some(path) => println!("{:14} {}", needed.name(), path.display()),
            None => println!("{:14} missing: {} cannot run", needed.name(), needed.needed_for),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("missing: {}", missing.iter().map(|needed| needed.name()).collect::<Vec<_>>().join(", "))
}
