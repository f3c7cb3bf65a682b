//! SIGTERM: clients are told, and their wills are not forgotten: [MQTT-3.1.2-8] has no exception for it, only time
//! ("the server may defer publication of will messages until a subsequent restart", 3.1.2.5).

use std::time::{Duration, Instant};

use crate::broker::Broker;
use crate::client::{Client, Connect, Will};
use crate::support::{PATIENCE, turn};
use crate::wire::{Packet, Version};

fn durable(broker: &Broker, version: Version, id: &str) -> Client {
    Connect::durable(version, id).open(broker.port())
}

/// 3.14.2.1: 0x8B to clients of 5.0, a closed connection to others; sessions are kept.
#[test]
fn clients_are_told() {
    let _turn = turn();
    let mut broker = Broker::start();
    let (mut new, mut old) = (durable(&broker, Version::V5, "new"), durable(&broker, Version::V3, "old"));
    broker.stop_and_start();
    assert_eq!((new.closed(), old.closed()), (Some(0x8B), None));
    assert!(durable(&broker, Version::V5, "new").present && durable(&broker, Version::V3, "old").present);
}

/// A will without a delay is published at the stop: once, for those who are away, retained if it is to be, whatever
/// its session is.
#[test]
fn mqtt_3_1_2_8_a_stop_publishes_wills() {
    let _turn = turn();
    let mut broker = Broker::start();
    let mut watcher = durable(&broker, Version::V5, "watcher");
    assert_eq!(watcher.subscribe("stop/#", 2), 2);
    let mut mortals = Vec::new();
    let mut wanted = Vec::new();
    for version in [Version::V3, Version::V5] {
        for (kind, connect) in [
            ("durable", Connect::durable(version, &format!("d-{version:?}"))),
            ("clean", Connect::new(version, &format!("c-{version:?}"))),
        ] {
            let text = format!("{kind} {version:?}");
            let will = Will::new(&format!("stop/{kind}/{version:?}"), &text, 2).retained();
            mortals.push(connect.will(will).open(broker.port()));
            wanted.push(text);
        }
    }
    // Its session ends with its connection, and so its delay is none.
    let will = Will::new("stop/short", "short", 1).delay(1000);
    mortals.push(Connect::new(Version::V5, "short").will(will).open(broker.port()));
    wanted.push("short".into());
    broker.stop_and_start();
    for _ in 0..2 {
        let mut watcher = durable(&broker, Version::V5, "watcher");
        assert!(watcher.present);
        let mut got = watcher.texts(wanted.len());
        got.sort();
        wanted.sort();
        assert_eq!(got, wanted);
        // Once: another stop has nothing more.
        wanted.clear();
        watcher.disconnect();
        broker.stop_and_start();
    }
    let mut late = broker.v5("late");
    late.subscribe("stop/#", 1);
    assert_eq!(late.texts(4).len(), 4, "[MQTT-3.1.2-15]: retained");
}

/// At QoS 0, too: those who are connected get it before they are told to go.
#[test]
fn wills_of_a_stop_reach_those_who_are_there() {
    let _turn = turn();
    let mut broker = Broker::start();
    let mut watcher = broker.v5("there");
    watcher.subscribe("stop/now", 0);
    let _mortal = Connect::new(Version::V5, "m").will(Will::new("stop/now", "gone", 0)).open(broker.port());
    broker.stop_and_start();
    match watcher.next(PATIENCE) {
        Ok(Some(Packet::Publish(message))) => assert_eq!(message.text(), "gone"),
        other => panic!("{other:?}"),
    }
    assert_eq!(watcher.closed(), Some(0x8B));
}

/// [MQTT-3.1.3-9]: a delay goes on over the stop; who comes back before its end has no will published.
#[test]
fn mqtt_3_1_3_9_a_will_delay_goes_on_over_a_stop() {
    let _turn = turn();
    let mut broker = Broker::start();
    let mut watcher = durable(&broker, Version::V5, "watcher");
    watcher.subscribe("stop/delay", 1);
    let mortal = |broker: &Broker, id: &str, delay: u32| {
        let will = Will::new("stop/delay", id, 1).delay(delay);
        Connect::durable(Version::V5, id).will(will).open(broker.port())
    };
    let _returns = mortal(&broker, "returns", 4);
    let _stays_away = mortal(&broker, "stays away", 4);
    let begin = Instant::now();
    broker.stop_and_start();
    let mut back = durable(&broker, Version::V5, "returns");
    assert!(back.present, "a restart of the server is not its client's end");
    let mut watcher = durable(&broker, Version::V5, "watcher");
    assert_eq!(watcher.message().text(), "stays away");
    assert!(begin.elapsed() >= Duration::from_secs(4), "{:?}", begin.elapsed());
    watcher.quiet_for(Duration::from_millis(500));
    back.ping();
}

/// [MQTT-3.1.2-10]: a will that DISCONNECT took away stays away.
#[test]
fn a_stop_publishes_no_wills_of_those_who_left() {
    let _turn = turn();
    let mut broker = Broker::start();
    let mut watcher = durable(&broker, Version::V5, "watcher");
    watcher.subscribe("stop/left", 1);
    let will = Will::new("stop/left", "left", 1);
    Connect::durable(Version::V5, "polite").will(will).open(broker.port()).disconnect();
    broker.stop_and_start();
    durable(&broker, Version::V5, "watcher").quiet();
}
