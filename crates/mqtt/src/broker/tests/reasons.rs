//! Every way in which a message can fail to arrive has a letter with its reason, before and after a crash.

use super::rig::{Rig, id, publishes, text};
use crate::access::{Access, Attempt, Denied, Exchange, Identity, OpenAccess, Permit};
use crate::broker::{BrokerConfig, Overflow, reason};
use crate::codec::{
    Ack, Connect, Disconnect, DisconnectProperties, Packet, Publish, PublishProperties, Qos, ReasonCode,
    Unsubscribe, Version, Will,
};
use postroad_core::retry::RetryPolicy;
use postroad_journal::storage::CrashMode;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Lets everybody do everything, until topics that begin with `gate` are closed.
#[derive(Debug, Default)]
pub(super) struct Gate(AtomicBool);

impl Gate {
    fn close(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn lets(&self, topic: &str) -> bool {
        !topic.starts_with("gate") || !self.0.load(Ordering::Relaxed)
    }
}

impl Access for Gate {
    fn authenticate(&self, attempt: &Attempt<'_>) -> Result<Identity, Denied> {
        OpenAccess.authenticate(attempt)
    }
    fn begin_exchange(&self, method: &str, attempt: &Attempt<'_>) -> Result<Box<dyn Exchange>, Denied> {
        OpenAccess.begin_exchange(method, attempt)
    }
    fn may_publish(&self, who: &Identity, client: &str, topic: &str, retain: bool) -> bool {
        self.lets(topic) && OpenAccess.may_publish(who, client, topic, retain)
    }
    fn may_subscribe(&self, who: &Identity, client: &str, filter: &str) -> Permit {
        OpenAccess.may_subscribe(who, client, filter)
    }
    fn may_receive(&self, who: &Identity, client: &str, topic: &str) -> bool {
        self.lets(topic) && OpenAccess.may_receive(who, client, topic)
    }
}

struct Scene {
    what: &'static str,
    play: fn(&mut Rig),
    reason: &'static str,
    payloads: &'static [&'static str],
    attempts: u32,
}

const fn scene(
    what: &'static str,
    play: fn(&mut Rig),
    reason: &'static str,
    payloads: &'static [&'static str],
    attempts: u32,
) -> Scene {
    Scene { what, play, reason, payloads, attempts }
}

const SCENES: &[Scene] = &[
    scene("refused at QoS 1", |rig| refused(rig, Qos::AtLeastOnce), reason::REFUSED, &["1"], 1),
    scene("refused at QoS 2", |rig| refused(rig, Qos::ExactlyOnce), reason::REFUSED, &["1"], 1),
    scene("expired in the queue", expired, reason::EXPIRED, &["1"], 0),
    scene("a queue is full: the newest", |rig| overflow(rig, Overflow::DropNewest), reason::FULL, &["3"], 0),
    scene("a queue is full: the oldest", |rig| overflow(rig, Overflow::DropOldest), reason::FULL, &["1"], 0),
    scene("a work queue is full", full_work_queue, reason::FULL, &["3"], 0),
    scene("retained messages do not fit", left_out, reason::FULL, &["r3"], 0),
    scene("too large for the client", too_large, reason::TOO_LARGE, &["a long payload"], 0),
    scene("not allowed any more", not_allowed, reason::NOT_ALLOWED, &["1"], 0),
    scene("clean start", clean_start, reason::ENDED, &["1", "2"], 0),
    scene("the client ends its session", ended, reason::ENDED, &["1", "2"], 1),
    scene("the session expires", session_expired, reason::SESSION_EXPIRED, &["1", "2"], 0),
    scene("a work queue is removed", queue_removed, reason::QUEUE_REMOVED, &["1", "2"], 0),
    scene("deliveries are exhausted", exhausted, reason::EXHAUSTED, &["1"], 2),
    scene("a consumer refuses the only try", refused_work, reason::CONSUMER_REFUSED, &["1"], 1),
    scene("a message of a work queue expires", expired_work, reason::EXPIRED, &["1"], 1),
    scene("a will may not be published any more", will, reason::WILL, &["bye"], 0),
    scene("the log has lost it", missing, reason::MISSING, &[""], 0),
];

fn rig(policy: u32, segment_bytes: u64) -> Rig {
    let queue_policy = RetryPolicy {
        ack_wait: Duration::from_secs(30),
        backoff: vec![Duration::from_secs(1)],
        max_deliveries: NonZeroU32::new(policy),
    };
    let config =
        BrokerConfig { sys_interval: Duration::ZERO, max_queued: 2, queue_policy, ..BrokerConfig::default() };
    Rig::with(config, segment_bytes)
}

