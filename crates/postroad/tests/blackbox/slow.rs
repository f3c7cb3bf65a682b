//! Peers that are slow or gone: memory stays bounded, and nobody else waits for them.

use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use crate::support::{Client, PATIENCE, Server, Setup, alone, eventually};

/// Publishes and gets it back `count` times; the longest round trip.
fn worst_round_trip(client: &mut Client, topic: &str, count: usize) -> Duration {
    client.ok(&format!("sub {topic}"));
    let mut worst = Duration::ZERO;
    for _ in 0..count {
        let begin = Instant::now();
        let seq = client.publish(topic, "{\"id\":\"x\"}");
        client.expect(topic, seq, 1);
        client.ok(&format!("ack {topic} @{seq}"));
        worst = worst.max(begin.elapsed());
    }
    client.ok(&format!("unsub {topic}"));
    worst
}

const FINE: Duration = Duration::from_millis(1500);

#[test]
fn a_subscriber_that_never_reads() {
    let _turn = alone();
    let server = Server::start();
    let mut deaf: Vec<Client> = Vec::new();
    for n in 0..3 {
        let mut client = server.client();
        client.ok(&format!("sub t as deaf{n} prefetch=65536"));
        deaf.push(client);
    }
    let before = server.rss();
    let mut client = server.client();
    let events: Vec<String> =
        (0..16).map(|n| format!("{{\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(64 * 1024))).collect();
    for _ in 0..100 {
        assert!(client.bulk("t", &events).starts_with("ok "));
    }
    // 100 MiB were published, three peers read none of it.
    let grown = server.rss().saturating_sub(before);
    assert!(grown < 48 * 1024, "{grown} KiB more for peers that do not read");
    let worst = worst_round_trip(&mut client, "healthy", 50);
    assert!(worst < FINE, "{worst:?}");
    // When one of them reads again, it gets everything.
    let mut back = deaf.pop().expect("three");
    for seq in 1..=1600 {
        back.expect("t", seq, 1);
    }
    let grown = server.rss().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB more after one has read");
}

/// Writes as much as the server takes until it stops reading, or `limit`; how much that was.
fn flood(client: &Client, chunk: &[u8], limit: usize) -> usize {
    let mut stream = client.stream();
    stream.set_write_timeout(Some(Duration::from_millis(1500))).expect("timeout");
    let end = Instant::now() + Duration::from_secs(8);
    let mut sent = 0;
    while sent < limit && Instant::now() < end {
        match stream.write(chunk) {
            Ok(0) => break,
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("flood: {error}"),
        }
    }
    sent
}

#[test]
fn a_publisher_that_never_reads() {
    let _turn = alone();
    let server = Server::start();
    let before = server.rss();
    // Small commands with large answers: two bytes in, fifty out.
    let rude = server.client();
    let sent = flood(&rude, &b"x\n".repeat(32 * 1024), 1 << 30);
    assert!(sent < 200 << 20, "the server took {sent} bytes and nobody read its answers");
    let grown = server.rss().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB more for unread errors");
    // Real publishes.
    let loud = server.client();
    let line = format!("pub t {{\"pad\":\"{}\"}}\n", "x".repeat(1000));
    let sent = flood(&loud, line.repeat(64).as_bytes(), 1 << 30);
    let grown = server.rss().saturating_sub(before);
    println!("{} MiB sent, {grown} KiB more", sent >> 20);
    assert!(grown < 160 * 1024, "{grown} KiB more for {sent} bytes of publishes without a reader");
    let worst = worst_round_trip(&mut server.client(), "healthy", 50);
    assert!(worst < FINE, "{worst:?}");
}

#[test]
fn who_does_not_read_is_told_bye_slow() {
    let _turn = alone();
    let server = Setup::config("[jsonlog]\nwrite_timeout = \"1s\"\n").start();
    let mut deaf = server.client();
    deaf.ok("sub t as g group prefetch=1000");
    let mut client = server.client();
    let events: Vec<String> =
        (0..16).map(|n| format!("{{\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(256 * 1024))).collect();
    for chunk in events.chunks(4).cycle().take(16) {
        assert!(client.bulk("t", chunk).starts_with("ok "));
    }
    eventually("the slow connection is closed", || client.stats("")["connections"] == 1);
    // What it held goes to a mate.
    let mut mate = server.client();
    mate.ok("sub t as g group prefetch=1000");
    let mut first = 0;
    for _ in 0..64 {
        first = first.max(mate.event().attempt);
    }
    assert_eq!(first, 2, "what the slow one held counts as delivered once");
    // And it is told, unless its last line is cut.
    let rest = deaf.drain(PATIENCE).expect("closed");
    let text = String::from_utf8_lossy(&rest);
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    for line in &lines[..lines.len() - 1] {
        assert!(line.starts_with("event t ") && line.ends_with("}\n"), "{:?}", &line[..line.len().min(80)]);
    }
    let last = lines.last().expect("something");
    assert!(last.starts_with("bye slow") || !last.ends_with('\n'), "{:?}", &last[..last.len().min(80)]);
}

#[test]
fn one_byte_at_a_time() {
    let _turn = alone();
    let server = Server::start();
    let mut clients: Vec<Client> = (0..50).map(|_| server.client()).collect();
    let line = b"pub drip {\"a\":1}\r\n";
    for byte in line {
        for client in &mut clients {
            client.raw(&[*byte]);
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    let mut seqs: Vec<String> = clients.iter_mut().map(Client::reply).collect();
    seqs.sort_by_key(String::len);
    assert!(seqs.iter().all(|reply| reply.starts_with("ok ")));
    let worst = worst_round_trip(&mut server.client(), "healthy", 50);
    assert!(worst < FINE, "{worst:?}");
    // A subscriber that reads a little now and then still gets everything.
    let mut sipping = server.client();
    sipping.ok("sub drip from=first prefetch=3");
    for seq in 1..=50 {
        sipping.expect("drip", seq, 1);
        std::thread::sleep(Duration::from_millis(5));
        sipping.ok(&format!("ack drip @{seq}"));
    }
}

#[test]
fn peers_that_vanish() {
    let _turn = alone();
    let server = Server::start();
    let mut client = server.client();
    for n in 1..=100 {
        client.publish("t", &format!("{{\"n\":{n}}}"));
    }
    let holders: Vec<Client> = (0..50)
        .map(|_| {
            let mut holder = server.client();
            holder.ok("sub t as g group from=first prefetch=2");
            holder
        })
        .collect();
    let halves: Vec<Client> = (0..200)
        .map(|n| {
            let mut half = server.client();
            half.raw(format!("pub t {{\"half\":{n}").as_bytes());
            half
        })
        .collect();
    for holder in holders {
        holder.reset();
    }
    for (n, half) in halves.into_iter().enumerate() {
        if n % 2 == 0 { half.reset() } else { drop(half) }
    }
    let begin = Instant::now();
    eventually("all connections are noticed to be gone", || client.stats("")["connections"] == 1);
    client.ok("sub t as g group prefetch=1000");
    for _ in 0..100 {
        let event = client.event();
        assert!(event.attempt <= 2, "{event:?}");
    }
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    client.no_event(Duration::from_millis(100));
    assert_eq!(client.peek("t", "last").seq, 100);
    // Nothing spins: the processor is idle with the connections gone, and with a quiet one there.
    let before = server.cpu();
    std::thread::sleep(Duration::from_secs(1));
    let used = server.cpu() - before;
    assert!(used < 0.15, "an idle server used {used} s of processor time in one second");
}

/// A peer that stops in the middle keeps its connection, and its own place, and nothing else.
#[test]
fn a_peer_that_just_stops() {
    let _turn = alone();
    let server = Server::start();
    let mut stopped = server.client();
    stopped.ok("sub t as g group from=new ack_wait=300ms prefetch=10");
    stopped.raw(b"ack t @");
    let mut mate = server.client();
    mate.ok("sub t as g group ack_wait=300ms prefetch=10");
    for n in 1..=6 {
        mate.publish("t", &format!("{{\"n\":{n}}}"));
    }
    let mut done = std::collections::BTreeSet::new();
    let end = Instant::now() + PATIENCE;
    while done.len() < 6 {
        assert!(Instant::now() < end, "only {done:?}");
        if let Some(event) = mate.try_event(Duration::from_millis(50)) {
            mate.ok(&format!("ack t @{}", event.seq));
            done.insert(event.seq);
        }
    }
    stopped.raw(b"1\n");
    assert!(stopped.reply().starts_with("err not-in-flight "));
}
