//! Messages to clients: what is committed goes into windows, and from there into outboxes.

use super::config::Overflow;
use super::conn::{Conn, Stage};
use super::graves::queue_name;
use super::letters::{DEAD, Refusal};
use super::message::Message;
use super::outgoing::{Entry, Phase, packet_id};
use super::session::{Session, Target};
use super::state::State;
use super::{Broker, Waiting, reason};
use crate::codec::{Ack, PacketId, PacketType, PublishHead, Qos, ReasonCode, SubscriptionId, Utf8};
use postroad_core::mailbox::Millis;
use postroad_engine::log::Mark;
use std::collections::HashMap;
use std::num::NonZeroU16;
use std::sync::Arc;

/// QoS 0 cannot wait: a burst may take so many times the output that other messages keep to.
const QOS0_BURST: usize = 4;
/// Messages handed out before the outbox is looked at again.
const TURN: usize = 64;

/// One delivery of a message.
struct Delivery<'a> {
    qos: Qos,
    retain: bool,
    dup: bool,
    id: Option<PacketId>,
    ids: &'a [SubscriptionId],
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unsent {
    /// Larger than the client takes. [MQTT-3.1.2-25]
    TooLarge,
}

impl Broker {
    /// A message may be delivered now.
    pub(super) fn offer(&mut self, seq: u64, message: &Arc<Message>, targets: &[Target], now: Millis) {
        if message.retain && seq != 0 {
            self.state.retained.committed(&message.topic, seq);
        }
        for target in targets {
            let Some(session) = self.state.target_mut(target) else { continue };
            if target.qos == Qos::AtMostOnce {
                self.send_now(target, message, now);
            } else {
                session.queue().offer(target.number);
                let online = session.conn.is_some();
                if online {
                    self.pump(target.session, now);
                }
            }
        }
    }

    /// QoS 0: to whoever is there, if their socket keeps up.
    fn send_now(&mut self, target: &Target, message: &Message, now: Millis) {
        let Some(session) = self.state.sessions.get(target.session) else { return };
        let Some(id) = session.conn else { return };
        let client = session.client.clone();
        let Some(conn) = self.conns.get_mut(id.index as usize).filter(|conn| conn.id == id) else { return };
        if conn.out.len() > QOS0_BURST * self.config.max_output {
            self.counters.dropped += 1;
            return;
        }
        if message.is_expired(now) || !self.access.may_receive(&conn.who, &client, &message.topic) {
            return;
        }
        let delivery =
            Delivery { qos: Qos::AtMostOnce, retain: target.retain, dup: false, id: None, ids: &target.ids };
        match send(conn, message, &delivery, now) {
            Ok(()) => {
                self.counters.messages_sent += 1;
                self.touch(id);
            }
            Err(Unsent::TooLarge) => self.counters.dropped += 1,
        }
    }

    /// Sends what the window, the outbox and the log have for a session.
    pub(super) fn pump(&mut self, index: usize, now: Millis) {
        loop {
            let mut taken = std::mem::take(&mut self.taken);
            taken.clear();
            let more = self.pump_some(index, &mut taken, now);
            self.taken = taken;
            let more = more || self.has_room(index) && self.replay_some(index, now);
            if !more {
                return;
            }
        }
    }

    /// True if the client could be sent more than its queue has.
    fn has_room(&self, index: usize) -> bool {
        let Some(session) = self.state.sessions.get(index) else { return false };
        let conn = session.conn.and_then(|id| self.conn(id));
        !session.replays.is_empty()
            && session.outgoing().is_none_or(|queue| queue.len() < usize::from(session.window))
            && conn.is_some_and(|conn| conn.greeted && conn.out.len() <= self.config.max_output)
    }

