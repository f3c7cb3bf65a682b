//! A second opinion on the delivery rules: plain maps, every question answered by looking at every message.
//! Written from the documentation, so it shares no shortcut with the mailbox.

use crate::mailbox::{ConsumerId, Counts, Failures, Millis, Record, Taken, Verdict, Window};
use crate::retry::RetryPolicy;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    InFlight { consumer: ConsumerId, deadline: Millis },
    Delayed { due: Millis },
    Dying,
    Settled,
    Trimmed,
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) priority: i64,
    pub(super) size: u32,
    pub(super) state: State,
    // Failed deliveries.
    attempts: u32,
    first: Millis,
    last: Millis,
    reason: Option<Arc<str>>,
    // What the last record about it said; all that a crash leaves.
    logged_due: Millis,
    logged_reason: Option<Arc<str>>,
}

/// One message's part of a [`Record`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    Settled(u64),
    Tried(u64, Failures),
    Dying(u64, Failures),
}

impl Fact {
    fn seq(&self) -> u64 {
        match self {
            Self::Settled(seq) | Self::Tried(seq, _) | Self::Dying(seq, _) => *seq,
        }
    }
}

/// What the records say, message by message.
pub(super) fn facts(records: &[Record]) -> Vec<Fact> {
    let mut facts = Vec::new();
    for record in records {
        match record {
            Record::Settled { first, last } => facts.extend((*first..=*last).map(Fact::Settled)),
            Record::Tried { first, last, failures } => {
                facts.extend((*first..=*last).map(|seq| Fact::Tried(seq, failures.clone())));
            }
            Record::Dying { seq, failures } => facts.push(Fact::Dying(*seq, failures.clone())),
        }
    }
    facts
}

pub(super) struct Model {
    pub(super) policy: RetryPolicy,
    pub(super) events: BTreeMap<u64, Event>,
    pub(super) consumers: BTreeMap<ConsumerId, Window>,
    pub(super) first_kept: u64,
    /// Until when a consumer that let a lease end is passed over.
    late: BTreeMap<ConsumerId, Millis>,
    // What the current step must have recorded.
    facts: Vec<Fact>,
}

impl Model {
    pub(super) fn new(policy: RetryPolicy) -> Self {
        Self {
            policy,
            events: BTreeMap::new(),
            consumers: BTreeMap::new(),
            first_kept: 1,
            late: BTreeMap::new(),
            facts: Vec::new(),
        }
    }

    fn seqs(&self, wanted: impl Fn(&State) -> bool) -> Vec<u64> {
        self.events.iter().filter(|(_, e)| wanted(&e.state)).map(|(seq, _)| *seq).collect()
    }

    pub(super) fn ready(&self) -> Vec<u64> {
        self.seqs(|s| *s == State::Ready)
    }

    pub(super) fn dying(&self) -> Vec<u64> {
        self.seqs(|s| *s == State::Dying)
    }

    pub(super) fn delayed(&self) -> Vec<(Millis, u64)> {
        let mut all: Vec<_> = self
            .events
            .iter()
            .filter_map(|(seq, e)| match e.state {
                State::Delayed { due } => Some((due, *seq)),
                _ => None,
            })
            .collect();
        all.sort_unstable();
        all
    }

    pub(super) fn in_flight(&self) -> Vec<(u64, ConsumerId)> {
        self.events
            .iter()
            .filter_map(|(seq, e)| match e.state {
                State::InFlight { consumer, .. } => Some((*seq, consumer)),
                _ => None,
            })
            .collect()
    }

    pub(super) fn held(&self, consumer: ConsumerId, first: u64, last: u64) -> Vec<u64> {
        let mut held = Vec::new();
        for (seq, holder) in self.in_flight() {
            if holder == consumer && seq >= first && seq <= last {
                held.push(seq);
            }
        }
        held
    }

