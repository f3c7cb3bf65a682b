//! Order, windows, acks: what a healthy subscriber sees.

use std::time::{Duration, Instant, SystemTime};

use crate::support::{A_WHILE, Client, Event, Item, Server, turn};

fn seqs(client: &mut Client, count: usize) -> Vec<u64> {
    (0..count).map(|_| client.event().seq).collect()
}

#[test]
fn one_at_a_time_until_acked() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("sub t");
    for n in 1..=3 {
        assert_eq!(client.publish("t", &format!("{{\"n\":{n}}}")), n);
    }
    for n in 1..=3 {
        let event = client.expect("t", n, 1);
        assert_eq!(event.json, format!("{{\"n\":{n}}}"));
        client.no_event(A_WHILE);
        client.ok(&format!("ack t @{n}"));
    }
    client.no_event(A_WHILE);
}

#[test]
fn priority_first_then_sequence() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    let priorities = ["5", "-3", "9", "", "5", "9223372036854775807", "0", "-9223372036854775808", "", "9"];
    for priority in priorities {
        let json = if priority.is_empty() { "{}".to_owned() } else { format!("{{\"priority\":{priority}}}") };
        client.publish("t", &json);
    }
    client.ok("sub t from=first");
    let mut order = Vec::new();
    for _ in priorities {
        let event = client.event();
        client.ok(&format!("ack t @{}", event.seq));
        order.push(event.seq);
    }
    assert_eq!(order, [6, 3, 10, 1, 5, 4, 7, 9, 2, 8]);

    // A later event of a higher priority overtakes what waits, not what is in flight.
    client.publish("u", "{\"priority\":1}");
    client.publish("u", "{\"priority\":2}");
    client.ok("sub u from=@1");
    client.expect("u", 2, 1);
    client.publish("u", "{\"priority\":3}");
    client.no_event(A_WHILE);
    client.ok("ack u @2");
    client.expect("u", 3, 1);
    client.ok("nack u @3");
    client.expect("u", 3, 2);
    client.ok("ack u @3");
    client.expect("u", 1, 1);
}

#[test]
fn the_window_is_never_exceeded() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    let events: Vec<String> = (1..=20).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(client.bulk("t", &events), "ok 1-20");
    client.ok("sub t from=first prefetch=3");
    assert_eq!(seqs(&mut client, 3), [1, 2, 3]);
    client.no_event(A_WHILE);
    client.ok("ack t @2");
    assert_eq!(seqs(&mut client, 1), [4]);
    client.no_event(A_WHILE);
    client.ok("nack t @1 delay=60s");
    assert_eq!(seqs(&mut client, 1), [5]);
    client.no_event(A_WHILE);
    client.ok("ack t @1-@5");
    assert_eq!(seqs(&mut client, 3), [6, 7, 8]);
    client.no_event(A_WHILE);
    client.ok("ack t @8-@8");
    client.err("ack t @10", "not-in-flight");
    assert_eq!(seqs(&mut client, 1), [9]);
    client.ok("touch t @1-@100");
    client.no_event(A_WHILE);
}

#[test]
fn the_widest_window() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    let events: Vec<String> = (1..=5000).map(|n| format!("{{\"n\":{n}}}")).collect();
    for round in 0..14 {
        assert_eq!(client.bulk("t", &events), format!("ok {}-{}", round * 5000 + 1, (round + 1) * 5000));
    }
    client.ok("sub t from=first prefetch=65536");
    for seq in 1..=65_536 {
        client.expect("t", seq, 1);
    }
    client.no_event(A_WHILE);
    client.ok("nack t @1-@65536");
    for seq in 1..=65_536 {
        client.expect("t", seq, 2);
    }
    client.ok("touch t @1-@18446744073709551615");
    client.ok("ack t @1-@18446744073709551615");
    for seq in 65_537..=70_000 {
        client.expect("t", seq, 1);
    }
    client.no_event(A_WHILE);
}

