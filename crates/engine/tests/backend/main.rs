//! The `engine:` backend through the traits of the core, on a log in memory and on a journal on the disk.

/// One test for each place.
macro_rules! in_both {
    ($($name:ident)+) => {
        mod memory {
            $(#[test] fn $name() { $crate::await_in_time(super::$name($crate::Place::Memory)); })+
        }
        mod journal {
            $(#[test] fn $name() { $crate::await_in_time(super::$name($crate::Place::journal())); })+
        }
    };
}

mod delivering;
mod ending;
mod publishing;
mod settling;
mod windows;

use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use postroad_core::{
    Backend, Delivery, Envelope, ErrorKind, ManualClock, MessageId, Publisher, PublisherExt, Subject,
    SubscribeOptions, Subscription, SubscriptionExt, Timestamp,
};
use postroad_engine::log::{JournalStore, LogStore, MemoryStore};
use postroad_engine::{Engine, EngineBackend, EngineConfig, SyncMode};
use postroad_journal::CommitterOptions;

/// Where the log is.
pub(crate) enum Place {
    Memory,
    Journal(tempfile::TempDir),
}

impl Place {
    pub(crate) fn journal() -> Self {
        Self::Journal(tempfile::tempdir().unwrap())
    }

    pub(crate) fn is_durable(&self) -> bool {
        matches!(self, Self::Journal(_))
    }

    pub(crate) fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Memory => None,
            Self::Journal(dir) => Some(dir.path().to_owned()),
        }
    }

    pub(crate) fn config(&self) -> EngineConfig {
        let sync = if self.is_durable() { SyncMode::Fdatasync } else { SyncMode::Memory };
        EngineConfig { data: self.path(), sync, disk_floor: 0, ..EngineConfig::default() }
    }

    pub(crate) fn open(&self) -> World {
        self.open_with(self.config())
    }

    /// An engine whose clock stands still until the test moves it.
    pub(crate) fn open_with(&self, config: EngineConfig) -> World {
        let clock = Arc::new(ManualClock::new(START));
        let store: Arc<dyn LogStore> = match self {
            Self::Memory => Arc::new(MemoryStore::new(config.queue_bytes)),
            Self::Journal(dir) => {
                let options = CommitterOptions {
                    disk_floor: 0,
                    max_queued_bytes: config.queue_bytes,
                    ..CommitterOptions::default()
                };
                Arc::new(JournalStore::open(dir.path(), config.segment_bytes, options).unwrap())
            }
        };
        let engine = Engine::open_with(config, store, Some(Arc::new(Arc::clone(&clock)))).unwrap();
        let backend = EngineBackend::new(Arc::clone(&engine));
        World { engine, backend, clock }
    }
}

pub(crate) const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

pub(crate) struct World {
    pub(crate) engine: Arc<Engine>,
    pub(crate) backend: EngineBackend,
    pub(crate) clock: Arc<ManualClock>,
}

impl World {
    /// With the threads that commit.
    pub(crate) fn started(self) -> Self {
        self.engine.start(Box::new(|why| panic!("the log failed: {why}"))).unwrap();
        self
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.engine.tick().unwrap();
    }

    pub(crate) async fn publisher(&self) -> Arc<dyn Publisher> {
        self.backend.publisher().await.unwrap()
    }

    pub(crate) async fn subscribe(&self, options: SubscribeOptions) -> Box<dyn Subscription> {
        self.backend.subscribe(options).await.unwrap()
    }

    /// Publishes texts to `topic`.
    pub(crate) async fn publish(&self, topic: &str, texts: &[&str]) {
        let publisher = self.publisher().await;
        for text in texts {
            assert!(publisher.send(text_envelope(topic, text)).await.is_confirmed());
        }
    }

    pub(crate) fn end(self) {
        await_in_time(self.backend.close()).unwrap();
        self.engine.shutdown().unwrap();
    }
}

pub(crate) fn text_envelope(topic: &str, text: &str) -> Envelope {
    Envelope::new(Subject::new(topic).unwrap(), text.to_owned())
}

pub(crate) fn options(filter: &str) -> SubscribeOptions {
    SubscribeOptions::new(filter.parse().unwrap())
}

pub(crate) fn id(text: &str) -> MessageId {
    MessageId::text(text).unwrap()
}

pub(crate) fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|d| String::from_utf8_lossy(&d.envelope.payload).into_owned()).collect()
}

/// What is there now, up to `max`, without waiting.
pub(crate) async fn now(subscription: &mut Box<dyn Subscription>, max: usize) -> Vec<Delivery> {
    let mut out = Vec::new();
    poll_fn(|cx| match subscription.poll_fill(cx, &mut out, max) {
        Poll::Ready(result) => Poll::Ready(result.map(drop)),
        Poll::Pending => Poll::Ready(Ok(())),
    })
    .await
    .unwrap();
    out
}

pub(crate) async fn next(subscription: &mut Box<dyn Subscription>) -> Delivery {
    subscription.next().await.unwrap()
}

pub(crate) fn kind<T>(result: postroad_core::Result<T>) -> ErrorKind {
    match result {
        Ok(_) => panic!("it worked"),
        Err(error) => error.kind(),
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Counts how often it woke somebody.
#[derive(Default)]
pub(crate) struct Wakes(AtomicUsize);

impl Wakes {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

pub(crate) fn counting() -> (Arc<Wakes>, Waker) {
    let wakes = Arc::new(Wakes::default());
    (Arc::clone(&wakes), Waker::from(wakes))
}

/// `block_on` that fails instead of waiting for ever.
pub(crate) fn await_in_time<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "nobody woke this test in 20 seconds");
        std::thread::park_timeout(left);
    }
}
