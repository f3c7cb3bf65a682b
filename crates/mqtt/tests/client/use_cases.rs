//! What the kit does not ask: TLS, refusals, an outbox that waits for its server, boxes that are taken, and messages of
//! other clients.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use postroad_core::{
    Backend, Envelope, ErrorKind, MessageId, PublisherExt as _, Receipt, Registry, SubscribeOptions,
    SubscriptionExt as _,
};
use postroad_mqtt::client::{Mqtt, MqttOptions};
use postroad_mqtt::server::TlsFiles;
use tokio::time::timeout;

use crate::own::Own;

const PATIENCE: Duration = Duration::from_secs(20);

async fn client(url: String) -> Mqtt {
    Mqtt::connect(MqttOptions::from_url(&url).unwrap()).await.unwrap()
}

fn message(topic: &str, payload: &str) -> Envelope {
    Envelope::new(topic.parse().unwrap(), payload.to_owned())
}

fn named(filter: &str) -> SubscribeOptions {
    SubscribeOptions::new(filter.parse().unwrap()).named("n")
}

#[tokio::test]
async fn a_registry_knows_both_schemes() {
    let server = Own::start();
    let mut registry = Registry::new();
    postroad_mqtt::client::register(&mut registry);
    assert_eq!(registry.schemes().collect::<Vec<_>>(), ["mqtt", "mqtts"]);
    let backend = registry.connect(&format!("mqtt://{}", server.address())).await.unwrap();
    assert_eq!(backend.name(), "mqtt");
}

#[tokio::test]
async fn an_outbox_waits_for_its_server_and_a_second_life_sends_the_rest() {
    let mut server = Own::start();
    let directory = tempfile::tempdir().unwrap();
    let url = format!("mqtt://{}?outbox={}", server.address(), directory.path().display());
    let consumer = client(format!("mqtt://{}", server.address())).await;
    drop(consumer.subscribe(named("a")).await.unwrap());
    drop(consumer);
    server.stop();

    let first = client(url.clone()).await;
    let publisher = first.publisher().await.unwrap();
    let one = publisher.publish(message("a", "1").with_id(MessageId::text("one").unwrap()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(one.try_get().is_none(), "nobody has it yet");
    // It gives up waiting after five seconds, and keeps the message.
    timeout(PATIENCE, first.close()).await.unwrap().unwrap();
    assert!(matches!(one.try_get(), Some(Receipt::Unknown(_))));
    drop((publisher, first));

    server.restart();
    let second = client(url).await;
    let publisher = second.publisher().await.unwrap();
    // The same again is no second message.
    let again = publisher.publish(message("a", "1").with_id(MessageId::text("one").unwrap()));
    assert!(timeout(PATIENCE, again).await.unwrap().is_confirmed());
    let consumer = client(format!("mqtt://{}", server.address())).await;
    let mut inbox = consumer.subscribe(named("a")).await.unwrap();
    let delivery = timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
    assert_eq!(delivery.envelope.payload, "1");
    delivery.ack().await.unwrap();
    assert!(timeout(Duration::from_millis(300), inbox.next()).await.is_err(), "it came twice");
}

#[tokio::test]
async fn boxes_belong_to_one() {
    let server = Own::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let url = format!("mqtt://{}?outbox={path}/out&inbox={path}/in", server.address());
    let first = client(url.clone()).await;
    let second = Mqtt::connect(MqttOptions::from_url(&url).unwrap()).await;
    assert_eq!(second.unwrap_err().kind(), ErrorKind::Busy);
    // An inbox has room for several names, each for one consumer.
    let other = client(format!("mqtt://{}?inbox={path}/in", server.address())).await;
    let held = first.subscribe(named("a")).await.unwrap();
    assert_eq!(other.subscribe(named("a")).await.err().unwrap().kind(), ErrorKind::Busy);
    drop(held);
    other.subscribe(named("a")).await.unwrap();
}

#[tokio::test]
async fn an_inbox_takes_verdicts_without_a_connection() {
    let mut server = Own::start();
    let directory = tempfile::tempdir().unwrap();
    let url = format!("mqtt://{}?inbox={}", server.address(), directory.path().display());
    let backend = client(url.clone()).await;
    let mut inbox = backend.subscribe(named("a")).await.unwrap();
    let publisher = backend.publisher().await.unwrap();
    for text in ["1", "2"] {
        assert!(publisher.send(message("a", text)).await.is_confirmed());
    }
    let one = timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
    let two = timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
    server.stop();
    let gone = timeout(PATIENCE, inbox.next()).await.unwrap().unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Disconnected);
    assert_eq!(one.envelope.payload, "1");
    timeout(PATIENCE, one.ack()).await.unwrap().unwrap();
    drop((inbox, two));
    server.restart();
    let backend = client(url).await;
    let mut inbox = backend.subscribe(named("a")).await.unwrap();
    let again = timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
    assert_eq!((again.envelope.payload.as_ref(), again.redelivered, again.attempt), (b"2".as_ref(), true, 2));
    again.ack().await.unwrap();
    assert!(timeout(Duration::from_millis(300), inbox.next()).await.is_err(), "what was acked came again");
}

#[tokio::test]
async fn others_messages_have_an_id_and_bad_topics_are_refused() {
    let server = Own::start();
    let backend = client(format!("mqtt://{}", server.address())).await;
    let mut inbox = backend.subscribe(SubscribeOptions::new(">".parse().unwrap())).await.unwrap();
    let mut stream = TcpStream::connect(server.address()).unwrap();
    // CONNECT of 3.1.1, and three publishes at QoS 0: an empty level, a space, and a good one.
    stream.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01x").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    for topic in ["a//b", "a b", "a/b"] {
        let mut packet = vec![0x30, (2 + topic.len() + 1) as u8, 0, topic.len() as u8];
        packet.extend_from_slice(topic.as_bytes());
        packet.push(b'x');
        stream.write_all(&packet).unwrap();
    }
    let mut refused = 0;
    let delivery = loop {
        match timeout(PATIENCE, inbox.next()).await.unwrap() {
            Ok(delivery) => break delivery,
            Err(why) => {
                assert_eq!(why.kind(), ErrorKind::Rejected, "{why}");
                refused += 1;
            }
        }
    };
    assert_eq!(refused, 2);
    assert_eq!(delivery.envelope.subject.as_str(), "a/b");
    assert!(!delivery.envelope.id.to_string().is_empty());
}

