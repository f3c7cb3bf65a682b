//! Wills: 3.1.2.5, 3.1.3.2.2, 3.14.

use std::time::{Duration, Instant};

use crate::broker::Broker;
use crate::client::{Client, Connect, FOREVER, Will};
use crate::support::turn;
use crate::wire::{Props, Value, Version, prop};

const BOTH: [Version; 2] = [Version::V3, Version::V5];

fn watcher(broker: &Broker, topic: &str) -> Client {
    let mut client = broker.v5(&format!("watch-{}", topic.replace('/', "-")));
    assert_eq!(client.subscribe(topic, 2), 2);
    client
}

/// [MQTT-3.1.2-8]: a connection that ends without DISCONNECT has its will published, at each QoS, retained or not.
#[test]
fn mqtt_3_1_2_8_a_cut_publishes_the_will() {
    let _turn = turn();
    let broker = Broker::start();
    for version in BOTH {
        for qos in [0, 1, 2] {
            let topic = format!("will/cut/{version:?}/{qos}");
            let mut watcher = watcher(&broker, &topic);
            let will = Will::new(&topic, "gone", qos).retained();
            Connect::new(version, "mortal").will(will).open(broker.port()).cut();
            let message = watcher.message();
            assert_eq!((message.text(), message.qos, message.retain), ("gone", qos, false));
            watcher.quiet();
            let mut late = broker.v5("late");
            late.subscribe(&topic, 2);
            assert!(late.message().retain, "[MQTT-3.1.2-15]: the will is retained");
        }
    }
}

/// [MQTT-3.1.2-10], [MQTT-3.14.4-3]: DISCONNECT 0x00 takes the will away; 0x04 asks for it.
#[test]
fn mqtt_3_14_4_3_disconnect_takes_the_will_away() {
    let _turn = turn();
    let broker = Broker::start();
    let mut watcher = watcher(&broker, "will/disconnect");
    let will = Will::new("will/disconnect", "gone", 1);
    for version in BOTH {
        Connect::new(version, "polite").will(will.clone()).open(broker.port()).disconnect();
    }
    watcher.quiet();
    let v5 = Connect::new(Version::V5, "asking").will(will);
    v5.open(broker.port()).disconnect_with(0x04, &Props::default());
    assert_eq!(watcher.texts(1), ["gone"]);
    // 3.14.2.1: other codes are no normal end either.
    v5.open(broker.port()).disconnect_with(0x80, &Props::default());
    assert_eq!(watcher.texts(1), ["gone"]);
}

/// 3.1.2.5: a protocol error and a keep alive that runs out are no normal ends.
#[test]
fn mqtt_3_1_2_8_faults_publish_the_will() {
    let _turn = turn();
    let broker = Broker::start();
    let mut watcher = watcher(&broker, "will/fault");
    for version in BOTH {
        let connect = Connect::new(version, "faulty").will(Will::new("will/fault", "fault", 1));
        let mut client = connect.clone().open(broker.port());
        client.say(&[0x36, 4, 0, 1, b'a', 0]);
        client.closed();
        assert_eq!(watcher.texts(1), ["fault"], "{version:?}: a malformed packet");
        let mut client = connect.keep_alive(1).open(broker.port());
        client.closed();
        assert_eq!(watcher.texts(1), ["fault"], "{version:?}: silence");
    }
}

/// [MQTT-3.1.3-9]: a will waits for its delay, and is never sent if its client comes back before.
#[test]
fn mqtt_3_1_3_9_a_will_waits_for_its_delay() {
    let _turn = turn();
    let broker = Broker::start();
    let mut watcher = watcher(&broker, "will/delay");
    let mortal = |id: &str| {
        let will = Will::new("will/delay", id, 1).delay(2);
        Connect::durable(Version::V5, id).will(will).open(broker.port())
    };
    mortal("stays-away").cut();
    mortal("returns").cut();
    let begin = Instant::now();
    std::thread::sleep(Duration::from_millis(500));
    let back = Connect::durable(Version::V5, "returns").open(broker.port());
    assert!(back.present);
    assert_eq!(watcher.message().text(), "stays-away");
    let took = begin.elapsed();
    assert!((Duration::from_millis(1500)..Duration::from_secs(4)).contains(&took), "{took:?}");
    watcher.quiet_for(Duration::from_millis(500));
}

