//! Publishing as a state machine: messages, packets and commits come in, packets and records come out.
//!
//! A message is a record before it is on the wire, PUBREC is a record before PUBREL is on the wire, and the end of an
//! exchange is a record when somebody gets to it: without it, PUBREL is sent once more. The packet id follows from the
//! number of the message, so that the record of the one is the record of the other.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::BytesMut;
use postroad_core::{Error, ErrorKind, MessageId, Receipt, TicketResolver, Timestamp};

use super::log::{Log, Mark, Record};
use super::wrapping::wrap;
use super::{MqttOptions, NAME, Planted, envelope, lost, lower_qos, refusal};
use crate::codec::{Ack, Packet, PacketId, PacketType, Publish, Qos, ReasonCode, Utf8, Version};

/// How many ids an outbox remembers.
pub(super) const SEEN: usize = 16_384;

/// Where a message is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not sent since the server began to know this session.
    Queued,
    /// Sent, or perhaps sent.
    Sent,
    /// PUBREC came.
    Received,
}

#[derive(Debug)]
struct Flight {
    publish: Publish,
    expires: Option<Timestamp>,
    stage: Stage,
    /// The commit of its latest record.
    mark: Mark,
    bytes: usize,
    tickets: Vec<TicketResolver>,
}

/// The ids of what an outbox has taken, so that a program that was killed can publish again what it is not sure of.
#[derive(Default)]
struct Seen {
    numbers: HashMap<MessageId, u64>,
    order: VecDeque<MessageId>,
}

impl Seen {
    fn insert(&mut self, id: MessageId, number: u64) {
        if self.numbers.insert(id.clone(), number).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > SEEN {
            if let Some(oldest) = self.order.pop_front() {
                self.numbers.remove(&oldest);
            }
        }
    }

    /// The server refused it: it may be published again.
    fn remove(&mut self, number: u64) {
        self.numbers.retain(|_, other| *other != number);
        self.order.retain(|id| self.numbers.contains_key(id));
    }
}

/// What a server said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    /// The version of the connection.
    pub(super) version: Version,
    /// Whether it knows the session.
    pub(super) session_present: bool,
    /// How many PUBLISH it takes unacknowledged.
    pub(super) receive_maximum: u16,
    /// The largest packet it takes.
    pub(super) maximum_packet_size: u32,
}

pub(super) struct Outgoing {
    pub(super) log: Box<dyn Log>,
    planted: Planted,
    /// Of [`MqttOptions::plain`].
    plain: bool,
    /// The client id of an outbox.
    client_id: Option<String>,
    /// What is not done, by number.
    flights: BTreeMap<u64, Flight>,
    /// Bytes of all of them.
    bytes: usize,
    seen: Seen,
    /// Ids of what was sent on this connection, or is to be released.
    ids: HashMap<PacketId, u64>,
    next: u64,
    /// The next one to be looked at for sending.
    cursor: u64,
    terms: Option<Terms>,
    quota: u16,
    /// PUBRELs that wait for their commit.
    releases: VecDeque<(Mark, Ack)>,
    /// To be written.
    pub(super) out: BytesMut,
}

/// The packet id of a message: no two of 65535 in a row have the same.
fn packet_id(number: u64) -> PacketId {
    PacketId::new((number.saturating_sub(1) % 65_535 + 1) as u16).unwrap_or(PacketId::MIN)
}

impl Outgoing {
    /// Goes on where these records ended.
    pub(super) fn new(log: Box<dyn Log>, records: Vec<Record>, options: &MqttOptions) -> Self {
        let mut outgoing = Self {
            log,
            planted: options.planted,
            plain: options.plain,
            client_id: None,
            flights: BTreeMap::new(),
            bytes: 0,
            seen: Seen::default(),
            ids: HashMap::new(),
            next: 1,
            cursor: 1,
            terms: None,
            quota: 0,
            releases: VecDeque::new(),
            out: BytesMut::new(),
        };
        for record in records {
            outgoing.fold(record);
        }
        outgoing
    }

