//! JSON that must be taken, JSON that must be refused, and JSON where both are right: written by hand after the
//! classes of the well-known parser test suite.

use crate::support::{Client, Server, turn};

/// Objects that every parser takes.
const GOOD: &[&str] = &[
    "{}",
    "{\"a\":0}",
    "{\"a\":-0}",
    "{\"a\":-1.5e-10}",
    "{\"a\":1E+2}",
    "{\"a\":0e1}",
    "{\"a\":20e1}",
    "{\"a\":0.1}",
    "{\"a\":\"\\u0061\\u30af\\u30EA\\u30b9\"}",
    "{\"a\":\"\\uD801\\udc37\"}",
    "{\"a\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"}",
    "{\"a\":\"\\\\u0000\"}",
    "{\"a\":\"\\u0000\"}",
    "{\"a\":\"\u{7f}\"}",
    "{\"a\":\"\u{10ffff}\u{fffe}\"}",
    "{\"a\":[[]   ]}",
    "{\"a\":[\"\"]}",
    "{\"a\":null,\"b\":true,\"c\":false}",
    "{\"a\":\"b\",\"a\":\"c\"}",
    "{\"\":0}",
    "{\"foo\\u0000bar\":42}",
    "{ \"min\": -1.0e+28, \"max\": 1.0e+28 }",
    "{\"title\":\"\\u041f\\u043e\"}",
    "{\"a\":[1,null,null,null,2]}",
    "{\t\"a\":\t1\t}",
    "{\"id\":\"\"}",
    "{\"id\":0}",
    "{\"id\":-1.5}",
    "{\"priority\":-9223372036854775808}",
    "{\"priority\":9223372036854775807,\"id\":9223372036854775808}",
    "{\"Id\":null,\"ID\":[],\"Priority\":\"x\"}",
];

/// What no strict parser takes, and objects whose `id` or `priority` the page does not allow.
const BAD: &[&str] = &[
    "[]",
    "[{}]",
    "\"text\"",
    "1",
    "null",
    "true",
    "nul",
    "{",
    "}",
    "{}}",
    "{}{}",
    "{},",
    "{} x",
    "{}#",
    "{}//comment",
    "{/**/}",
    "{\"a\":1 /* */}",
    "{\"a\"}",
    "{\"a\":}",
    "{\"a\" 1}",
    "{\"a\"::1}",
    "{\"a\":1,}",
    "{\"a\":1,,\"b\":2}",
    "{,\"a\":1}",
    "{a:1}",
    "{'a':1}",
    "{1:1}",
    "{null:1}",
    "{\"a\":'b'}",
    "{\"a\":b}",
    "{\"a\":True}",
    "{\"a\":NULL}",
    "{\"a\":NaN}",
    "{\"a\":Infinity}",
    "{\"a\":-Infinity}",
    "{\"a\":+1}",
    "{\"a\":-}",
    "{\"a\":--1}",
    "{\"a\":01}",
    "{\"a\":-01}",
    "{\"a\":00}",
    "{\"a\":1.}",
    "{\"a\":.5}",
    "{\"a\":-.5}",
    "{\"a\":1.e1}",
    "{\"a\":1e}",
    "{\"a\":1e+}",
    "{\"a\":1eE2}",
    "{\"a\":1.2.3}",
    "{\"a\":0x1f}",
    "{\"a\":1_000}",
    "{\"a\":1 000}",
    "{\"a\":\u{ff11}}",
    "{\"a\":\"}",
    "{\"a\":\"\\\"}",
    "{\"a\":\"\\x00\"}",
    "{\"a\":\"\\a\"}",
    "{\"a\":\"\\'\"}",
    "{\"a\":\"\\u12\"}",
    "{\"a\":\"\\u12g4\"}",
    "{\"a\":\"\\U0041\"}",
    "{\"a\":\"\t\"}",
    "{\"a\":\"\u{1}\"}",
    "{\"a\":\"\u{0}\"}",
    "{\"a\":\u{0}1}",
    "\u{0}{}",
    "{}\u{0}",
    "{\u{c}}",
    "{\u{b}\"a\":1}",
    "{\u{a0}\"a\":1}",
    "{\u{2060}}",
    "\u{feff}{}",
    "{\"a\":[}",
    "{\"a\":]}",
    "{\"a\":[1}",
    "{\"a\":[1,]}",
    "{\"a\":[,1]}",
    "{\"a\":[1,,2]}",
    "{\"a\":[1 2]}",
    "{\"a\":[1:2]}",
    "{\"a\":{}",
    "{\"a\":1]",
    "<a/>",
    "&",
    "{\"id\":null}",
    "{\"id\":true}",
    "{\"id\":[]}",
    "{\"id\":{}}",
    "{\"id\":[1]}",
    "{\"id\":1,\"id\":1}",
    "{\"id\":1,\"\\u0069d\":2}",
    "{\"priority\":null}",
    "{\"priority\":\"5\"}",
    "{\"priority\":1.5}",
    "{\"priority\":true}",
    "{\"priority\":[]}",
    "{\"priority\":9223372036854775808}",
    "{\"priority\":-9223372036854775809}",
    "{\"priority\":1e400}",
    "{\"priority\":1,\"priority\":1}",
];