/// 3.1.3.2.2, CVE-2019-11778: a session that ends before the delay has its will sent at its end.
#[test]
fn mqtt_3_1_3_2_2_a_will_is_sent_when_its_session_ends_first() {
    let _turn = turn();
    let broker = Broker::start();
    let mut watcher = watcher(&broker, "will/session");
    let mortal = |expiry: u32| {
        let will = Will::new("will/session", &expiry.to_string(), 1).delay(FOREVER - 1);
        Connect::new(Version::V5, "session").resume().expiry(expiry).will(will).open(broker.port())
    };
    let begin = Instant::now();
    mortal(0).cut();
    assert_eq!(watcher.message().text(), "0");
    assert!(begin.elapsed() < Duration::from_secs(1), "at once: the session is over");
    mortal(1).cut();
    assert_eq!(watcher.message().text(), "1");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    // [MQTT-3.1.2-4]: Clean Start ends the session, too.
    mortal(600).cut();
    watcher.quiet();
    Connect::new(Version::V5, "session").open(broker.port()).disconnect();
    assert_eq!(watcher.texts(1), ["600"]);
}

/// 3.1.4: a takeover closes the old connection without its DISCONNECT: its will is published, unless it has a delay
/// and the session goes on.
#[test]
fn mqtt_3_1_4_3_a_takeover_publishes_the_will() {
    let _turn = turn();
    let broker = Broker::start();
    let mut watcher = watcher(&broker, "will/takeover");
    for version in BOTH {
        let connect = Connect::durable(version, &format!("taken-{version:?}"));
        let first = connect.clone().will(Will::new("will/takeover", "taken", 2)).open(broker.port());
        let _second = connect.open(broker.port());
        assert_eq!(watcher.texts(1), ["taken"], "{version:?}");
        drop(first);
    }
    let connect = Connect::durable(Version::V5, "delayed");
    let _first = connect.clone().will(Will::new("will/takeover", "delayed", 2).delay(1)).open(broker.port());
    let _second = connect.open(broker.port());
    watcher.quiet_for(Duration::from_millis(1500));
}

/// A will's own expiry begins when it is published; its properties go with it.
#[test]
fn mqtt_3_1_3_2_the_will_carries_its_properties() {
    let _turn = turn();
    let broker = Broker::start();
    let mut watcher = watcher(&broker, "will/props");
    let will = Will::new("will/props", "x", 1)
        .prop(prop::PAYLOAD_FORMAT, Value::Byte(1))
        .prop(prop::MESSAGE_EXPIRY, Value::Four(50))
        .prop(prop::CONTENT_TYPE, Value::Text("t".into()))
        .prop(prop::RESPONSE_TOPIC, Value::Text("r".into()))
        .prop(prop::CORRELATION, Value::Bytes(vec![1]))
        .prop(prop::USER, Value::Pair("k".into(), "v".into()));
    Connect::new(Version::V5, "props").will(will).open(broker.port()).cut();
    let props = watcher.message().props;
    assert!((49..=50).contains(&props.number(prop::MESSAGE_EXPIRY).expect("an expiry")));
    assert_eq!(props.text(prop::CONTENT_TYPE), Some("t"));
    assert_eq!(props.text(prop::RESPONSE_TOPIC), Some("r"));
    assert_eq!(props.bytes(prop::CORRELATION), Some(&[1][..]));
    assert_eq!(props.number(prop::PAYLOAD_FORMAT), Some(1));
    assert_eq!(props.user(), [("k", "v")]);
    assert_eq!(props.number(prop::WILL_DELAY), None);
}

/// Wills of durable sessions survive the broker: a delay that runs out while it is down has run out, and clients
/// that a kill cut off are gone like any other.
#[test]
fn wills_survive_a_kill() {
    let _turn = turn();
    let mut broker = Broker::start();
    let mut watcher = Connect::durable(Version::V5, "watcher").open(broker.port());
    watcher.subscribe("will/kill/#", 2);
    let mortal = |broker: &Broker, id: &str, delay: u32| {
        let will = Will::new(&format!("will/kill/{id}"), id, 2).delay(delay);
        Connect::durable(Version::V5, id).will(will).open(broker.port())
    };
    mortal(&broker, "waiting", 1).cut();
    let connected = mortal(&broker, "connected", 1);
    let returning = mortal(&broker, "returning", 30);
    broker.bounce9();
    let _back = Connect::durable(Version::V5, "returning").open(broker.port());
    let mut watcher = Connect::durable(Version::V5, "watcher").open(broker.port());
    assert!(watcher.present);
    let mut got = [watcher.message().text().to_owned(), watcher.message().text().to_owned()];
    got.sort();
    assert_eq!(got, ["connected", "waiting"]);
    watcher.quiet_for(Duration::from_secs(1));
    drop((connected, returning));
}
