//! A client that consumes one subscription, and settles late, wrongly, or never.

use super::lines::{Lines, word};
use super::login::Login;
use super::{SPECS, TOPICS, id_of};
use crate::history::{History, Spec, Start, Topic};
use crate::inhabitants::Guest;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Subscribe,
    Settle,
    End,
    /// An `ack` in quiet mode: answered only if it is refused.
    Silent,
    /// `hello`, or what is asked because it is answered in any case.
    Other,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Consumer {
    spec: Spec,
    lines: Lines,
    asked: VecDeque<Asked>,
    subscribed: bool,
    // Somebody else has it.
    refused: bool,
    // What was delivered and not spoken of.
    held: Vec<(Topic, u64)>,
    // Their ids.
    ids: BTreeMap<(Topic, u64), u32>,
    login: Login,
}

impl Consumer {
    pub(super) fn new(login: Login, spec: Spec) -> Self {
        Self {
            spec,
            lines: Lines::default(),
            asked: VecDeque::new(),
            subscribed: false,
            refused: false,
            held: Vec::new(),
            ids: BTreeMap::new(),
            login,
        }
    }

    fn subscribe(&mut self, out: &mut Vec<u8>) -> u32 {
        let spec = &SPECS[usize::from(self.spec)];
        let mut line = format!("sub {}", spec.filter);
        if let Some(name) = spec.name {
            let _ = write!(line, " as {name}");
        }
        let from = match spec.from {
            Start::First => "first".to_owned(),
            Start::New => "new".to_owned(),
            Start::Ago(millis) => format!("{millis}ms"),
        };
        let _ = write!(line, " prefetch={} from={from} ack_wait={}ms", spec.prefetch, spec.ack_wait);
        let _ = write!(line, " max_deliveries={}", spec.max_deliveries);
        if !spec.backoff.is_empty() {
            let waits: Vec<String> = spec.backoff.iter().map(|wait| format!("{wait}ms")).collect();
            let _ = write!(line, " backoff={}", waits.join(","));
        }
        line.push_str(if spec.group { " group\n" } else { "\n" });
        out.extend_from_slice(line.as_bytes());
        self.asked.push_back(Asked::Subscribe);
        1
    }

    fn say(&mut self, line: &str, out: &mut Vec<u8>) -> u32 {
        out.extend_from_slice(line.as_bytes());
        let silent = self.login.quiet && line.starts_with("ack");
        self.asked.push_back(if silent { Asked::Silent } else { Asked::Settle });
        1
    }

    /// Says what is answered in any case.
    fn other(&mut self, line: &str, out: &mut Vec<u8>) -> u32 {
        out.extend_from_slice(line.as_bytes());
        self.asked.push_back(Asked::Other);
        1
    }

    fn unsubscribe(&mut self, forget: bool, out: &mut Vec<u8>) -> u32 {
        let spec = &SPECS[usize::from(self.spec)];
        let mut line = format!("unsub {}", spec.filter);
        if let Some(name) = spec.name {
            let _ = write!(line, " as {name}");
            if forget {
                line.push_str(" forget");
            }
        }
        line.push('\n');
        out.extend_from_slice(line.as_bytes());
        self.asked.push_back(Asked::End);
        self.held.clear();
        1
    }

    /// The command that an answer is for.
    fn answered(&mut self) -> Option<Asked> {
        while self.asked.front() == Some(&Asked::Silent) {
            self.asked.pop_front();
        }
        self.asked.pop_front()
    }

    fn waits_for(&self, what: Asked) -> bool {
        self.asked.contains(&what)
    }
}

impl Guest for Consumer {
    fn connected(&mut self) {
        self.lines.clear();
        self.login.again();
    }

    fn disconnected(&mut self) {
        self.asked.clear();
        self.held.clear();
        self.ids.clear();
        (self.subscribed, self.refused) = (false, false);
    }

