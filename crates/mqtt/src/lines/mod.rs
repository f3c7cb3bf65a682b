//! The line dialect: JSON lines over TCP onto the sessions and the log of the MQTT [`Broker`].
//!
//! [`Doors`] is the broker with both its doors, a state machine as the broker is: bytes, commits and time go in, bytes
//! and the next deadline come out. `docs/mqtt-lines.md` is the protocol.
//!
//! A consumer is one inner MQTT session for each of its topics, with a window of one message: so the broker's queue is
//! its place in the topic, and what is durable there is durable here. What a publisher has not released is in the queue
//! of a session that nobody connects to.

mod config;
mod consumer;
mod edge;
mod letters;
mod line;
mod payload;
mod publisher;
#[cfg(test)]
mod tests;
mod text;

pub use config::{DEAD_LETTERS, DoorListener, LinesConfig, Planted, Role};
pub(crate) use edge::DoorsBehind;
pub use line::LineId;

use crate::access::{Access, Denied, Identity, PasswordCheck};
use crate::broker::{
    Broker, BrokerConfig, BrokerError, ConnId, DeadLetter, ListenerConfig, Outbox, Peer, Post, PostError,
    Posted, Refused,
};
use crate::codec::Utf8;
use bytes::BytesMut;
use line::Line;
use postroad_core::mailbox::Millis;
use postroad_engine::log::{LogError, LogStore, Mark, Ticket};
use publisher::Kept;
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// How often dead letters are looked for in one turn.
const MAX_BURIALS: usize = 4;

/// A connection of [`Doors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DoorId {
    /// It speaks MQTT.
    Mqtt(ConnId),
    /// It speaks lines.
    Line(LineId),
}

/// The broker and its doors. See the module.
#[derive(Debug)]
pub struct Doors {
    broker: Broker,
    config: LinesConfig,
    lines: Slab<Line>,
    next_generation: u32,
    /// Who is logged in.
    users: HashMap<String, LineId>,
    /// Inner connections: the line and the topic that each is for.
    inner: HashMap<ConnId, (LineId, Utf8)>,
    /// Client ids of the sessions of consumers.
    clients: BTreeSet<Utf8>,
    /// When what was sent on an inner connection is to be sent again.
    timers: BTreeSet<(Millis, ConnId)>,
    /// What was published and not released.
    held: BTreeMap<u64, Kept>,
    /// Lines with replies that wait for a commit.
    waiting: Vec<LineId>,
    /// Lines that are not read for now.
    held_back: Vec<LineId>,
    touched: Vec<DoorId>,
    draining: bool,
    // Reused memory.
    seen: Vec<ConnId>,
}

impl Doors {
    /// Opens the broker, and reads what was published and not released. Afterwards it is ready to serve.
    pub fn open(
        broker: BrokerConfig,
        config: LinesConfig,
        store: Arc<dyn LogStore>,
        access: Arc<dyn Access>,
        now: Millis,
    ) -> Result<Self, BrokerError> {
        let mut broker = Broker::open(broker, store, access, now)?;
        broker.door_takes_letters();
        let held = broker.door_held(publisher::HOLDER)?;
        let clients = broker.door_clients().cloned().collect();
        let mut doors = Self {
            broker,
            config,
            lines: Slab::new(),
            next_generation: 1,
            users: HashMap::new(),
            inner: HashMap::new(),
            clients,
            timers: BTreeSet::new(),
            held: held
                .into_iter()
                .map(|(number, since)| (number, Kept { since, ticket: Ticket(0) }))
                .collect(),
            waiting: Vec::new(),
            held_back: Vec::new(),
            touched: Vec::new(),
            draining: false,
            seen: Vec::new(),
        };
        doors.broker.door_store_subscribe(&letters::store(), &Utf8::from_static(DEAD_LETTERS), now);
        doors.settle(now);
        Ok(doors)
    }

    /// A transport is there.
    pub fn connect(&mut self, listener: &DoorListener, peer: Peer, now: Millis) -> Result<DoorId, Refused> {
        match listener {
            DoorListener::Mqtt(rules) => Ok(DoorId::Mqtt(self.broker.connect(rules, peer, now)?)),
            DoorListener::Lines(role, rules) => self.greet(*role, rules, peer, now).map(DoorId::Line),
        }
    }

    /// Bytes came: whole packets or lines are taken off `buf`, the rest is left.
    pub fn input(&mut self, id: DoorId, buf: &mut BytesMut, now: Millis) {
        match id {
            DoorId::Mqtt(id) => self.broker.input(id, buf, now),
            DoorId::Line(id) => {
                self.broker.door_begin(now);
                self.read_lines(id, buf, now);
            }
        }
        self.settle(now);
    }

    /// The transport is gone.
    pub fn lost(&mut self, id: DoorId, now: Millis) {
        match id {
            DoorId::Mqtt(id) => self.broker.lost(id, now),
            DoorId::Line(id) => self.forget(id, now),
        }
        self.settle(now);
    }

