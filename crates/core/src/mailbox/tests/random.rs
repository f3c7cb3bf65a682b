//! Random command lists: after every one the mailbox must agree with the model.

use super::model::{Model, State, facts};
use crate::mailbox::{ConsumerId, Mailbox, Millis, Record, Verdict, Window};
use crate::retry::RetryPolicy;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

#[derive(Clone, Debug)]
enum Command {
    Offer {
        count: u64,
        priority: i64,
        size: u32,
    },
    Attach {
        consumer: u32,
        count: u32,
        bytes: u64,
    },
    Detach {
        consumer: u32,
    },
    Take {
        consumer: u32,
        max: usize,
    },
    /// A verdict on something in flight.
    Settle {
        pick: usize,
        verdict: Verdict,
    },
    /// A verdict from anybody on anything, in flight or not.
    Stray {
        consumer: u32,
        pick: u64,
        verdict: Verdict,
    },
    Range {
        consumer: u32,
        pick: u64,
        len: u64,
        verdict: Verdict,
    },
    Touch {
        pick: usize,
    },
    StrayTouch {
        consumer: u32,
        pick: u64,
    },
    Wait {
        ms: u64,
    },
    Tick {
        ms: u64,
    },
    /// To `early` ms before the next deadline.
    TickNext {
        early: u64,
    },
    Buried {
        pick: usize,
    },
    StrayBuried {
        pick: u64,
    },
    Revive {
        pick: usize,
        ms: u64,
    },
    Trim {
        pick: u64,
    },
    Policy {
        ack_wait: u64,
        backoff: Vec<u64>,
    },
    Crash {
        trim: TrimAt,
        merged: bool,
    },
    Checkpoint,
}

/// When a recovery says what no longer exists.
#[derive(Clone, Copy, Debug)]
enum TrimAt {
    First,
    AfterRecords,
    Last,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let reason = prop_oneof![2 => Just(None), 1 => "[a-c]".prop_map(|text| Some(text.as_str().into()))];
    prop_oneof![
        4 => Just(Verdict::Ack),
        1 => Just(Verdict::Discard),
        4 => (prop::option::of((0u64..40).prop_map(ms)), reason)
            .prop_map(|(after, reason)| Verdict::Retry { after, reason }),
        1 => "[d-f]".prop_map(|text| Verdict::Dead { reason: text.as_str().into() }),
    ]
}

fn priority() -> impl Strategy<Value = i64> {
    prop_oneof![4 => -1i64..3, 1 => Just(i64::MIN), 1 => Just(i64::MAX), 1 => any::<i64>()]
}

fn backoff() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(0u64..50, 0..4)
}

fn command() -> impl Strategy<Value = Command> {
    let consumer = || 1u32..4;
    let size = || prop_oneof![6 => 0u32..30, 1 => 100u32..2000];
    let bytes = || prop_oneof![2 => Just(u64::MAX), 3 => 0u64..120];
    let trim = prop_oneof![Just(TrimAt::First), Just(TrimAt::AfterRecords), Just(TrimAt::Last)];
    prop_oneof![
        8 => (1u64..7, priority(), size()).prop_map(|(count, priority, size)| Command::Offer { count, priority, size }),
        5 => (consumer(), 0u32..9, bytes())
            .prop_map(|(consumer, count, bytes)| Command::Attach { consumer, count, bytes }),
        2 => consumer().prop_map(|consumer| Command::Detach { consumer }),
        12 => (consumer(), 0usize..8).prop_map(|(consumer, max)| Command::Take { consumer, max }),
        12 => (any::<usize>(), verdict()).prop_map(|(pick, verdict)| Command::Settle { pick, verdict }),
        2 => (consumer(), any::<u64>(), verdict())
            .prop_map(|(consumer, pick, verdict)| Command::Stray { consumer, pick, verdict }),
        3 => (consumer(), any::<u64>(), prop_oneof![3 => 0u64..20, 1 => Just(u64::MAX)], verdict())
            .prop_map(|(consumer, pick, len, verdict)| Command::Range { consumer, pick, len, verdict }),
        3 => any::<usize>().prop_map(|pick| Command::Touch { pick }),
        1 => (consumer(), any::<u64>()).prop_map(|(consumer, pick)| Command::StrayTouch { consumer, pick }),
        4 => (0u64..30).prop_map(|ms| Command::Wait { ms }),
        4 => prop_oneof![4 => 0u64..30, 1 => 100u64..5000].prop_map(|ms| Command::Tick { ms }),
        6 => (0u64..2).prop_map(|early| Command::TickNext { early }),
        3 => any::<usize>().prop_map(|pick| Command::Buried { pick }),
        1 => any::<u64>().prop_map(|pick| Command::StrayBuried { pick }),
        2 => (any::<usize>(), 1u64..40).prop_map(|(pick, ms)| Command::Revive { pick, ms }),
        1 => any::<u64>().prop_map(|pick| Command::Trim { pick }),
        1 => (1u64..100, backoff()).prop_map(|(ack_wait, backoff)| Command::Policy { ack_wait, backoff }),
        4 => (trim, any::<bool>()).prop_map(|(trim, merged)| Command::Crash { trim, merged }),
        1 => Just(Command::Checkpoint),
    ]
}

