//! What the configuration changes, and what it refuses.

use std::time::Duration;

use crate::support::{PATIENCE, Setup, turn};

#[test]
fn the_words_can_be_changed() {
    let _turn = turn();
    let config = "[jsonlog.words]\npub = \"publish\"\nsub = \"listen\"\nunsub = \"leave\"\nack = \"done\"\n";
    let server = Setup::config(config).start();
    let mut client = server.client();
    client.ok("listen t");
    assert_eq!(client.ok("publish t {\"id\":1}"), "1");
    client.expect("t", 1, 1);
    client.ok("done t 1");
    client.ok("leave t");
    for line in ["pub t {}", "sub t", "unsub t", "ack t 1"] {
        client.err(line, "bad-command");
    }
    let events = ["{}".to_owned()];
    assert_eq!(client.bulk("t", &events), "ok 2-2", "pubn keeps its name");
}

#[test]
fn the_environment_is_stronger_than_the_file() {
    let _turn = turn();
    let server =
        Setup::config("[jsonlog]\nmax_line = 2000\n").env("POSTROAD__JSONLOG__MAX_LINE", "300").start();
    let mut client = server.client();
    assert!(client.greeting.contains(" max_line=300 "), "{}", client.greeting);
    let pad = "x".repeat(300 - "pub t {\"a\":\"\"}".len());
    client.ok(&format!("pub t {{\"a\":\"{pad}\"}}"));
    client.err(&format!("pub t {{\"a\":\"{pad}x\"}}"), "too-long");
    client.ok("pub t {}");
}

#[test]
fn a_wrong_setting_is_refused_by_name() {
    let _turn = turn();
    for (config, word) in [
        ("[jsonlog]\nmax_lines = 5\n", "max_lines"),
        ("[jsonlog]\nmax_line = \"many\"\n", "max_line"),
        ("[jurnal]\nsync = \"os\"\n", "jurnal"),
        ("[journal]\nsync = \"sometimes\"\n", "sometimes"),
        ("[jsonlog]\nwrite_timeout = \"soon\"\n", "write_timeout"),
        ("[jsonlog\n", "postroad.toml"),
        ("[jsonlog.words]\npub = \"ack\"\n", "ack"),
        ("[jsonlog.words]\npub = \"two words\"\n", "words"),
    ] {
        let mut server = Setup::config(config).launch();
        let status = server.wait_exit(PATIENCE);
        let stderr = server.stderr();
        assert!(!status.success(), "started with {config:?}");
        assert!(stderr.contains(word), "{config:?}: {word:?} is not in the message: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn limits_of_topics_and_subscriptions_are_busy() {
    let _turn = turn();
    let server = Setup::config("[limits]\nmax_topics = 3\n").start();
    let mut client = server.client();
    for topic in ["a", "b", "c"] {
        client.ok(&format!("pub {topic} {{}}"));
    }
    client.err("pub d {}", "busy");
    let events = ["{}".to_owned()];
    assert!(client.bulk("d", &events).starts_with("err busy "));
    client.ok("pub a {}");
    client.ok("sub > from=first prefetch=10");
    for _ in 0..4 {
        client.event();
    }
    client.no_event(Duration::from_millis(50));
    let mut client = server.client();
    for n in 0..1000 {
        client.ok(&format!("sub a as n{n}"));
    }
    client.err("sub a as one-too-many", "busy");
    client.ok("unsub a as n5");
    client.ok("sub a as one-too-many");
}

#[test]
fn memory_mode_writes_nothing() {
    let _turn = turn();
    let mut server = Setup::config("[journal]\nsync = \"memory\"\n").start();
    let mut client = server.client();
    client.ok("sub t as n");
    for n in 1..=10 {
        assert_eq!(client.publish("t", &format!("{{\"secret\":\"xyzzy{n}\"}}")), n);
    }
    client.expect("t", 1, 1);
    client.ok("ack t @1");
    client.expect("t", 2, 1);
    for path in server.segments() {
        let bytes = std::fs::read(&path).expect("a file");
        assert!(!bytes.windows(5).any(|part| part == b"xyzzy"), "{} has an event", path.display());
    }
    server.bounce9();
    server.client().err("peek t first", "not-found");
}