#[test]
fn whatever_does_not_arrive_has_a_letter() {
    for Scene { what, play, reason, payloads, attempts } in SCENES {
        for crash in [false, true] {
            let policy = if *reason == reason::CONSUMER_REFUSED { 1 } else { 2 };
            let mut rig = rig(policy, if *reason == reason::MISSING { 3000 } else { 64 << 20 });
            play(&mut rig);
            rig.pass(100);
            if crash {
                rig.crash(CrashMode::DropUnsynced);
            }
            let letters = rig.dead();
            let found: Vec<(&str, &str)> = letters
                .iter()
                .map(|letter| (&*letter.reason, std::str::from_utf8(&letter.payload).unwrap()))
                .collect();
            let expected: Vec<(&str, &str)> = payloads.iter().map(|payload| (*reason, *payload)).collect();
            assert_eq!(found, expected, "{what}, crash: {crash}");
            assert!(letters.iter().all(|l| l.attempts == *attempts), "{what}, crash: {crash}: {letters:?}");
            assert!(letters.iter().all(|letter| letter.died > 0 && !letter.client.is_empty()), "{what}");
            // And nothing makes a second one.
            rig.pass(100_000);
            rig.crash(CrashMode::DropUnsynced);
            assert_eq!(rig.dead().len(), letters.len(), "{what}: nobody has stored them, and no more came");
        }
    }
}

#[test]
fn qos_0_is_not_promised() {
    let mut rig = rig(2, 64 << 20);
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::ExactlyOnce);
    rig.broker.lost(subscriber, rig.now);
    let publisher = rig.clean("p");
    for _ in 0..5 {
        rig.publish(publisher, "a", "x", Qos::AtMostOnce, 0);
    }
    rig.commit();
    assert!(rig.dead().is_empty());
}

fn publish(rig: &mut Rig, topic: &str, payloads: &[&str]) {
    let publisher = rig.clean("publisher");
    for (n, payload) in (1..).zip(payloads) {
        let mut publish = Publish::new(text(topic), (*payload).to_owned());
        (publish.qos, publish.packet_id) = (Qos::ExactlyOnce, Some(id(n)));
        publish.retain = payload.starts_with('r');
        rig.send(publisher, &Packet::Publish(publish));
        rig.commit();
    }
}

fn publish_expiring(rig: &mut Rig, topic: &str) {
    let (publisher, _) = rig.durable("publisher");
    let mut publish = Publish::new(text(topic), "1".to_owned());
    (publish.qos, publish.packet_id) = (Qos::AtLeastOnce, Some(id(1)));
    let properties = PublishProperties { message_expiry_interval: Some(5), ..PublishProperties::default() };
    publish.properties = Some(Box::new(properties));
    rig.send(publisher, &Packet::Publish(publish));
    rig.commit();
}

/// A session that subscribes to `a` and is away.
fn absent(rig: &mut Rig, filter: &str) {
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, filter, Qos::ExactlyOnce);
    rig.broker.lost(subscriber, rig.now);
}

fn refused(rig: &mut Rig, qos: Qos) {
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", qos);
    publish(rig, "a", &["1"]);
    assert_eq!(publishes(&rig.settle(subscriber)).len(), 1);
    let refusal = Ack::with_reason(id(1), ReasonCode::NotAuthorized);
    let packet = if qos == Qos::AtLeastOnce { Packet::Puback(refusal) } else { Packet::Pubrec(refusal) };
    rig.send(subscriber, &packet);
}

fn expired(rig: &mut Rig) {
    absent(rig, "a");
    publish_expiring(rig, "a");
    rig.pass(6000);
    rig.durable("s");
}

fn overflow(rig: &mut Rig, overflow: Overflow) {
    rig.config.overflow = overflow;
    rig.crash(CrashMode::KeepAll);
    absent(rig, "a");
    publish(rig, "a", &["1", "2", "3"]);
}

fn full_work_queue(rig: &mut Rig) {
    absent(rig, "$queue/work/a");
    publish(rig, "a", &["1", "2", "3"]);
}

fn left_out(rig: &mut Rig) {
    for n in 1..=3 {
        publish(rig, &format!("a/{n}"), &[&format!("r{n}")]);
    }
    absent(rig, "a/#");
}

