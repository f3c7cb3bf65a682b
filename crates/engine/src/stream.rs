//! One stream: a log, and the mailboxes of the subscriptions that match it.

use crate::engine::Shared;
use crate::error::EngineError;
use crate::id::id_text;
use crate::later::{Later, Receipt};
use crate::log::{CommitObserver, Event, Log, LogStats, PayloadKind, Publish, RecordView, Signal, Ticket};
use crate::records::{self, Folded};
use crate::subscription::{Note, Subscription};
use postroad_core::dedup::DedupWindow;
use postroad_core::mailbox::{ConsumerId, Counts, Failures, Mailbox, Millis, Record, Taken, Verdict, Window};
use postroad_core::{StartAt, Subject};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// The subscription of `$dead/…` streams from which `kick` takes.
pub(crate) const KICK: u64 = 0;
const KICK_NAME: &str = "$kick";

/// A message to publish, in the form in which it is logged. See [`Publish`].
#[derive(Clone, Copy, Debug)]
pub struct NewEvent<'a> {
    /// Larger is delivered first.
    pub priority: i64,
    /// The message id as a JSON token.
    pub id: Option<&'a [u8]>,
    /// Other envelope fields as a JSON object on one line.
    pub headers: Option<&'a [u8]>,
    /// The form of the payload.
    pub kind: PayloadKind,
    /// The payload in that form.
    pub payload: &'a [u8],
}

/// What became of published messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The first new sequence; 0 if all were duplicates.
    pub first: u64,
    /// The last new sequence; 0 if all were duplicates.
    pub last: u64,
    /// How many had been published before.
    pub duplicates: u64,
    /// The sequence of the last duplicate's first publication.
    pub duplicate_of: u64,
    /// Stored when this is committed.
    pub ticket: Ticket,
}

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

/// What the log of a stream folds to.
#[derive(Default)]
pub(crate) struct StreamFold {
    pub(crate) members: BTreeMap<u64, Folded>,
    pub(crate) dedup: Option<DedupWindow<Arc<[u8]>>>,
    pub(crate) last_time: u64,
}

impl StreamFold {
    pub(crate) fn apply(&mut self, view: &RecordView<'_>) -> Result<(), String> {
        self.last_time = view.time;
        if view.kind == "pub" {
            if let Some(dedup) = &mut self.dedup
                && let Some((_, Some(id))) = view.publish_key()
            {
                dedup.insert(id_text(id)[..].into(), view.seq, view.time);
            }
            return Ok(());
        }
        if view.kind == "gap" {
            #[derive(serde::Deserialize)]
            struct Gap {
                first: u64,
                last: u64,
            }
            let gap: Gap = serde_json::from_slice(view.line).map_err(|e| e.to_string())?;
            for member in self.members.values_mut() {
                member.floor.settle(gap.first, gap.last);
            }
            return Ok(());
        }
        records::fold(&mut self.members, view)
    }
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

