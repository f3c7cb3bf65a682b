//! Input that no client may send, much of which brought other brokers down. Each gets its reason code (5.0) or a closed
//! connection (3.1.1), and hurts nobody else: a neighbour goes on, and memory does not grow.

use std::time::{Duration, Instant};

use crate::broker::Broker;
use crate::client::{Client, Connect, Will};
use crate::support::{PATIENCE, turn};
use crate::wire::{Packet, Props, Publish, Value, Version, ack_with, binary, frame, prop, string, varint};

/// How much memory one bad client may cost for good, in KiB.
const MEMORY: u64 = 16 * 1024;

/// A broker with somebody on it who must not notice anything.
pub(crate) struct Street {
    pub(crate) broker: Broker,
    pub(crate) neighbour: Client,
    /// Its memory in KiB, before anything bad.
    pub(crate) before: Option<u64>,
}

impl Street {
    pub(crate) fn new() -> Self {
        let broker = Broker::start();
        let mut neighbour = Connect::durable(Version::V5, "neighbour").open(broker.port());
        assert_eq!(neighbour.subscribe("street/#", 2), 2);
        let mut street = Self { broker, neighbour, before: None };
        street.goes_on("before");
        street.before = street.broker.rss();
        street
    }

    /// The neighbour is still served, and the broker is no bigger than it was.
    #[track_caller]
    pub(crate) fn goes_on(&mut self, what: &str) {
        assert!(self.broker.alive(), "the broker died of {what}");
        self.neighbour.publish("street/1", what, 2);
        assert_eq!(self.neighbour.message().text(), what);
        let now = self.broker.rss();
        if let (Some(before), Some(now)) = (self.before, now) {
            assert!(now < before + MEMORY, "{what}: {before} KiB before, {now} KiB now");
        }
    }

    /// On a new 5.0 connection `bytes` end it with one of `codes`.
    #[track_caller]
    pub(crate) fn refuses_v5(&mut self, what: &str, bytes: &[u8], codes: &[u8]) {
        let mut client = self.broker.v5("bad-v5");
        client.say(bytes);
        let code = client.closed();
        assert!(
            code.is_some_and(|code| codes.contains(&code)),
            "{what}: {code:02x?}, not one of {codes:02x?}"
        );
        self.goes_on(what);
    }

    /// On a new 3.1.1 connection `bytes` end it.
    #[track_caller]
    pub(crate) fn refuses_v3(&mut self, what: &str, bytes: &[u8]) {
        let mut client = self.broker.v3("bad-v3");
        client.say(bytes);
        assert_eq!(client.closed(), None);
        self.goes_on(what);
    }

    /// As the first packet `bytes` get a CONNACK with one of `codes`, or (where `codes` says so by being empty, and
    /// always in 3.1.1, [MQTT-3.1.4-1]) nothing, and the connection is closed.
    #[track_caller]
    pub(crate) fn refuses_connect(&mut self, what: &str, version: Version, bytes: &[u8], codes: &[u8]) {
        let mut client = Client::silent(self.broker.port(), version).expect("a connection");
        // The server may close in the middle of it.
        let _ = client.send(bytes);
        match client.next(PATIENCE) {
            Ok(Some(Packet::Connack { code, .. })) => {
                assert!(codes.contains(&code), "{what}: {code:02x}, not one of {codes:02x?}");
                client.closed();
            }
            // 5.0, 4.13.1: before CONNECT was accepted a server may also close without a word.
            Ok(Some(Packet::Disconnect { code, .. })) => {
                panic!("{what}: DISCONNECT {code:#04x} instead of CONNACK")
            }
            Ok(other) => panic!("{what}: {other:?}"),
            Err(_) => assert!(codes.is_empty() || version == Version::V3, "{what}: closed without CONNACK"),
        }
        self.goes_on(what);
    }
}

/// A PUBLISH with any first byte and body.
pub(crate) fn publish(first: u8, topic: &[u8], rest: &[u8]) -> Vec<u8> {
    frame(first, &[&binary(topic), rest].concat())
}

