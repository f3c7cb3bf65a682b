//! An envelope as a PUBLISH, and back.
//!
//! | envelope | PUBLISH |
//! |---|---|
//! | subject | topic |
//! | payload | payload |
//! | content type, reply-to, correlation | content type, response topic, correlation data |
//! | expires | message expiry interval, rounded up to seconds |
//! | id, time, key, priority | user properties `postroad-id`, `postroad-time` (RFC 3339), `postroad-key` (base64), `postroad-priority` |
//! | headers | user properties of their names, in order |
//!
//! A header whose value is not text has a user property `postroad-type` before it: `i64`, `f64`, `bool`, `time` (RFC 3339)
//! or `bytes` (base64). Two more types are for text that a user property cannot show as it is: `text` for a header whose
//! name has a meaning above, `text64` for a value with control characters, in base64. A server keeps the order of user
//! properties [MQTT-3.3.2-18].

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use postroad_core::headers::Value;
use postroad_core::{Envelope, Error, ErrorKind, Filter, MessageId, Result, Subject, Timestamp};

use super::NAME;
use crate::codec::{Publish, PublishProperties, Qos, Utf8};

const ID: &str = "postroad-id";
const TIME: &str = "postroad-time";
const KEY: &str = "postroad-key";
const PRIORITY: &str = "postroad-priority";
const TYPE: &str = "postroad-type";

fn no(kind: ErrorKind, text: impl Into<String>) -> Error {
    Error::new(kind, NAME, text.into())
}

/// Servers refuse more than U+0000, and may (section 1.5.4): control characters and noncharacters.
fn is_plain(text: &str) -> bool {
    !text
        .chars()
        .any(|c| c.is_control() || (c as u32) & 0xFFFE == 0xFFFE || ('\u{FDD0}'..='\u{FDEF}').contains(&c))
}

fn text(what: &str, text: &str) -> Result<Utf8> {
    if !is_plain(text) {
        return Err(no(
            ErrorKind::Rejected,
            format!("{what} has control characters, which MQTT has no place for"),
        ));
    }
    Utf8::new(text.to_owned()).map_err(|why| no(ErrorKind::TooLarge, format!("{what}: {why}")))
}

/// A subject as a topic. `+` and `#` have another meaning there.
fn topic(what: &str, subject: &Subject) -> Result<Utf8> {
    if subject.as_str().contains(['+', '#']) {
        let text = format!("{what} {:?} has `+` or `#`, which are wildcards in MQTT", subject.as_str());
        return Err(no(ErrorKind::Rejected, text));
    }
    text(what, subject.as_str())
}

/// A filter as MQTT writes it: `*` is `+`, and `>` is `#`, which also matches the level above.
pub(super) fn filter(filter: &Filter) -> Result<Utf8> {
    let levels = filter.levels().map(|level| match level {
        "*" => Ok("+"),
        ">" => Ok("#"),
        level if level.contains(['+', '#']) => Err(no(
            ErrorKind::Config,
            format!("filter {:?}: `+` and `#` are wildcards in MQTT", filter.as_str()),
        )),
        level => Ok(level),
    });
    let levels: Vec<_> = levels.collect::<Result<_>>()?;
    text("the filter", &levels.join("/"))
}

