//! How the front batch of a journal gets to the disk.

use super::{Inner, Segment};
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
    fn of(segment: &Segment) -> Self {
        Self {
            file: segment.file.clone(),
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
    place: Place,
}

fn block_end(at: u64) -> u64 {
    at.next_multiple_of(BLOCK as u64)
}

impl Inner {
    /// Writes the front batch. Called by the committer, one at a time.
    ///
    /// With `through` it is durable when this returns.
    pub(crate) fn write_front(self: &Arc<Self>, through: bool) -> Result<Option<Written>, JournalError> {
        let (bytes, front, before) = {
            let mut state = lock(&self.state);
            let Some(batch) = state.queue.front_mut() else { return Ok(None) };
            // From here on nothing is added to this batch: see `Writer::append`.
            let bytes = std::mem::take(&mut batch.bytes);
            let (number, offset) = (batch.number, batch.offset);
            if state.queue.len() == 1 {
                // What is appended meanwhile belongs to the next commit: an empty second batch takes it.
                self.push_batch(&mut state);
            }
            let Some(at) = state.segments.iter().rposition(|s| s.header.number == number) else {
                return Err(JournalError::Failed("a batch has no segment".into()));
            };
            // What this segment follows is sealed before it comes into being.
            let is_new = !state.segments[at].created;
            let before = at.checked_sub(1).filter(|_| is_new).map(|at| Place::of(&state.segments[at]));
            (bytes, Front { number, offset, place: Place::of(&state.segments[at]) }, before)
        };
        let was_open = front.place.file.is_some();
        let result = before.map_or(Ok(()), |before| self.seal(&before));
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
        drop(state);
        if !was_open {
            self.committer.opened(self);
        }
        Ok(Some(Written { file, path: front.place.path, bytes: until - front.offset }))
    }

    /// Cuts the filler off a segment that gets a successor. Nothing of it may be torn any more, whatever a commit means.
    fn seal(&self, place: &Place) -> Result<(), JournalError> {
        let unsynced = self.committer.options.sync == SyncMode::Os;
        let filled = place.allocated > place.end;
        if !filled && !unsynced {
            return Ok(());
        }
        let file = self.reopen(place.file.as_ref(), &place.path)?;
        if filled {
            file.set_len(place.end).map_err(|e| JournalError::io("cut", &place.path, e))?;
        }
        if unsynced {
            file.sync_data().map_err(|e| JournalError::io("sync", &place.path, e))?;
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

    /// The front batch is durable. Called by the committer.
    pub(crate) fn committed(self: &Arc<Self>, ticket: u64) {
        let seq = {
            let mut state = lock(&self.state);
            if state.queue.front().is_none_or(|batch| batch.ticket.0 > ticket) {
                return;
            }
            let Some(batch) = state.queue.pop_front() else { return };
            state.hint = batch.bytes.len() + batch.bytes.len() / 4 + 256;
            self.committer.queued.fetch_sub(batch.bytes.len() as u64, Ordering::Relaxed);
            state.committed_seq = state.committed_seq.max(batch.last_seq);
            let seq = state.committed_seq;
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
            seq
        };
        if let Some(observer) = self.observer.get() {
            observer.committed(seq, Ticket(ticket));
        }
    }
}
