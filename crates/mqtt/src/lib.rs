//! MQTT 3.1, 3.1.1 and 5.0.
//!
//! - [`access`]: who may connect, publish, subscribe and receive.
//! - [`broker`]: the broker as a state machine on the engine's log.
//! - [`codec`]: bytes to packets and back, without a socket, for servers and clients.
//! - [`server`]: sockets, TLS and WebSocket around the broker.

pub mod access;
pub mod broker;
pub mod codec;
pub mod server;
