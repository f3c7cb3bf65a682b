//! What happened, and whether it may have: an offline check of a whole run. Pure; whoever runs a load, a simulation or a
//! chaos test records [`Record`]s and calls [`check`].
//!
//! ```
//! use postroad_conformance::history::{Event, Record, Rules, Terms, Violation, check};
//!
//! let terms = Terms { window_count: 10, window_bytes: 1000, lease: 30_000, ordered: true, lanes: None };
//! let events = [
//!     Event::Subscribed { subscription: 0, consumer: 0, terms },
//!     Event::Publish { message: 7, source: 0, lane: 0, digest: 1 },
//!     Event::Confirmed { message: 7, duplicate: false },
//! ];
//! let history: Vec<_> = events.into_iter().map(|event| Record { millis: 0, event }).collect();
//! let rules = Rules { ended: true, ..Rules::default() };
//! assert_eq!(check(&history, &rules)[0].violation, Violation::Lost { subscription: 0, message: 7 });
//! ```

mod check;
mod recorder;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;

pub use check::check;
pub use recorder::Recorder;

/// What a verdict was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VerdictKind {
    /// It never comes again: Ack, Discard, DeadLetter.
    Final,
    /// It comes again: Retry, or a token that was dropped.
    Again,
}

/// What a consumer asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Messages in flight at most.
    pub window_count: u64,
    /// Bytes in flight at most, unless it is a single message.
    pub window_bytes: u64,
    /// Milliseconds after which an unsettled delivery may come again.
    pub lease: u64,
    /// First deliveries come in publish order, lane by lane. Only for a subscription with one consumer at a time.
    pub ordered: bool,
    /// Which lanes it wants; `None`: all.
    pub lanes: Option<Range<u64>>,
}

/// One thing that somebody saw. Numbers are whatever the recorder chose; the same message has the same number
/// everywhere, and a message that is published again under another id has another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `source` begins to publish it. A lane is what keeps order: a subject, or a key of one.
    Publish {
        /// Which.
        message: u64,
        /// Who publishes; order holds for each on its own.
        source: u32,
        /// What keeps order.
        lane: u64,
        /// Of its content.
        digest: u64,
    },
    /// Its receipt is yes.
    Confirmed {
        /// Which.
        message: u64,
        /// As the receipt says.
        duplicate: bool,
    },
    /// Its receipt is no, for sure.
    Refused {
        /// Which.
        message: u64,
    },
    /// Its receipt is unknown.
    Unknown {
        /// Which.
        message: u64,
    },
    /// A consumer is there: it has what is published from now on.
    Subscribed {
        /// Which subscription; several consumers may share one.
        subscription: u32,
        /// Who.
        consumer: u32,
        /// What it asked for.
        terms: Terms,
    },
    /// A consumer got it.
    Delivered {
        /// Which subscription.
        subscription: u32,
        /// Who.
        consumer: u32,
        /// Which; one that was never published is a violation.
        message: u64,
        /// As the delivery says; 0 where attempts are not counted.
        attempt: u32,
        /// As they count in the window.
        bytes: u64,
        /// Of its content.
        digest: u64,
    },
    /// A consumer begins to give its verdict.
    Settle {
        /// Which subscription.
        subscription: u32,
        /// Which.
        message: u64,
        /// Which.
        verdict: VerdictKind,
    },
    /// The answer to the last verdict on it: whether it is settled.
    Settled {
        /// Which subscription.
        subscription: u32,
        /// Which.
        message: u64,
        /// Which.
        verdict: VerdictKind,
        /// Whether the answer was yes.
        done: bool,
    },
    /// Its lease was made longer.
    Extended {
        /// Which subscription.
        subscription: u32,
        /// Which.
        message: u64,
    },
    /// A consumer begins to go, or its connection does: what it held may come again.
    Gone {
        /// Which subscription.
        subscription: u32,
        /// Who.
        consumer: u32,
    },
    /// The broker is about to be stopped or killed, or has been.
    Restarted,
}

