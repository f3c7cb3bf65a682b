//! What the edge can be told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A whole server.
#[derive(Clone, Debug)]
pub(crate) struct EdgeConfig<L> {
    pub(crate) listeners: Vec<Listen<L>>,
    /// Connections at once over all listeners, those that have not sent a packet yet included.
    pub(crate) max_connections: usize,
    /// Bytes of packets that have not wholly arrived, over all connections.
    pub(crate) max_partial: usize,
    /// A peer whose socket takes nothing for so long is disconnected.
    pub(crate) write_timeout: Duration,
}

/// One listener.
#[derive(Clone, Debug)]
pub(crate) struct Listen<L> {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) websocket: Option<WebSocketRules>,
    pub(crate) sockets: SocketOptions,
    pub(crate) rules: Arc<L>,
}

/// Where the certificates of a listener are (PEM). They are read when the server binds, and again when told to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the server, followed by the intermediate ones.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs the certificates of clients; `None`: clients are not asked for one.
    pub client_ca: Option<PathBuf>,
    /// With `client_ca`: clients without a certificate are refused. Otherwise they go on without one.
    pub require_client_certificate: bool,
}

/// What a WebSocket must ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSocketRules {
    /// The path of its URL; `/mqtt` by default.
    pub path: String,
    /// From which origins browsers may connect; `None`: from all. A request without an `Origin` is no browser's.
    pub origins: Option<Vec<String>>,
}

impl Default for WebSocketRules {
    fn default() -> Self {
        Self { path: "/mqtt".into(), origins: None }
    }
}

/// Sizes the kernel is asked for; `None`: its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// Bytes it buffers of what is sent.
    pub send_buffer: Option<usize>,
    /// Bytes it buffers of what comes in.
    pub receive_buffer: Option<usize>,
}
