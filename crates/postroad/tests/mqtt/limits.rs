//! What the two sides tell each other in CONNECT and CONNACK, and hold each other to: aliases, sizes, receive maximum.

use std::time::Duration;

use crate::broker::Broker;
use crate::client::Connect;
use crate::support::turn;
use crate::wire::{PUBACK, PUBCOMP, PUBREC, PUBREL, Packet, Publish, Value, Version, ack, ack_with, prop};

/// 3.2.2.3: CONNACK names only values that it may, and everything that Postroad can is not denied.
#[test]
fn mqtt_3_2_2_3_connack_denies_nothing_that_there_is() {
    let _turn = turn();
    let broker = Broker::start();
    let props = broker.v5("connack").props;
    for (what, id) in [
        ("maximum QoS", prop::MAXIMUM_QOS),
        ("retain", prop::RETAIN_AVAILABLE),
        ("wildcards", prop::WILDCARD_AVAILABLE),
        ("subscription identifiers", prop::IDS_AVAILABLE),
        ("shared subscriptions", prop::SHARED_AVAILABLE),
    ] {
        // QoS 2 is said by saying nothing [MQTT-3.2.2-9]: 0 and 1 are the only values.
        let value = props.number(id);
        let fine =
            if id == prop::MAXIMUM_QOS { value.is_none() } else { value.is_none_or(|value| value == 1) };
        assert!(fine, "{what}: {value:?}");
    }
    assert_ne!(props.number(prop::RECEIVE_MAXIMUM), Some(0));
    assert!(props.number(prop::MAXIMUM_PACKET).is_some_and(|most| most >= 65_536), "a maximum is named");
    assert!(props.number(prop::TOPIC_ALIAS_MAXIMUM).is_some_and(|most| most > 0), "aliases are taken");
}

/// 3.3.2.3.4, inbound: an alias stands for its topic on this connection, can be set anew, and ends with it.
#[test]
fn mqtt_3_3_2_3_4_aliases_of_publishers() {
    let _turn = turn();
    let broker = Broker::start();
    let mut subscriber = broker.v5("alias-sub");
    subscriber.subscribe("alias/#", 2);
    let connect = Connect::durable(Version::V5, "alias-pub");
    let mut publisher = connect.open(broker.port());
    let most = publisher.props.number(prop::TOPIC_ALIAS_MAXIMUM).expect("aliases are taken") as u16;
    let alias = |topic: &str, alias: u16, qos: u8| {
        Publish::new(topic, "m", qos).prop(prop::TOPIC_ALIAS, Value::Two(alias))
    };
    for (topic, number, meant) in [
        ("alias/a", 1, "alias/a"),
        ("", 1, "alias/a"),
        ("alias/b", most, "alias/b"),
        ("", 1, "alias/a"),
        ("", most, "alias/b"),
        ("alias/c", 1, "alias/c"),
        ("", 1, "alias/c"),
    ] {
        for qos in [0, 1, 2] {
            publisher.publish_this(alias(topic, number, qos));
            let message = subscriber.message();
            assert_eq!(message.topic, meant);
            assert_eq!(
                message.props.number(prop::TOPIC_ALIAS),
                None,
                "an alias of the publisher goes nowhere"
            );
        }
    }
    publisher.cut();
    let mut publisher = connect.open(broker.port());
    publisher.say(&alias("", 1, 1).id(9).encode(Version::V5));
    let code = publisher.closed();
    assert!(code.is_some_and(|code| [0x82, 0x94].contains(&code)), "{code:02x?}: [MQTT-3.3.2-7]");
}

/// [MQTT-3.3.2-11], [MQTT-3.1.2-27], outbound: the server uses aliases up to what the client allows, and none where it allows none.
#[test]
fn mqtt_3_3_2_11_aliases_of_the_server() {
    let _turn = turn();
    let broker = Broker::start();
    let two = Connect::new(Version::V5, "takes-two").prop(prop::TOPIC_ALIAS_MAXIMUM, Value::Two(2));
    let mut some = two.open(broker.port());
    let mut none = broker.v5("takes-none");
    some.subscribe("out/#", 1);
    none.subscribe("out/#", 1);
    let mut publisher = broker.v5("out-pub");
    let mut known = std::collections::HashMap::new();
    let mut shortened = 0;
    for round in 0..20 {
        let topic = format!("out/{}", [0, 1, 0, 2, 0, 3][round % 6]);
        publisher.publish(&topic, &topic, 1);
        let message = none.message();
        assert_eq!((message.topic.as_str(), message.props.number(prop::TOPIC_ALIAS)), (topic.as_str(), None));
        let message = some.message();
        let alias = message.props.number(prop::TOPIC_ALIAS);
        assert!(alias.is_none_or(|alias| (1..=2).contains(&alias)), "{alias:?}");
        if message.topic.is_empty() {
            shortened += 1;
            let alias = alias.expect("[MQTT-3.3.2-8]: no topic and no alias");
            assert_eq!(known.get(&alias).map(String::as_str), Some(message.text()), "alias {alias}");
        } else {
            assert_eq!(message.topic, message.text());
            if let Some(alias) = alias {
                known.insert(alias, message.topic.clone());
            }
        }
    }
    assert!(shortened > 0, "an alias was never used");
}

