//! Random worlds.

use crate::cases;
use crate::cast::{Op, op};
use crate::world::{Setup, World};
use postroad_engine::Retention;
use postroad_journal::storage::SimStorage;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// Runs the world of `seed`; on failure the smallest list of steps that fails.
pub fn run_seed(setup: &Setup, seed: u64, steps: usize) -> Result<(), String> {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: 1, failure_persistence: None, max_shrink_iters: 3000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let list = prop::collection::vec(op(true), 1..steps);
    runner
        .run(&list, |ops: Vec<Op>| {
            let mut world = World::new(setup, &SimStorage::new(seed));
            world.run(&ops).map_err(TestCaseError::fail)
        })
        .map_err(|error| match error {
            TestError::Fail(why, ops) => {
                let ops: Vec<String> = ops.iter().map(|op| format!("    {op:?}")).collect();
                format!("seed {seed}, {setup:?}: {why}; the least that does it:\n{}", ops.join("\n"))
            }
            TestError::Abort(why) => format!("seed {seed}: {why}"),
        })
}

fn run(setup: &Setup, seeds: u64) {
    for seed in 0..cases(seeds) {
        if let Err(error) = run_seed(setup, seed, 120) {
            panic!("{error}");
        }
    }
}

#[test]
fn a_random_world_is_as_the_model_says() {
    run(&Setup::default(), 100);
}

#[test]
fn with_small_commits_and_space_written_ahead() {
    run(&Setup { max_batch_bytes: 300, preallocate: true, dedup_window: 0, ..Setup::default() }, 40);
}

#[test]
fn with_retention() {
    let retention = Retention { max_bytes: Some(6000), max_events: Some(20), ..Retention::default() };
    run(&Setup { retention, segment_bytes: 900, dedup_window: 0, ..Setup::default() }, 40);
}

#[test]
fn with_retention_and_small_commits() {
    let retention = Retention { max_events: Some(5), ..Retention::default() };
    run(
        &Setup { retention, segment_bytes: 900, max_batch_bytes: 200, dedup_window: 0, ..Setup::default() },
        40,
    );
}

#[test]
fn with_retention_by_interest() {
    let retention = Retention { interest: true, ..Retention::default() };
    run(
        &Setup {
            retention,
            segment_bytes: 700,
            tail_cache_bytes: 1 << 20,
            dedup_window: 0,
            ..Setup::default()
        },
        30,
    );
}
