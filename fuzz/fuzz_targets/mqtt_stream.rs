//! A stream of MQTT packets gives the same packets however it is cut; they are written and read again the same.
#![no_main]

#[path = "../../crates/mqtt/tests/property/mod.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::stream::check(data));
