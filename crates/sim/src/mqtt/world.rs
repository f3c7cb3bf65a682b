//! One MQTT world: a disk, a network, a broker and its clients, driven by the steps of a plan.

use super::cast::{self, AUDITOR};
use super::client::Client;
use super::facts::{Fact, Seen, Who};
use super::tap::Tap;
use super::{Plants, Summary, Violation, check};
use crate::history::Conn;
use crate::net::Link;
use crate::plan::{Climate, Kind, Plan, Step};
use bytes::BytesMut;
use postroad_engine::log::{JournalStore, LogStore as _};
use postroad_journal::CommitterOptions;
use postroad_journal::storage::{CrashMode, FaultKind, SimStorage, Storage as _};
use postroad_mqtt::access::OpenAccess;
use postroad_mqtt::broker::{Broker, BrokerConfig, ConnId, ListenerConfig, Peer};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// When worlds begin, milliseconds since 1970.
const START: u64 = 1_700_000_000_000;

pub(super) type Check = Result<(), String>;

/// Runs a plan to its end, lets the world calm down, crashes once more, and checks what was seen.
///
/// # Errors
/// The promise that was broken; a panic of the product is one, too.
pub fn run(plants: Plants, plan: &Plan) -> Result<Summary, Box<Violation>> {
    let mut world = World::new(plants, plan);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.live(plan)));
    let why = match outcome {
        Ok(Ok(())) => return Ok(world.summary),
        Ok(Err(why)) => why,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("it panicked: {}", text.unwrap_or("without a text"))
        }
    };
    Err(Box::new(Violation { why, fact: world.broken, seen: world.seen }))
}

/// A process that serves.
pub(super) struct Life {
    store: Arc<JournalStore>,
    pub(super) broker: Broker,
    // Something waits for a commit.
    wanted: bool,
    // It was committed, and the broker has not been told.
    done: bool,
    ends: BTreeMap<Conn, End>,
}

/// The broker's end of a connection.
struct End {
    id: ConnId,
    tap: Tap,
    bytes: BytesMut,
    // It is to be written.
    touched: bool,
    // It is not to be read until it is touched.
    held: bool,
}

pub(super) struct World {
    plants: Plants,
    storage: SimStorage,
    pub(super) life: Option<Life>,
    lives: u64,
    pub(super) time: u64,
    pub(super) clients: Vec<Option<Client>>,
    pub(super) links: BTreeMap<Conn, Link>,
    next_conn: Conn,
    pub(super) seen: Seen,
    pub(super) summary: Summary,
    climate: Climate,
    seed: u64,
    armed: CrashMode,
    pub(super) faulty: bool,
    pub(super) full: bool,
    buffer: Vec<u8>,
    broken: Option<usize>,
}

impl World {
    fn new(plants: Plants, plan: &Plan) -> Self {
        let climate = plan.climate;
        let clients = cast::of(plan.seed).into_iter().enumerate().map(|(at, role)| {
            let part = at == usize::from(AUDITOR) || climate.clients >> at & 1 == 1;
            part.then(|| Client::new(at as Who, role))
        });
        Self {
            plants,
            storage: SimStorage::new(plan.seed),
            life: None,
            lives: 0,
            time: 0,
            clients: clients.collect(),
            links: BTreeMap::new(),
            next_conn: 0,
            seen: Seen::default(),
            summary: Summary::default(),
            climate,
            seed: plan.seed,
            armed: CrashMode::DropUnsynced,
            faulty: false,
            full: false,
            buffer: Vec::new(),
            broken: None,
        }
    }

    fn live(&mut self, plan: &Plan) -> Check {
        self.start()?;
        for (at, step) in plan.steps.iter().chain(&plan.reserve).enumerate() {
            self.step(*step).map_err(|e| format!("step {at}, {step:?}: {e}"))?;
            self.aftermath(step.how);
        }
        self.calm_down()?;
        self.note_counts();
        check::check(&self.seen).map_err(|broken| {
            self.broken = broken.fact;
            broken.why
        })
    }

