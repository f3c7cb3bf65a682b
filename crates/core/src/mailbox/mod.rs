//! The delivery rules of one subscription, as a pure state machine.
//!
//! A mailbox owns the ready order (priority, then sequence), the windows of its consumers, leases with
//! deadlines, attempts, backoff and dead-letter verdicts. Commands come in with `now`; [`Record`]s that make the
//! change durable come out. It does no I/O, so a test, a fuzzer or a simulation drives it without a socket.
//!
//! | state of a message | enters by | leaves by |
//! |---|---|---|
//! | ready | [`Mailbox::offer`], a retry, an expired lease, a consumer gone | [`Mailbox::take`] |
//! | in flight | [`Mailbox::take`] | a verdict, [`Mailbox::tick`] past its deadline, [`Mailbox::detach`] |
//! | delayed | a retry with a delay, backoff | [`Mailbox::tick`] |
//! | dying | a dead-letter verdict, deliveries exhausted | [`Mailbox::buried`], [`Mailbox::revive`] |
//! | settled | a verdict of success, discard, buried, trimmed | — |

mod deadlines;
mod hold;
mod late;
mod leases;
mod ready;
#[cfg(test)]
mod tests;

use crate::ack_floor::AckFloor;
use crate::retry::RetryPolicy;
use deadlines::Deadlines;
use leases::{Lease, Leases};
use ready::Ready;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Milliseconds on the clock of whoever drives the mailbox; must never go back.
pub type Millis = u64;

/// A consumer of this mailbox, named by whoever attached it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConsumerId(pub u32);

/// How much a consumer may hold unsettled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Messages.
    pub count: u32,
    /// Bytes of payload. One message is always allowed, however large.
    pub bytes: u64,
}

/// A message handed out by [`Mailbox::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Which message.
    pub seq: u64,
    /// 1 for the first delivery.
    pub attempt: u32,
    /// Its priority.
    pub priority: i64,
}

/// What a consumer says of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done.
    Ack,
    /// Again: after `after`, else after the policy's backoff.
    Retry {
        /// Overrides the backoff.
        after: Option<Duration>,
        /// Kept for a later dead letter.
        reason: Option<Arc<str>>,
    },
    /// To the dead letters.
    Dead {
        /// Why.
        reason: Arc<str>,
    },
    /// Never again, and nobody needs to know.
    Discard,
}

/// A message is not in flight at the consumer that spoke of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not in flight")]
pub struct NotInFlight;

/// The history of a message that failed at least once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failures {
    /// Deliveries so far.
    pub attempts: u32,
    /// When the first of them failed.
    pub first: Millis,
    /// When the last of them failed.
    pub last: Millis,
    /// Not delivered before this time; 0: no delay.
    pub due: Millis,
    /// What the consumer said.
    pub reason: Option<Arc<str>>,
}

/// A change that must reach the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// `first..=last` are done.
    Settled {
        /// First of the range.
        first: u64,
        /// Last of the range.
        last: u64,
    },
    /// `first..=last` failed once more, alike.
    Tried {
        /// First of the range.
        first: u64,
        /// Last of the range.
        last: u64,
        /// The history of each of them.
        failures: Failures,
    },
    /// This message must be written to the dead letters, then confirmed by [`Mailbox::buried`].
    Dying {
        /// Which message.
        seq: u64,
        /// Its history; `reason` is always there.
        failures: Failures,
    },
}

/// How many messages are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Deliverable now.
    pub ready: u64,
    /// Waiting for a verdict.
    pub in_flight: u64,
    /// Waiting for their time.
    pub delayed: u64,
    /// On their way to the dead letters.
    pub dying: u64,
}

impl Counts {
    /// Everything unsettled.
    pub fn pending(&self) -> u64 {
        self.ready + self.in_flight + self.delayed + self.dying
    }
}

#[derive(Debug)]
struct Consumer {
    window: Window,
    count: u32,
    bytes: u64,
    /// Passed over until then while others have room; 0: not late.
    late_until: Millis,
}

#[derive(Debug)]
struct Tried {
    failures: Failures,
    priority: i64,
}

