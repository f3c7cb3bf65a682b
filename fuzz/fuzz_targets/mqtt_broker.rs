//! Any bytes to the MQTT broker, from strangers and from a client it knows: no panic, bounded memory, and what
//! neighbours do goes on, through crashes too.
#![no_main]

#[path = "../../crates/mqtt/tests/property/mod.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property::broker::check(data));
