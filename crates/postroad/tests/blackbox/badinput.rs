//! Everything a confused or hostile peer may send. The right code, nothing lost, and nobody else notices.

use std::time::Duration;

use crate::support::{Client, Item, PATIENCE, Server, Setup, seed, turn};

/// A connection that must not notice what happens next to it: checked at the end of each test.
struct Neighbour {
    client: Client,
    count: u64,
}

impl Neighbour {
    fn new(server: &Server) -> Self {
        let mut client = server.client();
        client.ok("sub neighbour");
        Self { client, count: 0 }
    }

    fn check(&mut self) {
        self.count += 1;
        assert_eq!(self.client.publish("neighbour", "{\"id\":\"n\"}"), self.count);
        self.client.expect("neighbour", self.count, 1);
        self.client.ok("ack neighbour n");
    }
}

#[test]
fn lines_that_are_too_long() {
    let _turn = turn();
    let mut server = Server::start();
    let mut neighbour = Neighbour::new(&server);
    let mut client = server.client();
    let max = 1_048_576;
    let fit =
        |bytes: usize| format!("pub t {{\"a\":\"{}\"}}", "x".repeat(bytes - "pub t {\"a\":\"\"}".len()));
    for end in ["\n", "\r\n"] {
        client.raw(format!("{}{end}", fit(max)).as_bytes());
        assert!(client.reply().starts_with("ok "));
        client.raw(format!("{}{end}pub t {{}}{end}", fit(max + 1)).as_bytes());
        assert!(client.reply().starts_with("err too-long "));
        assert!(client.reply().starts_with("ok "));
    }
    // 20 MB without an end; one error, and the line after it is a command again.
    let before = server.rss();
    let chunk = "y".repeat(1 << 20);
    for _ in 0..20 {
        client.raw(chunk.as_bytes());
    }
    client.raw(b"quit\nunsub nothing\n");
    assert!(client.reply().starts_with("err too-long "));
    client.err("unsub nothing", "not-subscribed");
    client.reply();
    assert!(server.rss() < before + 16 * 1024, "{} KiB before, {} after", before, server.rss());
    // A line that never ends, and a peer that goes.
    let mut gone = server.client();
    gone.raw(chunk.as_bytes());
    gone.raw(chunk.as_bytes());
    drop(gone);
    neighbour.check();
    assert!(server.alive());
}

#[test]
fn bytes_that_are_no_text() {
    let _turn = turn();
    let server = Server::start();
    let mut neighbour = Neighbour::new(&server);
    let mut client = server.client();
    for bytes in [
        &b"\xff"[..],
        b"pub t {\"a\":\"\xff\"}",
        b"pub t {\"a\":\"\xc3\"}",
        b"pub t {\"a\":\"\xed\xa0\x80\"}",
        b"pub t {\"a\":\"\xc0\xaf\"}",
        b"pub t {\"a\":\"\xf4\x90\x80\x80\"}",
        b"pub t\xfe {}",
        b"sub \xe9t\xe9",
        b"ack t \xff",
        b"\x80\x80\x80",
    ] {
        client.raw(bytes);
        client.raw(b"\n");
        let reply = client.reply();
        assert!(reply.starts_with("err not-utf8 "), "{bytes:?} was answered {reply:?}");
    }
    client.raw(b"pubn t 2 13\n{}\n{\"a\":\"\xff\"}\n");
    let reply = client.reply();
    assert!(reply.starts_with("err not-utf8 ") || reply.starts_with("err bad-event "), "{reply}");
    assert!(reply.contains("line 2: "), "{reply}");
    client.err("peek t first", "not-found");
    neighbour.check();
}

