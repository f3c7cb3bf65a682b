//! Listeners and topics whose messages are acknowledged when they are written, on a disk that loses power.

use super::rig::{Rig, id, pubcomp, publishes, pubrec, pubrel, text};
use crate::broker::{BrokerConfig, Durability, ListenerConfig};
use crate::codec::{Packet, PacketId, Publish, Qos};
use postroad_journal::storage::{Call, CrashMode};
use std::sync::Arc;

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.listener = os();
    rig
}

fn os() -> Arc<ListenerConfig> {
    Arc::new(ListenerConfig { durability: Durability::Os, ..ListenerConfig::default() })
}

/// Syncs of the disk so far.
fn syncs(rig: &Rig) -> usize {
    let is_sync = |call: &Call| matches!(call, Call::SyncData | Call::SyncAll | Call::SyncFilesystem);
    rig.storage.trace().iter().filter(|(call, _)| is_sync(call)).count()
}

fn acks(packets: &[Packet]) -> Vec<(char, u16)> {
    let one = |packet: &Packet| match packet {
        Packet::Puback(ack) => Some(('a', ack.packet_id.get())),
        Packet::Pubrec(ack) => Some(('r', ack.packet_id.get())),
        Packet::Pubcomp(ack) => Some(('c', ack.packet_id.get())),
        _ => None,
    };
    packets.iter().filter_map(one).collect()
}

#[test]
fn nothing_waits_for_a_sync_and_a_kill_loses_nothing() {
    let mut rig = rig();
    let (reader, _) = rig.durable("reader");
    rig.subscribe(reader, "t", Qos::ExactlyOnce);
    let (writer, _) = rig.durable("writer");
    // Numbers are reserved with the first message.
    rig.publish(writer, "t", "first", Qos::AtLeastOnce, 1);
    assert_eq!(acks(&rig.settle(writer)), [('a', 1)]);
    let before = syncs(&rig);
    for n in 2..20 {
        let qos = if n % 2 == 0 { Qos::ExactlyOnce } else { Qos::AtLeastOnce };
        rig.publish(writer, "t", &n.to_string(), qos, n);
        assert!(acks(&rig.receive(writer)).is_empty(), "not before it is written");
        rig.settle(writer);
        if qos == Qos::ExactlyOnce {
            rig.send(writer, &pubrel(n));
            assert_eq!(acks(&rig.settle(writer)), [('c', n)]);
        }
    }
    let got = publishes(&rig.settle(reader));
    assert_eq!(got.len(), 19);
    for (_, qos, packet, _) in got.iter().filter(|(_, qos, ..)| *qos == 2) {
        assert_eq!(*qos, 2);
        rig.send(reader, &pubrec(*packet));
    }
    rig.settle(reader);
    assert_eq!(syncs(&rig), before, "somebody asked for a sync");
    rig.crash(CrashMode::KeepAll);
    rig.listener = os();
    let (reader, present) = rig.durable("reader");
    assert!(present);
    let again = rig.settle(reader);
    let left: Vec<u16> =
        publishes(&again).iter().map(|(_, qos, packet, _)| packet * u16::from(*qos)).collect();
    assert_eq!(left.len(), 10, "those of QoS 1, which were not acknowledged");
    assert_eq!(again.iter().filter(|packet| matches!(packet, Packet::Pubrel(_))).count(), 9);
}

#[test]
fn answers_of_one_connection_keep_their_order() {
    let config = BrokerConfig {
        durability: vec![("safe/#".to_owned(), Durability::Fsync)],
        sys_interval: std::time::Duration::ZERO,
        ..BrokerConfig::default()
    };
    let mut rig = Rig::with(config, 64 << 20);
    rig.listener = os();
    let (reader, _) = rig.durable("reader");
    rig.subscribe(reader, "#", Qos::ExactlyOnce);
    let (writer, _) = rig.durable("writer");
    let (other, _) = rig.durable("other");
    rig.publish(writer, "quick", "0", Qos::AtLeastOnce, 1);
    rig.settle(writer);
    // The one that waits for a sync is written with the first part of what follows; then the disk is slow.
    rig.publish(writer, "safe/1", "1", Qos::AtLeastOnce, 2);
    rig.publish(writer, "quick", "2", Qos::AtLeastOnce, 3);
    rig.publish(other, "quick", "3", Qos::AtLeastOnce, 1);
    rig.publish(writer, "safe/2", "4", Qos::AtLeastOnce, 4);
    rig.publish(writer, "quick", "5", Qos::AtLeastOnce, 5);
    assert_eq!(acks(&rig.settle(writer)), [('a', 2), ('a', 3), ('a', 4), ('a', 5)]);
    assert_eq!(acks(&rig.settle(other)), [('a', 1)]);
}

