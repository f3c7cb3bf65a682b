//! Any packet.

use bytes::{BufMut, BytesMut};

use super::{
    Ack, Auth, Connack, Connect, Disconnect, EncodeError, PacketType, Publish, Suback, Subscribe, Unsuback,
    Unsubscribe, Version, write,
};

/// Any packet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // they are the names of the specification
pub enum Packet {
    Connect(Box<Connect>),
    Connack(Box<Connack>),
    Publish(Publish),
    Puback(Ack),
    Pubrec(Ack),
    Pubrel(Ack),
    Pubcomp(Ack),
    Subscribe(Subscribe),
    Suback(Suback),
    Unsubscribe(Unsubscribe),
    Unsuback(Unsuback),
    Pingreq,
    Pingresp,
    Disconnect(Disconnect),
    Auth(Auth),
}

impl Packet {
    /// What kind it is.
    pub const fn packet_type(&self) -> PacketType {
        match self {
            Self::Connect(_) => PacketType::Connect,
            Self::Connack(_) => PacketType::Connack,
            Self::Publish(_) => PacketType::Publish,
            Self::Puback(_) => PacketType::Puback,
            Self::Pubrec(_) => PacketType::Pubrec,
            Self::Pubrel(_) => PacketType::Pubrel,
            Self::Pubcomp(_) => PacketType::Pubcomp,
            Self::Subscribe(_) => PacketType::Subscribe,
            Self::Suback(_) => PacketType::Suback,
            Self::Unsubscribe(_) => PacketType::Unsubscribe,
            Self::Unsuback(_) => PacketType::Unsuback,
            Self::Pingreq => PacketType::Pingreq,
            Self::Pingresp => PacketType::Pingresp,
            Self::Disconnect(_) => PacketType::Disconnect,
            Self::Auth(_) => PacketType::Auth,
        }
    }

    /// The packet's bytes on the wire. A CONNECT is of its own version, whatever `version` says.
    pub fn encoded_len(&self, version: Version) -> usize {
        write::packet_len(match self {
            Self::Connect(packet) => packet.remaining(),
            Self::Connack(packet) => packet.remaining(version),
            Self::Publish(packet) => return packet.encoded_len(version),
            Self::Puback(ack) | Self::Pubrec(ack) | Self::Pubrel(ack) | Self::Pubcomp(ack) => {
                ack.remaining(version)
            }
            Self::Subscribe(packet) => packet.remaining(version),
            Self::Suback(packet) => packet.remaining(version),
            Self::Unsubscribe(packet) => packet.remaining(version),
            Self::Unsuback(packet) => packet.remaining(version),
            Self::Pingreq | Self::Pingresp => 0,
            Self::Disconnect(packet) => packet.remaining(version),
            Self::Auth(packet) => packet.remaining(),
        })
    }

    /// Appends the packet to `out`, which is not touched if there is an error. A CONNECT is of its own version,
    /// whatever `version` says.
    ///
    /// What the version cannot say is left out: before 5.0 properties and reasons.
    pub fn encode(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        match self {
            Self::Connect(packet) => packet.encode(out),
            Self::Connack(packet) => packet.encode(version, out),
            Self::Publish(packet) => packet.encode(version, out),
            Self::Puback(ack) | Self::Pubrec(ack) | Self::Pubrel(ack) | Self::Pubcomp(ack) => {
                ack.encode(self.packet_type(), version, out)
            }
            Self::Subscribe(packet) => packet.encode(version, out),
            Self::Suback(packet) => packet.encode(version, out),
            Self::Unsubscribe(packet) => packet.encode(version, out),
            Self::Unsuback(packet) => packet.encode(version, out),
            Self::Pingreq => {
                out.put_slice(&[0xC0, 0]);
                Ok(())
            }
            Self::Pingresp => {
                out.put_slice(&[0xD0, 0]);
                Ok(())
            }
            Self::Disconnect(packet) => packet.encode(version, out),
            Self::Auth(packet) => packet.encode(version, out),
        }
    }
}

macro_rules! from {
    ($($name:ident)*; boxed $($boxed:ident)*) => {
        $(impl From<$name> for Packet {
            fn from(packet: $name) -> Self {
                Self::$name(packet)
            }
        })*
        $(impl From<$boxed> for Packet {
            fn from(packet: $boxed) -> Self {
                Self::$boxed(Box::new(packet))
            }
        })*
    };
}

from!(Publish Subscribe Suback Unsubscribe Unsuback Disconnect Auth; boxed Connect Connack);
