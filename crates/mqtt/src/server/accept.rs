//! New connections, up to their first byte of MQTT.

use super::certificate::common_name;
use super::config::{Listen, WebSocketRules};
use super::connection::{Connection, Slot, serve};
use super::edge::Edge;
use super::machine::{Machine, Origin, Rules as _};
use super::stream::Stream;
use super::tls::Certificates;
use super::{ServerError, upgrade};
use bytes::BytesMut;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A listener that is bound, on its way to the thread that serves it.
#[derive(Debug)]
pub(super) struct Bound<L> {
    pub(super) socket: std::net::TcpListener,
    pub(super) certificates: Option<Arc<Certificates>>,
    websocket: Option<WebSocketRules>,
    pub(super) rules: Arc<L>,
}

impl<L> Bound<L> {
    pub(super) fn bind(listen: Listen<L>) -> Result<Self, ServerError> {
        let certificates = listen.tls.map(|files| Certificates::load(files).map(Arc::new)).transpose()?;
        let bind = || -> io::Result<std::net::TcpListener> {
            let socket = Socket::new(Domain::for_address(listen.address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            // Connections inherit these, and the window of a connection is agreed on before it is accepted.
            if let Some(bytes) = listen.sockets.receive_buffer {
                socket.set_recv_buffer_size(bytes)?;
            }
            if let Some(bytes) = listen.sockets.send_buffer {
                socket.set_send_buffer_size(bytes)?;
            }
            socket.bind(&listen.address.into())?;
            // A dropped SYN costs its sender a second: room for a storm of connections.
            socket.listen(4096)?;
            Ok(socket.into())
        };
        let socket = bind().map_err(|source| ServerError::Bind { address: listen.address, source })?;
        Ok(Self { socket, certificates, websocket: listen.websocket, rules: listen.rules })
    }
}

/// A listener at work.
pub(super) struct Door<M: Machine> {
    edge: Rc<Edge<M>>,
    bound: Bound<M::Listener>,
    open: Rc<Cell<usize>>,
}

impl<M: Machine> Door<M> {
    pub(super) fn new(edge: Rc<Edge<M>>, bound: Bound<M::Listener>) -> io::Result<(Rc<Self>, TcpListener)> {
        let listener = TcpListener::from_std(bound.socket.try_clone()?)?;
        Ok((Rc::new(Self { edge, bound, open: Rc::default() }), listener))
    }

    /// Accepts until it is dropped.
    pub(super) async fn accept(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, address)) => self.admit(stream, address),
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(error) => {
                    // Out of descriptors: let some connections end first.
                    tracing::warn!(listener = self.bound.rules.name(), %error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn admit(self: &Rc<Self>, stream: TcpStream, address: SocketAddr) {
        let edge = &self.edge;
        edge.counters.accepted.add(1);
        if edge.draining.get()
            || self.open.get() >= self.bound.rules.max_connections()
            || edge.counters.open.get() >= edge.max_connections as u64
        {
            // Nothing can be said before a CONNECT came.
            edge.counters.refused.add(1);
            return;
        }
        let slot = Slot::take(&edge.counters, &self.open);
        let _ = stream.set_nodelay(true);
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        // A peer that vanished without a word is noticed within a minute, also if it wants no keep-alive.
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        if self.bound.certificates.is_none() && self.bound.websocket.is_none() {
            self.start(Stream::Tcp(stream), false, Some(address), BytesMut::new(), slot);
            return;
        }
        let door = self.clone();
        edge.spawn(async move {
            let timeout = door.bound.rules.connect_timeout();
            // Boxed: what a handshake takes is given back when it is over.
            match tokio::time::timeout(timeout, Box::pin(door.handshake(stream))).await {
                Ok(Ok((stream, received))) => {
                    let websocket = door.bound.websocket.is_some();
                    door.start(stream, websocket, Some(address), received, slot);
                }
                failed => {
                    door.edge.counters.failed_handshakes.add(1);
                    let error = failed.map_or_else(|_| "took too long".into(), |result| {
                        result.err().map_or_else(String::new, |error| error.to_string())
                    });
                    tracing::debug!(listener = door.bound.rules.name(), %address, error, "a handshake failed");
                    drop(slot);
                    door.edge.closed.notify_one();
                }
            }
        });
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<(Stream, BytesMut)> {
        let mut stream = match &self.bound.certificates {
            None => Stream::Tcp(stream),
            Some(certificates) => {
                Stream::Tls(Box::new(TlsAcceptor::from(certificates.current()).accept(stream).await?))
            }
        };
        if self.bound.websocket.is_none() {
            return Ok((stream, BytesMut::new()));
        }
        let received = self.serve_websocket(&mut stream, BytesMut::new()).await?;
        Ok((stream, received))
    }

    /// Makes a WebSocket of a stream of which `received` was read; gives what came behind the request.
    async fn serve_websocket(&self, stream: &mut Stream, mut received: BytesMut) -> io::Result<BytesMut> {
        let rules = self.bound.websocket.clone().unwrap_or_default();
        let page = |path: &str| self.edge.page(path);
        upgrade::upgrade(stream, &mut received, &rules, &page).await?;
        Ok(received)
    }

    fn start(
        &self,
        stream: Stream,
        websocket: bool,
        address: Option<SocketAddr>,
        received: BytesMut,
        slot: Slot,
    ) {
        let edge = &self.edge;
        let certificate = match &stream {
            Stream::Tcp(_) => None,
            Stream::Tls(stream) => stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(|chain| common_name(chain.first()?))
                .map(Into::into),
        };
        if edge.draining.get() {
            edge.counters.refused.add(1);
            return;
        }
        let origin = Origin { address, certificate };
        let connected = edge.machine.borrow_mut().connect(&self.bound.rules, origin, edge.now());
        let Some(id) = connected else {
            edge.counters.refused.add(1);
            return;
        };
        let connection = Connection::open(edge, id, stream, websocket, slot);
        edge.spawn(serve(edge.clone(), connection, received));
        // The machine may have set a deadline.
        edge.want_turn();
    }
}
