//! The engine of this process as a [`Backend`]: no socket, no runtime, the same rules.
//!
//! Either on an engine that the program has anyway, beside its doors ([`EngineBackend::new`]), or on one of its own, by
//! URL: `engine:PATH[?sync=fdatasync|os|memory][&dedup=DURATION]`, and `engine:?sync=memory` without a disk. Only one
//! process, and one backend, can have a PATH.
//!
//! - **Publishing** resolves a ticket when the message is committed. A full commit queue is [`Busy`](ErrorKind::Busy), and
//!   the publisher is not ready until the next commit; a full disk is [`DiskFull`](ErrorKind::DiskFull) at once, since
//!   waiting for it may take forever. Nothing is committed on the caller's thread, unless the engine keeps all in memory.
//! - **Verdicts** resolve when they are committed, dead letters when both they and the settlement are. Tokens name one
//!   attempt: that of an attempt which ended is [`StaleToken`](ErrorKind::StaleToken).
//! - **Windows** count messages and [`Envelope::len_bytes`](postroad_core::Envelope::len_bytes), exactly, over all subjects
//!   of a filter.
//! - **Positions** count in each subject, from 1. A start at a sequence or a time that is still to come is a start at the
//!   next message. Subjects that are younger than a subscription begin with their first message.
//! - A message past its expiry is discarded instead of delivered.
//! - What retention removed, and what cannot be read, comes out of `poll_fill` as an error
//!   ([`Transient`](ErrorKind::Transient), [`Corrupt`](ErrorKind::Corrupt)); poll again to go on.
//! - When the log fails, tickets under way are Unknown, and subscriptions end with
//!   [`Disconnected`](ErrorKind::Disconnected).
//!
//! A message is stored as one JSON event, see [`envelope`]: whoever comes in by the JSON-log door reads it, and what was
//! published there is read here, all fields and bytes included.
//!
//! ```
//! use postroad_core::{Backend, Envelope, PublisherExt, Registry, SubscribeOptions, SubscriptionExt, block_on};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! block_on(async {
//!     let mut registry = Registry::new();
//!     postroad_engine::backend::register(&mut registry);
//!     let backend = registry.connect("engine:?sync=memory").await?;
//!     let mut orders = backend.subscribe(SubscribeOptions::new("orders".parse()?)).await?;
//!     let publisher = backend.publisher().await?;
//!     publisher.send(Envelope::new("orders".parse()?, "one pizza")).await.into_result()?;
//!     orders.next().await?.ack().await?;
//!     backend.close().await?;
//! #     Ok(())
//! })
//! # }
//! ```

mod commits;
pub mod envelope;
mod error;
mod event;
mod publisher;
mod sink;
mod subscription;
mod url;

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use postroad_core::mailbox::Window;
use postroad_core::{
    Attempts, Backend, BoxFuture, Capabilities, Durability, Error, ErrorKind, Filter, Ordering, Publisher,
    Registry, Replay, Result, Settled, SubscribeOptions, Subscription, Support,
};

use crate::config::EngineConfig;
use crate::engine::Engine;
use crate::log::Signal;
use crate::subscription::{PolicyRequest, SubscribeRequest};
use commits::{Commits, Waiting};
use sink::{Alert, Link, Sink};

/// The scheme of its URLs, and the `backend` of its errors.
const NAME: &str = "engine";
/// The largest payload unless something else is said.
const MAX_PAYLOAD_BYTES: usize = 8 << 20;
/// All headers of a message; also key, correlation and subject together.
const MAX_HEADER_BYTES: usize = 1 << 20;

/// What a backend shares with what was made from it.
struct Shared {
    /// `None` when it was closed.
    engine: RwLock<Option<Arc<Engine>>>,
    commits: Arc<Commits>,
    capabilities: Arc<Capabilities>,
    max_payload_bytes: usize,
    /// The engine is shut down with it.
    owned: bool,
}

