//! Any bytes are packets or a refusal.

use bytes::{Bytes, BytesMut};
use postroad_mqtt::codec::{Decoder, Direction, Limits, Version, decode_packet, topic};

/// Any packet that is accepted is written as a packet that means the same, and of the length that was said; everything
/// else is an error. Nothing panics.
pub(crate) fn check(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let limits = Limits::default();
    for version in [Version::V31, Version::V311, Version::V5] {
        for direction in [Direction::ToServer, Direction::ToClient] {
            let Ok(packet) = decode_packet(bytes.clone(), version, direction, &limits) else { continue };
            let mut written = BytesMut::new();
            packet.encode(version, &mut written).expect("what was read can be written");
            assert_eq!(written.len(), packet.encoded_len(version), "{packet:?}");
            assert!(written.len() <= data.len(), "{packet:?} is written longer than it was");
            let again = decode_packet(written.freeze(), version, direction, &limits);
            assert_eq!(again.as_ref(), Ok(&packet));
        }
        stream(Decoder::client(version, limits.clone()), data);
    }
    stream(Decoder::server(limits.clone()), data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = topic::shared(text);
        let valid = topic::validate_name(text, limits.levels).is_ok();
        if topic::validate_filter(text, limits.levels).is_ok() && valid {
            assert!(topic::matches(text, text), "a plain filter matches itself");
        }
    }
}

/// In one piece or byte by byte, the packets and the error are the same.
fn stream(decoder: Decoder, data: &[u8]) {
    super::stream::cut(decoder, data, std::iter::repeat(1));
}
