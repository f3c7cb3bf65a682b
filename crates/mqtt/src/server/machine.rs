//! What the edge asks of the broker behind it.

use crate::access::{Denied, Identity, PasswordCheck};
use bytes::BytesMut;
use postroad_engine::log::{Mark, Signal};
use std::hash::Hash;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A state machine fed with bytes of connections; `now` is in milliseconds since 1970 and never goes back.
///
/// The edge works for any of them, so that its tests can have one that panics, floods or stops reading at will.
pub(crate) trait Machine: Sized + 'static {
    /// A connection.
    type Id: Copy + Eq + Hash + std::fmt::Debug;
    /// What its listener allows.
    type Listener: Rules;
    /// What is to be written to it.
    type Outbox: Output;

    /// A transport is there; `None`: too many.
    fn connect(&mut self, listener: &Arc<Self::Listener>, origin: Origin, now: u64) -> Option<Self::Id>;
    /// Takes whole packets off `input` and leaves the rest.
    fn input(&mut self, id: Self::Id, input: &mut BytesMut, now: u64);
    /// The transport is gone. An id that is not known any more is not an error.
    fn lost(&mut self, id: Self::Id, now: u64);
    /// The store may have committed something.
    fn committed(&mut self, now: u64);
    /// Time has passed.
    fn tick(&mut self, now: u64);
    /// When [`Machine::tick`] is wanted next.
    fn next_deadline(&self) -> Option<u64>;
    /// All that it waits for. [`Machine::committed`] is called for parts of it, too.
    fn pending(&mut self) -> Option<Mark>;
    /// Connections with something to write, to close, or to read again since the last call.
    fn touched(&mut self, out: &mut Vec<Self::Id>);
    /// `None`: the connection is not known any more.
    fn outbox(&mut self, id: Self::Id) -> Option<&mut Self::Outbox>;
    /// All that was in its outbox went to the socket: more may follow.
    fn written(&mut self, id: Self::Id, now: u64);
    /// May the socket be read now? After `false` the connection is touched when it may.
    fn wants_input(&mut self, id: Self::Id) -> bool;
    /// A password to be checked on another thread; [`Machine::logged_in`] is to follow.
    fn next_login(&mut self) -> Option<(Self::Id, PasswordCheck)> {
        None
    }
    /// What became of a check; the connection may be gone.
    fn logged_in(&mut self, _id: Self::Id, _result: Result<Identity, Denied>, _now: u64) {}
    /// What wakes the edge, from any thread.
    fn wake_with(&mut self, _signal: Arc<dyn Signal>) {}
    /// Its counters, as Prometheus reads them.
    fn metrics(&self) -> String {
        String::new()
    }
    /// Ends all connections gracefully.
    fn drain(&mut self, now: u64);
}

/// Bytes on their way out, in order.
pub(crate) trait Output {
    fn is_empty(&self) -> bool;
    /// The front, in at most 64 pieces. Pieces once shown stay until they are advanced over.
    fn slices<'a>(&'a self, out: &mut Vec<IoSlice<'a>>);
    fn advance(&mut self, written: usize);
    /// The transport ends when this is empty.
    fn close_after(&self) -> bool;
}

/// What the edge has to know of a listener.
pub(crate) trait Rules: std::fmt::Debug + Send + Sync + 'static {
    fn name(&self) -> &str;
    fn max_connections(&self) -> usize;
    /// Time for what comes before the first packet: TLS and the WebSocket upgrade.
    fn connect_timeout(&self) -> Duration;
}

/// Where a connection comes from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    pub(crate) address: Option<SocketAddr>,
    /// Common name of the verified certificate.
    pub(crate) certificate: Option<Arc<str>>,
}