/// Where parsers may differ: an answer, and the same bytes if it is `ok`.
const EITHER: &[&str] = &[
    "{\"a\":\"\\ud800\"}",
    "{\"a\":\"\\udc00\\ud800\"}",
    "{\"a\":\"\\ud800\\ud800\\n\"}",
    "{\"a\":1e9999}",
    "{\"a\":-1e-99999}",
    "{\"a\":0.4e00669999999999999999999999999999999999999999999999999999999999}",
    "{\"priority\":1.0}",
    "{\"priority\":1e2}",
    "{\"priority\":-0}",
    "{\"id\":1e9999}",
    "{\"id\":\"\\ud800\"}",
    " {}",
    "{} ",
    "{\r}",
    "\t{\"a\":1}",
];

fn check_bulk(client: &mut Client, json: &str) {
    let events = ["{\"fine\":1}".to_owned(), json.to_owned(), "{\"fine\":2}".to_owned()];
    let reply = client.bulk("bulk", &events);
    assert!(
        reply.starts_with("err bad-event ") && reply.contains("line 2: "),
        "pubn of {json:?} was answered {reply:?}"
    );
}

#[test]
fn the_json_classes() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    let mut wrong = Vec::new();
    let mut stored: Vec<String> = Vec::new();
    for json in GOOD {
        let reply = client.cmd(&format!("pub t {json}"));
        if reply == format!("ok {}", stored.len() + 1) {
            stored.push((*json).to_owned());
        } else {
            wrong.push(format!("good {json:?} was answered {reply:?}"));
        }
    }
    for json in BAD {
        let reply = client.cmd(&format!("pub t {json}"));
        if !reply.starts_with("err bad-event ") {
            wrong.push(format!("bad {json:?} was answered {reply:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for json in BAD {
        check_bulk(&mut client, json);
    }
    for json in EITHER {
        let reply = client.cmd(&format!("pub t {json}"));
        if reply.starts_with("ok ") {
            stored.push((*json).to_owned());
        }
        assert!(
            reply == format!("ok {}", stored.len()) || reply.starts_with("err bad-event "),
            "{json:?} was answered {reply:?}"
        );
    }
    client.err("peek bulk first", "not-found");
    for (seq, json) in (1..).zip(&stored) {
        assert_eq!(client.peek("t", &format!("@{seq}")).json, *json);
    }
    client.err(&format!("peek t @{}", stored.len() + 1), "not-found");
}

#[test]
fn ids_have_a_length() {
    let _turn = turn();
    let server = Server::start();
    let mut client = server.client();
    for (id, fits) in [
        (format!("\"{}\"", "i".repeat(255)), true),
        (format!("\"{}\"", "i".repeat(256)), false),
        (format!("\"{}\"", "\u{20ac}".repeat(85)), true),
        (format!("\"{}\"", "\u{20ac}".repeat(86)), false),
        ("9".repeat(255), true),
        ("9".repeat(256), false),
        (format!("\"{}\"", "i".repeat(500_000)), false),
        ("9".repeat(500_000), false),
    ] {
        let line = format!("pub t {{\"id\":{id}}}");
        if fits {
            client.ok(&line);
        } else {
            client.err(&line, "bad-event");
        }
    }
}

#[test]
fn depth_has_an_end() {
    let _turn = turn();
    let mut server = Server::start();
    let mut client = server.client();
    let lists = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    for depth in [2, 100, 126, 127] {
        client.ok(&format!("pub t {}", lists(depth)));
        client.ok(&format!("pub t {}", objects(depth)));
    }
    for depth in [128, 129, 200, 10_000, 100_000] {
        client.err(&format!("pub t {}", lists(depth)), "bad-event");
        client.err(&format!("pub t {}", objects(depth)), "bad-event");
    }
    for open in ["[", "{\"a\":", "[{\"a\":"] {
        client.err(&format!("pub t {{\"a\":{}", open.repeat(1_000_000 / open.len())), "bad-event");
        client.err(&format!("hello {}", open.repeat(1_000_000 / open.len())), "bad-args");
    }
    check_bulk(&mut client, &lists(10_000));
    assert!(server.alive());
    server.bounce9();
    let mut client = server.client();
    client.ok("sub t from=first prefetch=100");
    for depth in [2, 100, 126, 127] {
        assert_eq!(client.event().json, lists(depth));
        assert_eq!(client.event().json, objects(depth));
    }
}
