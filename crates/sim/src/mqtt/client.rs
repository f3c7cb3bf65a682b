//! A client: its half of the protocol, done right, and an application that only counts.

use super::cast::{Ask, Door, EVER, EXPIRING, FILTERS, MEMORY, REFUSED, RETAINED, Role, TOPICS, WILLS, WORK};
use super::facts::{Fact, Id, Seen, Sent, Tag, Who};
use super::guest::{Guest, Tap};
use super::tap::PacketTap;
use crate::history::Conn;
use bytes::{Bytes, BytesMut};
use postroad_mqtt::codec::{
    Ack, Connack, Connect, Decoder, Disconnect, Limits, Packet, PacketId, Publish, PublishProperties, Qos,
    ReasonCode, RetainHandling, Subscribe, SubscribeProperties, Subscription, SubscriptionId, Unsubscribe,
    Utf8, Version, Will, WillProperties,
};
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU16;

/// A message of its own that is not settled.
#[derive(Clone, Copy, Debug)]
struct Flight {
    id: Id,
    tag: Tag,
    // PUBREC came: PUBREL is what is sent again.
    released: bool,
}

/// A message of QoS 2 that it has.
#[derive(Clone, Copy, Debug)]
struct Got {
    tag: Tag,
    // PUBREL may never come: only the memory of the broker had it.
    volatile: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Off,
    Asking(Id),
    On,
    Ending(Id),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Offline,
    Connecting,
    Online,
}

/// See the module.
pub(super) struct Client {
    pub(super) role: Role,
    who: Who,
    stage: Stage,
    decoder: Decoder,
    bytes: BytesMut,
    // It remembers no session: it asks for a new one.
    fresh: bool,
    // In the order of their first sending. [MQTT-4.6.0-1]
    flights: VecDeque<Flight>,
    // Messages of QoS 2 that it has, and has not been sent PUBREL for.
    inbox: BTreeMap<Id, Got>,
    // What it owes the broker, in order. [MQTT-4.6.0-2] to [MQTT-4.6.0-4]
    owed: VecDeque<Packet>,
    wishes: Vec<Wish>,
    // What the broker takes at once.
    quota: usize,
    out: BytesMut,
    // DISCONNECT was written.
    leaving: bool,
    connected_once: bool,
    // CONNECT was sent, and no CONNACK came.
    unanswered: bool,
}

impl Client {
    pub(super) fn new(who: Who, role: Role) -> Self {
        Self {
            who,
            stage: Stage::Offline,
            decoder: Decoder::client(role.version, Limits::default()),
            bytes: BytesMut::new(),
            fresh: true,
            flights: VecDeque::new(),
            inbox: BTreeMap::new(),
            owed: VecDeque::new(),
            wishes: vec![Wish::Off; role.filters.len()],
            quota: usize::MAX,
            out: BytesMut::new(),
            leaving: false,
            connected_once: false,
            unanswered: false,
            role,
        }
    }

    fn forget(&mut self) {
        self.flights.clear();
        self.inbox.clear();
        self.wishes.fill(Wish::Off);
    }

    fn put(&mut self, packet: &Packet) {
        if let Err(error) = packet.encode(self.role.version, &mut self.out) {
            unreachable!("{packet:?} cannot be sent: {error}");
        }
    }

