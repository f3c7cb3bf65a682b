//! One world: a machine, a network, a broker and its clients, driven by the steps of a plan.

use crate::history::{self, Conn, Fact, History, Terms};
use crate::inhabitants::{Guest, Protocol, Resident};
use crate::machine::Machine;
use crate::net::Link;
use crate::plan::{COMMANDS, Climate, Kind, Plan, Step};
use postroad_engine::{EngineError, Planted};
use postroad_journal::storage::{CrashMode, FaultKind, Storage as _};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

mod calm;

/// What happened in a world that kept every promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Commands that clients sent.
    pub commands: u64,
    /// Ends of brokers and clients that nobody asked them about.
    pub kills: u64,
    /// Facts noted.
    pub facts: u64,
    /// Deliveries among them.
    pub deliveries: u64,
    /// Turns of retention that found something gone.
    pub trims: u64,
    /// A number made of every fact: worlds of one plan have the same.
    pub digest: u64,
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which, and where in the history.
    pub why: String,
    /// The index of the fact that broke it, if one did.
    pub fact: Option<usize>,
    /// What was seen.
    pub history: History,
}

/// Runs a plan to its end, lets the world calm down, crashes once more, and checks what was seen.
///
/// # Errors
/// The promise that was broken; a panic of the product is one, too.
pub fn run(protocol: &dyn Protocol, planted: Planted, plan: &Plan) -> Result<Summary, Box<Violation>> {
    let mut world = World::new(protocol, planted, plan);
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
    Err(Box::new(Violation { why, fact: world.broken, history: world.history }))
}

struct World<'a> {
    protocol: &'a dyn Protocol,
    machine: Machine,
    resident: Option<Box<dyn Resident>>,
    guests: Vec<Option<Box<dyn Guest>>>,
    links: Vec<Link>,
    next_conn: Conn,
    history: History,
    summary: Summary,
    climate: Climate,
    // How the machine dies in the call that was chosen.
    armed: CrashMode,
    // A call may fail, or the disk may be full: a start may be refused for that.
    faulty: bool,
    full: bool,
    buffer: Vec<u8>,
    // The fact that broke a rule.
    broken: Option<usize>,
}

type Check = Result<(), String>;

impl<'a> World<'a> {
    fn new(protocol: &'a dyn Protocol, planted: Planted, plan: &Plan) -> Self {
        let climate = plan.climate;
        let guests = protocol.guests(plan.seed, &climate).into_iter().enumerate();
        Self {
            protocol,
            machine: Machine::new(plan.seed, climate, planted),
            resident: None,
            guests: guests.map(|(at, guest)| (climate.clients >> at & 1 == 1).then_some(guest)).collect(),
            links: Vec::new(),
            next_conn: 0,
            history: History::default(),
            summary: Summary::default(),
            climate,
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
            if at >= plan.steps.len() && self.summary.commands >= COMMANDS {
                break;
            }
            self.step(*step).map_err(|e| format!("step {at}, {step:?}: {e}"))?;
            self.aftermath(step.how);
        }
        self.calm_down()?;
        let audit = self.machine.audit(self.protocol.topics(), self.protocol.specs())?;
        let terms = Terms { specs: self.protocol.specs(), dedup: self.climate.dedup };
        history::check(terms, &self.history, &audit).map_err(|broken| {
            self.broken = broken.fact;
            broken.why
        })?;
        self.summary.facts = self.history.facts.len() as u64;
        let delivered = |fact: &&(u64, Fact)| matches!(fact.1, Fact::Delivered { .. });
        self.summary.deliveries = self.history.facts.iter().filter(delivered).count() as u64;
        let trimmed = |fact: &&(u64, Fact)| matches!(fact.1, Fact::Trimmed(..));
        self.summary.trims = self.history.facts.iter().filter(trimmed).count() as u64;
        self.summary.digest = digest(&self.history);
        Ok(())
    }

