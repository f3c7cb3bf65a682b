//! Defects on purpose: the checks must find every one of them.

use crate::crash_points::crash_everywhere;
use crate::random::run_seed;
use crate::world::Setup;
use postroad_engine::Planted;

/// What found it. Panics if nothing does.
fn is_found(name: &str, planted: Planted) {
    let setup = Setup { planted, ..Setup::default() };
    if let Err(why) = crash_everywhere(&setup, 1) {
        println!("{name}: found by the crash points: {why}");
        return;
    }
    for seed in 0..200 {
        if let Err(why) = run_seed(&setup, seed, 120) {
            println!("{name}: found by seed {seed}: {why}");
            return;
        }
    }
    panic!("nothing finds the planted defect {name}");
}

fn journal(planted: postroad_journal::Planted) -> Planted {
    Planted { journal: planted, ..Planted::default() }
}

#[test]
fn a_settlement_that_is_promised_too_early_is_found() {
    is_found("cursor_before_commit", Planted { cursor_before_commit: true, ..Planted::default() });
}

#[test]
fn a_commit_that_is_reported_before_its_sync_is_found() {
    let planted = postroad_journal::Planted { ack_before_sync: true, ..Default::default() };
    is_found("ack_before_sync", journal(planted));
}

#[test]
fn records_that_are_not_checked_are_found() {
    let planted = postroad_journal::Planted { no_crc_check: true, ..Default::default() };
    is_found("no_crc_check", journal(planted));
}

#[test]
fn a_torn_tail_that_is_not_cut_is_found() {
    let planted = postroad_journal::Planted { glue_on_torn_tail: true, ..Default::default() };
    is_found("glue_on_torn_tail", journal(planted));
}

#[test]
fn directories_that_are_not_synced_are_found() {
    let planted = postroad_journal::Planted { no_dir_sync: true, ..Default::default() };
    is_found("no_dir_sync", journal(planted));
}
