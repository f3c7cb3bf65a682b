//! MQTT over WebSocket (clause 6), byte by byte: frames and packets need not agree, and frames that lie are closed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::broker::Broker;
use crate::client::Connect;
use crate::support::{PATIENCE, turn};
use crate::wire::{Packet, Publish, Version, frame, take};

const BINARY: u8 = 2;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;

/// A WebSocket of our own.
struct Socket {
    stream: TcpStream,
    /// Payloads of the binary frames that came.
    packets: Vec<u8>,
    closed: bool,
}

impl Socket {
    fn open(broker: &Broker) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", broker.websocket_port())).expect("a connection");
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream
            .write_all(
                b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Protocol: mqtt\r\n\r\n",
            )
            .expect("it takes a request");
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("an answer");
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("text").to_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        // The sample of RFC 6455, 1.3.
        assert!(head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        assert!(head.contains("sec-websocket-protocol: mqtt"), "[MQTT-6.0.0-4]: {head}");
        Self { stream, packets: Vec::new(), closed: false }
    }

    /// A masked frame that says it is `length` bytes long.
    fn send_lying(&mut self, kind: u8, payload: &[u8], length: usize) {
        let mask = [0x37, 0xFA, 0x21, 0x3D];
        let mut bytes = vec![0x80 | kind];
        if length < 126 {
            bytes.push(0x80 | length as u8);
        } else {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        let _ = self.stream.write_all(&bytes);
    }

    fn send(&mut self, kind: u8, payload: &[u8]) {
        self.send_lying(kind, payload, payload.len());
    }

    /// Reads one frame; `false` at the end of the connection.
    fn read_frame(&mut self) -> bool {
        let mut head = [0; 2];
        if self.stream.read_exact(&mut head).is_err() {
            self.closed = true;
            return false;
        }
        let mut length = usize::from(head[1] & 0x7F);
        assert_eq!(head[1] & 0x80, 0, "a server must not mask");
        if length == 126 {
            let mut more = [0; 2];
            self.stream.read_exact(&mut more).expect("a length");
            length = u16::from_be_bytes(more).into();
        }
        assert!(length < 127, "these tests get nothing large");
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).expect("a payload");
        match head[0] & 15 {
            0 | BINARY => self.packets.extend(payload),
            CLOSE => self.closed = true,
            TEXT => panic!("[MQTT-6.0.0-1]: the server sent text"),
            _ => {}
        }
        true
    }

    /// The next packet; `None` when the connection was closed.
    fn packet(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = take(Version::V5, &mut self.packets) {
                return Some(packet);
            }
            if !self.read_frame() || self.closed {
                return None;
            }
        }
    }

    fn connected(&mut self) {
        match self.packet() {
            Some(Packet::Connack { code: 0, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// [MQTT-6.0.0-2]: packets over many frames, and many packets in one.
#[test]
fn mqtt_6_0_0_2_frames_are_not_packets() {
    let _turn = turn();
    let broker = Broker::with_websocket();
    let mut watcher = broker.v5("ws-watcher");
    watcher.subscribe("ws", 1);
    let mut socket = Socket::open(&broker);
    for byte in Connect::new(Version::V5, "ws").encode() {
        socket.send(BINARY, &[byte]);
    }
    socket.connected();
    let many: Vec<u8> =
        (1..=5_u16).flat_map(|id| Publish::new("ws", id.to_string(), 1).id(id).encode(Version::V5)).collect();
    socket.send(BINARY, &many);
    for id in 1..=5 {
        assert_eq!(watcher.message().text(), id.to_string());
        assert!(matches!(socket.packet(), Some(Packet::Ack { id: acked, .. }) if acked == id));
    }
}

/// [MQTT-6.0.0-1]: anything but binary data ends the connection.
#[test]
fn mqtt_6_0_0_1_text_frames_end_the_connection() {
    let _turn = turn();
    let broker = Broker::with_websocket();
    let mut socket = Socket::open(&broker);
    socket.send(BINARY, &Connect::new(Version::V5, "ws-text").encode());
    socket.connected();
    socket.send(TEXT, &[0xC0, 0]);
    match socket.packet() {
        None => {}
        Some(Packet::Disconnect { .. }) => assert_eq!(socket.packet(), None),
        other => panic!("{other:?}"),
    }
    broker.v5("ws-after").ping();
}

/// CVE-2026-25627: a frame that is shorter than the packet in it claims to be, and frames that claim more than they
/// have, or more than anybody has. Others are served, and memory does not follow the claims.
#[test]
fn cve_2026_25627_frames_that_lie_hurt_nobody() {
    let _turn = turn();
    let broker = Broker::with_websocket();
    let mut neighbour = broker.v5("ws-neighbour");
    neighbour.subscribe("ws-neighbour", 1);
    let before = broker.rss();
    let connect = Connect::new(Version::V5, "ws-liar").encode();
    let short = frame(0x30, &[0, 1, b'a', 0, b'x']);
    let mut sockets = Vec::new();
    for round in 0..30 {
        let mut socket = Socket::open(&broker);
        match round % 5 {
            // A packet that says 200 bytes in a frame of a few.
            0 => socket.send(BINARY, &[0x10, 0xC8, 0x01, 0, 4, b'M', b'Q']),
            1 => socket.send(BINARY, &[0x10, 0xFF, 0xFF, 0xFF, 0x7F]),
            2 => socket.send_lying(BINARY, &connect, 1 << 40),
            3 => socket.send_lying(BINARY, &connect, usize::MAX),
            _ => {
                socket.send(BINARY, &connect);
                socket.connected();
                socket.send(BINARY, &short[..short.len() - 2]);
            }
        }
        if round % 2 == 0 {
            let _ = socket.stream.shutdown(Shutdown::Both);
        }
        sockets.push(socket);
        neighbour.publish("ws-neighbour", "m", 1);
        assert_eq!(neighbour.message().text(), "m");
    }
    std::thread::sleep(Duration::from_millis(50));
    if let (Some(before), Some(now)) = (before, broker.rss()) {
        assert!(now < before + 16 * 1024, "{before} KiB before, {now} KiB now");
    }
}
