//! How what is written becomes durable, and when, if nobody asks for it.

use super::{Committer, Ordering, lock};
use crate::error::JournalError;
use crate::journal::Inner;
use crate::storage::StorageFile;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

impl Committer {
    /// Makes durable what is written; false if it is. Records that are written meanwhile do not wait for it.
    pub fn sync_now(&self) -> Result<bool, JournalError> {
        let (number, points, files, alone) = {
            let running = lock(&self.running);
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            if self.committed() == self.written() {
                return Ok(false);
            }
            let mut files = Vec::new();
            self.add_unsynced(&running.unsynced, &mut files);
            let points: Vec<(Arc<Inner>, u64)> =
                running.unsynced.iter().map(|journal| (journal.clone(), journal.written_seq())).collect();
            // Before cycles go on: one that syncs the same files waits for this.
            (self.written().0, points, files, lock(&self.syncing))
        };
        self.aside.store(true, Ordering::Relaxed);
        let synced = self.sync_files(&files);
        self.aside.store(false, Ordering::Relaxed);
        // Before another sync can say that all is well.
        synced.map_err(|error| self.fail(&error))?;
        drop(alone);
        let mut running = lock(&self.running);
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        for (journal, seq) in &points {
            journal.synced(number, *seq);
        }
        running.unsynced.retain(|journal| journal.unsynced().is_some());
        let since = if running.unsynced.is_empty() { 0 } else { self.micros() };
        self.unsynced_since.store(since, Ordering::Relaxed);
        let waiters = self.reach(&mut lock(&self.queue), number);
        super::call(waiters);
        Ok(true)
    }

    /// When something must be synced, if anything: from now on.
    pub(super) fn sync_due(&self) -> Option<Duration> {
        let since = self.unsynced_since.load(Ordering::Relaxed);
        let waited = Duration::from_micros(self.micros().saturating_sub(since));
        (since > 0).then(|| self.options.sync_after.saturating_sub(waited))
    }

    /// The files of these journals that are not synced. (With many the whole filesystem is.)
    pub(super) fn add_unsynced(
        &self,
        journals: &[Arc<Inner>],
        files: &mut Vec<(Arc<dyn StorageFile>, PathBuf)>,
    ) {
        for (file, path) in journals.iter().filter_map(|journal| journal.unsynced()) {
            if files.len() > 3 || !files.iter().any(|(_, other)| *other == path) {
                files.push((file, path));
            }
        }
    }

    /// `earlier`: some of it is of earlier cycles, and cannot be written again.
    pub(crate) fn sync(
        &self,
        files: &[(Arc<dyn StorageFile>, PathBuf)],
        earlier: bool,
    ) -> Result<(), JournalError> {
        if !earlier {
            return self.sync_files(files);
        }
        let _alone = lock(&self.syncing);
        // What ran before this may have been told of a failure that is told only once.
        self.failure().map_or(Ok(()), Err)?;
        self.sync_files(files).map_err(JournalError::fatal)
    }

    fn sync_files(&self, files: &[(Arc<dyn StorageFile>, PathBuf)]) -> Result<(), JournalError> {
        if files.len() > 3 {
            let synced = self.storage.sync_filesystem(&self.root);
            if synced.map_err(|e| JournalError::io("sync the filesystem of", &self.root, e))? {
                return Ok(());
            }
        }
        for (file, path) in files {
            file.sync_data().map_err(|e| JournalError::io("sync", path, e))?;
        }
        Ok(())
    }
}