    /// Messages and bytes that `consumer` holds.
    pub(super) fn load(&self, consumer: ConsumerId) -> (u32, u64) {
        let held = self.held(consumer, 0, u64::MAX);
        (held.len() as u32, held.iter().map(|seq| u64::from(self.events[seq].size)).sum())
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            ready: self.ready().len() as u64,
            in_flight: self.in_flight().len() as u64,
            delayed: self.delayed().len() as u64,
            dying: self.dying().len() as u64,
        }
    }

    pub(super) fn is_settled(&self, seq: u64) -> bool {
        let done = |e: &Event| matches!(e.state, State::Settled | State::Trimmed);
        seq < self.first_kept || self.events.get(&seq).is_some_and(done)
    }

    pub(super) fn next_deadline(&self) -> Option<Millis> {
        self.events
            .values()
            .filter_map(|e| match e.state {
                State::InFlight { deadline, .. } => Some(deadline),
                State::Delayed { due } => Some(due),
                _ => None,
            })
            .chain(self.late.values().copied().filter(|_| self.consumers.len() > 1))
            .min()
    }

    /// It let a lease end, and somebody who did not has room.
    pub(super) fn is_passed_over(&self, consumer: ConsumerId) -> bool {
        let could = |(other, window): (&ConsumerId, &Window)| {
            let (count, bytes) = self.load(*other);
            !self.late.contains_key(other) && count < window.count && (count == 0 || bytes < window.bytes)
        };
        self.late.contains_key(&consumer) && self.consumers.iter().any(could)
    }

    pub(super) fn top_priority(&self) -> Option<i64> {
        self.ready().iter().map(|seq| self.events[seq].priority).max()
    }

    pub(super) fn failures(&self) -> BTreeMap<u64, Failures> {
        let failed = |seq: &u64| self.events[seq].attempts > 0;
        let open = self.seqs(|s| !matches!(s, State::Settled | State::Trimmed));
        open.into_iter().filter(failed).map(|seq| (seq, self.failures_of(seq))).collect()
    }

    fn failures_of(&self, seq: u64) -> Failures {
        let e = &self.events[&seq];
        let due = match e.state {
            State::Delayed { due } => due,
            _ => 0,
        };
        Failures { attempts: e.attempts, first: e.first, last: e.last, due, reason: e.reason.clone() }
    }

    fn exhausted(&self, seq: u64) -> bool {
        self.policy.max_deliveries.is_some_and(|max| self.events[&seq].attempts >= max.get())
    }

    fn set(&mut self, seq: u64, state: State) {
        self.events.get_mut(&seq).expect("known").state = state;
    }

    pub(super) fn offer(&mut self, seq: u64, priority: i64, size: u32) {
        let event = Event {
            priority,
            size,
            // A mailbox that was trimmed past the newest message does not want older ones.
            state: if seq < self.first_kept { State::Trimmed } else { State::Ready },
            attempts: 0,
            first: 0,
            last: 0,
            reason: None,
            logged_due: 0,
            logged_reason: None,
        };
        assert!(self.events.insert(seq, event).is_none());
    }

    pub(super) fn detach(&mut self, consumer: ConsumerId, now: Millis) {
        for seq in self.held(consumer, 0, u64::MAX) {
            self.fail(seq, Duration::ZERO, None, now);
        }
        self.consumers.remove(&consumer);
        self.late.remove(&consumer);
    }

    pub(super) fn take(&mut self, consumer: ConsumerId, now: Millis, max: usize) -> Vec<Taken> {
        let mut out = Vec::new();
        let Some(window) = self.consumers.get(&consumer).copied() else { return out };
        if self.is_passed_over(consumer) {
            return out;
        }
        while out.len() < max {
            let Some(priority) = self.top_priority() else { break };
            let ready = self.ready();
            let seq = *ready.iter().find(|seq| self.events[seq].priority == priority).expect("ready");
            let (count, bytes) = self.load(consumer);
            let fits = count == 0 || bytes + u64::from(self.events[&seq].size) <= window.bytes;
            if count >= window.count || !fits {
                break;
            }
            let deadline = now + self.policy.ack_wait.as_millis() as u64;
            self.set(seq, State::InFlight { consumer, deadline });
            out.push(Taken { seq, attempt: self.events[&seq].attempts + 1, priority });
        }
        out
    }

    pub(super) fn settle(&mut self, consumer: ConsumerId, seq: u64, verdict: &Verdict, now: Millis) -> bool {
        if self.held(consumer, seq, seq).is_empty() {
            return false;
        }
        self.late.remove(&consumer);
        match verdict {
            Verdict::Ack | Verdict::Discard => self.finish(seq),
            Verdict::Retry { after, reason } => {
                let backoff = self.backoff_of(seq);
                self.fail(seq, after.unwrap_or(backoff), reason.clone(), now);
            }
            Verdict::Dead { reason } => {
                self.count(seq, Some(reason.clone()), now);
                self.die(seq);
            }
        }
        true
    }

    pub(super) fn touch(&mut self, consumer: ConsumerId, seq: u64, now: Millis) -> bool {
        let held = !self.held(consumer, seq, seq).is_empty();
        if held {
            let deadline = now + self.policy.ack_wait.as_millis() as u64;
            self.set(seq, State::InFlight { consumer, deadline });
            self.late.remove(&consumer);
        }
        held
    }

    pub(super) fn tick(&mut self, now: Millis) {
        self.late.retain(|_, until| *until > now);
        for seq in self.seqs(|s| matches!(s, State::InFlight { deadline, .. } if *deadline <= now)) {
            if let State::InFlight { consumer, .. } = self.events[&seq].state {
                self.late.insert(consumer, now + (self.policy.ack_wait.as_millis() as u64).max(1));
            }
            let backoff = self.backoff_of(seq);
            self.fail(seq, backoff, None, now);
        }
        for seq in self.seqs(|s| matches!(s, State::Delayed { due } if *due <= now)) {
            if self.exhausted(seq) {
                self.die(seq);
            } else {
                self.set(seq, State::Ready);
            }
        }
    }

    pub(super) fn buried(&mut self, seq: u64) -> bool {
        let dying = self.dying().contains(&seq);
        if dying {
            self.finish(seq);
        }
        dying
    }

    pub(super) fn revive(&mut self, seq: u64, due: Millis) -> bool {
        let dying = self.dying().contains(&seq);
        if dying {
            self.set(seq, State::Delayed { due });
        }
        dying
    }

    pub(super) fn trim(&mut self, first_kept: u64) -> u64 {
        self.first_kept = self.first_kept.max(first_kept);
        let open = self.seqs(|s| !matches!(s, State::Settled | State::Trimmed));
        let lost: Vec<u64> = open.into_iter().filter(|seq| *seq < first_kept).collect();
        for &seq in &lost {
            self.set(seq, State::Trimmed);
        }
        lost.len() as u64
    }

    /// The process died and came back from its records, then ticked.
    pub(super) fn crash(&mut self, now: Millis) {
        self.consumers.clear();
        self.late.clear();
        for seq in self.seqs(|s| !matches!(s, State::Settled | State::Trimmed)) {
            let event = self.events.get_mut(&seq).expect("known");
            event.reason = event.logged_reason.clone();
            event.state = match event.logged_due {
                due if due > now => State::Delayed { due },
                _ => State::Ready,
            };
            if self.exhausted(seq) {
                self.die(seq);
            }
        }
    }

    /// The log now holds the histories as they are.
    pub(super) fn checkpoint(&mut self) {
        for (seq, failures) in self.failures() {
            let event = self.events.get_mut(&seq).expect("known");
            event.logged_due = failures.due;
            event.logged_reason = failures.reason;
        }
    }

    /// Compares what a step recorded with what it had to.
    pub(super) fn check_facts(&mut self, mut recorded: Vec<Fact>) {
        let mut wanted = std::mem::take(&mut self.facts);
        wanted.sort_by_key(Fact::seq);
        recorded.sort_by_key(Fact::seq);
        assert_eq!(recorded.len(), wanted.len(), "records: {recorded:?}, wanted: {wanted:?}");
        for (got, mut want) in recorded.into_iter().zip(wanted) {
            if let (Fact::Dying(_, got), Fact::Dying(seq, want)) = (&got, &mut want) {
                assert!(got.reason.as_ref().is_some_and(|text| !text.is_empty()), "no reason: {got:?}");
                if want.reason.is_none() {
                    // Nobody gave one: the mailbox may word it as it likes.
                    want.reason.clone_from(&got.reason);
                }
                self.events.get_mut(seq).expect("known").logged_reason.clone_from(&got.reason);
            }
            assert_eq!(got, want);
        }
    }

    fn backoff_of(&self, seq: u64) -> Duration {
        // The delivery that just failed is attempt n; the wait before delivery n + 1 is the n-th of the list.
        let n = self.events[&seq].attempts as usize + 1;
        self.policy.backoff.iter().take(n).next_back().copied().unwrap_or_default()
    }

    fn finish(&mut self, seq: u64) {
        self.set(seq, State::Settled);
        self.facts.push(Fact::Settled(seq));
    }

    fn count(&mut self, seq: u64, reason: Option<Arc<str>>, now: Millis) {
        let event = self.events.get_mut(&seq).expect("known");
        event.attempts += 1;
        if event.attempts == 1 {
            event.first = now;
        }
        event.last = now;
        event.reason = reason.or_else(|| event.reason.take());
    }

    fn fail(&mut self, seq: u64, delay: Duration, reason: Option<Arc<str>>, now: Millis) {
        self.count(seq, reason, now);
        if self.exhausted(seq) {
            self.die(seq);
            return;
        }
        let state = match delay.as_millis() as u64 {
            0 => State::Ready,
            ms => State::Delayed { due: now + ms },
        };
        self.set(seq, state);
        let failures = self.failures_of(seq);
        let event = self.events.get_mut(&seq).expect("known");
        event.logged_due = failures.due;
        event.logged_reason.clone_from(&failures.reason);
        self.facts.push(Fact::Tried(seq, failures));
    }

    fn die(&mut self, seq: u64) {
        self.set(seq, State::Dying);
        self.events.get_mut(&seq).expect("known").logged_due = 0;
        let failures = self.failures_of(seq);
        self.facts.push(Fact::Dying(seq, failures));
    }
}
