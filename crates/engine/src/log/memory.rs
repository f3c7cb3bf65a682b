//! A log without a disk: everything is committed when it is flushed, and gone with the process.

use super::{
    Append, CommitObserver, Event, Fold, Log, LogError, LogStats, LogStore, Publish, Signal, Ticket,
};
use bytes::Bytes;
use postroad_journal::CommitStats;
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Messages per trimmable unit.
const UNIT: u64 = 4096;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Logs in memory.
pub struct MemoryStore {
    shared: Arc<Shared>,
    max_bytes: u64,
}

#[derive(Default)]
struct Shared {
    appended: AtomicU64,
    committed: AtomicU64,
    bytes: AtomicU64,
    waiters: Mutex<Vec<(Ticket, Arc<dyn Signal>)>>,
    dirty: Mutex<Vec<Arc<Inner>>>,
    // Writers opened so far, per name.
    logs: Mutex<HashMap<String, u64>>,
}

struct Inner {
    shared: Arc<Shared>,
    state: Mutex<State>,
    observer: OnceLock<Arc<dyn CommitObserver>>,
}

#[derive(Default)]
struct State {
    first: u64,
    events: VecDeque<Event>,
    last_time: u64,
    bytes: u64,
    dirty: bool,
}

struct MemoryLog {
    inner: Arc<Inner>,
    name: String,
    epoch: u64,
}

impl MemoryStore {
    /// An empty store that refuses messages when it holds `max_bytes`.
    pub fn new(max_bytes: u64) -> Self {
        Self { shared: Arc::default(), max_bytes }
    }
}

impl LogStore for MemoryStore {
    fn sync_mode(&self) -> &'static str {
        "memory"
    }

    fn list(&self) -> Result<Vec<String>, LogError> {
        Ok(Vec::new())
    }

    fn open(&self, name: &str, _: Fold<'_>) -> Result<Arc<dyn Log>, LogError> {
        let epoch = {
            let mut logs = lock(&self.shared.logs);
            let epoch = logs.entry(name.to_owned()).or_default();
            *epoch += 1;
            *epoch
        };
        let state = Mutex::new(State { first: 1, ..State::default() });
        let inner = Arc::new(Inner { shared: self.shared.clone(), state, observer: OnceLock::new() });
        Ok(Arc::new(MemoryLog { inner, name: name.to_owned(), epoch }))
    }

    fn open_system(&self, name: &'static str, fold: Fold<'_>) -> Result<Arc<dyn Log>, LogError> {
        // No topic begins with a slash.
        self.open(&format!("/{name}"), fold)
    }

    fn admit(&self) -> Result<(), LogError> {
        if self.shared.bytes.load(Ordering::Relaxed) > self.max_bytes {
            return Err(LogError::DiskFull);
        }
        Ok(())
    }

    fn flush(&self, _: bool) -> bool {
        let ticket = self.shared.appended.load(Ordering::SeqCst);
        // Not in the head of the loop, where the lock would be held while observers are called.
        let dirty = std::mem::take(&mut *lock(&self.shared.dirty));
        for log in dirty {
            let last = {
                let mut state = lock(&log.state);
                state.dirty = false;
                state.first + state.events.len() as u64 - 1
            };
            if let Some(observer) = log.observer.get() {
                observer.committed(last, Ticket(ticket));
            }
        }
        self.shared.committed.fetch_max(ticket, Ordering::SeqCst);
        let due: Vec<_> = {
            let mut waiters = lock(&self.shared.waiters);
            let (due, later) = waiters.drain(..).partition(|(t, _)| t.0 <= ticket);
            *waiters = later;
            due
        };
        for (_, signal) in due {
            signal.signal();
        }
        false
    }

    fn committed(&self) -> Ticket {
        Ticket(self.shared.committed.load(Ordering::SeqCst))
    }

    fn failure(&self) -> Option<LogError> {
        None
    }

    fn notify(&self, ticket: Ticket, signal: &Arc<dyn Signal>) {
        lock(&self.shared.waiters).push((ticket, signal.clone()));
        if self.committed() >= ticket {
            signal.signal();
        }
    }

    fn measure_disk(&self) {}

    fn stats(&self) -> CommitStats {
        CommitStats {
            commits: self.committed().0,
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            queued: 0,
            free: self.max_bytes.saturating_sub(self.shared.bytes.load(Ordering::Relaxed)),
        }
    }

    fn start(&self, _: Box<dyn FnOnce(LogError) + Send>) -> std::io::Result<()> {
        Ok(())
    }

    fn stop(&self) {
        self.flush(true);
    }

    fn root(&self) -> Option<PathBuf> {
        None
    }
}

struct MemoryAppend<'a> {
    state: MutexGuard<'a, State>,
    time: u64,
    added: u64,
}

