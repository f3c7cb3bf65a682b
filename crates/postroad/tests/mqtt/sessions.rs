//! Sessions: kept or not, for how long, and who has them. [MQTT-3.1.2-4] to [MQTT-3.1.2-6], 3.1.2.11.2, 4.1.

use std::time::Duration;

use crate::broker::Broker;
use crate::client::{Connect, FOREVER};
use crate::support::{eventually, turn};
use crate::wire::{Props, Publish, Value, Version, prop};

const BOTH: [Version; 2] = [Version::V3, Version::V5];

/// [MQTT-3.2.2-2], [MQTT-3.2.2-3]: Session Present says what is there.
#[test]
fn mqtt_3_2_2_2_session_present_tells_the_truth() {
    let _turn = turn();
    let mut broker = Broker::start();
    for version in BOTH {
        let id = format!("present-{version:?}");
        let durable = Connect::durable(version, &id);
        let first = durable.open(broker.port());
        assert!(!first.present, "there was none");
        first.disconnect();
        let second = durable.open(broker.port());
        assert!(second.present, "disconnected in good order");
        second.cut();
        assert!(durable.open(broker.port()).present, "cut");
        broker.bounce9();
        assert!(durable.open(broker.port()).present, "after a kill");
        broker.stop_and_start();
        assert!(durable.open(broker.port()).present, "after a stop");
        let clean = Connect::new(version, &id).open(broker.port());
        assert!(!clean.present, "[MQTT-3.1.2-4]: Clean Start begins a new one");
        clean.disconnect();
        assert!(!durable.open(broker.port()).present, "the old one is gone, and the clean one was not kept");
    }
}

/// [MQTT-3.1.2-4]: Clean Start takes subscriptions and messages away, for good.
#[test]
fn mqtt_3_1_2_4_clean_start_forgets_everything() {
    let _turn = turn();
    let mut broker = Broker::start();
    for version in BOTH {
        let (id, topic) = (format!("clean-{version:?}"), format!("clean/{version:?}"));
        let durable = Connect::durable(version, &id);
        let mut client = durable.open(broker.port());
        client.subscribe(&topic, 2);
        client.disconnect();
        broker.v3("pub").publish(&topic, "old", 2);
        Connect::new(version, &id).open(broker.port()).disconnect();
        broker.bounce9();
        let mut client = durable.open(broker.port());
        assert!(!client.present);
        broker.v3("pub").publish(&topic, "new", 2);
        client.quiet();
    }
}

/// [MQTT-3.1.2-23], 3.14.2.2.2: a session ends when its expiry has passed, counted from the end of the connection;
/// DISCONNECT may set another.
#[test]
fn mqtt_3_1_2_23_sessions_expire() {
    let _turn = turn();
    let broker = Broker::start();
    let make = |id: &str, expiry: u32| {
        let mut client = Connect::new(Version::V5, id).resume().expiry(expiry).open(broker.port());
        client.subscribe(&format!("expiry/{id}"), 1);
        client
    };
    let present = |id: &str| Connect::durable(Version::V5, id).open(broker.port()).present;
    make("none", 0).cut();
    make("short", 1).cut();
    make("long", 600).cut();
    make("shortened", 600).disconnect_with(0, &Props::default().with(prop::SESSION_EXPIRY, Value::Four(0)));
    make("raised", 1).disconnect_with(0, &Props::default().with(prop::SESSION_EXPIRY, Value::Four(FOREVER)));
    let connected = make("connected", 1);
    assert!(!present("shortened"));
    eventually("a session without expiry ends with its connection", || !present_and_gone(&broker, "none"));
    std::thread::sleep(Duration::from_millis(2300));
    assert!(!present("short"), "1 s has passed");
    assert!(present("long"));
    assert!(present("raised"), "DISCONNECT raised 1 s to never");
    drop(connected);
    assert!(present("connected"), "it was connected all the time");
}

/// Whether the session is there; what this look makes is taken away again.
fn present_and_gone(broker: &Broker, id: &str) -> bool {
    let client = Connect::new(Version::V5, id).resume().expiry(0).open(broker.port());
    let present = client.present;
    client.disconnect();
    present
}

