//! Power cuts and kills after every single call to the disk; and the defects that this must catch.

mod common;

use common::{Run, Setup, Step, check_after_crash, workload};
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
            check_after_crash(&run, &disk)
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
    let setup = Setup { preallocate: true, ..Setup::default() };
    let steps = workload(1);
    let total = {
        let storage = SimStorage::new(0);
        Run::new(&setup, &storage).run(&steps).unwrap();
        storage.calls()
    };
    for k in (1..total).step_by(5) {
        let storage = SimStorage::new(k);
        storage.crash_at(k);
        let mut run = Run::new(&setup, &storage);
        let _ = run.run(&steps);
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
