//! Group commit: one writer of all journals below a data directory.
//!
//! A cycle takes the front batch of every dirty journal, writes each with one call, makes all durable with one sync,
//! and then publishes its number: every [`Ticket`] up to it is committed. There is no timer: while one cycle is on
//! the disk the next one fills. When the system is quiet the publisher runs the cycle itself and saves two
//! thread hand-offs.
//!
//! A record may do without the sync ([`Writer::buffered`](crate::Writer::buffered)): then it is *written* at the end of
//! its cycle, and committed with the next cycle that has a record which does not, or a little later. Both marks are of
//! one order: what is committed, or written, is everything up to some cycle.

mod options;
mod pace;
mod remover;
mod unsynced;

pub use options::{CommitStats, CommitterOptions, Planted, SyncMode};

use crate::error::JournalError;
use crate::journal::{Inner, Synced, Wish};
use crate::storage::{LockGuard, Storage, StorageFile};
use pace::Pace;
use remover::Remover;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Which commit a record is part of. Committed when [`Committer::committed`] has reached it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Somebody who waits for a commit. Called on the committing thread: must be quick and must not block.
pub trait Signal: Send + Sync {
    /// Look again.
    fn signal(&self);
}

/// How often the disk is asked for its free space at most, when messages come.
const MEASURE_MICROS: u64 = 10_000;
/// After a commit larger than this others are likely to be about to publish. (A smaller one is not worth a turn.)
const GATHER_BYTES: u64 = 4 << 10;
/// With less free than this it is asked each time.
const ALWAYS_MEASURE: u64 = 64 << 20;

/// Who waits for which cycle.
type Waiters = BTreeMap<u64, Vec<Arc<dyn Signal>>>;

#[derive(Default)]
struct Queue {
    // Journals whose front batch belongs to the next cycle.
    dirty: Vec<Arc<Inner>>,
    // For a commit, and for a write.
    committing: Waiters,
    writing: Waiters,
    // The number of the next cycle.
    open: u64,
    sleeping: bool,
    stop: bool,
}

/// A cycle that met a full disk and is tried again.
#[derive(Default)]
struct Cycle {
    number: u64,
    journals: Vec<Arc<Inner>>,
    // It ends with a sync.
    syncs: bool,
}

/// What only a cycle, or who waits for one, may touch.
#[derive(Default)]
struct Running {
    // A cycle that could not finish because the disk is full.
    cycle: Option<Cycle>,
    // Journals with bytes that were written and not synced.
    unsynced: Vec<Arc<Inner>>,
}

/// Commits all journals below one data directory. See the module.
pub struct Committer {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) options: CommitterOptions,
    root: PathBuf,
    _lock: LockGuard,
    queue: Mutex<Queue>,
    work: Condvar,
    // Held while a cycle runs.
    running: Mutex<Running>,
    // Held while files are synced that have bytes of earlier cycles: the operating system tells a failure once. Taken
    // after `running`, never before.
    syncing: Mutex<()>,
    // A sync runs beside the cycles.
    aside: AtomicBool,
    written: AtomicU64,
    committed: AtomicU64,
    // Since when something is written and not synced, in microseconds since `started`; 0: nothing is.
    unsynced_since: AtomicU64,
    // True while cycles have at most one waiter: then the publisher commits inline.
    quiet: AtomicBool,
    pub(crate) queued: AtomicU64,
    pub(crate) tail_bytes: AtomicU64,
    free: AtomicU64,
    // When it was asked, in microseconds since `started`.
    measured: AtomicU64,
    // Journals with an open segment, the one opened first in front.
    open_files: Mutex<VecDeque<Weak<Inner>>>,
    threaded: AtomicBool,
    stalled: AtomicBool,
    bytes: AtomicU64,
    last_bytes: AtomicU64,
    pace: Pace,
    remover: Arc<Remover>,
    started: Instant,
    // When an inline commit began, in microseconds since `started`; 0: none runs.
    inline_since: AtomicU64,
    failed: Mutex<Option<Arc<str>>>,
    has_failed: AtomicBool,
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committer").field("root", &self.root).finish_non_exhaustive()
    }
}

