//! What a case needs of a backend, and why it cannot run without.

use std::fmt;

use postroad_core::{Attempts, Capabilities, Durability, Ordering};

use crate::harness::ChaosAbilities;

/// Something that not every backend, or not every harness, has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Need {
    /// [`Capabilities::confirm`].
    Confirm,
    /// [`Capabilities::dedup`].
    Dedup,
    /// [`Replay::first`](postroad_core::Replay).
    ReplayFirst,
    /// [`Replay::last`](postroad_core::Replay).
    ReplayLast,
    /// [`Replay::sequence`](postroad_core::Replay).
    ReplaySequence,
    /// [`Replay::time`](postroad_core::Replay).
    ReplayTime,
    /// [`Capabilities::named`].
    Named,
    /// [`Capabilities::groups`].
    Groups,
    /// [`Capabilities::redelivery`].
    Redelivery,
    /// [`Capabilities::individual_ack`].
    IndividualAck,
    /// [`Capabilities::nack`].
    Nack,
    /// [`Capabilities::nack_delay`].
    NackDelay,
    /// [`Capabilities::extend`].
    Extend,
    /// [`Capabilities::dead_letter`].
    DeadLetter,
    /// [`Capabilities::priority`].
    Priority,
    /// [`Capabilities::headers`].
    Headers,
    /// [`Attempts::Volatile`] or [`Attempts::Exact`].
    CountedAttempts,
    /// [`Attempts::Exact`].
    ExactAttempts,
    /// [`Attempts`] that at least tell a repeated delivery from a first one.
    RedeliveredFlag,
    /// [`Ordering::PerSubject`] or more.
    OrderPerSubject,
    /// [`Ordering::Total`].
    OrderTotal,
    /// Any [`Ordering`].
    OrderPerKey,
    /// [`Capabilities::max_payload_bytes`], small enough to be exceeded by a test: 64 MiB.
    PayloadLimit,
    /// [`Durability::Os`] or more.
    SurvivesKill,
    /// A harness that restarts its broker.
    Restart,
    /// A harness that kills its broker.
    Kill,
    /// A harness that cuts connections.
    Cut,
    /// A harness that makes connections half-open.
    HalfOpen,
    /// A harness that pauses its broker.
    Pause,
}

/// The largest payload limit that a case exceeds.
pub(crate) const LARGEST_LIMIT: usize = 64 << 20;

impl Need {
    /// Whether it is there.
    pub fn is_met(self, can: &Capabilities, chaos: ChaosAbilities) -> bool {
        match self {
            Self::Confirm => can.confirm.is_there(),
            Self::Dedup => can.dedup.is_there(),
            Self::ReplayFirst => can.replay.first.is_there(),
            Self::ReplayLast => can.replay.last.is_there(),
            Self::ReplaySequence => can.replay.sequence.is_there(),
            Self::ReplayTime => can.replay.time.is_there(),
            Self::Named => can.named.is_there(),
            Self::Groups => can.groups.is_there(),
            Self::Redelivery => can.redelivery.is_there(),
            Self::IndividualAck => can.individual_ack.is_there(),
            Self::Nack => can.nack.is_there(),
            Self::NackDelay => can.nack_delay.is_there(),
            Self::Extend => can.extend.is_there(),
            Self::DeadLetter => can.dead_letter.is_there(),
            Self::Priority => can.priority.is_there(),
            Self::Headers => can.headers.is_there(),
            Self::CountedAttempts => matches!(can.attempts, Attempts::Volatile | Attempts::Exact),
            Self::ExactAttempts => can.attempts == Attempts::Exact,
            Self::RedeliveredFlag => can.attempts != Attempts::Unknown,
            Self::OrderPerSubject => matches!(can.ordering, Ordering::PerSubject | Ordering::Total),
            Self::OrderTotal => can.ordering == Ordering::Total,
            Self::OrderPerKey => can.ordering != Ordering::None,
            Self::PayloadLimit => can.max_payload_bytes.is_some_and(|limit| limit < LARGEST_LIMIT),
            Self::SurvivesKill => {
                matches!(can.durability, Durability::Os | Durability::Disk | Durability::Replicated)
            }
            Self::Restart => chaos.restart,
            Self::Kill => chaos.kill,
            Self::Cut => chaos.cut,
            Self::HalfOpen => chaos.half_open,
            Self::Pause => chaos.pause,
        }
    }

    /// As it stands in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Confirm => "confirm",
            Self::Dedup => "dedup",
            Self::ReplayFirst => "replay.first",
            Self::ReplayLast => "replay.last",
            Self::ReplaySequence => "replay.sequence",
            Self::ReplayTime => "replay.time",
            Self::Named => "named",
            Self::Groups => "groups",
            Self::Redelivery => "redelivery",
            Self::IndividualAck => "individual_ack",
            Self::Nack => "nack",
            Self::NackDelay => "nack_delay",
            Self::Extend => "extend",
            Self::DeadLetter => "dead_letter",
            Self::Priority => "priority",
            Self::Headers => "headers",
            Self::CountedAttempts => "attempts (counted)",
            Self::ExactAttempts => "attempts (exact)",
            Self::RedeliveredFlag => "attempts (flag)",
            Self::OrderPerSubject => "ordering (per subject)",
            Self::OrderTotal => "ordering (total)",
            Self::OrderPerKey => "ordering (per key)",
            Self::PayloadLimit => "max_payload_bytes",
            Self::SurvivesKill => "durability (a kill)",
            Self::Restart => "harness: restart",
            Self::Kill => "harness: kill",
            Self::Cut => "harness: cut",
            Self::HalfOpen => "harness: half-open",
            Self::Pause => "harness: pause",
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
