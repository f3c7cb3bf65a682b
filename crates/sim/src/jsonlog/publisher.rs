//! A client that publishes, and publishes again what it has no answer for.

use super::lines::{Lines, word};
use super::login::Login;
use super::{TOPICS, send};
use crate::history::{History, Tag, Topic};
use crate::inhabitants::Guest;
use std::collections::VecDeque;

/// Commands without an answer at most.
const IN_FLIGHT: usize = 8;

/// What must be refused, and must not disturb what comes before and after.
const NONSENSE: [&[u8]; 7] = [
    b"hallo\r\n",
    b"\n\npublish a/1 {}\n",
    b"pub a/1 {\"id\":\n",
    b"pub a/*/x {}\n",
    b"pub a/1 [1,2]\n",
    b"p\xff\xfe\n",
    b"ack\n",
];

/// A message that must be stored.
#[derive(Clone, Copy, Debug)]
struct Owed {
    message: u32,
    topic: Topic,
    priority: i64,
    size: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Publisher {
    // It has an outbox that survives it.
    outbox: bool,
    // Without an answer, or refused.
    owed: Vec<Owed>,
    asked: VecDeque<Asked>,
    // Something was refused; in quiet mode nobody says what.
    doubt: bool,
    login: Login,
    lines: Lines,
}

/// What waits for an answer, and what must be published again if that is no.
#[derive(Debug, Default)]
struct Asked {
    owed: Vec<Owed>,
    // It is answered only if it is refused.
    silent: bool,
}

impl Publisher {
    pub(super) fn new(login: Login, outbox: bool) -> Self {
        Self {
            outbox,
            owed: Vec::new(),
            asked: VecDeque::new(),
            doubt: false,
            login,
            lines: Lines::default(),
        }
    }

    /// Asks what is answered in any case, after those of which nothing is said if they went well.
    fn knock(&mut self, out: &mut Vec<u8>) -> u32 {
        out.extend_from_slice(b"stats\n");
        self.asked.push_back(Asked::default());
        1
    }

    /// An answer: all before it went well, or something was refused.
    fn answered(&mut self) {
        let doubt = std::mem::take(&mut self.doubt);
        while let Some(asked) = self.asked.pop_front() {
            if !asked.silent {
                return;
            }
            if doubt {
                self.owed.extend(asked.owed);
            }
        }
    }

    fn publish(&mut self, list: Vec<Owed>, bulk: bool, out: &mut Vec<u8>, history: &mut History) -> u32 {
        if bulk {
            let topic = list[0].topic;
            let mut body = Vec::new();
            let mut first: Option<Tag> = None;
            for owed in &list {
                let next = history.sent.len() as Tag;
                let batch = *first.get_or_insert(next);
                let tag = send(history, owed.message, topic, owed.priority, owed.size, Some(batch));
                body.extend_from_slice(&history.sent[tag as usize].payload);
                body.push(b'\n');
            }
            let head = format!("pubn {} {} {}\n", TOPICS[usize::from(topic)], list.len(), body.len());
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(&body);
            self.asked.push_back(Asked { owed: list, silent: self.login.quiet });
            return 1;
        }
        for owed in &list {
            let tag = send(history, owed.message, owed.topic, owed.priority, owed.size, None);
            out.extend_from_slice(format!("pub {} ", TOPICS[usize::from(owed.topic)]).as_bytes());
            out.extend_from_slice(&history.sent[tag as usize].payload);
            out.push(b'\n');
            self.asked.push_back(Asked { owed: vec![*owed], silent: self.login.quiet });
        }
        list.len() as u32
    }

    fn again(&mut self, out: &mut Vec<u8>, history: &mut History) -> u32 {
        let owed = self.owed.swap_remove(0);
        self.publish(vec![owed], false, out, history)
    }
}

impl Guest for Publisher {
    fn connected(&mut self) {
        self.lines.clear();
        self.login.again();
        self.doubt = false;
    }

