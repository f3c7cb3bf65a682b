//! The memory backend as a harness: an example, and what the kit is itself tested on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postroad_core::memory::{Memory, Options};
use postroad_core::{Backend, BoxFuture, Capabilities, Clock, Timestamp};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::faulty::{Liar, Lie};
use crate::harness::{Chaos, ChaosAbilities, Environment, Failure, Harness, Tempo, Time};
use crate::wire::Wire;

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

/// How clients reach the backend.
enum Way {
    /// They share it.
    Shared(Wrap),
    /// By connections of their own, and maybe are lied to.
    Wired(Option<Lie>),
}

fn options() -> Options {
    Options { max_message_bytes: MAX_MESSAGE_BYTES, ..Options::default() }
}

/// A memory backend for each case, in virtual time.
pub struct MemoryHarness {
    name: String,
    capabilities: Capabilities,
    way: Way,
}

impl MemoryHarness {
    /// Plain, and shared by the clients of a case.
    pub fn new() -> Self {
        Self::wrapped("memory", |memory| Arc::new(memory) as Arc<dyn Backend>)
    }

    /// What `wrap` makes of a memory backend.
    pub fn wrapped(
        name: impl Into<String>,
        wrap: impl Fn(Memory) -> Arc<dyn Backend> + Send + Sync + 'static,
    ) -> Self {
        let capabilities = wrap(Memory::with(options(), RuntimeClock::new())).capabilities().clone();
        Self { name: name.into(), capabilities, way: Way::Shared(Box::new(wrap)) }
    }

    /// Behind connections, which are cut, fall silent and stand still; with a lie, or none.
    pub fn wired(name: impl Into<String>, lie: Option<Lie>) -> Self {
        let capabilities = Memory::with(options(), RuntimeClock::new()).capabilities().clone();
        Self { name: name.into(), capabilities, way: Way::Wired(lie) }
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

    fn chaos(&self) -> ChaosAbilities {
        match self.way {
            Way::Shared(_) => ChaosAbilities::NONE,
            Way::Wired(_) => {
                ChaosAbilities { cut: true, half_open: true, pause: true, ..ChaosAbilities::NONE }
            }
        }
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
            let memory = Memory::with(options(), clock);
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
            let backend = match &self.way {
                Way::Shared(wrap) => Broker::Shared(wrap(memory)),
                Way::Wired(lie) => Broker::Wired {
                    liar: lie.map(|lie| Liar::new(lie, self.capabilities.clone())),
                    memory,
                    wire: Wire::new(),
                },
            };
            Ok(Box::new(MemoryEnvironment { clock, backend, prefix, ticker }) as Box<dyn Environment>)
        })
    }
}

enum Broker {
    Shared(Arc<dyn Backend>),
    Wired { memory: Memory, wire: Wire, liar: Option<Liar> },
}

struct MemoryEnvironment {
    clock: RuntimeClock,
    backend: Broker,
    prefix: String,
    ticker: JoinHandle<()>,
}

impl Environment for MemoryEnvironment {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>, Failure>> {
        let client: Arc<dyn Backend> = match &self.backend {
            Broker::Shared(backend) => Arc::clone(backend),
            Broker::Wired { memory, wire, liar: None } => Arc::new(wire.connect(memory.clone())),
            Broker::Wired { memory, wire, liar: Some(liar) } if liar.lie() == Lie::LostKeepsMessages => {
                Arc::new(wire.connect(liar.client(memory.clone())))
            }
            Broker::Wired { memory, wire, liar: Some(liar) } => {
                Arc::new(liar.client(wire.connect(memory.clone())))
            }
        };
        Box::pin(std::future::ready(Ok(client)))
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn chaos(&self) -> Option<&dyn Chaos> {
        match self.backend {
            Broker::Shared(_) => None,
            Broker::Wired { .. } => Some(self),
        }
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.ticker.abort();
        Box::pin(std::future::ready(()))
    }
}

impl MemoryEnvironment {
    fn on_wire(&self, loses: bool, change: impl FnOnce(&Wire)) -> BoxFuture<'_, Result<(), Failure>> {
        if let Broker::Wired { wire, liar, .. } = &self.backend {
            if let (true, Some(liar)) = (loses, liar) {
                liar.connections_get_lost();
            }
            change(wire);
        }
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Chaos for MemoryEnvironment {
    fn cut(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.on_wire(true, Wire::cut)
    }

    fn half_open(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.on_wire(true, Wire::half_open)
    }

    fn heal(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.on_wire(true, Wire::heal)
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.on_wire(false, Wire::pause)
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.on_wire(false, Wire::resume)
    }
}