struct World {
    mailbox: Mailbox,
    model: Model,
    now: Millis,
    newest: u64,
    log: Vec<Record>,
    // One list for all steps lets records of different steps melt together; else each step has its own.
    one_list: bool,
    // Kept beside the model: neither may be delivered again.
    settled: BTreeSet<u64>,
}

impl World {
    fn new(policy: RetryPolicy, one_list: bool) -> Self {
        Self {
            mailbox: Mailbox::new(policy.clone(), 0),
            model: Model::new(policy),
            now: 1000,
            newest: 0,
            log: Vec::new(),
            one_list,
            settled: BTreeSet::new(),
        }
    }

    /// Runs a step of the mailbox and takes its records to the log.
    fn step<T>(&mut self, step: impl FnOnce(&mut Mailbox, Millis, &mut Vec<Record>) -> T) -> T {
        let before = facts(&self.log);
        let result = if self.one_list {
            step(&mut self.mailbox, self.now, &mut self.log)
        } else {
            let mut records = Vec::new();
            let result = step(&mut self.mailbox, self.now, &mut records);
            self.log.append(&mut records);
            result
        };
        let mut after = facts(&self.log);
        let new = after.split_off(before.len());
        assert_eq!(after, before, "a step changed what was recorded before");
        self.model.check_facts(new);
        result
    }

    fn any_seq(&self, pick: u64) -> u64 {
        pick % (self.newest + 3)
    }

    fn run(&mut self, command: Command) {
        match command {
            Command::Offer { count, priority, size } => {
                let first = self.newest + 1;
                self.newest += count;
                self.mailbox.offer(first, self.newest, priority);
                for seq in first..=self.newest {
                    self.model.offer(seq, priority, size);
                }
            }
            Command::Attach { consumer, count, bytes } => {
                self.mailbox.attach(ConsumerId(consumer), Window { count, bytes });
                self.model.consumers.insert(ConsumerId(consumer), Window { count, bytes });
            }
            Command::Detach { consumer } => {
                self.model.detach(ConsumerId(consumer), self.now);
                self.step(|mailbox, now, records| mailbox.detach(ConsumerId(consumer), now, records));
            }
            Command::Take { consumer, max } => self.take(ConsumerId(consumer), max),
            Command::Settle { pick, verdict } => {
                let held = self.model.in_flight();
                if let Some((seq, consumer)) = held.get(pick % held.len().max(1)) {
                    self.settle(*consumer, *seq, verdict);
                }
            }
            Command::Stray { consumer, pick, verdict } => {
                self.settle(ConsumerId(consumer), self.any_seq(pick), verdict);
            }
            Command::Range { consumer, pick, len, verdict } => {
                let (consumer, first) = (ConsumerId(consumer), self.any_seq(pick));
                let last = first.saturating_add(len);
                let held = self.model.held(consumer, first, last);
                for &seq in &held {
                    assert!(self.model.settle(consumer, seq, &verdict, self.now));
                }
                let settled = self.step(|mailbox, now, records| {
                    mailbox.settle_range(consumer, first, last, &verdict, now, records)
                });
                assert_eq!(settled, held.len() as u64);
            }
            Command::Touch { pick } => {
                let held = self.model.in_flight();
                if let Some((seq, consumer)) = held.get(pick % held.len().max(1)) {
                    self.touch(*consumer, *seq);
                }
            }
            Command::StrayTouch { consumer, pick } => self.touch(ConsumerId(consumer), self.any_seq(pick)),
            Command::Wait { ms } => self.now += ms,
            Command::Tick { ms } => {
                self.now += ms;
                self.tick();
            }
            Command::TickNext { early } => {
                let next = self.mailbox.next_deadline().unwrap_or(self.now);
                self.now = self.now.max(next.saturating_sub(early));
                self.tick();
            }
            Command::Buried { pick } => {
                let dying = self.model.dying();
                if let Some(seq) = dying.get(pick % dying.len().max(1)) {
                    self.buried(*seq);
                }
            }
            Command::StrayBuried { pick } => self.buried(self.any_seq(pick)),
            Command::Revive { pick, ms } => {
                let dying = self.model.dying();
                let stray = pick as u64 % (self.newest + 3);
                let seq = dying.get(pick % dying.len().max(1)).copied().unwrap_or(stray);
                let due = self.now + ms;
                assert_eq!(self.mailbox.revive(seq, due), self.model.revive(seq, due));
            }
            Command::Trim { pick } => {
                let first_kept = self.any_seq(pick);
                assert_eq!(self.mailbox.trim(first_kept), self.model.trim(first_kept));
            }
            Command::Policy { ack_wait, backoff } => {
                let policy = RetryPolicy {
                    ack_wait: ms(ack_wait),
                    backoff: backoff.into_iter().map(ms).collect(),
                    max_deliveries: self.model.policy.max_deliveries,
                };
                self.mailbox.set_policy(policy.clone());
                self.model.policy = policy;
            }
            Command::Crash { trim, merged } => self.crash(trim, merged),
            Command::Checkpoint => self.checkpoint(),
        }
    }