fn too_large(rig: &mut Rig) {
    absent(rig, "a");
    publish(rig, "a", &["a long payload"]);
    let mut connect = Connect::new(Version::V5, text("s"));
    connect.clean_start = false;
    connect.properties.session_expiry_interval = Some(u32::MAX);
    connect.properties.maximum_packet_size = NonZeroU32::new(20);
    // Its CONNACK does not fit, either.
    let conn = rig.dial(Version::V5);
    rig.send(conn, &Packet::Connect(Box::new(connect)));
    rig.settle(conn);
}

fn not_allowed(rig: &mut Rig) {
    absent(rig, "gate");
    publish(rig, "gate", &["1"]);
    rig.gate.close();
    rig.durable("s");
}

fn clean_start(rig: &mut Rig) {
    absent(rig, "a");
    publish(rig, "a", &["1", "2"]);
    let mut connect = Connect::new(Version::V5, text("s"));
    connect.clean_start = true;
    rig.connect_with(connect);
}

fn ended(rig: &mut Rig) {
    let (subscriber, _) = rig.durable("s");
    rig.subscribe(subscriber, "a", Qos::ExactlyOnce);
    publish(rig, "a", &["1", "2"]);
    assert_eq!(publishes(&rig.settle(subscriber)).len(), 2);
    let mut disconnect = Disconnect::new(ReasonCode::Success);
    let properties =
        DisconnectProperties { session_expiry_interval: Some(0), ..DisconnectProperties::default() };
    disconnect.properties = Some(Box::new(properties));
    rig.send(subscriber, &Packet::Disconnect(disconnect));
    rig.commit();
}

fn session_expired(rig: &mut Rig) {
    let mut connect = Connect::new(Version::V5, text("s"));
    connect.properties.session_expiry_interval = Some(60);
    let (subscriber, _) = rig.connect_with(connect);
    rig.subscribe(subscriber, "a", Qos::AtLeastOnce);
    rig.broker.lost(subscriber, rig.now);
    publish(rig, "a", &["1", "2"]);
    rig.pass(61_000);
}

fn queue_removed(rig: &mut Rig) {
    absent(rig, "$queue/work/a");
    publish(rig, "a", &["1", "2"]);
    let filters = vec![text("$queue/work/a")];
    // Before it is given anything.
    let conn = rig.dial(Version::V5);
    let mut connect = Connect::new(Version::V5, text("s"));
    connect.properties.session_expiry_interval = Some(u32::MAX);
    connect.clean_start = false;
    rig.send(conn, &Packet::Connect(Box::new(connect)));
    rig.send(conn, &Packet::Unsubscribe(Unsubscribe { packet_id: id(3), filters, properties: None }));
    rig.commit();
}

fn exhausted(rig: &mut Rig) {
    let worker = rig.clean("worker");
    rig.subscribe(worker, "$queue/work/a", Qos::AtLeastOnce);
    publish(rig, "a", &["1"]);
    for _ in 0..2 {
        rig.settle(worker);
        rig.pass(31_000);
        rig.pass(2_000);
        rig.send(worker, &Packet::Pingreq);
    }
}

fn refused_work(rig: &mut Rig) {
    let worker = rig.clean("worker");
    rig.subscribe(worker, "$queue/work/a", Qos::AtLeastOnce);
    publish(rig, "a", &["1"]);
    assert_eq!(publishes(&rig.settle(worker)).len(), 1);
    rig.broker.lost(worker, rig.now);
    rig.commit();
}

fn expired_work(rig: &mut Rig) {
    absent(rig, "$queue/work/a");
    publish_expiring(rig, "a");
    rig.pass(6000);
    rig.durable("s");
}

fn will(rig: &mut Rig) {
    let mut connect = Connect::new(Version::V5, text("mortal"));
    connect.will = Some(Will {
        topic: text("gate"),
        payload: "bye".into(),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: None,
    });
    let (mortal, _) = rig.connect_with(connect);
    rig.gate.close();
    rig.broker.lost(mortal, rig.now);
    rig.commit();
}

fn missing(rig: &mut Rig) {
    absent(rig, "a");
    publish(rig, "a", &["1"]);
    let (other, _) = rig.durable("other");
    rig.subscribe(other, "b", Qos::AtLeastOnce);
    let publisher = rig.clean("p");
    for n in 1..=60 {
        rig.publish(publisher, "b", "x", Qos::AtLeastOnce, n);
        for (_, _, packet, _) in publishes(&rig.settle(other)) {
            rig.send(other, &super::rig::puback(packet));
        }
    }
    rig.commit();
    // Nothing of the broker does that.
    rig.broker.book.log().trim(u64::MAX).unwrap();
    rig.durable("s");
}
