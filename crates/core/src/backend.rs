//! What a broker or a client of one looks like from here: publishers, subscriptions, and where to get them.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::capabilities::Capabilities;
use crate::delivery::Delivery;
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::subject::Filter;
use crate::ticket::Ticket;
use crate::time::Timestamp;

/// A future in a box, as `dyn` traits return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Takes messages. Shared by reference; many tasks may publish at once.
pub trait Publisher: Send + Sync {
    /// Whether a publish now is likely to be taken. `Pending` wakes the task when that changes; an error is final.
    ///
    /// Another task may take the room in between; [`publish`](Self::publish) then refuses with
    /// [`Busy`](ErrorKind::Busy).
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<()>>;

    /// Sends it off without waiting. Publishes of one task to one subject keep their order.
    fn publish(&self, envelope: Envelope) -> Ticket;

    /// Sends many, with one ticket for each, in order. A backend that can does it with one write and one sync.
    fn publish_batch(&self, envelopes: Vec<Envelope>) -> Vec<Ticket> {
        envelopes.into_iter().map(|envelope| self.publish(envelope)).collect()
    }

    /// What this publisher can do.
    fn capabilities(&self) -> &Capabilities;
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Deliveries that were in flight when the drain began and were settled by their tokens.
    pub settled: u64,
    /// Deliveries still in flight at the deadline. They come again; their tokens are stale.
    pub returned: u64,
    /// Whether the deadline came first.
    pub timed_out: bool,
}

/// Gives deliveries to one consumer. Dropping it gives back what is in flight; the tokens are then stale.
pub trait Subscription: Send {
    /// Appends up to `max` deliveries to `out` and gives how many: at least 1, unless `max` is 0. Waits only if
    /// there is none. Does not allocate in the steady state; reuse `out`.
    ///
    /// An error that a verdict met on its way, and that ends the connection, comes out here. Temporary errors can be
    /// polled again. [`Closed`](ErrorKind::Closed) is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut Vec<Delivery>, max: usize)
    -> Poll<Result<usize>>;

    /// Stops fetching: [`poll_fill`](Self::poll_fill) is [`Closed`](ErrorKind::Closed) from now on, what is in
    /// flight may be settled until `deadline`, read on the backend's clock. A second call moves the deadline.
    fn begin_drain(&mut self, deadline: Timestamp);

    /// Ready when nothing is in flight any more or the deadline has come. Begins a drain that has no deadline if none
    /// was begun. Ready again with the same report after the end.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<DrainReport>>;

    /// What this subscription can do.
    fn capabilities(&self) -> &Capabilities;
}

/// Where a new subscription starts. One that exists already, by name, keeps its place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StartAt {
    /// After the newest message.
    #[default]
    New,
    /// At the oldest message that is kept.
    First,
    /// At the newest message that the filter matches.
    Last,
    /// At this position, or the next one that is kept.
    Sequence(u64),
    /// At the first message stored at or after this time.
    Time(Timestamp),
}

/// How many un-settled deliveries a consumer may hold. A single message larger than `bytes` is still delivered, alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowOptions {
    /// How many, at least 1.
    pub count: NonZeroU32,
    /// How many bytes ([`Envelope::len_bytes`]) together.
    pub bytes: u64,
}

impl Default for WindowOptions {
    /// 256 messages, 8 MiB.
    fn default() -> Self {
        Self { count: NonZeroU32::MIN.saturating_add(255), bytes: 8 << 20 }
    }
}

