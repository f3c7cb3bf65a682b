//! One MQTT world: a disk, a network, a broker and its clients, driven by the steps of a plan.

use super::cast::{self, AUDITOR};
use super::client::Client;
use super::facts::{Fact, Seen, Who};
use super::guest::{Guest, Tap};
use super::lines::Liner;
use super::{Plants, Summary, Violation, check};
use crate::history::Conn;
use crate::net::Link;
use crate::plan::{Climate, Kind, Plan, Step};
use bytes::BytesMut;
use postroad_core::retry::RetryPolicy;
use postroad_engine::log::{JournalStore, LogStore as _};
use postroad_journal::CommitterOptions;
use postroad_journal::storage::{CrashMode, FaultKind, SimStorage};
use postroad_mqtt::access::OpenAccess;
use postroad_mqtt::broker::{BrokerConfig, DeadLetter, Durability, Overflow};
use postroad_mqtt::lines::{DoorId, Doors, LinesConfig};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::num::NonZeroU32;
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
    pub(super) store: Arc<JournalStore>,
    pub(super) doors: Doors,
    // Something waits for a commit.
    pub(super) wanted: bool,
    // It was committed, and the broker has not been told.
    pub(super) done: bool,
    // Dead letters that were handed out, and are gone with the process.
    letters: Vec<DeadLetter>,
    pub(super) ends: BTreeMap<Conn, End>,
}

/// The broker's end of a connection.
pub(super) struct End {
    pub(super) id: DoorId,
    pub(super) tap: Box<dyn Tap>,
    pub(super) bytes: BytesMut,
    // It is to be written.
    pub(super) touched: bool,
    // It is not to be read until it is touched.
    pub(super) held: bool,
}

pub(super) struct World {
    plants: Plants,
    pub(super) storage: SimStorage,
    pub(super) life: Option<Life>,
    lives: u64,
    pub(super) time: u64,
    pub(super) clients: Vec<Option<Box<dyn Guest>>>,
    pub(super) links: BTreeMap<Conn, Link>,
    pub(super) next_conn: Conn,
    pub(super) seen: Seen,
    pub(super) summary: Summary,
    pub(super) climate: Climate,
    seed: u64,
    armed: CrashMode,
    pub(super) faulty: bool,
    pub(super) full: bool,
    pub(super) buffer: Vec<u8>,
    broken: Option<usize>,
}

