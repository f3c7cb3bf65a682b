//! Who does not answer, on a clock that only the test moves.

use super::rig::{Rig, error, json, messages, name_of, pubcomp, publish, pubrec, pubrel, pubrel_out, sub};
use crate::lines::{DEAD_LETTERS, LinesConfig, Planted};
use std::time::Duration;

#[test]
fn a_message_is_sent_five_times_and_then_the_topic_is_parked() {
    let mut rig = Rig::new();
    let amy = rig.subscriber("amy", "t");
    assert_eq!(rig.ask(amy, &sub("other")), ["OK"]);
    let publisher = rig.publisher();
    rig.put(publisher, "t", "1");
    let first = rig.settle(amy);
    for _ in 0..4 {
        rig.pass(9_999);
        assert_eq!(rig.hear(amy), [""; 0]);
        rig.pass(1);
        assert_eq!(rig.hear(amy), first, "the same line");
    }
    rig.pass(100_000);
    assert_eq!(rig.hear(amy), [""; 0]);
    let name = name_of(&first[0]);
    assert_eq!(rig.ask(amy, &pubrec(name, "t")), [error("not subscribed to this topic")]);
    rig.put(publisher, "other", "2");
    assert_eq!(messages(&rig.settle(amy)), [2], "other topics go on");
    rig.put(publisher, "t", "3");
    let again = rig.ask(amy, &sub("t"));
    assert_eq!((again[0].as_str(), &again[1..]), ("OK", &first[..]), "its place was kept");
    assert_eq!(messages(&rig.take(amy, &again[1])), [3]);
    let letters = rig.subscriber("eve", DEAD_LETTERS);
    assert_eq!(rig.settle(letters), [""; 0], "nothing died");
}

#[test]
fn an_answer_at_the_last_moment_counts() {
    let mut rig = Rig::new();
    let amy = rig.subscriber("amy", "t");
    let publisher = rig.publisher();
    rig.put(publisher, "t", "1");
    rig.pass(49_999);
    let heard = rig.hear(amy);
    assert_eq!(heard.len(), 5);
    let name = name_of(&heard[0]);
    assert_eq!(rig.ask(amy, &pubrec(name, "t")), ["OK".to_owned(), pubrel_out(name)]);
    // PUBREL has five sends of its own.
    rig.pass(49_999);
    assert_eq!(rig.hear(amy), vec![pubrel_out(name); 4]);
    assert_eq!(rig.ask(amy, &pubcomp(name, "t")), ["OK"]);
    rig.pass(100_000);
    assert_eq!(rig.hear(amy), [""; 0]);
}

#[test]
fn after_five_pubrels_the_message_is_a_dead_letter_and_the_next_one_follows() {
    let mut rig = Rig::new();
    let eve = rig.subscriber("eve", DEAD_LETTERS);
    let amy = rig.subscriber("amy", "t");
    let publisher = rig.publisher();
    rig.put(publisher, "t", "{\"n\":1}");
    rig.put(publisher, "t", "2");
    let name = name_of(&rig.settle(amy)[0]);
    assert_eq!(rig.ask(amy, &pubrec(name, "t")).len(), 2);
    rig.pass(49_999);
    assert_eq!(rig.hear(amy), vec![pubrel_out(name); 4]);
    assert_eq!(rig.hear(eve), [""; 0]);
    rig.pass(1);
    let next = rig.hear(amy);
    assert_eq!(messages(&next), [2]);
    assert_eq!(rig.ask(amy, &pubcomp(name, "t")), [error("PUBCOMP was received before")], "too late");
    let heard = rig.settle(eve);
    let letter = &messages(&heard)[0];
    assert_eq!(letter["reason"], "PUBREL was not answered");
    assert_eq!(letter["attempts"], 5);
    assert_eq!(letter["msg"], json("{\"n\":1}"));
    assert_eq!((letter["topic"].as_str(), letter["user"].as_str()), (Some("t"), Some("amy")));
    assert_eq!(letter["died"].as_u64().unwrap() - letter["published"].as_u64().unwrap(), 50_000);
    assert_eq!(rig.take(amy, &next[0]), [""; 0]);
    // A crash does not bring it back.
    rig.pass(1000);
    rig.crash();
    let amy = rig.consumer("amy");
    assert_eq!(rig.settle(amy), [""; 0]);
}

