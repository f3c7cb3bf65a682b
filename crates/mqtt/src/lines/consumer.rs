//! The consumer's half: log-in, subscriptions, and one message at a time for each topic.
//!
//! | state of a flight | by | PUBREC | PUBCOMP | no answer |
//! |---|---|---|---|---|
//! | sent | PUB went out | recorded | error | PUB again; after the last the topic is parked |
//! | recorded | PUBREC came | error | error | nothing is owed before PUBREL |
//! | released | PUBREC is committed, PUBREL went out | error | the next message | PUBREL again; after the last a dead letter |

use super::config::DEAD_LETTERS;
use super::line::{LineId, Stage};
use super::publisher::check_topic;
use super::{Doors, letters, payload, text};
use crate::broker::ConnId;
use crate::broker::door::RESERVED;
use crate::codec::{Ack, Decoder, Limits, Packet, PacketId, Publish, Utf8, Version};
use bytes::BytesMut;
use postroad_core::mailbox::Millis;
use postroad_engine::log::Ticket;
use std::collections::BTreeMap;
use std::io::IoSlice;

/// Nobody is logged in yet.
#[derive(Debug, Default)]
pub(super) struct Login {
    prompts: u32,
}

/// A user that is logged in.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) name: String,
    /// Its topics; those that are parked or were left are not here.
    links: BTreeMap<Utf8, Link>,
    /// When the message was sent for which a topic was parked last.
    unanswered: Option<Millis>,
}

/// One topic of a user: an inner connection.
#[derive(Debug)]
struct Link {
    conn: ConnId,
    decoder: Decoder,
    flight: Option<Flight>,
    /// The message that was completed last.
    done: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leg {
    Sent,
    Recorded,
    Released,
}

/// The message that is on its way.
#[derive(Debug)]
struct Flight {
    packet: PacketId,
    name: u64,
    leg: Leg,
    /// What is sent again.
    text: String,
    sends: u32,
    since: Millis,
    due: Millis,
}

impl Consumer {
    /// It owes an answer for longer than it was given, and nothing came since: there is nobody.
    fn seems_dead(&self, heard: Millis) -> bool {
        let owes = |flight: &Flight| flight.sends > 1 && heard <= flight.since;
        let parked = self.unanswered.is_some_and(|since| heard <= since);
        parked || self.links.values().filter_map(|link| link.flight.as_ref()).any(owes)
    }
}

/// The client id of the session of a user for a topic.
fn client(name: &str, topic: &str) -> Utf8 {
    // Both were checked, and are far shorter than an MQTT string may be.
    Utf8::try_from(format!("{RESERVED}{name}/{topic}")).unwrap_or_default()
}

impl Doors {
    pub(super) fn prompt(&mut self, id: LineId, now: Millis) {
        let max = self.config.max_prompts;
        let Some(line) = self.line_mut(id) else { return };
        let Stage::Login(login) = &mut line.stage else { return };
        login.prompts += 1;
        if login.prompts > max {
            self.end(id, "Unknown login error", now);
        } else {
            self.say(id, Ticket(0), "Please login!");
        }
    }

    pub(super) fn log_in(&mut self, id: LineId, line: &[u8], now: Millis) {
        let Some(name) = text::login(line) else { return self.prompt(id, now) };
        if let Some(old) = self.users.get(&name).copied() {
            let dead = self.line(old).is_none_or(|line| match &line.stage {
                Stage::Consumer(consumer) => consumer.seems_dead(line.heard),
                _ => true,
            });
            if !dead {
                return self.end(id, "A connection for this username already exists", now);
            }
            self.end(old, "Another connection logged in with this username", now);
        }
        let Some(line) = self.line_mut(id) else { return };
        line.stage =
            Stage::Consumer(Consumer { name: name.clone(), links: BTreeMap::new(), unanswered: None });
        self.users.insert(name.clone(), id);
        self.say(id, Ticket(0), "Succesfully logged in!");
        for topic in self.topics(&name) {
            match self.broker.door_active(&client(&name, &topic), &topic) {
                Some(true) => {
                    if self.config.planted.place_lost
                        && let Some(conn) = self.attach(id, &name, &topic, now)
                    {
                        self.broker.door_end(conn, now);
                        self.detach(id, &topic, now);
                        if let Some(conn) = self.attach(id, &name, &topic, now) {
                            let _ = self.broker.door_subscribe(conn, &topic, now);
                        }
                        continue;
                    }
                    if self.attach(id, &name, &topic, now).is_none() {
                        return self.end(id, "too many connections", now);
                    }
                }
                Some(false) => {}
                // Its session has expired.
                None => {
                    self.clients.remove(&client(&name, &topic));
                }
            }
        }
    }

