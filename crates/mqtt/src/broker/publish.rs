//! PUBLISH of a client (section 3.3), and how a message gets to its subscribers.

use super::config::Durability;
use super::message::{Message, Origin};
use super::retained::Kept;
use super::{Broker, ConnId, Waiting};
use crate::codec::{PacketType, Publish, Qos, ReasonCode, Utf8, topic};
use postroad_core::mailbox::Millis;
use postroad_engine::log::{Mark, Ticket};
use std::sync::Arc;

/// Numbers that are reserved at once for messages that only memory has.
const RESERVE: u64 = 4096;

/// What became of a message.
pub(super) struct Distributed {
    /// When it is promised.
    pub(super) ticket: Mark,
    pub(super) logged: bool,
    pub(super) matched: bool,
    offer: Option<Waiting>,
    work: Vec<super::queue::From>,
}

impl Broker {
    pub(super) fn publish(&mut self, id: ConnId, mut publish: Publish, now: Millis) {
        if !self.batch.is_empty() {
            // An id that is released in this turn may be used again only after that.
            self.log_batch(now);
        }
        let Some(conn) = self.conn_mut(id) else { return };
        let Some(index) = conn.session() else { return self.fail(id, ReasonCode::ProtocolError, now) };
        let v5 = conn.version.is_v5();
        let qos = publish.qos;
        if v5 && let Some(alias) = publish.properties.as_ref().and_then(|p| p.topic_alias) {
            if alias.get() > conn.listener.topic_alias_maximum {
                return self.fail(id, ReasonCode::TopicAliasInvalid, now);
            }
            let at = usize::from(alias.get()) - 1;
            let aliases = &mut conn.extras().aliases_in;
            if publish.topic.is_empty() {
                match aliases.get(at).cloned().flatten() {
                    Some(known) => publish.topic = known,
                    // Section 3.3.2.3.4.
                    None => return self.fail(id, ReasonCode::ProtocolError, now),
                }
            } else {
                if aliases.len() <= at {
                    aliases.resize(at + 1, None);
                }
                if let Some(place) = aliases.get_mut(at) {
                    *place = Some(publish.topic.to_detached());
                }
            }
        }
        let Some(session) = self.state.sessions.get(index) else { return };
        let open = session.incoming.open();
        if let Some(packet) = publish.packet_id {
            // [MQTT-3.3.1-1]: what is sent again says so. This client has the id back, and the record of that was lost.
            let anew = session.buffered && !publish.dup && session.incoming.is_from_before(packet);
            if qos == Qos::ExactlyOnce && session.incoming.is_open(packet) && !anew {
                // [MQTT-4.3.3-10]: taken already.
                self.counters.repeated += 1;
                let ticket = self.in_turn(id, Mark::NOW);
                return self.ack(id, ticket, PacketType::Pubrec, packet, ReasonCode::Success, now);
            }
            // [MQTT-3.3.4-7]. Older clients know no limit: beyond twice as much they are not read for a while.
            let conn = self.conn(id);
            let receive = conn.map_or(0, |conn| usize::from(conn.listener.receive_maximum));
            let waiting = conn.map_or(0, |conn| conn.unacknowledged as usize);
            if v5 && open.max(waiting) >= receive {
                return self.fail(id, ReasonCode::ReceiveMaximumExceeded, now);
            }
        }
        self.counters.messages_received += 1;
        let refusal = self.refusal(id, &publish);
        if let Some((reason, text)) = refusal {
            self.counters.refused_messages += 1;
            return match publish.packet_id {
                Some(packet) if v5 => {
                    let kind = if qos == Qos::AtLeastOnce { PacketType::Puback } else { PacketType::Pubrec };
                    let ticket = self.in_turn(id, Mark::NOW);
                    self.ack(id, ticket, kind, packet, reason, now);
                }
                // [MQTT-3.3.5-2] of 3.1.1: an acknowledgement would be a lie, so the connection is closed.
                Some(_) => self.fail_with(id, reason, Some(text), true, now),
                // QoS 0 has no answer.
                None => {}
            };
        }
        let Some(session) = self.state.sessions.get(index) else { return };
        let origin = Origin {
            session: session.durable.then_some(session.number),
            packet: publish
                .packet_id
                .filter(|_| session.durable && qos == Qos::ExactlyOnce && !self.config.planted.id_forgotten),
            ..Origin::default()
        };
        let expires = publish.properties.as_ref().and_then(|p| p.message_expiry_interval);
        let message = Message {
            topic: publish.topic,
            payload: publish.payload,
            qos,
            retain: publish.retain,
            time: now,
            expires: expires.map(|seconds| now + u64::from(seconds) * 1000),
            properties: publish.properties,
        };
        let durability = self.durability(id, &message.topic);
        let done = self.route(message, Some(index), origin, durability, now);
        if done.logged {
            self.log_over_beside(now);
        }
        let Some(packet) = publish.packet_id else {
            if let Some(Waiting::Offer { seq, message, targets }) = done.offer {
                // Who gets it exactly once all the same gets it under the name that its record has.
                let (at_once, queued): (smallvec::SmallVec<_>, smallvec::SmallVec<_>) =
                    targets.into_iter().partition(|target| target.qos == Qos::AtMostOnce);
                if done.logged || !queued.is_empty() {
                    // Retained, its memory is needed until the log has it, and nobody else asks for the commit.
                    let stored = Waiting::Offer { seq, message: message.clone(), targets: queued };
                    self.after(done.ticket, stored, now);
                }
                self.perform(Waiting::Offer { seq: 0, message, targets: at_once }, now);
            }
            if !done.work.is_empty() {
                self.after(done.ticket, Waiting::Work(done.work), now);
            }
            return;
        };
        let kind = if qos == Qos::AtLeastOnce { PacketType::Puback } else { PacketType::Pubrec };
        if qos == Qos::ExactlyOnce
            && let Some(session) = self.state.sessions.get_mut(index)
        {
            session.incoming.begin(packet, done.logged && session.durable);
        }
        let reason =
            if done.matched || !v5 { ReasonCode::Success } else { ReasonCode::NoMatchingSubscribers };
        let ticket = self.in_turn(id, done.ticket);
        if let Some(conn) = self.conn_mut(id) {
            conn.unacknowledged += 1;
        }
        let promised = if self.config.planted.ack_before_commit { Mark::NOW } else { ticket };
        self.after(promised, Waiting::Ack { conn: id, kind, id: packet, reason, counted: true }, now);
        if let Some(offer) = done.offer {
            let ticket = if self.config.planted.deliver_before_commit { Mark::NOW } else { ticket };
            self.after(ticket, offer, now);
        }
        if !done.work.is_empty() {
            self.after(ticket, Waiting::Work(done.work), now);
        }
    }