#[tokio::test]
async fn nobody_there_is_disconnected() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = Mqtt::connect(MqttOptions::new("127.0.0.1", port)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
}

#[tokio::test]
async fn tls_with_an_authority_that_the_client_knows() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let key = rcgen::KeyPair::generate().unwrap();
    let make = |name: &str, key: &rcgen::KeyPair| {
        rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(key).unwrap().pem()
    };
    std::fs::write(place("cert.pem"), make("localhost", &key)).unwrap();
    std::fs::write(place("other.pem"), make("localhost", &rcgen::KeyPair::generate().unwrap())).unwrap();
    std::fs::write(place("key.pem"), key.serialize_pem()).unwrap();
    let server = Own::with(Some(TlsFiles {
        certificate: place("cert.pem"),
        key: place("key.pem"),
        client_ca: None,
        require_client_certificate: false,
    }));
    let url = |host: &str, ca: &str| {
        format!("mqtts://{host}:{}?ca={}", server.address().port(), place(ca).display())
    };
    let backend = client(url("localhost", "cert.pem")).await;
    let mut inbox = backend.subscribe(named("a")).await.unwrap();
    assert!(backend.publisher().await.unwrap().send(message("a", "1")).await.is_confirmed());
    timeout(PATIENCE, inbox.next()).await.unwrap().unwrap().ack().await.unwrap();
    // Another name, and an authority that did not sign it.
    for bad in [url("127.0.0.1", "cert.pem"), url("localhost", "other.pem")] {
        let why = Mqtt::connect(MqttOptions::from_url(&bad).unwrap()).await.unwrap_err();
        assert_eq!(why.kind(), ErrorKind::Disconnected, "{why}");
    }
    let missing = Mqtt::connect(MqttOptions::from_url(&url("localhost", "none.pem")).unwrap()).await;
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn at_qos_0_a_publish_is_sent_and_no_more() {
    let server = Own::start();
    let backend = client(format!("mqtt://{}?qos=0", server.address())).await;
    assert!(!backend.capabilities().confirm.is_there());
    let mut inbox = backend.subscribe(SubscribeOptions::new("a".parse().unwrap())).await.unwrap();
    assert!(backend.publisher().await.unwrap().send(message("a", "1")).await.is_confirmed());
    let delivery = timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
    delivery.retry().await.unwrap();
    let again = timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
    assert_eq!((again.attempt, again.redelivered), (2, true));
    again.ack().await.unwrap();
}
