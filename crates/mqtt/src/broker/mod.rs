//! The broker as a state machine: bytes of connections, commits and time go in; bytes for connections, records of its
//! log and the next deadline come out. It has no socket, no thread and no clock.
//!
//! All that must survive is in one log of the engine's [`LogStore`]; [`Broker::open`] is the fold of it. What leaves
//! only after which record is committed:
//!
//! | to the peer | after the record | because of a crash in between |
//! |---|---|---|
//! | PUBREC, PUBACK | the message, with its packet id and its routing, one record | it would be lost, or known and never delivered |
//! | PUBLISH | the same | it would come again under another id |
//! | PUBREL | `rec`: the client has the message | the message would be sent again after the client forgot the id |
//! | PUBCOMP | `rel`: the id is free | the next message with this id would be taken for a repetition |
//! | CONNACK, SUBACK, UNSUBACK | `here`, `subs`, `unsub` | a session or a subscription would be gone that was promised |
//!
//! What no durable session subscribes to and nobody wants retained needs no record: after a crash there would be
//! nobody to get it.

mod acks;
mod again;
mod book;
mod config;
mod conn;
mod connect;
mod deliver;
pub(crate) mod door;
mod end;
mod fold;
mod graves;
mod incoming;
pub mod inspect;
mod letters;
mod logins;
mod message;
mod outbox;
mod outgoing;
mod publish;
mod queue;
pub mod reason;
mod records;
mod retained;
mod session;
mod snapshot;
mod state;
mod subscribe;
mod sys;
#[cfg(test)]
mod tests;
mod turns;

pub use again::{Post, PostError, Posted};
pub use config::{BrokerConfig, Durability, DurabilityRule, ListenerConfig, Overflow, Planted};
pub use conn::Peer;
pub use letters::DeadLetter;
pub use message::{letter_payload, letter_properties, post_payload, post_properties};
pub use outbox::Outbox;
pub use sys::Counters;

use crate::access::Access;
use crate::codec::{
    Ack, Connack, DecodeError, Disconnect, DisconnectProperties, Packet, PacketId, PacketType, ReasonCode,
    Utf8, Version,
};
use acks::Batch;
use book::Book;
use bytes::BytesMut;
use conn::{Conn, Stage};
use fold::Fold;
use message::Message;
use postroad_core::mailbox::{Millis, Taken};
use postroad_engine::log::{LogError, LogStore, Mark, Ticket};
use session::Target;
use slab::Slab;
use smallvec::SmallVec;
use state::State;
use std::collections::BTreeSet;
use std::sync::Arc;
use turns::Turns;

/// Bytes of one packet that are as good as a packet for the keep alive: who sends fewer in one and a half times of it is
/// not there.
const PROGRESS: usize = 1024;

/// A connection of a [`Broker`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    index: u32,
    // Places are used again, this is not.
    generation: u32,
}

/// There are too many connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many connections")]
pub struct Refused;

/// The broker could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// Its log could not be read.
    #[error("the broker's log: {0}")]
    Log(#[from] LogError),
}

