//! Dead letters are part of the log: no crash loses one, doubles one, or changes who gets what under which id.

use super::rig::{Rig, id, puback, pubcomp, publishes, pubrec, pubrel, text};
use crate::broker::{BrokerConfig, ConnId, DeadLetter, Overflow, Planted, Post, PostError, Posted, reason};
use crate::codec::{Ack, Connect, Packet, Qos, ReasonCode, Version};
use postroad_journal::storage::CrashMode;
use std::collections::BTreeMap;
use std::time::Duration;

fn small(overflow: Overflow) -> Rig {
    let config =
        BrokerConfig { sys_interval: Duration::ZERO, max_queued: 2, overflow, ..BrokerConfig::default() };
    Rig::with(config, 64 << 20)
}

#[test]
fn a_message_that_a_full_queue_refused_stays_refused_after_a_crash() {
    let mut rig = small(Overflow::DropNewest);
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::ExactlyOnce);
    let (other, _) = rig.durable("t");
    rig.subscribe(other, "a", Qos::ExactlyOnce);
    let publisher = rig.clean("p");
    for n in 1..=2 {
        rig.publish(publisher, "a", &n.to_string(), Qos::ExactlyOnce, n);
    }
    rig.commit();
    // Only `s` is full when 3 comes.
    assert_eq!(publishes(&rig.receive(other)).len(), 2);
    for n in 1..=2 {
        rig.send(other, &pubrec(n));
    }
    assert_eq!(rig.settle(other), [pubrel(1), pubrel(2)]);
    for n in 1..=2 {
        rig.send(other, &pubcomp(n));
    }
    rig.publish(publisher, "a", "3", Qos::ExactlyOnce, 3);
    assert_eq!(publishes(&rig.settle(other)), [("3".into(), 2, 3, false)]);
    assert_eq!(publishes(&rig.receive(subscriber)).len(), 2);
    for n in 1..=2 {
        rig.send(subscriber, &pubrec(n));
    }
    rig.settle(subscriber);
    for n in 1..=2 {
        rig.send(subscriber, &pubcomp(n));
    }
    rig.publish(publisher, "a", "4", Qos::ExactlyOnce, 4);
    assert_eq!(publishes(&rig.settle(subscriber)), [("4".into(), 2, 3, false)]);
    rig.pass(1000);
    rig.crash(CrashMode::DropUnsynced);
    let (subscriber, _) = rig.durable("s");
    let again = publishes(&rig.settle(subscriber));
    assert_eq!(again, [("4".into(), 2, 3, true)], "what was refused took no number");
}

/// A scene with every crash point of it tried: records reach the disk one commit at a time.
fn sweep(overflow: Overflow, planted: Planted, mode: CrashMode) -> Result<(), String> {
    for steps in 0..60 {
        let mut rig = small(overflow);
        rig.config.planted = planted;
        rig.crash(CrashMode::KeepAll);
        if !scene(&mut rig, steps, mode)? {
            return Ok(());
        }
    }
    Err("the scene has no end".into())
}

/// Plays until `steps` steps are done, dies without the bytes that were not synced, and looks what became of each
/// accepted message: it is delivered once, or it has one letter. False: it came to its end.
fn scene(rig: &mut Rig, steps: usize, mode: CrashMode) -> Result<bool, String> {
    let mut left = steps;
    let mut accepted: Vec<String> = Vec::new();
    let mut app: Vec<String> = Vec::new();
    let mut ids: BTreeMap<u16, String> = BTreeMap::new();
    // The graveyard of somebody else: by the ids of letters, as durable as it says.
    let mut kept: BTreeMap<String, String> = BTreeMap::new();
    let (mut subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::ExactlyOnce);
    let (_, _) = rig.durable("absent");
    let publisher = rig.clean("p");
    let mut died = false;
    for n in 1..=6u16 {
        rig.publish(publisher, "a", &n.to_string(), Qos::ExactlyOnce, n);
        // Each step is one commit, or one word of somebody.
        let mut turn = |rig: &mut Rig, what: &mut dyn FnMut(&mut Rig)| {
            if left == 0 {
                return false;
            }
            left -= 1;
            what(rig);
            true
        };
        let alive = turn(rig, &mut |rig| rig.commit())
            && turn(rig, &mut |rig| {
                for packet in rig.receive(publisher) {
                    if let Packet::Pubrec(ack) = packet {
                        accepted.push(n.to_string());
                        rig.send(publisher, &pubrel(ack.packet_id.get()));
                    }
                }
            })
            && turn(rig, &mut |rig| {
                for packet in rig.receive(subscriber) {
                    take(rig, subscriber, packet, &mut app, &mut ids, n);
                }
            })
            && turn(rig, &mut |rig| rig.pass(100))
            && turn(rig, &mut |rig| {
                for packet in rig.receive(subscriber) {
                    take(rig, subscriber, packet, &mut app, &mut ids, n);
                }
            })
            && turn(rig, &mut |rig| {
                let letters = rig.broker.dead_letters(rig.now);
                keep(&mut kept, &letters);
                let numbers: Vec<u64> = letters.iter().map(|letter| letter.number).collect();
                // The last one: the sink is killed before it says so.
                if n != 6 {
                    rig.broker.letters_stored(&numbers, rig.now);
                }
            })
            && turn(rig, &mut |rig| rig.pass(30));
        if !alive {
            died = true;
            break;
        }
    }
    rig.crash(mode);
    (subscriber, _) = rig.durable("s");
    for _ in 0..8 {
        let packets = rig.settle(subscriber);
        for packet in packets {
            take(rig, subscriber, packet, &mut app, &mut ids, u16::MAX);
        }
        rig.pass(100);
    }
    keep(&mut kept, &rig.dead());
    for message in &accepted {
        let delivered = app.iter().filter(|payload| *payload == message).count();
        let letters = kept.values().filter(|payload| *payload == message).count();
        if delivered + letters != 1 {
            return Err(format!("{message}: delivered {delivered}, letters {letters}, after {steps} steps"));
        }
    }
    Ok(died)
}

