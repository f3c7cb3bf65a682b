//! What goes with a message, and what each acknowledgement says: expiry, properties, reason codes, `$SYS`.

use std::time::{Duration, Instant};

use crate::broker::Broker;
use crate::client::Connect;
use crate::support::{PATIENCE, turn};
use crate::wire::{
    PUBACK, PUBCOMP, PUBREC, PUBREL, Props, Publish, Value, Version, ack, ack_with, frame, prop,
};

/// 3.3.2.3.3: a message that waits longer than its expiry is not sent; what is sent names the time that is left; the
/// time a broker is down counts.
#[test]
fn mqtt_3_3_2_5_messages_expire() {
    let _turn = turn();
    let mut broker = Broker::start();
    let durable = Connect::durable(Version::V5, "expiry");
    let mut client = durable.open(broker.port());
    client.subscribe("expiry", 2);
    client.cut();
    let mut publisher = broker.v5("expiry-pub");
    for (text, expiry) in [("short", Some(1)), ("long", Some(100)), ("never", None), ("short", Some(2))] {
        let mut message = Publish::new("expiry", text, 2);
        if let Some(expiry) = expiry {
            message = message.prop(prop::MESSAGE_EXPIRY, Value::Four(expiry));
        }
        publisher.publish_this(message);
    }
    broker.kill9();
    std::thread::sleep(Duration::from_millis(3200));
    broker.restart();
    let mut client = durable.open(broker.port());
    let long = client.message();
    let left = long.props.number(prop::MESSAGE_EXPIRY).expect("the time that is left");
    assert_eq!(long.text(), "long");
    assert!((90..=97).contains(&left), "{left} s left of 100, 3.2 s later");
    let never = client.message();
    assert_eq!((never.text(), never.props.number(prop::MESSAGE_EXPIRY)), ("never", None));
    client.quiet();
}

/// [MQTT-3.3.2-4], -15 to -18: what the publisher said of its message reaches subscribers unchanged, 3.1.1 gets the rest.
#[test]
fn mqtt_3_3_2_15_request_response_and_user_properties_are_passed_on() {
    let _turn = turn();
    let broker = Broker::start();
    let mut subscriber = broker.v5("props-sub");
    let mut old = broker.v3("props-old");
    subscriber.subscribe("props", 2);
    old.subscribe("props", 2);
    let mut publisher = broker.v5("props-pub");
    for qos in 0..=2 {
        let message = Publish::new("props", "päyload", qos)
            .prop(prop::PAYLOAD_FORMAT, Value::Byte(1))
            .prop(prop::CONTENT_TYPE, Value::Text("application/json".into()))
            .prop(prop::RESPONSE_TOPIC, Value::Text("answers/42".into()))
            .prop(prop::CORRELATION, Value::Bytes((0..=255).collect()))
            .prop(prop::USER, Value::Pair("b".into(), "2".into()))
            .prop(prop::USER, Value::Pair("a".into(), "1".into()))
            .prop(prop::USER, Value::Pair("b".into(), String::new()));
        publisher.publish_this(message);
        let got = subscriber.message().props;
        assert_eq!(got.number(prop::PAYLOAD_FORMAT), Some(1));
        assert_eq!(got.text(prop::CONTENT_TYPE), Some("application/json"));
        assert_eq!(got.text(prop::RESPONSE_TOPIC), Some("answers/42"));
        assert_eq!(got.bytes(prop::CORRELATION), Some(&(0..=255).collect::<Vec<u8>>()[..]));
        assert_eq!(got.user(), [("b", "2"), ("a", "1"), ("b", "")]);
        assert_eq!(got.0.len(), 7, "and nothing else: {got:?}");
        assert_eq!(old.message().text(), "päyload");
    }
    let request = Publish::new("props", "", 0);
    publisher.publish_this(request);
    assert_eq!(subscriber.message().props, Props::default(), "nothing is made up");
}

/// 3.4.2.1, 3.5.2.1: nobody subscribed is 0x00 or 0x10; somebody is always 0x00.
#[test]
fn mqtt_3_4_2_1_acknowledgements_of_a_publish() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v5("codes");
    for qos in [1, 2] {
        let code = client.publish("codes/nobody", "m", qos);
        assert!([0, 0x10].contains(&code), "{code:#04x}");
    }
    client.subscribe("codes/somebody", 2);
    for qos in [1, 2] {
        assert_eq!(client.publish("codes/somebody", "m", qos), 0);
        assert_eq!(client.message().qos, qos);
    }
}

/// 3.5.2.1, 3.6.2.1, 4.3.3: identifiers that are not known, and an exchange begun twice.
#[test]
fn mqtt_3_6_2_1_unknown_identifiers_are_named() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v5("unknown");
    client.say(&ack(PUBREL, 77));
    assert_eq!(client.acked(PUBCOMP, 77), 0x92);
    client.say(&ack_with(PUBREC, 78, 0));
    assert_eq!(client.acked(PUBREL, 78), 0x92);
    // These have no answer, and end nothing.
    client.say(&ack(PUBACK, 79));
    client.say(&ack(PUBCOMP, 80));
    client.ping();
    let mut old = broker.v3("unknown-3");
    old.say(&ack(PUBREL, 77));
    old.acked(PUBCOMP, 77);
    old.say(&ack(PUBREC, 78));
    old.acked(PUBREL, 78);
    old.say(&ack(PUBCOMP, 78));
    old.ping();
}

