//! One log: its segments, what waits to be written, and where each message is.

mod commit;
mod removal;

pub(crate) use commit::{Synced, Wish};

use crate::committer::{Committer, Ticket, lock};
use crate::error::JournalError;
use crate::record::{self, Publish};
use crate::segment::{self, Header};
use crate::storage::StorageFile;
use bytes::Bytes;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};

/// Offsets in the index are 32 bits.
const MAX_SEGMENT: u64 = 2 << 30;
/// The index entry of a message that `repair` could not save.
pub(crate) const LOST: u32 = u32::MAX;

/// Told when messages are committed, on the committing thread. Must be quick.
pub trait CommitObserver: Send + Sync {
    /// Every message up to `seq` is committed; `ticket` was the commit.
    fn committed(&self, seq: u64, ticket: Ticket);
}

/// What is particular to one journal.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// Whose log it is; stands in every segment header.
    pub name: String,
    /// A new segment begins when one is larger; at most 2 GiB.
    pub segment_bytes: u64,
}

/// Sizes of a journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// The oldest message kept; `last + 1` if there is none.
    pub first: u64,
    /// The newest message appended; `first - 1` if there is none.
    pub last: u64,
    /// The newest message committed.
    pub committed: u64,
    /// The newest message written: it can be read.
    pub written: u64,
    /// Bytes of records in the segments, with what is queued.
    pub bytes: u64,
    /// Segment files.
    pub segments: usize,
    /// Bytes of memory held for the index.
    pub index_memory: usize,
}

/// One segment file.
pub(crate) struct Segment {
    pub(crate) header: Header,
    pub(crate) path: PathBuf,
    // Its file exists.
    pub(crate) created: bool,
    // Open while it is being written; others are opened by who reads them.
    pub(crate) file: Option<Arc<dyn StorageFile>>,
    // Where each message begins, from `header.base`.
    pub(crate) index: Vec<u32>,
    // Priorities, in step with `index`; empty while all are 0.
    pub(crate) priorities: Vec<i64>,
    // The end of the records, with what is queued.
    pub(crate) end: u64,
    // The length of the file.
    pub(crate) allocated: u64,
    // Where the snapshot at its start ends; 0 if it is not known to have one.
    snapshot_end: u64,
}

impl Segment {
    pub(crate) fn new(dir: &Path, header: Header) -> Self {
        let end = header.encode().len() as u64;
        let path = segment::path(dir, header.number);
        Self {
            header,
            path,
            created: false,
            file: None,
            index: Vec::new(),
            priorities: Vec::new(),
            end,
            allocated: 0,
            snapshot_end: 0,
        }
    }

    pub(crate) fn next_seq(&self) -> u64 {
        self.header.base + self.index.len() as u64
    }

    pub(crate) fn push(&mut self, offset: u32, priority: i64) {
        if priority != 0 && self.priorities.is_empty() {
            self.priorities.resize(self.index.len(), 0);
        }
        if priority != 0 || !self.priorities.is_empty() {
            self.priorities.push(priority);
        }
        self.index.push(offset);
    }

    pub(crate) fn priority(&self, seq: u64) -> i64 {
        self.priorities.get((seq - self.header.base) as usize).copied().unwrap_or(0)
    }
}

/// Records that are written and synced together.
pub(crate) struct Batch {
    // The segment, by its number.
    number: u64,
    offset: u64,
    bytes: Vec<u8>,
    last_seq: u64,
    ticket: Ticket,
    // No record yet: the next one carries the commit mark, if it may.
    empty: bool,
    // Its cycle ends with a sync. Without a record, too: it may be there to make a segment.
    sync: bool,
}

/// What was written and not synced. It is all in one file: a segment that gets a successor is synced.
pub(crate) struct Unsynced {
    file: Arc<dyn StorageFile>,
    path: PathBuf,
    // The segment, and where in it this begins.
    number: u64,
    from: u64,
    // The newest commit.
    ticket: Ticket,
}

/// Committed bytes that are still in memory.
pub(crate) struct Chunk {
    pub(crate) number: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
}

pub(crate) struct State {
    pub(crate) segments: VecDeque<Segment>,
    queue: VecDeque<Batch>,
    pub(crate) tail: VecDeque<Chunk>,
    tail_bytes: u64,
    // The newest messages that are durable, and that can be read.
    committed_seq: u64,
    pub(crate) written_seq: u64,
    unsynced: Option<Unsynced>,
    last_time: u64,
    // The capacity the next batch starts with.
    hint: usize,
    // Segments that are not part of the log any more and whose files are to be deleted, oldest first.
    leaving: VecDeque<Segment>,
    // A segment could not be deleted durably: nothing is trimmed any more.
    stuck: bool,
}

