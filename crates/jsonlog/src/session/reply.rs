//! Replies in the order of the commands, each sent when what it says is durable.

use super::Session;
use super::deliver::push_payload;
use crate::protocol::Code;
use postroad_engine::log::{Signal, Ticket};
use postroad_engine::{Later, Receipt, Stream};
use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::Arc;

#[derive(Debug)]
enum Reply {
    /// A line that waits for nothing but its turn.
    Text(String),
    /// `ok N` for each of `first..=last`.
    Stored { first: u64, last: u64, ticket: Ticket },
    /// A line that is true when the ticket is committed.
    At { line: String, ticket: Ticket, opens: Option<u32> },
    /// `ok` this many times, when the ticket is committed.
    Acked { count: u32, ticket: Ticket },
    /// An event, looked up when the ticket is committed.
    Peek { stream: Arc<Stream>, seq: u64, ticket: Ticket },
    /// A line that is true when several steps are done.
    Later { line: String, later: Arc<Later> },
}

/// The queue of replies.
#[derive(Debug, Default)]
pub(super) struct Replies {
    queue: VecDeque<Reply>,
    waiting: usize,
}

impl Replies {
    /// Commands that wait for their reply.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn forget(&mut self) {
        self.queue.clear();
        self.waiting = 0;
    }

    pub(super) fn text(&mut self, line: impl Into<String>) {
        self.waiting += 1;
        self.queue.push_back(Reply::Text(line.into()));
    }

    pub(super) fn error(&mut self, code: Code, text: &str) {
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.text(format!("err {} {text}", code.as_str()));
    }

    /// `ok N` for each of `first..=last`.
    pub(super) fn stored(&mut self, first: u64, last: u64, ticket: Ticket) {
        self.waiting += (last - first + 1) as usize;
        if let Some(Reply::Stored { last: end, ticket: same, .. }) = self.queue.back_mut()
            && *end + 1 == first
            && *same == ticket
        {
            *end = last;
            return;
        }
        self.queue.push_back(Reply::Stored { first, last, ticket });
    }

    pub(super) fn peek(&mut self, stream: Arc<Stream>, seq: u64, ticket: Ticket) {
        self.waiting += 1;
        self.queue.push_back(Reply::Peek { stream, seq, ticket });
    }

    pub(super) fn acked(&mut self, ticket: Ticket) {
        self.waiting += 1;
        if let Some(Reply::Acked { count, ticket: same }) = self.queue.back_mut()
            && *same == ticket
        {
            *count += 1;
            return;
        }
        self.queue.push_back(Reply::Acked { count: 1, ticket });
    }

    /// No reply, but those that come after wait for this commit too: in quiet mode the next `ok` covers what was before.
    pub(super) fn silent(&mut self, ticket: Ticket) {
        let same = matches!(self.queue.back(), Some(Reply::Acked { ticket: last, .. }) if *last == ticket);
        if !same {
            self.queue.push_back(Reply::Acked { count: 0, ticket });
        }
    }

    pub(super) fn at(&mut self, line: impl Into<String>, ticket: Ticket, opens: Option<u32>) {
        self.waiting += 1;
        self.queue.push_back(Reply::At { line: line.into(), ticket, opens });
    }

    pub(super) fn receipt(&mut self, line: impl Into<String>, receipt: Receipt) {
        match receipt {
            Receipt::At(ticket) => self.at(line, ticket, None),
            Receipt::Later(later) => {
                self.waiting += 1;
                self.queue.push_back(Reply::Later { line: line.into(), later });
            }
        }
    }
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

impl Session {
    /// Writes the replies whose time has come.
    pub(super) fn emit_replies(&mut self, out: &mut Vec<u8>, limit: usize) {
        let mut committed = self.engine.committed();
        while out.len() < limit {
            let Some(reply) = self.replies.queue.front_mut() else { return };
            let ticket = match reply {
                Reply::Text(_) => Ticket(0),
                Reply::Stored { ticket, .. }
                | Reply::At { ticket, .. }
                | Reply::Peek { ticket, .. }
                | Reply::Acked { ticket, .. } => *ticket,
                Reply::Later { line, later } => match later.poll(&self.signal) {
                    None => return,
                    // The disk failed: what became of the command is unknown, and `bye` says it.
                    Some(Err(_)) if self.engine.failure().is_some() => return,
                    Some(Err(error)) => {
                        let text = format!("err {} {error}", Code::of(&error).as_str());
                        *reply = Reply::Text(text);
                        continue;
                    }
                    Some(Ok(ticket)) => {
                        *reply = Reply::At { line: std::mem::take(line), ticket, opens: None };
                        continue;
                    }
                },
            };
            if ticket > committed {
                committed = self.engine.committed();
                if ticket > committed {
                    if ticket > self.registered {
                        self.registered = ticket;
                        let signal: &Arc<dyn Signal> = &self.signal;
                        self.engine.notify(ticket, signal);
                    }
                    return;
                }
            }
            let done = match reply {
                Reply::Text(line) => {
                    out.extend_from_slice(line.as_bytes());
                    out.push(b'\n');
                    1
                }
                Reply::Peek { stream, seq, .. } => {
                    push_peek(out, stream, *seq);
                    1
                }
                Reply::At { line, opens, .. } => {
                    out.extend_from_slice(line.as_bytes());
                    out.push(b'\n');
                    if let Some(opens) = *opens
                        && let Some(attachment) = self.attachments.iter_mut().find(|a| a.number == opens)
                    {
                        attachment.open = true;
                    }
                    1
                }
                Reply::Acked { count, .. } => {
                    for _ in 0..*count {
                        out.extend_from_slice(b"ok\n");
                    }
                    *count as usize
                }
                Reply::Stored { first, last, .. } => {
                    let from = *first;
                    while *first <= *last && out.len() < limit {
                        out.extend_from_slice(b"ok ");
                        push_number(out, *first);
                        out.push(b'\n');
                        *first += 1;
                    }
                    if *first <= *last {
                        self.replies.waiting -= (*first - from) as usize;
                        return;
                    }
                    (*first - from) as usize
                }
                // Became one of the others above.
                Reply::Later { .. } => return,
            };
            self.replies.waiting -= done;
            self.replies.queue.pop_front();
        }
    }
}

/// The answer to `peek`.
fn push_peek(out: &mut Vec<u8>, stream: &Stream, seq: u64) {
    match stream.read(seq) {
        Ok(Some(event)) => {
            push_event_head(out, stream.topic().as_str(), event.seq, 0);
            push_payload(out, stream.topic().is_dead_letter(), &event);
        }
        Ok(None) => {
            out.extend_from_slice(
                b"err not-found there is no such event: see stats TOPIC for first and last",
            );
        }
        Err(error) => {
            let _ = write!(out, "err {} {error}", Code::of(&error).as_str());
        }
    }
    out.push(b'\n');
}

/// `event TOPIC SEQ ATTEMPT `.
pub(super) fn push_event_head(out: &mut Vec<u8>, topic: &str, seq: u64, attempt: u32) {
    out.extend_from_slice(b"event ");
    out.extend_from_slice(topic.as_bytes());
    out.push(b' ');
    push_number(out, seq);
    out.push(b' ');
    let _ = write!(out, "{attempt} ");
}
