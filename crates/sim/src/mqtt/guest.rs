//! Who takes part, whatever they speak.

use super::cast::Door;
use super::facts::Seen;
use crate::history::Conn;
use bytes::BytesMut;

/// A client: a state machine that survives its connections.
pub(super) trait Guest {
    /// Its name, for what is said of it.
    fn name(&self) -> &str;

    /// Which door it uses.
    fn door(&self) -> Door;

    /// What reads along on a new connection of its.
    fn tap(&self, conn: Conn) -> Box<dyn Tap>;

    /// A connection was made.
    fn connected(&mut self, seen: &mut Seen);

    /// The connection is gone: what was not answered is unknown.
    fn disconnected(&mut self);

    /// Its process dies.
    fn kill(&mut self);

    /// What it has written since the last call.
    fn written(&mut self) -> BytesMut;

    /// Bytes came. False: it closes the connection.
    fn receive(&mut self, bytes: &[u8], seen: &mut Seen) -> bool;

    /// Its turn; `how` chooses. Gives how many commands it sent.
    fn act(&mut self, how: u32, seen: &mut Seen) -> u32;

    /// As [`Guest::act`], in the calm at the end: nothing new is begun, what is owed is done.
    fn wind_down(&mut self, seen: &mut Seen) -> u32;

    /// It wants a connection.
    fn is_offline(&self) -> bool;

    /// It owes nothing and waits for no answer.
    fn is_at_rest(&self) -> bool;

    /// Subscribes to all that it may: the auditor does nothing else.
    fn subscribe_to_all(&mut self) {}
}

/// What passes the broker's door on one connection, read along and noted as facts.
pub(super) trait Tap {
    /// Bytes enter the broker.
    fn enter(&mut self, bytes: &[u8], seen: &mut Seen);

    /// Bytes leave the broker.
    fn leave(&mut self, bytes: &[u8], seen: &mut Seen);
}