    fn step(&mut self, step: Step) -> Check {
        self.history.now = self.machine.now();
        let Step { kind, who, how } = step;
        if self.resident.is_none() && how % 8 == 0 {
            self.start()?;
        }
        match kind {
            Kind::Act => self.act(who as usize % self.guests.len().max(1), how),
            Kind::Up => self.up(who as usize, chunk(how)),
            Kind::Down => self.down(who as usize, chunk(how)),
            Kind::Pump => self.pump_signalled(who as usize, how % 4 == 0),
            Kind::Commit => {
                self.commit();
            }
            Kind::Time => {
                self.machine.pass(u64::from(if how % 3 == 0 { how / 3 % 3000 } else { how / 3 % 200 }));
                self.history.now = self.machine.now();
            }
            Kind::Maintain => self.maintain()?,
            Kind::Cut => {
                if let Some(at) = nth(&self.links, who as usize, |_| true) {
                    self.cut(at, how);
                }
            }
            Kind::HalfOpen => {
                if let Some(at) = nth(&self.links, who as usize, |_| true) {
                    self.silence(at);
                }
            }
            Kind::Reap => {
                if let Some(at) = nth(&self.links, who as usize, |link| link.up.silent) {
                    if how % 2 == 0 { self.client_closes(at) } else { self.server_closes(at) }
                }
            }
            Kind::KillClient => self.kill_client(who as usize % self.guests.len().max(1), how),
            Kind::KillBroker => {
                if self.resident.is_some() {
                    self.kill_broker(CrashMode::ALL[how as usize % 4]);
                }
            }
            Kind::ArmKill => {
                self.armed = CrashMode::ALL[who as usize % 4];
                self.machine.storage.crash_at(self.machine.storage.calls() + 1 + u64::from(how % 12));
            }
            Kind::Restart => self.restart()?,
            Kind::Space => self.space(how),
            Kind::FailCall => {
                let kind = FaultKind::ALL[who as usize % FaultKind::ALL.len()];
                self.machine.storage.fail_at(self.machine.storage.calls() + 1 + u64::from(how % 12), kind);
                self.faulty = true;
                self.history.note(Fact::DiskFault);
            }
        }
        self.links.retain(|link| !link.is_dead());
        Ok(())
    }

    /// The machine died in a call to the disk, or the disk failed and the process ends.
    fn aftermath(&mut self, how: u32) {
        if self.machine.storage.has_crashed() {
            // What other threads would still have said between the call and the end.
            self.pump_signalled(0, true);
            self.kill_broker(self.armed);
        } else if self.machine.life.as_ref().is_some_and(|life| life.engine.failure().is_some()) {
            self.pump_signalled(0, true);
            let mode =
                if how.is_multiple_of(2) { CrashMode::KeepAll } else { CrashMode::ALL[how as usize / 2 % 4] };
            self.kill_broker(mode);
        }
    }

    /// Starts the broker. Not to be able to is a violation, unless the disk was made to fail.
    fn start(&mut self) -> Check {
        match self.machine.start() {
            Ok(()) => {
                let life = self.machine.life.as_ref().ok_or("no process")?;
                self.resident = Some(self.protocol.move_in(&life.engine, &self.climate));
                self.history.note(Fact::Opened);
                Ok(())
            }
            Err(_) if self.machine.storage.has_crashed() => {
                self.machine.kill(self.armed);
                Ok(())
            }
            Err(error) if (self.faulty || self.full) && !is_corrupt(&error) => {
                self.machine.kill(CrashMode::KeepAll);
                self.machine.storage.set_capacity(None);
                self.full = false;
                Ok(())
            }
            Err(error) => Err(format!("the broker does not start: {error}")),
        }
    }

    fn maintain(&mut self) -> Check {
        let (topics, specs) = (self.protocol.topics(), self.protocol.specs());
        let before = self.machine.lags(topics, specs);
        self.machine.maintain();
        let after = self.machine.lags(topics, specs);
        let limit = self.climate.lag.filter(|lag| lag.ends).map(|lag| lag.events);
        for (spec, lag) in before {
            let title = || specs[usize::from(spec)].title();
            let over = limit.is_some_and(|limit| lag > limit);
            match (over, after.contains_key(&spec)) {
                (true, false) => self.history.note(Fact::Ended(spec)),
                (true, true) if !self.faulty && !self.full && !self.machine.storage.has_crashed() => {
                    return Err(format!("{} lags by {lag} and was not ended", title()));
                }
                (false, false) => return Err(format!("{} lags by {lag} and was ended", title())),
                _ => {}
            }
        }
        for (topic, first) in
            self.machine.firsts(topics).into_iter().enumerate().filter(|(_, first)| *first > 1)
        {
            self.history.note(Fact::Trimmed(topic as u8, first));
        }
        Ok(())
    }

    fn act(&mut self, who: usize, how: u32) {
        let Some(Some(guest)) = self.guests.get_mut(who) else { return };
        if let Some(link) = self.links.iter_mut().find(|link| link.guest == who && link.client_open) {
            self.buffer.clear();
            self.summary.commands += u64::from(guest.act(how, &mut self.buffer, &mut self.history));
            link.up.send(&self.buffer);
        } else {
            self.connect(who);
        }
    }

