//! `cargo xtask bench mqtt`: MQTT brokers side by side. No message may be lost or come twice without being counted.

mod books;
mod brokers;
mod clients;
mod idle;
#[cfg(test)]
mod loader_tests;
mod packets;
mod recovery;
mod speed;

use super::report::{Faults, Report, Style, thousands};
use super::{again_optimised, event, machine, publish, scale};
use crate::args::Args;
use crate::sh;
use anyhow::{Result, bail, ensure};
use brokers::{Brand, Broker};
use packets::Version;
use speed::{Load, Sessions, Shape};
use std::path::Path;
use std::time::Duration;

const STYLE: Style = Style {
    command: "bench mqtt",
    unit: "delivery",
    headline: "MQTT: deliveries of 256 bytes over loopback",
    bases: &["mosquitto"],
    faults: true,
};

/// Parts of the table, each with who publishes to whom and the window.
const SHAPES: [(&str, Shape, u16); 5] = [
    ("pair", Shape::Pairs(1), 100),
    ("pairs", Shape::Pairs(4), 100),
    ("fanout", Shape::FanOut(100), 100),
    ("fanin", Shape::FanIn(100), 10),
    ("lone", Shape::Pairs(1), 1),
];
const OTHER_PARTS: [&str; 3] = ["slow", "idle", "recovery"];
/// What a disk that is slow is asked.
const SLOW: [(Shape, u16); 2] = [(Shape::Pairs(4), 100), (Shape::Pairs(1), 1)];

struct Plan {
    parts: Vec<String>,
    brands: Vec<Brand>,
    qos: Vec<u8>,
    sessions: Sessions,
    ahead: bool,
    rounds: u64,
    time: Duration,
    conns: u64,
    recovery: recovery::Size,
}

impl Plan {
    fn has(&self, part: &str) -> bool {
        self.parts.iter().any(|wanted| wanted == part)
    }

    fn of(args: &Args) -> Result<Self> {
        let all = || SHAPES.iter().map(|shape| shape.0).chain(OTHER_PARTS);
        let list = |name: &str, all: Vec<&str>| -> Result<Vec<String>> {
            let Some(text) = args.text(name) else { return Ok(all.into_iter().map(str::to_owned).collect()) };
            let wanted: Vec<String> = text.split(',').map(str::to_owned).collect();
            match wanted.iter().find(|word| !all.contains(&word.as_str())) {
                Some(unknown) => bail!("--{name} {unknown}: there is {}", all.join(", ")),
                None => Ok(wanted),
            }
        };
        let mut names: Vec<&str> = Brand::ALL.map(Brand::name).into();
        names.dedup();
        let servers = list("servers", names)?;
        let qos = list("qos", vec!["0", "1", "2"])?;
        let version = match args.text("protocol") {
            None | Some("3.1.1") => Version::V311,
            Some("5") => Version::V5,
            Some(other) => bail!("--protocol {other}: there is 3.1.1, 5"),
        };
        let clean = match args.text("sessions") {
            None | Some("durable") => false,
            Some("clean") => true,
            Some(other) => bail!("--sessions {other}: there is durable, clean"),
        };
        let quick = args.has("quick");
        let time = args.get("seconds")?.unwrap_or(if quick { 0.3 } else { 3.0 });
        ensure!((0.05..=600.0).contains(&time), "--seconds is from 0.05 to 600");
        let rounds = args.get("rounds")?.unwrap_or(if quick { 1 } else { 3 });
        ensure!((1..=100).contains(&rounds), "--rounds is from 1 to 100");
        let (conns, retained, offline) =
            if quick { (500, 20_000, 2_000) } else { (10_000, 1_000_000, 100_000) };
        Ok(Self {
            parts: list("only", all().collect())?,
            brands: Brand::ALL
                .into_iter()
                .filter(|brand| servers.iter().any(|name| name == brand.name()))
                .collect(),
            qos: qos.iter().map(|level| level.as_bytes()[0] - b'0').collect(),
            sessions: Sessions { version, clean },
            ahead: args.has("ahead"),
            rounds,
            time: Duration::from_secs_f64(time),
            conns,
            recovery: recovery::Size { retained, sessions: offline },
        })
    }

    fn loads(&self) -> Vec<Load> {
        let wanted = SHAPES.iter().filter(|shape| self.has(shape.0));
        let levels = |&(_, shape, window)| {
            self.qos.iter().map(move |&qos| Load { shape, window, qos, ahead: self.ahead })
        };
        wanted.flat_map(levels).collect()
    }
}

