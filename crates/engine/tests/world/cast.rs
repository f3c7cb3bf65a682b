//! Who takes part in the random worlds, and what they can do.

use postroad_core::Filter;
use postroad_core::retry::RetryPolicy;
use postroad_engine::PolicyRequest;
use postroad_journal::storage::CrashMode;
use proptest::prelude::*;
use std::num::NonZeroU32;
use std::time::Duration;

/// One kind of subscription.
#[derive(Debug)]
pub struct Cast {
    pub filter: &'static str,
    pub name: Option<&'static str>,
    pub group: bool,
    pub window: u32,
    pub ack_wait: u64,
    pub backoff: &'static [u64],
    pub max: u32,
}

const fn cast(
    filter: &'static str,
    name: Option<&'static str>,
    window: u32,
    ack_wait: u64,
    backoff: &'static [u64],
    max: u32,
) -> Cast {
    Cast { filter, name, group: false, window, ack_wait, backoff, max }
}

pub const CASTS: [Cast; 6] = [
    cast("a/1", Some("x"), 3, 1000, &[], 0),
    Cast { group: true, ..cast("a/1", Some("g"), 2, 500, &[100, 300], 3) },
    cast("a/*", Some("w"), 4, 700, &[], 2),
    cast(">", Some("all"), 1000, 2000, &[50], 0),
    cast("b", None, 2, 400, &[], 2),
    cast("a/>", None, 5, 900, &[200], 1),
];

pub const TOPICS: [&str; 3] = ["a/1", "a/2", "b"];

/// Longer than any delay above.
pub const LONG: u64 = 10_000;

impl Cast {
    pub fn matches(&self, topic: usize) -> bool {
        Filter::new(self.filter).unwrap().matches(TOPICS[topic])
    }

    pub fn is_literal(&self) -> bool {
        Filter::new(self.filter).unwrap().is_literal()
    }

    pub fn title(&self) -> String {
        self.name.map_or_else(|| self.filter.to_owned(), |name| format!("{} as {name}", self.filter))
    }

    pub fn policy(&self) -> RetryPolicy {
        RetryPolicy {
            ack_wait: Duration::from_millis(self.ack_wait),
            backoff: self.backoff.iter().copied().map(Duration::from_millis).collect(),
            max_deliveries: NonZeroU32::new(self.max),
        }
    }

    pub fn request(&self) -> PolicyRequest {
        let policy = self.policy();
        PolicyRequest {
            ack_wait: Some(policy.ack_wait),
            backoff: Some(policy.backoff),
            max_deliveries: Some(self.max),
        }
    }

    pub fn delay_after(&self, attempts: u32) -> u64 {
        self.policy().delay_after(attempts).as_millis() as u64
    }
}

/// Where a subscription starts.
#[derive(Clone, Copy, Debug)]
pub enum From {
    New,
    First,
    Last,
    Seq(u64),
}

/// One step. Consumers and messages are named by an index into what there is.
#[derive(Clone, Debug)]
pub enum Op {
    Pub { topic: usize, count: usize, priority: i64, id: Option<u8>, size: usize },
    Sub { cast: usize, from: From },
    Take { consumer: usize, max: usize },
    Ack { consumer: usize, at: usize, span: u64 },
    Nack { consumer: usize, at: usize, span: u64, delay: Option<u64> },
    Bury { consumer: usize, at: usize, span: u64 },
    Touch { consumer: usize, at: usize, span: u64 },
    Detach { consumer: usize },
    Forget { cast: usize },
    Kick { topic: usize, max: usize },
    Time { millis: u64 },
    Maintain,
    CommitOne,
    Commit,
    Restart,
    Crash { mode: CrashMode },
}

pub fn op(crashes: bool) -> impl Strategy<Value = Op> {
    let topic = 0..TOPICS.len();
    let from = prop_oneof![
        2 => Just(From::New),
        3 => Just(From::First),
        1 => Just(From::Last),
        1 => (0u64..12).prop_map(From::Seq)
    ];
    let size = prop_oneof![6 => 1usize..60, 2 => 500usize..1500];
    let some = || (0usize..8, 0usize..8, prop_oneof![3 => Just(0u64), 1 => 0u64..5]);
    prop_oneof![
        12 => (topic.clone(), 1usize..5, -1i64..3, prop::option::weighted(0.4, 0u8..8), size)
            .prop_map(|(topic, count, priority, id, size)| Op::Pub { topic, count, priority, id, size }),
        6 => (0..CASTS.len(), from).prop_map(|(cast, from)| Op::Sub { cast, from }),
        12 => (0usize..8, 1usize..6).prop_map(|(consumer, max)| Op::Take { consumer, max }),
        7 => some().prop_map(|(consumer, at, span)| Op::Ack { consumer, at, span }),
        4 => (some(), prop::option::of(0u64..800))
            .prop_map(|((consumer, at, span), delay)| Op::Nack { consumer, at, span, delay }),
        2 => some().prop_map(|(consumer, at, span)| Op::Bury { consumer, at, span }),
        2 => some().prop_map(|(consumer, at, span)| Op::Touch { consumer, at, span }),
        2 => (0usize..8).prop_map(|consumer| Op::Detach { consumer }),
        1 => (0..CASTS.len()).prop_map(|cast| Op::Forget { cast }),
        1 => (topic, 1usize..6).prop_map(|(topic, max)| Op::Kick { topic, max }),
        5 => prop_oneof![1u64..300, Just(1000), Just(LONG)].prop_map(|millis| Op::Time { millis }),
        2 => Just(Op::Maintain),
        5 => Just(Op::CommitOne),
        9 => Just(Op::Commit),
        2 => Just(Op::Restart),
        u32::from(crashes) * 2 => prop::sample::select(CrashMode::ALL.to_vec()).prop_map(|mode| Op::Crash { mode }),
    ]
}
