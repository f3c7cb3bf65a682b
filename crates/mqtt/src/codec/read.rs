//! Reading the fields of one packet.

use bytes::{Buf, Bytes};

use super::{DecodeError, PacketId, Utf8};

type Result<T> = std::result::Result<T, DecodeError>;

/// A variable byte integer at the front: its value and its length, or `None` if it goes on after the end.
///
/// Longer than needed is refused like longer than four bytes. [MQTT-1.5.5-1]
pub(super) fn varint(bytes: &[u8]) -> Result<Option<(u32, usize)>> {
    // Nearly every length of properties and most of the small packets are below 128.
    let Some(&first) = bytes.first() else { return Ok(None) };
    if first < 0x80 {
        return Ok(Some((u32::from(first), 1)));
    }
    // Nearly all others are below 16,384.
    if let &[_, second @ 1..0x80, ..] = bytes {
        return Ok(Some((u32::from(first & 0x7F) | u32::from(second) << 7, 2)));
    }
    let mut value = u32::from(first & 0x7F);
    for (index, &byte) in bytes.iter().enumerate().take(4).skip(1) {
        value |= u32::from(byte & 0x7F) << (7 * index);
        if byte < 0x80 {
            let minimal = byte != 0;
            return if minimal { Ok(Some((value, index + 1))) } else { Err(DecodeError::VarIntNotMinimal) };
        }
    }
    if bytes.len() >= 4 { Err(DecodeError::VarInt) } else { Ok(None) }
}

/// What is left of a packet. Every field is a slice of it.
pub(super) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub(super) fn new(rest: Bytes) -> Self {
        Self { rest }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.rest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        self.rest.try_get_u8().map_err(|_| DecodeError::Truncated)
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.rest.try_get_u16().map_err(|_| DecodeError::Truncated)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.rest.try_get_u32().map_err(|_| DecodeError::Truncated)
    }

    pub(super) fn varint(&mut self) -> Result<u32> {
        let (value, len) = varint(&self.rest)?.ok_or(DecodeError::Truncated)?;
        self.rest.advance(len);
        Ok(value)
    }

    pub(super) fn packet_id(&mut self) -> Result<PacketId> {
        PacketId::new(self.u16()?).ok_or(DecodeError::PacketIdZero)
    }

    pub(super) fn take(&mut self, len: usize) -> Result<Bytes> {
        if len > self.rest.len() {
            return Err(DecodeError::Truncated);
        }
        Ok(self.rest.split_to(len))
    }

    pub(super) fn binary(&mut self) -> Result<Bytes> {
        let len = self.u16()?;
        self.take(len as usize)
    }

    pub(super) fn utf8(&mut self) -> Result<Utf8> {
        Ok(Utf8::try_from(self.binary()?)?)
    }

    pub(super) fn rest(self) -> Bytes {
        self.rest
    }

    /// That everything was read.
    pub(super) fn end(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}
