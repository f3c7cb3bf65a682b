//! Faults of the QoS 2 exchange that were found in other brokers, each as a test: what happened there must not happen
//! here. The statements are those of 5.0; 3.1.1 has the same under other numbers.

use std::time::Duration;

use crate::broker::Broker;
use crate::client::{Client, Connect};
use crate::support::turn;
use crate::wire::{PUBACK, PUBCOMP, PUBREC, PUBREL, Packet, Publish, Value, Version, ack, prop};

const BOTH: [Version; 2] = [Version::V3, Version::V5];

fn durable(broker: &Broker, version: Version, id: &str) -> Client {
    Connect::durable(version, id).open(broker.port())
}

/// A durable subscriber that is there, and one that is a durable publisher.
fn pair(broker: &Broker, version: Version, topic: &str) -> (Client, Client) {
    let mut subscriber = durable(broker, version, &format!("{topic}-sub"));
    assert_eq!(subscriber.subscribe(topic, 2), 2);
    (subscriber, durable(broker, version, &format!("{topic}-pub")))
}

/// [MQTT-4.3.3-10], [MQTT-4.4.0-1]: PUBLISH with DUP and the same identifier, after a resume, is the message that is
/// there already; on the same connection, too; and after PUBCOMP the identifier stands for a new message.
#[test]
fn mqtt_4_3_3_10_a_replayed_publish_is_delivered_once() {
    let _turn = turn();
    let broker = Broker::start();
    for version in BOTH {
        let topic = format!("replay-{version:?}");
        let (mut subscriber, mut publisher) = pair(&broker, version, &topic);
        let message = Publish::new(&topic, "one", 2).id(7);
        publisher.say(&message.encode(version));
        assert_eq!(publisher.acked(PUBREC, 7), 0);
        for _ in 0..2 {
            publisher.cut();
            publisher = durable(&broker, version, &format!("{topic}-pub"));
            assert!(publisher.present, "{version:?}");
            publisher.say(&message.clone().dup().encode(version));
            assert_eq!(publisher.acked(PUBREC, 7), 0);
        }
        publisher.say(&ack(PUBREL, 7));
        assert_eq!(publisher.acked(PUBCOMP, 7), 0);
        assert_eq!(subscriber.texts(1), ["one"], "{version:?}");
        publisher.publish_this(Publish::new(&topic, "two", 2).id(7));
        assert_eq!(subscriber.texts(1), ["two"], "the identifier is free again, {version:?}");
    }
}

/// [MQTT-3.3.1-3]: DUP says nothing to a receiver that never saw the first try, which was cut in the middle.
#[test]
fn mqtt_3_3_1_3_a_first_publish_may_carry_dup() {
    let _turn = turn();
    let broker = Broker::start();
    for version in BOTH {
        let topic = format!("cut-{version:?}");
        let (mut subscriber, mut publisher) = pair(&broker, version, &topic);
        let message = Publish::new(&topic, "first seen", 2).id(9);
        let bytes = message.encode(version);
        publisher.say(&bytes[..bytes.len() - 3]);
        publisher.cut();
        let mut publisher = durable(&broker, version, &format!("{topic}-pub"));
        assert_eq!(publisher.publish_this(message.dup()), 0);
        assert_eq!(subscriber.texts(1), ["first seen"], "{version:?}");
    }
}

/// [MQTT-4.4.0-1]: PUBREL that is owed is sent on resume, with the old identifier, and nothing else for that message.
#[test]
fn mqtt_4_4_0_1_an_owed_pubrel_is_resent_on_resume() {
    let _turn = turn();
    let broker = Broker::start();
    for version in BOTH {
        let topic = format!("owed-{version:?}");
        let (mut subscriber, mut publisher) = pair(&broker, version, &topic);
        publisher.publish(&topic, "m", 2);
        let message = subscriber.raw_message();
        subscriber.say(&ack(PUBREC, message.id));
        subscriber.acked(PUBREL, message.id);
        for _ in 0..2 {
            subscriber.cut();
            subscriber = durable(&broker, version, &format!("{topic}-sub"));
            subscriber.acked(PUBREL, message.id);
        }
        subscriber.say(&ack(PUBCOMP, message.id));
        subscriber.quiet();
        subscriber.cut();
        let mut subscriber = durable(&broker, version, &format!("{topic}-sub"));
        let after = subscriber.poll(Duration::from_millis(200));
        assert_eq!(after, None, "it is complete, {version:?}");
    }
}

