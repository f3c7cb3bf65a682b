//! The proxy, between a client and an echo of our own, and between a client and a broker.

use postroad_testbed::{Broker, Mode, Options, Proxy, Service, Testbed, wire::Line};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

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
fn a_half_open_connection_is_silent_and_not_closed() {
    let (address, reads) = echo();
    let proxy = Proxy::start(address).unwrap();
    let mut stream = client(&proxy);
    round_trip(&mut stream, b"hello");
    assert_eq!(reads.recv().unwrap(), 5);
    proxy.half_open(true);
    stream.write_all(b"lost?").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let error = stream.read(&mut [0; 8]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    assert!(reads.try_recv().is_err(), "it went through");
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    proxy.half_open(false);
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"lost?");
}

#[test]
fn a_cut_closes_both_sides_and_a_new_connection_passes() {
    let proxy = Proxy::start(echo().0).unwrap();
    let mut stream = client(&proxy);
    round_trip(&mut stream, b"hello");
    proxy.half_open(true);
    stream.write_all(b"gone").unwrap();
    proxy.cut();
    assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)), "it answers after the cut");
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
    assert!(matches!(client(&proxy).read(&mut [0; 8]), Ok(0) | Err(_)));
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

#[test]
fn a_broker_behind_the_proxy_is_lost_and_found() {
    let options = Options { mode: Some(Mode::Native), ..Options::default() };
    let redis = Testbed::start(Broker::Redis, &options).unwrap();
    let proxy = redis.proxy(Service::Redis).unwrap();
    let mut line = Line::connect(proxy.address()).unwrap();
    line.ask("PING\r\n", "+PONG").unwrap();
    proxy.cut();
    assert!(line.ask("PING\r\n", "+PONG").is_err());
    Line::connect(proxy.address()).unwrap().ask("PING\r\n", "+PONG").unwrap();
}
