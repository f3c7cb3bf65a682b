//! One record = one line of JSON with a fixed key order and a checksum at the end.
//!
//! `docs/journal-format.md` has the format byte by byte; this file writes and reads it.

use bytes::Bytes;
use std::io::Write as _;

/// Bytes after the payload of every record: `,"c":"9f3a01bc"}`.
pub const TAIL_LEN: usize = 16;
/// The format version in segment headers.
pub const FORMAT_VERSION: u32 = 1;

/// What a message carries, in the form it has in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadKind {
    /// A JSON value, embedded as it came (`e`).
    Json,
    /// UTF-8 text, as a JSON string (`x`).
    Text,
    /// Anything else, base64 (`b`).
    Binary,
}

/// One message to append.
#[derive(Clone, Copy, Debug)]
pub struct Publish<'a> {
    /// Larger is delivered first.
    pub priority: i64,
    /// The message id as a JSON token (`"a"` or `17`); must be valid JSON on one line.
    pub id: Option<&'a [u8]>,
    /// The subject, in logs that hold several; written as a JSON string.
    pub subject: Option<&'a str>,
    /// Headers and other envelope fields as a JSON object on one line.
    pub headers: Option<&'a [u8]>,
    /// How `payload` is written.
    pub kind: PayloadKind,
    /// For [`PayloadKind::Json`] valid JSON on one line, for [`PayloadKind::Text`] a JSON string with its quotes, for
    /// [`PayloadKind::Binary`] base64 text.
    pub payload: &'a [u8],
}

/// A message read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number in the log, from 1, without gaps.
    pub seq: u64,
    /// When it was appended, milliseconds since 1970; never decreases within a log.
    pub time: u64,
    /// Larger is delivered first.
    pub priority: i64,
    /// The id as a JSON token.
    pub id: Option<Bytes>,
    /// The subject as a JSON string with its quotes, in logs that hold several.
    pub subject: Option<Bytes>,
    /// Headers and other envelope fields as a JSON object.
    pub headers: Option<Bytes>,
    /// The form of `payload`.
    pub kind: PayloadKind,
    /// The payload in that form, byte for byte as it was appended.
    pub payload: Bytes,
}

/// The fields every record has, of a line that verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// The message number of a `pub`; of any other record the number of the last message before it.
    pub seq: u64,
    /// When it was written, milliseconds since 1970.
    pub time: u64,
    /// `pub`, `seg`, `gap`, `end`, or a kind of the owner of the log.
    pub kind: &'a str,
    /// Everything before this record was on disk before it was written.
    pub commit_start: bool,
    /// The whole line, without its LF: a JSON object.
    pub line: &'a [u8],
    // Where the fields of the kind start, with their comma.
    rest: usize,
}

/// The checksum of `bytes` in a segment with `salt`.
pub fn checksum(salt: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(salt, bytes)
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends the 8 lower-case hex digits of `value`.
pub(crate) fn push_hex(out: &mut Vec<u8>, value: u32) {
    let mut digits = [0; 8];
    for (i, digit) in digits.iter_mut().enumerate() {
        *digit = HEX[(value >> (28 - 4 * i)) as usize & 15];
    }
    out.extend_from_slice(&digits);
}

fn parse_hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0u32, |value, digit| {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u32::from(nibble))
    })
}

pub(crate) fn push_number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Starts a record; the caller appends its fields (`,"key":value` each) and calls [`finish`] with what this returned.
pub(crate) fn start(out: &mut Vec<u8>, seq: u64, time: u64, kind: &str, commit_start: bool) -> usize {
    let begin = out.len();
    out.extend_from_slice(b"{\"s\":");
    push_number(out, seq);
    out.extend_from_slice(b",\"t\":");
    push_number(out, time);
    out.extend_from_slice(b",\"k\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.push(b'"');
    if commit_start {
        out.extend_from_slice(b",\"m\":1");
    }
    begin
}

/// What follows the sequence of every message of one time: [`start`] writes the same, number by number.
pub(crate) fn publish_stamp(time: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(40);
    out.extend_from_slice(b",\"t\":");
    push_number(&mut out, time);
    out.extend_from_slice(b",\"k\":\"pub\"");
    out
}

/// [`start`] for a message, with a stamp of [`publish_stamp`].
pub(crate) fn start_publish(out: &mut Vec<u8>, seq: u64, stamp: &[u8], commit_start: bool) -> usize {
    let begin = out.len();
    out.extend_from_slice(b"{\"s\":");
    push_number(out, seq);
    out.extend_from_slice(stamp);
    if commit_start {
        out.extend_from_slice(b",\"m\":1");
    }
    begin
}

/// Ends the record that began at `begin`: checksum and LF.
pub(crate) fn finish(out: &mut Vec<u8>, begin: usize, salt: u32) {
    let sum = checksum(salt, &out[begin..]);
    out.extend_from_slice(b",\"c\":\"");
    push_hex(out, sum);
    out.extend_from_slice(b"\"}\n");
}

/// Appends the fields of a `pub` record.
pub(crate) fn push_publish(out: &mut Vec<u8>, publish: &Publish<'_>) {
    if publish.priority != 0 {
        out.extend_from_slice(b",\"p\":");
        out.extend_from_slice(itoa::Buffer::new().format(publish.priority).as_bytes());
    }
    if let Some(id) = publish.id {
        out.extend_from_slice(b",\"i\":");
        out.extend_from_slice(id);
    }
    if let Some(subject) = publish.subject {
        out.extend_from_slice(b",\"u\":");
        // Writing to a Vec cannot fail, and neither can a string fail to serialise.
        let _ = serde_json::to_writer(&mut *out, subject);
    }
    if let Some(headers) = publish.headers {
        out.extend_from_slice(b",\"h\":");
        out.extend_from_slice(headers);
    }
    match publish.kind {
        PayloadKind::Json => {
            out.extend_from_slice(b",\"e\":");
            out.extend_from_slice(publish.payload);
        }
        PayloadKind::Text => {
            out.extend_from_slice(b",\"x\":");
            out.extend_from_slice(publish.payload);
        }
        PayloadKind::Binary => {
            out.extend_from_slice(b",\"b\":\"");
            out.extend_from_slice(publish.payload);
            out.push(b'"');
        }
    }
}

/// Appends `value` as a JSON string field.
pub fn push_text_field(out: &mut Vec<u8>, key: &str, value: &str) {
    let _ = write!(out, ",\"{key}\":");
    let _ = serde_json::to_writer(&mut *out, value);
}

/// Appends `value` as a number field.
pub fn push_number_field(out: &mut Vec<u8>, key: &str, value: u64) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
    push_number(out, value);
}

