//! A deterministic world for the pure parts of Postroad: whole brokers and their clients under one seed.
//!
//! The seed makes a [`plan::Plan`]: what the world is like, and a list of steps. The steps drive virtual time, a network that
//! delays, cuts, half-opens and splits bytes anywhere, a disk that loses what was not synced, tears sectors, fails and fills up, and
//! kills of the broker and of its clients. The broker is the product's own code: the engine on a simulated disk, and the sessions of a
//! protocol without sockets. What passes the broker's door is noted as [`history::Fact`]s. In the end everything heals, everybody does
//! what is owed, the disk crashes once more, and [`history::check`] says whether a promise was broken.
//!
//! A protocol of the engine joins by the traits in [`inhabitants`]; [`jsonlog`] is the first. [`mqtt`] has a broker of its own, and so a
//! world and rules of its own.

pub mod campaign;
pub mod history;
pub mod inhabitants;
pub mod jsonlog;
pub mod machine;
pub mod mqtt;
pub mod net;
pub mod plan;
pub mod shrink;
pub mod world;
