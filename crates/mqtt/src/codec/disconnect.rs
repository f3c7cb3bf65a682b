//! DISCONNECT (section 3.14).

use bytes::{BufMut, BytesMut};

use super::ack::reason;
use super::decoder::Context;
use super::properties;
use super::read::Reader;
use super::{
    DecodeError, Direction, DisconnectProperties, EncodeError, PacketType, ReasonCode, Version, write,
};

/// The last packet of a connection. Before 5.0 only a client sends it, and it says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disconnect {
    /// Why.
    pub reason: ReasonCode,
    /// Properties; none before 5.0.
    pub properties: Option<Box<DisconnectProperties>>,
}

impl Disconnect {
    /// Without properties.
    pub const fn new(reason: ReasonCode) -> Self {
        Self { reason, properties: None }
    }

    pub(super) fn decode(mut reader: Reader, context: &Context<'_>) -> Result<Self, DecodeError> {
        let mut packet = Self::new(ReasonCode::Success);
        if context.version.is_v5() && !reader.is_empty() {
            packet.reason = reason(PacketType::Disconnect, &mut reader)?;
            if !reader.is_empty() {
                packet.properties = properties::read_boxed(&mut reader, context.limits)?;
            }
        }
        reader.end()?;
        if context.direction == Direction::ToClient
            && packet
                .properties
                .as_ref()
                .is_some_and(|properties| properties.session_expiry_interval.is_some())
        {
            return Err(DecodeError::SessionExpiryFromServer);
        }
        Ok(packet)
    }

    pub(super) fn remaining(&self, version: Version) -> usize {
        if !version.is_v5() {
            return 0;
        }
        match (self.reason, properties::body_len(self.properties.as_deref())) {
            (ReasonCode::Success, 0) => 0,
            (_, 0) => 1,
            (_, len) => 1 + properties::len(len),
        }
    }

    /// Appends the packet to `out`. Before 5.0 one with an error, which only a server has, cannot be sent.
    pub fn encode(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        if !self.reason.allowed_on(PacketType::Disconnect) {
            return Err(EncodeError::ReasonCode(PacketType::Disconnect, self.reason));
        }
        if !version.is_v5() && self.reason.is_error() {
            return Err(EncodeError::NotInVersion(PacketType::Disconnect, version));
        }
        let remaining = self.remaining(version);
        write::fixed_header(0xE0, remaining, remaining, out)?;
        if remaining > 0 {
            out.put_u8(self.reason as u8);
        }
        if remaining > 1 {
            properties::write(self.properties.as_deref(), out);
        }
        Ok(())
    }
}
