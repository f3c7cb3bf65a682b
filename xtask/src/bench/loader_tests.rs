//! The loader against a broker of fifty lines, so that a wrong figure is not the loader's.

use super::control::Control;
use super::loader::Loader;
use super::wire::Publisher;
use super::wire::jsonlog::{Greeted, Pub, Pubn, Subscriber, TOPIC};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// How many events there are, and who gets them.
#[derive(Default)]
struct State {
    last: u64,
    subscriber: Option<TcpStream>,
}

/// Says `ok` to everything, forgets everything; answers the `refuse`th publish with an error.
fn broker(refuse: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let state = Arc::new(Mutex::new(State::default()));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let state = Arc::clone(&state);
            thread::spawn(move || serve(stream.unwrap(), &state, refuse));
        }
    });
    addr
}

/// The client leaving is the end of this thread.
fn serve(mut stream: TcpStream, state: &Mutex<State>, refuse: u64) -> Option<()> {
    stream.write_all(b"hello postroad/0 jsonlog/1 sync=memory\n").ok()?;
    let mut lines = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let words: Vec<&str> = line.trim_end().splitn(4, ' ').collect();
        let answer = match words[0] {
            "pub" if state.last + 1 == refuse => "err busy not now".to_owned(),
            "pub" => {
                state.last += 1;
                let event = format!("event {TOPIC} {} 1 {}", state.last, line.splitn(3, ' ').nth(2)?);
                if let Some(subscriber) = &mut state.subscriber {
                    subscriber.write_all(event.as_bytes()).ok()?;
                }
                format!("ok {}", state.last)
            }
            "pubn" => {
                let (count, bytes): (u64, usize) = (words[2].parse().ok()?, words[3].parse().ok()?);
                let mut body = vec![0; bytes];
                lines.read_exact(&mut body).ok()?;
                assert_eq!(body.split_inclusive(|byte| *byte == b'\n').count() as u64, count);
                state.last += count;
                format!("ok {}-{}", state.last + 1 - count, state.last)
            }
            "sub" => {
                state.subscriber = Some(stream.try_clone().ok()?);
                "ok".to_owned()
            }
            _ => "ok".to_owned(),
        };
        stream.write_all(format!("{answer}\n").as_bytes()).ok()?;
    }
}

fn greeted(addr: SocketAddr) -> TcpStream {
    Control::open(addr).unwrap().into_stream().unwrap()
}

#[test]
fn every_event_is_counted_once_on_its_way_through() {
    let addr = broker(u64::MAX);
    let mut loader = Loader::new().unwrap();
    let mut control = Control::open(addr).unwrap();
    control.call(&format!("sub {TOPIC}")).unwrap();
    loader.add(control.into_stream().unwrap(), Subscriber::new()).unwrap();
    for _ in 0..5 {
        loader.add(greeted(addr), Publisher::new(Pub::new(), 8)).unwrap();
    }
    loader.tally.limit = 3000;
    loader.kick().unwrap();
    loader.run_until(LIMIT, |tally| tally.acked == 3000 && tally.confirmed == 3000).unwrap();
    let tally = &loader.tally;
    assert_eq!((tally.sent, tally.confirmed, tally.delivered), (3000, 3000, 3000));
    assert_eq!((tally.publish.len(), tally.delivery.len()), (3000, 3000));
}

#[test]
fn batches_larger_than_a_socket_s_buffer_get_through() {
    let addr = broker(u64::MAX);
    let mut loader = Loader::new().unwrap();
    loader.add(greeted(addr), Publisher::new(Pubn::new(20_000), 2)).unwrap();
    loader.tally.limit = 60_000;
    loader.kick().unwrap();
    loader.run_until(LIMIT, |tally| tally.confirmed == 60_000).unwrap();
    assert_eq!(loader.tally.publish.len(), 60_000);
}

#[test]
fn an_error_of_the_server_ends_the_run_with_its_text() {
    let addr = broker(100);
    let mut loader = Loader::new().unwrap();
    loader.add(greeted(addr), Publisher::new(Pub::new(), 4)).unwrap();
    loader.kick().unwrap();
    let error = loader.run_until(LIMIT, |_| false).unwrap_err();
    assert!(error.to_string().contains("err busy not now"), "{error}");
    assert!(loader.tally.confirmed < 100);
}

#[test]
fn connections_wait_for_their_greeting_before_they_publish() {
    let addr = broker(u64::MAX);
    let mut loader = Loader::new().unwrap();
    for _ in 0..20 {
        loader.add(TcpStream::connect(addr).unwrap(), Greeted::new()).unwrap();
    }
    loader.run_until(LIMIT, |tally| tally.greeted == 20).unwrap();
    loader.drive(|| Publisher::new(Pub::new(), 1));
    loader.tally.limit = 20;
    loader.kick().unwrap();
    loader.run_until(LIMIT, |tally| tally.confirmed == 20).unwrap();
}