/// The PUBLISH of an envelope, without packet id and expiry.
///
/// # Errors
/// What MQTT has no place for: [`Rejected`](ErrorKind::Rejected), [`TooLarge`](ErrorKind::TooLarge),
/// [`Unsupported`](ErrorKind::Unsupported) for a priority.
pub(super) fn encode(envelope: &Envelope, qos: Qos) -> Result<Publish> {
    if envelope.priority != 0 {
        return Err(no(
            ErrorKind::Unsupported,
            "MQTT has no priorities: messages are delivered in their order",
        ));
    }
    let mut properties = PublishProperties::default();
    let mut user = Vec::with_capacity(3 + 2 * envelope.headers.len());
    let own = |name: &'static str, value: String| Ok((Utf8::from_static(name), text(name, &value)?));
    user.push(own(ID, envelope.id.to_string())?);
    user.push(own(TIME, envelope.time.to_string())?);
    if let Some(key) = &envelope.key {
        user.push(own(KEY, STANDARD.encode(key))?);
    }
    for header in &envelope.headers {
        let (kind, value) = match &header.value {
            Value::Text(value) if !is_plain(value) => (Some("text64"), STANDARD.encode(value.as_bytes())),
            Value::Text(value) if is_own(&header.name) => (Some("text"), value.to_string()),
            Value::Text(value) => (None, value.to_string()),
            Value::Bytes(bytes) => (Some("bytes"), STANDARD.encode(bytes)),
            Value::I64(number) => (Some("i64"), number.to_string()),
            // The form that gives the same number back.
            Value::F64(number) => (Some("f64"), format!("{number:?}")),
            Value::Bool(yes) => (Some("bool"), yes.to_string()),
            Value::Time(time) => (Some("time"), time.to_string()),
            other => (None, other.to_text().to_string()),
        };
        if let Some(kind) = kind {
            user.push((Utf8::from_static(TYPE), Utf8::from_static(kind)));
        }
        user.push((text("a header name", &header.name)?, text("a header", &value)?));
    }
    properties.user_properties = user;
    properties.content_type =
        envelope.content_type.as_deref().map(|kind| text("the content type", kind)).transpose()?;
    properties.response_topic =
        envelope.reply_to.as_ref().map(|subject| topic("reply-to", subject)).transpose()?;
    if let Some(correlation) = &envelope.correlation {
        if correlation.len() > usize::from(u16::MAX) {
            return Err(no(ErrorKind::TooLarge, "the correlation has more than 65535 bytes"));
        }
        properties.correlation_data = Some(correlation.clone());
    }
    let mut publish = Publish::new(topic("subject", &envelope.subject)?, envelope.payload.clone());
    publish.qos = qos;
    publish.properties = Some(Box::new(properties));
    Ok(publish)
}

fn is_own(name: &str) -> bool {
    [ID, TIME, KEY, PRIORITY, TYPE].contains(&name)
}

/// The id that a message carries.
pub(super) fn id(publish: &Publish) -> Option<MessageId> {
    let user = &publish.properties.as_ref()?.user_properties;
    // It stands first: headers of that name come later, and only behind their type.
    let (_, value) = user.iter().find(|(name, _)| name.as_str() == ID)?;
    MessageId::text(value.as_str()).ok()
}

/// Whether an [encoded](encode) message has nothing but id, time and payload.
pub(super) fn is_bare(publish: &Publish) -> bool {
    publish.properties.as_deref().is_none_or(|properties| {
        properties.content_type.is_none()
            && properties.response_topic.is_none()
            && properties.correlation_data.is_none()
            && properties.user_properties.iter().all(|(name, _)| [ID, TIME].contains(&name.as_str()))
    })
}

/// The protocol counts an expiry from the moment of sending.
pub(super) fn set_expiry(publish: &mut Publish, expires: Option<Timestamp>, now: Timestamp) {
    if let (Some(expires), Some(properties)) = (expires, &mut publish.properties) {
        let seconds = expires.since(now).as_millis().div_ceil(1000);
        properties.message_expiry_interval = Some(u32::try_from(seconds).unwrap_or(u32::MAX));
    }
}

/// Gives a message of another publisher an id that it keeps.
pub(super) fn set_id(publish: &mut Publish) {
    let properties = publish.properties.get_or_insert_default();
    if !properties.user_properties.iter().any(|(name, _)| name.as_str() == ID) {
        let id = MessageId::generate().to_string();
        // A UUID is a string of MQTT.
        let id = Utf8::new(id).unwrap_or_default();
        properties.user_properties.insert(0, (Utf8::from_static(ID), id));
    }
}

