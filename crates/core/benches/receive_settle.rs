//! What receive + settle costs for each message, through `dyn Subscription` and `AckToken`, with the memory backend.
//! The budget is 60 ns while the backlog fits the caches; beyond, the memory itself is what one waits for.
//! `cargo bench -p postroad-core`

use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use postroad_core::memory::{Memory, Options};
use postroad_core::{
    Backend, Delivery, Envelope, Outcome, Publisher, Subject, SubscribeOptions, Subscription, SystemClock, block_on,
};

/// Published and received in each measurement altogether.
const MESSAGES: usize = 1 << 18;

fn publish(publisher: &dyn Publisher, count: usize) -> Duration {
    let subject = Subject::new("orders/eu/new").unwrap();
    let envelopes: Vec<_> = (0..count)
        .map(|number| Envelope::new(subject.clone(), format!("{{\"number\":{number},\"what\":\"one large pizza\"}}")))
        .collect();
    let start = Instant::now();
    for ticket in publisher.publish_batch(envelopes) {
        assert!(ticket.try_get().is_some_and(|receipt| receipt.is_confirmed()));
    }
    start.elapsed()
}

fn receive_and_settle(
    subscription: &mut dyn Subscription,
    batch: &mut Vec<Delivery>,
    max: usize,
    count: usize,
) -> Duration {
    let mut cx = Context::from_waker(Waker::noop());
    let mut left = count;
    let start = Instant::now();
    while left > 0 {
        match subscription.poll_fill(&mut cx, batch, max) {
            Poll::Ready(Ok(count)) => left -= count,
            other => panic!("{left} messages are missing: {other:?}"),
        }
        for delivery in batch.drain(..) {
            assert!(delivery.settle(Outcome::Ack).try_get().is_some_and(|result| result.is_ok()));
        }
    }
    start.elapsed()
}

fn main() {
    println!("{:<52} {:>8} {:>8}", "ns for each message", "best", "median");
    for backlog in [1 << 10, 1 << 16] {
        for batch in [1, 16, 64, 256] {
            // The log keeps no more than the backlog, so the memory of settled messages is used again.
            let options = Options { dedup_count: 0, max_messages: backlog as u64, ..Options::default() };
            let memory = Memory::with(options, SystemClock::new());
            let publisher = block_on(memory.publisher()).unwrap();
            let options = SubscribeOptions::new("orders/*/new".parse().unwrap());
            let mut subscription = block_on(memory.subscribe(options)).unwrap();
            let mut buffer = Vec::with_capacity(batch);
            let rounds = (0..MESSAGES / backlog).map(|_| {
                publish(&*publisher, backlog);
                receive_and_settle(&mut *subscription, &mut buffer, batch, backlog)
            });
            report(&format!("receive + settle, backlog {backlog}, batches of {batch}"), backlog, rounds);
            assert_eq!(memory.stats().pending, 0);
        }
    }
    for (name, dedup_count) in [("with dedup", 1 << 16), ("without dedup", 0)] {
        let options = Options { dedup_count, max_messages: 1 << 10, ..Options::default() };
        let memory = Memory::with(options, SystemClock::new());
        let publisher = block_on(memory.publisher()).unwrap();
        let rounds = (0..MESSAGES >> 10).map(|_| publish(&*publisher, 1 << 10));
        report(&format!("publish {name}, nobody listens"), 1 << 10, rounds);
    }
}

fn report(name: &str, messages: usize, rounds: impl Iterator<Item = Duration>) {
    let mut rounds: Vec<_> = rounds.map(|time| time.as_nanos() as f64 / messages as f64).collect();
    rounds.sort_by(f64::total_cmp);
    println!("{name:<52} {:>8.1} {:>8.1}", rounds[0], rounds[rounds.len() / 2]);
}