/// A SUBSCRIBE for one filter (5.0: without properties).
pub(crate) fn subscribe(version: Version, filter: &[u8], options: &[u8]) -> Vec<u8> {
    let props: &[u8] = if version == Version::V5 { &[0] } else { &[] };
    frame(0x82, &[&[0, 1], props, &binary(filter), options].concat())
}

/// CVE-2023-0809: the first packet is not CONNECT [MQTT-3.1.0-1], with a large length besides.
#[test]
fn a_first_packet_that_is_not_connect_is_the_last() {
    let _turn = turn();
    let mut street = Street::new();
    for first in [0x00, 0x20, 0x30, 0x40, 0x62, 0x82, 0xA2, 0xC0, 0xE0, 0xF0] {
        let short = [first, 0];
        let long = [first, 0xFF, 0xFF, 0xFF, 0x7F, 0, 0];
        for bytes in [&short[..], &long[..]] {
            let mut client = Client::silent(street.broker.port(), Version::V5).expect("a connection");
            let _ = client.send(bytes);
            let begin = Instant::now();
            let answer = client.next(PATIENCE);
            assert!(answer.is_err(), "{first:#04x} got {answer:?}");
            assert!(begin.elapsed() < Duration::from_secs(5), "{first:#04x} is refused at once");
        }
        street.goes_on(&format!("first byte {first:#04x}"));
    }
}

/// [MQTT-3.1.0-2]: a second CONNECT is a protocol error.
#[test]
fn mqtt_3_1_0_2_a_second_connect_ends_the_connection() {
    let _turn = turn();
    let mut street = Street::new();
    let again = |version| Connect::new(version, "again").encode();
    street.refuses_v5("a second CONNECT", &again(Version::V5), &[0x82]);
    street.refuses_v3("a second CONNECT", &again(Version::V3));
}

