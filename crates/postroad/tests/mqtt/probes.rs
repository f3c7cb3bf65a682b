//! Five questions to a broker that is killed, each about one moment of the QoS 2 exchange, with the answers of a
//! broker that is known to forget: so the questions can be failed.

use std::time::Duration;

use crate::broker::Broker;
use crate::client::{Client, Connect};
use crate::kills::{Load, run};
use crate::peer::{Publisher, Subscriber, Verdict};
use crate::support::{seed, turn};
use crate::wire::{PUBCOMP, PUBREC, PUBREL, Packet, Publish, Version, ack};

const TOPIC: &str = "probe/t";
const FEW: u16 = 15;

/// What one probe saw.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    lost: usize,
    duplicated: usize,
    /// Both durable sessions were there after the kill.
    kept: bool,
}

const WHOLE: Seen = Seen { lost: 0, duplicated: 0, kept: true };

fn durable(broker: &Broker, version: Version, id: &str) -> Client {
    Connect::durable(version, id).open(broker.port())
}

/// A durable subscription whose client is away.
fn subscribe(broker: &Broker, version: Version) {
    let mut subscriber = durable(broker, version, "probe-sub");
    assert_eq!(subscriber.subscribe(TOPIC, 2), 2);
    subscriber.disconnect();
}

/// Messages 1 to `FEW`, as far as PUBREC.
fn half(client: &mut Client) {
    for id in 1..=FEW {
        let bytes = Publish::new(TOPIC, id.to_string(), 2).id(id).encode(client.version);
        client.say(&bytes);
    }
    for id in 1..=FEW {
        assert_eq!(client.acked(PUBREC, id), 0, "PUBREC of {id}");
    }
}

/// Takes what comes until nothing does, and compares with messages 1 to `count`.
fn collect(client: &mut Client, count: usize, kept: bool) -> Seen {
    let mut times = vec![0_usize; count + 1];
    while let Some(packet) = client.poll(Duration::from_secs(1)) {
        let version = client.version;
        match packet {
            Packet::Publish(message) => {
                assert_eq!(message.qos, 2, "{version:?} {message:?}");
                times[message.text().parse::<usize>().expect("a number")] += 1;
                client.say(&ack(PUBREC, message.id));
            }
            Packet::Ack { kind: PUBREL, id, .. } => client.say(&ack(PUBCOMP, id)),
            other => panic!("{other:?}"),
        }
    }
    let lost = times[1..].iter().filter(|&&times| times == 0).count();
    let duplicated = times.iter().map(|times| times.saturating_sub(1)).sum();
    Seen { lost, duplicated, kept }
}

/// A: 300 messages, all four packets done, wait for an absent subscriber; the broker is killed.
fn completed_messages_wait(broker: &mut Broker, version: Version) -> Seen {
    subscribe(broker, version);
    let mut publisher = durable(broker, version, "probe-pub");
    for number in 1..=300 {
        assert_eq!(publisher.publish(TOPIC, &number.to_string(), 2), 0);
    }
    broker.bounce9();
    let present = durable(broker, version, "probe-pub").present;
    let mut subscriber = durable(broker, version, "probe-sub");
    let kept = present && subscriber.present;
    collect(&mut subscriber, 300, kept)
}

/// B: PUBREC was seen; after the kill the publisher sends PUBLISH again with DUP, and completes.
fn publish_again(broker: &mut Broker, version: Version) -> Seen {
    subscribe(broker, version);
    half(&mut durable(broker, version, "probe-pub"));
    broker.bounce9();
    let mut publisher = durable(broker, version, "probe-pub");
    for id in 1..=FEW {
        publisher.publish_this(Publish::new(TOPIC, id.to_string(), 2).id(id).dup());
    }
    let mut subscriber = durable(broker, version, "probe-sub");
    let kept = publisher.present && subscriber.present;
    collect(&mut subscriber, FEW.into(), kept)
}

