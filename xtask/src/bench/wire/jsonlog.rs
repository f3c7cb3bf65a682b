//! The JSON-log protocol: `pub`, `pubn`, and a subscriber that acks by range.

use super::{Wire, line, number, text};
use crate::bench::event::{self, EVENT};
use crate::bench::loader::{Driver, Tally};
use anyhow::{Context, Result, bail, ensure};
use std::collections::VecDeque;
use std::io::Write;

/// The topic of every event here.
pub(crate) const TOPIC: &str = "bench";

pub(crate) struct Pub {
    request: Vec<u8>,
    body_at: usize,
}

impl Pub {
    pub(crate) fn new() -> Self {
        let mut request = format!("pub {TOPIC} ").into_bytes();
        let body_at = request.len();
        request.extend_from_slice(&event::template());
        request.push(b'\n');
        Self { request, body_at }
    }
}

impl Wire for Pub {
    fn request(&mut self, out: &mut Vec<u8>, id: u64, now: u64) {
        event::stamp(&mut self.request[self.body_at..], id, now);
        out.extend_from_slice(&self.request);
    }

    fn answer(&mut self, input: &[u8]) -> Result<Option<usize>> {
        let Some((answer, length)) = line(input, b"\n") else { return Ok(None) };
        ok(answer)?;
        Ok(Some(length))
    }
}

/// `pubn` with `count` events at a time.
pub(crate) struct Pubn {
    request: Vec<u8>,
    body_at: usize,
    count: u64,
    stamped: bool,
}

impl Pubn {
    /// Events of the usual size, each with its own id.
    pub(crate) fn new(count: u64) -> Self {
        let mut lines = Vec::new();
        for _ in 0..count {
            lines.extend_from_slice(&event::template());
            lines.push(b'\n');
        }
        Self { stamped: true, ..Self::of(&lines, count) }
    }

    /// These lines, over and over.
    pub(crate) fn of(lines: &[u8], count: u64) -> Self {
        let mut request = format!("pubn {TOPIC} {count} {}\n", lines.len()).into_bytes();
        let body_at = request.len();
        request.extend_from_slice(lines);
        Self { request, body_at, count, stamped: false }
    }
}

impl Wire for Pubn {
    fn events(&self) -> u64 {
        self.count
    }

    fn request(&mut self, out: &mut Vec<u8>, id: u64, now: u64) {
        if self.stamped {
            for (event, id) in self.request[self.body_at..].chunks_exact_mut(EVENT + 1).zip(id..) {
                event::stamp(event, id, now);
            }
        }
        out.extend_from_slice(&self.request);
    }

    fn answer(&mut self, input: &[u8]) -> Result<Option<usize>> {
        let Some((answer, length)) = line(input, b"\n") else { return Ok(None) };
        ok(answer)?;
        let range = &answer[b"ok ".len()..];
        let (first, digits) = number(range).with_context(|| format!("`{}`", text(answer)))?;
        let last = range.get(digits + 1..).and_then(number).with_context(|| format!("`{}`", text(answer)))?.0;
        ensure!(last + 1 - first == self.count, "pubn of {} was answered `{}`", self.count, text(answer));
        Ok(Some(length))
    }
}

fn ok(answer: &[u8]) -> Result<()> {
    if !answer.starts_with(b"ok ") {
        bail!("postroad answered a publish with `{}`", text(answer));
    }
    Ok(())
}

/// Takes the greeting; then says nothing.
pub(crate) struct Greeted {
    done: bool,
}

impl Greeted {
    pub(crate) fn new() -> Self {
        Self { done: false }
    }
}

impl Driver for Greeted {
    fn fill(&mut self, _: &mut Vec<u8>, _: &mut Tally) {}

    fn take(&mut self, input: &[u8], tally: &mut Tally) -> Result<usize> {
        let Some((greeting, length)) = line(input, b"\n") else { return Ok(0) };
        ensure!(!self.done && greeting.starts_with(b"hello "), "instead of a greeting: `{}`", text(greeting));
        self.done = true;
        tally.greeted += 1;
        Ok(length)
    }
}

/// A subscriber, already subscribed. It acks what a read brought by its range of numbers, and
/// insists on every event, once, in order.
pub(crate) struct Subscriber {
    next: u64,
    acked_to: u64,
    /// How many events each ack on its way settles.
    acks: VecDeque<u64>,
    prefix: Vec<u8>,
}

impl Subscriber {
    pub(crate) fn new() -> Self {
        Self { next: 1, acked_to: 0, acks: VecDeque::new(), prefix: format!("event {TOPIC} ").into_bytes() }
    }

