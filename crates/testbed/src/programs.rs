//! Which brokers this system has as programs, where, and in which version.

use crate::broker::{Broker, Wanted, version_matches};
use crate::{debian, fetch, places};
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A broker's program and what it needs around it.
#[derive(Clone, Debug)]
pub struct Program {
    /// Whose it is.
    pub broker: Broker,
    /// The file to run.
    pub file: PathBuf,
    /// As it says itself, such as `2.0.11`.
    pub version: String,
    /// Whether it came by [`fetch`] and not with the system.
    pub fetched: bool,
    /// What the environment must say besides (where its libraries are).
    pub(crate) env: Vec<(OsString, OsString)>,
}

/// The first program for `wanted`: on `PATH`, where Debian keeps daemons, or fetched before.
pub fn find(wanted: &Wanted) -> Option<Program> {
    let fits = |program: &Program| {
        wanted.version.as_ref().is_none_or(|version| version_matches(&program.version, version))
    };
    all(wanted.broker).into_iter().find(fits)
}

/// [`find`], or fetched now: Debian's package, unpacked without being installed, or `go install`.
pub fn find_or_fetch(wanted: &Wanted) -> Result<Program> {
    if let Some(program) = find(wanted) {
        return Ok(program);
    }
    fetch::fetch(wanted)?;
    if let Some(program) = find(wanted) {
        return Ok(program);
    }
    let have: Vec<String> = all(wanted.broker).into_iter().map(|program| program.version).collect();
    bail!("there is no program for {wanted}; what can be had here is {}", have.join(", "))
}

/// Every program for `broker`, those of the system first.
pub fn all(broker: Broker) -> Vec<Program> {
    let name = broker.program();
    let mut found: Vec<Program> = Vec::new();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let system = system.map(|dir| (dir.join(name), false, Vec::new()));
    let root = debian::root();
    let unpacked =
        ["usr/sbin", "usr/bin"].map(|dir| (root.join(dir).join(name), true, debian::environment()));
    let tools = [(places::tools().join(name), true, Vec::new())];
    for (file, fetched, env) in system.chain(tools).chain(unpacked) {
        let Ok(real) = file.canonicalize() else { continue };
        // Our own wrappers may be on PATH while tests run; what they wrap is listed by itself.
        if !real.is_file() || (!fetched && real.starts_with(places::target())) {
            continue;
        }
        if let Some(program) = inspect(broker, &file, fetched, env)
            && !found.iter().any(|other| other.file == program.file)
        {
            found.push(program);
        }
    }
    found
}

fn inspect(broker: Broker, file: &Path, fetched: bool, env: Vec<(OsString, OsString)>) -> Option<Program> {
    let (file, version) = if broker == Broker::RabbitMq {
        let scripts = rabbitmq_scripts(file)?;
        let home = scripts.parent()?.file_name()?.to_string_lossy().into_owned();
        (scripts.join("rabbitmq-server"), home.strip_prefix("rabbitmq_server-")?.to_owned())
    } else {
        (file.to_path_buf(), version_of(broker, file, &env).ok()?)
    };
    Some(Program { broker, file, version, fetched, env })
}

/// Debian's `rabbitmq-server` changes the user; the scripts behind it do not care who runs them.
fn rabbitmq_scripts(file: &Path) -> Option<PathBuf> {
    let real = file.canonicalize().ok()?;
    let beside = real.parent()?;
    if beside.file_name()? == "sbin" && beside.parent()?.join("plugins").is_dir() {
        return Some(beside.to_path_buf());
    }
    let lib = file.parent()?.parent()?.join("lib/rabbitmq/lib");
    let mut homes: Vec<PathBuf> = std::fs::read_dir(lib).ok()?.flatten().map(|entry| entry.path()).collect();
    homes.retain(|home| home.join("sbin/rabbitmq-server").is_file());
    homes.sort();
    Some(homes.pop()?.join("sbin"))
}

fn version_of(broker: Broker, file: &Path, env: &[(OsString, OsString)]) -> Result<String> {
    let ask = match broker {
        Broker::Mosquitto => "-h",
        Broker::Beanstalkd => "-v",
        _ => "--version",
    };
    let mut command = Command::new(file);
    command.arg(ask).envs(env.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
    let out = command.output().with_context(|| format!("running {}", file.display()))?;
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).join("\n");
    version_in(&text).with_context(|| format!("{} does not say its version: {text}", file.display()))
}

/// The first word that looks like `1.12`, `v=7.0.15` or `v2.10.27`.
fn version_in(text: &str) -> Option<String> {
    text.split(|c: char| c.is_whitespace() || c == ',' || c == '=').find_map(|word| {
        let word = word.strip_prefix('v').unwrap_or(word);
        let mut parts = word.split(['.', '+', '-']);
        let number =
            |part: Option<&str>| part.is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
        (word.contains('.') && number(parts.next()) && number(parts.next())).then(|| word.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::version_in;

    #[test]
    fn versions_are_found_in_what_programs_say_of_themselves() {
        for (text, version) in [
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", "7.0.15"),
            ("nats-server: v2.9.10", "2.9.10"),
            ("nats-streaming-server version 0.25.6, nats-server version 2.9.24", "0.25.6"),
            ("mosquitto version 2.0.11\n\nmosquitto is an MQTT v5.0/v3.1.1/v3.1 broker.", "2.0.11"),
            ("beanstalkd 1.12", "1.12"),
        ] {
            assert_eq!(version_in(text).as_deref(), Some(version), "{text}");
        }
        assert_eq!(version_in("usage: x [-v]"), None);
    }
}
