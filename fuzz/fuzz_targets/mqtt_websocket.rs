//! Any bytes are WebSocket frames or an error, the same however they are cut.
#![no_main]

#[path = "../../crates/mqtt/tests/property/mod.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::websocket::check(data));
