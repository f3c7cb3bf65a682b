//! RabbitMQ with its MQTT plugin: one for all cases, which takes ten seconds to start, and one of its own for a case that
//! stops it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use postroad_conformance::{Failure, check_certificate, run_all};
use postroad_core::{
    Backend, Envelope, ErrorKind, PublisherExt as _, Receipt, SubscribeOptions, SubscriptionExt as _,
};
use postroad_mqtt::client::{Mqtt, MqttOptions};
use postroad_testbed::docker::Daemon;
use postroad_testbed::{Broker, Mode, Options, Running, Service, Testbed, Wanted};

/// One version of it.
#[derive(PartialEq, Eq)]
pub(crate) struct Kind {
    /// Of its certificate.
    pub(crate) name: &'static str,
    version: &'static str,
    mode: Mode,
}

/// A process, by Debian's package. It has 3.1.1 only, and closes the connection when 5.0 is asked for.
pub(crate) const V3_10: Kind = Kind { name: "mqtt-rabbitmq-3.10", version: "3.10", mode: Mode::Native };
/// A container. It has 5.0.
pub(crate) const V4_0: Kind = Kind { name: "mqtt-rabbitmq-4.0", version: "4.0", mode: Mode::Container };

pub(crate) enum Lent {
    Shared(SocketAddr),
    Own(Box<Running>),
}

impl Kind {
    fn start(&self) -> Running {
        let wanted = Wanted { broker: Broker::RabbitMq, version: Some(self.version.to_owned()) };
        let options = Options { mode: Some(self.mode), ..Options::default() };
        Testbed::start(wanted, &options).expect("RabbitMQ")
    }

    pub(crate) fn lend(&self, harm: bool) -> Lent {
        static SHARED: [OnceLock<Running>; 2] = [const { OnceLock::new() }; 2];
        if harm {
            return Lent::Own(Box::new(self.start()));
        }
        // It ends with this process.
        let shared = &SHARED[usize::from(self.mode == Mode::Container)];
        Lent::Shared(address(shared.get_or_init(|| self.start())))
    }

    /// Whether it can be had here. Where containers are asked for, it must be.
    pub(crate) fn is_there(&self) -> bool {
        if self.mode == Mode::Native {
            return true;
        }
        let mode = std::env::var("POSTROAD_TESTBED").unwrap_or_default();
        if mode == "native" {
            return false;
        }
        match Daemon::find() {
            Ok(_) => true,
            Err(why) => {
                assert!(mode != "docker", "{why:#}");
                println!("not run: RabbitMQ {} in a container ({why:#})", self.version);
                false
            }
        }
    }
}

fn address(running: &Running) -> SocketAddr {
    running.address(Service::Mqtt).expect("its door")
}

impl Lent {
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Shared(address) => *address,
            Self::Own(running) => address(running),
        }
    }

    /// To be stopped, killed and paused.
    pub(crate) fn harm(&mut self) -> Result<&mut Running, Failure> {
        match self {
            Self::Shared(_) => Err(Failure::new("others use this one")),
            Self::Own(running) => Ok(running),
        }
    }
}

