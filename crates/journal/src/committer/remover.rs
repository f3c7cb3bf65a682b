//! A thread that deletes files, so that nobody who appends or commits waits for that.

use super::{Arc, Condvar, Mutex, PoisonError, lock};
use crate::journal::Inner;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Arc<Inner>>,
    // The log whose files go now.
    working: Option<PathBuf>,
    // There is a thread.
    threaded: bool,
    // It takes no more.
    closed: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Remover {
    jobs: Mutex<Jobs>,
    changed: Condvar,
}

impl Remover {
    pub(super) fn spawn(self: &Arc<Self>) -> std::io::Result<JoinHandle<()>> {
        let remover = self.clone();
        let thread =
            std::thread::Builder::new().name("postroad-remove".into()).spawn(move || remover.run())?;
        lock(&self.jobs).threaded = true;
        Ok(thread)
    }

    /// False if there is no thread for it.
    pub(super) fn push(&self, journal: &Arc<Inner>) -> bool {
        let mut jobs = lock(&self.jobs);
        let takes = jobs.threaded && !jobs.closed;
        if takes {
            jobs.waiting.push_back(journal.clone());
            self.changed.notify_all();
        }
        takes
    }

    /// Waits until nothing is left to delete of the log in `dir`.
    pub(super) fn finish(&self, dir: &Path) {
        let jobs = lock(&self.jobs);
        let busy = |jobs: &mut Jobs| {
            jobs.working.as_deref() == Some(dir) || jobs.waiting.iter().any(|journal| journal.dir == dir)
        };
        drop(self.changed.wait_while(jobs, busy).unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes no more; the thread ends when all is deleted.
    pub(super) fn close(&self) {
        lock(&self.jobs).closed = true;
        self.changed.notify_all();
    }

    fn run(&self) {
        loop {
            let journal = {
                let jobs = lock(&self.jobs);
                let idle = |jobs: &mut Jobs| jobs.waiting.is_empty() && !jobs.closed;
                let mut jobs = self.changed.wait_while(jobs, idle).unwrap_or_else(PoisonError::into_inner);
                let Some(journal) = jobs.waiting.pop_front() else { return };
                jobs.working = Some(journal.dir.clone());
                journal
            };
            if let Err(error) = journal.remove_leaving() {
                tracing::warn!(%error, "old segments could not be deleted");
            }
            // Before it is said to be done: who waits may open the same log again.
            drop(journal);
            lock(&self.jobs).working = None;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, Remover};
    use std::time::Duration;

    /// It may run before who started it does anything more.
    #[test]
    fn the_thread_ends_when_it_is_closed_and_not_before() {
        let remover = Arc::<Remover>::default();
        let thread = {
            let remover = remover.clone();
            std::thread::spawn(move || remover.run())
        };
        std::thread::sleep(Duration::from_millis(50));
        assert!(!thread.is_finished(), "what it is given from now on is never deleted");
        remover.close();
        thread.join().unwrap();
    }
}
