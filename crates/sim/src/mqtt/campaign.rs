//! Many MQTT worlds, on all cores, until one fails.

use super::{Plants, Summary, Violation, run};
use crate::plan::Plan;
use crate::shrink::shrink;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Steps of a world, and about as many in reserve.
pub const STEPS: usize = 1000;
/// Worlds that a shrink tries at most, and how long.
const SHRINK_BUDGET: usize = 20_000;
const SHRINK_TIME: Duration = Duration::from_secs(20);
/// Facts that an explanation shows.
const SHOWN: usize = 400;

/// The plan of a seed.
pub fn plan(seed: u64) -> Plan {
    let mut plan = Plan::of(seed, STEPS);
    plan.climate.clients = u32::MAX;
    plan
}

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
    pub plants: Plants,
}

/// What all worlds together did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Worlds that kept every promise.
    pub worlds: u64,
    /// The sum of theirs.
    pub all: Summary,
    /// How long it took.
    pub took: Duration,
}

impl Tally {
    fn add(&mut self, world: &Summary) {
        self.worlds += 1;
        self.all.commands += world.commands;
        self.all.kills += world.kills;
        self.all.facts += world.facts;
        self.all.deliveries += world.deliveries;
        self.all.published += world.published;
        self.all.received += world.received;
    }

    /// Handshakes of QoS 2, those with publishers and those with subscribers.
    pub fn exchanges(&self) -> u64 {
        self.all.published + self.all.received
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.took.as_secs_f64().max(1e-9);
        write!(
            f,
            "{} worlds in {seconds:.1} s: {} QoS 2 exchanges with publishers, {} with subscribers, {:.0} a second; \
             {} messages to applications, {} kills",
            self.worlds,
            self.all.published,
            self.all.received,
            self.exchanges() as f64 / seconds,
            self.all.deliveries,
            self.all.kills,
        )
    }
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
    pub fn run(&self) -> (Tally, Option<Failure>) {
        let started = Instant::now();
        let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let found: Mutex<(Tally, Option<Failure>)> = Mutex::default();
        let lock = || found.lock().unwrap_or_else(PoisonError::into_inner);
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed)
                        && self.time.is_none_or(|time| started.elapsed() < time)
                    {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= self.worlds {
                            break;
                        }
                        let seed = self.seed.wrapping_add(at);
                        match run(self.plants, &plan(seed)) {
                            Ok(summary) => lock().0.add(&summary),
                            Err(violation) => {
                                stop.store(true, Ordering::Relaxed);
                                let failure = &mut lock().1;
                                if failure.as_ref().is_none_or(|other| seed < other.seed) {
                                    *failure = Some(Failure { seed, violation });
                                }
                            }
                        }
                    }
                });
            }
        });
        let (mut tally, failure) = std::mem::take(&mut *lock());
        tally.took = started.elapsed();
        (tally, failure)
    }
}

/// Shrinks a failing world and says what happens in it; also how many steps are left.
pub fn explain(plants: Plants, failure: &Failure) -> (String, usize) {
    let plan = plan(failure.seed);
    let started = Instant::now();
    // What is left must break the same promise.
    let rule = |why: &str| why.chars().filter(char::is_ascii_lowercase).collect::<String>();
    let broken = rule(&failure.violation.why);
    let same = |plan: &Plan| run(plants, plan).is_err_and(|violation| rule(&violation.why) == broken);
    let small = shrink(&plan, SHRINK_BUDGET, |plan| started.elapsed() < SHRINK_TIME && same(plan));
    let mut text = format!("seed {}: {}\n", failure.seed, failure.violation.why);
    let Err(violation) = run(plants, &small) else {
        text.push_str("it does not fail again: that is a defect of the simulation\n");
        return (text, small.steps.len());
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "the least that does it: {} of {} steps", small.steps.len(), plan.steps.len());
    let _ = writeln!(text, "  {:?}", small.climate);
    let facts = &violation.seen.facts;
    let end = violation.fact.map_or(facts.len(), |fact| fact + 1);
    let begin = end.saturating_sub(SHOWN);
    let _ = writeln!(text, "what was seen, {} of {} facts:", end - begin, facts.len());
    for (at, (now, fact)) in facts.iter().enumerate().take(end).skip(begin) {
        let _ = writeln!(text, "  {at:>5} {now:>6} ms  {fact:?}");
    }
    let _ = writeln!(text, "{}", violation.why);
    (text, small.steps.len())
}
