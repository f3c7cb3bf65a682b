//! The journal as the log: one directory of readable segments per stream.

use super::{
    Append, CommitObserver, Event, Fold, Log, LogError, LogStats, LogStore, Publish, Signal, Ticket,
};
use postroad_journal::storage::{RealStorage, Storage};
use postroad_journal::{CommitStats, Committer, CommitterOptions, Journal, JournalOptions, SyncMode, Writer};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Logs in a data directory: `streams/<topic>/*.jsonl` and `catalog/*.jsonl`.
pub struct JournalStore {
    committer: Arc<Committer>,
    segment_bytes: u64,
    thread: Mutex<Option<JoinHandle<()>>>,
    // Writers opened so far, per log: only the newest may append.
    epochs: Mutex<HashMap<PathBuf, Arc<AtomicU64>>>,
    salts: AtomicU64,
}

struct JournalLog {
    journal: Journal,
    epoch: u64,
    current: Arc<AtomicU64>,
    salts: AtomicU64,
    // The commit that ends the last snapshot, which may take several; `NO_SNAPSHOT` before the first of this life.
    snapshot_at: AtomicU64,
}

/// A crash may have left a segment without its snapshot, or with a part of it, and records of later lives behind that.
const NO_SNAPSHOT: u64 = u64::MAX;

impl JournalStore {
    /// Takes the data directory `root` on the real disk.
    pub fn open(root: &Path, segment_bytes: u64, options: CommitterOptions) -> Result<Self, LogError> {
        let salt = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as u64);
        Self::open_on(Arc::new(RealStorage::new()), root, segment_bytes, options, salt)
    }

    /// The same on any [`Storage`]; `salt_seed` makes the salts of segments, so that a simulation can repeat itself.
    pub fn open_on(
        storage: Arc<dyn Storage>,
        root: &Path,
        segment_bytes: u64,
        options: CommitterOptions,
        salt_seed: u64,
    ) -> Result<Self, LogError> {
        let committer = Committer::open(storage, root, options)?;
        Ok(Self {
            committer,
            segment_bytes,
            thread: Mutex::new(None),
            epochs: Mutex::new(HashMap::new()),
            salts: AtomicU64::new(salt_seed),
        })
    }

    /// Its committer.
    pub fn committer(&self) -> &Arc<Committer> {
        &self.committer
    }

    fn open_in(&self, dir: &Path, name: &str, fold: Fold<'_>) -> Result<Arc<dyn Log>, LogError> {
        let options = JournalOptions { name: name.to_owned(), segment_bytes: self.segment_bytes };
        let (journal, recovery) = Journal::open(&self.committer, dir, options, fold)?;
        tracing::debug!(name, ?recovery, "log opened");
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let current = epochs.entry(dir.to_owned()).or_default().clone();
        let epoch = current.fetch_add(1, Ordering::SeqCst) + 1;
        let salts = AtomicU64::new(self.salts.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed));
        Ok(Arc::new(JournalLog { journal, epoch, current, salts, snapshot_at: AtomicU64::new(NO_SNAPSHOT) }))
    }

    fn find(&self, dir: &Path, prefix: &str, names: &mut Vec<String>) -> Result<(), LogError> {
        let storage = &self.committer.storage();
        let entries = match storage.list(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => {
                other.map_err(|e| LogError::Io { op: "list", path: dir.to_owned(), source: Arc::new(e) })?
            }
        };
        let mut has_segments = false;
        for entry in entries {
            if entry.is_dir {
                let level = format!("{prefix}{}", entry.name);
                self.find(&dir.join(&entry.name), &format!("{level}/"), names)?;
            } else if postroad_journal::segment::parse_file_name(&entry.name).is_some() {
                has_segments = true;
            }
        }
        if has_segments && let Some(name) = decode_path(prefix.trim_end_matches('/')) {
            names.push(name);
        }
        Ok(())
    }
}