/// The time that a broker is down counts.
#[test]
fn sessions_expire_while_the_broker_is_down() {
    let _turn = turn();
    let mut broker = Broker::start();
    Connect::new(Version::V5, "down").resume().expiry(1).open(broker.port()).cut();
    Connect::new(Version::V5, "down-long").resume().expiry(600).open(broker.port()).cut();
    broker.kill9();
    std::thread::sleep(Duration::from_millis(2300));
    broker.restart();
    assert!(!Connect::durable(Version::V5, "down").open(broker.port()).present);
    assert!(Connect::durable(Version::V5, "down-long").open(broker.port()).present);
}

/// [MQTT-3.1.4-3]: a second connection with the id takes over; the first is told 0x8E, and the session goes on.
#[test]
fn mqtt_3_1_4_3_a_second_connection_takes_over() {
    let _turn = turn();
    let broker = Broker::start();
    for version in BOTH {
        let (id, topic) = (format!("take-{version:?}"), format!("take/{version:?}"));
        let durable = Connect::durable(version, &id);
        let mut first = durable.open(broker.port());
        first.subscribe(&topic, 2);
        let mut publisher = broker.v3("take-pub");
        publisher.publish(&topic, "in flight", 2);
        let message = first.raw_message();
        let mut second = durable.open(broker.port());
        assert!(second.present);
        let reason = first.closed();
        assert_eq!(reason, (version == Version::V5).then_some(0x8E));
        let again = second.message();
        assert_eq!(again, message.dup(), "what was in flight is sent again");
        publisher.publish(&topic, "next", 2);
        assert_eq!(second.texts(1), ["next"]);
    }
}

/// Many connections with one id at once: one is left, and it works.
#[test]
fn mqtt_3_1_4_3_a_storm_of_takeovers_leaves_one() {
    let _turn = turn();
    let broker = Broker::start();
    let port = broker.port();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(move || {
                for _ in 0..20 {
                    let _ = Connect::durable(Version::V5, "storm").try_open(port);
                }
            });
        }
    });
    let mut last = Connect::durable(Version::V5, "storm").open(port);
    assert!(last.present);
    last.subscribe("storm", 1);
    last.publish("storm", "m", 1);
    assert_eq!(last.texts(1), ["m"]);
}

/// [MQTT-3.1.3-6], [MQTT-3.2.2-16]: an empty id gets a new one, which 5.0 is told and may come back with.
#[test]
fn mqtt_3_2_2_16_an_empty_id_is_assigned() {
    let _turn = turn();
    let broker = Broker::start();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let client = Connect::new(Version::V5, "").expiry(60).open(broker.port());
        ids.push(client.props.text(prop::ASSIGNED_ID).expect("an assigned id").to_owned());
        client.cut();
    }
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
    let again = Connect::durable(Version::V5, &ids[1]).open(broker.port());
    assert!(again.present, "the assigned id is the session's name");
    assert_eq!(again.props.text(prop::ASSIGNED_ID), None, "only where it was empty");
    let mut one = Connect::new(Version::V3, "").open(broker.port());
    let mut two = Connect::new(Version::V3, "").open(broker.port());
    one.ping();
    two.ping();
    let given = broker.v5("given");
    assert_eq!(given.props.text(prop::ASSIGNED_ID), None);
}

/// [MQTT-3.1.2-22]: one and a half times the keep alive without a word, and the connection is closed, with 0x8D.
#[test]
fn mqtt_3_1_2_22_silence_ends_a_connection() {
    let _turn = turn();
    let broker = Broker::start();
    for version in BOTH {
        let mut idle = Connect::new(version, &format!("idle-{version:?}")).keep_alive(1).open(broker.port());
        let mut busy = Connect::new(version, &format!("busy-{version:?}")).keep_alive(1).open(broker.port());
        let mut calm = Connect::new(version, &format!("calm-{version:?}")).open(broker.port());
        let begin = std::time::Instant::now();
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(300));
            busy.ping();
        }
        let reason = idle.closed_within(Duration::from_secs(4));
        assert!(begin.elapsed() >= Duration::from_millis(1300), "not before 1.5 s: {:?}", begin.elapsed());
        assert_eq!(reason, (version == Version::V5).then_some(0x8D), "{version:?}");
        calm.ping();
        assert_eq!(busy.next(Duration::from_millis(10)).expect("it stays while it speaks"), None);
    }
}

