//! `kill -9` of the broker at random moments, and of its clients, under load: nothing completed is lost, nothing at
//! QoS 2 comes twice, messages of one publisher stay in order, and every durable session is kept.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::broker::Broker;
use crate::peer::{Outside, Publisher, Subscriber, Verdict};
use crate::support::{seed, turn};
use crate::wire::Version;

/// How long nothing may come before what is missing counts as lost.
const SILENCE: Duration = Duration::from_secs(4);

/// Who lives on the broker while it is killed.
pub(crate) struct Load {
    pub(crate) publishers: Vec<Publisher>,
    /// Each gets every message.
    pub(crate) subscribers: Vec<Subscriber>,
    /// Members of one shared subscription: together they get every message once.
    pub(crate) group: Vec<Subscriber>,
    /// Deaths of clients in a thousand of their steps.
    pub(crate) deaths: u32,
}

/// Kills the broker `kills` times with pauses from `pauses`, lets everything come to rest, and judges.
pub(crate) fn run(
    broker: &mut Broker,
    mut load: Load,
    kills: usize,
    pauses: Range<Duration>,
    rng: &mut fastrand::Rng,
) -> Verdict {
    let outside = Outside {
        port: broker.port(),
        finish: AtomicBool::new(false),
        over: AtomicBool::new(false),
        received: AtomicU32::new(0),
        deaths: load.deaths,
    };
    for subscriber in load.subscribers.iter_mut().chain(&mut load.group) {
        subscriber.begin(outside.port);
    }
    std::thread::scope(|scope| {
        let outside = &outside;
        for subscriber in load.subscribers.iter_mut().chain(&mut load.group) {
            let mut rng = rng.fork();
            scope.spawn(move || subscriber.run(outside, &mut rng));
        }
        let mut publishers = Vec::new();
        for publisher in &mut load.publishers {
            let mut rng = rng.fork();
            publishers.push(scope.spawn(move || publisher.run(outside, &mut rng)));
        }
        for round in 1..=kills {
            let (least, most) = (pauses.start.as_micros() as u64, pauses.end.as_micros() as u64);
            std::thread::sleep(Duration::from_micros(rng.u64(least..most)));
            broker.kill9();
            // A kill in the middle of the recovery from the kill.
            while rng.u8(..4) == 0 {
                broker.respawn();
                std::thread::sleep(Duration::from_millis(rng.u64(..40)));
                broker.kill9();
            }
            broker.restart();
            if round % 100 == 0 {
                println!("{round} kills, {} deliveries", outside.received.load(Ordering::Relaxed));
            }
        }
        outside.finish.store(true, Ordering::Relaxed);
        let mut quiet = Instant::now();
        let mut before = 0;
        while quiet.elapsed() < SILENCE || publishers.iter().any(|publisher| !publisher.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
            let now = outside.received.load(Ordering::Relaxed);
            if now != before {
                (before, quiet) = (now, Instant::now());
            }
            if quiet.elapsed() > SILENCE * 10 {
                break;
            }
        }
        outside.over.store(true, Ordering::Relaxed);
    });
    judge(load)
}

fn judge(load: Load) -> Verdict {
    let mut verdict = Verdict::default();
    for publisher in &load.publishers {
        let (name, published) = (&publisher.name, publisher.published);
        let once = publisher.exactly_once();
        for subscriber in &load.subscribers {
            verdict.judge(name, published, subscriber.got.iter(), true, once);
        }
        if !load.group.is_empty() {
            let got = load.group.iter().flat_map(|member| &member.got);
            verdict.judge(name, published, got, false, once);
        }
    }
    for publisher in load.publishers {
        println!("{}: {} published", publisher.name, publisher.published);
        verdict.forgotten += publisher.forgotten;
        verdict.faults.extend(publisher.faults);
    }
    for subscriber in load.subscribers.into_iter().chain(load.group) {
        println!("{}: {} received", subscriber.name, subscriber.got.len());
        verdict.forgotten += subscriber.forgotten;
        verdict.faults.extend(subscriber.faults);
    }
    verdict.faults.truncate(20);
    verdict
}

pub(crate) fn kills(default: usize) -> usize {
    std::env::var("POSTROAD_MQTT_KILLS")
        .map_or(default, |text| text.parse().expect("POSTROAD_MQTT_KILLS is a number"))
}

pub(crate) fn crowd(deaths: u32) -> Load {
    Load {
        publishers: vec![
            Publisher::new("pub-v3", Version::V3, 2),
            Publisher::new("pub-v5", Version::V5, 2),
            Publisher::new("pub-qos1", Version::V5, 1),
        ],
        subscribers: vec![
            Subscriber::new("sub-v3", Version::V3, "k/#"),
            Subscriber::new("sub-v5", Version::V5, "k/+"),
        ],
        group: vec![
            Subscriber::new("member-1", Version::V5, "$share/g/k/#"),
            Subscriber::new("member-2", Version::V5, "$share/g/k/#"),
        ],
        deaths,
    }
}

const PAUSES: Range<Duration> = Duration::from_millis(30)..Duration::from_millis(300);

/// `cargo xtask chaos mqtt` does it a thousand times.
#[test]
fn random_kills_of_broker_and_clients_lose_and_duplicate_nothing() {
    let _turn = turn();
    let mut rng = seed("random_kills_of_broker_and_clients");
    let verdict = run(&mut Broker::start(), crowd(5), kills(30), PAUSES, &mut rng);
    assert_eq!(verdict, Verdict::default());
}

/// Only clients die, often.
#[test]
fn deaths_of_clients_lose_and_duplicate_nothing() {
    let _turn = turn();
    let mut rng = seed("deaths_of_clients");
    let mut load = crowd(30);
    for publisher in std::mem::take(&mut load.publishers) {
        load.publishers.push(publisher.quota(1000).gap(Duration::from_micros(500)));
    }
    let verdict = run(&mut Broker::start(), load, 0, PAUSES, &mut rng);
    assert_eq!(verdict, Verdict::default());
}
