//! Engines for the cases, and what happens to them.

use std::future::ready;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postroad_conformance::wire::{Wire, Wired};
use postroad_conformance::{Chaos, ChaosAbilities, Environment, Failure, Harness, Tempo};
use postroad_core::{Backend, BoxFuture, Capabilities, Timestamp};
use postroad_engine::log::{JournalStore, LogStore, MemoryStore, PayloadKind};
use postroad_engine::{Engine, EngineBackend, EngineConfig, NewEvent, SyncMode};
use postroad_journal::CommitterOptions;
use postroad_journal::storage::{CrashMode, RealStorage, SimStorage, Storage};
use tempfile::TempDir;

/// Small enough that the cases reach it.
const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// Where the log of an engine is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Memory,
    Disk,
    /// With kills, each of which is a loss of power, too, as often as not.
    Simulated,
}

pub(crate) struct EngineHarness {
    place: Place,
    capabilities: Capabilities,
}

impl EngineHarness {
    pub(crate) fn new(place: Place) -> Self {
        // What it can do does not depend on which disk it is.
        let place_to_ask = if place == Place::Disk { Place::Simulated } else { place };
        let disk = Disk::new(place_to_ask).expect("nothing real is opened");
        let backend = client_of(&disk.open().expect("an empty place opens"));
        Self { place, capabilities: backend.capabilities().clone() }
    }
}

impl Harness for EngineHarness {
    fn name(&self) -> &str {
        match self.place {
            Place::Memory => "engine-memory",
            Place::Disk => "engine-journal",
            Place::Simulated => "engine-simulated-disk",
        }
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn chaos(&self) -> ChaosAbilities {
        ChaosAbilities {
            restart: self.place != Place::Memory,
            kill: self.place == Place::Simulated,
            cut: true,
            half_open: true,
            pause: true,
        }
    }

    fn tempo(&self) -> Tempo {
        Tempo { quiet: Duration::from_millis(100), lease: Duration::from_millis(400), ..Tempo::default() }
    }

    fn start(&self, _: &str) -> BoxFuture<'_, Result<Box<dyn Environment>, Failure>> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let prefix = format!("case{}", SERIAL.fetch_add(1, Ordering::Relaxed));
        let started = Disk::new(self.place).and_then(|disk| {
            let engine = disk.start()?;
            let broker = Mutex::new(Broker { disk, engine: Some(engine), clients: Vec::new() });
            Ok(Box::new(EngineEnvironment { prefix, broker, wire: Wire::new() }) as Box<dyn Environment>)
        });
        Box::pin(ready(started))
    }
}

enum Disk {
    Memory,
    Real(TempDir),
    Simulated(SimStorage),
}

fn failure(why: impl std::fmt::Display) -> Failure {
    Failure::new(why.to_string())
}

impl Disk {
    fn new(place: Place) -> Result<Self, Failure> {
        Ok(match place {
            Place::Memory => Self::Memory,
            Place::Disk => Self::Real(tempfile::tempdir()?),
            Place::Simulated => Self::Simulated(SimStorage::new(fastrand::u64(..))),
        })
    }

    /// What is there, without threads.
    fn open(&self) -> Result<Arc<Engine>, Failure> {
        let on = |storage: Arc<dyn Storage>, root: &Path| -> Result<Arc<dyn LogStore>, Failure> {
            let options = CommitterOptions { disk_floor: 0, ..CommitterOptions::default() };
            let store = JournalStore::open_on(storage, root, 256 << 10, options, fastrand::u64(..));
            Ok(Arc::new(store.map_err(failure)?))
        };
        let store: Arc<dyn LogStore> = match self {
            Self::Memory => Arc::new(MemoryStore::new(256 << 20)),
            Self::Real(dir) => on(Arc::new(RealStorage::new()), dir.path())?,
            Self::Simulated(storage) => on(Arc::new(storage.clone()), Path::new("data"))?,
        };
        let config = EngineConfig {
            data: None,
            sync: SyncMode::Memory,
            dedup_window: Duration::from_secs(60),
            ..EngineConfig::default()
        };
        Engine::open_with(config, store, None).map_err(failure)
    }