    fn take(&mut self, consumer: ConsumerId, max: usize) {
        let sizes: BTreeMap<u64, u32> = self.model.events.iter().map(|(seq, e)| (*seq, e.size)).collect();
        let mut out = Vec::new();
        self.mailbox.take(consumer, self.now, max, |seq| sizes[&seq], &mut out);
        assert_eq!(out, self.model.take(consumer, self.now, max), "taken, wanted");
        for taken in &out {
            assert!(!self.settled.contains(&taken.seq), "{} delivered after its end", taken.seq);
        }
        if !out.is_empty() {
            let window = self.model.consumers[&consumer];
            let held = self.mailbox.held(consumer, 0, u64::MAX);
            let bytes: u64 = held.iter().map(|seq| u64::from(sizes[seq])).sum();
            assert!(held.len() as u64 <= u64::from(window.count), "window exceeded");
            assert!(held.len() == 1 || bytes <= window.bytes, "byte window exceeded");
        }
    }

    fn settle(&mut self, consumer: ConsumerId, seq: u64, verdict: Verdict) {
        let wanted = self.model.settle(consumer, seq, &verdict, self.now);
        let result = self.step(|mailbox, now, records| mailbox.settle(consumer, seq, verdict, now, records));
        assert_eq!(result.is_ok(), wanted, "settle of {seq} by {consumer:?}");
    }

    fn touch(&mut self, consumer: ConsumerId, seq: u64) {
        let wanted = self.model.touch(consumer, seq, self.now);
        assert_eq!(self.mailbox.touch(consumer, seq, self.now).is_ok(), wanted);
    }

    fn tick(&mut self) {
        self.model.tick(self.now);
        self.step(Mailbox::tick);
        // Else the driver would spin.
        assert!(self.mailbox.next_deadline().is_none_or(|next| next > self.now), "a tick left work undone");
    }

    fn buried(&mut self, seq: u64) {
        let wanted = self.model.buried(seq);
        let said = self.step(|mailbox, _, records| mailbox.buried(seq, records));
        assert_eq!(said, wanted);
    }

    fn crash(&mut self, trim: TrimAt, merged: bool) {
        let mut mailbox = Mailbox::new(self.model.policy.clone(), 0);
        let first_kept = self.model.first_kept;
        if matches!(trim, TrimAt::First) {
            assert_eq!(mailbox.trim(first_kept), 0);
        }
        for record in &self.log {
            match record {
                Record::Settled { first, last } => mailbox.restore_settled(*first, *last),
                Record::Tried { first, last, failures } => mailbox.restore_tried(*first, *last, failures),
                Record::Dying { seq, failures } => mailbox.restore_tried(*seq, *seq, failures),
            }
        }
        if matches!(trim, TrimAt::AfterRecords) {
            assert_eq!(mailbox.trim(first_kept), 0, "nothing was offered yet");
        }
        // Everything that still exists, settled or not.
        let mut runs: Vec<(u64, u64, i64)> = Vec::new();
        for (&seq, event) in self.model.events.range(first_kept..) {
            match runs.last_mut() {
                Some(run) if merged && run.2 == event.priority => run.1 = seq,
                _ => runs.push((seq, seq, event.priority)),
            }
        }
        for (first, last, priority) in runs {
            mailbox.offer(first, last, priority);
        }
        if matches!(trim, TrimAt::Last) {
            assert_eq!(mailbox.trim(first_kept), 0, "what was trimmed was not offered");
        }
        self.mailbox = mailbox;
        self.model.crash(self.now);
        self.step(Mailbox::tick);
    }

    /// Replaces the log by what a checkpoint would keep.
    fn checkpoint(&mut self) {
        let floor = self.mailbox.floor();
        self.log.clear();
        if floor.floor() > 0 {
            self.log.push(Record::Settled { first: 1, last: floor.floor() });
        }
        self.log.extend(floor.above().iter().map(|(first, last)| Record::Settled { first, last }));
        for (seq, failures) in self.mailbox.failures() {
            self.log.push(Record::Tried { first: seq, last: seq, failures: failures.clone() });
        }
        self.model.checkpoint();
    }

