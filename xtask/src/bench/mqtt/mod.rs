//! `cargo xtask bench mqtt`: MQTT brokers side by side. No message may be lost or come twice without being counted.

mod books;
mod brokers;
mod clients;
mod idle;
mod install;
#[cfg(test)]
mod loader_tests;
mod packets;
mod plan;
mod recovery;
mod settings;
mod slow;
mod speed;

use super::report::{Faults, Goal, Report, Style, ms, thousands};
use super::{again_optimised, event, machine, publish, scale};
use crate::args::Args;
use crate::sh;
use anyhow::{Result, ensure};
use brokers::{Brand, Broker};
use packets::Version;
use plan::Plan;
use slow::Slow;
use speed::Load;
use std::path::Path;
use std::time::{Duration, Instant};

const STYLE: Style = Style {
    command: "bench mqtt",
    unit: "delivery",
    headline: "MQTT: deliveries of 256 bytes over loopback",
    bases: &["mosquitto"],
    faults: true,
    latency_at: " at half load",
};

/// What latency at half load must stay below, in milliseconds.
const LATENCY: f64 = 5.0;

pub(super) fn run(raw: &[String]) -> Result<()> {
    let valued =
        ["only", "servers", "qos", "protocol", "sessions", "seconds", "rounds", "binary", "json", "svg"];
    let args = Args::parse(raw, &["quick", "ahead", "check"], &valued)?;
    ensure!(!(args.has("quick") && args.has("check")), "--quick has no goals to --check");
    ensure!(args.words == ["mqtt"], "one thing to bench at a time");
    let mut plan = Plan::of(&args)?;
    let ours = match args.text("binary") {
        Some(file) => sh::root().join(file),
        None if cfg!(debug_assertions) => return again_optimised(raw),
        None => sh::target().join("release/postroad"),
    };
    let mut report = Report::new(STYLE, setup(&plan));
    let left_out = get_servers(&mut plan, &ours);
    report.facts.extend(left_out);
    ensure!(!plan.brands.is_empty(), "there is no server left to measure");
    let start = Instant::now();
    report.facts.push(machine::disk(plan.time / 4)?);
    // 500 for this process and the servers' files.
    scale::raise_file_limit(plan.conns + 500)?;

    let mut failed = Vec::new();
    rows(&plan, &ours, &mut report, &mut failed)?;
    for brand in plan.brands.iter().filter(|brand| plan.has("idle") && first_of_its_name(**brand)) {
        let done = idle::run(brand.plain(), plan.sessions, &ours, plan.conns);
        fact(*brand, done, &mut report, &mut failed);
    }
    for brand in plan.brands.iter().filter(|brand| plan.has("recovery") && brand.recovers()) {
        let kept = Broker { kept: true, ..brand.plain() };
        let done = recovery::run(kept, plan.sessions, &ours, plan.recovery);
        fact(*brand, done, &mut report, &mut failed);
    }
    report.facts.extend(failed.iter().map(|error| format!("FAILED: {error}")));
    report.facts.push(format!("All of this took {:.1} min.", start.elapsed().as_secs_f64() / 60.0));
    if plan.quick {
        report.facts.push("--quick shows that everything works; its figures say nothing.".into());
    } else {
        report.goals = goals(&plan, &report);
    }
    publish(&report, &args, if plan.quick { "mqtt-quick" } else { "mqtt" })?;
    ensure!(failed.is_empty(), "{} measurements failed", failed.len());
    let missed = report.goals.iter().filter(|goal| !goal.met).count();
    ensure!(!args.has("check") || missed == 0, "{missed} of {} goals missed", report.goals.len());
    Ok(())
}

