//! The four acknowledgements (sections 3.4 to 3.7 and 4.3).

use super::incoming::Release;
use super::outgoing::{Acked, packet_id};
use super::{Broker, ConnId, Timer, Waiting, reason};
use crate::codec::{Ack, PacketId, PacketType, ReasonCode};
use postroad_core::mailbox::Millis;
use postroad_engine::log::Mark;
use smallvec::SmallVec;

/// Acknowledgements of one turn of one connection: one record for many of them.
#[derive(Debug, Default)]
pub(super) struct Batch {
    conn: Option<ConnId>,
    /// PUBRECs: numbers of the session's queue.
    received: Option<(u64, u64)>,
    /// PUBRELs.
    released: SmallVec<[PacketId; 16]>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.conn.is_none()
    }
}

impl Broker {
    /// PUBACK: the end of a QoS 1 message.
    pub(super) fn puback(&mut self, id: ConnId, ack: &Ack, now: Millis) {
        let Some(index) = self.session_of(id) else { return self.fail(id, ReasonCode::ProtocolError, now) };
        let Some(queue) = self.state.sessions.get(index).and_then(|session| session.outgoing()) else {
            return;
        };
        if let Acked::Number(number) = queue.puback(ack.packet_id) {
            let refused = ack.reason.is_error().then_some(reason::REFUSED);
            self.finish(index, number, refused, now);
            self.pump(index, now);
        }
    }

    /// PUBREC: the client has the message. From now on it gets PUBREL, never the message again. [MQTT-4.3.3-4], [MQTT-4.3.3-6]
    pub(super) fn pubrec(&mut self, id: ConnId, ack: &Ack, now: Millis) {
        let Some(index) = self.session_of(id) else { return self.fail(id, ReasonCode::ProtocolError, now) };
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        if ack.reason.is_error() {
            // [MQTT-4.4.0-2]: the exchange is over.
            if let Some(queue) = session.outgoing_mut()
                && let Acked::Number(number) = queue.pubrec(ack.packet_id)
            {
                self.finish(index, number, Some(reason::REFUSED), now);
                self.pump(index, now);
            }
            return;
        }
        let found = session.outgoing_mut().map_or(Acked::Unknown, |queue| queue.pubrec(ack.packet_id));
        match found {
            Acked::Number(number) => {
                let logged =
                    session.outgoing().and_then(|queue| queue.get(number)).is_some_and(|entry| entry.logged);
                if !logged || self.config.planted.release_before_record {
                    let ticket = self.in_turn(id, Mark::NOW);
                    self.ack(id, ticket, PacketType::Pubrel, ack.packet_id, ReasonCode::Success, now);
                    if !logged {
                        return;
                    }
                }
                self.batch_for(id, now);
                match &mut self.batch.received {
                    Some((_, last)) if *last + 1 == number => *last = number,
                    Some(_) => {
                        self.log_batch(now);
                        self.batch.conn = Some(id);
                        self.batch.received = Some((number, number));
                    }
                    none => *none = Some((number, number)),
                }
            }
            Acked::Again(_) => {
                // Its record may still wait, and PUBREL with it.
                self.log_batch(now);
                let ticket = self.in_turn(id, Mark::NOW);
                self.ack(id, ticket, PacketType::Pubrel, ack.packet_id, ReasonCode::Success, now);
            }
            Acked::Unknown => {
                let ticket = self.in_turn(id, Mark::NOW);
                self.ack(
                    id,
                    ticket,
                    PacketType::Pubrel,
                    ack.packet_id,
                    ReasonCode::PacketIdentifierNotFound,
                    now,
                );
            }
        }
    }

    /// PUBREL: the client will not send the message again, its id is free. [MQTT-4.3.3-11]
    pub(super) fn pubrel(&mut self, id: ConnId, ack: &Ack, now: Millis) {
        let Some(index) = self.session_of(id) else { return self.fail(id, ReasonCode::ProtocolError, now) };
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        let (logged, reason) = match session.incoming.release(ack.packet_id) {
            Release::Open { logged } => (logged, ReasonCode::Success),
            Release::Again => (false, ReasonCode::Success),
            Release::Unknown => (false, ReasonCode::PacketIdentifierNotFound),
        };
        if logged {
            self.batch_for(id, now);
            self.batch.released.push(ack.packet_id);
            if self.config.planted.complete_before_record {
                self.ack(id, Mark::NOW, PacketType::Pubcomp, ack.packet_id, reason, now);
            }
            return;
        }
        // The release itself may still wait for its record, and this answer with it.
        self.log_batch(now);
        let ticket = self.in_turn(id, Mark::NOW);
        self.ack(id, ticket, PacketType::Pubcomp, ack.packet_id, reason, now);
    }

