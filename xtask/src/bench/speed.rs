//! The rows of the speed table: one load against one server, new for every measurement.

use super::control::{Control, held};
use super::loader::Loader;
use super::report::{Faults, Percentiles, Sample};
use super::wire::beanstalkd::{Put, Worker};
use super::wire::jsonlog::{Pub, Pubn, Subscriber, TOPIC};
use super::wire::redis::Xadd;
use super::wire::{Publisher, Wire};
use crate::server::{Kind, Server};
use anyhow::{Result, bail, ensure};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// What is asked of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Load {
    /// `conns` connections, each with `window` unanswered publishes.
    Publish { conns: u64, window: u64 },
    /// `conns` connections, each with `window` unanswered batches of `batch` events.
    Bulk { conns: u64, window: u64, batch: u64 },
    /// Publishers as in `Publish`, and one subscriber that acks everything.
    Deliver { conns: u64, window: u64 },
}

/// The loads, in the order of the table.
pub(crate) const ONE: Load = Load::Publish { conns: 1, window: 1 };
pub(crate) const MANY: Load = Load::Publish { conns: 50, window: 1 };
pub(crate) const DEEP: Load = Load::Publish { conns: 50, window: 32 };
pub(crate) const BULK: Load = Load::Bulk { conns: 4, window: 2, batch: 512 };
pub(crate) const DELIVER: Load = Load::Deliver { conns: 50, window: 32 };

/// Events in flight at the subscriber of postroad.
const PREFETCH: u32 = 16384;
/// Reserves the worker of beanstalkd keeps waiting.
const RESERVES: u64 = 64;

impl Load {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Publish { conns, window } => format!("publish {conns} x {window}"),
            Self::Bulk { conns, window, batch } => format!("pubn {conns} x {window} of {batch}"),
            Self::Deliver { conns, window } => format!("publish {conns} x {window} + deliver + ack"),
        }
    }

    /// The servers that can be asked it.
    pub(crate) fn servers(self) -> &'static [Kind] {
        match self {
            Self::Publish { .. } => &Kind::ALL,
            Self::Bulk { .. } => &[Kind::Postroad],
            Self::Deliver { .. } => &[Kind::Postroad, Kind::Beanstalkd],
        }
    }
}

/// Measures once, for about `time`.
pub(crate) fn measure(kind: Kind, load: Load, ours: &Path, time: Duration) -> Result<(Sample, String)> {
    let server = Server::start(kind, ours)?;
    let mut loader = Loader::new()?;
    let sample = match load {
        Load::Publish { conns, window } => {
            publishers(&mut loader, &server, conns, window, None)?;
            publish(&mut loader, &server, time)
        }
        Load::Bulk { conns, window, batch } => {
            publishers(&mut loader, &server, conns, window, Some(batch))?;
            publish(&mut loader, &server, time)
        }
        Load::Deliver { conns, window } => {
            subscriber(&mut loader, &server)?;
            publishers(&mut loader, &server, conns, window, None)?;
            deliver(&mut loader, &server, time)
        }
    };
    match sample {
        Ok(sample) => Ok((sample, server.mode.clone())),
        Err(error) => Err(error.context(format!("{}: {}\n{}", server.mode, load.name(), server.log()))),
    }
}

fn publishers(
    loader: &mut Loader,
    server: &Server,
    conns: u64,
    window: u64,
    batch: Option<u64>,
) -> Result<()> {
    fn add(loader: &mut Loader, stream: TcpStream, wire: impl Wire + 'static, window: u64) -> Result<()> {
        loader.add(stream, Publisher::new(wire, window))
    }
    for _ in 0..conns {
        match (server.kind, batch) {
            (Kind::Postroad, None) => add(loader, greeted(server)?, Pub::new(), window)?,
            (Kind::Postroad, Some(batch)) => add(loader, greeted(server)?, Pubn::new(batch), window)?,
            (Kind::Redis, None) => add(loader, TcpStream::connect(server.addr)?, Xadd::new(), window)?,
            (Kind::Beanstalkd, None) => add(loader, TcpStream::connect(server.addr)?, Put::new(), window)?,
            (_, Some(_)) => bail!("{} has no batches", server.kind.name()),
        }
    }
    Ok(())
}

fn subscriber(loader: &mut Loader, server: &Server) -> Result<()> {
    match server.kind {
        Kind::Postroad => {
            let mut control = Control::open(server.addr)?;
            control.call(&format!("sub {TOPIC} as bench from=first prefetch={PREFETCH}"))?;
            loader.add(control.into_stream()?, Subscriber::new())
        }
        Kind::Beanstalkd => loader.add(TcpStream::connect(server.addr)?, Worker::new(RESERVES)),
        Kind::Redis => bail!("no row delivers from redis"),
    }
}

/// A connection to postroad whose greeting has been read.
pub(crate) fn greeted(server: &Server) -> Result<TcpStream> {
    Control::open(server.addr)?.into_stream()
}

/// The rate of answers in a window of `time`, after a warm-up. Afterwards all is let run out, and the
/// server must hold every event.
fn publish(loader: &mut Loader, server: &Server, time: Duration) -> Result<Sample> {
    loader.kick()?;
    loader.run_for(time / 8)?;
    loader.tally.publish.reset();
    let (before, cpu, start) = (loader.tally.confirmed, server.cpu_us()?, Instant::now());
    loader.run_for(time)?;
    let events = (loader.tally.confirmed - before) as f64;
    let (elapsed, cpu) = (start.elapsed(), server.cpu_us()? - cpu);
    ensure!(events > 0.0, "not one answer in {time:?}");
    let latency = Percentiles::of(&loader.tally.publish);
    loader.tally.limit = loader.tally.sent;
    loader.run_until(Duration::from_secs(60), |tally| tally.open() == 0)?;
    let held = held(server)?;
    ensure!(
        held == loader.tally.sent,
        "{} events were confirmed, the server holds {held}",
        loader.tally.sent
    );
    let rate = events / elapsed.as_secs_f64();
    Ok(Sample { rate, cpu_us: cpu / events, latency, delivery: None, faults: Faults::default() })
}

/// The rate of events that went all the way: publishers run for `time`, then everything is delivered
/// and acked; the clock runs until the last answer.
fn deliver(loader: &mut Loader, server: &Server, time: Duration) -> Result<Sample> {
    let (cpu, start) = (server.cpu_us()?, Instant::now());
    loader.kick()?;
    loader.run_for(time)?;
    loader.tally.limit = loader.tally.sent;
    loader.run_until(Duration::from_secs(120), |tally| tally.open() == 0 && tally.acked >= tally.sent)?;
    let (elapsed, cpu) = (start.elapsed(), server.cpu_us()? - cpu);
    let tally = &loader.tally;
    ensure!(tally.delivered == tally.sent && tally.acked == tally.sent, "something was delivered twice");
    Ok(Sample {
        rate: tally.sent as f64 / elapsed.as_secs_f64(),
        cpu_us: cpu / tally.sent as f64,
        latency: Percentiles::of(&tally.publish),
        delivery: Some(Percentiles::of(&tally.delivery)),
        faults: Faults::default(),
    })
}
