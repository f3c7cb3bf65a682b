//! CloudEvents 1.0 in the binary mode: attributes travel as headers, each with the prefix of its protocol, and the
//! payload stays as it is. (The structured mode is one JSON document; it belongs to the doors that know JSON.)
//!
//! | attribute | here |
//! |---|---|
//! | `id`, `time`, `datacontenttype` | the envelope's own fields |
//! | `partitionkey` | the envelope's key, if it is text |
//! | `source`, `type`, `subject`, `dataschema`, extensions | headers `ce-NAME`, for want of a field |
//!
//! The CloudEvents `subject` is about the payload's contents; it is not the [`Subject`](crate::Subject) that routes.

use std::fmt::Write as _;

use bytes::Bytes;

use crate::envelope::{Envelope, MessageId};
use crate::headers::{Headers, Value};

/// The prefix over HTTP and NATS, and of the attributes that an [`Envelope`] keeps in its headers.
pub const HTTP_PREFIX: &str = "ce-";
/// The prefix in AMQP 1.0 application properties and AMQP 0.9.1 headers.
pub const AMQP_PREFIX: &str = "cloudEvents:";
/// The prefix in MQTT 5 user properties: none.
pub const MQTT_PREFIX: &str = "";

const SPEC_VERSION: &str = "1.0";

/// The attributes of `envelope` as headers that start with `prefix`, `specversion` first. `source` and `kind`
/// (CloudEvents' `type`) are what the event has unless its `ce-source` and `ce-type` headers say otherwise.
///
/// ```
/// use postroad_core::{Envelope, cloudevents};
///
/// let envelope = Envelope::new("orders/eu".parse()?, "{}").with_content_type("application/json");
/// let headers = cloudevents::to_headers(&envelope, cloudevents::AMQP_PREFIX, "/shop", "order.placed");
/// assert_eq!(headers.get_text("cloudEvents:type"), Some("order.placed"));
/// assert_eq!(headers.get_text("cloudEvents:id"), Some(&*envelope.id.to_string()));
/// # Ok::<(), postroad_core::SubjectError>(())
/// ```
pub fn to_headers(envelope: &Envelope, prefix: &str, source: &str, kind: &str) -> Headers {
    let mut out = Headers::new();
    let mut put = |name: &str, value: Value| {
        out.push(format!("{prefix}{name}"), value);
    };
    put("specversion", SPEC_VERSION.into());
    put("id", envelope.id.to_string().into());
    put("source", envelope.headers.get_text("ce-source").unwrap_or(source).into());
    put("type", envelope.headers.get_text("ce-type").unwrap_or(kind).into());
    put("time", envelope.time.into());
    if let Some(content_type) = &envelope.content_type {
        put("datacontenttype", content_type.clone().into());
    }
    if let Some(key) = envelope.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()) {
        put("partitionkey", key.into());
    }
    for header in &envelope.headers {
        match header.name.strip_prefix(HTTP_PREFIX) {
            Some(name) if !is_own(name) && name != "source" && name != "type" => {
                put(name, header.value.clone());
            }
            _ => {}
        }
    }
    out
}

/// Attributes that have a field of their own.
fn is_own(name: &str) -> bool {
    matches!(name, "specversion" | "id" | "time" | "datacontenttype" | "partitionkey")
}