    /// Appends messages, in order, to one commit or consecutive ones. They are stored when the ticket of the result is
    /// committed; call [`crate::Engine::flush`] after a group of calls.
    ///
    /// A full commit queue is no reason to refuse: whoever reads from a network asks [`crate::Engine::admit`] before it
    /// reads more.
    pub fn publish(&self, events: &[NewEvent<'_>]) -> Result<Published, EngineError> {
        let shared = self.shared()?;
        match shared.admit() {
            Ok(()) | Err(EngineError::Busy) => {}
            Err(error) => return Err(error),
        }
        self.publish_unchecked(&shared, events, false)
    }

    /// Publishes without asking for room; `again` also without asking whether the id was there before.
    pub(crate) fn publish_unchecked(
        &self,
        shared: &Arc<Shared>,
        events: &[NewEvent<'_>],
        again: bool,
    ) -> Result<Published, EngineError> {
        let now = shared.now();
        let mut published =
            Published { first: 0, last: 0, duplicates: 0, duplicate_of: 0, ticket: Ticket(0) };
        let mut guard = self.state();
        let state = &mut *guard;
        if self.log.wants_snapshot() {
            self.snapshot(state, now)?;
        }
        let ticket = self.log.append(now, &mut |append| {
            for event in events {
                let key = match (&state.dedup, event.id) {
                    (Some(_), Some(id)) => Some(Arc::<[u8]>::from(&*id_text(id))),
                    _ => None,
                };
                if let (Some(dedup), Some(key), false) = (&mut state.dedup, &key, again) {
                    dedup.expire(now);
                    if let Some(seq) = dedup.get(key, now) {
                        published.duplicates += 1;
                        published.duplicate_of = seq;
                        continue;
                    }
                }
                let seq = append.publish(&Publish {
                    priority: event.priority,
                    id: event.id,
                    subject: None,
                    headers: event.headers,
                    kind: event.kind,
                    payload: event.payload,
                });
                if let (Some(dedup), Some(key)) = (&mut state.dedup, key) {
                    dedup.insert(key, seq, now);
                }
                if published.first == 0 {
                    published.first = seq;
                }
                published.last = seq;
                match state.uncommitted.back_mut() {
                    Some(run) if run.1 + 1 == seq && run.2 == event.priority => run.1 = seq,
                    _ => state.uncommitted.push_back((seq, seq, event.priority)),
                }
            }
        })?;
        // Of duplicates alone: the log answers with the commit of what was appended last, the first ones included.
        published.ticket = ticket;
        let count = if published.first == 0 { 0 } else { published.last + 1 - published.first };
        shared.counters.published.fetch_add(count, Ordering::Relaxed);
        Ok(published)
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

    /// Lets go of everything that refers back to this stream.
    pub(crate) fn clear(&self) {
        for member in std::mem::take(&mut self.state().members).into_values() {
            let mut sub_state = member.sub.state();
            sub_state.streams.clear();
            sub_state.active.clear();
        }
    }

    /// Adds a subscription. `folded` is its state from the log, if it was there before.
    pub(crate) fn join(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: &Arc<Subscription>,
        from: &StartAt,
        folded: Option<&Folded>,
    ) -> Result<Ticket, EngineError> {
        let now = shared.now();
        let stats = self.log.stats();
        let floor = match from {
            StartAt::Time(time) => self.log.seek_time(time.as_millis())? - 1,
            StartAt::First => stats.first - 1,
            StartAt::Last => stats.last.max(stats.first) - 1,
            StartAt::Sequence(seq) => seq.saturating_sub(1).max(stats.first - 1),
            _ => u64::MAX,
        };
        let mut guard = self.state();
        let state = &mut *guard;
        let floor = floor.min(self.log.stats().last);
        let mut mailbox = Mailbox::new(sub.shape().policy.clone(), if folded.is_some() { 0 } else { floor });
        if let Some(folded) = folded {
            // What retention removed before it was settled, here or in an earlier life.
            let mut lost = 0;
            folded.floor.above().gaps(folded.floor.floor() + 1, stats.first - 1, |a, b| lost += b - a + 1);
            if lost > 0 && sub.id != KICK {
                sub.lagged(self.topic.as_str(), lost);
            }
            folded.restore(&mut mailbox);
            mailbox.trim(stats.first);
        }
        // What is not committed yet is offered when it is.
        let flat = sub.id == KICK;
        self.log.priority_runs(mailbox.floor().floor() + 1, state.offered, &mut |first, last, priority| {
            mailbox.offer(first, last, if flat { 0 } else { priority });
        });
        let mut ticket = Ticket(0);
        if folded.is_none()
            && let Some(name) = &sub.name
        {
            if self.log.wants_snapshot() {
                self.snapshot(state, now)?;
            }
            ticket = self.log.append(now, &mut |append| {
                records::checkpoint(append, "sub", sub.id, sub.filter.as_str(), name, &mailbox);
            })?;
        }
        let mut effects = Effects::default();
        {
            let mut sub_state = sub.state();
            for (id, attached) in &sub_state.consumers {
                mailbox.attach(*id, attached.window);
            }
            if !sub_state.streams.iter().any(|s| Arc::ptr_eq(s, self)) {
                sub_state.streams.push(self.clone());
            }
        }
        let member = Member { sub: sub.clone(), mailbox, listed: false, lagging: false };
        state.members.insert(sub.id, member);
        self.wake(state, sub.id, &mut effects);
        self.set_timer(shared, state, sub.id);
        drop(guard);
        self.run(shared, effects, None);
        Ok(ticket)
    }

    /// Removes a subscription.
    pub(crate) fn leave(&self, id: u64) {
        self.state().members.remove(&id);
    }

    /// Lets a consumer take from this stream.
    pub(crate) fn attach(self: &Arc<Self>, shared: &Arc<Shared>, sub: &Arc<Subscription>, id: ConsumerId) {
        let mut effects = Effects::default();
        {
            let mut state = self.state();
            let window = sub.state().consumers.get(&id).map(|attached| attached.window);
            if let (Some(window), Some(member)) = (window, state.members.get_mut(&sub.id)) {
                member.mailbox.set_policy(sub.shape().policy.clone());
                member.mailbox.attach(id, window);
                self.wake(&mut state, sub.id, &mut effects);
            }
        }
        self.run(shared, effects, None);
    }

    /// The subscription `id` of this stream.
    pub(crate) fn member(&self, id: u64) -> Option<Arc<Subscription>> {
        self.state().members.get(&id).map(|member| member.sub.clone())
    }

    /// Lets a consumer take that is not known to its subscription and needs no signal.
    pub(crate) fn attach_quietly(&self, id: u64, consumer: ConsumerId, window: Window) {
        if let Some(member) = self.state().members.get_mut(&id) {
            member.mailbox.attach(consumer, window);
        }
    }

    /// A consumer is gone: what it held goes back.
    pub(crate) fn detach(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: &Arc<Subscription>,
        consumer: ConsumerId,
    ) -> Result<(), EngineError> {
        self.change(shared, sub.id, |member, now, records| member.mailbox.detach(consumer, now, records))?;
        Ok(())
    }

    /// Gives messages to a consumer, up to `max` of them or about `max_bytes`. True if more are ready.
    pub(crate) fn take(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: &Arc<Subscription>,
        consumer: ConsumerId,
        max: usize,
        max_bytes: usize,
        taken: &mut Vec<Taken>,
    ) -> bool {
        let now = shared.now();
        let mut effects = Effects::default();
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(member) = state.members.get_mut(&sub.id) else { return false };
        member.listed = false;
        let mut bytes = 0;
        let before = taken.len();
        self.log.sizes(&mut |size_of| {
            while taken.len() - before < max && bytes < max_bytes {
                if member.mailbox.take(consumer, now, 1, size_of, taken) == 0 {
                    break;
                }
                bytes += taken.last().map_or(0, |t| size_of(t.seq) as usize);
            }
        });
        let more = member.mailbox.counts().ready > 0;
        if more {
            // Another consumer of the group may have room.
            self.wake_others(state, sub.id, consumer, &mut effects);
        }
        self.set_timer(shared, state, sub.id);
        drop(guard);
        self.run(shared, effects, None);
        more
    }

    /// How many messages a consumer holds here.
    pub(crate) fn held(&self, sub: u64, consumer: ConsumerId) -> Vec<u64> {
        self.state().members.get(&sub).map(|m| m.mailbox.held(consumer, 0, u64::MAX)).unwrap_or_default()
    }

    /// One verdict on ranges of messages that `consumer` holds; `counts` gets how many each settled.
    pub(crate) fn settle(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: &Arc<Subscription>,
        consumer: ConsumerId,
        ranges: &[(u64, u64)],
        verdict: &Verdict,
        counts: &mut Vec<u64>,
    ) -> Result<Receipt, EngineError> {
        let receipt = self.change(shared, sub.id, |member, now, records| {
            counts.extend(ranges.iter().map(|&(first, last)| {
                member.mailbox.settle_range(consumer, first, last, verdict, now, records)
            }));
        });
        if shared.config.planted.cursor_before_commit { Ok(Receipt::At(Ticket(0))) } else { receipt }
    }

    /// Starts the leases of ranges again; says how many there were.
    pub(crate) fn touch(
        &self,
        shared: &Shared,
        sub: u64,
        consumer: ConsumerId,
        first: u64,
        last: u64,
    ) -> usize {
        let now = shared.now();
        let mut state = self.state();
        let Some(member) = state.members.get_mut(&sub) else { return 0 };
        let held = member.mailbox.held(consumer, first, last);
        held.into_iter().filter(|seq| member.mailbox.touch(consumer, *seq, now).is_ok()).count()
    }

    /// Leases expire and delays end.
    pub(crate) fn tick(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<(), EngineError> {
        let ids: Vec<u64> = {
            let mut state = self.state();
            state.timer = None;
            state.members.keys().copied().collect()
        };
        let passed = shared.clock.passed().as_millis();
        for id in ids {
            self.change(shared, id, |member, _, records| member.mailbox.tick(passed, records))?;
        }
        Ok(())
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
        if member.mailbox.counts().ready == 0 || member.mailbox.consumer_count() == 0 {
            return;
        }
        let mut sub_state = member.sub.state();
        if !member.sub.filter.is_literal() && !member.listed {
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

    /// The dead letter of `seq` is durable, or could not be written.
    pub(crate) fn buried(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        sub: u64,
        seq: u64,
        result: &Result<(), EngineError>,
    ) -> Result<Ticket, EngineError> {
        let receipt = self.change(shared, sub, |member, now, records| {
            if result.is_ok() {
                member.mailbox.buried(seq, records);
            } else {
                member.mailbox.revive(seq, now + 1000);
            }
        })?;
        match receipt {
            Receipt::At(ticket) => Ok(ticket),
            Receipt::Later(_) => Ok(Ticket(0)),
        }
    }

    /// Everything up to `seq` is committed: the mailboxes get it.
    fn committed(self: &Arc<Self>, seq: u64) {
        let mut effects = Effects::default();
        let Ok(shared) = self.shared() else { return };
        {
            let mut guard = self.state();
            let state = &mut *guard;
            let mut any = false;
            while let Some(run) = state.uncommitted.front_mut() {
                let (first, mut last, priority) = *run;
                if first > seq {
                    break;
                }
                if last > seq {
                    run.0 = seq + 1;
                    last = seq;
                } else {
                    state.uncommitted.pop_front();
                }
                state.offered = last;
                any = true;
                for member in state.members.values_mut() {
                    let priority = if member.sub.id == KICK { 0 } else { priority };
                    member.mailbox.offer(first, last, priority);
                }
            }
            if !any {
                return;
            }
            let ids: Vec<u64> = state.members.keys().copied().collect();
            for id in ids {
                self.wake(state, id, &mut effects);
            }
        }
        self.run(&shared, effects, None);
    }

    /// Removes what retention does not keep; reports and detaches who lags.
    pub(crate) fn maintain(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<(), EngineError> {
        let now = shared.now();
        let config = &shared.config;
        let mut detach = Vec::new();
        let mut notes = Vec::new();
        let interest = {
            let mut state = self.state();
            let mut lowest = None;
            for member in state.members.values_mut().filter(|m| m.sub.is_durable()) {
                let floor = member.mailbox.floor().floor();
                let lag = member.mailbox.counts().pending();
                let over = config.lag_events.is_some_and(|limit| lag > limit) && member.sub.id != KICK;
                if over && !member.lagging {
                    tracing::warn!(
                        topic = self.topic.as_str(),
                        subscription = member.sub.title(),
                        lag,
                        "subscription lags past its limit"
                    );
                    match config.lag_policy {
                        crate::config::LagPolicy::Note => {
                            notes.push((member.sub.clone(), Note::Lagging(self.topic.as_str().into(), lag)));
                        }
                        crate::config::LagPolicy::Detach => detach.push(member.sub.clone()),
                    }
                }
                member.lagging = over;
                lowest = Some(lowest.map_or(floor, |l: u64| l.min(floor)));
            }
            lowest
        };
        for (sub, note) in notes {
            sub.note(&note);
        }
        for sub in detach {
            sub.note(&Note::Detached(self.topic.as_str().into()));
            shared.forget(&sub)?;
        }
        let sealed = self.log.sealed();
        let stats = self.log.stats();
        let keep = &config.retention;
        let mut bytes = stats.bytes;
        let mut trim_to = 0;
        for (i, &(last, size, _)) in sealed.iter().enumerate() {
            // The next segment began when the last message of this one was there.
            let ended = sealed.get(i + 1).map_or(now, |next| next.2);
            let too_many = keep.max_bytes.is_some_and(|max| bytes > max)
                || keep.max_events.is_some_and(|max| stats.last - last.min(stats.last) >= max)
                || keep.max_age.is_some_and(|max| Duration::from_millis(now.saturating_sub(ended)) > max)
                || (keep.interest && interest.is_some_and(|floor| floor >= last));
            if !too_many {
                break;
            }
            bytes -= size;
            trim_to = last + 1;
        }
        if trim_to > 0 {
            self.trim(shared, trim_to)?;
        }
        Ok(())
    }

    fn trim(self: &Arc<Self>, shared: &Arc<Shared>, seq: u64) -> Result<(), EngineError> {
        let first = self.log.trim(seq)?;
        let mut notes = Vec::new();
        {
            let mut state = self.state();
            for member in state.members.values_mut() {
                let lost = member.mailbox.trim(first);
                if lost > 0 {
                    notes.push((member.sub.clone(), lost));
                }
            }
        }
        tracing::info!(topic = self.topic.as_str(), first, "retention removed old segments");
        for (sub, lost) in notes {
            shared.counters.trimmed.fetch_add(lost, Ordering::Relaxed);
            tracing::warn!(
                topic = self.topic.as_str(),
                subscription = sub.title(),
                lost,
                "retention removed events that were not settled"
            );
            sub.lagged(self.topic.as_str(), lost);
        }
        Ok(())
    }

    pub(crate) fn kick_subscription(stream: &Subject) -> Arc<Subscription> {
        let policy = postroad_core::retry::RetryPolicy {
            ack_wait: Duration::from_secs(3600),
            ..postroad_core::retry::RetryPolicy::default()
        };
        // The filter is not used (it joins its stream directly), but it has no wildcard: there is one stream.
        let shape = crate::subscription::Shape { group: true, policy };
        Subscription::new(KICK, postroad_core::Filter::from(stream.clone()), Some(KICK_NAME.into()), shape)
    }
}

struct Observer(Weak<Stream>);

impl CommitObserver for Observer {
    fn committed(&self, seq: u64, _: Ticket) {
        if let Some(stream) = self.0.upgrade() {
            stream.committed(seq);
        }
    }
}