    fn connect(&mut self, who: usize) {
        let (Some(resident), Some(Some(guest))) = (&mut self.resident, self.guests.get_mut(who)) else {
            return;
        };
        let conn = self.next_conn;
        self.next_conn += 1;
        resident.accept(conn);
        guest.connected();
        self.links.push(Link::new(conn, who));
        self.pump(self.links.len() - 1);
    }

    fn up(&mut self, who: usize, max: usize) {
        let Some(resident) = &mut self.resident else { return };
        let readable = |link: &Link| {
            link.server_open
                && link.unsent.is_empty()
                && (!link.up.is_empty() || link.up.ended)
                && resident.wants_input(link.conn)
        };
        let Some(at) = nth(&self.links, who, readable) else { return };
        let link = &mut self.links[at];
        if link.up.is_empty() {
            // Learnt once.
            link.up.ended = false;
            link.up.silent = true;
            resident.end_of_input(link.conn);
        } else {
            link.up.receive(max, &mut self.buffer);
            resident.input(link.conn, &self.buffer, &mut self.history);
            if let Some(life) = &self.machine.life {
                life.engine.flush(self.climate.inline);
            }
        }
        self.pump(at);
    }

    /// Writes what a connection has to say, as far as the pipe has room.
    fn pump(&mut self, at: usize) {
        loop {
            let Some(resident) = &mut self.resident else { return };
            let link = &mut self.links[at];
            if !link.server_open {
                return;
            }
            let room =
                if link.down.silent { usize::MAX } else { self.climate.pipe.saturating_sub(link.down.len()) };
            if !link.unsent.is_empty() {
                let now = room.min(link.unsent.len());
                link.down.send(&link.unsent[..now]);
                link.unsent.drain(..now);
                if !link.unsent.is_empty() {
                    return;
                }
                continue;
            }
            if resident.is_done(link.conn) {
                self.server_closes(at);
                return;
            }
            self.buffer.clear();
            let before = self.history.facts.len();
            resident.output(link.conn, self.climate.output, &mut self.buffer, &mut self.history);
            if self.machine.storage.has_crashed() {
                // It may have died in a read of this very turn: what could be read was still written.
                self.history.facts.insert(before, (self.history.now, Fact::Gasp));
            }
            if !link.client_open && !link.down.silent && !self.buffer.is_empty() {
                // Nobody is there any more.
                self.server_closes(at);
                return;
            }
            let all = self.buffer.len() < self.climate.output && !resident.is_done(link.conn);
            std::mem::swap(&mut link.unsent, &mut self.buffer);
            if all && link.unsent.is_empty() {
                return;
            }
        }
    }

    /// Every connection that was signalled, or has something unsent, from one on; or only the first of them.
    fn pump_signalled(&mut self, from: usize, all: bool) {
        for i in 0..self.links.len() {
            let at = (from + i) % self.links.len();
            let Some(resident) = &mut self.resident else { return };
            let link = &self.links[at];
            let unsent = !link.unsent.is_empty() && (link.down.silent || link.down.len() < self.climate.pipe);
            if link.server_open && (unsent || link.unsent.is_empty() && resident.is_signalled(link.conn)) {
                self.pump(at);
                if !all {
                    return;
                }
            }
        }
    }

    fn down(&mut self, who: usize, max: usize) {
        let arrives = |link: &Link| link.client_open && (!link.down.is_empty() || link.down.ended);
        let Some(at) = nth(&self.links, who, arrives) else { return };
        let link = &mut self.links[at];
        if link.down.is_empty() {
            self.client_closes(at);
            return;
        }
        link.down.receive(max, &mut self.buffer);
        let stays = match &mut self.guests[link.guest] {
            Some(guest) => guest.receive(&self.buffer),
            None => true,
        };
        if !stays {
            self.client_closes(at);
        }
    }

    /// The committing thread runs once; false if there was nothing to do, or it could not.
    fn commit(&mut self) -> bool {
        self.machine.life.as_ref().is_some_and(|life| life.commit().unwrap_or(false))
    }

    fn client_closes(&mut self, at: usize) {
        let link = &mut self.links[at];
        if link.client_open {
            link.client_open = false;
            link.up.ended = true;
            if let Some(guest) = &mut self.guests[link.guest] {
                guest.disconnected();
            }
        }
    }

