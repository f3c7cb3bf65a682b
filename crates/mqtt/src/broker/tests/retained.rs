//! Retained messages.

use super::rig::{Rig, id, publishes, text};
use crate::broker::BrokerConfig;
use crate::codec::{Packet, Publish, Qos, Subscribe, Subscription};
use postroad_journal::storage::CrashMode;
use std::time::Duration;

fn retain(rig: &mut Rig, conn: crate::broker::ConnId, topic: &str, payload: &str) {
    let mut publish = Publish::new(text(topic), payload.to_owned());
    publish.retain = true;
    rig.send(conn, &Packet::Publish(publish));
}

#[test]
fn a_retained_message_of_qos_0_is_there_at_once_and_stored_soon() {
    let mut rig = Rig::new();
    let publisher = rig.clean("p");
    retain(&mut rig, publisher, "a", "one");
    assert!(rig.broker.pending().is_some(), "somebody must ask for the commit");
    let early = rig.clean("early");
    rig.subscribe(early, "a", Qos::AtMostOnce);
    assert_eq!(publishes(&rig.settle(early)), [("one".into(), 0, 0, false)]);
    rig.crash(CrashMode::DropUnsynced);
    let late = rig.clean("late");
    rig.subscribe(late, "#", Qos::AtMostOnce);
    assert_eq!(publishes(&rig.settle(late)), [("one".into(), 0, 0, false)]);
    let publisher = rig.clean("p");
    retain(&mut rig, publisher, "a", "");
    rig.commit();
    rig.crash(CrashMode::DropUnsynced);
    let late = rig.clean("late");
    rig.subscribe(late, "#", Qos::AtMostOnce);
    assert_eq!(publishes(&rig.settle(late)), []);
}

#[test]
fn a_retained_message_that_is_not_promised_yet_is_not_shown() {
    let mut rig = Rig::new();
    let publisher = rig.clean("p");
    let reader = rig.clean("r");
    let mut kept = Publish::new(text("kept"), "kept".to_owned());
    (kept.retain, kept.qos, kept.packet_id) = (true, Qos::AtLeastOnce, Some(id(1)));
    rig.send(publisher, &Packet::Publish(kept));
    let filters = vec![Subscription::new(text("kept"), Qos::AtLeastOnce)];
    rig.send(reader, &Packet::Subscribe(Subscribe { packet_id: id(9), filters, properties: None }));
    assert_eq!(publishes(&rig.receive(reader)), []);
    assert_eq!(publishes(&rig.settle(reader)), [("kept".into(), 1, 1, false)]);
}

/// A snapshot lets the segment of a retained message go once its copy is committed. A subscription in between must
/// name the copy.
#[test]
fn a_subscriber_that_comes_while_messages_move_keeps_what_it_was_given() {
    for filled in 0..40 {
        let config = BrokerConfig { sys_interval: Duration::ZERO, ..BrokerConfig::default() };
        let mut rig = Rig::with(config, 900);
        let (conn, _) = rig.durable("s");
        let publisher = rig.clean("p");
        let mut kept = Publish::new(text("kept"), "kept".to_owned());
        (kept.retain, kept.qos, kept.packet_id) = (true, Qos::ExactlyOnce, Some(id(1)));
        rig.send(publisher, &Packet::Publish(kept));
        rig.commit();
        let (holder, _) = rig.durable("holder");
        rig.subscribe(holder, "other", Qos::AtLeastOnce);
        for _ in 0..filled {
            rig.publish(publisher, "other", &"x".repeat(300), Qos::AtLeastOnce, 2);
            rig.commit();
        }
        // Sometimes this begins a snapshot.
        let filters = vec![Subscription::new(text("kept"), Qos::ExactlyOnce)];
        rig.send(conn, &Packet::Subscribe(Subscribe { packet_id: id(9), filters, properties: None }));
        assert_eq!(publishes(&rig.settle(conn)).len(), 1);
        rig.crash(CrashMode::DropUnsynced);
        let (conn, _) = rig.durable("s");
        assert_eq!(publishes(&rig.settle(conn)).len(), 1, "after {filled} messages");
    }
}