    fn fold(&mut self, record: Record) {
        match record {
            Record::Next(number) => self.next = self.next.max(number),
            Record::Client(id) => self.client_id = Some(id),
            Record::Out { number, publish, expires } => {
                self.next = self.next.max(number + 1);
                if let Some(id) = envelope::id(&publish) {
                    self.seen.insert(id, number);
                }
                let bytes = publish.encoded_len(Version::V5);
                // It may have been sent. What is known of it already counts: a snapshot that a crash cut off says less.
                if let Entry::Vacant(place) = self.flights.entry(number) {
                    let stage = Stage::Sent;
                    place.insert(Flight { publish, expires, stage, mark: 0, bytes, tickets: Vec::new() });
                    self.bytes += bytes;
                }
            }
            Record::Received(number) => self.set_stage(number, Stage::Received),
            Record::Again(number) => self.set_stage(number, Stage::Queued),
            Record::Done(number) | Record::Refused(number) => {
                if let Some(flight) = self.flights.remove(&number) {
                    self.bytes -= flight.bytes;
                }
                if matches!(record, Record::Refused(_)) {
                    self.seen.remove(number);
                }
            }
            Record::Seen { number, id } => {
                if let Ok(id) = MessageId::text(id) {
                    self.seen.insert(id, number);
                }
            }
            // Of an inbox.
            _ => {}
        }
    }

    fn set_stage(&mut self, number: u64, stage: Stage) {
        if let Some(flight) = self.flights.get_mut(&number) {
            flight.stage = stage;
        }
    }

    /// The client id of an outbox: made once, so that no other outbox has the same.
    pub(super) fn client_id(&mut self, prefix: &str) -> String {
        if let Some(id) = &self.client_id {
            return id.clone();
        }
        let id = format!("{prefix}-outbox-{}", postroad_core::MessageId::generate());
        self.log.append(&Record::Client(id.clone()));
        self.client_id = Some(id.clone());
        id
    }

    /// How many messages are not done, and their bytes.
    pub(super) fn backlog(&self) -> (usize, usize) {
        (self.flights.len(), self.bytes)
    }

    /// The largest packet the server takes, as far as it said.
    pub(super) fn maximum_packet_size(&self) -> u32 {
        self.terms.map_or(u32::MAX, |terms| terms.maximum_packet_size)
    }

    /// Takes a message.
    pub(super) fn publish(
        &mut self,
        mut publish: Publish,
        expires: Option<Timestamp>,
        ticket: TicketResolver,
        now: Timestamp,
    ) {
        if publish.qos == Qos::AtMostOnce {
            let Some(terms) = self.terms else { return };
            match encode(&mut publish, expires, now, terms, self.plain, &mut self.out) {
                Ok(()) => ticket.confirm(None, false),
                Err(why) => ticket.refuse(why),
            }
            return;
        }
        let durable = self.log.is_durable();
        let id = envelope::id(&publish).filter(|_| durable);
        if let Some(known) = id.as_ref().and_then(|id| self.seen.numbers.get(id)) {
            match self.flights.get_mut(known) {
                Some(flight) => flight.tickets.push(ticket),
                None => ticket.confirm(None, false),
            }
            return;
        }
        let number = self.next;
        self.next += 1;
        if let Some(id) = id {
            self.seen.insert(id, number);
        }
        publish.packet_id = Some(packet_id(number));
        let bytes = publish.encoded_len(Version::V5);
        let record = Record::Out { number, publish, expires };
        let mark = self.log.append(&record);
        let Record::Out { publish, .. } = record else { return };
        let flight = Flight { publish, expires, stage: Stage::Queued, mark, bytes, tickets: vec![ticket] };
        self.bytes += bytes;
        self.flights.insert(number, flight);
        self.advance(now);
    }

    /// The server has accepted a connection.
    pub(super) fn connected(&mut self, terms: Terms, now: Timestamp) {
        self.terms = Some(terms);
        self.quota = terms.receive_maximum;
        self.cursor = 0;
        self.ids.clear();
        self.releases.clear();
        self.out.clear();
        for (number, flight) in &mut self.flights {
            if !terms.session_present && flight.stage != Stage::Queued {
                // It has lost the exchange, with the message or without: only sending it again loses nothing.
                flight.mark = self.log.append(&Record::Again(*number));
                flight.stage = Stage::Queued;
            }
            if flight.stage == Stage::Received {
                let id = packet_id(*number);
                self.ids.insert(id, *number);
                self.releases.push_back((flight.mark, Ack::new(id)));
                // It has had its PUBLISH, and no PUBCOMP. [MQTT-3.3.4-7]
                self.quota = self.quota.saturating_sub(1);
            }
        }
        self.advance(now);
    }

