//! What one packet costs to read and to write. `cargo bench -p postroad-mqtt`
//!
//! The budgets: 100 ns to read a PUBLISH with a topic of 20 bytes and a payload of 256, 20 ns to read an acknowledgement.

use std::hint::black_box;
use std::time::Instant;

use bytes::{BufMut, BytesMut};
use postroad_mqtt::codec::{Ack, Decoder, Limits, Packet, PacketId, Publish, Qos, Utf8, Version};

/// In one buffer.
const BATCH: usize = 200;
const ROUNDS: usize = 10_000;

/// The fastest of five, in nanoseconds for each packet.
fn measure(mut round: impl FnMut()) -> f64 {
    (0..5)
        .map(|_| {
            let start = Instant::now();
            (0..ROUNDS).for_each(|_| round());
            start.elapsed().as_nanos() as f64 / (ROUNDS * BATCH) as f64
        })
        .fold(f64::INFINITY, f64::min)
}

fn main() {
    let topic = Utf8::from_static("orders/eu/west/paid1");
    let publish = |qos| Publish {
        qos,
        packet_id: PacketId::new(7).filter(|_| qos != Qos::AtMostOnce),
        ..Publish::new(topic.clone(), vec![b'x'; 256])
    };
    let packets = [
        ("PUBLISH 0", Packet::Publish(publish(Qos::AtMostOnce))),
        ("PUBLISH 2", Packet::Publish(publish(Qos::ExactlyOnce))),
        ("PUBACK", Packet::Puback(Ack::new(PacketId::MIN))),
        ("PINGRESP", Packet::Pingresp),
    ];
    println!("{:<12} {:>6} {:>12} {:>12} {:>12}", "packet", "", "copy", "read", "write");
    for (name, packet) in &packets {
        for version in [Version::V311, Version::V5] {
            let mut wire = BytesMut::new();
            (0..BATCH).for_each(|_| packet.encode(version, &mut wire).unwrap());
            let wire = wire.freeze();
            let mut decoder = Decoder::client(version, Limits::default());
            let mut buffer = BytesMut::with_capacity(wire.len());
            // Like a socket: the bytes are copied into the buffer. What that costs is not the codec's.
            let copy = measure(|| {
                buffer.clear();
                buffer.reserve(wire.len());
                buffer.put_slice(&wire);
                black_box(&buffer);
            });
            let read = measure(|| {
                buffer.clear();
                buffer.reserve(wire.len());
                buffer.put_slice(&wire);
                while let Some(packet) = decoder.decode(&mut buffer).unwrap() {
                    black_box(packet);
                }
            });
            let mut out = BytesMut::with_capacity(wire.len());
            let write = measure(|| {
                out.clear();
                (0..BATCH).for_each(|_| match packet {
                    // The payload is sent from where it is.
                    Packet::Publish(publish) => publish.head().encode(version, &mut out).unwrap(),
                    packet => packet.encode(version, &mut out).unwrap(),
                });
                black_box(&out);
            });
            println!("{name:<12} {version:>6?} {copy:>9.1} ns {:>9.1} ns {write:>9.1} ns", read - copy);
        }
    }
}