/// The id in the event, and how `ack` names it.
const IDS: &[(&str, &str)] = &[
    ("\"a1\"", "a1"),
    ("17", "17"),
    ("\"18\"", "18"),
    ("-5", "-5"),
    ("1.50", "1.50"),
    ("1e3", "1e3"),
    ("123456789012345678901234567890", "123456789012345678901234567890"),
    ("\"with space\"", "\"with space\""),
    ("\"@7\"", "\"@7\""),
    ("\"\\\"quoted\\\"\"", "\"\\\"quoted\\\"\""),
    ("\"a\\u0062c\"", "abc"),
    ("\"d\\/e\"", "d/e"),
    ("\"\u{e9}\u{20ac}\u{1f980}\"", "\u{e9}\u{20ac}\u{1f980}"),
    ("\"\\ud83e\\udd80\"", "\u{1f980}"),
    ("\"plain\"", "\"plain\""),
    ("\"\"", "\"\""),
    ("\"a-b_c.d:e\"", "a-b_c.d:e"),
    ("\"1-2\"", "1-2"),
    ("\"{\\\"x\\\":1}\"", "{\"x\":1}"),
];

#[test]
fn acks_by_id() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("sub t");
    for (seq, (id, name)) in (1..).zip(IDS) {
        let json = format!("{{\"n\":{seq}, \"id\" :{id}}}");
        assert_eq!(client.publish("t", &json), seq, "{json}");
        assert_eq!(client.expect("t", seq, 1).json, json);
        client.err("ack t nobody", "not-in-flight");
        client.ok(&format!("ack t {name}"));
        client.err(&format!("ack t {name}"), "not-in-flight");
    }
    // The name of the field may be escaped too, and only the top level counts.
    client.ok("pub t {\"x\":{\"id\":\"inner\",\"priority\":\"high\"},\"\\u0069d\":\"outer\"}");
    let seq = client.event().seq;
    client.err("ack t inner", "not-in-flight");
    client.ok("ack t outer");
    client.ok(&format!("pub t {{\"id\":\"{}\"}}", "i".repeat(255)));
    client.expect("t", seq + 1, 1);
    client.ok(&format!("ack t {}", "i".repeat(255)));
}

#[test]
fn an_ack_by_id_settles_one_event() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("pub t {\"id\":17}");
    client.ok("pub t {\"id\":\"17\"}");
    client.ok("sub t as n from=first prefetch=2");
    seqs(&mut client, 2);
    client.ok("ack t 17");
    client.ok("unsub t as n");
    client.ok("sub t as n prefetch=2");
    let back = client.event();
    client.no_event(A_WHILE);
    assert_eq!(back.attempt, 2);
    client.ok("ack t 17");
    client.err("ack t 17", "not-in-flight");
}

#[test]
fn acks_belong_to_a_connection_and_a_topic() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    let mut other = server.client();
    client.ok("pub t {\"id\":1}");
    client.ok("pub t {\"id\":2}");
    client.ok("pub u {\"id\":1}");
    client.ok("sub t from=first");
    client.expect("t", 1, 1);
    client.err("ack t 2", "not-in-flight");
    client.err("ack t @2", "not-in-flight");
    client.err("ack u 1", "not-in-flight");
    client.err("ack nowhere 1", "not-in-flight");
    other.err("ack t 1", "not-in-flight");
    other.ok("sub t as same from=first");
    other.expect("t", 1, 1);
    other.ok("ack t @1");
    other.expect("t", 2, 1);
    client.no_event(A_WHILE);
    client.ok("ack t @1");
    client.expect("t", 2, 1);
}

#[test]
fn two_subscriptions_of_one_connection_hold_the_same_event() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("sub t as older");
    client.ok("sub t as newer");
    client.ok("pub t {\"id\":1}");
    client.ok("pub t {\"id\":2}");
    client.expect("t", 1, 1);
    client.expect("t", 1, 1);
    client.no_event(A_WHILE);
    client.ok("ack t 1");
    client.expect("t", 2, 1);
    client.no_event(A_WHILE);
    client.ok("unsub t as newer");
    // What the newer one held is still to be done there: the ack settled it for the older one.
    client.err("ack t 1", "not-in-flight");
    client.ok("sub t as newer");
    client.expect("t", 1, 2);
    client.ok("ack t 1");
    client.expect("t", 2, 1);
    // Both hold the second event: one ack each.
    client.ok("ack t 2");
    client.ok("ack t @2");
    client.err("ack t @2", "not-in-flight");
}

