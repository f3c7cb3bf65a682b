//! Many connections: a thousand with half a line, ten thousand that work, more than are allowed.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{Client, Item, Setup, alone, eventually, missing, raise_nofile};

#[test]
fn half_sent_lines_have_a_bound() {
    let _turn = alone();
    if raise_nofile(2500) < 2500 {
        return missing("this process may not open 2500 files");
    }
    let server = Setup::default().nofile(4000).start();
    let before = server.rss();
    let mut healthy = server.client();
    let half = format!("pub t {{\"a\":\"{}", "x".repeat(400_000));
    let mut clients: Vec<Client> = Vec::new();
    // 400 MB in half-sent lines, of which 256 MiB may stand.
    for n in 0..1000 {
        let mut client = server.client();
        client.stream().set_write_timeout(Some(Duration::from_millis(300))).expect("timeout");
        let _ = client.try_send(half.as_bytes());
        clients.push(client);
        if n % 100 == 0 {
            healthy.publish("healthy", "{}");
        }
    }
    let grown = server.rss().saturating_sub(before);
    assert!(grown < 400 * 1024, "{grown} KiB for half-sent lines, 256 MiB are allowed");
    let begin = Instant::now();
    healthy.publish("healthy", "{}");
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let mut busy = 0;
    let mut whole = 0;
    for client in &mut clients {
        match client.next(Duration::from_millis(1)) {
            Item::Bye(line) => {
                assert!(line.starts_with("bye busy "), "{line}");
                busy += 1;
            }
            Item::Silence => {
                client.stream().set_write_timeout(Some(Duration::from_secs(10))).expect("timeout");
                if client.try_send(b"\"}\n").is_ok() {
                    match client.next(Duration::from_secs(10)) {
                        Item::Reply(line) => {
                            // A write that was cut short by its timeout ends in bad JSON.
                            assert!(line.starts_with("ok ") || line.starts_with("err bad-event "), "{line}");
                            whole += 1;
                        }
                        Item::Bye(line) => {
                            assert!(line.starts_with("bye busy "), "{line}");
                            busy += 1;
                        }
                        Item::Eof => busy += 1,
                        other => panic!("{other:?}"),
                    }
                } else {
                    busy += 1;
                }
            }
            Item::Eof => busy += 1,
            other => panic!("{other:?}"),
        }
    }
    println!("{busy} told bye busy, {whole} could finish their line; {grown} KiB");
    assert!(busy > 0, "400 MB in half-sent lines and nobody was told bye busy");
    assert!(whole > 300, "only {whole} of 1000 could finish");
    drop(clients);
    eventually("the memory is given back or used again", || {
        healthy.publish("healthy", "{}");
        healthy.stats("")["connections"] == 1
    });
    // Small half lines are no burden at all.
    let before = server.rss();
    let clients: Vec<Client> = (0..1000)
        .map(|_| {
            let mut client = server.client();
            client.raw(b"pub t {\"a\":");
            client
        })
        .collect();
    let grown = server.rss().saturating_sub(before);
    assert!(grown < 100 * 1024, "{grown} KiB for 1000 small half lines");
    drop(clients);
}

#[test]
fn more_than_max_connections() {
    let _turn = alone();
    let server = Setup::config("[jsonlog]\nmax_connections = 20\n").start();
    let mut first = server.client();
    eventually("the probe is gone", || first.stats("")["connections"] == 1);
    let mut clients: Vec<Client> = (1..20).map(|_| server.client()).collect();
    for _ in 0..50 {
        let mut refused = Client::silent(server.port()).expect("connect");
        let all = refused.drain(Duration::from_secs(5)).expect("the server closes");
        let text = String::from_utf8(all).expect("UTF-8");
        let last = text.lines().last().unwrap_or_default();
        assert!(last.starts_with("bye busy "), "{text:?}");
    }
    first.publish("t", "{}");
    clients.pop();
    eventually("a place is free again", || {
        server.try_client().is_ok_and(|mut client| client.publish("t", "{}") > 1)
    });
    for client in &mut clients {
        client.publish("t", "{}");
    }
}

