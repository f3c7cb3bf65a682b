//! The whole server on real sockets: bytes as a client sends them, over TCP, TLS and WebSocket.

use postroad_engine::log::{JournalStore, LogStore};
use postroad_journal::CommitterOptions;
use postroad_mqtt::access::OpenAccess;
use postroad_mqtt::broker::ListenerConfig;
use postroad_mqtt::server::{
    ListenerOptions, Server, ServerConfig, ServerError, ServerHandle, WebSocketRules,
};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tungstenite::Message;
use tungstenite::client::IntoClientRequest as _;

struct Running {
    addresses: Vec<SocketAddr>,
    handle: ServerHandle,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<Result<(), ServerError>>>,
    store: Arc<JournalStore>,
    directory: tempfile::TempDir,
}

fn start(directory: tempfile::TempDir, config: ServerConfig) -> Running {
    let store =
        Arc::new(JournalStore::open(directory.path(), 64 << 20, CommitterOptions::default()).unwrap());
    store.start(Box::new(|_| {})).unwrap();
    let server = Server::bind(config, store.clone(), Arc::new(OpenAccess)).unwrap();
    let (addresses, handle) = (server.local_addrs().unwrap(), server.handle());
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(server.run(async {
            let _ = stopping.await;
        }))
    });
    Running { addresses, handle, stop: Some(stop), thread: Some(thread), store, directory }
}

impl Running {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addresses[0]).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// Connected with MQTT 3.1.1; the session stays if `keep`.
    fn client(&self, id: &str, keep: bool) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(&connect(id, keep)).unwrap();
        let mut connack = [0; 4];
        stream.read_exact(&mut connack).unwrap();
        assert_eq!((connack[0], connack[3]), (0x20, 0), "{connack:?}");
        stream
    }

    fn end(mut self) -> tempfile::TempDir {
        let _ = self.stop.take().unwrap().send(());
        self.thread.take().unwrap().join().unwrap().unwrap();
        self.store.stop();
        self.directory
    }
}

fn config() -> ServerConfig {
    let listener = ListenerOptions { address: ([127, 0, 0, 1], 0).into(), ..ListenerOptions::default() };
    ServerConfig { listeners: vec![listener], ..ServerConfig::default() }
}

fn connect(id: &str, keep: bool) -> Vec<u8> {
    let mut packet = vec![0x10, (12 + id.len()) as u8, 0, 4];
    packet.extend_from_slice(b"MQTT\x04");
    packet.extend_from_slice(&[if keep { 0 } else { 2 }, 0, 0, 0, id.len() as u8]);
    packet.extend_from_slice(id.as_bytes());
    packet
}

fn subscribe(filter: &str, qos: u8) -> Vec<u8> {
    let mut packet = vec![0x82, (5 + filter.len()) as u8, 0, 9, 0, filter.len() as u8];
    packet.extend_from_slice(filter.as_bytes());
    packet.push(qos);
    packet
}

