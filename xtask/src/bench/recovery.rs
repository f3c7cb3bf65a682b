//! `kill -9` of a server with a long log, and the time until it answers again.

use super::control::Control;
use super::loader::Loader;
use super::report::{Goal, Report, thousands};
use super::speed::greeted;
use super::wire::Publisher;
use super::wire::jsonlog::{Pubn, TOPIC};
use crate::server::{Kind, Server};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) fn run(ours: &Path, bytes: u64, report: &mut Report) -> Result<()> {
    let mut server = Server::start(Kind::Postroad, ours)?;
    let events = fill(&server, bytes).with_context(|| format!("filling the log\n{}", server.log()))?;
    let size = server.bytes_on_disk();

    let start = Instant::now();
    let greeting = server.kill_and_restart()?;
    let stats = Control::open(server.addr)?.call(&format!("stats {TOPIC}"))?;
    let answered = start.elapsed();
    let stats: serde_json::Value = serde_json::from_str(&stats)?;
    ensure!(
        stats["first"] == 1 && stats["last"] == events,
        "{events} events were confirmed; after kill -9 the server says {stats}"
    );
    report.goals.push(Goal {
        name: format!(
            "recovery of {:.2} GB of log ({} events) after kill -9",
            size as f64 / 1e9,
            thousands(events as f64)
        ),
        want: "<= 2 s".into(),
        got: Some(format!("{:.2} s", answered.as_secs_f64())),
        met: answered < Duration::from_secs(2),
    });
    report.facts.push(format!(
        "Recovery with a warm page cache: greeting after {:.2} s, `stats` answered after {:.2} s, no event lost.",
        greeting.as_secs_f64(),
        answered.as_secs_f64()
    ));
    Ok(())
}

/// Publishes until the log has `bytes`; gives how many events.
fn fill(server: &Server, bytes: u64) -> Result<u64> {
    let mut loader = Loader::new()?;
    for _ in 0..4 {
        loader.add(greeted(server)?, Publisher::new(Pubn::new(512), 2))?;
    }
    let limit = Instant::now() + Duration::from_secs(180);
    loader.kick()?;
    while server.bytes_on_disk() < bytes {
        loader.run_for(Duration::from_millis(50))?;
        ensure!(Instant::now() < limit, "the log has {} of {bytes} bytes", server.bytes_on_disk());
    }
    loader.tally.limit = loader.tally.sent;
    loader.run_until(Duration::from_secs(60), |tally| tally.open() == 0)?;
    Ok(loader.tally.confirmed)
}
