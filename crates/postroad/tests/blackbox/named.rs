//! Subscriptions with a NAME: they survive everything; groups share them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{A_WHILE, Client, PATIENCE, Server, eventually, turn};

fn resub(client: &mut Client, line: &str) {
    eventually("the name is free", || client.cmd(line) == "ok");
}

#[test]
fn they_survive_a_stop_and_a_kill() {
    let _turn = turn();
    let mut server = Server::start();
    let mut client = server.client();
    client.ok("sub t as n");
    for n in 1..=6 {
        client.publish("t", &format!("{{\"n\":{n}}}"));
    }
    client.expect("t", 1, 1);
    client.ok("ack t @1");
    client.expect("t", 2, 1);
    client.ok("nack t @2");
    client.expect("t", 2, 2);
    client.ok("ack t @2");
    client.expect("t", 3, 1);
    server.kill9();
    server.restart();
    let mut client = server.client();
    client.publish("t", "{\"n\":7}");
    client.ok("sub t as n from=first prefetch=10");
    // The kill is not counted as an attempt.
    for seq in 3..=7 {
        client.expect("t", seq, 1);
    }
    client.no_event(A_WHILE);
    client.ok("ack t @4");
    client.ok("ack t @6");
    drop(client);
    server.terminate();
    assert!(server.wait_exit(PATIENCE).success());
    server.restart();
    let mut client = server.client();
    client.ok("sub t as n prefetch=10");
    let rest: Vec<u64> = (0..3).map(|_| client.event().seq).collect();
    assert_eq!(rest, [3, 5, 7]);
    client.no_event(A_WHILE);
}

#[test]
fn attempts_survive_a_kill_and_the_kill_is_not_one() {
    let _turn = turn();
    let mut server = Server::start();
    let mut client = server.client();
    client.ok("sub t as n max_deliveries=3");
    client.ok("pub t {}");
    client.expect("t", 1, 1);
    client.ok("nack t @1 reason=one");
    client.expect("t", 1, 2);
    for _ in 0..5 {
        // The old connection is dropped after the kill: its end would count.
        server.bounce9();
        client = server.client();
        client.ok("sub t as n");
        client.expect("t", 1, 2);
        server.client().err("peek $dead/t first", "not-found");
    }
    client.ok("nack t @1 reason=two");
    client.expect("t", 1, 3);
    client.ok("nack t @1 reason=three");
    client.no_event(A_WHILE);
    assert_eq!(client.peek("$dead/t", "first").get("/reason"), "three");
}

#[test]
fn options_are_kept_and_replaced() {
    let _turn = turn();
    let mut server = Server::start();
    let mut client = server.client();
    client.ok("pub t {}");
    client.ok("sub t as n from=first ack_wait=200ms backoff=10ms prefetch=7");
    client.expect("t", 1, 1);
    // Killed first: a connection that ends counts an attempt.
    server.bounce9();
    drop(client);
    let mut client = server.client();
    client.ok("sub t as n");
    client.expect("t", 1, 1);
    // The stored ack_wait still holds.
    client.expect("t", 1, 2);
    client.ok("unsub t as n");
    client.ok("sub t as n ack_wait=30s max_deliveries=9");
    client.expect("t", 1, 3);
    client.no_event(Duration::from_millis(500));
}

#[test]
fn topic_as_written_and_name_are_the_identity() {
    let _turn = turn();
    let server = Server::start();
    let mut a = server.client();
    let mut b = server.client();
    a.ok("sub o/x as n");
    b.ok("sub o/* as n");
    b.ok("sub o/y as n");
    a.ok("sub o/x as N");
    a.ok("pub o/x {}");
    a.expect("o/x", 1, 1);
    a.expect("o/x", 1, 1);
    b.expect("o/x", 1, 1);
    b.no_event(A_WHILE);
    a.no_event(A_WHILE);
}

#[test]
fn a_group_shares() {
    let _turn = turn();
    let server = Server::start();
    let mut mates: Vec<Client> = (0..4).map(|_| server.client()).collect();
    for mate in &mut mates {
        mate.ok("sub t as g group prefetch=4");
    }
    let mut loner = server.client();
    loner.ok("sub t as alone prefetch=1000");
    let mut client = server.client();
    let reply = client.cmd("sub t as alone group");
    assert!(reply.starts_with("err in-use "), "{reply}");
    let reply = client.cmd("sub t as g");
    assert!(reply.starts_with("err in-use "), "an exclusive claim on a shared subscription: {reply}");

    let total = 400;
    let events: Vec<String> = (1..=total).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(client.bulk("t", &events), format!("ok 1-{total}"));
    let mut taken: BTreeMap<u64, usize> = BTreeMap::new();
    let mut shares = vec![0; mates.len()];
    let mut open: Vec<Vec<u64>> = vec![Vec::new(); mates.len()];
    while taken.len() < total {
        for (at, mate) in mates.iter_mut().enumerate() {
            while let Some(event) =
                mate.try_event(Duration::from_millis(if taken.len() < 16 { 100 } else { 2 }))
            {
                assert_eq!(event.attempt, 1);
                assert_eq!(taken.insert(event.seq, at), None, "event {} came twice", event.seq);
                shares[at] += 1;
                open[at].push(event.seq);
                assert!(open[at].len() <= 4, "window exceeded");
            }
            for seq in open[at].drain(..) {
                mate.ok(&format!("ack t @{seq}"));
            }
        }
    }
    assert!(shares.iter().all(|share| *share >= total / 20), "shares {shares:?}");
    for mate in &mut mates {
        mate.no_event(Duration::from_millis(30));
    }
    for seq in 1..=total as u64 {
        loner.expect("t", seq, 1);
    }
}

