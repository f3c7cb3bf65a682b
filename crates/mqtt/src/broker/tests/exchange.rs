//! Exchanges of QoS 1 and 2, and what a crash at each step leaves of them.

use super::rig::{Rig, id, puback, pubcomp, publishes, pubrec, pubrel, text};
use crate::broker::{BrokerConfig, Planted};
use crate::codec::{Ack, Connect, Packet, Publish, Qos, ReasonCode, Version};
use postroad_journal::storage::CrashMode;

#[test]
fn a_message_of_each_qos_arrives() {
    let mut rig = Rig::new();
    let (subscriber, present) = rig.durable("s");
    assert!(!present);
    rig.subscribe(subscriber, "a/#", Qos::ExactlyOnce);
    let publisher = rig.clean("p");
    rig.publish(publisher, "a/b", "zero", Qos::AtMostOnce, 0);
    assert_eq!(publishes(&rig.receive(subscriber)), [("zero".into(), 0, 0, false)]);
    rig.publish(publisher, "a/b", "one", Qos::AtLeastOnce, 5);
    assert_eq!(rig.receive(publisher), [], "not before it is committed");
    assert_eq!(rig.receive(subscriber), []);
    assert_eq!(rig.settle(publisher), [puback(5)]);
    assert_eq!(publishes(&rig.receive(subscriber)), [("one".into(), 1, 1, false)]);
    rig.send(subscriber, &puback(1));
    rig.publish(publisher, "a/b", "two", Qos::ExactlyOnce, 6);
    assert_eq!(rig.settle(publisher), [pubrec(6)]);
    assert_eq!(publishes(&rig.receive(subscriber)), [("two".into(), 2, 2, false)]);
    rig.send(publisher, &pubrel(6));
    assert_eq!(rig.settle(publisher), [pubcomp(6)]);
    rig.send(subscriber, &pubrec(2));
    assert_eq!(rig.receive(subscriber), [], "PUBREL not before PUBREC is recorded");
    assert_eq!(rig.settle(subscriber), [pubrel(2)]);
    rig.send(subscriber, &pubcomp(2));
    assert_eq!(rig.settle(subscriber), []);
}

/// Probe A: 300 messages for somebody who is away.
#[test]
fn completed_messages_for_an_absent_session_survive() {
    let mut rig = Rig::new();
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::ExactlyOnce);
    rig.broker.lost(subscriber, rig.now);
    let (publisher, _) = rig.durable("p");
    for n in 1..=300u16 {
        rig.publish(publisher, "a", &n.to_string(), Qos::ExactlyOnce, n);
        assert_eq!(rig.settle(publisher), [pubrec(n)]);
        rig.send(publisher, &pubrel(n));
        assert_eq!(rig.settle(publisher), [pubcomp(n)]);
    }
    rig.crash(CrashMode::DropUnsynced);
    let (subscriber, present) = rig.durable("s");
    assert!(present);
    let mut seen = Vec::new();
    loop {
        let packets = rig.settle(subscriber);
        let more = publishes(&packets);
        if more.is_empty() {
            break;
        }
        for (payload, qos, packet, dup) in more {
            assert_eq!((qos, dup), (2, false));
            seen.push(payload.parse::<u16>().unwrap());
            rig.send(subscriber, &pubrec(packet));
            assert_eq!(rig.settle(subscriber).last(), Some(&pubrel(packet)));
            rig.send(subscriber, &pubcomp(packet));
        }
    }
    assert_eq!(seen, (1..=300).collect::<Vec<_>>());
}

/// Probe B [MQTT-4.3.3-10]: the message was taken, the publisher does not know.
#[test]
fn a_message_taken_before_a_crash_is_not_taken_again() {
    let mut rig = Rig::new();
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::ExactlyOnce);
    let (publisher, _) = rig.durable("p");
    rig.publish(publisher, "a", "m", Qos::ExactlyOnce, 7);
    rig.commit();
    rig.crash(CrashMode::DropUnsynced);
    let (publisher, present) = rig.durable("p");
    assert!(present);
    let mut again = Publish::new(text("a"), "m");
    again.qos = Qos::ExactlyOnce;
    again.dup = true;
    again.packet_id = Some(id(7));
    rig.send(publisher, &Packet::Publish(again));
    assert_eq!(rig.settle(publisher), [pubrec(7)]);
    rig.send(publisher, &pubrel(7));
    assert_eq!(rig.settle(publisher), [pubcomp(7)]);
    let (subscriber, _) = rig.durable("s");
    // It was connected when the broker died: it may have been sent the message.
    assert_eq!(publishes(&rig.settle(subscriber)), [("m".into(), 2, 1, true)]);
}