    /// PUBCOMP: the end of a QoS 2 message. A record of it may be lost: at worst PUBREL is sent once more.
    pub(super) fn pubcomp(&mut self, id: ConnId, ack: &Ack, now: Millis) {
        let Some(index) = self.session_of(id) else { return self.fail(id, ReasonCode::ProtocolError, now) };
        let Some(queue) = self.state.sessions.get(index).and_then(|session| session.outgoing()) else {
            return;
        };
        if let Acked::Number(number) = queue.pubcomp(ack.packet_id) {
            self.finish(index, number, None, now);
            self.pump(index, now);
        }
    }

    pub(super) fn ack(
        &mut self,
        conn: ConnId,
        ticket: Mark,
        kind: PacketType,
        id: PacketId,
        reason: ReasonCode,
        now: Millis,
    ) {
        self.after(ticket, Waiting::Ack { conn, kind, id, reason, counted: false }, now);
    }

    fn batch_for(&mut self, id: ConnId, now: Millis) {
        if self.batch.conn != Some(id) {
            self.log_batch(now);
            self.batch.conn = Some(id);
        }
    }

    /// Writes the acknowledgements of this turn to the log; their answers leave when they are committed.
    pub(super) fn log_batch(&mut self, now: Millis) {
        let Some(id) = self.batch.conn.take() else { return };
        let received = self.batch.received.take();
        let released = std::mem::take(&mut self.batch.released);
        let session = self.session_of(id).and_then(|index| self.state.sessions.get(index));
        let Some((number, buffered)) = session.map(|session| (session.number, session.buffered)) else {
            return;
        };
        self.log_over(now);
        let ticket = self.book.append_as(buffered, now, |pen, log| {
            if let Some((first, last)) = received {
                pen.received(log, number, first, last);
            }
            if !released.is_empty() {
                pen.released(log, number, &released);
            }
        });
        let ticket = self.in_turn(id, ticket);
        if let Some((first, last)) = received
            && !self.config.planted.release_before_record
        {
            for number in first..=last {
                self.ack(id, ticket, PacketType::Pubrel, packet_id(number), ReasonCode::Success, now);
            }
        }
        if !self.config.planted.complete_before_record {
            for packet in released {
                self.ack(id, ticket, PacketType::Pubcomp, packet, ReasonCode::Success, now);
            }
        }
    }

    /// A message of a session is settled: acknowledged, or never to be sent (`dead` says why).
    pub(super) fn finish(&mut self, index: usize, number: u64, dead: Option<&'static str>, now: Millis) {
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        let Some(entry) = session.outgoing().and_then(|queue| queue.get(number)) else { return };
        let logged = entry.logged;
        let from = entry.from;
        let recorded = match (dead, from) {
            (Some(reason), None) => self.bury(index, number, reason, now),
            _ => false,
        };
        let Some(session) = self.state.sessions.get_mut(index) else { return };
        let (id, buffered) = (session.number, session.buffered);
        if let Some(queue) = session.outgoing_mut() {
            queue.finish(number, now);
        }
        if session.conn.is_none() {
            session.tidy();
        }
        if let Some(from) = from {
            return self.settle_work(index, from, dead, now);
        }
        if !logged || recorded {
            return;
        }
        self.over_buffered &= buffered;
        if self.over.is_empty() {
            self.over_since = now;
            self.make_due(now);
        }
        match self.over.last_mut() {
            Some((session, _, last)) if *session == id && *last + 1 == number => *last = number,
            _ => self.over.push((id, number, number)),
        }
        if self.over.len() >= 1024 {
            self.log_over(now);
        }
    }

    fn lazy(&self) -> Millis {
        u64::try_from(self.config.lazy.as_millis()).unwrap_or(0)
    }

    /// What nobody waits for is committed soon.
    pub(super) fn make_due(&mut self, now: Millis) {
        self.timers.insert((now + self.lazy(), Timer::Lazy));
    }

    /// Time for what nobody waits for.
    pub(super) fn log_lazily(&mut self, now: Millis) {
        let due = self.over_since + self.lazy();
        if self.over.is_empty() || now >= due {
            self.log_over(now);
        } else {
            // It was made due by others, which have been written meanwhile.
            self.log_stored(now);
            self.timers.insert((due, Timer::Lazy));
        }
        self.overdue = true;
    }

    /// Exchanges that are over join a commit that somebody waits for, if they have been for a while: a slow disk so
    /// does without a commit for them alone.
    pub(super) fn log_over_beside(&mut self, now: Millis) {
        if !self.over.is_empty() && now >= self.over_since + self.lazy() / 4 {
            self.log_over(now);
        }
    }

    /// Writes the exchanges that are over to the log. Nobody waits for it.
    pub(super) fn log_over(&mut self, now: Millis) {
        self.log_stored(now);
        if self.over.is_empty() {
            return;
        }
        let over = std::mem::take(&mut self.over);
        let buffered = std::mem::replace(&mut self.over_buffered, true);
        self.book.append_as(buffered, now, |pen, log| {
            for (session, first, last) in &over {
                pen.done(log, *session, *first, *last);
            }
        });
        self.over = over;
        self.over.clear();
    }
}
