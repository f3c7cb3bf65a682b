//! The state of a memory backend, behind its one lock.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use smallvec::SmallVec;

use super::group::{Consumer, Drain, Group, Place, policy};
use super::log::{Log, Spare};
use super::{NAME, Options, Stats, error};
use crate::backend::{DrainReport, SubscribeOptions};
use crate::dead_letter::{self, Death};
use crate::dedup::DedupWindow;
use crate::envelope::{Envelope, MessageId};
use crate::error::{ErrorKind, Result};
use crate::mailbox::{ConsumerId, Failures, Record, Taken, Verdict, Window};
use crate::outcome::Outcome;
use crate::subject::{Filter, Subject};
use crate::ticket::Ticket;
use crate::time::Timestamp;

/// How long a dead letter waits for room before its death is tried again.
const DEATH_RETRY: Duration = Duration::from_secs(1);

/// Wakers to be woken when the lock is released, and wakers to be dropped then: both may run foreign code.
pub(super) type Wakers = SmallVec<[Waker; 4]>;

/// Names a group and one of its consumers. Slots are reused, consumer ids are not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    pub(super) group: usize,
    pub(super) consumer: ConsumerId,
}

pub(super) struct Broker {
    pub(super) options: Options,
    pub(super) stats: Stats,
    pub(super) closed: bool,
    /// Of tasks to wake. The caller wakes them after unlocking.
    pub(super) wake: Wakers,
    log: Log,
    dedup: DedupWindow<(Subject, MessageId)>,
    groups: Vec<Option<Group>>,
    /// Publishers that wait for room.
    waiting: Vec<Waker>,
    consumers: u32,
    /// The newest time seen. An ack, whose time does not matter, saves reading the clock.
    now: Timestamp,
    records: Vec<Record>,
    taken: Vec<Taken>,
}

impl Broker {
    pub(super) fn new(options: Options) -> Self {
        Self {
            log: Log::new(options.max_messages, options.max_bytes),
            dedup: DedupWindow::new(options.dedup_count, options.dedup_age),
            options,
            stats: Stats::default(),
            closed: false,
            wake: Wakers::new(),
            groups: Vec::new(),
            waiting: Vec::new(),
            consumers: 0,
            now: Timestamp::EPOCH,
            records: Vec::new(),
            taken: Vec::new(),
        }
    }

    pub(super) fn open(&self) -> Result<()> {
        if self.closed { Err(error(ErrorKind::Closed, "the backend is closed")) } else { Ok(()) }
    }

    /// Time never goes back here, whatever the clock does.
    fn see(&mut self, now: Timestamp) -> Timestamp {
        self.now = self.now.max(now);
        self.now
    }

    fn group(&mut self, seat: Seat) -> Option<&mut Group> {
        self.groups.get_mut(seat.group)?.as_mut()
    }

    // Publishing.

    pub(super) fn publish(&mut self, envelope: Envelope, now: Timestamp) -> Ticket {
        let now = self.see(now);
        if let Err(error) = self.admit(&envelope) {
            return Ticket::refused(error);
        }
        let key = (envelope.subject.clone(), envelope.id.clone());
        if let Some(position) = self.dedup.get(&key, now.as_millis()) {
            self.stats.duplicates += 1;
            return Ticket::confirmed(Some(position), true);
        }
        let Some(position) = self.append(envelope, Spare::Kept, now) else {
            let text =
                "the log is full of messages that subscriptions wait for: settle them, or raise the limits";
            return Ticket::refused(error(ErrorKind::Busy, text));
        };
        self.dedup.insert(key, position, now.as_millis());
        self.stats.published += 1;
        Ticket::confirmed(Some(position), false)
    }

    fn admit(&self, envelope: &Envelope) -> Result<()> {
        self.open()?;
        if envelope.subject.is_reserved() {
            let text =
                format!("`{}` belongs to the broker: publish to a subject without `$`", envelope.subject);
            return Err(error(ErrorKind::Rejected, text));
        }
        let (bytes, max) = (envelope.len_bytes(), self.options.max_message_bytes);
        if bytes > max {
            let text =
                format!("the message has {bytes} bytes, the limit is {max}: raise `max_message_bytes`");
            return Err(error(ErrorKind::TooLarge, text));
        }
        Ok(())
    }

