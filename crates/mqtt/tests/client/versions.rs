//! Which version is spoken, and what a message of 3.1.1 carries.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use postroad_core::{
    Backend, Envelope, ErrorKind, MessageId, PublisherExt as _, Receipt, SubscribeOptions,
    SubscriptionExt as _, Support,
};
use postroad_mqtt::client::{Mqtt, MqttOptions};
use tokio::time::timeout;

use crate::own::Own;

const PATIENCE: Duration = Duration::from_secs(20);

async fn try_client(address: SocketAddr, query: &str) -> postroad_core::Result<Mqtt> {
    Mqtt::connect(MqttOptions::from_url(&format!("mqtt://{address}?{query}")).unwrap()).await
}

async fn client(address: SocketAddr, query: &str) -> Mqtt {
    try_client(address, query).await.unwrap()
}

fn message(topic: &str, payload: &str) -> Envelope {
    Envelope::new(topic.parse().unwrap(), payload.to_owned())
}

fn named(filter: &str) -> SubscribeOptions {
    SubscribeOptions::new(filter.parse().unwrap()).named("n")
}

/// What a server of another version does with a CONNECT of 5.0.
#[derive(Clone, Copy, PartialEq)]
enum Refusal {
    /// CONNACK of 3.1.1, return code 1.
    ReturnCode,
    /// CONNACK of 5.0, reason code 0x84.
    ReasonCode,
    /// It closes the connection, as RabbitMQ 3.10 does.
    Closes,
    /// It closes the first connection only, and speaks 5.0.
    ClosesOnce,
}

/// Our server behind one that looks at the protocol level of CONNECT; for each connection the level goes to `seen`.
fn in_front_of(server: SocketAddr, refusal: Refusal) -> (SocketAddr, std::sync::mpsc::Receiver<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, levels) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for (count, client) in listener.incoming().flatten().enumerate() {
            // Fixed header of two bytes, since these CONNECTs are short, then the name `MQTT` and the level.
            let mut head = [0; 9];
            let mut client: TcpStream = client;
            if client.read_exact(&mut head).is_err() {
                continue;
            }
            let _ = seen.send(head[8]);
            if head[8] == 5 && (refusal != Refusal::ClosesOnce || count == 0) {
                let _ = match refusal {
                    Refusal::ReturnCode => client.write_all(b"\x20\x02\x00\x01"),
                    Refusal::ReasonCode => client.write_all(b"\x20\x03\x00\x84\x00"),
                    Refusal::Closes | Refusal::ClosesOnce => Ok(()),
                };
                continue;
            }
            let mut broker = TcpStream::connect(server).unwrap();
            broker.write_all(&head).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), broker.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Both);
            });
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut broker, &mut client);
                let _ = client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    (address, levels)
}

#[tokio::test]
async fn a_server_without_5_is_spoken_to_in_3_1_1() {
    let server = Own::start();
    for (refusal, asked) in [
        (Refusal::ReturnCode, vec![5, 4]),
        (Refusal::ReasonCode, vec![5, 4]),
        (Refusal::Closes, vec![5, 5, 4]),
    ] {
        let (address, levels) = in_front_of(server.address(), refusal);
        let backend = client(address, "").await;
        assert_eq!(backend.capabilities().headers, Support::Emulated);
        assert_eq!(levels.try_iter().collect::<Vec<_>>(), asked, "one connection");
        let mut inbox = backend.subscribe(SubscribeOptions::new("a".parse().unwrap())).await.unwrap();
        let publisher = backend.publisher().await.unwrap();
        assert!(publisher.send(message("a", "1").with_header("h", "2")).await.is_confirmed());
        let got = timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
        assert_eq!(got.envelope.headers.get_text("h"), Some("2"));
        assert_eq!(levels.try_iter().collect::<Vec<_>>(), [4, 4], "it is known by now");
        // Who insists hears of it.
        let why = try_client(address, "version=5").await.unwrap_err();
        let kind = if refusal == Refusal::Closes { ErrorKind::Disconnected } else { ErrorKind::Unsupported };
        assert_eq!(why.kind(), kind, "{why}");
    }
}

#[tokio::test]
async fn one_closed_connection_is_no_refusal() {
    let server = Own::start();
    let (address, levels) = in_front_of(server.address(), Refusal::ClosesOnce);
    let backend = client(address, "").await;
    assert_eq!(backend.capabilities().headers, Support::Native);
    assert_eq!(levels.try_iter().collect::<Vec<_>>(), [5, 5]);
}

/// An outbox asks nobody when it is opened: what it takes before must fit the server that it finds.
#[tokio::test]
async fn an_outbox_sends_its_messages_in_the_version_that_it_finds() {
    let server = Own::start();
    let (address, _levels) = in_front_of(server.address(), Refusal::ReturnCode);
    let directory = tempfile::tempdir().unwrap();
    let consumer = client(server.address(), "").await;
    let mut inbox = consumer.subscribe(named("a")).await.unwrap();
    let backend = client(address, &format!("outbox={}", directory.path().display())).await;
    let id = MessageId::text("mine").unwrap();
    let sent = message("a", "{\"id\":7}").with_id(id.clone()).with_header("h", vec![0, 255]);
    let receipt = timeout(PATIENCE, backend.publisher().await.unwrap().send(sent.clone())).await.unwrap();
    assert!(receipt.is_confirmed());
    // A consumer with 5.0 reads what came by 3.1.1.
    let got = timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
    assert_eq!((&got.envelope.id, &got.envelope.payload), (&id, &sent.payload));
    assert_eq!(got.envelope.headers, sent.headers);
}

#[tokio::test]
async fn plain_payloads_are_for_devices() {
    let server = Own::start();
    let backend = client(server.address(), "version=3.1.1&payload=plain").await;
    assert_eq!(backend.capabilities().headers, Support::Absent);
    let mut inbox = backend.subscribe(SubscribeOptions::new("lamp".parse().unwrap())).await.unwrap();
    let publisher = backend.publisher().await.unwrap();
    match publisher.send(message("lamp", "on").with_header("h", "1")).await {
        Receipt::Refused(why) => assert_eq!(why.kind(), ErrorKind::Unsupported, "{why}"),
        other => panic!("{other:?}"),
    }
    for payload in ["on", "{\"$postroad\":1,\"id\":\"x\",\"payload\":1}"] {
        assert!(publisher.send(message("lamp", payload)).await.is_confirmed());
        let got = timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
        assert_eq!(got.envelope.payload, payload);
        got.ack().await.unwrap();
    }
}

/// In 3.1.1 a SUBSCRIBE cannot say that it wants none.
#[tokio::test]
async fn retained_messages_are_not_new() {
    let server = Own::start();
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01x").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    // QoS 1 with RETAIN.
    stream.write_all(b"\x33\x06\x00\x01a\x00\x01o").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    for version in ["5", "3.1.1"] {
        let backend = client(server.address(), &format!("version={version}")).await;
        for options in [named("a"), SubscribeOptions::new("a".parse().unwrap())] {
            let mut inbox = backend.subscribe(options).await.unwrap();
            assert!(timeout(Duration::from_millis(200), inbox.next()).await.is_err(), "{version}");
            assert!(backend.publisher().await.unwrap().send(message("a", "new")).await.is_confirmed());
            let got = timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
            assert_eq!(got.envelope.payload, "new");
            got.ack().await.unwrap();
        }
        backend.forget("a".parse().unwrap(), "n".into()).await.unwrap();
        assert_eq!(
            backend.forget("a".parse().unwrap(), "n".into()).await.unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }
}
