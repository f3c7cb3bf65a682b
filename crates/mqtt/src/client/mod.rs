//! An MQTT server of 5.0 or 3.1.1 as a [`Backend`]: `mqtt://[USER:PASSWORD@]HOST[:PORT][?OPTION=VALUE&…]`, or `mqtts:`.
//!
//! [`MqttOptions`] lists the options. Publishes and subscriptions are QoS 2 unless `qos` says less.
//!
//! **Without an outbox** every publisher has a connection of its own that does not reconnect. A ticket is
//! [`Confirmed`](postroad_core::Receipt) at PUBCOMP (PUBACK at QoS 1, the socket at QoS 0), and
//! [`Unknown`](postroad_core::Receipt) when the connection ends before.
//!
//! **With `outbox=DIR`** a publish is on the disk before it is sent, and so is PUBREC before PUBREL. One
//! connection, made again whenever it ends, sends what is there until the server has it, in this process or in the next one:
//! a `kill -9` neither loses nor repeats a message. It remembers the ids of the last 16384 messages, so a program that does not
//! know how far it came publishes again with the same ids: what the outbox has had is confirmed like the first, and not sent again. (It is
//! no de-duplication that others could rely on, so [`Capabilities::dedup`] is absent.) The ticket is still `Confirmed` at PUBCOMP, however long that takes.
//! This is the one driver that tries again, because it was asked to. If the *server* loses the session, what it had
//! not confirmed is sent anew, and may arrive twice: compare ids.
//!
//! **Without an inbox** the server keeps a message of a named subscription until its verdict: PUBREC (or PUBACK) is the ack.
//! MQTT wants them in the order of the messages, so an ack waits for those before it. When the connection ends tokens are stale, and what was not
//! settled comes again to the next subscription of that name.
//!
//! **With `inbox=DIR`** a message and its id are on the disk before PUBREC, the end of the exchange before PUBCOMP, and a verdict
//! before it is answered. What is not settled comes again after a restart, and nothing that was. Names only: a
//! subscription without one keeps nothing.
//!
//! **Versions.** 5.0 is spoken, and 3.1.1 to a server that does not take it, or with `version=3.1.1`. There a message has no
//! properties, so the payload is the envelope as a JSON object, as in the `jsonlog:` backend
//! ([`Capabilities::headers`] is `Emulated`); what comes and is no such object is taken as it is. `payload=plain` is for
//! devices that expect payloads alone: ids and times are not sent then, and headers and the other fields are
//! [`Unsupported`](ErrorKind::Unsupported). A server of 3.1.1 can neither say that it refuses a message (it
//! closes the connection, or confirms and drops it) nor how many it takes at once (20 are under way), and how long it keeps a
//! session is its own affair. Retained messages, which it sends with every SUBSCRIBE, are left out here.
//!
//! **A server without QoS 2** is [`Unsupported`](ErrorKind::Unsupported) unless `qos=1`: in 5.0 CONNACK says it, in 3.1.1
//! SUBACK, or a PUBACK to a publish of QoS 2, whose receipt is [`Unknown`](postroad_core::Receipt) then: the server has the message. An outbox
//! stops there, and keeps what it has. At QoS 1 boxes keep messages over a kill, but they may come again.
//!
//! One directory belongs to one process. In both cases a subscription ends with its connection, and whoever wants to
//! go on asks the backend for a new one.
//!
//! Leases, attempts, backoff and delays are kept here, by [`postroad_core::mailbox`], since MQTT has none. A name is held by
//! one consumer in this process ([`Busy`](ErrorKind::Busy)); a consumer elsewhere with the same `client_id` takes the
//! session over, as MQTT does. [`envelope`] says how a message travels; retained messages are not asked for. There are no
//! groups, dead letters, priorities and replays: those are [`Unsupported`](ErrorKind::Unsupported).
//!
//! Needs a Tokio runtime.
//!
//! ```no_run
//! use postroad_core::{Envelope, PublisherExt, Registry, SubscribeOptions, SubscriptionExt};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut registry = Registry::new();
//! postroad_mqtt::client::register(&mut registry);
//! let backend = registry.connect("mqtt://127.0.0.1?client_id=shop&outbox=out&inbox=in").await?;
//! let mut orders = backend.subscribe(SubscribeOptions::new("orders".parse()?).named("kitchen")).await?;
//! backend.publisher().await?.send(Envelope::new("orders".parse()?, "one pizza")).await.into_result()?;
//! orders.next().await?.ack().await?;
//! # Ok(()) }
//! ```

