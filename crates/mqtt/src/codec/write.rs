//! Writing the fields of one packet.

use bytes::{BufMut, BytesMut};

use super::{EncodeError, MAX_REMAINING_LENGTH};

/// How many bytes a variable byte integer takes.
pub(super) const fn varint_len(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

pub(super) fn varint(mut value: usize, out: &mut BytesMut) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

pub(super) fn binary(bytes: &[u8], out: &mut BytesMut) {
    out.put_u16(bytes.len() as u16);
    out.put_slice(bytes);
}

/// That binary data fits into the two bytes of its length; strings always do.
pub(super) fn check_binary(bytes: &[u8]) -> Result<(), EncodeError> {
    if bytes.len() > usize::from(u16::MAX) {
        return Err(EncodeError::BinaryTooLong(bytes.len()));
    }
    Ok(())
}

/// A packet's length on the wire, with its fixed header, of its remaining length.
pub(super) const fn packet_len(remaining: usize) -> usize {
    1 + varint_len(remaining) + remaining
}

/// The fixed header. `written` of the `remaining` bytes follow into `out`.
pub(super) fn fixed_header(
    first: u8,
    remaining: usize,
    written: usize,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    if remaining > MAX_REMAINING_LENGTH as usize {
        return Err(EncodeError::TooLarge(remaining));
    }
    out.reserve(packet_len(0) + 3 + written);
    out.put_u8(first);
    varint(remaining, out);
    Ok(())
}
