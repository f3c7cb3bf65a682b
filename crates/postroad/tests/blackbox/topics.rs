//! Wildcards, names of topics that are hard on a file system, retention.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::{A_WHILE, Client, Server, Setup, eventually, turn};

fn topics_seen(client: &mut Client) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    while let Some(event) = client.try_event(A_WHILE) {
        seen.insert(event.topic);
    }
    seen
}

#[test]
fn wildcards_match_levels() {
    let _turn = turn();
    let server = Server::start();
    let mut publisher = server.client();
    let topics = ["a", "b", "a/x", "a/y", "a/x/1", "a/y/1", "b/x", "b/x/1/2"];
    let early = &topics[..3];
    for topic in early {
        publisher.publish(topic, "{}");
    }
    let cases = [
        ("*", vec!["a", "b"]),
        (">", topics.to_vec()),
        ("a/*", vec!["a/x", "a/y"]),
        ("a/>", vec!["a/x", "a/y", "a/x/1", "a/y/1"]),
        ("*/x", vec!["a/x", "b/x"]),
        ("*/*/1", vec!["a/x/1", "a/y/1"]),
        ("*/x/>", vec!["a/x/1", "b/x/1/2"]),
        ("$dead/>", vec!["$dead/a"]),
        ("$dead/*", vec!["$dead/a"]),
        ("a/x", vec!["a/x"]),
    ];
    let mut clients: Vec<Client> = cases
        .iter()
        .map(|(filter, _)| {
            let mut client = server.client();
            client.ok(&format!("sub {filter} from=first prefetch=100"));
            client
        })
        .collect();
    // Later topics join, from their first event.
    for topic in &topics[3..] {
        publisher.publish(topic, "{}");
    }
    publisher.ok("sub a from=first");
    publisher.expect("a", 1, 1);
    publisher.ok("bury a @1");
    for ((filter, expected), client) in cases.iter().zip(&mut clients) {
        let expected: BTreeSet<String> = expected.iter().map(|topic| (*topic).to_owned()).collect();
        assert_eq!(topics_seen(client), expected, "{filter}");
    }
    let mut client = server.client();
    for filter in ["a/>/b", ">/a", "a*", "a/b*", "*a/b", "a/>x", "a//b", "/", "a/", "/a", "a/./b", ">>", "**"]
    {
        client.err(&format!("sub {filter}"), "bad-topic");
    }
    for topic in ["*", ">", "a/*", "a/>"] {
        client.err(&format!("pub {topic} {{}}"), "bad-topic");
        client.err(&format!("peek {topic} first"), "bad-topic");
        client.err(&format!("kick {topic}"), "bad-topic");
    }
}

#[test]
fn later_topics_come_from_their_first_event_even_for_from_new() {
    let _turn = turn();
    let mut server = Server::start();
    let mut client = server.client();
    client.publish("l/old", "{}");
    client.ok("sub l/* as n from=new prefetch=10");
    client.publish("l/new", "{\"n\":1}");
    client.publish("l/old", "{\"n\":2}");
    let mut got = [client.event(), client.event()].map(|event| (event.topic, event.seq));
    got.sort();
    assert_eq!(got, [("l/new".to_owned(), 1), ("l/old".to_owned(), 2)]);
    client.ok("ack l/new @1");
    client.err("ack l/* @2", "not-in-flight");
    // Killed first: a connection that ends counts an attempt.
    server.bounce9();
    drop(client);
    let mut client = server.client();
    client.publish("l/third", "{\"n\":3}");
    client.ok("sub l/* as n prefetch=10");
    let mut got = [client.event(), client.event()].map(|event| (event.topic, event.seq));
    got.sort();
    assert_eq!(got, [("l/old".to_owned(), 2), ("l/third".to_owned(), 1)]);
    client.no_event(A_WHILE);
}

