//! One stream: a log, and the mailboxes of the subscriptions that match it.

mod deliver;
mod fold;
pub(crate) mod hold;
mod members;
mod publish;
mod retention;

pub(crate) use fold::StreamFold;
pub use publish::{NewEvent, Published};

use crate::engine::Shared;
use crate::error::EngineError;
use crate::later::{Later, Receipt};
use crate::log::{Event, Log, LogStats, Signal, Ticket};
use crate::records;
use crate::subscription::Subscription;
use postroad_core::Subject;
use postroad_core::dedup::DedupWindow;
use postroad_core::mailbox::{ConsumerId, Counts, Failures, Mailbox, Millis, Record};
use publish::Observer;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The subscription of `$dead/…` streams from which `kick` takes.
pub(crate) const KICK: u64 = 0;
const KICK_NAME: &str = "$kick";

/// The delivery state of one subscription in one stream.
#[derive(Clone, Debug)]
pub struct MemberStats {
    /// `FILTER` or `FILTER as NAME`.
    pub title: String,
    /// Its filter.
    pub filter: String,
    /// Its name, if durable.
    pub name: Option<String>,
    /// Shared between consumers.
    pub group: bool,
    /// Consumers attached.
    pub consumers: usize,
    /// Messages by state.
    pub counts: Counts,
    /// Everything up to this is settled.
    pub floor: u64,
    /// Messages committed and not settled.
    pub lag: u64,
}

pub(crate) struct Member {
    pub(crate) sub: Arc<Subscription>,
    pub(crate) mailbox: Mailbox,
    // In the subscription's list of active streams.
    listed: bool,
    // Told that it lags past the limit.
    lagging: bool,
}

pub(crate) struct State {
    members: BTreeMap<u64, Member>,
    // Runs of appended messages that are not committed yet, with their priority.
    uncommitted: VecDeque<(u64, u64, i64)>,
    // Everything up to here was offered to the mailboxes.
    offered: u64,
    dedup: Option<DedupWindow<Arc<[u8]>>>,
    // When the timer looks next.
    timer: Option<Millis>,
}

/// One stream of messages. See [`crate::Engine::stream`].
pub struct Stream {
    pub(crate) topic: Subject,
    pub(crate) log: Arc<dyn Log>,
    shared: Weak<Shared>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stream").field(&self.topic.as_str()).finish()
    }
}

/// What is to be done after the stream is unlocked.
#[derive(Default)]
pub(crate) struct Effects {
    signals: Vec<Arc<dyn Signal>>,
    dying: Vec<(Arc<Subscription>, u64, Failures)>,
    ticket: Ticket,
}

