//! Retained messages: 3.3.1.3, and what subscriptions ask of them: 3.8.3.1.

use std::time::Duration;

use crate::broker::Broker;
use crate::client::{Client, Connect};
use crate::support::turn;
use crate::wire::{Publish, Value, Version, prop};

const NO_LOCAL: u8 = 4;
const AS_PUBLISHED: u8 = 8;
const IF_NEW: u8 = 0x10;
const NEVER: u8 = 0x20;

fn retain(client: &mut Client, topic: &str, payload: &str, qos: u8) {
    client.publish_this(Publish::new(topic, payload, qos).retained());
}

/// [MQTT-3.3.1-5] to [MQTT-3.3.1-8]: the last one is kept, an empty one takes it away, and neither does one without
/// RETAIN; all through a kill.
#[test]
fn mqtt_3_3_1_5_the_last_retained_message_is_kept() {
    let _turn = turn();
    let mut broker = Broker::start();
    let mut client = broker.v5("retain");
    for (number, qos) in [0, 1, 2].into_iter().enumerate() {
        retain(&mut client, &format!("r/{number}"), "old", qos);
        retain(&mut client, &format!("r/{number}"), "new", qos);
    }
    retain(&mut client, "r/gone", "x", 2);
    retain(&mut client, "r/gone", "", 2);
    client.publish("r/1", "not retained", 1);
    // QoS 0 has no answer: what follows on the same connection is behind it.
    client.ping();
    for round in 0..2 {
        for version in [Version::V3, Version::V5] {
            let mut subscriber = Connect::new(version, "retain-sub").open(broker.port());
            subscriber.subscribe("r/+", 2);
            let mut got: Vec<_> = Vec::new();
            // What is retained at QoS 0 need not survive a kill.
            let wanted: &[u8] = if round == 0 { &[0, 1, 2] } else { &[1, 2] };
            while got.len() < wanted.len() {
                let message = subscriber.message();
                assert!(message.retain, "[MQTT-3.3.1-8]");
                assert_eq!(message.text(), "new");
                if round == 0 || message.qos > 0 {
                    got.push(message.qos);
                }
            }
            got.sort_unstable();
            assert_eq!(got, wanted);
            subscriber.quiet();
            subscriber.disconnect();
        }
        if round == 0 {
            broker.bounce9();
        }
    }
}

/// [MQTT-3.3.1-9], [MQTT-3.3.1-12], [MQTT-3.3.1-13]: RETAIN on live messages is 0, or as published if asked for.
#[test]
fn mqtt_3_3_1_12_retain_as_published() {
    let _turn = turn();
    let broker = Broker::start();
    let mut plain = broker.v5("plain");
    let mut kept = broker.v5("kept");
    let mut old = broker.v3("old");
    plain.subscribe("rap", 1);
    kept.subscribe("rap", 1 | AS_PUBLISHED);
    old.subscribe("rap", 1);
    let mut publisher = broker.v5("pub");
    retain(&mut publisher, "rap", "m", 1);
    publisher.publish("rap", "n", 1);
    assert_eq!((plain.message().retain, plain.message().retain), (false, false));
    assert_eq!((kept.message().retain, kept.message().retain), (true, false));
    assert_eq!((old.message().retain, old.message().retain), (false, false));
    // An empty one that clears is a message for those who are there.
    retain(&mut publisher, "rap", "", 1);
    assert_eq!(kept.message().payload, b"");
}