    /// Why a message is not taken, if so.
    fn refusal(&self, id: ConnId, publish: &Publish) -> Option<(ReasonCode, &'static str)> {
        let conn = self.conn(id)?;
        let client =
            conn.session().and_then(|index| self.state.sessions.get(index)).map(|session| &session.client)?;
        if !self.access.may_publish(&conn.who, client, &publish.topic, publish.retain) {
            return Some((ReasonCode::NotAuthorized, "publishing there is not allowed"));
        }
        if publish.retain
            && self.state.retained.len() >= self.config.max_retained
            && !self.state.retained.contains(&publish.topic)
        {
            return Some((ReasonCode::QuotaExceeded, "too many retained messages"));
        }
        if (publish.qos != Qos::AtMostOnce || publish.retain)
            && let Err(postroad_engine::log::LogError::DiskFull) = self.book.store.admit()
        {
            return Some((ReasonCode::QuotaExceeded, "the disk of the server is full"));
        }
        None
    }

    fn durability(&self, id: ConnId, name: &str) -> Durability {
        let rule = self.config.durability.iter().find(|(filter, _)| topic::matches(filter, name));
        match rule {
            Some((_, durability)) => *durability,
            None => self.conn(id).map_or(Durability::Fsync, |conn| conn.listener.durability),
        }
    }

    /// Publishes what comes from the broker itself or from another door.
    pub(super) fn distribute(
        &mut self,
        message: Message,
        publisher: Option<usize>,
        origin: Origin,
        now: Millis,
    ) -> Ticket {
        self.distribute_from(message, publisher, origin, Durability::Fsync, now).committed
    }

    /// The same with a durability of its own.
    pub(super) fn distribute_as(
        &mut self,
        message: Message,
        origin: Origin,
        durability: Durability,
        now: Millis,
    ) -> Mark {
        self.distribute_from(message, None, origin, durability, now)
    }

    fn distribute_from(
        &mut self,
        message: Message,
        publisher: Option<usize>,
        origin: Origin,
        durability: Durability,
        now: Millis,
    ) -> Mark {
        let done = self.route(message, publisher, origin, durability, now);
        if let Some(offer) = done.offer {
            self.after(done.ticket, offer, now);
        }
        if !done.work.is_empty() {
            self.after(done.ticket, Waiting::Work(done.work), now);
        }
        if done.logged {
            self.overdue = true;
        }
        done.ticket
    }

