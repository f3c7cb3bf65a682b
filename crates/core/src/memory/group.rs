//! One subscription of the memory backend, with all its consumers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use super::broker::Wakers;
use super::log::{Entry, Log};
use crate::backend::{StartAt, SubscribeOptions};
use crate::mailbox::{ConsumerId, Mailbox, Taken};
use crate::retry::RetryPolicy;
use crate::subject::Filter;
use crate::time::Timestamp;

/// One attached subscription handle.
pub(super) struct Consumer {
    pub(super) id: ConsumerId,
    pub(super) waker: Option<Waker>,
    pub(super) drain: Option<Drain>,
}

pub(super) struct Drain {
    pub(super) deadline: Timestamp,
    pub(super) in_flight: u64,
    pub(super) settled: u64,
}

/// Its mailbox counts its own messages, without the gaps that the filter makes in the log: only so the floor of
/// what is settled rises. `positions` maps those numbers to the log's.
pub(super) struct Group {
    pub(super) filter: Filter,
    pub(super) name: Option<Arc<str>>,
    pub(super) shared: bool,
    pub(super) mailbox: Mailbox,
    pub(super) consumers: Vec<Consumer>,
    /// The attempt that is out, where it is not the first: tells the token of an older attempt from the newest one's.
    pub(super) repeated: HashMap<u64, u32>,
    positions: VecDeque<Place>,
    /// The number of `positions[0]`.
    first: u64,
    start: Start,
    /// Whether a consumer may have a waker or a drain, so that the usual verdict need not look.
    watched: bool,
}

/// Where a message is in the log, and what a delivery needs to know before it touches it there.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) position: u64,
    pub(super) expires: Timestamp,
    pub(super) bytes: u32,
}

impl Place {
    pub(super) fn new(position: u64, entry: &Entry) -> Self {
        let never = Timestamp::from_millis(u64::MAX);
        Self { position, expires: entry.envelope.expires.unwrap_or(never), bytes: entry.bytes }
    }
}

/// What a start in the future still leaves out.
enum Start {
    Position(u64),
    Time(Timestamp),
}

impl Group {
    pub(super) fn new(options: &SubscribeOptions, log: &Log) -> Self {
        let matching = |(_, entry): &(u64, &Entry)| options.filter.matches(entry.envelope.subject.as_str());
        let (from, start) = match options.from {
            StartAt::New => (log.next(), Start::Position(0)),
            StartAt::First => (log.first(), Start::Position(0)),
            StartAt::Last => {
                let newest = log.range(0).rev().find(matching).map(|(position, _)| position);
                (newest.unwrap_or_else(|| log.next()), Start::Position(0))
            }
            StartAt::Sequence(position) => (position, Start::Position(position)),
            StartAt::Time(time) => (log.at_time(time), Start::Time(time)),
        };
        let mut group = Self {
            filter: options.filter.clone(),
            name: options.name.clone(),
            shared: options.group,
            mailbox: Mailbox::new(policy(options), 0),
            consumers: Vec::new(),
            repeated: HashMap::new(),
            positions: VecDeque::new(),
            first: 1,
            start,
            watched: false,
        };
        for (position, entry) in log.range(from).filter(matching) {
            group.offer(Place::new(position, entry), entry.envelope.priority);
        }
        group
    }

    /// Whether a message that was just stored is for it.
    pub(super) fn wants(&self, position: u64, subject: &str, stored_at: Timestamp) -> bool {
        let started = match self.start {
            Start::Position(first) => position >= first,
            Start::Time(first) => stored_at >= first,
        };
        started && self.filter.matches(subject)
    }

    pub(super) fn offer(&mut self, place: Place, priority: i64) {
        let number = self.first + self.positions.len() as u64;
        self.positions.push_back(place);
        self.mailbox.offer(number, number, priority);
    }

    pub(super) fn place(&self, number: u64) -> Option<&Place> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.positions.get(index)
    }

    /// Forgets what is settled below everything else.
    #[inline]
    pub(super) fn advance(&mut self) {
        let floor = self.mailbox.floor().floor();
        let settled = (floor + 1).saturating_sub(self.first).min(self.positions.len() as u64);
        match settled {
            0 => return,
            1 => drop(self.positions.pop_front()),
            _ => drop(self.positions.drain(..settled as usize)),
        }
        self.first += settled;
    }

    /// A consumer waits or drains from now on: it hears of verdicts and messages.
    pub(super) fn watch(&mut self, id: ConsumerId) -> Option<&mut Consumer> {
        self.watched = true;
        self.consumer(id)
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watched
    }

    /// Collects the wakers of the consumers that may find something: of all, since one that is woken may be dropped
    /// unpolled.
    pub(super) fn wake(&mut self, wake: &mut Wakers) {
        if !self.watched {
            return;
        }
        let ready = self.mailbox.counts().ready > 0;
        self.watched = false;
        for consumer in &mut self.consumers {
            if consumer.waker.is_some() && (ready || consumer.drain.is_some()) {
                wake.extend(consumer.waker.take());
            }
            self.watched |= consumer.waker.is_some() || consumer.drain.is_some();
        }
    }

    /// So many of its deliveries were settled by their tokens.
    pub(super) fn count_settled(&mut self, id: ConsumerId, count: u64) {
        if !self.watched {
            return;
        }
        if let Some(drain) = self.consumer(id).and_then(|consumer| consumer.drain.as_mut()) {
            drain.settled += count;
        }
    }

    /// The oldest position that is not settled.
    pub(super) fn needed(&self) -> Option<u64> {
        self.positions.front().map(|place| place.position)
    }

    /// Fills `taken` with up to `max` messages for `consumer`.
    pub(super) fn take(&mut self, consumer: ConsumerId, now: u64, max: usize, taken: &mut Vec<Taken>) {
        let (positions, first) = (&self.positions, self.first);
        let size_of = |number: u64| positions.get((number - first) as usize).map_or(0, |place| place.bytes);
        self.mailbox.take(consumer, now, max, size_of, taken);
    }

    pub(super) fn consumer(&mut self, id: ConsumerId) -> Option<&mut Consumer> {
        // Ids only grow, so the newest is at the end.
        let at = self.consumers.binary_search_by_key(&id, |consumer| consumer.id).ok()?;
        Some(&mut self.consumers[at])
    }

    /// Whether the token of attempt `attempt` still speaks for the delivery that is out.
    #[inline]
    pub(super) fn is_current(&self, number: u64, attempt: u32) -> bool {
        // Where nothing is out again, a token of an older attempt finds its message settled or not in flight.
        self.repeated.is_empty() || self.repeated.get(&number).copied().unwrap_or(1) == attempt
    }

    /// As it stands in dead letters.
    pub(super) fn title(&self) -> Arc<str> {
        match &self.name {
            Some(name) => format!("{} as {name}", self.filter).into(),
            None => self.filter.as_str().into(),
        }
    }
}

pub(super) fn policy(options: &SubscribeOptions) -> RetryPolicy {
    RetryPolicy {
        ack_wait: options.ack_wait,
        backoff: options.backoff.clone(),
        max_deliveries: options.max_deliveries,
    }
}
