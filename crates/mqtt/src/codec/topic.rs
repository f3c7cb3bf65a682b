//! Topic names and topic filters (section 4.7).
//!
//! They are not the core's subjects: levels may be empty, spaces are characters like others, 65535 bytes are allowed,
//! and the wildcards are `+` and `#`.

use super::DecodeError;

/// A shared subscription, `$share/{group}/{filter}` (section 4.8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shared<'a> {
    /// The share name.
    pub group: &'a str,
    /// The filter that its members share.
    pub filter: &'a str,
}

fn level_count(text: &str) -> usize {
    1 + memchr::memchr_iter(b'/', text.as_bytes()).count()
}

/// Checks a topic name: not empty, no wildcards, at most `max_levels` levels. (A [`Utf8`](super::Utf8) has the right
/// characters and length already.)
pub fn validate_name(name: &str, max_levels: usize) -> Result<(), DecodeError> {
    if name.is_empty() {
        return Err(DecodeError::TopicEmpty);
    }
    // Without an early end, so that it is done for many bytes at once.
    let (mut wild, mut levels) = (false, 1);
    for byte in name.bytes() {
        wild |= byte == b'#' || byte == b'+';
        levels += usize::from(byte == b'/');
    }
    if wild {
        Err(DecodeError::TopicWildcard)
    } else if levels > max_levels {
        Err(DecodeError::TopicLevels)
    } else {
        Ok(())
    }
}

/// Checks a topic filter without the rules of `$share/`: not empty, `+` and `#` are whole levels, `#` the last one, at
/// most `max_levels` levels.
pub fn validate_filter(filter: &str, max_levels: usize) -> Result<(), DecodeError> {
    if filter.is_empty() {
        return Err(DecodeError::TopicEmpty);
    }
    if level_count(filter) > max_levels {
        return Err(DecodeError::TopicLevels);
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Err(DecodeError::FilterHash);
        }
        if level.contains('+') && level != "+" {
            return Err(DecodeError::FilterPlus);
        }
    }
    Ok(())
}

/// The parts of a shared subscription; `None` if `filter` does not begin with `$share/`.
pub fn shared(filter: &str) -> Option<Result<Shared<'_>, DecodeError>> {
    // `$share` alone would be a filter, but nobody means it as one.
    let rest = if filter == "$share" { "" } else { filter.strip_prefix("$share/")? };
    let (group, filter) = rest.split_once('/').unwrap_or((rest, ""));
    Some(if group.is_empty() {
        Err(DecodeError::ShareName)
    } else if group.contains(['+', '#']) || filter.is_empty() {
        Err(DecodeError::ShareSyntax)
    } else {
        Ok(Shared { group, filter })
    })
}

/// Whether a valid `filter`, not a shared one, matches the valid topic `name`. A wildcard in the first level does not
/// match a `$`. [MQTT-4.7.2-1]
pub fn matches(filter: &str, name: &str) -> bool {
    if name.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut names = name.split('/');
    for level in filter.split('/') {
        match (level, names.next()) {
            // `sport/#` matches `sport` too.
            ("#", _) => return true,
            (_, None) => return false,
            ("+", Some(_)) => {}
            (plain, Some(name)) if plain == name => {}
            _ => return false,
        }
    }
    names.next().is_none()
}
