//! What other doors than MQTT's need of the broker: connections without a transport, and messages that are kept until
//! their publisher releases them.
//!
//! An inner connection is a client like others, with a session whose id begins with [`RESERVED`]; what the broker has
//! for it is in its outbox, as for others. So windows, packet ids and durability are those of MQTT sessions.

use super::conn::Conn;
use super::graves::IN_MEMORY as IN_MEMORY_LETTERS;
use super::message::{Held, Message, Origin, Told};
use super::outgoing::{Entry, SubscriptionIds};
use super::session::{NEVER, Options, Session};
use super::{Broker, ConnId, ListenerConfig, Peer, Refused};
use crate::access::{Attempt, Denied, Identity};
use crate::codec::{Connect, Packet, PacketId, PublishProperties, Qos, ReasonCode, Utf8, Version};
use bytes::Bytes;
use postroad_core::mailbox::Millis;
use postroad_engine::log::{LogError, Mark, Ticket};
use std::collections::HashMap;
use std::num::NonZeroU16;
use std::sync::Arc;

/// Client ids that no MQTT client gets.
pub(crate) const RESERVED: &str = "$lines/";

/// From here on, names of messages that only memory has.
const IN_MEMORY: u64 = 1 << 52;

/// A message from another door.
#[derive(Clone, Debug)]
pub(crate) struct DoorMessage {
    pub(crate) topic: Utf8,
    pub(crate) payload: Bytes,
    pub(crate) properties: PublishProperties,
}

impl DoorMessage {
    fn at(self, now: Millis) -> Message {
        Message {
            topic: self.topic,
            payload: self.payload,
            qos: Qos::ExactlyOnce,
            retain: false,
            time: now,
            expires: None,
            properties: Some(Box::new(self.properties)),
        }
    }
}

/// What a release found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Let {
    /// It is published when this is committed.
    Go(Ticket),
    /// It was held once, and is not any more.
    Before,
    /// Nothing was ever held under this number.
    Never,
    /// The log cannot be read now; it is still held.
    Unreadable,
}

impl Broker {
    /// To be called before a turn that may append.
    pub(crate) fn door_begin(&mut self, now: Millis) {
        self.maybe_snapshot(now);
    }

    /// When all that was appended is committed; something waits for it.
    pub(crate) fn door_ticket(&mut self) -> Ticket {
        self.overdue = true;
        self.book.appended.committed
    }

    /// Why messages cannot be taken now, if so.
    pub(crate) fn door_admit(&self) -> Result<(), LogError> {
        self.book.store.admit()
    }

    /// Who a client of another door is: nothing but its address and its certificate speak for it.
    pub(crate) fn door_identity(
        &self,
        client: &str,
        listener: &ListenerConfig,
        peer: &Peer,
    ) -> Result<Identity, Denied> {
        self.access.authenticate(&Attempt {
            client_id: client,
            user_name: None,
            password: None,
            certificate: peer.certificate.as_deref(),
            address: peer.address,
            allow_anonymous: listener.allow_anonymous,
        })
    }

    pub(crate) fn door_may_publish(&self, who: &Identity, client: &str, topic: &str) -> bool {
        self.access.may_publish(who, client, topic, false)
    }

    /// Opens an inner connection with a session that outlives it and takes one message at a time.
    pub(crate) fn door_attach(
        &mut self,
        client: &Utf8,
        listener: &Arc<ListenerConfig>,
        peer: &Peer,
        now: Millis,
    ) -> Result<ConnId, Refused> {
        // The door has counted its own connections: this one is a part of one of them.
        let id = self.connect(listener, peer.clone(), now)?;
        if let Some(conn) = self.conn_mut(id) {
            conn.inner = true;
        }
        let mut connect = Connect::new(Version::V5, client.clone());
        connect.clean_start = false;
        connect.keep_alive = 0;
        connect.properties.session_expiry_interval = Some(NEVER);
        connect.properties.receive_maximum = NonZeroU16::new(1);
        self.door_packet(id, Packet::Connect(Box::new(connect)), now);
        if self.conn(id).is_some_and(|conn| conn.session().is_some()) {
            return Ok(id);
        }
        self.lost(id, now);
        Err(Refused)
    }