/// The certificate, where there are containers.
#[test]
fn version_4_0() {
    if !V4_0.is_there() {
        return;
    }
    let harness = crate::harness::MqttHarness::rabbitmq(&V4_0);
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/capabilities"));
    check_certificate(&harness, directory).unwrap();
    let report = run_all(&harness);
    let failures: Vec<_> =
        report.failures().map(|entry| format!("{}: {:?}", entry.case, entry.verdict)).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

async fn try_client(address: SocketAddr, query: &str) -> postroad_core::Result<Mqtt> {
    let url = format!("mqtt://guest:guest@{address}?{query}");
    Mqtt::connect(MqttOptions::from_url(&url).unwrap()).await
}

fn message(topic: &str, payload: String) -> Envelope {
    Envelope::new(topic.parse().unwrap(), payload)
}

fn named(filter: &str) -> SubscribeOptions {
    SubscribeOptions::new(filter.parse().unwrap()).named("n")
}

/// Messages that are persistent and confirmed are there after `kill -9`. Acks may be forgotten: whoever must not do a thing
/// twice compares ids.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_one_loses_no_message_but_acks() {
    const COUNT: usize = 100;
    let mut running = tokio::task::spawn_blocking(|| V3_10.start()).await.unwrap();
    let backend = try_client(address(&running), "qos=1").await.unwrap();
    let mut inbox = backend.subscribe(named("a")).await.unwrap();
    let publisher = backend.publisher().await.unwrap();
    let mut ids = BTreeSet::new();
    for number in 0..COUNT {
        let envelope = message("a", number.to_string());
        ids.insert(envelope.id.clone());
        assert!(publisher.send(envelope).await.is_confirmed());
    }
    let mut acked = BTreeSet::new();
    for _ in 0..COUNT / 2 {
        let delivery = inbox.next().await.unwrap();
        acked.insert(delivery.envelope.id.clone());
        delivery.ack().await.unwrap();
    }
    drop(inbox);
    let running = tokio::task::spawn_blocking(move || {
        running.kill().unwrap();
        running.start().unwrap();
        running
    });
    let running = running.await.unwrap();
    let backend = try_client(address(&running), "qos=1").await.unwrap();
    let mut inbox = backend.subscribe(named("a")).await.unwrap();
    let mut came = BTreeSet::new();
    while let Ok(delivery) = tokio::time::timeout(Duration::from_secs(2), inbox.next()).await {
        let delivery = delivery.unwrap();
        came.insert(delivery.envelope.id.clone());
        delivery.ack().await.unwrap();
    }
    println!("{} of {} acked ones came again", came.intersection(&acked).count(), acked.len());
    let lost: Vec<_> = ids.iter().filter(|id| !came.contains(id) && !acked.contains(id)).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

/// In 3.1.1 it grants less and answers less, in 5.0 it says so in CONNACK: asked for QoS 2, a client is told in each case.
#[tokio::test(flavor = "multi_thread")]
async fn qos_2_is_refused_and_not_given_as_qos_1() {
    let lent = tokio::task::spawn_blocking(|| V3_10.lend(false)).await.unwrap();
    let topic = format!("qos2/{}", postroad_core::MessageId::generate());
    let backend = try_client(lent.address(), "").await.unwrap();
    let why = backend.subscribe(named(&topic)).await.err().unwrap();
    assert_eq!(why.kind(), ErrorKind::Unsupported, "{why}");
    match backend.publisher().await.unwrap().send(message(&topic, String::new())).await {
        Receipt::Unknown(why) => assert_eq!(why.kind(), ErrorKind::Unsupported, "{why}"),
        other => panic!("{other:?}"),
    }
    // An outbox does not send it again and again.
    let directory = tempfile::tempdir().unwrap();
    let listener = try_client(lent.address(), "qos=1").await.unwrap();
    let mut inbox = listener.subscribe(named(&topic)).await.unwrap();
    let backend =
        try_client(lent.address(), &format!("outbox={}", directory.path().display())).await.unwrap();
    let publisher = backend.publisher().await.unwrap();
    match publisher.send(message(&topic, String::new())).await {
        Receipt::Unknown(why) => assert_eq!(why.kind(), ErrorKind::Unsupported, "{why}"),
        other => panic!("{other:?}"),
    }
    inbox.next().await.unwrap().ack().await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(1), inbox.next()).await.is_err(), "it was sent again");
    assert!(matches!(publisher.send(message(&topic, String::new())).await, Receipt::Refused(_)));
    if V4_0.is_there() {
        let lent = tokio::task::spawn_blocking(|| V4_0.lend(false)).await.unwrap();
        let why = try_client(lent.address(), "").await.unwrap_err();
        assert_eq!(why.kind(), ErrorKind::Unsupported, "{why}");
    }
}
