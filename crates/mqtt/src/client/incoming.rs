//! Receiving as a state machine: packets, verdicts and commits come in, packets, deliveries and records come out.
//!
//! With an inbox a message is a record before the server hears of it (PUBREC, PUBACK) and before anybody gets it; its
//! id is remembered until PUBREL is a record, and only then PUBCOMP is sent. A verdict is a record, too, so that
//! what a message still needs does not depend on the connection or on this process.
//!
//! Without an inbox the server keeps a message of a named subscription until it is settled: PUBREC or PUBACK *is* the verdict. They are sent in
//! the order in which the messages came [MQTT-4.6.0-2] [MQTT-4.6.0-3], so a verdict waits for those before it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::BytesMut;
use postroad_core::mailbox::{ConsumerId, Mailbox, Record as Change, Taken, Verdict, Window};
use postroad_core::retry::RetryPolicy;
use postroad_core::{Envelope, Error, ErrorKind, Filter, Outcome, SettledResolver, Subject, Timestamp};

use super::log::{Log, Mark, NoLog, Record};
use super::places::Place;
use super::{MqttOptions, NAME, Planted, envelope, lost, wrapping};
use crate::codec::{Ack, Packet, PacketId, PacketType, Publish, Qos, ReasonCode, Version};

mod recovery;

/// The only consumer of the mailbox.
const ME: ConsumerId = ConsumerId(0);
/// With more than this here, unsettled, the server hears of no further message, so that it sends no more than its window.
const MAX_HELD: usize = 16_384;
const MAX_HELD_BYTES: u64 = 64 << 20;

/// A message that is not settled.
struct Held {
    envelope: Arc<Envelope>,
    bytes: u32,
    /// Whether the server said that it may have come before.
    redelivered: bool,
    /// The attempt that is out.
    attempt: u32,
    /// Of an inbox, for its snapshots.
    stored: Option<(Publish, Timestamp)>,
}

/// What waits for a commit.
enum Step {
    Offer(u64),
    Send(PacketType, Ack),
    Answer(SettledResolver),
}

/// A message whose PUBREC or PUBACK is to come, without an inbox.
struct Owed {
    number: u64,
    id: PacketId,
    qos: Qos,
    settled: bool,
    answers: Vec<SettledResolver>,
}

/// A QoS 2 id between PUBLISH and PUBREL.
enum Id {
    /// The message is a record, or will be with this commit.
    Stored(Mark),
    /// No PUBREC was sent: the server may send it again.
    Open,
    /// PUBREC was sent; these wait to know that it arrived.
    Acked(Vec<SettledResolver>),
}

/// A delivery, before it has a token.
pub(super) struct Given {
    pub(super) envelope: Arc<Envelope>,
    pub(super) number: u64,
    pub(super) attempt: u32,
    pub(super) redelivered: bool,
}

pub(super) struct Incoming {
    pub(super) log: Box<dyn Log>,
    planted: Planted,
    /// Of [`MqttOptions::plain`].
    plain: bool,
    /// The version of the connection.
    version: Version,
    /// Whether a message is this side's as soon as it is here; else the server keeps it until it is settled.
    owns: bool,
    filter: Filter,
    mailbox: Mailbox,
    held: BTreeMap<u64, Held>,
    /// Bytes of all of them.
    bytes: u64,
    next: u64,
    ids: HashMap<PacketId, Id>,
    /// The commit of the latest record of a PUBREL.
    released: Mark,
    /// Without an inbox: in the order in which they came.
    owed: VecDeque<Owed>,
    waiting: VecDeque<(Mark, Step)>,
    /// PUBRECs and PUBACKs that wait for their commit, and for room here.
    receipts: VecDeque<(Mark, PacketType, Ack)>,
    /// PUBACKs that were written; they have arrived when the PINGRESP behind them is here.
    pub(super) unproven: Vec<SettledResolver>,
    /// Those whose PINGREQ was sent.
    pub(super) proving: Vec<SettledResolver>,
    connected: bool,
    retired: bool,
    /// So that nobody else in this process takes the session over.
    pub(super) place: Option<Place>,
    /// What the consumer must hear.
    pub(super) errors: VecDeque<Error>,
    /// Verdicts that were final, since the beginning.
    settled: u64,
    records: Vec<Change>,
    /// To be written.
    pub(super) out: BytesMut,
}