    fn note_counts(&mut self) {
        let facts = &self.seen.facts;
        self.summary.facts = facts.len() as u64;
        self.summary.deliveries =
            facts.iter().filter(|fact| matches!(fact.1, Fact::App { .. })).count() as u64;
        (self.summary.published, self.summary.received) = self.seen.exchanges;
        let mut hasher = DefaultHasher::new();
        facts.hash(&mut hasher);
        self.summary.digest = hasher.finish();
    }

    pub(super) fn now(&self) -> u64 {
        START + self.time
    }

    fn step(&mut self, step: Step) -> Check {
        self.seen.now = self.time;
        let Step { kind, who, how } = step;
        if self.life.is_none() && how % 8 == 0 {
            self.start()?;
        }
        match kind {
            Kind::Act => self.act(who as usize % cast::CLIENTS, how),
            Kind::Up => {
                self.up(who as usize, chunk(how));
            }
            Kind::Down => {
                self.down(who as usize, chunk(how));
            }
            Kind::Pump => {
                self.committed();
                self.pump();
            }
            Kind::Commit => {
                self.commit();
                // Told at once, or when something else happens.
                if how % 2 == 0 {
                    self.committed();
                    self.pump();
                }
            }
            Kind::Time => self.pass(u64::from(if how % 3 == 0 { how / 3 % 3000 } else { how / 3 % 200 })),
            Kind::Maintain => {
                if let Some(life) = &self.life {
                    life.store.measure_disk();
                }
            }
            Kind::Cut => {
                if let Some(conn) = self.nth(who as usize, |_| true) {
                    self.cut(conn, how);
                }
            }
            Kind::HalfOpen => {
                if let Some(conn) = self.nth(who as usize, |_| true) {
                    self.silence(conn);
                }
            }
            Kind::Reap => {
                if let Some(conn) = self.nth(who as usize, |link| link.up.silent) {
                    if how % 2 == 0 { self.client_closes(conn) } else { self.server_closes(conn) }
                }
            }
            Kind::KillClient => self.kill_client(who as usize % cast::CLIENTS, how),
            Kind::KillBroker => {
                if self.life.is_some() {
                    self.kill_broker(CrashMode::ALL[how as usize % 4]);
                }
            }
            Kind::ArmKill => {
                self.armed = CrashMode::ALL[who as usize % 4];
                self.storage.crash_at(self.storage.calls() + 1 + u64::from(how % 12));
            }
            Kind::Restart => self.restart()?,
            Kind::Space => self.space(how),
            Kind::FailCall => {
                let kind = FaultKind::ALL[who as usize % FaultKind::ALL.len()];
                self.storage.fail_at(self.storage.calls() + 1 + u64::from(how % 12), kind);
                self.faulty = true;
            }
        }
        self.links.retain(|_, link| !link.is_dead());
        Ok(())
    }

    /// The machine died in a call to the disk, or the disk failed and the process ends.
    fn aftermath(&mut self, how: u32) {
        if self.storage.has_crashed() {
            // What the thread of the broker would still have said between the call and the end.
            if let Some(life) = &mut self.life {
                life.done = true;
            }
            self.committed();
            self.pump();
            self.kill_broker(self.armed);
        } else if self.life.as_ref().is_some_and(|life| life.broker.failure().is_some()) {
            self.pump();
            let mode =
                if how.is_multiple_of(2) { CrashMode::KeepAll } else { CrashMode::ALL[how as usize / 2 % 4] };
            self.kill_broker(mode);
        }
    }

    /// Starts the broker. Not to be able to is a violation, unless the disk was made to fail.
    pub(super) fn start(&mut self) -> Check {
        self.lives += 1;
        match self.open() {
            Ok(life) => {
                self.life = Some(life);
                self.seen.note(Fact::Opened);
                let now = self.now();
                self.with(|broker| broker.tick(now));
                Ok(())
            }
            Err(_) if self.storage.has_crashed() => {
                self.storage.crash(self.armed);
                Ok(())
            }
            Err(_) if self.faulty || self.full => {
                self.storage.crash(CrashMode::KeepAll);
                self.storage.set_capacity(None);
                self.full = false;
                Ok(())
            }
            Err(error) => Err(format!("the broker does not start: {error}")),
        }
    }