    fn start(&self) -> Result<Arc<Engine>, Failure> {
        let engine = self.open()?;
        // After a kill it fails, which is meant; the clients are told in any case.
        engine.start(Box::new(drop))?;
        Ok(engine)
    }

    /// What a kill leaves. Whoever still writes to the old one fails.
    fn kill(&mut self) -> Result<(), Failure> {
        let Self::Simulated(storage) = self else { return Err(failure("only a simulated disk is killed")) };
        // The next call, if nobody comes in between; and else the one after it.
        while !storage.has_crashed() {
            storage.crash_at(storage.calls() + 1);
            let _ = storage.free_bytes(Path::new("data"));
        }
        let left = storage.fork(fastrand::u64(..));
        left.crash(CrashMode::ALL[fastrand::usize(..CrashMode::ALL.len())]);
        *storage = left;
        Ok(())
    }
}

fn client_of(engine: &Arc<Engine>) -> EngineBackend {
    EngineBackend::with_max_payload_bytes(Arc::clone(engine), MAX_PAYLOAD_BYTES)
}

struct Broker {
    disk: Disk,
    /// `None` when it was stopped.
    engine: Option<Arc<Engine>>,
    clients: Vec<Arc<Wired<EngineBackend>>>,
}

struct EngineEnvironment {
    prefix: String,
    broker: Mutex<Broker>,
    /// In a process there are no connections; the kit has some.
    wire: Wire,
}

impl EngineEnvironment {
    fn broker(&self) -> MutexGuard<'_, Broker> {
        self.broker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all clients, as the end of an engine in their process does.
    async fn close_clients(&self) {
        let clients = std::mem::take(&mut self.broker().clients);
        for client in clients {
            // Of an engine that was killed: nothing can be flushed.
            let _ = client.close().await;
        }
    }

    async fn end(&self) -> Result<(), Failure> {
        // First, so that nobody connects to what is about to go.
        let engine = self.broker().engine.take();
        self.close_clients().await;
        engine.map_or(Ok(()), |engine| engine.shutdown().map_err(failure))
    }

    fn start_again(&self) -> Result<(), Failure> {
        let mut broker = self.broker();
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            match broker.disk.start() {
                Ok(engine) => broker.engine = Some(engine),
                // Tasks that were in the middle of a call leave the directory in a moment.
                Err(_) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                Err(why) => return Err(why),
            }
            return Ok(());
        }
    }
}

impl Environment for EngineEnvironment {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>, Failure>> {
        let mut broker = self.broker();
        let client = broker.engine.as_ref().map(|engine| Arc::new(self.wire.extend(client_of(engine))));
        broker.clients.extend(client.clone());
        let client = client.map(|client| client as Arc<dyn Backend>);
        Box::pin(ready(client.ok_or_else(|| failure("the engine is stopped"))))
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn now(&self) -> Timestamp {
        let now = self.broker().engine.as_ref().map(|engine| engine.now());
        now.map_or_else(Timestamp::now, Timestamp::from_millis)
    }

    fn chaos(&self) -> Option<&dyn Chaos> {
        Some(self)
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Err(why) = self.end().await {
                eprintln!("the engine of a case could not be shut down: {why}");
            }
        })
    }
}

impl Chaos for EngineEnvironment {
    fn restart(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async {
            self.end().await?;
            self.start_again()
        })
    }

    fn kill(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async {
            let engine = {
                let mut broker = self.broker();
                broker.disk.kill()?;
                broker.engine.take()
            };
            // The next thing that it writes ends it, and its clients hear of it.
            for stream in engine.iter().flat_map(|engine| engine.streams()) {
                let kind = PayloadKind::Json;
                let event = NewEvent { priority: 0, id: None, headers: None, kind, payload: b"{}" };
                let _ = stream.publish(&[event]);
            }
            if let Some(engine) = engine {
                engine.flush(false);
            }
            self.broker().clients.clear();
            self.start_again()
        })
    }

    fn cut(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.wire.cut();
        Box::pin(ready(Ok(())))
    }

    fn half_open(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.wire.half_open();
        Box::pin(ready(Ok(())))
    }

    fn heal(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.wire.heal();
        Box::pin(ready(Ok(())))
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.wire.pause();
        Box::pin(ready(Ok(())))
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.wire.resume();
        Box::pin(ready(Ok(())))
    }
}