    /// The topics that a user has, or has left.
    fn topics(&self, name: &str) -> Vec<Utf8> {
        let prefix = client(name, "");
        let from = self.clients.range(prefix.clone()..);
        let own = from.map_while(|client| client.strip_prefix(prefix.as_str()));
        own.filter_map(|topic| Utf8::try_from(topic.to_owned()).ok()).collect()
    }

    /// Opens the inner connection of a topic. `None`: there are too many.
    fn attach(&mut self, id: LineId, name: &str, topic: &Utf8, now: Millis) -> Option<ConnId> {
        let (rules, peer) = self.rules(id)?;
        let conn = self.broker.door_attach(&client(name, topic), &rules, &peer, now).ok()?;
        let limits = Limits { max_packet_size: u32::MAX, ..Limits::default() };
        let decoder = Decoder::client(Version::V5, limits);
        if let Some(Stage::Consumer(consumer)) = self.line_mut(id).map(|line| &mut line.stage) {
            consumer.links.insert(topic.clone(), Link { conn, decoder, flight: None, done: 0 });
            self.inner.insert(conn, (id, topic.clone()));
        }
        Some(conn)
    }

    /// Closes the inner connection of a topic; the session keeps its place.
    fn detach(&mut self, id: LineId, topic: &str, now: Millis) -> Option<ConnId> {
        let Some(Stage::Consumer(consumer)) = self.line_mut(id).map(|line| &mut line.stage) else {
            return None;
        };
        let link = consumer.links.remove(topic)?;
        if let Some(flight) = &link.flight {
            self.timers.remove(&(flight.due, link.conn));
        }
        self.inner.remove(&link.conn);
        self.broker.lost(link.conn, now);
        Some(link.conn)
    }

    /// The user is not there any more.
    pub(super) fn leave(&mut self, id: LineId, now: Millis) {
        let Some(Stage::Consumer(consumer)) = self.line(id).map(|line| &line.stage) else { return };
        let name = consumer.name.clone();
        let topics: Vec<Utf8> = consumer.links.keys().cloned().collect();
        for topic in topics {
            self.detach(id, &topic, now);
        }
        if self.users.get(&name) == Some(&id) {
            self.users.remove(&name);
        }
    }

    fn consumer(&self, id: LineId) -> Option<&Consumer> {
        match &self.line(id)?.stage {
            Stage::Consumer(consumer) => Some(consumer),
            _ => None,
        }
    }

    fn link(&mut self, id: LineId, topic: &str) -> Option<&mut Link> {
        match &mut self.line_mut(id)?.stage {
            Stage::Consumer(consumer) => consumer.links.get_mut(topic),
            _ => None,
        }
    }

    /// SUB
    pub(super) fn sub(&mut self, id: LineId, topic: &str, now: Millis) {
        let topic = match check_topic(topic) {
            Ok(topic) => topic,
            Err(why) => return self.say_error(id, why),
        };
        let Some(consumer) = self.consumer(id) else { return };
        let name = consumer.name.clone();
        if consumer.links.contains_key(&topic) {
            // The record of the subscription may still wait, since an earlier connection of the user.
            let ticket = self.broker.door_ticket();
            return self.say(id, ticket, "OK");
        }
        let client = client(&name, &topic);
        if !self.clients.contains(&client) && self.topics(&name).len() >= self.config.max_topics {
            return self.say_error(id, "too many topics");
        }
        let Some(conn) = self.attach(id, &name, &topic, now) else {
            return self.say_error(id, "too many connections or sessions");
        };
        match self.broker.door_subscribe(conn, &topic, now) {
            Ok(new) => {
                self.clients.insert(client);
                if new && topic.as_str() == DEAD_LETTERS {
                    self.broker.door_give(letters::STORE, conn, now);
                }
                let ticket = self.broker.door_ticket();
                self.say(id, ticket, "OK");
            }
            Err(_) => {
                // A session without a subscription is of no use to anybody, and would never end.
                if !self.clients.contains(&client) {
                    self.broker.door_end(conn, now);
                }
                self.detach(id, &topic, now);
                self.say_error(id, "this subscription is not allowed");
            }
        }
    }