/// [MQTT-3.3.1-10], [MQTT-3.3.1-11], [MQTT-3.3.1-9]: retain handling 0, 1 and 2.
#[test]
fn mqtt_3_3_1_10_retain_handling() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v5("handling");
    retain(&mut client, "rh", "m", 1);
    let mut count = |options: u8| {
        client.subscribe("rh", options);
        let mut seen = 0;
        while let Some(packet) = client.poll(Duration::from_millis(150)) {
            if let crate::wire::Packet::Publish(message) = packet {
                client.finish(&message);
                seen += 1;
            }
        }
        seen
    };
    assert_eq!(count(1 | NEVER), 0, "2: never");
    assert_eq!(count(1 | IF_NEW), 0, "1: there is one already");
    assert_eq!(count(1), 1, "0: each time");
    assert_eq!(count(1), 1, "0: each time");
    client.unsubscribe("rh");
    let mut count = |options: u8| {
        client.subscribe("rh", options);
        match client.poll(Duration::from_millis(300)) {
            Some(crate::wire::Packet::Publish(message)) => {
                client.finish(&message);
                1
            }
            None => 0,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(count(1 | IF_NEW), 1, "1: it is new");
    assert_eq!(count(1 | IF_NEW), 0, "1: it is not");
}

/// [MQTT-3.8.4-4] in 3.1.1 (3.8.4-3): a subscription that is replaced sends retained messages again.
#[test]
fn mqtt_3_8_4_3_a_replaced_subscription_sends_retained_messages_again() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v3("replace");
    retain(&mut client, "replace", "m", 1);
    for qos in [0, 1, 2] {
        assert_eq!(client.subscribe("replace", qos), qos);
        let message = client.message();
        assert_eq!((message.qos, message.retain), (qos.min(1), true));
    }
    client.publish("replace", "live", 2);
    assert_eq!(client.message().qos, 2);
    client.quiet();
}

/// [MQTT-3.8.3-3]: No Local keeps a client's own messages away, not those of others.
#[test]
fn mqtt_3_8_3_3_no_local() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v5("local");
    client.subscribe("local", 2 | NO_LOCAL);
    client.publish("local", "own", 2);
    broker.v5("another").publish("local", "other", 2);
    assert_eq!(client.texts(1), ["other"]);
}

/// 4.8.2: a shared subscription gets no retained messages when it is made.
#[test]
fn retained_messages_are_not_sent_to_shared_subscriptions() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v5("shared-retained");
    retain(&mut client, "sr", "m", 1);
    assert_eq!(client.subscribe("$share/g/sr", 1), 1);
    client.quiet();
}

/// [MQTT-3.3.2-5], 3.3.2.3.3: a retained message expires, and what is sent names the time that is left.
#[test]
fn mqtt_3_3_2_6_retained_messages_expire() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v5("re");
    for (topic, expiry) in [("re/short", 1), ("re/long", 100)] {
        let message = Publish::new(topic, "m", 1).retained().prop(prop::MESSAGE_EXPIRY, Value::Four(expiry));
        client.publish_this(message);
    }
    std::thread::sleep(Duration::from_millis(2200));
    let mut subscriber = broker.v5("re-sub");
    subscriber.subscribe("re/+", 1);
    let message = subscriber.message();
    assert_eq!(message.topic, "re/long");
    let left = message.props.number(prop::MESSAGE_EXPIRY).expect("the time that is left");
    assert!((90..=98).contains(&left), "{left} s left of 100, 2.2 s later");
    subscriber.quiet();
}

/// [MQTT-3.3.2-4], -15 to -20: properties of a message are kept with it, through a kill.
#[test]
fn retained_properties_come_back_whole() {
    let _turn = turn();
    let mut broker = Broker::start();
    let full = Publish::new("full", "payload", 2)
        .retained()
        .prop(prop::PAYLOAD_FORMAT, Value::Byte(1))
        .prop(prop::CONTENT_TYPE, Value::Text("text/plain".into()))
        .prop(prop::RESPONSE_TOPIC, Value::Text("answer/here".into()))
        .prop(prop::CORRELATION, Value::Bytes(vec![0, 255, 7]))
        .prop(prop::USER, Value::Pair("a".into(), "1".into()))
        .prop(prop::USER, Value::Pair("a".into(), "2".into()));
    broker.v5("full-pub").publish_this(full.clone());
    broker.bounce9();
    let mut subscriber = broker.v5("full-sub");
    subscriber.subscribe("full", 2);
    let message = subscriber.message();
    assert_eq!(message.payload, full.payload);
    assert_eq!(message.props.number(prop::PAYLOAD_FORMAT), Some(1));
    assert_eq!(message.props.text(prop::CONTENT_TYPE), Some("text/plain"));
    assert_eq!(message.props.text(prop::RESPONSE_TOPIC), Some("answer/here"));
    assert_eq!(message.props.bytes(prop::CORRELATION), Some(&[0, 255, 7][..]));
    assert_eq!(message.props.user(), [("a", "1"), ("a", "2")], "[MQTT-3.3.2-18]: in their order");
}
