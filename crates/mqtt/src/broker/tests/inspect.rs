//! What the log says, read beside a broker that runs, and of one that is gone.

use super::rig::{Rig, id, pubcomp, pubrec, pubrel, text};
use crate::broker::inspect::{Contents, Inspector, Phase};
use crate::codec::{Connect, Packet, Publish, Qos, Subscribe, Subscription, Version, Will};
use postroad_journal::JournalError;
use postroad_journal::storage::{CrashMode, SimStorage};
use postroad_journal::verify;
use std::path::Path;

fn read(storage: &SimStorage) -> Contents {
    let log = Path::new("/data/mqtt");
    let mut inspector = Inspector::default();
    verify::records(storage, log, 0, &mut |_, record| {
        inspector.record(record).unwrap();
        Ok(())
    })
    .unwrap();
    let mut contents = inspector.finish();
    let looked: Result<(), JournalError> = contents.look(|each| {
        verify::records(storage, log, 0, &mut |_, record| {
            each(record);
            Ok(())
        })
    });
    looked.unwrap();
    contents
}

fn phases(contents: &Contents, client: &str) -> Vec<(u64, u16, Phase)> {
    let session = contents.sessions.iter().find(|session| session.client == client).unwrap();
    session.outgoing.iter().map(|message| (message.number, message.packet, message.phase)).collect()
}

#[test]
fn sessions_subscriptions_and_wills_are_seen_while_the_broker_runs() {
    let mut rig = Rig::new();
    let mut connect = Connect::new(Version::V5, text("b"));
    connect.clean_start = false;
    connect.properties.session_expiry_interval = Some(60);
    connect.will = Some(Will {
        topic: text("gone/b"),
        payload: "bye".into(),
        qos: Qos::ExactlyOnce,
        retain: true,
        properties: None,
    });
    let (b, _) = rig.connect_with(connect);
    let mut local = Subscription::new(text("$share/g/x/#"), Qos::AtLeastOnce);
    local.retain_as_published = true;
    let filters = vec![local, Subscription::new(text("y"), Qos::ExactlyOnce)];
    rig.send(b, &Packet::Subscribe(Subscribe { packet_id: id(3), filters, properties: None }));
    rig.commit();
    let _ = rig.clean("a");
    let _ = rig.durable("c");

    let contents = read(&rig.storage);
    let names: Vec<_> = contents.sessions.iter().map(|s| (s.client.as_str(), s.expiry, s.away)).collect();
    assert_eq!(names, [("b", Some(60), None), ("c", None, None)], "`a` ends with its connection");
    let session = &contents.sessions[0];
    let subscriptions: Vec<_> =
        session.subscriptions.iter().map(|s| (s.filter.as_str(), s.qos, s.retain_as_published)).collect();
    assert_eq!(subscriptions, [("$share/g/x/#", 1, true), ("y", 2, false)]);
    let will = session.will.as_ref().unwrap();
    assert_eq!(
        (will.topic.as_str(), will.bytes, will.qos, will.retain, will.delay),
        ("gone/b", 3, 2, true, 0)
    );

    rig.now += 500;
    let left = rig.now;
    rig.broker.lost(b, left);
    rig.commit();
    let contents = read(&rig.storage);
    assert_eq!(contents.sessions[0].away, Some(left));
    assert_eq!(contents.sessions[0].ends(), Some(left + 60_000));
    assert_eq!(contents.sessions[0].will, None, "it was published");
    assert_eq!(contents.retained.len(), 1);
    rig.pass(60_000);
    assert_eq!(read(&rig.storage).sessions.len(), 1, "it expired");
}

#[test]
fn each_phase_of_a_message_is_seen() {
    let mut rig = Rig::new();
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "t", Qos::ExactlyOnce);
    let (publisher, _) = rig.durable("p");
    for n in 1..=4 {
        rig.publish(publisher, "t", "12345", Qos::ExactlyOnce, n);
    }
    rig.settle(publisher);
    rig.settle(subscriber);
    rig.send(subscriber, &pubrec(1));
    rig.send(subscriber, &pubrec(2));
    rig.commit();
    rig.send(subscriber, &pubcomp(1));
    rig.send(publisher, &pubrel(3));
    rig.pass(100);
    let contents = read(&rig.storage);
    let expected = [(2, 2, Phase::Released), (3, 3, Phase::Sent), (4, 4, Phase::Sent)];
    assert_eq!(phases(&contents, "s"), expected);
    assert_eq!(contents.sessions[0].incoming, [1, 2, 4]);
    let about = contents.sessions[1].outgoing[0].about.clone().unwrap();
    assert_eq!((about.topic.as_str(), about.bytes, about.qos), ("t", 5, 2));

    let now = rig.now;
    rig.broker.lost(subscriber, now);
    rig.publish(publisher, "t", "later", Qos::AtLeastOnce, 9);
    rig.settle(publisher);
    rig.crash(CrashMode::DropUnsynced);
    rig.pass(100);
    let contents = read(&rig.storage);
    let expected = [(2, 2, Phase::Released), (3, 3, Phase::Sent), (4, 4, Phase::Sent), (5, 5, Phase::Queued)];
    assert_eq!(phases(&contents, "s"), expected);
    assert_eq!(contents.sessions[1].count(Phase::Sent), 2);
}

#[test]
fn retained_messages_are_seen_over_snapshots_and_only_the_newest_of_each_topic() {
    let config =
        crate::broker::BrokerConfig { sys_interval: std::time::Duration::ZERO, ..Default::default() };
    let mut rig = Rig::with(config, 4096);
    let publisher = rig.clean("p");
    for round in 0..60 {
        for topic in ["a", "b/c"] {
            let mut publish = Publish::new(text(topic), format!("{round:03}{}", "x".repeat(50)));
            publish.retain = true;
            publish.qos = Qos::AtLeastOnce;
            publish.packet_id = Some(id(1));
            rig.send(publisher, &Packet::Publish(publish));
            rig.settle(publisher);
        }
    }
    let mut empty = Publish::new(text("a"), String::new());
    empty.retain = true;
    rig.send(publisher, &Packet::Publish(empty));
    rig.commit();
    let contents = read(&rig.storage);
    let topics: Vec<_> = contents.retained.iter().map(|kept| (kept.topic.as_str(), kept.seq)).collect();
    assert_eq!(topics, [("b/c", 120)]);
    assert_eq!(
        contents.retained[0].about.as_ref().map(|about| (about.topic.as_str(), about.bytes)),
        Some(("b/c", 53))
    );
}
