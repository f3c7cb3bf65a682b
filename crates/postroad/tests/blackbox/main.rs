//! The JSON-log broker seen from outside: its socket, its process, its files. Nothing here knows its code.
//! The contract is `docs/jsonlog-protocol.md`.
//!
//! `POSTROAD_SEED` repeats a random run, `POSTROAD_KILL_ROUNDS` sets how often `kill9` kills,
//! `POSTROAD_ALLOW_MISSING` accepts that parts cannot run on this machine.

#![allow(clippy::format_collect, reason = "short texts, and the plain form reads best")]

#[path = "../support/mod.rs"]
mod support;

mod badinput;
mod badjson;
mod crowd;
mod damage;
mod deadletters;
mod dedup;
mod delivery;
mod diskfull;
mod drain;
mod fsync;
mod kill9;
mod model;
mod named;
mod netcat;
mod real_input;
mod redelivery;
mod script;
mod settings;
mod shim;
mod slow;
mod topics;
mod transcripts;
