//! Work queues: `$queue/NAME/FILTER`. Everybody who subscribes to one is a consumer of it, and each message goes to one
//! of them. It is kept whether or not somebody is there, and it is done when a consumer acknowledges it: who does not in
//! time, or refuses it with a reason code, or goes, gives it back for another try, and after too many it is a dead letter.
//!
//! A queue gives at most QoS 1: a message that comes again is a new PUBLISH with another packet id, because the old one
//! must not be sent again on a connection that lives [MQTT-4.4.0-1].
//!
//! The rules are those of [`postroad_core::mailbox`]. In the log a queue is `queue`, its messages follow from the
//! messages that match, and `qdone` and `qtry` say what became of them; who has what is not there, since nobody has
//! anything after a crash.

use super::message::Message;
use super::outgoing::{Entry, SubscriptionIds};
use super::session::Options;
use super::state::State;
use super::{Broker, Timer, reason};
use crate::codec::Qos;
use postroad_core::mailbox::{ConsumerId, Failures, Mailbox, Millis, Record, Taken, Verdict, Window};
use postroad_core::retry::RetryPolicy;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// What a subscription to a work queue begins with.
pub(super) const PREFIX: &str = "$queue/";

/// Name and filter of a work queue; `None` if `filter` is no such subscription.
pub(super) fn parse(filter: &str) -> Option<(&str, &str)> {
    let (name, filter) = filter.strip_prefix(PREFIX)?.split_once('/')?;
    (!name.is_empty() && !name.contains(['+', '#']) && !filter.is_empty()).then_some((name, filter))
}

/// Where an entry of a session's queue came from: the number of the work queue, and the message's number in it.
pub(super) type From = (u64, u64);

#[derive(Debug)]
struct Item {
    /// Where the log has it; 0: only memory has it.
    seq: u64,
    message: Option<Arc<Message>>,
}

/// A work queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) number: u64,
    pub(super) name: Box<str>,
    pub(super) filter: Box<str>,
    mailbox: Mailbox,
    base: u64,
    items: VecDeque<Item>,
    /// Consumers: sessions by their number, in turns.
    members: VecDeque<u64>,
}

impl Queue {
    pub(super) fn new(number: u64, name: &str, filter: &str, policy: RetryPolicy) -> Self {
        Self {
            number,
            name: name.into(),
            filter: filter.into(),
            mailbox: Mailbox::new(policy, 0),
            base: 1,
            items: VecDeque::new(),
            members: VecDeque::new(),
        }
    }

    /// The number that its next message gets.
    pub(super) fn next(&self) -> u64 {
        self.base + self.items.len() as u64
    }

    /// Messages that are committed and not done.
    pub(super) fn len(&self) -> u64 {
        self.mailbox.counts().pending()
    }

    pub(super) fn push(&mut self, seq: u64, message: Option<Arc<Message>>) -> u64 {
        let number = self.next();
        self.items.push_back(Item { seq, message });
        number
    }

    /// The messages that are not done, for a snapshot: number, and number in the log.
    pub(super) fn open(&self) -> impl Iterator<Item = (u64, u64)> {
        let open = (self.base..)
            .zip(&self.items)
            .filter(|(n, item)| item.seq != 0 && !self.mailbox.floor().is_settled(*n));
        open.map(|(n, item)| (n, item.seq))
    }

    /// Messages that have another number in the log now.
    pub(super) fn moved(&mut self, moved: &HashMap<u64, u64>) {
        for item in &mut self.items {
            if let Some(to) = moved.get(&item.seq) {
                item.seq = *to;
            }
        }
    }

    /// The failures of one message.
    pub(super) fn failures_of(&self, number: u64) -> Option<&Failures> {
        self.mailbox.failures().find(|(at, _)| *at == number).map(|(_, failures)| failures)
    }

    /// The messages that are not done and that only memory has.
    pub(super) fn in_memory(&self) -> impl Iterator<Item = Arc<Message>> {
        let open = (self.base..).zip(&self.items).filter(|(n, _)| !self.mailbox.floor().is_settled(*n));
        open.filter(|(_, item)| item.seq == 0).filter_map(|(_, item)| item.message.clone())
    }

    pub(super) fn failures(&self) -> impl Iterator<Item = (u64, &Failures)> {
        self.mailbox.failures()
    }

