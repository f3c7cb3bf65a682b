//! The table of wire cases: bytes, and what they mean or which rule they break.
//!
//! Bytes are written in hex; `'text'` is a string with its two length bytes, `"text"` its bytes alone, `~` the remaining
//! length of the packet and `{ … }` the length of what is in the braces and that.

#![allow(dead_code)] // not every test looks at every column

mod bad;
mod good;

use bytes::Bytes;
use postroad_mqtt::codec::{DecodeError, Direction, Packet, Version};

pub(crate) const ALL: &[Version] = &[Version::V31, Version::V311, Version::V5];
pub(crate) const V31: &[Version] = &[Version::V31];
pub(crate) const V311: &[Version] = &[Version::V311];
pub(crate) const V3: &[Version] = &[Version::V31, Version::V311];
pub(crate) const V311_UP: &[Version] = &[Version::V311, Version::V5];
pub(crate) const V5: &[Version] = &[Version::V5];

pub(crate) const UP: &[Direction] = &[Direction::ToServer];
pub(crate) const DOWN: &[Direction] = &[Direction::ToClient];
pub(crate) const BOTH: &[Direction] = &[Direction::ToServer, Direction::ToClient];

/// One case, for each of its versions and directions.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) versions: &'static [Version],
    pub(crate) directions: &'static [Direction],
    pub(crate) bytes: Bytes,
    pub(crate) expected: Result<Packet, DecodeError>,
    /// Encoding the packet gives these bytes; others may be written in more than one way.
    pub(crate) canonical: bool,
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = good::cases();
    cases.extend(bad::cases());
    cases
}

fn put_varint(mut value: usize, out: &mut Vec<u8>) {
    loop {
        let byte = (value % 128) as u8;
        value /= 128;
        if value == 0 {
            return out.push(byte);
        }
        out.push(byte | 0x80);
    }
}

/// The bytes of the notation.
pub(crate) fn bytes(text: &str) -> Bytes {
    let mut open: Vec<Vec<u8>> = vec![Vec::new()];
    let mut rest = text.trim_start();
    let mut head: Option<Vec<u8>> = None;
    while let Some(first) = rest.chars().next() {
        let top = open.last_mut().expect("an open brace");
        match first {
            '\'' | '"' => {
                let (body, after) = rest[1..].split_once(first).expect("the closing quote");
                if first == '\'' {
                    top.extend((body.len() as u16).to_be_bytes());
                }
                top.extend(body.as_bytes());
                rest = after;
            }
            '~' => {
                head = Some(std::mem::take(top));
                rest = &rest[1..];
            }
            '{' => {
                open.push(Vec::new());
                rest = &rest[1..];
            }
            '}' => {
                let body = open.pop().expect("an open brace");
                let top = open.last_mut().expect("an open brace");
                put_varint(body.len(), top);
                top.extend(body);
                rest = &rest[1..];
            }
            _ => {
                top.push(u8::from_str_radix(&rest[..2], 16).expect("hex"));
                rest = &rest[2..];
            }
        }
        rest = rest.trim_start();
    }
    let body = open.pop().expect("the packet");
    assert!(open.is_empty(), "a brace stays open: {text}");
    match head {
        None => body.into(),
        Some(mut packet) => {
            put_varint(body.len(), &mut packet);
            packet.extend(body);
            packet.into()
        }
    }
}
