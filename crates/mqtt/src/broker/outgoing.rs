//! What a session has still to be sent, and what it has not acknowledged: the sender's half of QoS 1 and QoS 2.
//!
//! Messages of one session are numbered from 1 without gaps, and the packet id follows from the number. So an id needs
//! no record of its own to be the same after a crash: the record of the message is the record of its id.
//!
//! | phase | the peer | on reconnect |
//! |---|---|---|
//! | queued | knows nothing of it | PUBLISH |
//! | sent | may have it | PUBLISH with DUP [MQTT-4.4.0-1] |
//! | released | QoS 2: has it, PUBREC is recorded | PUBREL with the same id [MQTT-4.3.3-4] |
//!
//! Order, window and what is in flight are those of [`postroad_core::mailbox`].

use super::graves::Sends;
use super::message::Message;
use crate::codec::{PacketId, Qos, SubscriptionId};
use postroad_core::mailbox::{ConsumerId, Mailbox, Millis, Record, Taken, Verdict, Window};
use postroad_core::retry::RetryPolicy;
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// The identifiers of the subscriptions that matched.
pub(super) type SubscriptionIds = SmallVec<[SubscriptionId; 1]>;

/// Packet ids there are; two messages in flight must not be this far apart.
const IDS: u64 = 65_535;
/// The session's client is the only consumer of its mailbox.
const CLIENT: ConsumerId = ConsumerId(0);

/// How far the exchange of a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Queued,
    Sent,
    Released,
}

/// A message of a session.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Where the log has the message; 0 if it is in memory only.
    pub(super) seq: u64,
    /// The log knows that it is in this queue, and must know when it is not any more.
    pub(super) logged: bool,
    /// The message, unless it is to be read from the log.
    pub(super) message: Option<Arc<Message>>,
    /// At QoS 0 it is gone when it is sent: so retained messages do not all go out at once.
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) phase: Phase,
    /// By this life of the broker.
    pub(super) sends: Sends,
    pub(super) ids: SubscriptionIds,
    /// Through a shared subscription: another member may have it instead.
    pub(super) shared: bool,
    /// From a work queue: it is not this session's own.
    pub(super) from: Option<super::queue::From>,
    // Acknowledged, and only still here because an older one is not.
    done: bool,
}

impl Entry {
    pub(super) fn new(
        seq: u64,
        message: Option<Arc<Message>>,
        qos: Qos,
        retain: bool,
        ids: SubscriptionIds,
    ) -> Self {
        Self {
            seq,
            logged: false,
            message,
            qos,
            retain,
            phase: Phase::Queued,
            sends: Sends::default(),
            ids,
            shared: false,
            from: None,
            done: false,
        }
    }
}

/// What an acknowledgement was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acked {
    /// Nothing that is in flight.
    Unknown,
    /// This message.
    Number(u64),
    /// This message, once more.
    Again(u64),
}

/// The queue of one session. See the module.
#[derive(Debug)]
pub(super) struct Outgoing {
    mailbox: Mailbox,
    // The number of the first entry.
    base: u64,
    entries: VecDeque<Entry>,
    // The highest number that was handed out to the present connection.
    handed: u64,
    // Bytes of messages that only memory has.
    bytes: usize,
}

impl Default for Outgoing {
    fn default() -> Self {
        // [MQTT-4.4.0-1]: nothing is sent again while the connection lives, so leases do not end by themselves.
        let policy = RetryPolicy { ack_wait: Duration::MAX, backoff: Vec::new(), max_deliveries: None };
        Self { mailbox: Mailbox::new(policy, 0), base: 1, entries: VecDeque::new(), handed: 0, bytes: 0 }
    }
}

/// The packet id of a number.
pub(super) fn packet_id(number: u64) -> PacketId {
    // 1 to 65535: never 0.
    PacketId::new(((number.wrapping_sub(1)) % IDS) as u16 + 1).unwrap_or(PacketId::MIN)
}

impl Outgoing {
    /// Messages not acknowledged.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of messages that only memory has.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    #[cfg(test)]
    pub(super) fn in_flight(&self) -> u64 {
        self.mailbox.counts().in_flight
    }

    /// The number that the next message gets.
    pub(super) fn next(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// The entries with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Entry)> {
        (self.base..).zip(&self.entries).filter(|(_, entry)| !entry.done)
    }

    /// Recovery: numbers before this one were used by messages that are gone.
    pub(super) fn skip_to(&mut self, number: u64) {
        if self.entries.is_empty() && self.base < number {
            // A session may have had millions of messages before.
            self.mailbox.restore_settled(self.base, number - 1);
            self.base = number;
        }
        while self.next() < number {
            let number = self.next();
            let mut entry = Entry::new(0, None, Qos::AtLeastOnce, false, SubscriptionIds::new());
            entry.done = true;
            self.entries.push_back(entry);
            self.mailbox.restore_settled(number, number);
        }
        self.trim();
    }

