//! verify, cat, repair and fix_crc: nothing bad is missed, nothing good is thrown away, every loss is told.

mod common;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use common::{ROOT, Record, Run, Setup, Step};
use postroad_journal::{
    repair::{RepairReport, fix_crc, repair},
    storage::{CrashMode, SimStorage, Storage},
    verify::{ProblemKind, cat, verify},
};

struct Log {
    setup: Setup,
    storage: SimStorage,
    run: Run,
    files: Vec<(PathBuf, Vec<u8>)>,
    records: Vec<Record>,
}

fn log() -> Log {
    let setup = Setup { segment_bytes: 8 << 10, ..Setup::default() };
    let storage = SimStorage::new(1);
    let mut run = Run::new(&setup, &storage);
    let mut steps = Vec::new();
    for segment in 0..4 {
        if segment > 0 {
            steps.push(Step::Roll { log: 0 });
        }
        for i in 0..4 {
            steps.push(Step::Publish { log: 0, sizes: vec![3 + i, 30] });
            steps.push(Step::Mark { log: 0 });
            if i % 2 == 1 {
                steps.push(Step::Commit);
            }
        }
    }
    run.run(&steps).unwrap();
    run.opened = None;
    let files = common::segments(&storage, &setup.dir(0));
    let records = run.models[0].appended.iter().map(|(record, _)| record.clone()).collect();
    Log { setup, storage, run, files, records }
}

impl Log {
    fn damaged(&self, file: usize, bytes: &[u8]) -> SimStorage {
        let disk = self.storage.fork(1);
        disk.put_file(&self.files[file].0, bytes).unwrap();
        disk
    }

    /// Repairs, and checks everything that must hold whatever the damage was. What is left.
    fn check_repair(&self, disk: &SimStorage) -> Result<(RepairReport, Vec<Record>), String> {
        let before = common::segments(disk, &self.setup.dir(0));
        let sound = verify(disk, Path::new(ROOT)).unwrap().is_sound();
        let opens = self.setup.open(&disk.fork(1)).map(|_| ());
        if sound != opens.is_ok() {
            return Err(format!("sound: {sound}, but opening says {opens:?}"));
        }
        let planned = repair(disk, Path::new(ROOT), 9, false).map_err(|e| e.to_string())?;
        if common::segments(disk, &self.setup.dir(0)) != before {
            return Err("a plan changed something".into());
        }
        let mut report = repair(disk, Path::new(ROOT), 9, true).map_err(|e| e.to_string())?;
        report.applied = false;
        if report != planned {
            return Err(format!("planned {planned:?}, did {report:?}"));
        }
        if sound && !report.journals.is_empty() {
            return Err("repaired what was sound".into());
        }
        disk.crash(CrashMode::DropUnsynced);
        let after = verify(disk, Path::new(ROOT)).unwrap();
        if !after.is_sound() {
            return Err(format!("still not sound:\n{after}"));
        }
        if !repair(disk, Path::new(ROOT), 10, true).map_err(|e| e.to_string())?.journals.is_empty() {
            return Err("a second repair found something".into());
        }
        // Every byte of the damaged files is still there.
        for (path, aside) in report.journals.iter().flat_map(|j| &j.rewritten) {
            let old = before.iter().find(|(p, _)| p == path).map(|(_, bytes)| bytes);
            let kept = aside.as_ref().map(|aside| disk.read_durable(aside).unwrap());
            if old != kept.as_ref() {
                return Err(format!("{} was not kept aside", path.display()));
            }
        }
        let mut opened = self.setup.open(disk).map_err(|e| format!("does not open: {e}"))?;
        let (journal, _, mut left) = opened.logs.remove(0);
        left.retain(|record| record.kind != "gap");
        // In order, nothing invented. A settlement whose line was copied right behind it cannot be told from one written twice.
        let mut plain = left.clone();
        plain.dedup_by(|a, b| a == b && a.kind != "pub");
        let mut rest = self.records.iter();
        if !plain.iter().all(|record| rest.any(|r| r == record)) {
            return Err(format!("records are out of order or invented: {left:?}"));
        }
        // Every message is there or declared lost, and those declared lost are not there.
        let stats = journal.stats();
        let lost: BTreeSet<u64> =
            report.journals.iter().flat_map(|j| &j.lost).flat_map(|(first, last)| *first..=*last).collect();
        let there: BTreeSet<u64> = left.iter().filter(|r| r.kind == "pub").map(|r| r.seq).collect();
        if (stats.first..=stats.last).any(|seq| lost.contains(&seq) == there.contains(&seq)) {
            return Err(format!("lost {lost:?}, there {there:?} of {}..={}", stats.first, stats.last));
        }
        for seq in stats.first..=stats.last {
            let event = journal.read(seq).map_err(|e| e.to_string())?;
            if event.is_some() != there.contains(&seq) {
                return Err(format!("message {seq} reads as {event:?}"));
            }
        }
        drop((journal, opened));
        // And life goes on.
        let mut run = Run::new(&self.setup, disk);
        run.opened = Some(self.setup.open(disk).map_err(|e| e.to_string())?);
        run.now = self.run.now;
        run.run(&[
            Step::Publish { log: 0, sizes: vec![5] },
            Step::Roll { log: 0 },
            Step::Mark { log: 0 },
            Step::Commit,
        ])
        .map_err(|e| e.to_string())?;
        disk.crash(CrashMode::DropUnsynced);
        let opened = self.setup.open(disk).map_err(|e| format!("after going on: {e}"))?;
        let count = opened.logs[0].2.iter().filter(|r| r.kind != "gap").count();
        if count == left.len() + 2 {
            Ok((report, left))
        } else {
            Err(format!("{count} records after going on"))
        }
    }
}

