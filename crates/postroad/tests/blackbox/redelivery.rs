//! What comes again, when, and with which attempt.

use std::time::{Duration, Instant};

use crate::support::{A_WHILE, Client, Server, turn};

/// The next event of `topic`, and how long it took to come.
fn timed(client: &mut Client, seq: u64, attempt: u64) -> Duration {
    let begin = Instant::now();
    client.expect("t", seq, attempt);
    begin.elapsed()
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn nack_comes_back_at_once_or_later() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("sub t");
    client.ok("pub t {\"id\":\"a\"}");
    client.ok("pub t {\"id\":\"b\"}");
    client.expect("t", 1, 1);
    for attempt in 2..=20 {
        client.ok("nack t a reason=try again, please");
        assert!(timed(&mut client, 1, attempt) < ms(1000));
    }
    client.ok("nack t a delay=400ms");
    client.err("ack t a", "not-in-flight");
    client.err("nack t a", "not-in-flight");
    assert!(timed(&mut client, 2, 1) < ms(300), "the delayed event does not hold up the next");
    client.ok("ack t b");
    let waited = timed(&mut client, 1, 21);
    assert!(waited > ms(200) && waited < ms(1500), "{waited:?}");
    client.ok("nack t a delay=0");
    client.expect("t", 1, 22);
    client.ok("nack t @1-@1 delay=1ms reason=with = and delay=5s in it");
    client.expect("t", 1, 23);
    // A delay beyond all time is an answer, not a crash.
    let reply = client.cmd("nack t a delay=999999999999999d");
    assert!(reply == "ok" || reply.starts_with("err bad-args "), "{reply}");
    if reply == "ok" {
        client.ok("unsub t");
    } else {
        client.ok("ack t a");
    }
    client.no_event(A_WHILE);
}

#[test]
fn backoff_is_a_list_and_the_last_repeats() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("pub t {}");
    client.ok("sub t from=first backoff=100ms,400ms");
    client.expect("t", 1, 1);
    for (attempt, wait) in [(2, 100), (3, 400), (4, 400)] {
        client.ok("nack t @1");
        let waited = timed(&mut client, 1, attempt);
        assert!(waited > ms(wait - 30) && waited < ms(wait + 800), "attempt {attempt} after {waited:?}");
    }
    client.ok("nack t @1 delay=10ms");
    assert!(timed(&mut client, 1, 5) < ms(300), "delay is stronger than backoff");
}

#[test]
fn ack_wait_and_touch() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("pub t {\"id\":\"a\"}");
    client.ok("sub t from=first ack_wait=400ms");
    client.expect("t", 1, 1);
    for _ in 0..8 {
        client.no_event(ms(150));
        client.ok("touch t a");
    }
    let waited = timed(&mut client, 1, 2);
    assert!(waited > ms(250) && waited < ms(2000), "{waited:?}");
    let waited = timed(&mut client, 1, 3);
    assert!(waited > ms(350) && waited < ms(2000), "{waited:?}");
    client.ok("ack t a");
    client.no_event(ms(600));
}

#[test]
fn an_ack_that_is_too_late_says_so() {
    let _turn = turn();
    let server = Server::start();
    let mut slow = server.client();
    slow.ok("pub t {\"id\":\"a\"}");
    slow.ok("sub t as g group from=first ack_wait=200ms backoff=2s");
    slow.expect("t", 1, 1);
    std::thread::sleep(ms(500));
    // It waits for its next delivery: nobody holds it now.
    for verb in ["ack", "nack", "touch", "bury"] {
        slow.err(&format!("{verb} t a"), "not-in-flight");
        slow.err(&format!("{verb} t @1-@1"), "not-in-flight");
    }
    let mut quick = server.client();
    quick.ok("sub t as g group ack_wait=30s prefetch=5");
    slow.ok("unsub t as g");
    quick.expect("t", 1, 2);
    slow.err("ack t a", "not-in-flight");
    quick.ok("ack t a");
    quick.no_event(A_WHILE);
}