/// The delivery state of one subscription. See the module for its states.
#[derive(Debug)]
pub struct Mailbox {
    policy: RetryPolicy,
    ready: Ready,
    leases: Leases,
    deadlines: Deadlines,
    delayed: BTreeSet<(Millis, u64)>,
    tried: BTreeMap<u64, Tried>,
    dying: BTreeSet<u64>,
    floor: AckFloor,
    consumers: BTreeMap<ConsumerId, Consumer>,
    /// The first `late_until`, if anybody is late.
    forgive_at: Option<Millis>,
}

impl Mailbox {
    /// An empty mailbox that starts after sequence `floor` (0: from the first).
    pub fn new(policy: RetryPolicy, floor: u64) -> Self {
        Self {
            policy,
            ready: Ready::default(),
            leases: Leases::default(),
            deadlines: Deadlines::default(),
            delayed: BTreeSet::new(),
            tried: BTreeMap::new(),
            dying: BTreeSet::new(),
            floor: AckFloor::new(floor),
            consumers: BTreeMap::new(),
            forgive_at: None,
        }
    }

    /// The rules of redelivery.
    pub fn policy(&self) -> &RetryPolicy {
        &self.policy
    }

    /// Replaces the rules; leases that run keep their deadline.
    pub fn set_policy(&mut self, policy: RetryPolicy) {
        self.policy = policy;
    }

    /// What is settled.
    pub fn floor(&self) -> &AckFloor {
        &self.floor
    }

    /// How many messages are in which state.
    pub fn counts(&self) -> Counts {
        Counts {
            ready: self.ready.len(),
            in_flight: self.leases.len() as u64,
            delayed: self.delayed.len() as u64,
            dying: self.dying.len() as u64,
        }
    }

    /// The highest priority among the ready messages.
    pub fn top_priority(&self) -> Option<i64> {
        self.ready.top_priority()
    }

    /// Consumers attached.
    pub fn consumer_count(&self) -> usize {
        self.consumers.len()
    }

