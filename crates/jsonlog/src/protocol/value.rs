//! Durations and times as people write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `250ms`, `30s`, `5m`, `2h`, `7d`, `0`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: write a number and a unit, as 250ms, 30s, 5m, 2h or 7d");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).map(Duration::from_millis).ok_or_else(wrong)
}

/// RFC 3339, or a duration, which means that long before `now`; both in milliseconds since 1970.
pub fn parse_time(text: &str, now: u64) -> Result<u64, String> {
    if let Ok(ago) = parse_duration(text) {
        return Ok(now.saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)));
    }
    let time: SystemTime = humantime::parse_rfc3339(text)
        .map_err(|_| format!("{text:?} is no time: write 2026-01-31T12:00:00Z, or a duration as 2h (ago)"))?;
    Ok(time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for wrong in ["", "5", "s", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615d", "1 s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_time("10s", 15_000), Ok(5_000));
        assert_eq!(parse_time("1970-01-01T00:00:01Z", 0), Ok(1_000));
        assert!(parse_time("yesterday", 0).is_err());
    }
}
