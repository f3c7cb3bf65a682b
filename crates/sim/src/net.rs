//! The simulated network: per connection two byte pipes that delay, split, lose and go silent.

use crate::history::Conn;
use std::collections::VecDeque;

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Pipe {
    bytes: VecDeque<u8>,
    /// What is sent vanishes, and nobody is told.
    pub silent: bool,
    /// The sender sends no more; the receiver learns it after the last byte.
    pub ended: bool,
}

impl Pipe {
    /// Bytes under way.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Sends; a silent pipe takes everything.
    pub fn send(&mut self, data: &[u8]) {
        if !self.silent && !self.ended {
            self.bytes.extend(data);
        }
    }

    /// Up to `max` bytes arrive.
    pub fn receive(&mut self, max: usize, into: &mut Vec<u8>) {
        into.clear();
        let count = max.min(self.bytes.len());
        into.extend(self.bytes.drain(..count));
    }

    /// All but the first `keep` bytes under way are lost.
    pub fn lose(&mut self, keep: usize) {
        self.bytes.truncate(keep);
    }
}

/// One connection, as both ends see it.
#[derive(Debug)]
pub struct Link {
    /// Its number.
    pub conn: Conn,
    /// The client that made it.
    pub guest: usize,
    /// From the client to the broker.
    pub up: Pipe,
    /// From the broker to the client.
    pub down: Pipe,
    /// The client holds it.
    pub client_open: bool,
    /// The broker holds it.
    pub server_open: bool,
    /// What the broker wrote and the pipe had no room for.
    pub unsent: Vec<u8>,
}

impl Link {
    /// A connection that was just made.
    pub fn new(conn: Conn, guest: usize) -> Self {
        Self {
            conn,
            guest,
            up: Pipe::default(),
            down: Pipe::default(),
            client_open: true,
            server_open: true,
            unsent: Vec::new(),
        }
    }

    /// Nobody holds it any more.
    pub fn is_dead(&self) -> bool {
        !self.client_open && !self.server_open
    }
}