impl Shared {
    fn engine(&self) -> Result<Arc<Engine>> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(error::closed)
    }

    fn take(&self) -> Option<Arc<Engine>> {
        self.engine.write().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.owned
            && let Some(engine) = self.take()
            && let Err(why) = engine.shutdown()
        {
            tracing::warn!(%why, "the engine could not be shut down cleanly");
        }
    }
}

/// An engine in this process.
pub struct EngineBackend(Arc<Shared>);

impl std::fmt::Debug for EngineBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineBackend").field("capabilities", &self.0.capabilities).finish_non_exhaustive()
    }
}

impl EngineBackend {
    /// On an engine that others use too; closing the backend leaves it running.
    ///
    /// The engine must have been [started](Engine::start): its threads commit, and end leases.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self::with(engine, MAX_PAYLOAD_BYTES, false)
    }

    /// The same with another limit for payloads than 8 MiB.
    ///
    /// Keep it well below `queue_bytes` of the engine, and below what its other doors carry.
    pub fn with_max_payload_bytes(engine: Arc<Engine>, max: usize) -> Self {
        Self::with(engine, max, false)
    }

    /// Opens and starts an engine of its own. It is shut down, and what was published committed, when the backend is
    /// closed, or when the last of the backend, its publishers and its subscriptions is dropped (which then waits for the
    /// disk).
    ///
    /// Blocks while it reads the logs; [`register`] does that on a thread.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy) if somebody has the directory, [`Config`](ErrorKind::Config) if it cannot be used,
    /// [`Corrupt`](ErrorKind::Corrupt), [`DiskFull`](ErrorKind::DiskFull).
    pub fn open(config: EngineConfig) -> Result<Self> {
        let engine = Engine::open(config).map_err(error::of_open)?;
        // Whoever waits is told by the commits.
        let started = engine
            .start(Box::new(|why| tracing::error!(why, "the log failed; nothing is committed any more")));
        let backend = Self::with(engine, MAX_PAYLOAD_BYTES, true);
        match started {
            Ok(()) => Ok(backend),
            Err(why) => Err(error::error(ErrorKind::Transient, format!("no thread: {why}")).with_source(why)),
        }
    }

    fn with(engine: Arc<Engine>, max_payload_bytes: usize, owned: bool) -> Self {
        let commits = Commits::new(&engine);
        let capabilities = Arc::new(capabilities(&engine, max_payload_bytes));
        Self(Arc::new(Shared {
            engine: RwLock::new(Some(engine)),
            commits,
            capabilities,
            max_payload_bytes,
            owned,
        }))
    }
}

impl Backend for EngineBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>>> {
        Box::pin(async {
            self.0.engine()?;
            Ok(Arc::new(publisher::EnginePublisher(Arc::clone(&self.0))) as Arc<dyn Publisher>)
        })
    }

    fn subscribe(&self, options: SubscribeOptions) -> BoxFuture<'_, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            options.check(NAME)?;
            let engine = self.0.engine()?;
            let alert = Arc::new(Alert::default());
            let window_bytes = options.window.bytes;
            let signal = Arc::clone(&alert) as Arc<dyn Signal>;
            let (consumer, receipt) = engine.subscribe(request(options), signal).map_err(error::of)?;
            let commits = Arc::clone(&self.0.commits);
            let link = Link { consumer: Arc::new(consumer), engine: Arc::clone(&engine), commits };
            let sink = Sink::new(link, alert);
            self.0.commits.watch(&sink);
            let capabilities = Arc::clone(&self.0.capabilities);
            let subscription =
                subscription::EngineSubscription::new(Arc::clone(&self.0), sink, capabilities, window_bytes);
            // It may have been closed meanwhile, with the sinks that were there.
            self.0.engine()?;
            let (resolver, durable) = Settled::pending();
            engine.flush(false);
            self.0.commits.add_receipt(receipt, Waiting::Done(resolver));
            drop(engine);
            durable.await?;
            Ok(Box::new(subscription) as Box<dyn Subscription>)
        })
    }

    fn forget(&self, filter: Filter, name: Arc<str>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let forgotten = {
                let engine = self.0.engine()?;
                let receipt = engine.forget(filter.as_str(), &name).map_err(error::of)?;
                let (resolver, forgotten) = Settled::pending();
                self.0.commits.add_receipt(receipt, Waiting::Done(resolver));
                forgotten
            };
            forgotten.await
        })
    }

    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let Some(engine) = self.0.take() else { return Ok(()) };
            for sink in self.0.commits.sinks() {
                sink.close();
            }
            self.0.commits.wake_ready();
            let (resolver, flushed) = Settled::pending();
            engine.flush(false);
            self.0.commits.add(self.0.commits.last(), Waiting::Done(resolver));
            let flushed = flushed.await;
            if !self.0.owned {
                return flushed;
            }
            let (resolver, done) = Settled::pending();
            // It waits for the disk and for threads, which a task must not.
            let shutdown = move || {
                let result = engine.shutdown();
                drop(engine);
                resolver.resolve(result.map_err(error::of));
            };
            run_aside(shutdown)?;
            flushed.and(done.await)
        })
    }
}

