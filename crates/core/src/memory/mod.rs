//! A whole backend in memory: what the others promise, this one does in the plainest way. It is the executable
//! specification of [`Backend`], and good for tests and for programs that need a queue without a broker.
//!
//! - One log for all subjects: positions count from 1, without gaps.
//! - What no subscription waits for any more stays for replay, until the log is full; then the oldest goes first. A log
//!   full of messages that are waited for refuses publishes with [`Busy`](ErrorKind::Busy), and its publishers are
//!   not ready.
//! - Subjects that start with `$` cannot be published to. Dead letters are on `$dead/<subject>`, in the same log; one
//!   that is given up there is settled, not copied again.
//! - A message past its expiry is discarded instead of delivered.
//!
//! It has no thread and no timer. Leases end and delays are over when a subscription is polled, and when
//! [`Memory::tick`] is called: a program that waits must call that at [`Memory::next_deadline`].
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use postroad_core::{Backend, Envelope, ManualClock, PublisherExt, SubscribeOptions, SubscriptionExt, block_on};
//! use postroad_core::memory::{Memory, Options};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # block_on(async {
//! let clock = Arc::new(ManualClock::default());
//! let memory = Memory::with(Options::default(), clock.clone());
//! let mut jobs = memory.subscribe(SubscribeOptions::new("jobs".parse()?).max_deliveries(2)).await?;
//! let mut dead = memory.subscribe(SubscribeOptions::new("$dead/>".parse()?)).await?;
//! memory.publisher().await?.send(Envelope::new("jobs".parse()?, "x")).await.into_result()?;
//!
//! let first = jobs.next().await?;
//! clock.advance(Duration::from_secs(30)); // the lease ends
//! memory.tick();
//! let second = jobs.next().await?;
//! assert_eq!(second.attempt, 2);
//! assert!(first.ack().await.is_err()); // its token is stale
//! drop(second); // no verdict: Retry; but that was the last delivery
//! assert_eq!(dead.next().await?.envelope.subject, "$dead/jobs");
//! # Ok(())
//! # })
//! # }
//! ```

mod broker;
mod group;
mod handles;
mod log;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use crate::backend::{Backend, BoxFuture, Publisher, SubscribeOptions, Subscription};
use crate::capabilities::{Attempts, Capabilities, Durability, Ordering, Replay, Support};
use crate::error::{Error, ErrorKind, Result};
use crate::registry::Registry;
use crate::subject::Filter;
use crate::time::{Clock, SystemClock, Timestamp};
use broker::Broker;
use handles::{MemoryPublisher, MemorySubscription};

const NAME: &str = "memory";

const CAPABILITIES: Capabilities = Capabilities {
    ordering: Ordering::Total,
    redelivery: Support::Native,
    attempts: Attempts::Exact,
    durability: Durability::Memory,
    confirm: Support::Native,
    dedup: Support::Native,
    dedup_window: None,
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
    headers: Support::Native,
    max_header_bytes: None,
    max_payload_bytes: None,
};

fn error(kind: ErrorKind, text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(kind, NAME, text)
}

/// The bounds of a memory backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The most messages that are kept; 1 Mi.
    pub max_messages: u64,
    /// The most bytes that are kept, 256 for each message included; 256 MiB.
    pub max_bytes: u64,
    /// The most bytes of one message ([`len_bytes`](crate::Envelope::len_bytes)); 8 MiB.
    pub max_message_bytes: usize,
    /// How many message ids are remembered, for each subject on its own; 65 536. 0: no dedup.
    pub dedup_count: usize,
    /// For how long message ids are remembered; 2 minutes. 0: no dedup.
    pub dedup_age: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_messages: 1 << 20,
            max_bytes: 256 << 20,
            max_message_bytes: 8 << 20,
            dedup_count: 1 << 16,
            dedup_age: Duration::from_secs(120),
        }
    }
}

