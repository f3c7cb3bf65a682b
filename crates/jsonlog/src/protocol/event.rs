//! What the broker understands of an event.

use serde_json::value::RawValue;

/// The longest `id` in bytes.
const MAX_ID: usize = 255;

/// The two optional fields that the broker understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventKey<'a> {
    /// The id as the JSON token in the event.
    pub id: Option<&'a str>,
    /// Larger is delivered first.
    pub priority: i64,
}

#[derive(serde::Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    priority: Option<&'a RawValue>,
}

/// A field that is there, `null` included.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    serde::Deserialize::deserialize(deserializer).map(Some)
}

/// Arrays and objects inside each other.
const MAX_DEPTH: usize = 127;

/// True if `json`, which is valid, is nested deeper than [`MAX_DEPTH`].
fn is_too_deep(json: &str) -> bool {
    // `{"":[[…]]}`: what is too deep is at least so long.
    if json.len() < 2 * MAX_DEPTH + 5 {
        return false;
    }
    // Nearly always there are not even so many of them.
    if memchr::memchr2_iter(b'[', b'{', json.as_bytes()).take(MAX_DEPTH + 1).count() <= MAX_DEPTH {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Checks that `json` is one JSON object (nested at most 127 deep), and reads its id and priority.
pub fn check_event(json: &str) -> Result<EventKey<'_>, String> {
    let start = json.trim_start_matches([' ', '\t', '\r']);
    if !start.starts_with('{') {
        return Err("an event is a JSON object: {…}".into());
    }
    let fields: Fields<'_> = serde_json::from_str(json).map_err(|error| {
        let text = error.to_string();
        // It counts lines, and there is only one.
        text.replace(" at line 1 column ", " at byte ")
    })?;
    if is_too_deep(json) {
        return Err(format!("arrays and objects are nested more than {MAX_DEPTH} deep"));
    }
    let priority = match fields.priority.map(RawValue::get) {
        None => 0,
        Some(text) => text.parse().map_err(|_| "priority must be an integer of 64 bits")?,
    };
    let id = match fields.id.map(RawValue::get) {
        None => None,
        Some(text) if matches!(text.as_bytes().first(), Some(b'"' | b'-' | b'0'..=b'9')) => {
            // A lone surrogate passes where nothing is decoded; as an id it must be text.
            let len = match text.contains('\\') {
                true => serde_json::from_str::<String>(text).map_err(|error| format!("id: {error}"))?.len(),
                false if text.starts_with('"') => text.len() - 2,
                false => text.len(),
            };
            if len > MAX_ID {
                return Err(format!("id is longer than {MAX_ID} bytes"));
            }
            Some(text)
        }
        Some(_) => return Err("id must be a string or a number".into()),
    };
    Ok(EventKey { id, priority })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_id_and_priority_and_nothing_else() {
        let key = check_event(r#"{"a":[1,{"id":2}],"priority":-3,"id":"x\"y"}"#).unwrap();
        assert_eq!(key, EventKey { id: Some(r#""x\"y""#), priority: -3 });
        assert_eq!(check_event(r#" {"id":17} "#).unwrap().id, Some("17"));
    }

    #[test]
    fn refuses_what_is_no_event() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(127), "]".repeat(127));
        let long = format!("{{\"id\":\"{}\"}}", "x".repeat(256));
        for wrong in [
            "",
            "[]",
            "[1,2]",
            "1",
            "\"x\"",
            "{",
            "{}x",
            "{} {}",
            "{\"a\":}",
            "{'a':1}",
            "{\"a\":1,}",
            "nul",
            r#"{"id":[]}"#,
            r#"{"id":true}"#,
            r#"{"id":{}}"#,
            r#"{"id":1,"id":2}"#,
            r#"{"priority":"5"}"#,
            r#"{"priority":1.5}"#,
            r#"{"priority":9223372036854775808}"#,
            r#"{"priority":1,"priority":1}"#,
            r#"{"id":null}"#,
            r#"{"priority":null}"#,
            r#"{"id":"\ud800"}"#,
            &deep,
            &long,
        ] {
            assert!(check_event(wrong).is_err(), "{wrong}");
        }
        let just = format!("{{\"a\":{}1{}}}", "[".repeat(126), "]".repeat(126));
        assert!(check_event(&just).is_ok());
        let shortest = format!("{{\"\":{}{}}}", "[".repeat(127), "]".repeat(127));
        assert!(check_event(&shortest).is_err());
    }

    proptest! {
        #[test]
        fn whatever_passes_is_json(text in "[\\[\\]{}\",:a-c0-9 \\\\u]{0,30}") {
            if check_event(&text).is_ok() {
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                prop_assert!(value.is_object());
            }
        }
    }
}
