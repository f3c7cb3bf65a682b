//! The table of wire cases, whole, in pieces and truncated; the tables of properties and reason codes.

#[path = "property/decode.rs"]
mod decode;
#[path = "property/stream.rs"]
#[allow(dead_code)] // whole streams are checked in `fuzz.rs`
mod stream;
mod wire;

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};
use postroad_mqtt::codec::{
    DecodeError, Decoder, Direction, Frame, Limits, Packet, PacketType, ReasonCode, Utf8, Version,
    decode_packet, frame,
};

fn each(mut check: impl FnMut(&wire::Case, Version, Direction)) {
    for case in wire::cases() {
        for &version in case.versions {
            for &direction in case.directions {
                check(&case, version, direction);
            }
        }
    }
}

#[test]
fn each_case_means_what_the_table_says() {
    let mut count = 0;
    let mut failed = Vec::new();
    each(|case, version, direction| {
        count += 1;
        let got = decode_packet(case.bytes.clone(), version, direction, &Limits::default());
        if got != case.expected {
            failed.push(format!("{} {version:?} {direction:?}: {got:?}, not {:?}", case.name, case.expected));
        }
    });
    assert!(failed.is_empty(), "{} of {count}:\n{}", failed.len(), failed.join("\n"));
    assert!(wire::cases().len() >= 200 && count >= 400, "{count}");
}

#[test]
fn each_packet_is_written_as_the_table_says() {
    each(|case, version, direction| {
        let Ok(packet) = &case.expected else { return };
        let mut out = BytesMut::from("before");
        packet.encode(version, &mut out).unwrap();
        let written = out.split_off("before".len()).freeze();
        assert_eq!(out, "before");
        assert_eq!(packet.encoded_len(version), written.len(), "{}", case.name);
        if case.canonical && case.name != "publish with every property" {
            assert_eq!(written, case.bytes, "{} {version:?}", case.name);
        }
        let again = decode_packet(written, version, direction, &Limits::default());
        assert_eq!(again.as_ref(), Ok(packet), "{}", case.name);
    });
}

/// The head and the payload together are the packet.
#[test]
fn a_head_leaves_the_payload_where_it_is() {
    each(|case, version, _| {
        let Ok(Packet::Publish(packet)) = &case.expected else { return };
        let mut whole = BytesMut::new();
        packet.encode(version, &mut whole).unwrap();
        let mut head = BytesMut::new();
        packet.head().encode(version, &mut head).unwrap();
        assert_eq!(head.len() + packet.payload.len(), packet.encoded_len(version));
        head.extend_from_slice(&packet.payload);
        assert_eq!(head, whole);
    });
}

/// Cut anywhere, a packet is not there yet; what is missing is never said too high.
#[test]
fn a_packet_may_come_in_pieces() {
    each(|case, version, direction| {
        let Ok(packet) = &case.expected else { return };
        if case.bytes.len() > 1000 {
            return;
        }
        let decoder = match (direction, packet) {
            (Direction::ToServer, Packet::Connect(_)) => Decoder::server(Limits::default()),
            (Direction::ToServer, _) => connected(version),
            (Direction::ToClient, _) => Decoder::client(version, Limits::default()),
        };
        for cut in 0..case.bytes.len() {
            let mut decoder = decoder.clone();
            let mut buffer = BytesMut::from(&case.bytes[..cut]);
            assert_eq!(decoder.decode(&mut buffer), Ok(None), "{} at {cut}", case.name);
            assert_eq!(buffer.len(), cut, "nothing is taken");
            let missing = decoder.missing(&buffer).unwrap();
            assert!((1..=case.bytes.len() - cut).contains(&missing), "{} at {cut}", case.name);
            buffer.extend_from_slice(&case.bytes[cut..]);
            buffer.extend_from_slice(b"next");
            assert_eq!(decoder.decode(&mut buffer).as_ref(), Ok(&Some(packet.clone())), "{}", case.name);
            assert_eq!(buffer, "next");
        }
    });
}