    /// Reserves numbers for a message that the log may not have after a crash; says when that is committed.
    fn reserve(&mut self, targets: &[super::session::Target], now: Millis) -> Ticket {
        let mut ticket = Ticket(0);
        for target in targets.iter().filter(|target| target.qos != Qos::AtMostOnce) {
            let Some(session) = self.state.sessions.get_mut(target.session) else { continue };
            if !session.durable {
                continue;
            }
            if session.next() <= session.reserved {
                // The record of that may be another message's, and still wait.
                ticket = ticket.max(session.reserved_at);
                continue;
            }
            session.reserved = session.next() + RESERVE;
            let (number, reserved) = (session.number, session.reserved);
            session.reserved_at = self.book.append(now, |pen, log| pen.reserved(log, number, reserved));
            ticket = session.reserved_at;
        }
        ticket
    }

    /// Finds who gets a message, writes its one record if somebody must get it after a crash too, and queues it.
    fn route(
        &mut self,
        mut message: Message,
        publisher: Option<usize>,
        mut origin: Origin,
        durability: Durability,
        now: Millis,
    ) -> Distributed {
        let mut targets = std::mem::take(&mut self.targets);
        targets.clear();
        self.state.route(&message, publisher, None, &mut targets);
        let may_log = durability != Durability::Memory && !self.volatile;
        let buffered = durability == Durability::Os;
        let refused = self.refuse_full(&message, &mut targets, may_log, now);
        let work = !self.state.matched_queues.is_empty();
        let matched = !targets.is_empty() || work || !refused.is_empty();
        let queued =
            work || !refused.is_empty() || targets.iter().any(|target| target.qos != Qos::AtMostOnce);
        let durable = targets.iter().any(|target| {
            target.qos != Qos::AtMostOnce
                && self.state.sessions.get(target.session).is_some_and(|s| s.durable)
        });
        // What ends nothing is logged at QoS 2, too: sent again after a crash, it could end what came in between.
        let ends_something =
            || message.qos == Qos::ExactlyOnce || self.state.retained.contains(&message.topic);
        let changes_retained = message.retain && (!message.payload.is_empty() || ends_something());
        let refused_durably = refused.iter().any(|refusal| refusal.logged);
        let logged = may_log
            && (durable
                || work
                || refused_durably
                || origin.again.is_some()
                || origin.letter.is_some()
                || changes_retained
                || origin.will_of.is_some()
                || origin.held.is_some());
        if queued || changes_retained {
            message.detach();
            if let Some(properties) = &mut message.properties {
                detach_properties(properties);
            }
        }
        let (mut seq, mut record, mut ticket) = (0, Ticket(0), Mark::NOW);
        if logged {
            origin.chosen = self.state.choices(&targets);
            if !self.config.planted.refusal_forgotten {
                let logged = refused.iter().filter(|refusal| refusal.logged);
                origin.refused = logged.map(|refusal| (refusal.number, refusal.letter)).collect();
            }
            let skips: smallvec::SmallVec<[(u64, u64); 2]> = targets
                .iter()
                .filter(|target| target.qos != Qos::AtMostOnce)
                .filter_map(|target| self.state.sessions.get(target.session))
                .filter(|session| session.durable && session.logged_next != session.next())
                .map(|session| (session.number, session.next()))
                .collect();
            (seq, record) = self.book.publish_as(buffered, now, &message, &origin, |pen, log| {
                for (session, next) in &skips {
                    pen.skip(log, *session, *next);
                }
            });
        }
        if logged {
            ticket = if buffered { Mark::written(record) } else { Mark::committed(record) };
        }
        if (!logged || buffered) && queued && !self.volatile {
            ticket = ticket.and(Mark::committed(self.reserve(&targets, now)));
        }
        let message = Arc::new(message);
        let work = self.state.enqueue_work(seq, Some(&message));
        self.bury_refused(&refused, seq, record, &message, now);
        self.state.enqueue(seq, &message, &mut targets);
        if changes_retained {
            let kept =
                Kept { seq, qos: message.qos, expires: message.expires, message: Some(message.clone()) };
            self.state.retained.set(&message.topic, message.payload.is_empty(), kept);
        }
        let offer = (matched || (changes_retained && logged)).then(|| Waiting::Offer {
            seq,
            message,
            targets: targets.drain(..).collect(),
        });
        self.targets = targets;
        Distributed { ticket, logged, matched, offer, work }
    }
}

/// Properties in memory of their own, not in that of a receive buffer.
fn detach_properties(properties: &mut crate::codec::PublishProperties) {
    let text = |value: &mut Option<Utf8>| {
        if let Some(value) = value {
            *value = value.to_detached();
        }
    };
    text(&mut properties.content_type);
    text(&mut properties.response_topic);
    if let Some(data) = &mut properties.correlation_data {
        *data = bytes::Bytes::copy_from_slice(data);
    }
    for (name, value) in &mut properties.user_properties {
        *name = name.to_detached();
        *value = value.to_detached();
    }
}