/// [MQTT-4.4.0-2], 4.3.3: a subscriber's PUBREC with a reason of 0x80 or more, or such a PUBACK, ends the exchange; it
/// is not sent again, not even after a resume.
#[test]
fn mqtt_4_3_3_a_refusal_ends_the_exchange() {
    let _turn = turn();
    let mut broker = Broker::start();
    let durable = Connect::durable(Version::V5, "refuses");
    let mut client = durable.open(broker.port());
    client.subscribe("refuses", 2);
    let mut publisher = broker.v5("refuses-pub");
    for (qos, kind) in [(1, PUBACK), (2, PUBREC)] {
        publisher.publish("refuses", "m", qos);
        let message = client.raw_message();
        assert_eq!(message.qos, qos);
        client.say(&ack_with(kind, message.id, 0x83));
        client.quiet();
    }
    // So that both were read and stored before the kill.
    assert_eq!(client.subscribe("refuses/barrier", 1), 1);
    broker.bounce9();
    let mut client = durable.open(broker.port());
    client.quiet();
}

/// 3.1.2.11.7: without Request Problem Information there is no reason string and no user property but in PUBLISH,
/// CONNACK and DISCONNECT (the reader of these tests refuses properties that are not allowed; this one looks on).
#[test]
fn mqtt_3_1_2_29_no_problem_information_where_none_is_wanted() {
    let _turn = turn();
    let broker = Broker::start();
    let connect = Connect::new(Version::V5, "terse").prop(prop::REQUEST_PROBLEM, Value::Byte(0));
    let mut client = connect.open(broker.port());
    client.say(&ack(PUBREL, 77));
    assert_eq!(client.acked(PUBCOMP, 77), 0x92);
    client.subscribe("terse", 1);
    assert_eq!(client.publish("terse", "m", 1), 0);
    client.texts(1);
}

/// [MQTT-3.3.1-2] ff., 4.3.1: QoS 0 has no identifier; messages of any bytes and of none.
#[test]
fn payloads_are_bytes() {
    let _turn = turn();
    let broker = Broker::start();
    for version in [Version::V3, Version::V5] {
        let mut client = Connect::new(version, "bytes").open(broker.port());
        client.subscribe("bytes", 2);
        for payload in [vec![], vec![0], (0..=255).collect::<Vec<u8>>(), vec![0xFF; 70_000]] {
            for qos in 0..=2 {
                client.publish_this(Publish::new("bytes", &payload, qos));
                assert!(client.message().payload == payload, "{} bytes", payload.len());
            }
        }
    }
}

/// [MQTT-4.6.0-5], -6: messages of one publisher on one topic arrive in order, at each QoS, in whatever pieces.
#[test]
fn mqtt_4_6_0_6_order_is_kept() {
    let _turn = turn();
    let broker = Broker::start();
    for version in [Version::V3, Version::V5] {
        for qos in 0..=2_u8 {
            let mut subscriber = Connect::new(version, "order-sub").open(broker.port());
            subscriber.subscribe("order", 2);
            let mut publisher = Connect::new(version, "order-pub").open(broker.port());
            for batch in 0..10_u16 {
                let mut bytes = Vec::new();
                for number in 0..20 {
                    let text = (batch * 20 + number).to_string();
                    let id = if qos > 0 { number + 1 } else { 0 };
                    bytes.extend(Publish::new("order", text, qos).id(id).encode(version));
                }
                for piece in bytes.chunks(7 + usize::from(batch) * 13) {
                    publisher.say(piece);
                }
                for id in 1..=20 {
                    match qos {
                        0 => {}
                        1 => assert_eq!(publisher.acked(PUBACK, id), 0),
                        _ => {
                            assert_eq!(publisher.acked(PUBREC, id), 0);
                            publisher.say(&ack(PUBREL, id));
                        }
                    }
                }
                if qos == 2 {
                    for id in 1..=20 {
                        publisher.acked(PUBCOMP, id);
                    }
                }
            }
            for number in 0..200 {
                assert_eq!(subscriber.message().text(), number.to_string(), "QoS {qos}, {version:?}");
            }
        }
    }
}

/// `$SYS`: what every broker tells of itself.
#[test]
fn sys_topics_tell_of_the_broker() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v5("sys");
    assert!(client.subscribe("$SYS/broker/#", 0) < 0x80);
    let mut seen = std::collections::HashSet::new();
    let end = Instant::now() + PATIENCE;
    let wanted = ["$SYS/broker/version", "$SYS/broker/uptime", "$SYS/broker/clients/connected"];
    while !wanted.iter().all(|topic| seen.contains(*topic)) {
        assert!(Instant::now() < end, "only {seen:?}");
        seen.insert(client.message().topic);
    }
}

/// [MQTT-3.1.2-2]: CONNACK says before all else which versions are spoken: 0x84 in 5.0's form for what is newer.
#[test]
fn mqtt_3_1_2_2_a_version_of_the_future_is_refused() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = crate::client::Client::silent(broker.port(), Version::V5).expect("a connection");
    client.say(&frame(0x10, b"\0\x04MQTT\x09\x02\0\0\0\0\x01a"));
    match client.next(PATIENCE) {
        Ok(Some(crate::wire::Packet::Connack { code: 0x84, .. })) => {}
        other => panic!("{other:?}"),
    }
    client.closed();
}

/// MQTT 3.1, which has another name and level, is spoken as 3.1.1 is.
#[test]
fn mqtt_3_1_is_accepted() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = crate::client::Client::silent(broker.port(), Version::V3).expect("a connection");
    client.say(&frame(0x10, b"\0\x06MQIsdp\x03\x02\0\0\0\x03old"));
    match client.next(PATIENCE) {
        Ok(Some(crate::wire::Packet::Connack { code: 0, present: false, .. })) => {}
        other => panic!("{other:?}"),
    }
    client.subscribe("old", 2);
    for qos in 0..=2 {
        client.publish("old", "m", qos);
        assert_eq!(client.message().qos, qos);
    }
}
