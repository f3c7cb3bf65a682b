//! A client that consumes one subscription, and settles late, wrongly, or never.

use super::lines::{Lines, word};
use super::{SPECS, TOPICS};
use crate::history::{History, Spec, Topic};
use crate::inhabitants::Guest;
use std::collections::VecDeque;
use std::fmt::Write as _;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Subscribe,
    Settle,
    End,
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
}

impl Consumer {
    pub(super) fn new(spec: Spec) -> Self {
        Self {
            spec,
            lines: Lines::default(),
            asked: VecDeque::new(),
            subscribed: false,
            refused: false,
            held: Vec::new(),
        }
    }

    fn subscribe(&mut self, out: &mut Vec<u8>) -> u32 {
        let spec = &SPECS[usize::from(self.spec)];
        let mut line = format!("sub {}", spec.filter);
        if let Some(name) = spec.name {
            let _ = write!(line, " as {name}");
        }
        let from = if spec.from_first { "first" } else { "new" };
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
        self.asked.push_back(Asked::Settle);
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

    fn waits_for(&self, what: Asked) -> bool {
        self.asked.contains(&what)
    }
}

impl Guest for Consumer {
    fn connected(&mut self) {
        self.lines.clear();
    }

    fn disconnected(&mut self) {
        self.asked.clear();
        self.held.clear();
        (self.subscribed, self.refused) = (false, false);
    }

    fn receive(&mut self, bytes: &[u8]) -> bool {
        self.lines.push(bytes);
        while let Some(line) = self.lines.next() {
            let line = String::from_utf8_lossy(line);
            let (verb, rest) = word(&line);
            match verb {
                "ok" => match self.asked.pop_front() {
                    Some(Asked::Subscribe) => self.subscribed = true,
                    Some(Asked::End) => {
                        self.subscribed = false;
                        self.held.clear();
                    }
                    _ => {}
                },
                "err" => self.refused |= self.asked.pop_front() == Some(Asked::Subscribe),
                "event" => {
                    let mut words = rest.split(' ');
                    let topic = words.next().and_then(|name| TOPICS.iter().position(|topic| *topic == name));
                    let seq = words.next().and_then(|seq| seq.parse().ok());
                    if let (Some(topic), Some(seq)) = (topic, seq) {
                        let place = (topic as Topic, seq);
                        self.held.retain(|held| *held != place);
                        self.held.push(place);
                    }
                }
                "bye" => return false,
                _ => {}
            }
        }
        true
    }

    fn act(&mut self, how: u32, out: &mut Vec<u8>, _: &mut History) -> u32 {
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
        if how.is_multiple_of(200) {
            return self.unsubscribe(how & 0x1000 != 0, out);
        }
        if self.held.is_empty() {
            return 0;
        }
        let at = (how >> 8) as usize % self.held.len();
        let (topic, seq) = self.held[at];
        let name = TOPICS[usize::from(topic)];
        let line = match how % 16 {
            0..8 => format!("ack {name} @{seq}\n"),
            8 => format!("ack {name} @{seq}-@{}\n", seq + u64::from(how >> 16 & 3)),
            9 => format!("nack {name} @{seq}\n"),
            10 => format!("nack {name} @{seq} delay={}ms\n", how >> 16 & 1023),
            11 => format!("bury {name} @{seq}\n"),
            12 => {
                return self.say(&format!("touch {name} @{seq}\n"), out);
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
        if !self.subscribed {
            return if self.asked.is_empty() && !self.refused { self.subscribe(out) } else { 0 };
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
