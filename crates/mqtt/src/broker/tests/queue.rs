//! Work queues.

use super::rig::{Rig, id, puback, publishes};
use crate::broker::{BrokerConfig, ConnId};
use crate::codec::{Ack, Packet, Qos, ReasonCode, Unsubscribe};
use postroad_core::retry::RetryPolicy;
use postroad_journal::storage::CrashMode;
use std::num::NonZeroU32;
use std::time::Duration;

fn rig(segment_bytes: u64) -> Rig {
    let queue_policy = RetryPolicy {
        ack_wait: Duration::from_secs(30),
        backoff: vec![Duration::from_secs(1), Duration::from_secs(5)],
        max_deliveries: NonZeroU32::new(3),
    };
    let config = BrokerConfig {
        sys_interval: Duration::ZERO,
        queue_policy,
        queue_window: 2,
        ..BrokerConfig::default()
    };
    Rig::with(config, segment_bytes)
}

fn publish(rig: &mut Rig, from: u16, to: u16) {
    let publisher = rig.clean("publisher");
    for n in from..=to {
        rig.publish(publisher, "jobs/a", &n.to_string(), Qos::AtLeastOnce, n);
    }
    rig.commit();
}

/// What a client gets, as payload and packet id.
fn got(rig: &mut Rig, conn: ConnId) -> Vec<(String, u16)> {
    publishes(&rig.settle(conn))
        .into_iter()
        .map(|(payload, qos, id, dup)| {
            assert_eq!((qos, dup), (1, false));
            (payload, id)
        })
        .collect()
}

#[test]
fn consumers_share_what_there_is_and_each_message_is_done_once() {
    let mut rig = rig(64 << 20);
    let (one, _) = rig.durable("one");
    rig.subscribe(one, "$queue/work/jobs/#", Qos::ExactlyOnce);
    let two = rig.clean("two");
    rig.subscribe(two, "$queue/work/jobs/#", Qos::AtMostOnce);
    publish(&mut rig, 1, 10);
    let mut seen = Vec::new();
    loop {
        let mut some = false;
        for conn in [one, two] {
            let messages = got(&mut rig, conn);
            assert!(messages.len() <= 2, "the window of a consumer");
            for (payload, packet) in messages {
                some = true;
                seen.push(payload.parse::<u32>().unwrap());
                rig.send(conn, &puback(packet));
            }
        }
        if !some {
            break;
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=10).collect::<Vec<_>>());
}

#[test]
fn a_queue_keeps_messages_without_consumers_and_over_a_crash() {
    let mut rig = rig(64 << 20);
    let early = rig.clean("early");
    rig.subscribe(early, "$queue/work/jobs/#", Qos::AtLeastOnce);
    rig.broker.lost(early, rig.now);
    publish(&mut rig, 1, 3);
    rig.crash(CrashMode::DropUnsynced);
    let late = rig.clean("late");
    rig.subscribe(late, "$queue/work/jobs/#", Qos::AtLeastOnce);
    let first = got(&mut rig, late);
    assert_eq!(first.iter().map(|(p, _)| p.as_str()).collect::<Vec<_>>(), ["1", "2"]);
    rig.send(late, &puback(first[0].1));
    rig.pass(1000);
    rig.crash(CrashMode::DropUnsynced);
    let last = rig.clean("last");
    rig.subscribe(last, "$queue/work/jobs/#", Qos::AtLeastOnce);
    let rest = got(&mut rig, last);
    assert_eq!(rest.iter().map(|(p, _)| p.as_str()).collect::<Vec<_>>(), ["2", "3"], "1 is done");
}

#[test]
fn who_does_not_acknowledge_in_time_or_goes_loses_the_message_to_another() {
    let mut rig = rig(64 << 20);
    let slow = rig.clean("slow");
    rig.subscribe(slow, "$queue/work/jobs/#", Qos::AtLeastOnce);
    publish(&mut rig, 1, 1);
    let held = got(&mut rig, slow);
    assert_eq!(held.len(), 1);
    let quick = rig.clean("quick");
    rig.subscribe(quick, "$queue/work/jobs/#", Qos::AtLeastOnce);
    rig.pass(29_000);
    assert!(got(&mut rig, quick).is_empty());
    rig.pass(1_001);
    rig.pass(1_001);
    let again = got(&mut rig, quick);
    assert_eq!(again.len() + got(&mut rig, slow).len(), 1);
    // Whoever has it goes: the other one gets it, for the third time.
    let other = if again.is_empty() { quick } else { slow };
    rig.broker.lost(if again.is_empty() { slow } else { quick }, rig.now);
    rig.pass(6_000);
    assert_eq!(got(&mut rig, other).len(), 1);
    // Nobody acknowledges the third: it is dead.
    assert!(rig.dead().is_empty());
    rig.pass(31_000);
    let dead = rig.dead();
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].attempts, &*dead[0].reason), (3, "deliveries exhausted"));
    assert_eq!(dead[0].topic.as_str(), "jobs/a");
    rig.pass(60_000);
    assert!(got(&mut rig, other).is_empty());
    rig.crash(CrashMode::DropUnsynced);
    let late = rig.clean("late");
    rig.subscribe(late, "$queue/work/jobs/#", Qos::AtLeastOnce);
    assert!(got(&mut rig, late).is_empty(), "what is dead stays dead");
}