    /// The connection is gone. Without a log nothing goes on: tickets are answered with what is known.
    pub(super) fn lost(&mut self, why: &Error) {
        self.terms = None;
        self.releases.clear();
        self.ids.clear();
        self.out.clear();
        if !self.log.is_durable() {
            self.give_up(why);
        }
    }

    /// Nobody will send what is here, at least not in this process.
    pub(super) fn give_up(&mut self, why: &Error) {
        let durable = self.log.is_durable();
        let tickets: Vec<_> = self
            .flights
            .values_mut()
            .flat_map(|flight| std::mem::take(&mut flight.tickets).into_iter().map(|one| (flight.stage, one)))
            .collect();
        if !durable {
            self.flights.clear();
            self.bytes = 0;
        }
        for (stage, ticket) in tickets {
            match stage {
                Stage::Queued if !durable => ticket.refuse(why.clone()),
                _ => ticket.unknown(why.clone()),
            }
        }
    }

    /// A packet of the server. An error is one of the protocol: the connection must end.
    pub(super) fn packet(&mut self, packet: &Packet, now: Timestamp) -> Result<(), Error> {
        match packet {
            Packet::Puback(ack) => self.puback(ack)?,
            Packet::Pubrec(ack) => self.pubrec(ack),
            Packet::Pubcomp(ack) => self.pubcomp(ack),
            other => return Err(unexpected(other.packet_type())),
        }
        self.advance(now);
        Ok(())
    }

    fn find(&self, id: PacketId) -> Option<(u64, Qos, Stage)> {
        let number = *self.ids.get(&id)?;
        self.flights.get(&number).map(|flight| (number, flight.publish.qos, flight.stage))
    }

    fn puback(&mut self, ack: &Ack) -> Result<(), Error> {
        match self.find(ack.packet_id) {
            Some((number, Qos::AtLeastOnce, Stage::Sent)) => self.done(number, answer(ack)),
            // A server of 3.1.1 cannot say that it has no QoS 2. Some answer as if QoS 1 had been asked for.
            Some((_, Qos::ExactlyOnce, Stage::Sent)) => return Err(lower_qos(Qos::AtLeastOnce)),
            _ => {}
        }
        Ok(())
    }

    fn pubrec(&mut self, ack: &Ack) {
        match self.find(ack.packet_id) {
            Some((number, Qos::ExactlyOnce, Stage::Sent)) if ack.reason.is_error() => {
                self.done(number, answer(ack));
            }
            Some((number, Qos::ExactlyOnce, stage @ (Stage::Sent | Stage::Received))) => {
                let appended = (stage == Stage::Sent).then(|| self.log.append(&Record::Received(number)));
                let Some(flight) = self.flights.get_mut(&number) else { return };
                flight.stage = Stage::Received;
                flight.mark = appended.unwrap_or(flight.mark);
                self.releases.push_back((flight.mark, Ack::new(ack.packet_id)));
            }
            _ if ack.reason.is_error() => {}
            // Of an exchange that is over here.
            _ => {
                let ack = Ack::with_reason(ack.packet_id, ReasonCode::PacketIdentifierNotFound);
                self.releases.push_back((0, ack));
            }
        }
    }

    /// Also when the server does not know the id: then it heard PUBREL before, and the PUBCOMP got lost.
    fn pubcomp(&mut self, ack: &Ack) {
        if let Some((number, Qos::ExactlyOnce, Stage::Received)) = self.find(ack.packet_id) {
            self.done(number, Receipt::Confirmed { position: None, duplicate: false });
        }
    }