    /// The consumers that have room in their window, and are not passed over.
    pub fn consumers_with_room(&self) -> impl Iterator<Item = ConsumerId> + '_ {
        let only_in_time = self.others_wait();
        self.consumers
            .iter()
            .filter(move |(_, c)| c.count < c.window.count && !(only_in_time && c.is_late()))
            .map(|(id, _)| *id)
    }

    /// The histories of messages that failed and are not settled; what a checkpoint must keep.
    pub fn failures(&self) -> impl Iterator<Item = (u64, &Failures)> + '_ {
        self.tried.iter().map(|(seq, tried)| (*seq, &tried.failures))
    }

    /// Bytes of memory this mailbox holds beside its fixed size, roughly.
    pub fn memory(&self) -> usize {
        self.ready.memory() + self.leases.len() * 64 + self.tried.len() * 96 + self.deadlines.capacity() * 24
    }

    /// Lets a consumer take messages. Attaching again replaces its window.
    pub fn attach(&mut self, consumer: ConsumerId, window: Window) {
        self.consumers.entry(consumer).and_modify(|c| c.window = window).or_insert(Consumer {
            window,
            count: 0,
            bytes: 0,
            late_until: 0,
        });
    }

    /// A consumer is gone: what it held is ready at once, with its attempt counted.
    pub fn detach(&mut self, consumer: ConsumerId, now: Millis, records: &mut Vec<Record>) {
        let held: Vec<u64> = self.leases.held(consumer, 0, u64::MAX).collect();
        for seq in held {
            self.fail(seq, Some(Duration::ZERO), None, "the consumer was gone", now, records);
        }
        self.consumers.remove(&consumer);
        self.forgive(0);
    }

    /// New messages `first..=last` of one priority exist. What is settled already is skipped.
    pub fn offer(&mut self, first: u64, last: u64, priority: i64) {
        let first = first.max(self.floor.floor().saturating_add(1));
        if first > last {
            return;
        }
        // On a live mailbox nothing above the newest message can be settled or have failed.
        let untouched = self.floor.above().last().is_none_or(|(_, b)| b < first)
            && self.tried.last_key_value().is_none_or(|(seq, _)| *seq < first);
        if untouched {
            self.ready.insert(first, last, priority);
            return;
        }
        let mut open = Vec::new();
        self.floor.above().gaps(first, last, |a, b| open.push((a, b)));
        for (a, b) in open {
            let mut from = a;
            let failed: Vec<u64> = self.tried.range(a..=b).map(|(seq, _)| *seq).collect();
            for seq in failed {
                if from < seq {
                    self.ready.insert(from, seq - 1, priority);
                }
                from = seq + 1;
                if let Some(tried) = self.tried.get_mut(&seq) {
                    tried.priority = priority;
                    if self.policy.is_exhausted(tried.failures.attempts) {
                        // Restored with no delivery left: the next tick makes it dying.
                        tried.failures.due = 1;
                    }
                    if tried.failures.due > 0 {
                        self.delayed.insert((tried.failures.due, seq));
                    } else {
                        self.ready.insert(seq, seq, priority);
                    }
                }
            }
            if from <= b {
                self.ready.insert(from, b, priority);
            }
        }
    }

    /// Gives `consumer` up to `max` messages, as its window allows; says how many. One that let a lease end gets none
    /// for as long as a lease, if another consumer has room.
    ///
    /// `size_of` tells the payload size of a message in bytes.
    #[inline]
    pub fn take(
        &mut self,
        consumer: ConsumerId,
        now: Millis,
        max: usize,
        mut size_of: impl FnMut(u64) -> u32,
        out: &mut Vec<Taken>,
    ) -> usize {
        let others_wait = self.others_wait();
        let Some(state) = self.consumers.get_mut(&consumer) else { return 0 };
        if others_wait && state.is_late() {
            return 0;
        }
        let deadline = now + millis(self.policy.ack_wait);
        let mut taken = 0;
        while taken < max && state.count < state.window.count {
            let room = u64::from(state.window.count - state.count).min((max - taken) as u64);
            let Some((first, last, priority)) = self.ready.pop(room) else { break };
            let mut next = first;
            while next <= last {
                let bytes = u64::from(size_of(next));
                if state.count > 0 && state.bytes + bytes > state.window.bytes {
                    self.ready.insert(next, last, priority);
                    break;
                }
                state.count += 1;
                state.bytes += bytes;
                next += 1;
            }
            if next > first {
                let run = first..next;
                let tried = Some(&self.tried).filter(|tried| !tried.is_empty());
                let attempt = |seq| {
                    let tried = tried.and_then(|tried| tried.get(&seq));
                    tried.map_or(0, |tried| tried.failures.attempts).saturating_add(1)
                };
                out.extend(run.clone().map(|seq| Taken { seq, attempt: attempt(seq), priority }));
                self.leases.insert(
                    run.map(|seq| Lease::new(seq, deadline, priority, consumer, attempt(seq), size_of(seq))),
                );
                self.deadlines.push(deadline, first, next - 1);
                taken += (next - first) as usize;
            }
            if next <= last {
                break;
            }
        }
        taken
    }

    /// True if `consumer` holds `seq`.
    pub fn holds(&self, consumer: ConsumerId, seq: u64) -> bool {
        self.leases.get(seq).is_some_and(|lease| lease.consumer == consumer)
    }

    /// The sequences that `consumer` holds in `first..=last`, ascending.
    pub fn held(&self, consumer: ConsumerId, first: u64, last: u64) -> Vec<u64> {
        self.leases.held(consumer, first, last).collect()
    }

    /// A verdict on one delivery.
    #[inline]
    pub fn settle(
        &mut self,
        consumer: ConsumerId,
        seq: u64,
        verdict: Verdict,
        now: Millis,
        records: &mut Vec<Record>,
    ) -> Result<(), NotInFlight> {
        match verdict {
            Verdict::Ack | Verdict::Discard => {
                let lease = self.leases.remove_held(seq, consumer).ok_or(NotInFlight)?;
                self.released(&lease);
                self.finish(seq, records);
            }
            _ if !self.holds(consumer, seq) => return Err(NotInFlight),
            Verdict::Retry { after, reason } => {
                self.fail(seq, after, reason, "deliveries exhausted", now, records);
            }
            Verdict::Dead { reason } => {
                if let Some(lease) = self.release(seq) {
                    self.count_failure(&lease, now, Some(reason));
                    self.die(seq, "buried", records);
                }
            }
        }
        self.was_in_time(consumer);
        Ok(())
    }

    /// The same verdict on every delivery in `first..=last` that `consumer` holds; says how many there were.
    pub fn settle_range(
        &mut self,
        consumer: ConsumerId,
        first: u64,
        last: u64,
        verdict: &Verdict,
        now: Millis,
        records: &mut Vec<Record>,
    ) -> u64 {
        if first == last {
            return u64::from(self.settle(consumer, first, verdict.clone(), now, records).is_ok());
        }
        let mut settled = 0;
        let mut first = first;
        if matches!(verdict, Verdict::Ack | Verdict::Discard) {
            settled = self.settle_oldest(consumer, first, last, records);
            first += settled;
        }
        if first > last {
            return settled;
        }
        let held = self.held(consumer, first, last);
        for &seq in &held {
            // `held` said so: it cannot fail.
            let _ = self.settle(consumer, seq, verdict.clone(), now, records);
        }
        settled + held.len() as u64
    }

    /// The usual range, an ack of the oldest deliveries without a gap, at once. Stops where it is not so usual.
    fn settle_oldest(
        &mut self,
        consumer: ConsumerId,
        first: u64,
        last: u64,
        records: &mut Vec<Record>,
    ) -> u64 {
        let Some((count, bytes)) = self.leases.remove_oldest(consumer, first, last) else { return 0 };
        let last = first + count - 1;
        if let Some(state) = self.consumers.get_mut(&consumer) {
            state.count -= count as u32;
            state.bytes -= bytes;
        }
        self.deadlines.released(&self.leases);
        if !self.tried.is_empty() {
            for seq in first..=last {
                self.tried.remove(&seq);
            }
        }
        self.finished(first, last, records);
        self.was_in_time(consumer);
        count
    }

    /// The consumer is still working: its lease starts again.
    pub fn touch(&mut self, consumer: ConsumerId, seq: u64, now: Millis) -> Result<(), NotInFlight> {
        let deadline = now + millis(self.policy.ack_wait);
        let lease = self.leases.get_mut(seq).filter(|lease| lease.consumer == consumer).ok_or(NotInFlight)?;
        if lease.deadline != deadline {
            lease.deadline = deadline;
            self.deadlines.push(deadline, seq, seq);
            self.deadlines.release(seq, &self.leases);
        }
        self.was_in_time(consumer);
        Ok(())
    }

    /// Time has passed: leases expire, delays end.
    pub fn tick(&mut self, now: Millis, records: &mut Vec<Record>) {
        self.forgive(now);
        while let Some(seq) = self.deadlines.ended(now) {
            if let Some(holder) = self.leases.get(seq).map(|lease| lease.consumer) {
                self.was_late(holder, now);
            }
            self.fail(seq, None, None, "no verdict in time, deliveries exhausted", now, records);
        }
        while let Some(&(due, seq)) = self.delayed.first() {
            if due > now {
                break;
            }
            self.delayed.pop_first();
            let Some(tried) = self.tried.get_mut(&seq) else { continue };
            tried.failures.due = 0;
            if self.policy.is_exhausted(tried.failures.attempts) {
                // Its dead letter could not be written before: once more.
                self.die(seq, "deliveries exhausted", records);
            } else {
                self.ready.insert(seq, seq, tried.priority);
            }
        }
    }

    /// When [`Mailbox::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Millis> {
        let lease = self.deadlines.next();
        let delay = self.delayed.first().map(|(due, _)| *due);
        // A lone consumer is never passed over.
        let forgive = self.forgive_at.filter(|_| self.consumers.len() > 1);
        [lease, delay, forgive].into_iter().flatten().min()
    }

    /// The dead letter of `seq` is durable: it is settled here. False if it was not dying.
    pub fn buried(&mut self, seq: u64, records: &mut Vec<Record>) -> bool {
        if !self.dying.remove(&seq) {
            return false;
        }
        self.finish(seq, records);
        true
    }

    /// The dead letter of `seq` could not be written: at `due` it dies again if its deliveries are exhausted,
    /// else it is ready again. False if it was not dying.
    pub fn revive(&mut self, seq: u64, due: Millis) -> bool {
        if !self.dying.remove(&seq) {
            return false;
        }
        let Some(tried) = self.tried.get_mut(&seq) else { return false };
        tried.failures.due = due.max(1);
        self.delayed.insert((due.max(1), seq));
        true
    }

    /// Messages below `first_kept` no longer exist; says how many unsettled ones went with them.
    pub fn trim(&mut self, first_kept: u64) -> u64 {
        let mut lost = self.ready.drop_below(first_kept);
        for seq in self.leases.below(first_kept) {
            self.release(seq);
            lost += 1;
        }
        let old: Vec<u64> = self.tried.range(..first_kept).map(|(seq, _)| *seq).collect();
        for seq in old {
            let waited = self.undelay(seq) || self.dying.remove(&seq);
            lost += u64::from(waited);
            self.tried.remove(&seq);
        }
        self.floor.advance_to(first_kept.saturating_sub(1));
        lost
    }

    /// Recovery: `first..=last` were settled. Call before offering them.
    pub fn restore_settled(&mut self, first: u64, last: u64) {
        self.floor.settle(first, last);
        if first > last {
            return;
        }
        let gone: Vec<u64> = self.tried.range(first..=last).map(|(seq, _)| *seq).collect();
        for seq in gone {
            self.tried.remove(&seq);
        }
    }

    /// Recovery: `first..=last` had failed so. Call before offering them.
    pub fn restore_tried(&mut self, first: u64, last: u64, failures: &Failures) {
        for seq in first..=last {
            if !self.floor.is_settled(seq) {
                self.tried.insert(seq, Tried { failures: failures.clone(), priority: 0 });
            }
        }
    }

    fn undelay(&mut self, seq: u64) -> bool {
        let due = self.tried.get(&seq).map_or(0, |tried| tried.failures.due);
        due > 0 && self.delayed.remove(&(due, seq))
    }

    fn release(&mut self, seq: u64) -> Option<Lease> {
        let lease = self.leases.remove(seq)?;
        self.released(&lease);
        Some(lease)
    }

    #[inline]
    fn released(&mut self, lease: &Lease) {
        if let Some(consumer) = self.consumers.get_mut(&lease.consumer) {
            consumer.count -= 1;
            consumer.bytes -= u64::from(lease.bytes);
        }
        self.deadlines.release(lease.seq, &self.leases);
    }

    #[inline]
    fn finish(&mut self, seq: u64, records: &mut Vec<Record>) {
        if !self.tried.is_empty() {
            self.tried.remove(&seq);
        }
        self.finished(seq, seq, records);
    }

    #[inline]
    fn finished(&mut self, first: u64, last: u64, records: &mut Vec<Record>) {
        self.floor.settle(first, last);
        match records.last_mut() {
            Some(Record::Settled { last: before, .. }) if *before + 1 == first => *before = last,
            _ => records.push(Record::Settled { first, last }),
        }
    }

    fn count_failure(&mut self, lease: &Lease, now: Millis, reason: Option<Arc<str>>) -> &mut Failures {
        let tried = self.tried.entry(lease.seq).or_insert(Tried {
            failures: Failures { attempts: 0, first: now, last: now, due: 0, reason: None },
            priority: lease.priority,
        });
        tried.failures.attempts = lease.attempt;
        tried.failures.last = now;
        tried.failures.due = 0;
        if reason.is_some() {
            tried.failures.reason = reason;
        }
        &mut tried.failures
    }

    /// One delivery failed: it comes back, or it dies.
    fn fail(
        &mut self,
        seq: u64,
        after: Option<Duration>,
        reason: Option<Arc<str>>,
        last_words: &str,
        now: Millis,
        records: &mut Vec<Record>,
    ) {
        let Some(lease) = self.release(seq) else { return };
        let delay = after.unwrap_or_else(|| self.policy.delay_after(lease.attempt));
        let exhausted = self.policy.is_exhausted(lease.attempt);
        let failures = self.count_failure(&lease, now, reason);
        if exhausted {
            self.die(seq, last_words, records);
            return;
        }
        if !delay.is_zero() {
            failures.due = now + millis(delay).max(1);
        }
        let failures = failures.clone();
        if failures.due > 0 {
            self.delayed.insert((failures.due, seq));
        } else {
            self.ready.insert(seq, seq, lease.priority);
        }
        match records.last_mut() {
            Some(Record::Tried { last, failures: same, .. }) if *last + 1 == seq && *same == failures => {
                *last = seq;
            }
            _ => records.push(Record::Tried { first: seq, last: seq, failures }),
        }
    }

    fn die(&mut self, seq: u64, last_words: &str, records: &mut Vec<Record>) {
        let Some(tried) = self.tried.get_mut(&seq) else { return };
        self.dying.insert(seq);
        tried.failures.due = 0;
        let mut failures = tried.failures.clone();
        failures.reason.get_or_insert_with(|| last_words.into());
        records.push(Record::Dying { seq, failures });
    }
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}
