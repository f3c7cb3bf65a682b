//! PUBLISH without properties and the acknowledgements allocate nothing, read or written.

use bytes::BytesMut;
use postroad_mqtt::codec::{Ack, Decoder, Limits, Packet, PacketId, Publish, Qos, Utf8, Version};

const PACKETS: usize = 1000;

fn message(qos: Qos) -> Publish {
    let id = PacketId::new(7).filter(|_| qos != Qos::AtMostOnce);
    Publish { qos, packet_id: id, ..Publish::new(Utf8::from_static("orders/eu/west/paid"), vec![b'x'; 256]) }
}

fn hot() -> Vec<Packet> {
    let ack = || Ack::new(PacketId::MAX);
    vec![
        Packet::Publish(message(Qos::AtMostOnce)),
        Packet::Publish(message(Qos::AtLeastOnce)),
        Packet::Publish(message(Qos::ExactlyOnce)),
        Packet::Puback(ack()),
        Packet::Pubrec(ack()),
        Packet::Pubrel(ack()),
        Packet::Pubcomp(ack()),
        Packet::Pingreq,
    ]
}

#[test]
fn reading_allocates_nothing_per_packet() {
    for version in [Version::V31, Version::V311, Version::V5] {
        for packet in hot().into_iter().filter(|packet| *packet != Packet::Pingreq) {
            let mut wire = BytesMut::new();
            for _ in 0..PACKETS {
                packet.encode(version, &mut wire).unwrap();
            }
            let mut decoder = Decoder::client(version, Limits::default());
            // The buffer itself becomes a shared one once.
            assert!(decoder.decode(&mut wire).unwrap().is_some());
            let mut count = 1;
            let info = allocation_counter::measure(|| {
                while let Some(read) = decoder.decode(&mut wire).unwrap() {
                    assert_eq!(read, packet);
                    count += 1;
                }
            });
            assert_eq!((count, info.count_total), (PACKETS, 0), "{packet:?}");
        }
    }
}

#[test]
fn writing_allocates_nothing_per_packet() {
    for version in [Version::V31, Version::V311, Version::V5] {
        let mut out = BytesMut::with_capacity(PACKETS * 300 * 8);
        let packets = hot();
        let info = allocation_counter::measure(|| {
            for _ in 0..PACKETS {
                for packet in &packets {
                    packet.encode(version, &mut out).unwrap();
                    if let Packet::Publish(publish) = packet {
                        publish.head().encode(version, &mut out).unwrap();
                    }
                }
            }
        });
        assert_eq!(info.count_total, 0, "{version:?}");
    }
}

/// What is claimed is not what is allocated.
#[test]
fn a_claimed_length_allocates_nothing() {
    let limits = Limits { max_packet_size: u32::MAX, max_connect_size: u32::MAX, ..Limits::default() };
    let mut decoder = Decoder::server(limits);
    let mut wire = BytesMut::from(&[0x10, 0xFF, 0xFF, 0xFF, 0x7F, 0, 4, b'M'][..]);
    let info = allocation_counter::measure(|| assert_eq!(decoder.decode(&mut wire), Ok(None)));
    assert_eq!(info.count_total, 0);
}