    fn packet(&mut self, packet: Packet, seen: &mut Seen) -> bool {
        match packet {
            Packet::Connack(connack) => return self.greeted(&connack, seen),
            Packet::Publish(publish) => self.delivered(&publish, seen),
            Packet::Puback(ack) => self.settled(ack.packet_id, 1, seen),
            Packet::Pubrec(ack) if ack.reason.is_error() => self.settled(ack.packet_id, 0, seen),
            Packet::Pubrec(ack) => {
                let flight = self.flights.iter_mut().find(|flight| flight.id == ack.packet_id.get());
                match flight {
                    Some(flight) => {
                        flight.released = true;
                        self.owed.push_back(Packet::Pubrel(Ack::new(ack.packet_id)));
                    }
                    None => seen.note(Fact::Wrong(format!("PUBREC {} of nothing", ack.packet_id))),
                }
            }
            Packet::Pubrel(ack) => {
                self.inbox.remove(&ack.packet_id.get());
                self.owed.push_back(Packet::Pubcomp(Ack::new(ack.packet_id)));
            }
            Packet::Pubcomp(ack) => self.settled(ack.packet_id, 2, seen),
            Packet::Suback(suback) => self.answered(Wish::Asking(suback.packet_id.get()), Wish::On),
            Packet::Unsuback(unsuback) => self.answered(Wish::Ending(unsuback.packet_id.get()), Wish::Off),
            Packet::Disconnect(_) => return false,
            _ => {}
        }
        true
    }

    fn greeted(&mut self, connack: &Connack, seen: &mut Seen) -> bool {
        if connack.reason != ReasonCode::Success {
            return false;
        }
        self.stage = Stage::Online;
        self.unanswered = false;
        self.fresh = false;
        self.quota = connack.properties.receive_maximum.map_or(usize::MAX, |max| usize::from(max.get()));
        if !connack.session_present {
            self.forget();
        }
        // [MQTT-4.4.0-1]
        for flight in self.flights.clone() {
            if flight.released {
                self.owed.push_back(Packet::Pubrel(Ack::new(packet_id(flight.id))));
            } else {
                let publish = self.publish_of(flight, true, seen);
                self.owed.push_back(Packet::Publish(publish));
            }
        }
        true
    }

    fn answered(&mut self, from: Wish, to: Wish) {
        for wish in self.wishes.iter_mut().filter(|wish| **wish == from) {
            *wish = to;
        }
    }

    fn delivered(&mut self, publish: &Publish, seen: &mut Seen) {
        // Who wants the flag as it was published gets nothing because it is retained.
        let retain = publish.retain && !self.role.filters.iter().any(|ask| ask.as_published);
        let tag = seen.tag_of(&publish.payload).ok().flatten();
        let app = tag.map(|tag| Fact::App { who: self.who, tag, retain });
        let Some(id) = publish.packet_id else {
            if let Some(app) = app {
                seen.note(app);
            }
            return;
        };
        if self.refuses(tag, seen) && !self.inbox.contains_key(&id.get()) {
            let ack = Ack::with_reason(id, ReasonCode::ImplementationSpecificError);
            let packet =
                if publish.qos == Qos::AtLeastOnce { Packet::Puback(ack) } else { Packet::Pubrec(ack) };
            return self.owed.push_back(packet);
        }
        if publish.qos == Qos::AtLeastOnce {
            if let Some(app) = app {
                seen.note(app);
            }
            self.owed.push_back(Packet::Puback(Ack::new(id)));
            return;
        }
        let tag = tag.unwrap_or(Tag::MAX);
        let volatile = seen.sent.get(tag as usize).is_some_and(|sent| sent.topic == MEMORY);
        match self.inbox.insert(id.get(), Got { tag, volatile }).map(|got| got.tag) {
            // [MQTT-4.3.3-10]
            Some(other) if other == tag => {}
            Some(other) => {
                seen.note(Fact::Wrong(format!("id {id} is of message {other}, and came with {tag}")));
            }
            None => app.into_iter().for_each(|app| seen.note(app)),
        }
        self.owed.push_back(Packet::Pubrec(Ack::new(id)));
    }

    /// PUBACK, PUBCOMP, or a PUBREC that refuses (`how` is 1, 2, 0).
    fn settled(&mut self, id: PacketId, how: u8, seen: &mut Seen) {
        let Some(at) = self.flights.iter().position(|flight| flight.id == id.get()) else {
            // A PUBREL that was sent again is answered again.
            if how != 2 {
                seen.note(Fact::Wrong(format!("an answer for {id} without a question")));
            }
            return;
        };
        if let Some(flight) = self.flights.remove(at) {
            if how == 2 && !flight.released {
                seen.note(Fact::Wrong(format!("PUBCOMP {id} before PUBREC")));
            }
            seen.exchanges.0 += u64::from(how == 2);
        }
    }