/// An event and when it was seen. Records stand in the order in which things were seen: a request before it is made, an
/// answer after it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// On any clock that does not go back.
    pub millis: u64,
    /// What.
    pub event: Event,
}

/// What is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The run came to rest: everything confirmed has been delivered and settled.
    pub ended: bool,
    /// Attempts grow with each delivery.
    pub attempts: bool,
    /// Attempts begin at 1 and grow by 1, where no consumer goes and the broker stays.
    pub attempts_dense: bool,
    /// Milliseconds by which a lease may seem to end early, for clocks that are not the same.
    pub slack: u64,
}

impl Default for Rules {
    /// Not ended, attempts grow, no slack.
    fn default() -> Self {
        Self { ended: false, attempts: true, attempts_dense: false, slack: 0 }
    }
}

/// A rule that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are those of the events")]
pub enum Violation {
    /// Confirmed, and never delivered.
    Lost { subscription: u32, message: u64 },
    /// Delivered, and at the end not settled.
    Open { subscription: u32, message: u64 },
    /// Delivered without having been published.
    Phantom { subscription: u32, message: u64 },
    /// Delivered although it was refused.
    RefusedDelivered { subscription: u32, message: u64 },
    /// Delivered to somebody who does not want its lane.
    Misrouted { subscription: u32, message: u64 },
    /// Its content is not what was published.
    Changed { subscription: u32, message: u64 },
    /// Delivered again after a final verdict was confirmed.
    AfterAck { subscription: u32, message: u64 },
    /// Delivered again without a reason: no verdict, no end of a lease, nobody gone.
    Duplicate { subscription: u32, message: u64 },
    /// More in flight than the window allows.
    WindowCount { subscription: u32, consumer: u32, in_flight: u64 },
    /// More bytes in flight than the window allows.
    WindowBytes { subscription: u32, consumer: u32, bytes: u64 },
    /// First delivered behind a later one of its lane.
    OutOfOrder { subscription: u32, message: u64 },
    /// The attempt did not grow, or not as it should.
    Attempt { subscription: u32, message: u64, attempt: u32, before: u32 },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { subscription: s, message: m } => {
                write!(f, "message {m} was confirmed and never came to subscription {s}")
            }
            Self::Open { subscription: s, message: m } => {
                write!(f, "message {m} was never settled by subscription {s}")
            }
            Self::Phantom { subscription: s, message: m } => {
                write!(f, "message {m} came to subscription {s} and was never published")
            }
            Self::RefusedDelivered { subscription: s, message: m } => {
                write!(f, "message {m} was refused and came to subscription {s}")
            }
            Self::Misrouted { subscription: s, message: m } => {
                write!(f, "message {m} came to subscription {s}, which did not want it")
            }
            Self::Changed { subscription: s, message: m } => {
                write!(f, "message {m} came to subscription {s} with another content")
            }
            Self::AfterAck { subscription: s, message: m } => {
                write!(f, "message {m} came to subscription {s} after its ack was confirmed")
            }
            Self::Duplicate { subscription: s, message: m } => {
                write!(f, "message {m} came to subscription {s} again without a reason")
            }
            Self::WindowCount { subscription: s, consumer: c, in_flight } => {
                write!(f, "consumer {c} of subscription {s} had {in_flight} messages in flight")
            }
            Self::WindowBytes { subscription: s, consumer: c, bytes } => {
                write!(f, "consumer {c} of subscription {s} had {bytes} bytes in flight")
            }
            Self::OutOfOrder { subscription: s, message: m } => {
                write!(f, "message {m} came to subscription {s} behind a later one")
            }
            Self::Attempt { subscription: s, message: m, attempt, before } => {
                write!(f, "message {m} came to subscription {s} as attempt {attempt} after {before}")
            }
        }
    }
}

/// A violation and the record where it shows; the number of records if it shows only at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// Index into the history.
    pub at: usize,
    /// What.
    pub violation: Violation,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {}: {}", self.at, self.violation)
    }
}