/// True if `line` (without LF) ends as a record does, whatever its checksum.
pub fn has_tail(line: &[u8]) -> bool {
    line.len() > TAIL_LEN
        && line.ends_with(b"\"}")
        && &line[line.len() - TAIL_LEN..line.len() - TAIL_LEN + 6] == b",\"c\":\""
}

/// Checks the checksum of `line` (without LF), without parsing it.
pub fn verify(line: &[u8], salt: u32) -> bool {
    split_tail(line).is_some_and(|(body, stored)| stored == Some(checksum(salt, body)))
}

/// What the checksum of `line` (without LF) covers, and the checksum if it is one; `None` without a tail.
pub(crate) fn split_tail(line: &[u8]) -> Option<(&[u8], Option<u32>)> {
    if !has_tail(line) {
        return None;
    }
    let digits = &line[line.len() - 10..line.len() - 2];
    Some((&line[..line.len() - TAIL_LEN], parse_hex(digits)))
}

/// A cursor over the fixed part of a line.
struct Cursor<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn eat(&mut self, expected: &[u8]) -> bool {
        let found = self.line[self.at..].starts_with(expected);
        if found {
            self.at += expected.len();
        }
        found
    }

    fn number(&mut self) -> Option<u64> {
        let start = self.at;
        let mut value = 0u64;
        while let Some(digit) = self.line.get(self.at).filter(|b| b.is_ascii_digit()) {
            value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
            self.at += 1;
        }
        (self.at > start).then_some(value)
    }

    /// Skips one JSON value; says where it was.
    fn value(&mut self) -> Option<(usize, usize)> {
        let start = self.at;
        let mut depth = 0u32;
        loop {
            match self.line.get(self.at)? {
                b'"' => {
                    self.at += 1;
                    loop {
                        match self.line.get(self.at)? {
                            b'\\' => self.at += 2,
                            b'"' => break,
                            _ => self.at += 1,
                        }
                    }
                    self.at += 1;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' if depth > 0 => {
                    self.at += 1;
                    continue;
                }
                _ => {
                    while self.line.get(self.at).is_some_and(|b| !matches!(b, b',' | b':' | b'}' | b']')) {
                        self.at += 1;
                    }
                }
            }
            if depth == 0 {
                return (self.at > start).then_some((start, self.at));
            }
        }
    }
}

