//! One consumer of one subscription.

use crate::engine::Shared;
use crate::error::EngineError;
use crate::id::id_text;
use crate::later::Receipt;
use crate::log::{Event, Signal};
use crate::stream::Stream;
use crate::stream::hold::Usage;
use crate::subscription::{Note, SubState, Subscription};
use postroad_core::mailbox::{ConsumerId, Taken, Verdict};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A message given to a consumer.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// Where it comes from.
    pub stream: Arc<Stream>,
    /// 1 for the first delivery.
    pub attempt: u32,
    /// The message.
    pub event: Event,
}

/// A consumer attached to a subscription. Dropping it gives back what it holds.
pub struct Consumer {
    shared: Arc<Shared>,
    sub: Arc<Subscription>,
    id: ConsumerId,
    window: u32,
    // Streams it holds messages of; used when the filter has wildcards.
    holding: Mutex<Vec<Arc<Stream>>>,
    // What it held when the next message did not fit: nothing fits until that changes.
    full_at: Mutex<Option<Usage>>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("subscription", &self.sub.title()).finish_non_exhaustive()
    }
}

impl Consumer {
    pub(crate) fn new(shared: &Arc<Shared>, sub: Arc<Subscription>, id: ConsumerId, window: u32) -> Self {
        Self { shared: shared.clone(), sub, id, window, holding: Mutex::default(), full_at: Mutex::default() }
    }

    /// The filter, as it was written.
    pub fn filter(&self) -> &str {
        self.sub.filter.as_str()
    }

    /// The name, if the subscription is durable.
    pub fn name(&self) -> Option<&str> {
        self.sub.name.as_deref()
    }

    /// Takes messages: up to `max` of them or about `max_bytes`, as the window allows. Appends to `out`; says how many.
    ///
    /// Only committed messages are given. When nothing is there, the signal this consumer subscribed with is called
    /// once there may be.
    pub fn take(&self, max: usize, max_bytes: usize, out: &mut Vec<Delivered>) -> usize {
        let before = out.len();
        let mut taken = Vec::new();
        if self.sub.filter.is_literal() {
            let stream = self.sub.state().streams.first().cloned();
            if let Some(stream) = stream {
                stream.take(&self.shared, &self.sub, self.id, max, max_bytes, &mut taken);
                self.read(&stream, &taken, out);
            }
            return out.len() - before;
        }
        let mut budget = max.min(self.room(self.usage()));
        let mut bytes = max_bytes;
        let mut rounds = self.sub.state().active.len();
        while budget > 0 && bytes > 0 && rounds > 0 {
            rounds -= 1;
            let Some(stream) = self.sub.state().active.pop_front() else { break };
            taken.clear();
            let start = out.len();
            stream.take(&self.shared, &self.sub, self.id, budget, bytes, &mut taken);
            self.read(&stream, &taken, out);
            budget -= taken.len();
            let got: usize = out[start..].iter().map(|d| d.event.payload.len()).sum();
            bytes = bytes.saturating_sub(got);
            if !taken.is_empty() {
                self.holding.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            }
        }
        out.len() - before
    }

    /// Takes messages: up to `max` of them, as the window allows with the sizes that `weigh` tells, which is called for
    /// each in order. Appends to `out`; what does not fit is given back as if it had not been taken. Says how many.
    ///
    /// One call at a time.
    pub(crate) fn take_weighed(
        &self,
        max: usize,
        window_bytes: u64,
        weigh: &mut dyn FnMut(&Delivered) -> u64,
        out: &mut Vec<Delivered>,
    ) -> usize {
        let before = out.len();
        let mut held = self.usage();
        let was_full_at = std::mem::take(&mut *self.full_at());
        if was_full_at == Some(held) || (held.count > 0 && held.bytes >= window_bytes) {
            *self.full_at() = was_full_at;
            return 0;
        }
        let mut budget = max.min(self.room(held));
        let literal = self.sub.filter.is_literal();
        let mut rounds = if literal { 1 } else { self.sub.state().active.len() };
        let mut taken = Vec::new();
        while budget > 0 && rounds > 0 {
            rounds -= 1;
            let stream = match literal {
                true => self.sub.state().streams.first().cloned(),
                false => self.sub.state().active.pop_front(),
            };
            let Some(stream) = stream else { break };
            taken.clear();
            let here = stream.usage(self.sub.id, self.id);
            let elsewhere = Usage {
                count: held.count.saturating_sub(here.count),
                bytes: held.bytes.saturating_sub(here.bytes),
            };
            let room = usize::try_from(window_bytes.saturating_sub(held.bytes).max(1)).unwrap_or(usize::MAX);
            stream.take_unweighed(&self.shared, &self.sub, self.id, budget, room, &mut taken);
            let start = out.len();
            self.read(&stream, &taken, out);
            let sizes: Vec<_> = out[start..].iter().map(|d| (d.event.seq, weigh(d))).collect();
            let kept = stream.weigh(&self.shared, &self.sub, self.id, &sizes, elsewhere, window_bytes);
            out.truncate(start + kept);
            if !taken.is_empty() && !literal {
                self.holding.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            }
            if kept < sizes.len() {
                *self.full_at() = Some(self.usage());
                break;
            }
            let bytes = sizes.iter().map(|(_, size)| size).sum();
            held = held.plus(Usage { count: kept as u64, bytes });
            budget -= kept.min(budget);
        }
        out.len() - before
    }