    /// Ends the session of an inner connection, and the connection.
    pub(crate) fn door_end(&mut self, id: ConnId, now: Millis) {
        if let Some(index) = self.conn(id).and_then(Conn::session) {
            self.lost(id, now);
            self.end_session(index, now);
        }
    }

    /// The client of an inner connection sends a packet.
    pub(crate) fn door_packet(&mut self, id: ConnId, packet: Packet, now: Millis) {
        self.packet(id, packet, now);
        self.log_batch(now);
    }

    /// The end of a QoS 2 message, recorded at once: says when.
    pub(crate) fn door_complete(&mut self, id: ConnId, packet: PacketId, now: Millis) -> Ticket {
        self.door_packet(id, Packet::Pubcomp(crate::codec::Ack::new(packet)), now);
        self.log_over(now);
        self.door_ticket()
    }

    /// Subscribes the session of an inner connection to one topic, at QoS 2 whatever comes, without retained messages.
    /// True: it is new.
    pub(crate) fn door_subscribe(
        &mut self,
        id: ConnId,
        topic: &Utf8,
        now: Millis,
    ) -> Result<bool, ReasonCode> {
        let index = self.conn(id).and_then(Conn::session).ok_or(ReasonCode::ServerUnavailable)?;
        match self.subscription_refusal(id, index, topic) {
            Some(reason) => Err(reason),
            None => Ok(!self.door_mark(index, topic, true, now)),
        }
    }

    /// The client wants nothing of its subscription for now; messages still queue. A later subscription ends it.
    pub(crate) fn door_pause(&mut self, client: &Utf8, topic: &Utf8, now: Millis) {
        if let Some(index) = self.state.by_client.get(client).copied() {
            self.door_mark(index, topic, false, now);
        }
    }

    /// `no_local` is the mark of a pause: nothing is published from such a session, so it has no other effect.
    fn door_mark(&mut self, index: usize, topic: &Utf8, active: bool, now: Millis) -> bool {
        let options = Options {
            qos: Qos::ExactlyOnce,
            no_local: !active,
            retain_as_published: false,
            id: None,
            exactly_once: true,
        };
        let same = self.state.sessions.get(index).and_then(|session| session.subscriptions.get(topic))
            == Some(&options);
        if same {
            return true;
        }
        let existed = self.state.subscribe(index, topic, options);
        if let Some(session) = self.state.sessions.get_mut(index) {
            let number = session.number;
            let ticket = self.book.append(now, |pen, log| pen.subscribe(log, number, topic, options));
            session.ticket = Mark::committed(ticket);
            self.overdue = true;
        }
        existed
    }

    /// Whether a session subscribes to a topic, and is not paused; `None`: there is no such session or subscription.
    pub(crate) fn door_active(&self, client: &str, topic: &str) -> Option<bool> {
        let index = self.state.by_client.get(client)?;
        let options = self.state.sessions.get(*index)?.subscriptions.get(topic)?;
        Some(!options.no_local)
    }

    /// The client ids of sessions that belong to doors.
    pub(crate) fn door_clients(&self) -> impl Iterator<Item = &Utf8> {
        self.state.by_client.keys().filter(|client| client.starts_with(RESERVED))
    }

    /// A name for the message that is in flight under a packet id: the same as long as it is, also in later lives, and
    /// of no other message of this broker.
    pub(crate) fn door_name(&self, id: ConnId, packet: PacketId) -> Option<u64> {
        let session = self.state.sessions.get(self.conn(id)?.session()?)?;
        let queue = session.outgoing()?;
        let number = queue.number(packet);
        match queue.get(number)?.seq {
            0 => Some(IN_MEMORY + (session.number << 24) + (number & 0xff_ffff)),
            seq => Some(seq),
        }
    }

