//! Messages from publishers to consumers when nothing goes wrong.

use super::rig::{
    Rig, json, messages, name_of, pubcomp, pubcomp_out, publish, pubrec, pubrec_out, pubrel, pubrel_out, sub,
    unsub,
};
use crate::lines::{LinesConfig, Role};

/// Every byte of both sides, as `docs/mqtt-lines.md` shows it.
#[test]
fn the_documented_session() {
    let mut rig = Rig::new();
    let amy = rig.dial(Role::Consumers);
    assert_eq!(rig.settle(amy), ["Please login!"]);
    assert_eq!(rig.ask(amy, "log amy"), ["Succesfully logged in!"]);
    assert_eq!(rig.ask(amy, r#"{"type":"SUB","topic":"orders"}"#), ["OK"]);
    let publisher = rig.dial(Role::Publishers);
    assert_eq!(rig.settle(publisher), [""; 0]);
    let published = r#"{"type":"PUB","topic":"orders","msg":{"item":"tea","n":2}}"#;
    assert_eq!(rig.ask(publisher, published), [r#"{"msgId":1,"type":"PUBREC"}"#]);
    assert_eq!(rig.settle(amy), [""; 0], "nothing is delivered before it is released");
    assert_eq!(rig.ask(publisher, r#"{"type":"PUBREL","msgId":1}"#), [r#"{"msgId":1,"type":"PUBCOMP"}"#]);
    assert_eq!(rig.settle(amy), [r#"{"msg":{"item":"tea","n":2},"msgId":2,"topic":"orders","type":"PUB"}"#]);
    let pubrec = r#"{"type":"PUBREC","msgId":2,"topic":"orders"}"#;
    assert_eq!(rig.ask(amy, pubrec), ["OK", r#"{"msgId":2,"type":"PUBREL"}"#]);
    assert_eq!(rig.ask(amy, r#"{"type":"PUBCOMP","msgId":2,"topic":"orders"}"#), ["OK"]);
    assert_eq!(rig.ask(amy, r#"{"type":"UNSUB","topic":"orders"}"#), ["OK"]);
    assert_eq!(rig.ask(amy, "nonsense"), ["INVALID JSON"]);
    assert_eq!(rig.ask(amy, r#"{"type":"HELP"}"#), ["UNKNOWN COMMAND"]);
}

#[test]
fn nothing_is_answered_before_it_is_committed() {
    let mut rig = Rig::new();
    let amy = rig.consumer("amy");
    rig.send(amy, &sub("t"));
    assert_eq!(rig.hear(amy), [""; 0]);
    assert_eq!(rig.settle(amy), ["OK"]);
    let publisher = rig.publisher();
    rig.send(publisher, &publish("t", "1"));
    assert_eq!(rig.hear(publisher), [""; 0]);
    assert_eq!(rig.settle(publisher), [pubrec_out(1)]);
    rig.send(publisher, &pubrel(1));
    assert_eq!(rig.hear(publisher), [""; 0]);
    assert_eq!(rig.hear(amy), [""; 0]);
    rig.send(publisher, &pubrel(1));
    let other = rig.publisher();
    rig.send(other, &pubrel(1));
    assert_eq!(rig.hear(publisher), [""; 0], "nor is a repetition");
    assert_eq!(rig.hear(other), [""; 0], "nor one of another connection");
    assert_eq!(rig.settle(publisher), [pubcomp_out(1), pubcomp_out(1)]);
    assert_eq!(rig.hear(other), [pubcomp_out(1)]);
    let name = name_of(&rig.hear(amy)[0]);
    rig.send(amy, &pubrec(name, "t"));
    assert_eq!(rig.hear(amy), [""; 0]);
    assert_eq!(rig.settle(amy), ["OK".to_owned(), pubrel_out(name)]);
    rig.send(amy, &pubcomp(name, "t"));
    assert_eq!(rig.hear(amy), [""; 0]);
    assert_eq!(rig.settle(amy), ["OK"]);
    rig.send(amy, &unsub("t"));
    assert_eq!(rig.hear(amy), [""; 0]);
    assert_eq!(rig.settle(amy), ["OK"]);
    rig.send(amy, "x");
    assert_eq!(rig.hear(amy), [""; 0], "the line is to be a dead letter first");
    assert_eq!(rig.settle(amy), ["INVALID JSON"]);
}

#[test]
fn one_message_at_a_time_in_order_for_each_user_and_topic() {
    let mut rig = Rig::new();
    let amy = rig.subscriber("amy", "a");
    let bob = rig.subscriber("bob", "a");
    assert_eq!(rig.ask(bob, &sub("b")), ["OK"]);
    let publisher = rig.publisher();
    for n in 1..=3 {
        rig.put(publisher, "a", &n.to_string());
        rig.put(publisher, "b", &(10 * n).to_string());
    }
    let heard = rig.settle(amy);
    assert_eq!(messages(&heard), [1]);
    let mut for_bob = rig.settle(bob);
    assert_eq!(messages(&for_bob), [1, 10], "topics do not wait for each other");
    // Amy takes all; Bob has not answered yet.
    let next = rig.take(amy, &heard[0]);
    assert_eq!(messages(&next), [2]);
    let next = rig.take(amy, &next[0]);
    assert_eq!(messages(&next), [3]);
    assert_eq!(rig.take(amy, &next[0]), [""; 0]);
    assert_eq!(rig.settle(bob), [""; 0]);
    let mut taken = Vec::new();
    while let Some(line) = for_bob.pop() {
        taken.push(json(&line)["msg"].as_u64().unwrap());
        for_bob.extend(rig.take(bob, &line));
    }
    assert_eq!(taken, [10, 20, 30, 1, 2, 3]);
}

#[test]
fn who_subscribes_gets_what_comes_and_not_what_came() {
    let mut rig = Rig::new();
    let publisher = rig.publisher();
    rig.put(publisher, "t", "1");
    let amy = rig.subscriber("amy", "t");
    assert_eq!(rig.settle(amy), [""; 0]);
    rig.put(publisher, "t", "2");
    assert_eq!(messages(&rig.settle(amy)), [2]);
    assert_eq!(rig.ask(amy, &sub("t")), ["OK"], "once more changes nothing");
}

#[test]
fn while_a_topic_is_left_its_messages_wait() {
    let mut rig = Rig::new();
    let amy = rig.subscriber("amy", "t");
    let publisher = rig.publisher();
    rig.put(publisher, "t", "1");
    let first = rig.settle(amy);
    assert_eq!(rig.ask(amy, &unsub("t")), ["OK"]);
    assert_eq!(rig.ask(amy, &unsub("t")), ["OK"]);
    rig.put(publisher, "t", "2");
    rig.pass(100_000);
    assert_eq!(rig.settle(amy), [""; 0]);
    let again = rig.ask(amy, &sub("t"));
    assert_eq!(again[0], "OK");
    assert_eq!(again[1..], first, "the same message, under the same id");
    assert_eq!(messages(&rig.take(amy, &again[1])), [2]);
}

#[test]
fn any_value_is_a_message() {
    let mut rig = Rig::new();
    let amy = rig.subscriber("amy", "t");
    let publisher = rig.publisher();
    let mut heard = Vec::new();
    for msg in
        ["17", "\"17\"", "null", "true", "{\"a\": [1,{}]}", "[]", "\"\"", "\"{}\"", "\"\\n\\u00e4\"", "1e400"]
    {
        rig.put(publisher, "t", msg);
        if heard.is_empty() {
            heard = rig.settle(amy);
        }
        let line = heard.remove(0);
        if msg == "1e400" {
            assert!(line.starts_with("{\"msg\":1e400,"));
        } else {
            assert_eq!(json(&line)["msg"], json(msg), "{line}");
            heard = rig.take(amy, &line);
        }
    }
}

#[test]
fn pipelined_commands_are_answered_in_order() {
    let mut rig = Rig::new();
    let publisher = rig.publisher();
    let lines = [publish("t", "1"), "x".to_owned(), publish("", "1"), publish("t", "2"), pubrel(1)];
    rig.raw(publisher, format!("{}\n", lines.join("\n")).as_bytes());
    assert_eq!(
        rig.settle(publisher),
        [
            pubrec_out(1),
            "INVALID JSON".to_owned(),
            super::rig::error("the topic is empty, has a wildcard (+ or #), or too many levels"),
            pubrec_out(2),
            super::rig::error("unknown msgId"),
        ],
        "an id that was not told yet is nobody's"
    );
}

#[test]
fn old_segments_go() {
    let mut rig = Rig::with(LinesConfig::default(), 4000);
    let mut amy = rig.subscriber("amy", "t");
    let mut publisher = rig.publisher();
    for n in 0..300 {
        rig.put(publisher, "t", &n.to_string());
        let heard = rig.settle(amy);
        assert_eq!(messages(&heard), [n]);
        assert_eq!(rig.take(amy, &heard[0]), [""; 0]);
        if n % 100 == 50 {
            rig.crash();
            amy = rig.consumer("amy");
            publisher = rig.publisher();
        }
    }
    let segments = rig.doors.broker().door_segments();
    assert!(segments <= 4, "{segments}");
}

#[test]
fn who_sends_too_fast_is_not_read_until_there_was_a_commit() {
    let mut rig = Rig::with(LinesConfig { max_replies: 3, ..LinesConfig::default() }, 64 << 20);
    let publisher = rig.publisher();
    for _ in 0..4 {
        assert!(rig.doors.wants_input(publisher));
        rig.send(publisher, &publish("t", "1"));
    }
    assert!(!rig.doors.wants_input(publisher));
    let mut touched = Vec::new();
    rig.doors.touched(&mut touched);
    touched.clear();
    rig.commit();
    rig.doors.touched(&mut touched);
    assert!(touched.contains(&publisher), "it is to be asked again");
    assert!(rig.doors.wants_input(publisher));
    assert_eq!(rig.hear(publisher).len(), 4);
}