impl Incoming {
    /// Goes on where these records ended. What is `named` comes again after this connection.
    pub(super) fn new(
        log: Box<dyn Log>,
        records: Vec<Record>,
        filter: Filter,
        named: bool,
        policy: RetryPolicy,
        window: Window,
        options: &MqttOptions,
    ) -> Self {
        let mut incoming = Self {
            // A session without a name ends with its connection: the server would keep a message for nothing.
            owns: log.is_durable() || !named,
            log,
            planted: options.planted,
            plain: options.plain,
            version: Version::V5,
            filter,
            mailbox: Mailbox::new(policy, 0),
            held: BTreeMap::new(),
            bytes: 0,
            next: 1,
            ids: HashMap::new(),
            released: 0,
            owed: VecDeque::new(),
            waiting: VecDeque::new(),
            receipts: VecDeque::new(),
            unproven: Vec::new(),
            proving: Vec::new(),
            connected: false,
            retired: false,
            place: None,
            errors: VecDeque::new(),
            settled: 0,
            records: Vec::new(),
            out: BytesMut::new(),
        };
        for record in records {
            incoming.fold(record);
        }
        incoming.mailbox.attach(ME, window);
        // What is gone without a trace was settled before the oldest snapshot.
        let mut from = 1;
        let open: Vec<u64> = incoming.held.keys().copied().collect();
        for number in &open {
            incoming.mailbox.restore_settled(from, number - 1);
            from = number + 1;
        }
        incoming.mailbox.restore_settled(from, incoming.next - 1);
        for number in open {
            incoming.mailbox.offer(number, number, 0);
        }
        incoming
    }

    /// The server has accepted a connection.
    pub(super) fn connected(&mut self, version: Version, session_present: bool) {
        self.connected = true;
        self.version = version;
        if !session_present && !self.ids.is_empty() {
            self.log.append(&Record::Fresh);
            self.ids.clear();
        }
        if self.planted.id_forgotten {
            self.ids.clear();
        }
    }

    /// The connection is gone: what has no answer gets none.
    pub(super) fn lost(&mut self) {
        self.connected = false;
        self.out.clear();
        // Dropped, they say so.
        self.owed.clear();
        self.unproven.clear();
        self.proving.clear();
        self.receipts.clear();
        if self.log.is_durable() {
            self.waiting.retain(|(_, step)| matches!(step, Step::Answer(_)));
        } else {
            self.waiting.clear();
            self.ids.clear();
        }
    }

    /// A packet of the server. An error is one of the protocol: the connection must end.
    pub(super) fn packet(&mut self, packet: Packet, now: Timestamp) -> Result<(), Error> {
        if self.retired {
            // But PUBREL, which is the answer to verdicts, everything is for the next connection.
            if let Packet::Pubrel(ack) = &packet
                && matches!(self.ids.get(&ack.packet_id), Some(Id::Acked(_)))
            {
                self.pubrel(ack);
                self.advance();
            }
            return Ok(());
        }
        match packet {
            Packet::Publish(publish) => self.publish(publish, now)?,
            Packet::Pubrel(ack) => self.pubrel(&ack),
            other => {
                return Err(lost(format!(
                    "the server sent a {:?} that has no place here",
                    other.packet_type()
                )));
            }
        }
        self.advance();
        Ok(())
    }

    fn publish(&mut self, mut publish: Publish, now: Timestamp) -> Result<(), Error> {
        if publish.topic.is_empty() {
            return Err(lost("the server sent a topic alias that nobody allowed"));
        }
        if let (Qos::ExactlyOnce, Some(id)) = (publish.qos, publish.packet_id)
            && let Some(known) = self.ids.get(&id)
        {
            // The same message: it is not delivered again, and the server hears once more what it missed. [MQTT-4.3.3-10]
            match known {
                Id::Stored(mark) => self.receipts.push_back((*mark, PacketType::Pubrec, Ack::new(id))),
                Id::Acked(_) => self.receipts.push_back((0, PacketType::Pubrec, Ack::new(id))),
                Id::Open => {}
            }
            return Ok(());
        }
        let subject = match Subject::new(publish.topic.as_str()) {
            Ok(subject) => subject,
            Err(why) => {
                let text =
                    format!("topic {:?} is no subject here: {why}; it was refused", publish.topic.as_str());
                self.errors.push_back(Error::new(ErrorKind::Rejected, NAME, text));
                self.refuse(&publish);
                return Ok(());
            }
        };
        // MQTT's `#` also stands for no level at all. Retained messages are not asked for, but a server of 3.1.1 sends
        // them with every SUBSCRIBE: only those have RETAIN [MQTT-3.3.1-8] [MQTT-3.3.1-9].
        let retained = publish.retain && !self.version.is_v5();
        let wanted = self.filter.matches(subject.as_str()) && !retained;
        if !self.plain {
            wrapping::unwrap(&mut publish, &subject, now);
        }
        envelope::set_id(&mut publish);
        if self.owns {
            self.store(subject, publish, wanted, now);
        } else {
            self.keep(subject, &publish, wanted, now);
        }
        Ok(())
    }

