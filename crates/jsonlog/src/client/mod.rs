//! A client for the JSON-log protocol.
//!
//! One [`Client`] is one TCP connection. Commands are pipelined: what they return resolves when their reply comes,
//! in order. Everything is bounded: a full queue makes [`Client::publish`] wait, and a subscription holds at most its
//! `prefetch` events. The client never reconnects and never retries: when the connection ends, a publish that was
//! written is *unknown* ([`ErrorKind::Disconnected`]), one that was not is [`ErrorKind::Closed`], and its events and
//! their acks are void, because the server gives them to the next connection.
//!
//! ```no_run
//! use postroad_jsonlog::client::{Client, ClientOptions, StartAt, SubscribeOptions};
//!
//! # async fn run() -> Result<(), postroad_jsonlog::client::ClientError> {
//! let client = Client::connect("jsonlog://127.0.0.1:8000", ClientOptions::default()).await?;
//! let reply = client.publish("orders", r#"{"id":"a1","sum":12.50}"#).await?; // queued
//! println!("stored as {}", reply.await?.seq); // on disk
//!
//! let billing = SubscribeOptions {
//!     filter: "orders".into(),
//!     name: Some("billing".into()),
//!     from: StartAt::First,
//!     ..SubscribeOptions::default()
//! };
//! let mut events = client.subscribe(&billing).await?;
//! while let Some(event) = events.next().await {
//!     client.ack(&event.topic, event.seq).await?.await?;
//! }
//! # Ok(()) }
//! ```

mod address;
mod codec;
mod command;
mod error;
mod events;
mod link;
mod reply;

use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

pub use address::DEFAULT_PORT;
pub use codec::{Greeting, LineSplitter, ServerLine, SyncMode};
pub use command::{StartAt, SubscribeOptions, Target};
pub use error::{ClientError, ErrorKind};
pub use events::{Event, Events, Note};
pub use reply::{BulkAck, PublishAck, Reply};

pub(crate) use command::LAST_TIME_MILLIS;
pub(crate) use events::News;
pub(crate) use link::{Outcome, Slot};
pub(crate) use reply::Answer;

use address::Address;
use link::{Effect, Limits, Shared};
use reply::Expect;

/// How a client connects, and its bounds.
#[derive(Clone)]
pub struct ClientOptions {
    /// Logs in. Required where the greeting says `auth=token`.
    pub token: Option<String>,
    /// Appears in the logs and the `stats` of the server.
    pub name: Option<String>,
    /// For the connection, the greeting and the login together. Default 10 s.
    pub connect_timeout: Duration,
    /// Bytes queued for the socket before publishing waits. One command more is always taken, so that one larger than
    /// this can be sent at all. Default 4 MiB.
    pub queue_bytes: usize,
    /// Commands without a reply before publishing waits. Default 16384.
    pub in_flight: usize,
    /// The longest line taken from the server, in bytes: an event with its topic, or the reply to `topics`. A longer
    /// one ends the connection. Default 16 MiB.
    pub max_reply: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            token: None,
            name: None,
            connect_timeout: Duration::from_secs(10),
            queue_bytes: 4 << 20,
            in_flight: 16_384,
            max_reply: 16 << 20,
        }
    }
}

impl std::fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientOptions")
            .field("token", &self.token.as_ref().map(|_| "***"))
            .field("name", &self.name)
            .field("connect_timeout", &self.connect_timeout)
            .field("queue_bytes", &self.queue_bytes)
            .field("in_flight", &self.in_flight)
            .field("max_reply", &self.max_reply)
            .finish()
    }
}

/// A verdict on one delivery.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Settle<'a> {
    Ack,
    Touch,
    Nack(Option<Duration>),
    Bury(&'a str),
}

