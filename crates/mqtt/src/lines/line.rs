//! One connection of the line dialect: lines in, answers in order out.

use super::consumer::{Consumer, Login};
use super::text::{self, Command};
use super::{DoorId, Doors, Role};
use crate::access::Identity;
use crate::broker::{ListenerConfig, Outbox, Peer, Refused};
use bytes::{Bytes, BytesMut};
use postroad_core::mailbox::Millis;
use postroad_engine::log::{LogError, Ticket};
use std::collections::VecDeque;
use std::sync::Arc;

/// A connection that speaks lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LineId {
    index: u32,
    // Places are used again, this is not.
    generation: u32,
}

impl LineId {
    pub(super) fn index(self) -> usize {
        self.index as usize
    }
}

#[derive(Debug)]
pub(super) enum Stage {
    Login(Login),
    Consumer(Consumer),
    Publisher(Identity),
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) id: LineId,
    pub(super) stage: Stage,
    pub(super) rules: Arc<ListenerConfig>,
    pub(super) peer: Peer,
    pub(super) out: Outbox,
    /// Answers that wait for a commit, and what must not overtake them.
    replies: VecDeque<(Ticket, Bytes)>,
    /// When the last line came.
    pub(super) heard: Millis,
    pub(super) touched: bool,
    // It was told not to send, by not being read.
    held: bool,
    closing: bool,
}

impl Doors {
    pub(super) fn greet(
        &mut self,
        role: Role,
        rules: &Arc<ListenerConfig>,
        peer: Peer,
        now: Millis,
    ) -> Result<LineId, Refused> {
        if self.draining {
            return Err(Refused);
        }
        let who = self.broker.door_identity(super::publisher::CLIENT, rules, &peer);
        let stage = match (role, who) {
            (_, Err(_)) => return Err(Refused),
            (Role::Consumers, Ok(_)) => Stage::Login(Login::default()),
            (Role::Publishers, Ok(who)) => Stage::Publisher(who),
        };
        let entry = self.lines.vacant_entry();
        let id = LineId { index: entry.key() as u32, generation: self.next_generation };
        self.next_generation = self.next_generation.wrapping_add(1);
        entry.insert(Line {
            id,
            stage,
            rules: rules.clone(),
            peer,
            out: Outbox::default(),
            replies: VecDeque::new(),
            heard: now,
            touched: false,
            held: false,
            closing: false,
        });
        if role == Role::Consumers {
            self.prompt(id, now);
        }
        Ok(id)
    }

    pub(super) fn read_lines(&mut self, id: LineId, buf: &mut BytesMut, now: Millis) {
        let max = self.config.max_line;
        while let Some(line) = self.line_mut(id).filter(|line| !line.closing) {
            line.heard = now;
            let (taken, end) = match memchr::memchr(b'\n', buf) {
                Some(at) => (at + 1, at),
                // One more may be the carriage return of a line that is not too long.
                None if buf.len() > max + 1 => (buf.len(), buf.len()),
                None => return,
            };
            let bytes = buf.split_to(taken);
            let text = bytes.get(..end).unwrap_or_default();
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            if text.len() > max {
                self.end(id, "the line is too long", now);
            } else {
                self.one_line(id, text, now);
            }
        }
        buf.clear();
    }

    fn one_line(&mut self, id: LineId, line: &[u8], now: Millis) {
        match self.line(id).map(|line| &line.stage) {
            Some(Stage::Login(_)) => self.log_in(id, line, now),
            Some(Stage::Consumer(_)) => match text::parse(line) {
                Ok(Command::Sub { topic }) => self.sub(id, &topic, now),
                Ok(Command::Unsub { topic }) => self.unsub(id, &topic, now),
                Ok(Command::Pubrec { id: name, topic }) => self.pubrec(id, name, &topic, now),
                Ok(Command::Pubcomp { id: name, topic }) => self.pubcomp(id, name, &topic, now),
                Ok(Command::Pub { .. } | Command::Pubrel { .. }) => self.bad(id, line, text::Bad::Shape, now),
                Err(bad) => self.bad(id, line, bad, now),
            },
            Some(Stage::Publisher(_)) => match text::parse(line) {
                Ok(Command::Pub { topic, msg }) => self.hold(id, &topic, msg, now),
                Ok(Command::Pubrel { id: name }) => self.pubrel(id, name, now),
                Ok(_) => self.bad(id, line, text::Bad::Shape, now),
                Err(bad) => self.bad(id, line, bad, now),
            },
            None => {}
        }
    }