/// Puts `engine:` URLs into a registry.
pub fn register(registry: &mut Registry) {
    registry.register(NAME, |url| {
        let config = url::read(url);
        async move {
            let config = config?;
            let opened = Arc::new(Mutex::new(None));
            let (resolver, done) = Settled::pending();
            let slot = Arc::clone(&opened);
            run_aside(move || {
                let result = EngineBackend::open(config);
                let answer = result.as_ref().map(|_| ()).map_err(Error::clone);
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = result.ok();
                drop(slot);
                resolver.resolve(answer);
            })?;
            done.await?;
            let backend = opened.lock().unwrap_or_else(PoisonError::into_inner).take();
            let backend =
                backend.ok_or_else(|| error::error(ErrorKind::Internal, "it opened, and is not there"))?;
            Ok(Arc::new(backend) as Arc<dyn Backend>)
        }
    });
}

/// On a thread of its own: for what blocks.
fn run_aside(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = std::thread::Builder::new().name("postroad-open".into()).spawn(work);
    spawned.map(drop).map_err(|why| {
        error::error(ErrorKind::Transient, format!("cannot start a thread: {why}")).with_source(why)
    })
}

fn request(options: SubscribeOptions) -> SubscribeRequest {
    SubscribeRequest {
        filter: options.filter,
        name: options.name.as_deref().map(str::to_owned),
        group: options.group,
        from: options.from,
        window: Window { count: options.window.count.get(), bytes: options.window.bytes },
        policy: PolicyRequest {
            ack_wait: Some(options.ack_wait),
            backoff: Some(options.backoff),
            max_deliveries: Some(options.max_deliveries.map_or(0, std::num::NonZeroU32::get)),
        },
    }
}

fn capabilities(engine: &Engine, max_payload_bytes: usize) -> Capabilities {
    let window = engine.config().dedup_window;
    let dedup = !window.is_zero();
    Capabilities {
        ordering: Ordering::PerSubject,
        redelivery: Support::Native,
        attempts: Attempts::Exact,
        durability: match engine.sync_mode() {
            "fdatasync" => Durability::Disk,
            "os" => Durability::Os,
            _ => Durability::Memory,
        },
        confirm: Support::Native,
        dedup: if dedup { Support::Native } else { Support::Absent },
        dedup_window: dedup.then_some(window),
        replay: Replay {
            first: Support::Native,
            last: Support::Native,
            sequence: Support::Native,
            time: Support::Native,
        },
        named: Support::Native,
        groups: Support::Native,
        individual_ack: Support::Native,
        nack: Support::Native,
        nack_delay: Support::Native,
        extend: Support::Native,
        dead_letter: Support::Native,
        priority: Support::Native,
        // Inside the event.
        headers: Support::Emulated,
        max_header_bytes: Some(MAX_HEADER_BYTES),
        max_payload_bytes: Some(max_payload_bytes),
    }
}
