//! Envelopes as JSON events, and back. Pure. Every door that carries envelopes as events uses this one mapping.
//!
//! An event is *plain* when its JSON is the payload, and *wrapped* when the payload is one field of an object whose first
//! field is `"$postroad":1`. `docs/jsonlog-backend.md` describes both for people.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use postroad_core::dead_letter::{Death, bury};
use postroad_core::headers::Value;
use postroad_core::{Envelope, Headers, MessageId, Subject, Timestamp};
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The field that says "wrapped", and the version of the wrapping.
const MARK: &str = "$postroad";
const VERSION: u64 = 1;
/// The deepest nesting that the protocol takes.
const MAX_DEPTH: usize = 127;
/// Milliseconds at the end of the year 9999; RFC 3339 has no later time.
const LAST_RFC3339: u64 = 253_402_300_799_999;

/// The event of an envelope. The subject is not in it: it is the topic.
pub fn encode(envelope: &Envelope) -> Bytes {
    if is_plain(envelope) { envelope.payload.clone() } else { wrap(envelope).into() }
}

/// The event of an envelope as an object that says what it is, also where its payload would do.
pub fn encode_wrapped(envelope: &Envelope) -> Bytes {
    wrap(envelope).into()
}

/// The envelope of such an object; `None` for every other event.
pub fn decode_wrapped(subject: &Subject, json: &Bytes) -> Option<Envelope> {
    let marked = json.first() == Some(&b'{') && TopLevel::read(json).is_some_and(|top| top.marked);
    if marked { unwrap(subject, json) } else { None }
}

/// Would the payload, read alone, give this envelope back?
fn is_plain(e: &Envelope) -> bool {
    let bare = e.headers.is_empty()
        && e.key.is_none()
        && e.content_type.is_none()
        && e.expires.is_none()
        && e.reply_to.is_none()
        && e.correlation.is_none();
    if !bare || e.payload.first() != Some(&b'{') || !e.payload.ends_with(b"}") || !one_line(&e.payload) {
        return false;
    }
    let Some(top) = TopLevel::read(&e.payload) else { return false };
    !top.marked
        && !top.refused
        && !top.looks_binary()
        && top.id.is_some_and(|id| id == e.id.to_string())
        && top.priority.unwrap_or(0) == e.priority
        && depth(&e.payload) <= MAX_DEPTH
}

fn one_line(payload: &[u8]) -> bool {
    memchr::memchr2(b'\n', b'\r', payload).is_none()
}

fn wrap(e: &Envelope) -> String {
    let mut out = Object::new(e.payload.len() + 160);
    out.field("id", |s| put_text(s, &e.id.to_string()));
    out.field("time", |s| put_time(s, e.time));
    if e.priority != 0 {
        out.field("priority", |s| s.push_str(&e.priority.to_string()));
    }
    if let Some(key) = &e.key {
        out.field("key", |s| put_bytes(s, key));
    }
    if let Some(content_type) = &e.content_type {
        out.field("content_type", |s| put_text(s, content_type));
    }
    if let Some(expires) = e.expires {
        out.field("expires", |s| put_time(s, expires));
    }
    if let Some(reply_to) = &e.reply_to {
        out.field("reply_to", |s| put_text(s, reply_to.as_str()));
    }
    if let Some(correlation) = &e.correlation {
        out.field("correlation", |s| put_bytes(s, correlation));
    }
    if !e.headers.is_empty() {
        out.field("headers", |s| {
            for (i, header) in e.headers.iter().enumerate() {
                s.push_str(if i == 0 { "[[" } else { ",[" });
                put_text(s, &header.name);
                s.push(',');
                put_value(s, &header.value);
                s.push(']');
            }
            s.push(']');
        });
    }
    if let Some(json) = embeddable(&e.payload) {
        out.field("data", |s| s.push_str(json));
    } else {
        match readable(&e.payload) {
            Some(text) => out.field("text", |s| put_text(s, text)),
            None => out.field("base64", |s| put_base64(s, &e.payload)),
        }
    }
    out.end()
}