#[test]
fn the_window_of_a_wildcard_is_over_all_its_topics() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    for topic in ["v/a", "v/b", "v/c"] {
        for priority in 1..=3 {
            client.publish(topic, &format!("{{\"priority\":{priority}}}"));
        }
    }
    client.ok("sub v/* from=first prefetch=2");
    let mut order: std::collections::BTreeMap<String, Vec<u64>> = std::collections::BTreeMap::new();
    let mut held = vec![client.event(), client.event()];
    client.no_event(A_WHILE);
    while let Some(event) = held.pop() {
        client.ok(&format!("ack {} @{}", event.topic, event.seq));
        order.entry(event.topic).or_default().push(event.seq);
        if let Some(next) = client.try_event(A_WHILE) {
            held.insert(0, next);
        }
        assert!(held.len() <= 2);
    }
    assert_eq!(order.values().map(Vec::len).sum::<usize>(), 9);
    for (topic, seqs) in &order {
        let mut sorted = seqs.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [1, 2, 3], "{topic}");
    }
}

#[test]
fn topics_that_file_systems_do_not_like() {
    let _turn = turn();
    let mut server = Server::start();
    let mut topics: Vec<String> = [
        "plain",
        "Plain",
        "PLAIN",
        "a",
        "a/b",
        "a%2Fb",
        "a%2fb",
        "%",
        "%00",
        "a.jsonl",
        ".hidden",
        "...",
        "..a",
        "a/...",
        "-rf",
        "~",
        "a:b",
        "a|b",
        "a?b",
        "\"quoted\"",
        "'q'",
        "CON",
        "nul",
        "lost+found",
        "streams",
        "caf\u{e9}",
        "cafe\u{301}",
        "\u{65e5}\u{672c}",
        "\u{1f980}",
        "a&b",
        "a;b",
        "$mine",
        "a$",
        "a=b",
        "as",
        "first",
        "@1",
        "{}",
    ]
    .iter()
    .map(|topic| (*topic).to_owned())
    .collect();
    topics.retain(|topic| !topic.starts_with('$'));
    topics.push("x".repeat(255));
    topics.push("X".repeat(255));
    topics.push("\u{20ac}".repeat(85));
    topics.push("%".repeat(255));
    topics.push(format!("{}y", "l/".repeat(127)));
    topics.push(format!("{}/{}", "m".repeat(127), "m".repeat(127)));
    topics.push("x".repeat(254));
    let mut client = server.client();
    for (n, topic) in topics.iter().enumerate() {
        assert_eq!(client.publish(topic, &format!("{{\"n\":{n}}}")), 1, "{topic:?}");
    }
    let check = |client: &mut Client, seq: u64| {
        for (n, topic) in topics.iter().enumerate() {
            let event = client.peek(topic, "last");
            assert_eq!((event.topic.as_str(), event.seq), (topic.as_str(), seq), "{topic:?}");
            assert_eq!(event.json, format!("{{\"n\":{n}}}"), "{topic:?}");
        }
    };
    check(&mut client, 1);
    // Killed first: a connection that ends counts an attempt.
    server.bounce9();
    drop(client);
    let mut client = server.client();
    check(&mut client, 1);
    for (n, topic) in topics.iter().enumerate() {
        assert_eq!(client.publish(topic, &format!("{{\"n\":{n}}}")), 2, "{topic:?}");
    }
    check(&mut client, 2);
    for path in server.segments() {
        assert!(path.starts_with(server.data()), "{}", path.display());
    }
    // Nothing outside the data directory but the three files of the test itself.
    let beside: BTreeSet<String> = std::fs::read_dir(server.home())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    let expected = ["data", "stderr.log", "stdout.log"].map(str::to_owned);
    assert_eq!(beside, BTreeSet::from(expected));
}