#[test]
fn a_sound_log_is_sound() {
    let log = log();
    let report = verify(&log.storage, Path::new(ROOT)).unwrap();
    assert!(report.is_sound());
    let [journal] = &report.journals[..] else { panic!("{report:?}") };
    assert_eq!((journal.segments, journal.first, journal.last), (4, 1, 32));
    assert_eq!((journal.messages, journal.records), (32, log.records.len() as u64));
    assert_eq!((journal.name.as_str(), journal.problems.len()), ("log0", 0));
    assert!(report.to_string().contains("sound; 4 files"), "{report}");
    let (report, left) = log.check_repair(&log.storage.fork(1)).unwrap();
    assert_eq!((report.journals.len(), left), (0, log.records));
    assert_eq!(report.to_string(), "nothing to repair\n");
}

#[test]
fn a_flip_anywhere_is_found_named_and_repaired_with_the_loss_of_that_line_only() {
    let log = log();
    for (file, (path, bytes)) in log.files.iter().enumerate() {
        for at in (0..bytes.len())
            .step_by(11)
            .chain(bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i))
        {
            for mask in [1 << (at % 8), bytes[at] ^ b'\n', b'\n'] {
                let mut flipped = bytes.clone();
                flipped[at] ^= mask;
                if mask == 0 || (file == 3 && at >= bytes.len() - 17) {
                    // The end of the very last line: a torn tail.
                    continue;
                }
                let disk = log.damaged(file, &flipped);
                let report = verify(&disk, Path::new(ROOT)).unwrap();
                let line = common::line_of(bytes, at);
                let first = &report.journals[0].problems[0];
                assert_eq!((&first.path, first.line), (path, line), "byte {at} ^ {mask}: {report}");
                let (_, left) =
                    log.check_repair(&disk).unwrap_or_else(|e| panic!("{file}, byte {at} ^ {mask}: {e}"));
                // A line whose LF is gone is lost, the one behind it is not.
                let lost = log.records.len() - left.len();
                assert!(lost <= 1, "{file}, byte {at} ^ {mask}: {lost} records lost");
                assert!(line > 1 || lost == 0, "{file}: a bad header must cost nothing");
            }
        }
    }
}