    fn disconnected(&mut self) {
        let unknown = self.asked.drain(..).flat_map(|asked| asked.owed);
        self.owed.extend(unknown);
    }

    fn receive(&mut self, bytes: &[u8]) -> bool {
        self.lines.push(bytes);
        while let Some(line) = self.lines.next() {
            let line = String::from_utf8_lossy(line);
            match word(&line).0 {
                "ok" | "event" => self.answered(),
                "err" if self.asked.front().is_some_and(|asked| asked.silent) && !is_nonsense(&line) => {
                    self.doubt = true;
                }
                "err" => {
                    // Refused: nothing was stored, so it is to be published still.
                    let refused = self.asked.iter().position(|asked| !asked.silent);
                    let owed = refused.map(|at| std::mem::take(&mut self.asked[at].owed));
                    self.answered();
                    self.owed.extend(owed.into_iter().flatten());
                }
                "bye" => return false,
                _ => {}
            }
        }
        true
    }

    fn act(&mut self, how: u32, out: &mut Vec<u8>, history: &mut History) -> u32 {
        if self.asked.len() >= IN_FLIGHT {
            return if self.asked.back().is_some_and(|asked| asked.silent) { self.knock(out) } else { 0 };
        }
        if !self.login.forgets(how)
            && let Some(hello) = self.login.hello(how)
        {
            out.extend_from_slice(hello.as_bytes());
            self.asked.push_back(Asked::default());
            return 1;
        }
        if !self.owed.is_empty() && how % 4 < 3 {
            return self.again(out, history);
        }
        let topic = (how >> 4) as usize % TOPICS.len();
        let other = (how >> 8) % 40;
        if other < 4 {
            // In quiet mode nobody could tell whose error it is.
            let other = if self.login.quiet && other < 2 { 2 } else { other };
            let line = match other {
                0 => format!("kick {}\n", TOPICS[topic]).into_bytes(),
                1 => format!("peek {} last\n", TOPICS[topic]).into_bytes(),
                2 => b"stats\n".to_vec(),
                _ => NONSENSE[(how >> 16) as usize % NONSENSE.len()].to_vec(),
            };
            out.extend_from_slice(&line);
            self.asked.push_back(Asked::default());
            return 1;
        }
        let count = if how & 1 == 0 { 1 } else { 1 + (how >> 16) % 4 };
        let mut bits = how;
        let mut list = Vec::new();
        for _ in 0..count {
            bits = bits.wrapping_mul(0x9e37_79b1).rotate_left(7);
            let size =
                if bits.is_multiple_of(8) { 300 + bits as usize / 8 % 900 } else { bits as usize / 8 % 60 };
            let priority = if bits & 0x300 == 0 { i64::from(bits >> 12 & 3) - 1 } else { 0 };
            list.push(Owed { message: history.new_message(), topic: topic as Topic, priority, size });
        }
        self.publish(list, how & 2 != 0, out, history)
    }

    fn wind_down(&mut self, out: &mut Vec<u8>, history: &mut History) -> u32 {
        if self.asked.back().is_some_and(|asked| asked.silent)
            && (self.owed.is_empty() || self.asked.len() >= IN_FLIGHT)
        {
            return self.knock(out);
        }
        if self.owed.is_empty() || self.asked.len() >= IN_FLIGHT {
            return 0;
        }
        if let Some(hello) = self.login.hello(1) {
            out.extend_from_slice(hello.as_bytes());
            self.asked.push_back(Asked::default());
            return 1;
        }
        self.again(out, history)
    }

    fn is_at_rest(&self) -> bool {
        self.owed.is_empty() && self.asked.is_empty()
    }

    fn kill(&mut self) {
        if !self.outbox {
            self.owed.clear();
            self.asked.clear();
        }
    }
}

/// The answer to one of [`NONSENSE`].
fn is_nonsense(line: &str) -> bool {
    line.starts_with("err bad-") || line.starts_with("err not-utf8")
}