    /// An event at the front of `input`: its length, `None` if it is not all there.
    fn event(&mut self, input: &[u8], tally: &mut Tally) -> Result<Option<usize>> {
        // `event bench SEQ ATTEMPT ` and the body, whose length is known: no search for the line's end.
        const HEAD: usize = 64;
        let head = &input[..input.len().min(HEAD)];
        if head[self.prefix.len()..].iter().filter(|byte| **byte == b' ').nth(1).is_none() {
            return Ok(None);
        }
        let mut at = self.prefix.len();
        let (seq, digits) = number(&head[at..]).context("an event without a number")?;
        at += digits + 1;
        let (attempt, digits) = number(&head[at..]).context("an event without an attempt")?;
        at += digits + 1;
        let Some(body) = input.get(at..=at + EVENT) else { return Ok(None) };
        let sent = event::sent(&body[..EVENT]).filter(|_| body[EVENT] == b'\n');
        let sent = sent.with_context(|| format!("not as published: `{}`", text(input)))?;
        ensure!(seq == self.next, "event {seq} came where {} was due", self.next);
        ensure!(attempt == 1, "event {seq} came with attempt {attempt}");
        self.next += 1;
        tally.delivered += 1;
        tally.delivery.record(tally.now.saturating_sub(sent))?;
        Ok(Some(at + EVENT + 1))
    }
}

impl Driver for Subscriber {
    fn fill(&mut self, out: &mut Vec<u8>, _: &mut Tally) {
        let last = self.next - 1;
        if last == self.acked_to {
            return;
        }
        let first = self.acked_to + 1;
        // Writing to a Vec cannot fail.
        let _ = writeln!(out, "ack {TOPIC} @{first}-@{last}");
        self.acks.push_back(last - self.acked_to);
        self.acked_to = last;
    }

    fn take(&mut self, input: &[u8], tally: &mut Tally) -> Result<usize> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            if rest.starts_with(&self.prefix) {
                match self.event(rest, tally)? {
                    Some(length) => used += length,
                    None => return Ok(used),
                }
                continue;
            }
            if rest.len() < self.prefix.len() && self.prefix.starts_with(rest) {
                return Ok(used);
            }
            let Some((answer, length)) = line(rest, b"\n") else { return Ok(used) };
            ensure!(answer == b"ok", "postroad answered an ack with `{}`", text(answer));
            tally.acked += self.acks.pop_front().context("an ok for nothing")?;
            used += length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Pubn, Subscriber};
    use crate::bench::event;
    use crate::bench::loader::{Driver, Loader};
    use crate::bench::wire::Wire;

    fn event(seq: u64, attempt: u64) -> Vec<u8> {
        let mut line = format!("event bench {seq} {attempt} ").into_bytes();
        line.extend_from_slice(&event::template());
        line.push(b'\n');
        line
    }

    #[test]
    fn a_subscriber_takes_events_cut_anywhere_and_acks_their_range() {
        let stream = [event(1, 1), event(2, 1), b"ok\n".to_vec()].concat();
        for cut in 0..=stream.len() {
            let mut loader = Loader::new().unwrap();
            let mut subscriber = Subscriber::new();
            let mut sent = Vec::new();
            // The ack of an event that came before, whose `ok` is the last line.
            subscriber.acks.push_back(7);
            let used = subscriber.take(&stream[..cut], &mut loader.tally).unwrap();
            let used = used + subscriber.take(&stream[used..], &mut loader.tally).unwrap();
            assert_eq!(used, stream.len(), "cut at {cut}");
            subscriber.fill(&mut sent, &mut loader.tally);
            assert_eq!(sent, b"ack bench @1-@2\n");
            assert_eq!((loader.tally.delivered, loader.tally.acked), (2, 7));
        }
    }

    #[test]
    fn what_was_not_to_come_is_an_error() {
        for wrong in [event(2, 1), event(1, 2), b"err not-in-flight x\n".to_vec(), b"ok\n".to_vec()] {
            let mut loader = Loader::new().unwrap();
            assert!(Subscriber::new().take(&wrong, &mut loader.tally).is_err());
        }
        let mut pubn = Pubn::new(4);
        assert_eq!(pubn.answer(b"ok 5-8\n").unwrap(), Some(7));
        assert_eq!(pubn.answer(b"ok 5-").unwrap(), None);
        assert!(pubn.answer(b"ok 5-9\n").is_err());
        assert!(pubn.answer(b"err busy later\n").is_err());
    }
}
