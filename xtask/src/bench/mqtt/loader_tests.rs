//! The loader against a broker that forgets, repeats and stalls on purpose: what it counts is what happened.

use super::books::{Books, Shared};
use super::clients::{Publisher, Subscriber};
use super::packets::{Frame, Version, frame};
use super::speed::{Load, Sessions, Shape, paced};
use crate::bench::loader::{Loader, Tally};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// What a broker does wrong.
#[derive(Clone, Copy, Default)]
struct Wrong {
    /// The n-th message is not delivered.
    forget: Option<u64>,
    /// Nor is any whose number this divides.
    forget_every: Option<u64>,
    /// At the n-th message nothing happens for so long.
    stall: Option<(u64, Duration)>,
    /// The n-th message is delivered twice, under two ids.
    repeat: Option<u64>,
    /// The n-th message is sent again under its open id, as after a lost answer: that is right at QoS 2.
    resend: Option<u64>,
}

#[derive(Default)]
struct State {
    subscribers: Vec<TcpStream>,
    messages: u64,
    id: u16,
}

fn broker(wrong: Wrong) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let state = Arc::new(Mutex::new(State::default()));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let state = Arc::clone(&state);
            thread::spawn(move || serve(stream.unwrap(), &state, wrong));
        }
    });
    addr
}

/// The client leaving is the end of this thread.
fn serve(mut stream: TcpStream, state: &Mutex<State>, wrong: Wrong) -> Option<()> {
    let (mut input, mut piece) = (Vec::new(), [0; 4096]);
    let mut client = Client::default();
    loop {
        let mut used = 0;
        while let Some(packet) = frame(&input[used..]).unwrap() {
            used += packet.length;
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            answer(&mut stream, &mut state, &mut client, wrong, &packet)?;
        }
        // Not before all that came with it is read: until then its id is not free.
        for id in client.over.drain(..) {
            let [high, low] = id.to_be_bytes();
            stream.write_all(&[0x70, 2, high, low]).ok()?;
            client.open.remove(&id);
        }
        input.drain(..used);
        let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
        input.extend_from_slice(&piece[..read]);
    }
}

/// The QoS 2 ids of a publisher.
#[derive(Default)]
struct Client {
    open: HashSet<u16>,
    /// Of these PUBREL has come, and PUBCOMP has not left.
    over: Vec<u16>,
}

/// `None` ends the connection.
fn answer(
    stream: &mut TcpStream,
    state: &mut State,
    client: &mut Client,
    wrong: Wrong,
    packet: &Frame<'_>,
) -> Option<()> {
    let id = |at: usize| [packet.body[at], packet.body[at + 1]];
    match packet.kind() {
        0x10 => stream.write_all(&[0x20, 2, 0, 0]).ok()?,
        0x82 => {
            state.subscribers.push(stream.try_clone().ok()?);
            let [high, low] = id(0);
            stream.write_all(&[0x90, 3, high, low, packet.body[packet.body.len() - 1]]).ok()?;
        }
        0x30 => {
            let qos = packet.first >> 1 & 3;
            let topic = 2 + usize::from(u16::from_be_bytes(id(0)));
            if qos > 0 {
                let [high, low] = id(topic);
                if qos == 2 && !client.open.insert(u16::from_be_bytes([high, low])) {
                    return None;
                }
                stream.write_all(&[if qos == 1 { 0x40 } else { 0x50 }, 2, high, low]).ok()?;
            }
            state.messages += 1;
            let now = Some(state.messages);
            if let Some((at, time)) = wrong.stall
                && at == state.messages
            {
                thread::sleep(time);
            }
            let lost = wrong.forget_every.is_some_and(|every| state.messages.is_multiple_of(every));
            let copies = if lost || wrong.forget == now { 0 } else { 1 + u64::from(wrong.repeat == now) };
            for _ in 0..copies {
                // Far more ids than messages that are open.
                state.id = state.id % 60_000 + 1;
                let mut bytes = vec![
                    packet.first,
                    0x80 | (packet.body.len() & 0x7F) as u8,
                    (packet.body.len() >> 7) as u8,
                ];
                bytes.extend_from_slice(packet.body);
                if qos > 0 {
                    bytes[3 + topic..5 + topic].copy_from_slice(&state.id.to_be_bytes());
                }
                for subscriber in &mut state.subscribers {
                    subscriber.write_all(&bytes).ok()?;
                    if wrong.resend == now {
                        bytes[0] |= 8;
                        subscriber.write_all(&bytes).ok()?;
                    }
                }
            }
        }
        0x62 => client.over.push(u16::from_be_bytes(id(0))),
        0x50 => {
            let [high, low] = id(0);
            stream.write_all(&[0x62, 2, high, low]).ok()?;
        }
        _ => {}
    }
    Some(())
}

