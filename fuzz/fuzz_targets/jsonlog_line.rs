//! Any line from a peer is a command or a refusal, never a panic; an event that is accepted is one.
#![no_main]

use postroad_jsonlog::protocol::{Words, check_event, parse, parse_duration, parse_time};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for line in text.lines() {
        let _ = parse(line, &Words::default(), 1_700_000_000_000);
        let _ = check_event(line);
        let _ = parse_duration(line);
        let _ = parse_time(line, 1_700_000_000_000);
    }
});