/// Reads the attributes among `headers`, those that start with `prefix`, into `envelope`: fields where there are
/// fields, `ce-` headers else. Says whether it is a CloudEvent of version 1, which has `specversion`, `id`, `source` and
/// `type`; if not, nothing is changed. A value that does not fit its field stays a `ce-` header.
///
/// ```
/// use postroad_core::{Envelope, Headers, cloudevents};
///
/// let headers: Headers =
///     [("ce-specversion", "1.0"), ("ce-id", "17"), ("ce-source", "/shop"), ("ce-type", "order.placed")]
///         .into_iter()
///         .collect();
/// let mut envelope = Envelope::new("orders/eu".parse()?, "{}");
/// assert!(cloudevents::from_headers(&mut envelope, &headers, cloudevents::HTTP_PREFIX));
/// assert_eq!(envelope.id.to_string(), "17");
/// assert_eq!(envelope.headers.get_text("ce-type"), Some("order.placed"));
/// # Ok::<(), postroad_core::SubjectError>(())
/// ```
pub fn from_headers(envelope: &mut Envelope, headers: &Headers, prefix: &str) -> bool {
    let mut full = String::with_capacity(prefix.len() + 16);
    let mut text = |name: &str| {
        full.clear();
        let _ = write!(full, "{prefix}{name}");
        headers.get_text(&full).filter(|text| !text.is_empty())
    };
    let is_event = text("specversion").is_some_and(|version| version == "1.0" || version.starts_with("1."));
    if !is_event || ["id", "source", "type"].iter().any(|name| text(name).is_none()) {
        return false;
    }
    for header in headers {
        let Some(name) = header.name.strip_prefix(prefix).filter(|name| is_attribute(name)) else { continue };
        if !read_own(envelope, name, &header.value) {
            envelope.headers.set(format!("{HTTP_PREFIX}{name}"), header.value.clone());
        }
    }
    true
}

/// CloudEvents names are lower-case letters and digits; without a prefix this tells them from other headers.
fn is_attribute(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

fn read_own(envelope: &mut Envelope, name: &str, value: &Value) -> bool {
    match (name, value) {
        ("specversion", _) => true,
        ("id", Value::Text(text)) => MessageId::text(text).map(|id| envelope.id = id).is_ok(),
        ("time", Value::Time(time)) => {
            envelope.time = *time;
            true
        }
        ("time", Value::Text(text)) => text.parse().map(|time| envelope.time = time).is_ok(),
        ("datacontenttype", Value::Text(text)) => {
            envelope.content_type = Some(text.clone());
            true
        }
        ("partitionkey", Value::Text(text)) => {
            envelope.key = Some(Bytes::copy_from_slice(text.as_bytes()));
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    fn event() -> Envelope {
        Envelope::new("orders/eu".parse().unwrap(), "{}")
            .with_content_type("application/json")
            .with_time(Timestamp::from_millis(1_769_860_800_000))
            .with_key("k1")
            .with_header("ce-source", "/shop")
            .with_header("ce-type", "order.placed")
            .with_header("ce-traceparent", "00-1")
            .with_header("other", "stays")
    }

    #[test]
    fn there_and_back_with_every_prefix() {
        for prefix in [HTTP_PREFIX, AMQP_PREFIX, MQTT_PREFIX] {
            let headers = to_headers(&event(), prefix, "unused", "unused");
            assert_eq!(headers.get_text(&format!("{prefix}source")), Some("/shop"));
            assert!(headers.get("other").is_none());
            let mut back = Envelope::new("orders/eu".parse().unwrap(), "{}");
            assert!(from_headers(&mut back, &headers, prefix));
            let sent = event();
            assert_eq!((back.time, back.key, back.content_type), (sent.time, sent.key, sent.content_type));
            for name in ["ce-source", "ce-type", "ce-traceparent"] {
                assert_eq!(back.headers.get(name), sent.headers.get(name), "{name}");
            }
        }
    }

    #[test]
    fn what_is_no_event_changes_nothing() {
        let mut headers = to_headers(&event(), "", "s", "t");
        headers.set("specversion", "0.3");
        let before = event();
        let mut envelope = before.clone();
        assert!(!from_headers(&mut envelope, &headers, ""));
        assert!(!from_headers(&mut envelope, &Headers::new(), ""));
        assert_eq!(envelope, before);
    }

    #[test]
    fn what_does_not_fit_its_field_stays_a_header() {
        let mut headers = to_headers(&event(), "ce-", "s", "t");
        headers.set("ce-time", "yesterday");
        let mut envelope = event();
        assert!(from_headers(&mut envelope, &headers, "ce-"));
        assert_eq!(envelope.headers.get_text("ce-time"), Some("yesterday"));
        assert_eq!(envelope.time, event().time);
    }
}