mod connection;
pub mod envelope;
mod incoming;
mod link;
mod log;
mod options;
mod outgoing;
mod places;
mod publisher;
mod store;
mod subscription;
#[cfg(test)]
mod tests;
mod wrapping;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use postroad_core::{
    Attempts, Backend, BoxFuture, Capabilities, Error, ErrorKind, Filter, Ordering, Publisher, Registry,
    Result, StartAt, SubscribeOptions, Subscription, Support,
};

use crate::codec::{Qos, ReasonCode, Version};
use connection::{Session, Target, connect};
use link::{CLOSE_TIMEOUT, Wake};
use log::{Log, Record};
use places::Place;
use publisher::{MqttPublisher, Open, Sender};
use store::Store;
use subscription::{MqttSubscription, Receiver};

pub use options::{MqttOptions, Planted};

/// The scheme of its URLs, and the `backend` of its errors.
const NAME: &str = "mqtt";

/// An MQTT server somewhere else.
pub struct Mqtt {
    target: Arc<Target>,
    capabilities: Arc<Capabilities>,
    outbox: Option<Arc<Open>>,
    inbox: Option<Arc<Store>>,
    /// What must be closed with it; `None` when it is closed.
    open: Mutex<Option<Handles>>,
}

#[derive(Default)]
struct Handles {
    senders: Vec<Weak<Sender>>,
    receivers: Vec<Weak<Receiver>>,
}

impl std::fmt::Debug for Mqtt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mqtt").field("target", &self.target).finish_non_exhaustive()
    }
}

/// Makes `mqtt:` and `mqtts:` URLs known to a registry.
pub fn register(registry: &mut Registry) {
    for scheme in ["mqtt", "mqtts"] {
        registry.register(scheme, |url| {
            let options = MqttOptions::from_url(url);
            async move { Ok(Arc::new(Mqtt::connect(options?).await?) as Arc<dyn Backend>) }
        });
    }
}

impl Mqtt {
    /// Asks the server what it can do, over a connection that is closed again. With an outbox nobody is asked: it opens, and
    /// begins to send what it holds as soon as the server is there.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config), [`Disconnected`](ErrorKind::Disconnected) when nobody answers,
    /// [`Auth`](ErrorKind::Auth), [`Unsupported`](ErrorKind::Unsupported) when the server's highest QoS is lower,
    /// [`Busy`](ErrorKind::Busy) when another process has the outbox or the inbox.
    pub async fn connect(options: MqttOptions) -> Result<Self> {
        options.check()?;
        let target = Arc::new(Target::new(Arc::new(options)));
        let options = &target.options;
        let inbox = match &options.inbox {
            Some(directory) => Some(open_store(directory.clone()).await?),
            None => None,
        };
        let mut maximum_packet_size = u32::MAX;
        let outbox = match &options.outbox {
            Some(directory) => Some(Arc::new(Open(open_outbox(&target, directory).await?))),
            None => {
                maximum_packet_size = probe(&target).await?;
                None
            }
        };
        let capabilities = Arc::new(capabilities(options, target.version(), maximum_packet_size));
        let open = Mutex::new(Some(Handles::default()));
        Ok(Self { target, capabilities, outbox, inbox, open })
    }