/// CONNECT packets that are wrong in themselves: 3.1.2, 3.1.3.
#[test]
fn mqtt_3_1_2_bad_connects_are_refused() {
    let _turn = turn();
    let mut street = Street::new();
    let body = |name: &str, level: u8, flags: u8, rest: &[u8]| {
        frame(0x10, &[&string(name)[..], &[level, flags, 0, 0], rest].concat())
    };
    let id = string("bad");
    let v5 = |flags: u8, rest: &[u8]| body("MQTT", 5, flags, &[&[0], &id[..], rest].concat());
    let v3 = |flags: u8, rest: &[u8]| body("MQTT", 4, flags, &[&id[..], rest].concat());
    // A will without properties (5.0: an empty length), topic, payload.
    let will5 = [&[0][..], &string("w"), &string("x")].concat();
    let will3 = [string("w"), string("x")].concat();
    for (what, version, bytes, codes) in [
        ("reserved flag [MQTT-3.1.2-3]", Version::V5, v5(3, &[]), &[0x81, 0x82][..]),
        ("will QoS 3 [MQTT-3.1.2-12]", Version::V5, v5(0x1E, &will5), &[0x81, 0x82]),
        ("will QoS without will [MQTT-3.1.2-11]", Version::V5, v5(0x0A, &[]), &[0x81, 0x82]),
        ("will retain without will [MQTT-3.1.2-13]", Version::V5, v5(0x22, &[]), &[0x81, 0x82]),
        ("bytes after the end", Version::V5, v5(2, b"xyz"), &[0x81, 0x82]),
        ("level 6 [MQTT-3.1.2-2]", Version::V5, body("MQTT", 6, 2, &[&[0], &id[..]].concat()), &[0x84]),
        ("id with U+0000 [MQTT-1.5.4-2]", Version::V5, body("MQTT", 5, 2, b"\0\0\x03a\0b"), &[0x81, 0x85]),
        (
            "id is not UTF-8 [MQTT-1.5.4-1]",
            Version::V5,
            body("MQTT", 5, 2, b"\0\0\x02\xC3\x28"),
            &[0x81, 0x85],
        ),
        ("id with a surrogate", Version::V5, body("MQTT", 5, 2, b"\0\0\x03\xED\xA0\x80"), &[0x81, 0x85]),
        (
            "will topic with wildcard",
            Version::V5,
            v5(6, &[&[0][..], &string("w/#"), &string("x")].concat()),
            &[0x81, 0x82, 0x90],
        ),
        ("receive maximum 0 (3.1.2.11.3)", Version::V5, body("MQTT", 5, 2, b"\x03\x21\0\0\0\x01i"), &[0x82]),
        (
            "maximum packet 0 (3.1.2.11.4)",
            Version::V5,
            body("MQTT", 5, 2, b"\x05\x27\0\0\0\0\0\x01i"),
            &[0x82],
        ),
        (
            "session expiry twice",
            Version::V5,
            body("MQTT", 5, 2, b"\x0A\x11\0\0\0\x01\x11\0\0\0\x01\0\x01i"),
            &[0x82],
        ),
        ("request problem 2", Version::V5, body("MQTT", 5, 2, b"\x02\x17\x02\0\x01i"), &[0x82]),
        (
            "authentication data without method",
            Version::V5,
            body("MQTT", 5, 2, b"\x04\x16\0\x01x\0\x01i"),
            &[0x82],
        ),
        ("a property of PUBLISH", Version::V5, body("MQTT", 5, 2, b"\x02\x01\x01\0\x01i"), &[0x81, 0x82]),
        (
            "another protocol name [MQTT-3.1.2-1]",
            Version::V5,
            body("MQTX", 5, 2, b"\0\0\x01i"),
            &[0x84, 0x81, 0x82],
        ),
        ("reserved flag", Version::V3, v3(3, &[]), &[]),
        ("will QoS 3", Version::V3, v3(0x1E, &will3), &[]),
        ("password without user name [3.1.1: MQTT-3.1.2-22]", Version::V3, v3(0x42, &string("p")), &[]),
        ("level 2", Version::V3, body("MQTT", 2, 2, &id), &[1]),
        ("empty id, session kept [3.1.1: MQTT-3.1.3-8]", Version::V3, body("MQTT", 4, 0, &[0, 0]), &[2]),
        ("ends too soon", Version::V3, frame(0x10, b"\0\x04MQTT\x04\x02\0\0\0\x09abc"), &[]),
    ] {
        // A wrong protocol name may as well be no MQTT at all: closed without a word.
        if what.starts_with("another") {
            let mut client = Client::silent(street.broker.port(), version).expect("a connection");
            client.say(&bytes);
            if let Ok(answer) = client.next(PATIENCE) {
                assert!(matches!(answer, Some(Packet::Connack { code: 0x80.., .. })), "{what}: {answer:?}");
            }
            street.goes_on(what);
        } else {
            street.refuses_connect(&format!("{what}, {version:?}"), version, &bytes, codes);
        }
    }
}

/// CVE-2021-34432: a topic that is empty, without an alias. CVE-2018-12543 and others: names that are none.
/// CVE-2017-7653: topics that are not UTF-8 must not end connections of others.
#[test]
fn mqtt_3_3_2_bad_topic_names_are_refused() {
    let _turn = turn();
    let mut street = Street::new();
    for (what, topic, codes) in [
        ("an empty topic [MQTT-4.7.3-1]", &b""[..], &[0x82, 0x90, 0x81][..]),
        ("#", b"street/#", &[0x90, 0x81, 0x82]),
        ("+ [MQTT-3.3.2-2]", b"street/+", &[0x90, 0x81, 0x82]),
        ("U+0000 [MQTT-4.7.3-2]", b"street/\0", &[0x81, 0x90]),
        ("not UTF-8 [MQTT-1.5.4-1]", b"street/\xC3\x28", &[0x81, 0x90]),
        ("a surrogate", b"street/\xED\xA0\x80", &[0x81, 0x90]),
        ("a long form of /", b"street\xC0\xAF", &[0x81, 0x90]),
    ] {
        street.refuses_v5(what, &publish(0x30, topic, &[0]), codes);
        street.refuses_v3(what, &publish(0x30, topic, &[]));
    }
    street.neighbour.quiet();
}

