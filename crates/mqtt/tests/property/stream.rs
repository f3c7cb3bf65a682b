//! A stream of packets, cut anywhere.

use bytes::BytesMut;
use postroad_mqtt::codec::{DecodeError, Decoder, Limits, Packet, Version};

/// The first byte says who reads and in which version, the second how many of the next are the sizes of the pieces.
pub(crate) fn check(data: &[u8]) {
    let [mode, count, rest @ ..] = data else { return };
    let (cuts, stream) = rest.split_at(usize::from(*count).min(rest.len()));
    // Small limits, so that they are met.
    let limits = match mode & 4 {
        0 => Limits::default(),
        _ => Limits { max_packet_size: 128, max_connect_size: 64, user_properties: 2, levels: 3, filters: 2 },
    };
    let decoder = match mode & 3 {
        0 => Decoder::server(limits),
        1 => Decoder::client(Version::V31, limits),
        2 => Decoder::client(Version::V311, limits),
        _ => Decoder::client(Version::V5, limits),
    };
    let sizes = cuts.iter().map(|size| usize::from(*size)).chain(std::iter::repeat(usize::MAX));
    let (packets, version) = cut(decoder.clone(), stream, sizes);

    // What was read is written, and read again, the same.
    let Some(version) = version else { return };
    let mut written = BytesMut::new();
    for packet in &packets {
        let before = written.len();
        packet.encode(version, &mut written).expect("what was read can be written");
        assert_eq!(written.len() - before, packet.encoded_len(version), "{packet:?}");
    }
    assert!(written.len() <= stream.len());
    let (again, error, _) = whole(decoder, &written);
    assert_eq!((again, error), (packets, None));
}

/// All packets of a stream in one buffer, the error that ends it, and the version.
fn whole(mut decoder: Decoder, data: &[u8]) -> (Vec<Packet>, Option<DecodeError>, Option<Version>) {
    let mut packets = Vec::new();
    let mut buffer = BytesMut::from(data);
    loop {
        let missing = decoder.missing(&buffer);
        match decoder.decode(&mut buffer) {
            Ok(Some(packet)) => {
                assert_eq!(missing, Ok(0));
                packets.push(packet);
            }
            Ok(None) => {
                assert!(missing.is_ok_and(|missing| missing > 0));
                return (packets, None, decoder.version());
            }
            Err(error) => return (packets, Some(error), decoder.version()),
        }
    }
}

/// In one piece or in pieces of these sizes, the packets and the error are the same; gives the packets.
pub(crate) fn cut(
    decoder: Decoder,
    data: &[u8],
    mut sizes: impl Iterator<Item = usize>,
) -> (Vec<Packet>, Option<Version>) {
    let (packets, end, version) = whole(decoder.clone(), data);
    let mut bits = decoder;
    let (mut buffer, mut rest, mut seen) = (BytesMut::new(), data, packets.iter());
    'pieces: while !rest.is_empty() {
        let (piece, after) = rest.split_at(sizes.next().unwrap_or(usize::MAX).min(rest.len()));
        rest = after;
        buffer.extend_from_slice(piece);
        loop {
            match bits.decode(&mut buffer) {
                Ok(None) => break,
                Ok(Some(packet)) => assert_eq!(Some(&packet), seen.next()),
                Err(error) => {
                    assert_eq!(Some(error), end);
                    break 'pieces;
                }
            }
        }
    }
    assert_eq!(seen.next(), None);
    (packets, version)
}