    /// Recovery, and snapshots: numbers before this one are done.
    pub(super) fn skip_to(&mut self, number: u64) {
        while self.next() < number {
            let done = self.push(0, None);
            self.mailbox.restore_settled(done, done);
        }
        self.trim();
    }

    pub(super) fn restore_done(&mut self, first: u64, last: u64) {
        self.mailbox.restore_settled(first, last.min(self.next() - 1));
        self.trim();
    }

    pub(super) fn restore_tried(&mut self, number: u64, failures: &Failures) {
        self.mailbox.restore_tried(number, number, failures);
    }

    pub(super) fn offer_all(&mut self) {
        let last = self.next() - 1;
        if last >= self.base {
            self.mailbox.offer(self.base, last, 0);
        }
    }

    fn item(&self, number: u64) -> Option<&Item> {
        self.items.get(usize::try_from(number.checked_sub(self.base)?).ok()?)
    }

    fn trim(&mut self) {
        while self.base <= self.mailbox.floor().floor() && self.items.pop_front().is_some() {
            self.base += 1;
        }
    }

    fn consumer(session: u64) -> ConsumerId {
        // Sessions are numbered by a counter that does not get that far.
        ConsumerId(session as u32)
    }
}

impl State {
    /// The queue of a subscription, made if there is none: its place, and whether it is new.
    pub(super) fn queue_for(&mut self, name: &str, filter: &str) -> (usize, bool) {
        let key = (Box::from(name), Box::from(filter));
        if let Some(place) = self.queue_names.get(&key) {
            return (*place, false);
        }
        let number = self.take_number();
        (self.insert_queue(number, name, filter), true)
    }

    pub(super) fn insert_queue(&mut self, number: u64, name: &str, filter: &str) -> usize {
        let queue = Queue::new(number, name, filter, self.queue_policy.clone());
        let place = self.queues.insert(queue);
        self.queue_names.insert((name.into(), filter.into()), place);
        self.queue_numbers.insert(number, place);
        self.add_queue_filter(filter, place);
        place
    }

    pub(super) fn queue_mut(&mut self, number: u64) -> Option<&mut Queue> {
        let place = *self.queue_numbers.get(&number)?;
        self.queues.get_mut(place)
    }

    /// The queue is gone, with what was in it.
    pub(super) fn remove_queue(&mut self, number: u64) -> Option<Queue> {
        let place = self.queue_numbers.remove(&number)?;
        let queue = self.queues.try_remove(place)?;
        self.queue_names.remove(&(queue.name.clone(), queue.filter.clone()));
        self.remove_queue_filter(&queue.filter, place);
        Some(queue)
    }

    /// A session consumes a queue from now on.
    pub(super) fn join_queue(&mut self, place: usize, session: u64) {
        if let Some(queue) = self.queues.get_mut(place)
            && !queue.members.contains(&session)
        {
            queue.members.push_back(session);
        }
    }

    /// A session does not any more; says the number of the queue if nobody does.
    pub(super) fn leave_queue(&mut self, name: &str, filter: &str, session: u64) -> Option<u64> {
        let place = *self.queue_names.get(&(Box::from(name), Box::from(filter)))?;
        let queue = self.queues.get_mut(place)?;
        queue.members.retain(|member| *member != session);
        queue.members.is_empty().then_some(queue.number)
    }

    /// Puts a message into the queues that match it; says where: number of the queue, number in it.
    pub(super) fn enqueue_work(&mut self, seq: u64, message: Option<&Arc<Message>>) -> Vec<From> {
        let places = std::mem::take(&mut self.matched_queues);
        let mut numbers = Vec::with_capacity(places.len());
        for place in places {
            if let Some(queue) = self.queues.get_mut(place) {
                numbers.push((queue.number, queue.push(seq, message.cloned())));
            }
        }
        numbers
    }
}

impl Broker {
    /// The queue of a subscription has this consumer now.
    pub(super) fn consume(&mut self, index: usize, name: &str, filter: &str, now: Millis) {
        let (place, new) = self.state.queue_for(name, filter);
        let Some(queue) = self.state.queues.get(place) else { return };
        let number = queue.number;
        let Some(session) = self.state.sessions.get(index) else { return };
        if new {
            self.book.append_as(session.buffered, now, |pen, log| pen.queue(log, number, name, filter));
        }
        let id = session.number;
        self.state.join_queue(place, id);
        self.attach_consumer(index, number);
    }

