//! Beside another codec, `mqtt5-protocol`: valid packets mean the same to both; where they differ on damaged ones is
//! listed, with the reason.

mod packets;
mod wire;

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use mqtt5_protocol::packet::{FixedHeader, MqttPacket, Packet as Theirs};
use packets::Any;
use postroad_mqtt::codec::DecodeError as E;
use postroad_mqtt::codec::{Direction, Limits, Packet, Version, decode_packet};

/// What only they accept. Each is refused here for a clause of the specification, or for a limit of ours.
const ONLY_THEY: &[(&[E], &str)] = &[
    (
        &[E::PacketType, E::WrongDirection, E::SubscriptionIdToServer, E::SessionExpiryFromServer],
        "they read a packet without knowing who sent it, and AUTH without knowing the version",
    ),
    (
        &[E::ReasonCode, E::Truncated, E::Trailing, E::ProtocolLevel, E::ClientId],
        "they tell the version of CONNACK and of acknowledgements by its length, so that a short one of 5.0 passes as \
         one of 3.1.1 and the other way round; they know 3.1 by its number alone",
    ),
    (
        &[E::FilterHash, E::FilterPlus, E::ShareName, E::ShareSyntax, E::NoLocalShared, E::TopicEmpty],
        "their filters are checked by the broker, not by the codec",
    ),
    (&[E::TopicWildcard, E::TopicMissing, E::ResponseTopic, E::TopicLevels], "so are their topic names"),
    (
        &[
            E::PropertyFlag,
            E::MaximumQos,
            E::MaximumPacketSizeZero,
            E::ReceiveMaximumZero,
            E::TopicAliasZero,
            E::SubscriptionIdZero,
            E::AuthenticationData,
            E::PropertyUnknown,
            E::PropertyTwice,
        ],
        "they read properties into one list for all packets; values, places and repetitions are the broker's to check",
    ),
    (
        &[E::VarIntNotMinimal],
        "they take a variable byte integer that is longer than it must be [MQTT-1.5.5-1]",
    ),
    (&[E::PacketIdZero, E::SessionPresent], "fields are not compared with each other or with 0"),
    (&[E::SubscribeOptions, E::SubscribeQos], "they read the options of 5.0 in 3.1.1 too"),
];

/// What only they refuse.
const ONLY_WE: &[(&str, &str)] = &[
    ("Password without username", "5.0 allows it (section 3.1.2.9)"),
    ("Invalid DISCONNECT reason code: BadAuthent", "section 2.4 has 0x8C for DISCONNECT"),
];

fn their_decode(bytes: &Bytes, version: Version) -> Result<Theirs, String> {
    let mut rest = bytes.clone();
    let header = FixedHeader::decode(&mut rest).map_err(|error| error.to_string())?;
    if rest.len() != header.remaining_length as usize {
        return Err("length".into());
    }
    let level = version.name_and_level().1;
    let packet = Theirs::decode_from_body_with_version(header.packet_type, &header, &mut rest, level)
        .map_err(|error| error.to_string())?;
    if rest.has_remaining() { Err("bytes are left".into()) } else { Ok(packet) }
}

fn their_encode(packet: &Theirs) -> Bytes {
    let mut out = BytesMut::new();
    match packet {
        Theirs::Connect(packet) => packet.encode(&mut out),
        Theirs::ConnAck(packet) => packet.encode(&mut out),
        Theirs::Publish(packet) => packet.encode(&mut out),
        Theirs::PubAck(packet) => packet.encode(&mut out),
        Theirs::PubRec(packet) => packet.encode(&mut out),
        Theirs::PubRel(packet) => packet.encode(&mut out),
        Theirs::PubComp(packet) => packet.encode(&mut out),
        Theirs::Subscribe(packet) => packet.encode(&mut out),
        Theirs::SubAck(packet) => packet.encode(&mut out),
        Theirs::Unsubscribe(packet) => packet.encode(&mut out),
        Theirs::UnsubAck(packet) => packet.encode(&mut out),
        Theirs::Disconnect(packet) => packet.encode(&mut out),
        Theirs::Auth(packet) => packet.encode(&mut out),
        other => panic!("{other:?} has no body"),
    }
    .unwrap();
    out.freeze()
}

/// What they read of what we wrote, and write again, is what it was.
#[test]
fn valid_packets_mean_the_same() {
    let mut random = fastrand::Rng::with_seed(11);
    for round in 0..30_000 {
        let version = if round % 3 == 0 { Version::V311 } else { Version::V5 };
        let direction = if random.bool() { Direction::ToServer } else { Direction::ToClient };
        let packet = Any { random: &mut random, version }.packet(direction);
        if matches!(packet, Packet::Pingreq | Packet::Pingresp) {
            continue;
        }
        let mut wire = BytesMut::new();
        packet.encode(version, &mut wire).unwrap();
        let wire = wire.freeze();
        let problem = match their_decode(&wire, version) {
            Err(error) => error,
            Ok(theirs) => {
                match decode_packet(their_encode(&theirs), version, direction, &Limits::default()) {
                    Ok(again) if again == packet => continue,
                    Ok(again) => format!("other {again:?}"),
                    Err(error) => error.to_string(),
                }
            }
        };
        let known = ONLY_WE.iter().any(|(what, _)| problem.contains(what));
        assert!(known, "{problem}: {packet:?} {wire:02x?}");
    }
}

#[test]
fn differences_on_damaged_packets_are_known() {
    let mut random = fastrand::Rng::with_seed(12);
    let mut differ: BTreeMap<String, u32> = BTreeMap::new();
    let mut look = |bytes: Bytes, version: Version, direction: Direction| {
        let ours = decode_packet(bytes.clone(), version, direction, &Limits::default());
        let theirs = their_decode(&bytes, version);
        let (kind, known) = match (ours, theirs) {
            (Ok(_), Err(theirs)) => {
                let known = ONLY_WE.iter().any(|(what, _)| theirs.contains(what));
                (format!("only we: {theirs}"), known)
            }
            (Err(ours), Ok(_)) => {
                let known = ONLY_THEY.iter().any(|(rules, _)| rules.contains(&ours));
                (format!("only they: {ours:?}"), known)
            }
            _ => return,
        };
        assert!(known, "{kind}: {version:?} {direction:?} {bytes:02x?}");
        *differ.entry(kind).or_default() += 1;
    };
    for case in wire::cases() {
        for &direction in case.directions {
            for &version in case.versions {
                if version != Version::V31 && case.bytes.len() < 300 {
                    look(case.bytes.clone(), version, direction);
                }
            }
        }
    }
    for _ in 0..60_000 {
        let version = if random.bool() { Version::V311 } else { Version::V5 };
        let direction = if random.bool() { Direction::ToServer } else { Direction::ToClient };
        let packet = Any { random: &mut random, version }.packet(direction);
        let mut wire = BytesMut::new();
        packet.encode(version, &mut wire).unwrap();
        if wire.len() < 4 || wire.len() > 120 {
            continue;
        }
        let at = random.usize(2..wire.len());
        match random.u8(0..3) {
            0 => wire[at] ^= 1 << random.u8(0..8),
            1 => wire[at] = random.u8(..),
            _ => wire.truncate(at),
        }
        wire[1] = (wire.len() - 2) as u8;
        look(wire.freeze(), version, direction);
    }
    for (kind, count) in &differ {
        println!("{count} {kind}");
    }
}
