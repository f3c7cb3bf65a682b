//! The broker behind the edge.

use super::config::{EdgeConfig, Listen};
use super::letters::{OnDead, Undertaker};
use super::machine::{Machine, Origin, Output, Rules};
use super::post::Desk;
use super::{EdgeServer, ServerError, ServerHandle, SocketOptions, TlsFiles, WebSocketRules};
use crate::access::{Access, Denied, Identity, PasswordCheck};
use crate::broker::{Broker, BrokerConfig, ConnId, ListenerConfig, Outbox, Peer};
use crate::lines::{DoorListener, Doors, DoorsBehind, LinesConfig, Role};
use bytes::BytesMut;
use postroad_engine::log::{LogStore, Mark, Signal};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A listener of a [`Server`].
#[derive(Clone, Debug)]
pub struct ListenerOptions {
    /// Where it listens.
    pub address: SocketAddr,
    /// Certificates; `None`: no TLS.
    pub tls: Option<TlsFiles>,
    /// It speaks MQTT over WebSocket only; `None`: MQTT at once.
    pub websocket: Option<WebSocketRules>,
    /// Sizes of the buffers of its sockets.
    pub sockets: SocketOptions,
    /// What its clients may do.
    pub rules: Arc<ListenerConfig>,
}

impl Default for ListenerOptions {
    /// MQTT on TCP, port 1883 of this machine only.
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 1883)),
            tls: None,
            websocket: None,
            sockets: SocketOptions::default(),
            rules: Arc::default(),
        }
    }
}

/// What a [`Server`] can be told.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens.
    pub listeners: Vec<ListenerOptions>,
    /// Connections at once over all listeners, those in a TLS handshake included. One more is closed at once: before
    /// CONNECT nothing can be said.
    pub max_connections: usize,
    /// Bytes held of packets that have not wholly arrived, all connections together. The connection that would hold
    /// more is cut.
    pub max_partial: usize,
    /// A client whose socket takes nothing for so long, while there is something for it, is cut.
    pub write_timeout: Duration,
    /// How long clients have to go when the server ends.
    pub drain_timeout: Duration,
    /// The broker.
    pub broker: BrokerConfig,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listeners: vec![ListenerOptions::default()],
            max_connections: 20_000,
            max_partial: 256 << 20,
            write_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(5),
            broker: BrokerConfig::default(),
        }
    }
}

/// The line dialect of a [`Server`]: another door to its broker.
#[derive(Clone, Debug, Default)]
pub struct LinesOptions {
    /// Where it listens, and for whom. By custom consumers come to port 4040 and publishers to 4041. `websocket` is
    /// not for lines: with it a listener is refused.
    pub listeners: Vec<(Role, ListenerOptions)>,
    /// What it is told.
    pub lines: LinesConfig,
}

/// An MQTT server that listens.
pub struct Server {
    edge: Edge,
    store: Arc<dyn LogStore>,
    access: Arc<dyn Access>,
    broker: BrokerConfig,
    drain_timeout: Duration,
    on_dead: Option<OnDead>,
}

/// What listens: most servers have only MQTT, and its way is the shorter one.
enum Edge {
    Mqtt(EdgeServer<ListenerConfig>),
    Doors(EdgeServer<DoorListener>, LinesConfig),
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// Reads the certificates and listens; connections wait until [`Server::run`]. The store must have been started.
    pub fn bind(
        config: ServerConfig,
        store: Arc<dyn LogStore>,
        access: Arc<dyn Access>,
    ) -> Result<Self, ServerError> {
        let listeners =
            config.listeners.iter().map(|listener| listen(listener, listener.rules.clone())).collect();
        let edge = Edge::Mqtt(EdgeServer::bind(edge_config(&config, listeners), store.clone())?);
        Ok(Self::new(edge, config, store, access))
    }

