//! `max_deliveries`, `bury`, `$dead/…`, `kick`.

use std::time::{Duration, SystemTime};

use crate::support::{A_WHILE, Client, Event, Server, turn};

/// Checks the wrapper of a dead letter.
fn check_letter(letter: &Event, topic: &str, seq: u64, name: &str, attempts: u64, reason: &str, event: &str) {
    assert_eq!(letter.topic, format!("$dead/{topic}"));
    assert_eq!(letter.get("/topic"), topic);
    assert_eq!(letter.get("/seq"), seq);
    assert_eq!(letter.get("/attempts"), attempts);
    let subscription = letter.get("/subscription").to_string();
    assert!(subscription.contains(name), "{name} is not in {subscription}");
    let given = letter.get("/reason");
    let given = given.as_str().expect("the reason is a text");
    assert!(given.contains(reason) && !given.is_empty(), "{reason:?} is not in {given:?}");
    assert!(
        letter.json.contains(&format!("\"event\":{event}")),
        "{event} is not verbatim in {}",
        letter.json
    );
    let time = |key: &str| -> SystemTime {
        let text = letter.get(key);
        let text = text.as_str().expect("a time is a text");
        humantime::parse_rfc3339(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    };
    let (first, last) = (time("/first"), time("/last"));
    assert!(first <= last && last <= SystemTime::now(), "{}", letter.json);
    assert!(first > SystemTime::now() - Duration::from_secs(60), "{}", letter.json);
}

fn dead(client: &mut Client, topic: &str) -> Event {
    client.ok(&format!("sub $dead/{topic} from=first prefetch=1000"));
    client.event()
}

#[test]
fn after_so_many_deliveries() {
    let _turn = turn();
    let mut server = Server::start();
    let event = "{\"id\" : \"x\", \"sum\":1.50}";
    for (how, wait) in [("nack", "30s"), ("wait", "100ms"), ("close", "30s")] {
        let topic = format!("max/{how}");
        let mut client = server.client();
        client.publish(&topic, event);
        client.publish(&topic, "{\"id\":\"next\"}");
        client.ok(&format!("sub {topic} as worker from=first max_deliveries=3 ack_wait={wait}"));
        for attempt in 1..=3 {
            client.expect(&topic, 1, attempt);
            match how {
                "nack" => {
                    client.ok(&format!("nack {topic} x reason=bad customer: \"7\" \u{e9}"));
                }
                "wait" => {}
                _ => {
                    drop(client);
                    client = server.client();
                    crate::support::eventually("the name is free", || {
                        client.cmd(&format!("sub {topic} as worker")) == "ok"
                    });
                }
            }
        }
        client.expect(&topic, 2, 1);
        client.ok(&format!("ack {topic} @2"));
        client.no_event(A_WHILE);
        let letter = dead(&mut client, &topic);
        let reason = if how == "nack" { "bad customer: \"7\" \u{e9}" } else { "" };
        check_letter(&letter, &topic, 1, "worker", 3, reason, event);
        client.no_event(Duration::from_millis(50));
    }
    server.bounce9();
    for how in ["nack", "wait", "close"] {
        let topic = format!("max/{how}");
        let mut client = server.client();
        client.ok(&format!("sub {topic} as worker"));
        client.no_event(Duration::from_millis(50));
        let letter = dead(&mut client, &topic);
        check_letter(&letter, &topic, 1, "worker", 3, "", event);
        client.no_event(Duration::from_millis(50));
    }
}

#[test]
fn max_deliveries_of_one() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("pub t {\"n\":1}");
    client.ok("sub t as n from=first max_deliveries=1");
    client.expect("t", 1, 1);
    client.ok("nack t @1 delay=1h reason=no");
    client.no_event(A_WHILE);
    let letter = dead(&mut client, "t");
    check_letter(&letter, "t", 1, "n", 1, "no", "{\"n\":1}");
}