/// The payload as it can stand as a field: JSON on one line, not too deep inside the wrapper, without space around it
/// (which would not come back), and without escaped surrogates, about which JSON readers differ.
fn embeddable(payload: &[u8]) -> Option<&str> {
    if !one_line(payload) || depth(payload) >= MAX_DEPTH {
        return None;
    }
    let text = std::str::from_utf8(payload).ok()?;
    let raw: &RawValue = serde_json::from_str(text).ok()?;
    let surrogate = |at: usize| text.as_bytes().get(at + 2).is_some_and(|b| b.eq_ignore_ascii_case(&b'd'));
    if raw.get().len() != text.len() || text.match_indices("\\u").any(|(at, _)| surrogate(at)) {
        return None;
    }
    Some(text)
}

/// Text that is not longer as a JSON string than as base64.
fn readable(payload: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(payload).ok()?;
    let escaped: usize = text
        .bytes()
        .map(|b| match b {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 2,
            0..0x20 => 6,
            _ => 1,
        })
        .sum();
    (escaped <= payload.len().div_ceil(3) * 4).then_some(text)
}

/// The deepest nesting of brackets outside strings. Meant for JSON; any bytes are safe.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for &b in json {
        if in_string {
            match b {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match b {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// A JSON object under construction.
struct Object(String);

impl Object {
    fn new(capacity: usize) -> Self {
        let mut out = String::with_capacity(capacity);
        out.push_str("{\"");
        out.push_str(MARK);
        out.push_str("\":1");
        Self(out)
    }

    fn field(&mut self, name: &str, value: impl FnOnce(&mut String)) {
        self.0.push_str(",\"");
        self.0.push_str(name);
        self.0.push_str("\":");
        value(&mut self.0);
    }

    fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

fn put_text(out: &mut String, text: &str) {
    // A string always serializes.
    out.push_str(&serde_json::to_string(text).unwrap_or_default());
}

fn put_base64(out: &mut String, bytes: &[u8]) {
    out.push('"');
    BASE64.encode_string(bytes, out);
    out.push('"');
}

/// Text where it is text, else `{"base64":"…"}`.
fn put_bytes(out: &mut String, bytes: &[u8]) {
    if let Some(text) = readable(bytes) {
        put_text(out, text);
    } else {
        out.push_str("{\"base64\":");
        put_base64(out, bytes);
        out.push('}');
    }
}

/// RFC 3339 where it reaches, else milliseconds.
fn put_time(out: &mut String, time: Timestamp) {
    if time.as_millis() <= LAST_RFC3339 {
        put_text(out, &time.to_string());
    } else {
        out.push_str(&time.as_millis().to_string());
    }
}

fn put_value(out: &mut String, value: &Value) {
    match value {
        Value::Text(text) => put_text(out, text),
        Value::Bytes(bytes) => {
            out.push_str("{\"base64\":");
            put_base64(out, bytes);
            out.push('}');
        }
        Value::I64(n) => out.push_str(&n.to_string()),
        // `{:?}` always writes a point or an exponent, and reads back to the same bits.
        Value::F64(x) if x.is_finite() => {
            let _ = write!(out, "{x:?}");
        }
        Value::F64(x) => {
            let _ = write!(out, "{{\"f64\":\"{:016x}\"}}", x.to_bits());
        }
        Value::Bool(yes) => out.push_str(if *yes { "true" } else { "false" }),
        Value::Time(time) => {
            out.push_str("{\"time\":");
            put_time(out, *time);
            out.push('}');
        }
        // A type that this version does not know travels as text.
        other => put_text(out, &other.to_text()),
    }
}

/// The envelope of an event that was received at `now`. Never fails: what is not well wrapped is plain.
pub fn decode(subject: Subject, seq: u64, json: &Bytes, now: Timestamp) -> Envelope {
    if subject.is_dead_letter()
        && let Some(dead) = dead_letter(&subject, json, now)
    {
        return dead;
    }
    let first = json.first().copied();
    if first == Some(b'{') {
        let top = TopLevel::read(json).unwrap_or_default();
        if top.marked
            && let Some(envelope) = unwrap(&subject, json)
        {
            return envelope;
        }
        let id = top.id.as_deref().and_then(|id| MessageId::text(id).ok());
        let mut envelope = bare(subject, seq, id, now);
        envelope.priority = top.priority.unwrap_or(0);
        // What another protocol published that is not text.
        let binary = if top.looks_binary() { top.base64.and_then(|b| BASE64.decode(b).ok()) } else { None };
        envelope.payload = binary.map_or_else(|| json.clone(), Bytes::from);
        return envelope;
    }
    let mut envelope = bare(subject, seq, None, now);
    // What another protocol published that is text.
    let text = if first == Some(b'"') { serde_json::from_slice::<String>(json).ok() } else { None };
    envelope.payload = text.map_or_else(|| json.clone(), Bytes::from);
    envelope
}

/// What the broker puts around a dead letter; see the protocol, section 3.4.
#[derive(Deserialize)]
struct Dead<'a> {
    #[serde(borrow)]
    reason: Cow<'a, str>,
    seq: u64,
    #[serde(borrow)]
    subscription: Cow<'a, str>,
    attempts: u32,
    #[serde(borrow)]
    first: &'a RawValue,
    #[serde(borrow)]
    last: &'a RawValue,
    #[serde(borrow)]
    event: &'a RawValue,
}

/// The message that died, with the headers of a dead letter.
fn dead_letter(subject: &Subject, json: &Bytes, now: Timestamp) -> Option<Envelope> {
    let dead: Dead<'_> = serde_json::from_slice(json).ok()?;
    let death = Death {
        reason: dead.reason.into(),
        position: Some(dead.seq),
        subscription: dead.subscription.into(),
        attempts: dead.attempts,
        first_failure: time_of(dead.first)?,
        last_failure: time_of(dead.last)?,
    };
    let event = json.slice_ref(dead.event.get().as_bytes());
    Some(bury(&decode(subject.origin()?, dead.seq, &event, now), &death))
}

/// An envelope with nothing but an id. Without one of its own it gets `TOPIC@SEQ`, the same for every delivery.
fn bare(subject: Subject, seq: u64, id: Option<MessageId>, now: Timestamp) -> Envelope {
    let id = id.unwrap_or_else(|| {
        let name = format!("{subject}@{seq}");
        // The longest topics lose their front; the number keeps the ids of one topic apart.
        let cut = name.len().saturating_sub(MessageId::MAX_LEN);
        let cut = (cut..name.len()).find(|at| name.is_char_boundary(*at)).unwrap_or(name.len());
        MessageId::text(&name[cut..]).unwrap_or_else(|_| MessageId::generate())
    });
    Envelope {
        id,
        subject,
        key: None,
        content_type: None,
        time: now,
        expires: None,
        priority: 0,
        reply_to: None,
        correlation: None,
        headers: Headers::new(),
        payload: Bytes::new(),
    }
}

/// The fields of a wrapped event. An unknown field is an error: it would be lost.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped<'a> {
    #[serde(rename = "$postroad")]
    version: u64,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    time: &'a RawValue,
    #[serde(default)]
    priority: i64,
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    content_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    expires: Option<&'a RawValue>,
    #[serde(borrow)]
    reply_to: Option<Cow<'a, str>>,
    #[serde(borrow)]
    correlation: Option<&'a RawValue>,
    #[serde(borrow, default)]
    headers: Vec<(Cow<'a, str>, &'a RawValue)>,
    // Not an `Option`: `null` is a payload.
    #[serde(borrow, default)]
    data: Maybe<'a>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    base64: Option<Cow<'a, str>>,
}

#[derive(Default)]
struct Maybe<'a>(Option<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Maybe<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(d).map(|raw| Self(Some(raw)))
    }
}