/// What is done when a ticket is committed.
enum Waiting {
    Ack {
        conn: ConnId,
        kind: PacketType,
        id: PacketId,
        reason: ReasonCode,
        counted: bool,
    },
    Packet {
        conn: ConnId,
        packet: Box<Packet>,
    },
    Offer {
        seq: u64,
        message: Arc<Message>,
        targets: SmallVec<[Target; 1]>,
    },
    /// Numbers in the queue of a session, by its place and its number, are in the log.
    Given {
        session: usize,
        id: u64,
        first: u64,
        last: u64,
    },
    /// Messages of work queues are in the log.
    Work(Vec<queue::From>),
    /// The server goes down, and the wills are in the log.
    Goodbye,
    /// CONNACK or SUBACK was sent: what waits for its session may follow.
    Resume {
        conn: ConnId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// CONNECT, or any packet, must have come.
    KeepAlive(ConnId),
    SessionExpiry(u64),
    WillDelay(u64),
    Queue(u64),
    /// Dead letters may go out.
    Letters,
    Sys,
    Lazy,
}

/// See the module.
pub struct Broker {
    config: BrokerConfig,
    access: Arc<dyn Access>,
    book: Book,
    state: State,
    conns: Slab<Conn>,
    next_generation: u32,
    waiting: Turns<Waiting>,
    timers: BTreeSet<(Millis, Timer)>,
    touched: Vec<ConnId>,
    // Old messages that were written again: their numbers, and those of the copies, until these are committed.
    moving: snapshot::Moving,
    // Connections that are not read for a while.
    held: Vec<ConnId>,
    logins: logins::Logins,
    letters: letters::Letters,
    counters: Counters,
    // Acknowledgements of this turn, not yet in the log.
    batch: Batch,
    // Exchanges that are over, not yet in the log: session, first, last.
    over: Vec<(u64, u64, u64)>,
    // None of them need be synced.
    over_buffered: bool,
    // When the first of them was.
    over_since: Millis,
    // Nobody waits for what was appended last, but it is time.
    overdue: bool,
    draining: bool,
    // Whose rights were checked last against which state of the access rules.
    generation: u64,
    // The store forgets everything with the process: messages need no records.
    volatile: bool,
    started: Millis,
    // Reused memory.
    targets: Vec<Target>,
    taken: Vec<Taken>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("connections", &self.conns.len())
            .field("sessions", &self.state.sessions.len())
            .finish_non_exhaustive()
    }
}

impl Broker {
    /// Reads the broker's log, `mqtt` in the store, and is ready to serve when this returns.
    pub fn open(
        config: BrokerConfig,
        store: Arc<dyn LogStore>,
        access: Arc<dyn Access>,
        now: Millis,
    ) -> Result<Self, BrokerError> {
        let mut fold = Fold::new(config.queue_policy.clone());
        let log = store.open_system("mqtt", &mut |view| fold.apply(view))?;
        let volatile = store.sync_mode() == "memory";
        let mut broker = Self {
            volatile,
            generation: access.generation(),
            book: Book::new(store, log),
            access,
            state: fold.finish(),
            conns: Slab::new(),
            next_generation: 1,
            waiting: Turns::default(),
            over_buffered: true,
            over_since: 0,
            timers: BTreeSet::new(),
            touched: Vec::new(),
            moving: snapshot::Moving::default(),
            held: Vec::new(),
            logins: logins::Logins::default(),
            letters: letters::Letters::default(),
            counters: Counters::default(),
            batch: Batch::default(),
            over: Vec::new(),
            overdue: false,
            draining: false,
            started: now,
            targets: Vec::new(),
            taken: Vec::new(),
            config,
        };
        broker.restore_letters();
        broker.maybe_snapshot(now);
        broker.resume_absent(now);
        broker.start_sys(now);
        broker.advance_letters(now);
        Ok(broker)
    }

    /// A transport is there; its first packet is to be CONNECT.
    pub fn connect(
        &mut self,
        listener: &Arc<ListenerConfig>,
        peer: Peer,
        now: Millis,
    ) -> Result<ConnId, Refused> {
        if self.conns.len() >= self.config.max_connections || self.draining {
            self.counters.refused += 1;
            return Err(Refused);
        }
        let entry = self.conns.vacant_entry();
        let id = ConnId { index: entry.key() as u32, generation: self.next_generation };
        self.next_generation = self.next_generation.wrapping_add(1);
        entry.insert(Conn::new(id, listener, peer, now));
        let limit = u64::try_from(listener.connect_timeout.as_millis()).unwrap_or(u64::MAX / 2);
        self.arm(id, now + limit);
        Ok(id)
    }

