//! Any bytes are MQTT packets or a refusal, never a panic; a packet that is accepted is written as the same packet.
#![no_main]

#[path = "../../crates/mqtt/tests/property/mod.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::decode::check(data));
