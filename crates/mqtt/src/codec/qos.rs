//! Small values that several packets share.

use std::num::{NonZeroU16, NonZeroU32};

/// A packet identifier; 0 is none. [MQTT-2.2.1-3]
pub type PacketId = NonZeroU16;

/// How often a message arrives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Qos {
    /// QoS 0: once or not at all.
    #[default]
    AtMostOnce = 0,
    /// QoS 1: once or more.
    AtLeastOnce = 1,
    /// QoS 2: once.
    ExactlyOnce = 2,
}

impl Qos {
    /// The QoS of its number; 3 is none.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// The number that a client gives a subscription, 1 to 268,435,455 (MQTT 5.0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(NonZeroU32);

impl SubscriptionId {
    /// The id of a number, if it is in the range.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(id) if number <= super::MAX_REMAINING_LENGTH => Some(Self(id)),
            _ => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}
