//! The JSON-log broker as a [`Backend`]: `jsonlog://[NAME:TOKEN@]HOST:PORT`.
//!
//! Every publisher and every subscription has a TCP connection of its own, so that a slow consumer holds up nobody
//! else, and none of them reconnects: when the connection ends, tickets under way are [`Unknown`](postroad_core::Receipt),
//! tokens are [`StaleToken`](CoreKind::StaleToken), and whoever wants to go on asks the backend for a new one.
//!
//! An envelope travels as one JSON event. A payload that is a JSON object with the envelope's own `id` and `priority`,
//! and nothing else to say, goes verbatim; everything else in a wrapper that gives every field and every byte back.
//! `docs/jsonlog-backend.md` describes it.
//!
//! Needs a Tokio runtime. For an engine in this process a backend on the engine itself is the right one, not a socket.
//!
//! ```no_run
//! use postroad_core::{Envelope, PublisherExt, Registry, SubscribeOptions, SubscriptionExt};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut registry = Registry::new();
//! postroad_jsonlog::backend::register(&mut registry);
//! let backend = registry.connect("jsonlog://127.0.0.1:8000").await?;
//! let mut orders = backend.subscribe(SubscribeOptions::new("orders".parse()?)).await?;
//! backend.publisher().await?.send(Envelope::new("orders".parse()?, "one pizza")).await.into_result()?;
//! orders.next().await?.ack().await?;
//! # Ok(()) }
//! ```

mod publisher;
mod sink;
mod subscription;

use std::sync::atomic::{AtomicU32, Ordering as Atomic};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use postroad_core::{
    Attempts, Backend, BoxFuture, Capabilities, Durability, Error, ErrorKind as CoreKind, Filter, Ordering,
    Publisher, Registry, Replay, Result, SubscribeOptions, Subscription, Support,
};

use postroad_engine::backend::envelope;

use crate::client::{self, Client, ClientError, ClientOptions, ErrorKind, Greeting, Handle, SyncMode};

/// The scheme of its URLs, and the `backend` of its errors.
const NAME: &str = "jsonlog";
/// The most that the protocol lets a connection hold.
const MAX_PREFETCH: u32 = 65_536;
/// The leases that the protocol has.
const ACK_WAIT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(24 * 3600);
/// Room in a line for what stands around a payload: command, topic, id, time, priority.
const LINE_OVERHEAD: usize = 4096;

/// A JSON-log broker somewhere else.
#[derive(Debug)]
pub struct JsonLog {
    url: String,
    options: ClientOptions,
    capabilities: Arc<Capabilities>,
    /// What must be closed with it; `None` when it is closed.
    open: Mutex<Option<Vec<Weak<Handle>>>>,
    /// The generation of the next connection.
    epoch: AtomicU32,
}

/// Makes `jsonlog:` URLs known to a registry.
pub fn register(registry: &mut Registry) {
    register_with(registry, ClientOptions::default());
}

/// [`register`] with options for every connection. A name or token in them wins over those of a URL.
pub fn register_with(registry: &mut Registry, options: ClientOptions) {
    registry.register(NAME, move |url| {
        let (url, options) = (url.to_owned(), options.clone());
        async move { Ok(Arc::new(JsonLog::connect(&url, options).await?) as Arc<dyn Backend>) }
    });
}

impl JsonLog {
    /// Asks the broker at `url` what it can do. The connection for that is closed again.
    ///
    /// # Errors
    /// [`Config`](CoreKind::Config) for a bad URL, [`Disconnected`](CoreKind::Disconnected) when nobody answers,
    /// [`Auth`](CoreKind::Auth), [`Busy`](CoreKind::Busy).
    pub async fn connect(url: &str, options: ClientOptions) -> Result<Self> {
        let client = Client::connect(url, options.clone()).await.map_err(connect_error)?;
        Ok(Self {
            url: url.to_owned(),
            options,
            capabilities: Arc::new(capabilities(client.greeting())),
            open: Mutex::new(Some(Vec::new())),
            epoch: AtomicU32::new(1),
        })
    }

    async fn client(&self) -> Result<Client> {
        self.check_open()?;
        let client = Client::connect(&self.url, self.options.clone()).await.map_err(connect_error)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have been closed while this waited.
        let Some(all) = &mut *open else { return Err(closed()) };
        all.retain(|handle| handle.strong_count() > 0);
        all.push(client.weak());
        Ok(client)
    }

    fn check_open(&self) -> Result<()> {
        match &*self.open.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(_) => Ok(()),
            None => Err(closed()),
        }
    }
}

