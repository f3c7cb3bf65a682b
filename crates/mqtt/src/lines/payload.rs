//! JSON values of `msg` to MQTT payloads, and back.
//!
//! | `msg` | payload | content type |
//! |---|---|---|
//! | a string | its characters, UTF-8 | `text/plain` |
//! | any other value | the value as it was written | `application/json` |
//!
//! | payload | `msg` |
//! |---|---|
//! | `application/json`, and JSON | that value |
//! | `text/plain`, and UTF-8 | a string |
//! | without a content type, or with another: a JSON object or array | that value |
//! | else, UTF-8 | a string |
//! | else | `{"base64":"..."}` |
//!
//! So a value comes back as it went, through MQTT, too; and an MQTT client that knows nothing of this sends and gets
//! what it would expect.

use crate::codec::{PublishProperties, Utf8};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::value::RawValue;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain";

/// The payload of a `msg`.
pub(super) fn of_value(msg: &RawValue) -> (Bytes, PublishProperties) {
    // A string with half a surrogate pair is JSON, but no text.
    match serde_json::from_str::<String>(msg.get()) {
        Ok(text) => (text.into(), properties(TEXT)),
        Err(_) => json(msg.get().to_owned()),
    }
}

/// The payload of a JSON text.
pub(super) fn json(text: String) -> (Bytes, PublishProperties) {
    (text.into(), properties(JSON))
}

fn properties(content_type: &'static str) -> PublishProperties {
    PublishProperties {
        payload_format_indicator: Some(true),
        content_type: Some(Utf8::from_static(content_type)),
        ..PublishProperties::default()
    }
}

/// The JSON of a payload, in one line.
pub(super) fn to_value(payload: &[u8], content_type: Option<&str>) -> String {
    let Ok(text) = std::str::from_utf8(payload) else {
        return format!("{{\"base64\":\"{}\"}}", BASE64.encode(payload));
    };
    let may_be_json = match content_type {
        Some(JSON) => true,
        Some(TEXT) => false,
        _ => matches!(text.trim_ascii_start().as_bytes().first(), Some(b'{' | b'[')),
    };
    if may_be_json && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() {
        return one_line(text);
    }
    super::text::quoted(text)
}

/// Valid JSON without the white space between its tokens: a line must not end in the middle.
fn one_line(text: &str) -> String {
    if memchr::memchr3(b'\n', b'\r', b'\t', text.as_bytes()).is_none()
        && text.trim_ascii().len() == text.len()
    {
        return text.to_owned();
    }
    let (mut quoted, mut escaped) = (false, false);
    let kept = text.chars().filter(|c| {
        if quoted {
            quoted = escaped || *c != '"';
            escaped = !escaped && *c == '\\';
            return true;
        }
        quoted = *c == '"';
        !matches!(c, ' ' | '\t' | '\n' | '\r')
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn round_trip(json: &str) -> String {
        let raw: &RawValue = serde_json::from_str(json).unwrap();
        let (payload, properties) = of_value(raw);
        to_value(&payload, properties.content_type.as_deref())
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            Just(Value::from("{\"a\":1}")),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_value_comes_back_as_it_was(value in any_json()) {
            let back: Value = serde_json::from_str(&round_trip(&value.to_string())).unwrap();
            prop_assert_eq!(back, value);
        }

        #[test]
        fn any_payload_is_one_line_of_json(payload in any::<Vec<u8>>(), kind in 0..3usize) {
            let value = to_value(&payload, [None, Some(JSON), Some(TEXT)][kind]);
            prop_assert!(!value.contains(['\n', '\r']));
            prop_assert!(serde_json::from_str::<Value>(&value).is_ok());
        }

        #[test]
        fn pretty_json_keeps_its_meaning(value in any_json()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let line = to_value(pretty.as_bytes(), Some(JSON));
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
        }
    }

    #[test]
    fn what_comes_from_mqtt_is_what_one_expects() {
        assert_eq!(to_value(b"on", None), "\"on\"");
        assert_eq!(to_value(b"17", None), "\"17\"");
        assert_eq!(to_value(b"17", Some(JSON)), "17");
        assert_eq!(to_value(b"{\"a\" : 1}", None), "{\"a\" : 1}");
        assert_eq!(to_value(b"{\"a\":\n \"x \\\" y\"}", None), "{\"a\":\"x \\\" y\"}");
        assert_eq!(to_value(b"{a}", None), "\"{a}\"");
        assert_eq!(to_value(&[0xff], None), "{\"base64\":\"/w==\"}");
        assert_eq!(to_value(b"", None), "\"\"");
        assert_eq!(to_value(b"{}", Some(TEXT)), "\"{}\"");
        assert_eq!(round_trip("1e400"), "1e400", "numbers are not read");
        assert_eq!(round_trip("\"\\ud800\""), "\"\\ud800\"");
    }
}