/// [MQTT-3.1.2-24], -25: a packet that is larger than the client takes is not sent to it; for the publisher, and for
/// others, all goes on as if it had been.
#[test]
fn mqtt_3_1_2_24_nothing_larger_than_the_client_takes() {
    let _turn = turn();
    let broker = Broker::start();
    let small = Connect::new(Version::V5, "small").prop(prop::MAXIMUM_PACKET, Value::Four(100));
    let mut small = small.open(broker.port());
    small.subscribe("size", 2);
    let mut large = broker.v5("large");
    large.subscribe("size", 2);
    let mut publisher = broker.v5("size-pub");
    for (length, fits) in [(10, true), (200, false), (80, true), (100_000, false), (20, true)] {
        for qos in [0, 1, 2] {
            let text = "x".repeat(length);
            assert_eq!(publisher.publish("size", &text, qos), 0);
            assert_eq!(large.message().payload.len(), length);
            if fits {
                assert_eq!(small.message().payload.len(), length);
            }
        }
    }
    small.quiet();
    // To the byte: 2 + (2 + 4) + 2 + 1 + payload at QoS 1.
    publisher.publish("size", &"y".repeat(89), 1);
    assert_eq!(small.message().payload.len(), 89, "100 bytes are not more than 100");
    publisher.publish("size", &"y".repeat(90), 1);
    small.quiet();
}

/// [MQTT-3.2.2-15]: the largest that the server takes arrives whole.
#[test]
fn mqtt_3_2_2_15_the_largest_packet_arrives() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v5("largest");
    let most = client.props.number(prop::MAXIMUM_PACKET).expect("a maximum is named").min(4 << 20);
    client.subscribe("largest", 1);
    let mut message = Publish::new("largest", "", 1);
    let head = message.clone().id(1).encode(Version::V5).len() as u32 + 3;
    message.payload = (0..most - head).map(|at| at as u8).collect();
    assert!(client.publish_this(message.clone()) < 0x80);
    let got = client.message();
    assert!(got.payload == message.payload, "{} bytes came of {}", got.payload.len(), message.payload.len());
}

/// [MQTT-3.3.4-9], 4.9, outbound: no more than the client's receive maximum are open at QoS 1 and 2; QoS 0 is not held
/// up, and each PUBACK, PUBCOMP or refusing PUBREC makes room for one.
#[test]
fn mqtt_3_3_4_9_the_clients_receive_maximum_is_kept() {
    let _turn = turn();
    let broker = Broker::start();
    let connect = Connect::new(Version::V5, "few").prop(prop::RECEIVE_MAXIMUM, Value::Two(3));
    let mut client = connect.open(broker.port());
    client.subscribe("few", 2);
    client.subscribe("few-0", 0);
    let mut publisher = broker.v5("few-pub");
    for number in 0..10 {
        publisher.publish("few", &number.to_string(), 1 + number % 2);
    }
    let mut open: Vec<Publish> = (0..3).map(|_| client.raw_message()).collect();
    client.quiet();
    publisher.publish("few-0", "not held up", 0);
    assert_eq!(client.message().text(), "not held up");
    for next in 3..10_u8 {
        let message = open.remove(0);
        if message.qos == 1 {
            client.say(&ack(PUBACK, message.id));
        } else if next == 4 {
            client.say(&ack_with(PUBREC, message.id, 0x97));
        } else {
            client.say(&ack(PUBREC, message.id));
            client.acked(PUBREL, message.id);
            client.quiet();
            client.say(&ack(PUBCOMP, message.id));
        }
        let message = client.raw_message();
        assert_eq!(message.text(), next.to_string());
        open.push(message);
        client.quiet();
    }
}

/// 4.9, inbound: the quota comes back with PUBACK and PUBCOMP: many times the receive maximum can be sent in turn.
#[test]
fn mqtt_4_9_0_the_servers_receive_maximum_refills() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v5("refill");
    let most = client.props.number(prop::RECEIVE_MAXIMUM).unwrap_or(65_535).min(200) as u16;
    for round in 0..5 {
        for id in 1..=most {
            client.say(&Publish::new("refill", "m", 2).id(id).encode(Version::V5));
        }
        for id in 1..=most {
            assert!(client.acked(PUBREC, id) < 0x80, "round {round}");
            client.say(&ack(PUBREL, id));
        }
        for id in 1..=most {
            assert_eq!(client.acked(PUBCOMP, id), 0);
        }
    }
}

/// 4.9: a resumed session is held to the receive maximum of the new connection.
#[test]
fn a_resumed_session_keeps_to_the_new_receive_maximum() {
    let _turn = turn();
    let broker = Broker::start();
    let connect = Connect::durable(Version::V5, "narrower");
    let mut client = connect.open(broker.port());
    client.subscribe("narrower", 2);
    let mut publisher = broker.v5("narrower-pub");
    for number in 0..6 {
        publisher.publish("narrower", &number.to_string(), 2);
    }
    for _ in 0..6 {
        client.raw_message();
    }
    client.cut();
    let mut client = connect.prop(prop::RECEIVE_MAXIMUM, Value::Two(2)).open(broker.port());
    for number in 0..6 {
        let mut waiting = 0;
        while let Some(packet) = client.poll(Duration::from_millis(100)) {
            assert!(matches!(packet, Packet::Publish(_)), "{packet:?}");
            waiting += 1;
            assert!(waiting <= 2, "at most 2 at once");
            if let Packet::Publish(message) = packet {
                assert!(message.dup);
                client.say(&ack(PUBREC, message.id));
                client.acked(PUBREL, message.id);
                client.say(&ack(PUBCOMP, message.id));
                waiting -= 1;
            }
        }
        if number > 0 {
            break;
        }
    }
}
