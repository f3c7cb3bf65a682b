//! AUTH (section 3.15).

use bytes::{BufMut, BytesMut};

use super::ack::reason;
use super::decoder::Context;
use super::properties;
use super::read::Reader;
use super::{AuthProperties, DecodeError, EncodeError, PacketType, ReasonCode, Version, write};

/// One step of an authentication. 5.0 only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// What step.
    pub reason: ReasonCode,
    /// Properties. Without them it is four bytes shorter, but says no method, which only
    /// [`Success`](ReasonCode::Success) may do.
    pub properties: Option<Box<AuthProperties>>,
}

impl Auth {
    pub(super) fn decode(mut reader: Reader, context: &Context<'_>) -> Result<Self, DecodeError> {
        // "Reason Code and Property Length can be omitted if the Reason Code is 0x00 and there are no Properties"
        if reader.is_empty() {
            return Ok(Self { reason: ReasonCode::Success, properties: None });
        }
        let reason = reason(PacketType::Auth, &mut reader)?;
        let properties = properties::read_boxed(&mut reader, context.limits)?;
        reader.end()?;
        if properties.is_none() {
            return Err(DecodeError::AuthenticationMethod);
        }
        Ok(Self { reason, properties })
    }

    pub(super) fn remaining(&self) -> usize {
        match (self.reason, properties::body_len(self.properties.as_deref())) {
            (ReasonCode::Success, 0) => 0,
            (_, len) => 1 + properties::len(len),
        }
    }

    /// Appends the packet to `out`.
    pub fn encode(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        if !version.is_v5() {
            return Err(EncodeError::NotInVersion(PacketType::Auth, version));
        }
        if !self.reason.allowed_on(PacketType::Auth) {
            return Err(EncodeError::ReasonCode(PacketType::Auth, self.reason));
        }
        properties::check(self.properties.as_deref())?;
        let remaining = self.remaining();
        write::fixed_header(0xF0, remaining, remaining, out)?;
        if remaining > 0 {
            out.put_u8(self.reason as u8);
            properties::write(self.properties.as_deref(), out);
        }
        Ok(())
    }
}
