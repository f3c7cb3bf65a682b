//! The rows of the table: one load against one broker, new for every measurement.

use super::books::{Books, Shared};
use super::brokers::Broker;
use super::clients::{Identity, Link, Publisher, Subscriber};
use super::packets::Version;
use crate::bench::loader::Loader;
use crate::bench::report::{Faults, Percentiles, Sample};
use crate::server::{Server, cpu_us_of};
use anyhow::Result;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Who publishes to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    /// So many publishers, each with a subscriber of its own.
    Pairs(usize),
    /// One publisher, so many subscribers that get everything.
    FanOut(usize),
    /// So many publishers, one subscriber.
    FanIn(usize),
}

/// What is asked of a broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Load {
    pub(super) shape: Shape,
    pub(super) window: u16,
    pub(super) qos: u8,
    /// Publishers do not wait for deliveries.
    pub(super) ahead: bool,
}

impl Load {
    pub(super) fn name(self) -> String {
        let shape = match self.shape {
            Shape::Pairs(n) => format!("{n}:{n}"),
            Shape::FanOut(n) => format!("1:{n}"),
            Shape::FanIn(n) => format!("{n}:1"),
        };
        format!("{shape}, window {}, QoS {}", self.window, self.qos)
    }

    fn publishers(self) -> usize {
        match self.shape {
            Shape::Pairs(n) | Shape::FanIn(n) => n,
            Shape::FanOut(_) => 1,
        }
    }

    /// Subscribers, and how many of them get each message.
    fn subscribers(self) -> (usize, u64) {
        match self.shape {
            Shape::Pairs(n) => (n, 1),
            Shape::FanOut(n) => (n, n as u64),
            Shape::FanIn(_) => (1, 1),
        }
    }

    fn filter(self, subscriber: usize) -> String {
        match self.shape {
            Shape::Pairs(_) => topic(subscriber),
            Shape::FanOut(_) => topic(0),
            Shape::FanIn(_) => "bench/+".into(),
        }
    }
}

fn topic(publisher: usize) -> String {
    format!("bench/{publisher}")
}

/// How clients connect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sessions {
    pub(super) version: Version,
    pub(super) clean: bool,
}

impl Sessions {
    pub(super) fn link(self, client: String, wanted: Option<(String, u8)>) -> Link {
        Link::new(Identity { version: self.version, client, clean: self.clean }, wanted)
    }
}

/// One measurement, and what it cost this process.
pub(super) struct Measured {
    pub(super) sample: Sample,
    pub(super) durability: String,
    /// CPU time of the loader for each delivery, in microseconds.
    pub(super) loader_us: f64,
}

/// At full load, for windows that leave room for it. Without it a broker that writes each packet alone is asked to
/// read each answer alone, too, and costs half as much again.
const LINGER: Duration = Duration::from_micros(50);
/// Between two looks at what is due.
const TICK: Duration = Duration::from_micros(100);
/// A broker that delivers nothing for so long has lost what it owes.
const SILENCE: Duration = Duration::from_secs(3);
/// Even one that still delivers is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// A broker whose first delivery takes longer does not work.
const FIRST: Duration = Duration::from_secs(5);
/// Behind the paced time, for messages that were due in it and could not leave.
const LATE: Duration = Duration::from_secs(5);

/// The rate of completed deliveries for `time` at full load, then latencies for `time` at half of it.
pub(super) fn measure(
    broker: Broker,
    load: Load,
    sessions: Sessions,
    ours: &Path,
    time: Duration,
) -> Result<Measured> {
    let server = Server::start(broker, ours)?;
    let done = rate_and_latency(&server, load, sessions, time);
    done.map_err(|error| error.context(format!("{}: {}\n{}", broker.brand.name(), load.name(), server.log())))
}

fn rate_and_latency(
    server: &Server<Broker>,
    load: Load,
    sessions: Sessions,
    time: Duration,
) -> Result<Measured> {
    let (mut loader, books) = connected(server, load, sessions)?;
    loader.tally.limit = u64::MAX;
    if load.window > 1 {
        loader.linger = LINGER;
    }
    loader.kick()?;
    loader.run_for(time / 4)?;
    loader.run_until(FIRST, |tally| tally.acked > 0)?;
    let (before, start) = (loader.tally.acked, Instant::now());
    let (cpu, own) = (server.cpu_us()?, cpu_us_of("self")?);
    loader.run_for(time)?;
    // In a short time a slow one may do nothing: then it is a longer time.
    loader.run_until(FIRST, |tally| tally.acked > before)?;
    let deliveries = (loader.tally.acked - before) as f64;
    let (elapsed, cpu, own) = (start.elapsed(), server.cpu_us()? - cpu, cpu_us_of("self")? - own);
    let rate = deliveries / elapsed.as_secs_f64();
    drain(&mut loader, &books)?;
    // What is lost by now must not narrow the windows at half the rate.
    books.borrow_mut().write_off();
    let half = rate / 2.0 / books.borrow().copies as f64;
    let latency = paced(&mut loader, &books, half, time, LATE)?;
    // A duplicate would come behind what it doubles.
    loader.run_for(Duration::from_millis(100))?;
    let expected = books.borrow().expected();
    let faults = Faults { lost: expected.saturating_sub(loader.tally.delivered), twice: loader.tally.twice };

    Ok(Measured {
        sample: Sample { rate, cpu_us: cpu / deliveries, latency, delivery: None, faults },
        durability: server.mode.clone(),
        loader_us: own / deliveries,
    })
}