    /// Asks the store what is committed, and does what waited for it.
    pub fn committed(&mut self, now: Millis) {
        self.broker.committed(now);
        self.settle(now);
        for id in std::mem::take(&mut self.waiting) {
            self.flush_replies(id);
        }
        for id in std::mem::take(&mut self.held_back) {
            self.release_line(id);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Millis) {
        self.broker.tick(now);
        self.resend(now);
        self.expire_held(now);
        self.settle(now);
    }

    /// When [`Doors::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Millis> {
        let resend = self.timers.first().map(|(due, _)| *due);
        [self.broker.next_deadline(), resend, self.held_until()].into_iter().flatten().min()
    }

    /// The commit that something waits for.
    pub fn pending(&mut self) -> Option<Mark> {
        self.broker.pending()
    }

    /// Connections with something to write, to close, or to read again since the last call.
    pub fn touched(&mut self, out: &mut Vec<DoorId>) {
        for id in self.touched.drain(..) {
            if let DoorId::Line(line) = id
                && let Some(line) = self.lines.get_mut(line.index())
                && id == DoorId::Line(line.id)
            {
                line.touched = false;
            }
            out.push(id);
        }
    }

    /// What is to be written to a connection; `None`: it is not known any more.
    pub fn outbox(&mut self, id: DoorId) -> Option<&mut Outbox> {
        match id {
            DoorId::Mqtt(id) => self.broker.outbox(id),
            DoorId::Line(id) => self.line_mut(id).map(|line| &mut line.out),
        }
    }

    /// Everything in its outbox was written.
    pub fn written(&mut self, id: DoorId, now: Millis) {
        match id {
            DoorId::Mqtt(id) => self.broker.written(id, now),
            DoorId::Line(id) => self.release_line(id),
        }
        self.settle(now);
    }

    /// False: it should not be read now. It is touched when that is over.
    pub fn wants_input(&mut self, id: DoorId) -> bool {
        match id {
            DoorId::Mqtt(id) => self.broker.wants_input(id),
            DoorId::Line(id) => self.wants_lines(id),
        }
    }

    /// The graceful end: clients are told. What waits for a commit is still answered.
    pub fn drain(&mut self, now: Millis) {
        self.draining = true;
        let all: Vec<LineId> = self.lines.iter().map(|(_, line)| line.id).collect();
        for id in all {
            self.end(id, "the server goes down", now);
        }
        self.broker.drain(now);
        self.settle(now);
    }

    /// As [`Broker::log_in_elsewhere`]: for clients of MQTT. Those of lines have no passwords.
    pub fn log_in_elsewhere(&mut self) {
        self.broker.log_in_elsewhere();
    }

    /// As [`Broker::next_login`].
    pub fn next_login(&mut self) -> Option<(DoorId, PasswordCheck)> {
        self.broker.next_login().map(|(id, check)| (DoorId::Mqtt(id), check))
    }

    /// As [`Broker::logged_in`].
    pub fn logged_in(&mut self, id: DoorId, result: Result<Identity, Denied>, now: Millis) {
        if let DoorId::Mqtt(id) = id {
            self.broker.logged_in(id, result, now);
            self.settle(now);
        }
    }

    pub(crate) fn metrics(&self) -> String {
        self.broker.metrics()
    }

    /// The same as [`Broker::dead_letters`] without those of consumers of the line dialect, which are in the topic
    /// [`DEAD_LETTERS`].
    pub fn dead_letters(&mut self, now: Millis) -> Vec<DeadLetter> {
        self.broker.dead_letters(now)
    }

    /// True if [`Doors::dead_letters`] has something.
    pub fn has_letters(&self) -> bool {
        self.broker.has_letters()
    }

    /// As [`Broker::post`].
    pub fn post(&mut self, post: Post, now: Millis) -> Result<Posted, PostError> {
        let posted = self.broker.post(post, now);
        self.settle(now);
        posted
    }

    /// As [`Broker::letters_stored`].
    pub fn letters_stored(&mut self, numbers: &[u64], now: Millis) {
        self.broker.letters_stored(numbers, now);
    }

    /// Why nothing is promised any more, if so.
    pub fn failure(&self) -> Option<LogError> {
        self.broker.failure()
    }

    /// The broker.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Takes what the broker has for inner connections, as long as it has something.
    fn settle(&mut self, now: Millis) {
        let mut burials = 0;
        loop {
            let mut seen = std::mem::take(&mut self.seen);
            self.broker.touched(&mut seen);
            if seen.is_empty() {
                self.seen = seen;
                burials += 1;
                if burials <= MAX_BURIALS && self.bury_dead(now) {
                    continue;
                }
                self.broker.door_letters_later(now);
                return;
            }
            for id in seen.drain(..) {
                if self.inner.contains_key(&id) {
                    self.receive(id, now);
                } else {
                    self.touched.push(DoorId::Mqtt(id));
                }
            }
            self.seen = seen;
        }
    }

    fn line(&self, id: LineId) -> Option<&Line> {
        self.lines.get(id.index()).filter(|line| line.id == id)
    }

    fn line_mut(&mut self, id: LineId) -> Option<&mut Line> {
        self.lines.get_mut(id.index()).filter(|line| line.id == id)
    }

    fn rules(&self, id: LineId) -> Option<(Arc<ListenerConfig>, Peer)> {
        self.line(id).map(|line| (line.rules.clone(), line.peer.clone()))
    }
}
