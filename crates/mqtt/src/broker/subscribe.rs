//! SUBSCRIBE and UNSUBSCRIBE (sections 3.8 to 3.11), and the retained messages that come with a subscription.

use super::outgoing::{Entry, SubscriptionIds};
use super::retained::Kept;
use super::session::{Options, Replay, wants_retained};
use super::{Broker, ConnId, Waiting};
use crate::access::Permit;
use crate::codec::{Packet, Qos, ReasonCode, Suback, Subscribe, Unsuback, Unsubscribe, Utf8, topic};
use postroad_core::mailbox::Millis;
use postroad_engine::log::Mark;

impl Broker {
    pub(super) fn subscribe(&mut self, id: ConnId, subscribe: &Subscribe, now: Millis) {
        let Some(index) = self.session_of(id) else { return self.fail(id, ReasonCode::ProtocolError, now) };
        let subscription_id = subscribe.properties.as_ref().and_then(|properties| properties.subscription_id);
        let mut reasons = Vec::with_capacity(subscribe.filters.len());
        let mut retained: Vec<(Utf8, Options)> = Vec::new();
        let mut granted: Vec<(Utf8, Options)> = Vec::new();
        let mut made = Mark::NOW;
        for subscription in &subscribe.filters {
            let filter = subscription.filter.to_detached();
            if let Some(reason) = self.subscription_refusal(id, index, &filter) {
                reasons.push(reason);
                continue;
            }
            let mut options = Options::of(subscription, subscription_id);
            let queue =
                super::queue::parse(&filter).map(|(name, filter)| (name.to_owned(), filter.to_owned()));
            if let Some((name, filter)) = &queue {
                options.qos = options.qos.min(Qos::AtLeastOnce);
                self.consume(index, name, filter, now);
                made = self.book.appended;
            }
            // What was published before goes out under the old options: it has its targets already.
            let existed = self.state.subscribe(index, &filter, options);
            // Shared subscriptions get no retained messages (section 4.8.2).
            if queue.is_none()
                && topic::shared(&filter).is_none()
                && wants_retained(subscription.retain_handling, existed)
            {
                retained.push((filter.clone(), options));
            }
            granted.push((filter, options));
            reasons.push(match options.qos {
                Qos::AtMostOnce => ReasonCode::Success,
                Qos::AtLeastOnce => ReasonCode::GrantedQos1,
                Qos::ExactlyOnce => ReasonCode::GrantedQos2,
            });
        }
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        let (number, durable, buffered) = (session.number, session.durable, session.buffered);
        let mut ticket = Mark::NOW;
        if durable && !granted.is_empty() {
            ticket = self.book.append_as(buffered, now, |pen, log| {
                for (filter, options) in &granted {
                    pen.subscribe(log, number, filter, *options);
                }
            });
            session.ticket = ticket;
        }
        let ticket = self.in_turn(id, ticket.and(made));
        let suback = Suback { packet_id: subscribe.packet_id, reasons, properties: None };
        self.after(ticket, Waiting::Packet { conn: id, packet: Box::new(Packet::Suback(suback)) }, now);
        for (filter, options) in retained {
            self.send_retained(index, &filter, options, now);
        }
        // With the queue filled in one go, one turn of the window sends it.
        let given = if durable { self.book.appended } else { Mark::NOW };
        let ticket = self.in_turn(id, given);
        self.after(ticket, Waiting::Resume { conn: id }, now);
    }

    pub(super) fn subscription_refusal(&self, id: ConnId, index: usize, filter: &Utf8) -> Option<ReasonCode> {
        let session = self.state.sessions.get(index)?;
        let who = &self.conn(id)?.who;
        if let Permit::No(reason) = self.access.may_subscribe(who, &session.client, filter) {
            return Some(reason);
        }
        if let Some((name, filter)) = super::queue::parse(filter)
            && self.state.queues.len() >= self.config.max_queues
            && !self.state.queue_names.contains_key(&(Box::from(name), Box::from(filter)))
        {
            return Some(ReasonCode::QuotaExceeded);
        }
        let limit = self.access.limits(who).max_subscriptions.map_or(usize::MAX, |max| max as usize);
        let limit = limit.min(self.config.max_subscriptions);
        if session.subscriptions.len() >= limit && !session.subscriptions.contains_key(filter) {
            return Some(ReasonCode::QuotaExceeded);
        }
        None
    }

