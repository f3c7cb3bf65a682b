//! Every command, reply and error of the protocol page, however its bytes arrive.

use std::time::Duration;

use crate::script::{How, play};
use crate::support::{Client, Item, PATIENCE, Server, Setup, turn};

/// Section 6 of the page, and then the rest of the commands.
const SESSION: &str = r#"
    > sub {T} as billing from=first
    < ok
    > pub {T} {"id":"a1","priority":3,"sum":12.50}
    < ok 1
    = event {T} 1 1 {"id":"a1","priority":3,"sum":12.50}
    > ack {T} a1
    < ok
    > ack {T} a1
    < err not-in-flight *
    > pub {T} {"id":2}
    < ok 2
    = event {T} 2 1 {"id":2}
    > nack {T} @2
    < ok
    = event {T} 2 2 {"id":2}
    > touch {T} 2
    < ok
    > peek {T} @1
    < event {T} 1 0 {"id":"a1","priority":3,"sum":12.50}
    > bury {T} 2 reason=no such account
    < ok
    > kick {T}
    < ok 1
    = event {T} 3 1 {"id":2}
    > kick {T}
    < ok 0
    > ack {T} @3-@3
    < ok
    > unsub {T} as billing
    < ok
    > unsub {T} as billing forget
    < ok
    > sub {T} from=@2 prefetch=2
    < ok
    = event {T} 2 1 {"id":2}
    = event {T} 3 1 {"id":2}
    > ack {T} @2-@3
    < ok
    > unsub {T}
    < ok
"#;

/// Commands that need no answer of an earlier one, so that they may all be sent at once.
const MERGED: &str = r#"
    > pub {T} {"n":1}
    < ok 1
    > pub {T} {"n":"zwei ö €"}
    < ok 2
    > nonsense
    < err bad-command *
    > pub {T} {"n":
    < err bad-event *
    > pub {T} {"n":3}
    < ok 3
    > ack {T} @1
    < err not-in-flight *
    > unsub {T}
    < err not-subscribed *
    > sub {T}
    < ok
    > sub {T}
    < err already-subscribed *
    > unsub {T}
    < ok
"#;

#[test]
fn sessions_are_the_same_however_the_bytes_arrive() {
    let _turn = turn();
    let server = Server::start();
    for how in [How::Lf, How::Crlf, How::Bytes] {
        play(&mut server.client(), SESSION, &format!("session/{how:?}"), how);
    }
    for how in [How::Lf, How::Crlf, How::Bytes, How::Merged] {
        play(&mut server.client(), MERGED, &format!("merged/{how:?}"), how);
    }
}

#[test]
fn the_greeting_says_what_is_served() {
    let _turn = turn();
    let server = Server::start();
    assert_eq!(
        server.client().greeting,
        format!(
            "hello postroad/{} jsonlog/1 sync=fdatasync max_line=1048576 auth=none",
            env!("CARGO_PKG_VERSION")
        )
    );
    let server =
        Setup::config("[jsonlog]\nmax_line = 1000\ntokens = [\"sesame\"]\n[journal]\nsync = \"os\"\n")
            .start();
    let greeting = server.client().greeting;
    assert!(greeting.ends_with(" jsonlog/1 sync=os max_line=1000 auth=token"), "{greeting}");
    let server = Setup::config("[jsonlog]\ndedup_window = \"2m\"\n").start();
    let greeting = server.client().greeting;
    assert!(greeting.ends_with(" auth=none dedup=120s"), "{greeting}");
    let server = Setup::config("[journal]\nsync = \"memory\"\n").start();
    let greeting = server.client().greeting;
    assert!(greeting.contains(" sync=memory "), "{greeting}");
}

/// A line cut in two at every byte, the two parts in packets of their own.
#[test]
fn a_command_may_be_cut_anywhere() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    let event = "{\"id\":\"é€\u{1f980}\",\"n\":[1,2]}";
    let line = format!("pub cut/here {event}\r\n").into_bytes();
    for at in 1..line.len() {
        client.raw(&line[..at]);
        std::thread::sleep(Duration::from_millis(2));
        client.raw(&line[at..]);
        assert_eq!(client.reply(), format!("ok {at}"));
    }
    assert_eq!(client.peek("cut/here", "last").json, event);

    let body = "{\"a\":1}\n{\"b\":2}\r\n";
    let bulk = format!("pubn cut/bulk 2 {}\n{body}", body.len()).into_bytes();
    for at in 1..bulk.len() {
        client.raw(&bulk[..at]);
        std::thread::sleep(Duration::from_millis(2));
        client.raw(&bulk[at..]);
        assert_eq!(client.reply(), format!("ok {}-{}", at * 2 - 1, at * 2));
    }
    assert_eq!(client.peek("cut/bulk", "last").json, "{\"b\":2}");
}