    fn open(&self) -> Result<Life, String> {
        let climate = &self.climate;
        let options = CommitterOptions {
            max_batch_bytes: climate.batch_bytes,
            preallocate: climate.ahead,
            direct_io: climate.ahead,
            tail_cache_bytes: climate.tail_bytes,
            disk_floor: 0,
            max_open_files: 2,
            planted: self.plants.journal,
            ..CommitterOptions::default()
        };
        let config = BrokerConfig {
            max_output: climate.output,
            max_in_flight: if climate.dedup { 3 } else { 1024 },
            sys_interval: Duration::ZERO,
            planted: self.plants.broker,
            ..BrokerConfig::default()
        };
        let salt = self.seed.wrapping_add(self.lives << 32);
        let disk = Arc::new(self.storage.clone());
        let store = JournalStore::open_on(disk, Path::new("/data"), climate.segment_bytes * 4, options, salt);
        let store = Arc::new(store.map_err(|error| error.to_string())?);
        let broker = Broker::open(config, store.clone(), Arc::new(OpenAccess), self.now());
        let broker = broker.map_err(|error| error.to_string())?;
        Ok(Life { store, broker, wanted: false, done: false, ends: BTreeMap::new() })
    }

    /// Calls the broker, and hears what it wants.
    pub(super) fn with<R>(&mut self, call: impl FnOnce(&mut Broker) -> R) -> Option<R> {
        let life = self.life.as_mut()?;
        let result = call(&mut life.broker);
        life.wanted |= life.broker.pending().is_some();
        let mut touched = Vec::new();
        life.broker.touched(&mut touched);
        for end in life.ends.values_mut().filter(|end| touched.contains(&end.id)) {
            (end.touched, end.held) = (true, false);
        }
        Some(result)
    }

    pub(super) fn pass(&mut self, millis: u64) {
        self.time += millis;
        self.seen.now = self.time;
        let now = self.now();
        self.with(|broker| broker.tick(now));
    }

    /// The committing thread runs once, if somebody has asked; false if there was nothing to do, or it could not.
    pub(super) fn commit(&mut self) -> bool {
        let Some(life) = &mut self.life else { return false };
        if !life.wanted {
            return false;
        }
        match life.store.committer().commit_now() {
            Ok(true) => {
                life.done = true;
                true
            }
            Ok(false) => {
                life.wanted = false;
                false
            }
            Err(_) => false,
        }
    }

    /// The broker is told of commits.
    pub(super) fn committed(&mut self) -> bool {
        if !self.life.as_mut().is_some_and(|life| std::mem::take(&mut life.done)) {
            return false;
        }
        let now = self.now();
        self.with(|broker| broker.committed(now));
        true
    }

    fn act(&mut self, who: usize, how: u32) {
        let Some(Some(client)) = self.clients.get_mut(who) else { return };
        if client.is_offline() {
            return self.connect(who);
        }
        self.summary.commands += u64::from(client.act(how, &mut self.seen));
        self.post(who);
    }

    /// What a client has written goes under way.
    pub(super) fn post(&mut self, who: usize) -> bool {
        let Some(Some(client)) = self.clients.get_mut(who) else { return false };
        let written = client.written();
        let link = self.links.values_mut().find(|link| link.guest == who && link.client_open);
        if let Some(link) = link {
            link.up.send(&written);
        }
        !written.is_empty()
    }

    pub(super) fn connect(&mut self, who: usize) {
        let now = self.now();
        let (Some(life), Some(Some(client))) = (&mut self.life, self.clients.get_mut(who)) else { return };
        let listener = ListenerConfig {
            receive_maximum: if self.climate.interest { 3 } else { 1024 },
            ..ListenerConfig::default()
        };
        let Ok(id) = life.broker.connect(&Arc::new(listener), Peer::default(), now) else { return };
        let conn = self.next_conn;
        self.next_conn += 1;
        let tap = Tap::new(conn, who as Who, client.role.version);
        let end = End { id, tap, bytes: BytesMut::new(), touched: false, held: false };
        life.ends.insert(conn, end);
        client.connected();
        self.links.insert(conn, Link::new(conn, who));
        self.post(who);
    }

