//! Any text is an access file of the MQTT broker or an error; what is malformed or unsaid allows nothing.
#![no_main]

#[path = "../../crates/mqtt/tests/property/mod.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::access::check(data));
