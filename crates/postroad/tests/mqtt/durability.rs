//! `mqtt.durability = "os"`: what is acknowledged survives `kill -9`, and nobody waits for the disk.

use std::time::{Duration, Instant};

use crate::broker::Broker;
use crate::client::Connect;
use crate::kills;
use crate::peer::Verdict;
use crate::shim::Shim;
use crate::support::{seed, turn};
use crate::wire::Version;

const MESSAGES: u32 = 300;

#[test]
fn kills_lose_nothing_that_was_written() {
    let _turn = turn();
    let mut rng = seed("kills_lose_nothing_that_was_written");
    let mut broker = Broker::with_settings(&["mqtt.durability=os"], None);
    let pauses = Duration::from_millis(30)..Duration::from_millis(300);
    let verdict = kills::run(&mut broker, kills::crowd(5), kills::kills(15), pauses, &mut rng);
    assert_eq!(verdict, Verdict::default());
}

/// Publishes one message at a time to a durable session; how long that took, and how often the disk was synced.
fn publish(durability: &str) -> (Duration, u64) {
    let shim = Shim::new();
    let broker = Broker::with_settings(&[&format!("mqtt.durability={durability}")], Some(&shim));
    let mut reader = Connect::durable(Version::V5, "reader").open(broker.port());
    reader.subscribe("t", 1);
    let mut writer = broker.v5("writer");
    // Packet ids are reserved with the first one.
    writer.publish("t", "first", 1);
    shim.on("delay");
    let (before, start) = (shim.calls(), Instant::now());
    for n in 0..MESSAGES {
        assert_eq!(writer.publish("t", &n.to_string(), 1), 0);
    }
    let took = start.elapsed();
    let syncs = shim.calls() - before;
    reader.texts(MESSAGES as usize + 1);
    (took, syncs)
}

#[test]
fn no_acknowledgement_waits_for_a_slow_disk() {
    let _turn = turn();
    let (safe, safe_syncs) = publish("fsync");
    let (quick, quick_syncs) = publish("os");
    println!("fsync: {safe:?}, {safe_syncs} syncs; os: {quick:?}, {quick_syncs} syncs");
    assert!(
        safe_syncs >= u64::from(MESSAGES) && safe > Duration::from_millis(5) * MESSAGES,
        "the disk is not slow"
    );
    assert!(quick_syncs < u64::from(MESSAGES) / 10, "{quick_syncs} syncs");
    assert!(quick < safe / 2, "{quick:?} against {safe:?}");
}
