//! How the front batch of a journal gets to the disk.

use super::{Inner, Segment, State, Unsynced};
use crate::committer::{SyncMode, Ticket, lock};
use crate::error::JournalError;
use crate::segment::{FILLER, Header};
use crate::storage::{BLOCK, OpenMode, StorageFile};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of filler that every active segment has at least, if the committer preallocates.
const RESERVE: u64 = 4 << 10;
/// The largest step in which filler is written ahead.
const MAX_FILLER: u64 = 1 << 20;
static FILLER_AHEAD: [u8; MAX_FILLER as usize] = [FILLER; MAX_FILLER as usize];

/// What a journal wrote in a commit.
pub(crate) struct Written {
    pub(crate) file: Arc<dyn StorageFile>,
    pub(crate) path: PathBuf,
    /// With filler.
    pub(crate) bytes: u64,
    pub(crate) sync: Synced,
}

/// What a cycle asks of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It is synced in this cycle: by the write itself, if that may go around the page cache.
    Now { through: bool },
    /// Nobody is known to ask for that.
    Later,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Synced {
    /// It is durable.
    Yes,
    /// It is not, and must be in this cycle.
    No,
    /// It need not be. The first such write since the last sync?
    Later { first: bool },
}

/// A segment file, as the state told it.
struct Place {
    file: Option<Arc<dyn StorageFile>>,
    path: PathBuf,
    end: u64,
    allocated: u64,
    /// If the file is still to be made.
    header: Option<Header>,
}

impl Place {
    fn of(segment: &Segment, unsynced: Option<&Unsynced>) -> Self {
        // Who syncs what was written through another descriptor may not hear that it failed.
        let held = unsynced.filter(|unsynced| unsynced.number == segment.header.number);
        Self {
            file: segment.file.clone().or_else(|| held.map(|unsynced| unsynced.file.clone())),
            path: segment.path.clone(),
            end: segment.end,
            allocated: segment.allocated,
            header: (!segment.created).then(|| segment.header.clone()),
        }
    }
}

/// Where the front batch goes.
struct Front {
    number: u64,
    offset: u64,
    ticket: Ticket,
    was_open: bool,
    place: Place,
}

fn block_end(at: u64) -> u64 {
    at.next_multiple_of(BLOCK as u64)
}

impl Inner {
    /// Writes the front batch. Called by the committer, one at a time.
    pub(crate) fn write_front(self: &Arc<Self>, wish: Wish) -> Result<Option<Written>, JournalError> {
        let (bytes, front, before, unsynced, later) = {
            let mut state = lock(&self.state);
            let Some(batch) = state.queue.front_mut() else { return Ok(None) };
            // From here on nothing is added to this batch: see `Writer::append`.
            let bytes = std::mem::take(&mut batch.bytes);
            // What is added behind it may rely on the sync.
            batch.sync |= wish != Wish::Later;
            let later = !batch.sync;
            let (number, offset, ticket) = (batch.number, batch.offset, batch.ticket);
            if state.queue.len() == 1 {
                // What is appended meanwhile belongs to the next commit: an empty second batch takes it.
                self.push_batch(&mut state);
            }
            let Some(at) = state.segments.iter().rposition(|s| s.header.number == number) else {
                return Err(JournalError::Failed("a batch has no segment".into()));
            };
            // What this segment follows is sealed before it comes into being.
            let is_new = !state.segments[at].created;
            let held = state.unsynced.as_ref();
            let before = at.checked_sub(1).filter(|_| is_new).map(|at| Place::of(&state.segments[at], held));
            let was_open = state.segments[at].file.is_some();
            let front =
                Front { number, offset, ticket, was_open, place: Place::of(&state.segments[at], held) };
            (bytes, front, before, held.is_some(), later)
        };
        // What is in the page cache needs a sync anyway, which a durable write would not replace.
        let through = wish == Wish::Now { through: true } && !unsynced;
        let result = before.map_or(Ok(()), |before| self.seal(&before, unsynced));
        let result = result.and_then(|()| self.write(&bytes, &front, through));
        let mut state = lock(&self.state);
        if let Some(batch) = state.queue.front_mut() {
            batch.bytes = bytes;
        }
        let (file, until) = result?;
        for segment in state.segments.iter_mut().rev() {
            if segment.header.number == front.number {
                segment.file = Some(file.clone());
                segment.created = true;
                segment.allocated = until.max(front.place.allocated);
            } else if segment.header.number < front.number {
                segment.file = None;
                segment.allocated = segment.end;
                break;
            }
        }
        let (path, was_open) = (front.place.path.clone(), front.was_open);
        let bytes = until - front.offset;
        let sync = match (later, through) {
            (true, _) => Synced::Later { first: state.wrote_unsynced(front, file.clone()) },
            (false, true) => Synced::Yes,
            (false, false) => Synced::No,
        };
        drop(state);
        if !was_open {
            self.committer.opened(self);
        }
        Ok(Some(Written { file, path, bytes, sync }))
    }

