//! Sessions on TCP.

mod connection;
mod wake;

use crate::protocol::Words;
use crate::session::{Hub, Limits};
use postroad_engine::Engine;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use wake::WakeSignal;

/// What a server can be told.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Bytes of a line.
    pub max_line: usize,
    /// Bytes of a `pubn` body.
    pub max_bulk: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// A peer that reads nothing for so long is disconnected.
    pub write_timeout: Duration,
    /// Bytes of output held per connection.
    pub max_output: usize,
    /// Bytes of half-sent lines, all connections together.
    pub max_partial: usize,
    /// Who may log in; empty: everybody, without logging in.
    pub tokens: Vec<String>,
    /// The command words.
    pub words: Words,
}

impl Default for ServerConfig {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            max_line: limits.max_line,
            max_bulk: limits.max_bulk,
            max_connections: 20_000,
            write_timeout: Duration::from_secs(60),
            max_output: limits.max_output,
            max_partial: limits.max_partial,
            tokens: Vec::new(),
            words: Words::default(),
        }
    }
}

/// What the connections of a server share.
pub(crate) struct Shared {
    engine: Arc<Engine>,
    hub: Arc<Hub>,
    write_timeout: Duration,
    max_output: usize,
    draining: AtomicBool,
    // To tell all connections of a shutdown.
    signals: Mutex<slab::Slab<Arc<WakeSignal>>>,
    closed: tokio::sync::Notify,
}

impl Shared {
    fn signals(&self) -> MutexGuard<'_, slab::Slab<Arc<WakeSignal>>> {
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A JSON-log server that listens.
pub struct Server {
    shared: Arc<Shared>,
    listener: TcpListener,
    max_connections: usize,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens. The engine must have been started.
    #[allow(clippy::unused_async, reason = "must be called inside a runtime")]
    pub async fn bind(engine: Arc<Engine>, config: ServerConfig) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(config.listen),
            socket2::Type::STREAM,
            Some(socket2::Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&config.listen.into())?;
        // A dropped SYN costs its sender a second: room for a storm of connections.
        socket.listen(4096)?;
        let listener = TcpListener::from_std(socket.into())?;
        let limits = Limits {
            max_line: config.max_line,
            max_bulk: config.max_bulk,
            max_output: config.max_output,
            max_partial: config.max_partial,
            ..Limits::default()
        };
        let shared = Shared {
            engine,
            hub: Arc::new(Hub::new(config.words, config.tokens, limits)),
            write_timeout: config.write_timeout,
            max_output: config.max_output,
            draining: AtomicBool::new(false),
            signals: Mutex::new(slab::Slab::new()),
            closed: tokio::sync::Notify::new(),
        };
        Ok(Self { shared: Arc::new(shared), listener, max_connections: config.max_connections })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Connections, limits, words.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.shared.hub
    }

    /// Serves until `shutdown` is ready, then drains: no new connections, no new commands; replies that wait for a commit
    /// are sent, then `bye`. Connections that are not done after `drain_timeout` are cut.
    pub async fn run(self, shutdown: impl Future<Output = ()>, drain_timeout: Duration) {
        watch_inline_commits(&self.shared);
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => self.accept(stream),
                    Err(error) => {
                        // Out of descriptors: let some connections end first.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        drop(self.listener);
        self.shared.draining.store(true, Ordering::SeqCst);
        for (_, signal) in &*self.shared.signals() {
            signal.wake();
        }
        let drained = async {
            loop {
                let closed = self.shared.closed.notified();
                if self.shared.signals().is_empty() {
                    return;
                }
                // Also polled: a connection may have been added after the signals were called.
                let _ = tokio::time::timeout(Duration::from_millis(100), closed).await;
                for (_, signal) in &*self.shared.signals() {
                    signal.wake();
                }
            }
        };
        if tokio::time::timeout(drain_timeout, drained).await.is_err() {
            let left = self.shared.signals().len();
            tracing::warn!(left, "connections did not end in time and are cut");
        }
    }

    fn accept(&self, stream: TcpStream) {
        if self.shared.hub.connections() >= self.max_connections {
            // Best effort: it is about to be closed.
            let _ = stream.try_write(b"bye busy there are too many connections; connect again later\n");
            return;
        }
        let _ = stream.set_nodelay(true);
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        // A peer that vanished without a word is noticed within a minute.
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        tokio::spawn(connection::serve(self.shared.clone(), stream));
    }
}

/// A connection may commit on its own thread, and a disk that hangs holds that thread, which may be the one that was to
/// look for events next. Giving the runtime something to do wakes another one.
fn watch_inline_commits(shared: &Arc<Shared>) {
    let runtime = tokio::runtime::Handle::current();
    let shared = Arc::downgrade(shared);
    let watch = move || {
        while let Some(shared) = shared.upgrade() {
            if shared.engine.inline_for().is_some_and(|time| time > Duration::from_millis(5)) {
                runtime.spawn(async {});
            }
            drop(shared);
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    if let Err(error) = std::thread::Builder::new().name("postroad-watch".into()).spawn(watch) {
        tracing::warn!(%error, "cannot watch inline commits");
    }
}