    fn attach_consumer(&mut self, index: usize, queue: u64) {
        let Some(session) = self.state.sessions.get(index).filter(|session| session.conn.is_some()) else {
            return;
        };
        let (id, window) = (session.number, session.window.min(self.config.queue_window));
        if let Some(queue) = self.state.queue_mut(queue) {
            queue.mailbox.attach(Queue::consumer(id), Window { count: u32::from(window), bytes: u64::MAX });
        }
    }

    /// A session is there: its queues may give it something.
    pub(super) fn attach_queues(&mut self, index: usize, now: Millis) {
        for queue in self.queues_of(index) {
            self.attach_consumer(index, queue);
            self.pump_queue(queue, now);
        }
    }

    /// A session is gone: what its queues gave it goes to others.
    pub(super) fn detach_queues(&mut self, index: usize, now: Millis) {
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        let id = session.number;
        if let Some(outgoing) = session.outgoing_mut() {
            let given: Vec<u64> = outgoing.iter().filter(|(_, e)| e.from.is_some()).map(|(n, _)| n).collect();
            for number in given {
                outgoing.finish(number, now);
            }
        }
        for number in self.queues_of(index) {
            let mut records = Vec::new();
            if let Some(queue) = self.state.queue_mut(number) {
                queue.mailbox.detach(Queue::consumer(id), now, &mut records);
            }
            self.log_queue(number, Some(index), records, now);
            self.pump_queue(number, now);
        }
    }

    /// A subscription to a queue ends. A queue that nobody subscribes to is gone.
    pub(super) fn stop_consuming(&mut self, index: usize, name: &str, filter: &str, now: Millis) {
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        let id = session.number;
        let Some(place) = self.state.queue_names.get(&(Box::from(name), Box::from(filter))).copied() else {
            return;
        };
        let Some(number) = self.state.queues.get(place).map(|queue| queue.number) else { return };
        let mut records = Vec::new();
        if let Some(queue) = self.state.queue_mut(number) {
            queue.mailbox.detach(Queue::consumer(id), now, &mut records);
        }
        self.log_queue(number, Some(index), records, now);
        if self.state.leave_queue(name, filter, id).is_none() {
            self.pump_queue(number, now);
            return;
        }
        let burial = self.bury_work_queue(number, now);
        if self.state.remove_queue(number).is_none() {
            return;
        }
        let ticket = self.book.append(now, |pen, log| pen.queue_gone(log, number, burial.as_ref()));
        if let Some(burial) = burial {
            self.buried(ticket, &burial, now);
        }
        self.overdue = true;
    }

    fn queues_of(&self, index: usize) -> Vec<u64> {
        let Some(session) = self.state.sessions.get(index) else { return Vec::new() };
        let names = session.subscriptions.keys().filter_map(|filter| parse(filter));
        let places = names
            .filter_map(|(name, filter)| self.state.queue_names.get(&(Box::from(name), Box::from(filter))));
        places.filter_map(|place| Some(self.state.queues.get(*place)?.number)).collect()
    }

    /// Messages of queues are committed.
    pub(super) fn offer_work(&mut self, work: &[From], now: Millis) {
        for (number, at) in work {
            if let Some(queue) = self.state.queue_mut(*number) {
                queue.mailbox.offer(*at, *at, 0);
                if queue.item(*at).is_some_and(|item| item.seq != 0)
                    && let Some(item) = queue.items.get_mut((*at - queue.base) as usize)
                {
                    // From here on it is read when somebody takes it.
                    item.message = None;
                }
                self.pump_queue(*number, now);
            }
        }
    }

    /// Gives what is ready to consumers with room, in turns.
    pub(super) fn pump_queue(&mut self, number: u64, now: Millis) {
        loop {
            let Some(queue) = self.state.queue_mut(number) else { return };
            if queue.mailbox.counts().ready == 0 {
                break;
            }
            let mut taken: Vec<Taken> = Vec::new();
            let mut to = None;
            for _ in 0..queue.members.len() {
                let Some(member) = queue.members.pop_front() else { break };
                queue.members.push_back(member);
                // A few at a time, so that all get some.
                if queue.mailbox.take(Queue::consumer(member), now, 4, |_| 0, &mut taken) > 0 {
                    to = Some(member);
                    break;
                }
            }
            let Some(member) = to else { break };
            let given: Vec<(Taken, u64, Option<Arc<Message>>)> = taken
                .iter()
                .filter_map(|taken| {
                    queue.item(taken.seq).map(|item| (*taken, item.seq, item.message.clone()))
                })
                .collect();
            self.give(number, member, given, now);
        }
        if let Some(due) = self.state.queue_mut(number).and_then(|queue| queue.mailbox.next_deadline()) {
            self.timers.insert((due, Timer::Queue(number)));
        }
    }