/// What somebody wants to receive, and how.
///
/// ```
/// use postroad_core::{StartAt, SubscribeOptions};
///
/// let options = SubscribeOptions::new("orders/>".parse()?).named("billing").shared().from(StartAt::First);
/// assert!(options.group);
/// # Ok::<(), postroad_core::SubjectError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Which subjects.
    pub filter: Filter,
    /// With a name it outlives its connections; together with the filter this is its identity. 1 to 100 letters,
    /// digits, `-`, `_`, `.`, `:`. Without: it ends when it is dropped.
    pub name: Option<Arc<str>>,
    /// Whether several consumers share it, each message going to one of them. Needs a name.
    pub group: bool,
    /// Where it starts if it is new.
    pub from: StartAt,
    /// How much this consumer may hold un-settled.
    pub window: WindowOptions,
    /// How long a delivery may stay un-settled before it comes again.
    pub ack_wait: Duration,
    /// How long a message waits before delivery 2, 3, …; the last one repeats. Empty: at once.
    pub backoff: Vec<Duration>,
    /// After so many deliveries without [`Ack`](crate::Outcome::Ack) it is a dead letter. `None`: never.
    pub max_deliveries: Option<NonZeroU32>,
}

impl SubscribeOptions {
    /// New messages of `filter`, without a name, with an ack wait of 30 seconds, no backoff, no end of deliveries.
    pub fn new(filter: Filter) -> Self {
        Self {
            filter,
            name: None,
            group: false,
            from: StartAt::New,
            window: WindowOptions::default(),
            ack_wait: Duration::from_secs(30),
            backoff: Vec::new(),
            max_deliveries: None,
        }
    }

    /// With this name.
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Shared with other consumers.
    pub fn shared(mut self) -> Self {
        self.group = true;
        self
    }

    /// Starting there.
    pub fn from(mut self, from: StartAt) -> Self {
        self.from = from;
        self
    }

    /// Holding at most `count` messages and `bytes` bytes un-settled. 0 messages is read as 1.
    pub fn window(mut self, count: u32, bytes: u64) -> Self {
        self.window = WindowOptions { count: NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN), bytes };
        self
    }

    /// With this ack wait.
    pub fn ack_wait(mut self, ack_wait: Duration) -> Self {
        self.ack_wait = ack_wait;
        self
    }

    /// With this backoff.
    pub fn backoff(mut self, backoff: impl Into<Vec<Duration>>) -> Self {
        self.backoff = backoff.into();
        self
    }

    /// A dead letter after this many deliveries; 0: never.
    pub fn max_deliveries(mut self, max: u32) -> Self {
        self.max_deliveries = NonZeroU32::new(max);
        self
    }

    /// Whether the options are allowed together: the name's characters and length, a group's name, an ack wait of at
    /// least a millisecond. `backend` is who says so.
    pub fn check(&self, backend: &'static str) -> Result<()> {
        let wrong = |text: String| Err(Error::new(ErrorKind::Config, backend, text));
        if let Some(name) = &self.name {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
            if !(1..=100).contains(&name.len()) || !name.chars().all(allowed) {
                return wrong(format!(
                    "subscription name {name:?}: write 1 to 100 letters, digits, `-`, `_`, `.`, `:`"
                ));
            }
        } else if self.group {
            return wrong(
                "a shared subscription needs a name: its consumers find each other by it".to_owned(),
            );
        }
        if self.ack_wait < Duration::from_millis(1) {
            return wrong("ack_wait is at least 1 ms: shorter leases end before they begin".to_owned());
        }
        Ok(())
    }
}

/// A broker, or a connection to one.
pub trait Backend: Send + Sync {
    /// Its URL scheme, like `nats`. Also the `backend` of its errors.
    fn name(&self) -> &'static str;

    /// A publisher.
    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>>>;

    /// A subscription. An exclusive one that another consumer has is [`Busy`](ErrorKind::Busy).
    fn subscribe(&self, options: SubscribeOptions) -> BoxFuture<'_, Result<Box<dyn Subscription>>>;

    /// Deletes a named subscription and its place. [`Busy`](ErrorKind::Busy) while somebody has it.
    fn forget(&self, filter: Filter, name: Arc<str>) -> BoxFuture<'_, Result<()>> {
        let text = format!("cannot forget `{name}` on `{filter}`: delete it with the broker's own tools");
        let error = Error::new(ErrorKind::Unsupported, self.name(), text);
        Box::pin(std::future::ready(Err(error)))
    }

    /// What it can do.
    fn capabilities(&self) -> &Capabilities;

    /// Flushes what was published and closes. Everything made from it is [`Closed`](ErrorKind::Closed) then.
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}