fn keep(kept: &mut BTreeMap<String, String>, letters: &[DeadLetter]) {
    for letter in letters {
        let payload = String::from_utf8(letter.payload.to_vec()).unwrap();
        let before = kept.insert(letter.id.clone(), payload.clone());
        assert!(before.is_none_or(|before| before == payload), "{} is another letter now", letter.id);
    }
}

/// A subscriber that does QoS 2 by the book: it refuses every third message, and acknowledges nothing while its turn is
/// below 3, so that its queue is full.
fn take(
    rig: &mut Rig,
    conn: ConnId,
    packet: Packet,
    app: &mut Vec<String>,
    ids: &mut BTreeMap<u16, String>,
    turn: u16,
) {
    match packet {
        Packet::Publish(publish) => {
            let packet = publish.packet_id.unwrap().get();
            let payload = String::from_utf8(publish.payload.to_vec()).unwrap();
            if payload == "2" {
                let refused = Ack::with_reason(id(packet), ReasonCode::UnspecifiedError);
                return rig.send(conn, &Packet::Pubrec(refused));
            }
            if turn < 4 && payload == "1" {
                // It takes its time; after a crash it does not remember.
                return;
            }
            // A known id is a repetition.
            if let std::collections::btree_map::Entry::Vacant(place) = ids.entry(packet) {
                place.insert(payload.clone());
                app.push(payload);
            }
            rig.send(conn, &pubrec(packet));
        }
        Packet::Pubrel(ack) => {
            ids.remove(&ack.packet_id.get());
            rig.send(conn, &pubcomp(ack.packet_id.get()));
        }
        _ => {}
    }
}

#[test]
fn at_every_crash_each_message_is_delivered_or_has_one_letter() {
    for overflow in [Overflow::DropNewest, Overflow::DropOldest] {
        for mode in CrashMode::ALL {
            sweep(overflow, Planted::default(), mode).unwrap();
        }
    }
}

#[test]
fn the_sweep_finds_a_letter_that_is_not_in_the_record_that_settles() {
    let planted = Planted { letter_after_settle: true, ..Planted::default() };
    let found = sweep(Overflow::DropNewest, planted, CrashMode::DropUnsynced).unwrap_err();
    assert!(found.contains("delivered 0, letters 0"), "{found}");
}

#[test]
fn the_sweep_finds_a_refusal_that_is_not_in_the_record_of_the_message() {
    let planted = Planted { refusal_forgotten: true, ..Planted::default() };
    let found = sweep(Overflow::DropNewest, planted, CrashMode::DropUnsynced).unwrap_err();
    assert!(found.contains("delivered 1, letters 1"), "{found}");
}

#[test]
fn subscribers_hear_of_a_letter_once_also_over_a_crash() {
    let mut rig = small(Overflow::DropNewest);
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::AtLeastOnce);
    let (reader, _) = rig.durable("reader");
    rig.subscribe(reader, "$dead/#", Qos::AtLeastOnce);
    let publisher = rig.clean("p");
    for n in 1..=3 {
        rig.publish(publisher, "a", &n.to_string(), Qos::AtLeastOnce, n);
    }
    assert_eq!(publishes(&rig.settle(reader)), [("3".into(), 1, 1, false)]);
    rig.send(reader, &puback(1));
    rig.pass(100);
    rig.crash(CrashMode::DropUnsynced);
    let (reader, _) = rig.durable("reader");
    rig.pass(100);
    assert_eq!(publishes(&rig.settle(reader)), []);
    assert_eq!(rig.dead().len(), 1, "nobody has stored it");
}