    fn give(
        &mut self,
        number: u64,
        member: u64,
        given: Vec<(Taken, u64, Option<Arc<Message>>)>,
        now: Millis,
    ) {
        let Some(index) = self.state.session(member) else { return };
        let options = {
            let Some(queue) = self.state.queue_mut(number) else { return };
            let filter = format!("{PREFIX}{}/{}", queue.name, queue.filter);
            let session = self.state.sessions.get(index);
            session.and_then(|session| session.subscriptions.get(filter.as_str()).copied())
        };
        let ids: SubscriptionIds = options.and_then(|options: Options| options.id).into_iter().collect();
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        for (taken, seq, message) in given {
            let mut entry = Entry::new(seq, message, Qos::AtLeastOnce, false, ids.clone());
            entry.from = Some((number, taken.seq));
            let at = session.queue().push(entry);
            session.queue().offer(at);
        }
        self.pump(index, now);
    }

    /// A consumer is done with a message, or refuses it (`refused` says why).
    pub(super) fn settle_work(&mut self, index: usize, from: From, refused: Option<&str>, now: Millis) {
        let Some(member) = self.state.sessions.get(index).map(|session| session.number) else { return };
        let (number, at) = from;
        let mut records = Vec::new();
        if let Some(queue) = self.state.queue_mut(number) {
            let verdict = match refused {
                // No other consumer could do better.
                Some(reason @ (reason::EXPIRED | reason::MISSING)) => Verdict::Dead { reason: reason.into() },
                Some(reason) => Verdict::Retry { after: None, reason: Some(reason.into()) },
                None => Verdict::Ack,
            };
            // It may have come too late, and be somebody else's now.
            let _ = queue.mailbox.settle(Queue::consumer(member), at, verdict, now, &mut records);
        }
        self.log_queue(number, Some(index), records, now);
        self.pump_queue(number, now);
    }

    /// The time of a queue has come: nobody acknowledged, or a delay is over.
    pub(super) fn tick_queue(&mut self, number: u64, now: Millis) {
        let mut records = Vec::new();
        if let Some(queue) = self.state.queue_mut(number) {
            queue.mailbox.tick(now, &mut records);
        }
        self.log_queue(number, None, records, now);
        self.pump_queue(number, now);
    }

    /// `index`: the session whose doing it is.
    fn log_queue(&mut self, number: u64, index: Option<usize>, records: Vec<Record>, now: Millis) {
        if records.is_empty() {
            return;
        }
        let (mut done, mut dying) = (Vec::new(), Vec::new());
        let mut tried: BTreeMap<u64, Failures> = BTreeMap::new();
        if let Some(queue) = self.state.queue_mut(number) {
            for record in records {
                match record {
                    Record::Settled { first, last } => done.push((first, last)),
                    Record::Tried { first, last, failures } => {
                        (first..=last).for_each(|at| drop(tried.insert(at, failures.clone())));
                    }
                    Record::Dying { seq, failures } => {
                        let (at, message) =
                            queue.item(seq).map_or((0, None), |item| (item.seq, item.message.clone()));
                        if queue.mailbox.buried(seq, &mut Vec::new()) {
                            dying.push((seq, at, message, failures));
                        }
                    }
                }
            }
            queue.trim();
        }
        for (at, seq, message, failures) in dying {
            self.bury_work(number, at, seq, message, &failures, now);
        }
        if done.is_empty() && tried.is_empty() {
            return;
        }
        let session = index.and_then(|index| self.state.sessions.get(index));
        let buffered = session.is_some_and(|session| session.buffered);
        self.book.append_as(buffered, now, |pen, log| {
            for (first, last) in &done {
                pen.queue_done(log, number, *first, *last);
            }
            for (at, failures) in &tried {
                pen.queue_tried(log, number, *at, failures);
            }
        });
        self.make_due(now);
    }
}
