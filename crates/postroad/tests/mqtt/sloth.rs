//! Clients that take their time, or do nothing at all: they end, they cost little, and nobody waits for them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::bad_input::Street;
use crate::broker::Broker;
use crate::client::{Client, Connect};
use crate::support::{alone, raise_nofile, turn};
use crate::wire::{Packet, Publish, Version};

/// Where CONNECT may take 10 s, and the end is noticed soon.
const CONNECT_TIME: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(3);

/// When the peer closed; `None`: it did not, until `end`.
fn closed_at(stream: &mut TcpStream, end: Instant) -> Option<Instant> {
    loop {
        let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        stream.set_read_timeout(Some(left)).expect("a time-out");
        match stream.read(&mut [0; 256]) {
            Ok(0) => return Some(Instant::now()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Some(Instant::now()),
            Err(_) => return None,
        }
    }
}

/// CONNECT byte by byte, half of it, or none: the connection ends when its 10 s are over, and not before.
#[test]
fn a_connect_that_does_not_end_is_closed() {
    let _turn = turn();
    let broker = Broker::with_websocket();
    let connect = Connect::new(Version::V5, "a-name-that-takes-its-time").encode();
    let upgrade = b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Protocol: mqtt\r\n\r\n";
    let (mqtt, http) = (broker.port(), broker.websocket_port());
    // What is sent at once, and what then comes, a byte each half second.
    let slow: [(&str, u16, &[u8], &[u8]); 7] = [
        ("nothing", mqtt, b"", b""),
        ("one byte", mqtt, &connect[..1], b""),
        ("half a CONNECT", mqtt, &connect[..10], b""),
        ("CONNECT in drops", mqtt, b"", &connect),
        ("no request", http, b"", b""),
        ("a request in drops", http, b"", upgrade),
        ("a WebSocket that says nothing", http, upgrade, b""),
    ];
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for (what, port, at_once, drops) in slow {
            scope.spawn(move || {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
                stream.set_nodelay(true).expect("nodelay");
                stream.write_all(at_once).expect("it takes it");
                let mut writer = stream.try_clone().expect("another handle");
                scope.spawn(move || {
                    for byte in drops {
                        std::thread::sleep(Duration::from_millis(500));
                        if writer.write_all(&[*byte]).is_err() || begin.elapsed() > CONNECT_TIME + SOON {
                            return;
                        }
                    }
                });
                let end = closed_at(&mut stream, begin + 2 * CONNECT_TIME + 2 * SOON);
                let took = end.unwrap_or_else(|| panic!("{what}: it stays open")) - begin;
                // Those of WebSocket have their time twice: for the request, and for CONNECT.
                assert!(took + SOON > CONNECT_TIME && took < 2 * CONNECT_TIME + SOON, "{what}: {took:?}");
            });
        }
        let mut neighbour = broker.v5("neighbour");
        neighbour.subscribe("n", 1);
        while begin.elapsed() < CONNECT_TIME + SOON {
            let sent = Instant::now();
            neighbour.publish("n", "x", 1);
            neighbour.message();
            assert!(sent.elapsed() < Duration::from_secs(1), "{:?}", sent.elapsed());
            std::thread::sleep(Duration::from_millis(100));
        }
    });
}

/// A thousand connections on which half a packet came: they cost little, others are served, and they can go on.
#[test]
fn a_thousand_half_open_connections_cost_little() {
    let _turn = alone();
    raise_nofile(4096);
    let mut street = Street::new();
    let connect = Connect::new(Version::V5, "half").encode();
    let half = |cut: usize| {
        let mut stream = TcpStream::connect(("127.0.0.1", street.broker.port())).expect("a connection");
        stream.write_all(&connect[..cut]).expect("it takes it");
        stream
    };
    let begin = Instant::now();
    let mut open: Vec<TcpStream> = (0..1000).map(|number| half(number % connect.len())).collect();
    street.goes_on("1000 halves of CONNECT");
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    let latency = Instant::now();
    for _ in 0..20 {
        street.goes_on("1000 halves of CONNECT");
    }
    assert!(latency.elapsed() < Duration::from_secs(4), "{:?}", latency.elapsed());
    // One of them says the rest.
    let last = 999 % connect.len();
    let stream = open.pop().expect("a thousand");
    let mut client = Client::over(Box::new(stream), Version::V5);
    client.say(&connect[last..]);
    assert!(matches!(client.next(SOON), Ok(Some(Packet::Connack { code: 0, .. }))));
    for stream in &mut open {
        let end = begin + CONNECT_TIME + 4 * SOON;
        assert!(closed_at(stream, end).is_some(), "those who do not go on are closed");
    }
    street.goes_on("the end of 1000 halves");
}

/// Half a PUBLISH, and then nothing: a keep alive is for whole packets, and bytes alone do not count for ever.
#[test]
fn half_a_packet_is_no_sign_of_life() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = Connect::new(Version::V5, "half").keep_alive(1).open(broker.port());
    client.say(&Publish::new("a", "0123456789", 0).encode(Version::V5)[..6]);
    let begin = Instant::now();
    assert_eq!(client.closed(), Some(0x8D), "[MQTT-3.1.2-22]");
    let took = begin.elapsed();
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(4), "{took:?}");
    // The same in drops: no packet ends in one and a half times of its keep alive.
    let mut client = Connect::new(Version::V5, "drops").keep_alive(1).open(broker.port());
    let bytes = Publish::new("a", vec![b'x'; 100], 0).encode(Version::V5);
    let begin = Instant::now();
    let closed = bytes.iter().any(|byte| {
        std::thread::sleep(Duration::from_millis(300));
        client.send(&[*byte]).is_err() || begin.elapsed() > Duration::from_secs(8)
    });
    assert!(closed && begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
}