    /// Adds a message and says its number. It is not sent before [`offer`](Self::offer).
    pub(super) fn push(&mut self, entry: Entry) -> u64 {
        let number = self.next();
        self.bytes += held(&entry);
        self.entries.push_back(entry);
        number
    }

    /// The message is committed.
    pub(super) fn offer(&mut self, number: u64) {
        if self.get(number).is_some() {
            self.mailbox.offer(number, number, 0);
        }
    }

    /// Everything is committed: at recovery.
    pub(super) fn offer_all(&mut self) {
        let open: Vec<u64> = self.iter().map(|(number, _)| number).collect();
        for number in open {
            self.mailbox.offer(number, number, 0);
        }
    }

    /// Messages that have another number in the log now.
    pub(super) fn moved(&mut self, moved: &HashMap<u64, u64>) {
        for entry in self.entries.iter_mut().filter(|entry| !entry.done) {
            if let Some(to) = moved.get(&entry.seq) {
                entry.seq = *to;
            }
        }
    }

    /// Recovery: messages up to `number` may have been sent before.
    pub(super) fn presume_sent(&mut self, number: u64) {
        let count = (number + 1).saturating_sub(self.base).min(self.entries.len() as u64) as usize;
        for entry in self.entries.iter_mut().take(count).filter(|entry| entry.phase == Phase::Queued) {
            entry.phase = Phase::Sent;
        }
    }

    /// The highest number that may have been sent; 0 if there is none.
    pub(super) fn sent(&self) -> u64 {
        self.iter().filter(|(_, entry)| entry.phase != Phase::Queued).last().map_or(0, |(number, _)| number)
    }

    /// The client is there and takes at most `window` messages at once.
    pub(super) fn attach(&mut self, window: u16) {
        self.handed = 0;
        self.mailbox.attach(CLIENT, Window { count: u32::from(window), bytes: u64::MAX });
    }

    /// The client is gone. What was sent is to be sent again, in order, when it is back.
    pub(super) fn detach(&mut self, now: Millis) {
        let mut records = Vec::new();
        self.mailbox.detach(CLIENT, now, &mut records);
    }

    /// Gives back what was handed out and is there no more.
    pub(super) fn drop_handed(&mut self, number: u64, now: Millis) {
        let _ = self.mailbox.settle(CLIENT, number, Verdict::Discard, now, &mut Vec::new());
    }

    /// The messages that the window has room for.
    pub(super) fn take(&mut self, now: Millis, max: usize, out: &mut Vec<Taken>) {
        // Without this an id could be in use twice, when the peer never acknowledges the oldest message.
        let room = (self.base + IDS).saturating_sub(self.handed.max(self.base - 1) + 1);
        let start = out.len();
        self.mailbox.take(CLIENT, now, max.min(room as usize), |_| 0, out);
        if let Some(last) = out[start..].iter().map(|taken| taken.seq).max() {
            self.handed = self.handed.max(last);
        }
    }

    pub(super) fn get(&self, number: u64) -> Option<&Entry> {
        let index = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.entries.get(index).filter(|entry| !entry.done)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Entry> {
        let index = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.entries.get_mut(index).filter(|entry| !entry.done)
    }

    /// The number that an id stands for now.
    pub(super) fn number(&self, id: PacketId) -> u64 {
        let first = (self.base - 1) % IDS;
        let wanted = u64::from(id.get()) - 1;
        self.base + (wanted + IDS - first) % IDS
    }

    /// PUBACK. [MQTT-4.3.2-3]
    pub(super) fn puback(&self, id: PacketId) -> Acked {
        let number = self.number(id);
        match self.get(number) {
            Some(entry) if entry.qos == Qos::AtLeastOnce && self.mailbox.holds(CLIENT, number) => {
                Acked::Number(number)
            }
            _ => Acked::Unknown,
        }
    }

    /// PUBREC. The message must not be sent again. [MQTT-4.3.3-6]
    pub(super) fn pubrec(&mut self, id: PacketId) -> Acked {
        let number = self.number(id);
        if !self.mailbox.holds(CLIENT, number) {
            return Acked::Unknown;
        }
        match self.get_mut(number) {
            Some(entry) if entry.qos == Qos::ExactlyOnce => {
                if entry.phase == Phase::Released {
                    return Acked::Again(number);
                }
                self.release(number);
                Acked::Number(number)
            }
            _ => Acked::Unknown,
        }
    }

    /// The peer has the message: only the handshake is left, and its body is not needed any more.
    pub(super) fn release(&mut self, number: u64) {
        let Some(entry) = self.get_mut(number) else { return };
        entry.phase = Phase::Released;
        let held = held(entry);
        entry.message = None;
        self.bytes -= held;
    }

    /// PUBCOMP. [MQTT-4.3.3-5]
    pub(super) fn pubcomp(&self, id: PacketId) -> Acked {
        let number = self.number(id);
        match self.get(number) {
            Some(entry) if entry.phase == Phase::Released && self.mailbox.holds(CLIENT, number) => {
                Acked::Number(number)
            }
            _ => Acked::Unknown,
        }
    }

    /// The exchange of a message is over, whatever state it was in.
    pub(super) fn finish(&mut self, number: u64, now: Millis) {
        let Some(entry) = self.get_mut(number) else { return };
        entry.done = true;
        let held = held(entry);
        entry.message = None;
        self.bytes -= held;
        let mut records: Vec<Record> = Vec::new();
        if self.mailbox.settle(CLIENT, number, Verdict::Ack, now, &mut records).is_err() {
            // Not handed out. If it is ready it still will be, and `get` has nothing for it then.
            self.mailbox.restore_settled(number, number);
        }
        self.trim();
    }

    /// Messages that the log has too need no memory while nobody is there to take them.
    pub(super) fn forget_bodies(&mut self) {
        for entry in self.entries.iter_mut().filter(|entry| entry.logged) {
            entry.message = None;
        }
    }

    fn trim(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.done) {
            self.entries.pop_front();
            self.base += 1;
        }
        if self.entries.is_empty() && self.entries.capacity() > 64 {
            self.entries = VecDeque::new();
        }
    }
}