impl Backend for JsonLog {
    fn name(&self) -> &'static str {
        NAME
    }

    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>>> {
        Box::pin(async {
            let client = self.client().await?;
            let capabilities = Arc::clone(&self.capabilities);
            Ok(Arc::new(publisher::JsonLogPublisher::new(client, capabilities)) as Arc<dyn Publisher>)
        })
    }

    fn subscribe(&self, options: SubscribeOptions) -> BoxFuture<'_, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            let wanted = subscribe_options(&options)?;
            let client = self.client().await?;
            let events = client.subscribe(&wanted).await.map_err(|why| error(&why))?;
            let sink = sink::Sink::new(
                client,
                self.epoch.fetch_add(1, Atomic::Relaxed),
                options.ack_wait,
                options.window.bytes,
            );
            let capabilities = Arc::clone(&self.capabilities);
            Ok(Box::new(subscription::JsonLogSubscription::new(events, sink, capabilities))
                as Box<dyn Subscription>)
        })
    }

    fn forget(&self, filter: Filter, name: Arc<str>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let client = self.client().await?;
            client.unsub(filter.as_str(), Some(&name), true).await.map_err(|why| error(&why))
        })
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let all = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
            let handles: Vec<_> = all.into_iter().flatten().filter_map(|weak| weak.upgrade()).collect();
            // All at once: each may take a moment to be answered.
            for handle in &handles {
                handle.begin_close();
            }
            for handle in handles {
                handle.close().await;
            }
            Ok(())
        })
    }
}

/// What a server with this greeting can do.
fn capabilities(greeting: &Greeting) -> Capabilities {
    Capabilities {
        ordering: Ordering::PerSubject,
        redelivery: Support::Native,
        attempts: Attempts::Exact,
        durability: match greeting.sync {
            SyncMode::Fdatasync => Durability::Disk,
            SyncMode::Os => Durability::Os,
            SyncMode::Memory => Durability::Memory,
            SyncMode::Unknown => Durability::Sent,
        },
        confirm: Support::Native,
        dedup: if greeting.dedup.is_some() { Support::Native } else { Support::Absent },
        dedup_window: greeting.dedup,
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
        headers: Support::Emulated,
        max_header_bytes: None,
        // What fits as base64, without headers.
        max_payload_bytes: Some(greeting.max_line.saturating_sub(LINE_OVERHEAD) / 4 * 3),
    }
}

/// The options of the protocol.
fn subscribe_options(o: &SubscribeOptions) -> Result<client::SubscribeOptions> {
    o.check(NAME)?;
    if !ACK_WAIT.contains(&o.ack_wait) {
        let text = format!("ack_wait is {:?}: this broker takes 10 ms to 24 h", o.ack_wait);
        return Err(Error::new(CoreKind::Config, NAME, text));
    }
    Ok(client::SubscribeOptions {
        filter: o.filter.as_str().to_owned(),
        name: o.name.as_deref().map(str::to_owned),
        group: o.group,
        from: match o.from {
            postroad_core::StartAt::New => client::StartAt::New,
            postroad_core::StartAt::First => client::StartAt::First,
            postroad_core::StartAt::Last => client::StartAt::Last,
            postroad_core::StartAt::Sequence(seq) => client::StartAt::Seq(seq.max(1)),
            postroad_core::StartAt::Time(at) => client::StartAt::Time(
                std::time::UNIX_EPOCH + Duration::from_millis(at.as_millis().min(client::LAST_TIME_MILLIS)),
            ),
        },
        prefetch: o.window.count.get().min(MAX_PREFETCH),
        ack_wait: Some(o.ack_wait),
        max_deliveries: Some(o.max_deliveries.map_or(0, std::num::NonZeroU32::get)),
        backoff: o.backoff.clone(),
    })
}

fn closed() -> Error {
    Error::new(CoreKind::Closed, NAME, "the backend was closed")
}

/// Before there is a connection, what is no JSON-log broker is a wrong URL.
fn connect_error(why: ClientError) -> Error {
    match why.kind() {
        ErrorKind::Protocol => Error::new(CoreKind::Config, NAME, why.text().to_owned()).with_source(why),
        _ => error(&why),
    }
}

/// The error of the core for one of the client.
fn error(why: &ClientError) -> Error {
    let kind = match why.kind() {
        ErrorKind::Connect | ErrorKind::Disconnected => CoreKind::Disconnected,
        ErrorKind::Closed => CoreKind::Closed,
        ErrorKind::Busy | ErrorKind::Full | ErrorKind::InUse | ErrorKind::AlreadySubscribed => CoreKind::Busy,
        ErrorKind::BadArgs => CoreKind::Config,
        ErrorKind::TooLong | ErrorKind::TooLarge => CoreKind::TooLarge,
        ErrorKind::NotInFlight => CoreKind::StaleToken,
        ErrorKind::NotFound | ErrorKind::NotSubscribed => CoreKind::NotFound,
        ErrorKind::DiskFull => CoreKind::DiskFull,
        ErrorKind::Auth | ErrorKind::Denied => CoreKind::Auth,
        ErrorKind::Corrupt | ErrorKind::Protocol => CoreKind::Corrupt,
        ErrorKind::ShuttingDown => CoreKind::Transient,
        ErrorKind::Internal => CoreKind::Internal,
        ErrorKind::BadCommand
        | ErrorKind::BadTopic
        | ErrorKind::BadEvent
        | ErrorKind::NotUtf8
        | ErrorKind::Other => CoreKind::Rejected,
    };
    Error::new(kind, NAME, why.text().to_owned()).with_source(why.clone())
}
