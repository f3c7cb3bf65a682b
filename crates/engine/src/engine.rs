//! The engine: all streams and subscriptions of one data directory.

use crate::config::{EngineConfig, SyncMode};
use crate::consumer::Consumer;
use crate::error::EngineError;
use crate::later::{Later, Receipt};
use crate::log::{JournalStore, Log, LogError, LogStore, MemoryStore, Signal, Ticket};
use crate::registry::Registry;
use crate::stream::{Stream, StreamFold};
use crate::subscription::{Attached, Shape, SubscribeRequest, Subscription};
use postroad_core::dedup::DedupWindow;
use postroad_core::mailbox::ConsumerId;
use postroad_core::retry::RetryPolicy;
use postroad_core::{Clock, StartAt, Subject, SystemClock, Timestamp};
use postroad_journal::CommitterOptions;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// Totals since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages appended.
    pub published: AtomicU64,
    /// Deliveries.
    pub delivered: AtomicU64,
    /// Messages settled.
    pub settled: AtomicU64,
    /// Deliveries that failed and come again.
    pub redelivered: AtomicU64,
    /// Dead letters written.
    pub dead: AtomicU64,
    /// Unsettled messages that retention removed.
    pub trimmed: AtomicU64,
}

type Action = Box<dyn FnOnce(&Arc<Shared>) + Send>;

pub(crate) struct Shared {
    pub(crate) config: EngineConfig,
    pub(crate) store: Arc<dyn LogStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counters: Counters,
    streams: RwLock<HashMap<Arc<str>, Arc<Stream>>>,
    // Held while streams or subscriptions are made or removed.
    registry: Mutex<Registry>,
    next_consumer: AtomicU32,
    timers: Mutex<Timers>,
    timer_wake: Condvar,
    // What is to be done when a ticket is committed.
    after: Mutex<Vec<(Ticket, Action)>>,
    after_signal: Mutex<Option<Arc<dyn Signal>>>,
    stopping: AtomicBool,
    // Where dead letters of other protocols go back to.
    doors: Mutex<HashMap<&'static str, Arc<dyn crate::door::Door>>>,
}

#[derive(Default)]
struct Timers {
    due: BTreeSet<(u64, Arc<str>)>,
    // Whom to tell that a time has come.
    alarms: BTreeMap<u64, Vec<Weak<dyn Signal>>>,
    stop: bool,
}

/// The broker without a protocol. See the crate documentation.
pub struct Engine {
    shared: Arc<Shared>,
    timer: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Opens the engine in its data directory: reads every log, and is ready to serve when this returns.
    ///
    /// Nothing is committed until [`Engine::start`], or by calling [`Engine::flush`] with `inline`.
    pub fn open(config: EngineConfig) -> Result<Arc<Self>, EngineError> {
        let store: Arc<dyn LogStore> = match (config.sync, &config.data) {
            (SyncMode::Memory, _) | (_, None) => Arc::new(MemoryStore::new(config.queue_bytes)),
            (sync, Some(data)) => {
                let options = CommitterOptions {
                    sync: match sync {
                        SyncMode::Os => postroad_journal::SyncMode::Os,
                        _ => postroad_journal::SyncMode::Fdatasync,
                    },
                    max_queued_bytes: config.queue_bytes,
                    disk_floor: config.disk_floor,
                    preallocate: config.preallocate,
                    direct_io: config.direct_io,
                    max_open_files: config.max_open_files,
                    tail_cache_bytes: config.tail_cache_bytes,
                    planted: config.planted.journal,
                    ..CommitterOptions::default()
                };
                Arc::new(JournalStore::open(data, config.segment_bytes, options)?)
            }
        };
        Self::open_with(config, store, None)
    }

