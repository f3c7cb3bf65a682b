//! Who is who, and who may take whose place.

use super::rig::{Rig, error, messages, publish, sub, unsub};
use crate::lines::{LinesConfig, Role};
use proptest::prelude::*;

#[test]
fn nobody_is_asked_more_than_five_times() {
    let mut rig = Rig::new();
    let id = rig.dial(Role::Consumers);
    assert_eq!(rig.hear(id), ["Please login!"]);
    for line in ["hello", "log", "log two words", &sub("t")] {
        assert_eq!(rig.ask(id, line), ["Please login!"]);
        assert!(!rig.closes(id));
    }
    assert_eq!(rig.ask(id, "log +"), [error("Unknown login error")]);
    assert!(rig.closes(id));
    rig.send(id, "log amy");
    assert_eq!(rig.hear(id), [""; 0], "nothing is read after the end");
}

#[test]
fn a_log_in_is_in_lower_case_and_happens_once() {
    let mut rig = Rig::new();
    let id = rig.dial(Role::Consumers);
    assert_eq!(rig.ask(id, "LOG Amy"), ["Please login!", "Succesfully logged in!"]);
    assert_eq!(rig.ask(id, "log amy"), ["INVALID JSON"]);
    let other = rig.dial(Role::Consumers);
    assert_eq!(
        rig.ask(other, "log AMY"),
        ["Please login!".to_owned(), error("A connection for this username already exists")]
    );
    assert!(rig.closes(other));
    assert!(!rig.closes(id));
    rig.lose(other);
    assert_eq!(rig.ask(id, &sub("t")), ["OK"], "the first one goes on");
    rig.lose(id);
    rig.consumer("amy");
}

#[test]
fn a_log_in_brings_back_what_was_subscribed_and_the_place_in_it() {
    let mut rig = Rig::new();
    let amy = rig.subscriber("amy", "a");
    assert_eq!(rig.ask(amy, &sub("b")), ["OK"]);
    assert_eq!(rig.ask(amy, &sub("c")), ["OK"]);
    assert_eq!(rig.ask(amy, &unsub("c")), ["OK"]);
    rig.lose(amy);
    let publisher = rig.publisher();
    for topic in ["a", "b", "c"] {
        rig.put(publisher, topic, &format!("\"{topic}1\""));
        rig.put(publisher, topic, &format!("\"{topic}2\""));
    }
    rig.crash();
    let amy = rig.consumer("amy");
    let heard = rig.settle(amy);
    assert_eq!(messages(&heard), ["a1", "b1"], "what was left is not brought back");
    assert_eq!(messages(&rig.take(amy, &heard[0])), ["a2"]);
    let heard = rig.ask(amy, &sub("c"));
    assert_eq!(heard[0], "OK");
    assert_eq!(messages(&heard[1..]), ["c1"], "but its place was kept");
}

#[test]
fn the_place_of_a_dead_connection_can_be_taken() {
    let mut rig = Rig::new();
    let dead = rig.subscriber("amy", "t");
    let publisher = rig.publisher();
    rig.put(publisher, "t", "1");
    assert_eq!(messages(&rig.hear(dead)), [1]);
    // It may still answer.
    rig.pass(9_999);
    let early = rig.dial(Role::Consumers);
    assert_eq!(rig.ask(early, "log amy")[1], error("A connection for this username already exists"));
    rig.pass(2);
    let amy = rig.consumer("amy");
    assert_eq!(messages(&rig.settle(amy)), [1]);
    assert_eq!(rig.settle(dead).last().unwrap(), &error("Another connection logged in with this username"));
    assert!(rig.closes(dead));
    // The end of the old connection does not touch the new one.
    rig.lose(dead);
    let other = rig.dial(Role::Consumers);
    assert_eq!(rig.ask(other, "log amy")[1], error("A connection for this username already exists"));
    assert_eq!(rig.ask(amy, &sub("u")), ["OK"]);
}

#[test]
fn a_connection_that_was_parked_and_is_silent_is_dead_and_one_that_speaks_is_not() {
    let mut rig = Rig::new();
    let first = rig.subscriber("amy", "t");
    let publisher = rig.publisher();
    rig.put(publisher, "t", "1");
    rig.pass(60_000);
    assert_eq!(messages(&rig.hear(first)).len(), 5);
    rig.send(first, &sub("u"));
    rig.commit();
    let other = rig.dial(Role::Consumers);
    assert_eq!(rig.ask(other, "log amy")[1], error("A connection for this username already exists"));
    assert_eq!(rig.hear(first), ["OK"]);
    rig.put(publisher, "u", "2");
    rig.pass(60_000);
    let amy = rig.consumer("amy");
    assert_eq!(messages(&rig.settle(amy)), [1, 2], "a log-in ends the parking, too");
}