impl Drop for JournalStore {
    fn drop(&mut self) {
        self.committer.abandon();
    }
}

impl LogStore for JournalStore {
    fn sync_mode(&self) -> &'static str {
        match self.committer.sync_mode() {
            SyncMode::Fdatasync => "fdatasync",
            SyncMode::Os => "os",
        }
    }

    fn list(&self) -> Result<Vec<String>, LogError> {
        let mut names = Vec::new();
        self.find(&self.committer.root().join("streams"), "", &mut names)?;
        Ok(names)
    }

    fn open(&self, name: &str, fold: Fold<'_>) -> Result<Arc<dyn Log>, LogError> {
        let dir = self.committer.root().join("streams").join(encode_path(name));
        self.open_in(&dir, name, fold)
    }

    fn open_system(&self, name: &'static str, fold: Fold<'_>) -> Result<Arc<dyn Log>, LogError> {
        self.open_in(&self.committer.root().join(name), name, fold)
    }

    fn admit(&self) -> Result<(), LogError> {
        self.committer.admit()
    }

    fn flush(&self, inline: bool) -> bool {
        self.committer.flush(inline)
    }

    fn inline_for(&self) -> Option<std::time::Duration> {
        self.committer.inline_for()
    }

    fn committed(&self) -> Ticket {
        self.committer.committed()
    }

    fn written(&self) -> Ticket {
        self.committer.written()
    }

    fn failure(&self) -> Option<LogError> {
        self.committer.failure()
    }

    fn notify(&self, ticket: Ticket, signal: &Arc<dyn Signal>) {
        self.committer.notify(ticket, signal);
    }

    fn notify_written(&self, ticket: Ticket, signal: &Arc<dyn Signal>) {
        self.committer.notify_written(ticket, signal);
    }

    fn measure_disk(&self) {
        self.committer.measure_disk();
    }

    fn stats(&self) -> CommitStats {
        self.committer.stats()
    }

    fn start(&self, on_failure: Box<dyn FnOnce(LogError) + Send>) -> std::io::Result<()> {
        let thread = self.committer.spawn(on_failure)?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    fn stop(&self) {
        self.committer.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        // Without a thread (tests, simulation) the rest is committed here.
        while matches!(self.committer.commit_now(), Ok(true)) {}
        let _ = self.committer.sync_now();
    }

    fn root(&self) -> Option<PathBuf> {
        Some(self.committer.root().to_owned())
    }
}

struct JournalAppend<'a>(Writer<'a>);

impl Append for JournalAppend<'_> {
    fn publish(&mut self, publish: &Publish<'_>) -> u64 {
        self.0.publish(publish)
    }

    fn record(&mut self, kind: &str, fields: &[u8]) {
        self.0.record(kind, |out| out.extend_from_slice(fields));
    }
}

impl JournalLog {
    fn check_epoch(&self) -> Result<(), LogError> {
        if self.current.load(Ordering::SeqCst) == self.epoch { Ok(()) } else { Err(LogError::Fenced) }
    }
}

impl Log for JournalLog {
    fn append(&self, now: u64, write: &mut dyn FnMut(&mut dyn Append)) -> Result<Ticket, LogError> {
        self.check_epoch()?;
        let mut append = JournalAppend(self.journal.writer(now));
        write(&mut append);
        Ok(append.0.ticket())
    }

    fn append_buffered(&self, now: u64, write: &mut dyn FnMut(&mut dyn Append)) -> Result<Ticket, LogError> {
        self.check_epoch()?;
        let mut append = JournalAppend(self.journal.writer(now).buffered());
        write(&mut append);
        Ok(append.0.ticket())
    }

    fn observe(&self, observer: Arc<dyn CommitObserver>) {
        self.journal.observe(observer);
    }

    fn wants_snapshot(&self) -> bool {
        self.journal.wants_roll()
    }

