//! Many threads on a real disk.

mod common;

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use postroad_journal::{
    CommitObserver, Committer, CommitterOptions, Journal, JournalError, JournalOptions, Signal, Ticket,
    storage::RealStorage,
};

const THREADS: u64 = 4;
const EACH: u64 = 150;

struct Wake(Mutex<mpsc::Sender<()>>);

impl Signal for Wake {
    fn signal(&self) {
        let _ = self.0.lock().unwrap().send(());
    }
}

#[derive(Default)]
struct Highest(AtomicU64);

impl CommitObserver for Highest {
    fn committed(&self, seq: u64, _ticket: Ticket) {
        assert!(self.0.fetch_max(seq, Ordering::SeqCst) <= seq, "commits must not go back");
    }
}

fn committer(root: &Path) -> Result<Arc<Committer>, JournalError> {
    let options = CommitterOptions { disk_floor: 0, ..CommitterOptions::default() };
    Committer::open(Arc::new(RealStorage::new()), root, options)
}

fn open(committer: &Arc<Committer>, log: u64) -> (Journal, Vec<u64>) {
    let mut seen = Vec::new();
    let options = JournalOptions { name: format!("log{log}"), segment_bytes: 16 << 10 };
    let dir = committer.root().join(format!("log{log}"));
    let (journal, recovery) = Journal::open(committer, &dir, options, &mut |view| {
        let text = std::str::from_utf8(view.line).map_err(|e| e.to_string())?;
        let number = text.split("\"n\":").nth(1).and_then(|rest| rest.split(',').next());
        seen.push(number.and_then(|n| n.parse().ok()).ok_or("no number")?);
        Ok(())
    })
    .unwrap();
    assert_eq!(recovery.torn, None);
    (journal, seen)
}

#[test]
fn threads_share_commits_and_everything_is_there_afterwards() {
    let temp = tempfile::tempdir().unwrap();
    // Five logs are more than are synced one by one.
    let logs = 5;
    {
        let committer = committer(temp.path()).unwrap();
        let thread = committer.spawn(|error| panic!("{error}")).unwrap();
        let highest = Arc::new(Highest::default());
        let journals: Vec<Journal> = (0..logs).map(|log| open(&committer, log).0).collect();
        journals[0].observe(highest.clone());
        std::thread::scope(|scope| {
            for t in 0..THREADS {
                let (committer, journals) = (&committer, &journals);
                scope.spawn(move || {
                    let (sender, receiver) = mpsc::channel();
                    let wake: Arc<dyn Signal> = Arc::new(Wake(Mutex::new(sender)));
                    for i in 0..EACH {
                        let journal = &journals[((t + i) % logs) as usize];
                        let payload = common::payload(t * EACH + i, (i % 50) as usize);
                        let (seq, ticket) = {
                            static ROLL: Mutex<()> = Mutex::new(());
                            let _one = ROLL.lock().unwrap();
                            if journal.wants_roll() {
                                journal.roll(i, 7 + i as u32);
                            }
                            let mut writer = journal.writer(i);
                            (writer.publish(&common::publish(&payload, 0)), writer.ticket())
                        };
                        committer.flush(i % 3 == 0);
                        committer.notify(ticket, &wake);
                        receiver.recv_timeout(std::time::Duration::from_secs(20)).expect("a commit");
                        assert!(committer.is_committed(ticket));
                        let event = journal.read(seq).unwrap().expect("committed, so it can be read");
                        assert_eq!(event.payload, payload);
                    }
                });
            }
        });
        assert_eq!(highest.0.load(Ordering::SeqCst), journals[0].stats().committed);
        assert!(matches!(self::committer(temp.path()), Err(JournalError::Locked { .. })));
        committer.stop();
        thread.join().unwrap();
        for journal in &journals {
            journal.close().unwrap();
        }
    }
    let committer = committer(temp.path()).unwrap();
    let mut all: Vec<u64> = (0..logs).flat_map(|log| open(&committer, log).1).collect();
    all.sort_unstable();
    assert_eq!(all, (0..THREADS * EACH).collect::<Vec<_>>());
}

/// Who does not ask for a sync hears when it is written, and the sync comes by itself.
#[test]
fn what_nobody_asked_to_be_synced_is_synced_soon() {
    let temp = tempfile::tempdir().unwrap();
    let options =
        CommitterOptions { disk_floor: 0, sync_after: Duration::from_millis(30), ..Default::default() };
    let committer = Committer::open(Arc::new(RealStorage::new()), temp.path(), options).unwrap();
    let thread = committer.spawn(|error| panic!("{error}")).unwrap();
    let journal = open(&committer, 1).0;
    journal.roll(1, 1);
    let (sender, receiver) = mpsc::channel();
    let wake: Arc<dyn Signal> = Arc::new(Wake(Mutex::new(sender)));
    for round in 0..5 {
        let payload = common::payload(round, 10);
        let (seq, ticket) = {
            let mut writer = journal.writer(2).buffered();
            (writer.publish(&common::publish(&payload, 0)), writer.ticket())
        };
        committer.flush(true);
        committer.notify_written(ticket, &wake);
        receiver.recv_timeout(Duration::from_secs(20)).expect("a write");
        assert!(committer.written() >= ticket);
        assert_eq!(journal.read(seq).unwrap().expect("written, so it can be read").payload, payload);
        let after = Instant::now();
        committer.notify(ticket, &wake);
        receiver.recv_timeout(Duration::from_secs(20)).expect("a commit");
        assert!(committer.is_committed(ticket) && journal.stats().committed == seq);
        assert!(round == 0 || after.elapsed() > Duration::from_millis(10), "nobody asked for it");
    }
    // The end does not wait for that.
    let mut writer = journal.writer(3).buffered();
    writer.publish(&common::publish(b"1", 0));
    let ticket = writer.ticket();
    drop(writer);
    committer.stop();
    thread.join().unwrap();
    assert!(committer.is_committed(ticket));
}