/// CVE-2018-12543: publishing to `$`-topics is not for clients, and harms nobody.
#[test]
fn a_publish_to_sys_harms_nobody() {
    let _turn = turn();
    let mut street = Street::new();
    for topic in ["$SYS/broker/uptime", "$SYS", "$", "$share/g/x", "$queue/", "$no/such"] {
        let mut client = street.broker.v5("dollar");
        client.say(&Publish::new(topic, "mine", 1).id(1).encode(Version::V5));
        match client.next(PATIENCE) {
            Ok(Some(Packet::Ack { .. } | Packet::Disconnect { .. })) => {}
            other => panic!("{topic}: {other:?}"),
        }
        street.goes_on(topic);
    }
}

/// CVE-2023-3592: a will with properties that no will has (and CVE-2019-11778 in `wills`).
#[test]
fn cve_2023_3592_a_will_with_properties_of_others_is_refused() {
    let _turn = turn();
    let mut street = Street::new();
    for (id, value) in [
        (prop::SESSION_EXPIRY, Value::Four(1)),
        (prop::TOPIC_ALIAS, Value::Two(1)),
        (prop::SUBSCRIPTION_ID, Value::Var(1)),
        (prop::RECEIVE_MAXIMUM, Value::Two(1)),
        (prop::ASSIGNED_ID, Value::Text("x".into())),
        (prop::SERVER_KEEP_ALIVE, Value::Two(1)),
        (0x7F, Value::Byte(1)),
    ] {
        let will = Will::new("w", "x", 1).prop(id, value);
        let bytes = Connect::new(Version::V5, "bad-will").will(will).encode();
        street.refuses_connect(&format!("will property {id:#04x}"), Version::V5, &bytes, &[0x81, 0x82]);
    }
}

/// CVE-2021-28166: packets that only servers send, and types that nobody does.
#[test]
fn cve_2021_28166_packets_of_servers_are_refused() {
    let _turn = turn();
    let mut street = Street::new();
    for (what, bytes) in [
        ("CONNACK", frame(0x20, &[0, 0, 0])),
        ("SUBACK", frame(0x90, &[0, 1, 0, 1])),
        ("UNSUBACK", frame(0xB0, &[0, 1, 0, 0])),
        ("PINGRESP", frame(0xD0, &[])),
        ("packet type 0", frame(0x00, &[])),
    ] {
        street.refuses_v5(what, &bytes, &[0x81, 0x82]);
        street.refuses_v3(what, &bytes);
    }
    street.refuses_v3("AUTH", &frame(0xF0, &[]));
    street.refuses_v5("AUTH without a method in CONNECT", &frame(0xF0, &[0x18, 0]), &[0x81, 0x82]);
}

/// CVE-2017-7650: ids and user names that are patterns are names like any other.
#[test]
fn cve_2017_7650_ids_that_look_like_patterns_match_nobody() {
    let _turn = turn();
    let mut street = Street::new();
    for id in ["#", "+", "+/#", "$SYS", "a/b", "%c", "../../etc", "neighbour\u{1}"] {
        for version in [Version::V3, Version::V5] {
            let client = Connect::new(version, id).user(id).try_open(street.broker.port());
            if let Ok(mut client) = client
                && client.code == 0
            {
                client.subscribe("own", 1);
                client.publish("own", "m", 1);
                assert_eq!(client.texts(1), ["m"], "{id}");
            }
            street.goes_on(id);
        }
    }
    street.neighbour.ping();
}