pub(crate) struct Inner {
    pub(crate) committer: Arc<Committer>,
    pub(crate) dir: PathBuf,
    options: JournalOptions,
    pub(crate) state: Mutex<State>,
    observer: OnceLock<Arc<dyn CommitObserver>>,
}

/// One log in one directory. Cheap to clone; all clones are the same log.
#[derive(Clone)]
pub struct Journal {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

/// Appends to a journal; holds its lock, so keep it short.
pub struct Writer<'a> {
    inner: &'a Arc<Inner>,
    state: std::sync::MutexGuard<'a, State>,
    time: u64,
    // The fields every message of this writer has alike.
    stamp: Vec<u8>,
    added: u64,
    sync: bool,
}

impl Journal {
    pub(crate) fn assemble(
        committer: Arc<Committer>,
        dir: PathBuf,
        options: JournalOptions,
        segments: VecDeque<Segment>,
        last_time: u64,
    ) -> Self {
        let committed_seq = segments.back().map_or(0, |s| s.next_seq() - 1);
        let state = State {
            segments,
            queue: VecDeque::new(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            committed_seq,
            written_seq: committed_seq,
            unsynced: None,
            last_time,
            hint: 256,
            leaving: VecDeque::new(),
            stuck: false,
        };
        let inner = Inner { committer, dir, options, state: Mutex::new(state), observer: OnceLock::new() };
        Self { inner: Arc::new(inner) }
    }

    /// Whom to tell of commits. The first call counts.
    pub fn observe(&self, observer: Arc<dyn CommitObserver>) {
        let _ = self.inner.observer.set(observer);
    }

    /// The committer this journal belongs to.
    pub fn committer(&self) -> &Arc<Committer> {
        &self.inner.committer
    }

    /// The directory of the segments.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Starts appending at `now` (milliseconds since 1970; never goes back within a log).
    ///
    /// Appending does not wait for the disk and cannot fail: ask [`Committer::admit`] before. Afterwards, with no
    /// lock held, call [`Committer::flush`].
    pub fn writer(&self, now: u64) -> Writer<'_> {
        let mut state = lock(&self.inner.state);
        state.last_time = state.last_time.max(now);
        let time = state.last_time;
        Writer { inner: &self.inner, state, time, stamp: Vec::new(), added: 0, sync: true }
    }

    /// Sizes.
    pub fn stats(&self) -> JournalStats {
        let state = lock(&self.inner.state);
        JournalStats {
            first: state.segments.front().map_or(1, |s| s.header.base),
            last: state.last_seq(),
            committed: state.committed_seq,
            written: state.written_seq,
            bytes: state.segments.iter().map(|s| s.end).sum(),
            segments: state.segments.len(),
            index_memory: state
                .segments
                .iter()
                .map(|s| s.index.capacity() * 4 + s.priorities.capacity() * 8)
                .sum(),
        }
    }

    /// The priorities of the messages `first..=last` as runs `(first, last, priority)`, ascending. What is lost or
    /// trimmed is left out.
    pub fn priority_runs(&self, first: u64, last: u64, mut run: impl FnMut(u64, u64, i64)) {
        let state = lock(&self.inner.state);
        for segment in &state.segments {
            let from = first.max(segment.header.base);
            let to = last.min(segment.next_seq() - 1);
            let mut seq = from;
            while seq <= to {
                let base = segment.header.base;
                let lost = |n: u64| segment.index[(n - base) as usize] == LOST;
                let key = (segment.priority(seq), lost(seq));
                let start = seq;
                while seq <= to && (segment.priority(seq), lost(seq)) == key {
                    seq += 1;
                }
                if !key.1 {
                    run(start, seq - 1, key.0);
                }
            }
        }
    }

    /// Calls `with` with a function that tells the bytes of the record of a message, about (the distance to the next
    /// one); 0 if there is none. The journal is locked meanwhile.
    pub fn sizes<R>(&self, with: impl FnOnce(&dyn Fn(u64) -> u32) -> R) -> R {
        let state = lock(&self.inner.state);
        with(&|seq| state.size_of(seq))
    }

    /// True if the segment is full: call [`Journal::roll`] before the next append.
    pub fn wants_roll(&self) -> bool {
        let state = lock(&self.inner.state);
        let limit = self.inner.options.segment_bytes.min(MAX_SEGMENT);
        // A snapshot that is larger than a segment must not fill the next one by itself: what follows it is at least as
        // large, so that snapshots at most double the log.
        state.segments.back().is_none_or(|s| {
            s.end >= limit && (s.end >= MAX_SEGMENT || s.end - s.snapshot_end >= s.snapshot_end)
        })
    }

