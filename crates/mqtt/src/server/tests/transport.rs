//! Bytes through TCP and WebSocket.

use super::super::config::WebSocketRules;
use super::{Running, answer, ask, config, is_closed, listen, packet, start};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::{Message, WebSocket};

#[test]
fn answers_come_in_order_and_after_their_commit() {
    let server = start(config(vec![listen()]));
    let mut stream = server.connect();
    assert_eq!(ask(&mut stream, b'e', b"hello"), b"hello");
    // A lone client's commits run on the thread, if the disk is quick.
    let begin = Instant::now();
    while server.handle.stats().inline_commits == 0 {
        assert_eq!(ask(&mut stream, b'd', b"durable"), b"durable");
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", server.handle.stats());
    }
    let mut clients: Vec<_> = (0..50).map(|_| server.connect()).collect();
    for round in 0..20_u8 {
        for client in &mut clients {
            for n in 0..10 {
                client.write_all(&packet(b'd', &[round, n])).unwrap();
            }
        }
        for client in &mut clients {
            for n in 0..10 {
                assert_eq!(answer(client), [round, n]);
            }
        }
    }
    drop(clients);
    server.until("all are gone", |stats| stats.connections == 1);
    server.end().unwrap();
}

#[test]
fn one_byte_at_a_time_is_enough() {
    let server = start(config(vec![listen()]));
    let mut stream = server.connect();
    let wire: Vec<u8> = (0..40_u8).flat_map(|n| packet(b'e', &[n; 7])).collect();
    for byte in wire {
        stream.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_micros(300));
    }
    for n in 0..40 {
        assert_eq!(answer(&mut stream), [n; 7]);
    }
    server.until("nothing is kept", |stats| stats.partial_bytes == 0);
}

#[test]
fn a_closing_machine_is_heard_to_the_end_and_the_client_may_still_be_sending() {
    let server = start(config(vec![listen()]));
    for _ in 0..50 {
        let mut stream = server.connect();
        // Much more than it will read, so that a plain close would reset the connection.
        let mut wire = packet(b'x', b"");
        wire.extend(vec![0; 300_000]);
        stream.write_all(&wire).unwrap();
        assert_eq!(answer(&mut stream), b"bye");
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "an orderly end");
    }
}

#[test]
fn a_client_that_closed_its_side_gets_what_was_ready() {
    let server = start(config(vec![listen()]));
    let mut stream = server.connect();
    stream.write_all(&packet(b'e', b"last")).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(answer(&mut stream), b"last");
    assert!(is_closed(&mut stream));
}

#[test]
fn reading_stops_and_goes_on_as_the_machine_wants() {
    let server = start(config(vec![listen()]));
    let mut stream = server.connect();
    let begin = Instant::now();
    let mut wire = packet(b'h', b"");
    wire.extend(packet(b'e', b"after"));
    stream.write_all(&wire).unwrap();
    stream.write_all(&packet(b'e', b"and on")).unwrap();
    assert_eq!(answer(&mut stream), b"after", "what was read with the packet that paused is not forgotten");
    assert_eq!(answer(&mut stream), b"and on");
    assert!(begin.elapsed() >= Duration::from_millis(95), "{:?}", begin.elapsed());
}

fn websocket(server: &Running) -> WebSocket<TcpStream> {
    let mut request = format!("ws://{}/mqtt", server.addresses[0]).into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "mqtt".parse().unwrap());
    let (socket, response) = tungstenite::client(request, server.connect()).unwrap();
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "mqtt");
    socket
}

fn over_websocket() -> Running {
    let mut listen = listen();
    listen.websocket = Some(WebSocketRules::default());
    start(config(vec![listen]))
}

