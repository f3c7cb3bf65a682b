//! The topic of what nobody could do anything with.

use super::rig::{Rig, error, json, messages, name_of, pubrec, pubrel_out, sub};
use crate::lines::{DEAD_LETTERS, LinesConfig};

/// Takes all that a topic has.
fn all(rig: &mut Rig, id: crate::lines::DoorId, mut heard: Vec<String>) -> Vec<serde_json::Value> {
    let mut found = Vec::new();
    while let Some(line) = heard.pop() {
        found.extend(messages(std::slice::from_ref(&line)));
        heard = rig.take(id, &line);
    }
    found
}

#[test]
fn lines_that_are_no_commands_are_kept_with_who_and_why() {
    let mut rig = Rig::new();
    let amy = rig.consumer("amy");
    assert_eq!(rig.ask(amy, "{\"type\":"), ["INVALID JSON"]);
    assert_eq!(
        rig.ask(amy, "{\"type\":\"PUB\",\"topic\":\"t\",\"msg\":1}"),
        ["UNKNOWN COMMAND"],
        "the other door's"
    );
    let publisher = rig.publisher();
    rig.raw(publisher, b"\xff\xfe\n");
    assert_eq!(rig.settle(publisher), ["INVALID JSON"]);
    rig.crash();
    // Who comes later gets what there is.
    let eve = rig.consumer("eve");
    let heard = rig.ask(eve, &sub(DEAD_LETTERS));
    let heard: Vec<String> = heard.into_iter().filter(|line| line != "OK").collect();
    let found = all(&mut rig, eve, heard);
    assert_eq!(found.len(), 3);
    assert_eq!(
        (found[0]["line"].as_str(), found[0]["reason"].as_str()),
        (Some("{\"type\":"), Some("INVALID JSON"))
    );
    assert_eq!(
        (found[1]["user"].as_str(), found[1]["reason"].as_str()),
        (Some("amy"), Some("UNKNOWN COMMAND"))
    );
    assert_eq!(found[2]["line"], json("{\"base64\":\"//4=\"}"));
    assert_eq!(found[2].get("user"), None);
    // And only once.
    assert_eq!(rig.ask(eve, &super::rig::unsub(DEAD_LETTERS)), ["OK"]);
    assert_eq!(rig.ask(eve, &sub(DEAD_LETTERS)), ["OK"]);
}

#[test]
fn sub_unsub_sub_is_no_death() {
    let mut rig = Rig::new();
    let eve = rig.subscriber("eve", DEAD_LETTERS);
    assert_eq!(rig.ask(eve, &super::rig::unsub(DEAD_LETTERS)), ["OK"]);
    assert_eq!(rig.ask(eve, "raw"), ["INVALID JSON"]);
    let heard = rig.ask(eve, &sub(DEAD_LETTERS));
    assert_eq!(heard[0], "OK");
    assert_eq!(messages(&heard[1..])[0]["line"], "raw");
}

#[test]
fn no_more_letters_are_kept_than_allowed() {
    let mut rig = Rig::with(LinesConfig { max_letters: 3, ..LinesConfig::default() }, 64 << 20);
    let publisher = rig.publisher();
    for n in 0..10 {
        assert_eq!(rig.ask(publisher, &format!("bad {n}")), ["INVALID JSON"]);
    }
    let eve = rig.consumer("eve");
    let heard = rig.ask(eve, &sub(DEAD_LETTERS));
    let heard: Vec<String> = heard.into_iter().filter(|line| line != "OK").collect();
    let found: Vec<_> = all(&mut rig, eve, heard).iter().map(|letter| letter["line"].clone()).collect();
    assert_eq!(found, ["bad 7", "bad 8", "bad 9"]);
}

#[test]
fn a_letter_that_dies_is_not_written_about() {
    let mut rig = Rig::new();
    let eve = rig.subscriber("eve", DEAD_LETTERS);
    let heard = rig.ask(eve, "one");
    assert_eq!(heard[0], "INVALID JSON");
    let name = name_of(&heard[1]);
    assert_eq!(rig.ask(eve, &pubrec(name, DEAD_LETTERS)), ["OK".to_owned(), pubrel_out(name)]);
    rig.pass(200_000);
    assert_eq!(rig.hear(eve), vec![pubrel_out(name); 4]);
    assert_eq!(rig.ask(eve, &pubrec(name, DEAD_LETTERS)), [error("PUBCOMP was received before")]);
}
