//! Commits that come when the test says.

use super::{answer, config, listen, packet, start_on};
use postroad_engine::log::{Fold, Log, LogError, LogStore, Signal, Ticket};
use postroad_journal::CommitStats;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the journal commits counts from when the test lets it.
struct Held {
    journal: Arc<dyn LogStore>,
    reached: AtomicU64,
    asked: Mutex<Vec<(Ticket, Arc<dyn Signal>)>>,
}

impl Held {
    fn let_go(&self, ticket: Ticket) {
        self.reached.store(ticket.0, Ordering::SeqCst);
        let mut asked = self.asked.lock().unwrap();
        asked.retain(|(wanted, signal)| {
            if *wanted <= ticket {
                signal.signal();
            }
            *wanted > ticket
        });
    }

    /// Waits until so many commits are asked for; gives them.
    fn asked(&self, count: usize) -> Vec<Ticket> {
        let begin = Instant::now();
        loop {
            let asked: Vec<Ticket> = self.asked.lock().unwrap().iter().map(|(ticket, _)| *ticket).collect();
            if asked.len() >= count {
                return asked;
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "asked for {asked:?} only");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl LogStore for Held {
    fn sync_mode(&self) -> &'static str {
        self.journal.sync_mode()
    }
    fn list(&self) -> Result<Vec<String>, LogError> {
        self.journal.list()
    }
    fn open(&self, name: &str, fold: Fold<'_>) -> Result<Arc<dyn Log>, LogError> {
        self.journal.open(name, fold)
    }
    fn open_system(&self, name: &'static str, fold: Fold<'_>) -> Result<Arc<dyn Log>, LogError> {
        self.journal.open_system(name, fold)
    }
    fn admit(&self) -> Result<(), LogError> {
        self.journal.admit()
    }
    fn flush(&self, _: bool) -> bool {
        self.journal.flush(true);
        false
    }
    fn committed(&self) -> Ticket {
        Ticket(self.reached.load(Ordering::SeqCst))
    }
    fn failure(&self) -> Option<LogError> {
        self.journal.failure()
    }
    fn notify(&self, ticket: Ticket, signal: &Arc<dyn Signal>) {
        self.asked.lock().unwrap().push((ticket, signal.clone()));
    }
    fn measure_disk(&self) {
        self.journal.measure_disk();
    }
    fn stats(&self) -> CommitStats {
        self.journal.stats()
    }
    fn start(&self, on_failure: Box<dyn FnOnce(LogError) + Send>) -> std::io::Result<()> {
        self.journal.start(on_failure)
    }
    fn stop(&self) {
        self.journal.stop();
    }
    fn root(&self) -> Option<PathBuf> {
        self.journal.root()
    }
}

/// Under a steady flow more has been asked for whenever a commit is done: who waits for that one must not wait on.
#[test]
fn a_commit_is_told_though_more_was_asked_for_since() {
    let mut held = None;
    let running = start_on(config(vec![listen()]), |journal| {
        let store = Arc::new(Held { journal, reached: AtomicU64::new(0), asked: Mutex::default() });
        held = Some(store.clone());
        store
    });
    let held = held.unwrap();
    let (mut first, mut second) = (running.connect(), running.connect());
    first.write_all(&packet(b'd', b"first")).unwrap();
    let one = held.asked(1)[0];
    while held.journal.committed() < one {
        std::thread::sleep(Duration::from_millis(1));
    }
    second.write_all(&packet(b'd', b"second")).unwrap();
    let two = held.asked(2)[1];
    assert!(one < two);
    held.let_go(one);
    assert_eq!(answer(&mut first), b"first");
    held.let_go(two);
    assert_eq!(answer(&mut second), b"second");
    running.end().unwrap();
}
