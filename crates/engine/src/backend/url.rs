//! `engine:` URLs.

use std::path::PathBuf;
use std::time::Duration;

use postroad_core::{Error, ErrorKind};

use super::error::error;
use crate::config::{EngineConfig, SyncMode};

/// Reads `engine:PATH[?sync=fdatasync|os|memory][&dedup=DURATION]`.
pub(super) fn read(url: &str) -> Result<EngineConfig, Error> {
    let bad = |what: String| {
        let text = format!(
            "bad URL: {what}; write engine:PATH?sync=fdatasync&dedup=2m, sync: fdatasync, os, memory"
        );
        error(ErrorKind::Config, text)
    };
    let rest = url.strip_prefix("engine:").ok_or_else(|| bad("it does not start with engine:".into()))?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    // `engine:///var/lib` is the same place as `engine:/var/lib`.
    let path = path.strip_prefix("//").unwrap_or(path);
    let path = percent_decode(path).ok_or_else(|| bad("a bad `%` escape".into()))?;
    let mut config =
        EngineConfig { data: (!path.is_empty()).then(|| PathBuf::from(path)), ..EngineConfig::default() };
    let mut seen = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if seen.contains(&name) {
            return Err(bad(format!("`{name}` stands twice")));
        }
        seen.push(name);
        match name {
            "sync" => {
                config.sync = match value {
                    "fdatasync" => SyncMode::Fdatasync,
                    "os" => SyncMode::Os,
                    "memory" => SyncMode::Memory,
                    other => return Err(bad(format!("there is no sync mode `{other}`"))),
                };
            }
            "dedup" => {
                config.dedup_window = duration(value)
                    .ok_or_else(|| bad(format!("`{value}` is no duration like 500ms, 30s, 2m, 1h")))?;
            }
            other => return Err(bad(format!("there is no option `{other}`"))),
        }
    }
    match (&config.data, config.sync) {
        (None, SyncMode::Memory) | (Some(_), SyncMode::Fdatasync | SyncMode::Os) => Ok(config),
        (None, _) => Err(bad("no path; without one it is engine:?sync=memory".into())),
        (Some(_), SyncMode::Memory) => {
            Err(bad("sync=memory takes no path: nothing would be kept there".into()))
        }
    }
}

fn duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..unit_at].parse().ok()?;
    let millis = match &text[unit_at..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(millis)?))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let hex = rest.get(..2).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))?;
            out.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = &rest[2..];
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_url_says() {
        let path = |url| read(url).unwrap().data.unwrap();
        assert_eq!(path("engine:data"), PathBuf::from("data"));
        assert_eq!(path("engine:///var/lib/x%3fy"), PathBuf::from("/var/lib/x?y"));
        let config = read("engine:/d?sync=os&dedup=2m").unwrap();
        assert_eq!((config.sync, config.dedup_window), (SyncMode::Os, Duration::from_secs(120)));
        assert_eq!(read("engine:?sync=memory").unwrap().data, None);
        assert_eq!(read("engine:d").unwrap().sync, SyncMode::Fdatasync);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (url, part) in [
            ("engine:", "no path"),
            ("engine:d?sync=memory", "takes no path"),
            ("engine:d?sync=never", "`never`"),
            ("engine:d?colour=red", "`colour`"),
            ("engine:d?dedup=2", "no duration"),
            ("engine:d?dedup=99999999999999999999h", "no duration"),
            ("engine:d?sync=os&sync=os", "twice"),
            ("engine:%zz", "escape"),
        ] {
            let error = read(url).unwrap_err();
            assert!(error.kind() == ErrorKind::Config && error.message().contains(part), "{url}: {error}");
        }
    }
}
