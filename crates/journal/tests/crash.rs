//! Power cuts and kills after every single call to the disk; and the defects that this must catch.

mod common;

use common::{Run, Setup, Step, buffered_workload, check_after, check_after_crash, workload};
use postroad_journal::{
    Planted,
    storage::{Call, CrashMode, SimStorage},
};

/// Seeds tried for each random way to crash.
const SEEDS: u64 = 2;

fn modes() -> impl Iterator<Item = (CrashMode, u64)> {
    CrashMode::ALL.into_iter().flat_map(|mode| {
        let random = matches!(mode, CrashMode::RandomSectors | CrashMode::RandomPrefix);
        (0..if random { SEEDS } else { 1 }).map(move |seed| (mode, seed))
    })
}

/// Crashes the workload in each call and checks what every kind of crash leaves. The first violation, or the number of calls.
fn crash_everywhere(setup: &Setup, steps: &[Step]) -> Result<u64, String> {
    let mut k = 1;
    loop {
        let storage = SimStorage::new(k);
        storage.crash_at(k);
        let mut run = Run::new(setup, &storage);
        let outcome = run.run(steps);
        for (mode, seed) in modes() {
            let disk = storage.fork(seed * 1000 + k);
            disk.crash(mode);
            check_after(&run, &disk, mode)
                .map_err(|e| format!("crash at call {k}, {mode:?}, seed {seed}: {e}"))?;
        }
        if !storage.has_crashed() {
            outcome.map_err(|e| format!("failed without a crash: {e}"))?;
            return Ok(k);
        }
        k += 1;
    }
}

#[test]
fn nothing_committed_is_lost_by_a_crash_at_any_call() {
    let setup = Setup::default();
    let calls = crash_everywhere(&setup, &workload(1)).unwrap();
    assert!(calls > 60, "{calls} calls are not much of a workload");
}

#[test]
fn nor_with_space_written_ahead() {
    let setup = Setup { preallocate: true, ..Setup::default() };
    crash_everywhere(&setup, &workload(1)).unwrap();
}

#[test]
fn nor_with_many_logs_and_one_sync_for_all() {
    let setup = Setup { logs: 5, ..Setup::default() };
    crash_everywhere(&setup, &workload(5)).unwrap();
    // It must really have been the one sync.
    let storage = SimStorage::new(1);
    Run::new(&setup, &storage).run(&workload(5)).unwrap();
    assert!(storage.trace().iter().any(|(call, _)| *call == Call::SyncFilesystem));
}

/// What asked for a sync is there after a power cut, with all before it; what did not is there when only the process dies.
#[test]
fn nor_when_only_some_ask_for_a_sync() {
    for (logs, preallocate) in [(1, false), (1, true), (2, true), (5, false)] {
        let setup = Setup { logs, preallocate, ..Setup::default() };
        let steps = buffered_workload(logs);
        crash_everywhere(&setup, &steps).unwrap_or_else(|e| panic!("{logs} logs, {preallocate}: {e}"));
        // Some of it must really have been without a sync.
        let storage = SimStorage::new(1);
        let mut run = Run::new(&setup, &storage);
        let mut unsynced = 0;
        for step in &steps {
            run.run(std::slice::from_ref(step)).unwrap();
            unsynced += usize::from(run.models.iter().any(|model| model.committed < model.written));
        }
        assert!(unsynced > 5, "{unsynced}");
    }
}

/// Writes around the page cache do not sync what is in other blocks of it.
#[test]
fn nor_when_a_durable_write_follows_a_large_one_without_a_sync() {
    let setup = Setup { preallocate: true, segment_bytes: 40_000, ..Setup::default() };
    let mut steps = Vec::new();
    for _ in 0..3 {
        steps.extend([Step::Buffered { log: 0, sizes: vec![9000] }, Step::Commit]);
        steps.extend([Step::Publish { log: 0, sizes: vec![10] }, Step::Commit]);
    }
    crash_everywhere(&setup, &steps).unwrap();
}