#[test]
fn bury_is_final_and_durable() {
    let _turn = turn();
    let mut server = Server::start();
    let mut client = server.client();
    client.ok("sub t as n from=first prefetch=10");
    for n in 1..=5 {
        client.publish("t", &format!("{{\"id\":\"e{n}\"}}"));
        client.expect("t", n, 1);
    }
    client.ok("bury t e2 reason=cannot be parsed");
    client.ok("bury t @4-@9");
    client.err("bury t e2", "not-in-flight");
    client.err("ack t e2", "not-in-flight");
    // Killed before it can see the connection end, which would count an attempt.
    server.bounce9();
    drop(client);
    let mut client = server.client();
    client.ok("sub t as n prefetch=10");
    client.expect("t", 1, 1);
    client.expect("t", 3, 1);
    client.no_event(A_WHILE);
    let letter = dead(&mut client, "t");
    check_letter(&letter, "t", 2, "n", 1, "cannot be parsed", "{\"id\":\"e2\"}");
    check_letter(&client.event(), "t", 4, "n", 1, "", "{\"id\":\"e4\"}");
    check_letter(&client.event(), "t", 5, "n", 1, "", "{\"id\":\"e5\"}");
    client.no_event(A_WHILE);
    client.err("bury $dead/t @1", "denied");
    client.err("pub $dead/t {}", "denied");
    let events = ["{}".to_owned()];
    assert!(client.bulk("$dead/t", &events).starts_with("err denied "));
    assert_eq!(client.peek("$dead/t", "@1").json, letter.json);
    client.ok("ack $dead/t @1-@3");
}

#[test]
fn the_longest_topic_has_dead_letters_too() {
    let _turn = turn();
    let mut server = Server::start();
    for topic in ["x".repeat(255), "\u{20ac}".repeat(85), format!("{}y", "l/".repeat(127))] {
        let mut client = server.client();
        client.ok(&format!("sub {topic} as n from=first"));
        client.ok(&format!("pub {topic} {{\"id\":1}}"));
        client.expect(&topic, 1, 1);
        client.ok(&format!("bury {topic} 1 reason=long"));
        server.bounce9();
        let mut client = server.client();
        assert_eq!(client.peek(&format!("$dead/{topic}"), "@1").get("/reason"), "long");
        assert_eq!(client.ok(&format!("kick {topic}")), "1");
        client.ok(&format!("sub {topic} as n"));
        client.expect(&topic, 2, 1);
        client.ok(&format!("ack {topic} @2"));
        client.ok(&format!("sub $dead/{topic} from=first"));
        client.event();
        client.ok(&format!("ack $dead/{topic} @1"));
    }
}

#[test]
fn every_subscription_has_its_own_dead_letters() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("pub t {\"id\":1}");
    client.ok("sub t as a from=first");
    client.expect("t", 1, 1);
    client.ok("bury t 1 reason=first");
    client.ok("sub t as b from=first");
    client.expect("t", 1, 1);
    client.ok("ack t 1");
    let letter = dead(&mut client, "t");
    check_letter(&letter, "t", 1, "a", 1, "first", "{\"id\":1}");
    client.no_event(A_WHILE);
}

#[test]
fn kick_publishes_each_dead_letter_once() {
    let _turn = turn();
    let mut server = Server::start();
    let mut client = server.client();
    client.ok("sub t as n from=first prefetch=100 max_deliveries=5");
    for n in 1..=6 {
        client.publish("t", &format!("{{\"id\":\"e{n}\",  \"n\":{n}}}"));
        client.expect("t", n, 1);
    }
    assert_eq!(client.ok("kick t"), "0");
    client.ok("nack t e3 delay=0");
    client.expect("t", 3, 2);
    for n in [5, 3, 1, 6] {
        client.ok(&format!("bury t e{n}"));
    }
    assert_eq!(client.ok("kick t 2"), "2");
    // Oldest dead letter first: 5 was buried first.
    assert_eq!(client.expect("t", 7, 1).json, "{\"id\":\"e5\",  \"n\":5}");
    assert_eq!(client.expect("t", 8, 1).json, "{\"id\":\"e3\",  \"n\":3}");
    client.no_event(A_WHILE);
    client.ok("ack t @7-@8");
    // Killed first: a connection that ends counts an attempt.
    server.bounce9();
    drop(client);
    let mut client = server.client();
    assert_eq!(client.ok("kick t 10000"), "2", "what was kicked before the crash is not kicked again");
    assert_eq!(client.ok("kick t"), "0");
    client.ok("sub t as n prefetch=100");
    for (seq, json) in [(2, "e2"), (4, "e4"), (9, "e1"), (10, "e6")] {
        let event = client.event();
        assert!(event.seq == seq && event.json.contains(json), "{event:?}");
    }
    client.no_event(A_WHILE);
    client.ok("bury t @9 reason=again");
    assert_eq!(client.ok("kick t 1"), "1");
    client.expect("t", 11, 1);
    // Killed first: a connection that ends counts an attempt.
    server.bounce9();
    drop(client);
    let mut client = server.client();
    assert_eq!(client.ok("kick t"), "0");
    assert_eq!(client.peek("t", "last").seq, 11);
}

