//! Tests of the mailbox: a second opinion it is compared with at random, its rules by name, its limits.

mod limits;
mod model;
mod random;
mod restore;
mod rules;

use super::{ConsumerId, Mailbox, Millis, Record, Taken, Verdict, Window};
use crate::retry::RetryPolicy;
use std::num::NonZeroU32;
use std::time::Duration;

const A: ConsumerId = ConsumerId(1);
const B: ConsumerId = ConsumerId(2);
const WIDE: Window = Window { count: u32::MAX, bytes: u64::MAX };

fn window(count: u32) -> Window {
    Window { count, bytes: u64::MAX }
}

fn policy(ack_wait: u64, backoff: &[u64], max_deliveries: u32) -> RetryPolicy {
    RetryPolicy {
        ack_wait: Duration::from_millis(ack_wait),
        backoff: backoff.iter().map(|ms| Duration::from_millis(*ms)).collect(),
        max_deliveries: NonZeroU32::new(max_deliveries),
    }
}

fn retry() -> Verdict {
    Verdict::Retry { after: None, reason: None }
}

fn retry_after(ms: u64) -> Verdict {
    Verdict::Retry { after: Some(Duration::from_millis(ms)), reason: None }
}

fn retry_because(reason: &str) -> Verdict {
    Verdict::Retry { after: None, reason: Some(reason.into()) }
}

fn dead(reason: &str) -> Verdict {
    Verdict::Dead { reason: reason.into() }
}

/// Takes up to `max` messages of one byte each.
fn take(mailbox: &mut Mailbox, consumer: ConsumerId, now: Millis, max: usize) -> Vec<Taken> {
    let mut out = Vec::new();
    let said = mailbox.take(consumer, now, max, |_| 1, &mut out);
    assert_eq!(said, out.len(), "take says how many it gave");
    out
}

fn take_seqs(mailbox: &mut Mailbox, consumer: ConsumerId, now: Millis, max: usize) -> Vec<u64> {
    take(mailbox, consumer, now, max).iter().map(|taken| taken.seq).collect()
}

/// Takes one message and says `verdict` of it; gives what was taken and the records.
fn take_and_settle(mailbox: &mut Mailbox, now: Millis, verdict: Verdict) -> (Taken, Vec<Record>) {
    let taken = take(mailbox, A, now, 1)[0];
    let mut records = Vec::new();
    mailbox.settle(A, taken.seq, verdict, now, &mut records).expect("in flight");
    (taken, records)
}

fn tick(mailbox: &mut Mailbox, now: Millis) -> Vec<Record> {
    let mut records = Vec::new();
    mailbox.tick(now, &mut records);
    records
}
