//! How old segments go.
//!
//! Oldest first, and each durably before the next: a power cut in between leaves no gap in the rest. Deleting a file and
//! syncing its directory takes a disk milliseconds, so a thread of the committer does it, if there is one.

use super::{Inner, Journal};
use crate::committer::lock;
use crate::error::JournalError;
use std::sync::Arc;

impl Journal {
    /// Deletes the whole segments before message `seq`; says the first message kept. Never the last segment.
    ///
    /// The segments are not part of the log any more when this returns. With a thread ([`Committer::spawn`](crate::Committer::spawn)) their
    /// files go a little later, and an error is logged; without, they are gone, too.
    pub fn trim(&self, seq: u64) -> Result<u64, JournalError> {
        let (any, first) = {
            let mut state = lock(&self.inner.state);
            let count = state.trimmable(seq);
            let state = &mut *state;
            state.leaving.extend(state.segments.drain(..count));
            let last = state.leaving.back().filter(|_| count > 0).map(|last| last.header.number);
            if let Some(last) = last {
                self.inner.evict(state, |chunk| chunk.number <= last);
            }
            (count > 0, state.segments.front().map_or(1, |s| s.header.base))
        };
        if any && !self.inner.committer.remove_soon(&self.inner) {
            // The thread may be at its last ones.
            self.inner.committer.finish_removals(&self.inner.dir);
            self.inner.remove_leaving()?;
        }
        Ok(first)
    }
}

impl Inner {
    /// Deletes the files of segments that left the log. Called by one thread at a time.
    pub(crate) fn remove_leaving(self: &Arc<Self>) -> Result<(), JournalError> {
        loop {
            let Some(path) = lock(&self.state).leaving.front().map(|segment| segment.path.clone()) else {
                return Ok(());
            };
            let removed = self.committer.storage.remove(&path);
            let is_there = removed.is_err();
            let removed = removed.map_err(|e| JournalError::io("delete", &path, e));
            let removed = removed.and_then(|()| self.sync_dir());
            let mut state = lock(&self.state);
            let segment = state.leaving.pop_front();
            let Err(error) = removed else { continue };
            // Whether its name comes back with the next power cut, nobody knows: those behind it stay until a start has
            // looked.
            if let Some(segment) = segment.filter(|_| is_there) {
                state.leaving.push_front(segment);
            }
            state.stuck = true;
            while let Some(segment) = state.leaving.pop_back() {
                state.segments.push_front(segment);
            }
            return Err(error);
        }
    }
}