/// CVE-2026-21888: a variable byte integer of five bytes, wherever one can be; [MQTT-1.5.5-1]: the shortest form.
#[test]
fn cve_2026_21888_a_variable_integer_of_five_bytes_is_refused() {
    let _turn = turn();
    let mut street = Street::new();
    let five = [0x80, 0x80, 0x80, 0x80, 0x01];
    street.refuses_v5("remaining length", &[&[0x30][..], &five, b"\0\x01a\0x"].concat(), &[0x81]);
    street.refuses_v3("remaining length", &[&[0x30][..], &five, b"\0\x01ax"].concat());
    street.refuses_v5("property length", &publish(0x30, b"a", &five), &[0x81]);
    let id = [&[0, 1, 6, 0x0B][..], &five, &string("a"), &[1]].concat();
    street.refuses_v5("subscription identifier", &frame(0x82, &id), &[0x81, 0x82]);
    let bytes = [&[0x10][..], &five, b"x"].concat();
    let mut client = Client::silent(street.broker.port(), Version::V5).expect("a connection");
    client.say(&bytes);
    assert!(client.next(PATIENCE).is_err(), "CONNECT with a length of five bytes");
    street.goes_on("CONNECT with a length of five bytes");
    street.refuses_v5("property length 0 in two bytes", &publish(0x30, b"a", &[0x80, 0]), &[0x81]);
}

/// NanoMQ 2270 and 2268, and relatives: packets that end before their parts do, or after them.
#[test]
fn packets_that_end_too_soon_or_too_late_are_refused() {
    let _turn = turn();
    let mut street = Street::new();
    for (what, v3, v5) in [
        ("PUBLISH at QoS 1 without identifier", publish(0x32, b"a", &[]), publish(0x32, b"a", &[])),
        ("PUBLISH at QoS 2, half an identifier", publish(0x34, b"a", &[1]), publish(0x34, b"a", &[1])),
        ("PUBLISH without topic", frame(0x30, &[]), frame(0x30, &[])),
        ("PUBLISH, topic longer than the packet", frame(0x30, b"\xFF\xFFa"), frame(0x30, b"\xFF\xFFa")),
        ("SUBSCRIBE without options", frame(0x82, b"\0\x01\0\x01a"), frame(0x82, b"\0\x01\0\0\x01a")),
        ("SUBSCRIBE without filters [MQTT-3.8.3-2]", frame(0x82, b"\0\x01"), frame(0x82, b"\0\x01\0")),
        ("UNSUBSCRIBE without filters [MQTT-3.10.3-2]", frame(0xA2, b"\0\x01"), frame(0xA2, b"\0\x01\0")),
        ("PUBACK without identifier", frame(0x40, &[]), frame(0x40, &[])),
        ("PUBREL, half an identifier", frame(0x62, &[1]), frame(0x62, &[1])),
        ("PINGREQ with a body", frame(0xC0, &[0]), frame(0xC0, &[0])),
        ("properties longer than the packet", publish(0x30, b"", &[]), publish(0x30, b"a", &[0x7F, 1])),
        ("PUBACK with more than it has", frame(0x40, &[0, 1, 0, 0, 9]), frame(0x40, &[0, 1, 0, 0, 9])),
    ] {
        street.refuses_v3(what, &v3);
        street.refuses_v5(what, &v5, &[0x81, 0x82, 0x90]);
    }
}

