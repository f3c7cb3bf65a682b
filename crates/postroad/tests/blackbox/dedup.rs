//! The same id twice: off by default, and with a window.

use std::time::Duration;

use crate::support::{A_WHILE, Server, Setup, turn};

#[test]
fn without_a_window_an_id_may_come_twice() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    assert_eq!(client.ok("pub t {\"id\":\"a\",\"n\":1}"), "1");
    assert_eq!(client.ok("pub t {\"id\":\"a\",\"n\":2}"), "2");
    client.ok("sub t from=first");
    assert_eq!(client.expect("t", 1, 1).json, "{\"id\":\"a\",\"n\":1}");
    client.ok("ack t a");
    assert_eq!(client.expect("t", 2, 1).json, "{\"id\":\"a\",\"n\":2}");
    client.ok("ack t a");
    client.no_event(A_WHILE);
}

#[test]
fn a_window_that_survives_crashes() {
    let _turn = turn();
    let mut server = Setup::config("[jsonlog]\ndedup_window = \"1h\"\n").start();
    let mut client = server.client();
    client.ok("sub t as n prefetch=100");
    assert_eq!(client.ok("pub t {\"id\":\"a\",\"n\":1}"), "1");
    assert_eq!(client.ok("pub t {\"id\":\"a\",\"n\":2}"), "1 duplicate");
    assert_eq!(client.ok("pub t {\"n\":3}"), "2", "an event without an id is never a duplicate");
    assert_eq!(client.ok("pub t {\"n\":3}"), "3");
    assert_eq!(client.ok("pub other {\"id\":\"a\"}"), "1", "another topic");
    assert_eq!(client.ok("pub other {\"id\":2}"), "2");
    assert_eq!(client.ok("pub other {\"id\":\"2\"}"), "2 duplicate", "ids are compared as text");
    assert_eq!(client.ok("pub other {\"id\":\"\\u0032\"}"), "2 duplicate");
    assert_eq!(client.ok("pub other {\"id\":2.0}"), "3");
    let events =
        |ids: &[&str]| -> Vec<String> { ids.iter().map(|id| format!("{{\"id\":\"{id}\"}}")).collect() };
    assert_eq!(client.bulk("t", &events(&["b", "c"])), "ok 4-5");
    assert_eq!(client.bulk("t", &events(&["b", "d", "a", "e"])), "ok 6-7 duplicates=2");
    assert_eq!(client.bulk("t", &events(&["a", "b", "c"])), "ok 0-0 duplicates=3");
    assert_eq!(client.bulk("t", &events(&["f", "f"])), "ok 8-8 duplicates=1", "twice in one pubn");
    // Pipelined, so that the second arrives before the first is on disk.
    client.raw(b"pub t {\"id\":\"g\"}\npub t {\"id\":\"g\"}\n");
    assert_eq!(client.reply(), "ok 9");
    assert_eq!(client.reply(), "ok 9 duplicate");
    for seq in 1..=9 {
        client.expect("t", seq, 1);
    }
    client.no_event(A_WHILE);
    client.ok("ack t @1-@9");
    for _ in 0..2 {
        server.bounce9();
        let mut client = server.client();
        assert_eq!(client.ok("pub t {\"id\":\"a\",\"n\":4}"), "1 duplicate");
        assert_eq!(client.ok("pub t {\"id\":\"g\"}"), "9 duplicate");
        assert_eq!(client.bulk("t", &events(&["b", "e", "f"])), "ok 0-0 duplicates=3");
    }
    let mut client = server.client();
    assert_eq!(client.ok("pub t {\"id\":\"h\"}"), "10");
    client.ok("sub t as n prefetch=100");
    client.expect("t", 10, 1);
    client.no_event(A_WHILE);
}

#[test]
fn the_window_ends() {
    let _turn = turn();
    let mut server = Setup::config("[jsonlog]\ndedup_window = \"2s\"\n").start();
    let mut client = server.client();
    assert_eq!(client.ok("pub t {\"id\":\"a\"}"), "1");
    server.bounce9();
    let mut client = server.client();
    assert_eq!(client.ok("pub t {\"id\":\"a\"}"), "1 duplicate");
    std::thread::sleep(Duration::from_millis(2300));
    assert_eq!(client.ok("pub t {\"id\":\"a\"}"), "2", "the window is over");
    assert_eq!(client.ok("pub t {\"id\":\"a\"}"), "2 duplicate");
}

/// Publishers who send again after every kill: with ids and a window, each event is stored once.
#[test]
fn sending_again_after_a_kill_stores_once() {
    let _turn = turn();
    let mut server = Setup::config("[jsonlog]\ndedup_window = \"1h\"\n").start();
    let mut rng = crate::support::seed("sending_again_after_a_kill_stores_once");
    let total = 600;
    let mut done = 0;
    while done < total {
        let mut client = server.client();
        let batch: String = (done..total).map(|n| format!("pub t {{\"id\":{n}}}\n")).collect();
        let mut writer = client.stream().try_clone().expect("clone");
        let sender = std::thread::spawn(move || {
            let _ = std::io::Write::write_all(&mut writer, batch.as_bytes());
        });
        for _ in 0..rng.usize(1..150).min(total - done) {
            let reply = client.reply();
            assert!(reply.starts_with(&format!("ok {}", done + 1)), "{reply} at {done}");
            done += 1;
        }
        server.kill9();
        drop(client);
        sender.join().expect("sender");
        server.restart();
    }
    let mut client = server.client();
    client.ok("sub t from=first prefetch=1000");
    for seq in 1..=total as u64 {
        assert_eq!(client.expect("t", seq, 1).json, format!("{{\"id\":{}}}", seq - 1));
    }
    client.no_event(A_WHILE);
}
