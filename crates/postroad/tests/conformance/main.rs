//! The delivery contract, over TCP, against the real process and its data on disk: killed, stopped, started again,
//! and reached through a proxy that cuts and falls silent.

#[path = "../support/mod.rs"]
#[allow(dead_code, unused_imports, clippy::format_collect, reason = "of the other tests from outside, too")]
mod support;

mod harness;
// It looks for processes in /proc.
#[cfg(target_os = "linux")]
mod orphans;

use harness::{Planted, ProcessHarness};
use postroad_conformance::faulty::Lie;

postroad_conformance::conformance_tests!(ProcessHarness::new());

/// The same for the MQTT door, by the `mqtt:` client with an inbox.
mod mqtt {
    postroad_conformance::conformance_tests!(super::ProcessHarness::mqtt());
}

/// Nothing is left out but what the protocol does not promise.
#[test]
fn only_a_total_order_is_skipped() {
    let harness = ProcessHarness::new();
    let mut skipped = Vec::new();
    for case in postroad_conformance::cases() {
        if let postroad_conformance::Plan::Skip(need) = case.plan_for(&harness) {
            println!("skipped: {} (no {need})", case.name);
            skipped.push(case.name);
        }
    }
    assert_eq!(skipped, ["order/of_everything"]);
}

/// Those of the cases that wait for what is lost would wait for long: these notice it soon.
fn caught_by(planted: Planted, chosen: &[&str]) {
    caught(&ProcessHarness::with(planted), chosen);
}

fn caught(harness: &ProcessHarness, chosen: &[&str]) {
    let report = postroad_conformance::run_some(harness, |case| chosen.contains(&case.name));
    let caught: Vec<_> = report.failures().map(|entry| entry.case).collect();
    assert_eq!(caught, chosen, "{:?} is not caught by all of these", harness.planted());
}

#[test]
fn a_broker_that_forgets_at_a_restart_is_caught() {
    caught_by(
        Planted::ForgetsAtRestart,
        &[
            "checkpoint/restart_replays_the_rest",
            "connection/restart",
            "connection/attempts_survive_a_restart",
        ],
    );
}

#[test]
fn one_that_forgets_its_sessions_is_caught_by_mqtt() {
    // What has reached an inbox is safe from that; a load always has something on its way.
    caught(&ProcessHarness::mqtt_with(Planted::ForgetsAtKill), &["load/through_kills"]);
    caught(&ProcessHarness::mqtt_with(Planted::ForgetsAtRestart), &["load/through_restarts"]);
}

#[test]
fn a_broker_that_forgets_at_a_kill_is_caught() {
    caught_by(Planted::ForgetsAtKill, &["connection/kill", "load/through_kills"]);
}

/// Over real connections to the real broker, each by the case that is there for it.
#[test]
fn lies_about_connections_are_caught() {
    for (lie, case) in Lie::OF_CONNECTIONS {
        // That one is the broker's to tell.
        if *lie != Lie::LostKeepsMessages {
            caught_by(Planted::Lies(*lie), &[case]);
            println!("{lie}: caught by {case}");
        }
    }
}