pub(super) fn run(raw: &[String]) -> Result<()> {
    let valued =
        ["only", "servers", "qos", "protocol", "sessions", "seconds", "rounds", "binary", "json", "svg"];
    let args = Args::parse(raw, &["quick", "ahead"], &valued)?;
    ensure!(args.words == ["mqtt"], "one thing to bench at a time");
    let mut plan = Plan::of(&args)?;
    let ours = match args.text("binary") {
        Some(file) => sh::root().join(file),
        None if cfg!(debug_assertions) => return again_optimised(raw),
        None => sh::target().join("release/postroad"),
    };
    let mut report = Report::new(STYLE, setup(&plan));
    let wanted: Vec<Broker> = plan.brands.iter().map(|brand| brand.plain()).collect();
    for (brand, why) in brokers::ensure(&wanted, &ours) {
        plan.brands.retain(|kept| *kept != brand);
        let fact = format!("{} was left out: {why}", brand.name());
        if !report.facts.contains(&fact) {
            report.facts.push(fact);
        }
    }
    ensure!(!plan.brands.is_empty(), "there is no server left to measure");
    report.facts.push(machine::disk(plan.time / 4)?);
    // 500 for this process and the servers' files.
    scale::raise_file_limit(plan.conns + 500)?;

    let mut failed = Vec::new();
    rows(&plan, &ours, &mut report, &mut failed)?;
    better_nagle(&mut report);
    for row in report.rows.iter().filter(|row| row.server.starts_with("postroad")) {
        let Faults { lost, twice } = row.faults();
        if lost + twice > 0 {
            failed.push(format!("{}: {}: {lost} lost, {twice} twice", row.server, row.load));
        }
    }
    for brand in plan.brands.iter().filter(|brand| plan.has("idle") && first_of_its_name(**brand)) {
        let done = idle::run(brand.plain(), plan.sessions, &ours, plan.conns);
        fact(done, &mut report, &mut failed);
    }
    let keepers =
        plan.brands.iter().filter(|brand| !matches!(brand, Brand::PostroadMemory | Brand::MochiBolt));
    for brand in keepers.filter(|brand| plan.has("recovery") && first_of_its_name(**brand)) {
        let kept = Broker { kept: true, ..brand.plain() };
        let done = recovery::run(kept, plan.sessions, &ours, plan.recovery);
        fact(done, &mut report, &mut failed);
    }
    report.facts.extend(failed.iter().map(|error| format!("FAILED: {error}")));
    if args.has("quick") {
        report.facts.push("--quick shows that everything works; its figures say nothing.".into());
    }
    publish(&report, &args, if args.has("quick") { "mqtt-quick" } else { "mqtt" })?;
    ensure!(failed.is_empty(), "{} measurements failed", failed.len());
    Ok(())
}

fn setup(plan: &Plan) -> String {
    format!(
        "{} B payloads, MQTT {}, {} sessions; the median of {} rounds of {} s; a new server for every measurement; load \
         and servers share {} cores. A delivery counts when its handshake at the subscriber is over. Latency is from when \
         a message is due to its arrival, at half of the rate. Publishers {}.",
        event::EVENT,
        if plan.sessions.version == Version::V5 { "5.0" } else { "3.1.1" },
        if plan.sessions.clean { "clean" } else { "durable" },
        plan.rounds,
        plan.time.as_secs_f64(),
        std::thread::available_parallelism().map_or(1, usize::from),
        if plan.ahead {
            "keep a window of their own handshakes open and run ahead of subscribers; at QoS 0 they wait for deliveries"
        } else {
            "keep a window of messages open, which are those not acknowledged to them or not delivered to all"
        }
    )
}

fn first_of_its_name(brand: Brand) -> bool {
    brand != Brand::Mosquitto { nodelay: false }
}

fn fact(done: Result<String>, report: &mut Report, failed: &mut Vec<String>) {
    match done {
        Ok(text) => {
            eprintln!("{text}");
            report.facts.push(text);
        }
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            failed.push(format!("{error:#}"));
        }
    }
}