/// All clients of a load, with their subscriptions; nobody publishes yet.
fn connected(server: &Server<Broker>, load: Load, sessions: Sessions) -> Result<(Loader, Shared)> {
    let (subscribers, copies) = load.subscribers();
    let publishers = load.publishers();
    let books = Books::new(publishers, copies);
    let mut loader = Loader::new()?;
    loader.tally.limit = 0;
    // Subscribers wake publishers by their number: those come first.
    for n in 0..publishers {
        let link = sessions.link(format!("publisher-{n}"), None);
        let publisher = Publisher::new(link, &topic(n), load, n, Shared::clone(&books));
        loader.add(TcpStream::connect(server.addr)?, publisher)?;
    }
    for n in 0..subscribers {
        let link = sessions.link(format!("subscriber-{n}"), Some((load.filter(n), load.qos)));
        loader
            .add(TcpStream::connect(server.addr)?, Subscriber::new(link, load.qos, Shared::clone(&books)))?;
    }
    loader.kick()?;
    let all = (publishers + subscribers) as u64;
    loader.run_until(Duration::from_secs(20), |tally| tally.greeted == all)?;
    Ok((loader, books))
}

/// Nothing more is published; what is on its way may come.
fn drain(loader: &mut Loader, books: &Shared) -> Result<()> {
    loader.tally.limit = loader.tally.sent;
    let start = Instant::now();
    let mut last = (loader.tally.acked, Instant::now());
    while books.borrow().owed_by_all() > 0 && last.1.elapsed() < SILENCE && start.elapsed() < PATIENCE {
        loader.step(Duration::from_millis(50))?;
        if loader.tally.acked != last.0 {
            last = (loader.tally.acked, Instant::now());
        }
    }
    Ok(())
}

/// Publishes `rate` messages a second for `time`, and lets them come. The latencies are those of all messages that
/// were due, from when they were: a server that stands still for a while delays all of that while, and not only
/// those that the window let out before. One that cannot leave for `late` past the end counts with the time it waited.
pub(super) fn paced(
    loader: &mut Loader,
    books: &Shared,
    rate: f64,
    time: Duration,
    late: Duration,
) -> Result<Percentiles> {
    let publishers = books.borrow().sent.len();
    loader.linger = Duration::ZERO;
    loader.tally.delivery.reset();
    let now = loader.now();
    books.borrow_mut().set_pace(now, rate, now + time.as_nanos() as u64);
    loader.tally.limit = u64::MAX;
    loader.run_ticking(time, TICK, publishers)?;
    let waits = |loader: &Loader| {
        let books = books.borrow();
        (0..publishers).any(|publisher| books.overdue(publisher, loader.now()).next().is_some())
    };
    let end = Instant::now();
    while waits(loader) && end.elapsed() < late {
        loader.run_ticking(TICK * 10, TICK, publishers)?;
    }
    let now = loader.now();
    let books_now = books.borrow();
    for due in (0..publishers).flat_map(|publisher| books_now.overdue(publisher, now)) {
        loader.tally.delivery.record_n(now - due, books_now.copies)?;
    }
    drop(books_now);
    drain(loader, books)?;
    Ok(Percentiles::of(&loader.tally.delivery))
}

#[cfg(test)]
mod tests {
    use super::{Load, Shape};

    #[test]
    fn every_subscriber_gets_what_the_shape_says() {
        let load = |shape| Load { shape, window: 10, qos: 2, ahead: false };
        assert_eq!(load(Shape::Pairs(4)).name(), "4:4, window 10, QoS 2");
        assert_eq!((load(Shape::Pairs(4)).publishers(), load(Shape::Pairs(4)).subscribers()), (4, (4, 1)));
        assert_eq!((load(Shape::FanOut(9)).publishers(), load(Shape::FanOut(9)).subscribers()), (1, (9, 9)));
        assert_eq!((load(Shape::FanIn(9)).publishers(), load(Shape::FanIn(9)).subscribers()), (9, (1, 1)));
        assert_eq!(load(Shape::Pairs(4)).filter(3), "bench/3");
        assert_eq!(load(Shape::FanOut(4)).filter(3), "bench/0");
    }
}