    /// A message that nobody here can take.
    fn refuse(&mut self, publish: &Publish) {
        let Some(id) = publish.packet_id else { return };
        let kind = if publish.qos == Qos::ExactlyOnce { PacketType::Pubrec } else { PacketType::Puback };
        // With an error the exchange is over. [MQTT-4.3.3-9]
        let ack = Ack::with_reason(id, ReasonCode::TopicNameInvalid);
        self.receipts.push_back((0, kind, ack));
    }

    fn store(&mut self, subject: Subject, publish: Publish, wanted: bool, now: Timestamp) {
        let (qos, id) = (publish.qos, publish.packet_id);
        let mut mark = 0;
        if wanted {
            let number = self.next;
            self.next += 1;
            let record = Record::In { number, publish, time: now };
            mark = self.log.append(&record);
            let Record::In { publish, .. } = record else { return };
            let envelope = Arc::new(envelope::decode(subject, &publish, now));
            let bytes = u32::try_from(envelope.len_bytes()).unwrap_or(u32::MAX);
            let held = Held { envelope, bytes, redelivered: false, attempt: 0, stored: Some((publish, now)) };
            self.bytes += u64::from(bytes);
            self.held.insert(number, held);
            self.step(mark, Step::Offer(number));
        } else if let (Qos::ExactlyOnce, Some(id)) = (qos, id) {
            mark = self.log.append(&Record::Open(id));
        }
        let Some(id) = id else { return };
        let mut kind = PacketType::Puback;
        if qos == Qos::ExactlyOnce {
            self.ids.insert(id, Id::Stored(mark));
            kind = PacketType::Pubrec;
        }
        self.receipts.push_back((mark, kind, Ack::new(id)));
    }

    fn keep(&mut self, subject: Subject, publish: &Publish, wanted: bool, now: Timestamp) {
        let number = self.next;
        self.next += 1;
        if let Some(id) = publish.packet_id {
            if publish.qos == Qos::ExactlyOnce {
                self.ids.insert(id, Id::Open);
            }
            let owed = Owed { number, id, qos: publish.qos, settled: !wanted, answers: Vec::new() };
            self.owed.push_back(owed);
        }
        if !wanted {
            self.mailbox.restore_settled(number, number);
            self.acknowledge();
            return;
        }
        let envelope = Arc::new(envelope::decode(subject, publish, now));
        let bytes = u32::try_from(envelope.len_bytes()).unwrap_or(u32::MAX);
        let held = Held { envelope, bytes, redelivered: publish.dup, attempt: 0, stored: None };
        self.bytes += u64::from(bytes);
        self.held.insert(number, held);
        self.mailbox.offer(number, number, 0);
    }

    fn pubrel(&mut self, ack: &Ack) {
        match self.ids.remove(&ack.packet_id) {
            Some(Id::Stored(_)) => {
                let mark = self.log.append(&Record::Released(ack.packet_id));
                self.released = mark;
                self.step(mark, Step::Send(PacketType::Pubcomp, Ack::new(ack.packet_id)));
            }
            Some(Id::Acked(answers)) => {
                // The server has had PUBREC: it does not send the message again.
                for answer in answers {
                    answer.resolve(Ok(()));
                }
                self.step(0, Step::Send(PacketType::Pubcomp, Ack::new(ack.packet_id)));
            }
            // Of an exchange that was over here before the connection, or that never was.
            Some(Id::Open) | None => {
                let ack = Ack::with_reason(ack.packet_id, ReasonCode::PacketIdentifierNotFound);
                // Its end may be a record that is not committed: a PUBCOMP before that would let the server use the id
                // again while a later life still takes it for the old message.
                self.step(self.released, Step::Send(PacketType::Pubcomp, ack));
            }
        }
    }

