//! Redis Streams: `XADD k * d VALUE`.

use super::{Wire, line, text};
use crate::bench::event::{self, EVENT};
use anyhow::{Result, bail};

pub(crate) struct Xadd {
    request: Vec<u8>,
    body_at: usize,
}

impl Xadd {
    pub(crate) fn new() -> Self {
        let mut request =
            format!("*5\r\n$4\r\nXADD\r\n$1\r\nk\r\n$1\r\n*\r\n$1\r\nd\r\n${EVENT}\r\n").into_bytes();
        let body_at = request.len();
        request.extend_from_slice(&event::template());
        request.extend_from_slice(b"\r\n");
        Self { request, body_at }
    }
}

impl Wire for Xadd {
    fn request(&mut self, out: &mut Vec<u8>, id: u64, now: u64) {
        event::stamp(&mut self.request[self.body_at..], id, now);
        out.extend_from_slice(&self.request);
    }

    /// `$15\r\n1700000000000-0\r\n`
    fn answer(&mut self, input: &[u8]) -> Result<Option<usize>> {
        let Some((head, head_len)) = line(input, b"\r\n") else { return Ok(None) };
        let length = match head.strip_prefix(b"$").and_then(super::number) {
            Some((length, _)) => length as usize,
            None => bail!("redis answered `{}`", text(head)),
        };
        let whole = head_len + length + 2;
        Ok((input.len() >= whole).then_some(whole))
    }
}