    /// The same on any log store and clock (default: the system's).
    pub fn open_with(
        config: EngineConfig,
        store: Arc<dyn LogStore>,
        clock: Option<Arc<dyn Clock>>,
    ) -> Result<Arc<Self>, EngineError> {
        let mut registry = Registry::default();
        let catalog = store.open_system("catalog", &mut |view| registry.fold(view))?;
        registry.finish_recovery(catalog);
        let mut opened = Vec::new();
        let mut last_time = 0;
        for name in store.list()? {
            let topic = Subject::new(name.as_str()).or_else(|error| {
                // `$dead/` makes a subject longer than one may choose.
                match name.strip_prefix("$dead/").map(Subject::new) {
                    Some(Ok(origin)) => Ok(origin.dead_letter()),
                    _ => Err(error),
                }
            })?;
            let mut fold = StreamFold { dedup: new_dedup(&config, &topic), ..StreamFold::default() };
            let log = store.open(&name, &mut |view| fold.apply(view))?;
            last_time = last_time.max(fold.last_time);
            fold.members.keys().for_each(|id| registry.taken(*id));
            opened.push((topic, log, fold));
        }
        let clock = clock
            .unwrap_or_else(|| Arc::new(SystemClock::starting_at_least(Timestamp::from_millis(last_time))));
        let shared = Arc::new(Shared {
            config,
            store,
            clock,
            counters: Counters::default(),
            streams: RwLock::new(HashMap::new()),
            registry: Mutex::new(registry),
            next_consumer: AtomicU32::new(1),
            timers: Mutex::new(Timers::default()),
            timer_wake: Condvar::new(),
            after: Mutex::new(Vec::new()),
            after_signal: Mutex::new(None),
            stopping: AtomicBool::new(false),
            doors: Mutex::new(HashMap::new()),
        });
        *lock(&shared.after_signal) = Some(Arc::new(AfterSignal(Arc::downgrade(&shared))));
        {
            let mut registry = lock(&shared.registry);
            for (topic, log, mut fold) in opened {
                let stream = Stream::new(&shared, topic.clone(), log, fold.dedup.take());
                shared.join_all(&mut registry, &stream, &fold)?;
                shared.insert(stream);
            }
            registry.compact(shared.now())?;
        }
        let engine = Arc::new(Self { shared, timer: Mutex::new(None) });
        Ok(engine)
    }

    /// Starts the committing and the timer thread. `on_failure` is called once, with why, when the log fails: nothing is
    /// committed from then on, and the process should end.
    pub fn start(&self, on_failure: Box<dyn FnOnce(String) + Send>) -> std::io::Result<()> {
        self.shared.store.start(Box::new(move |error: LogError| on_failure(error.to_string())))?;
        let shared = Arc::downgrade(&self.shared);
        let thread =
            std::thread::Builder::new().name("postroad-timer".into()).spawn(move || run_timers(&shared))?;
        *lock(&self.timer) = Some(thread);
        Ok(())
    }

    /// Refuses everything new from now on; what was accepted is still committed.
    pub fn begin_shutdown(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
    }

    /// Commits what was accepted, ends the threads, and leaves the logs tidy. Consumers must be gone.
    pub fn shutdown(&self) -> Result<(), EngineError> {
        self.begin_shutdown();
        lock(&self.shared.timers).stop = true;
        self.shared.timer_wake.notify_all();
        let timer = lock(&self.timer).take();
        if let Some(timer) = timer {
            let _ = timer.join();
        }
        let mut logs: Vec<Arc<dyn Log>> = self.shared.streams().iter().map(|s| s.log.clone()).collect();
        logs.extend(lock(&self.shared.registry).catalog());
        let now = self.shared.now();
        if self.shared.store.failure().is_none() {
            for log in &logs {
                // Marks the records before it as durable, for whoever checks the log later.
                if log.stats().segments > 0 {
                    log.append(now, &mut |append| append.record("end", b""))?;
                }
            }
        }
        self.shared.store.stop();
        if let Some(failure) = self.shared.store.failure() {
            return Err(failure.into());
        }
        for log in logs {
            log.close()?;
        }
        Ok(())
    }

    /// Why nothing is committed any more, if so.
    pub fn failure(&self) -> Option<LogError> {
        self.shared.store.failure()
    }