    /// A line that is no command: it is a dead letter, and the answer says so once that is committed.
    fn bad(&mut self, id: LineId, line: &[u8], bad: text::Bad, now: Millis) {
        let user = match self.line(id).map(|line| &line.stage) {
            Some(Stage::Consumer(consumer)) => Some(consumer.name.clone()),
            _ => None,
        };
        let ticket = self.bury_line(user.as_deref(), line, bad.text(), now);
        self.say(id, ticket, bad.text());
    }

    /// Sends a line when `ticket` is committed, after all that was said before.
    pub(super) fn say(&mut self, id: LineId, ticket: Ticket, text: &str) {
        let ticket = if self.config.planted.reply_before_commit { Ticket(0) } else { ticket };
        let now = self.broker.is_committed(ticket);
        let Some(line) = self.line_mut(id) else { return };
        if now && line.replies.is_empty() {
            line.write(text.as_bytes());
            self.touch_line(id);
            return;
        }
        if line.replies.is_empty() {
            self.waiting.push(id);
        }
        if let Some(line) = self.line_mut(id) {
            line.replies.push_back((ticket, Bytes::copy_from_slice(text.as_bytes())));
        }
    }

    pub(super) fn say_error(&mut self, id: LineId, text: &str) {
        self.say(id, Ticket(0), &text::error(text));
    }

    /// Says why, and closes when all is said.
    pub(super) fn end(&mut self, id: LineId, why: &str, now: Millis) {
        if self.line(id).is_none_or(|line| line.closing) {
            return;
        }
        self.say_error(id, why);
        self.leave(id, now);
        if let Some(line) = self.line_mut(id) {
            line.closing = true;
            if line.replies.is_empty() {
                line.out.close();
            }
        }
        self.touch_line(id);
    }

    /// What is committed is said.
    pub(super) fn flush_replies(&mut self, id: LineId) {
        let Some(line) = self.lines.get_mut(id.index()).filter(|line| line.id == id) else { return };
        while let Some((ticket, _)) = line.replies.front()
            && self.broker.is_committed(*ticket)
        {
            if let Some((_, text)) = line.replies.pop_front() {
                line.write(&text);
            }
        }
        if !line.replies.is_empty() {
            self.waiting.push(id);
        } else if line.closing {
            line.out.close();
        }
        self.touch_line(id);
    }

    pub(super) fn wants_lines(&mut self, id: LineId) -> bool {
        let busy = self.broker.door_admit().is_err_and(|error| matches!(error, LogError::Busy));
        let (max_replies, max_output) = (self.config.max_replies, self.config.max_output);
        let Some(line) = self.line_mut(id) else { return false };
        let slow = line.replies.len() > max_replies || line.out.len() > max_output || busy;
        if slow && !std::mem::replace(&mut line.held, true) {
            self.held_back.push(id);
        }
        !slow
    }

    /// A line that was held back may be read again.
    pub(super) fn release_line(&mut self, id: LineId) {
        if self.line_mut(id).is_some_and(|line| std::mem::take(&mut line.held)) {
            self.touch_line(id);
        }
    }

    fn touch_line(&mut self, id: LineId) {
        if let Some(line) = self.line_mut(id)
            && !std::mem::replace(&mut line.touched, true)
        {
            self.touched.push(DoorId::Line(id));
        }
    }

    /// The transport is gone.
    pub(super) fn forget(&mut self, id: LineId, now: Millis) {
        self.leave(id, now);
        if self.line(id).is_some() {
            self.lines.remove(id.index());
        }
    }
}

impl Line {
    fn write(&mut self, text: &[u8]) {
        self.out.write(|out| {
            out.extend_from_slice(text);
            out.extend_from_slice(b"\r\n");
        });
    }
}
