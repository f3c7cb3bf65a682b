//! Group commit: one writer of all journals below a data directory.
//!
//! A cycle takes the front batch of every dirty journal, writes each with one call, makes all durable with one sync,
//! and then publishes its number: every [`Ticket`] up to it is committed. There is no timer: while one cycle is on
//! the disk the next one fills. When the system is quiet the publisher runs the cycle itself and saves two
//! thread hand-offs.

use crate::error::JournalError;
use crate::journal::Inner;
use crate::storage::{LockGuard, Storage, StorageFile};
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

/// When a record counts as committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// After a write with `O_DSYNC`, which is write and fdatasync in one, or after fdatasync, or after syncfs when many
    /// files are dirty.
    #[default]
    Fdatasync,
    /// After it was written to the operating system: a power failure may lose it, a killed process does not.
    Os,
}

/// Deliberate defects, for the tests that prove that tests find them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planted {
    /// Reports a commit before its sync.
    pub ack_before_sync: bool,
    /// Accepts records whatever their checksum.
    pub no_crc_check: bool,
    /// Appends behind a torn tail without cutting it.
    pub glue_on_torn_tail: bool,
    /// Does not sync directories.
    pub no_dir_sync: bool,
}

/// Limits and habits of a [`Committer`].
#[derive(Clone, Debug)]
pub struct CommitterOptions {
    /// When a record counts as committed.
    pub sync: SyncMode,
    /// Bytes that one commit writes to one journal, about. Larger writes are throttled by disks.
    pub max_batch_bytes: usize,
    /// Bytes that may wait for the disk in all journals together.
    pub max_queued_bytes: u64,
    /// Publishing stops when less than this is free on the disk.
    pub disk_floor: u64,
    /// Write filler ahead of the records, so that a small commit changes no file size. Also the reserve in which
    /// settlements fit when the disk is full.
    pub preallocate: bool,
    /// Write what must be durable around the page cache, where the disk can: faster, and what is read back later than
    /// [`tail_cache_bytes`](Self::tail_cache_bytes) says comes from the disk. Needs `preallocate`.
    pub direct_io: bool,
    /// Segment files held open for writing, all journals together. With [`direct_io`](Self::direct_io) each takes two
    /// descriptors.
    pub max_open_files: usize,
    /// Recently committed bytes kept in memory for readers, all journals together.
    pub tail_cache_bytes: u64,
    #[doc(hidden)]
    pub planted: Planted,
}

