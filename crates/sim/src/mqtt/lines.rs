//! Clients of the line dialect: their half of it, done right, and an application that only counts.

use super::cast::{Door, LETTERS, LINES, LineRole, topic};
use super::facts::{Fact, Name, Seen, Sent, Tag, Who};
use super::guest::{Guest, Tap};
use super::line_tap::{self, LineTap};
use crate::history::Conn;
use bytes::BytesMut;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};

/// Names that a consumer remembers after their PUBREL, to answer it again.
const REMEMBERED: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Offline,
    /// A consumer that is not logged in.
    New,
    Online,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Off,
    On,
}

/// A command that was sent and is not answered.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Put,
    Let(Name),
    Sub(usize),
    Unsub(usize),
    /// An answer that changes nothing here.
    Other,
}

/// See the module.
pub(super) struct Liner {
    role: LineRole,
    who: Who,
    stage: Stage,
    bytes: BytesMut,
    out: BytesMut,
    asked: VecDeque<Asked>,
    // Of a publisher: what is held for it, in order, and what of that it has released without an answer.
    held: VecDeque<Name>,
    letting: VecDeque<Name>,
    // Of a consumer. What survives it is what it has and was not sent PUBREL for, and what it was.
    inbox: BTreeMap<Name, u8>,
    over: BTreeMap<Name, u8>,
    wishes: Vec<Wish>,
    owed: VecDeque<String>,
}

impl Liner {
    pub(super) fn new(who: Who, role: LineRole) -> Self {
        Self {
            who,
            stage: Stage::Offline,
            bytes: BytesMut::new(),
            out: BytesMut::new(),
            asked: VecDeque::new(),
            held: VecDeque::new(),
            letting: VecDeque::new(),
            inbox: BTreeMap::new(),
            over: BTreeMap::new(),
            wishes: vec![Wish::Off; role.topics.len()],
            owed: VecDeque::new(),
            role,
        }
    }

