//! Any bytes as segment files: no panic, nothing invented, and verify, open and repair agree.
//!
//! The property is shared with the property tests of `postroad-journal`, which run on stable.
#![no_main]

#[path = "../../crates/journal/tests/common/any_bytes.rs"]
mod any_bytes;

libfuzzer_sys::fuzz_target!(|data: &[u8]| any_bytes::check(data));