#[test]
fn retention_says_what_it_took() {
    let _turn = turn();
    let mut server =
        Setup::config("[journal]\nsegment_bytes = 65536\n[retention]\nmax_bytes = 262144\n").start();
    let mut client = server.client();
    client.ok("sub t as slow from=first");
    client.ok("unsub t as slow");
    let total = 4000;
    let pad = "p".repeat(200);
    for start in (1..=total).step_by(500) {
        let events: Vec<String> =
            (start..start + 500).map(|n| format!("{{\"n\":{n},\"pad\":\"{pad}\"}}")).collect();
        assert!(client.bulk("t", &events).starts_with("ok "));
    }
    eventually("retention removes the first segments", || client.stats("t")["first"].as_u64() > Some(1));
    std::thread::sleep(Duration::from_millis(300));
    for round in 0..2 {
        let first = client.stats("t")["first"].as_u64().expect("a number");
        assert!(first > 1 && first < total, "{first}");
        assert_eq!(client.peek("t", "first").seq, first);
        client.err("peek t @1", "not-found");
        assert_eq!(client.peek("t", "last").json, format!("{{\"n\":{total},\"pad\":\"{pad}\"}}"));
        client.ok("sub t from=first prefetch=65536");
        for seq in first..=total {
            let event = client.expect("t", seq, 1);
            assert!(event.json.starts_with(&format!("{{\"n\":{seq},")));
        }
        if round == 0 {
            // Killed first: a connection that ends counts an attempt.
            server.bounce9();
            drop(client);
            client = server.client();
        }
    }
    let mut late = server.client();
    late.ok("sub t as slow prefetch=5");
    let first = late.event().seq;
    assert!(first > 1);
    eventually("a note", || {
        late.try_event(Duration::from_millis(10));
        !late.notes.is_empty()
    });
    let note = &late.notes[0];
    assert!(note.starts_with("note lagged t ") && note.contains(&(first - 1).to_string()), "{note}");
}

/// An event may be larger than a segment, a segment boundary may be anywhere.
#[test]
fn events_larger_than_a_segment() {
    let _turn = turn();
    for preallocate in [true, false] {
        let mut server =
            Setup::config(&format!("[journal]\nsegment_bytes = 65536\npreallocate = {preallocate}\n"))
                .start();
        let sizes = [10, 70_000, 65_000, 65_400, 65_536, 1_000_000, 100, 900_000, 30_000, 40_000, 5];
        let event = |size: usize| format!("{{\"p\":\"{}\"}}", "x".repeat(size));
        let mut client = server.client();
        for (seq, size) in (1..).zip(sizes) {
            assert_eq!(client.publish("t", &event(size)), seq);
        }
        let all: Vec<String> = sizes.iter().map(|size| event(*size)).collect();
        assert_eq!(client.bulk("t", &all), "ok 12-22");
        // Killed first: a connection that ends counts an attempt.
        server.bounce9();
        drop(client);
        let mut client = server.client();
        client.ok("sub t from=first prefetch=3");
        for (seq, size) in (1..).zip(sizes.iter().chain(&sizes)) {
            assert!(client.expect("t", seq, 1).json == event(*size), "{seq}");
            client.ok(&format!("ack t @{seq}"));
        }
        assert_eq!(client.publish("t", "{}"), 23);
    }
}

/// Every second event is acked, one by one: as many gaps as there can be. What the log keeps about them must not grow
/// faster than the acks, nor slow down the next start.
#[test]
fn acks_with_gaps_do_not_blow_up_the_log() {
    let _turn = turn();
    let mut server = Setup::config("[journal]\nsegment_bytes = 65536\npreallocate = false\n").start();
    let mut client = server.client();
    let total = 30_000_u64;
    for start in (1..=total).step_by(5000) {
        let events: Vec<String> = (start..start + 5000).map(|n| format!("{{\"id\":{n}}}")).collect();
        client.bulk("t", &events);
    }
    client.ok("sub t as n from=first prefetch=65536");
    for seq in 1..=total {
        client.expect("t", seq, 1);
    }
    let size = |server: &Server| -> u64 {
        server.segments().iter().map(|path| std::fs::metadata(path).expect("a segment").len()).sum()
    };
    let before = size(&server);
    let begin = Instant::now();
    let odd: Vec<u64> = (1..=total).step_by(2).collect();
    for chunk in odd.chunks(20) {
        client.raw(chunk.iter().map(|seq| format!("ack t @{seq}\n")).collect::<String>().as_bytes());
        for _ in chunk {
            assert_eq!(client.reply(), "ok");
        }
    }
    let (grown, took) = (size(&server) - before, begin.elapsed());
    println!("{} acks: {grown} bytes in {took:?}", odd.len());
    assert!(grown < 8 << 20, "{} acks took {grown} bytes of log", odd.len());
    drop(client);
    let begin = Instant::now();
    server.bounce9();
    assert!(begin.elapsed() < Duration::from_secs(5), "started in {:?}", begin.elapsed());
    let mut client = server.client();
    client.ok("sub t as n prefetch=65536");
    for seq in (2..=total).step_by(2) {
        client.expect("t", seq, 1);
    }
    client.no_event(A_WHILE);
}