    /// Begins a new segment. Everything appended from now on goes there; the first records should be the checkpoint
    /// without which older segments could not be deleted.
    pub fn roll(&self, now: u64, salt: u32) {
        let mut state = lock(&self.inner.state);
        state.last_time = state.last_time.max(now);
        let header = Header {
            number: state.segments.back().map_or(1, |s| s.header.number + 1),
            base: state.last_seq() + 1,
            prev: state.segments.back().map_or(0, |s| s.end),
            salt,
            name: self.inner.options.name.clone(),
            time: state.last_time,
        };
        let segment = Segment::new(&self.inner.dir, header);
        state.segments.push_back(segment);
        self.inner.push_batch(&mut state);
    }

    /// What was appended since [`Journal::roll`] is the snapshot the segment begins with.
    pub fn end_snapshot(&self) {
        if let Some(segment) = lock(&self.inner.state).segments.back_mut() {
            segment.snapshot_end = segment.end;
        }
    }

    /// How many whole segments at the front end before `seq`, and their bytes: what [`Journal::trim`] would delete.
    pub fn trimmable(&self, seq: u64) -> (usize, u64) {
        let state = lock(&self.inner.state);
        let count = state.trimmable(seq);
        (count, state.segments.iter().take(count).map(|s| s.end).sum())
    }

    /// The newest message of each segment but the last, with the segment's bytes and the time of its header,
    /// oldest first.
    pub fn sealed(&self) -> Vec<(u64, u64, u64)> {
        let state = lock(&self.inner.state);
        let sealed = state.segments.len().saturating_sub(1);
        state.segments.iter().take(sealed).map(|s| (s.next_seq() - 1, s.end, s.header.time)).collect()
    }

    /// Before a clean exit, with everything committed: cuts the filler off.
    pub fn close(&self) -> Result<(), JournalError> {
        let mut state = lock(&self.inner.state);
        let Some(last) = state.segments.back_mut().filter(|s| s.created && s.allocated > s.end) else {
            return Ok(());
        };
        let file = self.inner.reopen(last.file.take().as_ref(), &last.path)?;
        file.set_len(last.end).map_err(|e| JournalError::io("cut", &last.path, e))?;
        file.sync_all().map_err(|e| JournalError::io("sync", &last.path, e))?;
        last.allocated = last.end;
        Ok(())
    }
}

impl State {
    pub(crate) fn last_seq(&self) -> u64 {
        self.segments.back().map_or(0, |s| s.next_seq() - 1)
    }

    fn trimmable(&self, seq: u64) -> usize {
        if self.stuck {
            return 0;
        }
        // Until the snapshot at the start of the last segment is durable, the older ones are needed.
        let Some(last) = self.segments.back() else { return 0 };
        let start = last.header.encode().len() as u64;
        if self.queue.iter().any(|batch| batch.number == last.header.number && batch.offset == start) {
            return 0;
        }
        if self.unsynced.as_ref().is_some_and(|u| u.number < last.header.number || u.from <= start) {
            return 0;
        }
        let sealed = self.segments.len() - 1;
        self.segments.iter().take(sealed).take_while(|s| s.next_seq() <= seq).count()
    }

    /// True if all before the last batch is durable when that is written: then it may carry the commit mark.
    fn follows_durable(&self) -> bool {
        match self.queue.len().checked_sub(2).and_then(|before| self.queue.get(before)) {
            Some(before) => before.sync,
            None => self.unsynced.is_none(),
        }
    }

    pub(crate) fn segment_of(&self, seq: u64) -> Option<&Segment> {
        let after = self.segments.partition_point(|s| s.header.base <= seq);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        (seq < segment.next_seq()).then_some(segment)
    }

    pub(crate) fn size_of(&self, seq: u64) -> u32 {
        let Some(segment) = self.segment_of(seq) else { return 0 };
        let at = (seq - segment.header.base) as usize;
        let start = segment.index[at];
        if start == LOST {
            return 0;
        }
        let end = segment.index[at + 1..].iter().find(|o| **o != LOST).map_or(segment.end, |o| u64::from(*o));
        u32::try_from(end - u64::from(start)).unwrap_or(u32::MAX)
    }
}

impl Inner {
    /// A new batch at the end of the last segment; its journal is enlisted if it was clean.
    fn push_batch(self: &Arc<Self>, state: &mut State) {
        let Some(segment) = state.segments.back() else { return };
        let (number, offset) = (segment.header.number, segment.end);
        let ticket = match state.queue.back() {
            Some(batch) => Ticket(batch.ticket.0 + 1),
            None => self.committer.enlist(self.clone()),
        };
        let bytes = Vec::with_capacity(state.hint);
        let last_seq = state.last_seq();
        state.queue.push_back(Batch { number, offset, bytes, last_seq, ticket, empty: true, sync: true });
    }

