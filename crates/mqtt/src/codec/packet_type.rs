//! The types of packets, and who may send them.

use super::{DecodeError, Version};

/// What kind of packet: the upper four bits of its first byte (section 2.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs)] // they are the names of the specification
pub enum PacketType {
    Connect = 1,
    Connack = 2,
    Publish = 3,
    Puback = 4,
    Pubrec = 5,
    Pubrel = 6,
    Pubcomp = 7,
    Subscribe = 8,
    Suback = 9,
    Unsubscribe = 10,
    Unsuback = 11,
    Pingreq = 12,
    Pingresp = 13,
    Disconnect = 14,
    Auth = 15,
}

impl PacketType {
    /// Every type, ascending.
    pub const ALL: [Self; 15] = [
        Self::Connect,
        Self::Connack,
        Self::Publish,
        Self::Puback,
        Self::Pubrec,
        Self::Pubrel,
        Self::Pubcomp,
        Self::Subscribe,
        Self::Suback,
        Self::Unsubscribe,
        Self::Unsuback,
        Self::Pingreq,
        Self::Pingresp,
        Self::Disconnect,
        Self::Auth,
    ];

    /// The type of a packet's first byte; 0 is none.
    pub const fn from_first_byte(byte: u8) -> Option<Self> {
        match byte >> 4 {
            0 => None,
            number => Some(Self::ALL[number as usize - 1]),
        }
    }

    /// The lower four bits that every packet of this type has; PUBLISH has flags of its own there.
    pub(super) const fn fixed_flags(self) -> u8 {
        match self {
            Self::Pubrel | Self::Subscribe | Self::Unsubscribe => 0b0010,
            _ => 0,
        }
    }
}

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a client to the server.
    ToServer,
    /// From the server to a client.
    ToClient,
}

/// Whether such a packet may go that way in that version (table 2-1).
pub const fn check_direction(
    packet: PacketType,
    direction: Direction,
    version: Version,
) -> Result<(), DecodeError> {
    use PacketType as T;
    match packet {
        T::Auth if !version.is_v5() => Err(DecodeError::PacketType),
        T::Connect | T::Subscribe | T::Unsubscribe | T::Pingreq => match direction {
            Direction::ToServer => Ok(()),
            Direction::ToClient => Err(DecodeError::WrongDirection),
        },
        T::Connack | T::Suback | T::Unsuback | T::Pingresp => match direction {
            Direction::ToServer => Err(DecodeError::WrongDirection),
            Direction::ToClient => Ok(()),
        },
        T::Disconnect if !version.is_v5() && matches!(direction, Direction::ToClient) => {
            Err(DecodeError::WrongDirection)
        }
        _ => Ok(()),
    }
}