impl Append for MemoryAppend<'_> {
    fn publish(&mut self, publish: &Publish<'_>) -> u64 {
        let seq = self.state.first + self.state.events.len() as u64;
        let copy = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
        self.added += publish.payload.len() as u64 + 128;
        let event = Event {
            seq,
            time: self.time,
            priority: publish.priority,
            id: publish.id.map(copy),
            subject: publish.subject.and_then(|s| serde_json::to_vec(s).ok()).map(Bytes::from),
            headers: publish.headers.map(copy),
            kind: publish.kind,
            payload: copy(publish.payload),
        };
        self.state.events.push_back(event);
        seq
    }

    fn record(&mut self, _: &str, _: &[u8]) {
        // Nothing outlives the process, so nothing is replayed.
    }
}

impl MemoryLog {
    fn check_epoch(&self) -> Result<(), LogError> {
        let current = lock(&self.inner.shared.logs).get(&self.name).copied();
        if current == Some(self.epoch) { Ok(()) } else { Err(LogError::Fenced) }
    }
}

impl Log for MemoryLog {
    fn append(&self, now: u64, write: &mut dyn FnMut(&mut dyn Append)) -> Result<Ticket, LogError> {
        self.check_epoch()?;
        let shared = &self.inner.shared;
        let mut state = lock(&self.inner.state);
        state.last_time = state.last_time.max(now);
        let time = state.last_time;
        let mut append = MemoryAppend { state, time, added: 0 };
        write(&mut append);
        let MemoryAppend { mut state, added, .. } = append;
        state.bytes += added;
        shared.bytes.fetch_add(added, Ordering::Relaxed);
        let enlist = !std::mem::replace(&mut state.dirty, true);
        drop(state);
        if enlist {
            lock(&shared.dirty).push(self.inner.clone());
        }
        Ok(Ticket(shared.appended.fetch_add(1, Ordering::SeqCst) + 1))
    }

    fn observe(&self, observer: Arc<dyn CommitObserver>) {
        let _ = self.inner.observer.set(observer);
    }

    fn wants_snapshot(&self) -> bool {
        false
    }

    fn snapshot(&self, now: u64, write: &mut dyn FnMut(&mut dyn Append)) -> Result<Ticket, LogError> {
        self.append(now, write)
    }

    fn read(&self, seqs: &[u64], out: &mut Vec<Event>) -> Result<(), LogError> {
        let state = lock(&self.inner.state);
        out.extend(seqs.iter().filter_map(|seq| {
            let at = usize::try_from(seq.checked_sub(state.first)?).ok()?;
            state.events.get(at).cloned()
        }));
        Ok(())
    }

    fn seek_time(&self, time: u64) -> Result<u64, LogError> {
        let state = lock(&self.inner.state);
        Ok(state.first + state.events.partition_point(|event| event.time < time) as u64)
    }

    fn sizes(&self, with: &mut dyn FnMut(&dyn Fn(u64) -> u32)) {
        let state = lock(&self.inner.state);
        with(&|seq| {
            let at = seq.checked_sub(state.first).and_then(|at| usize::try_from(at).ok());
            at.and_then(|at| state.events.get(at)).map_or(0, |event| event.payload.len() as u32)
        });
    }

    fn priority_runs(&self, first: u64, last: u64, run: &mut dyn FnMut(u64, u64, i64)) {
        let state = lock(&self.inner.state);
        for event in &state.events {
            if (first..=last).contains(&event.seq) {
                run(event.seq, event.seq, event.priority);
            }
        }
    }

    fn stats(&self) -> LogStats {
        let state = lock(&self.inner.state);
        let last = state.first + state.events.len() as u64 - 1;
        LogStats {
            first: state.first,
            last,
            committed: last,
            written: last,
            bytes: state.bytes,
            segments: 1,
            index_memory: 0,
        }
    }

    fn sealed(&self) -> Vec<(u64, u64, u64)> {
        let state = lock(&self.inner.state);
        let mut units = Vec::new();
        let mut at = 0;
        while at + UNIT < state.events.len() as u64 {
            let unit = state.events.range(at as usize..(at + UNIT) as usize);
            let bytes = unit.map(|event| event.payload.len() as u64 + 128).sum();
            units.push((state.first + at + UNIT - 1, bytes, state.events[at as usize].time));
            at += UNIT;
        }
        units
    }

    fn trim(&self, seq: u64) -> Result<u64, LogError> {
        let mut state = lock(&self.inner.state);
        let mut freed = 0;
        while state.first < seq
            && let Some(event) = state.events.pop_front()
        {
            freed += event.payload.len() as u64 + 128;
            state.first += 1;
        }
        state.bytes -= freed;
        self.inner.shared.bytes.fetch_sub(freed, Ordering::Relaxed);
        Ok(state.first)
    }

    fn close(&self) -> Result<(), LogError> {
        Ok(())
    }
}