    fn publish_of(&self, flight: Flight, dup: bool, seen: &Seen) -> Publish {
        let sent = &seen.sent[flight.tag as usize];
        let mut publish = Publish::new(text(TOPICS[usize::from(sent.topic)]), seen.payload(flight.tag));
        publish.qos = Qos::from_u8(sent.qos).unwrap_or_default();
        publish.packet_id = PacketId::new(flight.id);
        publish.retain = sent.retain;
        publish.dup = dup;
        if sent.empty || sent.expires.is_some() {
            let correlation_data = sent.empty.then(|| Bytes::copy_from_slice(&flight.tag.to_be_bytes()));
            publish.properties = Some(Box::new(PublishProperties {
                correlation_data,
                message_expiry_interval: sent.expires,
                ..PublishProperties::default()
            }));
        }
        publish
    }

    /// A message to be published when its connection breaks.
    fn new_will(&self, delay: u32, seen: &mut Seen) -> Will {
        let tag = seen.sent.len() as Tag;
        seen.sent.push(Sent { by: self.who, topic: WILLS, qos: 2, ..Sent::default() });
        Will {
            topic: text(TOPICS[usize::from(WILLS)]),
            payload: seen.payload(tag).into(),
            qos: Qos::ExactlyOnce,
            retain: false,
            properties: Some(Box::new(WillProperties {
                will_delay_interval: (delay > 0).then_some(delay),
                ..WillProperties::default()
            })),
        }
    }

    /// Whether it wants nothing of a message.
    fn refuses(&self, tag: Option<Tag>, seen: &Seen) -> bool {
        let topic = tag.and_then(|tag| seen.sent.get(tag as usize)).map(|sent| sent.topic);
        let tag = tag.unwrap_or(0);
        self.role.refuses
            && match topic {
                Some(REFUSED) => tag.is_multiple_of(4),
                // One of the workers is more particular than the other.
                Some(WORK) => tag.is_multiple_of(7) || self.who.is_multiple_of(2) && tag.is_multiple_of(3),
                _ => false,
            }
    }

    /// The lowest id that is free: ids come again soon.
    fn free_id(&self) -> Id {
        let used = |id: Id| {
            self.flights.iter().any(|flight| flight.id == id)
                || self.wishes.iter().any(|wish| *wish == Wish::Asking(id) || *wish == Wish::Ending(id))
        };
        (1..=Id::MAX).find(|id| !used(*id)).unwrap_or(Id::MAX)
    }

    /// Sends what it owes, `max` packets of it.
    fn pay(&mut self, max: usize, seen: &mut Seen) -> u32 {
        let count = max.min(self.owed.len());
        for packet in self.owed.drain(..count).collect::<Vec<_>>() {
            seen.exchanges.1 += u64::from(matches!(packet, Packet::Pubcomp(_)));
            self.put(&packet);
        }
        count as u32
    }

    fn publish(&mut self, bits: u32, seen: &mut Seen) {
        let qos = [2, 2, 2, 2, 2, 1, 1, 0][bits as usize % 8];
        if qos > 0 && self.flights.len() >= self.role.in_flight.min(self.quota) {
            return;
        }
        let topic = ((bits >> 3) % u32::from(WILLS)) as u8;
        let retain = RETAINED.contains(&topic) && bits >> 8 & 1 == 0;
        // Only 5.0 can say which message it is that says nothing.
        let empty = retain && self.role.version == Version::V5 && (bits >> 9).is_multiple_of(4);
        let size =
            if (bits >> 11).is_multiple_of(8) { 300 + bits as usize % 900 } else { bits as usize % 40 };
        let tag = seen.sent.len() as Tag;
        let expires = (topic == EXPIRING && self.role.version == Version::V5).then(|| 1 + (bits >> 14) % 3);
        seen.sent.push(Sent { by: self.who, topic, qos, retain, empty, size, expires, line: false });
        let id = if qos == 0 { 0 } else { self.free_id() };
        let flight = Flight { id, tag, released: false };
        let publish = self.publish_of(flight, false, seen);
        // Not before what is owed: PUBREL and PUBLISH that are sent again come first.
        self.owed.push_back(Packet::Publish(publish));
        if qos > 0 {
            self.flights.push_back(flight);
        }
        self.pay(usize::MAX, seen);
    }

