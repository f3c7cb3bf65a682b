//! `cargo xtask bench`: a door against its peers, in one run, by one loader. `jsonlog` is here, the other in `mqtt`.

mod control;
mod event;
mod goals;
mod loader;
#[cfg(test)]
mod loader_tests;
mod machine;
mod memory;
mod mqtt;
mod recovery;
mod report;
mod scale;
mod speed;
mod svg;
mod wire;

use crate::args::Args;
use crate::server::{Kind, Peer};
use crate::{sh, tools};
use anyhow::{Context, Result, bail, ensure};
use report::{Report, Style};
use speed::{BULK, DEEP, DELIVER, Load, MANY, ONE};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const STYLE: Style = Style {
    command: "bench jsonlog",
    unit: "event",
    headline: "Durable before the answer: events of 256 bytes over loopback",
    bases: &["redis", "beanstalkd"],
    faults: false,
    latency_at: "",
};
const PARTS: [&str; 5] = ["publish", "deliver", "scale", "recovery", "memory"];

/// How much of everything.
struct Size {
    rounds: u64,
    time: Duration,
    conns: u64,
    log_bytes: u64,
    pending: u64,
    servers: Vec<Kind>,
}

pub(crate) fn run(raw: &[String]) -> Result<()> {
    let named = |name: &str| raw.iter().any(|word| word == name);
    match (named("jsonlog"), named("mqtt")) {
        (true, false) => jsonlog(raw),
        (false, true) => mqtt::run(raw),
        _ => bail!("what to bench? It is one of: jsonlog, mqtt"),
    }
}

fn jsonlog(raw: &[String]) -> Result<()> {
    let valued = ["only", "servers", "seconds", "rounds", "binary", "json", "svg"];
    let args = Args::parse(raw, &["quick", "check"], &valued)?;
    ensure!(!(args.has("quick") && args.has("check")), "--quick has no goals to --check");
    ensure!(args.words == ["jsonlog"], "one thing to bench at a time");
    let parts: Vec<&str> = args.text("only").map_or_else(|| PARTS.to_vec(), |list| list.split(',').collect());
    if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(part)) {
        bail!("--only {unknown}: there is {}", PARTS.join(", "));
    }
    let ours = match args.text("binary") {
        Some(file) => sh::root().join(file),
        None if cfg!(debug_assertions) => return again_optimised(raw),
        None => sh::target().join("release/postroad"),
    };
    let servers = match args.text("servers") {
        None => Kind::ALL.to_vec(),
        Some(list) => list.split(',').map(kind_of).collect::<Result<_>>()?,
    };
    ensure!(!servers.contains(&Kind::Postroad) || ours.is_file(), "{} is not there", ours.display());

    let quick = args.has("quick");
    let time = args.get("seconds")?.unwrap_or(if quick { 0.4 } else { 3.0 });
    ensure!((0.05..=600.0).contains(&time), "--seconds is from 0.05 to 600");
    let rounds = args.get("rounds")?.unwrap_or(if quick { 1 } else { 3 });
    ensure!((1..=100).contains(&rounds), "--rounds is from 1 to 100");
    let time = Duration::from_secs_f64(time);
    let size = if quick {
        Size { rounds, time, conns: 500, log_bytes: 10_000_000, pending: 200_000, servers }
    } else {
        Size { rounds, time, conns: 10_000, log_bytes: 1_000_000_000, pending: 2_000_000, servers }
    };

    let setup = format!(
        "{} B events; the median of {rounds} rounds of {} s; a new server for every measurement; \
         load and servers share {} cores.",
        event::EVENT,
        time.as_secs_f64(),
        std::thread::available_parallelism().map_or(1, usize::from)
    );
    let mut report = Report::new(STYLE, setup);
    let part = |name| parts.contains(&name);
    speed_rows(&ours, &size, part("publish"), part("deliver"), &mut report)?;
    if part("scale") {
        eprintln!("scale …");
        scale::run(&ours, size.conns, &mut report)?;
    }
    if part("recovery") {
        eprintln!("recovery …");
        recovery::run(&ours, size.log_bytes, &mut report)?;
    }
    if part("memory") {
        eprintln!("memory …");
        memory::run(&ours, size.pending, &mut report)?;
    }

    if quick {
        // Too short, and often not even an optimised build.
        report.goals.clear();
        report.facts.push("--quick shows that everything works; it says nothing about the goals.".into());
    }
    publish(&report, &args, if quick { "jsonlog-quick" } else { "jsonlog" })?;
    let missed = report.goals.iter().filter(|goal| !goal.met).count();
    if args.has("check") && missed > 0 {
        bail!("{missed} of {} goals missed", report.goals.len());
    }
    Ok(())
}

/// Prints the report and writes it where the flags say, or below `target/bench`.
fn publish(report: &Report, args: &Args, name: &str) -> Result<()> {
    println!("{}", report.markdown());
    let file = |kind: &str| match args.text(kind) {
        Some(file) => PathBuf::from(file),
        None => sh::target().join("bench").join(name).with_extension(kind),
    };
    write(&file("json"), &format!("{:#}\n", report.json()))?;
    if !report.rows.is_empty() {
        write(&file("svg"), &svg::draw(report))?;
    }
    Ok(())
}

/// Builds the server and this loader with optimisation, and lets that one measure.
fn again_optimised(raw: &[String]) -> Result<()> {
    sh::show(sh::cargo().args(["build", "--release", "--package", "postroad", "--package", "xtask"]))?;
    let optimised = sh::target().join("release/xtask");
    sh::show(std::process::Command::new(optimised).arg("bench").args(raw).current_dir(sh::root()))
}

fn speed_rows(ours: &Path, size: &Size, publish: bool, deliver: bool, report: &mut Report) -> Result<()> {
    let mut loads: Vec<Load> = Vec::new();
    if publish {
        loads.extend([ONE, MANY, DEEP, BULK]);
    }
    if deliver {
        loads.push(DELIVER);
    }
    if loads.is_empty() {
        return Ok(());
    }
    for missing in tools::ensure(&[&tools::REDIS, &tools::BEANSTALKD]) {
        report.facts.push(format!(
            "{} is not on this system: {} was left out.",
            missing.name(),
            missing.needed_for
        ));
    }
    report.facts.push(machine::disk(size.time / 4)?);
    let mut busiest = 0.0_f64;
    for round in 1..=size.rounds {
        busiest = busiest.max(machine::busy(Duration::from_millis(500))?);
        for load in &loads {
            for kind in load.servers() {
                if !size.servers.contains(kind) || kind.program(ours).is_none() {
                    continue;
                }
                let (sample, mode) = speed::measure(*kind, *load, ours, size.time)?;
                eprintln!(
                    "{round}/{} {:30} {:10} {:>10}/s {:>8.2} us",
                    size.rounds,
                    load.name(),
                    kind.name(),
                    report::thousands(sample.rate),
                    sample.cpu_us
                );
                report.add(&load.name(), kind.name(), &mode, sample);
            }
        }
    }
    let verdict = if busiest > 10.0 { ": others were at work, the figures are low and uneven." } else { "." };
    report.facts.push(format!(
        "Before the rounds, with no server running, up to {busiest:.0} % of the CPU was busy{verdict}"
    ));
    report.goals = goals::of(report, publish, deliver);
    Ok(())
}

fn kind_of(name: &str) -> Result<Kind> {
    let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    found.with_context(|| format!("--servers {name}: there is postroad, redis, beanstalkd"))
}

fn write(file: &Path, text: &str) -> Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    eprintln!("wrote {}", file.display());
    Ok(())
}
