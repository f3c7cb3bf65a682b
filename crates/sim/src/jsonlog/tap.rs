//! A tap on the bytes of one connection, at the broker's end: from lines to facts, and whether each reply fits its command.

use super::lines::{Lines, word};
use super::{SPECS, TOPICS, tag_of};
use crate::history::{Conn, Fact, History, Settle, Spec, Tag, Topic, Verdict};
use std::collections::VecDeque;

/// A command that waits for its reply.
#[derive(Debug)]
enum Asked {
    Publish(Tag),
    Bulk(Vec<Tag>),
    Subscribe(Spec),
    Settle(Settle, u64),
    /// `ok` and something, or `err`.
    Any,
    /// No command, or one that must be refused.
    Nonsense,
    Peek,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tap {
    conn: Conn,
    input: Lines,
    output: Lines,
    asked: VecDeque<Asked>,
    // Lines of a `pubn` body that are to come.
    body: u64,
    bulk: Vec<Tag>,
    greeted: bool,
    ended: bool,
}

impl Tap {
    pub(super) fn new(conn: Conn) -> Self {
        Self {
            conn,
            input: Lines::default(),
            output: Lines::default(),
            asked: VecDeque::new(),
            body: 0,
            bulk: Vec::new(),
            greeted: false,
            ended: false,
        }
    }

    /// Bytes that the broker is about to get.
    pub(super) fn input(&mut self, bytes: &[u8], history: &mut History) {
        self.input.push(bytes);
        let mut lines = std::mem::take(&mut self.input);
        while let Some(line) = lines.next() {
            let line = String::from_utf8_lossy(line);
            self.command(&line, history);
        }
        self.input = lines;
    }

    fn command(&mut self, line: &str, history: &mut History) {
        if self.body > 0 {
            self.body -= 1;
            self.bulk.extend(tag_of(line.as_bytes()));
            if self.body == 0 {
                // The command is whole now, and nothing of it was done before.
                let tags = std::mem::take(&mut self.bulk);
                for tag in &tags {
                    history.note(Fact::Publish(*tag));
                }
                self.asked.push_back(Asked::Bulk(tags));
            }
            return;
        }
        let (verb, rest) = word(line);
        let (topic, rest) = word(rest);
        let place = TOPICS.iter().position(|name| *name == topic).unwrap_or(0) as Topic;
        match verb {
            "pub" => {
                if let Some(tag) = tag_of(rest.as_bytes()) {
                    history.note(Fact::Publish(tag));
                    self.asked.push_back(Asked::Publish(tag));
                } else {
                    self.asked.push_back(Asked::Nonsense);
                }
            }
            "stats" => self.asked.push_back(Asked::Any),
            "pubn" => self.body = word(rest).0.parse().unwrap_or(0),
            "sub" => {
                let spec = spec_of(topic, rest);
                self.asked.push_back(spec.map_or(Asked::Any, Asked::Subscribe));
            }
            "unsub" => {
                history.note(Fact::Detached(self.conn));
                if rest.ends_with("forget")
                    && let Some(spec) = spec_of(topic, rest)
                {
                    history.note(Fact::Forget(spec));
                }
                self.asked.push_back(Asked::Any);
            }
            "kick" => {
                history.note(Fact::Kick(place));
                self.asked.push_back(Asked::Any);
            }
            "peek" => self.asked.push_back(Asked::Peek),
            "ack" | "nack" | "bury" | "touch" => {
                let (target, rest) = word(rest);
                if target.is_empty() {
                    self.asked.push_back(Asked::Nonsense);
                    return;
                }
                let (first, last) = target.split_once('-').unwrap_or((target, target));
                let number = |text: &str| text.trim_start_matches('@').parse().unwrap_or(0);
                let delay = || rest.strip_prefix("delay=")?.strip_suffix("ms")?.parse().ok();
                let verdict = match verb {
                    "ack" => Verdict::Ack,
                    "nack" => Verdict::Nack(delay()),
                    "bury" => Verdict::Bury,
                    _ => Verdict::Touch,
                };
                let settle = Settle { verdict, topic: place, first: number(first), last: number(last) };
                history.note(Fact::Verdict(self.conn, settle));
                self.asked.push_back(Asked::Settle(settle, history.now));
            }
            "" => {}
            _ => self.asked.push_back(Asked::Nonsense),
        }
    }

    /// Bytes that the broker wrote.
    pub(super) fn output(&mut self, bytes: &[u8], history: &mut History) {
        self.output.push(bytes);
        let mut lines = std::mem::take(&mut self.output);
        while let Some(line) = lines.next() {
            let line = String::from_utf8_lossy(line);
            if let Err(why) = self.reply(&line, history) {
                history.note(Fact::Wrong(format!("connection {}: {why}: {line}", self.conn)));
            }
        }
        self.output = lines;
    }