    /// Whether it is open, and what was made from it.
    fn handles(&self) -> MutexGuard<'_, Option<Handles>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_open(&self) -> Result<()> {
        if self.handles().is_some() { Ok(()) } else { Err(closed()) }
    }

    fn client_id(&self, filter: &Filter, name: &str) -> String {
        format!("{}-{name}-{:016x}", self.target.options.prefix(), fnv(filter.as_str().as_bytes()))
    }

    fn server(&self) -> String {
        format!("{}:{}", self.target.options.host, self.target.options.port)
    }

    async fn receive(&self, wanted: SubscribeOptions) -> Result<Box<dyn Subscription>> {
        self.check_open()?;
        check_subscription(&wanted)?;
        let wake = Arc::new(Wake::default());
        let (client_id, place) = match &wanted.name {
            Some(name) => {
                let id = self.client_id(&wanted.filter, name);
                let place = Place::take(&self.server(), &id)?;
                (id, Some(place))
            }
            None => {
                let id = format!("{}-{}", self.target.options.prefix(), postroad_core::MessageId::generate());
                (id, None)
            }
        };
        let log = match &self.inbox {
            Some(store) if wanted.name.is_some() => {
                Some(open_log(Arc::clone(store), client_id.clone(), Arc::clone(&wake)).await?)
            }
            _ => None,
        };
        let link = subscription::open(&self.target, &wanted, &client_id, log, wake).await?;
        link.lock().machine.place = place;
        let subscription = MqttSubscription::new(Arc::clone(&link), Arc::clone(&self.capabilities));
        let mut open = self.handles();
        // It may have been closed while this waited; dropped, the subscription ends.
        let Some(all) = &mut *open else { return Err(closed()) };
        all.receivers.retain(|link| link.strong_count() > 0);
        all.receivers.push(Arc::downgrade(&link));
        Ok(Box::new(subscription))
    }

    async fn send(&self) -> Result<Arc<dyn Publisher>> {
        self.check_open()?;
        let open = match &self.outbox {
            Some(open) => Arc::clone(open),
            None => Arc::new(Open(publisher::open(&self.target).await?)),
        };
        let mut handles = self.handles();
        // It may have been closed while this waited.
        let Some(all) = &mut *handles else { return Err(closed()) };
        all.senders.retain(|link| link.strong_count() > 0);
        all.senders.push(Arc::downgrade(&open.0));
        let capabilities = Arc::clone(&self.capabilities);
        Ok(Arc::new(MqttPublisher { open, qos: self.target.options.qos, capabilities }))
    }

    /// Connects and says goodbye: whether there was a session, and the version.
    async fn visit(&self, session: Session<'_>) -> Result<(bool, Version)> {
        let mut connection = connect(&self.target, session).await?;
        let mut goodbye = bytes::BytesMut::new();
        let disconnect = crate::codec::Disconnect::new(ReasonCode::Success);
        let _ = disconnect.encode(connection.version, &mut goodbye);
        connection.write(goodbye).await?;
        Ok((connection.connack.session_present, connection.version))
    }

    async fn forget_name(&self, filter: Filter, name: Arc<str>) -> Result<()> {
        self.check_open()?;
        let client_id = self.client_id(&filter, &name);
        let _place = Place::take(&self.server(), &client_id)?;
        // A session that expires with its connection. Only 5.0 has that: before, this may have made one.
        let session = Session { client_id: &client_id, clean_start: false, expiry: 0 };
        let (there, version) = self.visit(session).await?;
        if !version.is_v5() {
            self.visit(Session { clean_start: true, ..session }).await?;
        }
        let stored = match &self.inbox {
            Some(store) => {
                let (store, id) = (Arc::clone(store), client_id.clone());
                blocking(move || store.remove(&id)).await?
            }
            None => false,
        };
        if there || stored {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotFound, NAME, format!("there is no session `{client_id}`")))
    }
}

/// The largest packet of the server.
async fn probe(target: &Target) -> Result<u32> {
    let id = format!("{}-{}", target.options.prefix(), postroad_core::MessageId::generate());
    let session = Session { client_id: &id, clean_start: true, expiry: 0 };
    Ok(connect(target, session).await?.terms().maximum_packet_size)
}

/// Files are opened where that may take its time.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|why| Err(Error::new(ErrorKind::Internal, NAME, why.to_string())))
}

async fn open_store(directory: PathBuf) -> Result<Arc<Store>> {
    blocking(move || Store::open(&directory)).await
}

async fn open_log(store: Arc<Store>, name: String, wake: Arc<Wake>) -> Result<(Box<dyn Log>, Vec<Record>)> {
    blocking(move || {
        let (log, records) = store.log(&name, wake)?;
        Ok((Box::new(log) as Box<dyn Log>, records))
    })
    .await
}

async fn open_outbox(target: &Arc<Target>, directory: &Path) -> Result<Arc<Sender>> {
    let store = open_store(directory.to_owned()).await?;
    let wake = Arc::new(Wake::default());
    let (log, records) = open_log(store, "outbox".to_owned(), Arc::clone(&wake)).await?;
    Ok(publisher::open_outbox(Arc::clone(target), log, records, wake))
}