/// A body that ends early, with a fixed header that says so, is never what it was.
#[test]
fn no_packet_loses_its_end_unnoticed() {
    each(|case, version, direction| {
        let Ok(packet) = &case.expected else { return };
        if case.bytes.len() > 127 || matches!(packet, Packet::Publish(_)) {
            return;
        }
        for cut in 2..case.bytes.len() {
            let mut bytes = BytesMut::from(&case.bytes[..cut]);
            bytes[1] = (cut - 2) as u8;
            let got = decode_packet(bytes.freeze(), version, direction, &Limits::default());
            assert!(got.as_ref() != Ok(packet) || !case.canonical, "{} cut at {cut}", case.name);
        }
    });
}

fn connected(version: Version) -> Decoder {
    let mut decoder = Decoder::server(Limits::default());
    let connect = postroad_mqtt::codec::Connect::new(version, Utf8::from_static("a"));
    let mut buffer = BytesMut::new();
    connect.encode(&mut buffer).unwrap();
    assert!(decoder.decode(&mut buffer).unwrap().is_some());
    assert_eq!(decoder.version(), Some(version));
    decoder
}

#[test]
fn the_first_packet_is_connect_and_only_the_first() {
    for byte in 0..=255_u8 {
        let mut decoder = Decoder::server(Limits::default());
        let got = decoder.decode(&mut BytesMut::from(&[byte][..]));
        match byte {
            0x10 => assert_eq!(got, Ok(None)),
            0x11..=0x1F => assert_eq!(got, Err(DecodeError::FixedFlags)),
            // Nobody waits for the rest of something else.
            _ => assert!(got.is_err(), "{byte:#x}: {got:?}"),
        }
    }
    for (version, wire) in [
        (Version::V31, "10 ~ 'MQIsdp' 03 02 003C 'a'"),
        (Version::V311, "10 ~ 'MQTT' 04 02 003C 'a'"),
        (Version::V5, "10 ~ 'MQTT' 05 02 003C {} 'a'"),
    ] {
        let mut buffer = BytesMut::from(&wire::bytes(wire)[..]);
        assert_eq!(connected(version).decode(&mut buffer), Err(DecodeError::SecondConnect));
    }
}

#[test]
fn the_version_of_a_malformed_connect_is_known() {
    let version_after = |wire| {
        let mut decoder = Decoder::server(Limits::default());
        assert!(decoder.decode(&mut BytesMut::from(&wire::bytes(wire)[..])).is_err());
        decoder.version()
    };
    assert_eq!(version_after("10 ~ 'MQTT' 05 03 003C {} 'a'"), Some(Version::V5));
    assert_eq!(version_after("10 ~ 'MQTT' 04 00 003C ''"), Some(Version::V311));
    assert_eq!(version_after("10 ~ 'MQTT' 06 02 003C 'a'"), None);
}

#[test]
fn a_length_is_refused_before_the_bytes_come() {
    let limits = Limits { max_connect_size: 100, max_packet_size: 1000, ..Limits::default() };
    let mut server = Decoder::server(limits.clone());
    assert_eq!(server.decode(&mut BytesMut::from(&[0x10, 99][..])), Err(DecodeError::TooLarge));
    assert_eq!(server.missing(&[0x10, 99]), Err(DecodeError::TooLarge));
    assert_eq!(server.missing(&[0x10, 98]), Ok(98));
    // 3 bytes of header and 997 are 1000.
    let mut client = Decoder::client(Version::V5, limits);
    assert_eq!(client.missing(&[0x30, 0xE5, 0x07]), Ok(997));
    assert_eq!(client.missing(&[0x30, 0xE6, 0x07]), Err(DecodeError::TooLarge));
    client.limits_mut().max_packet_size = 1001;
    assert_eq!(client.missing(&[0x30, 0xE6, 0x07]), Ok(998));
    assert_eq!(frame(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F], u32::MAX), Ok(Frame::Need(268_435_455)));
}