/// The handles of a connection together: when the last is gone, it closes.
#[derive(Debug)]
pub(crate) struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    pub(crate) fn begin_close(&self) {
        self.shared.close();
    }

    pub(crate) async fn close(&self) {
        self.shared.close();
        poll_fn(|cx| self.shared.poll_ended(cx)).await;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// One connection to a JSON-log broker. Clones share it; it closes when the last clone and the last [`Events`] are
/// gone, after what was queued has been written and answered (at most 5 s).
#[derive(Debug, Clone)]
pub struct Client {
    handle: Arc<Handle>,
    greeting: Arc<Greeting>,
}

impl Client {
    /// Connects to `jsonlog://[NAME:TOKEN@]HOST[:PORT]` (name and token percent-encoded; `options` win), reads the
    /// greeting, and logs in if there is a token or a name. Needs a Tokio runtime, whose tasks carry the connection.
    ///
    /// # Errors
    /// [`ErrorKind::Connect`] when there is no connection or no greeting within `connect_timeout`,
    /// [`ErrorKind::Protocol`] when the peer is no JSON-log broker, [`ErrorKind::Auth`] when it wants another token,
    /// [`ErrorKind::Busy`] when it has too many connections, [`ErrorKind::BadArgs`] for a bad URL.
    pub async fn connect(url: &str, mut options: ClientOptions) -> Result<Self, ClientError> {
        let Address { host, port, name, token } = address::read(url)?;
        options.name = options.name.or(name);
        options.token = options.token.or(token);
        let limit = options.connect_timeout;
        match tokio::time::timeout(limit, Self::open(host, port, options)).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::new(
                ErrorKind::Connect,
                format!("{host}:{port}: no greeting within {limit:?}"),
            )),
        }
    }

    async fn open(host: &str, port: u16, options: ClientOptions) -> Result<Self, ClientError> {
        let failed = |e: std::io::Error| ClientError::new(ErrorKind::Connect, format!("{host}:{port}: {e}"));
        let mut socket = TcpStream::connect((host, port)).await.map_err(failed)?;
        socket.set_nodelay(true).map_err(failed)?;
        // Finds a peer that vanished without a word, in about a minute.
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10));
        socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive).map_err(failed)?;

        let mut lines = LineSplitter::new(options.max_reply.max(1024));
        let greeting = match read_line(&mut socket, &mut lines).await? {
            ServerLine::Hello(greeting) => greeting,
            other => return Err(refused(other)),
        };
        if greeting.auth && options.token.is_none() {
            return Err(ClientError::new(ErrorKind::Auth, "the server wants a token (ClientOptions::token)"));
        }
        if options.token.is_some() || options.name.is_some() {
            socket.write_all(hello(&options).as_bytes()).await.map_err(failed)?;
            match read_line(&mut socket, &mut lines).await? {
                ServerLine::Ok(_) => {}
                other => return Err(refused(other)),
            }
        }
        let limits = Limits { queue_bytes: options.queue_bytes.max(1), in_flight: options.in_flight.max(1) };
        let shared = Arc::new(Shared::new(limits));
        let (read, write) = socket.into_split();
        tokio::spawn(link::run(Arc::clone(&shared), read, write, lines));
        Ok(Self { handle: Arc::new(Handle { shared }), greeting: Arc::new(greeting) })
    }

    /// What the server said when the connection opened.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// Why the connection ended, [`ErrorKind::Closed`] when this side closed it; `None` while it has not.
    pub fn closed(&self) -> Option<ClientError> {
        self.handle.shared.ended()
    }

    /// Publishes one JSON object, written on one line. Returns when it is queued, after waiting for room; the reply
    /// resolves when it is stored.
    ///
    /// # Errors
    /// Of this call, nothing was sent: [`ErrorKind::BadTopic`], [`ErrorKind::BadEvent`], [`ErrorKind::TooLong`],
    /// [`ErrorKind::Closed`]. Of the reply: as `pub` in the protocol, nothing was stored;
    /// [`ClientError::outcome_unknown`] says when that is not known.
    pub async fn publish(
        &self,
        topic: &str,
        json: impl AsRef<[u8]>,
    ) -> Result<Reply<PublishAck>, ClientError> {
        let json = json.as_ref();
        self.check_publish(topic, json)?;
        self.queue(Expect::Publish, Effect::None, publish_ack, |out| command::publish(out, topic, json)).await
    }

    /// [`publish`](Self::publish) without waiting for room.
    ///
    /// # Errors
    /// As `publish`, and [`ErrorKind::Full`]: see [`poll_ready`](Self::poll_ready).
    pub fn try_publish(&self, topic: &str, json: impl AsRef<[u8]>) -> Result<Reply<PublishAck>, ClientError> {
        let json = json.as_ref();
        self.check_publish(topic, json)?;
        let (tx, rx) = oneshot::channel();
        let write = |out: &mut BytesMut| command::publish(out, topic, json);
        self.handle
            .shared
            .send(false, Expect::Publish, Effect::None, Slot::Oneshot(tx), write)
            .map_err(|(why, _)| why)?;
        Ok(Reply::new(rx, publish_ack))
    }

    fn check_publish(&self, topic: &str, json: &[u8]) -> Result<(), ClientError> {
        command::check_topic(topic)?;
        command::check_json(topic, json, self.greeting.max_line)
    }

    /// [`try_publish`](Self::try_publish) whose outcome goes to a slot, which is given back when nothing was sent.
    /// An `urgent` one is queued even when there is no room.
    pub(crate) fn publish_to(
        &self,
        topic: &str,
        json: &[u8],
        urgent: bool,
        slot: Slot,
    ) -> Result<(), (ClientError, Slot)> {
        if let Err(why) = self.check_publish(topic, json) {
            return Err((why, slot));
        }
        let write = |out: &mut BytesMut| command::publish(out, topic, json);
        self.handle.shared.send(urgent, Expect::Publish, Effect::None, slot, write)
    }

    /// Ready when the queue has room for a command. Errors when the connection has ended.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        self.handle.shared.poll_room(cx)
    }

    /// Publishes `count` events at once: all are stored, with consecutive numbers, or none. `lines` holds them, each
    /// with its LF or CRLF.
    ///
    /// # Errors
    /// As [`publish`](Self::publish); [`ErrorKind::BadArgs`] when `lines` does not hold `count` lines;
    /// [`ErrorKind::TooLarge`] when the server takes no body of that size (8 MiB by default).
    pub async fn publish_bulk(
        &self,
        topic: &str,
        lines: impl AsRef<[u8]>,
        count: u64,
    ) -> Result<Reply<BulkAck>, ClientError> {
        let lines = lines.as_ref();
        command::check_topic(topic)?;
        let found = memchr::memchr_iter(b'\n', lines).count() as u64;
        if found != count || count == 0 || !lines.ends_with(b"\n") {
            return Err(ClientError::new(
                ErrorKind::BadArgs,
                format!("{count} events announced, {found} line ends found; each event ends with LF"),
            ));
        }
        let read = |answer| match answer {
            Answer::Bulk(ack) => Some(ack),
            _ => None,
        };
        let write = |out: &mut BytesMut| command::publish_bulk(out, topic, lines, count);
        self.queue(Expect::Bulk, Effect::None, read, write).await
    }

    /// Subscribes, and waits for the `ok`.
    ///
    /// # Errors
    /// As `sub` in the protocol. [`ErrorKind::AlreadySubscribed`] also when the filter overlaps another subscription of
    /// this connection: an event names its topic only, so overlapping ones need connections of their own.
    pub async fn subscribe(&self, options: &SubscribeOptions) -> Result<Events, ClientError> {
        let line = command::subscribe(options)?;
        poll_fn(|cx| self.poll_ready(cx)).await?;
        let (tx, rx) = oneshot::channel();
        let id = self.handle.shared.with(|state| {
            let id = state.subs.add(options)?;
            let pushed = state.push(Expect::Done, Effect::Subscribe(id), Slot::Oneshot(tx), |out| {
                link::put_line(out, &line);
            });
            pushed.map(|()| id).map_err(|(why, _)| {
                state.subs.remove(id);
                why
            })
        })?;
        self.handle.shared.wake_writer();
        // From here on a cancelled call drops `events`, which unsubscribes.
        let events = Events::new(Arc::clone(&self.handle), id);
        Reply::new(rx, done).await?;
        Ok(events)
    }

    /// Ends the subscription of `filter` (with `name`, that one), or with `forget` deletes a named one for everybody.
    ///
    /// # Errors
    /// As `unsub` in the protocol.
    pub async fn unsub(&self, filter: &str, name: Option<&str>, forget: bool) -> Result<(), ClientError> {
        command::check_filter(filter)?;
        if let Some(name) = name {
            command::check_name(name)?;
        }
        let line = link::unsub_line(filter, name, forget);
        let effect = Effect::Unsubscribe(filter.to_owned(), name.map(str::to_owned));
        self.queue(Expect::Done, effect, done, |out| link::put_line(out, &line)).await?.await
    }

    /// The event is done and never comes again; the reply resolves when that is on disk. A number, an `id`, or a range
    /// `first..=last` of numbers in flight on this connection.
    ///
    /// # Errors
    /// [`ErrorKind::NotInFlight`]; see the protocol.
    pub async fn ack<'a>(
        &self,
        topic: &str,
        target: impl Into<Target<'a>>,
    ) -> Result<Reply<()>, ClientError> {
        self.line(command::settle("ack", topic, target.into())?).await
    }

    /// [`ack`](Self::ack) of every event from `first` to `last` in flight on this connection.
    ///
    /// # Errors
    /// As `ack`.
    pub async fn ack_range(&self, topic: &str, first: u64, last: u64) -> Result<Reply<()>, ClientError> {
        self.ack(topic, Target::Range(first, last)).await
    }

    /// Not done: it comes back after `delay`, else after the subscription's backoff. `reason` (at most 1024 bytes are
    /// sent) stays with the event; empty: none.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub async fn nack<'a>(
        &self,
        topic: &str,
        target: impl Into<Target<'a>>,
        delay: Option<Duration>,
        reason: &str,
    ) -> Result<Reply<()>, ClientError> {
        let mut line = command::settle("nack", topic, target.into())?;
        command::put_delay(&mut line, delay);
        command::put_reason(&mut line, reason);
        self.line(line).await
    }

    /// Still working: the ack wait starts again.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub async fn touch<'a>(
        &self,
        topic: &str,
        target: impl Into<Target<'a>>,
    ) -> Result<Reply<()>, ClientError> {
        self.line(command::settle("touch", topic, target.into())?).await
    }

    /// To the dead letters, now. `reason` as for [`nack`](Self::nack).
    ///
    /// # Errors
    /// As [`ack`](Self::ack), and [`ErrorKind::Denied`] for an event that is a dead letter already.
    pub async fn bury<'a>(
        &self,
        topic: &str,
        target: impl Into<Target<'a>>,
        reason: &str,
    ) -> Result<Reply<()>, ClientError> {
        let mut line = command::settle("bury", topic, target.into())?;
        command::put_reason(&mut line, reason);
        self.line(line).await
    }

    /// Publishes up to `count` dead letters of `topic` (`None`: all, at most 10000) to it again; how many it were.
    ///
    /// # Errors
    /// As `kick` in the protocol.
    pub async fn kick(&self, topic: &str, count: Option<u64>) -> Result<u64, ClientError> {
        command::check_topic(topic)?;
        let line = match count {
            Some(n) => format!("kick {topic} {n}"),
            None => format!("kick {topic}"),
        };
        let read = |answer| match answer {
            Answer::Count(n) => Some(n),
            _ => None,
        };
        self.queue(Expect::Count, Effect::None, read, |out| link::put_line(out, &line)).await?.await
    }

    /// Shows an event without taking it: [`StartAt::First`], [`StartAt::Last`] or [`StartAt::Seq`].
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::BadArgs`] for another place.
    pub async fn peek(&self, topic: &str, at: StartAt) -> Result<Event, ClientError> {
        command::check_topic(topic)?;
        let line = match at {
            StartAt::First => format!("peek {topic} first"),
            StartAt::Last => format!("peek {topic} last"),
            StartAt::Seq(seq) => format!("peek {topic} @{seq}"),
            _ => return Err(ClientError::new(ErrorKind::BadArgs, "peek takes first, last or a number")),
        };
        let read = |answer| match answer {
            Answer::Peek(event) => Some(event),
            _ => None,
        };
        self.queue(Expect::Peek, Effect::None, read, |out| link::put_line(out, &line)).await?.await
    }

    /// The topics that match `filter` (`None`: all), as the JSON of the protocol.
    ///
    /// # Errors
    /// As `topics` in the protocol.
    pub async fn topics(&self, filter: Option<&str>) -> Result<Bytes, ClientError> {
        self.json("topics", filter).await
    }

    /// The counters of the server, or of one topic, as the JSON of the protocol.
    ///
    /// # Errors
    /// As `stats` in the protocol.
    pub async fn stats(&self, topic: Option<&str>) -> Result<Bytes, ClientError> {
        self.json("stats", topic).await
    }

    async fn json(&self, verb: &str, about: Option<&str>) -> Result<Bytes, ClientError> {
        let mut line = verb.to_owned();
        if let Some(about) = about {
            command::check_filter(about)?;
            line.push(' ');
            line.push_str(about);
        }
        let read = |answer| match answer {
            Answer::Json(json) => Some(json),
            _ => None,
        };
        self.queue(Expect::Json, Effect::None, read, |out| link::put_line(out, &line)).await?.await
    }

    /// Closes the connection after everything queued before has been answered.
    ///
    /// # Errors
    /// [`ErrorKind::Disconnected`] or [`ErrorKind::Closed`] when the connection ended before.
    pub async fn quit(&self) -> Result<(), ClientError> {
        self.line("quit".to_owned()).await?.await
    }

    /// Closes the connection for every clone and every [`Events`] of it: nothing new is taken, what was queued is
    /// written and answered (at most 5 s). Returns when it is closed.
    pub async fn close(&self) {
        self.handle.close().await;
    }

    /// For who must close it later and must not keep it open.
    pub(crate) fn weak(&self) -> Weak<Handle> {
        Arc::downgrade(&self.handle)
    }

    async fn line(&self, line: String) -> Result<Reply<()>, ClientError> {
        self.queue(Expect::Done, Effect::None, done, |out| link::put_line(out, &line)).await
    }

    /// A settle whose outcome goes to a slot, queued at once: there are never more of them than deliveries held.
    pub(crate) fn settle_to(&self, command: Settle<'_>, topic: &str, seq: u64, slot: Slot) {
        let line = match command {
            Settle::Ack => command::settle("ack", topic, Target::Seq(seq)),
            Settle::Touch => command::settle("touch", topic, Target::Seq(seq)),
            Settle::Nack(delay) => command::settle("nack", topic, Target::Seq(seq)).map(|mut line| {
                command::put_delay(&mut line, delay);
                line
            }),
            Settle::Bury(reason) => command::settle("bury", topic, Target::Seq(seq)).map(|mut line| {
                command::put_reason(&mut line, reason);
                line
            }),
        };
        let sent = match line {
            Ok(line) => {
                let put = |out: &mut BytesMut| link::put_line(out, &line);
                self.handle.shared.send(true, Expect::Done, Effect::None, slot, put)
            }
            Err(why) => Err((why, slot)),
        };
        if let Err((why, slot)) = sent {
            slot.tell(Err(why));
        }
    }

    async fn queue<T>(
        &self,
        expect: Expect,
        effect: Effect,
        read: fn(Answer) -> Option<T>,
        write: impl FnOnce(&mut BytesMut),
    ) -> Result<Reply<T>, ClientError> {
        let (tx, rx) = oneshot::channel();
        let mut todo = Some((effect, tx, write));
        poll_fn(|cx| {
            std::task::ready!(self.poll_ready(cx))?;
            if let Some((effect, tx, write)) = todo.take() {
                // Another task may have taken the room since: one command over the bound is what `queue_bytes` allows.
                let slot = Slot::Oneshot(tx);
                self.handle.shared.send(true, expect, effect, slot, write).map_err(|(why, _)| why)?;
            }
            Poll::Ready(Ok::<(), ClientError>(()))
        })
        .await?;
        Ok(Reply::new(rx, read))
    }
}

fn publish_ack(answer: Answer) -> Option<PublishAck> {
    match answer {
        Answer::Publish(ack) => Some(ack),
        _ => None,
    }
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of every reader of a reply")]
fn done(answer: Answer) -> Option<()> {
    matches!(answer, Answer::Done).then_some(())
}

fn hello(options: &ClientOptions) -> String {
    let mut fields = serde_json::Map::new();
    for (key, value) in [("token", &options.token), ("name", &options.name)] {
        if let Some(value) = value {
            fields.insert(key.to_owned(), value.clone().into());
        }
    }
    format!("hello {}\n", serde_json::Value::Object(fields))
}

/// The next line, before the tasks of the connection run.
async fn read_line(socket: &mut TcpStream, lines: &mut LineSplitter) -> Result<ServerLine, ClientError> {
    loop {
        if let Some(line) = lines.next_line()? {
            if line.is_empty() {
                continue;
            }
            return ServerLine::parse(&line);
        }
        let lost = |what: String| ClientError::new(ErrorKind::Connect, what);
        let n = socket.read_buf(lines.space(4096)).await.map_err(|e| lost(format!("reading failed: {e}")))?;
        if n == 0 {
            return Err(lost("the server closed the connection before its greeting".to_owned()));
        }
    }
}

/// A line that refuses a new connection.
fn refused(line: ServerLine) -> ClientError {
    match line {
        ServerLine::Err(why) => why,
        ServerLine::Bye { code, text } => match ErrorKind::from_code(&code) {
            ErrorKind::Other => {
                ClientError::new(ErrorKind::Connect, format!("the server said bye: {code} {text}"))
            }
            kind => ClientError::new(kind, text),
        },
        other => ClientError::new(
            ErrorKind::Protocol,
            format!("expected the greeting or the login's `ok`, got {other:?}"),
        ),
    }
}

#[cfg(test)]
mod tests;