    fn step(&mut self, mark: Mark, step: Step) {
        // In order: none overtakes one that waits for an earlier commit.
        let mark = mark.max(self.waiting.back().map_or(0, |(mark, _)| *mark));
        self.waiting.push_back((mark, step));
    }

    /// Does what the commits allow.
    pub(super) fn advance(&mut self) {
        let committed = self.log.committed();
        while let Some((mark, _)) = self.waiting.front() {
            if *mark > committed && !self.planted.ack_before_record {
                break;
            }
            let Some((_, step)) = self.waiting.pop_front() else { break };
            match step {
                Step::Offer(number) => self.mailbox.offer(number, number, 0),
                Step::Send(kind, ack) if self.connected => {
                    // An id and a reason that the packet may have: it is encoded.
                    let _ = ack.encode(kind, self.version, &mut self.out);
                }
                Step::Send(..) => {}
                Step::Answer(answer) => answer.resolve(Ok(())),
            }
        }
        let full = self.held.len() > MAX_HELD || self.bytes > MAX_HELD_BYTES;
        while !full && let Some((mark, kind, ack)) = self.receipts.front() {
            if *mark > committed && !self.planted.ack_before_record {
                break;
            }
            if self.connected {
                // An id and a reason that the packet may have: it is encoded.
                let _ = ack.encode(*kind, self.version, &mut self.out);
            }
            self.receipts.pop_front();
        }
        if self.log.wants_snapshot() {
            let open = self.open_records();
            self.log.snapshot(open);
        }
    }

    /// Hands out up to `max` messages.
    pub(super) fn take(&mut self, now: Timestamp, max: usize, out: &mut Vec<Given>) {
        let mut taken: Vec<Taken> = Vec::new();
        loop {
            let held = &self.held;
            let size_of = |number: u64| held.get(&number).map_or(0, |held| held.bytes);
            taken.clear();
            self.mailbox.take(ME, now.as_millis(), max - out.len(), size_of, &mut taken);
            if taken.is_empty() {
                return;
            }
            for one in &taken {
                let Some(held) = self.held.get_mut(&one.seq) else { continue };
                if held.envelope.is_expired(now) {
                    let mark = self.settle_in_mailbox(one.seq, Verdict::Discard, now);
                    self.finish(one.seq, mark, None);
                    continue;
                }
                held.attempt = one.attempt;
                out.push(Given {
                    envelope: Arc::clone(&held.envelope),
                    number: one.seq,
                    attempt: one.attempt,
                    redelivered: held.redelivered || one.attempt > 1,
                });
            }
            if !out.is_empty() {
                return;
            }
        }
    }

    /// The verdict on the delivery `number` of `attempt`.
    pub(super) fn settle(
        &mut self,
        number: u64,
        attempt: u32,
        outcome: Outcome,
        answer: SettledResolver,
        now: Timestamp,
    ) {
        let current = self.held.get(&number).is_some_and(|held| held.attempt == attempt);
        if !current || !self.mailbox.holds(ME, number) {
            let text = "its lease has ended: the message comes again, or another delivery of it was settled";
            answer.resolve(Err(Error::new(ErrorKind::StaleToken, NAME, text)));
            return;
        }
        match outcome {
            Outcome::Ack | Outcome::Discard => {
                let mark = self.settle_in_mailbox(number, Verdict::Ack, now);
                self.settled += 1;
                self.finish(number, mark, Some(answer));
            }
            Outcome::Retry { after } => {
                let mark = self.settle_in_mailbox(number, Verdict::Retry { after, reason: None }, now);
                self.settled += 1;
                self.step(mark, Step::Answer(answer));
            }
            _ => {
                self.settle_in_mailbox(number, Verdict::Retry { after: None, reason: None }, now);
                let text =
                    "MQTT has no dead letters: publish it where it belongs, then ack it; it comes again";
                answer.resolve(Err(Error::new(ErrorKind::Unsupported, NAME, text)));
            }
        }
        self.advance();
    }