#[test]
fn where_a_subscription_starts() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    for n in 1..=3 {
        client.publish("t", &format!("{{\"n\":{n}}}"));
    }
    std::thread::sleep(Duration::from_millis(1200));
    let between = humantime::format_rfc3339_millis(SystemTime::now() - Duration::from_millis(400));
    let fourth = Instant::now();
    for n in 4..=5 {
        client.publish("t", &format!("{{\"n\":{n}}}"));
    }
    let read = |from: &str| -> Vec<u64> {
        let mut client = server.client();
        client.ok(&format!("sub t prefetch=100 {from}"));
        let mut found = Vec::new();
        while let Some(event) = client.try_event(A_WHILE) {
            found.push(event.seq);
        }
        found
    };
    assert_eq!(read("from=first"), [1, 2, 3, 4, 5]);
    assert_eq!(read("from=last"), [5]);
    assert_eq!(read("from=new"), Vec::<u64>::new());
    assert_eq!(read("as nobody"), Vec::<u64>::new());
    assert_eq!(read("from=@3"), [3, 4, 5]);
    assert_eq!(read("from=@1"), [1, 2, 3, 4, 5]);
    assert_eq!(read(&format!("from={between}")), [4, 5]);
    assert_eq!(read(&format!("from={}ms", fourth.elapsed().as_millis() + 400)), [4, 5]);
    assert_eq!(read("from=1h"), [1, 2, 3, 4, 5]);
    assert_eq!(read("from=7d"), [1, 2, 3, 4, 5]);
    assert_eq!(read("from=9999d"), [1, 2, 3, 4, 5]);
    assert_eq!(read("from=@18446744073709551614"), Vec::<u64>::new());
    assert_eq!(read("from=1999-12-31T23:59:59Z"), [1, 2, 3, 4, 5]);

    let mut later = server.client();
    later.ok("sub t as later from=new");
    let mut last = server.client();
    last.ok("sub t as last from=last");
    last.expect("t", 5, 1);
    client.publish("t", "{}");
    later.expect("t", 6, 1);
    // A topic without events: every start is the start.
    for (n, from) in ["new", "first", "last", "1h"].iter().enumerate() {
        let topic = format!("empty/{n}");
        let mut client = server.client();
        client.ok(&format!("sub {topic} from={from}"));
        client.ok(&format!("pub {topic} {{}}"));
        client.expect(&topic, 1, 1);
    }
}

/// Events that are valid and odd; each must come back as the same bytes, now and after a crash.
fn odd_events() -> Vec<String> {
    let mut events: Vec<String> = [
        "{}",
        "{ }",
        "{\"a\":1}",
        "{  \"a\"  :  [ 1 ,2,  3 ]  }",
        "{\t\"a\":\t1}",
        "{\"sum\":12.50,\"big\":123456789012345678901234567890.123456789,\"small\":1E-400}",
        "{\"minus\":-0,\"exp\":1e+2,\"Exp\":1E2}",
        "{\"dup\":1,\"dup\":2}",
        "{\"\":\"\"}",
        "{\"esc\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\\u00e9\"}",
        "{\"unicode\":\"\u{e9}\u{20ac}\u{1f980}\u{7f}\u{80}\u{2028}\u{feff}\"}",
        "{\"looks\":\"event t 1 1 {}\",\"c\":\"9f3a01bc\"}",
        "{\"s\":1,\"t\":2,\"k\":\"pub\",\"e\":{},\"c\":\"00000000\"}",
        "{\"nested\":{\"id\":null,\"priority\":\"x\"},\"null\":null,\"t\":true,\"f\":false}",
        "{\"id\":\"}\",\"x\":\"{[\"}",
    ]
    .iter()
    .map(|text| (*text).to_owned())
    .collect();
    events.push(format!("{{\"long\":\"{}\"}}", "\u{20ac}".repeat(100_000)));
    events.push(format!(
        "{{\"keys\":{{{}}}}}",
        (0..5000).map(|n| format!("\"k{n}\":{n}")).collect::<Vec<_>>().join(",")
    ));
    events
}

#[test]
fn every_byte_is_carried() {
    let _turn = turn();
    let mut server = Server::start();
    let events = odd_events();
    let mut client = server.client();
    for (seq, event) in (1..).zip(&events) {
        assert_eq!(client.publish("one", event), seq);
    }
    assert_eq!(client.bulk("bulk", &events), format!("ok 1-{}", events.len()));
    let check = |client: &mut Client| {
        for topic in ["one", "bulk"] {
            client.ok(&format!("sub {topic} from=first prefetch=100"));
            for (seq, event) in (1..).zip(&events) {
                let got = client.event();
                let expected = Event { topic: topic.to_owned(), seq, attempt: 1, json: event.clone() };
                assert!(got == expected, "{got:?} is not {expected:?}");
                assert_eq!(client.peek(topic, &format!("@{seq}")).json, *event);
            }
        }
    };
    check(&mut client);
    // Killed first: a connection that ends counts an attempt.
    server.bounce9();
    drop(client);
    check(&mut server.client());
}