fn held(entry: &Entry) -> usize {
    if entry.seq == 0 { entry.message.as_ref().map_or(0, |message| message.size()) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(qos: Qos, messages: u64) -> Outgoing {
        let mut queue = Outgoing::default();
        for _ in 0..messages {
            let number = queue.push(Entry::new(1, None, qos, false, SubscriptionIds::new()));
            queue.offer(number);
        }
        queue
    }

    fn take(queue: &mut Outgoing, max: usize) -> Vec<u64> {
        let mut taken = Vec::new();
        queue.take(0, max, &mut taken);
        taken.iter().map(|t| t.seq).collect()
    }

    #[test]
    fn the_window_bounds_what_is_in_flight() {
        let mut queue = queue(Qos::ExactlyOnce, 10);
        queue.attach(3);
        assert_eq!(take(&mut queue, 100), [1, 2, 3]);
        assert_eq!(queue.pubrec(packet_id(2)), Acked::Number(2));
        assert!(take(&mut queue, 100).is_empty(), "an exchange counts until PUBCOMP");
        assert_eq!(queue.pubcomp(packet_id(2)), Acked::Number(2));
        queue.finish(2, 0);
        assert_eq!(take(&mut queue, 100), [4]);
        assert_eq!(queue.len(), 10, "1 is open, so 2 keeps its place");
    }

    #[test]
    fn ids_are_never_in_use_twice() {
        let mut queue = queue(Qos::AtLeastOnce, 70_000);
        queue.attach(u16::MAX);
        let mut open: std::collections::BTreeSet<PacketId> = std::collections::BTreeSet::new();
        let mut all = 0;
        loop {
            let taken = take(&mut queue, 1000);
            if taken.is_empty() {
                break;
            }
            all += taken.len();
            for number in taken {
                assert!(open.insert(packet_id(number)), "{number}");
                // The first message is never acknowledged.
                if number != 1 {
                    assert_eq!(queue.puback(packet_id(number)), Acked::Number(number));
                    queue.finish(number, 0);
                    open.remove(&packet_id(number));
                }
            }
        }
        assert_eq!(all, 65_535);
        queue.finish(1, 0);
        assert_eq!(take(&mut queue, 10).len(), 10);
    }

    #[test]
    fn what_was_sent_comes_again_in_order_and_what_was_released_stays_so() {
        let mut queue = queue(Qos::ExactlyOnce, 4);
        queue.attach(4);
        assert_eq!(take(&mut queue, 4), [1, 2, 3, 4]);
        queue.pubrec(packet_id(3));
        queue.pubrec(packet_id(1));
        queue.detach(5);
        assert_eq!(queue.pubrec(packet_id(2)), Acked::Unknown, "it is not in flight now");
        queue.attach(2);
        assert_eq!(take(&mut queue, 4), [1, 2]);
        assert_eq!(queue.get(1).map(|e| e.phase), Some(Phase::Released));
        assert_eq!(queue.get(2).map(|e| e.phase), Some(Phase::Queued));
    }

    #[test]
    fn a_number_gone_before_it_was_sent_is_never_sent() {
        let mut queue = queue(Qos::AtLeastOnce, 3);
        queue.finish(2, 0);
        queue.attach(5);
        for number in take(&mut queue, 5) {
            match queue.get(number) {
                Some(_) => assert_ne!(number, 2),
                None => queue.drop_handed(number, 0),
            }
        }
        assert_eq!(queue.in_flight(), 2);
        queue.skip_to(10);
        assert_eq!(queue.next(), 10);
    }
}
