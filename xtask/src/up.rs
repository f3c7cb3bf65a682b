//! `cargo xtask up | down | status | logs`: brokers that stand until they are taken down.

use crate::args::Args;
use anyhow::{Context, Result, bail, ensure};
use postroad_testbed::docker::{self, Daemon, Life};
use postroad_testbed::{Broker, Mode, Options, Standing, Up, Wanted, places};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// `cargo xtask up`.
pub(crate) fn up(raw: &[String]) -> Result<()> {
    let args = Args::parse(raw, &["docker", "native", "install"], &[])?;
    let mode = match (args.has("docker"), args.has("native")) {
        (true, true) => bail!("--docker or --native, not both"),
        (true, false) => Some(Mode::Container),
        (false, true) => Some(Mode::Native),
        (false, false) => None,
    };
    if args.has("install") {
        ensure!(mode != Some(Mode::Native), "--install gets a Docker daemon, and --native wants none");
        let found = Daemon::find().is_ok();
        let daemon = Daemon::find_or_start(Life::Kept)?;
        if let (false, Some(pid)) = (found, kept_daemon(&daemon)) {
            fs::write(started_daemon()?, pid)?;
        }
        println!("Docker {}, Compose {}", daemon.version, daemon.compose_version()?);
    }
    let mut wanted = wanted(&args.words)?;
    if wanted.is_empty() {
        wanted.extend(Broker::ALL.map(Wanted::from));
    }
    let options = Options { mode, ..Options::default() };
    let mut up = Up::open()?;
    let mut failed = Vec::new();
    for wanted in &wanted {
        let start = Instant::now();
        match up.up(wanted, &options) {
            Ok(standing) => show(&standing, &format!("{:.1} s", start.elapsed().as_secs_f64())),
            Err(error) => {
                eprintln!("{wanted}: {error:#}");
                failed.push(wanted.to_string());
            }
        }
    }
    ensure!(failed.is_empty(), "not up: {}", failed.join(", "));
    println!("`cargo xtask down` takes them down");
    Ok(())
}

/// `cargo xtask down`.
pub(crate) fn down(raw: &[String]) -> Result<()> {
    let args = Args::parse(raw, &[], &[])?;
    let mut up = Up::open()?;
    let mut gone = Vec::new();
    if args.words.is_empty() {
        gone.extend(up.down(None)?);
        if let Ok(daemon) = Daemon::find() {
            for project in docker::leftovers(&daemon)? {
                docker::remove(&daemon, &project)?;
                println!("removed {project}, which a killed run left");
            }
            stop_daemon(daemon)?;
        }
    }
    for wanted in wanted(&args.words)? {
        let some = up.down(Some(&wanted))?;
        ensure!(!some.is_empty(), "{wanted} is not up");
        gone.extend(some);
    }
    for standing in &gone {
        println!("{} {} is down", standing.broker, standing.version);
    }
    if gone.is_empty() {
        println!("nothing was up");
    }
    Ok(())
}

/// Remembers the process id of the daemon that `up --install` started.
fn started_daemon() -> Result<PathBuf> {
    Ok(places::testbed()?.join("docker-started"))
}

/// The process id of a daemon that stays and is ours, as its file says it.
fn kept_daemon(daemon: &Daemon) -> Option<String> {
    let socket = Path::new(daemon.host()?.strip_prefix("unix://")?);
    fs::read_to_string(socket.with_file_name("docker.pid")).ok()
}

/// Stops the daemon if `up` started it; one that was there, or that somebody started since, is left running.
fn stop_daemon(daemon: Daemon) -> Result<()> {
    let file = started_daemon()?;
    let Ok(started) = fs::read_to_string(&file) else { return Ok(()) };
    let running = kept_daemon(&daemon);
    // Whoever holds it uses it, and one that is used is not stopped.
    drop(daemon);
    if running.as_ref() == Some(&started) && docker::stop_kept()? {
        println!("the Docker daemon that `up` started is stopped");
    }
    Ok(fs::remove_file(file)?)
}

/// `cargo xtask status`; an error if one that was brought up does not answer.
pub(crate) fn status(raw: &[String]) -> Result<()> {
    Args::parse(raw, &[], &[])?;
    let mut up = Up::open()?;
    let gone = up.forget_gone()?;
    for standing in &gone {
        println!(
            "{} {} is gone (a boot, or somebody ended it), and forgotten",
            standing.broker, standing.version
        );
    }
    if up.standing().is_empty() {
        println!("nothing is up; `cargo xtask up [BROKER]` brings one up");
    }
    let mut silent: Vec<&str> = gone.iter().map(|standing| standing.broker.name()).collect();
    for standing in up.standing() {
        match standing.probe() {
            Ok(()) => show(standing, "answers"),
            Err(error) => {
                silent.push(standing.broker.name());
                show(standing, &format!("does not answer: {error:#}"));
            }
        }
    }
    ensure!(silent.is_empty(), "no answer from {}", silent.join(", "));
    Ok(())
}

/// `cargo xtask logs`.
pub(crate) fn logs(raw: &[String]) -> Result<()> {
    let args = Args::parse(raw, &[], &["lines"])?;
    let lines = args.get("lines")?.unwrap_or(50);
    let wanted = wanted(&args.words)?;
    let up = Up::open()?;
    let meant = |standing: &&Standing| wanted.is_empty() || wanted.iter().any(|wanted| standing.is(wanted));
    let chosen: Vec<&Standing> = up.standing().iter().filter(meant).collect();
    ensure!(!chosen.is_empty(), "nothing of that is up");
    for standing in chosen {
        println!("== {} {}", standing.broker, standing.version);
        println!("{}", standing.log_tail(lines)?);
    }
    Ok(())
}

fn wanted(words: &[String]) -> Result<Vec<Wanted>> {
    words.iter().map(|word| word.parse().context("BROKER or BROKER@VERSION")).collect()
}

fn show(standing: &Standing, what: &str) {
    println!("{} {}  {}, {}, {what}", standing.broker, standing.version, standing.source, standing.handle());
    for (service, address) in &standing.doors {
        println!("    {:11} {}://{address}", service.name(), service.scheme());
    }
    if let Some(main) = standing.broker.services().first()
        && let Some(address) = standing.doors.get(main)
    {
        let variable = standing.broker.variable(*main);
        println!("    tests use it with {variable}={}://{address}", main.scheme());
    }
}
