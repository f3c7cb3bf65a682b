//! Lines at the broker's door, noted as facts: each answer with what it answers.

use super::cast::{Door, LETTERS, TOPICS};
use super::facts::{Fact, LineFact, Name, Seen, Tag, Who};
use super::guest::Tap;
use crate::history::Conn;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::BytesMut;
use postroad_mqtt::lines::DEAD_LETTERS;
use serde_json::Value;
use std::collections::VecDeque;

/// What a broker says before it closes a connection.
const GOODBYES: [&str; 6] = [
    "A connection for this username already exists",
    "Another connection logged in with this username",
    "the session was ended",
    "the server goes down",
    "too many connections",
    "the server failed",
];

/// It is the last line of a connection.
pub(super) fn is_goodbye(line: &str) -> bool {
    let why = line.strip_prefix("ERROR \"").and_then(|why| why.strip_suffix('"'));
    why.is_some_and(|why| GOODBYES.contains(&why))
}

/// A line that is there as a whole.
pub(super) fn take_line(bytes: &mut BytesMut) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = bytes.split_to(end + 1);
    Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
}

/// The topic that a line names.
pub(super) fn topic_of(value: &Value) -> Option<u8> {
    let name = value["topic"].as_str()?;
    if name == DEAD_LETTERS {
        return Some(LETTERS);
    }
    TOPICS.iter().position(|topic| *topic == name).map(|at| at as u8)
}

/// The message that a `msg` is.
///
/// # Errors
/// It is nobody's, or not as it was published.
pub(super) fn tag_of(msg: &Value, seen: &Seen) -> Result<Option<Tag>, String> {
    let payload = match msg {
        Value::String(text) => text.clone().into_bytes(),
        Value::Object(fields) if fields.len() == 1 && fields.contains_key("base64") => {
            BASE64.decode(msg["base64"].as_str().unwrap_or_default()).map_err(|error| error.to_string())?
        }
        _ => {
            let tag = msg["t"].as_u64().and_then(|tag| Tag::try_from(tag).ok());
            let payload = tag.map(|tag| seen.payload(tag)).unwrap_or_default();
            return match serde_json::from_slice::<Value>(&payload) {
                Ok(published) if published == *msg => Ok(tag),
                _ => Err(format!("{msg} is not what anybody published")),
            };
        }
    };
    seen.tag_of(&payload)
}

/// What passes the door on one connection.
pub(super) struct LineTap {
    conn: Conn,
    who: Who,
    door: Door,
    up: BytesMut,
    down: BytesMut,
    welcome: bool,
    // Commands without an answer, in order.
    asked: VecDeque<LineFact>,
}

impl LineTap {
    pub(super) fn new(conn: Conn, who: Who, door: Door) -> Self {
        let (up, down) = (BytesMut::new(), BytesMut::new());
        Self { conn, who, door, up, down, welcome: false, asked: VecDeque::new() }
    }

    fn note(&self, fact: LineFact, seen: &mut Seen) {
        seen.note(Fact::Line { conn: self.conn, who: self.who, fact });
    }

    fn entered(&mut self, line: &str, seen: &mut Seen) {
        if self.door == Door::Consumers && line.starts_with("log ") {
            return;
        }
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        let (name, topic) = (value["msgId"].as_u64(), topic_of(&value));
        let fact = match (value["type"].as_str(), name, topic) {
            (Some("PUB"), _, Some(_)) => {
                tag_of(&value["msg"], seen).ok().flatten().map(|tag| LineFact::Put { tag })
            }
            (Some("PUBREL"), Some(name), _) => Some(LineFact::Let { name }),
            (Some("SUB"), _, Some(topic)) => Some(LineFact::Sub { topic }),
            (Some("UNSUB"), _, Some(topic)) => Some(LineFact::Unsub { topic }),
            (Some("PUBREC"), Some(name), _) => Some(LineFact::Received { name }),
            (Some("PUBCOMP"), Some(name), _) => Some(LineFact::Settled { name }),
            _ => junk_of(line).map(|junk| LineFact::Junk { junk }),
        };
        match fact {
            Some(fact) => {
                self.asked.push_back(fact.clone());
                self.note(fact, seen);
            }
            None => seen.note(Fact::Wrong(format!("a client said {line}"))),
        }
    }