#[test]
fn peek_takes_nothing() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    for n in 1..=3 {
        client.publish("t", &format!("{{\"n\": {n}}}"));
    }
    client.ok("sub t as n from=first");
    client.expect("t", 1, 1);
    for _ in 0..3 {
        for (which, seq) in [("first", 1), ("@1", 1), ("@2", 2), ("@3", 3), ("last", 3)] {
            let event = client.peek("t", which);
            assert_eq!((event.seq, event.attempt, event.json), (seq, 0, format!("{{\"n\": {seq}}}")));
        }
    }
    for which in ["@0", "@4", "@18446744073709551615"] {
        let reply = client.cmd(&format!("peek t {which}"));
        assert!(
            reply.starts_with("err not-found ") || reply.starts_with("err bad-args "),
            "{which}: {reply}"
        );
    }
    client.ok("ack t @1");
    client.expect("t", 2, 1);
    assert_eq!(client.peek("t", "first").seq, 1, "an acked event can still be seen");
    client.err("peek t/* first", "bad-topic");
}

/// A dead letter that nobody can process stays a dead letter: it is not lost and not wrapped again.
#[test]
fn dead_letters_do_not_die_again() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("sub t as n from=first");
    client.ok("pub t {\"id\":1}");
    client.expect("t", 1, 1);
    client.ok("bury t 1 reason=one");
    client.ok("sub $dead/t as doctor from=first max_deliveries=2");
    client.expect("$dead/t", 1, 1);
    client.ok("nack $dead/t @1");
    client.expect("$dead/t", 1, 2);
    let reply = client.cmd("nack $dead/t @1 reason=hopeless");
    assert!(reply == "ok" || reply.starts_with("err denied "), "{reply}");
    client.try_event(A_WHILE);
    assert_eq!(client.peek("$dead/t", "last").seq, 1);
    let topics = client.ok("topics $dead/>");
    assert!(!topics.contains("$dead/$dead"), "{topics}");
    assert_eq!(client.ok("kick t"), "1");
    client.expect("t", 2, 1);
}

#[test]
fn many_dead_letters_are_kicked_in_parts() {
    let _turn = turn();
    let mut server = Server::start();
    let mut client = server.client();
    let events: Vec<String> = (1..=10_050).map(|n| format!("{{\"id\":{n}}}")).collect();
    client.bulk("t", &events);
    client.ok("sub t as n from=first prefetch=65536");
    for seq in 1..=10_050 {
        client.expect("t", seq, 1);
    }
    client.ok("bury t @1-@10050 reason=all of them");
    assert_eq!(client.peek("$dead/t", "last").seq, 10_050);
    assert_eq!(client.ok("kick t"), "10000");
    server.bounce9();
    let mut client = server.client();
    assert_eq!(client.ok("kick t"), "50");
    assert_eq!(client.ok("kick t"), "0");
    client.ok("sub t as n prefetch=65536");
    for n in 1..=10_050_u64 {
        let event = client.expect("t", 10_050 + n, 1);
        assert_eq!(event.json, format!("{{\"id\":{n}}}"));
    }
}