/// The operating system gives no more files: the server waits without spinning, and goes on when some are free.
#[test]
fn out_of_files() {
    let _turn = alone();
    let mut server = Setup::default().nofile(64).start();
    let mut first = server.client();
    first.ok("sub t as n");
    let mut crowd: Vec<TcpStream> =
        (0..200).filter_map(|_| TcpStream::connect(("127.0.0.1", server.port())).ok()).collect();
    std::thread::sleep(Duration::from_millis(300));
    let before = server.cpu();
    std::thread::sleep(Duration::from_secs(1));
    let used = server.cpu() - before;
    assert!(used < 0.5, "{used} s of processor time in one second without files");
    // A publish may need a file for a new topic, and may say it is busy; an old one works.
    let reply = first.cmd("pub t {}");
    assert!(reply == "ok 1" || reply.starts_with("err busy "), "{reply}");
    crowd.clear();
    assert!(server.alive());
    eventually("new connections are served", || {
        server.try_client().is_ok_and(|mut client| client.cmd("pub other {}").starts_with("ok "))
    });
    let seq = first.publish("t", "{}");
    assert_eq!(first.peek("t", "last").seq, seq);
}

/// More topics than files: the server keeps within its limit, and finds them all again.
#[test]
fn more_topics_than_files() {
    let _turn = alone();
    let mut server = Setup::default().nofile(256).start();
    let mut client = server.client();
    let total = 800;
    let begin = Instant::now();
    for round in 1..=2 {
        for chunk in (0..total).collect::<Vec<_>>().chunks(100) {
            let lines: String = chunk.iter().map(|n| format!("pub many/{n} {{\"n\":{n}}}\n")).collect();
            client.raw(lines.as_bytes());
            for n in chunk {
                assert_eq!(client.reply(), format!("ok {round}"), "topic {n}");
            }
        }
        // Killed first: a connection that ends counts an attempt.
        server.bounce9();
        drop(client);
        client = server.client();
        for n in [0, 1, 399, 798, 799] {
            let event = client.peek(&format!("many/{n}"), "last");
            assert_eq!((event.seq, event.json), (round, format!("{{\"n\":{n}}}")));
        }
    }
    client.ok("sub many/* from=first prefetch=65536");
    for _ in 0..2 * total {
        client.event();
    }
    client.no_event(Duration::from_millis(100));
    println!("{total} topics twice in {:?}", begin.elapsed());
}

#[test]
fn ten_thousand_connections() {
    let _turn = alone();
    if raise_nofile(10_500) < 10_500 {
        return missing("this process may not open 10500 files");
    }
    let mut server = Setup::default().nofile(12_000).start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).expect("limits");
    let allowed = limits.lines().find(|line| line.starts_with("Max open files")).expect("nofile");
    if allowed
        .split_whitespace()
        .nth(3)
        .and_then(|text| text.parse::<u64>().ok())
        .is_some_and(|soft| soft < 10_500)
    {
        return missing("the server may not open 10500 files");
    }
    let before = server.rss();
    let begin = Instant::now();
    let port = server.port();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            std::thread::spawn(move || {
                (0..2500)
                    .map(|n| {
                        let stream = TcpStream::connect(("127.0.0.1", port))
                            .unwrap_or_else(|error| panic!("connection {n} of thread {thread}: {error}"));
                        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
                        stream
                    })
                    .collect::<Vec<TcpStream>>()
            })
        })
        .collect();
    let mut all: Vec<TcpStream> =
        threads.into_iter().flat_map(|thread| thread.join().expect("connects")).collect();
    for stream in &mut all {
        assert!(read_line(stream).starts_with("hello postroad/"));
    }
    let connected = begin.elapsed();
    let grown = server.rss().saturating_sub(before);
    println!("10000 connections in {connected:?}, {} KiB each", grown / 10_000);
    assert!(connected < Duration::from_secs(20), "{connected:?}");
    assert!(grown < 10_000 * 32, "{} KiB for each idle connection", grown / 10_000);
    let begin = Instant::now();
    for (n, stream) in all.iter_mut().enumerate() {
        stream.write_all(format!("pub crowd {{\"id\":{n}}}\n").as_bytes()).expect("send");
    }
    let mut seqs: Vec<u64> = all
        .iter_mut()
        .map(|stream| {
            let line = read_line(stream);
            line.strip_prefix("ok ").and_then(|seq| seq.parse().ok()).unwrap_or_else(|| panic!("{line:?}"))
        })
        .collect();
    println!("10000 publishes in {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    seqs.sort_unstable();
    assert!(seqs.iter().copied().eq(1..=10_000), "the numbers have gaps or repeats");
    let mut client = server.client();
    assert_eq!(client.stats("")["connections"], 10_001);
    drop(all);
    eventually("all are gone", || client.stats("")["connections"] == 1);
    // Killed first: a connection that ends counts an attempt.
    server.bounce9();
    drop(client);
    assert_eq!(server.client().peek("crowd", "last").seq, 10_000);
}

fn read_line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => panic!("closed after {:?}", String::from_utf8_lossy(&line)),
            Ok(_) if byte[0] == b'\n' => return String::from_utf8(line).expect("UTF-8"),
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("read: {error}"),
        }
    }
}
