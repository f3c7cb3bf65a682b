//! What a backend can do, said before anybody relies on it.

use std::time::Duration;

/// How an ability is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Support {
    /// The backend does it.
    Native,
    /// A Postroad layer does it on top of the backend; it costs more and may be lost with this process.
    Emulated,
    /// It cannot be had; asking for it is an [`Unsupported`](crate::ErrorKind::Unsupported) error.
    #[default]
    Absent,
}

impl Support {
    /// Whether it can be had at all.
    pub const fn is_there(self) -> bool {
        !matches!(self, Self::Absent)
    }
}

/// In which order a subscription sees first deliveries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ordering {
    /// In any.
    #[default]
    None,
    /// In publish order for each key.
    PerKey,
    /// In publish order for each subject.
    PerSubject,
    /// In publish order for everything the subscription sees.
    Total,
}

/// What [`Delivery::attempt`](crate::Delivery::attempt) is worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Attempts {
    /// Always 0: not known.
    #[default]
    Unknown,
    /// Only [`redelivered`](crate::Delivery::redelivered) is known.
    Flag,
    /// Counted, but the count starts again when the backend restarts.
    Volatile,
    /// Counted, exactly.
    Exact,
}

/// What a [`Confirmed`](crate::Receipt::Confirmed) publish survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: it was handed to the socket.
    #[default]
    Sent,
    /// As long as the backend's process lives.
    Memory,
    /// A kill of the process, not of the machine.
    Os,
    /// The loss of power.
    Disk,
    /// The loss of a machine.
    Replicated,
}

/// Where a new subscription may start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replay {
    /// At the oldest kept message.
    pub first: Support,
    /// At the newest kept message.
    pub last: Support,
    /// At a position.
    pub sequence: Support,
    /// At a time.
    pub time: Support,
}

/// What a backend can do. Make one from [`Capabilities::NONE`], so that an ability added later is absent:
///
/// ```
/// use postroad_core::{Capabilities, Support};
///
/// let capabilities = Capabilities { confirm: Support::Native, groups: Support::Native, ..Capabilities::NONE };
/// assert!(!capabilities.nack_delay.is_there());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The order of first deliveries.
    pub ordering: Ordering,
    /// What comes without a verdict comes again.
    pub redelivery: Support,
    /// Whether attempts are counted.
    pub attempts: Attempts,
    /// What a confirmed publish survives.
    pub durability: Durability,
    /// A publish is answered: the ticket is never just "sent".
    pub confirm: Support,
    /// Publishing the same message id again is confirmed as a duplicate.
    pub dedup: Support,
    /// How long message ids are remembered, where the backend says. `None`: not at all, or not said.
    pub dedup_window: Option<Duration>,
    /// Where a subscription may start.
    pub replay: Replay,
    /// A subscription that has a name and keeps its place while nobody is connected.
    pub named: Support,
    /// A subscription shared by several consumers.
    pub groups: Support,
    /// Deliveries can be settled one by one, in any order.
    pub individual_ack: Support,
    /// [`Retry`](crate::Outcome::Retry) brings it back without waiting for the lease.
    pub nack: Support,
    /// [`Retry`](crate::Outcome::Retry) with a delay.
    pub nack_delay: Support,
    /// The lease can be made longer.
    pub extend: Support,
    /// [`DeadLetter`](crate::Outcome::DeadLetter) and a maximum of deliveries.
    pub dead_letter: Support,
    /// Larger priorities are delivered first.
    pub priority: Support,
    /// Headers travel. `Emulated`: inside the payload.
    pub headers: Support,
    /// The most bytes of all headers of a message. `None`: no limit of its own.
    pub max_header_bytes: Option<usize>,
    /// The most bytes of a payload. `None`: no limit of its own.
    pub max_payload_bytes: Option<usize>,
}

impl Capabilities {
    /// Nothing at all.
    pub const NONE: Self = Self {
        ordering: Ordering::None,
        redelivery: Support::Absent,
        attempts: Attempts::Unknown,
        durability: Durability::Sent,
        confirm: Support::Absent,
        dedup: Support::Absent,
        dedup_window: None,
        replay: Replay {
            first: Support::Absent,
            last: Support::Absent,
            sequence: Support::Absent,
            time: Support::Absent,
        },
        named: Support::Absent,
        groups: Support::Absent,
        individual_ack: Support::Absent,
        nack: Support::Absent,
        nack_delay: Support::Absent,
        extend: Support::Absent,
        dead_letter: Support::Absent,
        priority: Support::Absent,
        headers: Support::Absent,
        max_header_bytes: None,
        max_payload_bytes: None,
    };
}

impl Default for Capabilities {
    fn default() -> Self {
        Self::NONE
    }
}
