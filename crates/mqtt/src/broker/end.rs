//! How connections and sessions end: DISCONNECT, silence, time, and what becomes of wills (sections 3.1.2.5, 3.14, 4.1).

use super::config::Durability;
use super::conn::Stage;
use super::message::Origin;
use super::session::{NEVER, Session};
use super::{Broker, ConnId, Timer, reason};
use crate::access::Identity;
use crate::codec::{Disconnect, ReasonCode};
use postroad_core::mailbox::Millis;

impl Broker {
    /// DISCONNECT of the client.
    pub(super) fn disconnected(&mut self, id: ConnId, disconnect: &Disconnect, now: Millis) {
        let Some(index) = self.session_of(id) else {
            return self.close(id);
        };
        let asked = disconnect.properties.as_ref().and_then(|properties| properties.session_expiry_interval);
        if let (Some(asked), Some(session)) = (asked, self.state.sessions.get_mut(index)) {
            if session.expiry == 0 && asked > 0 {
                // [MQTT-3.14.2-2]
                return self.fail(id, ReasonCode::ProtocolError, now);
            }
            session.expiry = asked.min(self.config.session_expiry_max);
        }
        // [MQTT-3.14.4-3]: the will goes. With any other reason than a normal end it is published (section 3.14.2.1).
        self.part(id, disconnect.reason != ReasonCode::Success, now);
        self.close(id);
    }

    /// The transport is gone without a DISCONNECT.
    pub(super) fn leave(&mut self, id: ConnId, now: Millis) {
        if self.conn(id).is_some_and(|conn| conn.session().is_some()) {
            self.part(id, true, now);
        }
    }

    /// The session loses its connection.
    pub(super) fn part(&mut self, id: ConnId, will: bool, now: Millis) {
        self.log_batch(now);
        if let Some(index) = self.session_of(id) {
            self.detach_queues(index, now);
        }
        let Some(conn) = self.conn_mut(id) else { return };
        let Some(index) = conn.session() else { return };
        conn.stage = Stage::Closing;
        conn.extras = None;
        self.counters.disconnects += 1;
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        session.conn = None;
        session.replays.clear();
        session.away = Some(now);
        if !will {
            session.will = None;
        }
        if let Some(queue) = session.outgoing_mut() {
            queue.detach(now);
            queue.forget_bodies();
        }
        session.sent = session.outgoing().map_or(0, super::outgoing::Outgoing::sent);
        session.tidy();
        let number = session.number;
        let (expiry, delay) = (session.expiry, session.will.as_ref().map(|will| will.delay));
        self.redistribute(index, now);
        if expiry == 0 {
            // The will is published when the session ends, however long its delay. [MQTT-3.1.2-8]
            self.end_session(index, now);
            return;
        }
        // What is acknowledged must not come back, after a crash, as if it had never been sent.
        self.log_over(now);
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        let ticket = self.book.append_as(session.buffered, now, |pen, log| pen.away(log, session, now));
        session.ticket = ticket;
        self.overdue = true;
        match delay {
            Some(0) => self.publish_will(index, now),
            Some(delay) => {
                self.timers.insert((now + u64::from(delay) * 1000, Timer::WillDelay(number)));
            }
            None => {}
        }
        if expiry != NEVER {
            self.timers.insert((now + u64::from(expiry) * 1000, Timer::SessionExpiry(number)));
        }
    }

    /// The session ends, and with it all that it has.
    pub(super) fn end_session(&mut self, index: usize, now: Millis) {
        self.end_session_because(index, reason::ENDED, now);
    }

    fn end_session_because(&mut self, index: usize, why: &'static str, now: Millis) {
        self.publish_will(index, now);
        let Some(session) = self.state.sessions.get(index) else { return };
        let number = session.number;
        let (logged, buffered) = (session.durable || session.in_log, session.buffered);
        // What its client has must not be in the letters.
        self.log_over(now);
        let burial = self.bury_session(index, why, now);
        self.state.end(index);
        if logged {
            let gone = self.book.append_as(buffered, now, |pen, log| pen.gone(log, number, burial.as_ref()));
            if let Some(burial) = burial {
                // They are handed out when they are durable.
                self.buried(gone.committed.max(gone.written), &burial, now);
            }
            self.overdue = true;
        }
    }