/// The envelope of a PUBLISH to `subject` that came at `now`. What does not read as its type says is text.
pub(super) fn decode(subject: Subject, publish: &Publish, now: Timestamp) -> Envelope {
    let mut envelope = Envelope::new(subject, publish.payload.clone()).with_time(now);
    let Some(properties) = &publish.properties else { return envelope };
    envelope.content_type = properties.content_type.as_ref().map(|kind| Arc::from(kind.as_str()));
    envelope.reply_to =
        properties.response_topic.as_ref().and_then(|topic| Subject::new(topic.as_str()).ok());
    envelope.correlation.clone_from(&properties.correlation_data);
    envelope.expires = properties
        .message_expiry_interval
        .map(|seconds| now.saturating_add(std::time::Duration::from_secs(seconds.into())));
    let mut kind = None;
    for (name, value) in &properties.user_properties {
        let (name, value) = (name.as_str(), value.as_str());
        match (kind.take(), name) {
            (None, ID) => match MessageId::text(value) {
                Ok(id) => envelope.id = id,
                Err(_) => _ = envelope.headers.push(name, value),
            },
            (None, TIME) => match value.parse() {
                Ok(time) => envelope.time = time,
                Err(_) => _ = envelope.headers.push(name, value),
            },
            (None, KEY) => match STANDARD.decode(value) {
                Ok(key) => envelope.key = Some(key.into()),
                Err(_) => _ = envelope.headers.push(name, value),
            },
            (None, PRIORITY) => match value.parse() {
                Ok(priority) => envelope.priority = priority,
                Err(_) => _ = envelope.headers.push(name, value),
            },
            (None, TYPE) => kind = Some(value),
            (kind, _) => _ = envelope.headers.push(name, typed(kind, value)),
        }
    }
    envelope
}

fn typed(kind: Option<&str>, value: &str) -> Value {
    let read = match kind {
        Some("bytes") => STANDARD.decode(value).ok().map(|bytes| Value::Bytes(Bytes::from(bytes))),
        Some("text64") => {
            STANDARD.decode(value).ok().and_then(|bytes| String::from_utf8(bytes).ok()).map(Value::from)
        }
        Some("i64") => value.parse().ok().map(Value::I64),
        Some("f64") => value.parse().ok().map(Value::F64),
        Some("bool") => value.parse().ok().map(Value::Bool),
        Some("time") => value.parse().ok().map(Value::Time),
        _ => None,
    };
    read.unwrap_or_else(|| Value::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_comes_back() {
        let subject = Subject::new("orders/eu").unwrap();
        let sent = Envelope::new(subject.clone(), vec![0, 0xff])
            .with_key(vec![0xfe, 0])
            .with_content_type("text/plain")
            .with_time(Timestamp::from_millis(1_234_567_890_123))
            .with_reply_to(Subject::new("answers").unwrap())
            .with_correlation(vec![1, 0xff])
            .with_header("text", "plain")
            .with_header("line", "a\r\nb\0")
            .with_header("postroad-id", "not the id")
            .with_header("postroad-type", "not a type")
            .with_header("bytes", vec![0, 0xff])
            .with_header("number", i64::MIN)
            .with_header("fraction", 0.1)
            .with_header("whole", 3.0)
            .with_header("yes", true)
            .with_header("text", "again")
            .with_header("at", Timestamp::from_millis(7));
        let publish = encode(&sent, Qos::ExactlyOnce).unwrap();
        assert_eq!(decode(subject, &publish, Timestamp::EPOCH), sent);
    }

    #[test]
    fn what_mqtt_cannot_say_is_refused() {
        let kind = |envelope: Envelope| encode(&envelope, Qos::AtMostOnce).unwrap_err().kind();
        let plain = |subject: &str| Envelope::new(Subject::new(subject).unwrap(), "x");
        assert_eq!(kind(plain("a+b")), ErrorKind::Rejected);
        assert_eq!(kind(plain("a").with_priority(1)), ErrorKind::Unsupported);
        assert_eq!(kind(plain("a").with_header("a\n", "x")), ErrorKind::Rejected);
        assert_eq!(kind(plain("a").with_header("a", "x".repeat(65_536))), ErrorKind::TooLarge);
        assert_eq!(kind(plain("a").with_correlation(vec![0; 65_536])), ErrorKind::TooLarge);
    }

    #[test]
    fn filters_are_written_as_mqtt_does() {
        let mqtt = |text: &str| filter(&text.parse().unwrap()).map(|filter| filter.as_str().to_owned());
        assert_eq!(mqtt("a/*/b").unwrap(), "a/+/b");
        assert_eq!(mqtt("a/>").unwrap(), "a/#");
        assert!(mqtt("a/+").is_err());
    }

    #[test]
    fn an_expiry_counts_from_the_arrival() {
        let subject = Subject::new("a").unwrap();
        let mut publish = encode(&Envelope::new(subject.clone(), ""), Qos::AtLeastOnce).unwrap();
        publish.properties.as_mut().unwrap().message_expiry_interval = Some(2);
        let got = decode(subject, &publish, Timestamp::from_millis(500));
        assert_eq!(got.expires, Some(Timestamp::from_millis(2500)));
    }
}
