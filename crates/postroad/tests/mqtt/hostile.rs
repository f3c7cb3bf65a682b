//! Input that is there to take memory, time or locks: each is bounded, and nobody else notices.

use std::time::{Duration, Instant};

use crate::bad_input::{Street, publish, subscribe};
use crate::client::{Client, Connect, Will};
use crate::support::{PATIENCE, alone};
use crate::wire::{PUBREC, Props, Publish, Value, Version, frame, prop, string, varint};

/// CVE-2017-7651: CONNECT that claims 256 MiB. Memory is for bytes that came, and there is a cap before anybody
/// is known.
#[test]
fn a_connect_that_claims_256_mib_costs_nothing() {
    let _turn = alone();
    let mut street = Street::new();
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Client::silent(street.broker.port(), Version::V5).expect("a connection");
        let _ = client.send(&[0x10, 0xFF, 0xFF, 0xFF, 0x7F, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 0]);
        clients.push(client);
    }
    street.goes_on("20 claims of 256 MiB");
    // As many bytes as it will take, until it closes.
    let mut client = clients.pop().expect("one of 20");
    let chunk = vec![b'x'; 65_536];
    let taken = (0..1024).take_while(|_| client.send(&chunk).is_ok()).count();
    assert!(taken < 160, "{taken} times 64 KiB were taken before CONNECT was refused");
    street.goes_on("as much as it took of 64 MiB");
}

/// CVE-2019-11779: a filter, and a topic, of 65,000 levels. Refused or taken, in no time.
#[test]
fn cve_2019_11779_masses_of_levels_take_no_time() {
    let _turn = alone();
    let mut street = Street::new();
    let deep = vec![b'/'; 65_500];
    let begin = Instant::now();
    for version in [Version::V3, Version::V5] {
        for _ in 0..5 {
            let mut client = Connect::new(version, "deep").open(street.broker.port());
            let _ = client.send(&subscribe(version, &deep, &[1]));
            let _ = client.next(PATIENCE);
            street.goes_on("SUBSCRIBE of 65,500 levels");
            let mut client = Connect::new(version, "deep").open(street.broker.port());
            let props: &[u8] = if version == Version::V5 { &[0, 1, 0] } else { &[0, 1] };
            let _ = client.send(&publish(0x32, &deep, &[props, b"x"].concat()));
            let _ = client.next(PATIENCE);
            street.goes_on("PUBLISH of 65,500 levels");
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

/// CVE-2023-28366, [MQTT-3.3.4-7]: QoS 2 messages that are never released are bounded by the receive maximum.
#[test]
fn cve_2023_28366_unreleased_messages_end_at_the_receive_maximum() {
    let _turn = alone();
    let mut street = Street::new();
    let mut client = street.broker.v5("unreleased");
    let most = client.props.number(prop::RECEIVE_MAXIMUM).unwrap_or(65_535);
    assert!(most < 65_535, "CONNACK names a receive maximum that can be reached");
    for id in 1..=most as u16 {
        client.say(&Publish::new("u", "x", 2).id(id).encode(Version::V5));
        assert!(client.acked(PUBREC, id) < 0x80);
    }
    client.say(&Publish::new("u", "x", 2).id(most as u16 + 1).encode(Version::V5));
    assert_eq!(client.closed(), Some(0x93));
    street.goes_on("more than the receive maximum");
}

/// The same in 3.1.1, which has no receive maximum: whatever happens to the client, memory stays bounded.
#[test]
fn unreleased_messages_of_3_1_1_are_bounded() {
    let _turn = alone();
    let mut street = Street::new();
    let mut client = street.broker.v3("unreleased-3");
    let big = vec![b'x'; 512];
    for id in 1..=65_535 {
        if client.send(&Publish::new("u", &big, 2).id(id).encode(Version::V3)).is_err() {
            break;
        }
        // What it answers is read, so that it is not its output that stops it.
        while let Ok(Some(_)) = client.next(Duration::ZERO) {}
    }
    street.goes_on("65,535 unreleased messages");
}

/// CVE-2021-41039: masses of user properties. Capped or taken, in no time.
#[test]
fn cve_2021_41039_masses_of_user_properties_take_no_time() {
    let _turn = alone();
    let mut street = Street::new();
    let pair = Value::Pair("k".into(), "v".into());
    let many = Props(vec![(prop::USER, pair); 8_000]);
    let begin = Instant::now();
    let mut connect = Connect::new(Version::V5, "masses");
    for (id, value) in many.0.clone() {
        connect = connect.prop(id, value);
    }
    let will = Will { topic: "w".into(), props: many.clone(), ..Will::default() };
    for bytes in [connect.encode(), Connect::new(Version::V5, "masses").will(will).encode()] {
        let mut client = Client::silent(street.broker.port(), Version::V5).expect("a connection");
        let _ = client.send(&bytes);
        let _ = client.next(PATIENCE);
        street.goes_on("CONNECT with 8,000 user properties");
    }
    let props = many.encode();
    for bytes in [
        frame(0x32, &[&string("m")[..], &[0, 1], &props, b"x"].concat()),
        frame(0x82, &[&[0, 1][..], &props, &string("m"), &[1]].concat()),
        frame(0xA2, &[&[0, 1][..], &props, &string("m")].concat()),
        frame(0xE0, &[&[0][..], &props].concat()),
    ] {
        let mut client = street.broker.v5("masses");
        let _ = client.send(&bytes);
        let _ = client.next(PATIENCE);
        street.goes_on("8,000 user properties");
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

/// CVE-2021-33175, -33176, -22116: claims without bytes, on many connections, cost no memory.
#[test]
fn half_packets_on_many_connections_cost_little() {
    let _turn = alone();
    let mut street = Street::new();
    let most = street.neighbour.props.number(prop::MAXIMUM_PACKET).unwrap_or(1 << 20).min(1 << 20);
    let mut clients = Vec::new();
    for number in 0..100 {
        let mut client = street.broker.v5(&format!("half-{number}"));
        client.say(&[&[0x30][..], &varint(most), b"\0\x01a\0abc"].concat());
        clients.push(client);
    }
    street.goes_on("100 claims of the largest packet");
}

/// CVE-2024-48077: a flood to a subscriber that does not read. The publisher may be slowed; nobody else is, and
/// memory stays bounded.
#[test]
fn cve_2024_48077_a_flood_to_one_that_does_not_read_stops_nobody() {
    let _turn = alone();
    let mut street = Street::new();
    let mut deaf = street.broker.v5("deaf");
    assert_eq!(deaf.subscribe("flood", 0), 0);
    let mut publisher = street.broker.v5("flooder");
    let message = Publish::new("flood", vec![b'x'; 16_384], 0).encode(Version::V5);
    let begin = Instant::now();
    let mut sent = 0_u32;
    while sent < 8_000 && begin.elapsed() < Duration::from_secs(10) {
        if publisher.send(&message).is_err() {
            break;
        }
        sent += 1;
        if sent.is_multiple_of(1000) {
            street.before = street.before.map(|before| before.max(64 * 1024));
            street.goes_on("a flood");
        }
    }
    assert!(sent > 1000, "{sent} messages of 16 KiB were taken");
    street.goes_on("a flood");
}