fn unwrap(subject: &Subject, json: &Bytes) -> Option<Envelope> {
    let w: Wrapped<'_> = serde_json::from_slice(json).ok()?;
    if w.version != VERSION {
        return None;
    }
    let payload = match (w.data.0, w.text, w.base64) {
        (Some(raw), None, None) => json.slice_ref(raw.get().as_bytes()),
        (None, Some(Cow::Borrowed(text)), None) => json.slice_ref(text.as_bytes()),
        (None, Some(Cow::Owned(text)), None) => text.into(),
        (None, None, Some(base64)) => BASE64.decode(&*base64).ok()?.into(),
        _ => return None,
    };
    let mut headers = Headers::new();
    for (name, raw) in w.headers {
        headers.push(Arc::<str>::from(name), value_of(raw)?);
    }
    Some(Envelope {
        id: MessageId::text(&*w.id).ok()?,
        subject: subject.clone(),
        key: optional(w.key, bytes_of)?,
        content_type: w.content_type.map(Arc::from),
        time: time_of(w.time)?,
        expires: optional(w.expires, time_of)?,
        priority: w.priority,
        reply_to: optional(w.reply_to, |s| Subject::new(&*s).ok())?,
        correlation: optional(w.correlation, bytes_of)?,
        headers,
        payload,
    })
}