/// C: the subscriber sent PUBREC; after the kill the broker owes PUBREL with the old identifiers.
/// The answer is how many it paid.
fn owed_pubrels(broker: &mut Broker, version: Version) -> usize {
    let mut subscriber = durable(broker, version, "probe-sub");
    assert_eq!(subscriber.subscribe(TOPIC, 2), 2);
    let mut publisher = durable(broker, version, "probe-pub");
    let mut ids = Vec::new();
    for number in 1..=FEW {
        publisher.publish(TOPIC, &number.to_string(), 2);
        let message = subscriber.raw_message();
        ids.push(message.id);
    }
    for id in &ids {
        subscriber.say(&ack(PUBREC, *id));
    }
    for id in &ids {
        subscriber.acked(PUBREL, *id);
    }
    broker.bounce9();
    let mut subscriber = durable(broker, version, "probe-sub");
    let mut resumed = Vec::new();
    while let Some(packet) = subscriber.poll(Duration::from_secs(1)) {
        match packet {
            Packet::Ack { kind: PUBREL, id, .. } => {
                subscriber.say(&ack(PUBCOMP, id));
                resumed.push(id);
            }
            other => println!("instead of PUBREL: {other:?}"),
        }
    }
    ids.iter().filter(|id| resumed.contains(id)).count()
}

/// D: as B, but the publisher goes on with PUBREL, as it may: it saw PUBREC.
fn release_only(broker: &mut Broker, version: Version) -> Seen {
    subscribe(broker, version);
    half(&mut durable(broker, version, "probe-pub"));
    broker.bounce9();
    let mut publisher = durable(broker, version, "probe-pub");
    for id in 1..=FEW {
        publisher.say(&ack(PUBREL, id));
        let code = publisher.acked(PUBCOMP, id);
        if code != 0 {
            println!("PUBCOMP of {id}: {code:#04x}");
        }
    }
    let mut subscriber = durable(broker, version, "probe-sub");
    let kept = publisher.present && subscriber.present;
    collect(&mut subscriber, FEW.into(), kept)
}

/// E: 4,000 messages, 400 a second, at most 20 open; twelve kills at random moments.
fn under_kills(broker: &mut Broker, version: Version) -> Verdict {
    let mut rng = seed("probe E");
    let load = Load {
        publishers: vec![
            Publisher::new("probe-pub", version, 2).quota(4000).gap(Duration::from_micros(2500)),
        ],
        subscribers: vec![Subscriber::new("probe-sub", version, "k/#")],
        group: Vec::new(),
        deaths: 0,
    };
    run(broker, load, 12, Duration::from_millis(200)..Duration::from_millis(900), &mut rng)
}

macro_rules! both {
    ($($name:ident: $probe:ident => $wanted:expr;)*) => {
        mod v3 { use super::*; $(
            #[test]
            fn $name() {
                let _turn = turn();
                assert_eq!($probe(&mut Broker::start(), Version::V3), $wanted);
            }
        )* }
        mod v5 { use super::*; $(
            #[test]
            fn $name() {
                let _turn = turn();
                assert_eq!($probe(&mut Broker::start(), Version::V5), $wanted);
            }
        )* }
    };
}

both! {
    a_completed_messages_survive_a_kill: completed_messages_wait => WHOLE;
    b_a_publish_sent_again_after_a_kill_is_the_same_message: publish_again => WHOLE;
    c_owed_pubrels_are_resumed_after_a_kill: owed_pubrels => 15;
    d_a_pubrel_after_a_kill_completes_the_message: release_only => WHOLE;
    e_twelve_kills_under_load: under_kills => Verdict::default();
}

/// The questions can be failed: mosquitto as it comes writes its data when it ends, and every half hour.
#[test]
fn a_broker_that_forgets_is_found_out() {
    let _turn = turn();
    let fresh = || Broker::mosquitto("");
    let forgotten = |lost| Seen { lost, duplicated: 0, kept: false };
    assert_eq!(completed_messages_wait(&mut fresh(), Version::V3), forgotten(300), "A");
    assert_eq!(publish_again(&mut fresh(), Version::V3), forgotten(15), "B");
    assert_eq!(owed_pubrels(&mut fresh(), Version::V3), 0, "C");
    assert_eq!(release_only(&mut fresh(), Version::V3), forgotten(15), "D");
    let verdict = under_kills(&mut fresh(), Version::V3);
    println!("E: {verdict:?}");
    assert!(verdict.lost > 0 && verdict.forgotten >= 12, "E: {verdict:?}");
}

/// One that saves often forgets less, and is found out still.
#[test]
fn a_broker_that_saves_often_is_found_out() {
    let _turn = turn();
    let fresh = || Broker::mosquitto("autosave_interval 1\nautosave_on_changes true\n");
    let kept = completed_messages_wait(&mut fresh(), Version::V5);
    println!("A: {kept:?}");
    assert!(kept.kept && kept.lost < 10, "A: sessions and nearly all messages stay: {kept:?}");
    assert_eq!(owed_pubrels(&mut fresh(), Version::V5), 0, "C");
    assert_eq!(release_only(&mut fresh(), Version::V5).lost, 15, "D");
}
