//! What receive + settle costs for each message through `dyn Subscription` and `AckToken`. `cargo bench -p postroad-core`
//!
//! - `bare`: a backend that only hands out envelopes and queues verdicts under a lock: the price of the traits and the
//!   token.
//! - `memory`: the whole memory backend, with windows, leases, attempts and the log. Small backlogs stay in the caches;
//!   large ones show what the memory itself takes.
//!
//! A consumer settles `one by one`, or its batch `together` with `settle_all`. The budget is 60 ns for each message.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use postroad_core::memory::{Memory, Options};
use postroad_core::{
    AckSink, AckToken, Backend, Capabilities, Delivery, DrainReport, Envelope, Outcome, Publisher, Result,
    Settled, Subject, SubscribeOptions, Subscription, SystemClock, Timestamp, block_on, settle_all,
};

/// Published and received in each measurement altogether.
const MESSAGES: usize = 1 << 18;

fn publish(publisher: &dyn Publisher, count: usize) -> Duration {
    let subject = Subject::new("orders/eu/new").unwrap();
    let envelopes: Vec<_> = (0..count)
        .map(|number| {
            Envelope::new(subject.clone(), format!("{{\"number\":{number},\"what\":\"one large pizza\"}}"))
        })
        .collect();
    let start = Instant::now();
    for ticket in publisher.publish_batch(envelopes) {
        assert!(ticket.try_get().is_some_and(|receipt| receipt.is_confirmed()));
    }
    start.elapsed()
}

#[derive(Clone, Copy)]
enum Settle {
    OneByOne,
    Together,
}

const WAYS: [(Settle, &str); 2] = [(Settle::OneByOne, "one by one"), (Settle::Together, "together")];

fn receive_and_settle(
    subscription: &mut dyn Subscription,
    batch: &mut Vec<Delivery>,
    max: usize,
    count: usize,
    settle: Settle,
) -> Duration {
    let mut cx = Context::from_waker(Waker::noop());
    let mut left = count;
    let start = Instant::now();
    while left > 0 {
        match subscription.poll_fill(&mut cx, batch, max) {
            Poll::Ready(Ok(count)) => left -= count,
            other => panic!("{left} messages are missing: {other:?}"),
        }
        match settle {
            Settle::OneByOne => {
                for delivery in batch.drain(..) {
                    assert!(delivery.settle(Outcome::Ack).try_get().is_some_and(|result| result.is_ok()));
                }
            }
            Settle::Together => {
                let mut settled = settle_all(batch.drain(..).map(|delivery| delivery.token), Outcome::Ack);
                assert!(settled.try_get().is_some_and(|result| result.is_ok()));
            }
        }
    }
    start.elapsed()
}

/// The least that a broker-side subscription can be: no windows, no leases, no redelivery.
struct Bare {
    log: Vec<Arc<Envelope>>,
    next: u64,
    sink: Arc<dyn AckSink>,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue(Mutex<Vec<(u64, u32, Outcome)>>);

impl AckSink for Queue {
    fn settle(&self, tag: u64, epoch: u32, outcome: Outcome) -> Settled {
        self.0.lock().unwrap().push((tag, epoch, outcome));
        Settled::ok()
    }

    fn extend(&self, _: u64, _: u32) -> Settled {
        Settled::ok()
    }
}

impl Bare {
    fn new(backlog: usize) -> Self {
        let subject = Subject::new("orders/eu/new").unwrap();
        let log = (0..backlog).map(|_| Arc::new(Envelope::new(subject.clone(), "one large pizza"))).collect();
        let queue = Arc::new(Queue::default());
        Self { log, next: 0, sink: Arc::clone(&queue) as Arc<dyn AckSink>, queue }
    }
}

impl Subscription for Bare {
    fn poll_fill(&mut self, _: &mut Context<'_>, out: &mut Vec<Delivery>, max: usize) -> Poll<Result<usize>> {
        self.queue.0.lock().unwrap().clear();
        for _ in 0..max {
            out.push(Delivery {
                envelope: Arc::clone(&self.log[self.next as usize % self.log.len()]),
                attempt: 1,
                redelivered: false,
                position: Some(self.next),
                received_at: Timestamp::EPOCH,
                token: AckToken::new(Arc::clone(&self.sink), self.next, 1),
            });
            self.next += 1;
        }
        Poll::Ready(Ok(max))
    }

    fn begin_drain(&mut self, _: Timestamp) {}

    fn poll_drain(&mut self, _: &mut Context<'_>) -> Poll<Result<DrainReport>> {
        Poll::Ready(Ok(DrainReport::default()))
    }

    fn capabilities(&self) -> &Capabilities {
        &Capabilities::NONE
    }
}

fn main() {
    println!("{:<52} {:>8} {:>8}", "ns for each message", "best", "median");
    let loads: Vec<_> =
        [1, 16, 64, 256].iter().flat_map(|batch| WAYS.map(|(settle, way)| (*batch, settle, way))).collect();
    // `cargo bench -p postroad-core --bench receive_settle -- "memory, backlog 1024"` runs only those.
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).unwrap_or_default();
    let report = |name: &str, messages: usize, rounds: &mut dyn Iterator<Item = Duration>| {
        if name.contains(&wanted) {
            print_line(name, messages, rounds);
        }
    };
    for &(batch, settle, way) in &loads {
        let mut bare: Box<dyn Subscription> = Box::new(Bare::new(1 << 10));
        let mut buffer = Vec::with_capacity(batch);
        let mut rounds =
            (0..MESSAGES >> 10).map(|_| receive_and_settle(&mut *bare, &mut buffer, batch, 1 << 10, settle));
        report(&format!("bare, batches of {batch}, {way}"), 1 << 10, &mut rounds);
    }
    for backlog in [1 << 10, 1 << 16] {
        for &(batch, settle, way) in &loads {
            // The log keeps no more than the backlog, so the memory of settled messages is used again.
            let options = Options { dedup_count: 0, max_messages: backlog as u64, ..Options::default() };
            let memory = Memory::with(options, SystemClock::new());
            let publisher = block_on(memory.publisher()).unwrap();
            let options = SubscribeOptions::new("orders/*/new".parse().unwrap());
            let mut subscription = block_on(memory.subscribe(options)).unwrap();
            let mut buffer = Vec::with_capacity(batch);
            let mut rounds = (0..MESSAGES / backlog).map(|_| {
                publish(&*publisher, backlog);
                receive_and_settle(&mut *subscription, &mut buffer, batch, backlog, settle)
            });
            report(&format!("memory, backlog {backlog}, batches of {batch}, {way}"), backlog, &mut rounds);
            drop(rounds);
            assert_eq!(memory.stats().pending, 0);
        }
    }
    for (name, dedup_count) in [("with dedup", 1 << 16), ("without dedup", 0)] {
        let options = Options { dedup_count, max_messages: 1 << 10, ..Options::default() };
        let memory = Memory::with(options, SystemClock::new());
        let publisher = block_on(memory.publisher()).unwrap();
        let mut rounds = (0..MESSAGES >> 10).map(|_| publish(&*publisher, 1 << 10));
        report(&format!("publish {name}, nobody listens"), 1 << 10, &mut rounds);
    }
}

fn print_line(name: &str, messages: usize, rounds: &mut dyn Iterator<Item = Duration>) {
    let mut rounds: Vec<_> = rounds.map(|time| time.as_nanos() as f64 / messages as f64).collect();
    rounds.sort_by(f64::total_cmp);
    println!("{name:<52} {:>8.1} {:>8.1}", rounds[0], rounds[rounds.len() / 2]);
}
