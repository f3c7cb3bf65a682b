//! What lives in a world: residents, which are a broker's sessions, and guests, which are its clients. A protocol brings both.

use crate::history::{Conn, History, SubSpec};
use crate::plan::Climate;
use postroad_engine::Engine;
use std::sync::Arc;

/// The sessions of one life of a broker, without sockets. It is dropped when the process dies.
pub trait Resident {
    /// A connection was made.
    fn accept(&mut self, conn: Conn);

    /// Bytes came in.
    fn input(&mut self, conn: Conn, bytes: &[u8], history: &mut History);

    /// The peer sends no more.
    fn end_of_input(&mut self, conn: Conn);

    /// It makes sense to read more from this connection.
    fn wants_input(&self, conn: Conn) -> bool;

    /// There may be something to write, because a signal said so. Asking takes the signal.
    fn is_signalled(&mut self, conn: Conn) -> bool;

    /// Writes what may be written, until `out` holds about `limit` bytes.
    fn output(&mut self, conn: Conn, limit: usize, out: &mut Vec<u8>, history: &mut History);

    /// Nothing will be written any more: the connection is to be closed.
    fn is_done(&self, conn: Conn) -> bool;

    /// The connection is gone.
    fn gone(&mut self, conn: Conn, history: &mut History);

    /// The broker stops: say goodbye on every connection.
    fn shut_down(&mut self);
}

/// A client: a state machine that survives its connections.
pub trait Guest {
    /// A connection was made.
    fn connected(&mut self);

    /// The connection is gone; what was not answered is unknown.
    fn disconnected(&mut self);

    /// Bytes came. False: it wants to close the connection.
    fn receive(&mut self, bytes: &[u8]) -> bool;

    /// It gets its turn; `how` chooses what it does. Gives how many commands it wrote to `out`.
    fn act(&mut self, how: u32, out: &mut Vec<u8>, history: &mut History) -> u32;

    /// As [`Guest::act`], in the calm at the end: nothing new is begun, what is owed is done.
    fn wind_down(&mut self, out: &mut Vec<u8>, history: &mut History) -> u32;

    /// It owes nothing and waits for no answer.
    fn is_at_rest(&self) -> bool;

    /// Its process dies: what it kept in memory is gone.
    fn kill(&mut self);
}

/// A protocol: what serves it, and what uses it.
pub trait Protocol {
    /// The topics that its guests use.
    fn topics(&self) -> &'static [&'static str];

    /// The subscriptions that its guests use.
    fn specs(&self) -> &'static [SubSpec];

    /// Sessions on an engine that was just opened.
    fn move_in(&self, engine: &Arc<Engine>, climate: &Climate) -> Box<dyn Resident>;

    /// The guests of a world, up to [`crate::plan::CLIENTS`] of them.
    fn guests(&self, seed: u64, climate: &Climate) -> Vec<Box<dyn Guest>>;
}