    /// A message in flight becomes a dead letter, and the next one may follow.
    pub(crate) fn door_bury(
        &mut self,
        id: ConnId,
        packet: PacketId,
        reason: &'static str,
        attempts: u32,
        now: Millis,
    ) {
        let Some(index) = self.conn(id).and_then(Conn::session) else { return };
        let queue = self.state.sessions.get(index).and_then(Session::outgoing);
        let Some(number) = queue.map(|queue| queue.number(packet)) else { return };
        let queue = self.state.sessions.get_mut(index).and_then(Session::outgoing_mut);
        if let Some(entry) = queue.and_then(|queue| queue.get_mut(number)) {
            entry.sends.count = attempts;
        }
        self.finish(index, number, Some(reason), now);
        self.pump(index, now);
    }

    /// The inner session of this id that never has a connection, made if there is none.
    pub(crate) fn door_store(&mut self, client: &Utf8, now: Millis) -> usize {
        if let Some(index) = self.state.by_client.get(client) {
            return *index;
        }
        let index = self.state.begin(client.clone(), true, NEVER);
        if let Some(session) = self.state.sessions.get_mut(index) {
            session.in_log = true;
            session.away = Some(now);
            let ticket = self.book.append(now, |pen, log| {
                pen.here(log, session);
                pen.away(log, session, now);
            });
            session.ticket = Mark::committed(ticket);
        }
        index
    }

    /// Subscribes such a session.
    pub(crate) fn door_store_subscribe(&mut self, client: &Utf8, topic: &Utf8, now: Millis) {
        let index = self.door_store(client, now);
        self.door_mark(index, topic, true, now);
    }

    /// How many messages such a session has.
    pub(crate) fn door_stored(&self, client: &str) -> usize {
        let index = self.state.by_client.get(client);
        index
            .and_then(|index| self.state.sessions.get(*index)?.outgoing())
            .map_or(0, super::outgoing::Outgoing::len)
    }

    /// Forgets the oldest messages of such a session beyond `max`.
    pub(crate) fn door_store_limit(&mut self, client: &str, max: usize, now: Millis) {
        while self.door_stored(client) > max {
            let Some(index) = self.state.by_client.get(client).copied() else { return };
            let oldest =
                self.state.sessions.get(index).and_then(|s| s.outgoing()?.iter().next().map(|(n, _)| n));
            let Some(number) = oldest else { return };
            self.finish(index, number, None, now);
        }
    }

    /// Gives the session of an inner connection what such a session has kept.
    pub(crate) fn door_give(&mut self, from: &str, to: ConnId, now: Millis) {
        let Some(from) = self.state.by_client.get(from).and_then(|index| self.state.sessions.get(*index))
        else {
            return;
        };
        let kept =
            from.outgoing().map(|queue| queue.iter().map(|(_, entry)| entry.seq).filter(|seq| *seq != 0));
        let seqs: Vec<u64> = kept.into_iter().flatten().collect();
        let mut found: Vec<(u64, Arc<Message>)> = Vec::new();
        if let Err(error) = self.book.read(&seqs, |seq, message| found.push((seq, Arc::new(message)))) {
            tracing::error!(%error, "what was kept could not be read from the log");
        }
        let Some(index) = self.conn(to).and_then(Conn::session) else { return };
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        let ids = SubscriptionIds::new();
        let number = session.number;
        let mut given = Vec::new();
        for (seq, message) in found {
            let mut entry = Entry::new(seq, Some(message), Qos::ExactlyOnce, false, ids.clone());
            entry.logged = true;
            let at = session.queue().push(entry);
            session.logged_next = at + 1;
            session.queue().offer(at);
            given.push((at, seq));
        }
        self.book.append(now, |pen, log| {
            for (at, seq) in &given {
                pen.given(log, number, *at, *seq, Qos::ExactlyOnce, false, &ids);
            }
        });
        self.pump(index, now);
    }

    /// Publishes a message of the door itself.
    pub(crate) fn door_publish(&mut self, message: DoorMessage, now: Millis) -> Ticket {
        self.distribute(message.at(now), None, Origin::default(), now)
    }