impl Default for CommitterOptions {
    fn default() -> Self {
        Self {
            sync: SyncMode::Fdatasync,
            max_batch_bytes: 1 << 20,
            max_queued_bytes: 64 << 20,
            disk_floor: 64 << 20,
            preallocate: true,
            direct_io: true,
            max_open_files: 512,
            tail_cache_bytes: 64 << 20,
            planted: Planted::default(),
        }
    }
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitStats {
    /// Commits.
    pub commits: u64,
    /// Bytes written, with filler.
    pub bytes: u64,
    /// Bytes that wait for the disk now.
    pub queued: u64,
    /// Free bytes on the disk when last asked.
    pub free: u64,
}

#[derive(Default)]
struct Queue {
    // Journals whose front batch belongs to the next cycle.
    dirty: Vec<Arc<Inner>>,
    waiters: BTreeMap<u64, Vec<Arc<dyn Signal>>>,
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
}

/// Commits all journals below one data directory. See the module.
pub struct Committer {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) options: CommitterOptions,
    root: PathBuf,
    _lock: LockGuard,
    queue: Mutex<Queue>,
    work: Condvar,
    // Held while a cycle runs; inside, a cycle that could not finish because the disk is full.
    running: Mutex<Option<Cycle>>,
    committed: AtomicU64,
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
            running: Mutex::new(None),
            committed: AtomicU64::new(0),
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
        let cycle = lock(&self.running).take();
        drop((left, cycle));
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
            commits: self.committed.load(Ordering::Relaxed),
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
        let mut queue = lock(&self.queue);
        if self.is_committed(ticket) || self.has_failed.load(Ordering::Acquire) {
            drop(queue);
            signal.signal();
            return;
        }
        queue.waiters.entry(ticket.0).or_default().push(signal.clone());
    }

    /// `signal` is called at the next commit.
    pub fn notify_next(&self, signal: &Arc<dyn Signal>) {
        let ticket = Ticket(self.committed().0 + 1);
        self.notify(ticket, signal);
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
            && self.quiet.load(Ordering::Relaxed)
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

    fn micros(&self) -> u64 {
        self.started.elapsed().as_micros() as u64 + 1
    }

    /// Runs one cycle on this thread; false if there was nothing to do.
    pub fn commit_now(&self) -> Result<bool, JournalError> {
        self.cycle(&mut lock(&self.running))
    }

    /// Starts the committing thread. It ends after [`Committer::stop`] or a failure; `on_failure` is called once then.
    pub fn spawn(
        self: &Arc<Self>,
        on_failure: impl FnOnce(JournalError) + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let committer = self.clone();
        self.threaded.store(true, Ordering::Relaxed);
        std::thread::Builder::new().name("postroad-commit".into()).spawn(move || {
            if let Err(error) = committer.run() {
                on_failure(error);
            }
        })
    }

    /// Lets the thread finish what is queued and end.
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
                        return Ok(());
                    }
                    queue.sleeping = true;
                    // The timeout notices a failure of an inline commit.
                    let (guard, _) = self
                        .work
                        .wait_timeout(queue, Duration::from_millis(250))
                        .unwrap_or_else(PoisonError::into_inner);
                    queue = guard;
                    queue.sleeping = false;
                }
                self.stalled.load(Ordering::Relaxed)
            };
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

    fn cycle(&self, running: &mut Option<Cycle>) -> Result<bool, JournalError> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let mut cycle = match running.take() {
            Some(cycle) => cycle,
            None => {
                let mut queue = lock(&self.queue);
                if queue.dirty.is_empty() {
                    return Ok(false);
                }
                let number = queue.open;
                queue.open += 1;
                Cycle { number, journals: std::mem::take(&mut queue.dirty) }
            }
        };
        if let Err(error) = self.write(&mut cycle) {
            if error.is_out_of_files() {
                tracing::warn!(%error, "too many open files: commits wait until some are closed; raise `ulimit -n`");
            }
            if error.is_disk_full() || error.is_out_of_files() {
                if !self.stalled.swap(true, Ordering::Relaxed) {
                    tracing::warn!("the disk is full: commits wait until space returns");
                    // Only the thread tries again.
                    self.work.notify_all();
                }
                *running = Some(cycle);
                return Err(JournalError::DiskFull);
            }
            return Err(self.fail(&error));
        }
        if self.stalled.swap(false, Ordering::Relaxed) {
            tracing::info!("the disk has space again: commits go on");
        }
        let waiters = self.publish(&cycle);
        self.quiet.store(waiters <= 1, Ordering::Relaxed);
        Ok(true)
    }

    /// Writes and syncs the front batch of every journal of the cycle. Can be repeated after a full disk.
    fn write(&self, cycle: &mut Cycle) -> Result<(), JournalError> {
        let mut files: Vec<(Arc<dyn StorageFile>, PathBuf)> = Vec::with_capacity(cycle.journals.len());
        let mut written = 0;
        let syncs = self.options.sync == SyncMode::Fdatasync;
        // One syncfs costs about as much as two durable writes, however many files are dirty.
        let direct =
            self.options.direct_io && self.options.preallocate && !self.options.planted.ack_before_sync;
        let through = syncs && direct && cycle.journals.len() <= 3;
        for journal in &cycle.journals {
            if let Some(file) = journal.write_front(through)? {
                written += file.bytes;
                if !through {
                    files.push((file.file, file.path));
                }
            }
            if syncs && files.len() >= self.options.max_open_files.max(1) {
                self.sync(&files)?;
                files.clear();
            }
        }
        self.bytes.fetch_add(written, Ordering::Relaxed);
        self.last_bytes.store(written, Ordering::Relaxed);
        if self.options.planted.ack_before_sync {
            self.wake(cycle.number);
        }
        if syncs {
            self.sync(&files)?;
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

    fn sync(&self, files: &[(Arc<dyn StorageFile>, PathBuf)]) -> Result<(), JournalError> {
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

    /// The cycle is durable: tell the journals, then everybody who waits. Says how many waited.
    fn publish(&self, cycle: &Cycle) -> usize {
        for journal in &cycle.journals {
            journal.committed(cycle.number);
        }
        self.wake(cycle.number)
    }

    fn wake(&self, number: u64) -> usize {
        let waiters = {
            let mut queue = lock(&self.queue);
            self.committed.store(number, Ordering::Release);
            let later = queue.waiters.split_off(&(number + 1));
            std::mem::replace(&mut queue.waiters, later)
        };
        let mut count = 0;
        for signal in waiters.into_values().flatten() {
            count += 1;
            signal.signal();
        }
        count
    }

    /// After a failed write or sync nothing is known of the disk: promise nothing more.
    fn fail(&self, error: &JournalError) -> JournalError {
        let text: Arc<str> = error.to_string().into();
        *lock(&self.failed) = Some(text.clone());
        let waiters = {
            let mut queue = lock(&self.queue);
            self.has_failed.store(true, Ordering::Release);
            std::mem::take(&mut queue.waiters)
        };
        for signal in waiters.into_values().flatten() {
            signal.signal();
        }
        self.work.notify_all();
        JournalError::Failed(text)
    }
}