    /// Keeps a committed batch for readers, within the budget of all journals.
    fn keep(&self, state: &mut State, batch: Batch) {
        let budget = self.committer.options.tail_cache_bytes;
        let len = batch.bytes.len() as u64;
        self.committer.tail_bytes.fetch_add(len, Ordering::Relaxed);
        let chunk = Chunk { number: batch.number, offset: batch.offset, bytes: batch.bytes.into() };
        state.tail.push_back(chunk);
        state.tail_bytes += len;
        // One journal never takes more than a sixteenth.
        while state.tail.len() > 1
            && (state.tail_bytes > budget / 16 || self.committer.tail_bytes.load(Ordering::Relaxed) > budget)
        {
            let Some(chunk) = state.tail.pop_front() else { break };
            state.tail_bytes -= chunk.bytes.len() as u64;
            self.committer.tail_bytes.fetch_sub(chunk.bytes.len() as u64, Ordering::Relaxed);
        }
    }

    fn evict(&self, state: &mut State, gone: impl Fn(&Chunk) -> bool) {
        let own = &mut state.tail_bytes;
        state.tail.retain(|chunk| {
            let gone = gone(chunk);
            if gone {
                *own -= chunk.bytes.len() as u64;
                self.committer.tail_bytes.fetch_sub(chunk.bytes.len() as u64, Ordering::Relaxed);
            }
            !gone
        });
    }
}

impl Writer<'_> {
    /// What is appended from now on does not ask to be synced: see [`Committer::written`]. It is committed with what
    /// does, or a little later.
    #[must_use]
    pub fn buffered(mut self) -> Self {
        self.sync = false;
        self
    }

    /// Appends a message; says its sequence.
    pub fn publish(&mut self, publish: &Publish<'_>) -> u64 {
        let seq = self.state.last_seq() + 1;
        let estimate = publish.payload.len() + publish.headers.map_or(0, <[u8]>::len) + 128;
        self.append(seq, "pub", estimate, |out| record::push_publish(out, publish), Some(publish.priority));
        seq
    }

    /// Appends another record; `fields` appends `,"key":value` each (see [`record::push_text_field`]).
    pub fn record(&mut self, kind: &str, fields: impl FnOnce(&mut Vec<u8>)) {
        let seq = self.state.last_seq();
        self.append(seq, kind, 128, fields, None);
    }

    /// The commit that what was appended last is part of, by this writer or before; `Ticket(0)` if that is committed.
    pub fn ticket(&self) -> Ticket {
        let queued = self.state.queue.iter().rev().find(|batch| !batch.empty).map(|batch| batch.ticket);
        let unsynced = || self.state.unsynced.as_ref().map(|unsynced| unsynced.ticket);
        queued.or_else(unsynced).unwrap_or(Ticket(0))
    }

    /// The newest message.
    pub fn last_seq(&self) -> u64 {
        self.state.last_seq()
    }

    fn append(
        &mut self,
        seq: u64,
        kind: &str,
        estimate: usize,
        fields: impl FnOnce(&mut Vec<u8>),
        message: Option<i64>,
    ) {
        let limit = self.inner.committer.batch_bytes();
        let full = self.state.queue.back().is_none_or(|b| !b.empty && b.bytes.len() + estimate > limit);
        if full {
            self.inner.push_batch(&mut self.state);
        }
        let state = &mut *self.state;
        let may_mark = self.inner.committer.options.planted.mark_unsynced || state.follows_durable();
        let (Some(segment), Some(batch)) = (state.segments.back_mut(), state.queue.back_mut()) else {
            return;
        };
        let begin = if message.is_some() {
            if self.stamp.is_empty() {
                self.stamp = record::publish_stamp(self.time);
            }
            batch.bytes.reserve(estimate);
            record::start_publish(&mut batch.bytes, seq, &self.stamp, batch.empty && may_mark)
        } else {
            record::start(&mut batch.bytes, seq, self.time, kind, batch.empty && may_mark)
        };
        fields(&mut batch.bytes);
        record::finish(&mut batch.bytes, begin, segment.header.salt);
        batch.sync = self.sync || batch.sync && !batch.empty;
        batch.empty = false;
        batch.last_seq = seq;
        let written = (batch.bytes.len() - begin) as u64;
        if let Some(priority) = message {
            // A segment rolls long before its offsets leave 32 bits: see `wants_roll`.
            segment.push(u32::try_from(segment.end).unwrap_or(LOST), priority);
        }
        segment.end += written;
        self.added += written;
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        // Once for all: it is shared with every other writer. The state is still locked, so no commit can subtract it
        // before.
        self.inner.committer.queued.fetch_add(self.added, Ordering::Relaxed);
    }
}
