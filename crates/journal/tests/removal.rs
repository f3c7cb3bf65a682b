//! Old segments are deleted by a thread of its own.

mod common;

use postroad_journal::storage::{DirEntry, LockGuard, OpenMode, SimStorage, Storage, StorageFile};
use postroad_journal::{Committer, CommitterOptions, Journal, JournalOptions};
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A disk that deletes nothing until it may.
struct Reluctant {
    disk: SimStorage,
    may: Mutex<bool>,
    changed: Condvar,
}

impl Reluctant {
    fn allow(&self) {
        *self.may.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

impl Storage for Reluctant {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.disk.list(dir)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        self.disk.open(path, mode)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        drop(self.changed.wait_while(self.may.lock().unwrap(), |may| !*may).unwrap());
        self.disk.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn sync_filesystem(&self, root: &Path) -> io::Result<bool> {
        self.disk.sync_filesystem(root)
    }
    fn free_bytes(&self, root: &Path) -> io::Result<u64> {
        self.disk.free_bytes(root)
    }
    fn lock(&self, dir: &Path) -> io::Result<LockGuard> {
        self.disk.lock(dir)
    }
}

/// A committer with its thread, and a log of `segments` segments with a message each.
fn start(segments: u32) -> (Arc<Reluctant>, Arc<Committer>, JoinHandle<()>, Journal) {
    let disk =
        Arc::new(Reluctant { disk: SimStorage::new(1), may: Mutex::new(false), changed: Condvar::new() });
    let options = CommitterOptions { disk_floor: 0, ..CommitterOptions::default() };
    let committer = Committer::open(disk.clone(), Path::new("/d"), options).unwrap();
    let thread = committer.spawn(|error| panic!("{error}")).unwrap();
    let journal = open(&committer);
    for number in 0..segments {
        journal.roll(1, number);
        publish(&committer, &journal);
    }
    (disk, committer, thread, journal)
}

fn open(committer: &Arc<Committer>) -> Journal {
    open_in(committer, "/d/log")
}

fn open_in(committer: &Arc<Committer>, dir: &str) -> Journal {
    let options = JournalOptions { name: "log".into(), segment_bytes: 1 };
    Journal::open(committer, Path::new(dir), options, &mut |_| Ok(())).unwrap().0
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn publish(committer: &Committer, journal: &Journal) {
    let ticket = {
        let mut writer = journal.writer(1);
        writer.publish(&common::publish(b"1", 0));
        writer.ticket()
    };
    committer.flush(false);
    until("no commit beside a deletion", || committer.is_committed(ticket));
}

#[test]
fn nobody_waits_for_a_deletion_but_who_opens_the_log_again() {
    let (disk, committer, thread, journal) = start(6);
    let files = || disk.list(Path::new("/d/log")).unwrap().len();
    let before = files();
    assert_eq!(journal.trim(4).unwrap(), 4);
    assert_eq!(files(), before, "it is deleted on this thread");
    publish(&committer, &journal);
    assert_eq!(journal.trim(5).unwrap(), 5, "more may go before the first are gone");

    publish(&committer, &open_in(&committer, "/d/other"));

    let again = {
        let committer = committer.clone();
        std::thread::spawn(move || open(&committer).stats().first)
    };
    std::thread::sleep(Duration::from_millis(50));
    assert!(!again.is_finished(), "it may see files that are about to go");
    disk.allow();
    assert_eq!(again.join().unwrap(), 5);
    committer.stop();
    thread.join().unwrap();
    assert!(files() < before);
}

/// What is still to be deleted at the end is deleted.
#[test]
fn an_orderly_end_leaves_nothing_to_delete() {
    let (disk, committer, thread, journal) = start(4);
    let files = || disk.list(Path::new("/d/log")).unwrap().len();
    let before = files();
    journal.trim(3).unwrap();
    committer.stop();
    std::thread::sleep(Duration::from_millis(20));
    assert!(!thread.is_finished(), "it does not wait for what it was told to delete");
    disk.allow();
    thread.join().unwrap();
    assert!(files() < before, "{} files", files());
    // Now nobody else does it.
    for number in 4..6 {
        journal.roll(1, number);
        journal.writer(1).publish(&common::publish(b"1", 0));
        while committer.commit_now().unwrap() {}
    }
    let before = files();
    journal.trim(5).unwrap();
    assert!(files() < before);
}
