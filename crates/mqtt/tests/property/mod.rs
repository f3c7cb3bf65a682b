//! What holds for any bytes. Each property is a fuzz target, and `tests/fuzz.rs` checks it on the seeds.

#![allow(dead_code)] // each target checks one of them

pub(crate) mod access;
pub(crate) mod broker;
pub(crate) mod decode;
pub(crate) mod lines;
pub(crate) mod records;
pub(crate) mod rig;
pub(crate) mod stream;
pub(crate) mod websocket;
