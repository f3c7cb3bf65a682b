//! What an event costs in memory while a named subscription has not acked it.

use super::control::Control;
use super::loader::Loader;
use super::report::{Goal, Report, thousands};
use super::speed::greeted;
use super::wire::Publisher;
use super::wire::jsonlog::{Pubn, TOPIC};
use crate::server::{Kind, Server};
use anyhow::{Context, Result, ensure};
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// Events in a batch.
const BATCH: u64 = 1000;

pub(crate) fn run(ours: &Path, events: u64, report: &mut Report) -> Result<()> {
    for mixed in [false, true] {
        let server = Server::start(Kind::Postroad, ours)?;
        let done = pending(&server, events, mixed, report);
        done.with_context(|| format!("{events} pending events\n{}", server.log()))?;
    }
    Ok(())
}

fn pending(server: &Server, events: u64, mixed: bool, report: &mut Report) -> Result<()> {
    let mut control = Control::open(server.addr)?;
    // Buffers and caches grow to their size on events that nobody waits for.
    publish(server, events / 10, mixed)?;
    control.call(&format!("sub {TOPIC} as slow from=new"))?;
    control.call(&format!("unsub {TOPIC} as slow"))?;
    let before = server.resident()?;
    publish(server, events, mixed)?;
    std::thread::sleep(Duration::from_millis(500));
    let away = server.resident()?.saturating_sub(before) as f64 / events as f64;

    // The subscriber comes back: now the events are ordered and one is in flight.
    control.call(&format!("sub {TOPIC} as slow prefetch=1"))?;
    let first = control.line()?;
    let best = if mixed { r#""priority":9"# } else { r#""n":"# };
    ensure!(first.starts_with(&format!("event {TOPIC} ")) && first.contains(best), "first came `{first}`");
    std::thread::sleep(Duration::from_millis(500));
    let back = server.resident()?.saturating_sub(before) as f64 / events as f64;

    let cost = away.max(back);
    let kind = if mixed { "priorities 0 to 9" } else { "one priority" };
    report.goals.push(Goal {
        name: format!("resident memory per pending event ({} events, {kind})", thousands(events as f64)),
        want: "<= 64 B".into(),
        got: Some(format!("{cost:.1} B")),
        met: cost <= 64.0,
    });
    report.facts.push(format!(
        "Pending, {kind}: {away:.1} B an event while the subscriber is away, {back:.1} B when it is back."
    ));
    Ok(())
}

fn publish(server: &Server, events: u64, mixed: bool) -> Result<()> {
    let mut lines = String::new();
    let mut random: u64 = 1;
    for n in 0..BATCH {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Writing to a String cannot fail.
        let _ = if mixed {
            writeln!(lines, r#"{{"n":{n},"priority":{}}}"#, (random >> 33) % 10)
        } else {
            writeln!(lines, r#"{{"n":{n}}}"#)
        };
    }
    let mut loader = Loader::new()?;
    loader.tally.limit = events;
    for _ in 0..2 {
        loader.add(greeted(server)?, Publisher::new(Pubn::of(lines.as_bytes(), BATCH), 2))?;
    }
    loader.kick()?;
    loader.run_until(Duration::from_secs(120), |tally| tally.sent >= events && tally.open() == 0)
}