impl World {
    fn new(plants: Plants, plan: &Plan) -> Self {
        let climate = plan.climate;
        let part = |at: usize| at == usize::from(AUDITOR) || climate.clients >> at & 1 == 1;
        let mut clients: Vec<Option<Box<dyn Guest>>> = Vec::new();
        for (at, role) in cast::of(plan.seed).into_iter().enumerate() {
            clients.push(part(at).then(|| Box::new(Client::new(at as Who, role)) as Box<dyn Guest>));
        }
        for role in cast::lines(plan.seed) {
            let at = clients.len();
            clients.push(part(at).then(|| Box::new(Liner::new(at as Who, role)) as Box<dyn Guest>));
        }
        Self {
            plants,
            storage: SimStorage::new(plan.seed),
            life: None,
            lives: 0,
            time: 0,
            clients,
            links: BTreeMap::new(),
            next_conn: 0,
            seen: Seen {
                overflows: climate.lag.is_some(),
                disk_fails: climate.disk_faults,
                ..Seen::default()
            },
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

    /// One of those who take part all the time.
    fn anybody(&self, which: u32) -> usize {
        let which = which as usize % (self.clients.len() - 1);
        which + usize::from(which >= usize::from(AUDITOR))
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
            Kind::Act => self.act(self.anybody(who), how),
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
            Kind::Time if how % 5 == 0 => {
                self.store_letters();
            }
            Kind::Time => self.pass(u64::from(if how % 3 == 0 { how / 3 % 3000 } else { how / 3 % 200 })),
            Kind::Maintain => {
                self.store_letters();
                if let Some(life) = &self.life {
                    life.store.measure_disk();
                    // It crashes, or fails: that is found afterwards.
                    let _ = life.store.committer().sync_now();
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
            Kind::KillClient => self.kill_client(self.anybody(who), how),
            Kind::KillBroker => {
                if self.life.is_some() {
                    self.kill_broker(CrashMode::ALL[how as usize % 4]);
                }
            }
            Kind::ArmKill => {
                self.armed = self.survives(CrashMode::ALL[who as usize % 4]);
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
        } else if self.life.as_ref().is_some_and(|life| life.doors.failure().is_some()) {
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
                self.with(|doors| doors.tick(now));
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
            max_queued: climate.lag.map_or(usize::MAX, |lag| lag.events as usize),
            overflow: if climate.lag.is_some_and(|lag| lag.ends) {
                Overflow::DropOldest
            } else {
                Overflow::DropNewest
            },
            sys_interval: Duration::ZERO,
            durability: vec![("m/#".to_owned(), Durability::Memory)],
            queue_policy: RetryPolicy {
                ack_wait: Duration::from_secs(2),
                backoff: vec![Duration::from_millis(100), Duration::from_secs(1)],
                max_deliveries: NonZeroU32::new(check::MAX_TRIES),
            },
            planted: self.plants.broker,
            ..BrokerConfig::default()
        };
        let salt = self.seed.wrapping_add(self.lives << 32);
        let disk = Arc::new(self.storage.clone());
        let store = JournalStore::open_on(disk, Path::new("/data"), climate.segment_bytes * 4, options, salt);
        let store = Arc::new(store.map_err(|error| error.to_string())?);
        let lines = LinesConfig {
            resend: Duration::from_secs(1),
            planted: self.plants.lines,
            ..LinesConfig::default()
        };
        let doors = Doors::open(config, lines, store.clone(), Arc::new(OpenAccess), self.now());
        let doors = doors.map_err(|error| error.to_string())?;
        Ok(Life { store, doors, wanted: false, done: false, letters: Vec::new(), ends: BTreeMap::new() })
    }

    /// Calls the broker, and hears what it wants.
    pub(super) fn with<R>(&mut self, call: impl FnOnce(&mut Doors) -> R) -> Option<R> {
        let life = self.life.as_mut()?;
        let result = call(&mut life.doors);
        life.wanted |= life.doors.pending().is_some();
        let mut touched = Vec::new();
        life.doors.touched(&mut touched);
        for end in life.ends.values_mut().filter(|end| touched.contains(&end.id)) {
            (end.touched, end.held) = (true, false);
        }
        if life.doors.has_letters() {
            let now = START + self.time;
            life.letters.append(&mut life.doors.dead_letters(now));
        }
        Some(result)
    }

    /// Dead letters that were handed out are stored elsewhere; false if there were none.
    pub(super) fn store_letters(&mut self) -> bool {
        let letters = self.life.as_mut().map(|life| std::mem::take(&mut life.letters)).unwrap_or_default();
        let mut stored = Vec::with_capacity(letters.len());
        for letter in letters {
            let tag = self.seen.tag_of(&letter.payload).unwrap_or_default();
            let (client, id, reason) = (letter.client.to_string(), letter.id, letter.reason.into_owned());
            self.seen.note(Fact::Dead { client, tag, id, reason });
            stored.push(letter.number);
        }
        let now = self.now();
        !stored.is_empty() && self.with(|doors| doors.letters_stored(&stored, now)).is_some()
    }

    pub(super) fn pass(&mut self, millis: u64) {
        self.time += millis;
        self.seen.now = self.time;
        let now = self.now();
        self.with(|doors| doors.tick(now));
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
        self.with(|doors| doors.committed(now));
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
}

/// How many bytes move at once: few, some, or all.
fn chunk(how: u32) -> usize {
    match how % 4 {
        0 => 1 + (how as usize / 4) % 8,
        1 => 1 + (how as usize / 4) % 100,
        _ => usize::MAX,
    }
}