    fn server_closes(&mut self, at: usize) {
        let link = &mut self.links[at];
        if link.server_open {
            link.server_open = false;
            link.down.ended = true;
            link.unsent.clear();
            if let Some(resident) = &mut self.resident {
                resident.gone(link.conn, &mut self.history);
            }
        }
    }

    fn cut(&mut self, at: usize, how: u32) {
        let link = &mut self.links[at];
        match how % 4 {
            0 => {
                self.client_closes(at);
                self.server_closes(at);
            }
            // The client closes; what it sent arrives.
            1 => self.client_closes(at),
            // The client sees it, the broker does not, and part of what was sent is lost.
            2 => {
                link.up.lose(how as usize / 4 % (link.up.len() + 1));
                self.client_closes(at);
                self.silence(at);
            }
            // `printf … | nc`: it sends no more, and reads on.
            _ => link.up.ended = true,
        }
    }

    fn silence(&mut self, at: usize) {
        let link = &mut self.links[at];
        (link.up.silent, link.down.silent) = (true, true);
        link.up.ended = false;
        link.up.lose(0);
        link.down.lose(0);
    }

    fn kill_client(&mut self, who: usize, how: u32) {
        let Some(Some(guest)) = self.guests.get_mut(who) else { return };
        self.summary.kills += 1;
        guest.kill();
        if let Some(at) = self.links.iter().position(|link| link.guest == who && link.client_open) {
            self.cut(at, how % 3);
        }
    }

    fn kill_broker(&mut self, mode: CrashMode) {
        if self.resident.is_some() {
            self.summary.kills += 1;
        }
        self.machine.kill(mode);
        self.broker_is_gone();
    }

    fn broker_is_gone(&mut self) {
        for link in &mut self.links {
            link.server_open = false;
            link.unsent.clear();
            link.up.lose(0);
            if !link.down.silent {
                link.down.ended = true;
            }
        }
        if self.resident.take().is_some() {
            self.history.note(Fact::Closed);
        }
    }

    /// A polite stop, as on SIGTERM, and the next start.
    fn restart(&mut self) -> Check {
        let Some(resident) = &mut self.resident else { return Ok(()) };
        resident.shut_down();
        let Some(life) = &self.machine.life else { return Ok(()) };
        life.engine.begin_shutdown();
        for at in 0..self.links.len() {
            self.pump(at);
        }
        for _ in 0..100 {
            if !self.commit() {
                break;
            }
            self.pump_signalled(0, true);
        }
        if self.machine.storage.has_crashed() {
            return Ok(());
        }
        for at in 0..self.links.len() {
            self.server_closes(at);
        }
        let Some(life) = &self.machine.life else { return Ok(()) };
        let stopped = life.engine.shutdown();
        if self.machine.storage.has_crashed() {
            return Ok(());
        }
        if let Err(error) = stopped
            && !self.faulty
            && !self.full
        {
            return Err(format!("the broker does not stop: {error}"));
        }
        self.machine.life = None;
        self.broker_is_gone();
        self.start()
    }

    fn space(&mut self, how: u32) {
        const UNLIMITED: u64 = 1 << 40;
        if self.full || self.machine.storage.has_crashed() {
            self.machine.storage.set_capacity(None);
            self.full = false;
        } else if let Ok(free) = self.machine.storage.free_bytes(Path::new("/data")) {
            self.machine.storage.set_capacity(Some(UNLIMITED - free + u64::from(how % 3000)));
            self.full = true;
        }
    }
}

fn is_corrupt(error: &EngineError) -> bool {
    matches!(error, EngineError::Log(postroad_engine::log::LogError::Corrupt { .. }))
}

/// How many bytes move at once: few, some, or all.
fn chunk(how: u32) -> usize {
    match how % 4 {
        0 => 1 + (how as usize / 4) % 8,
        1 => 1 + (how as usize / 4) % 100,
        _ => usize::MAX,
    }
}

/// The `who`-th of the links that `fits`, counted in a circle.
fn nth(links: &[Link], who: usize, fits: impl Fn(&Link) -> bool) -> Option<usize> {
    let count = links.iter().filter(|link| fits(link)).count();
    if count == 0 {
        return None;
    }
    links.iter().enumerate().filter(|(_, link)| fits(link)).nth(who % count).map(|(at, _)| at)
}

/// A number that depends on every fact and its time, the same in every process.
fn digest(history: &History) -> u64 {
    let mut hasher = DefaultHasher::new();
    history.facts.hash(&mut hasher);
    hasher.finish()
}