    /// Bytes came: whole packets are taken off `buf`, the rest is left.
    pub fn input(&mut self, id: ConnId, buf: &mut BytesMut, now: Millis) {
        if self.conn(id).is_none() {
            buf.clear();
            return;
        }
        self.maybe_snapshot(now);
        while let Some(conn) = self.conn_mut(id) {
            if matches!(conn.stage, Stage::Closing) {
                buf.clear();
                break;
            }
            if matches!(conn.stage, Stage::Checking(_)) {
                break;
            }
            let modern = matches!(conn.stage, Stage::New) && is_modern(buf);
            match conn.decoder.decode(buf) {
                Ok(Some(packet)) => {
                    conn.last_seen = now;
                    conn.unfinished = 0;
                    self.counters.packets_received += 1;
                    self.packet(id, packet, now);
                }
                Ok(None) => {
                    // Packets are a sign of life, bytes are not [MQTT-3.1.2-22]; but a large one may take its time.
                    if buf.len() >= conn.unfinished + PROGRESS {
                        conn.last_seen = now;
                        conn.unfinished = buf.len();
                    }
                    break;
                }
                Err(error) => {
                    buf.clear();
                    if modern {
                        // [MQTT-3.1.2-2]: in the newest version of ours.
                        conn.version = Version::V5;
                    }
                    self.malformed(id, error, now);
                    break;
                }
            }
        }
        self.log_batch(now);
    }

    fn packet(&mut self, id: ConnId, packet: Packet, now: Millis) {
        let logs_in = |conn: &Conn| matches!(conn.stage, Stage::Authenticating(_));
        if self.conn(id).is_some_and(logs_in) && !matches!(packet, Packet::Auth(_) | Packet::Disconnect(_)) {
            // [MQTT-3.1.2-30]
            return self.refuse(id, ReasonCode::ProtocolError, Some("a packet before the log-in was over"));
        }
        match packet {
            Packet::Publish(publish) => self.publish(id, publish, now),
            Packet::Puback(ack) => self.puback(id, &ack, now),
            Packet::Pubrec(ack) => self.pubrec(id, &ack, now),
            Packet::Pubrel(ack) => self.pubrel(id, &ack, now),
            Packet::Pubcomp(ack) => self.pubcomp(id, &ack, now),
            Packet::Pingreq => self.send(id, &Packet::Pingresp),
            Packet::Subscribe(subscribe) => self.subscribe(id, &subscribe, now),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(id, &unsubscribe, now),
            Packet::Connect(connect) => self.greet(id, *connect, now),
            Packet::Auth(auth) => self.auth(id, &auth, now),
            Packet::Disconnect(disconnect) => self.disconnected(id, &disconnect, now),
            // The decoder lets nothing in that only a server sends (table 2-1).
            _ => self.fail(id, ReasonCode::ProtocolError, now),
        }
    }

    /// The transport is gone.
    pub fn lost(&mut self, id: ConnId, now: Millis) {
        self.maybe_snapshot(now);
        self.leave(id, now);
        self.log_batch(now);
        self.drop_conn(id);
    }

    /// Asks the store what is committed, and does what waited for it.
    pub fn committed(&mut self, now: Millis) {
        if self.book.failure().is_some() || !self.book.refresh() {
            return;
        }
        while let Some(waiting) = self.waiting.next(self.book.at()) {
            self.perform(waiting, now);
        }
        self.release_held();
        self.trim();
        self.advance_letters(now);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Millis) {
        self.maybe_snapshot(now);
        self.check_rights(now);
        while let Some((due, timer)) = self.timers.first().copied()
            && due <= now
        {
            self.timers.pop_first();
            match timer {
                Timer::KeepAlive(conn) => self.check_alive(conn, now),
                Timer::SessionExpiry(session) => self.check_expiry(session, now),
                Timer::WillDelay(session) => self.check_will(session, now),
                Timer::Queue(queue) => self.tick_queue(queue, now),
                Timer::Letters => self.advance_letters(now),
                Timer::Sys => self.publish_sys(now),
                Timer::Lazy => self.log_lazily(now),
            }
        }
        self.log_batch(now);
    }