#[test]
fn ten_thousand_commands_in_one_go_are_answered_in_order() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    let mut all = String::new();
    for n in 1..=10_000 {
        use std::fmt::Write;
        match n % 5 {
            0 => writeln!(all, "what {n}"),
            1 => writeln!(all, "pub many {{\"n\":{n}}}\r"),
            2 => writeln!(all, "\r\n\npub many {{\"n\":{n}}}"),
            3 => writeln!(all, "peek nowhere @{n}"),
            _ => writeln!(all, "pub many/../x {{\"n\":{n}}}"),
        }
        .expect("a string");
    }
    let mut writer = client.stream().try_clone().expect("clone");
    let sender = std::thread::spawn(move || std::io::Write::write_all(&mut writer, all.as_bytes()));
    let mut seq = 0;
    for n in 1..=10_000 {
        let reply = client.reply();
        let expected = match n % 5 {
            0 => "err bad-command ".to_owned(),
            1 | 2 => {
                seq += 1;
                format!("ok {seq}")
            }
            3 => "err not-found ".to_owned(),
            _ => "err bad-topic ".to_owned(),
        };
        assert!(reply.starts_with(&expected), "reply {n}: {reply:?}, expected {expected:?}");
    }
    sender.join().expect("sender").expect("send");
}

#[test]
fn empty_lines_are_ignored_and_words_are_checked() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.raw(b"\n\r\n\n");
    for line in ["foo", "pubx a {}", "ok", "event a 1 1 {}", "\u{e9}v\u{e9}nement", "{}", "pub\ta\t{}", "."] {
        client.err(line, "bad-command");
    }
    // A space too many moves the parts; whatever it is called, it is one error and stores nothing.
    for line in [" pub a {}", "pub  a {}", "sub  a", "ack  a @1"] {
        let reply = client.cmd(line);
        assert!(reply.starts_with("err "), "{line:?} was answered {reply:?}");
    }
    client.err("peek a first", "not-found");
}

/// Arguments that are wrong; each is one `err bad-args` and the connection goes on.
const BAD_ARGS: &[&str] = &[
    "sub",
    "sub t prefetch=0",
    "sub t prefetch=65537",
    "sub t prefetch=-1",
    "sub t prefetch=x",
    "sub t prefetch=",
    "sub t prefetch",
    "sub t prefetch=99999999999999999999999",
    "sub t from=yesterday",
    "sub t from=@",
    "sub t from=@x",
    "sub t from=@-1",
    "sub t from=",
    "sub t from=2026-13-01T00:00:00Z",
    "sub t ack_wait=9ms",
    "sub t ack_wait=0",
    "sub t ack_wait=25h",
    "sub t ack_wait=5",
    "sub t ack_wait=5y",
    "sub t ack_wait=-5s",
    "sub t ack_wait=999999999999999999999d",
    "sub t max_deliveries=-1",
    "sub t max_deliveries=many",
    "sub t backoff=",
    "sub t backoff=1s,",
    "sub t backoff=,1s",
    "sub t backoff=1s,soon",
    "sub t as",
    "sub t group",
    "sub t backoff=1s,31d",
    "sub t as with/slash",
    "sub t as caf\u{e9}",
    "sub t colour=blue",
    "sub t nonsense",
    "sub t as n group=1",
    "unsub",
    "unsub t as",
    "unsub t as a/b forget",
    "unsub t nonsense",
    "ack",
    "ack t",
    "ack t @",
    "ack t @x",
    "ack t @1-@",
    "ack t @1-@x",
    "ack t @18446744073709551616",
    "ack t \"open",
    "nack t",
    "nack t @1 delay=soon",
    "nack t @1 delay=",
    "touch t",
    "bury t",
    "peek t",
    "peek t 5",
    "peek t middle",
    "peek t @",
    "kick t x",
    "kick t -1",
    "hello",
    "hello []",
    "hello {",
    "hello {\"mode\":\"loud\"}",
    "hello {\"name\":5}",
    "hello {\"token\":5}",
];