/// Table 2-4 of MQTT 5.0: each property with a value, and where it may be (`W` is a will).
const PROPERTIES: &[(u8, &str, &str)] = &[
    (0x01, "01", "Publish W"),
    (0x02, "00000001", "Publish W"),
    (0x03, "'t'", "Publish W"),
    (0x08, "'r'", "Publish W"),
    (0x09, "'c'", "Publish W"),
    (0x0B, "01", "Publish Subscribe"),
    (0x11, "00000001", "Connect Connack Disconnect"),
    (0x12, "'i'", "Connack"),
    (0x13, "0001", "Connack"),
    (0x15, "'m'", "Connect Connack Auth"),
    (0x16, "'d'", "Connect Connack Auth"),
    (0x17, "01", "Connect"),
    (0x18, "00000001", "W"),
    (0x19, "01", "Connect"),
    (0x1A, "'i'", "Connack"),
    (0x1C, "'s'", "Connack Disconnect"),
    (0x1F, "'r'", "Connack Puback Pubrec Pubrel Pubcomp Suback Unsuback Disconnect Auth"),
    (0x21, "0001", "Connect Connack"),
    (0x22, "0001", "Connect Connack"),
    (0x23, "0001", "Publish"),
    (0x24, "01", "Connack"),
    (0x25, "01", "Connack"),
    (
        0x26,
        "'k' 'v'",
        "Connect Connack Publish W Puback Pubrec Pubrel Pubcomp Subscribe Suback Unsubscribe Unsuback Disconnect Auth",
    ),
    (0x27, "00000001", "Connect Connack"),
    (0x28, "01", "Connack"),
    (0x29, "01", "Connack"),
    (0x2A, "01", "Connack"),
];

/// A packet of each type around properties, and which way it goes.
const AROUND: &[(&str, &str, Direction)] = &[
    ("Connect", "10 ~ 'MQTT' 05 02 003C { @ } 'a'", Direction::ToServer),
    ("W", "10 ~ 'MQTT' 05 06 003C {} 'a' { @ } 'w' ''", Direction::ToServer),
    ("Connack", "20 ~ 00 00 { @ }", Direction::ToClient),
    ("Publish", "30 ~ 'a' { @ }", Direction::ToClient),
    ("Puback", "40 ~ 0001 00 { @ }", Direction::ToClient),
    ("Pubrec", "50 ~ 0001 00 { @ }", Direction::ToClient),
    ("Pubrel", "62 ~ 0001 00 { @ }", Direction::ToClient),
    ("Pubcomp", "70 ~ 0001 00 { @ }", Direction::ToClient),
    ("Subscribe", "82 ~ 0001 { @ } 'a' 00", Direction::ToServer),
    ("Suback", "90 ~ 0001 { @ } 00", Direction::ToClient),
    ("Unsubscribe", "A2 ~ 0001 { @ } 'a'", Direction::ToServer),
    ("Unsuback", "B0 ~ 0001 { @ } 00", Direction::ToClient),
    ("Disconnect", "E0 ~ 00 { @ }", Direction::ToServer),
    ("Auth", "F0 ~ 18 { @ }", Direction::ToServer),
];

#[test]
fn each_property_is_where_it_may_be_once() {
    for (packet, around, direction) in AROUND {
        let decode = |properties: &str| {
            let bytes = wire::bytes(&around.replace('@', properties));
            decode_packet(bytes, Version::V5, *direction, &Limits::default())
        };
        for id in 0..=0x7F_u8 {
            let known = PROPERTIES.iter().find(|property| property.0 == id);
            let value = known.map_or("00000000", |property| property.1);
            // Data needs its method.
            let before = match *packet {
                "Auth" if id != 0x15 => "15 'm'",
                "Connect" | "Connack" if id == 0x16 => "15 'm'",
                _ => "",
            };
            let once = decode(&format!("{before} {id:02X} {value}"));
            if known.is_none_or(|property| !property.2.split(' ').any(|name| name == *packet)) {
                assert_eq!(once, Err(DecodeError::PropertyUnknown), "{id:#x} on {packet}");
                continue;
            }
            assert!(once.is_ok(), "{id:#x} on {packet}: {once:?}");
            let whole = wire::bytes(value);
            for cut in 0..whole.len() {
                let value: Vec<String> = whole[..cut].iter().map(|byte| format!("{byte:02X}")).collect();
                let got = decode(&format!("{before} {id:02X} {}", value.concat()));
                assert_eq!(got, Err(DecodeError::Truncated), "{id:#x} on {packet}, {cut} bytes of its value");
            }
            let twice = decode(&format!("{before} {id:02X} {value} {id:02X} {value}"));
            if id == 0x26 || (id == 0x0B && *packet == "Publish") {
                assert!(twice.is_ok(), "{id:#x} twice on {packet}");
            } else {
                assert_eq!(twice, Err(DecodeError::PropertyTwice), "{id:#x} twice on {packet}");
            }
        }
    }
}