/// Probe C [MQTT-4.4.0-1]: PUBREC was answered, so PUBREL is owed and the message is not.
#[test]
fn an_owed_pubrel_is_resumed_with_its_id() {
    let mut rig = Rig::new();
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::ExactlyOnce);
    let publisher = rig.clean("p");
    for n in 1..=3 {
        rig.publish(publisher, "a", &n.to_string(), Qos::ExactlyOnce, n);
    }
    assert_eq!(publishes(&rig.settle(subscriber)).len(), 3);
    rig.send(subscriber, &pubrec(2));
    assert_eq!(rig.settle(subscriber), [pubrel(2)]);
    rig.crash(CrashMode::DropUnsynced);
    let (subscriber, _) = rig.durable("s");
    let packets = rig.settle(subscriber);
    assert_eq!(publishes(&packets), [("1".into(), 2, 1, true), ("3".into(), 2, 3, true)]);
    assert_eq!(packets[1], pubrel(2));
    // A client that has forgotten the id says so, and that is the end of it.
    rig.send(subscriber, &Packet::Pubcomp(Ack::with_reason(id(2), ReasonCode::PacketIdentifierNotFound)));
    rig.pass(1000);
    rig.crash(CrashMode::DropUnsynced);
    let (subscriber, _) = rig.durable("s");
    assert!(!rig.settle(subscriber).contains(&pubrel(2)));
}

/// Probe D: the publisher has seen PUBREC, so it goes on with PUBREL.
#[test]
fn a_release_after_a_crash_completes() {
    let mut rig = Rig::new();
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::ExactlyOnce);
    rig.broker.lost(subscriber, rig.now);
    let (publisher, _) = rig.durable("p");
    rig.publish(publisher, "a", "m", Qos::ExactlyOnce, 7);
    assert_eq!(rig.settle(publisher), [pubrec(7)]);
    rig.crash(CrashMode::DropUnsynced);
    let (publisher, _) = rig.durable("p");
    rig.send(publisher, &pubrel(7));
    assert_eq!(rig.settle(publisher), [pubcomp(7)]);
    // Once more, because the answer may have been lost: still a success.
    rig.send(publisher, &pubrel(7));
    assert_eq!(rig.settle(publisher), [pubcomp(7)]);
    // The id is free for another message.
    rig.publish(publisher, "a", "n", Qos::ExactlyOnce, 7);
    assert_eq!(rig.settle(publisher), [pubrec(7)]);
    let (subscriber, _) = rig.durable("s");
    assert_eq!(publishes(&rig.settle(subscriber)), [("m".into(), 2, 1, false), ("n".into(), 2, 2, false)]);
}

#[test]
fn a_release_that_is_not_recorded_is_not_answered() {
    let mut rig = Rig::new();
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::ExactlyOnce);
    let (publisher, _) = rig.durable("p");
    rig.publish(publisher, "a", "m", Qos::ExactlyOnce, 7);
    rig.settle(publisher);
    rig.send(publisher, &pubrel(7));
    assert_eq!(rig.receive(publisher), []);
    rig.send(publisher, &pubrel(7));
    assert_eq!(rig.receive(publisher), [], "nor a repetition of it");
    assert_eq!(rig.settle(publisher), [pubcomp(7), pubcomp(7)]);
}