#[test]
fn bad_arguments_are_named() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.publish("t", "{}");
    let mut wrong = Vec::new();
    for line in BAD_ARGS {
        let reply = client.cmd(line);
        if !reply.starts_with("err bad-args ") {
            wrong.push(format!("{line:?} was answered {reply:?}"));
        }
        if reply.starts_with("ok") && line.starts_with("sub") {
            client.ok("unsub t");
        }
    }
    let many = vec!["1s"; 33].join(",");
    client.err(&format!("sub t backoff={many}"), "bad-args");
    client.ok(&format!("sub t backoff={}", &many[3..]));
    client.ok("unsub t");
    let long = "n".repeat(101);
    client.err(&format!("hello {{\"name\":\"{long}\"}}"), "bad-args");
    client.err(&format!("sub t as {long}"), "bad-args");
    client.ok(&format!("sub t as {}", &long[1..]));
    // Nothing behind the word: an argument that is not there, or a topic that is none.
    for line in ["pub", "pub t", "peek", "kick", "pub ", "kick "] {
        let reply = client.cmd(line);
        if !["err bad-args ", "err bad-event ", "err bad-topic "].iter().any(|code| reply.starts_with(code)) {
            wrong.push(format!("{line:?} was answered {reply:?}"));
        }
    }
    assert!(wrong.is_empty(), "not answered with bad-args:\n{}", wrong.join("\n"));
    assert_eq!(client.publish("t", "{}"), 2);
}

#[test]
fn the_other_errors() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.publish("t", "{\"id\":1}");
    client.err("ack t 1", "not-in-flight");
    client.err("nack t @1", "not-in-flight");
    client.err("touch t @1-@9", "not-in-flight");
    client.err("bury t 1 reason=x", "not-in-flight");
    client.err("unsub t", "not-subscribed");
    client.err("unsub t as nobody", "not-subscribed");
    client.err("unsub t as nobody forget", "not-found");
    client.err("peek t @2", "not-found");
    client.err("peek unknown first", "not-found");
    client.err("kick unknown", "not-found");
    client.err("pub $dead/t {}", "denied");
    client.ok("sub t as one");
    client.err("sub t as one", "already-subscribed");
    let mut other = server.client();
    other.err("sub t as one", "in-use");
    other.err("unsub t as one forget", "in-use");
    other.ok("sub t as two");
    let named_elsewhere = other.cmd("unsub t as one");
    assert!(named_elsewhere.starts_with("err not-subscribed "), "{named_elsewhere:?}");
}

#[test]
fn help_names_every_command_and_quit_is_the_end() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.send("help");
    let mut text = String::new();
    loop {
        match client.next(PATIENCE) {
            Item::Help(line) => text.push_str(&line),
            Item::Reply(line) => {
                assert_eq!(line, "ok");
                break;
            }
            other => panic!("help was answered {other:?}"),
        }
    }
    for word in [
        "pub", "pubn", "sub", "ack", "nack", "touch", "bury", "unsub", "kick", "peek", "topics", "stats",
        "hello", "quit",
    ] {
        assert!(text.contains(word), "help does not name {word}: {text}");
    }
    client.raw(b"quit\npub after/quit {}\n");
    assert_eq!(client.reply(), "ok");
    client.expect_bye("quit");
    server.client().err("peek after/quit first", "not-found");
}

