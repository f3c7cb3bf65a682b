//! Any bytes at the ports of the line dialect: no panic, bounded memory, and what MQTT neighbours do goes on.
#![no_main]

#[path = "../../crates/mqtt/tests/property/mod.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::lines::check(data));