#[test]
fn v3_clients_keep_their_sessions_too() {
    let mut rig = Rig::new();
    let mut connect = Connect::new(Version::V311, text("old"));
    connect.clean_start = false;
    let (conn, connack) = rig.connect_with(connect.clone());
    assert!(!connack.session_present);
    rig.subscribe(conn, "a", Qos::AtLeastOnce);
    rig.crash(CrashMode::DropUnsynced);
    let publisher = rig.clean("p");
    rig.publish(publisher, "a", "m", Qos::AtLeastOnce, 1);
    assert_eq!(rig.settle(publisher), [puback(1)], "a session is routable before its client is back");
    let (conn, connack) = rig.connect_with(connect);
    assert!(connack.session_present, "{connack:?}");
    assert_eq!(publishes(&rig.settle(conn)), [("m".into(), 1, 1, false)]);
}

#[test]
fn segments_go_when_nobody_needs_them() {
    let mut rig =
        Rig::with(BrokerConfig { sys_interval: std::time::Duration::ZERO, ..BrokerConfig::default() }, 4000);
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::ExactlyOnce);
    let publisher = rig.clean("p");
    for n in 1..=400u16 {
        rig.publish(publisher, "a", &n.to_string(), Qos::ExactlyOnce, n);
        let packets = rig.settle(subscriber);
        let (payload, _, packet, _) = publishes(&packets).remove(0);
        assert_eq!(payload, n.to_string());
        rig.send(subscriber, &pubrec(packet));
        rig.settle(subscriber);
        rig.send(subscriber, &pubcomp(packet));
        rig.settle(publisher);
        rig.send(publisher, &pubrel(n));
        if n == 200 {
            rig.pass(1000);
        }
    }
    let sizes = rig.broker.book.log().stats();
    assert!(sizes.segments <= 4, "{sizes:?}");
    rig.pass(1000);
    rig.crash(CrashMode::DropUnsynced);
    let (subscriber, present) = rig.durable("s");
    assert!(present);
    assert_eq!(publishes(&rig.settle(subscriber)), []);
}

/// Messages that only memory has take packet ids too: after a crash the client may still have one of them open.
#[test]
fn ids_of_messages_in_memory_are_not_given_again_after_a_crash() {
    let durability = vec![("fast/#".to_owned(), crate::broker::Durability::Memory)];
    let config =
        BrokerConfig { sys_interval: std::time::Duration::ZERO, durability, ..BrokerConfig::default() };
    let mut rig = Rig::with(config, 64 << 20);
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "#", Qos::ExactlyOnce);
    let publisher = rig.clean("p");
    let mut ids = std::collections::BTreeSet::new();
    for n in 1..=20 {
        rig.publish(publisher, "fast/a", "gone", Qos::ExactlyOnce, n);
        for (_, _, packet, _) in publishes(&rig.settle(subscriber)) {
            ids.insert(packet);
        }
    }
    assert_eq!(ids.len(), 20);
    rig.crash(CrashMode::DropUnsynced);
    let (subscriber, present) = rig.durable("s");
    assert!(present);
    let publisher = rig.clean("p");
    rig.publish(publisher, "slow", "kept", Qos::ExactlyOnce, 1);
    let kept = publishes(&rig.settle(subscriber));
    assert_eq!(kept.len(), 1);
    assert!(!ids.contains(&kept[0].2), "{kept:?}");
    // The log counts on from there.
    rig.crash(CrashMode::DropUnsynced);
    let (subscriber, _) = rig.durable("s");
    assert_eq!(publishes(&rig.settle(subscriber)), [("kept".into(), 2, kept[0].2, true)]);
}

fn planted(planted: Planted) -> Rig {
    Rig::with(
        BrokerConfig { sys_interval: std::time::Duration::ZERO, planted, ..BrokerConfig::default() },
        64 << 20,
    )
}

#[test]
fn an_answer_before_its_record_shows() {
    let mut rig = planted(Planted { ack_before_commit: true, ..Planted::default() });
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::ExactlyOnce);
    let (publisher, _) = rig.durable("p");
    rig.publish(publisher, "a", "m", Qos::ExactlyOnce, 7);
    assert_eq!(rig.receive(publisher), [pubrec(7)], "the defect");
    rig.crash(CrashMode::DropUnsynced);
    let (subscriber, _) = rig.durable("s");
    assert_eq!(publishes(&rig.settle(subscriber)), [], "what was promised is lost");
}