    /// `fdatasync`, `os` or `memory`.
    pub fn sync_mode(&self) -> &'static str {
        self.shared.store.sync_mode()
    }

    /// The engine's clock, milliseconds since 1970.
    pub fn now(&self) -> u64 {
        self.shared.now()
    }

    /// What it was told.
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Totals since the start.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// The store of its logs, for a door that has a log of its own: one commit for all of them.
    pub fn log_store(&self) -> &Arc<dyn LogStore> {
        &self.shared.store
    }

    /// Counters of the log store.
    pub fn store_stats(&self) -> postroad_journal::CommitStats {
        self.shared.store.stats()
    }

    /// May messages be published now? `Busy`: wait for the next commit.
    pub fn admit(&self) -> Result<(), EngineError> {
        self.shared.admit()
    }

    /// Gets the commit of what was appended going; `inline` allows to run it on this thread: true if it did.
    pub fn flush(&self, inline: bool) -> bool {
        self.shared.store.flush(inline)
    }

    /// How long a thread has been committing inline, if one is: whoever lends the thread should see that others run.
    pub fn inline_for(&self) -> Option<Duration> {
        self.shared.store.inline_for()
    }

    /// Everything up to this ticket is committed.
    pub fn committed(&self) -> Ticket {
        self.shared.store.committed()
    }

    /// `signal` is called when `ticket` is committed (at once if it is), and when the log fails.
    pub fn notify(&self, ticket: Ticket, signal: &Arc<dyn Signal>) {
        self.shared.store.notify(ticket, signal);
    }

    /// `signal` is called at the next commit.
    pub fn notify_next(&self, signal: &Arc<dyn Signal>) {
        let next = Ticket(self.shared.store.committed().0 + 1);
        self.shared.store.notify(next, signal);
    }

    /// `signal` is called, if somebody still has it, when the engine's clock has passed `at`, milliseconds since 1970:
    /// by the timer thread, or by [`Engine::tick`].
    pub fn notify_at(&self, at: u64, signal: &Arc<dyn Signal>) {
        let mut timers = lock(&self.shared.timers);
        let first = timers.next().is_none_or(|first| at < first);
        timers.alarms.entry(at).or_default().push(Arc::downgrade(signal));
        if first {
            self.shared.timer_wake.notify_one();
        }
    }

    /// The stream of a topic, if there is one.
    pub fn stream(&self, topic: &str) -> Option<Arc<Stream>> {
        self.shared.find_stream(topic)
    }

    /// The stream of a topic, made if there is none. Reserved topics are made by the engine alone.
    pub fn stream_or_create(&self, topic: &Subject) -> Result<Arc<Stream>, EngineError> {
        if let Some(stream) = self.shared.find_stream(topic.as_str()) {
            return Ok(stream);
        }
        if topic.is_reserved() {
            return Err(EngineError::Denied("topics that begin with `$` belong to the broker"));
        }
        self.shared.admit()?;
        self.shared.stream_or_create(topic)
    }

    /// All streams, by topic.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        self.shared.streams()
    }

    /// Attaches a consumer. `signal` is called when there may be something to take or to know.
    ///
    /// The subscription is durable, if it has a name, when the receipt says so.
    pub fn subscribe(
        &self,
        request: SubscribeRequest,
        signal: Arc<dyn Signal>,
    ) -> Result<(Consumer, Receipt), EngineError> {
        self.shared.subscribe(request, signal)
    }

    /// Deletes a durable subscription that no consumer has.
    pub fn forget(&self, filter: &str, name: &str) -> Result<Receipt, EngineError> {
        let sub = lock(&self.shared.registry).find(filter, name);
        let sub =
            sub.ok_or_else(|| EngineError::NotFound(format!("there is no subscription {filter} as {name}")))?;
        if !sub.state().consumers.is_empty() {
            return Err(EngineError::InUse);
        }
        Ok(Receipt::At(self.shared.forget(&sub)?))
    }

    /// Writes the dead letter of a door that keeps its messages itself to `$dead/TOPIC`; says when it is committed.
    pub fn dead_letter(
        &self,
        topic: &Subject,
        letter: &crate::dead::Letter<'_>,
    ) -> Result<Ticket, EngineError> {
        crate::dead::write_letter(&self.shared, topic, letter)
    }

    /// Dead letters whose [`Death::door`](crate::Death) is `name` go back to this door when they are kicked.
    pub fn open_door(&self, name: &'static str, door: Arc<dyn crate::door::Door>) {
        lock(&self.shared.doors).insert(name, door);
    }

    /// Publishes up to `max` dead letters of `topic` again where they came from; says how many, and what to wait for.
    pub fn kick(&self, topic: &Subject, max: usize) -> Result<(u64, Arc<Later>), EngineError> {
        crate::dead::kick(&self.shared, topic, max)
    }

    /// Lets time pass: expired leases, ended delays. The timer thread does it; tests and simulations call it.
    pub fn tick(&self) -> Result<(), EngineError> {
        self.shared.tick()
    }

    /// Applies retention and lag limits. The timer thread does it every second.
    pub fn maintain(&self) -> Result<(), EngineError> {
        self.shared.maintain()
    }

    /// When [`Engine::tick`] has something to do, milliseconds since 1970.
    pub fn next_deadline(&self) -> Option<u64> {
        lock(&self.shared.timers).next()
    }
}

