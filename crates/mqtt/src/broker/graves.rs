//! Messages that did not arrive, as the log knows them: from the record that settles a message as dead until the one that
//! says its letter is stored elsewhere. A grave names its message by its place in the log.

use super::message::Message;
use super::outgoing::{Entry, Phase};
use super::queue;
use super::reason;
use super::session::{Session, Target};
use super::state::State;
use crate::codec::{Qos, Utf8};
use postroad_core::mailbox::Millis;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Letters of messages, or of subscribers, that only memory has are numbered from here on.
pub(super) const IN_MEMORY: u64 = 1 << 60;

/// What several letters may have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Death {
    /// The client, or `$queue/NAME`.
    pub(super) client: Utf8,
    pub(super) reason: Cow<'static, str>,
    pub(super) died: Millis,
}

/// How often something was sent, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sends {
    pub(super) count: u32,
    /// 0: never, or in an earlier life of the broker.
    pub(super) first: Millis,
    pub(super) last: Millis,
}

impl Sends {
    pub(super) fn note(&mut self, now: Millis) {
        self.count = self.count.saturating_add(1);
        if self.first == 0 {
            self.first = now;
        }
        self.last = now;
    }

    fn of(entry: &Entry, presumed: bool) -> Self {
        let presumed = presumed || entry.phase != Phase::Queued;
        Self { count: entry.sends.count.max(u32::from(presumed)), ..entry.sends }
    }
}

/// A message that did not arrive.
#[derive(Clone, Debug)]
pub(super) struct Grave {
    /// Where the log has the message; 0: nowhere.
    pub(super) seq: u64,
    pub(super) message: Option<Arc<Message>>,
    pub(super) death: Arc<Death>,
    pub(super) sends: Sends,
    /// Subscribers of `$dead/…` were told.
    pub(super) announced: bool,
}

/// What a record that ends a whole queue says of the letters that this makes: the message with number `at` in the queue
/// gets letter `first`, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Burial {
    pub(super) first: u64,
    pub(super) at: u64,
    pub(super) death: Arc<Death>,
}

/// All graves by the number of their letter.
#[derive(Debug, Default)]
pub(super) struct Graves {
    all: BTreeMap<u64, Grave>,
    next: u64,
    next_in_memory: u64,
}

impl Graves {
    /// Numbers for `count` letters; says the first. The first one of a log is the time, so that another log that begins
    /// in the same directory does not use the numbers of the one before.
    pub(super) fn take_numbers(&mut self, count: u64, now: Millis) -> u64 {
        let first = self.next.max(if self.next == 0 { now.max(1) } else { 0 });
        self.next = first + count;
        first
    }

    /// The same for a letter that only memory has. Here the time keeps apart the lives of a broker.
    fn take_in_memory(&mut self, now: Millis) -> u64 {
        let letter = self.next_in_memory.max(IN_MEMORY + now);
        self.next_in_memory = letter + 1;
        letter
    }

    /// The number that the next letter gets; 0: there never was one.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn restore_next(&mut self, next: u64) {
        self.next = self.next.max(next);
    }

    pub(super) fn insert(&mut self, letter: u64, grave: Grave) {
        self.next = self.next.max(letter + 1);
        self.all.insert(letter, grave);
    }

    /// A grave that no record tells of; says the number of its letter.
    pub(super) fn insert_in_memory(&mut self, grave: Grave, now: Millis) -> u64 {
        let letter = self.take_in_memory(now);
        self.all.insert(letter, grave);
        letter
    }

    pub(super) fn get(&self, letter: u64) -> Option<&Grave> {
        self.all.get(&letter)
    }

    pub(super) fn get_mut(&mut self, letter: u64) -> Option<&mut Grave> {
        self.all.get_mut(&letter)
    }

    pub(super) fn remove(&mut self, letter: u64) -> Option<Grave> {
        self.all.remove(&letter)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// The numbers of the letters from `first` to `last`.
    pub(super) fn numbers(&self, first: u64, last: u64) -> impl Iterator<Item = u64> {
        self.all.range(first..=last).map(|(letter, _)| *letter)
    }

    /// All of which the log has a record, with their numbers.
    pub(super) fn logged(&self) -> impl Iterator<Item = (u64, &Grave)> {
        self.all.range(..IN_MEMORY).map(|(letter, grave)| (*letter, grave))
    }

    /// The places in the log that are needed.
    pub(super) fn places(&self) -> impl Iterator<Item = u64> {
        self.all.values().map(|grave| grave.seq).filter(|seq| *seq != 0)
    }

    /// Messages that have another number in the log now.
    pub(super) fn moved(&mut self, moved: &HashMap<u64, u64>) {
        for grave in self.all.values_mut() {
            if let Some(to) = moved.get(&grave.seq) {
                grave.seq = *to;
            }
        }
    }
}

