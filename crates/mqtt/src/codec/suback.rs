//! SUBACK and UNSUBACK (sections 3.9 and 3.11).

use bytes::{BufMut, BytesMut};

use super::ack::reason;
use super::decoder::Context;
use super::properties;
use super::read::Reader;
use super::{AckProperties, DecodeError, EncodeError, PacketId, PacketType, ReasonCode, Version, write};

/// The server answers a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suback {
    /// The packet id of the SUBSCRIBE.
    pub packet_id: PacketId,
    /// One for each filter, in their order. Before 5.0 every error is 0x80, which comes back as
    /// [`UnspecifiedError`](ReasonCode::UnspecifiedError).
    pub reasons: Vec<ReasonCode>,
    /// Properties; none before 5.0.
    pub properties: Option<Box<AckProperties>>,
}

/// The server answers an UNSUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsuback {
    /// The packet id of the UNSUBSCRIBE.
    pub packet_id: PacketId,
    /// One for each filter, in their order. Before 5.0 none are sent.
    pub reasons: Vec<ReasonCode>,
    /// Properties; none before 5.0.
    pub properties: Option<Box<AckProperties>>,
}

fn check_reasons(kind: PacketType, reasons: &[ReasonCode]) -> Result<(), EncodeError> {
    match reasons.iter().find(|reason| !reason.allowed_on(kind)) {
        Some(reason) => Err(EncodeError::ReasonCode(kind, *reason)),
        None => Ok(()),
    }
}

fn read_reasons(kind: PacketType, mut reader: Reader) -> Result<Vec<ReasonCode>, DecodeError> {
    let mut reasons = Vec::new();
    while !reader.is_empty() {
        reasons.push(reason(kind, &mut reader)?);
    }
    if reasons.is_empty() { Err(DecodeError::NoReasonCode) } else { Ok(reasons) }
}

impl Suback {
    pub(super) fn decode(mut reader: Reader, context: &Context<'_>) -> Result<Self, DecodeError> {
        let packet_id = reader.packet_id()?;
        let properties = match context.version {
            Version::V5 => properties::read_boxed(&mut reader, context.limits)?,
            // [MQTT-3.9.3-2] of 3.1.1: the three QoS and 0x80.
            _ if reader.as_slice().iter().any(|code| !matches!(code, 0..=2 | 0x80)) => {
                return Err(DecodeError::ReasonCode);
            }
            _ => None,
        };
        let reasons = read_reasons(PacketType::Suback, reader)?;
        Ok(Self { packet_id, reasons, properties })
    }

    pub(super) fn remaining(&self, version: Version) -> usize {
        2 + if version.is_v5() {
            properties::len(properties::body_len(self.properties.as_deref()))
        } else {
            0
        } + self.reasons.len()
    }

    /// Appends the packet to `out`.
    pub fn encode(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        check_reasons(PacketType::Suback, &self.reasons)?;
        let remaining = self.remaining(version);
        write::fixed_header(0x90, remaining, remaining, out)?;
        out.put_u16(self.packet_id.get());
        if version.is_v5() {
            properties::write(self.properties.as_deref(), out);
        }
        for reason in &self.reasons {
            out.put_u8(if version.is_v5() { *reason as u8 } else { reason.suback_v3() });
        }
        Ok(())
    }
}

impl Unsuback {
    pub(super) fn decode(mut reader: Reader, context: &Context<'_>) -> Result<Self, DecodeError> {
        let packet_id = reader.packet_id()?;
        if !context.version.is_v5() {
            reader.end()?;
            return Ok(Self { packet_id, reasons: Vec::new(), properties: None });
        }
        let properties = properties::read_boxed(&mut reader, context.limits)?;
        let reasons = read_reasons(PacketType::Unsuback, reader)?;
        Ok(Self { packet_id, reasons, properties })
    }

    pub(super) fn remaining(&self, version: Version) -> usize {
        if !version.is_v5() {
            return 2;
        }
        2 + properties::len(properties::body_len(self.properties.as_deref())) + self.reasons.len()
    }

    /// Appends the packet to `out`.
    pub fn encode(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        check_reasons(PacketType::Unsuback, &self.reasons)?;
        let remaining = self.remaining(version);
        write::fixed_header(0xB0, remaining, remaining, out)?;
        out.put_u16(self.packet_id.get());
        if version.is_v5() {
            properties::write(self.properties.as_deref(), out);
            for reason in &self.reasons {
                out.put_u8(*reason as u8);
            }
        }
        Ok(())
    }
}