#[test]
fn truncated_missing_and_swapped_files_are_repaired() {
    let log = log();
    for file in 0..3 {
        let (path, bytes) = &log.files[file];
        for cut in (0..bytes.len()).step_by(43) {
            let disk = log.damaged(file, &bytes[..cut]);
            log.check_repair(&disk).unwrap_or_else(|e| panic!("{file} cut at {cut}: {e}"));
        }
        if file > 0 {
            let disk = log.storage.fork(1);
            disk.remove(path).unwrap();
            let (report, left) = log.check_repair(&disk).unwrap();
            assert_eq!(report.journals[0].lost, [(file as u64 * 8 + 1, file as u64 * 8 + 8)]);
            assert_eq!(left.len(), log.records.len() * 3 / 4);
        }
        let swapped = log.damaged(file, &log.files[file + 1].1);
        swapped.put_file(&log.files[file + 1].0, bytes).unwrap();
        log.check_repair(&swapped).unwrap_or_else(|e| panic!("{file} swapped with the next: {e}"));
    }
}

#[test]
fn any_mixture_of_damage_is_repaired() {
    let log = log();
    let mut rng = fastrand::Rng::with_seed(42);
    for round in 0..200 {
        let disk = log.storage.fork(1);
        for _ in 0..rng.usize(1..4) {
            let (path, bytes) = &log.files[rng.usize(..log.files.len())];
            let mut bytes = disk.read_file(path).unwrap_or_else(|_| bytes.clone());
            let at = rng.usize(..bytes.len());
            let end = bytes.len().min(at + rng.usize(1..700));
            match rng.u8(..7) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at..end].fill(0),
                2 => bytes[at..end].fill(b'\n'),
                3 => bytes[at..end].fill_with(|| rng.u8(..)),
                4 => drop(bytes.drain(at..end)),
                5 => {
                    let copy = bytes[at..end].to_vec();
                    let to = rng.usize(..bytes.len());
                    bytes.splice(to..to, copy);
                }
                _ => bytes[at] ^= 1,
            }
            disk.put_file(path, &bytes).unwrap();
        }
        if rng.u8(..8) == 0 {
            let _ = disk.remove(&log.files[rng.usize(1..3)].0);
        }
        let before = verify(&disk, Path::new(ROOT)).unwrap();
        match log.check_repair(&disk) {
            Ok(_) => {}
            // Only if there is nothing at all to go by.
            Err(error)
                if error.contains("nothing can be saved") || error.contains("cannot be read from any") => {}
            Err(error) => panic!("round {round}: {error}\nit was:\n{before}"),
        }
    }
}

#[test]
fn a_crash_in_the_middle_of_a_repair_loses_nothing() {
    let log = log();
    let disk = log.storage.fork(1);
    for (i, (path, bytes)) in log.files.iter().enumerate().take(3) {
        let mut bytes = bytes.clone();
        bytes[400 + i * 90] ^= 1;
        disk.put_file(path, &bytes).unwrap();
    }
    let (_, expected) = log.check_repair(&disk.fork(1)).unwrap();
    assert_eq!(log.records.len() - expected.len(), 3);
    for k in 1.. {
        let crashing = disk.fork(k);
        crashing.crash_at(k);
        let outcome = repair(&crashing, Path::new(ROOT), 9, true);
        if !crashing.has_crashed() {
            outcome.unwrap();
            break;
        }
        for mode in CrashMode::ALL {
            let second = crashing.fork(k);
            second.crash(mode);
            repair(&second, Path::new(ROOT), 9, true).unwrap_or_else(|e| panic!("call {k}, {mode:?}: {e}"));
            let opened = log.setup.open(&second).unwrap_or_else(|e| panic!("call {k}, {mode:?}: {e}"));
            let left: Vec<_> = opened.logs[0].2.iter().filter(|r| r.kind != "gap").cloned().collect();
            assert_eq!(left, expected, "call {k}, {mode:?}");
        }
    }
}

#[test]
fn a_torn_tail_is_told_and_left_to_the_next_start() {
    let log = log();
    let (path, bytes) = &log.files[3];
    let disk = log.damaged(3, &bytes[..bytes.len() - 20]);
    let report = verify(&disk, Path::new(ROOT)).unwrap();
    assert!(report.is_sound());
    assert_eq!(report.journals[0].problems[0].kind, ProblemKind::TornTail);
    assert!(repair(&disk, Path::new(ROOT), 9, true).unwrap().journals.is_empty());
    assert_eq!(disk.read_file(path).unwrap().len(), bytes.len() - 20);
    drop(log.setup.open(&disk).unwrap());
    let report = verify(&disk, Path::new(ROOT)).unwrap();
    assert_eq!((report.journals[0].problems.len(), report.journals[0].aside.len()), (0, 1));
}