    /// Subscribes, or not any more.
    fn wish(&mut self, bits: u32) -> u32 {
        if self.wishes.is_empty() {
            return 0;
        }
        let id = self.free_id();
        let off = self.wishes.iter().position(|wish| *wish == Wish::Off);
        let at = match off {
            Some(off) if self.role.faithful || bits.is_multiple_of(2) => off,
            _ => (bits >> 1) as usize % self.wishes.len(),
        };
        let ask = self.role.filters[at];
        let filter = text(FILTERS[usize::from(ask.filter)]);
        let packet_id = packet_id(id);
        match self.wishes[at] {
            Wish::Off => {
                self.put(&Packet::Subscribe(subscribe(ask, packet_id)));
                self.wishes[at] = Wish::Asking(id);
                1
            }
            Wish::On if !self.role.faithful => {
                self.put(&Packet::Unsubscribe(Unsubscribe {
                    packet_id,
                    filters: vec![filter],
                    properties: None,
                }));
                self.wishes[at] = Wish::Ending(id);
                1
            }
            Wish::On if self.role.again => {
                self.put(&Packet::Subscribe(subscribe(ask, packet_id)));
                self.wishes[at] = Wish::Asking(id);
                1
            }
            _ => 0,
        }
    }
}

impl Guest for Client {
    fn name(&self) -> &str {
        &self.role.name
    }

    fn door(&self) -> Door {
        Door::Mqtt
    }

    fn tap(&self, conn: Conn) -> Box<dyn Tap> {
        Box::new(PacketTap::new(conn, self.who, self.role.version))
    }

    /// A connection was made: CONNECT is the first thing that it sends.
    fn connected(&mut self, seen: &mut Seen) {
        if self.unanswered && self.role.lasting != EVER {
            // Its session may have expired, and the next one begun, without its knowledge: nothing says which it gets.
            self.forget();
            self.fresh = true;
        }
        self.stage = Stage::Connecting;
        self.unanswered = true;
        self.decoder = Decoder::client(self.role.version, Limits::default());
        self.bytes.clear();
        self.owed.clear();
        self.out.clear();
        self.leaving = false;
        let v5 = self.role.version == Version::V5;
        let mut connect = Connect::new(self.role.version, text(&self.role.name));
        connect.keep_alive = 0;
        connect.clean_start = self.role.lasting == 0
            || v5 && self.fresh && self.connected_once && (!self.role.keeps || self.role.lasting != EVER);
        if v5 {
            connect.properties.session_expiry_interval = (self.role.lasting > 0).then_some(self.role.lasting);
            connect.properties.receive_maximum =
                NonZeroU16::new(self.role.window).filter(|window| *window != NonZeroU16::MAX);
            connect.properties.topic_alias_maximum = Some(self.role.aliases);
        }
        if let Some(delay) = self.role.will {
            connect.will = Some(self.new_will(delay, seen));
        }
        self.connected_once = true;
        self.put(&Packet::Connect(Box::new(connect)));
    }

    /// The connection is gone: what it owed is not owed on the next one.
    fn disconnected(&mut self) {
        self.stage = Stage::Offline;
        self.owed.clear();
        self.out.clear();
        for wish in &mut self.wishes {
            *wish = match *wish {
                Wish::Asking(_) => Wish::Off,
                // It may be that it has ended. Then nothing comes, as it wished.
                Wish::Ending(_) => Wish::On,
                other => other,
            };
        }
    }

    /// Its process dies.
    fn kill(&mut self) {
        if !self.role.keeps {
            self.forget();
            self.fresh = true;
        }
    }