#[test]
fn nor_when_the_one_sync_does_not_exist() {
    let setup = Setup { logs: 5, ..Setup::default() };
    for k in (1..400).step_by(7) {
        let storage = SimStorage::new(k);
        storage.set_syncfs(false);
        storage.crash_at(k);
        let mut run = Run::new(&setup, &storage);
        let _ = run.run(&workload(5));
        storage.crash(CrashMode::DropUnsynced);
        check_after_crash(&run, &storage).unwrap();
    }
}

#[test]
fn a_crash_during_recovery_is_survived_too() {
    for steps in [workload(1), buffered_workload(1)] {
        crash_in_recovery(&steps);
    }
}

fn crash_in_recovery(steps: &[Step]) {
    let setup = Setup { preallocate: true, ..Setup::default() };
    let total = {
        let storage = SimStorage::new(0);
        Run::new(&setup, &storage).run(steps).unwrap();
        storage.calls()
    };
    for k in (1..total).step_by(5) {
        let storage = SimStorage::new(k);
        storage.crash_at(k);
        let mut run = Run::new(&setup, &storage);
        let _ = run.run(steps);
        for mode in [CrashMode::RandomPrefix, CrashMode::RandomSectors, CrashMode::KeepAll] {
            let torn = storage.fork(k);
            torn.crash(mode);
            for j in 1.. {
                let disk = torn.fork(j);
                disk.crash_at(j);
                let opened = run.reborn(&disk).open();
                if !disk.has_crashed() {
                    opened.unwrap().unwrap();
                    break;
                }
                for (mode, seed) in modes() {
                    let second = disk.fork(seed);
                    second.crash(mode);
                    check_after_crash(&run, &second)
                        .unwrap_or_else(|e| panic!("call {k}, then recovery call {j}, {mode:?}: {e}"));
                }
            }
        }
    }
}

fn caught(planted: Planted) -> String {
    let setup = Setup { planted, ..Setup::default() };
    crash_everywhere(&setup, &workload(1)).expect_err("the planted defect was not caught")
}

fn caught_buffered(planted: Planted) -> String {
    let setup = Setup { planted, preallocate: true, logs: 2, ..Setup::default() };
    crash_everywhere(&setup, &buffered_workload(2)).expect_err("the planted defect was not caught")
}

#[test]
fn catches_a_sync_that_forgets_what_was_written_without_one() {
    let why = caught_buffered(Planted { forget_unsynced: true, ..Planted::default() });
    assert!(why.contains("were committed") || why.contains("damaged"), "{why}");
}

#[test]
fn catches_a_commit_mark_behind_what_is_not_durable() {
    let why = caught_buffered(Planted { mark_unsynced: true, ..Planted::default() });
    assert!(why.contains("damaged"), "{why}");
}

#[test]
fn catches_a_segment_behind_one_that_is_not_durable() {
    let why = caught_buffered(Planted { seal_unsynced: true, ..Planted::default() });
    assert!(why.contains("damaged"), "{why}");
}

#[test]
fn catches_an_ack_before_the_sync() {
    let why = caught(Planted { ack_before_sync: true, ..Planted::default() });
    assert!(why.contains("were committed"), "{why}");
}

#[test]
fn catches_a_directory_that_is_not_synced() {
    let why = caught(Planted { no_dir_sync: true, ..Planted::default() });
    assert!(why.contains("were committed"), "{why}");
}

#[test]
fn catches_a_torn_tail_that_is_not_cut() {
    let why = caught(Planted { glue_on_torn_tail: true, ..Planted::default() });
    assert!(why.contains("second time") || why.contains("damaged"), "{why}");
}

#[test]
fn catches_a_disk_that_lies_about_its_syncs() {
    let storage = SimStorage::new(1);
    storage.ignore(Call::SyncData);
    let mut run = Run::new(&Setup::default(), &storage);
    run.run(&workload(1)).unwrap();
    storage.crash(CrashMode::DropUnsynced);
    check_after_crash(&run, &storage).expect_err("a lying disk must show");
}
