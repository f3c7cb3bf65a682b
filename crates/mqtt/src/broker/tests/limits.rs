//! What clients that come, go and ask leave behind is bounded.

use super::rig::{Rig, id, text};
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