fn rows(plan: &Plan, ours: &Path, report: &mut Report, failed: &mut Vec<String>) -> Result<()> {
    let mut runs: Vec<(Broker, Load, String)> = Vec::new();
    for load in plan.loads() {
        runs.extend(plan.brands.iter().map(|brand| (brand.plain(), load, load.name())));
    }
    if plan.has("slow") {
        // Only a server that waits for its disk notices; a mosquitto stands beside it as the measure.
        let notice = |brand: &&Brand| matches!(brand, Brand::Postroad | Brand::Mosquitto { .. });
        for (shape, window) in SLOW {
            for &qos in plan.qos.iter().filter(|qos| **qos > 0) {
                let load = Load { shape, window, qos, ahead: plan.ahead };
                let name = format!("{}, syncs 5 ms slower", load.name());
                runs.extend(plan.brands.iter().filter(notice).map(|brand| {
                    (Broker { slow_disk: *brand == Brand::Postroad, ..brand.plain() }, load, name.clone())
                }));
            }
        }
    }
    let (mut busiest, mut loader_us) = (0.0_f64, 0.0_f64);
    for round in 1..=plan.rounds {
        busiest = busiest.max(machine::busy(Duration::from_millis(500))?);
        for (broker, load, name) in &runs {
            let measured = match speed::measure(*broker, *load, plan.sessions, ours, plan.time) {
                Ok(measured) => measured,
                Err(error) => {
                    eprintln!("FAILED: {error:#}");
                    failed.push(format!("{error:#}"));
                    continue;
                }
            };
            let sample = measured.sample;
            loader_us = loader_us.max(measured.loader_us);
            let lost = if sample.faults.lost > 0 { "  LOSES" } else { "" };
            eprintln!(
                "{round}/{} {name:38} {:16} {:>9}/s {:>7.2} us, loader {:.2} us, p99 {:.2} ms, lost {}, twice {}{lost}",
                plan.rounds,
                broker.brand.name(),
                thousands(sample.rate),
                sample.cpu_us,
                measured.loader_us,
                sample.latency.p99,
                sample.faults.lost,
                sample.faults.twice
            );
            report.add(name, row_name(broker.brand), &measured.durability, sample);
        }
    }
    if !runs.is_empty() {
        report.facts.push(format!(
            "Before the rounds, with no server running, up to {busiest:.0} % of the CPU was busy. The loader took at most \
             {loader_us:.2} us for a delivery."
        ));
    }
    Ok(())
}

const WITHOUT_NODELAY: &str = "mosquitto (its Nagle)";

/// Until the better one is known, both mosquittos have rows of their own.
fn row_name(brand: Brand) -> &'static str {
    match brand {
        Brand::Mosquitto { nodelay: false } => WITHOUT_NODELAY,
        other => other.name(),
    }
}

/// Of the two mosquittos of a load, the quicker one stays.
fn better_nagle(report: &mut Report) {
    let slower = |report: &Report, load: &str| {
        let rate = |name| report.find(load, name).map_or(0.0, |sample| sample.rate);
        if rate("mosquitto") < rate(WITHOUT_NODELAY) { "mosquitto" } else { WITHOUT_NODELAY }
    };
    let gone: Vec<(String, &str)> =
        report.rows.iter().map(|row| (row.load.clone(), slower(report, &row.load))).collect();
    report.rows.retain(|row| !gone.iter().any(|(load, name)| *load == row.load && *name == row.server));
    for row in report.rows.iter_mut().filter(|row| row.server == WITHOUT_NODELAY) {
        row.server = "mosquitto".into();
    }
}

#[cfg(test)]
mod tests {
    use super::{STYLE, WITHOUT_NODELAY, better_nagle};
    use crate::bench::report::{Faults, Percentiles, Report, Sample};

    #[test]
    fn the_better_mosquitto_is_the_measure_in_each_row() {
        let none = Percentiles { p50: 0.0, p99: 0.0, p999: 0.0 };
        let sample =
            |rate| Sample { rate, cpu_us: 1.0, latency: none, delivery: None, faults: Faults::default() };
        let mut report = Report::new(STYLE, String::new());
        for (load, on, off) in [("a", 2.0, 1.0), ("b", 1.0, 3.0)] {
            report.add(load, "mosquitto", "on", sample(on));
            report.add(load, WITHOUT_NODELAY, "off", sample(off));
            report.add(load, "mochi", "", sample(1.0));
        }
        better_nagle(&mut report);
        let kept: Vec<_> = report
            .rows
            .iter()
            .map(|row| (row.load.as_str(), row.server.as_str(), row.durability.as_str()))
            .collect();
        let wanted =
            [("a", "mosquitto", "on"), ("a", "mochi", ""), ("b", "mosquitto", "off"), ("b", "mochi", "")];
        assert_eq!(kept, wanted);
    }
}