#[test]
fn a_reason_code_is_a_refusal_with_backoff() {
    let mut rig = rig(64 << 20);
    let (worker, _) = rig.durable("worker");
    rig.subscribe(worker, "$queue/work/jobs/#", Qos::AtLeastOnce);
    publish(&mut rig, 1, 1);
    for (turn, wait) in [(1, 1_000), (2, 5_000), (3, 0)] {
        let messages = got(&mut rig, worker);
        assert_eq!(messages.len(), 1, "turn {turn}");
        let refused = Ack::with_reason(id(messages[0].1), ReasonCode::UnspecifiedError);
        rig.send(worker, &Packet::Puback(refused));
        if turn < 3 {
            rig.pass(wait - 1);
            assert!(got(&mut rig, worker).is_empty(), "turn {turn}");
            rig.pass(2);
        }
    }
    rig.pass(1);
    assert_eq!(rig.dead().len(), 1);
}

#[test]
fn subscribers_of_dead_letters_get_them_with_their_reason() {
    let mut rig = rig(64 << 20);
    let (reader, _) = rig.durable("reader");
    rig.subscribe(reader, "$dead/#", Qos::AtLeastOnce);
    let worker = rig.clean("worker");
    rig.subscribe(worker, "$queue/work/jobs/#", Qos::AtLeastOnce);
    publish(&mut rig, 1, 1);
    for _ in 0..3 {
        for conn in [worker, reader] {
            rig.send(conn, &Packet::Pingreq);
        }
        rig.settle(worker);
        rig.pass(31_000);
        rig.pass(6_000);
    }
    let mut packets = rig.settle(reader);
    packets.retain(|packet| *packet != Packet::Pingresp);
    let [Packet::Publish(letter)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!(letter.topic.as_str(), "$dead/jobs/a");
    assert_eq!(&letter.payload[..], b"1");
    let said = &letter.properties.as_ref().unwrap().user_properties;
    let said: Vec<(&str, &str)> = said.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert!(said.contains(&("postroad-dead-reason", "deliveries exhausted")), "{said:?}");
    assert!(
        said.contains(&("postroad-dead-attempts", "3"))
            && said.contains(&("postroad-dead-client", "$queue/work"))
    );
    // A reader that refuses its letter makes no other one.
    let refused = Ack::with_reason(letter.packet_id.unwrap(), ReasonCode::UnspecifiedError);
    rig.send(reader, &Packet::Puback(refused));
    assert!(rig.settle(reader).is_empty());
    assert_eq!(rig.dead().len(), 1);
}

#[test]
fn a_queue_ends_when_its_last_subscriber_says_so() {
    let mut rig = rig(64 << 20);
    let (worker, _) = rig.durable("worker");
    rig.subscribe(worker, "$queue/work/jobs/#", Qos::AtLeastOnce);
    publish(&mut rig, 1, 3);
    let unsubscribe = Unsubscribe {
        packet_id: id(3),
        filters: vec![super::rig::text("$queue/work/jobs/#")],
        properties: None,
    };
    rig.send(worker, &Packet::Unsubscribe(unsubscribe));
    rig.commit();
    assert_eq!(rig.dead().len(), 3, "nothing is lost without a word");
    rig.crash(CrashMode::DropUnsynced);
    let late = rig.clean("late");
    rig.subscribe(late, "$queue/work/jobs/#", Qos::AtLeastOnce);
    assert!(got(&mut rig, late).is_empty());
}

#[test]
fn snapshots_have_queues_too() {
    let mut rig = rig(3000);
    let worker = rig.clean("worker");
    rig.subscribe(worker, "$queue/work/jobs/#", Qos::AtLeastOnce);
    publish(&mut rig, 1, 3);
    let first = got(&mut rig, worker);
    rig.send(worker, &puback(first[1].1));
    rig.broker.lost(worker, rig.now);
    // Others fill segments, so that only a snapshot knows the queue.
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "other", Qos::AtLeastOnce);
    let publisher = rig.clean("p");
    for n in 1..=200 {
        rig.publish(publisher, "other", "x", Qos::AtLeastOnce, n);
        for (_, _, packet, _) in publishes(&rig.settle(subscriber)) {
            rig.send(subscriber, &puback(packet));
        }
    }
    rig.pass(1000);
    rig.crash(CrashMode::DropUnsynced);
    let worker = rig.clean("worker");
    rig.subscribe(worker, "$queue/work/jobs/#", Qos::AtLeastOnce);
    rig.pass(6000);
    let rest = got(&mut rig, worker);
    assert_eq!(rest.iter().map(|(p, _)| p.as_str()).collect::<Vec<_>>(), ["1", "3"]);
}