#[test]
fn what_was_stored_is_not_handed_out_again_and_the_rest_is_also_from_a_snapshot() {
    let mut rig = small(Overflow::DropNewest);
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::AtLeastOnce);
    let publisher = rig.clean("p");
    for n in 1..=4 {
        rig.publish(publisher, "a", &n.to_string(), Qos::AtLeastOnce, n);
    }
    let letters = rig.dead();
    assert_eq!(letters.len(), 2);
    rig.broker.letters_stored(&[letters[0].number], rig.now);
    rig.pass(100);
    for mode in CrashMode::ALL {
        rig.crash(mode);
        let again = rig.dead();
        assert_eq!(again.len(), 1);
        assert_eq!((&again[0].id, &again[0].payload), (&letters[1].id, &letters[1].payload));
    }
}

#[test]
fn a_session_that_ends_with_very_many_messages_gives_its_letters_in_parts() {
    let config =
        BrokerConfig { sys_interval: Duration::ZERO, max_letters: usize::MAX, ..BrokerConfig::default() };
    let mut rig = Rig::with(config, 64 << 20);
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::AtLeastOnce);
    rig.broker.lost(subscriber, rig.now);
    let publisher = rig.clean("p");
    let count = 20_000;
    for n in 0..count {
        rig.publish(publisher, "a", "x", Qos::AtLeastOnce, (n % 60_000) as u16 + 1);
        if n % 500 == 0 {
            rig.settle(publisher);
        }
    }
    rig.commit();
    let mut connect = Connect::new(Version::V5, text("s"));
    connect.clean_start = true;
    let began = std::time::Instant::now();
    rig.connect_with(connect);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(rig.broker.letters_kept(), count);
    rig.crash(CrashMode::DropUnsynced);
    let (mut got, mut ids) = (0, std::collections::HashSet::new());
    loop {
        let some = rig.broker.dead_letters(rig.now);
        if some.is_empty() && got == count {
            break;
        }
        assert!(some.len() <= 64);
        got += some.len();
        assert!(some.iter().all(|letter| &*letter.reason == reason::ENDED && ids.insert(letter.id.clone())));
        let numbers: Vec<u64> = some.iter().map(|letter| letter.number).collect();
        rig.broker.letters_stored(&numbers, rig.now);
        rig.pass(1);
    }
    rig.pass(100);
    rig.crash(CrashMode::DropUnsynced);
    assert_eq!((rig.dead().len(), rig.broker.letters_kept()), (0, 0));
}

#[test]
fn letters_that_nobody_stores_are_bounded() {
    let config = BrokerConfig {
        sys_interval: Duration::ZERO,
        max_queued: 1,
        max_letters: 3,
        ..BrokerConfig::default()
    };
    let mut rig = Rig::with(config, 64 << 20);
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::AtLeastOnce);
    let publisher = rig.clean("p");
    for n in 1..=10 {
        rig.publish(publisher, "a", &n.to_string(), Qos::AtLeastOnce, n);
    }
    rig.commit();
    rig.pass(100);
    assert_eq!((rig.broker.letters_kept(), rig.broker.counters().forgotten_letters), (3, 6));
    let left: Vec<_> = rig.dead().iter().map(|letter| letter.payload.clone()).collect();
    assert_eq!(left, ["8", "9", "10"]);
}

#[test]
fn a_letter_is_published_again_once_and_only_to_somebody() {
    let mut rig = Rig::new();
    let post =
        || Post { topic: text("a"), payload: "x".into(), letter: Some("mqtt-7".into()), ..Post::default() };
    assert_eq!(rig.broker.post(post(), rig.now), Err(PostError::NoSubscribers));
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::ExactlyOnce);
    let Posted(ticket) = rig.broker.post(post(), rig.now).unwrap();
    assert!(!rig.broker.is_committed(ticket));
    rig.commit();
    assert!(rig.broker.is_committed(ticket));
    assert_eq!(publishes(&rig.receive(subscriber)), [("x".into(), 2, 1, false)]);
    rig.crash(CrashMode::DropUnsynced);
    rig.broker.post(post(), rig.now).unwrap();
    let (subscriber, _) = rig.durable("s");
    assert_eq!(publishes(&rig.settle(subscriber)), [("x".into(), 2, 1, true)]);
    let other = Post { letter: Some("mqtt-8".into()), ..post() };
    rig.broker.post(other, rig.now).unwrap();
    assert_eq!(publishes(&rig.settle(subscriber)), [("x".into(), 2, 2, false)]);
    assert_eq!(rig.broker.post(Post { topic: text("a/#"), ..post() }, rig.now), Err(PostError::Topic));
}