    fn put(&mut self, line: &str) {
        self.out.extend_from_slice(line.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    fn ask(&mut self, line: &str, asked: Asked) {
        self.put(line);
        self.asked.push_back(asked);
    }

    fn line(&mut self, line: &str, seen: &mut Seen) -> bool {
        match line {
            "Please login!" => {
                if self.stage == Stage::New {
                    self.put(&format!("log {}", self.role.name));
                }
                return true;
            }
            "Succesfully logged in!" => {
                self.stage = Stage::Online;
                return true;
            }
            _ if line_tap::is_goodbye(line) => return false,
            _ => {}
        }
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        match (value["type"].as_str(), self.role.door) {
            (Some("PUB"), _) => self.delivered(&value, seen),
            (Some("PUBREL"), _) => self.released(&value, seen),
            _ => self.answered(line, &value, seen),
        }
        true
    }

    fn answered(&mut self, line: &str, value: &Value, seen: &mut Seen) {
        let asked = self.asked.pop_front();
        let name = value["msgId"].as_u64();
        match (asked, value["type"].as_str(), name) {
            (Some(Asked::Put), Some("PUBREC"), Some(name)) => self.held.push_back(name),
            // It was not taken. It is published again, as another message.
            (Some(Asked::Put), None, _) => {}
            (Some(Asked::Let(name)), Some("PUBCOMP"), Some(answered)) if name == answered => {
                self.letting.retain(|letting| *letting != name);
                seen.exchanges.0 += 1;
            }
            (Some(Asked::Let(name)), None, _) => {
                // Later.
                self.letting.retain(|letting| *letting != name);
                self.held.push_front(name);
            }
            (Some(Asked::Sub(at)), ..) if line == "OK" => self.wish(at, Wish::On),
            (Some(Asked::Unsub(at)), ..) if line == "OK" => self.wish(at, Wish::Off),
            (Some(Asked::Sub(_) | Asked::Unsub(_) | Asked::Other), ..) => {}
            _ => seen.note(Fact::Wrong(format!("{asked:?} is answered with {line}"))),
        }
    }

    fn wish(&mut self, at: usize, wish: Wish) {
        if let Some(old) = self.wishes.get_mut(at) {
            *old = wish;
        }
    }

    fn delivered(&mut self, value: &Value, seen: &mut Seen) {
        let (Some(name), Some(topic)) = (value["msgId"].as_u64(), line_tap::topic_of(value)) else { return };
        if self.inbox.insert(name, topic).is_none() && topic != LETTERS {
            // The application gets it with the record that it is there.
            if let Ok(Some(tag)) = line_tap::tag_of(&value["msg"], seen) {
                seen.note(Fact::App { who: self.who, tag, retain: false });
            }
        }
        self.owed.push_back(command("PUBREC", name, topic));
    }

    fn released(&mut self, value: &Value, seen: &mut Seen) {
        let Some(name) = value["msgId"].as_u64() else { return };
        if let Some(topic) = self.inbox.remove(&name) {
            self.over.insert(name, topic);
            if self.over.len() > REMEMBERED {
                self.over.pop_first();
            }
        }
        match self.over.get(&name) {
            Some(topic) => {
                let line = command("PUBCOMP", name, *topic);
                self.owed.push_back(line);
            }
            None => seen.note(Fact::Wrong(format!("PUBREL of {name}, which nobody has"))),
        }
    }

    fn pay(&mut self, max: usize, seen: &mut Seen) -> u32 {
        let count = max.min(self.owed.len());
        for line in self.owed.drain(..count).collect::<Vec<_>>() {
            seen.exchanges.1 += u64::from(line.contains("PUBCOMP"));
            self.ask(&line, Asked::Other);
        }
        count as u32
    }

    fn publish(&mut self, bits: u32, seen: &mut Seen) {
        let waiting = self.asked.iter().filter(|asked| matches!(asked, Asked::Put)).count();
        if waiting + self.held.len() + self.letting.len() >= self.role.in_flight {
            return;
        }
        let topics = u32::from(LINES.end - LINES.start);
        let at = LINES.start + (bits % topics) as u8;
        let size = if (bits >> 3).is_multiple_of(8) { 300 + bits as usize % 900 } else { bits as usize % 40 };
        let tag = seen.sent.len() as Tag;
        seen.sent.push(Sent { by: self.who, topic: at, qos: 2, size, line: true, ..Sent::default() });
        let payload = String::from_utf8(seen.payload(tag)).unwrap_or_default();
        let msg = if payload.starts_with('{') { payload } else { Value::from(payload).to_string() };
        let line = format!("{{\"type\":\"PUB\",\"topic\":\"{}\",\"msg\":{msg}}}", topic(at));
        self.ask(&line, Asked::Put);
    }

    /// Releases the oldest of what is held.
    fn release(&mut self, max: usize) -> u32 {
        let count = max.min(self.held.len());
        for name in self.held.drain(..count).collect::<Vec<_>>() {
            self.letting.push_back(name);
            self.ask(&format!("{{\"type\":\"PUBREL\",\"msgId\":{name}}}"), Asked::Let(name));
        }
        count as u32
    }

    /// Says something that is no command.
    fn junk(&mut self, json: bool, seen: &mut Seen) {
        seen.junk += 1;
        let junk = seen.junk;
        let line =
            if json { format!("{{\"type\":\"NOPE\",\"junk\":{junk}}}") } else { format!("junk {junk}") };
        self.ask(&line, Asked::Other);
    }

    fn subscribe(&mut self, at: usize) {
        let line = format!("{{\"type\":\"SUB\",\"topic\":\"{}\"}}", topic(self.role.topics[at]));
        self.ask(&line, Asked::Sub(at));
    }

    /// Subscribes, or not any more.
    fn change(&mut self, bits: u32) -> u32 {
        let at = bits as usize % self.wishes.len().max(1);
        match self.wishes.get(at) {
            None => return 0,
            // Once more, when it is there, too: it may be parked.
            Some(Wish::Off) => self.subscribe(at),
            Some(Wish::On) if !self.role.faithful && (bits >> 4).is_multiple_of(3) => {
                let line = format!("{{\"type\":\"UNSUB\",\"topic\":\"{}\"}}", topic(self.role.topics[at]));
                self.ask(&line, Asked::Unsub(at));
            }
            Some(Wish::On) => self.subscribe(at),
        }
        1
    }
}

impl Guest for Liner {
    fn name(&self) -> &str {
        self.role.name
    }

    fn door(&self) -> Door {
        self.role.door
    }

    fn tap(&self, conn: Conn) -> Box<dyn Tap> {
        Box::new(LineTap::new(conn, self.who, self.role.door))
    }

    fn connected(&mut self, _: &mut Seen) {
        self.stage = if self.role.door == Door::Consumers { Stage::New } else { Stage::Online };
    }

    fn disconnected(&mut self) {
        self.stage = Stage::Offline;
        (self.bytes, self.out) = (BytesMut::new(), BytesMut::new());
        for asked in std::mem::take(&mut self.asked) {
            // It may have counted.
            if let Asked::Unsub(at) = asked {
                self.wish(at, Wish::Off);
            }
        }
        self.owed.clear();
        // In the order in which they were published.
        let letting = std::mem::take(&mut self.letting);
        letting.into_iter().rev().for_each(|name| self.held.push_front(name));
    }

    fn kill(&mut self) {
        if !self.role.keeps {
            self.held.clear();
            self.letting.clear();
        }
    }

    fn written(&mut self) -> BytesMut {
        self.out.split()
    }

    fn receive(&mut self, bytes: &[u8], seen: &mut Seen) -> bool {
        self.bytes.extend_from_slice(bytes);
        while let Some(line) = line_tap::take_line(&mut self.bytes) {
            if !self.line(&line, seen) {
                return false;
            }
        }
        true
    }

    fn act(&mut self, how: u32, seen: &mut Seen) -> u32 {
        if self.stage != Stage::Online {
            return 0;
        }
        let choice = (how >> 3) % 64;
        let bits = how >> 9;
        if self.role.door == Door::Consumers {
            return match choice {
                0..2 => {
                    self.junk(choice == 0, seen);
                    1
                }
                // Now and then it is slow.
                2..8 => 0,
                8..16 => self.change(bits),
                _ if self.owed.is_empty() => {
                    let off = self.wishes.iter().position(|wish| *wish == Wish::Off);
                    match off {
                        Some(at) if choice < 32 && !self.asked.iter().any(|a| matches!(a, Asked::Sub(_))) => {
                            self.subscribe(at);
                            1
                        }
                        _ => 0,
                    }
                }
                _ => self.pay(if how % 8 < 5 { usize::MAX } else { 1 }, seen),
            };
        }
        match choice {
            0..2 => {
                self.junk(choice == 0, seen);
                1
            }
            2..28 if !self.held.is_empty() => {
                self.release(if choice.is_multiple_of(2) { usize::MAX } else { 1 })
            }
            _ => {
                let mut bits = bits;
                let count = 1 + bits % 3;
                for _ in 0..count {
                    bits = bits.wrapping_mul(0x9e37_79b1).rotate_left(9);
                    self.publish(bits, seen);
                }
                count
            }
        }
    }

    fn wind_down(&mut self, seen: &mut Seen) -> u32 {
        if self.stage != Stage::Online {
            return 0;
        }
        let off = self.wishes.iter().position(|wish| *wish == Wish::Off);
        if let Some(at) = off
            && self.asked.is_empty()
        {
            self.subscribe(at);
        }
        self.pay(usize::MAX, seen) + self.release(usize::MAX)
    }

    fn is_offline(&self) -> bool {
        self.stage == Stage::Offline
    }

    fn is_at_rest(&self) -> bool {
        self.stage == Stage::Online
            && self.asked.is_empty()
            && self.held.is_empty()
            && self.letting.is_empty()
            && self.owed.is_empty()
            && self.wishes.iter().all(|wish| *wish == Wish::On)
    }
}

fn command(kind: &str, name: Name, at: u8) -> String {
    format!("{{\"type\":\"{kind}\",\"msgId\":{name},\"topic\":\"{}\"}}", topic(at))
}
