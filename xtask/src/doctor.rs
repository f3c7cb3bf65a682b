//! `cargo xtask doctor`: what this machine has, what it lacks, and how to get it.

use crate::args::Args;
use crate::{deb, sh};
use anyhow::Result;
use postroad_testbed::docker::Daemon;
use postroad_testbed::fetch::{self, Way};
use postroad_testbed::{Broker, Wanted, programs};
use std::process::{Command, Stdio};

/// How it is with one thing.
enum Verdict {
    /// It is here.
    Here(String),
    /// It is not, but what needs it gets it by itself.
    ByItself(String),
    /// It is not; the command that gets it.
    Missing { without: &'static str, get: String },
}

/// `cargo xtask doctor`. Never an error: what is missing is said, with what does not run without it.
pub(crate) fn run(raw: &[String]) -> Result<()> {
    Args::parse(raw, &[], &[])?;
    let mut get = Vec::new();
    println!("To build and run Postroad");
    line("rust", rust(), &mut get);
    line("cc", program("cc", "--version", "nothing links without it", "apt-get install gcc"), &mut get);
    println!("\nTo test it (`cargo xtask test-all`)");
    for tool in [&deb::NC, &deb::JQ] {
        line(tool.name, tool_verdict(tool), &mut get);
    }
    println!("\nBrokers in containers (`--docker`)");
    line("docker", docker(), &mut get);
    println!("\nBrokers as processes (`--native`)");
    line("go", program("go", "version", NO_GO, "apt-get install golang"), &mut get);
    for broker in Broker::ALL {
        line(broker.name(), broker_verdict(broker), &mut get);
    }
    println!("\nA broker that somebody else runs is used when its variable is set, for example");
    println!("    {}=amqp://HOST:5672", Broker::RabbitMq.variable(Broker::RabbitMq.services()[0]));
    if get.is_empty() {
        println!("\nNothing is missing. Next: `cargo xtask test-all`");
    } else {
        println!("\nTo get what is missing:");
        for command in get {
            println!("    {command}");
        }
        println!("Or go on without: what cannot run is listed, and --allow-missing lets that pass.");
    }
    Ok(())
}

const NO_GO: &str = "no NATS servers as processes, where they are not installed";

fn line(name: &str, verdict: Verdict, get: &mut Vec<String>) {
    match verdict {
        Verdict::Here(what) => println!("  ok       {name:15} {what}"),
        Verdict::ByItself(how) => println!("  fetched  {name:15} {how}"),
        Verdict::Missing { without, get: command } => {
            println!("  missing  {name:15} {without}");
            if !get.contains(&command) {
                get.push(command);
            }
        }
    }
}

fn first_line(program: &str, ask: &str) -> Option<String> {
    let file = fetch::which(program)?;
    let out = Command::new(file).arg(ask).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    out.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
}

fn program(name: &str, ask: &str, without: &'static str, get: &str) -> Verdict {
    match first_line(name, ask) {
        Some(version) => Verdict::Here(version),
        None => Verdict::Missing { without, get: get.to_owned() },
    }
}

fn rust() -> Verdict {
    let needed = env!("CARGO_PKG_RUST_VERSION");
    let get = format!("rustup toolchain install stable   # {needed} or newer");
    match first_line("rustc", "--version") {
        Some(version) => Verdict::Here(format!("{version}; {needed} or newer is needed")),
        None => Verdict::Missing { without: "nothing builds without it", get },
    }
}

fn can_unpack() -> bool {
    fetch::which("apt-get").is_some() && fetch::which("dpkg").is_some()
}

fn tool_verdict(tool: &'static deb::Tool) -> Verdict {
    match deb::find(tool) {
        Some(path) => Verdict::Here(path.display().to_string()),
        None if can_unpack() => Verdict::ByItself("from Debian's package, unpacked, not installed".into()),
        None => Verdict::Missing {
            without: tool.needed_for,
            get: format!("install {} with the package manager of your system", tool.name),
        },
    }
}

fn docker() -> Verdict {
    match Daemon::find() {
        Ok(daemon) => {
            let compose = daemon.compose_version().unwrap_or_else(|error| format!("broken: {error:#}"));
            Verdict::Here(format!("Docker {}, Compose {compose}", daemon.version))
        }
        Err(error) => {
            eprintln!("           docker: {error:#}");
            let root = rustix::process::geteuid().is_root();
            let get = if root && fetch::which("apt-get").is_some() {
                "cargo xtask up --install   # a daemon and Compose, until `cargo xtask down`"
            } else {
                "install Docker Engine and the Compose plugin, and start the daemon"
            };
            Verdict::Missing { without: "no containers; the same tests run with processes", get: get.into() }
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
        (None, Way::Package(package)) => {
            Verdict::ByItself(format!("when needed: Debian's {package}, unpacked, not installed"))
        }
        (None, Way::Go(module)) => Verdict::ByItself(format!("when needed: go install {module}")),
        (Some(_), _) => Verdict::Missing { without: "its tests do not run as processes", get: way.by_hand() },
    }
}