fn setup(plan: &Plan) -> String {
    format!(
        "{} B payloads, MQTT {}, {} sessions; the median of {} rounds of {} s; a new server for every measurement; load \
         and servers share {} cores. A delivery counts when its handshake at the subscriber is over. Latency is that of \
         as long a time again, in which half of the measured rate is published at even intervals, by each publisher at \
         most every 0.5 ms (then what it has for that time): from when a message is due, sent or not, to its arrival; the \
         median of the rounds. Publishers {}.",
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

/// Gets the servers that are not here; gives what is not measured, with the reasons.
fn get_servers(plan: &mut Plan, ours: &Path) -> Vec<String> {
    let mut left_out: Vec<(Brand, String)> =
        plan.left_out.iter().map(|(brand, why)| (*brand, (*why).to_owned())).collect();
    let missing = install::ensure(&plan.brands, ours);
    plan.brands.retain(|brand| missing.iter().all(|(gone, _)| gone != brand));
    left_out.extend(missing);
    let mut facts: Vec<String> = Vec::new();
    for (brand, why) in left_out {
        let fact = format!("{} was left out: {}", brand.name(), why.lines().next().unwrap_or_default());
        if !facts.contains(&fact) {
            facts.push(fact);
        }
    }
    for brand in &plan.brands {
        for (qos, why) in plan.qos().into_iter().filter_map(|qos| Some((qos, brand.lacks_qos(qos)?))) {
            facts.push(format!("{} has no rows of QoS {qos}: {why}.", brand.name()));
        }
    }
    facts
}

fn first_of_its_name(brand: Brand) -> bool {
    brand != Brand::Mosquitto { nodelay: false }
}

fn fact(brand: Brand, done: Result<String>, report: &mut Report, failed: &mut Vec<String>) {
    match done {
        Ok(text) => {
            eprintln!("{text}");
            report.facts.push(text);
        }
        Err(error) => failure(brand, &error, report, failed),
    }
}

/// A measurement that could not be made. With a peer that does not do as it should there is none, and that is said.
fn failure(brand: Brand, error: &anyhow::Error, report: &mut Report, failed: &mut Vec<String>) {
    eprintln!("FAILED: {error:#}");
    if brand.ours() {
        failed.push(format!("{error:#}"));
        return;
    }
    // The outer line names the load, the innermost says what was wrong; the log between them was shown.
    let (outer, inner) = (error.to_string(), error.root_cause().to_string());
    let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    report.facts.push(format!("NOT MEASURED: {}: {}", first(&outer), first(&inner)));
}

/// One measurement of a round; one of the slow disk goes into a table of its own.
struct Run {
    broker: Broker,
    load: Load,
    disk: Option<&'static str>,
}

fn runs(plan: &Plan) -> Vec<Run> {
    let mut runs = Vec::new();
    for load in plan.loads() {
        let able = plan.brands.iter().filter(|brand| brand.lacks_qos(load.qos).is_none());
        runs.extend(able.map(|brand| Run { broker: brand.plain(), load, disk: None }));
    }
    if plan.has("slow") && plan.brands.contains(&Brand::Postroad) {
        let slow = slow::runs(&plan.qos(), plan.ahead).into_iter();
        runs.extend(slow.map(|(broker, load, disk)| Run { broker, load, disk: Some(disk) }));
    }
    runs
}

fn rows(plan: &Plan, ours: &Path, report: &mut Report, failed: &mut Vec<String>) -> Result<()> {
    let mut runs = runs(plan);
    if runs.is_empty() {
        return Ok(());
    }
    let mut slow = Slow::new(STYLE);
    let (mut busiest, mut loader_us) = (0.0_f64, 0.0_f64);
    for round in 1..=plan.rounds {
        busiest = busiest.max(machine::busy(Duration::from_millis(500))?);
        for Run { broker, load, disk } in &runs {
            let measured = match speed::measure(*broker, *load, plan.sessions, ours, plan.time) {
                Ok(measured) => measured,
                Err(error) => {
                    failure(broker.brand, &error, report, failed);
                    continue;
                }
            };
            let sample = measured.sample;
            loader_us = loader_us.max(measured.loader_us);
            let name = match disk {
                Some(disk) => format!("{}, disk {disk}", load.name()),
                None => load.name(),
            };
            let fault = broken(load.qos, sample.faults);
            eprintln!(
                "{round}/{} {name:38} {:16} {:>9}/s {:>7.2} us, loader {:.2} us, p99 {:.2} ms, lost {}, twice {}{}",
                plan.rounds,
                broker.brand.name(),
                thousands(sample.rate),
                sample.cpu_us,
                measured.loader_us,
                sample.latency.p99,
                sample.faults.lost,
                sample.faults.twice,
                if fault { "  BREAKS ITS PROMISE" } else { "" }
            );
            if fault && broker.brand.ours() {
                let Faults { lost, twice } = sample.faults;
                failed.push(format!("{}: {name}: {lost} lost, {twice} twice", broker.brand.name()));
            }
            match disk {
                Some(disk) => slow.add(*load, disk, &measured.durability, sample),
                None => report.add(&name, row_name(broker.brand), &measured.durability, sample),
            }
        }
        // The slower mosquitto of a load is measured once.
        runs.retain(|run| {
            let name = row_name(run.broker.brand);
            !name.starts_with("mosquitto") || name != slower_nagle(report, &run.load.name())
        });
    }
    better_nagle(report);
    report.tables.extend(slow.table());
    report.facts.push(
        "Of mosquitto with and without Nagle's algorithm each row has the one that was quicker in the first round. Lost \
         and twice are those of all rounds. QoS 0 may lose what a subscriber does not take in time, and QoS 1 may \
         deliver again; what is lost at QoS 1 or 2, or comes twice at QoS 2, breaks a promise. For postroad that fails \
         the run."
            .into(),
    );
    report.facts.push(format!(
        "Before the rounds, with no server running, up to {busiest:.0} % of the CPU was busy. The loader took at most \
         {loader_us:.2} us for a delivery."
    ));
    Ok(())
}

/// Whether that is more than the level allows (4.3 of MQTT 5.0).
fn broken(qos: u8, faults: Faults) -> bool {
    (qos > 0 && faults.lost > 0) || (qos == 2 && faults.twice > 0)
}

fn goals(plan: &Plan, report: &Report) -> Vec<Goal> {
    let name = Brand::Postroad.name();
    if !plan.brands.contains(&Brand::Postroad) {
        return Vec::new();
    }
    let goal = |load: Load| {
        let p99 = report.find(&load.name(), name).map(|sample| sample.latency.p99);
        Goal {
            name: format!("{name}, {}: p99 at half load", load.name()),
            want: format!("below {LATENCY} ms"),
            got: p99.map(|p99| format!("{} ms", ms(p99))),
            met: p99.is_some_and(|p99| p99 < LATENCY),
        }
    };
    plan.limited().into_iter().map(goal).collect()
}

const WITHOUT_NODELAY: &str = "mosquitto (its Nagle)";

/// Until the better one is known, both mosquittos have rows of their own.
fn row_name(brand: Brand) -> &'static str {
    match brand {
        Brand::Mosquitto { nodelay: false } => WITHOUT_NODELAY,
        other => other.name(),
    }
}

fn slower_nagle(report: &Report, load: &str) -> &'static str {
    // The first round decides, which is the only one of the slower.
    let rate = |name| report.row(load, name).and_then(|row| row.samples.first()).map_or(0.0, |s| s.rate);
    if rate("mosquitto") < rate(WITHOUT_NODELAY) { "mosquitto" } else { WITHOUT_NODELAY }
}

/// Of the two mosquittos of a load, the quicker one stays.
fn better_nagle(report: &mut Report) {
    let gone: Vec<(String, &str)> =
        report.rows.iter().map(|row| (row.load.clone(), slower_nagle(report, &row.load))).collect();
    report.rows.retain(|row| !gone.iter().any(|(load, name)| *load == row.load && *name == row.server));
    for row in report.rows.iter_mut().filter(|row| row.server == WITHOUT_NODELAY) {
        row.server = "mosquitto".into();
    }
}

#[cfg(test)]
mod tests {
    use super::{STYLE, WITHOUT_NODELAY, better_nagle, broken};
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

    #[test]
    fn only_what_a_level_promises_can_be_broken() {
        let faults = |lost, twice| Faults { lost, twice };
        let all = [(0, 9, 9), (1, 0, 9), (2, 0, 0), (1, 1, 0), (2, 1, 0), (2, 0, 1)];
        let verdicts = all.map(|(qos, lost, twice)| broken(qos, faults(lost, twice)));
        assert_eq!(verdicts, [false, false, false, true, true, true]);
    }
}