    /// The same with the line dialect as another door to the broker. Its listeners come after those of `config`.
    pub fn bind_with_lines(
        config: ServerConfig,
        lines: LinesOptions,
        store: Arc<dyn LogStore>,
        access: Arc<dyn Access>,
    ) -> Result<Self, ServerError> {
        if lines.listeners.iter().any(|(_, listener)| listener.websocket.is_some()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "lines do not go over WebSocket").into());
        }
        let mqtt =
            config.listeners.iter().map(|at| listen(at, Arc::new(DoorListener::Mqtt(at.rules.clone()))));
        let others = lines
            .listeners
            .iter()
            .map(|(role, at)| listen(at, Arc::new(DoorListener::Lines(*role, at.rules.clone()))));
        let edge = EdgeServer::bind(edge_config(&config, mqtt.chain(others).collect()), store.clone())?;
        Ok(Self::new(Edge::Doors(edge, lines.lines), config, store, access))
    }

    fn new(edge: Edge, config: ServerConfig, store: Arc<dyn LogStore>, access: Arc<dyn Access>) -> Self {
        Self {
            edge,
            store,
            access,
            broker: config.broker,
            drain_timeout: config.drain_timeout,
            on_dead: None,
        }
    }

    /// `on_dead` stores messages that did not arrive. Without it the broker keeps the newest
    /// [`BrokerConfig::max_letters`], for subscribers of `$dead/#` only.
    #[must_use]
    pub fn on_dead(mut self, on_dead: OnDead) -> Self {
        self.on_dead = Some(on_dead);
        // They are kept until they are stored.
        self.broker.max_letters = usize::MAX;
        self
    }

    /// Where it listens, in the order of its configuration.
    pub fn local_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        match &self.edge {
            Edge::Mqtt(edge) => edge.addresses(),
            Edge::Doors(edge, _) => edge.addresses(),
        }
    }

    /// To be asked things while it runs.
    pub fn handle(&self) -> ServerHandle {
        match &self.edge {
            Edge::Mqtt(edge) => edge.handle(),
            Edge::Doors(edge, _) => edge.handle(),
        }
    }

    /// Serves, on the thread `postroad-mqtt`, until `shutdown` is ready, then drains: no new connections, and clients of
    /// MQTT 5.0 are told. Who has not gone after [`ServerConfig::drain_timeout`] is cut.
    ///
    /// After an error the broker is gone, and the process should end: [`ServerError::Panicked`] is never survived.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        let desk = Desk::new(self.handle().inbox);
        let Self { edge, store, access, broker, drain_timeout, on_dead } = self;
        let undertaker = Undertaker::new(on_dead);
        match edge {
            Edge::Mqtt(edge) => {
                let open = move |now| {
                    let mut broker =
                        Broker::open(broker, store, access, now).map_err(|error| error.to_string())?;
                    broker.log_in_elsewhere();
                    Ok(Behind { broker, undertaker, desk })
                };
                edge.run(open, shutdown, drain_timeout).await
            }
            Edge::Doors(edge, lines) => {
                let open = move |now| {
                    let mut doors =
                        Doors::open(broker, lines, store, access, now).map_err(|error| error.to_string())?;
                    doors.log_in_elsewhere();
                    Ok(DoorsBehind { doors, undertaker, desk })
                };
                edge.run(open, shutdown, drain_timeout).await
            }
        }
    }
}

fn listen<L>(at: &ListenerOptions, rules: Arc<L>) -> Listen<L> {
    Listen {
        address: at.address,
        tls: at.tls.clone(),
        websocket: at.websocket.clone(),
        sockets: at.sockets,
        rules,
    }
}

fn edge_config<L>(config: &ServerConfig, listeners: Vec<Listen<L>>) -> EdgeConfig<L> {
    EdgeConfig {
        listeners,
        max_connections: config.max_connections,
        max_partial: config.max_partial,
        write_timeout: config.write_timeout,
    }
}

/// The broker, where its dead letters go, and messages of this process.
struct Behind {
    broker: Broker,
    undertaker: Undertaker,
    desk: Desk,
}

impl Behind {
    fn turn(&mut self, now: u64) {
        self.undertaker.turn(&mut self.broker, now);
        self.desk.turn(&mut self.broker, now);
    }
}

impl Machine for Behind {
    type Id = ConnId;
    type Listener = ListenerConfig;
    type Outbox = Outbox;

    fn connect(&mut self, listener: &Arc<ListenerConfig>, origin: Origin, now: u64) -> Option<ConnId> {
        let peer = Peer { address: origin.address, certificate: origin.certificate };
        self.broker.connect(listener, peer, now).ok()
    }

    fn input(&mut self, id: ConnId, input: &mut BytesMut, now: u64) {
        self.broker.input(id, input, now);
    }

    fn lost(&mut self, id: ConnId, now: u64) {
        self.broker.lost(id, now);
    }

    fn committed(&mut self, now: u64) {
        self.broker.committed(now);
        self.turn(now);
    }

    fn tick(&mut self, now: u64) {
        self.broker.tick(now);
        self.turn(now);
    }

    fn next_deadline(&self) -> Option<u64> {
        let own = [self.undertaker.deadline(), self.desk.deadline(&self.broker)];
        own.into_iter().flatten().chain(self.broker.next_deadline()).min()
    }

    fn pending(&mut self) -> Option<Mark> {
        let own = [self.undertaker.pending(&self.broker), self.desk.pending(&self.broker)];
        own.into_iter().flatten().map(Mark::committed).chain(self.broker.pending()).reduce(Mark::and)
    }

    fn touched(&mut self, out: &mut Vec<ConnId>) {
        self.broker.touched(out);
    }

    fn outbox(&mut self, id: ConnId) -> Option<&mut Outbox> {
        self.broker.outbox(id)
    }

    fn written(&mut self, id: ConnId, now: u64) {
        self.broker.written(id, now);
    }

    fn next_login(&mut self) -> Option<(ConnId, PasswordCheck)> {
        self.broker.next_login()
    }

    fn logged_in(&mut self, id: ConnId, result: Result<Identity, Denied>, now: u64) {
        self.broker.logged_in(id, result, now);
    }

    fn wake_with(&mut self, signal: Arc<dyn Signal>) {
        self.desk.wake_with(signal);
    }

    fn metrics(&self) -> String {
        self.broker.metrics()
    }

    fn wants_input(&mut self, id: ConnId) -> bool {
        self.broker.wants_input(id)
    }

    fn drain(&mut self, now: u64) {
        self.broker.drain(now);
    }
}

impl Output for Outbox {
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
    fn slices<'a>(&'a self, out: &mut Vec<IoSlice<'a>>) {
        self.slices(out);
    }
    fn advance(&mut self, written: usize) {
        self.advance(written);
    }
    fn close_after(&self) -> bool {
        self.close_after()
    }
}

impl Rules for ListenerConfig {
    fn name(&self) -> &str {
        &self.name
    }
    fn max_connections(&self) -> usize {
        self.max_connections
    }
    fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }
}