/// 2.1.3, 3.3.1, 2.2.1: reserved flags, QoS 3, DUP at QoS 0, identifier 0.
#[test]
fn mqtt_2_1_3_1_reserved_flags_and_identifier_0_are_refused() {
    let _turn = turn();
    let mut street = Street::new();
    for (what, v3, v5) in [
        ("QoS 3 [MQTT-3.3.1-4]", publish(0x36, b"a", &[0, 1]), publish(0x36, b"a", &[0, 1, 0])),
        ("DUP at QoS 0 [MQTT-3.3.1-2]", publish(0x38, b"a", &[]), publish(0x38, b"a", &[0])),
        ("identifier 0 [MQTT-2.2.1-3]", publish(0x32, b"a", &[0, 0]), publish(0x32, b"a", &[0, 0, 0])),
        (
            "SUBSCRIBE flags 0 [MQTT-3.8.1-1]",
            frame(0x80, b"\0\x01\0\x01a\x01"),
            frame(0x80, b"\0\x01\0\0\x01a\x01"),
        ),
        ("SUBSCRIBE identifier 0", frame(0x82, b"\0\0\0\x01a\x01"), frame(0x82, b"\0\0\0\0\x01a\x01")),
        ("SUBSCRIBE QoS 3 (3.8.3.1)", frame(0x82, b"\0\x01\0\x01a\x03"), frame(0x82, b"\0\x01\0\0\x01a\x03")),
        (
            "SUBSCRIBE reserved bits [MQTT-3.8.3-5]",
            frame(0x82, b"\0\x01\0\x01a\xC1"),
            frame(0x82, b"\0\x01\0\0\x01a\xC1"),
        ),
        ("UNSUBSCRIBE flags [MQTT-3.10.1-1]", frame(0xA0, b"\0\x01\0\x01a"), frame(0xA0, b"\0\x01\0\0\x01a")),
        ("PUBREL flags 0 [MQTT-3.6.1-1]", frame(0x60, &[0, 1]), frame(0x60, &[0, 1])),
        ("PUBACK flags", frame(0x41, &[0, 1]), frame(0x41, &[0, 1])),
        ("PINGREQ flags", frame(0xC1, &[]), frame(0xC1, &[])),
        ("DISCONNECT flags [MQTT-3.14.1-1]", frame(0xE1, &[]), frame(0xE1, &[])),
    ] {
        street.refuses_v3(what, &v3);
        street.refuses_v5(what, &v5, &[0x81, 0x82]);
    }
}

/// Filters that are none, `$share` among them (Moquette 957 to 959): one bad filter stops nothing.
#[test]
fn mqtt_4_7_1_bad_filters_are_refused() {
    let _turn = turn();
    let mut street = Street::new();
    for filter in [
        "",
        "a#",
        "#/a",
        "a/#/b",
        "a+",
        "+a/b",
        "a/b+",
        "$share",
        "$share/",
        "$share/g",
        "$share/g/",
        "$share//a",
        "$share/g+/a",
        "$share/#/a",
    ] {
        let mut client = street.broker.v5("bad-filter");
        client.say(&subscribe(Version::V5, filter.as_bytes(), &[1]));
        match client.next(PATIENCE) {
            Ok(Some(Packet::Suback { codes, .. })) => assert_eq!(codes, [0x8F], "{filter:?}"),
            Ok(Some(Packet::Disconnect { code, .. })) => {
                assert!([0x81, 0x82, 0x8F].contains(&code), "{filter:?}: {code:#04x}");
            }
            other => panic!("{filter:?}: {other:?}"),
        }
        street.goes_on(filter);
    }
    // 4.8.2: No Local on a shared subscription [MQTT-3.8.3-4].
    street.refuses_v5("No Local on $share", &subscribe(Version::V5, b"$share/g/a", &[0x05]), &[0x82]);
    street.refuses_v5("retain handling 3", &subscribe(Version::V5, b"a", &[0x31]), &[0x81, 0x82]);
    let zero = frame(0x82, b"\0\x01\x02\x0B\0\0\x01a\x01");
    street.refuses_v5("subscription identifier 0", &zero, &[0x82]);
}

