//! Outboxes and inboxes: logs of the journal crate in a directory of this process.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use postroad_core::{Error, ErrorKind, Result, Timestamp};
use postroad_journal::storage::RealStorage;
use postroad_journal::{Committer, CommitterOptions, Journal, JournalError, JournalOptions, Signal, Ticket};

use super::NAME;
use super::log::{Log, Mark, Record};

/// A log is rewritten when it is larger, and holds less.
const SEGMENT_BYTES: u64 = 16 << 20;

/// One directory, shared by all clients of this process that name it.
pub(super) struct Store {
    committer: Arc<Committer>,
    segment_bytes: u64,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The logs that somebody has.
    taken: Mutex<HashSet<String>>,
}

static STORES: Mutex<BTreeMap<PathBuf, Weak<Store>>> = Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn error(why: &JournalError) -> Error {
    let kind = match why {
        JournalError::DiskFull => ErrorKind::DiskFull,
        JournalError::Busy | JournalError::Locked { .. } => ErrorKind::Busy,
        JournalError::Corrupt { .. } => ErrorKind::Corrupt,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, NAME, why.to_string())
}

impl Store {
    /// The directory, made if it is not there. Blocks. [`Busy`](ErrorKind::Busy) while another process has it.
    pub(super) fn open(directory: &Path) -> Result<Arc<Self>> {
        Self::open_with(directory, SEGMENT_BYTES)
    }

    fn open_with(directory: &Path, segment_bytes: u64) -> Result<Arc<Self>> {
        let cannot = |why: std::io::Error| {
            Error::new(ErrorKind::Config, NAME, format!("{}: {why}", directory.display()))
        };
        std::fs::create_dir_all(directory).map_err(cannot)?;
        let root = directory.canonicalize().map_err(cannot)?;
        let mut stores = lock(&STORES);
        stores.retain(|_, store| store.strong_count() > 0);
        if let Some(store) = stores.get(&root).and_then(Weak::upgrade) {
            return Ok(store);
        }
        let options = CommitterOptions { preallocate: false, ..CommitterOptions::default() };
        let committer =
            Committer::open(Arc::new(RealStorage::new()), &root, options).map_err(|why| error(&why))?;
        let thread = committer
            .spawn(|why| tracing::error!(%why, "an outbox or inbox has failed: nothing is promised any more"))
            .map_err(cannot)?;
        let store = Arc::new(Self {
            committer,
            segment_bytes,
            thread: Mutex::new(Some(thread)),
            taken: Mutex::default(),
        });
        stores.insert(root, Arc::downgrade(&store));
        Ok(store)
    }

    fn directory(&self, name: &str) -> PathBuf {
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let plain: String = name.chars().map(|c| if letter(c) { c } else { '_' }).take(100).collect();
        // Two names that look alike so are told apart by their hash.
        self.committer.root().join(format!("{plain}-{:016x}", super::fnv(name.as_bytes())))
    }

    /// The log of this name and what it says. Blocks. [`Busy`](ErrorKind::Busy) while somebody has it.
    pub(super) fn log(
        self: &Arc<Self>,
        name: &str,
        signal: Arc<dyn Signal>,
    ) -> Result<(JournalLog, Vec<Record>)> {
        if !lock(&self.taken).insert(name.to_owned()) {
            return Err(Error::new(
                ErrorKind::Busy,
                NAME,
                format!("`{name}` has a consumer in this process"),
            ));
        }
        let opened = self.open_log(name);
        match opened {
            Ok((journal, records)) => {
                let log = JournalLog {
                    store: Arc::clone(self),
                    name: name.to_owned(),
                    journal,
                    signal,
                    unflushed: None,
                    trim_at: None,
                };
                Ok((log, records))
            }
            Err(why) => {
                lock(&self.taken).remove(name);
                Err(error(&why))
            }
        }
    }

    fn open_log(&self, name: &str) -> std::result::Result<(Journal, Vec<Record>), JournalError> {
        // What an earlier consumer wrote is read back from the files.
        while self.committer.commit_now()? {}
        let mut records = Vec::new();
        let options = JournalOptions { name: name.to_owned(), segment_bytes: self.segment_bytes };
        let (journal, _) = Journal::open(&self.committer, &self.directory(name), options, &mut |view| {
            records.push(Record::read(view)?);
            Ok(())
        })?;
        if journal.stats().segments == 0 {
            journal.roll(Timestamp::now().as_millis(), fresh_salt());
            journal.end_snapshot();
        }
        Ok((journal, records))
    }