#[test]
fn topics_and_stats() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    assert_eq!(client.ok("topics"), "{\"topics\":[]}");
    for topic in ["b", "a/x", "a/y", "a/x/z"] {
        client.publish(topic, "{\"id\":\"one\"}");
    }
    let names = |client: &mut Client, filter: &str| -> Vec<String> {
        let text = client.ok(format!("topics {filter}").trim_end());
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let list = value["topics"].as_array().expect("a list").clone();
        let mut names: Vec<String> = list
            .iter()
            .map(|item| item.as_str().or_else(|| item["topic"].as_str()).or_else(|| item["name"].as_str()))
            .map(|name| name.expect("the name of a topic").to_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&mut client, ""), ["a/x", "a/x/z", "a/y", "b"]);
    assert_eq!(names(&mut client, "a/*"), ["a/x", "a/y"]);
    assert_eq!(names(&mut client, "a/>"), ["a/x", "a/x/z", "a/y"]);
    assert_eq!(names(&mut client, "c"), Vec::<String>::new());
    client.err("topics a//b", "bad-topic");

    client.publish("a/x", "{\"id\":\"two\"}");
    client.publish("a/x", "{\"id\":\"three\"}");
    client.ok("sub a/x as s from=first group prefetch=2");
    client.expect("a/x", 1, 1);
    client.expect("a/x", 2, 1);
    client.ok("ack a/x @1");
    client.expect("a/x", 3, 1);
    client.ok("nack a/x @3 delay=60s");
    let stats = client.stats("a/x");
    assert_eq!(
        (&stats["first"], &stats["last"], &stats["events"]),
        (&1.into(), &3.into(), &3.into()),
        "{stats}"
    );
    assert!(stats["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{stats}");
    assert!(stats["segments"].as_u64().is_some_and(|count| count > 0), "{stats}");
    let subscription = stats
        .as_object()
        .expect("an object")
        .values()
        .filter_map(|value| value.as_array())
        .flatten()
        .find(|item| item["name"] == "s")
        .unwrap_or_else(|| panic!("no subscription in {stats}"))
        .clone();
    for (key, expected) in [
        ("filter", serde_json::json!("a/x")),
        ("group", true.into()),
        ("consumers", 1.into()),
        ("ready", 0.into()),
        ("in_flight", 1.into()),
        ("delayed", 1.into()),
        ("floor", 1.into()),
        ("lag", 2.into()),
    ] {
        assert_eq!(subscription[key], expected, "{key} in {subscription}");
    }
    let stats = client.stats("");
    let text = stats.to_string();
    assert!(text.contains(env!("CARGO_PKG_VERSION")) && text.contains("fdatasync"), "{stats}");
    assert_eq!(stats["published"], 6, "{stats}");
    assert_eq!(stats["delivered"], 3, "{stats}");
    assert_eq!(stats["acked"], 1, "{stats}");
    assert_eq!(stats["topics"], 4, "{stats}");
    assert_eq!(stats["connections"], 1, "{stats}");
    for key in ["uptime", "commits", "redelivered", "dead", "bytes"] {
        assert!(text.contains(&format!("\"{key}")), "{key} is not in {stats}");
    }
}

#[test]
fn quiet_mode_says_only_what_went_wrong() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    client.ok("hello {\"name\":\"billing-7\",\"mode\":\"quiet\"}");
    client.raw(
        b"sub t prefetch=3\npub t {\"id\":1}\npubn t 1 9\n{\"id\":2}\nnope\npub t {\npub t {\"id\":3}\n",
    );
    assert_eq!(client.reply(), "ok", "sub is answered in quiet mode too");
    assert!(client.reply().starts_with("err bad-command "));
    assert!(client.reply().starts_with("err bad-event "));
    for seq in 1..=3 {
        client.expect("t", seq, 1);
    }
    client.send("ack t @1-@2");
    client.send("ack t @1-@2");
    assert!(client.reply().starts_with("err not-in-flight "));
    assert_eq!(client.peek("t", "last").seq, 3);
    let mut other = server.client();
    let shown = format!("{} {}", other.ok("stats"), other.ok("stats t"));
    assert!(shown.contains("billing-7"), "the name is not in {shown}");
    client.ok("hello {\"mode\":\"full\"}");
    assert_eq!(client.publish("t", "{}"), 4);
    let shown = format!("{} {}", other.ok("stats"), other.ok("stats t"));
    assert!(!shown.contains("billing-7"), "a hello without a name clears it: {shown}");
}

#[test]
fn a_token_comes_first() {
    let _turn = turn();
    let server = Setup::config("[jsonlog]\ntokens = [\"sesame\", \"second\"]\n").start();
    for token in ["sesame", "second"] {
        let mut client = server.client();
        client.err("pub t {}", "auth");
        client.send("help");
        while let Item::Help(_) = client.next(PATIENCE) {}
        let body = "quit\nquit\n{\"a\":\"bc\"}\n";
        client.raw(format!("pubn t 3 {}\n{body}", body.len()).as_bytes());
        assert!(client.reply().starts_with("err auth "));
        client.err("sub t", "auth");
        client.err("hello {\"token\":\"open\"}", "auth");
        client.ok(&format!("hello {{\"token\":\"{token}\"}}"));
        client.ok("pub t {}");
        let mut stranger = server.client();
        stranger.ok("quit");
        stranger.expect_bye("quit");
    }
    assert!(!server.stderr().contains("sesame"), "the token is in the log");
}