/// `None` when there is a value and it cannot be read.
#[allow(clippy::option_option, reason = "the outer one is for `?`")]
fn optional<T, U>(value: Option<T>, read: impl FnOnce(T) -> Option<U>) -> Option<Option<U>> {
    match value {
        None => Some(None),
        Some(value) => read(value).map(Some),
    }
}

/// `{"base64":"…"}`, `{"f64":"…"}`, `{"time":…}`: the types that JSON does not have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Tagged<'a> {
    #[serde(borrow)]
    Base64(Cow<'a, str>),
    #[serde(borrow)]
    F64(Cow<'a, str>),
    #[serde(borrow)]
    Time(&'a RawValue),
}

fn value_of(raw: &RawValue) -> Option<Value> {
    let text = raw.get();
    match text.as_bytes().first()? {
        b'"' => Some(Value::Text(serde_json::from_str::<String>(text).ok()?.into())),
        b't' => Some(Value::Bool(true)),
        b'f' => Some(Value::Bool(false)),
        b'{' => match serde_json::from_str(text).ok()? {
            Tagged::Base64(b) => Some(Value::Bytes(BASE64.decode(&*b).ok()?.into())),
            Tagged::F64(bits) => Some(Value::F64(f64::from_bits(u64::from_str_radix(&bits, 16).ok()?))),
            Tagged::Time(time) => time_of(time).map(Value::Time),
        },
        b'-' | b'0'..=b'9' if text.contains(['.', 'e', 'E']) => text.parse().ok().map(Value::F64),
        b'-' | b'0'..=b'9' => text.parse().ok().map(Value::I64),
        _ => None,
    }
}

fn bytes_of(raw: &RawValue) -> Option<Bytes> {
    match value_of(raw)? {
        Value::Text(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
        Value::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

fn time_of(raw: &RawValue) -> Option<Timestamp> {
    let text = raw.get();
    if text.starts_with('"') {
        serde_json::from_str::<Cow<'_, str>>(text).ok()?.parse().ok()
    } else {
        text.parse().ok().map(Timestamp::from_millis)
    }
}

/// What matters on the top level of an object.
#[derive(Debug, Default)]
struct TopLevel {
    keys: usize,
    marked: bool,
    /// As text; `None` also when it is not a string or a number.
    id: Option<String>,
    priority: Option<i64>,
    /// The broker refuses it: a field twice, or a priority that is no integer.
    refused: bool,
    base64: Option<String>,
}

impl TopLevel {
    /// `None` when it is not one JSON object.
    fn read(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// The form in which the protocol shows bytes that are not text.
    fn looks_binary(&self) -> bool {
        self.keys == 1 && self.base64.is_some()
    }
}

impl<'de> Deserialize<'de> for TopLevel {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(TopLevelVisitor)
    }
}

struct TopLevelVisitor;

impl<'de> Visitor<'de> for TopLevelVisitor {
    type Value = TopLevel;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<TopLevel, M::Error> {
        let mut top = TopLevel::default();
        let (mut ids, mut priorities) = (0, 0);
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            top.keys += 1;
            match &*key {
                MARK => {
                    top.marked = true;
                    map.next_value::<IgnoredAny>()?;
                }
                "id" => {
                    ids += 1;
                    let raw = map.next_value::<&RawValue>()?.get();
                    top.id = match raw.as_bytes().first() {
                        Some(b'"') => serde_json::from_str(raw).ok(),
                        Some(b'-' | b'0'..=b'9') => Some(raw.to_owned()),
                        _ => None,
                    };
                }
                "priority" => {
                    priorities += 1;
                    let raw = map.next_value::<&RawValue>()?.get();
                    top.priority = raw.parse().ok();
                    top.refused |= priorities > 1 || (top.priority.is_none() && raw != "null");
                }
                "base64" => {
                    let raw = map.next_value::<&RawValue>()?.get();
                    top.base64 = serde_json::from_str(raw).ok();
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        top.refused |= ids > 1;
        Ok(top)
    }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