    fn reply(&mut self, line: &str, history: &mut History) -> Result<(), String> {
        if self.ended {
            return Err("a line after bye".into());
        }
        let (verb, rest) = word(line);
        if !self.greeted {
            self.greeted = true;
            return if verb == "hello" { Ok(()) } else { Err("no greeting".into()) };
        }
        match verb {
            "ok" => {
                let asked = self.asked.pop_front().ok_or("a reply to nothing")?;
                self.confirmed(asked, rest, history)
            }
            "err" => {
                let asked = self.asked.pop_front().ok_or("a reply to nothing")?;
                let code = word(rest).0;
                let malformed =
                    matches!(code, "bad-command" | "bad-args" | "bad-topic" | "bad-event" | "not-utf8");
                if malformed != matches!(asked, Asked::Nonsense) {
                    return Err(format!("the reply to {asked:?}"));
                }
                if matches!(code, "internal" | "corrupt") {
                    history.note(Fact::Internal(format!("connection {}: {line}", self.conn)));
                }
                match asked {
                    Asked::Publish(tag) => history.note(Fact::Refused(tag)),
                    Asked::Bulk(tags) => tags.into_iter().for_each(|tag| history.note(Fact::Refused(tag))),
                    _ => {}
                }
                Ok(())
            }
            "event" => self.event(rest, history),
            "note" => {
                if word(rest).0 == "corrupt" {
                    history.note(Fact::Internal(format!("connection {}: {line}", self.conn)));
                }
                Ok(())
            }
            "bye" => {
                // The session has given back what it held, whether the line arrives or not.
                history.note(Fact::Gone(self.conn));
                self.ended = true;
                Ok(())
            }
            _ => Err("not a line of the protocol".into()),
        }
    }

    fn confirmed(&mut self, asked: Asked, rest: &str, history: &mut History) -> Result<(), String> {
        match asked {
            Asked::Publish(tag) => {
                let (number, flag) = word(rest);
                let seq = number.parse().map_err(|_| "a number was expected")?;
                history.note(Fact::Stored { tag, seq, duplicate: flag == "duplicate" });
            }
            Asked::Bulk(tags) => {
                let (range, flags) = word(rest);
                let (first, last) = range.split_once('-').ok_or("a range was expected")?;
                let first: u64 = first.parse().map_err(|_| "a number was expected")?;
                let last: u64 = last.parse().map_err(|_| "a number was expected")?;
                if flags.is_empty() {
                    if last + 1 - first != tags.len() as u64 {
                        return Err(format!("{} events were sent", tags.len()));
                    }
                    for (seq, tag) in (first..).zip(tags) {
                        history.note(Fact::Stored { tag, seq, duplicate: false });
                    }
                }
            }
            Asked::Subscribe(spec) => history.note(Fact::Attached(self.conn, spec)),
            Asked::Settle(settle, asked) => history.note(Fact::Settled { conn: self.conn, settle, asked }),
            Asked::Any => {}
            Asked::Nonsense => return Err("an error was expected".into()),
            Asked::Peek => return Err("an event was expected".into()),
        }
        Ok(())
    }

    fn event(&mut self, rest: &str, history: &mut History) -> Result<(), String> {
        let (name, rest) = word(rest);
        let (seq, rest) = word(rest);
        let (attempt, json) = word(rest);
        let topic = TOPICS.iter().position(|topic| *topic == name).ok_or("no such topic")? as Topic;
        let tag = tag_of(json.as_bytes()).ok_or("nobody published that")?;
        let same = history.sent.get(tag as usize).is_some_and(|sent| sent.payload == json.as_bytes());
        if !same {
            return Err("not the bytes that were published".into());
        }
        let seq = seq.parse().map_err(|_| "a number was expected")?;
        let attempt: u32 = attempt.parse().map_err(|_| "a number was expected")?;
        if attempt == 0 {
            let asked = self.asked.pop_front();
            return if matches!(asked, Some(Asked::Peek)) { Ok(()) } else { Err("nobody peeked".into()) };
        }
        history.note(Fact::Delivered { conn: self.conn, topic, seq, attempt, tag });
        Ok(())
    }
}

/// The subscription of a filter and what follows it.
fn spec_of(filter: &str, rest: &str) -> Option<Spec> {
    let name = rest.strip_prefix("as ").map(|rest| word(rest).0);
    SPECS.iter().position(|spec| spec.filter == filter && spec.name == name).map(|at| at as Spec)
}