#[test]
fn a_directory_in_use_is_not_repaired() {
    let log = log();
    let _broker = log.setup.open(&log.storage).unwrap();
    let error = repair(&log.storage, Path::new(ROOT), 9, true).unwrap_err();
    assert!(matches!(error, postroad_journal::JournalError::Locked { .. }), "{error}");
    assert!(verify(&log.storage, Path::new(ROOT)).unwrap().is_sound());
}

fn printed(disk: &SimStorage, from: u64) -> (Result<u64, String>, Vec<u64>) {
    let mut out = Vec::new();
    let count = cat(disk, Path::new(ROOT), from, &mut out).map_err(|e| e.to_string());
    let lines = std::str::from_utf8(&out).unwrap().lines();
    let seqs = lines.map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["s"].as_u64().unwrap());
    (count, seqs.collect())
}

#[test]
fn cat_prints_the_records_from_anywhere() {
    let log = log();
    let (count, seqs) = printed(&log.storage, 0);
    assert_eq!((count, seqs.len()), (Ok(log.records.len() as u64), log.records.len()));
    for from in 1..40 {
        let (_, seqs) = printed(&log.storage, from);
        let expected: Vec<u64> = log.records.iter().map(|r| r.seq).filter(|seq| *seq >= from).collect();
        assert_eq!(seqs, expected, "from {from}");
    }
    // Filler is not printed, a torn tail neither, and damage stops it with a name.
    let mut torn = log.files[3].1.clone();
    torn.truncate(torn.len() - 5);
    assert_eq!(printed(&log.damaged(3, &torn), 0).1.len(), log.records.len() - 1);
    let mut filled = log.files[3].1.clone();
    filled.extend([b'\n'; 5000]);
    assert_eq!(printed(&log.damaged(3, &filled), 0).1.len(), log.records.len());
    let mut bad = log.files[1].1.clone();
    bad[500] ^= 1;
    let (error, seqs) = printed(&log.damaged(1, &bad), 0);
    assert!(error.unwrap_err().contains("0000000002.jsonl is damaged at line"));
    assert!(seqs.len() > 12 && seqs.len() < 24);
}

#[test]
fn a_file_edited_by_hand_gets_its_checksums() {
    let log = log();
    let (path, bytes) = &log.files[1];
    let disk = log.storage.fork(1);
    assert_eq!(fix_crc(&disk, path).unwrap(), 0);
    let edited = String::from_utf8(bytes.clone()).unwrap().replace("xxxxx", "edited");
    let disk = log.damaged(1, edited.as_bytes());
    assert!(!verify(&disk, Path::new(ROOT)).unwrap().is_sound());
    let lines = bytes.split(|b| *b == b'\n').zip(edited.lines()).filter(|(a, b)| *a != b.as_bytes()).count();
    assert!(lines > 3);
    assert_eq!(fix_crc(&disk, path).unwrap(), lines as u64);
    assert_eq!(
        disk.read_durable(&PathBuf::from(format!("{}.damaged-1", path.display()))).unwrap(),
        edited.as_bytes()
    );
    // The lines are longer now, so the next segment does not fit; that is repaired without any loss.
    let report = repair(&disk, Path::new(ROOT), 9, true).unwrap();
    assert_eq!(report.journals[0].lost, []);
    let opened = log.setup.open(&disk).unwrap();
    assert_eq!(opened.logs[0].2.len(), log.records.len());
    assert!(opened.logs[0].2.iter().any(|r| r.content.contains("edited")));

    // What is no JSON is not blessed.
    let broken = edited.replacen("\"pad\"", "\"pad", 1);
    let disk = log.damaged(1, broken.as_bytes());
    assert!(fix_crc(&disk, path).unwrap_err().to_string().contains("no JSON"));
    assert_eq!(disk.read_file(path).unwrap(), broken.as_bytes());
}