impl Timers {
    fn next(&self) -> Option<u64> {
        let alarm = self.alarms.first_key_value().map(|(at, _)| *at);
        let due = self.due.first().map(|(due, _)| *due);
        due.into_iter().chain(alarm).min()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        lock(&self.shared.timers).stop = true;
        self.shared.timer_wake.notify_all();
        // Streams and subscriptions know each other: let go of both.
        for stream in self.shared.streams() {
            stream.clear();
        }
        self.shared.streams.write().unwrap_or_else(PoisonError::into_inner).clear();
        lock(&self.shared.registry).clear();
    }
}

fn new_dedup(config: &EngineConfig, topic: &Subject) -> Option<DedupWindow<Arc<[u8]>>> {
    if topic.is_dead_letter() {
        // Only a crash repeats a death, and then soon.
        return Some(DedupWindow::new(4096, Duration::from_secs(24 * 3600)));
    }
    (!config.dedup_window.is_zero()).then(|| DedupWindow::new(config.dedup_count, config.dedup_window))
}

impl Shared {
    /// Milliseconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        self.clock.now().as_millis()
    }

    pub(crate) fn admit(&self) -> Result<(), EngineError> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(EngineError::ShuttingDown);
        }
        Ok(self.store.admit()?)
    }

    pub(crate) fn find_stream(&self, topic: &str) -> Option<Arc<Stream>> {
        self.streams.read().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    pub(crate) fn streams(&self) -> Vec<Arc<Stream>> {
        let mut streams: Vec<_> =
            self.streams.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        streams.sort_by(|a, b| a.topic.as_str().cmp(b.topic.as_str()));
        streams
    }

    fn insert(&self, stream: Arc<Stream>) {
        let mut streams = self.streams.write().unwrap_or_else(PoisonError::into_inner);
        streams.insert(stream.topic.as_str().into(), stream);
    }

    pub(crate) fn door(&self, name: &str) -> Option<Arc<dyn crate::door::Door>> {
        lock(&self.doors).get(name).cloned()
    }

    pub(crate) fn next_consumer(&self) -> ConsumerId {
        ConsumerId(self.next_consumer.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn stream_or_create(self: &Arc<Self>, topic: &Subject) -> Result<Arc<Stream>, EngineError> {
        if let Some(stream) = self.find_stream(topic.as_str()) {
            return Ok(stream);
        }
        self.create_stream(&mut lock(&self.registry), topic)
    }

    fn create_stream(
        self: &Arc<Self>,
        registry: &mut Registry,
        topic: &Subject,
    ) -> Result<Arc<Stream>, EngineError> {
        if let Some(stream) = self.find_stream(topic.as_str()) {
            return Ok(stream);
        }
        let count = self.streams.read().unwrap_or_else(PoisonError::into_inner).len();
        if count >= self.config.max_topics && !topic.is_dead_letter() {
            return Err(EngineError::Limit(format!(
                "there are {count} topics, the limit is max_topics = {}: raise it, or use fewer topics",
                self.config.max_topics
            )));
        }
        let log = self.store.open(topic.as_str(), &mut |_| Ok(()))?;
        let stream = Stream::new(self, topic.clone(), log, new_dedup(&self.config, topic));
        self.join_all(registry, &stream, &StreamFold::default())?;
        self.insert(stream.clone());
        Ok(stream)
    }

    /// Joins every subscription that matches a stream that was opened or made.
    fn join_all(
        self: &Arc<Self>,
        registry: &mut Registry,
        stream: &Arc<Stream>,
        fold: &StreamFold,
    ) -> Result<(), EngineError> {
        let mut subs = registry.matching(stream.topic.as_str());
        if stream.topic.is_dead_letter() {
            subs.push(Stream::kick_subscription(&stream.topic));
        }
        // Who is new may begin a segment, with a snapshot of all who joined before: whom the log knows comes first.
        subs.sort_by_key(|sub| !fold.members.contains_key(&sub.id));
        for sub in subs {
            // A stream that is younger than the subscription begins with its first message.
            stream.join(self, &sub, &StartAt::First, fold.members.get(&sub.id))?;
        }
        Ok(())
    }

    fn subscribe(
        self: &Arc<Self>,
        request: SubscribeRequest,
        signal: Arc<dyn Signal>,
    ) -> Result<(Consumer, Receipt), EngineError> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(EngineError::ShuttingDown);
        }
        let id = self.next_consumer();
        let attached = Attached { signal, window: request.window, notes: Vec::new() };
        let mut registry = lock(&self.registry);
        let now = self.now();
        let mut ticket = Ticket(0);
        let known = request.name.as_deref().and_then(|name| registry.find(request.filter.as_str(), name));
        let sub = match known {
            Some(sub) => {
                let stored = sub.shape().clone();
                let may_join = stored.group && request.group;
                if !may_join && !sub.state().consumers.is_empty() {
                    return Err(EngineError::InUse);
                }
                let shape = Shape { group: request.group, policy: request.policy.apply(&stored.policy) };
                if !stored.same(&shape) {
                    *sub.shape() = shape;
                    ticket = registry.record(&sub, now)?;
                }
                sub
            }
            None => {
                if request.name.is_some() {
                    self.store.admit()?;
                }
                let policy = request.policy.apply(&RetryPolicy::default());
                let shape = Shape { group: request.group, policy };
                let sub = Subscription::new(
                    registry.next_id(),
                    request.filter.clone(),
                    request.name.as_deref().map(Into::into),
                    shape,
                );
                if let Some(topic) = request.filter.as_subject()
                    && self.find_stream(topic.as_str()).is_none()
                    && !topic.is_reserved()
                {
                    self.store.admit()?;
                    self.create_stream(&mut registry, &topic)?;
                }
                for stream in self.streams() {
                    if request.filter.matches(stream.topic.as_str()) {
                        ticket = ticket.max(stream.join(self, &sub, &request.from, None)?);
                    }
                }
                if sub.is_durable() {
                    ticket = ticket.max(registry.record(&sub, now)?);
                }
                registry.insert(&sub);
                sub
            }
        };
        // Whoever finds it as another one left it waits for the same commit.
        let ticket = sub.durable_at(ticket);
        sub.state().attach(id, attached);
        let streams = sub.state().streams();
        drop(registry);
        let consumer = Consumer::new(self, sub.clone(), id, request.window.count);
        for stream in streams {
            stream.attach(self, &sub, id);
        }
        Ok((consumer, Receipt::At(ticket)))
    }

    /// A consumer is gone: an ephemeral subscription ends with its last one.
    pub(crate) fn consumer_gone(&self, sub: &Arc<Subscription>) {
        if sub.is_durable() || !sub.state().consumers.is_empty() {
            return;
        }
        lock(&self.registry).remove(sub);
        self.remove_members(sub);
    }

    fn remove_members(&self, sub: &Arc<Subscription>) {
        let streams = std::mem::take(&mut sub.state().streams);
        sub.state().active.clear();
        for stream in streams {
            stream.leave(sub.id);
        }
    }

    /// Deletes a durable subscription, whoever has it.
    pub(crate) fn forget(&self, sub: &Arc<Subscription>) -> Result<Ticket, EngineError> {
        let ticket = {
            let mut registry = lock(&self.registry);
            registry.remove(sub);
            registry.record_forgotten(sub, self.now())?
        };
        self.remove_members(sub);
        self.store.flush(false);
        Ok(ticket)
    }

    /// Does `action` when `ticket` is committed, on the committing thread.
    pub(crate) fn after(self: &Arc<Self>, ticket: Ticket, action: impl FnOnce(&Arc<Self>) + Send + 'static) {
        lock(&self.after).push((ticket, Box::new(action)));
        let signal = lock(&self.after_signal).clone();
        if let Some(signal) = signal {
            self.store.notify(ticket, &signal);
        }
    }

    fn run_after(self: &Arc<Self>) {
        let committed = self.store.committed();
        let due: Vec<Action> = {
            let mut after = lock(&self.after);
            let (due, later): (Vec<_>, Vec<_>) =
                after.drain(..).partition(|(ticket, _)| *ticket <= committed);
            *after = later;
            due.into_iter().map(|(_, action)| action).collect()
        };
        for action in due {
            action(self);
        }
    }

    pub(crate) fn set_timer(&self, due: u64, topic: &str) {
        let mut timers = lock(&self.timers);
        let first = timers.next().is_none_or(|first| due < first);
        timers.due.insert((due, topic.into()));
        if first {
            self.timer_wake.notify_one();
        }
    }

    fn tick(self: &Arc<Self>) -> Result<(), EngineError> {
        let passed = self.clock.passed().as_millis();
        let mut topics = Vec::new();
        let alarms = {
            let mut timers = lock(&self.timers);
            while timers.due.first().is_some_and(|(due, _)| *due <= passed) {
                topics.extend(timers.due.pop_first().map(|(_, topic)| topic));
            }
            let later = timers.alarms.split_off(&passed.saturating_add(1));
            std::mem::replace(&mut timers.alarms, later)
        };
        for signal in alarms.into_values().flatten().filter_map(|signal| signal.upgrade()) {
            signal.signal();
        }
        topics.sort_unstable();
        topics.dedup();
        if topics.is_empty() {
            return Ok(());
        }
        for topic in topics {
            if let Some(stream) = self.find_stream(&topic) {
                stream.tick(self)?;
            }
        }
        self.store.flush(false);
        Ok(())
    }

    fn maintain(self: &Arc<Self>) -> Result<(), EngineError> {
        if self.store.admit().is_err() {
            self.store.measure_disk();
        }
        for stream in self.streams() {
            stream.maintain(self)?;
        }
        let registry = lock(&self.registry);
        let renewed = registry.renew(self.now())?;
        let catalog = registry.catalog();
        drop(registry);
        if renewed {
            self.store.flush(false);
        } else if let Some(catalog) = catalog {
            // Every segment of the catalog begins with all that is live: only the last one is needed.
            catalog.trim(1)?;
        }
        Ok(())
    }
}

struct AfterSignal(Weak<Shared>);

impl Signal for AfterSignal {
    fn signal(&self) {
        if let Some(shared) = self.0.upgrade() {
            shared.run_after();
        }
    }
}

fn run_timers(shared: &Weak<Shared>) {
    const MAINTAIN: Duration = Duration::from_secs(1);
    let mut maintained = std::time::Instant::now();
    loop {
        let Some(shared) = shared.upgrade() else { return };
        {
            let timers = lock(&shared.timers);
            if timers.stop {
                return;
            }
            let passed = shared.clock.passed().as_millis();
            let next = timers.next().map_or(u64::MAX, |due| due.saturating_sub(passed));
            let wait = Duration::from_millis(next).min(MAINTAIN.saturating_sub(maintained.elapsed()));
            if !wait.is_zero() {
                drop(shared.timer_wake.wait_timeout(timers, wait).unwrap_or_else(PoisonError::into_inner));
            }
        }
        if let Err(error) = shared.tick() {
            tracing::warn!(%error, "timers");
        }
        if maintained.elapsed() >= MAINTAIN {
            maintained = std::time::Instant::now();
            if let Err(error) = shared.maintain() {
                tracing::warn!(%error, "retention");
            }
        }
    }
}
