//! Ids that are wrong, twice, or many.

use super::rig::{
    Rig, error, messages, name_of, pubcomp, pubcomp_out, publish, pubrec, pubrec_out, pubrel, pubrel_out, sub,
};
use crate::lines::Planted;
use std::collections::BTreeSet;

/// Everything wrong that a consumer can say; its place does not move.
fn wrong_acks(rig: &mut Rig) {
    let amy = rig.subscriber("amy", "t");
    assert_eq!(rig.ask(amy, &pubrec(1, "t")), [error("unknown msgId")]);
    assert_eq!(rig.ask(amy, &pubcomp(1, "t")), [error("unknown msgId")]);
    assert_eq!(rig.ask(amy, &pubcomp(0, "t")), [error("unknown msgId")]);
    assert_eq!(rig.ask(amy, &pubrec(1, "u")), [error("not subscribed to this topic")]);
    assert_eq!(rig.ask(amy, &pubcomp(1, "u")), [error("not subscribed to this topic")]);
    let publisher = rig.publisher();
    for n in 1..=3 {
        rig.put(publisher, "t", &n.to_string());
    }
    let name = name_of(&rig.settle(amy)[0]);
    for wrong in [0, name - 1, name + 1, name + 65_535, u64::MAX] {
        assert_eq!(rig.ask(amy, &pubrec(wrong, "t")), [error("unknown msgId")]);
        assert_eq!(rig.ask(amy, &pubcomp(wrong, "t")), [error("unknown msgId")]);
    }
    assert_eq!(rig.ask(amy, &pubcomp(name, "t")), [error("PUBCOMP before PUBREL")]);
    // In one turn, before the first is committed.
    rig.send(amy, &pubrec(name, "t"));
    rig.send(amy, &pubrec(name, "t"));
    rig.send(amy, &pubcomp(name, "t"));
    let heard = rig.settle(amy);
    assert_eq!(
        heard,
        [
            "OK".to_owned(),
            error("PUBREC was received before"),
            error("PUBCOMP before PUBREL"),
            pubrel_out(name)
        ]
    );
    assert_eq!(rig.ask(amy, &pubrec(name, "t")), [error("PUBREC was received before")]);
    let heard = rig.ask(amy, &pubcomp(name, "t"));
    assert_eq!((heard[0].as_str(), messages(&heard[1..])), ("OK", vec![2.into()]));
    assert_eq!(rig.ask(amy, &pubcomp(name, "t")), [error("PUBCOMP was received before")]);
    assert_eq!(rig.ask(amy, &pubrec(name, "t")), [error("PUBCOMP was received before")]);
    assert_eq!(messages(&rig.take(amy, &heard[1])), [3]);
}

#[test]
fn a_wrong_acknowledgement_is_an_error_and_moves_nothing() {
    wrong_acks(&mut Rig::new());
}

#[test]
#[should_panic(expected = "assertion")]
fn believing_any_pubcomp_shows() {
    wrong_acks(&mut Rig::planted(Planted { any_pubcomp: true, ..Planted::default() }));
}

#[test]
fn a_publisher_may_release_again_but_not_what_was_never_there() {
    let mut rig = Rig::new();
    rig.subscriber("amy", "t");
    let publisher = rig.publisher();
    assert_eq!(rig.ask(publisher, &pubrel(1)), [error("unknown msgId")]);
    assert_eq!(rig.ask(publisher, &pubrel(0)), [error("unknown msgId")]);
    assert_eq!(rig.ask(publisher, &publish("t", "1")), [pubrec_out(1)]);
    assert_eq!(rig.ask(publisher, &publish("t", "1")), [pubrec_out(2)], "a repeated PUB is another message");
    // Another connection: publishers have no names.
    let other = rig.publisher();
    assert_eq!(rig.ask(other, &pubrel(2)), [pubcomp_out(2)]);
    assert_eq!(rig.ask(publisher, &pubrel(2)), [pubcomp_out(2)]);
    rig.crash();
    let publisher = rig.publisher();
    assert_eq!(rig.ask(publisher, &pubrel(2)), [pubcomp_out(2)], "in another life, too");
    assert_eq!(rig.ask(publisher, &pubrel(3)), [error("unknown msgId")]);
    assert_eq!(rig.ask(publisher, &publish("t", "3")), [pubrec_out(3)], "no id comes twice");
    let amy = rig.consumer("amy");
    let heard = rig.settle(amy);
    assert_eq!(messages(&heard), [1]);
    assert_eq!(rig.take(amy, &heard[0]), [""; 0], "once");
}

/// Ids of one consumer over topics, lives, and more messages than there are packet ids.
fn many(rig: &mut Rig, messages: u64) -> BTreeSet<u64> {
    let mut amy = rig.subscriber("amy", "a");
    assert_eq!(rig.ask(amy, &sub("b")), ["OK"]);
    let mut publisher = rig.publisher();
    let mut seen = BTreeSet::new();
    for n in 0..messages {
        let topic = if n % 64 == 0 { "b" } else { "a" };
        rig.put(publisher, topic, &n.to_string());
        let heard = rig.settle(amy);
        let name = name_of(&heard[0]);
        assert!(seen.insert(name), "{name} comes twice, at {n}");
        assert_eq!(rig.take(amy, &heard[0]), [""; 0]);
        if n % 20_000 == 10_000 {
            rig.pass(1000);
            rig.crash();
            amy = rig.consumer("amy");
            publisher = rig.publisher();
        }
    }
    seen
}

#[test]
fn ids_never_come_twice_even_when_packet_ids_wrap() {
    let seen = many(&mut Rig::with(crate::lines::LinesConfig::default(), 1 << 20), 68_000);
    assert_eq!(seen.len(), 68_000);
    assert!(seen.last().is_some_and(|last| *last < 1 << 52));
}

#[test]
#[should_panic(expected = "comes twice")]
fn packet_ids_as_message_ids_show() {
    many(&mut Rig::planted(Planted { packet_ids: true, ..Planted::default() }), 20);
}

#[test]
fn topics_are_checked_and_stay_topics() {
    let mut rig = Rig::new();
    let amy = rig.consumer("amy");
    let publisher = rig.publisher();
    for topic in
        ["", "a/+", "#", "$SYS/x", "$share/g/t", "a\\u0000b", "a\\nb", &"x".repeat(1025), &"/".repeat(128)]
    {
        for line in [sub(topic), super::rig::unsub(topic)] {
            let heard = rig.ask(amy, &line);
            assert!(heard.len() == 1 && heard[0].starts_with("ERROR \""), "{topic}: {heard:?}");
        }
        let heard = rig.ask(publisher, &publish(topic, "1"));
        assert!(heard.len() == 1 && heard[0].starts_with("ERROR \""), "{topic}: {heard:?}");
    }
    for topic in ["../../etc/passwd", "a b", "a/b/c", "ä", "lib.Foo", "nil", &"x".repeat(1024)] {
        assert_eq!(rig.ask(amy, &sub(topic)), ["OK"]);
        rig.put(publisher, topic, "1");
        let heard = rig.settle(amy);
        assert_eq!(super::rig::topic_of(&heard[0]), topic);
        assert_eq!(rig.take(amy, &heard[0]), [""; 0]);
    }
    assert_eq!(
        rig.ask(publisher, &publish(crate::lines::DEAD_LETTERS, "1")),
        [error("publishing there is not allowed")]
    );
}