/// A backlog that is larger than any window or read-ahead: the highest priority of all of it still comes first.
#[test]
fn priorities_hold_over_a_long_backlog() {
    let _turn = turn();
    let mut server = Server::start();
    let mut client = server.client();
    let total = 60_000;
    let priority = |seq: u64| (seq * 7919) % 101;
    for start in (1..=total).step_by(5000) {
        let events: Vec<String> =
            (start..start + 5000).map(|seq| format!("{{\"priority\":{}}}", priority(seq))).collect();
        client.bulk("t", &events);
    }
    client.publish("t", "{\"priority\":1000}");
    let mut expected: Vec<u64> = (1..=total).collect();
    expected.sort_by_key(|seq| (std::cmp::Reverse(priority(*seq)), *seq));
    expected.insert(0, total + 1);
    for round in 0..2 {
        client.ok("sub t as n from=first prefetch=50");
        for (at, seq) in expected.iter().enumerate().take(3000) {
            assert_eq!(client.event().seq, *seq, "delivery {at} of round {round}");
            if at % 50 == 49 {
                client.ok("ack t @1-@999999");
            }
        }
        expected.drain(..3000);
        if round == 0 {
            server.bounce9();
            client = server.client();
        }
    }
}

/// One connection, many topics, everything pipelined: the replies are in the order of the commands.
#[test]
fn replies_of_many_topics_are_in_order() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    let mut lines = String::new();
    for n in 0..3000 {
        lines.push_str(&format!("pub o/{} {{\"n\":{n}}}\n", n % 37));
        if n % 10 == 0 {
            lines.push_str("nonsense\n");
        }
    }
    let mut writer = client.stream().try_clone().expect("clone");
    let sender = std::thread::spawn(move || std::io::Write::write_all(&mut writer, lines.as_bytes()));
    for n in 0..3000 {
        assert_eq!(client.reply(), format!("ok {}", n / 37 + 1), "reply {n}");
        if n % 10 == 0 {
            assert!(client.reply().starts_with("err bad-command "));
        }
    }
    sender.join().expect("sender").expect("send");
    for n in 0..37 {
        let last = client.peek(&format!("o/{n}"), "last");
        assert_eq!(last.json, format!("{{\"n\":{}}}", (last.seq - 1) * 37 + n));
    }
}

/// What was answered with `ok` can be seen by the next command, also when both were sent at once.
#[test]
fn a_later_command_sees_what_an_earlier_one_did() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.raw(b"pub t {\"n\":1}\npeek t last\npub t {\"n\":2}\npeek t @2\nstats t\n");
    assert_eq!(client.reply(), "ok 1");
    assert_eq!(client.reply(), "event t 1 0 {\"n\":1}");
    assert_eq!(client.reply(), "ok 2");
    assert_eq!(client.reply(), "event t 2 0 {\"n\":2}");
    let stats = client.reply();
    assert!(stats.contains("\"last\":2"), "{stats}");
}

/// After the `ok` of `unsub` nothing more comes.
#[test]
fn unsub_is_the_last_of_it() {
    let _turn = turn();
    let server = Server::start();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let mut publisher = server.client();
    let thread = std::thread::spawn(move || {
        while stopped.try_recv().is_err() {
            publisher.raw("pub t {}\n".repeat(50).as_bytes());
            for _ in 0..50 {
                publisher.reply();
            }
        }
    });
    let mut client = server.client();
    for _ in 0..40 {
        client.ok("sub t prefetch=1000");
        client.event();
        client.send("unsub t");
        loop {
            match client.next(Duration::from_secs(5)) {
                Item::Event(_) => {}
                Item::Reply(line) => {
                    assert_eq!(line, "ok");
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        match client.next(Duration::from_millis(10)) {
            Item::Silence => {}
            other => panic!("after unsub was ok: {other:?}"),
        }
        // What was read before counts as met, not as waiting.
        while client.try_event(Duration::ZERO).is_some() {}
    }
    stop.send(()).expect("stop");
    thread.join().expect("publisher");
}