/// Topic aliases that are none (3.3.2.3.4), and a subscription identifier from a client [MQTT-3.3.4-6].
#[test]
fn mqtt_3_3_2_3_4_bad_aliases_are_refused() {
    let _turn = turn();
    let mut street = Street::new();
    let most = street.neighbour.props.number(prop::TOPIC_ALIAS_MAXIMUM).unwrap_or(0);
    let alias = |topic: &str, alias: u16| {
        Publish::new(topic, "x", 0).prop(prop::TOPIC_ALIAS, Value::Two(alias)).encode(Version::V5)
    };
    street.refuses_v5("alias 0 [MQTT-3.3.2-8]", &alias("a", 0), &[0x94, 0x82]);
    street.refuses_v5("alias above the maximum [MQTT-3.3.2-9]", &alias("a", most as u16 + 1), &[0x94]);
    street.refuses_v5("an alias that was not set", &alias("", 1), &[0x82, 0x94]);
    let id = Publish::new("a", "x", 0).prop(prop::SUBSCRIPTION_ID, Value::Var(1)).encode(Version::V5);
    street.refuses_v5("subscription identifier", &id, &[0x82, 0x81]);
    let format = Publish::new("a", "x", 0).prop(prop::PAYLOAD_FORMAT, Value::Byte(2)).encode(Version::V5);
    street.refuses_v5("payload format 2", &format, &[0x81, 0x82]);
    let response = Publish::new("a", "x", 0).prop(prop::RESPONSE_TOPIC, Value::Text("a/+".into()));
    street.refuses_v5(
        "response topic with + [MQTT-3.3.2-14]",
        &response.encode(Version::V5),
        &[0x81, 0x82, 0x90],
    );
}

/// 3.1.2.11.4 and its counterpart: a packet larger than the server takes ends the connection with 0x95, and nobody
/// waits for all of its bytes.
#[test]
fn a_packet_above_the_maximum_is_refused_by_its_length() {
    let _turn = turn();
    let mut street = Street::new();
    let most =
        street.neighbour.props.number(prop::MAXIMUM_PACKET).expect("CONNACK names a maximum packet size");
    let bytes = [&[0x30][..], &varint(most + 1), b"\0\x01a\0"].concat();
    street.refuses_v5("one byte more than the maximum", &bytes, &[0x95]);
    street.refuses_v3("one byte more than the maximum", &bytes);
}

/// Reason codes that are none, or not of that packet.
#[test]
fn reason_codes_that_are_none_are_refused() {
    let _turn = turn();
    let mut street = Street::new();
    street.refuses_v5("PUBACK 0x55", &ack_with(4, 1, 0x55), &[0x81, 0x82]);
    street.refuses_v5("PUBREL 0x10", &ack_with(6, 1, 0x10), &[0x81, 0x82]);
    street.refuses_v5("DISCONNECT 0x01", &frame(0xE0, &[0x01]), &[0x81, 0x82]);
    // 3.14.2.2.2: an expiry that was 0 in CONNECT cannot be raised.
    let raise = [&[0][..], &Props::default().with(prop::SESSION_EXPIRY, Value::Four(9)).encode()].concat();
    street.refuses_v5("DISCONNECT with a new session expiry", &frame(0xE0, &raise), &[0x82]);
}

/// Every packet cut at every byte, and the connection closed there; then with each byte changed.
#[test]
fn cut_and_changed_packets_hurt_nobody() {
    let _turn = turn();
    let mut street = Street::new();
    let mut rng = crate::support::seed("cut_and_changed_packets");
    for version in [Version::V3, Version::V5] {
        let message = Publish::new("bad/topic", "payload", 2).id(1);
        let packets = [
            Connect::new(version, "cut").will(Will::new("w", "x", 1)).user("u").encode(),
            message.encode(version),
            subscribe(version, b"a/+/#", &[1]),
            frame(
                0xA2,
                &[&[0, 1][..], if version == Version::V5 { &[0] } else { &[] }, &string("a")].concat(),
            ),
        ];
        for (place, packet) in packets.iter().enumerate() {
            let open = || {
                let mut client = Client::silent(street.broker.port(), version).expect("a connection");
                if place > 0 {
                    client.say(&Connect::new(version, &format!("cut-{place}")).encode());
                }
                client
            };
            for cut in 0..packet.len() {
                let mut client = open();
                let _ = client.send(&packet[..cut]);
                client.cut();
            }
            for at in 0..packet.len() {
                let mut changed = packet.clone();
                changed[at] ^= rng.u8(1..);
                let mut client = open();
                let _ = client.send(&changed);
                client.cut();
            }
        }
        street.goes_on("cut and changed packets");
    }
}