/// A poisoned lock means a panic elsewhere; the state below is only changed in steps that leave it whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Committer {
    /// Takes the data directory `root` (made if missing) for this process.
    pub fn open(
        storage: Arc<dyn Storage>,
        root: &Path,
        options: CommitterOptions,
    ) -> Result<Arc<Self>, JournalError> {
        storage.create_dir_all(root).map_err(|e| JournalError::io("create", root, e))?;
        let lock = storage.lock(root).map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => JournalError::Locked { path: root.to_owned() },
            _ => JournalError::io("lock", root, e),
        })?;
        let free = storage.free_bytes(root).map_err(|e| JournalError::io("measure", root, e))?;
        Ok(Arc::new(Self {
            storage,
            options,
            root: root.to_owned(),
            _lock: lock,
            queue: Mutex::new(Queue { open: 1, ..Queue::default() }),
            work: Condvar::new(),
            running: Mutex::new(Running::default()),
            syncing: Mutex::new(()),
            aside: AtomicBool::new(false),
            written: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            unsynced_since: AtomicU64::new(0),
            quiet: AtomicBool::new(true),
            queued: AtomicU64::new(0),
            tail_bytes: AtomicU64::new(0),
            free: AtomicU64::new(free),
            measured: AtomicU64::new(0),
            open_files: Mutex::new(VecDeque::new()),
            threaded: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            last_bytes: AtomicU64::new(0),
            pace: Pace::default(),
            remover: Arc::default(),
            started: Instant::now(),
            inline_since: AtomicU64::new(0),
            failed: Mutex::new(None),
            has_failed: AtomicBool::new(false),
        }))
    }

    /// Lets go of what was not committed, if no thread commits it: journals and committer know each other, and would keep
    /// each other in memory.
    pub fn abandon(&self) {
        if self.threaded.load(Ordering::SeqCst) {
            return;
        }
        let mut queue = lock(&self.queue);
        // Numbers go on: whoever still appends must not take it for committed.
        let rest = Queue { open: queue.open, stop: true, ..Queue::default() };
        let left = std::mem::replace(&mut *queue, rest);
        drop(queue);
        let running = std::mem::take(&mut *lock(&self.running));
        drop((left, running));
    }

    /// The data directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// When a record counts as committed here.
    pub fn sync_mode(&self) -> SyncMode {
        self.options.sync
    }

    /// The disk.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Everything up to this ticket is committed.
    pub fn committed(&self) -> Ticket {
        Ticket(self.committed.load(Ordering::Acquire))
    }

    /// Everything up to this ticket is at least written to the operating system: a killed process does not lose it.
    pub fn written(&self) -> Ticket {
        Ticket(self.written.load(Ordering::Acquire))
    }

    /// True if `ticket` is committed.
    pub fn is_committed(&self, ticket: Ticket) -> bool {
        self.committed() >= ticket
    }

    /// Why nothing is committed any more, if so.
    pub fn failure(&self) -> Option<JournalError> {
        if !self.has_failed.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.failed).clone().map(JournalError::Failed)
    }

    /// Counters.
    pub fn stats(&self) -> CommitStats {
        CommitStats {
            commits: self.written.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            queued: self.queued.load(Ordering::Relaxed),
            free: self.free.load(Ordering::Relaxed),
        }
    }

    /// May messages be appended now? `Busy`: wait for the next commit. `DiskFull`: not until space returns.
    pub fn admit(&self) -> Result<(), JournalError> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        // Others fill the disk too. (Without the thread, in a simulation, nothing depends on real time.)
        if self.threaded.load(Ordering::Relaxed)
            && (self.free.load(Ordering::Relaxed) < ALWAYS_MEASURE
                || self.micros().saturating_sub(self.measured.load(Ordering::Relaxed)) > MEASURE_MICROS)
        {
            self.measure_disk();
        }
        let queued = self.queued.load(Ordering::Relaxed);
        let free = self.free.load(Ordering::Relaxed).saturating_sub(queued);
        if self.stalled.load(Ordering::Relaxed) || free < self.options.disk_floor {
            return Err(JournalError::DiskFull);
        }
        if queued > self.options.max_queued_bytes {
            return Err(JournalError::Busy);
        }
        Ok(())
    }

    /// True if the disk is not far above its floor: nothing should be written ahead.
    pub(crate) fn is_near_floor(&self) -> bool {
        self.free.load(Ordering::Relaxed) < self.options.disk_floor.saturating_mul(2)
    }

    /// Asks the disk how much is free. Commits ask too; a timer should, while publishing is refused.
    pub fn measure_disk(&self) {
        self.measured.store(self.micros(), Ordering::Relaxed);
        if let Ok(free) = self.storage.free_bytes(&self.root) {
            self.free.store(free, Ordering::Relaxed);
        }
    }

    /// `signal` is called when `ticket` is committed, or at once if it is (also when the journal has failed).
    pub fn notify(&self, ticket: Ticket, signal: &Arc<dyn Signal>) {
        self.wait(ticket, signal, |queue| &mut queue.committing, Self::committed);
    }

    /// The same for when it is [`written`](Self::written).
    pub fn notify_written(&self, ticket: Ticket, signal: &Arc<dyn Signal>) {
        self.wait(ticket, signal, |queue| &mut queue.writing, Self::written);
    }

    fn wait(
        &self,
        ticket: Ticket,
        signal: &Arc<dyn Signal>,
        waiters: impl FnOnce(&mut Queue) -> &mut Waiters,
        reached: impl FnOnce(&Self) -> Ticket,
    ) {
        let mut queue = lock(&self.queue);
        if reached(self) >= ticket || self.has_failed.load(Ordering::Acquire) {
            drop(queue);
            signal.signal();
            return;
        }
        waiters(&mut queue).entry(ticket.0).or_default().push(signal.clone());
    }

    /// `signal` is called at the end of the next cycle.
    pub fn notify_next(&self, signal: &Arc<dyn Signal>) {
        let ticket = Ticket(self.written().0 + 1);
        self.notify_written(ticket, signal);
    }

    /// A journal opened a segment to write to: another lets go of its own, if there are too many.
    pub(crate) fn opened(&self, journal: &Arc<Inner>) {
        let surplus = {
            let mut open = lock(&self.open_files);
            open.push_back(Arc::downgrade(journal));
            if open.len() > self.options.max_open_files { open.pop_front() } else { None }
        };
        if let Some(surplus) = surplus.and_then(|journal| journal.upgrade())
            && !Arc::ptr_eq(&surplus, journal)
        {
            surplus.close_files();
        }
    }

    /// A journal got its first batch: it is part of the next cycle. Called with the journal's state locked.
    pub(crate) fn enlist(&self, journal: Arc<Inner>) -> Ticket {
        let mut queue = lock(&self.queue);
        queue.dirty.push(journal);
        Ticket(queue.open)
    }

    /// Gets the commit of what was appended going. With `inline`, runs it on this thread if nobody else is about to.
    ///
    /// Call once after a group of appends, with no lock of yours held: observers are called. True if this thread committed.
    pub fn flush(&self, inline: bool) -> bool {
        let mut committed = false;
        if inline
            && (self.quiet.load(Ordering::Relaxed) || self.aside.load(Ordering::Relaxed))
            && let Ok(mut running) = self.running.try_lock()
        {
            self.inline_since.store(self.micros(), Ordering::Relaxed);
            // An error is kept for everybody who asks.
            committed = self.cycle(&mut running).is_ok_and(|did| did);
            self.inline_since.store(0, Ordering::Relaxed);
        }
        let queue = lock(&self.queue);
        if queue.sleeping && !queue.dirty.is_empty() {
            self.work.notify_one();
        }
        committed
    }

    /// How long a thread of the owner has been committing inline, if one is. A disk that hangs holds it.
    pub fn inline_for(&self) -> Option<Duration> {
        let since = self.inline_since.load(Ordering::Relaxed);
        (since > 0).then(|| Duration::from_micros(self.micros().saturating_sub(since)))
    }

    /// Has files of segments deleted that left a journal; false if there is no thread for it.
    pub(crate) fn remove_soon(&self, journal: &Arc<Inner>) -> bool {
        self.remover.push(journal)
    }

    /// Waits until nothing is left to delete of the log in `dir`.
    pub(crate) fn finish_removals(&self, dir: &Path) {
        self.remover.finish(dir);
    }

    /// Bytes that one batch of a journal takes, about.
    pub(crate) fn batch_bytes(&self) -> usize {
        self.options.max_batch_bytes.saturating_mul(self.pace.factor())
    }

    fn micros(&self) -> u64 {
        self.started.elapsed().as_micros() as u64 + 1
    }

    /// Runs one cycle on this thread; false if there was nothing to do.
    pub fn commit_now(&self) -> Result<bool, JournalError> {
        self.cycle(&mut lock(&self.running))
    }

    /// Starts the committing thread, and one that deletes old segments. They end after [`Committer::stop`] or a failure;
    /// `on_failure` is called once then.
    pub fn spawn(
        self: &Arc<Self>,
        on_failure: impl FnOnce(JournalError) + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let committer = self.clone();
        let remover = self.remover.spawn()?;
        self.threaded.store(true, Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("postroad-commit".into()).spawn(move || {
            let result = committer.run();
            committer.remover.close();
            if let Err(error) = result {
                on_failure(error);
            }
            let _ = remover.join();
        });
        thread.inspect_err(|_| self.remover.close())
    }

    /// Lets the thread finish what is queued, sync it, and end.
    pub fn stop(&self) {
        lock(&self.queue).stop = true;
        self.work.notify_all();
    }

    fn run(&self) -> Result<(), JournalError> {
        loop {
            let stalled = {
                let mut queue = lock(&self.queue);
                loop {
                    if let Some(failure) = self.failure() {
                        return Err(failure);
                    }
                    if !queue.dirty.is_empty() || self.stalled.load(Ordering::Relaxed) {
                        break;
                    }
                    if queue.stop {
                        drop(queue);
                        return self.sync_now().map(drop);
                    }
                    // The timeout notices a failure of an inline commit.
                    let wait = self.sync_due().unwrap_or(Duration::MAX).min(Duration::from_millis(250));
                    if wait.is_zero() {
                        break;
                    }
                    queue.sleeping = true;
                    let (guard, _) =
                        self.work.wait_timeout(queue, wait).unwrap_or_else(PoisonError::into_inner);
                    queue = guard;
                    queue.sleeping = false;
                }
                self.stalled.load(Ordering::Relaxed)
            };
            if self.sync_due() == Some(Duration::ZERO) {
                self.sync_now()?;
            }
            if stalled {
                std::thread::sleep(Duration::from_millis(50));
                self.measure_disk();
            }
            if self.last_bytes.load(Ordering::Relaxed) > GATHER_BYTES {
                // Publishers that are ready to run join this commit instead of the next one.
                std::thread::yield_now();
            }
            match self.commit_now() {
                Ok(_) => {}
                Err(error) if error.is_disk_full() => {
                    if lock(&self.queue).stop {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn cycle(&self, running: &mut Running) -> Result<bool, JournalError> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let mut cycle = match running.cycle.take() {
            Some(cycle) => cycle,
            None => {
                let mut queue = lock(&self.queue);
                if queue.dirty.is_empty() {
                    return Ok(false);
                }
                let number = queue.open;
                queue.open += 1;
                Cycle { number, journals: std::mem::take(&mut queue.dirty), syncs: false }
            }
        };
        if let Err(error) = self.write(running, &mut cycle) {
            if error.is_out_of_files() {
                tracing::warn!(%error, "too many open files: commits wait until some are closed; raise `ulimit -n`");
            }
            if error.is_disk_full() || error.is_out_of_files() {
                if !self.stalled.swap(true, Ordering::Relaxed) {
                    tracing::warn!("the disk is full: commits wait until space returns");
                    // Only the thread tries again.
                    self.work.notify_all();
                }
                running.cycle = Some(cycle);
                return Err(JournalError::DiskFull);
            }
            return Err(self.fail(&error));
        }
        if self.stalled.swap(false, Ordering::Relaxed) {
            tracing::info!("the disk has space again: commits go on");
        }
        let waiters = self.publish(running, &cycle);
        self.quiet.store(waiters <= 1, Ordering::Relaxed);
        Ok(true)
    }

    /// Writes the front batch of every journal of the cycle, and syncs them if one asks for it. Can be repeated after a
    /// full disk.
    fn write(&self, running: &mut Running, cycle: &mut Cycle) -> Result<(), JournalError> {
        let mut files: Vec<(Arc<dyn StorageFile>, PathBuf)> = Vec::with_capacity(cycle.journals.len());
        let (mut written, start) = (0, self.threaded.load(Ordering::Relaxed).then(Instant::now));
        let syncs = self.options.sync == SyncMode::Fdatasync;
        // Unsynced files are held open.
        cycle.syncs |= !syncs
            || running.unsynced.len() >= self.options.max_open_files.max(1)
            || cycle.journals.iter().any(|journal| journal.wants_sync());
        // One syncfs costs about as much as two durable writes, however many files are dirty.
        let direct =
            self.options.direct_io && self.options.preallocate && !self.options.planted.ack_before_sync;
        let through = syncs && direct && cycle.journals.len() + running.unsynced.len() <= 3;
        for journal in &cycle.journals {
            let wish = if cycle.syncs { Wish::Now { through } } else { Wish::Later };
            if let Some(file) = journal.write_front(wish)? {
                written += file.bytes;
                match file.sync {
                    Synced::Yes => {}
                    Synced::No => {
                        // Somebody has joined who asks for it.
                        cycle.syncs = true;
                        files.push((file.file, file.path));
                    }
                    Synced::Later { first: true } => running.unsynced.push(journal.clone()),
                    Synced::Later { first: false } => {}
                }
            }
            if syncs && files.len() >= self.options.max_open_files.max(1) {
                self.sync(&files, !running.unsynced.is_empty())?;
                files.clear();
            }
        }
        self.bytes.fetch_add(written, Ordering::Relaxed);
        self.last_bytes.store(written, Ordering::Relaxed);
        if self.options.planted.ack_before_sync {
            self.wake(cycle.number, true);
        }
        if syncs && cycle.syncs {
            if !self.options.planted.forget_unsynced {
                self.add_unsynced(&running.unsynced, &mut files);
            }
            self.sync(&files, !running.unsynced.is_empty())?;
        }
        if let Some(start) = start.filter(|_| cycle.syncs) {
            self.pace.note(written, start.elapsed());
        }
        let near_floor = self.free.load(Ordering::Relaxed) < self.options.disk_floor.saturating_mul(4);
        if near_floor || cycle.number.is_multiple_of(64) {
            self.measure_disk();
        } else {
            // Counted down in between, so that a burst cannot run through the floor unseen.
            let free = self.free.load(Ordering::Relaxed);
            self.free.store(free.saturating_sub(written), Ordering::Relaxed);
        }
        Ok(())
    }

    /// The cycle is written, or durable: tell the journals, then everybody who waits. Says how many waited.
    fn publish(&self, running: &mut Running, cycle: &Cycle) -> usize {
        for journal in &cycle.journals {
            journal.done(cycle.number, cycle.syncs);
        }
        if cycle.syncs {
            for journal in running.unsynced.drain(..) {
                journal.synced(cycle.number, u64::MAX);
            }
            self.unsynced_since.store(0, Ordering::Relaxed);
        }
        self.wake(cycle.number, cycle.syncs)
    }

    /// Everything up to `number` is written, and synced if it is said.
    fn wake(&self, number: u64, synced: bool) -> usize {
        let (written, committed) = {
            let mut queue = lock(&self.queue);
            self.written.fetch_max(number, Ordering::AcqRel);
            let committed = if synced { self.reach(&mut queue, number) } else { Waiters::new() };
            if !synced && self.unsynced_since.load(Ordering::Relaxed) == 0 {
                self.unsynced_since.store(self.micros(), Ordering::Relaxed);
                // The thread sleeps longer than that.
                self.work.notify_one();
            }
            (up_to(&mut queue.writing, number), committed)
        };
        call(written) + call(committed)
    }

    /// Everything up to `number` is durable; says who waited for that.
    fn reach(&self, queue: &mut Queue, number: u64) -> Waiters {
        self.committed.fetch_max(number, Ordering::AcqRel);
        up_to(&mut queue.committing, number)
    }

    /// After a failed write or sync nothing is known of the disk: promise nothing more.
    fn fail(&self, error: &JournalError) -> JournalError {
        let text: Arc<str> = match error {
            JournalError::Failed(text) => text.clone(),
            other => other.to_string().into(),
        };
        *lock(&self.failed) = Some(text.clone());
        let waiters = {
            let mut queue = lock(&self.queue);
            self.has_failed.store(true, Ordering::Release);
            (std::mem::take(&mut queue.writing), std::mem::take(&mut queue.committing))
        };
        call(waiters.0);
        call(waiters.1);
        self.work.notify_all();
        JournalError::Failed(text)
    }
}

/// Takes those out who wait for `number` or less.
fn up_to(waiters: &mut Waiters, number: u64) -> Waiters {
    let later = waiters.split_off(&(number + 1));
    std::mem::replace(waiters, later)
}

/// Calls them; says how many they were.
fn call(waiters: Waiters) -> usize {
    let mut count = 0;
    for signal in waiters.into_values().flatten() {
        count += 1;
        signal.signal();
    }
    count
}