    fn left(&mut self, line: &str, seen: &mut Seen) {
        if line == "Please login!" && !self.welcome {
            return;
        }
        if line == "Succesfully logged in!" && !self.welcome {
            self.welcome = true;
            return self.note(LineFact::Welcome, seen);
        }
        if is_goodbye(line) {
            return self.note(LineFact::Error { to: None, why: line.to_owned() }, seen);
        }
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        let name = value["msgId"].as_u64();
        let fact = match (value["type"].as_str(), name) {
            (Some("PUB"), Some(name)) => self.delivered(&value, name, seen),
            (Some("PUBREL"), Some(name)) if self.door == Door::Consumers => Ok(LineFact::Released { name }),
            (kind, name) => self.answer(line, kind.zip(name)),
        };
        match fact {
            Ok(fact) => self.note(fact, seen),
            Err(why) => seen.note(Fact::Wrong(why)),
        }
    }

    fn answer(&mut self, line: &str, said: Option<(&str, Name)>) -> Result<LineFact, String> {
        use LineFact as F;
        let Some(asked) = self.asked.pop_front() else { return Err(format!("{line} answers nothing")) };
        if line.starts_with("ERROR ") {
            return Ok(F::Error { to: Some(Box::new(asked)), why: line.to_owned() });
        }
        Ok(match (asked, said) {
            (F::Put { tag }, Some(("PUBREC", name))) => F::Held { tag, name },
            (F::Let { name }, Some(("PUBCOMP", answered))) if name == answered => F::Done { name },
            (F::Sub { topic }, None) if line == "OK" => F::Subbed { topic },
            (F::Unsub { topic }, None) if line == "OK" => F::Unsubbed { topic },
            (F::Received { name }, None) if line == "OK" => F::Recorded { name },
            (F::Settled { name }, None) if line == "OK" => F::Completed { name },
            (F::Junk { junk }, None) if matches!(line, "INVALID JSON" | "UNKNOWN COMMAND") => {
                F::Refused { junk }
            }
            (asked, _) => return Err(format!("{asked:?} is answered with {line}")),
        })
    }

    fn delivered(&self, value: &Value, name: Name, seen: &Seen) -> Result<LineFact, String> {
        let Some(topic) = topic_of(value) else { return Err(format!("{value} has no topic of ours")) };
        let msg = &value["msg"];
        if topic == LETTERS {
            let junk = msg["line"].as_str().and_then(junk_of);
            let tag = if junk.is_some() { None } else { tag_of(&msg["msg"], seen)? };
            return Ok(LineFact::Letter { name, tag, junk });
        }
        let tag = tag_of(msg, seen)?;
        if tag.is_some_and(|tag| seen.sent[tag as usize].topic != topic) {
            return Err(format!("message {tag:?} came under {}", value["topic"]));
        }
        Ok(LineFact::Deliver { topic, name, tag })
    }
}

/// The number of a line that is no command.
fn junk_of(line: &str) -> Option<u32> {
    if let Some(number) = line.strip_prefix("junk ") {
        return number.parse().ok();
    }
    let value: Value = serde_json::from_str(line).ok()?;
    value["junk"].as_u64().and_then(|junk| u32::try_from(junk).ok())
}

impl Tap for LineTap {
    fn enter(&mut self, bytes: &[u8], seen: &mut Seen) {
        self.up.extend_from_slice(bytes);
        while let Some(line) = take_line(&mut self.up) {
            self.entered(&line, seen);
        }
    }

    fn leave(&mut self, bytes: &[u8], seen: &mut Seen) {
        self.down.extend_from_slice(bytes);
        while let Some(line) = take_line(&mut self.down) {
            self.left(&line, seen);
        }
    }
}