impl Backend for Mqtt {
    fn name(&self) -> &'static str {
        NAME
    }

    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>>> {
        Box::pin(self.send())
    }

    fn subscribe(&self, options: SubscribeOptions) -> BoxFuture<'_, Result<Box<dyn Subscription>>> {
        Box::pin(self.receive(options))
    }

    fn forget(&self, filter: Filter, name: Arc<str>) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.forget_name(filter, name))
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Waits up to 5 seconds for answers to what was published. With an outbox the rest is sent by the next process.
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let Some(all) = self.handles().take() else { return Ok(()) };
            let mut senders: Vec<_> = all.senders.iter().filter_map(Weak::upgrade).collect();
            senders.extend(self.outbox.iter().map(|open| Arc::clone(&open.0)));
            for link in &senders {
                link.close(CLOSE_TIMEOUT);
            }
            for link in all.receivers.iter().filter_map(Weak::upgrade) {
                subscription::end(&link);
            }
            for link in senders {
                link.ended().await;
            }
            Ok(())
        })
    }
}

/// What a server can do with these options.
fn capabilities(options: &MqttOptions, version: Option<Version>, maximum_packet_size: u32) -> Capabilities {
    let confirms = options.qos != Qos::AtMostOnce;
    let inbox = options.inbox.is_some();
    Capabilities {
        ordering: Ordering::PerSubject,
        redelivery: Support::Emulated,
        attempts: if inbox { Attempts::Exact } else { Attempts::Volatile },
        durability: if confirms { options.durability } else { postroad_core::Durability::Sent },
        confirm: if confirms { Support::Native } else { Support::Absent },
        named: Support::Native,
        individual_ack: if inbox { Support::Emulated } else { Support::Absent },
        nack: Support::Emulated,
        nack_delay: Support::Emulated,
        extend: Support::Emulated,
        headers: match version {
            Some(Version::V31 | Version::V311) if options.plain => Support::Absent,
            Some(Version::V31 | Version::V311) => Support::Emulated,
            // Of a server that was not asked the same is hoped.
            Some(Version::V5) | None => Support::Native,
        },
        // Room for topic, id, time and what else stands around a payload.
        max_payload_bytes: (maximum_packet_size < u32::MAX)
            .then(|| (maximum_packet_size as usize).saturating_sub(4096)),
        ..Capabilities::NONE
    }
}

fn check_subscription(wanted: &SubscribeOptions) -> Result<()> {
    wanted.check(NAME)?;
    let unsupported = |text| Err(Error::new(ErrorKind::Unsupported, NAME, text));
    if wanted.group {
        return unsupported(
            "no groups: MQTT's shared subscriptions do not give back what a lost consumer held",
        );
    }
    if wanted.from != StartAt::New {
        return unsupported("MQTT delivers what is published from now on: there is no log to start in");
    }
    if wanted.max_deliveries.is_some() {
        return unsupported("MQTT has no dead letters, where a message could go after so many deliveries");
    }
    Ok(())
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, NAME, "the backend or its handle was closed")
}

/// The connection is gone, or cannot go on.
fn lost(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Disconnected, NAME, text)
}

/// The server has less than the QoS that was asked for.
fn lower_qos(highest: Qos) -> Error {
    let text = format!("the server has QoS {} at most here: ask for it with qos=", highest as u8);
    Error::new(ErrorKind::Unsupported, NAME, text)
}

/// What a reason code of 0x80 or more means.
fn refusal(reason: ReasonCode, text: Option<&str>) -> Error {
    let kind = match reason {
        ReasonCode::BadUserNameOrPassword
        | ReasonCode::NotAuthorized
        | ReasonCode::Banned
        | ReasonCode::BadAuthenticationMethod => ErrorKind::Auth,
        ReasonCode::ServerUnavailable
        | ReasonCode::ServerBusy
        | ReasonCode::QuotaExceeded
        | ReasonCode::MessageRateTooHigh
        | ReasonCode::ConnectionRateExceeded => ErrorKind::Busy,
        ReasonCode::PacketTooLarge => ErrorKind::TooLarge,
        ReasonCode::QosNotSupported
        | ReasonCode::UnsupportedProtocolVersion
        | ReasonCode::WildcardSubscriptionsNotSupported => ErrorKind::Unsupported,
        _ => ErrorKind::Rejected,
    };
    let said = text.map_or(String::new(), |text| format!(": {text}"));
    Error::new(kind, NAME, format!("the server answered {reason:?} (0x{:02x}){said}", reason as u8))
}

/// FNV-1a: short names for long ones.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