impl Stream {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        topic: Subject,
        log: Arc<dyn Log>,
        dedup: Option<DedupWindow<Arc<[u8]>>>,
    ) -> Arc<Self> {
        let offered = log.stats().committed;
        let stream = Arc::new(Self {
            topic,
            log,
            shared: Arc::downgrade(shared),
            state: Mutex::new(State {
                members: BTreeMap::new(),
                uncommitted: VecDeque::new(),
                offered,
                dedup,
                timer: None,
            }),
        });
        stream.log.observe(Arc::new(Observer(Arc::downgrade(&stream))));
        stream
    }

    /// Its topic.
    pub fn topic(&self) -> &Subject {
        &self.topic
    }

    /// Sizes of its log.
    pub fn log_stats(&self) -> LogStats {
        self.log.stats()
    }

    /// The delivery state of its subscriptions.
    pub fn members(&self) -> Vec<MemberStats> {
        let state = self.state();
        let members = state.members.iter().filter(|(id, _)| **id != KICK);
        members
            .map(|(_, member)| {
                let counts = member.mailbox.counts();
                MemberStats {
                    title: member.sub.title(),
                    filter: member.sub.filter.as_str().to_owned(),
                    name: member.sub.name.as_deref().map(str::to_owned),
                    group: member.sub.shape().group,
                    consumers: member.mailbox.consumer_count(),
                    counts,
                    floor: member.mailbox.floor().floor(),
                    lag: counts.pending(),
                }
            })
            .collect()
    }

    /// Of a `$dead/…` stream: how many of its messages were not kicked yet.
    pub fn unkicked(&self) -> u64 {
        self.state().members.get(&KICK).map_or(0, |m| m.mailbox.counts().pending())
    }

    /// Bytes of memory held for this stream beside its fixed size, about.
    pub fn memory(&self) -> usize {
        let members: usize = self.state().members.values().map(|m| m.mailbox.memory()).sum();
        members + self.log.stats().index_memory
    }

    /// When everything that was published here so far is committed.
    pub fn barrier(&self) -> Result<Ticket, EngineError> {
        let shared = self.shared()?;
        Ok(self.log.append(shared.now(), &mut |_| {})?)
    }

    /// Reads a committed message, taking nothing.
    pub fn read(&self, seq: u64) -> Result<Option<Event>, EngineError> {
        let mut events = Vec::with_capacity(1);
        self.log.read(&[seq], &mut events)?;
        Ok(events.pop())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self) -> Result<Arc<Shared>, EngineError> {
        self.shared.upgrade().ok_or(EngineError::ShuttingDown)
    }

    /// Begins a new segment with the whole durable state, so that older ones can go.
    fn snapshot(&self, state: &State, now: u64) -> Result<(), EngineError> {
        self.log.snapshot(now, &mut |append| {
            for (id, member) in &state.members {
                if let Some(name) = &member.sub.name {
                    records::checkpoint(append, "cp", *id, member.sub.filter.as_str(), name, &member.mailbox);
                }
            }
        })?;
        Ok(())
    }

    fn promised(&self, shared: &Shared, receipt: Receipt) -> Receipt {
        if shared.config.planted.cursor_before_commit { Receipt::At(Ticket(0)) } else { receipt }
    }

    /// Changes a mailbox and makes the change durable.
    fn change(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        id: u64,
        change: impl FnOnce(&mut Member, Millis, &mut Vec<Record>),
    ) -> Result<Receipt, EngineError> {
        let now = shared.now();
        let mut effects = Effects::default();
        let mut records = Vec::new();
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(member) = state.members.get_mut(&id) else { return Ok(Receipt::At(Ticket(0))) };
        change(member, now, &mut records);
        let result = self.log_records(shared, state, id, &records, now, &mut effects);
        self.wake(state, id, &mut effects);
        self.set_timer(shared, state, id);
        drop(guard);
        let ticket = effects.ticket;
        let later = (!effects.dying.is_empty()).then(|| Later::new(effects.dying.len()));
        self.run(shared, effects, later.as_ref());
        result?;
        Ok(match later {
            Some(later) => Receipt::Later(later),
            None => Receipt::At(ticket),
        })
    }

    fn log_records(
        &self,
        shared: &Shared,
        state: &mut State,
        id: u64,
        records: &[Record],
        now: u64,
        effects: &mut Effects,
    ) -> Result<(), EngineError> {
        let Some(member) = state.members.get(&id) else { return Ok(()) };
        let sub = member.sub.clone();
        for record in records {
            match record {
                Record::Dying { seq, failures } => effects.dying.push((sub.clone(), *seq, failures.clone())),
                Record::Settled { first, last } => {
                    shared.counters.settled.fetch_add(last - first + 1, Ordering::Relaxed);
                }
                Record::Tried { first, last, .. } => {
                    shared.counters.redelivered.fetch_add(last - first + 1, Ordering::Relaxed);
                }
            }
        }
        if sub.is_durable() && !records.is_empty() {
            if self.log.wants_snapshot() {
                self.snapshot(state, now)?;
            }
            effects.ticket = self.log.append(now, &mut |append| records::append(append, id, records))?;
        }
        Ok(())
    }

    /// Somebody may have something to take.
    fn wake(self: &Arc<Self>, state: &mut State, id: u64, effects: &mut Effects) {
        self.wake_others(state, id, ConsumerId(u32::MAX), effects);
    }

    fn wake_others(self: &Arc<Self>, state: &mut State, id: u64, except: ConsumerId, effects: &mut Effects) {
        let Some(member) = state.members.get_mut(&id) else { return };
        if member.mailbox.consumer_count() == 0 {
            return;
        }
        let mut sub_state = member.sub.state();
        if member.mailbox.counts().ready == 0 {
            // With wildcards a window has its room for all streams: it may have become free for another one.
            if sub_state.active.is_empty() {
                return;
            }
        } else if !member.sub.filter.is_literal() && !member.listed {
            member.listed = true;
            sub_state.active.push_back(self.clone());
        }
        for consumer in member.mailbox.consumers_with_room().filter(|c| *c != except) {
            if let Some(attached) = sub_state.consumers.get(&consumer) {
                effects.signals.push(attached.signal.clone());
            }
        }
    }

    fn set_timer(&self, shared: &Shared, state: &mut State, id: u64) {
        let next = state.members.get(&id).and_then(|m| m.mailbox.next_deadline());
        if let Some(next) = next
            && state.timer.is_none_or(|timer| next < timer)
        {
            state.timer = Some(next);
            shared.set_timer(next, self.topic.as_str());
        }
    }

    /// With the stream unlocked: wakes consumers, and buries the dying.
    fn run(self: &Arc<Self>, shared: &Arc<Shared>, effects: Effects, later: Option<&Arc<Later>>) {
        for signal in effects.signals {
            signal.signal();
        }
        for (sub, seq, failures) in effects.dying {
            crate::dead::bury(shared, self, &sub, seq, &failures, later.cloned());
        }
    }
}