#[test]
fn a_long_line_ends_the_connection_and_a_whole_one_does_not() {
    let mut rig = Rig::with(LinesConfig { max_line: 100, ..LinesConfig::default() }, 64 << 20);
    let id = rig.publisher();
    let fill = 100 - publish("t", "\"\"").len();
    let line = publish("t", &format!("\"{}\"", "x".repeat(fill)));
    for end in ["\n", "\r\n"] {
        rig.raw(id, format!("{line}{end}").as_bytes());
        assert_eq!(rig.settle(id).len(), 1);
        assert!(!rig.closes(id));
    }
    let line = publish("t", &format!("\"{}\"", "x".repeat(fill + 1)));
    for bytes in
        [format!("{line}\n"), format!("{line}\r\n"), "x".repeat(102), format!("{}\ry", "x".repeat(100))]
    {
        let id = rig.publisher();
        rig.raw(id, bytes.as_bytes());
        assert_eq!(rig.settle(id), [error("the line is too long")]);
        assert!(rig.closes(id));
    }
}

#[test]
fn lines_may_come_in_any_pieces() {
    let mut rig = Rig::new();
    let id = rig.dial(Role::Consumers);
    let bytes = format!("log amy\r\n{}\n{}\r\n", sub("a"), unsub("a"));
    let mut buf = bytes::BytesMut::new();
    for byte in bytes.bytes() {
        buf.extend_from_slice(&[byte]);
        rig.doors.input(id, &mut buf, rig.now);
    }
    assert_eq!(rig.settle(id), ["Please login!", "Succesfully logged in!", "OK", "OK"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is said: every line is answered, and nothing breaks.
    #[test]
    fn every_line_is_answered(lines in proptest::collection::vec(any_line(), 1..40), consumer: bool) {
        let mut rig = Rig::new();
        let id = if consumer { rig.consumer("amy") } else { rig.publisher() };
        for line in lines {
            rig.raw(id, &[&line[..], b"\n"].concat());
            let heard = rig.settle(id);
            prop_assert!(!heard.is_empty(), "{:?}", line);
            rig.pass(3_000);
            rig.hear(id);
        }
        rig.crash();
    }
}

fn any_line() -> impl Strategy<Value = Vec<u8>> {
    let types =
        proptest::sample::select(vec!["SUB", "UNSUB", "PUB", "PUBREC", "PUBREL", "PUBCOMP", "pub", ""]);
    let topics = proptest::sample::select(vec!["a", "b", crate::lines::DEAD_LETTERS, "#", ""]);
    let command = (types, topics, 0..6u64, any::<String>()).prop_map(|(kind, topic, id, msg)| {
        serde_json::json!({"type": kind, "topic": topic, "msgId": id, "msg": msg}).to_string().into_bytes()
    });
    let bytes = any::<Vec<u8>>().prop_map(|bytes| bytes.into_iter().filter(|byte| *byte != b'\n').collect());
    prop_oneof![4 => command, 1 => bytes]
}

#[test]
fn a_user_has_no_more_topics_than_allowed() {
    let mut rig = Rig::with(LinesConfig { max_topics: 2, ..LinesConfig::default() }, 64 << 20);
    let id = rig.subscriber("amy", "a");
    assert_eq!(rig.ask(id, &sub("b")), ["OK"]);
    assert_eq!(rig.ask(id, &sub("c")), [error("too many topics")]);
    assert_eq!(rig.ask(id, &unsub("b")), ["OK"]);
    assert_eq!(rig.ask(id, &sub("c")), [error("too many topics")], "its place in b is kept");
    assert_eq!(rig.ask(id, &sub("b")), ["OK"]);
    rig.subscriber("bob", "c");
}

#[test]
fn going_down_is_said() {
    let mut rig = Rig::new();
    let amy = rig.subscriber("amy", "a");
    let publisher = rig.publisher();
    rig.send(publisher, &publish("a", "1"));
    rig.doors.drain(rig.now);
    assert_eq!(rig.hear(amy), [error("the server goes down")]);
    assert!(rig.closes(amy));
    assert_eq!(rig.hear(publisher), [""; 0]);
    assert!(!rig.closes(publisher), "what waits for a commit is still answered");
    assert_eq!(rig.settle(publisher), [super::rig::pubrec_out(1), error("the server goes down")]);
    assert!(rig.closes(publisher));
}

#[test]
fn a_sub_that_was_not_answered_on_the_connection_before_is_committed_before_ok() {
    let mut rig = Rig::new();
    let first = rig.consumer("amy");
    rig.send(first, &sub("t"));
    // The connection breaks before the commit.
    rig.doors.lost(first, rig.now);
    let second = rig.dial(Role::Consumers);
    rig.send(second, "log amy");
    rig.send(second, &sub("t"));
    assert_eq!(rig.hear(second), ["Please login!", "Succesfully logged in!"]);
    assert_eq!(rig.settle(second), ["OK"]);
}
