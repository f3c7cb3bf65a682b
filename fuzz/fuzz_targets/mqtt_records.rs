//! Any records in the log of the MQTT broker: a start or an error, never a panic; what starts works and starts again.
#![no_main]

#[path = "../../crates/mqtt/tests/property/mod.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::records::check(data));
