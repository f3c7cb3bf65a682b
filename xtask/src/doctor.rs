//! `cargo xtask doctor`: what this machine has, what it lacks, and how to get it.

use crate::args::Args;
use crate::{sh, tools};
use anyhow::Result;
use postroad_testbed::docker::Daemon;
use postroad_testbed::fetch::Way;
use postroad_testbed::run::{output, which};
use postroad_testbed::{Broker, Wanted, debian, programs};
use std::path::Path;
use std::process::{Command, Stdio};

/// How it is with one thing.
enum Verdict {
    /// It is here.
    Here(String),
    /// It is not, but what needs it gets it by itself.
    ByItself(String),
    /// It is not; the command that gets it.
    Missing { without: String, get: String },
}

/// `cargo xtask doctor`. Never an error: what is missing is said, with what does not run without it.
pub(crate) fn run(raw: &[String]) -> Result<()> {
    Args::parse(raw, &[], &[])?;
    let mut get = Vec::new();
    println!("To build and run Postroad");
    line("rust", rust(), &mut get);
    line("cc", program("cc", "--version", "nothing links without it", "apt-get install gcc"), &mut get);
    println!("\nTo test it (`cargo xtask test-all`), besides");
    for tool in [&tools::NC, &tools::JQ] {
        line(tool.name(), tool_verdict(tool), &mut get);
    }
    println!("\nReal brokers for the tests, in containers (`test-all --docker`)");
    line("docker", docker(), &mut get);
    println!("\nThe same brokers as processes (`test-all --native`, and what is used if nothing is said)");
    for broker in Broker::ALL {
        line(broker.name(), broker_verdict(broker), &mut get);
    }
    println!("\nA broker that runs elsewhere is used instead when its variable is set, for example");
    println!("    {}=amqp://HOST:5672", Broker::RabbitMq.variable(Broker::RabbitMq.services()[0]));
    if get.is_empty() {
        println!("\nNothing is missing. Next: `cargo xtask test-all`");
    } else {
        println!("\nTo get what is missing:");
        for command in get {
            println!("    {command}");
        }
        println!(
            "Or go on without: `cargo xtask test-all --allow-missing` lists what it could not run, and passes."
        );
    }
    Ok(())
}

fn line(name: &str, verdict: Verdict, get: &mut Vec<String>) {
    match verdict {
        Verdict::Here(what) => println!("  ok       {name:15} {what}"),
        Verdict::ByItself(how) => println!("  later    {name:15} not here; {how}"),
        Verdict::Missing { without, get: command } => {
            println!("  missing  {name:15} {without}");
            if !get.contains(&command) {
                get.push(command);
            }
        }
    }
}

fn first_line(program: &str, ask: &str) -> Option<String> {
    let file = which(program)?;
    let out = Command::new(file).arg(ask).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    out.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
}

fn program(name: &str, ask: &str, without: &str, get: &str) -> Verdict {
    match first_line(name, ask) {
        Some(version) => Verdict::Here(version),
        None => Verdict::Missing { without: without.to_owned(), get: get.to_owned() },
    }
}

fn rust() -> Verdict {
    let needed = env!("CARGO_PKG_RUST_VERSION");
    // The compiler beside the cargo that runs this, whatever `PATH` says.
    let beside = std::env::var_os("CARGO").map(|cargo| Path::new(&cargo).with_file_name("rustc"));
    let rustc = beside.filter(|rustc| rustc.is_file()).or_else(|| which("rustc"));
    let get =
        format!("rustup toolchain install stable   # {needed} or newer; rustup itself: https://rustup.rs");
    match rustc.and_then(|rustc| output(Command::new(rustc).arg("--version")).ok()) {
        Some(version) => Verdict::Here(format!("{}; {needed} or newer is needed", version.trim())),
        None => Verdict::Missing { without: "nothing builds without it".into(), get },
    }
}

fn tool_verdict(needed: &'static tools::Needed) -> Verdict {
    match needed.find() {
        Some(path) => Verdict::Here(path.display().to_string()),
        None if debian::obstacle().is_none() => Verdict::ByItself(unpacked(needed.tool.package)),
        None => Verdict::Missing {
            without: format!("without it no {}", needed.needed_for),
            get: format!("install {} with the package manager of your system", needed.name()),
        },
    }
}

fn unpacked(package: &str) -> String {
    format!("fetched when needed: Debian's {package}, unpacked into target, not installed")
}

fn docker() -> Verdict {
    match Daemon::find() {
        Ok(daemon) => {
            let compose = daemon.compose_version().unwrap_or_else(|error| format!("broken: {error:#}"));
            Verdict::Here(format!("Docker {}, Compose {compose}", daemon.version))
        }
        Err(error) => {
            let root = rustix::process::geteuid().is_root();
            let get = if root && which("apt-get").is_some() {
                "cargo xtask up --install   # a daemon and Compose, until `cargo xtask down`"
            } else {
                "install Docker Engine and the Compose plugin, and start the daemon"
            };
            // The first line says what is wrong, the others how it was seen.
            let why = error.to_string();
            let why = why.split(" (").next().unwrap_or_default();
            Verdict::Missing { without: format!("{why}; the brokers below do instead"), get: get.into() }
        }
    }
}

fn broker_verdict(broker: Broker) -> Verdict {
    let found = programs::all(broker);
    if !found.is_empty() {
        let each = found.iter().map(|program| {
            let file = program.file.strip_prefix(sh::root()).unwrap_or(&program.file);
            format!("{} ({})", program.version, file.display())
        });
        return Verdict::Here(each.collect::<Vec<_>>().join(", "));
    }
    let way = Way::of(&Wanted::from(broker));
    match (way.obstacle(), &way) {
        (None, Way::Package(package)) => Verdict::ByItself(unpacked(package)),
        (None, Way::Go(module)) => Verdict::ByItself(format!("built when needed: go install {module}")),
        (Some(why), Way::Go(_)) => Verdict::Missing {
            without: format!("its tests do not run as processes: {why} to build it"),
            get: "apt-get install golang   # or https://go.dev/dl".into(),
        },
        (Some(why), Way::Package(_)) => Verdict::Missing {
            without: format!("its tests do not run as processes: {why} to fetch it"),
            get: way.by_hand(),
        },
    }
}