/// What a memory backend has done and holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages stored by publishers.
    pub published: u64,
    /// Publishes confirmed as duplicates.
    pub duplicates: u64,
    /// Deliveries, repeated ones too.
    pub delivered: u64,
    /// Verdicts [`Ack`](crate::Outcome::Ack).
    pub acked: u64,
    /// Verdicts [`Retry`](crate::Outcome::Retry), dropped tokens included.
    pub retried: u64,
    /// Verdicts [`Discard`](crate::Outcome::Discard).
    pub discarded: u64,
    /// Verdicts [`DeadLetter`](crate::Outcome::DeadLetter).
    pub dead: u64,
    /// Dead letters stored, also for deliveries exhausted.
    pub dead_letters: u64,
    /// Tokens dropped without a verdict.
    pub dropped: u64,
    /// Verdicts that came too late.
    pub stale: u64,
    /// Messages discarded because they had expired.
    pub expired: u64,
    /// Messages in the log.
    pub messages: u64,
    /// Bytes in the log.
    pub bytes: u64,
    /// Subscriptions, named ones without consumers too.
    pub subscriptions: u64,
    /// Messages that subscriptions have not settled, each as often as it is waited for.
    pub pending: u64,
    /// Of these, deliveries without a verdict.
    pub in_flight: u64,
}

struct Shared {
    clock: Box<dyn Clock>,
    capabilities: Capabilities,
    broker: Mutex<Broker>,
}

impl Shared {
    /// Does `work` under the lock, then wakes who must be woken.
    #[inline]
    fn with<T>(&self, work: impl FnOnce(&mut Broker) -> T) -> T {
        let mut broker = self.broker.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut broker);
        if !broker.wake.is_empty() {
            wake(broker);
        }
        result
    }
}

/// Not inlined: the usual verdict wakes nobody.
#[inline(never)]
fn wake(mut broker: MutexGuard<'_, Broker>) {
    let wake = std::mem::take(&mut broker.wake);
    drop(broker);
    wake.into_iter().for_each(Waker::wake);
}

/// The memory backend. Clones are the same backend.
#[derive(Clone)]
pub struct Memory(Arc<Shared>);

impl Memory {
    /// An empty one, with the default bounds, on the system's clock.
    pub fn new() -> Self {
        Self::with(Options::default(), SystemClock::new())
    }

    /// An empty one, with these bounds, on this clock.
    pub fn with(options: Options, clock: impl Clock + 'static) -> Self {
        let dedup = options.dedup_count > 0 && options.dedup_age > Duration::ZERO;
        let capabilities = Capabilities {
            dedup: if dedup { Support::Native } else { Support::Absent },
            dedup_window: dedup.then_some(options.dedup_age),
            max_payload_bytes: Some(options.max_message_bytes),
            ..CAPABILITIES
        };
        let broker = Mutex::new(Broker::new(options));
        Self(Arc::new(Shared { clock: Box::new(clock), capabilities, broker }))
    }

    /// Time has passed: leases end, delays are over, drains reach their deadline, and who waits for that is woken.
    pub fn tick(&self) {
        let passed = self.0.clock.passed();
        self.0.with(|broker| broker.tick(passed));
    }

    /// When [`tick`](Self::tick) has something to do.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.0.with(|broker| broker.next_deadline())
    }

    /// What it has done and holds.
    pub fn stats(&self) -> Stats {
        self.0.with(|broker| broker.stats())
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Backend for Memory {
    fn name(&self) -> &'static str {
        NAME
    }

    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>>> {
        Box::pin(async {
            self.0.with(|broker| broker.open())?;
            Ok(Arc::new(MemoryPublisher(Arc::clone(&self.0))) as Arc<dyn Publisher>)
        })
    }

    fn subscribe(&self, options: SubscribeOptions) -> BoxFuture<'_, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            let now = self.0.clock.now();
            let seat = self.0.with(|broker| broker.subscribe(&options, now))?;
            Ok(Box::new(MemorySubscription::new(Arc::clone(&self.0), seat)) as Box<dyn Subscription>)
        })
    }

    fn forget(&self, filter: Filter, name: Arc<str>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.0.with(|broker| broker.forget(&filter, &name)) })
    }

    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.0.with(Broker::close);
            Ok(())
        })
    }
}

/// Puts `memory:` into a registry. `memory:` is a new backend at each connect; `memory:NAME` is the same one for
/// everybody who connects with this registry.
pub fn register(registry: &mut Registry) {
    let named: Mutex<HashMap<String, Memory>> = Mutex::default();
    registry.register(NAME, move |url| {
        let memory = match url.split_once(':') {
            Some((_, name)) if !name.is_empty() => {
                let mut named = named.lock().unwrap_or_else(PoisonError::into_inner);
                named.entry(name.to_owned()).or_default().clone()
            }
            _ => Memory::new(),
        };
        ready(Ok(Arc::new(memory) as Arc<dyn Backend>))
    });
}