    /// Cuts the filler off a segment that gets a successor. Nothing of it may be torn any more, whatever a commit means.
    fn seal(&self, place: &Place, unsynced: bool) -> Result<(), JournalError> {
        let unsynced = (unsynced && !self.committer.options.planted.seal_unsynced)
            || self.committer.options.sync == SyncMode::Os;
        let filled = place.allocated > place.end;
        if !filled && !unsynced {
            return Ok(());
        }
        let file = self.reopen(place.file.as_ref(), &place.path)?;
        if filled {
            file.set_len(place.end).map_err(|e| JournalError::io("cut", &place.path, e))?;
        }
        if unsynced {
            self.committer.sync(&[(file, place.path.clone())], true)?;
        }
        Ok(())
    }

    pub(super) fn reopen(
        &self,
        file: Option<&Arc<dyn StorageFile>>,
        path: &Path,
    ) -> Result<Arc<dyn StorageFile>, JournalError> {
        if let Some(file) = file {
            return Ok(file.clone());
        }
        self.committer.storage.open(path, OpenMode::Write).map_err(|e| JournalError::io("open", path, e))
    }

    /// Lets go of open files: they are opened again when there is something to write.
    pub(crate) fn close_files(&self) {
        for segment in &mut lock(&self.state).segments {
            segment.file = None;
        }
    }

    /// Says to which file, and up to which byte it was written, with filler.
    fn write(
        &self,
        bytes: &[u8],
        front: &Front,
        through: bool,
    ) -> Result<(Arc<dyn StorageFile>, u64), JournalError> {
        let Front { offset, place, .. } = front;
        let file = match &place.header {
            Some(header) => self.create(&place.path, header)?,
            None => self.reopen(place.file.as_ref(), &place.path)?,
        };
        let io = |e| JournalError::io("write", &place.path, e);
        let end = offset + bytes.len() as u64;
        let ahead = self.ahead(bytes.len() as u64, end, place.allocated);
        if through {
            // Filler is welcome, and not needed.
            let (least, most) = (block_end(end), block_end(end + ahead));
            return match file.write_through(bytes, *offset, FILLER, most).map_err(io) {
                Err(error) if error.is_disk_full() && most > least => {
                    file.write_through(bytes, *offset, FILLER, least).map_err(io)?;
                    Ok((file, least))
                }
                other => other.map(|()| (file, most)),
            };
        }
        file.write_at(bytes, *offset).map_err(io)?;
        match file.write_at(&FILLER_AHEAD[..ahead as usize], end).map_err(io) {
            Err(error) if error.is_disk_full() => Ok((file, end)),
            other => other.map(|()| (file, end + ahead)),
        }
    }

    /// How much filler is written behind a commit of `len` bytes that ends at `end`: small commits go over filler and
    /// change no file size, large ones do not pay for it.
    fn ahead(&self, len: u64, end: u64, allocated: u64) -> u64 {
        if !self.committer.options.preallocate || end + RESERVE <= allocated {
            return 0;
        }
        let ahead = if len >= 16 << 10 || self.committer.is_near_floor() {
            2 * RESERVE
        } else {
            (256 * len).clamp(4 * RESERVE, MAX_FILLER)
        };
        // None of it behind the end of the segment, but for the reserve.
        ahead.min(self.options.segment_bytes.saturating_sub(end).max(2 * RESERVE))
    }