/// The tables of reason codes in section 2.4 and chapter 3 of MQTT 5.0. (0x8C on DISCONNECT is in the former alone.)
#[test]
fn each_reason_code_is_where_it_may_be() {
    use PacketType as T;
    let common: &[u8] = &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
    let tables: &[(PacketType, &str, &[u8])] = &[
        (
            T::Connack,
            "20 ~ 00 @ {}",
            &[
                0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95,
                0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F,
            ],
        ),
        (T::Puback, "40 ~ 0001 @", common),
        (T::Pubrec, "50 ~ 0001 @", common),
        (T::Pubrel, "62 ~ 0001 @", &[0x00, 0x92]),
        (T::Pubcomp, "70 ~ 0001 @", &[0x00, 0x92]),
        (T::Suback, "90 ~ 0001 {} @", &[0, 1, 2, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2]),
        (T::Unsuback, "B0 ~ 0001 {} @", &[0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91]),
        (
            T::Disconnect,
            "E0 ~ @",
            &[
                0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F, 0x90, 0x93,
                0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2,
            ],
        ),
        (T::Auth, "F0 ~ @ { 15 'm' }", &[0x00, 0x18, 0x19]),
    ];
    for (kind, around, codes) in tables {
        for code in 0..=255_u8 {
            let bytes = wire::bytes(&around.replace('@', &format!("{code:02X}")));
            let got = decode_packet(bytes, Version::V5, Direction::ToClient, &Limits::default());
            let allowed = codes.contains(&code);
            assert_eq!(got.is_ok(), allowed, "{code:#x} on {kind:?}: {got:?}");
            if !allowed {
                assert_eq!(got, Err(DecodeError::ReasonCode));
            }
            assert_eq!(ReasonCode::from_u8(code).is_some_and(|reason| reason.allowed_on(*kind)), allowed);
        }
    }
}

/// Every rule has a case that breaks it, a reason code for the peer and a clause.
#[test]
fn each_rule_is_broken_by_a_case() {
    let mut broken: HashSet<DecodeError> =
        wire::cases().into_iter().filter_map(|case| case.expected.err()).collect();
    // Of a connection, not of a packet: the tests above.
    broken.extend([DecodeError::NotConnect, DecodeError::SecondConnect]);
    for rule in DecodeError::ALL {
        assert!(broken.contains(rule), "nothing breaks {rule:?}");
        let clause = rule.clause();
        assert!(
            clause.starts_with("MQTT-") || clause.starts_with("section ") || clause == "limit",
            "{clause}"
        );
        assert!(rule.reason().is_error());
        let kinds = [PacketType::Connack, PacketType::Disconnect];
        assert!(kinds.iter().any(|kind| rule.reason().allowed_on(*kind)), "{rule:?} cannot be told");
    }
}

#[test]
fn any_bytes_are_packets_or_errors() {
    let mut random = fastrand::Rng::with_seed(5);
    let cases = wire::cases();
    let start: Vec<&Bytes> = cases.iter().map(|case| &case.bytes).filter(|bytes| bytes.len() < 300).collect();
    for bytes in &start {
        decode::check(bytes);
    }
    for _ in 0..30_000 {
        let mut data = random.choice(&start).unwrap().to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(0..=data.len());
            match random.u8(0..5) {
                0 => data.insert(at, random.u8(..)),
                1 if at < data.len() => drop(data.remove(at)),
                2 if at < data.len() => data[at] ^= 1 << random.u8(0..8),
                3 => data.extend_from_slice(random.choice(&start).unwrap()),
                _ if at < data.len() => data[at] = random.u8(..),
                _ => {}
            }
        }
        decode::check(&data);
        // With a length that is right again, the change is found further in.
        if data.len() > 2 && data.len() < 130 {
            data[1] = (data.len() - 2) as u8;
            decode::check(&data);
        }
    }
}
