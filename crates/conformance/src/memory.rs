//! The memory backend as a harness: an example, and what the kit is itself tested on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postroad_core::memory::{Memory, Options};
use postroad_core::{Backend, BoxFuture, Capabilities, Clock, Timestamp};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::harness::{Environment, Failure, Harness, Tempo, Time};

/// Small enough that the cases reach it.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Time as Tokio has it: real, or virtual while it is paused.
#[derive(Debug, Clone, Copy)]
pub struct RuntimeClock {
    wall: Timestamp,
    start: Instant,
}

impl RuntimeClock {
    /// Starts at the wall clock's time.
    pub fn new() -> Self {
        Self { wall: Timestamp::now(), start: Instant::now() }
    }
}

impl Default for RuntimeClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        self.wall.saturating_add(self.start.elapsed())
    }

    fn passed(&self) -> Timestamp {
        self.now().saturating_sub(Duration::from_millis(1))
    }
}

/// What a wrapped backend is made from.
type Wrap = Box<dyn Fn(Memory) -> Arc<dyn Backend> + Send + Sync>;

/// A memory backend for each case, in virtual time; all clients of a case share it.
pub struct MemoryHarness {
    name: String,
    options: Options,
    capabilities: Capabilities,
    wrap: Wrap,
}

impl MemoryHarness {
    /// Plain.
    pub fn new() -> Self {
        Self::wrapped("memory", |memory| Arc::new(memory) as Arc<dyn Backend>)
    }

    /// What `wrap` makes of a memory backend.
    pub fn wrapped(
        name: impl Into<String>,
        wrap: impl Fn(Memory) -> Arc<dyn Backend> + Send + Sync + 'static,
    ) -> Self {
        let options = Options { max_message_bytes: MAX_MESSAGE_BYTES, ..Options::default() };
        let capabilities = wrap(Memory::with(options.clone(), RuntimeClock::new())).capabilities().clone();
        Self { name: name.into(), options, capabilities, wrap: Box::new(wrap) }
    }
}

impl Default for MemoryHarness {
    fn default() -> Self {
        Self::new()
    }
}

impl Harness for MemoryHarness {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn tempo(&self) -> Tempo {
        Tempo { patience: Duration::from_secs(4), limit: Duration::from_secs(600), ..Tempo::default() }
    }

    fn time(&self) -> Time {
        Time::Virtual
    }

    fn start(&self, _: &str) -> BoxFuture<'_, Result<Box<dyn Environment>, Failure>> {
        Box::pin(async {
            let clock = RuntimeClock::new();
            let memory = Memory::with(self.options.clone(), clock);
            let ticking = memory.clone();
            let ticker = tokio::spawn(async move {
                loop {
                    // Often enough; each tick costs, also in virtual time.
                    tokio::time::sleep(Duration::from_millis(4)).await;
                    ticking.tick();
                }
            });
            static SERIAL: AtomicU64 = AtomicU64::new(0);
            let prefix = format!("case{}", SERIAL.fetch_add(1, Ordering::Relaxed));
            let backend = (self.wrap)(memory);
            Ok(Box::new(MemoryEnvironment { clock, backend, prefix, ticker }) as Box<dyn Environment>)
        })
    }
}

struct MemoryEnvironment {
    clock: RuntimeClock,
    backend: Arc<dyn Backend>,
    prefix: String,
    ticker: JoinHandle<()>,
}

impl Environment for MemoryEnvironment {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>, Failure>> {
        Box::pin(std::future::ready(Ok(Arc::clone(&self.backend))))
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.ticker.abort();
        Box::pin(std::future::ready(()))
    }
}