#[test]
fn ack_wait_with_backoff() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("pub t {}");
    client.ok("sub t from=first ack_wait=100ms backoff=500ms");
    client.expect("t", 1, 1);
    let waited = timed(&mut client, 1, 2);
    assert!(waited > ms(550) && waited < ms(2500), "{waited:?}");
}

#[test]
fn a_lost_connection_gives_back_at_once() {
    let _turn = turn();
    let server = Server::start();
    for how in ["close", "reset", "quit", "unsub"] {
        let topic = format!("lost/{how}");
        let mut holder = server.client();
        for n in 1..=3 {
            holder.publish(&topic, &format!("{{\"n\":{n}}}"));
        }
        holder.ok(&format!("sub {topic} as g group from=first prefetch=3"));
        for seq in 1..=3 {
            holder.expect(&topic, seq, 1);
        }
        holder.ok(&format!("ack {topic} @2"));
        let mut mate = server.client();
        mate.ok(&format!("sub {topic} as g group prefetch=3"));
        mate.no_event(ms(50));
        let begin = Instant::now();
        match how {
            "close" => drop(holder),
            "reset" => holder.reset(),
            "quit" => {
                holder.ok("quit");
                holder.expect_bye("quit");
            }
            _ => {
                holder.ok(&format!("unsub {topic} as g"));
            }
        }
        mate.expect(&topic, 1, 2);
        mate.expect(&topic, 3, 2);
        assert!(begin.elapsed() < ms(1000), "{how}: {:?}", begin.elapsed());
        mate.no_event(ms(50));
        mate.ok(&format!("ack {topic} @1-@3"));
    }
}

#[test]
fn an_exclusive_subscription_is_free_after_its_connection() {
    let _turn = turn();
    let server = Server::start();
    let mut first = server.client();
    first.ok("sub t as n from=first");
    first.ok("pub t {}");
    first.expect("t", 1, 1);
    let mut second = server.client();
    second.err("sub t as n", "in-use");
    first.reset();
    crate::support::eventually("the name is free", || second.cmd("sub t as n") == "ok");
    second.expect("t", 1, 2);
}

#[test]
fn an_anonymous_subscription_ends_with_its_connection() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("sub t");
    client.ok("pub t {}");
    client.expect("t", 1, 1);
    drop(client);
    let mut client = server.client();
    client.ok("sub t");
    client.ok("pub t {}");
    client.expect("t", 2, 1);
    client.ok("ack t @2");
    client.no_event(A_WHILE);
}

#[test]
fn attempts_are_counted_over_connections_and_reasons() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("pub t {}");
    client.ok("sub t as n from=first ack_wait=200ms");
    client.expect("t", 1, 1);
    client.ok("nack t @1");
    client.expect("t", 1, 2);
    client.expect("t", 1, 3);
    drop(client);
    let mut client = server.client();
    crate::support::eventually("the name is free", || client.cmd("sub t as n ack_wait=1m") == "ok");
    client.expect("t", 1, 4);
    client.ok("unsub t");
    client.ok("sub t as n ack_wait=1m");
    client.expect("t", 1, 5);
}

/// A whole window of leases that end at the same time.
#[test]
fn ten_thousand_leases_end_at_once() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    let events: Vec<String> = (1..=10_000).map(|n| format!("{{\"n\":{n}}}")).collect();
    client.bulk("t", &events);
    client.ok("sub t from=first prefetch=65536 ack_wait=1s");
    for attempt in 1..=3 {
        for seq in 1..=10_000 {
            client.expect("t", seq, attempt);
        }
    }
    client.ok("ack t @1-@10000");
    client.no_event(ms(1200));
}

/// A delayed event is not lost with the server; it comes after its delay at the latest.
#[test]
fn a_delay_survives_a_kill() {
    let _turn = turn();
    let mut server = Server::start();
    let mut client = server.client();
    client.ok("pub t {}");
    client.ok("sub t as n from=first");
    client.expect("t", 1, 1);
    client.ok("nack t @1 delay=1s");
    server.bounce9();
    let mut client = server.client();
    client.ok("sub t as n");
    assert!(timed(&mut client, 1, 2) < ms(2500));
}