impl State {
    /// The name in letters of a session or a work queue.
    pub(super) fn name_of(&self, number: u64) -> Option<Utf8> {
        if let Some(index) = self.session(number) {
            return self.sessions.get(index).map(|session| session.client.clone());
        }
        let place = self.queue_numbers.get(&number)?;
        self.queues.get(*place).map(|queue| queue_name(&queue.name))
    }

    /// What a session that ends would bury: the first number and how many there may be.
    pub(super) fn burial_of_session(&self, index: usize) -> Option<(u64, u64)> {
        let queue = self.sessions.get(index)?.outgoing()?;
        let first = queue.iter().find(|(_, entry)| dies_in_log(entry))?.0;
        Some((first, queue.next() - first))
    }

    /// A session ends: what its client does not have is dead.
    pub(super) fn bury_session(&mut self, index: usize, burial: &Burial, place: impl Fn(u64) -> u64) -> u64 {
        let Self { sessions, graves, .. } = self;
        let Some((session, queue)) = sessions.get(index).and_then(|s| Some((s, s.outgoing()?))) else {
            return 0;
        };
        let sent = presumed_sent(session);
        let mut count = 0;
        for (number, entry) in queue.iter().filter(|(at, entry)| *at >= burial.at && dies_in_log(entry)) {
            let grave = Grave {
                seq: place(entry.seq),
                message: None,
                death: burial.death.clone(),
                sends: Sends::of(entry, number <= sent),
                announced: false,
            };
            graves.insert(burial.first + (number - burial.at), grave);
            count += 1;
        }
        count
    }

    /// A work queue ends: what is in it is dead.
    pub(super) fn bury_work_queue(
        &mut self,
        number: u64,
        burial: &Burial,
        place: impl Fn(u64) -> u64,
    ) -> u64 {
        let Self { queues, queue_numbers, graves, .. } = self;
        let Some(queue) = queue_numbers.get(&number).and_then(|place| queues.get(*place)) else { return 0 };
        let mut count = 0;
        for (at, seq) in queue.open().filter(|(at, _)| *at >= burial.at) {
            let failures = queue.failures_of(at);
            let sends = failures.map_or_else(Sends::default, |failures| Sends {
                count: failures.attempts,
                first: failures.first,
                last: failures.last,
            });
            let grave = Grave {
                seq: place(seq),
                message: None,
                death: burial.death.clone(),
                sends,
                announced: false,
            };
            graves.insert(burial.first + (at - burial.at), grave);
            count += 1;
        }
        count
    }

    /// The letter of one message of a queue.
    pub(super) fn settle_dead(&mut self, source: (u64, u64), time: Millis) {
        let (from, at) = source;
        if let Some(index) = self.session(from) {
            let queue = self.sessions.get_mut(index).and_then(Session::outgoing_mut);
            if let Some(queue) = queue {
                queue.finish(at, time);
            }
        } else if let Some(queue) = self.queue_mut(from) {
            queue.restore_done(at, at);
        }
    }

    /// Queues had no room for a message: it has no number there, and their letters are made.
    pub(super) fn apply_refusals(
        &mut self,
        seq: u64,
        time: Millis,
        refused: &[(u64, u64)],
        targets: &mut Vec<Target>,
    ) {
        let is_refused = |number: u64| refused.iter().any(|(by, _)| *by == number);
        targets.retain(|target| target.qos == Qos::AtMostOnce || !is_refused(target.id));
        let Self { matched_queues, queues, .. } = self;
        matched_queues.retain(|place| queues.get(*place).is_none_or(|queue| !is_refused(queue.number)));
        for (by, letter) in refused.iter().filter(|(_, letter)| *letter != 0) {
            let client = self.name_of(*by).unwrap_or_default();
            self.inter(*letter, seq, client, reason::FULL.into(), time);
        }
    }

    pub(super) fn inter(
        &mut self,
        letter: u64,
        seq: u64,
        client: Utf8,
        reason: Cow<'static, str>,
        died: Millis,
    ) {
        let death = Arc::new(Death { client, reason, died });
        let grave = Grave { seq, message: None, death, sends: Sends::default(), announced: false };
        self.graves.insert(letter, grave);
    }
}

/// How work queues are called in letters.
pub(super) fn queue_name(name: &str) -> Utf8 {
    Utf8::try_from(format!("{}{name}", queue::PREFIX)).unwrap_or_default()
}

/// True if the log has the entry and its client does not: what was released the client has.
fn dies_in_log(entry: &Entry) -> bool {
    entry.logged && entry.from.is_none() && entry.phase != Phase::Released && entry.qos != Qos::AtMostOnce
}

/// Messages up to this number may have been sent: said from what the log has, so that it is the same when it is read.
fn presumed_sent(session: &Session) -> u64 {
    if session.away.is_some() { session.sent } else { session.next().saturating_sub(1) }
}
