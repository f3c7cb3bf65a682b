//! A tap on the bytes of one connection, at the broker's end: from lines to facts, and whether each reply fits its command.

use super::lines::{Lines, word};
use super::login::TOKEN;
use super::{SPECS, TOPICS, id_of, tag_of};
use crate::history::{Conn, Fact, History, Settle, Spec, Tag, Topic, Verdict};
use crate::plan::{Climate, Lag};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    /// Not from who has not logged in, or with a wrong token.
    Denied,
    /// Nothing is said of it if it goes well.
    Silent(Box<Self>),
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
    // Whoever has not logged in has no command but `hello`.
    authorized: bool,
    token: bool,
    quiet: bool,
    lag: Option<Lag>,
    // One of those that nothing is said of was refused; nobody knows which.
    doubt: bool,
    // The numbers that were delivered under an id.
    ids: BTreeMap<(Topic, u32), BTreeSet<u64>>,
    greeted: bool,
    ended: bool,
}

impl Tap {
    pub(super) fn new(conn: Conn, climate: &Climate) -> Self {
        Self {
            conn,
            input: Lines::default(),
            output: Lines::default(),
            asked: VecDeque::new(),
            body: 0,
            bulk: Vec::new(),
            authorized: !climate.token,
            token: climate.token,
            quiet: false,
            lag: climate.lag,
            doubt: false,
            ids: BTreeMap::new(),
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
                if !self.authorized {
                    // It was refused before its body came.
                    return;
                }
                for tag in &tags {
                    history.note(Fact::Publish(*tag));
                }
                self.ask(Asked::Bulk(tags));
            }
            return;
        }
        let (verb, rest) = word(line);
        let (topic, rest) = word(rest);
        let place = TOPICS.iter().position(|name| *name == topic).unwrap_or(0) as Topic;
        if !self.authorized && !matches!(verb, "hello" | "") {
            self.asked.push_back(Asked::Denied);
            if verb == "pubn" {
                self.body = word(rest).0.parse().unwrap_or(0);
            }
            return;
        }
        match verb {
            "hello" => {
                let wrong = topic.contains("token") && !topic.contains(TOKEN);
                let denied = self.token && (wrong || !self.authorized && !topic.contains(TOKEN));
                self.asked.push_back(if denied { Asked::Denied } else { Asked::Any });
                if !denied {
                    self.authorized = true;
                    self.quiet |= topic.contains("quiet");
                }
            }
            "pub" => {
                if let Some(tag) = tag_of(rest.as_bytes()) {
                    history.note(Fact::Publish(tag));
                    self.ask(Asked::Publish(tag));
                } else {
                    self.asked.push_back(Asked::Nonsense);
                }
            }
            "stats" => self.asked.push_back(Asked::Any),
            "pubn" => self.body = word(rest).0.parse().unwrap_or(0),
            "sub" => {
                let spec = spec_of(topic, rest);
                if let Some(spec) = spec {
                    history.note(Fact::Asking(self.conn, spec));
                }
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
                let mut meant: Vec<(u64, u64)> = vec![(number(first), number(last))];
                if let Ok(id) = target.parse::<u32>() {
                    // Of several that have this id it may mean any.
                    let seqs = self.ids.get(&(place, id)).into_iter().flatten();
                    meant = seqs.map(|seq| (*seq, *seq)).collect();
                }
                let settles: Vec<Settle> = meant
                    .iter()
                    .map(|&(first, last)| Settle { verdict, topic: place, first, last })
                    .collect();
                for settle in &settles {
                    history.note(Fact::Verdict(self.conn, *settle));
                }
                let asked = match settles[..] {
                    [settle] => Asked::Settle(settle, history.now),
                    _ => Asked::Any,
                };
                if verb == "ack" { self.ask(asked) } else { self.asked.push_back(asked) }
            }
            "" => {}
            _ => self.asked.push_back(Asked::Nonsense),
        }
    }

    /// A command of which quiet clients hear only what went wrong.
    fn ask(&mut self, asked: Asked) {
        self.asked.push_back(if self.quiet { Asked::Silent(Box::new(asked)) } else { asked });
    }

    /// The command that an `ok` or an event is for; it says that those before it, of which nothing was said, went well.
    fn answered(&mut self, history: &mut History) -> Result<Asked, String> {
        let doubt = std::mem::take(&mut self.doubt);
        loop {
            match self.asked.pop_front().ok_or("a reply to nothing")? {
                Asked::Silent(_) if doubt => {}
                Asked::Silent(asked) => match *asked {
                    Asked::Publish(tag) => history.note(Fact::Kept(tag)),
                    Asked::Bulk(tags) => tags.into_iter().for_each(|tag| history.note(Fact::Kept(tag))),
                    Asked::Settle(settle, asked) => {
                        history.note(Fact::Settled { conn: self.conn, settle, asked });
                    }
                    _ => {}
                },
                asked => return Ok(asked),
            }
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
                let asked = self.answered(history)?;
                self.confirmed(asked, rest, history)
            }
            "err" => {
                let code = word(rest).0;
                let malformed =
                    matches!(code, "bad-command" | "bad-args" | "bad-topic" | "bad-event" | "not-utf8");
                if matches!(self.asked.front(), Some(Asked::Silent(_))) && !malformed {
                    // No client sends what may be refused for such a reason behind them.
                    if matches!(code, "internal" | "corrupt") {
                        history.note(Fact::Internal(format!("connection {}: {line}", self.conn)));
                    }
                    self.doubt = true;
                    return Ok(());
                }
                let asked = self.answered(history)?;
                // Who has not logged in may be told first that it is no command.
                let denied = matches!(asked, Asked::Denied);
                if denied && (code == "auth" || malformed) {
                    return Ok(());
                }
                if denied || code == "auth" || malformed != matches!(asked, Asked::Nonsense) {
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
            "note" => self.noted(rest, history),
            "bye" => {
                // The session has given back what it held, whether the line arrives or not.
                history.note(Fact::Gone(self.conn));
                self.ended = true;
                Ok(())
            }
            _ => Err("not a line of the protocol".into()),
        }
    }

    fn noted(&self, rest: &str, history: &mut History) -> Result<(), String> {
        let (code, rest) = word(rest);
        let (topic, text) = word(rest);
        let lag: Option<u64> = word(text).0.parse().ok();
        match code {
            "corrupt" => {
                let why = format!("connection {}: note corrupt {topic} {text}", self.conn);
                history.note(Fact::Internal(why));
                Ok(())
            }
            "lagging" if self.lag.is_some_and(|limit| !limit.ends && lag > Some(limit.events)) => Ok(()),
            "detached" if self.lag.is_some_and(|limit| limit.ends) => Ok(()),
            "lagged" if text.starts_with("retention removed ") => Ok(()),
            _ => Err("nothing happened that this is the note of".into()),
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
            Asked::Denied => return Err("who says so has not logged in".into()),
            Asked::Silent(_) => return Err("nothing was to be said of it".into()),
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
            let asked = self.answered(history)?;
            return if matches!(asked, Asked::Peek) { Ok(()) } else { Err("nobody peeked".into()) };
        }
        if let Some(id) = id_of(json.as_bytes()) {
            self.ids.entry((topic, id)).or_default().insert(seq);
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
