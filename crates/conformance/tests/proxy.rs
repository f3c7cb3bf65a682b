//! The proxy, between a client and an echo of our own.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use postroad_conformance::proxy::{Proxy, Way};

/// Sends back what it gets, and tells how many bytes each read gave.
fn echo() -> (SocketAddr, mpsc::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tell = tell.clone();
            thread::spawn(move || {
                let mut stream = stream;
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    let _ = tell.send(read);
                    if stream.write_all(&buffer[..read]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, told)
}

fn client(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

fn round_trip(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text);
}

#[test]
fn a_delay_is_waited_in_both_directions() {
    let proxy = Proxy::start(echo().0).unwrap();
    let mut stream = client(&proxy);
    proxy.delay(Duration::from_millis(100));
    let before = Instant::now();
    round_trip(&mut stream, b"hello");
    assert!(before.elapsed() >= Duration::from_millis(200), "{:?}", before.elapsed());
    proxy.heal();
    round_trip(&mut stream, b"again");
}

#[test]
fn bytes_arrive_split_and_complete() {
    let (address, reads) = echo();
    let proxy = Proxy::start(address).unwrap();
    proxy.split(1);
    let mut stream = client(&proxy);
    let text: Vec<u8> = (0..=255).collect();
    round_trip(&mut stream, &text);
    let count = reads.try_iter().count();
    assert!(count > 1, "256 bytes came in one piece");
}

#[test]
fn what_is_stalled_arrives_when_it_goes_on() {
    let (address, reads) = echo();
    let proxy = Proxy::start(address).unwrap();
    let mut stream = client(&proxy);
    round_trip(&mut stream, b"hello");
    assert_eq!(reads.recv().unwrap(), 5);
    proxy.stall(true);
    stream.write_all(b"late?").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let error = stream.read(&mut [0; 8]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    assert!(reads.try_recv().is_err(), "it went through");
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    proxy.stall(false);
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"late?");
}

/// Whether its end comes, and nothing before.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    match stream.read(&mut [0; 8]) {
        Ok(read) => read == 0,
        Err(why) => !matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

/// Whether nothing comes, and no end either.
fn is_silent(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let read = stream.read(&mut [0; 8]);
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    matches!(read, Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

#[test]
fn a_half_open_connection_is_silent_and_not_closed_until_it_is_healed() {
    let (address, reads) = echo();
    let proxy = Proxy::start(address).unwrap();
    let mut stream = client(&proxy);
    round_trip(&mut stream, b"hello");
    assert_eq!(reads.recv().unwrap(), 5);
    proxy.half_open(Way::Both);
    stream.write_all(b"lost?").unwrap();
    assert!(is_silent(&mut stream));
    assert!(reads.try_recv().is_err(), "it went through");
    // A new one works, before and after.
    let mut other = client(&proxy);
    round_trip(&mut other, b"new");
    assert_eq!(reads.recv().unwrap(), 3);
    proxy.heal();
    assert!(is_closed(&mut stream), "what was held arrives");
    round_trip(&mut other, b"new");
    assert_eq!(reads.recv().unwrap(), 3, "what was held arrives at the broker");
}

#[test]
fn one_direction_alone_falls_silent() {
    let (address, reads) = echo();
    let proxy = Proxy::start(address).unwrap();
    let mut stream = client(&proxy);
    round_trip(&mut stream, b"hello");
    assert_eq!(reads.recv().unwrap(), 5);
    proxy.half_open(Way::ToClient);
    stream.write_all(b"heard").unwrap();
    assert_eq!(reads.recv_timeout(Duration::from_secs(5)).unwrap(), 5, "the broker hears it");
    assert!(is_silent(&mut stream));
    proxy.heal();

    let mut stream = client(&proxy);
    round_trip(&mut stream, b"hello");
    assert_eq!(reads.recv().unwrap(), 5);
    proxy.half_open(Way::ToBroker);
    stream.write_all(b"lost?").unwrap();
    assert!(is_silent(&mut stream));
    assert!(reads.try_recv().is_err(), "it went through");
}

#[test]
fn the_end_of_a_client_does_not_pass_a_half_open_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
    let mut stream = client(&proxy);
    let (mut broker, _) = listener.accept().unwrap();
    stream.write_all(b"x").unwrap();
    broker.read_exact(&mut [0]).unwrap();
    proxy.half_open(Way::Both);
    drop(stream);
    assert!(is_silent(&mut broker), "the broker heard of it");
    proxy.heal();
    assert!(is_closed(&mut broker));
}

#[test]
fn it_listens_below_the_ports_of_clients_and_lets_go_when_it_is_dropped() {
    let proxies: Vec<_> = (0..20).map(|_| Proxy::start(echo().0).unwrap()).collect();
    for proxy in &proxies {
        assert!((10_000..12_000).contains(&proxy.address().port()), "{}", proxy.address());
    }
    let mut through: Vec<_> = proxies.iter().map(client).collect();
    round_trip(&mut through[0], b"hello");
    let addresses: Vec<_> = proxies.iter().map(Proxy::address).collect();
    drop(proxies);
    assert!(is_closed(&mut through[0]), "it is closed");
    for address in addresses {
        assert!(TcpStream::connect(address).is_err(), "somebody listens at {address}");
    }
}

#[test]
fn a_cut_closes_both_sides_and_a_new_connection_passes() {
    let proxy = Proxy::start(echo().0).unwrap();
    let mut stream = client(&proxy);
    round_trip(&mut stream, b"hello");
    proxy.stall(true);
    stream.write_all(b"gone").unwrap();
    proxy.cut();
    assert!(is_closed(&mut stream), "it answers after the cut");
    proxy.heal();
    round_trip(&mut client(&proxy), b"hello");
    assert_eq!(proxy.accepted(), 2);
}

#[test]
fn who_is_refused_learns_it_at_once() {
    let proxy = Proxy::start(echo().0).unwrap();
    let mut old = client(&proxy);
    round_trip(&mut old, b"hello");
    proxy.refuse(true);
    let before = Instant::now();
    assert!(is_closed(&mut client(&proxy)));
    assert!(before.elapsed() < Duration::from_secs(4));
    round_trip(&mut old, b"still");
}

#[test]
fn the_end_of_one_direction_is_passed_on() {
    let proxy = Proxy::start(echo().0).unwrap();
    let mut stream = client(&proxy);
    stream.write_all(b"last words").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last words");
}