    /// Sends the retained messages that match. [MQTT-3.3.1-9]
    fn send_retained(&mut self, index: usize, filter: &Utf8, options: Options, now: Millis) {
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        if !session.durable || options.qos == Qos::AtMostOnce {
            // They are gone with the connection anyway.
            session.replays.retain(|replay| replay.filter != *filter);
            session.replays.push_back(Replay { filter: filter.clone(), options, after: None });
            return;
        }
        let room = self
            .config
            .max_queued
            .saturating_sub(session.outgoing().map_or(0, super::outgoing::Outgoing::len));
        let (mut found, mut left_out) = (Vec::new(), Vec::new());
        self.state.retained.matches(filter, |_, kept| match kept.expires {
            Some(at) if at <= now => {}
            // QoS 0 is not promised.
            _ if found.len() >= room && kept.qos == Qos::AtMostOnce => {}
            _ if found.len() >= room => left_out.push((kept.seq, kept.message.clone())),
            _ => found.push(kept.clone()),
        });
        if !left_out.is_empty() {
            let client = session.client.clone();
            let count = left_out.len() as u64;
            tracing::warn!(%client, %filter, left_out = count, "more retained messages than the queue takes");
            self.counters.overflowed += count;
            self.bury_left_out(&client, left_out, now);
        }
        self.give_retained(index, found, options, now);
    }

    /// The next retained messages for a session whose queue has room; false if there are none.
    pub(super) fn replay_some(&mut self, index: usize, now: Millis) -> bool {
        let Some(session) = self.state.sessions.get_mut(index) else { return false };
        let Some(mut replay) = session.replays.pop_front() else { return false };
        let mut found = Vec::new();
        let after = self.state.retained.page(&replay.filter, replay.after.as_deref(), |_, kept| {
            if kept.expires.is_none_or(|at| at > now) {
                found.push(kept.clone());
            }
        });
        let options = replay.options;
        if after.is_some()
            && let Some(session) = self.state.sessions.get_mut(index)
        {
            replay.after = after;
            session.replays.push_front(replay);
        }
        self.give_retained(index, found, options, now);
        true
    }

    fn give_retained(&mut self, index: usize, found: Vec<Kept>, options: Options, now: Millis) {
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        let ids: SubscriptionIds = options.id.into_iter().collect();
        let (durable, number) = (session.durable, session.number);
        let mut given: Vec<(u64, u64, Qos)> = Vec::new();
        let first = session.next();
        // What is promised is not shown before it is.
        let promised = |kept: &Kept| kept.seq == 0 || kept.message.is_none() || kept.qos == Qos::AtMostOnce;
        let mut ticket = if found.iter().all(promised) { Mark::NOW } else { self.book.appended };
        for Kept { seq, qos, message, .. } in found {
            let qos = qos.min(options.qos);
            let mut entry = Entry::new(seq, message, qos, true, ids.clone());
            entry.logged = durable && seq != 0 && qos != Qos::AtMostOnce;
            if entry.logged {
                entry.seq = self.moving.place(seq);
            }
            let (logged, seq) = (entry.logged, entry.seq);
            let at = session.queue().push(entry);
            if logged {
                session.logged_next = at + 1;
                given.push((at, seq, qos));
            }
        }
        let next = session.next();
        if !given.is_empty() {
            ticket = ticket.and(Mark::committed(self.book.append(now, |pen, log| {
                for (at, seq, qos) in &given {
                    pen.given(log, number, *at, *seq, *qos, true, &ids);
                }
            })));
        }
        // Not before: another message could get the id after a crash, and would be taken for a repetition.
        if next > first {
            self.after(ticket, Waiting::Given { session: index, id: number, first, last: next - 1 }, now);
        }
    }

    pub(super) fn unsubscribe(&mut self, id: ConnId, unsubscribe: &Unsubscribe, now: Millis) {
        let Some(index) = self.session_of(id) else { return self.fail(id, ReasonCode::ProtocolError, now) };
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len());
        let mut removed = Vec::new();
        for filter in &unsubscribe.filters {
            if let Some((name, filter)) = super::queue::parse(filter) {
                self.stop_consuming(index, name, filter, now);
            }
            if self.state.unsubscribe(index, filter) {
                removed.push(filter.clone());
                reasons.push(ReasonCode::Success);
            } else {
                reasons.push(ReasonCode::NoSubscriptionExisted);
            }
        }
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        let number = session.number;
        let mut ticket = Mark::NOW;
        if session.durable && !removed.is_empty() {
            ticket = self.book.append_as(session.buffered, now, |pen, log| {
                for filter in &removed {
                    pen.unsubscribe(log, number, filter);
                }
            });
            session.ticket = ticket;
        }
        let v5 = self.conn(id).is_some_and(|conn| conn.version.is_v5());
        let ticket = self.in_turn(id, ticket);
        let unsuback = Unsuback {
            packet_id: unsubscribe.packet_id,
            reasons: if v5 { reasons } else { Vec::new() },
            properties: None,
        };
        self.after(ticket, Waiting::Packet { conn: id, packet: Box::new(Packet::Unsuback(unsuback)) }, now);
    }
}
