//! Retained messages.

use super::rig::{Rig, publishes, text};
use crate::codec::{Packet, Publish, Qos};
use postroad_journal::storage::CrashMode;

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
