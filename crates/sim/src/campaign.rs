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
const SHRINK_BUDGET: usize = 20_000;
const SHRINK_TIME: Duration = Duration::from_secs(20);
/// Facts that a brief explanation shows.
const SHOWN: usize = 60;

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

/// A failure, shrunk.
#[derive(Debug)]
pub struct Explanation {
    /// The steps that are left.
    pub steps: usize,
    /// What happens, on a page or two.
    pub brief: String,
    /// Every step and every fact.
    pub whole: String,
}

/// Shrinks a failing world and says what happens in it.
pub fn explain(protocol: &dyn Protocol, planted: Planted, failure: &Failure) -> Explanation {
    let plan = Plan::of(failure.seed, STEPS);
    let started = Instant::now();
    let small = shrink(&plan, SHRINK_BUDGET, |plan| {
        started.elapsed() < SHRINK_TIME && run(protocol, planted, plan).is_err()
    });
    let steps = small.steps.len();
    let mut brief = format!("seed {}: {}\n", failure.seed, failure.violation.why);
    let Err(violation) = run(protocol, planted, &small) else {
        brief.push_str("it does not fail again: that is a defect of the simulation\n");
        return Explanation { steps, whole: brief.clone(), brief };
    };
    // Writing to a string cannot fail.
    let _ = writeln!(brief, "the least that does it: {steps} of {} steps", plan.steps.len());
    let _ = writeln!(brief, "  {:?}", small.climate);
    let mut whole = brief.clone();
    for step in &small.steps {
        let _ = writeln!(whole, "  {step:?}");
    }
    kinds(&small, &mut brief);
    // What came after the fact that broke the rule says nothing of it.
    let facts = &violation.history.facts;
    let end = violation.fact.map_or(facts.len(), |fact| fact + 1);
    let begin = end.saturating_sub(SHOWN);
    let _ = writeln!(brief, "what was seen, {} of {} facts:", end - begin, facts.len());
    let _ = writeln!(whole, "what was seen:");
    for (at, (now, fact)) in facts.iter().enumerate() {
        let line = format!("  {at:>5} {now:>6} ms  {fact:?}\n");
        whole.push_str(&line);
        if (begin..end).contains(&at) {
            brief.push_str(&line);
        }
    }
    for text in [&mut brief, &mut whole] {
        let _ = writeln!(text, "{}", violation.why);
    }
    Explanation { steps, brief, whole }
}

/// The kinds of the steps, several on a line.
fn kinds(plan: &Plan, text: &mut String) {
    let mut line = String::from(" ");
    for run in plan.steps.chunk_by(|one, next| one.kind == next.kind) {
        let _ = write!(line, " {:?}", run[0].kind);
        if run.len() > 1 {
            let _ = write!(line, "*{}", run.len());
        }
        if line.len() > 110 {
            text.push_str(&line);
            text.push('\n');
            line.truncate(1);
        }
    }
    if line.len() > 1 {
        text.push_str(&line);
        text.push('\n');
    }
}