    /// Publishes what the door makes of a dead letter: this record stores it.
    pub(crate) fn door_store_letter(&mut self, letter: u64, message: DoorMessage, now: Millis) -> Ticket {
        self.state.graves.remove(letter);
        let told = (letter < IN_MEMORY_LETTERS).then_some(Told::Stored(letter));
        self.distribute(message.at(now), None, Origin { letter: told, ..Origin::default() }, now)
    }

    /// Keeps a message until it is released; says under which number, and when that is committed.
    pub(crate) fn door_hold(&mut self, holder: &Utf8, message: DoorMessage, now: Millis) -> (u64, Ticket) {
        let index = self.door_store(holder, now);
        let Some(session) = self.state.sessions.get_mut(index) else { return (0, Ticket(u64::MAX)) };
        let origin = Origin { session: Some(session.number), held: Some(Held::Kept), ..Origin::default() };
        let (seq, ticket) = self.book.publish(now, &message.at(now), &origin, |_, _| {});
        let number = session.next();
        session.hold(seq);
        self.overdue = true;
        (number, ticket)
    }

    /// Publishes a message that was held and is committed.
    pub(crate) fn door_release(&mut self, holder: &str, number: u64, now: Millis) -> Let {
        let Some(session) =
            self.state.by_client.get(holder).and_then(|index| self.state.sessions.get(*index))
        else {
            return Let::Never;
        };
        if number == 0 || number >= session.next() {
            return Let::Never;
        }
        let holder = session.number;
        let Some(seq) = session.outgoing().and_then(|queue| queue.get(number)).map(|entry| entry.seq) else {
            return Let::Before;
        };
        let mut found = None;
        if self.book.read(&[seq], |_, message| found = Some(message)).is_err() {
            return Let::Unreadable;
        }
        let Some(mut message) = found else { return Let::Unreadable };
        message.time = now;
        if let Some(queue) =
            self.state.session(holder).and_then(|index| self.state.sessions.get_mut(index)?.outgoing_mut())
        {
            queue.finish(number, now);
        }
        let origin =
            Origin { session: Some(holder), held: Some(Held::Released(number)), ..Origin::default() };
        Let::Go(self.distribute(message, None, origin, now))
    }

    /// The defect that [`Broker::door_release`] avoids: a crash between the two records publishes it again.
    pub(crate) fn door_release_in_two(&mut self, holder: &str, number: u64, now: Millis) -> Let {
        let Some(index) = self.state.by_client.get(holder).copied() else { return Let::Never };
        let entry =
            self.state.sessions.get(index).and_then(|session| session.outgoing()?.get(number).cloned());
        let mut found = None;
        let _ = self.book.read(&[entry.map_or(0, |entry| entry.seq)], |_, message| found = Some(message));
        let Some(message) = found else { return Let::Before };
        let ticket = self.distribute(message, None, Origin::default(), now);
        self.finish(index, number, None, now);
        Let::Go(ticket)
    }

    /// The messages that were held when the broker opened: their numbers, and since when.
    pub(crate) fn door_held(&mut self, holder: &str) -> Result<Vec<(u64, Millis)>, LogError> {
        let session = self.state.by_client.get(holder).and_then(|index| self.state.sessions.get(*index));
        let Some(queue) = session.and_then(Session::outgoing) else { return Ok(Vec::new()) };
        let numbers: HashMap<u64, u64> = queue.iter().map(|(number, entry)| (entry.seq, number)).collect();
        let seqs: Vec<u64> = queue.iter().map(|(_, entry)| entry.seq).collect();
        let mut held = Vec::new();
        self.book.read(&seqs, |seq, message| {
            held.extend(numbers.get(&seq).map(|number| (*number, message.time)));
        })?;
        Ok(held)
    }

    /// A message was not released in time: it becomes a dead letter.
    pub(crate) fn door_expire(&mut self, holder: &str, number: u64, reason: &'static str, now: Millis) {
        if let Some(index) = self.state.by_client.get(holder).copied() {
            self.finish(index, number, Some(reason), now);
        }
    }

    /// Segments of the log.
    #[cfg(test)]
    pub(crate) fn door_segments(&self) -> u64 {
        self.book.log().stats().segments as u64
    }
}
