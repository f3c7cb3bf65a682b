//! PUBACK, PUBREC, PUBREL and PUBCOMP (sections 3.4 to 3.7).

use bytes::{BufMut, BytesMut};

use super::decoder::Context;
use super::properties;
use super::read::Reader;
use super::{AckProperties, DecodeError, EncodeError, PacketId, PacketType, ReasonCode, Version, write};

/// One step of the delivery of a message; all four look alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The packet id of the PUBLISH.
    pub packet_id: PacketId,
    /// How it went. Not sent before 5.0.
    pub reason: ReasonCode,
    /// Properties; none before 5.0.
    pub properties: Option<Box<AckProperties>>,
}

impl Ack {
    /// Success.
    pub const fn new(packet_id: PacketId) -> Self {
        Self::with_reason(packet_id, ReasonCode::Success)
    }

    /// With a reason.
    pub const fn with_reason(packet_id: PacketId, reason: ReasonCode) -> Self {
        Self { packet_id, reason, properties: None }
    }

    pub(super) fn decode(
        kind: PacketType,
        mut reader: Reader,
        context: &Context<'_>,
    ) -> Result<Self, DecodeError> {
        let mut ack = Self::new(reader.packet_id()?);
        if context.version.is_v5() && !reader.is_empty() {
            ack.reason = reason(kind, &mut reader)?;
            if !reader.is_empty() {
                ack.properties = properties::read_boxed(&mut reader, context.limits)?;
            }
        }
        reader.end()?;
        Ok(ack)
    }

    pub(super) fn remaining(&self, version: Version) -> usize {
        if !version.is_v5() {
            return 2;
        }
        match (self.reason, properties::body_len(self.properties.as_deref())) {
            (ReasonCode::Success, 0) => 2,
            (_, 0) => 3,
            (_, len) => 3 + properties::len(len),
        }
    }

    /// Appends the packet as a `kind` to `out`.
    pub fn encode(&self, kind: PacketType, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        if !matches!(kind, PacketType::Puback | PacketType::Pubrec | PacketType::Pubrel | PacketType::Pubcomp)
        {
            return Err(EncodeError::NotInVersion(kind, version));
        }
        if !self.reason.allowed_on(kind) {
            return Err(EncodeError::ReasonCode(kind, self.reason));
        }
        properties::check(self.properties.as_deref())?;
        let remaining = self.remaining(version);
        write::fixed_header((kind as u8) << 4 | kind.fixed_flags(), remaining, remaining, out)?;
        out.put_u16(self.packet_id.get());
        if remaining > 2 {
            out.put_u8(self.reason as u8);
        }
        if remaining > 3 {
            properties::write(self.properties.as_deref(), out);
        }
        Ok(())
    }
}

/// A reason code that a `kind` may carry.
pub(super) fn reason(kind: PacketType, reader: &mut Reader) -> Result<ReasonCode, DecodeError> {
    ReasonCode::from_u8(reader.u8()?).filter(|reason| reason.allowed_on(kind)).ok_or(DecodeError::ReasonCode)
}
