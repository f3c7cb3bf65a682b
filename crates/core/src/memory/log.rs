//! What was published, in order, as far as it is kept.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::envelope::Envelope;
use crate::time::Timestamp;

/// What an entry costs beside the bytes of its message, about.
const OVERHEAD: u64 = 256;

pub(super) struct Entry {
    pub(super) envelope: Arc<Envelope>,
    pub(super) bytes: u32,
    pub(super) stored_at: Timestamp,
}

/// An eighth more than the limits is spared for dead letters: the death of the oldest message is what makes room.
#[derive(Clone, Copy)]
pub(super) enum Spare {
    Kept,
    Used,
}

/// Positions count from 1 without gaps; the oldest entries go when the log is full and nobody waits for them.
pub(super) struct Log {
    entries: VecDeque<Entry>,
    first: u64,
    bytes: u64,
    max_count: u64,
    max_bytes: u64,
}

impl Log {
    pub(super) fn new(max_count: u64, max_bytes: u64) -> Self {
        Self { entries: VecDeque::new(), first: 1, bytes: 0, max_count, max_bytes }
    }

    /// The position of the oldest entry, or of the next one.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The position of the next entry.
    pub(super) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn fits(&self, bytes: u64, spare: Spare) -> bool {
        let over = |max: u64| match spare {
            Spare::Kept => max,
            Spare::Used => max.saturating_add((max / 8).max(1)),
        };
        (self.entries.len() as u64) < over(self.max_count) && self.bytes + bytes <= over(self.max_bytes)
    }

    /// Makes room for an entry of `bytes` by dropping entries below `needed`, which nobody waits for. False if that
    /// is not enough.
    pub(super) fn make_room(&mut self, bytes: usize, spare: Spare, needed: impl FnOnce() -> u64) -> bool {
        let bytes = bytes as u64 + OVERHEAD;
        if self.fits(bytes, Spare::Kept) {
            return true;
        }
        let needed = needed();
        while !self.fits(bytes, Spare::Kept) && self.first < needed {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.first += 1;
            self.bytes -= u64::from(oldest.bytes) + OVERHEAD;
        }
        self.fits(bytes, spare)
    }

    /// Appends after [`make_room`](Self::make_room); gives the position and the entry.
    pub(super) fn push(&mut self, envelope: Envelope, stored_at: Timestamp) -> (u64, &Entry) {
        let position = self.next();
        let bytes = u32::try_from(envelope.len_bytes()).unwrap_or(u32::MAX);
        self.bytes += u64::from(bytes) + OVERHEAD;
        self.entries.push_back(Entry { envelope: Arc::new(envelope), bytes, stored_at });
        (position, &self.entries[self.entries.len() - 1])
    }

    pub(super) fn get(&self, position: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(position.checked_sub(self.first)?).ok()?)
    }

    /// Entries at `from` and after it, with their positions.
    pub(super) fn range(
        &self,
        from: u64,
    ) -> impl DoubleEndedIterator<Item = (u64, &Entry)> + ExactSizeIterator {
        let from = from.clamp(self.first, self.next());
        let skip = (from - self.first) as usize;
        self.entries.range(skip..).enumerate().map(move |(index, entry)| (from + index as u64, entry))
    }

    /// The first position stored at or after `time`.
    pub(super) fn at_time(&self, time: Timestamp) -> u64 {
        self.first + self.entries.partition_point(|entry| entry.stored_at < time) as u64
    }
}