#[test]
fn topics_that_are_none() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    let long = "t".repeat(256);
    let wide = "\u{20ac}".repeat(86);
    let huge = "t/".repeat(100_000);
    let topics = [
        "../x",
        "..",
        ".",
        "./x",
        "a/../b",
        "a/./b",
        "a/..",
        "/etc",
        "/",
        "//",
        "a/",
        "a//b",
        "a\\b",
        "..\\x",
        "a\u{0}b",
        "a\tb",
        "a\u{7f}b",
        "a\u{85}b",
        "a\u{1b}[0m",
        "*",
        ">",
        "a/*",
        "a/>",
        "a*b",
        "a>b",
        "",
        &long,
        &wide,
        &huge,
    ];
    let mut wrong = Vec::new();
    for topic in topics {
        for line in [
            format!("pub {topic} {{}}"),
            format!("peek {topic} first"),
            format!("kick {topic}"),
            format!("ack {topic} @1"),
            format!("stats {topic}"),
            format!("sub {topic}"),
        ] {
            let wild = topic.contains('*') || topic.contains('>');
            if (wild && line.starts_with("sub")) || (topic.is_empty() && line.starts_with("stats")) {
                continue;
            }
            let reply = client.cmd(&line);
            // The codes of `ack` and `stats` for such a topic are not on the page: any error is right.
            let right = match line.split(' ').next() {
                Some("ack" | "stats") => reply.starts_with("err "),
                _ if topic.is_empty() && reply.starts_with("err bad-args ") => true,
                _ => reply.starts_with("err bad-topic "),
            };
            if !right {
                wrong.push(format!("{:?} was answered {reply:?}", line.chars().take(60).collect::<String>()));
            }
        }
        let body = "{}\n";
        client.raw(format!("pubn {topic} 1 3\n{body}").as_bytes());
        let reply = client.reply();
        if !reply.starts_with("err bad-topic ") && !topic.is_empty() {
            wrong.push(format!(
                "pubn {:?} was answered {reply:?}",
                topic.chars().take(40).collect::<String>()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(client.ok("topics"), "{\"topics\":[]}");
    assert!(!server.home().join("x").exists());
    assert!(server.segments().is_empty(), "{:?}", server.segments());
}

#[test]
fn pubn_that_does_not_add_up() {
    let _turn = turn();
    let server = Setup::config("[jsonlog]\nmax_line = 10000\nmax_bulk = 10000\n").start();
    let mut neighbour = Neighbour::new(&server);
    let mut client = server.client();
    // The body looks like commands: none of them may be carried out.
    let evil = "quit\nquit\nquit\n";
    for (head, body, code) in [
        ("pubn t 2 3", "{}\n", "bad-args"),
        ("pubn t 1 6", "{}\n{}\n", "bad-args"),
        ("pubn t 0 3", "{}\n", "bad-args"),
        ("pubn t 0 0", "", "bad-args"),
        ("pubn t 1 0", "", "bad-args"),
        ("pubn t 3 15", evil, "bad-event"),
        ("pubn ../t 3 15", evil, "bad-"),
        ("pubn t/* 3 15", evil, "bad-"),
        ("pubn $dead/t 1 3", "{}\n", "denied"),
        ("pubn t 4 15", evil, "bad-"),
        ("pubn t 99999999 15", evil, "bad-"),
        ("pubn t 4 9", "{}\n{}\n{}\n", "bad-args"),
        ("pubn t 99999999 3", "{}\n", "bad-args"),
        ("pubn t 2 8", "{}\n{}  \n", "ok"),
        ("pubn t 2 7", "{}\n\n{}\n", "bad-"),
        ("pubn t 2 5", "{}\n{}", "bad-args"),
        ("pubn t 1 2", "{}", "bad-args"),
        ("pubn t 1 3", "{ }", "bad-args"),
        ("pubn t 2 4", "{}\n\n", "bad"),
        ("pubn t 3 10", "{}\n[]\n{}\nx", "bad"),
    ] {
        client.raw(format!("{head}\n{body}").as_bytes());
        let reply = client.reply();
        let expected = if code == "ok" { code.to_owned() } else { format!("err {code}") };
        assert!(reply.starts_with(&expected), "{head:?} + {body:?} was answered {reply:?}");
        client.err("nonsense", "bad-command");
    }
    assert_eq!(client.peek("t", "last").seq, 2);
    let reply = client.bulk("t", &["{}".to_owned(), "{\"a\":1}".to_owned(), "[]".to_owned(), "x".to_owned()]);
    assert!(reply.starts_with("err bad-event ") && reply.contains("line 3: "), "{reply}");

    // Over the limit: skipped, whatever its length.
    for bytes in [10_001, 50_000, 3_000_000] {
        let mut body = "quit\n".repeat(bytes / 5 + 1);
        body.truncate(bytes);
        client.raw(format!("pubn t 5 {bytes}\n{body}").as_bytes());
        let reply = client.reply();
        assert!(reply.starts_with("err too-large "), "{reply}");
        client.err("nonsense", "bad-command");
    }
    let event = format!("{{\"a\":\"{}\"}}", "x".repeat(9999 - 8));
    assert_eq!(client.bulk("t", std::slice::from_ref(&event)), "ok 3-3", "a body of exactly max_bulk bytes");
    assert_eq!(client.peek("t", "last").json, event);

    for head in [
        "pubn t x 5",
        "pubn t 1 x",
        "pubn t 1 -5",
        "pubn t -1 5",
        "pubn t 1",
        "pubn t",
        "pubn",
        "pubn t 1 99999999999999999999999",
        "pubn t 1.5 5",
        "pubn t 1 0x10",
        "pubn t  1 5",
        "pubn t 1 5 6",
    ] {
        let mut client = server.client();
        client.raw(format!("{head}\nquit\npub framing {{}}\n").as_bytes());
        let reply = client.reply();
        assert!(reply.starts_with("err bad-args "), "{head:?} was answered {reply:?}");
        client.expect_bye("framing");
    }
    client.err("peek framing first", "not-found");
    // The largest length that is a number: nobody may wait for memory of that size.
    let mut waiting = server.client();
    waiting.raw(format!("pubn t 1 {}\n{{}}\n", u64::MAX).as_bytes());
    match waiting.next(Duration::from_millis(200)) {
        Item::Silence => {}
        Item::Reply(line) => {
            assert!(line.starts_with("err too-large ") || line.starts_with("err bad-args "), "{line}");
        }
        other => panic!("{other:?}"),
    }
    neighbour.check();
}

#[test]
fn a_body_that_ends_in_the_middle() {
    let _turn = turn();
    let server = Server::start();
    for body in ["", "{}", "{}\n", "{}\n{\"a\":"] {
        let mut client = server.client();
        client.raw(format!("pubn t 2 12\n{body}").as_bytes());
        client.half_close();
        assert!(client.try_reply().is_none_or(|reply| reply.starts_with("err ")));
    }
    server.client().err("peek t first", "not-found");
}

#[test]
fn other_protocols() {
    let _turn = turn();
    let mut server = Server::start();
    let mut neighbour = Neighbour::new(&server);
    let tls =
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x0a\x0d\n\x00\x20\x13\x02\x13\x03\x13\x01\x00\x0a"
            .to_vec();
    let mqtt = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04test".to_vec();
    let redis = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n".to_vec();
    let http = b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{\"a\":\"b\"}".to_vec();
    let get = b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl\r\nAccept: */*\r\n\r\n".to_vec();
    let smtp = b"EHLO example.org\r\nMAIL FROM:<>\r\n.\r\n".to_vec();
    let ssh = b"SSH-2.0-OpenSSH_9.2\r\n\x00\x00\x05\x0c\x0a\x14".to_vec();
    let amqp = b"AMQP\x00\x00\x09\x01".to_vec();
    let telnet = b"\xff\xfb\x01\xff\xfd\x03\xff\xf4\xff\xfd\x06pub t {}\r\n".to_vec();
    for bytes in [tls, mqtt, redis, http, get, smtp, ssh, amqp, telnet] {
        let mut client = server.client();
        client.raw(&bytes);
        client.raw(b"\n");
        let mut replies = 0;
        loop {
            match client.next(Duration::from_millis(200)) {
                Item::Reply(line) => {
                    assert!(line.starts_with("err "), "{bytes:?} was answered {line:?}");
                    replies += 1;
                }
                Item::Bye(_) => replies += 1,
                Item::Silence | Item::Eof => break,
                other => panic!("{bytes:?}: {other:?}"),
            }
        }
        assert!(replies > 0, "{bytes:?} was not answered");
        neighbour.check();
    }
    assert_eq!(neighbour.client.ok("topics"), "{\"topics\":[\"neighbour\"]}");
    assert!(server.alive());
}

/// Random bytes, random words of the protocol, random cuts: an answer or a bye, never silence, never a wrong line.
#[test]
fn random_garbage() {
    let _turn = turn();
    let mut server = Server::start();
    let mut rng = seed("random_garbage");
    let mut neighbour = Neighbour::new(&server);
    let words = [
        "pub",
        "pubn",
        "sub",
        "ack",
        "nack",
        "touch",
        "bury",
        "unsub",
        "kick",
        "peek",
        "topics",
        "stats",
        "hello",
        "help",
        "t",
        "g/*",
        ">",
        "$dead/t",
        "as",
        "n",
        "group",
        "forget",
        "from=first",
        "from=@2",
        "prefetch=9",
        "ack_wait=50ms",
        "delay=1s",
        "reason=",
        "max_deliveries=2",
        "backoff=10ms",
        "@1",
        "@1-@9",
        "@9-@1",
        "@0",
        "first",
        "last",
        "{}",
        "{\"id\":1}",
        "1",
        "2",
        "3",
        "-1",
        "99999999999999999999",
        "\"",
        "\"x\"",
        "{",
        "\u{e9}",
        "\u{0}",
        "\t",
        "",
        " ",
    ];
    for round in 0..150 {
        let mut client = server.client();
        let mut bytes = Vec::new();
        for _ in 0..rng.usize(1..40) {
            if round % 2 == 0 {
                bytes.extend((0..rng.usize(0..60)).map(|_| rng.u8(..)));
            } else {
                let line: Vec<&str> = (0..rng.usize(1..7)).map(|_| words[rng.usize(..words.len())]).collect();
                bytes.extend(line.join(" ").bytes());
            }
            bytes.push(b'\n');
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(rng.usize(1..=rest.len()));
            if client.try_send(head).is_err() {
                break;
            }
            rest = tail;
        }
        client.half_close();
        // `next` checks every line; here only the end is asked for.
        loop {
            match client.next(PATIENCE) {
                Item::Eof => break,
                Item::Silence => panic!(
                    "round {round}: neither an answer nor an end for {:?}",
                    String::from_utf8_lossy(&bytes)
                ),
                _ => {}
            }
        }
        if round % 10 == 0 {
            neighbour.check();
        }
    }
    neighbour.check();
    assert!(server.alive());
    let count = neighbour.count;
    server.bounce9();
    assert_eq!(server.client().peek("neighbour", "last").seq, count);
}