    /// What it has written since the last call.
    fn written(&mut self) -> BytesMut {
        self.out.split()
    }

    /// Bytes came. False: it closes the connection.
    fn receive(&mut self, bytes: &[u8], seen: &mut Seen) -> bool {
        self.bytes.extend_from_slice(bytes);
        loop {
            match self.decoder.decode(&mut self.bytes) {
                Ok(Some(packet)) => {
                    if !self.packet(packet, seen) {
                        return false;
                    }
                }
                Ok(None) => return !self.leaving,
                // The tap has said so.
                Err(_) => return false,
            }
        }
    }

    /// Its turn; `how` chooses. Gives how many commands it sent.
    fn act(&mut self, how: u32, seen: &mut Seen) -> u32 {
        if self.stage != Stage::Online || self.leaving {
            return 0;
        }
        if !self.owed.is_empty() && !how.is_multiple_of(8) {
            return self.pay(if how % 16 < 10 { usize::MAX } else { 1 + (how as usize >> 4) % 3 }, seen);
        }
        let choice = (how >> 3) % 64;
        match choice {
            // What is owed comes first: an answer later than DISCONNECT would never go.
            0 if self.owed.is_empty() => {
                self.put(&Packet::Disconnect(Disconnect::new(ReasonCode::Success)));
                self.leaving = true;
                0
            }
            1 => {
                self.put(&Packet::Pingreq);
                0
            }
            2..16 => self.wish(how >> 9),
            _ if self.wishes.iter().zip(&self.role.filters).any(|(wish, _)| *wish == Wish::Off)
                && choice < 32 =>
            {
                self.wish(how >> 9)
            }
            _ if self.role.publishes => {
                let mut bits = how >> 9;
                let count = 1 + bits % 4;
                for _ in 0..count {
                    bits = bits.wrapping_mul(0x9e37_79b1).rotate_left(9);
                    self.publish(bits, seen);
                }
                count
            }
            _ => 0,
        }
    }

    /// As [`Guest::act`], in the calm at the end: nothing new is begun, what is owed is done.
    fn wind_down(&mut self, seen: &mut Seen) -> u32 {
        if self.stage == Stage::Online && !self.leaving { self.pay(usize::MAX, seen) } else { 0 }
    }

    /// Subscribes to all that it may: the auditor does nothing else.
    fn subscribe_to_all(&mut self) {
        if self.stage == Stage::Online {
            self.wish(0);
        }
    }

    /// It wants a connection.
    fn is_offline(&self) -> bool {
        self.stage == Stage::Offline
    }

    /// It owes nothing and waits for no answer.
    fn is_at_rest(&self) -> bool {
        let settled = |wish: &Wish| matches!(wish, Wish::On | Wish::Off);
        self.stage == Stage::Online
            && self.flights.is_empty()
            && self.inbox.values().all(|got| got.volatile)
            && self.owed.is_empty()
            && self.wishes.iter().all(settled)
    }
}

fn subscribe(ask: Ask, packet_id: PacketId) -> Subscribe {
    let filter = text(FILTERS[usize::from(ask.filter)]);
    let mut subscription = Subscription::new(filter, Qos::from_u8(ask.qos).unwrap_or_default());
    subscription.no_local = ask.no_local;
    subscription.retain_as_published = ask.as_published;
    subscription.retain_handling = match ask.handling {
        0 => RetainHandling::Send,
        1 => RetainHandling::SendIfNew,
        _ => RetainHandling::DoNotSend,
    };
    let properties = ask.has_id.then(|| {
        let subscription_id = SubscriptionId::new(u32::from(ask.filter) + 1);
        Box::new(SubscribeProperties { subscription_id, ..SubscribeProperties::default() })
    });
    Subscribe { packet_id, filters: vec![subscription], properties }
}

fn text(text: &str) -> Utf8 {
    Utf8::try_from(text).unwrap_or_default()
}

fn packet_id(id: Id) -> PacketId {
    PacketId::new(id).unwrap_or(PacketId::MIN)
}