    fn receive(&mut self, bytes: &[u8]) -> bool {
        self.lines.push(bytes);
        while let Some(line) = self.lines.next() {
            let line = String::from_utf8_lossy(line);
            let (verb, rest) = word(&line);
            match verb {
                "ok" => match self.answered() {
                    Some(Asked::Subscribe) => self.subscribed = true,
                    Some(Asked::End) => {
                        self.subscribed = false;
                        self.held.clear();
                    }
                    _ => {}
                },
                // One of those is refused, and the others are not answered yet.
                "err" if self.asked.front() == Some(&Asked::Silent) => {}
                "err" => self.refused |= self.answered() == Some(Asked::Subscribe),
                // It was ended: another connection makes it anew.
                "note" if rest.starts_with("detached ") => return false,
                "event" => {
                    let mut words = rest.split(' ');
                    let topic = words.next().and_then(|name| TOPICS.iter().position(|topic| *topic == name));
                    let seq = words.next().and_then(|seq| seq.parse().ok());
                    let id = words.nth(1).and_then(|json| id_of(json.as_bytes()));
                    if let (Some(topic), Some(seq)) = (topic, seq) {
                        let place = (topic as Topic, seq);
                        self.held.retain(|held| *held != place);
                        self.held.push(place);
                        self.ids.extend(id.map(|id| (place, id)));
                    }
                }
                "bye" => return false,
                _ => {}
            }
        }
        true
    }

    fn act(&mut self, how: u32, out: &mut Vec<u8>, _: &mut History) -> u32 {
        if let Some(hello) = self.login.hello(how >> 4) {
            return self.other(&hello, out);
        }
        if !self.subscribed {
            let again = !self.refused || how.is_multiple_of(4);
            return if self.asked.is_empty() && again {
                self.refused = false;
                self.subscribe(out)
            } else {
                0
            };
        }
        if self.waits_for(Asked::End) {
            return 0;
        }
        // What may be refused must not come right behind those of which nothing is said if they go well.
        let silent = self.asked.back() == Some(&Asked::Silent);
        let speaks = how.is_multiple_of(200) || matches!(how % 16, 9..13);
        if silent && (speaks || how.is_multiple_of(7)) {
            return self.other("stats\n", out);
        }
        if how.is_multiple_of(200) {
            return self.unsubscribe(how & 0x1000 != 0, out);
        }
        if self.held.is_empty() {
            return 0;
        }
        let at = (how >> 8) as usize % self.held.len();
        let (topic, seq) = self.held[at];
        let name = TOPICS[usize::from(topic)];
        let by_id = self.ids.get(&(topic, seq)).filter(|_| (how >> 20).is_multiple_of(4));
        let target = by_id.map_or_else(|| format!("@{seq}"), u32::to_string);
        let line = match how % 16 {
            0..8 => format!("ack {name} {target}\n"),
            8 => format!("ack {name} @{seq}-@{}\n", seq + u64::from(how >> 16 & 3)),
            9 => format!("nack {name} {target}\n"),
            10 => format!("nack {name} {target} delay={}ms\n", how >> 16 & 1023),
            11 => format!("bury {name} {target}\n"),
            12 => {
                return self.say(&format!("touch {name} {target}\n"), out);
            }
            13 => {
                // Nobody has that: the answer is an error.
                return self.say(&format!("ack {name} @{}\n", 100_000), out);
            }
            _ => return 0,
        };
        self.held.swap_remove(at);
        self.say(&line, out)
    }

    fn wind_down(&mut self, out: &mut Vec<u8>, _: &mut History) -> u32 {
        if let Some(hello) = self.login.hello(1) {
            return self.other(&hello, out);
        }
        if !self.subscribed {
            return if self.asked.is_empty() && !self.refused { self.subscribe(out) } else { 0 };
        }
        if self.held.is_empty() && self.asked.back() == Some(&Asked::Silent) {
            return self.other("stats\n", out);
        }
        let held = std::mem::take(&mut self.held);
        for (topic, seq) in &held {
            self.say(&format!("ack {} @{seq}\n", TOPICS[usize::from(*topic)]), out);
        }
        held.len() as u32
    }

    fn is_at_rest(&self) -> bool {
        (self.subscribed || self.refused) && self.held.is_empty() && self.asked.is_empty()
    }

    fn kill(&mut self) {}
}
