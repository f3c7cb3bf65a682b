//! What clients that come, go and ask leave behind is bounded.

use super::rig::{Rig, id, publishes, text};
use crate::broker::BrokerConfig;
use crate::codec::{Connect, Packet, Qos, ReasonCode, Subscribe, Subscription, Version};
use std::time::Duration;

fn config() -> BrokerConfig {
    BrokerConfig { sys_interval: Duration::ZERO, max_queues: 2, ..BrokerConfig::default() }
}

#[test]
fn a_client_that_comes_and_goes_leaves_no_timers() {
    let mut rig = Rig::with(config(), 64 << 20);
    let mut most = 0;
    for turn in 0..50 {
        let mut connect = Connect::new(Version::V5, text("restless"));
        connect.clean_start = false;
        connect.keep_alive = u16::MAX;
        connect.properties.session_expiry_interval = Some(86_400);
        let (conn, _) = rig.connect_with(connect);
        rig.broker.lost(conn, rig.now);
        rig.pass(100);
        most = most.max(rig.broker.timers.len());
        assert!(most <= 4, "turn {turn}: {most} timers");
    }
}

#[test]
fn work_queues_and_replays_are_bounded() {
    let mut rig = Rig::with(config(), 64 << 20);
    let client = rig.clean("client");
    for (name, expected) in [("a", 1), ("b", 1), ("a", 1), ("c", ReasonCode::QuotaExceeded as u8)] {
        let filter = text(&format!("$queue/{name}/jobs"));
        let filters = vec![Subscription::new(filter, Qos::AtLeastOnce)];
        rig.send(client, &Packet::Subscribe(Subscribe { packet_id: id(1), filters, properties: None }));
        let packets = rig.settle(client);
        let Some(Packet::Suback(suback)) = packets.first() else { panic!("{packets:?}") };
        let expected = if expected == 1 { ReasonCode::GrantedQos1 } else { ReasonCode::UnspecifiedError };
        // A client before 5.0 gets 0x80 for every failure.
        assert_eq!(suback.reasons, [expected], "{name}");
    }
}

#[test]
fn qos_0_to_a_client_that_does_not_read_is_bounded_and_a_burst_fits() {
    let config = BrokerConfig { max_output: 1000, sys_interval: Duration::ZERO, ..BrokerConfig::default() };
    let mut rig = Rig::with(config, 64 << 20);
    let reader = rig.clean("r");
    rig.subscribe(reader, "a", Qos::AtMostOnce);
    let publisher = rig.clean("p");
    for n in 0..100 {
        rig.publish(publisher, "a", &format!("{n:0100}"), Qos::AtMostOnce, 0);
    }
    let got = publishes(&rig.receive(reader));
    assert_eq!(got.len(), 39, "4000 bytes of 105 each, and the one that goes beyond");
    assert_eq!(rig.broker.counters().dropped, 61);
    rig.publish(publisher, "a", "later", Qos::AtMostOnce, 0);
    assert_eq!(publishes(&rig.receive(reader)).len(), 1);
}
