//! MQTT 3.1, 3.1.1 and 5.0.
//!
//! - [`access`]: who may connect, publish, subscribe and receive.
//! - [`broker`]: the broker as a state machine on the engine's log.
//! - [`client`]: a server somewhere else as a backend of `postroad-core`, with a durable outbox and inbox.
//! - [`codec`]: bytes to packets and back, without a socket, for servers and clients.
//! - [`lines`]: JSON lines as a second door to the broker.
//! - [`server`]: sockets, TLS and WebSocket around the broker.

pub mod access;
pub mod broker;
pub mod client;
pub mod codec;
mod filters;
pub mod lines;
pub mod server;