    /// UNSUB
    pub(super) fn unsub(&mut self, id: LineId, topic: &str, now: Millis) {
        let topic = match check_topic(topic) {
            Ok(topic) => topic,
            Err(why) => return self.say_error(id, why),
        };
        let Some(consumer) = self.consumer(id) else { return };
        let client = client(&consumer.name, &topic);
        // Without a link it may be parked: then a log-in must not bring it back.
        if self.clients.contains(&client) {
            self.broker.door_pause(&client, &topic, now);
        }
        self.detach(id, &topic, now);
        let ticket = self.broker.door_ticket();
        self.say(id, ticket, "OK");
    }

    /// PUBREC: the consumer has the message.
    pub(super) fn pubrec(&mut self, id: LineId, name: u64, topic: &str, now: Millis) {
        let (conn, packet, due) = match self.check_ack(id, name, topic) {
            Ok((conn, flight)) if flight.leg == Leg::Sent => (conn, flight.packet, flight.due),
            Ok(_) => return self.say_error(id, "PUBREC was received before"),
            Err(why) => return self.say_error(id, why),
        };
        self.timers.remove(&(due, conn));
        if let Some(flight) = self.link(id, topic).and_then(|link| link.flight.as_mut()) {
            flight.leg = Leg::Recorded;
            // It will not be sent again.
            flight.text = String::new();
        }
        self.broker.door_packet(conn, Packet::Pubrec(Ack::new(packet)), now);
        let ticket = self.broker.door_ticket();
        self.say(id, ticket, "OK");
    }

    /// PUBCOMP: the end of a message.
    pub(super) fn pubcomp(&mut self, id: LineId, name: u64, topic: &str, now: Millis) {
        let blind = self.config.planted.any_pubcomp;
        if blind
            && let Some(flight) = self.link(id, topic).and_then(|link| link.flight.as_mut())
            && flight.leg == Leg::Sent
        {
            let known = flight.name;
            self.pubrec(id, known, topic, now);
            self.settle(now);
        }
        let (conn, packet, due) = match self.check_ack(id, name, topic) {
            Ok((conn, flight)) if flight.leg == Leg::Released || blind => (conn, flight.packet, flight.due),
            Ok(_) => return self.say_error(id, "PUBCOMP before PUBREL"),
            Err(why) => return self.say_error(id, why),
        };
        self.timers.remove(&(due, conn));
        if let Some(link) = self.link(id, topic) {
            link.flight = None;
            link.done = name;
        }
        let ticket = self.broker.door_complete(conn, packet, now);
        self.say(id, ticket, "OK");
    }

    /// What an acknowledgement is about.
    fn check_ack(&mut self, id: LineId, name: u64, topic: &str) -> Result<(ConnId, &Flight), &'static str> {
        let any = self.config.planted.any_pubcomp;
        let link = self.link(id, topic).ok_or("not subscribed to this topic")?;
        match &link.flight {
            Some(flight) if flight.name == name || any => Ok((link.conn, flight)),
            _ if link.done == name && name != 0 => Err("PUBCOMP was received before"),
            _ => Err("unknown msgId"),
        }
    }

