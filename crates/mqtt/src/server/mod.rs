//! The edge of the broker: sockets, TLS and WebSocket, on one thread that owns the broker.
//!
//! A turn of the thread: read the sockets that are ready and give their bytes to the broker; get the commit of what it
//! appended going; tell it what is committed; write what it has for each connection. An idle connection owns no buffer.

mod accept;
mod broker;
mod certificate;
mod config;
mod connection;
mod counters;
mod edge;
pub(crate) mod letters;
pub(crate) mod machine;
pub(crate) mod post;
mod signal;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod upgrade;
mod websocket;

use crate::broker::{Post, PostError};
use accept::{Bound, Door};
pub use broker::{LinesOptions, ListenerOptions, Server, ServerConfig};
use config::EdgeConfig;
pub use config::{SocketOptions, TlsFiles, WebSocketRules};
use counters::Counters;
pub use counters::ServerStats;
use edge::Edge;
pub use letters::OnDead;
use machine::Machine;
use postroad_core::{Clock as _, SystemClock};
use postroad_engine::log::LogStore;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tls::Certificates;
use tokio::sync::oneshot;

/// Why a server does not start, or ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A certificate or key is not usable.
    #[error("{}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The broker could not be opened.
    #[error("cannot open the broker: {0}")]
    Open(String),
    /// The thread of the broker ended by a panic. Nothing it had not committed was promised; the process should end.
    #[error("the thread of the broker panicked")]
    Panicked,
    /// The thread or its runtime could not be made.
    #[error("cannot start the thread of the broker: {0}")]
    Io(#[from] io::Error),
}

/// What may be asked of a server that runs, from any thread.
#[derive(Clone, Debug)]
pub struct ServerHandle {
    certificates: Vec<Arc<Certificates>>,
    counters: Arc<Counters>,
    inbox: Arc<post::Inbox>,
}

impl ServerHandle {
    /// Publishes messages at QoS 2, in the log; `answer` is called with what became of each when all are committed, on
    /// the thread of the broker, which it must not hold up. Before [`Server::run`] they wait for it.
    pub fn post(&self, posts: Vec<Post>, answer: impl FnOnce(Vec<Result<(), PostError>>) + Send + 'static) {
        self.inbox.leave(posts, Box::new(answer));
    }

    /// Publishes a message at QoS 2 and waits until it is committed.
    pub async fn publish(&self, post: Post) -> Result<(), PostError> {
        let (done, answer) = oneshot::channel();
        self.post(vec![post], move |mut results| {
            let _ = done.send(results.pop().unwrap_or(Err(PostError::Stopped)));
        });
        answer.await.unwrap_or(Err(PostError::Stopped))
    }

    /// Reads the certificates of all listeners again, for connections to come. Where that fails the old ones stay, and
    /// the first error is given.
    pub fn reload_certificates(&self) -> Result<(), ServerError> {
        let mut result = Ok(());
        for certificates in &self.certificates {
            if let Err(error) = certificates.reload() {
                tracing::error!(%error, "the old certificate stays");
                result = result.and(Err(error));
            }
        }
        result
    }

    /// Counters of the edge.
    pub fn stats(&self) -> ServerStats {
        self.counters.stats()
    }
}

/// Listeners that are bound, and what they will serve.
pub(crate) struct EdgeServer<L> {
    bound: Vec<Bound<L>>,
    handle: ServerHandle,
    store: Arc<dyn LogStore>,
    max_connections: usize,
    max_partial: usize,
    write_timeout: Duration,
}

impl<L: machine::Rules> EdgeServer<L> {
    /// Listens; connections wait until [`EdgeServer::run`].
    pub(crate) fn bind(config: EdgeConfig<L>, store: Arc<dyn LogStore>) -> Result<Self, ServerError> {
        let bound = config.listeners.into_iter().map(Bound::bind).collect::<Result<Vec<_>, _>>()?;
        let certificates = bound.iter().filter_map(|bound| bound.certificates.clone()).collect();
        Ok(Self {
            bound,
            handle: ServerHandle { certificates, counters: Arc::default(), inbox: Arc::default() },
            store,
            max_connections: config.max_connections,
            max_partial: config.max_partial,
            write_timeout: config.write_timeout,
        })
    }

    /// Where it listens, in the order of the configuration.
    pub(crate) fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.bound.iter().map(|bound| bound.socket.local_addr()).collect()
    }

    pub(crate) fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Serves on a thread of its own until `shutdown` is ready, then drains: no new connections, and the machine says
    /// goodbye to those there are. What is not closed after `drain_timeout` is cut.
    ///
    /// `open` makes the machine; it runs on that thread.
    pub(crate) async fn run<M: Machine<Listener = L>>(
        self,
        open: impl FnOnce(u64) -> Result<M, String> + Send + 'static,
        shutdown: impl Future<Output = ()>,
        drain_timeout: Duration,
    ) -> Result<(), ServerError> {
        let (stop, stopping) = oneshot::channel();
        let (done, mut ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("postroad-mqtt".into()).spawn(move || {
            let _ = done.send(self.serve(open, stopping, drain_timeout));
        })?;
        let result = tokio::select! {
            result = &mut ended => result,
            () = shutdown => {
                let _ = stop.send(());
                ended.await
            }
        };
        // It has said its last word, or is panicking: there is nothing to wait for.
        drop(thread);
        result.unwrap_or(Err(ServerError::Panicked))
    }

    fn serve<M: Machine<Listener = L>>(
        self,
        open: impl FnOnce(u64) -> Result<M, String>,
        stopping: oneshot::Receiver<()>,
        drain_timeout: Duration,
    ) -> Result<(), ServerError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(edge::MAX_CHECKS)
            .build_local(tokio::runtime::LocalOptions::default())?;
        let clock = SystemClock::new();
        let machine = open(clock.now().as_millis()).map_err(ServerError::Open)?;
        let edge = Edge::new(
            machine,
            self.store,
            clock,
            self.handle.counters,
            self.max_connections,
            self.max_partial,
            self.write_timeout,
        );
        edge.machine.borrow_mut().wake_with(edge.signal());
        runtime.block_on(async {
            edge.spawn(edge.clone().turns());
            let mut accepting = Vec::new();
            for bound in self.bound {
                tracing::info!(listener = bound.rules.name(), "listening");
                let (door, listener) = Door::new(edge.clone(), bound)?;
                let (closed, closing) = oneshot::channel::<()>();
                edge.spawn(async move {
                    tokio::select! {
                        () = door.accept(listener) => {}
                        _ = closing => {}
                    }
                });
                accepting.push(closed);
            }
            tokio::select! {
                _ = stopping => {}
                () = edge.panicked.notified() => return Err(ServerError::Panicked),
            }
            drop(accepting);
            edge.draining.set(true);
            let now = edge.now();
            edge.machine.borrow_mut().drain(now);
            edge.want_turn();
            let drained = async {
                loop {
                    edge.closed.notified().await;
                    if edge.counters.open.get() == 0 {
                        return;
                    }
                }
            };
            let left = edge.counters.open.get();
            if left > 0 {
                tokio::select! {
                    () = edge.panicked.notified() => return Err(ServerError::Panicked),
                    drained = tokio::time::timeout(drain_timeout, drained) => if drained.is_err() {
                        let left = edge.counters.open.get();
                        tracing::warn!(left, "connections did not end in time and are cut");
                    }
                }
            }
            edge.flush();
            Ok(())
        })
    }
}