    fn check(&mut self) {
        let (mailbox, model) = (&self.mailbox, &self.model);
        assert_eq!(mailbox.counts(), model.counts());
        assert_eq!(
            mailbox.counts().pending(),
            model.events.keys().filter(|s| !model.is_settled(**s)).count() as u64
        );
        assert_eq!(mailbox.dying.iter().copied().collect::<Vec<_>>(), model.dying());
        assert_eq!(mailbox.delayed.iter().copied().collect::<Vec<_>>(), model.delayed());
        assert_eq!(mailbox.next_deadline(), model.next_deadline());
        assert_eq!(mailbox.top_priority(), model.top_priority());
        assert_eq!(mailbox.consumer_count(), model.consumers.len());
        let failures: BTreeMap<_, _> = mailbox.failures().map(|(seq, f)| (seq, f.clone())).collect();
        assert_eq!(failures, model.failures());
        for consumer in (1..4).map(ConsumerId) {
            assert_eq!(mailbox.held(consumer, 0, u64::MAX), model.held(consumer, 0, u64::MAX));
            let room = mailbox.consumers_with_room().any(|with_room| with_room == consumer);
            let count_left = model.consumers.get(&consumer).is_some_and(|w| model.load(consumer).0 < w.count);
            let wanted = count_left && !model.is_passed_over(consumer);
            assert_eq!(room, wanted, "room of {consumer:?}");
        }
        let mut floor = 0;
        for seq in 0..=self.newest + 3 {
            let settled = seq == 0 || model.is_settled(seq);
            assert_eq!(mailbox.floor().is_settled(seq), settled, "is {seq} settled?");
            if settled && floor + 1 == seq {
                floor = seq;
            }
            for consumer in (1..4).map(ConsumerId) {
                let holds = matches!(
                    model.events.get(&seq).map(|e| e.state),
                    Some(State::InFlight { consumer: holder, .. }) if holder == consumer
                );
                assert_eq!(mailbox.holds(consumer, seq), holds);
            }
        }
        assert_eq!(mailbox.floor().floor(), floor);
        // The end of a message is final.
        let ended: BTreeSet<u64> = (1..=self.newest).filter(|seq| mailbox.floor().is_settled(*seq)).collect();
        assert!(self.settled.is_subset(&ended), "a settled message came back");
        self.settled = ended;
    }

    /// Everything pending is delivered once more, and then nothing is left.
    fn drain(&mut self) {
        for consumer in 1..4 {
            self.run(Command::Detach { consumer });
        }
        self.run(Command::Attach { consumer: 1, count: u32::MAX, bytes: u64::MAX });
        while self.mailbox.next_deadline().is_some() {
            self.run(Command::TickNext { early: 0 });
        }
        for seq in self.model.dying() {
            self.buried(seq);
        }
        self.check();
        let mut out = Vec::new();
        self.mailbox.take(ConsumerId(1), self.now, usize::MAX, |_| 1, &mut out);
        assert_eq!(out, self.model.take(ConsumerId(1), self.now, usize::MAX));
        assert!(out.is_sorted_by_key(|taken| (std::cmp::Reverse(taken.priority), taken.seq)));
        let delivered: BTreeSet<u64> = out.iter().map(|taken| taken.seq).collect();
        assert_eq!(delivered.len(), out.len(), "delivered twice");
        for seq in 1..=self.newest {
            assert_ne!(delivered.contains(&seq), self.settled.contains(&seq), "{seq} is lost or came back");
        }
        self.run(Command::Range { consumer: 1, pick: 0, len: u64::MAX, verdict: Verdict::Ack });
        self.check();
        assert_eq!(self.mailbox.counts().pending(), 0);
        assert!(self.mailbox.floor().floor() >= self.newest);
        assert_eq!(self.mailbox.failures().count(), 0);
    }
}

fn any_policy() -> impl Strategy<Value = RetryPolicy> {
    (1u64..100, backoff(), 0u32..5).prop_map(|(ack_wait, backoff, max)| RetryPolicy {
        ack_wait: ms(ack_wait),
        backoff: backoff.into_iter().map(ms).collect(),
        max_deliveries: NonZeroU32::new(max),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(
        policy in any_policy(),
        one_list in any::<bool>(),
        commands in prop::collection::vec(command(), 1..120),
    ) {
        let mut world = World::new(policy, one_list);
        world.check();
        for command in commands {
            world.run(command);
            world.check();
        }
        world.drain();
    }
}