    /// The oldest position that a subscription still waits for.
    fn needed(groups: &[Option<Group>]) -> u64 {
        groups.iter().flatten().filter_map(Group::needed).min().unwrap_or(u64::MAX)
    }

    /// Stores it and offers it; `None` when there is no room.
    fn append(&mut self, envelope: Envelope, spare: Spare, now: Timestamp) -> Option<u64> {
        let groups = &self.groups;
        if !self.log.make_room(envelope.len_bytes(), spare, || Self::needed(groups)) {
            return None;
        }
        // The first clone of bytes that were a `Vec` allocates: here, once, not at a delivery.
        drop(envelope.payload.clone());
        let (position, entry) = self.log.push(envelope, now);
        for group in self.groups.iter_mut().flatten() {
            if group.wants(position, entry.envelope.subject.as_str(), now) {
                group.offer(Place::new(position, entry), entry.envelope.priority);
                group.wake(&mut self.wake);
            }
        }
        Some(position)
    }

    /// Whether a message of the usual size would be taken; if not, `waker` is woken when that changes.
    pub(super) fn poll_room(&mut self, waker: &Waker) -> Result<bool> {
        self.open()?;
        let groups = &self.groups;
        if self.log.make_room(0, Spare::Kept, || Self::needed(groups)) {
            return Ok(true);
        }
        if !self.waiting.iter().any(|other| other.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
        Ok(false)
    }

    // Subscribing.

    pub(super) fn subscribe(&mut self, options: &SubscribeOptions, now: Timestamp) -> Result<Seat> {
        self.see(now);
        self.open()?;
        options.check(NAME)?;
        let existing = options.name.as_ref().and_then(|name| self.find(&options.filter, name));
        let slot = match existing {
            Some(slot) => slot,
            None => {
                let group = Group::new(options, &self.log);
                let slot = self.groups.iter().position(Option::is_none).unwrap_or(self.groups.len());
                if slot == self.groups.len() {
                    self.groups.push(None);
                }
                self.groups[slot] = Some(group);
                slot
            }
        };
        let consumer = ConsumerId(self.consumers);
        let Some(group) = &mut self.groups[slot] else {
            return Err(error(ErrorKind::Internal, "a subscription vanished"));
        };
        let exclusive = !(group.shared && options.group);
        if exclusive && !group.consumers.is_empty() {
            let text = format!(
                "`{}` has a consumer: subscribe all of them as a group, or end that one",
                group.title()
            );
            return Err(error(ErrorKind::Busy, text));
        }
        self.consumers =
            self.consumers.checked_add(1).ok_or_else(|| error(ErrorKind::Busy, "out of consumer ids"))?;
        group.shared = options.group;
        group.mailbox.set_policy(policy(options));
        let window = Window { count: options.window.count.get(), bytes: options.window.bytes };
        group.mailbox.attach(consumer, window);
        group.consumers.push(Consumer { id: consumer, waker: None, drain: None });
        Ok(Seat { group: slot, consumer })
    }

    fn find(&self, filter: &Filter, name: &str) -> Option<usize> {
        let same = |group: &Group| group.name.as_deref() == Some(name) && group.filter == *filter;
        self.groups.iter().position(|group| group.as_ref().is_some_and(same))
    }

    pub(super) fn forget(&mut self, filter: &Filter, name: &str) -> Result<()> {
        self.open()?;
        let Some(slot) = self.find(filter, name) else {
            return Err(error(ErrorKind::NotFound, format!("there is no subscription `{filter} as {name}`")));
        };
        if self.groups[slot].as_ref().is_some_and(|group| !group.consumers.is_empty()) {
            return Err(error(ErrorKind::Busy, format!("`{filter} as {name}` has a consumer: end it first")));
        }
        self.groups[slot] = None;
        self.wake.extend(self.waiting.drain(..));
        Ok(())
    }

    /// The consumer is gone. What it held is ready again; without a name the subscription ends.
    pub(super) fn leave(&mut self, seat: Seat, now: Timestamp) {
        let now = self.see(now);
        let Some(group) = self.groups.get_mut(seat.group).and_then(Option::as_mut) else { return };
        let Some(at) = group.consumers.iter().position(|consumer| consumer.id == seat.consumer) else {
            return;
        };
        let mut records = std::mem::take(&mut self.records);
        let mut gone = group.consumers.remove(at);
        let waker = gone.waker.take();
        if group.name.is_none() {
            self.groups[seat.group] = None;
            self.wake.extend(self.waiting.drain(..));
        } else {
            group.mailbox.detach(seat.consumer, now.as_millis(), &mut records);
            self.apply(seat.group, &mut records, now);
        }
        // Woken, not dropped: a dropped waker may drop a task that holds one of our handles.
        self.wake.extend(waker);
        self.records = records;
    }

    // Delivering.

    /// Fills `self.taken` for the consumer; [`poll_fill`](super::handles) makes deliveries of it.
    pub(super) fn fill(
        &mut self,
        seat: Seat,
        max: usize,
        now: Timestamp,
        mut deliver: impl FnMut(&Taken, u64, &Arc<Envelope>, Timestamp),
    ) -> Result<usize> {
        self.open()?;
        let now = self.see(now);
        self.tick_group(seat.group, now);
        let mut taken = std::mem::take(&mut self.taken);
        let mut filled = 0;
        let mut expired = 0;
        loop {
            taken.clear();
            let Some(group) = self.groups.get_mut(seat.group).and_then(Option::as_mut) else { break };
            group.take(seat.consumer, now.as_millis(), max - filled, &mut taken);
            if taken.is_empty() {
                break;
            }
            for one in &taken {
                let Some(place) = group.place(one.seq) else { continue };
                let position = place.position;
                if place.expires <= now {
                    let verdict = Verdict::Discard;
                    // It was taken a line above, so it is in flight.
                    let _ = group.mailbox.settle(
                        seat.consumer,
                        one.seq,
                        verdict,
                        now.as_millis(),
                        &mut self.records,
                    );
                    expired += 1;
                    continue;
                }
                let Some(entry) = self.log.get(position) else { continue };
                if one.attempt > 1 {
                    group.repeated.insert(one.seq, one.attempt);
                }
                deliver(one, position, &entry.envelope, now);
                filled += 1;
            }
            if filled == max {
                break;
            }
        }
        self.taken = taken;
        self.stats.delivered += filled as u64;
        if expired > 0 {
            self.stats.expired += expired;
            let mut records = std::mem::take(&mut self.records);
            self.apply(seat.group, &mut records, now);
            self.records = records;
        }
        Ok(filled)
    }

    /// Remembers who waits; gives the waker it had, to be dropped without the lock.
    pub(super) fn wait(&mut self, seat: Seat, waker: &Waker) -> Option<Waker> {
        let consumer = self.group(seat)?.watch(seat.consumer)?;
        match &consumer.waker {
            Some(known) if known.will_wake(waker) => None,
            _ => consumer.waker.replace(waker.clone()),
        }
    }

    pub(super) fn settle(
        &mut self,
        seat: Seat,
        number: u64,
        attempt: u32,
        outcome: Outcome,
        clock: impl FnOnce() -> Timestamp,
    ) -> Result<()> {
        self.open()?;
        let (verdict, now) = match outcome {
            Outcome::Ack => return self.ack(seat, number, attempt),
            Outcome::Discard => (Verdict::Discard, self.now),
            Outcome::Retry { after } => (Verdict::Retry { after, reason: None }, self.see(clock())),
            Outcome::DeadLetter { reason } => {
                let reason = Arc::from(reason.as_ref());
                (Verdict::Dead { reason }, self.see(clock()))
            }
        };
        let (is_dead, is_retry) =
            (matches!(verdict, Verdict::Dead { .. }), matches!(verdict, Verdict::Retry { .. }));
        let group = self.groups.get_mut(seat.group).and_then(Option::as_mut);
        let Some(group) = group.filter(|group| group.is_current(number, attempt)) else {
            return Err(self.late());
        };
        if group.mailbox.settle(seat.consumer, number, verdict, now.as_millis(), &mut self.records).is_err() {
            return Err(self.late());
        }
        match (is_dead, is_retry) {
            (true, _) => self.stats.dead += 1,
            (_, true) => self.stats.retried += 1,
            _ => self.stats.discarded += 1,
        }
        group.count_settled(seat.consumer, 1);
        let mut records = std::mem::take(&mut self.records);
        let buried = self.apply(seat.group, &mut records, now);
        self.records = records;
        if is_dead && !buried {
            let text = "there is no room for the dead letter: the message comes back";
            return Err(error(ErrorKind::Busy, text));
        }
        Ok(())
    }

    /// The usual verdict, with nothing to do that it does not need.
    #[inline]
    pub(super) fn ack(&mut self, seat: Seat, number: u64, attempt: u32) -> Result<()> {
        let now = self.now.as_millis();
        let group = self.groups.get_mut(seat.group).and_then(Option::as_mut);
        let Some(group) = group.filter(|group| !self.closed && group.is_current(number, attempt)) else {
            return Err(self.late());
        };
        if group.mailbox.settle(seat.consumer, number, Verdict::Ack, now, &mut self.records).is_err() {
            return Err(self.late());
        }
        if !group.repeated.is_empty() {
            group.repeated.remove(&number);
        }
        self.acked(seat, 1);
        Ok(())
    }

    /// The same for neighbours.
    pub(super) fn ack_run(&mut self, seat: Seat, first: u64, last: u64, attempt: u32) -> Result<()> {
        let now = self.now.as_millis();
        let group = self.groups.get_mut(seat.group).and_then(Option::as_mut);
        let Some(group) = group.filter(|group| !self.closed && group.repeated.is_empty()) else {
            let each = (first..=last).map(|number| self.ack(seat, number, attempt));
            return each.fold(Ok(()), Result::and);
        };
        let (consumer, records) = (seat.consumer, &mut self.records);
        let acked = group.mailbox.settle_range(consumer, first, last, &Verdict::Ack, now, records);
        self.acked(seat, acked);
        match last - first + 1 - acked {
            0 => Ok(()),
            late => {
                self.stats.stale += late;
                Err(stale())
            }
        }
    }

    #[inline]
    fn acked(&mut self, seat: Seat, count: u64) {
        // Its record says that it is settled, which a memory backend need not write down.
        self.records.clear();
        self.stats.acked += count;
        if let Some(group) = self.groups.get_mut(seat.group).and_then(Option::as_mut) {
            group.advance();
            if group.is_watched() {
                group.count_settled(seat.consumer, count);
                group.wake(&mut self.wake);
            }
        }
        if !self.waiting.is_empty() {
            self.wake.extend(self.waiting.drain(..));
        }
    }

    #[cold]
    fn late(&mut self) -> crate::Error {
        match self.open() {
            Err(closed) => closed,
            Ok(()) => {
                self.stats.stale += 1;
                stale()
            }
        }
    }

    pub(super) fn extend(&mut self, seat: Seat, number: u64, attempt: u32, now: Timestamp) -> Result<()> {
        let now = self.see(now);
        self.open()?;
        let Some(group) = self.group(seat).filter(|group| group.is_current(number, attempt)) else {
            return Err(stale());
        };
        group.mailbox.touch(seat.consumer, number, now.as_millis()).map_err(|_| stale())
    }

    /// Does what the mailbox's records ask for. False if a dead letter found no room.
    fn apply(&mut self, slot: usize, records: &mut Vec<Record>, now: Timestamp) -> bool {
        let mut buried = true;
        let mut index = 0;
        while index < records.len() {
            if let Record::Dying { seq, failures } = &records[index] {
                let (seq, failures) = (*seq, failures.clone());
                let stored = self.bury(slot, seq, &failures, now);
                buried &= stored;
                if let Some(group) = &mut self.groups[slot] {
                    if stored {
                        group.mailbox.buried(seq, records);
                    } else {
                        group.mailbox.revive(seq, now.saturating_add(DEATH_RETRY).as_millis());
                    }
                }
            }
            index += 1;
        }
        let Some(group) = &mut self.groups[slot] else { return buried };
        for record in records.drain(..) {
            if let Record::Settled { first, last } = record
                && !group.repeated.is_empty()
            {
                (first..=last).for_each(|number| {
                    group.repeated.remove(&number);
                });
            }
        }
        group.advance();
        // Something may be ready again, a window may have room, a drain may be over.
        group.wake(&mut self.wake);
        if !self.waiting.is_empty() {
            self.wake.extend(self.waiting.drain(..));
        }
        buried
    }

    fn bury(&mut self, slot: usize, number: u64, failures: &Failures, now: Timestamp) -> bool {
        let Some(group) = &self.groups[slot] else { return false };
        let Some(position) = group.place(number).map(|place| place.position) else { return false };
        let Some(entry) = self.log.get(position) else { return false };
        if entry.envelope.subject.is_dead_letter() {
            // It is where it would go; a second copy would make a loop.
            return true;
        }
        let death = Death {
            reason: failures.reason.clone().unwrap_or_else(|| "".into()),
            position: Some(position),
            subscription: group.title(),
            attempts: failures.attempts,
            first_failure: Timestamp::from_millis(failures.first),
            last_failure: Timestamp::from_millis(failures.last),
        };
        let dead = dead_letter::bury(&entry.envelope, &death);
        let stored = self.append(dead, Spare::Used, now).is_some();
        self.stats.dead_letters += u64::from(stored);
        stored
    }

    // Time.

    fn tick_group(&mut self, slot: usize, now: Timestamp) {
        let Some(group) = self.groups.get_mut(slot).and_then(Option::as_mut) else { return };
        if group.mailbox.next_deadline().is_none_or(|deadline| deadline > now.as_millis()) {
            return;
        }
        let mut records = std::mem::take(&mut self.records);
        group.mailbox.tick(now.as_millis(), &mut records);
        self.apply(slot, &mut records, now);
        self.records = records;
    }

    pub(super) fn tick(&mut self, now: Timestamp) {
        let now = self.see(now);
        for slot in 0..self.groups.len() {
            self.tick_group(slot, now);
            let Some(group) = &mut self.groups[slot] else { continue };
            for consumer in &mut group.consumers {
                if consumer.drain.as_ref().is_some_and(|drain| drain.deadline <= now) {
                    self.wake.extend(consumer.waker.take());
                }
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        let groups = self.groups.iter().flatten();
        let leases = groups.clone().filter_map(|group| group.mailbox.next_deadline());
        let drains = groups.flat_map(|group| &group.consumers).filter(|consumer| consumer.waker.is_some());
        let drains =
            drains.filter_map(|consumer| consumer.drain.as_ref()).map(|drain| drain.deadline.as_millis());
        leases.chain(drains).filter(|millis| *millis < u64::MAX).min().map(Timestamp::from_millis)
    }

    // Ending.

    pub(super) fn begin_drain(&mut self, seat: Seat, deadline: Timestamp) {
        let Some(group) = self.group(seat) else { return };
        let in_flight = group.mailbox.held(seat.consumer, 0, u64::MAX).len() as u64;
        let Some(consumer) = group.watch(seat.consumer) else { return };
        match &mut consumer.drain {
            Some(drain) => drain.deadline = deadline,
            None => consumer.drain = Some(Drain { deadline, in_flight, settled: 0 }),
        }
        let waker = consumer.waker.take();
        self.wake.extend(waker);
    }

    /// The report, when it is over.
    pub(super) fn drained(&mut self, seat: Seat, now: Timestamp) -> Option<DrainReport> {
        let now = self.see(now);
        self.tick_group(seat.group, now);
        let closed = self.closed;
        let Some(group) = self.group(seat) else { return Some(DrainReport::default()) };
        let open = group.mailbox.held(seat.consumer, 0, u64::MAX).len();
        let Some(drain) = group.consumer(seat.consumer).and_then(|consumer| consumer.drain.as_ref()) else {
            return Some(DrainReport::default());
        };
        let late = drain.deadline <= now && open > 0;
        if open > 0 && !late && !closed {
            return None;
        }
        let report = DrainReport {
            settled: drain.settled,
            returned: drain.in_flight.saturating_sub(drain.settled),
            timed_out: late,
        };
        self.leave(seat, now);
        Some(report)
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
        self.wake.extend(self.waiting.drain(..));
        for consumer in self.groups.iter_mut().flatten().flat_map(|group| &mut group.consumers) {
            self.wake.extend(consumer.waker.take());
        }
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = self.stats;
        stats.messages = self.log.next() - self.log.first();
        stats.bytes = self.log.bytes();
        stats.subscriptions = self.groups.iter().flatten().count() as u64;
        for group in self.groups.iter().flatten() {
            let counts = group.mailbox.counts();
            stats.pending += counts.pending();
            stats.in_flight += counts.in_flight;
        }
        stats
    }
}

fn stale() -> crate::Error {
    error(
        ErrorKind::StaleToken,
        "the delivery is no longer this token's: its lease or its subscription ended",
    )
}