/// One session that stays away, and one retained message, do not keep the messages of all others.
#[test]
fn what_is_needed_for_long_is_moved_out_of_the_way() {
    let mut rig =
        Rig::with(BrokerConfig { sys_interval: std::time::Duration::ZERO, ..BrokerConfig::default() }, 4000);
    let (absent, _) = rig.durable("absent");
    rig.subscribe(absent, "rare", Qos::ExactlyOnce);
    rig.broker.lost(absent, rig.now);
    let publisher = rig.clean("p");
    let mut kept = Publish::new(text("kept"), "kept");
    kept.retain = true;
    rig.send(publisher, &Packet::Publish(kept));
    for n in 1..=3u16 {
        rig.publish(publisher, "rare", &n.to_string(), Qos::ExactlyOnce, n);
    }
    rig.settle(publisher);
    let (busy, _) = rig.durable("busy");
    rig.subscribe(busy, "often", Qos::AtLeastOnce);
    for life in 0..3 {
        let publisher = rig.clean("p");
        let (busy, _) = rig.durable("busy");
        for n in 1..=300 {
            rig.publish(publisher, "often", "x", Qos::AtLeastOnce, n);
            for (_, _, packet, _) in publishes(&rig.settle(busy)) {
                rig.send(busy, &puback(packet));
            }
        }
        rig.pass(1000);
        let sizes = rig.broker.book.log().stats();
        assert!(sizes.segments < 12, "life {life}: {sizes:?}");
        rig.crash(CrashMode::DropUnsynced);
    }
    let (absent, _) = rig.durable("absent");
    let rare = publishes(&rig.settle(absent));
    assert_eq!(rare.iter().map(|(payload, ..)| payload.as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
    let late = rig.clean("late");
    rig.subscribe(late, "kept", Qos::AtMostOnce);
    assert_eq!(publishes(&rig.settle(late)), [("kept".into(), 0, 0, false)]);
}

/// [MQTT-4.6.0-2]. What waits for an early commit may stand behind what waits for a later one, of somebody else.
#[test]
fn mqtt_4_6_0_2_answers_keep_their_order_behind_those_of_others() {
    let mut rig = Rig::new();
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::AtLeastOnce);
    let (one, two) = (rig.clean("one"), rig.clean("two"));
    rig.publish(one, "a", "first", Qos::AtLeastOnce, 1);
    // More than one commit takes: these wait for the next ones.
    for n in 1..=3 {
        rig.publish(two, "a", &"x".repeat(800 << 10), Qos::AtLeastOnce, n);
    }
    // Nobody gets it, so it waits for nothing but its turn.
    rig.publish(one, "nobody", "second", Qos::AtLeastOnce, 2);
    rig.commit_once();
    rig.publish(one, "nobody", "third", Qos::AtLeastOnce, 3);
    assert_eq!(rig.settle(one), [puback(1), puback(2), puback(3)]);
}

/// One commit for each message that comes alone: that its exchange is over is written with the next one.
#[test]
fn what_is_over_takes_no_commit_of_its_own_while_others_come() {
    let mut rig = Rig::new();
    let (reader, _) = rig.durable("reader");
    rig.subscribe(reader, "t", Qos::AtLeastOnce);
    let (writer, _) = rig.durable("writer");
    let mut commits = Vec::new();
    for n in 1..=50 {
        rig.publish(writer, "t", "x", Qos::AtLeastOnce, n);
        assert_eq!(rig.settle(writer), [puback(n)]);
        let got = publishes(&rig.settle(reader));
        rig.send(reader, &puback(got[0].2));
        rig.pass(6);
        commits.push(rig.store().committer().stats().commits);
    }
    let few = commits[49] - commits[9];
    assert!(few <= 42, "{few} commits for 40 messages");
    // When nothing comes it is written all the same, 20 ms later.
    rig.pass(13);
    assert_eq!(rig.store().committer().stats().commits, commits[49], "not yet");
    rig.pass(1);
    assert_eq!(rig.store().committer().stats().commits, commits[49] + 1);
    rig.crash(CrashMode::DropUnsynced);
    let (reader, present) = rig.durable("reader");
    assert!(present && publishes(&rig.settle(reader)).is_empty(), "all were acknowledged");
}