#[test]
fn a_connection_that_reads_nothing_does_not_fill_memory() {
    let mut rig = Rig::with(LinesConfig { max_output: 100, ..LinesConfig::default() }, 64 << 20);
    let amy = rig.subscriber("amy", "t");
    let publisher = rig.publisher();
    let big = format!("\"{}\"", "x".repeat(10_000));
    rig.put(publisher, "t", &big);
    rig.commit();
    rig.pass(45_000);
    assert!(!rig.doors.wants_input(amy), "nor is it read");
    let heard = rig.hear(amy);
    assert_eq!(heard.len(), 1, "what was not taken is not written again");
    assert!(rig.doors.wants_input(amy));
    rig.pass(5_000);
    assert_eq!(rig.ask(amy, &pubrec(name_of(&heard[0]), "t")), [error("not subscribed to this topic")]);
}

#[test]
fn what_is_never_released_is_a_dead_letter_in_the_end() {
    let config = LinesConfig { hold: Duration::from_secs(60), max_held: 2, ..LinesConfig::default() };
    let mut rig = Rig::with(config, 64 << 20);
    rig.subscriber("eve", DEAD_LETTERS);
    rig.subscriber("amy", "t");
    let publisher = rig.publisher();
    assert_eq!(rig.ask(publisher, &publish("t", "\"one\"")).len(), 1);
    rig.pass(30_000);
    assert_eq!(rig.ask(publisher, &publish("t", "\"two\"")).len(), 1);
    assert_eq!(rig.ask(publisher, &publish("t", "3")), [error("too many messages wait for PUBREL")]);
    rig.crash();
    let eve = rig.consumer("eve");
    rig.pass(29_999);
    assert_eq!(rig.settle(eve), [""; 0]);
    rig.pass(1);
    let letter = &messages(&rig.settle(eve))[0];
    assert_eq!(letter["reason"], "it was not released in time");
    assert_eq!((letter["msg"].as_str(), letter.get("user")), (Some("one"), None));
    let publisher = rig.publisher();
    assert_eq!(rig.ask(publisher, &pubrel(2)), [super::rig::pubcomp_out(2)], "its time is not over");
    let amy = rig.consumer("amy");
    assert_eq!(messages(&rig.settle(amy)), ["two"]);
}

#[test]
fn asking_for_ever_shows() {
    let mut rig = Rig::planted(Planted { never_park: true, never_give_up: true, ..Planted::default() });
    let amy = rig.subscriber("amy", "t");
    let publisher = rig.publisher();
    rig.put(publisher, "t", "1");
    rig.put(publisher, "t", "2");
    rig.pass(100_000);
    let heard = rig.hear(amy);
    assert_eq!(heard.len(), 11, "the defect: more than five");
    let name = name_of(&heard[0]);
    assert_eq!(rig.ask(amy, &pubrec(name, "t")).len(), 2);
    rig.pass(100_000);
    assert_eq!(rig.hear(amy), vec![pubrel_out(name); 10], "the defect: 2 never comes");
}

#[test]
fn each_message_has_its_own_time() {
    let mut rig = Rig::new();
    let amy = rig.subscriber("amy", "t");
    let publisher = rig.publisher();
    rig.put(publisher, "t", "1");
    rig.put(publisher, "t", "2");
    let name = name_of(&rig.settle(amy)[0]);
    rig.pass(5_000);
    assert_eq!(rig.ask(amy, &pubrec(name, "t")).len(), 2);
    rig.pass(3_000);
    assert_eq!(messages(&rig.ask(amy, &pubcomp(name, "t"))[1..]), [2]);
    rig.pass(9_999);
    assert_eq!(rig.hear(amy), [""; 0]);
    rig.pass(1);
    assert_eq!(messages(&rig.hear(amy)), [2]);
}
