//! A durable broker you talk to with netcat: the JSON-log text protocol, its server and its client.

pub mod client;