/// 3.2.2.3.14: a server that caps the keep alive says so, and keeps to what it said.
#[test]
fn mqtt_3_2_2_21_the_servers_keep_alive_is_in_force() {
    let _turn = turn();
    let broker = Broker::start();
    let client = Connect::new(Version::V5, "capped").keep_alive(u16::MAX).open(broker.port());
    if let Some(cap) = client.props.number(prop::SERVER_KEEP_ALIVE) {
        assert!(cap > 0 && cap < 65_535, "{cap}");
    }
    let kept = Connect::new(Version::V5, "uncapped").keep_alive(5).open(broker.port());
    assert!(kept.props.number(prop::SERVER_KEEP_ALIVE).is_none_or(|cap| cap <= 5));
}

/// A session's subscriptions, options and identifiers survive a kill, and an unsubscribe does as well.
#[test]
fn subscriptions_survive_a_kill_with_their_options() {
    let _turn = turn();
    let mut broker = Broker::start();
    let durable = Connect::durable(Version::V5, "options");
    let mut client = durable.open(broker.port());
    let id = Props::default().with(prop::SUBSCRIPTION_ID, Value::Var(77));
    // QoS 1, No Local, Retain As Published, no retained messages at subscribe.
    assert_eq!(client.subscribe_all(&[("options/a", 1 | 4 | 8 | 0x20)], id), [1]);
    assert_eq!(client.subscribe("options/b", 2), 2);
    assert_eq!(client.unsubscribe("options/b"), [0]);
    broker.bounce9();
    let mut client = durable.open(broker.port());
    assert!(client.present);
    client.publish("options/a", "own", 1);
    broker.v5("other").publish("options/b", "unsubscribed", 1);
    broker.v5("other").publish_this(Publish::new("options/a", "kept", 2).retained());
    let message = client.message();
    assert_eq!((message.text(), message.qos, message.retain), ("kept", 1, true));
    assert_eq!(message.props.subscription_ids(), [77]);
    client.quiet();
}

/// 4.3.1: what is queued for an absent client is QoS 1 and 2, in order, each at its own.
#[test]
fn an_absent_client_gets_its_messages_in_order() {
    let _turn = turn();
    let mut broker = Broker::start();
    for version in BOTH {
        let (id, topic) = (format!("away-{version:?}"), format!("away/{version:?}"));
        let durable = Connect::durable(version, &id);
        let mut client = durable.open(broker.port());
        client.subscribe(&topic, 2);
        client.disconnect();
        let mut publisher = broker.v5("away-pub");
        for number in 0..200 {
            publisher.publish(&topic, &number.to_string(), 1 + number % 2);
        }
        broker.bounce9();
        let mut client = durable.open(broker.port());
        for number in 0..200_u32 {
            let message = client.message();
            assert_eq!(
                (message.text(), u32::from(message.qos)),
                (number.to_string().as_str(), 1 + number % 2)
            );
            assert!(!message.dup, "it was not sent before");
        }
        client.quiet();
    }
}

/// An older client may come back to a session of a newer one, and the other way.
#[test]
fn a_session_may_change_its_version() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = Connect::durable(Version::V5, "changing").open(broker.port());
    client.subscribe("changing", 2);
    client.cut();
    let old = Publish::new("changing", "m", 2).prop(prop::USER, Value::Pair("k".into(), "v".into()));
    broker.v5("changing-pub").publish_this(old.clone());
    let mut client = Connect::durable(Version::V3, "changing").open(broker.port());
    assert!(client.present);
    assert_eq!(client.texts(1), ["m"]);
    client.cut();
    broker.v5("changing-pub").publish_this(old);
    let mut client = Connect::durable(Version::V5, "changing").open(broker.port());
    assert_eq!(client.message().props.user(), [("k", "v")]);
}