fn publish(topic: &str, qos: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![0, topic.len() as u8];
    body.extend_from_slice(topic.as_bytes());
    if qos > 0 {
        body.extend_from_slice(&id.to_be_bytes());
    }
    body.extend_from_slice(payload);
    let mut packet = vec![0x30 | qos << 1];
    let mut left = body.len();
    loop {
        let digit = (left % 128) as u8;
        left /= 128;
        packet.push(if left > 0 { digit | 0x80 } else { digit });
        if left == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}

/// One packet: its first byte and its body.
fn read_packet(stream: &mut impl Read) -> (u8, Vec<u8>) {
    let mut byte = [0; 1];
    stream.read_exact(&mut byte).unwrap();
    let first = byte[0];
    let (mut length, mut shift) = (0, 0);
    loop {
        stream.read_exact(&mut byte).unwrap();
        length |= usize::from(byte[0] & 0x7F) << shift;
        shift += 7;
        if byte[0] < 0x80 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (first, body)
}

#[test]
fn publishing_delivers_and_is_acknowledged_in_every_quality() {
    let server = start(tempfile::tempdir().unwrap(), config());
    let mut subscriber = server.client("sub", false);
    subscriber.write_all(&subscribe("a/#", 2)).unwrap();
    assert_eq!(read_packet(&mut subscriber), (0x90, vec![0, 9, 2]));
    let mut publisher = server.client("pub", false);
    let large = vec![7; 200_000];
    for payload in [&b"small"[..], &large] {
        publisher.write_all(&publish("a/b", 0, 0, payload)).unwrap();
        assert_eq!(read_packet(&mut subscriber), (0x30, [b"\0\x03a/b", payload].concat()));
        publisher.write_all(&publish("a/b", 1, 7, payload)).unwrap();
        assert_eq!(read_packet(&mut publisher), (0x40, vec![0, 7]));
        let (first, body) = read_packet(&mut subscriber);
        assert_eq!((first & 0xF6, &body[7..] == payload), (0x32, true));
        subscriber.write_all(&[0x40, 2, body[5], body[6]]).unwrap();
        publisher.write_all(&publish("a/b", 2, 8, payload)).unwrap();
        assert_eq!(read_packet(&mut publisher), (0x50, vec![0, 8]));
        publisher.write_all(&[0x62, 2, 0, 8]).unwrap();
        assert_eq!(read_packet(&mut publisher), (0x70, vec![0, 8]));
        let (first, body) = read_packet(&mut subscriber);
        assert_eq!((first & 0xF6, &body[7..] == payload), (0x34, true));
        subscriber.write_all(&[0x50, 2, body[5], body[6]]).unwrap();
        assert_eq!(read_packet(&mut subscriber), (0x62, vec![body[5], body[6]]));
        subscriber.write_all(&[0x70, 2, body[5], body[6]]).unwrap();
    }
    server.end();
}

#[test]
fn a_message_outlives_the_server() {
    let server = start(tempfile::tempdir().unwrap(), config());
    let mut subscriber = server.client("durable", true);
    subscriber.write_all(&subscribe("a", 1)).unwrap();
    assert_eq!(read_packet(&mut subscriber).0, 0x90);
    drop(subscriber);
    let mut publisher = server.client("pub", false);
    publisher.write_all(&publish("a", 1, 1, b"kept")).unwrap();
    assert_eq!(read_packet(&mut publisher).0, 0x40);
    let directory = server.end();
    let server = start(directory, config());
    let mut subscriber = server.client("durable", true);
    let (first, body) = read_packet(&mut subscriber);
    assert_eq!((first & 0xF6, &body[5..]), (0x32, &b"kept"[..]));
    server.end();
}

#[test]
fn a_stream_of_messages_through_a_slow_reader_loses_none() {
    let server = start(tempfile::tempdir().unwrap(), config());
    let mut subscriber = server.client("sub", true);
    subscriber.write_all(&subscribe("s", 1)).unwrap();
    assert_eq!(read_packet(&mut subscriber).0, 0x90);
    let mut publisher = server.client("pub", false);
    const COUNT: u32 = 3000;
    let mut acks = publisher.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for n in 0..COUNT {
            let mut payload = vec![0; 2000];
            payload[..4].copy_from_slice(&n.to_be_bytes());
            publisher.write_all(&publish("s", 1, (n % 60_000 + 1) as u16, &payload)).unwrap();
        }
        publisher
    });
    let counter = std::thread::spawn(move || {
        for _ in 0..COUNT {
            assert_eq!(read_packet(&mut acks).0, 0x40);
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    for n in 0..COUNT {
        let (_, body) = read_packet(&mut subscriber);
        assert_eq!(u32::from_be_bytes(body[5..9].try_into().unwrap()), n);
        subscriber.write_all(&[0x40, 2, body[3], body[4]]).unwrap();
    }
    counter.join().unwrap();
    sender.join().unwrap();
    server.end();
}

#[test]
fn connect_must_come_whole_and_in_time() {
    let mut config = config();
    let rules = ListenerConfig { connect_timeout: Duration::from_millis(300), ..ListenerConfig::default() };
    config.listeners[0].rules = Arc::new(rules);
    let server = start(tempfile::tempdir().unwrap(), config);
    // Half-open, half a packet, and a byte now and then, which is not progress.
    let (mut silent, mut half, mut dripping) = (server.connect(), server.connect(), server.connect());
    let whole = connect("someone", false);
    half.write_all(&whole[..5]).unwrap();
    let begin = Instant::now();
    let drip = std::thread::spawn(move || {
        for byte in connect("a-client-with-a-name-that-takes-a-while", false) {
            std::thread::sleep(Duration::from_millis(50));
            if dripping.write_all(&[byte]).is_err() {
                break;
            }
        }
        dripping.read(&mut [0; 1]).map_or(true, |read| read == 0)
    });
    for stream in [&mut silent, &mut half] {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    assert!(begin.elapsed() >= Duration::from_millis(290), "{:?}", begin.elapsed());
    assert!(drip.join().unwrap());
    // Who connected in time may be silent.
    let mut client = server.client("quiet", false);
    std::thread::sleep(Duration::from_millis(500));
    client.write_all(&[0xC0, 0]).unwrap();
    assert_eq!(read_packet(&mut client), (0xD0, vec![]));
    server.end();
}

#[test]
fn mqtt_goes_over_websocket() {
    let mut config = config();
    config.listeners[0].websocket = Some(WebSocketRules::default());
    let server = start(tempfile::tempdir().unwrap(), config);
    let mut request = format!("ws://{}/mqtt", server.addresses[0]).into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "mqtt".parse().unwrap());
    let (mut socket, _) = tungstenite::client(request, server.connect()).unwrap();
    let mut wire = connect("web", false);
    wire.extend(subscribe("w", 0));
    wire.extend(publish("w", 0, 0, b"through a frame"));
    for part in wire.chunks(3) {
        socket.send(Message::binary(part.to_vec())).unwrap();
    }
    let mut got = Vec::new();
    let expected = [&[0x20, 2, 0, 0, 0x90, 3, 0, 9, 0][..], &publish("w", 0, 0, b"through a frame")].concat();
    while got.len() < expected.len() {
        if let Message::Binary(part) = socket.read().unwrap() {
            got.extend_from_slice(&part);
        }
    }
    assert_eq!(got, expected);
    server.end();
}

#[test]
fn clients_are_told_of_the_end() {
    let server = start(tempfile::tempdir().unwrap(), config());
    let mut stream = server.connect();
    let mut packet = vec![0x10, 14, 0, 4];
    packet.extend_from_slice(b"MQTT\x05\x02\0\0\0\0\x01x");
    stream.write_all(&packet).unwrap();
    assert_eq!(read_packet(&mut stream).0, 0x20);
    let stats = server.handle.stats();
    assert_eq!((stats.connections, stats.accepted), (1, 1));
    let end = std::thread::spawn(move || server.end());
    let (first, body) = read_packet(&mut stream);
    assert_eq!((first, body[0]), (0xE0, 0x8B));
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    drop(stream);
    end.join().unwrap();
}