/// 4.3.3: once PUBREC was received the exchange ends with PUBREL and PUBCOMP, however old the message is.
/// [MQTT-3.3.2-5] lets a message expire only before its delivery began.
#[test]
fn mqtt_3_3_2_5_expiry_does_not_end_an_exchange_that_passed_pubrec() {
    let _turn = turn();
    let broker = Broker::start();
    let (mut subscriber, mut publisher) = pair(&broker, Version::V5, "old");
    let message = Publish::new("old", "m", 2).id(3).prop(prop::MESSAGE_EXPIRY, Value::Four(1));
    // Inbound: the publisher stops after PUBREC.
    publisher.say(&message.encode(Version::V5));
    assert_eq!(publisher.acked(PUBREC, 3), 0);
    // Outbound: the subscriber stops after its PUBREC (a broker may have waited for PUBREL before delivering).
    let early = subscriber.poll(Duration::from_millis(500));
    let received = match early {
        Some(Packet::Publish(received)) => received,
        None => {
            publisher.say(&ack(PUBREL, 3));
            subscriber.raw_message()
        }
        Some(other) => panic!("{other:?}"),
    };
    subscriber.say(&ack(PUBREC, received.id));
    subscriber.acked(PUBREL, received.id);
    subscriber.cut();
    std::thread::sleep(Duration::from_millis(1300));
    let mut subscriber = durable(&broker, Version::V5, "old-sub");
    subscriber.acked(PUBREL, received.id);
    subscriber.say(&ack(PUBCOMP, received.id));
    publisher.cut();
    let mut publisher = durable(&broker, Version::V5, "old-pub");
    publisher.say(&message.dup().encode(Version::V5));
    assert_eq!(publisher.acked(PUBREC, 3), 0);
    publisher.say(&ack(PUBREL, 3));
    assert_eq!(publisher.acked(PUBCOMP, 3), 0);
}

/// 3.7.2.1: 0x92 is for an identifier that is not known; PUBREL of a live exchange gets 0x00, on resume as well.
#[test]
fn mqtt_3_7_2_1_a_resent_pubrel_of_a_live_exchange_gets_0x00() {
    let _turn = turn();
    let broker = Broker::start();
    let (mut subscriber, mut publisher) = pair(&broker, Version::V5, "rel");
    publisher.say(&Publish::new("rel", "m", 2).id(4).encode(Version::V5));
    publisher.acked(PUBREC, 4);
    publisher.say(&ack(PUBREL, 4));
    publisher.cut();
    let mut publisher = durable(&broker, Version::V5, "rel-pub");
    publisher.say(&ack(PUBREL, 4));
    let code = publisher.acked(PUBCOMP, 4);
    // Whether the first PUBREL arrived before the cut nobody can tell; either answer ends the exchange.
    assert!([0, 0x92].contains(&code), "{code:#04x}");
    publisher.say(&Publish::new("rel", "n", 2).id(5).encode(Version::V5));
    publisher.acked(PUBREC, 5);
    publisher.cut();
    let mut publisher = durable(&broker, Version::V5, "rel-pub");
    publisher.say(&ack(PUBREL, 5));
    assert_eq!(publisher.acked(PUBCOMP, 5), 0, "this one was live");
    publisher.say(&ack(PUBREL, 99));
    assert_eq!(publisher.acked(PUBCOMP, 99), 0x92, "an identifier that was never there");
    assert_eq!(subscriber.texts(2), ["m", "n"]);
}

/// [MQTT-3.3.1-1]: what is sent again on resume carries DUP and the old identifier, in the old order [MQTT-4.6.0-1].
#[test]
fn mqtt_3_3_1_1_retransmissions_carry_dup() {
    let _turn = turn();
    let mut broker = Broker::start();
    for version in BOTH {
        let topic = format!("dup-{version:?}");
        let (mut subscriber, mut publisher) = pair(&broker, version, &topic);
        for (text, qos) in [("a", 2), ("b", 1), ("c", 2)] {
            publisher.publish(&topic, text, qos);
        }
        let first: Vec<Publish> = (0..3).map(|_| subscriber.raw_message()).collect();
        assert!(first.iter().all(|message| !message.dup), "the first try, {version:?}");
        broker.bounce9();
        let mut subscriber = durable(&broker, version, &format!("{topic}-sub"));
        for message in first {
            let again = subscriber.message();
            assert_eq!(again, message.dup(), "{version:?}");
        }
        subscriber.quiet();
    }
}