    /// After the rules of access changed: who would not be let in any more is not kept, either.
    fn check_rights(&mut self, now: Millis) {
        let generation = self.access.generation();
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        let gone = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.session().is_some() && !self.access.is_current(&conn.who));
        let gone: Vec<ConnId> = gone.map(|(_, conn)| conn.id).collect();
        for id in gone {
            self.fail_with(
                id,
                ReasonCode::NotAuthorized,
                Some("the user was removed or has another password"),
                true,
                now,
            );
        }
    }

    /// When [`Broker::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// What something waits for: flush the store, and call [`Broker::committed`] when a part of it is reached.
    pub fn pending(&mut self) -> Option<Mark> {
        let appended = self.book.appended;
        let mut mark = match self.waiting.waits() {
            (false, false) if std::mem::take(&mut self.overdue) => appended,
            (false, false) => Mark::NOW,
            (false, true) => Mark::written(appended.written),
            (true, _) => appended,
        };
        if mark.committed == Ticket(0)
            && let Some(ticket) = self.letters.waits_for()
        {
            mark.committed = ticket;
        }
        let left = self.book.left(mark);
        (left != Mark::NOW).then_some(left)
    }

    /// Connections with something to write, to close, or to read again since the last call.
    pub fn touched(&mut self, out: &mut Vec<ConnId>) {
        for id in self.touched.drain(..) {
            if let Some(conn) = self.conns.get_mut(id.index as usize)
                && conn.id == id
            {
                conn.touched = false;
                out.push(id);
            }
        }
    }

    /// What is to be written to a connection; `None`: it is not known any more.
    pub fn outbox(&mut self, id: ConnId) -> Option<&mut Outbox> {
        self.conn_mut(id).map(|conn| &mut conn.out)
    }

    /// Everything in its outbox was written: more may go there.
    pub fn written(&mut self, id: ConnId, now: Millis) {
        if let Some(session) = self.conn_mut(id).and_then(|conn| conn.session()) {
            self.pump(session, now);
            self.log_batch(now);
        }
        self.release_held();
    }

    /// False: it should not be read now. It is touched when that is over.
    pub fn wants_input(&mut self, id: ConnId) -> bool {
        let busy = self.book.store.admit().is_err_and(|error| matches!(error, LogError::Busy));
        let max_output = self.config.max_output;
        let Some(conn) = self.conn_mut(id) else { return false };
        if matches!(conn.stage, Stage::Checking(_)) {
            return false;
        }
        let receive = u32::from(conn.listener.receive_maximum);
        let slow = conn.out.len() > 2 * max_output || conn.unacknowledged > 2 * receive || busy;
        if slow && !conn.held {
            conn.held = true;
            self.held.push(id);
        }
        !slow
    }

    /// The graceful end: clients are told, and their wills are published, those with a delay when it is over, in a later
    /// life if need be. What waits for a commit is still answered.
    pub fn drain(&mut self, now: Millis) {
        self.draining = true;
        let all: Vec<ConnId> = self.conns.iter().map(|(_, conn)| conn.id).collect();
        self.publish_due_wills(&all, now);
        for id in all {
            if self.session_of(id).is_none() {
                self.close(id);
            }
        }
        // Who is there gets the wills of the others, and then goes.
        self.after(self.book.appended, Waiting::Goodbye, now);
        self.log_over(now);
        self.overdue = true;
    }

    /// What it did since it was opened.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// True if all up to this ticket of its store is committed, as far as the broker was told.
    pub fn is_committed(&self, ticket: Ticket) -> bool {
        self.book.is_committed(ticket)
    }

    /// Why nothing is promised any more, if so.
    pub fn failure(&self) -> Option<LogError> {
        self.book.failure()
    }

    fn conn(&self, id: ConnId) -> Option<&Conn> {
        self.conns.get(id.index as usize).filter(|conn| conn.id == id)
    }

    /// Sets the one timer of a connection.
    fn arm(&mut self, id: ConnId, due: Millis) {
        let Some(conn) = self.conn_mut(id) else { return };
        let before = std::mem::replace(&mut conn.armed, due);
        self.timers.remove(&(before, Timer::KeepAlive(id)));
        self.timers.insert((due, Timer::KeepAlive(id)));
    }

    /// The session of a connection that was accepted.
    fn session_of(&self, id: ConnId) -> Option<usize> {
        self.conn(id).and_then(Conn::session)
    }

    fn conn_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(id.index as usize).filter(|conn| conn.id == id)
    }

    fn touch(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id.index as usize)
            && conn.id == id
            && !conn.touched
        {
            conn.touched = true;
            self.touched.push(id);
        }
    }

    /// Writes a packet at once.
    fn send(&mut self, id: ConnId, packet: &Packet) {
        let Some(conn) = self.conn_mut(id) else { return };
        let (version, max) = (conn.version, conn.max_packet);
        if packet.encoded_len(version) > max as usize {
            // [MQTT-3.1.2-24]: what is too large is not sent.
            return;
        }
        let sent = conn.out.write(|out| packet.encode(version, out));
        if sent.is_ok() {
            self.counters.packets_sent += 1;
        }
        self.touch(id);
    }

    /// Does something when `ticket` is reached.
    fn after(&mut self, ticket: Mark, waiting: Waiting, now: Millis) {
        if self.book.is_reached(ticket) {
            self.perform(waiting, now);
            return;
        }
        self.waiting.push(ticket, waiting, self.book.at());
    }

    /// The ticket for a packet to a connection that must not leave before `ticket`, nor before earlier ones: also not
    /// when `ticket` is reached, and an earlier one still waits for its turn.
    fn in_turn(&mut self, id: ConnId, ticket: Mark) -> Mark {
        let Some(conn) = self.conn(id) else { return ticket };
        let mut turn = conn.ticket.and(ticket);
        if !self.book.is_reached(turn) {
            turn = self.waiting.behind(turn, self.book.at());
        }
        if let Some(conn) = self.conn_mut(id) {
            conn.ticket = turn;
        }
        turn
    }

    fn perform(&mut self, waiting: Waiting, now: Millis) {
        match waiting {
            Waiting::Ack { conn: id, kind, id: packet, reason, counted } => {
                let Some(conn) = self.conn_mut(id) else { return };
                conn.unacknowledged -= u32::from(counted && conn.unacknowledged > 0);
                let version = conn.version;
                let ack = Ack::with_reason(packet, reason);
                if conn.out.write(|out| ack.encode(kind, version, out)).is_ok() {
                    self.counters.packets_sent += 1;
                }
                self.touch(id);
            }
            Waiting::Packet { conn, packet } => self.send(conn, &packet),
            Waiting::Offer { seq, message, targets } => self.offer(seq, &message, &targets, now),
            Waiting::Given { session: index, id, first, last } => {
                let Some(session) = self.state.sessions.get_mut(index).filter(|session| session.number == id)
                else {
                    return;
                };
                (first..=last).for_each(|number| session.queue().offer(number));
                self.pump(index, now);
            }
            Waiting::Work(work) => self.offer_work(&work, now),
            Waiting::Goodbye => {
                let all: Vec<ConnId> = self.conns.iter().map(|(_, conn)| conn.id).collect();
                for id in all {
                    let text = Some("the server goes down");
                    self.fail_with(id, ReasonCode::ServerShuttingDown, text, true, now);
                }
                self.log_over(now);
                self.overdue = true;
            }
            Waiting::Resume { conn: id } => {
                let Some(conn) = self.conn_mut(id) else { return };
                conn.greeted = true;
                if let Some(index) = conn.session() {
                    self.attach_queues(index, now);
                    self.pump(index, now);
                }
            }
        }
    }

    /// Connections that were held back may be read again.
    fn release_held(&mut self) {
        for id in std::mem::take(&mut self.held) {
            if let Some(conn) = self.conn_mut(id) {
                conn.held = false;
            }
            self.touch(id);
        }
    }

    /// Bytes that are no packet, or not one that may come. [MQTT-4.13.1-1]
    fn malformed(&mut self, id: ConnId, error: DecodeError, now: Millis) {
        self.counters.malformed += 1;
        tracing::debug!(?id, clause = error.clause(), "{error}");
        let Some(conn) = self.conn_mut(id) else { return };
        conn.version = conn.decoder.version().unwrap_or(conn.version);
        let text = error.to_string();
        if matches!(conn.stage, Stage::New) {
            self.refuse(id, error.reason(), Some(&text));
        } else {
            self.fail_with(id, error.reason(), Some(&text), true, now);
        }
    }

    /// Refuses a connection that has not been accepted. Before 5.0 only some reasons have a code (section 3.2.2.3).
    fn refuse(&mut self, id: ConnId, reason: ReasonCode, text: Option<&str>) {
        self.counters.refused += 1;
        let Some(conn) = self.conn_mut(id) else { return };
        let says = conn.version.is_v5() && conn.decoder.version().is_some()
            || matches!(
                reason,
                ReasonCode::UnsupportedProtocolVersion
                    | ReasonCode::ClientIdentifierNotValid
                    | ReasonCode::ServerUnavailable
                    | ReasonCode::ServerBusy
                    | ReasonCode::BadUserNameOrPassword
                    | ReasonCode::NotAuthorized
            );
        if says {
            let mut connack = Connack::refused(reason);
            connack.properties.reason_string = text.and_then(|text| Utf8::try_from(text).ok());
            self.send(id, &Packet::Connack(Box::new(connack)));
        }
        self.close(id);
    }

    /// Ends a connection because of what it did; its will is published.
    fn fail(&mut self, id: ConnId, reason: ReasonCode, now: Millis) {
        self.fail_with(id, reason, None, true, now);
    }

    fn fail_with(&mut self, id: ConnId, reason: ReasonCode, text: Option<&str>, will: bool, now: Millis) {
        let Some(conn) = self.conn_mut(id) else { return };
        if matches!(conn.stage, Stage::Closing) {
            return;
        }
        let open = conn.session().is_some();
        if open && conn.version.is_v5() {
            let mut disconnect = Disconnect::new(reason);
            if conn.problem_information
                && let Some(text) = text.and_then(|text| Utf8::try_from(text).ok())
            {
                disconnect.properties =
                    Some(Box::new(DisconnectProperties { reason_string: Some(text), ..Default::default() }));
            }
            self.send(id, &Packet::Disconnect(disconnect));
        }
        if open {
            self.part(id, will, now);
        }
        self.close(id);
    }

    /// Nothing is read any more; the transport ends when everything is written.
    fn close(&mut self, id: ConnId) {
        self.forget_login(id);
        let Some(conn) = self.conn_mut(id) else { return };
        conn.stage = Stage::Closing;
        conn.out.close();
        self.touch(id);
    }

    fn drop_conn(&mut self, id: ConnId) {
        if self.conn(id).is_some() {
            self.forget_login(id);
            let mut conn = self.conns.remove(id.index as usize);
            conn.out.clear();
            self.timers.remove(&(conn.armed, Timer::KeepAlive(id)));
        }
    }
}

/// True if `buf` begins with a CONNECT of version 5 or above.
fn is_modern(buf: &[u8]) -> bool {
    let level = || {
        let body = buf.get(1..)?;
        let length = body.iter().take(4).position(|byte| byte & 0x80 == 0)? + 1;
        let body = body.get(length..)?;
        let (name, rest) = body.split_first_chunk::<2>()?;
        rest.get(usize::from(u16::from_be_bytes(*name))).copied()
    };
    level().is_some_and(|level| level >= 5)
}
