//! The time from the start of a broker with much to remember to its first CONNACK.

use super::brokers::Broker;
use super::clients::{Counter, Idle, Retainer};
use super::idle;
use super::speed::Sessions;
use crate::bench::loader::Loader;
use crate::bench::report::thousands;
use crate::server::Server;
use anyhow::{Context, Result, ensure};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Sessions that are made before their connections are closed.
const BATCH: u64 = 1000;
/// Retained messages whose PUBACK is awaited.
const WINDOW: u16 = 1000;
/// Sessions that are resumed to see that they are there.
const SAMPLE: u64 = 100;

/// Each of the two ends then: a broker that is slow at it gets less to remember.
const LIMIT: Duration = Duration::from_secs(60);

/// How much there is to remember.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) retained: u64,
    pub(super) sessions: u64,
}

/// A sentence about a restart with so much.
pub(super) fn run(broker: Broker, sessions: Sessions, ours: &Path, size: Size) -> Result<String> {
    let mut server = Server::start(broker, ours)?;
    let done = recover(&mut server, Sessions { clean: false, ..sessions }, size);
    done.with_context(|| format!("recovery of {}\n{}", broker.brand.name(), server.log()))
}

fn recover(server: &mut Server<Broker>, sessions: Sessions, size: Size) -> Result<String> {
    let start = Instant::now();
    let mut made = Size { retained: retain(server, sessions, size.retained)?, sessions: 0 };
    let begun = Instant::now();
    for batch in 0..size.sessions.div_ceil(BATCH) {
        if begun.elapsed() > LIMIT {
            break;
        }
        let conns = BATCH.min(size.sessions - batch * BATCH);
        // Dropped, the connections are gone and the sessions stay.
        drop(idle::connect(server, sessions, &format!("away-{batch}"), conns, Duration::MAX)?);
        made.sessions += conns;
    }
    let size = made;
    let filled = start.elapsed();
    let killed = server.kind.survives_kill();
    let took = if killed { server.kill_and_restart()? } else { server.end_and_restart()? };
    let held = retained(server, sessions, size.retained)?;
    let present = resumed(server, sessions, size.sessions)?;
    let mut text = format!(
        "{} ({}): {} retained messages and {} offline sessions, made in {:.0} s, are {} on disk; after {} the first CONNACK \
         came {:.2} s after the start.",
        server.kind.brand.name(),
        server.mode,
        thousands(size.retained as f64),
        thousands(size.sessions as f64),
        filled.as_secs_f64(),
        format_args!("{:.0} MB", server.bytes_on_disk() as f64 / 1e6),
        if killed { "kill -9" } else { "an orderly end" },
        took.as_secs_f64()
    );
    if held != size.retained || present.0 != present.1 {
        text.push_str(&format!(
            " **A new subscriber got {held} of the retained messages; {} of {} sessions that were asked for were there.**",
            present.0, present.1
        ));
    }
    Ok(text)
}

/// So many, or fewer if that takes too long; gives how many it were.
fn retain(server: &Server<Broker>, sessions: Sessions, count: u64) -> Result<u64> {
    let mut loader = Loader::new()?;
    loader.tally.limit = count;
    let link = sessions.link("retainer".into(), None);
    loader.add_and_send(TcpStream::connect(server.addr)?, Retainer::new(link, WINDOW))?;
    let start = Instant::now();
    while loader.tally.confirmed < count && start.elapsed() < LIMIT {
        loader.step(Duration::from_millis(50))?;
    }
    loader.tally.limit = loader.tally.sent;
    loader.run_until(LIMIT, |tally| tally.confirmed == tally.sent)?;
    Ok(loader.tally.sent)
}

/// How many retained messages a new subscriber gets.
fn retained(server: &Server<Broker>, sessions: Sessions, count: u64) -> Result<u64> {
    let mut loader = Loader::new()?;
    let link = sessions.link("counter".into(), Some(("retained/#".into(), 0)));
    loader.add_and_send(TcpStream::connect(server.addr)?, Counter::new(link))?;
    let (mut last, mut since) = (0, Instant::now());
    while loader.tally.delivered < count && since.elapsed() < Duration::from_secs(10) {
        loader.step(Duration::from_millis(50))?;
        if loader.tally.delivered > last {
            (last, since) = (loader.tally.delivered, Instant::now());
        }
    }
    Ok(loader.tally.delivered)
}

/// How many sessions of a sample are still there, and how many that is of.
fn resumed(server: &Server<Broker>, sessions: Sessions, count: u64) -> Result<(u64, u64)> {
    let sample = SAMPLE.min(count);
    let mut loader = Loader::new()?;
    for n in 0..sample {
        let number = n * count / sample;
        let client = format!("away-{}-{}", number / BATCH, number % BATCH);
        loader.add_and_send(TcpStream::connect(server.addr)?, Idle::new(sessions.link(client, None)))?;
    }
    loader.run_until(Duration::from_secs(60), |tally| tally.greeted == sample)?;
    ensure!(loader.tally.confirmed <= sample, "a session was there twice");
    Ok((loader.tally.confirmed, sample))
}