    /// Takes what the broker sends on an inner connection.
    pub(super) fn receive(&mut self, conn: ConnId, now: Millis) {
        let Some((id, topic)) = self.inner.get(&conn).cloned() else { return };
        let mut bytes = BytesMut::new();
        let mut closed = true;
        if let Some(outbox) = self.broker.outbox(conn) {
            while !outbox.is_empty() {
                let before = bytes.len();
                let mut slices: Vec<IoSlice<'_>> = Vec::new();
                outbox.slices(&mut slices);
                for slice in &slices {
                    bytes.extend_from_slice(slice);
                }
                outbox.advance(bytes.len() - before);
            }
            closed = outbox.close_after();
        }
        loop {
            let Some(link) = self.link(id, &topic) else { return };
            match link.decoder.decode(&mut bytes) {
                Ok(Some(Packet::Publish(publish))) => self.deliver(id, conn, &publish, now),
                Ok(Some(Packet::Pubrel(ack))) => self.released(id, conn, &topic, ack.packet_id, now),
                // CONNACK, and DISCONNECT before the end.
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "the broker's own bytes");
                    return self.end(id, "the server failed", now);
                }
            }
        }
        self.broker.written(conn, now);
        if closed {
            self.end(id, "the session was ended", now);
        }
    }

    /// A message for the consumer.
    fn deliver(&mut self, id: LineId, conn: ConnId, publish: &Publish, now: Millis) {
        let Some(packet) = publish.packet_id else { return };
        let Some(mut name) = self.broker.door_name(conn, packet) else { return };
        if self.config.planted.packet_ids {
            name = u64::from(packet.get());
        }
        let content_type =
            publish.properties.as_ref().and_then(|properties| properties.content_type.as_deref());
        let msg = payload::to_value(&publish.payload, content_type);
        let text = text::delivery(&publish.topic, name, &msg);
        self.fly(
            id,
            conn,
            &publish.topic,
            Flight { packet, name, leg: Leg::Sent, text, sends: 1, since: now, due: 0 },
        );
    }

    /// PUBREC is committed, now or in an earlier connection.
    fn released(&mut self, id: LineId, conn: ConnId, topic: &str, packet: PacketId, now: Millis) {
        let known = self.link(id, topic).and_then(|link| link.flight.as_ref()).map(|flight| flight.name);
        let Some(name) = known.or_else(|| self.broker.door_name(conn, packet)) else { return };
        let text = text::answer("PUBREL", name);
        self.fly(
            id,
            conn,
            topic,
            Flight { packet, name, leg: Leg::Released, text, sends: 1, since: now, due: 0 },
        );
    }

    /// Sends something that is to be answered.
    fn fly(&mut self, id: LineId, conn: ConnId, topic: &str, mut flight: Flight) {
        flight.due = flight.since.saturating_add(self.resend_after());
        self.say(id, Ticket(0), &flight.text);
        self.timers.insert((flight.due, conn));
        if let Some(link) = self.link(id, topic) {
            link.flight = Some(flight);
        }
    }

    fn resend_after(&self) -> u64 {
        u64::try_from(self.config.resend.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// What was not answered in time.
    pub(super) fn resend(&mut self, now: Millis) {
        while let Some((due, conn)) = self.timers.first().copied()
            && due <= now
        {
            self.timers.pop_first();
            if let Some((id, topic)) = self.inner.get(&conn).cloned() {
                self.overdue(id, conn, &topic, now);
            }
        }
    }

    fn overdue(&mut self, id: LineId, conn: ConnId, topic: &str, now: Millis) {
        let (max, after, planted) = (self.config.max_sends, self.resend_after(), self.config.planted);
        let room = self.config.max_output;
        let slow = self.line(id).is_some_and(|line| line.out.len() > room);
        let Some(flight) = self.link(id, topic).and_then(|link| link.flight.as_mut()) else { return };
        let never = if flight.leg == Leg::Sent { planted.never_park } else { planted.never_give_up };
        if flight.sends < max || never {
            flight.sends += 1;
            flight.due = now.saturating_add(after);
            let again = (flight.due, flight.text.clone());
            self.timers.insert((again.0, conn));
            // To who reads nothing, nothing more is written; the send counts.
            if !slow {
                self.say(id, Ticket(0), &again.1);
            }
        } else if flight.leg == Leg::Sent {
            tracing::info!(topic, "a consumer does not answer and is parked");
            let since = flight.since;
            if let Some(Stage::Consumer(consumer)) = self.line_mut(id).map(|line| &mut line.stage) {
                consumer.unanswered = Some(since);
            }
            self.detach(id, topic, now);
        } else {
            let (packet, name, sends) = (flight.packet, flight.name, flight.sends);
            if let Some(link) = self.link(id, topic) {
                link.flight = None;
                link.done = name;
            }
            self.broker.door_bury(conn, packet, "PUBREL was not answered", sends, now);
        }
    }
}
