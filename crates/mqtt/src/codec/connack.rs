//! CONNACK (section 3.2).

use bytes::{BufMut, BytesMut};

use super::decoder::Context;
use super::properties;
use super::read::Reader;
use super::{ConnackProperties, DecodeError, EncodeError, PacketType, ReasonCode, Version, write};

/// The server accepts or refuses a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connack {
    /// Whether an earlier session goes on. 3.1 cannot say it.
    pub session_present: bool,
    /// [`Success`](ReasonCode::Success), or why not. Before 5.0 the nearest of five return codes is sent.
    pub reason: ReasonCode,
    /// Properties; all absent before 5.0.
    pub properties: ConnackProperties,
}

impl Connack {
    /// The connection is accepted.
    pub fn accepted(session_present: bool) -> Self {
        Self { session_present, reason: ReasonCode::Success, properties: ConnackProperties::default() }
    }

    /// The connection is refused.
    pub fn refused(reason: ReasonCode) -> Self {
        Self { session_present: false, reason, properties: ConnackProperties::default() }
    }

    pub(super) fn decode(mut reader: Reader, context: &Context<'_>) -> Result<Self, DecodeError> {
        let flags = reader.u8()?;
        let session_present = match (context.version, flags) {
            // 3.1 reserves the whole byte and gives it no value (section 3.2).
            (Version::V31, _) | (_, 0) => false,
            (_, 1) => true,
            _ => return Err(DecodeError::ConnackFlags),
        };
        let code = reader.u8()?;
        let reason = match context.version {
            Version::V5 => ReasonCode::from_u8(code).filter(|reason| reason.allowed_on(PacketType::Connack)),
            _ => ReasonCode::from_connack_v3(code),
        };
        let reason = reason.ok_or(DecodeError::ReasonCode)?;
        if session_present && reason != ReasonCode::Success {
            return Err(DecodeError::SessionPresent);
        }
        let properties = match context.version {
            Version::V5 => properties::read(&mut reader, context.limits)?,
            _ => ConnackProperties::default(),
        };
        reader.end()?;
        Ok(Self { session_present, reason, properties })
    }

    pub(super) fn remaining(&self, version: Version) -> usize {
        2 + if version.is_v5() { properties::len(properties::body_len(Some(&self.properties))) } else { 0 }
    }

    /// Appends the packet to `out`.
    pub fn encode(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        if !self.reason.allowed_on(PacketType::Connack) {
            return Err(EncodeError::ReasonCode(PacketType::Connack, self.reason));
        }
        properties::check(Some(&self.properties))?;
        let remaining = self.remaining(version);
        write::fixed_header(0x20, remaining, remaining, out)?;
        // [MQTT-3.2.2-6]
        let session_present = self.session_present && self.reason == ReasonCode::Success;
        out.put_u8(u8::from(session_present && version != Version::V31));
        if version.is_v5() {
            out.put_u8(self.reason as u8);
            properties::write(Some(&self.properties), out);
        } else {
            out.put_u8(self.reason.connack_v3());
        }
        Ok(())
    }
}
