//! What waits to be written to one connection.

use bytes::{Buf, Bytes, BytesMut};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;

/// Payloads from here on go out by reference; smaller ones are copied, which costs less than a slice of their own.
const BY_REFERENCE: usize = 2048;
/// Buffers kept for reuse by one thread.
const SPARE: usize = 256;
/// Larger buffers are given back to the allocator.
const SPARE_BYTES: usize = 64 * 1024;

thread_local! {
    // An idle connection owns no buffer: they are passed around.
    static BUFFERS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// Bytes for one peer, in order. Empty, it owns no memory.
#[derive(Debug, Default)]
pub struct Outbox {
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
    closing: bool,
}

impl Outbox {
    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True if the transport is to be closed when everything is written.
    pub fn close_after(&self) -> bool {
        self.closing
    }

    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    /// Calls `write` with the buffer at the end.
    pub(crate) fn write<R>(&mut self, write: impl FnOnce(&mut BytesMut) -> R) -> R {
        if self.tail.capacity() == 0 {
            self.tail = BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(4096));
        }
        let before = self.tail.len();
        let result = write(&mut self.tail);
        self.bytes += self.tail.len() - before;
        result
    }

    /// Appends a payload.
    pub(super) fn payload(&mut self, payload: &Bytes) {
        if payload.len() < BY_REFERENCE {
            self.write(|tail| tail.extend_from_slice(payload));
            return;
        }
        if !self.tail.is_empty() {
            let head = self.tail.split().freeze();
            self.chunks.push_back(head);
        }
        self.bytes += payload.len();
        self.chunks.push_back(payload.clone());
    }

    /// The next slices to write, at most 64.
    pub fn slices<'a>(&'a self, out: &mut Vec<IoSlice<'a>>) {
        out.extend(self.chunks.iter().take(63).map(|chunk| IoSlice::new(chunk)));
        if self.chunks.len() < 64 && !self.tail.is_empty() {
            out.push(IoSlice::new(&self.tail));
        }
    }

    /// `n` bytes were written.
    pub fn advance(&mut self, n: usize) {
        let mut n = n.min(self.bytes);
        self.bytes -= n;
        while n > 0 {
            let Some(chunk) = self.chunks.front_mut() else { break };
            let part = n.min(chunk.len());
            chunk.advance(part);
            n -= part;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        if n > 0 {
            self.tail.advance(n);
        }
        if self.bytes == 0 {
            self.release();
        }
    }

    /// The peer is gone.
    pub(super) fn clear(&mut self) {
        self.bytes = 0;
        self.release();
    }

    fn release(&mut self) {
        self.chunks = VecDeque::new();
        let mut buffer = std::mem::take(&mut self.tail);
        buffer.clear();
        // Gets back the front that was written, if nobody else has it.
        if buffer.try_reclaim(1024) && buffer.capacity() <= SPARE_BYTES {
            BUFFERS.with_borrow_mut(|spare| {
                if spare.len() < SPARE {
                    spare.push(buffer);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_however_they_are_cut() {
        for step in [1, 3, 7, 5000] {
            let mut outbox = Outbox::default();
            let large = Bytes::from(vec![7; 3000]);
            outbox.write(|b| b.extend_from_slice(b"head"));
            outbox.payload(&large);
            outbox.write(|b| b.extend_from_slice(b"next"));
            outbox.payload(&Bytes::from_static(b"small"));
            let mut expected = b"head".to_vec();
            expected.extend_from_slice(&large);
            expected.extend_from_slice(b"nextsmall");
            let mut seen = Vec::new();
            while !outbox.is_empty() {
                let mut slices = Vec::new();
                outbox.slices(&mut slices);
                let all: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
                assert_eq!(all.len(), outbox.len());
                let n = step.min(all.len());
                seen.extend_from_slice(&all[..n]);
                outbox.advance(n);
            }
            assert_eq!(seen, expected);
            assert_eq!(outbox.tail.capacity(), 0);
        }
    }
}