/// [MQTT-2.2.1-4]: identifiers of PUBRELs that are owed are in use; new messages get others.
#[test]
fn mqtt_2_2_1_3_new_messages_do_not_take_ids_of_owed_pubrels() {
    let _turn = turn();
    let mut broker = Broker::start();
    for version in BOTH {
        let topic = format!("ids-{version:?}");
        let (mut subscriber, mut publisher) = pair(&broker, version, &topic);
        let mut owed = Vec::new();
        for number in 0..5 {
            publisher.publish(&topic, &number.to_string(), 2);
            let id = subscriber.raw_message().id;
            subscriber.say(&ack(PUBREC, id));
            subscriber.acked(PUBREL, id);
            owed.push(id);
        }
        broker.bounce9();
        let mut subscriber = durable(&broker, version, &format!("{topic}-sub"));
        let mut publisher = durable(&broker, version, &format!("{topic}-pub"));
        for id in &owed {
            subscriber.acked(PUBREL, *id);
        }
        for number in 5..10 {
            publisher.publish(&topic, &number.to_string(), 2);
            let message = subscriber.raw_message();
            assert!(!owed.contains(&message.id), "{} is in use, {version:?}", message.id);
            subscriber.finish(&message);
        }
        for id in owed {
            subscriber.say(&ack(PUBCOMP, id));
        }
        subscriber.quiet();
    }
}

/// 4.1: a session that was read from disk takes messages before its client returns.
#[test]
fn mqtt_4_1_0_1_a_restored_session_is_routable_before_its_client_returns() {
    let _turn = turn();
    let mut broker = Broker::start();
    for version in BOTH {
        let topic = format!("routed-{version:?}");
        let (subscriber, publisher) = pair(&broker, version, &topic);
        subscriber.cut();
        publisher.cut();
        broker.bounce9();
        broker.v3("other").publish(&topic, "while away", 2);
        broker.bounce9();
        let mut subscriber = durable(&broker, version, &format!("{topic}-sub"));
        assert!(subscriber.present, "{version:?}");
        assert_eq!(subscriber.texts(1), ["while away"], "{version:?}");
    }
}

/// 3.8.4: when SUBACK is there the subscription takes everything that is published from then on, and is durable.
#[test]
fn mqtt_3_8_4_1_suback_means_that_it_routes() {
    let _turn = turn();
    let mut broker = Broker::start();
    let mut publisher = broker.v3("suback-pub");
    for round in 0..50 {
        let topic = format!("suback/{round}");
        let mut subscriber = broker.v5("suback-sub");
        assert_eq!(subscriber.subscribe(&topic, 1), 1);
        publisher.publish(&topic, "m", 1);
        assert_eq!(subscriber.message().text(), "m", "round {round}");
        subscriber.cut();
    }
    let mut subscriber = durable(&broker, Version::V5, "suback-durable");
    assert_eq!(subscriber.subscribe("suback/durable", 2), 2);
    broker.bounce9();
    broker.v3("suback-pub").publish("suback/durable", "after", 2);
    assert_eq!(durable(&broker, Version::V5, "suback-durable").texts(1), ["after"]);
}

/// [MQTT-4.4.0-1]: a queue that was drained before a kill is empty after it.
#[test]
fn mqtt_4_3_3_13_a_drained_queue_stays_drained() {
    let _turn = turn();
    let mut broker = Broker::start();
    for version in BOTH {
        let topic = format!("drained-{version:?}");
        let (subscriber, mut publisher) = pair(&broker, version, &topic);
        subscriber.cut();
        for number in 0..40 {
            publisher.publish(&topic, &number.to_string(), 1 + number % 2);
        }
        broker.bounce9();
        let mut subscriber = durable(&broker, version, &format!("{topic}-sub"));
        assert_eq!(subscriber.texts(40).len(), 40);
        // PUBACK and PUBCOMP of a client have no answer: a PING behind them shows that they were read, and a message
        // to itself that they were committed.
        assert_eq!(subscriber.subscribe(&format!("{topic}/barrier"), 1), 1);
        broker.bounce9();
        let mut subscriber = durable(&broker, version, &format!("{topic}-sub"));
        let again = subscriber.poll(Duration::from_millis(300));
        assert_eq!(again, None, "{version:?}");
    }
}

/// [MQTT-4.3.3-12]: without any subscriber the exchange runs as ever, and its identifier is free afterwards.
#[test]
fn mqtt_4_3_3_12_a_publisher_without_subscribers_leaks_no_id() {
    let _turn = turn();
    let broker = Broker::start();
    for version in BOTH {
        let topic = format!("nobody-{version:?}");
        let mut publisher = durable(&broker, version, "nobody");
        for _ in 0..300 {
            let code = publisher.publish_this(Publish::new(&topic, "m", 2).id(1));
            assert!([0, 0x10].contains(&code), "PUBREC {code:#04x}");
            publisher.say(&Publish::new(&topic, "m", 1).id(2).encode(version));
            assert!([0, 0x10].contains(&publisher.acked(PUBACK, 2)));
        }
        let mut subscriber = broker.v3("nobody-sub");
        subscriber.subscribe(&topic, 2);
        publisher.publish_this(Publish::new(&topic, "somebody", 2).id(1));
        assert_eq!(subscriber.texts(1), ["somebody"]);
    }
}