    /// Bytes reach the broker.
    pub(super) fn up(&mut self, which: usize, max: usize) -> bool {
        let now = self.now();
        let Some(life) = &mut self.life else { return false };
        let ready = |conn: &Conn, link: &Link| {
            link.server_open
                && (!link.up.is_empty() || link.up.ended)
                && life.ends.get(conn).is_some_and(|end| !end.held)
        };
        let ready: Vec<Conn> =
            self.links.iter().filter(|(conn, link)| ready(conn, link)).map(|(conn, _)| *conn).collect();
        if ready.is_empty() {
            return false;
        }
        let conn = ready[which % ready.len()];
        let (Some(link), Some(end)) = (self.links.get_mut(&conn), life.ends.get_mut(&conn)) else {
            return false;
        };
        if !life.broker.wants_input(end.id) {
            end.held = true;
            return false;
        }
        if link.up.is_empty() {
            self.server_closes(conn);
            return true;
        }
        link.up.receive(max, &mut self.buffer);
        end.tap.enter(&self.buffer, &mut self.seen);
        end.bytes.extend_from_slice(&self.buffer);
        let (id, mut bytes) = (end.id, std::mem::take(&mut end.bytes));
        self.with(|broker| broker.input(id, &mut bytes, now));
        if let Some(end) = self.life.as_mut().and_then(|life| life.ends.get_mut(&conn)) {
            end.bytes = bytes;
        }
        true
    }

    /// Writes what connections have to say, as far as their pipes have room. True if anything was.
    pub(super) fn pump(&mut self) -> bool {
        let mut moved = false;
        while let Some(conn) = self.pump_next() {
            moved |= conn;
        }
        moved
    }

    /// Writes to one connection that was touched and has room; whether that did anything.
    fn pump_next(&mut self) -> Option<bool> {
        let now = self.now();
        let life = self.life.as_mut()?;
        let links = &self.links;
        let pipe = self.climate.pipe;
        let room = |conn: &Conn| match links.get(conn) {
            Some(link) if link.down.silent => usize::MAX,
            Some(link) => pipe.saturating_sub(link.down.len()),
            None => 0,
        };
        let (conn, end) = life.ends.iter_mut().find(|(conn, end)| end.touched && room(conn) > 0)?;
        let (conn, room, id) = (*conn, room(conn), end.id);
        let Some(outbox) = life.broker.outbox(id) else {
            end.touched = false;
            return Some(false);
        };
        self.buffer.clear();
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        outbox.slices(&mut slices);
        for slice in &slices {
            self.buffer.extend_from_slice(slice);
        }
        self.buffer.truncate(room);
        outbox.advance(self.buffer.len());
        let (empty, close) = (outbox.is_empty(), outbox.close_after());
        end.tap.leave(&self.buffer, &mut self.seen);
        if empty {
            end.touched = false;
        }
        let link = self.links.get_mut(&conn)?;
        if !link.client_open && !link.down.silent && !self.buffer.is_empty() || empty && close {
            // Nobody is there any more, or nobody is to be.
            link.down.send(&self.buffer);
            self.server_closes(conn);
            return Some(true);
        }
        link.down.send(&self.buffer);
        let moved = !self.buffer.is_empty();
        if empty && moved {
            self.with(|broker| broker.written(id, now));
        }
        Some(moved)
    }

    /// Bytes reach a client.
    pub(super) fn down(&mut self, which: usize, max: usize) -> bool {
        let ready = |link: &Link| link.client_open && (!link.down.is_empty() || link.down.ended);
        let Some(conn) = self.nth(which, ready) else { return false };
        let Some(link) = self.links.get_mut(&conn) else { return false };
        let who = link.guest;
        if link.down.is_empty() {
            self.client_closes(conn);
            return true;
        }
        link.down.receive(max, &mut self.buffer);
        let Some(Some(client)) = self.clients.get_mut(who) else { return false };
        if !client.receive(&self.buffer, &mut self.seen) {
            self.client_closes(conn);
        }
        true
    }

