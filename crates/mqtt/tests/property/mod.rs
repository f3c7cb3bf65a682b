//! What holds for any bytes.

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
    let (mut whole, mut bits) = (decoder.clone(), decoder);
    let mut packets = Vec::new();
    let mut buffer = BytesMut::from(data);
    let end = loop {
        let missing = whole.missing(&buffer);
        match whole.decode(&mut buffer) {
            Ok(Some(packet)) => {
                assert_eq!(missing, Ok(0));
                packets.push(packet);
            }
            Ok(None) => {
                assert!(missing.is_ok_and(|missing| missing > 0));
                break None;
            }
            Err(error) => break Some(error),
        }
    };
    let mut buffer = BytesMut::new();
    let mut seen = packets.iter();
    for byte in data {
        buffer.extend_from_slice(&[*byte]);
        match bits.decode(&mut buffer) {
            Ok(None) => {}
            Ok(Some(packet)) => assert_eq!(Some(&packet), seen.next()),
            Err(error) => {
                assert_eq!(Some(error), end);
                break;
            }
        }
    }
    assert_eq!(seen.next(), None);
}
