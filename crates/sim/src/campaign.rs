//! Many worlds, on all cores, until one fails.

use crate::inhabitants::Protocol;
use crate::plan::Plan;
use crate::shrink::shrink;
use crate::world::{Summary, Violation, run};
use postroad_engine::Planted;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Steps of a world. About two in five are commands of clients.
pub const STEPS: usize = 1000;
/// Worlds that a shrink tries at most, and how long.
const SHRINK_BUDGET: usize = 3000;
const SHRINK_TIME: Duration = Duration::from_secs(40);

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Campaign {
    /// The first seed; the others follow it.
    pub seed: u64,
    /// At most so many worlds.
    pub worlds: u64,
    /// At most so long.
    pub time: Option<Duration>,
    /// Worlds at once.
    pub threads: usize,
    /// Defects that the worlds are to find.
    pub planted: Planted,
}

/// What all worlds together did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Worlds that kept every promise.
    pub worlds: u64,
    /// Commands of clients in them.
    pub commands: u64,
    /// The fewest commands of one world.
    pub fewest: u64,
    /// Kills of brokers and clients.
    pub kills: u64,
    /// Deliveries.
    pub deliveries: u64,
    /// How long it took.
    pub took: Duration,
}

/// A world that broke a promise.
#[derive(Debug)]
pub struct Failure {
    /// Its seed, which gives the same world again.
    pub seed: u64,
    /// Which promise.
    pub violation: Box<Violation>,
}

impl Campaign {
    /// Runs worlds; the failure with the lowest seed of those that were found, if any was.
    pub fn run(&self, protocol: &(dyn Protocol + Sync)) -> (Tally, Option<Failure>) {
        let started = Instant::now();
        let next = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let tally = Mutex::new(Tally { fewest: u64::MAX, ..Tally::default() });
        let failure: Mutex<Option<Failure>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    let mut mine = Tally { fewest: u64::MAX, ..Tally::default() };
                    while !stop.load(Ordering::Relaxed)
                        && self.time.is_none_or(|time| started.elapsed() < time)
                    {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= self.worlds {
                            break;
                        }
                        let seed = self.seed.wrapping_add(at);
                        match run(protocol, self.planted, &Plan::of(seed, STEPS)) {
                            Ok(summary) => mine.add(&summary),
                            Err(violation) => {
                                stop.store(true, Ordering::Relaxed);
                                let mut failure = lock(&failure);
                                if failure.as_ref().is_none_or(|other| seed < other.seed) {
                                    *failure = Some(Failure { seed, violation });
                                }
                            }
                        }
                    }
                    lock(&tally).join(&mine);
                });
            }
        });
        let mut tally = *lock(&tally);
        tally.took = started.elapsed();
        let failure = lock(&failure).take();
        (tally, failure)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Tally {
    fn add(&mut self, world: &Summary) {
        self.worlds += 1;
        self.commands += world.commands;
        self.fewest = self.fewest.min(world.commands);
        self.kills += world.kills;
        self.deliveries += world.deliveries;
    }

    /// Adds what other worlds did, after this or at the same time.
    pub fn join(&mut self, other: &Self) {
        self.worlds += other.worlds;
        self.commands += other.commands;
        self.fewest = self.fewest.min(other.fewest);
        self.kills += other.kills;
        self.deliveries += other.deliveries;
        self.took += other.took;
    }

    /// Worlds in a second.
    pub fn rate(&self) -> f64 {
        self.worlds as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

/// Shrinks a failing world and says what happens in it.
pub fn explain(protocol: &dyn Protocol, planted: Planted, failure: &Failure) -> String {
    let plan = Plan::of(failure.seed, STEPS);
    let started = Instant::now();
    let small = shrink(&plan, SHRINK_BUDGET, |plan| {
        started.elapsed() < SHRINK_TIME && run(protocol, planted, plan).is_err()
    });
    let mut text = format!("seed {}: {}\n", failure.seed, failure.violation.why);
    // Writing to a string cannot fail.
    match run(protocol, planted, &small) {
        Ok(_) => text.push_str("it does not fail again: that is a defect of the simulation\n"),
        Err(violation) => {
            let _ =
                writeln!(text, "the least that does it: {} of {} steps", small.steps.len(), plan.steps.len());
            let _ = writeln!(text, "  {:?}", small.climate);
            for step in &small.steps {
                let _ = writeln!(text, "  {step:?}");
            }
            let _ = writeln!(text, "what was seen:");
            for (now, fact) in &violation.history.facts {
                let _ = writeln!(text, "  {now:>6} ms  {fact:?}");
            }
            let _ = writeln!(text, "{}", violation.why);
        }
    }
    text
}