    fn full_at(&self) -> MutexGuard<'_, Option<Usage>> {
        self.full_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much this consumer holds over all its streams.
    pub(crate) fn usage(&self) -> Usage {
        if self.sub.filter.is_literal() {
            let stream = self.sub.state().streams.first().cloned();
            return stream.map_or_else(Usage::default, |stream| stream.usage(self.sub.id, self.id));
        }
        let mut holding = self.holding.lock().unwrap_or_else(PoisonError::into_inner);
        holding.sort_by_key(Arc::as_ptr);
        holding.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let mut held = Usage::default();
        holding.retain(|stream| {
            let here = stream.usage(self.sub.id, self.id);
            held = held.plus(here);
            here.count > 0
        });
        held
    }

    /// How many more messages it may hold.
    fn room(&self, held: Usage) -> usize {
        usize::try_from(u64::from(self.window).saturating_sub(held.count)).unwrap_or(usize::MAX)
    }

    fn read(&self, stream: &Arc<Stream>, taken: &[Taken], out: &mut Vec<Delivered>) {
        let seqs: Vec<u64> = taken.iter().map(|t| t.seq).collect();
        let mut events = Vec::with_capacity(seqs.len());
        if stream.log.read(&seqs, &mut events).is_err() {
            // One record is damaged: give the others, and say so. The damaged one stays leased and is tried again.
            events.clear();
            for seq in seqs {
                if let Err(error) = stream.log.read(&[seq], &mut events) {
                    tracing::error!(topic = stream.topic.as_str(), seq, %error, "a message cannot be read");
                    self.sub.note(&Note::Corrupt(stream.topic.as_str().into(), error.to_string()));
                }
            }
        }
        self.shared.counters.delivered.fetch_add(events.len() as u64, Ordering::Relaxed);
        let mut attempts = taken.iter();
        out.extend(events.into_iter().filter_map(|event| {
            // Both are in the order of `taken`; a message that retention removed meanwhile is left out.
            let taken = attempts.find(|t| t.seq == event.seq)?;
            Some(Delivered { stream: stream.clone(), attempt: taken.attempt, event })
        }));
    }

    fn stream(&self, topic: &str) -> Option<Arc<Stream>> {
        if self.sub.filter.is_literal() {
            return self.sub.state().streams.first().filter(|s| s.topic.as_str() == topic).cloned();
        }
        if !self.sub.filter.matches(topic) {
            return None;
        }
        self.shared.find_stream(topic)
    }

    /// One verdict on ranges of sequences of `topic`. `counts` gets how many messages each range settled: 0 means that
    /// nothing of it was in flight here.
    pub fn settle(
        &self,
        topic: &str,
        ranges: &[(u64, u64)],
        verdict: &Verdict,
        counts: &mut Vec<u64>,
    ) -> Result<Receipt, EngineError> {
        let Some(stream) = self.stream(topic) else { return Err(EngineError::NotInFlight) };
        if matches!(verdict, Verdict::Dead { .. }) && stream.topic.is_dead_letter() {
            return Err(EngineError::Denied("a dead letter cannot be buried again: ack it, or kick it"));
        }
        stream.settle(&self.shared, &self.sub, self.id, ranges, verdict, counts)
    }

    /// One verdict on those of `first..=last` of `stream` that are here in their delivery number `attempt`; also says
    /// how many there were.
    pub(crate) fn settle_attempt(
        &self,
        stream: &Arc<Stream>,
        run: (u64, u64),
        attempt: u32,
        verdict: &Verdict,
    ) -> Result<(u64, Receipt), EngineError> {
        stream.settle_attempt(&self.shared, &self.sub, self.id, run, attempt, verdict)
    }

    /// Starts the lease of a message of `stream` again; false if it is not here in its delivery number `attempt`.
    pub(crate) fn touch_attempt(&self, stream: &Arc<Stream>, seq: u64, attempt: u32) -> bool {
        stream.touch_attempt(&self.shared, self.sub.id, self.id, seq, attempt)
    }

    /// Starts the leases of the messages `first..=last` of `topic` again; says how many there were.
    pub fn touch(&self, topic: &str, first: u64, last: u64) -> usize {
        let Some(stream) = self.stream(topic) else { return 0 };
        stream.touch(&self.shared, self.sub.id, self.id, first, last)
    }

    /// The sequence of the oldest message of `topic` in flight here whose id, as text, is `id`.
    pub fn find(&self, topic: &str, id: &str) -> Option<u64> {
        let stream = self.stream(topic)?;
        let held = stream.held(self.sub.id, self.id);
        let mut events = Vec::new();
        for chunk in held.chunks(64) {
            events.clear();
            stream.log.read(chunk, &mut events).ok()?;
            let found = events
                .iter()
                .find(|event| event.id.as_deref().is_some_and(|token| *id_text(token) == *id.as_bytes()));
            if let Some(event) = found {
                return Some(event.seq);
            }
        }
        None
    }

    /// What this consumer should know.
    pub fn notes(&self) -> Vec<Note> {
        let mut state = self.sub.state();
        state.consumers.get_mut(&self.id).map(|a| std::mem::take(&mut a.notes)).unwrap_or_default()
    }

    /// The signal it was subscribed with.
    pub fn signal(&self) -> Option<Arc<dyn Signal>> {
        self.sub.state().consumers.get(&self.id).map(|a| a.signal.clone())
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let streams = {
            let mut state = self.sub.state();
            state.consumers.remove(&self.id);
            SubState::streams(&state)
        };
        for stream in streams {
            if let Err(error) = stream.detach(&self.shared, &self.sub, self.id) {
                tracing::debug!(%error, "a consumer could not give back what it held");
            }
        }
        self.shared.consumer_gone(&self.sub);
        self.shared.store.flush(false);
    }
}
