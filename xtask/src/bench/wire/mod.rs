//! One file a protocol: how a publish is written, how its answer is read.

pub(crate) mod beanstalkd;
pub(crate) mod jsonlog;
pub(crate) mod redis;

use super::loader::{Driver, Tally};
use anyhow::Result;
use std::collections::VecDeque;

/// How to publish.
pub(crate) trait Wire {
    /// Events in one request.
    fn events(&self) -> u64 {
        1
    }
    /// Appends a request whose first event has `id`.
    fn request(&mut self, out: &mut Vec<u8>, id: u64, now: u64);
    /// The length of the answer at the front of `input`, `None` if it is not all there. An answer
    /// that is not success is an error.
    fn answer(&mut self, input: &[u8]) -> Result<Option<usize>>;
}

/// Keeps `window` requests unanswered, for as long as the tally's limit allows.
pub(crate) struct Publisher<W> {
    wire: W,
    window: u64,
    open: u64,
    /// When requests left, and how many at that moment.
    left: VecDeque<(u64, u64)>,
}

impl<W: Wire> Publisher<W> {
    pub(crate) fn new(wire: W, window: u64) -> Self {
        Self { wire, window, open: 0, left: VecDeque::new() }
    }
}

impl<W: Wire> Driver for Publisher<W> {
    fn fill(&mut self, out: &mut Vec<u8>, tally: &mut Tally) {
        let mut count = 0;
        while self.open < self.window && tally.sent < tally.limit {
            self.wire.request(out, tally.sent, tally.now);
            tally.sent += self.wire.events();
            self.open += 1;
            count += 1;
        }
        if count > 0 {
            self.left.push_back((tally.now, count));
        }
    }

    fn take(&mut self, input: &[u8], tally: &mut Tally) -> Result<usize> {
        let mut used = 0;
        let mut answers = 0;
        while let Some(length) = self.wire.answer(&input[used..])? {
            used += length;
            answers += 1;
        }
        self.open -= answers;
        tally.confirmed += answers * self.wire.events();
        while answers > 0 {
            let Some((at, count)) = self.left.front_mut() else {
                anyhow::bail!("more answers than requests")
            };
            let now = answers.min(*count);
            tally.publish.record_n(tally.now.saturating_sub(*at), now * self.wire.events())?;
            answers -= now;
            *count -= now;
            if *count == 0 {
                self.left.pop_front();
            }
        }
        Ok(used)
    }
}

/// The line at the front of `input` without its end, and its length with it. `end` is `\n` or `\r\n`.
/// Answers are short: a search byte by byte is as good as any.
fn line<'a>(input: &'a [u8], end: &[u8]) -> Option<(&'a [u8], usize)> {
    let at = input.iter().position(|byte| *byte == b'\n')?;
    let length = at + 1;
    Some((&input[..length.saturating_sub(end.len())], length))
}

/// The decimal number at the front of `input`, and how many digits it has.
fn number(input: &[u8]) -> Option<(u64, usize)> {
    let digits = input.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 || digits > 19 {
        return None;
    }
    Some((input[..digits].iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')), digits))
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(300)]).into_owned()
}
