//! beanstalkd: `put`, and a worker that does `reserve` and `delete`.

use super::{Wire, line, number, text};
use crate::bench::event::{self, EVENT};
use crate::bench::loader::{Driver, Tally};
use anyhow::{Context, Result, bail};

pub(crate) struct Put {
    request: Vec<u8>,
    body_at: usize,
}

impl Put {
    pub(crate) fn new() -> Self {
        let mut request = format!("put 0 0 120 {EVENT}\r\n").into_bytes();
        let body_at = request.len();
        request.extend_from_slice(&event::template());
        request.extend_from_slice(b"\r\n");
        Self { request, body_at }
    }
}

impl Wire for Put {
    fn request(&mut self, out: &mut Vec<u8>, id: u64, now: u64) {
        event::stamp(&mut self.request[self.body_at..], id, now);
        out.extend_from_slice(&self.request);
    }

    fn answer(&mut self, input: &[u8]) -> Result<Option<usize>> {
        let Some((answer, length)) = line(input, b"\r\n") else { return Ok(None) };
        if !answer.starts_with(b"INSERTED ") {
            bail!("beanstalkd answered put with `{}`", text(answer));
        }
        Ok(Some(length))
    }
}

/// One connection that reserves up to `window` jobs ahead and deletes every job it gets.
pub(crate) struct Worker {
    window: u64,
    reserves: u64,
    deletes: u64,
    delete: Vec<u64>,
}

impl Worker {
    pub(crate) fn new(window: u64) -> Self {
        Self { window, reserves: 0, deletes: 0, delete: Vec::new() }
    }
}

impl Driver for Worker {
    fn fill(&mut self, out: &mut Vec<u8>, tally: &mut Tally) {
        for job in self.delete.drain(..) {
            out.extend_from_slice(format!("delete {job}\r\n").as_bytes());
            self.deletes += 1;
        }
        // A reserve that finds no job holds up every command behind it, deletes too. So no more of them
        // than jobs on their way, or one when nothing else is waited for.
        let coming = (tally.sent - tally.delivered).max(u64::from(self.deletes == 0));
        while self.reserves < self.window.min(coming) {
            out.extend_from_slice(b"reserve\r\n");
            self.reserves += 1;
        }
    }

    /// `RESERVED id bytes\r\n<bytes>\r\n` or `DELETED\r\n`
    fn take(&mut self, input: &[u8], tally: &mut Tally) -> Result<usize> {
        let mut used = 0;
        while let Some((answer, length)) = line(&input[used..], b"\r\n") {
            if answer == b"DELETED" {
                used += length;
                tally.acked += 1;
                self.deletes -= 1;
                continue;
            }
            let Some(job) = answer.strip_prefix(b"RESERVED ") else {
                bail!("beanstalkd answered its worker with `{}`", text(answer));
            };
            let body = &input[used + length..];
            if body.len() < EVENT + 2 {
                break;
            }
            let (job, _) = number(job).context("a job without a number")?;
            let sent = event::sent(&body[..EVENT]).context("a job that was not put")?;
            used += length + EVENT + 2;
            tally.delivered += 1;
            tally.delivery.record(tally.now.saturating_sub(sent))?;
            self.reserves -= 1;
            self.delete.push(job);
        }
        Ok(used)
    }
}
