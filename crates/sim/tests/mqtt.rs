//! MQTT worlds without a defect keep every promise; worlds with a defect on purpose do not.

use postroad_sim::mqtt::campaign::{Campaign, STEPS, explain, plan};
use postroad_sim::mqtt::{Plants, run};

const THREADS: usize = 2;

fn campaign(seed: u64, worlds: u64, plants: Plants) -> Campaign {
    Campaign { seed, worlds, time: None, threads: THREADS, plants }
}

#[test]
fn every_promise_is_kept() {
    let (tally, failure) = campaign(1, 150, Plants::default()).run();
    if let Some(failure) = failure {
        panic!("{}", explain(Plants::default(), &failure).0);
    }
    assert_eq!(tally.worlds, 150);
    // Worlds in which nothing happens would keep every promise, too.
    assert!(tally.all.published > 15 * tally.worlds, "{tally}");
    assert!(tally.all.received > 20 * tally.worlds, "{tally}");
    assert!(tally.all.kills > 10 * tally.worlds, "{tally}");
}

#[test]
fn a_seed_gives_the_same_world_again() {
    let digest = |seed| run(Plants::default(), &plan(seed)).map(|s| s.digest).map_err(|v| v.why);
    let digests: Vec<_> = (0..10).map(digest).collect();
    assert_eq!(digests, (0..10).map(digest).collect::<Vec<_>>());
    let mut others = digests.clone();
    others.dedup();
    assert_eq!(others.len(), digests.len(), "different seeds give different worlds");
}

/// A defect is found in at most so many worlds; its seed finds it again, in a plan that is smaller.
fn is_found(worlds: u64, name: &str) {
    let plants = Plants::named(name).expect("a defect of that name");
    let (tally, failure) = campaign(0, worlds, plants).run();
    let failure = failure.unwrap_or_else(|| panic!("nothing in {} worlds finds it", tally.worlds));
    let again = run(plants, &plan(failure.seed)).expect_err("the seed replays");
    assert_eq!(again.why, failure.violation.why);
    let (text, steps) = explain(plants, &failure);
    println!("{text}");
    // Of those in reserve, too. The power cuts at the end may be all that it takes.
    assert!(steps < 2 * STEPS, "{steps} steps are left");
}

#[test]
fn catches_an_acknowledgement_before_its_commit() {
    is_found(300, "ack-before-commit");
}

#[test]
fn catches_a_release_before_its_record() {
    is_found(300, "release-before-record");
}

#[test]
fn catches_an_id_that_is_forgotten() {
    is_found(300, "id-forgotten");
}

#[test]
fn catches_a_completion_before_its_record() {
    is_found(600, "complete-before-record");
}

#[test]
fn catches_a_delivery_before_its_commit() {
    is_found(300, "deliver-before-commit");
}

#[test]
fn catches_a_letter_after_its_settlement() {
    is_found(600, "letter-after-settle");
}

#[test]
fn catches_a_full_queue_that_the_log_does_not_know_of() {
    is_found(600, "refusal-forgotten");
}

#[test]
fn catches_wills_that_a_crash_forgets() {
    is_found(300, "will-forgotten");
}

#[test]
fn catches_answers_to_lines_before_their_commit() {
    is_found(300, "line-reply-before-commit");
}

#[test]
fn catches_a_release_of_a_line_in_two_records() {
    is_found(300, "line-release-in-two");
}

#[test]
fn catches_names_that_are_used_twice() {
    is_found(300, "line-packet-ids");
}

#[test]
fn catches_a_pubcomp_that_is_believed_whatever_its_name() {
    is_found(600, "line-any-pubcomp");
}

#[test]
fn catches_places_that_are_lost_at_the_log_in() {
    is_found(300, "line-place-lost");
}

#[test]
fn catches_a_torn_tail_that_is_glued_on() {
    is_found(300, "glue-on-torn-tail");
}

#[test]
fn catches_records_that_are_not_checked() {
    is_found(1000, "no-crc-check");
}

#[test]
fn catches_directories_that_are_not_synced() {
    is_found(300, "no-dir-sync");
}