/// `bytes` bytes of binary messages.
fn read_messages(socket: &mut WebSocket<TcpStream>, bytes: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < bytes {
        match socket.read().unwrap() {
            Message::Binary(part) => got.extend_from_slice(&part),
            Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got.len(), bytes);
    got
}

#[test]
fn packets_may_lie_across_frames_in_any_way() {
    let server = over_websocket();
    let mut socket = websocket(&server);
    let wire: Vec<u8> = (0..60_u8).flat_map(|n| packet(b'e', &[n; 90])).collect();
    let expected: Vec<u8> = (0..60_u8).flat_map(|n| [&[0, 0, 0, 90][..], &[n; 90]].concat()).collect();
    for size in [1, 2, 3, 93, 200, 126, wire.len()] {
        for part in wire.chunks(size) {
            socket.write(Message::binary(part.to_vec())).unwrap();
            if part.len() == 93 {
                socket.write(Message::Ping(b"well?".to_vec().into())).unwrap();
            }
        }
        socket.flush().unwrap();
        assert_eq!(read_messages(&mut socket, expected.len()), expected, "frames of {size}");
    }
    // A message of three fragments, and one frame larger than the read buffer.
    for (opcode, last, part) in
        [(Data::Binary, false, 0..4), (Data::Continue, false, 4..4), (Data::Continue, true, 4..93)]
    {
        let mut header =
            FrameHeader { is_final: last, opcode: OpCode::Data(opcode), ..FrameHeader::default() };
        header.mask = Some([1, 200, 3, 4]);
        let mut bytes = Vec::new();
        let mut payload = wire[part].to_vec();
        header.format(payload.len() as u64, &mut bytes).unwrap();
        let mask = header.mask.unwrap();
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        bytes.extend(payload);
        socket.get_mut().write_all(&bytes).unwrap();
    }
    assert_eq!(read_messages(&mut socket, 94), expected[..94]);
    let large: Vec<u8> = wire.repeat(100);
    socket.send(Message::binary(large)).unwrap();
    assert_eq!(read_messages(&mut socket, expected.len() * 100), expected.repeat(100));
}

#[test]
fn a_websocket_ends_with_a_reason() {
    let server = over_websocket();
    // The machine closes.
    let mut socket = websocket(&server);
    socket.send(Message::binary(packet(b'x', b""))).unwrap();
    assert_eq!(read_messages(&mut socket, 7), b"\0\0\0\x03bye");
    assert!(matches!(socket.read().unwrap(), Message::Close(Some(frame)) if u16::from(frame.code) == 1000));
    // A text frame [MQTT-6.0.0-1].
    let mut socket = websocket(&server);
    socket.send(Message::text("MQTT?")).unwrap();
    assert!(matches!(socket.read().unwrap(), Message::Close(Some(frame)) if u16::from(frame.code) == 1003));
    // The client closes: its last packet is handled, and the close answered.
    let mut socket = websocket(&server);
    let last = packet(b'e', b"last");
    let mut wire = vec![0x82, 0x80 | last.len() as u8, 0, 0, 0, 0];
    wire.extend(last);
    // In one segment with the packet before it.
    wire.extend([0x88, 0x80, 0, 0, 0, 0]);
    socket.get_mut().write_all(&wire).unwrap();
    assert_eq!(read_messages(&mut socket, 8), b"\0\0\0\x04last");
    assert!(matches!(socket.read().unwrap(), Message::Close(_)));
    server.until("all are gone", |stats| stats.connections == 0);
}

#[test]
fn what_comes_with_the_upgrade_request_is_not_lost() {
    let server = over_websocket();
    let mut stream = server.connect();
    let mut wire = b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        .to_vec();
    let early = packet(b'e', b"early");
    wire.extend([0x82, 0x80 | early.len() as u8, 0, 0, 0, 0]);
    wire.extend(early);
    stream.write_all(&wire).unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"early") {
        let mut some = [0; 512];
        let read = stream.read(&mut some).unwrap();
        assert!(read > 0);
        got.extend_from_slice(&some[..read]);
    }
    assert!(got.starts_with(b"HTTP/1.1 101 "));
    let mut wrong = server.connect();
    wrong.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut response = String::new();
    wrong.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 404 "), "{response}");
}