    /// Publishes the will, if there is one.
    fn publish_will(&mut self, index: usize, now: Millis) {
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        let Some(will) = session.will.take() else { return };
        let (number, client) = (session.number, session.client.clone());
        // After a restart only its name is known.
        let who = match (&session.owner, session.who.name()) {
            (Some(owner), None) => Identity::user(owner.as_ref()),
            _ => session.who.clone(),
        };
        let logged = session.durable || session.in_log;
        let durability = if session.buffered { Durability::Os } else { Durability::Fsync };
        let message = will.publish(now);
        // Rights may have been taken away since CONNECT.
        if !self.access.may_publish(&who, &client, &message.topic, message.retain) {
            self.bury_will(message, &client, logged.then_some(number), now);
            return;
        }
        self.counters.wills += 1;
        let origin = Origin { will_of: logged.then_some(number), ..Origin::default() };
        self.distribute_as(message, origin, durability, now);
    }

    /// The wills that need not wait after the end of these connections, while the others are still there to get them.
    /// [MQTT-3.1.2-8] has no exception for a server that goes down.
    pub(super) fn publish_due_wills(&mut self, conns: &[ConnId], now: Millis) {
        for id in conns {
            let Some(index) = self.session_of(*id) else { continue };
            let session = self.state.sessions.get(index);
            let due = |session: &Session| {
                session.will.as_ref().is_some_and(|will| will.delay == 0 || session.expiry == 0)
            };
            if session.is_some_and(due) {
                self.publish_will(index, now);
            }
        }
    }

    pub(super) fn check_will(&mut self, session: u64, now: Millis) {
        let Some(index) = self.state.session(session) else { return };
        let Some(session) = self.state.sessions.get(index) else { return };
        let due =
            session.away.zip(session.will.as_ref()).map(|(away, will)| away + u64::from(will.delay) * 1000);
        if due.is_some_and(|due| due <= now) {
            self.publish_will(index, now);
        }
    }

    pub(super) fn check_expiry(&mut self, session: u64, now: Millis) {
        let Some(index) = self.state.session(session) else { return };
        let due = self.state.sessions.get(index).and_then(super::session::Session::expires_at);
        if due.is_some_and(|due| due <= now) {
            self.counters.expired_sessions += 1;
            self.end_session_because(index, reason::SESSION_EXPIRED, now);
        }
    }

    /// A connection that is silent for too long is closed. [MQTT-3.1.2-22]
    pub(super) fn check_alive(&mut self, id: ConnId, now: Millis) {
        let Some(conn) = self.conn_mut(id) else { return };
        match conn.stage {
            Stage::Open { .. } if conn.keep_alive == 0 => {}
            Stage::Open { .. } => {
                let due = conn.last_seen + conn.keep_alive;
                if due > now {
                    self.arm(id, due);
                } else {
                    self.fail_with(id, ReasonCode::KeepAliveTimeout, None, true, now);
                }
            }
            Stage::New | Stage::Authenticating(_) | Stage::Checking(_) => self.close(id),
            Stage::Closing => {}
        }
    }

    /// After a start: clients that were connected are not any more, and time has passed.
    pub(super) fn resume_absent(&mut self, now: Millis) {
        let all: Vec<usize> = self.state.sessions.iter().map(|(index, _)| index).collect();
        for index in all {
            let Some(session) = self.state.sessions.get_mut(index) else { continue };
            session.in_log = true;
            let crashed = session.away.is_none();
            if crashed && self.config.planted.will_forgotten {
                session.will = None;
            }
            let away = *session.away.get_or_insert(now);
            let number = session.number;
            let (expiry, delay) = (session.expiry, session.will.as_ref().map(|will| will.delay));
            session.tidy();
            if expiry == 0 {
                self.end_session(index, now);
                continue;
            }
            if crashed && let Some(session) = self.state.sessions.get(index) {
                self.book.append(now, |pen, log| pen.away(log, session, away));
                self.overdue = true;
            }
            if let Some(delay) = delay {
                self.timers.insert((away + u64::from(delay) * 1000, Timer::WillDelay(number)));
            }
            if expiry != NEVER {
                self.timers.insert((away + u64::from(expiry) * 1000, Timer::SessionExpiry(number)));
            }
        }
    }
}