    /// The header is durable before any record: a segment without one was never used.
    fn create(&self, path: &Path, header: &Header) -> Result<Arc<dyn StorageFile>, JournalError> {
        let storage = &self.committer.storage;
        storage.create_dir_all(&self.dir).map_err(|e| JournalError::io("create", &self.dir, e))?;
        let file = match storage.open(path, OpenMode::Create) {
            // Left by a try that met a full disk.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                storage.open(path, OpenMode::Write)
            }
            other => other,
        };
        let file = file.map_err(|e| JournalError::io("create", path, e))?;
        file.write_at(&header.encode(), 0).map_err(|e| JournalError::io("write", path, e))?;
        file.sync_all().map_err(|e| JournalError::io("sync", path, e))?;
        self.sync_dir()?;
        Ok(file)
    }

    pub(super) fn sync_dir(&self) -> Result<(), JournalError> {
        if self.committer.options.planted.no_dir_sync {
            return Ok(());
        }
        self.committer.storage.sync_dir(&self.dir).map_err(|e| JournalError::io("sync", &self.dir, e))
    }

    /// True if the cycle of the front batch must end with a sync.
    pub(crate) fn wants_sync(&self) -> bool {
        lock(&self.state).queue.front().is_some_and(|batch| batch.sync)
    }

    /// The file that has bytes which are not synced.
    pub(crate) fn unsynced(&self) -> Option<(Arc<dyn StorageFile>, PathBuf)> {
        let state = lock(&self.state);
        state.unsynced.as_ref().map(|unsynced| (unsynced.file.clone(), unsynced.path.clone()))
    }

    pub(crate) fn written_seq(&self) -> u64 {
        lock(&self.state).written_seq
    }

    /// The front batch is written, or durable. Called by the committer.
    pub(crate) fn done(self: &Arc<Self>, ticket: u64, durable: bool) {
        let seq = {
            let mut state = lock(&self.state);
            if state.queue.front().is_none_or(|batch| batch.ticket.0 > ticket) {
                return;
            }
            let Some(batch) = state.queue.pop_front() else { return };
            state.hint = batch.bytes.len() + batch.bytes.len() / 4 + 256;
            self.committer.queued.fetch_sub(batch.bytes.len() as u64, Ordering::Relaxed);
            state.written_seq = state.written_seq.max(batch.last_seq);
            let number = batch.number;
            self.keep(&mut state, batch);
            // The empty batch that took the place of the front one: forget it, or enlist it.
            match state.queue.front() {
                // That of a new segment makes its file, and must not be forgotten.
                Some(next) if next.empty && state.queue.len() == 1 && next.number == number => {
                    state.queue.clear();
                }
                Some(_) => {
                    self.committer.enlist(self.clone());
                }
                None => {}
            }
            if !durable {
                return;
            }
            state.unsynced = None;
            state.committed_seq = state.written_seq;
            state.committed_seq
        };
        self.tell(seq, ticket);
    }

    /// What was written up to `ticket` is durable, messages up to `seq`. Called by the committer.
    pub(crate) fn synced(&self, ticket: u64, seq: u64) {
        let seq = {
            let mut state = lock(&self.state);
            if state.unsynced.as_ref().is_none_or(|unsynced| unsynced.ticket.0 <= ticket) {
                state.unsynced = None;
            }
            let seq = seq.min(state.written_seq);
            if seq <= state.committed_seq {
                return;
            }
            state.committed_seq = seq;
            seq
        };
        self.tell(seq, ticket);
    }

    fn tell(&self, seq: u64, ticket: u64) {
        if let Some(observer) = self.observer.get() {
            observer.committed(seq, Ticket(ticket));
        }
    }
}

impl State {
    /// A batch was written to `file`, and not synced; true if it is the only one.
    fn wrote_unsynced(&mut self, front: Front, file: Arc<dyn StorageFile>) -> bool {
        let before = self.unsynced.take();
        let first = before.is_none();
        // An older segment was synced when this one was made.
        let from = before.filter(|before| before.number == front.number).map_or(front.offset, |b| b.from);
        let Front { number, ticket, place, .. } = front;
        self.unsynced = Some(Unsynced { file, path: place.path, number, from, ticket });
        first
    }
}
