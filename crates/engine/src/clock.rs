//! Time for the engine: one clock that never goes back, replaceable in tests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970 that never decrease.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> u64;
}

/// Wall time at the start plus monotonic time since: a jump of the system clock neither expires nor extends leases.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
    start_millis: u64,
}

impl SystemClock {
    /// Starts the clock, not before `floor`: time does not go back over a restart either.
    pub fn starting_at_least(floor: u64) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        Self { start: Instant::now(), start_millis: wall.max(floor) }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> u64 {
        self.start_millis + self.start.elapsed().as_millis() as u64
    }
}

/// A clock that a test or a simulation moves.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock that stands at `now`.
    pub fn new(now: u64) -> Self {
        Self(AtomicU64::new(now))
    }

    /// Moves it on by `millis`.
    pub fn advance(&self, millis: u64) {
        self.0.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}