    fn done(&mut self, number: u64, receipt: Receipt) {
        self.ids.remove(&packet_id(number));
        let limit = self.terms.map_or(0, |terms| terms.receive_maximum);
        self.quota = self.quota.saturating_add(1).min(limit);
        let refused = matches!(receipt, Receipt::Refused(_));
        self.log.append(&if refused { Record::Refused(number) } else { Record::Done(number) });
        if refused {
            self.seen.remove(number);
        }
        let Some(flight) = self.flights.remove(&number) else { return };
        self.bytes -= flight.bytes;
        if let (Receipt::Refused(why), []) = (&receipt, flight.tickets.as_slice()) {
            tracing::warn!(number, %why, "the server refused a message of the outbox");
        }
        for ticket in flight.tickets {
            ticket.resolve(receipt.clone());
        }
    }

    /// Writes what the commits, the server and the window allow.
    pub(super) fn advance(&mut self, now: Timestamp) {
        let Some(terms) = self.terms else { return };
        let committed = self.log.committed();
        while let Some((mark, ack)) = self.releases.front() {
            if *mark > committed && !self.planted.release_before_record {
                break;
            }
            // An id and a reason that PUBREL may have: it is encoded.
            let _ = ack.encode(PacketType::Pubrel, terms.version, &mut self.out);
            self.releases.pop_front();
        }
        let mut refused = Vec::new();
        for (number, flight) in self.flights.range_mut(self.cursor..) {
            if flight.stage == Stage::Received {
                self.cursor = number + 1;
                continue;
            }
            let id = packet_id(*number);
            let early = flight.mark > committed && !self.planted.send_before_record;
            if self.quota == 0 || early || self.ids.contains_key(&id) {
                break;
            }
            self.cursor = number + 1;
            // [MQTT-3.3.1-1]
            flight.publish.dup = flight.stage == Stage::Sent;
            let (publish, expires) = (&mut flight.publish, flight.expires);
            if let Err(why) = encode(publish, expires, now, terms, self.plain, &mut self.out) {
                refused.push((*number, why));
                continue;
            }
            flight.stage = Stage::Sent;
            self.ids.insert(id, *number);
            self.quota -= 1;
        }
        for (number, why) in refused {
            // It has not used the window.
            let quota = self.quota;
            self.done(number, Receipt::Refused(why));
            self.quota = quota;
        }
        if self.log.wants_snapshot() {
            let open = self.open_records();
            self.log.snapshot(open);
        }
    }

    /// Everything that a later life must know.
    fn open_records(&self) -> Vec<Record> {
        let mut records = vec![Record::Next(self.next)];
        records.extend(self.client_id.clone().map(Record::Client));
        for id in &self.seen.order {
            if let Some(number) = self.seen.numbers.get(id) {
                records.push(Record::Seen { number: *number, id: id.to_string() });
            }
        }
        for (number, flight) in &self.flights {
            let publish = flight.publish.clone();
            records.push(Record::Out { number: *number, publish, expires: flight.expires });
            match flight.stage {
                Stage::Received => records.push(Record::Received(*number)),
                Stage::Queued | Stage::Sent => {}
            }
        }
        records
    }
}

/// As it stands on the wire of this version.
fn encode(
    publish: &mut Publish,
    expires: Option<Timestamp>,
    now: Timestamp,
    terms: Terms,
    plain: bool,
    out: &mut BytesMut,
) -> Result<(), Error> {
    let wrapped;
    let publish = if terms.version.is_v5() {
        envelope::set_expiry(publish, expires, now);
        &*publish
    } else {
        wrapped = wrap(publish, expires, plain)?;
        &wrapped
    };
    if publish.encoded_len(terms.version) as u64 > u64::from(terms.maximum_packet_size) {
        return Err(Error::new(ErrorKind::TooLarge, NAME, "larger than the largest packet of the server"));
    }
    let encoded = publish.encode(terms.version, out);
    encoded.map_err(|why| Error::new(ErrorKind::TooLarge, NAME, why.to_string()))
}

/// What PUBACK or a failing PUBREC says.
fn answer(ack: &Ack) -> Receipt {
    if ack.reason.is_error() {
        let text = ack.properties.as_ref().and_then(|properties| properties.reason_string.as_ref());
        return Receipt::Refused(refusal(ack.reason, text.map(Utf8::as_str)));
    }
    Receipt::Confirmed { position: None, duplicate: false }
}

fn unexpected(kind: PacketType) -> Error {
    lost(format!("the server sent a {kind:?} that has no place here"))
}
