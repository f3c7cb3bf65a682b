//! What must be recorded before something is sent, and what a crash must not make of what was sent.

use super::rig::{Rig, id, puback, publishes, pubrec, text};
use crate::broker::ConnId;
use crate::codec::{Connect, Packet, Publish, Qos, Subscribe, Subscription, Version};
use postroad_journal::storage::CrashMode;
use std::num::NonZeroU16;

fn with_window(rig: &mut Rig, client: &str, window: u16) -> ConnId {
    let mut connect = Connect::new(Version::V5, text(client));
    connect.clean_start = false;
    connect.properties.session_expiry_interval = Some(u32::MAX);
    connect.properties.receive_maximum = NonZeroU16::new(window);
    rig.connect_with(connect).0
}

#[test]
fn a_retained_message_waits_for_the_record_of_its_id() {
    let mut rig = Rig::new();
    let publisher = rig.clean("p");
    let mut publish = Publish::new(text("r"), "kept".to_owned());
    (publish.qos, publish.packet_id, publish.retain) = (Qos::ExactlyOnce, Some(id(1)), true);
    rig.send(publisher, &Packet::Publish(publish));
    assert_eq!(rig.settle(publisher), [pubrec(1)]);
    let (subscriber, _) = rig.durable("s");
    let filters = vec![Subscription::new(text("r"), Qos::ExactlyOnce)];
    rig.send(subscriber, &Packet::Subscribe(Subscribe { packet_id: id(9), filters, properties: None }));
    // Whatever makes the queue move: after a crash another message would get the id.
    assert_eq!(rig.receive(subscriber), []);
    assert_eq!(rig.receive(subscriber), []);
    assert_eq!(publishes(&rig.settle(subscriber)), [("kept".into(), 2, 1, false)]);
}

#[test]
fn what_was_sent_says_so_after_the_client_left_and_the_broker_crashed() {
    let mut rig = Rig::new();
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::ExactlyOnce);
    let publisher = rig.clean("p");
    rig.publish(publisher, "a", "one", Qos::ExactlyOnce, 1);
    rig.commit();
    assert_eq!(publishes(&rig.receive(subscriber)), [("one".into(), 2, 1, false)]);
    rig.broker.lost(subscriber, rig.now);
    rig.publish(publisher, "a", "two", Qos::ExactlyOnce, 2);
    rig.commit();
    rig.crash(CrashMode::DropUnsynced);
    let (subscriber, _) = rig.durable("s");
    let again = publishes(&rig.settle(subscriber));
    assert_eq!(again, [("one".into(), 2, 1, true), ("two".into(), 2, 2, false)]);
}

#[test]
fn what_was_acknowledged_is_recorded_with_the_leave() {
    let mut rig = Rig::new();
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::AtLeastOnce);
    let publisher = rig.clean("p");
    rig.publish(publisher, "a", "one", Qos::AtLeastOnce, 1);
    rig.commit();
    assert_eq!(publishes(&rig.receive(subscriber)).len(), 1);
    rig.send(subscriber, &puback(1));
    rig.broker.lost(subscriber, rig.now);
    rig.commit();
    rig.crash(CrashMode::DropUnsynced);
    let (subscriber, _) = rig.durable("s");
    assert_eq!(rig.settle(subscriber), []);
}

#[test]
fn a_message_moves_to_another_member_of_a_share_in_one_record() {
    let mut rig = Rig::new();
    let one = with_window(&mut rig, "g1", 1);
    let two = with_window(&mut rig, "g2", 10);
    for member in [one, two] {
        rig.subscribe(member, "$share/g/s", Qos::ExactlyOnce);
    }
    let publisher = rig.clean("p");
    for n in 1..=4u16 {
        rig.publish(publisher, "s", &n.to_string(), Qos::ExactlyOnce, n);
    }
    rig.commit();
    assert_eq!(publishes(&rig.receive(one)).len(), 1);
    assert_eq!(publishes(&rig.receive(two)).len(), 2);
    // One message waits for the window of the member that leaves.
    rig.broker.lost(one, rig.now);
    assert_eq!(
        rig.receive(two),
        [],
        "not before it is recorded: after a crash the first member would have it, too"
    );
    let moved = publishes(&rig.settle(two));
    assert_eq!(moved.len(), 1);
    rig.crash(CrashMode::DropUnsynced);
    let one = with_window(&mut rig, "g1", 10);
    let two = with_window(&mut rig, "g2", 10);
    let first = publishes(&rig.settle(one));
    let second = publishes(&rig.settle(two));
    assert_eq!((first.len(), second.len()), (1, 3), "{first:?} {second:?}");
    assert!(second.iter().any(|m| m.0 == moved[0].0 && m.2 == moved[0].2 && m.3), "{second:?}");
}