    /// The `which`-th of the links that `fits`, counted in a circle.
    pub(super) fn nth(&self, which: usize, fits: impl Fn(&Link) -> bool) -> Option<Conn> {
        let fitting = || self.links.iter().filter(|(_, link)| fits(link)).map(|(conn, _)| *conn);
        let count = fitting().count();
        if count == 0 { None } else { fitting().nth(which % count) }
    }

    pub(super) fn client_closes(&mut self, conn: Conn) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        if link.client_open {
            link.client_open = false;
            link.up.ended = true;
            if let Some(Some(client)) = self.clients.get_mut(link.guest) {
                client.disconnected();
            }
        }
    }

    pub(super) fn server_closes(&mut self, conn: Conn) {
        let now = self.now();
        let Some(link) = self.links.get_mut(&conn) else { return };
        if link.server_open {
            link.server_open = false;
            link.down.ended = true;
            let id = self.life.as_mut().and_then(|life| life.ends.remove(&conn)).map(|end| end.id);
            if let Some(id) = id {
                self.seen.note(Fact::Gone { conn });
                self.with(|broker| broker.lost(id, now));
            }
        }
    }

    fn cut(&mut self, conn: Conn, how: u32) {
        match how % 3 {
            0 => {
                self.client_closes(conn);
                self.server_closes(conn);
            }
            // The client closes; what it sent arrives.
            1 => self.client_closes(conn),
            // The client sees it, the broker does not, and part of what was sent is lost.
            _ => {
                if let Some(link) = self.links.get_mut(&conn) {
                    link.up.lose(how as usize / 4 % (link.up.len() + 1));
                }
                self.client_closes(conn);
                self.silence(conn);
            }
        }
    }

    fn silence(&mut self, conn: Conn) {
        let Some(link) = self.links.get_mut(&conn) else { return };
        (link.up.silent, link.down.silent) = (true, true);
        link.up.ended = false;
        link.up.lose(0);
        link.down.lose(0);
    }

    fn kill_client(&mut self, who: usize, how: u32) {
        let Some(Some(client)) = self.clients.get_mut(who) else { return };
        self.summary.kills += 1;
        client.kill();
        if let Some(conn) = self.nth(0, |link| link.guest == who && link.client_open) {
            self.cut(conn, how);
        }
    }

    pub(super) fn kill_broker(&mut self, mode: CrashMode) {
        self.storage.crash(mode);
        self.broker_is_gone();
    }

    fn broker_is_gone(&mut self) {
        for link in self.links.values_mut() {
            link.server_open = false;
            link.up.lose(0);
            if !link.down.silent {
                link.down.ended = true;
            }
        }
        if self.life.take().is_some() {
            self.summary.kills += 1;
            self.seen.note(Fact::Closed);
        }
    }

    /// A polite stop, as on SIGTERM, and the next start.
    fn restart(&mut self) -> Check {
        let now = self.now();
        if self.with(|broker| broker.drain(now)).is_none() {
            return Ok(());
        }
        for _ in 0..100 {
            self.pump();
            if !self.commit() {
                break;
            }
            self.committed();
        }
        if self.storage.has_crashed() {
            return Ok(());
        }
        // The process ends, the machine does not.
        self.storage.crash(CrashMode::KeepAll);
        self.broker_is_gone();
        self.start()
    }

    fn space(&mut self, how: u32) {
        const UNLIMITED: u64 = 1 << 40;
        if self.full || self.storage.has_crashed() {
            self.heal();
        } else if let Ok(free) = self.storage.free_bytes(Path::new("/data")) {
            self.storage.set_capacity(Some(UNLIMITED - free + u64::from(how % 3000)));
            self.full = true;
        }
    }

    pub(super) fn heal(&mut self) {
        self.storage.set_capacity(None);
        self.full = false;
    }
}

/// How many bytes move at once: few, some, or all.
fn chunk(how: u32) -> usize {
    match how % 4 {
        0 => 1 + (how as usize / 4) % 8,
        1 => 1 + (how as usize / 4) % 100,
        _ => usize::MAX,
    }
}