/// Two publishers with a window of seven, and `subscribers` that get all they send; they send nothing yet.
fn connected(wrong: Wrong, qos: u8, ahead: bool, subscribers: u64) -> (Loader, Shared) {
    let addr = broker(wrong);
    let sessions = Sessions { version: Version::V311, clean: true };
    let books = Books::new(2, subscribers);
    let mut loader = Loader::new().unwrap();
    loader.tally.limit = 0;
    for n in 0..2 {
        let link = sessions.link(format!("p{n}"), None);
        let load = Load { shape: Shape::FanIn(2), window: 7, qos, ahead };
        let publisher = Publisher::new(link, "bench/x", load, n, Shared::clone(&books));
        loader.add(TcpStream::connect(addr).unwrap(), publisher).unwrap();
    }
    for n in 0..subscribers {
        let link = sessions.link(format!("s{n}"), Some(("bench/+".into(), qos)));
        loader
            .add(TcpStream::connect(addr).unwrap(), Subscriber::new(link, qos, Shared::clone(&books)))
            .unwrap();
    }
    loader.kick().unwrap();
    loader.run_until(LIMIT, |tally| tally.greeted == 2 + subscribers).unwrap();
    (loader, books)
}

/// A thousand messages.
fn run(
    wrong: Wrong,
    qos: u8,
    ahead: bool,
    subscribers: u64,
    done: impl Fn(&Tally) -> bool,
) -> (Loader, Shared) {
    let (mut loader, books) = connected(wrong, qos, ahead, subscribers);
    loader.tally.limit = 1000;
    loader.kick().unwrap();
    loader.run_until(LIMIT, done).unwrap();
    loader.run_for(Duration::from_millis(50)).unwrap();
    (loader, books)
}

#[test]
fn every_message_is_counted_once_at_every_qos() {
    for qos in 0..3 {
        let confirmed = if qos == 0 { 0 } else { 1000 };
        let all = |tally: &Tally| tally.acked == 3000 && tally.confirmed == confirmed;
        let (loader, books) = run(Wrong::default(), qos, true, 3, all);
        let tally = &loader.tally;
        assert_eq!(
            (tally.sent, tally.delivered, tally.acked, tally.twice),
            (1000, 3000, 3000, 0),
            "QoS {qos}"
        );
        assert_eq!(books.borrow().expected(), 3000);
        assert_eq!(tally.delivery.len(), 3000);
    }
}

#[test]
fn what_is_forgotten_is_missed_and_what_is_repeated_is_noticed() {
    let wrong = Wrong { forget: Some(500), repeat: Some(600), ..Wrong::default() };
    for qos in 1..3 {
        let (loader, books) = run(wrong, qos, true, 2, |tally| tally.delivered == 1998 && tally.twice == 2);
        let lost = books.borrow().expected() - loader.tally.delivered;
        assert_eq!((lost, loader.tally.twice), (2, 2), "QoS {qos}");
    }
}

#[test]
fn the_same_message_under_its_open_id_is_no_duplicate_at_qos_2_and_one_at_qos_1() {
    let wrong = Wrong { resend: Some(300), ..Wrong::default() };
    let (loader, _) = run(wrong, 2, true, 1, |tally| tally.acked == 1000);
    assert_eq!((loader.tally.delivered, loader.tally.twice), (1000, 0));
    let (loader, _) = run(wrong, 1, true, 1, |tally| tally.delivered == 1000);
    assert_eq!(loader.tally.twice, 1);
}

#[test]
fn what_is_lost_at_qos_0_does_not_close_the_window() {
    let wrong = Wrong { forget_every: Some(10), ..Wrong::default() };
    let (loader, books) = run(wrong, 0, false, 2, |tally| tally.delivered == 1800);
    assert_eq!((loader.tally.sent, loader.tally.acked, loader.tally.twice), (1000, 1800, 0));
    // The last message of all is lost, and nothing behind it tells.
    assert!(books.borrow().owed_by_all() <= 2);
}

/// Of 2000 messages a second for 0.6 s: all, and those that took a tenth of a second or longer.
fn at_pace(stall: Option<(u64, Duration)>) -> (u64, u64) {
    let (mut loader, books) = connected(Wrong { stall, ..Wrong::default() }, 1, false, 1);
    paced(&mut loader, &books, 2000.0, Duration::from_millis(600), Duration::from_secs(5)).unwrap();
    let hist = &loader.tally.delivery;
    (hist.len(), hist.count_between(100_000_000, hist.high()))
}

#[test]
fn a_stall_delays_all_that_was_due_in_it_and_not_only_what_the_window_had_let_out() {
    // 400 are due in it, half of them a tenth of a second or more before its end; fourteen are in the windows.
    let (all, late) = at_pace(Some((300, Duration::from_millis(200))));
    assert_eq!(all, 1200);
    assert!(late >= 150, "{late} were late");
}

#[test]
fn a_stall_at_the_end_hides_nothing() {
    // 200 are due in it, all of them two tenths of a second or more before its end, which is past that of the pace.
    let (all, late) = at_pace(Some((1000, Duration::from_millis(300))));
    assert_eq!(all, 1200);
    assert!(late >= 195, "{late} were late");
}

#[test]
fn what_never_leaves_counts_with_the_time_it_waited() {
    let wrong = Wrong { stall: Some((101, Duration::from_secs(60))), ..Wrong::default() };
    let (mut loader, books) = connected(wrong, 1, false, 1);
    let late = Duration::from_millis(200);
    let latency = paced(&mut loader, &books, 2000.0, Duration::from_millis(300), late).unwrap();
    // 100 came, fourteen are in the windows and never come, 486 did not leave.
    let count = loader.tally.delivery.len();
    assert!((580..=590).contains(&count), "{count}");
    assert!(latency.p50 >= 200.0, "{latency:?}");
}