    /// One turn of [`Broker::pump`]; true if there may be more.
    fn pump_some(
        &mut self,
        index: usize,
        taken: &mut Vec<postroad_core::mailbox::Taken>,
        now: Millis,
    ) -> bool {
        let Some(session) = self.state.sessions.get_mut(index) else { return false };
        let Some(id) = session.conn else { return false };
        let Some(conn) = self.conns.get_mut(id.index as usize).filter(|conn| conn.id == id) else {
            return false;
        };
        if !matches!(conn.stage, Stage::Open { .. }) || conn.out.len() > self.config.max_output {
            return false;
        }
        // Nothing before CONNACK.
        if !conn.greeted {
            return false;
        }
        let Some(queue) = session.outgoing_mut() else { return false };
        queue.take(now, TURN, taken);
        if taken.is_empty() {
            return false;
        }
        let missing: Vec<u64> = taken
            .iter()
            .filter_map(|taken| queue.get(taken.seq))
            .filter(|entry| entry.message.is_none() && entry.seq != 0 && entry.phase != Phase::Released)
            .map(|entry| entry.seq)
            .collect();
        let mut read: HashMap<u64, Arc<Message>> = HashMap::new();
        if !missing.is_empty() {
            let result = self.book.read(&missing, |seq, message| {
                read.insert(seq, Arc::new(message));
            });
            if let Err(error) = result {
                tracing::error!(%error, "messages could not be read from the log");
                // They are owed still: the client gets them when it is back, and the log can be read.
                self.fail_with(
                    id,
                    ReasonCode::UnspecifiedError,
                    Some("the server cannot read its log"),
                    true,
                    now,
                );
                return false;
            }
        }
        let mut unsendable: Vec<(u64, Option<&'static str>)> = Vec::new();
        for taken in taken.iter() {
            let Session { client, .. } = &*session;
            let client = client.clone();
            let Some(queue) = session.outgoing_mut() else { break };
            let Some(entry) = queue.get_mut(taken.seq) else {
                queue.drop_handed(taken.seq, now);
                continue;
            };
            let packet = packet_id(taken.seq);
            if entry.phase == Phase::Released {
                // [MQTT-4.4.0-1]
                let (version, ack) = (conn.version, Ack::new(packet));
                let _ = conn.out.write(|out| ack.encode(PacketType::Pubrel, version, out));
                continue;
            }
            let message = entry.message.clone().or_else(|| read.get(&entry.seq).cloned());
            let Some(message) = message else {
                if entry.logged {
                    tracing::error!(%client, seq = entry.seq, "a message is not in the log any more");
                }
                unsendable.push((taken.seq, (entry.qos != Qos::AtMostOnce).then_some(reason::MISSING)));
                continue;
            };
            // What may have been received is never dropped: its exchange goes on to the end.
            if entry.phase == Phase::Queued {
                if message.is_expired(now) {
                    unsendable.push((taken.seq, Some(reason::EXPIRED)));
                    continue;
                }
                if !self.access.may_receive(&conn.who, &client, &message.topic) {
                    unsendable.push((taken.seq, Some(reason::NOT_ALLOWED)));
                    continue;
                }
            }
            let delivery = Delivery {
                qos: entry.qos,
                retain: entry.retain,
                dup: entry.phase == Phase::Sent,
                id: (entry.qos != Qos::AtMostOnce).then_some(packet),
                ids: &entry.ids,
            };
            match send(conn, &message, &delivery, now) {
                Ok(()) => {
                    self.counters.messages_sent += 1;
                    self.counters.resent += u64::from(delivery.dup);
                    entry.phase = Phase::Sent;
                    entry.sends.note(now);
                    if entry.qos == Qos::AtMostOnce {
                        unsendable.push((taken.seq, None));
                    }
                }
                Err(Unsent::TooLarge) => {
                    unsendable.push((taken.seq, Some(reason::TOO_LARGE)));
                }
            }
        }
        self.touch(id);
        for (number, reason) in unsendable {
            if reason.is_some() {
                self.counters.dropped += 1;
            }
            self.finish(index, number, reason, now);
        }
        true
    }

    /// Queues that have no room: somebody's message becomes a dead letter. What is refused here is no target any more,
    /// and takes no number; the record of the message says so if `may_log`.
    pub(super) fn refuse_full(
        &mut self,
        message: &Message,
        targets: &mut Vec<Target>,
        may_log: bool,
        now: Millis,
    ) -> Vec<Refusal> {
        let mut refused: Vec<Refusal> = Vec::new();
        let mut at = 0;
        while let Some(target) = targets.get(at) {
            let full = target.qos != Qos::AtMostOnce
                && self.state.sessions.get(target.session).and_then(Session::outgoing).is_some_and(|queue| {
                    queue.len() >= self.config.max_queued || queue.bytes() >= self.config.max_queued_bytes
                });
            if !full {
                at += 1;
                continue;
            }
            self.counters.overflowed += 1;
            let (index, number) = (target.session, target.id);
            let oldest = match self.config.overflow {
                Overflow::DropNewest => None,
                Overflow::DropOldest => self.state.sessions.get(index).and_then(|session| {
                    let mut queue = session.outgoing()?.iter();
                    queue.find(|(_, e)| e.phase == Phase::Queued).map(|(number, _)| number)
                }),
            };
            if let Some(oldest) = oldest {
                self.finish(index, oldest, Some(reason::FULL), now);
                at += 1;
                continue;
            }
            targets.remove(at);
            // A session that would get it twice, through a share too, has one letter.
            if refused.iter().all(|refusal| refusal.number != number)
                && let Some(session) = self.state.sessions.get(index)
            {
                let (client, logged) = (session.client.clone(), session.durable && may_log);
                refused.push(Refusal { number, client, logged, letter: 0 });
            }
        }
        let max = self.config.max_queued as u64;
        let State { queues, matched_queues, .. } = &mut self.state;
        matched_queues.retain(|place| match queues.get(*place) {
            Some(queue) if queue.len() >= max => {
                self.counters.overflowed += 1;
                let client = queue_name(&queue.name);
                refused.push(Refusal { number: queue.number, client, logged: may_log, letter: 0 });
                false
            }
            found => found.is_some(),
        });
        // A dead letter that does not arrive is not another one.
        if !message.topic.starts_with(DEAD) {
            for refusal in refused.iter_mut().filter(|refusal| refusal.logged) {
                refusal.letter = self.state.graves.take_numbers(1, now);
            }
        }
        refused
    }

    /// What a client that is gone has not been sent through shared subscriptions goes to other members that are
    /// there. What was sent at QoS 2 must not. [MQTT-4.8.2-5]
    pub(super) fn redistribute(&mut self, index: usize, now: Millis) {
        let Some(session) = self.state.sessions.get(index) else { return };
        let Some(queue) = session.outgoing() else { return };
        let moving: Vec<(u64, Entry)> = queue
            .iter()
            .filter(|(_, entry)| entry.shared)
            .filter(|(_, entry)| entry.phase == Phase::Queued || entry.qos == Qos::AtLeastOnce)
            .map(|(number, entry)| (number, entry.clone()))
            .collect();
        for (number, mut entry) in moving {
            let message = match &entry.message {
                Some(message) => message.clone(),
                None => {
                    let mut found = None;
                    let _ = self.book.read(&[entry.seq], |_, message| found = Some(Arc::new(message)));
                    match found {
                        Some(message) => message,
                        None => continue,
                    }
                }
            };
            let Some((to, options)) = self.other_member(index, &message) else { continue };
            let from_logged = entry.logged;
            let from = self.state.sessions.get(index).map_or(0, |session| session.number);
            let Some(session) = self.state.sessions.get_mut(to) else { continue };
            let exactly_once = options.qos.min(entry.qos) == Qos::ExactlyOnce;
            if from_logged && !session.durable || entry.seq == 0 && session.durable && exactly_once {
                // It would not survive a crash there, or its packet id would be given to another message after one,
                // which the client would take for a repetition.
                continue;
            }
            entry = Entry::new(entry.seq, Some(message), options.qos.min(entry.qos), entry.retain, entry.ids);
            entry.shared = true;
            entry.logged = session.durable && entry.seq != 0;
            if entry.logged {
                entry.seq = self.moving.place(entry.seq);
            }
            let (logged, seq, qos, retain, ids) =
                (entry.logged, entry.seq, entry.qos, entry.retain, entry.ids.clone());
            let to_number = session.queue().push(entry);
            let id = session.number;
            if logged {
                session.logged_next = to_number + 1;
            }
            let mut ticket = Mark::NOW;
            if logged {
                ticket = Mark::committed(self.book.append(now, |pen, log| {
                    if from_logged {
                        pen.moved(from, number);
                    }
                    pen.given(log, id, to_number, seq, qos, retain, &ids);
                }));
            }
            if let Some(queue) = self.state.sessions.get_mut(index).and_then(Session::outgoing_mut) {
                queue.finish(number, now);
            }
            // Not before: after a crash it may still be where it was.
            self.after(ticket, Waiting::Given { session: to, id, first: to_number, last: to_number }, now);
        }
    }

    /// Another member of a share that matches, one that is there.
    fn other_member(&mut self, not: usize, message: &Message) -> Option<(usize, super::session::Options)> {
        let filters: Vec<Utf8> = {
            let session = self.state.sessions.get(not)?;
            session.subscriptions.keys().filter(|filter| filter.starts_with("$share/")).cloned().collect()
        };
        filters.iter().find_map(|filter| {
            let shared = crate::codec::topic::shared(filter)?.ok()?;
            if !crate::codec::topic::matches(shared.filter, &message.topic) {
                return None;
            }
            let share = self.state.share_of(filter)?;
            self.state.choose_other(share, not)
        })
    }
}

/// Writes one delivery to a connection's outbox.
fn send(conn: &mut Conn, message: &Message, delivery: &Delivery<'_>, now: Millis) -> Result<(), Unsent> {
    let v5 = conn.version.is_v5();
    let (topic, topic_alias) =
        if v5 && conn.alias_max > 0 { alias(conn, &message.topic) } else { (None, None) };
    let empty = Utf8::default();
    let head = PublishHead {
        dup: delivery.dup,
        qos: delivery.qos,
        retain: delivery.retain,
        topic: if topic.is_some() { &empty } else { &message.topic },
        packet_id: delivery.id,
        payload_len: message.payload.len(),
        message: message.properties.as_deref(),
        message_expiry_interval: message.remaining(now),
        topic_alias,
        subscription_ids: delivery.ids,
    };
    let version = conn.version;
    if conn.max_packet != u32::MAX && head.encoded_len(version) > conn.max_packet as usize {
        return Err(Unsent::TooLarge);
    }
    let out = &mut conn.out;
    out.write(|out| head.encode(version, out)).map_err(|_| Unsent::TooLarge)?;
    out.payload(&message.payload);
    Ok(())
}

/// The alias of a topic; `Some(())` if the client knows it already.
fn alias(conn: &mut Conn, topic: &Utf8) -> (Option<()>, Option<NonZeroU16>) {
    let max = usize::from(conn.alias_max);
    let aliases = &mut conn.extras().aliases_out;
    if let Some(alias) = aliases.get(topic) {
        return (Some(()), Some(*alias));
    }
    if aliases.len() >= max {
        return (None, None);
    }
    let alias = u16::try_from(aliases.len() + 1).ok().and_then(NonZeroU16::new);
    if let Some(alias) = alias {
        aliases.insert(topic.to_detached(), alias);
    }
    (None, alias)
}