    /// Removes the log of this name; whether there was one. [`Busy`](ErrorKind::Busy) while somebody has it. Blocks.
    pub(super) fn remove(&self, name: &str) -> Result<bool> {
        let taken = lock(&self.taken);
        if taken.contains(name) {
            return Err(Error::new(
                ErrorKind::Busy,
                NAME,
                format!("`{name}` has a consumer in this process"),
            ));
        }
        while self.committer.commit_now().map_err(|why| error(&why))? {}
        match std::fs::remove_dir_all(self.directory(name)) {
            Ok(()) => Ok(true),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(why) => Err(Error::new(ErrorKind::Internal, NAME, format!("`{name}`: {why}"))),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.committer.stop();
        if let Some(thread) = lock(&self.thread).take() {
            // It has nothing to do but what is queued.
            let _ = thread.join();
        }
    }
}

fn fresh_salt() -> u32 {
    // The low bytes of a UUIDv7 are random.
    let id = postroad_core::MessageId::generate();
    id.as_uuid().map_or(0, |uuid| uuid.as_u128() as u32)
}

/// A log that one client has.
pub(super) struct JournalLog {
    store: Arc<Store>,
    name: String,
    journal: Journal,
    signal: Arc<dyn Signal>,
    /// The commit of what was appended since the last flush.
    unflushed: Option<Mark>,
    /// When this is committed, a snapshot is whole and the segments before it can go.
    trim_at: Option<Mark>,
}

impl JournalLog {
    fn write(&self, records: &[Record]) -> Mark {
        let mut writer = self.journal.writer(Timestamp::now().as_millis());
        for record in records {
            writer.record(record.kind(), |out| record.write(out));
        }
        writer.ticket().0
    }
}

impl Log for JournalLog {
    fn append(&mut self, record: &Record) -> Mark {
        let mark = self.write(std::slice::from_ref(record));
        self.unflushed = Some(mark);
        mark
    }

    fn committed(&self) -> Mark {
        self.store.committer.committed().0
    }

    fn flush(&mut self) {
        if let Some(mark) = self.unflushed.take() {
            self.store.committer.flush(false);
            self.store.committer.notify(Ticket(mark), &self.signal);
        }
        if self.trim_at.is_some_and(|mark| mark <= self.committed()) {
            self.trim_at = None;
            // There are no messages of the journal's own kind in it: every segment but the last ends at 0.
            if let Err(why) = self.journal.trim(1) {
                tracing::warn!(name = self.name, %why, "old segments stay");
            }
        }
    }

    fn commit(&mut self) {
        while self.store.committer.commit_now().is_ok_and(|more| more) {}
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn wants_snapshot(&self) -> bool {
        self.trim_at.is_none() && self.journal.wants_roll()
    }

    fn snapshot(&mut self, records: Vec<Record>) {
        self.journal.roll(Timestamp::now().as_millis(), fresh_salt());
        let mark = self.write(&records);
        self.journal.end_snapshot();
        self.unflushed = Some(mark);
        self.trim_at = Some(mark);
    }

    fn admit(&self) -> Result<()> {
        self.store.committer.admit().map_err(|why| error(&why))
    }

    fn failure(&self) -> Option<Error> {
        self.store.committer.failure().map(|why| error(&why))
    }
}

impl Drop for JournalLog {
    fn drop(&mut self) {
        self.flush();
        lock(&self.store.taken).remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::link::Wake;

    fn numbers(records: &[Record]) -> Vec<u64> {
        let number = |record: &Record| if let Record::Done(number) = record { Some(*number) } else { None };
        records.iter().filter_map(number).collect()
    }

    #[test]
    fn a_snapshot_replaces_what_was_before_and_a_log_has_one_owner() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open_with(directory.path(), 4096).unwrap();
        assert!(Arc::ptr_eq(&store, &Store::open(directory.path()).unwrap()), "one for the process");
        let (mut log, records) = store.log("a", Arc::new(Wake::default())).unwrap();
        assert!(records.is_empty());
        assert_eq!(store.log("a", Arc::new(Wake::default())).err().unwrap().kind(), ErrorKind::Busy);
        assert_eq!(store.remove("a").unwrap_err().kind(), ErrorKind::Busy);
        let mut snapshots = 0;
        for number in 0..2000 {
            let mark = log.append(&Record::Done(number));
            log.commit();
            assert!(log.committed() >= mark);
            log.flush();
            if log.wants_snapshot() {
                snapshots += 1;
                log.snapshot(vec![Record::Next(number + 1)]);
            }
        }
        assert!(snapshots > 10, "{snapshots}");
        log.commit();
        log.flush();
        let folder = store.directory("a");
        assert!(std::fs::read_dir(&folder).unwrap().count() <= 3, "old segments are gone");
        drop(log);
        let (log, records) = store.log("a", Arc::new(Wake::default())).unwrap();
        let next = records.iter().find_map(|record| match record {
            Record::Next(number) => Some(*number),
            _ => None,
        });
        // All since the snapshot, and nothing before.
        let first = next.unwrap();
        assert_eq!(numbers(&records), (first..2000).collect::<Vec<_>>());
        drop(log);
        assert!(store.remove("a").unwrap());
        assert!(!store.remove("a").unwrap());
    }
}