/// After a power cut the numbers of messages that are gone are not given to others: the client may have had them.
#[test]
fn an_id_of_a_lost_message_is_not_given_to_another() {
    let mut rig = rig();
    let (reader, _) = rig.durable("reader");
    rig.subscribe(reader, "t", Qos::ExactlyOnce);
    let (writer, _) = rig.durable("writer");
    rig.publish(writer, "t", "kept", Qos::ExactlyOnce, 1);
    rig.settle(writer);
    let kept = publishes(&rig.settle(reader));
    rig.store().committer().sync_now().unwrap();
    rig.publish(writer, "t", "lost", Qos::ExactlyOnce, 2);
    assert_eq!(acks(&rig.settle(writer)), [('r', 2)]);
    let lost = publishes(&rig.settle(reader));
    assert_eq!((kept.len(), lost.len()), (1, 1));
    // The client has it, and says so, and hears nothing any more.
    rig.send(reader, &pubrec(lost[0].2));
    rig.crash(CrashMode::DropUnsynced);
    rig.listener = os();
    let (reader, present) = rig.durable("reader");
    assert!(present, "what was synced is there");
    let (writer, _) = rig.durable("writer");
    rig.publish(writer, "t", "new", Qos::ExactlyOnce, 3);
    rig.settle(writer);
    let now = publishes(&rig.settle(reader));
    assert_eq!(now.iter().map(|p| p.0.as_str()).collect::<Vec<_>>(), ["kept", "new"]);
    assert_ne!(now[1].2, lost[0].2, "the client would take it for a repetition");
}

/// The record of a release can be lost; the client that uses the id again is not mistaken for one that repeats itself.
#[test]
fn a_release_that_is_lost_does_not_swallow_the_next_message() {
    let mut rig = rig();
    let (reader, _) = rig.durable("reader");
    rig.subscribe(reader, "t", Qos::AtLeastOnce);
    let (writer, _) = rig.durable("writer");
    rig.publish(writer, "t", "one", Qos::ExactlyOnce, 7);
    assert_eq!(acks(&rig.settle(writer)), [('r', 7)]);
    rig.store().committer().sync_now().unwrap();
    rig.send(writer, &pubrel(7));
    assert_eq!(acks(&rig.settle(writer)), [('c', 7)]);
    rig.crash(CrashMode::DropUnsynced);
    rig.listener = os();
    let (reader, _) = rig.durable("reader");
    let (writer, _) = rig.durable("writer");
    // One that says it is the same is.
    let mut same = Publish::new(text("t"), "one".to_owned());
    (same.qos, same.dup, same.packet_id) = (Qos::ExactlyOnce, true, PacketId::new(7));
    rig.send(writer, &Packet::Publish(same));
    assert_eq!(acks(&rig.settle(writer)), [('r', 7)]);
    rig.publish(writer, "t", "two", Qos::ExactlyOnce, 7);
    assert_eq!(acks(&rig.settle(writer)), [('r', 7)]);
    // From here on a repetition is one, whatever it says.
    rig.publish(writer, "t", "two", Qos::ExactlyOnce, 7);
    assert_eq!(acks(&rig.settle(writer)), [('r', 7)]);
    let got: Vec<String> = publishes(&rig.settle(reader)).into_iter().map(|p| p.0).collect();
    assert_eq!(got, ["one", "two"]);
    rig.send(writer, &pubrel(7));
    assert_eq!(acks(&rig.settle(writer)), [('c', 7)]);
}

/// At every step of a workload: the death of the process loses nothing that was acknowledged, whoever asked for how much;
/// a power cut loses only the end of the log, and nothing that a sync was asked for.
#[test]
fn what_is_acknowledged_survives_what_it_should_at_every_step() {
    let mut losses = 0;
    for mode in CrashMode::ALL {
        for step in 1.. {
            let Some(lost) = crash_at(step, mode) else { break };
            losses += usize::from(lost);
        }
    }
    assert!(losses > 0, "no power cut lost anything: nothing was without a sync");
}

