//! A durable broker you talk to with netcat: the JSON-log text protocol, its server and its client.
//!
//! - [`protocol`]: lines to commands, as pure functions. `docs/jsonlog-protocol.md` is the contract.
//! - [`session`]: one connection as a state machine without a socket.
//! - [`server`]: sessions on TCP.
//! - [`client`]: a client of the protocol.
//! - [`backend`]: that client as a `jsonlog:` backend of the core.

pub mod backend;
pub mod client;
pub mod protocol;
pub mod server;
pub mod session;