#[test]
fn unsub_keeps_the_place_and_forget_does_not() {
    let _turn = turn();
    let mut server = Server::start();
    let mut client = server.client();
    client.ok("sub t as n from=first");
    client.ok("sub t as m from=first");
    for n in 1..=3 {
        client.publish("t", &format!("{{\"n\":{n}}}"));
    }
    client.expect("t", 1, 1);
    client.expect("t", 1, 1);
    client.ok("ack t @1");
    client.expect("t", 2, 1);
    client.ok("unsub t");
    client.err("ack t @2", "not-in-flight");
    client.err("unsub t", "not-subscribed");
    client.no_event(A_WHILE);
    client.ok("sub t as n");
    client.expect("t", 2, 2);
    let mut other = server.client();
    other.err("unsub t as n forget", "in-use");
    client.ok("unsub t as n forget");
    other.err("unsub t as n forget", "not-found");
    other.ok("sub t as n");
    other.no_event(A_WHILE);
    other.ok("pub t {}");
    other.expect("t", 4, 1);
    other.ok("unsub t as n forget");
    client.ok("unsub t as m forget");
    drop((client, other));
    server.bounce9();
    let mut client = server.client();
    for name in ["n", "m"] {
        client.err(&format!("unsub t as {name} forget"), "not-found");
    }
    client.ok("sub t as n from=first");
    client.expect("t", 1, 1);
}

#[test]
fn what_waits_for_a_name_is_all_there() {
    let _turn = turn();
    let mut server = Server::start();
    let mut client = server.client();
    client.ok("sub w/> as n");
    client.ok("unsub w/> as n");
    for n in 1..=50 {
        client.publish("w/a", &format!("{{\"n\":{n}}}"));
        client.publish("w/b", &format!("{{\"n\":{n}}}"));
    }
    // Killed first: a connection that ends counts an attempt.
    server.bounce9();
    drop(client);
    let mut client = server.client();
    client.publish("w/c", "{}");
    client.ok("sub w/> as n prefetch=1000");
    let mut seen: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for _ in 0..101 {
        let event = client.event();
        seen.entry(event.topic).or_default().push(event.seq);
    }
    client.no_event(A_WHILE);
    assert_eq!(seen["w/a"], (1..=50).collect::<Vec<_>>());
    assert_eq!(seen["w/b"], (1..=50).collect::<Vec<_>>());
    assert_eq!(seen["w/c"], [1]);
    resub(&mut server.client(), "sub w/> as other");
}

/// Members join, leave and vanish while the load goes on: every event is done in the end, and none is in two hands.
#[test]
fn a_group_whose_members_come_and_go() {
    let _turn = turn();
    let server = Server::start();
    let mut rng = crate::support::seed("a_group_whose_members_come_and_go");
    let mut publisher = server.client();
    let total = 1500_u64;
    let mut next = 1;
    let mut mates: Vec<Client> = Vec::new();
    let mut acked = std::collections::BTreeSet::new();
    let end = std::time::Instant::now() + PATIENCE;
    while (acked.len() as u64) < total {
        assert!(std::time::Instant::now() < end, "{} of {total} are acked", acked.len());
        if next <= total {
            let events: Vec<String> =
                (next..(next + 20).min(total + 1)).map(|n| format!("{{\"id\":{n}}}")).collect();
            publisher.bulk("t", &events);
            next += events.len() as u64;
        }
        if mates.len() < 4 {
            let mut mate = server.client();
            mate.ok(&format!("sub t as g group from=first prefetch={}", rng.u8(1..20)));
            mates.push(mate);
        }
        for mate in &mut mates {
            while let Some(event) = mate.try_event(Duration::from_millis(1)) {
                assert!(!acked.contains(&event.seq), "after its ack: {event:?}");
                match rng.u8(0..20) {
                    0 => drop(mate.ok(&format!("nack t @{}", event.seq))),
                    1 => {}
                    _ => {
                        mate.ok(&format!("ack t @{}", event.seq));
                        acked.insert(event.seq);
                    }
                }
            }
        }
        if rng.u8(0..3) == 0 {
            let mut gone = mates.swap_remove(rng.usize(..mates.len()));
            match rng.u8(0..3) {
                0 => gone.reset(),
                1 => drop(gone.ok("unsub t as g")),
                _ => {}
            }
        }
    }
    let mut last = server.client();
    mates.clear();
    last.ok("sub t as g group prefetch=100");
    last.no_event(A_WHILE);
}