/// `None`: the workload has fewer steps. Else whether something acknowledged at the operating system was lost.
fn crash_at(last: usize, mode: CrashMode) -> Option<bool> {
    let mut rig = rig();
    let (reader, _) = rig.durable("reader");
    rig.subscribe(reader, "#", Qos::ExactlyOnce);
    let quick = rig.durable("quick").0;
    rig.listener = Arc::new(ListenerConfig::default());
    let safe = rig.durable("safe").0;
    // Payload, whether by the safe one, and whether it was acknowledged.
    let mut sent: Vec<(String, bool, bool)> = Vec::new();
    let mut steps = 0;
    'all: for n in 1..=12_u16 {
        let is_safe = n % 4 == 0;
        let conn = if is_safe { safe } else { quick };
        let qos = if n % 3 == 0 { Qos::AtLeastOnce } else { Qos::ExactlyOnce };
        rig.publish(conn, "a/b", &n.to_string(), qos, n);
        sent.push((n.to_string(), is_safe, false));
        for half in 0..3 {
            steps += 1;
            match half {
                0 => {}
                1 => drop(rig.store().committer().commit_now().unwrap()),
                _ => rig.broker.committed(rig.now),
            }
            for (conn, safe) in [(quick, false), (safe, true)] {
                for (_, packet) in acks(&rig.receive(conn)) {
                    let found =
                        sent.iter_mut().find(|(name, by, _)| *by == safe && *name == packet.to_string());
                    found.unwrap().2 = true;
                }
            }
            if steps == last {
                break 'all;
            }
        }
    }
    if steps < last {
        return None;
    }
    rig.crash(mode);
    rig.listener = os();
    let (reader, present) = rig.durable("reader");
    assert!(present);
    let got: Vec<String> = publishes(&rig.settle(reader)).into_iter().map(|p| p.0).collect();
    let expected: Vec<&String> = sent.iter().map(|(name, ..)| name).take(got.len()).collect();
    assert_eq!(
        got.iter().collect::<Vec<_>>(),
        expected,
        "step {last}, {mode:?}: what is there is the beginning"
    );
    let mut lost = false;
    for (name, safe, _) in sent.iter().filter(|(_, _, acked)| *acked) {
        let there = got.contains(name);
        assert!(there || !safe && mode != CrashMode::KeepAll, "step {last}, {mode:?}: {name} is lost");
        lost |= !there;
    }
    // It goes on.
    let writer = rig.durable("quick").0;
    rig.publish(writer, "a/b", "after", Qos::ExactlyOnce, 99);
    assert_eq!(acks(&rig.settle(writer)), [('r', 99)]);
    let after = publishes(&rig.settle(reader));
    assert_eq!(after.last().map(|p| p.0.as_str()), Some("after"));
    rig.send(reader, &pubcomp(1));
    Some(lost)
}

#[test]
fn wills_retained_messages_and_subscriptions_of_such_a_listener_survive_a_kill() {
    let mut rig = rig();
    let (reader, _) = rig.durable("reader");
    rig.subscribe(reader, "will", Qos::AtLeastOnce);
    let before = syncs(&rig);
    let mut connect = crate::codec::Connect::new(crate::codec::Version::V5, text("mortal"));
    connect.clean_start = false;
    connect.properties.session_expiry_interval = Some(60);
    connect.will = Some(crate::codec::Will {
        topic: text("will"),
        payload: "gone".into(),
        qos: Qos::AtMostOnce,
        retain: true,
        properties: None,
    });
    let (mortal, _) = rig.connect_with(connect);
    let mut publish = Publish::new(text("kept"), "here".to_owned());
    (publish.qos, publish.packet_id, publish.retain) = (Qos::AtLeastOnce, Some(id(3)), true);
    rig.send(mortal, &Packet::Publish(publish));
    assert_eq!(acks(&rig.settle(mortal)), [('a', 3)]);
    rig.broker.lost(mortal, rig.now);
    rig.commit();
    assert_eq!(syncs(&rig), before, "somebody asked for a sync");
    rig.crash(CrashMode::KeepAll);
    let fresh = rig.clean("fresh");
    rig.subscribe(fresh, "#", Qos::AtLeastOnce);
    let mut got: Vec<String> = publishes(&rig.settle(fresh)).into_iter().map(|p| p.0).collect();
    got.sort();
    assert_eq!(got, ["gone", "here"]);
}