impl<'a> RecordView<'a> {
    /// Reads the fixed fields of a line that verified; `None` if it is not a record after all.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor { line, at: 0 };
        let seq = cursor.eat(b"{\"s\":").then(|| cursor.number())??;
        let time = cursor.eat(b",\"t\":").then(|| cursor.number())??;
        if !cursor.eat(b",\"k\":\"") {
            return None;
        }
        let start = cursor.at;
        let end = start + memchr::memchr(b'"', &line[start..])?;
        let kind = std::str::from_utf8(&line[start..end]).ok()?;
        cursor.at = end + 1;
        let commit_start = cursor.eat(b",\"m\":1");
        if cursor.at + TAIL_LEN > line.len() || !has_tail(line) {
            return None;
        }
        Some(Self { seq, time, kind, commit_start, line, rest: cursor.at })
    }

    /// The priority and the id token of a `pub`, without reading its payload.
    pub fn publish_key(&self) -> Option<(i64, Option<&'a [u8]>)> {
        let mut cursor = Cursor { line: self.line, at: self.rest };
        let priority = priority(&mut cursor)?;
        let id = cursor.eat(b",\"i\":").then(|| cursor.value()).flatten();
        Some((priority, id.map(|(a, b)| &self.line[a..b])))
    }

    /// The whole message of a `pub`. `line` must be the line this view was parsed from.
    pub fn event(&self, line: &Bytes) -> Option<Event> {
        let mut cursor = Cursor { line: self.line, at: self.rest };
        let priority = priority(&mut cursor)?;
        let mut field = |key: &[u8]| match cursor.eat(key) {
            true => cursor.value().map(|(a, b)| Some(line.slice(a..b))),
            false => Some(None),
        };
        let id = field(b",\"i\":")?;
        let subject = field(b",\"u\":")?;
        let headers = field(b",\"h\":")?;
        let end = self.line.len() - TAIL_LEN;
        let (kind, end) = if cursor.eat(b",\"e\":") {
            (PayloadKind::Json, end)
        } else if cursor.eat(b",\"x\":") {
            (PayloadKind::Text, end)
        } else if cursor.eat(b",\"b\":\"") {
            (PayloadKind::Binary, end - 1)
        } else {
            return None;
        };
        if cursor.at > end {
            return None;
        }
        let payload = line.slice(cursor.at..end);
        Some(Event { seq: self.seq, time: self.time, priority, id, subject, headers, kind, payload })
    }
}

fn priority(cursor: &mut Cursor<'_>) -> Option<i64> {
    if !cursor.eat(b",\"p\":") {
        return Some(0);
    }
    let negative = cursor.eat(b"-");
    let magnitude = i128::from(cursor.number()?);
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(publish: &Publish<'_>, salt: u32, commit_start: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let begin = start(&mut out, 17, 1_650_308_403_348, "pub", commit_start);
        push_publish(&mut out, publish);
        finish(&mut out, begin, salt);
        out
    }

    #[test]
    fn a_record_is_one_line_of_json() {
        let publish = Publish {
            priority: 3,
            id: Some(b"\"1\""),
            subject: None,
            headers: None,
            kind: PayloadKind::Json,
            payload: br#"{"id":"1","priority":3,"msg":"x"}"#,
        };
        let line = line(&publish, 7, false);
        let text = std::str::from_utf8(&line).unwrap();
        assert!(
            text.starts_with(
                r#"{"s":17,"t":1650308403348,"k":"pub","p":3,"i":"1","e":{"id":"1","priority":3,"msg":"x"},"c":""#
            ),
            "{text}"
        );
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(value["e"]["msg"], "x");
        assert!(text.ends_with("\"}\n"));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            priority in any::<i64>(), id in prop::option::of("[a-z\"\\\\]{0,8}"), subject in prop::option::of(".{0,12}"),
            headers in prop::option::of("[ -~]{0,12}"), text in ".{0,40}", salt in any::<u32>(), kind in 0..3, mark in any::<bool>(),
        ) {
            let id = id.map(|id| serde_json::to_vec(&id).unwrap());
            let headers = headers.map(|h| serde_json::to_vec(&serde_json::json!({"a": h, "b": [1, {"c": "}"}]})).unwrap());
            let json = serde_json::to_vec(&text).unwrap();
            let object = serde_json::to_vec(&serde_json::json!({"v": text})).unwrap();
            let (kind, payload): (_, &[u8]) = match kind {
                0 => (PayloadKind::Json, &object),
                1 => (PayloadKind::Text, &json),
                _ => (PayloadKind::Binary, b"AAEC"),
            };
            let publish = Publish { priority, id: id.as_deref(), subject: subject.as_deref(), headers: headers.as_deref(), kind, payload };
            let line = line(&publish, salt, mark);
            let line = Bytes::from(line).slice(..).split_to(line_len(&publish, salt, mark) - 1);
            prop_assert!(verify(&line, salt));
            prop_assert!(!verify(&line, salt ^ 1));
            let view = RecordView::parse(&line).unwrap();
            prop_assert_eq!(view.commit_start, mark);
            prop_assert_eq!(view.publish_key().unwrap(), (priority, id.as_deref()));
            let event = view.event(&line).unwrap();
            prop_assert_eq!(event.seq, 17);
            prop_assert_eq!(event.priority, priority);
            prop_assert_eq!(event.id.as_deref(), id.as_deref());
            prop_assert_eq!(event.headers.as_deref(), headers.as_deref());
            prop_assert_eq!(event.subject.map(|s| serde_json::from_slice::<String>(&s).unwrap()), subject);
            prop_assert_eq!(event.kind, kind);
            prop_assert_eq!(&event.payload[..], payload);
            let _: serde_json::Value = serde_json::from_slice(&line).unwrap();
        }

        #[test]
        fn any_bytes_are_parsed_without_a_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            verify(&line, 0);
            if let Some(view) = RecordView::parse(&line) {
                view.publish_key();
                view.event(&Bytes::copy_from_slice(&line));
            }
        }
    }

    fn line_len(publish: &Publish<'_>, salt: u32, mark: bool) -> usize {
        line(publish, salt, mark).len()
    }
}
