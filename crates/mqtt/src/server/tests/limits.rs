//! Too many, too slow, too much, and the end.

use super::super::ServerError;
use super::machine::TestRules;
use super::{answer, ask, config, is_closed, listen, packet, start};
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn connections_beyond_the_limits_are_closed_and_counted() {
    let (mut first, second) = (listen(), listen());
    first.rules = Arc::new(TestRules { max_connections: 3, ..TestRules::default() });
    let server = start(super::EdgeConfig { max_connections: 5, ..config(vec![first, second]) });
    let mut open: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for stream in &mut open {
        assert_eq!(ask(stream, b'e', b"in"), b"in");
    }
    assert!(is_closed(&mut server.connect()), "a fourth on a listener of three");
    let other = |_| {
        let stream = std::net::TcpStream::connect(server.addresses[1]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    };
    let mut more: Vec<_> = (0..2).map(other).collect();
    for stream in &mut more {
        assert_eq!(ask(stream, b'e', b"in"), b"in");
    }
    assert!(is_closed(&mut other(2)), "a sixth of five in all");
    assert_eq!(server.handle.stats().refused, 2);
    drop(open);
    server.until("room again", |stats| stats.connections == 2);
    assert_eq!(ask(&mut server.connect(), b'e', b"in"), b"in");
    server.end().unwrap();
}

#[test]
fn a_peer_that_does_not_read_is_cut_and_one_that_reads_slowly_is_not() {
    let mut listen = listen();
    listen.sockets.send_buffer = Some(64 << 10);
    let server =
        start(super::EdgeConfig { write_timeout: Duration::from_millis(400), ..config(vec![listen]) });
    let mut silent = server.connect();
    silent.write_all(&packet(b'f', &[255, 64])).unwrap();
    let mut slow = server.connect();
    socket2::SockRef::from(&slow).set_recv_buffer_size(32 << 10).unwrap();
    slow.write_all(&packet(b'f', &[3, 255])).unwrap();
    let mut left = 3 * (4 + (255 << 10));
    let mut piece = vec![0; 8 << 10];
    while left > 0 {
        // A piece of output takes longer than the timeout, but something moves all the time.
        std::thread::sleep(Duration::from_millis(25));
        let room = left.min(piece.len());
        let read = slow.read(&mut piece[..room]).unwrap();
        assert!(read > 0, "cut though it was reading");
        left -= read;
    }
    assert_eq!(ask(&mut slow, b'e', b"still here"), b"still here");
    server.until("cut", |stats| stats.slow == 1 && stats.connections == 1);
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest);
    assert!(rest.len() < 255 * (64 << 10));
}

#[test]
fn unfinished_packets_are_bounded_over_all_connections() {
    let server = start(super::EdgeConfig { max_partial: 100_000, ..config(vec![listen()]) });
    let mut half: Vec<_> = (0..4).map(|_| server.connect()).collect();
    let large = packet(b'e', &vec![7; 60_000]);
    half[0].write_all(&large[..50_000]).unwrap();
    server.until("kept", |stats| stats.partial_bytes >= 50_000);
    assert!(server.handle.stats().partial_bytes <= 70_000, "grows as bytes arrive");
    half[1].write_all(&large[..30_000]).unwrap();
    server.until("kept", |stats| stats.partial_bytes >= 80_000);
    half[2].write_all(&large[..59_000]).unwrap();
    assert!(is_closed(&mut half[2]));
    server.until("counted", |stats| stats.overfull == 1 && stats.connections == 3);
    half[0].write_all(&large[50_000..]).unwrap();
    assert_eq!(answer(&mut half[0]).len(), 60_000);
    drop(half);
    server.until("given back", |stats| stats.partial_bytes == 0 && stats.connections == 0);
}

#[test]
fn a_storm_of_connections_is_served() {
    let server = start(config(vec![listen()]));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let mut stream = server.connect();
                    assert_eq!(ask(&mut stream, b'e', b"hi"), b"hi");
                }
            });
        }
    });
    let stats = server.handle.stats();
    assert_eq!((stats.accepted, stats.refused), (2000, 0));
    server.until("all are gone", |stats| stats.connections == 0);
}

#[test]
fn draining_says_goodbye_and_ends() {
    let mut server = start(config(vec![listen()]));
    let mut streams: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for stream in &mut streams {
        assert_eq!(ask(stream, b'e', b"in"), b"in");
    }
    // Its answer is due when the end comes.
    streams[0].write_all(&packet(b'e', b"due")).unwrap();
    let begin = Instant::now();
    std::thread::sleep(Duration::from_millis(20));
    server.ask_to_stop();
    assert_eq!(answer(&mut streams[0]), b"due");
    for stream in &mut streams {
        assert_eq!(answer(stream), b"drain");
        assert!(is_closed(stream));
    }
    drop(streams);
    server.end().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[test]
fn a_panic_of_the_machine_ends_the_server_with_an_error() {
    let server = start(config(vec![listen()]));
    let mut bystander = server.connect();
    assert_eq!(ask(&mut bystander, b'e', b"in"), b"in");
    let mut stream = server.connect();
    stream.write_all(&packet(b'!', b"")).unwrap();
    assert!(is_closed(&mut bystander), "nobody is served by half a broker");
    let mut server = server;
    let ended = server.thread.take().unwrap().join().unwrap();
    assert!(matches!(ended, Err(ServerError::Panicked)), "{ended:?}");
}