    fn snapshot(&self, now: u64, write: &mut dyn FnMut(&mut dyn Append)) -> Result<Ticket, LogError> {
        self.check_epoch()?;
        let salt = self.salts.fetch_add(0x2545_f491_4f6c_dd1d, Ordering::Relaxed);
        self.snapshot_at.store(NO_SNAPSHOT, Ordering::SeqCst);
        self.journal.roll(now, (salt ^ (salt >> 32)) as u32);
        let ticket = self.append(now, write)?;
        self.journal.end_snapshot();
        self.snapshot_at.store(ticket.0, Ordering::SeqCst);
        Ok(ticket)
    }

    fn read(&self, seqs: &[u64], out: &mut Vec<Event>) -> Result<(), LogError> {
        self.journal.read_many(seqs, out)
    }

    fn seek_time(&self, time: u64) -> Result<u64, LogError> {
        self.journal.seek_time(time)
    }

    fn sizes(&self, with: &mut dyn FnMut(&dyn Fn(u64) -> u32)) {
        self.journal.sizes(|size_of| with(size_of));
    }

    fn priority_runs(&self, first: u64, last: u64, run: &mut dyn FnMut(u64, u64, i64)) {
        self.journal.priority_runs(first, last, run);
    }

    fn stats(&self) -> LogStats {
        self.journal.stats()
    }

    fn sealed(&self) -> Vec<(u64, u64, u64)> {
        self.journal.sealed()
    }

    fn snapshot_due(&self) -> bool {
        self.snapshot_at.load(Ordering::SeqCst) == NO_SNAPSHOT
    }

    fn trim(&self, seq: u64) -> Result<u64, LogError> {
        self.check_epoch()?;
        // Until the whole snapshot is durable, the segments before it are needed.
        if self.journal.committer().committed().0 < self.snapshot_at.load(Ordering::SeqCst) {
            return Ok(self.journal.stats().first);
        }
        self.journal.trim(seq)
    }

    fn close(&self) -> Result<(), LogError> {
        self.journal.close()
    }
}

/// A topic as a path: every level is one directory. Letters, digits, `-`, `_`, `$` and what is not ASCII stay; other
/// bytes become `%XX`, so no level is `.`, `..` or looks like a segment file.
fn encode_path(name: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for level in name.split('/') {
        let mut encoded = String::with_capacity(level.len());
        for c in level.chars() {
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '$') || !c.is_ascii() {
                encoded.push(c);
            } else {
                let _ = std::fmt::Write::write_fmt(&mut encoded, format_args!("%{:02X}", c as u32));
            }
        }
        // File names end at 255 bytes: a longer level continues in a directory below, marked by a trailing `%`.
        let mut rest = encoded.as_str();
        while rest.len() > 240 {
            let mut cut = 240;
            // Neither inside a character nor inside a `%XX`.
            let escape = |at: usize| rest.as_bytes()[at] == b'%';
            while !rest.is_char_boundary(cut) || escape(cut - 1) || escape(cut - 2) {
                cut -= 1;
            }
            path.push(format!("{}%", &rest[..cut]));
            rest = &rest[cut..];
        }
        path.push(rest);
    }
    path
}

fn decode_path(path: &str) -> Option<String> {
    let joined = path.replace("%/", "");
    let mut bytes = Vec::with_capacity(joined.len());
    let mut rest = joined.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_topic_cannot_leave_its_directory() {
        assert_eq!(encode_path("orders/eu"), PathBuf::from("orders/eu"));
        assert_eq!(encode_path("a/0000000001.jsonl"), PathBuf::from("a/0000000001%2Ejsonl"));
        assert_eq!(encode_path(".."), PathBuf::from("%2E%2E"));
    }

    proptest! {
        #[test]
        fn every_topic_has_its_own_path(name in "[a-z.%é ]{1,90}(/[A-Z.%$:]{1,160})?") {
            let path = encode_path(&name);
            for level in &path {
                prop_assert!(level.len() <= 255);
            }
            prop_assert_eq!(decode_path(path.to_str().unwrap()), Some(name));
        }
    }
}