    /// Its records; the commit of the last one.
    fn settle_in_mailbox(&mut self, number: u64, verdict: Verdict, now: Timestamp) -> Mark {
        let mut records = std::mem::take(&mut self.records);
        // The caller has seen that it is held.
        let _ = self.mailbox.settle(ME, number, verdict, now.as_millis(), &mut records);
        self.records = records;
        self.write_changes()
    }

    fn write_changes(&mut self) -> Mark {
        let mut mark = 0;
        for change in std::mem::take(&mut self.records) {
            let record = match change {
                Change::Settled { first, last } => Record::Settled { first, last },
                Change::Tried { first, last, failures } => Record::Tried { first, last, failures },
                // Without a maximum of deliveries nothing dies.
                Change::Dying { .. } => continue,
            };
            mark = self.log.append(&record);
        }
        mark
    }

    /// A message is settled for good; `mark` is the commit of its record.
    fn finish(&mut self, number: u64, mark: Mark, answer: Option<SettledResolver>) {
        if let Some(held) = self.held.remove(&number) {
            self.bytes -= u64::from(held.bytes);
        }
        if self.owns {
            if let Some(answer) = answer {
                self.step(mark, Step::Answer(answer));
            }
            return;
        }
        match self.owed.binary_search_by_key(&number, |owed| owed.number) {
            Ok(at) => {
                self.owed[at].settled = true;
                self.owed[at].answers.extend(answer);
                self.acknowledge();
            }
            // QoS 0: there is nobody to tell.
            Err(_) => {
                if let Some(answer) = answer {
                    answer.resolve(Ok(()));
                }
            }
        }
    }

    /// Sends what is owed, up to the first message without a verdict.
    fn acknowledge(&mut self) {
        while self.owed.front().is_some_and(|owed| owed.settled) {
            let Some(owed) = self.owed.pop_front() else { return };
            let ack = Ack::new(owed.id);
            if owed.qos == Qos::ExactlyOnce {
                let _ = ack.encode(PacketType::Pubrec, self.version, &mut self.out);
                self.ids.insert(owed.id, Id::Acked(owed.answers));
            } else {
                let _ = ack.encode(PacketType::Puback, self.version, &mut self.out);
                self.unproven.extend(owed.answers);
            }
        }
    }

    /// The lease of a delivery starts again.
    pub(super) fn extend(&mut self, number: u64, attempt: u32, now: Timestamp) -> Result<(), Error> {
        let current = self.held.get(&number).is_some_and(|held| held.attempt == attempt);
        if !current || self.mailbox.touch(ME, number, now.as_millis()).is_err() {
            return Err(Error::new(
                ErrorKind::StaleToken,
                NAME,
                "its lease has ended: the message comes again",
            ));
        }
        Ok(())
    }

    /// Leases and delays end.
    pub(super) fn tick(&mut self, now: Timestamp) {
        let mut records = std::mem::take(&mut self.records);
        self.mailbox.tick(now.as_millis(), &mut records);
        self.records = records;
        self.write_changes();
    }

    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.mailbox.next_deadline().map(Timestamp::from_millis)
    }

    /// The consumer is gone: what it held has had one more attempt.
    pub(super) fn detach(&mut self, now: Timestamp) {
        let mut records = std::mem::take(&mut self.records);
        self.mailbox.detach(ME, now.as_millis(), &mut records);
        self.records = records;
        self.write_changes();
    }

    /// Deliveries that are out, and how many got a verdict so far.
    pub(super) fn in_flight(&self) -> (u64, u64) {
        (self.mailbox.counts().in_flight, self.settled)
    }

    /// Takes nothing any more; what was written is still sent. The log is for whoever comes next.
    pub(super) fn retire(&mut self) -> Box<dyn Log> {
        self.retired = true;
        self.place = None;
        std::mem::replace(&mut self.log, Box::new(NoLog))
    }

    /// Verdicts and acknowledgements without an answer.
    pub(super) fn is_settling(&self) -> bool {
        !self.unproven.is_empty()
            || !self.proving.is_empty()
            || self.waiting.iter().any(|(_, step)| matches!(step, Step::Answer(_)))
            || self.ids.values().any(|id| matches!(id, Id::Acked(answers) if !answers.is_empty()))
    }
}
