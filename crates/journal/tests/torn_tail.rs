//! A write that a crash cut short: at every byte, with everything that can be behind the cut.

mod common;

use std::path::PathBuf;

use common::{Record, Run, Setup, Step};
use postroad_journal::{JournalError, Planted, Recovery, storage::SimStorage};

const RECORDS: usize = 40;

/// One log of 40 records in one segment; where each record ends, and the bytes.
struct Log {
    setup: Setup,
    storage: SimStorage,
    path: PathBuf,
    bytes: Vec<u8>,
    /// The end of the header and of each record.
    ends: Vec<usize>,
    records: Vec<Record>,
    run: Run,
}

/// With `group` records in each commit.
fn log(setup: Setup, group: usize) -> Log {
    let setup = Setup { segment_bytes: 8 << 10, ..setup };
    let storage = SimStorage::new(1);
    let mut run = Run::new(&setup, &storage);
    let mut steps = Vec::new();
    for i in 0..RECORDS / group {
        for j in 0..group {
            steps.push(match (i + j) % 5 {
                4 => Step::Mark { log: 0 },
                _ => Step::Publish { log: 0, sizes: vec![(i * 7 + j) % 23] },
            });
        }
        steps.push(Step::Commit);
    }
    run.run(&steps).unwrap();
    let (path, bytes) = common::segments(&storage, &setup.dir(0)).remove(0);
    let used = bytes.iter().rposition(|b| *b != b'\n').unwrap() + 2;
    let ends: Vec<usize> = (0..used).filter(|i| bytes[*i] == b'\n').map(|i| i + 1).collect();
    assert_eq!(ends.len(), RECORDS + 1);
    let records = run.models[0].appended.iter().map(|(record, _)| record.clone()).collect();
    Log { setup, storage, path, bytes, ends, records, run }
}

impl Log {
    /// Opens the log with these bytes; what came back.
    fn with(&self, bytes: &[u8]) -> (SimStorage, Result<(Recovery, Vec<Record>), JournalError>) {
        let disk = self.storage.fork(1);
        disk.put_file(&self.path, bytes).unwrap();
        let outcome = self.setup.open(&disk).map(|mut opened| {
            let (_, recovery, records) = opened.logs.remove(0);
            (recovery, records)
        });
        (disk, outcome)
    }

    /// The end of the last record that ends at or before `cut`.
    fn whole(&self, cut: usize) -> usize {
        self.ends.iter().rposition(|end| *end <= cut).expect("behind the header")
    }

    /// What must hold when the first bytes are as they were and no other valid record follows.
    fn check(&self, bytes: &[u8]) -> Result<(), String> {
        // What replaced the tail may begin as the tail did.
        let cut = self.bytes.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        let (disk, outcome) = self.with(bytes);
        let (recovery, records) = outcome.map_err(|e| format!("cannot be opened: {e}"))?;
        let whole = self.whole(cut);
        if records != self.records[..whole] {
            return Err(format!("{} records instead of {whole}", records.len()));
        }
        let rest = &bytes[self.ends[whole]..];
        let useful = rest.iter().rposition(|b| *b != b'\n' && *b != 0).map_or(0, |at| at + 1);
        match &recovery.torn {
            Some(kept) => {
                let kept = disk.read_durable(kept).map_err(|e| format!("the cut bytes are gone: {e}"))?;
                if kept != rest[..useful] {
                    return Err("the cut bytes were kept wrongly".into());
                }
            }
            None if useful > 0 => return Err("bytes were cut and nobody was told".into()),
            None => {}
        }
        // The costly part at every byte near the border of a record, and at some in between.
        if cut % 8 == 0 || self.ends.iter().any(|end| end.abs_diff(cut) <= 2) {
            self.append_and_reopen(&disk, whole)?;
        }
        Ok(())
    }

    /// By chance old data can fit all but one byte. Then it looks like a byte that changed, and is refused as damage.
    fn is_one_byte_off(&self, bytes: &[u8]) -> bool {
        let Some(cut) = self.bytes.iter().zip(bytes).position(|(a, b)| a != b) else { return false };
        let Some(&end) = self.ends.get(self.whole(cut) + 1) else { return false };
        bytes.len() >= end && self.bytes[cut + 1..end] == bytes[cut + 1..end]
    }

    fn append_and_reopen(&self, disk: &SimStorage, whole: usize) -> Result<(), String> {
        let mut run = self.run.reborn(disk);
        for model in &mut run.models {
            model.committed = 0;
        }
        run.open().map_err(|e| e.to_string())??;
        run.run(&[Step::Publish { log: 0, sizes: vec![9] }, Step::Commit]).map_err(|e| e.to_string())?;
        let expected: Vec<Record> = run.models[0].appended.iter().map(|(record, _)| record.clone()).collect();
        disk.crash(postroad_journal::storage::CrashMode::DropUnsynced);
        let opened = self.setup.open(disk).map_err(|e| format!("after an append: {e}"))?;
        if opened.logs[0].2 != expected || expected.len() != whole + 1 {
            return Err("the appended record was glued to the torn one".into());
        }
        Ok(())
    }
}

type Fill = fn(&Log, usize) -> Vec<u8>;

/// What can be behind the cut.
const FILLS: [(&str, Fill); 6] = [
    ("nothing", |_, _| Vec::new()),
    ("NULs", |log, cut| vec![0; log.bytes.len() - cut]),
    ("newlines", |log, cut| vec![b'\n'; log.bytes.len() - cut]),
    ("garbage", |log, cut| {
        let mut rng = fastrand::Rng::with_seed(cut as u64);
        std::iter::repeat_with(|| rng.u8(..)).take(log.bytes.len() - cut).collect()
    }),
    ("garbage and NULs", |log, cut| {
        let mut tail = vec![0xA5; (log.bytes.len() - cut) / 2];
        tail.resize(log.bytes.len() - cut, 0);
        tail
    }),
    // A recycled block: lines of another segment, whole and valid there.
    ("old data", |log, cut| {
        let old: Vec<u8> = other_segment();
        old[cut.min(old.len())..]
            .iter()
            .copied()
            .chain(b"\n\n\n".iter().copied())
            .take(log.bytes.len() - cut)
            .collect()
    }),
];

fn other_segment() -> Vec<u8> {
    static OLD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    OLD.get_or_init(|| {
        // The second roll of a run has another salt.
        let storage = SimStorage::new(2);
        let setup = Setup { segment_bytes: 8 << 10, ..Setup::default() };
        let mut run = Run::new(&setup, &storage);
        run.run(&[Step::Publish { log: 0, sizes: vec![1] }, Step::Commit, Step::Roll { log: 0 }]).unwrap();
        for _ in 0..60 {
            run.run(&[Step::Publish { log: 0, sizes: vec![13] }, Step::Commit]).unwrap();
        }
        common::segments(&storage, &setup.dir(0)).pop().unwrap().1
    })
    .clone()
}

fn every_cut(log: &Log, step: usize) {
    let start = log.ends[0];
    let end = *log.ends.last().unwrap();
    for (what, fill) in FILLS {
        // Every byte around the borders of records, every `step`th in between.
        for cut in
            (start..=end).filter(|cut| cut % step == 0 || log.ends.iter().any(|e| cut.abs_diff(*e) <= 3))
        {
            let mut bytes = log.bytes[..cut].to_vec();
            bytes.extend(fill(log, cut));
            if log.is_one_byte_off(&bytes) {
                continue;
            }
            log.check(&bytes).unwrap_or_else(|e| panic!("cut at {cut}, then {what}: {e}"));
        }
    }
}

#[test]
fn truncated_and_overwritten_at_every_byte() {
    every_cut(&log(Setup::default(), 1), 1);
}

#[test]
fn truncated_and_overwritten_inside_a_commit_of_many() {
    every_cut(&log(Setup::default(), 10), 13);
}

#[test]
fn truncated_and_overwritten_with_space_written_ahead() {
    every_cut(&log(Setup { preallocate: true, ..Setup::default() }, 4), 17);
}

#[test]
fn a_segment_whose_header_was_never_finished_is_set_aside() {
    let setup = Setup::default();
    let storage = SimStorage::new(1);
    let mut run = Run::new(&setup, &storage);
    run.run(&[
        Step::Publish { log: 0, sizes: vec![5, 5] },
        Step::Commit,
        Step::Roll { log: 0 },
        Step::Commit,
    ])
    .unwrap();
    let (path, bytes) = common::segments(&storage, &setup.dir(0)).pop().unwrap();
    let header = bytes.iter().position(|b| *b == b'\n').unwrap();
    for cut in 0..=header {
        for zeros in [0, 700] {
            let disk = storage.fork(1);
            let mut torn = bytes[..cut].to_vec();
            torn.resize(cut + zeros, 0);
            disk.put_file(&path, &torn).unwrap();
            let mut again = run.reborn(&disk);
            again.open().unwrap_or_else(|e| panic!("header cut at {cut}: {e}")).unwrap();
            let torn_file = again.opened.as_ref().unwrap().logs[0].1.torn.clone().expect("reported");
            assert_eq!(disk.read_durable(&torn_file).unwrap(), torn);
            again
                .run(&[Step::Roll { log: 0 }, Step::Publish { log: 0, sizes: vec![5] }, Step::Commit])
                .unwrap();
            disk.crash(postroad_journal::storage::CrashMode::DropUnsynced);
            let mut last = again.reborn(&disk);
            last.open().unwrap().unwrap();
            assert_eq!(last.models[0].appended.len(), 3);
        }
    }
}

/// Loses each sector of the last commit, whose records have these sizes, behind a record of `pad` bytes.
fn lose_each_sector(preallocate: bool, pad: usize, sizes: &[usize]) {
    let setup = Setup { preallocate, segment_bytes: 8 << 10, ..Setup::default() };
    let storage = SimStorage::new(1);
    let mut run = Run::new(&setup, &storage);
    run.run(&[Step::Publish { log: 0, sizes: vec![pad] }, Step::Commit]).unwrap();
    let (path, before) = common::segments(&storage, &setup.dir(0)).remove(0);
    run.run(&[Step::Publish { log: 0, sizes: sizes.to_vec() }, Step::Commit]).unwrap();
    let after = storage.read_file(&path).unwrap();
    let filler = if preallocate { b'\n' } else { 0 };
    let used = before.iter().rposition(|b| *b != b'\n').unwrap() + 2;
    let end = after.iter().rposition(|b| *b != b'\n').unwrap() + 2;
    for sector in used / 512..=(end - 1) / 512 {
        let mut bytes = after.clone();
        let lost = used.max(sector * 512)..bytes.len().min((sector + 1) * 512);
        bytes[lost].fill(filler);
        let disk = storage.fork(1);
        disk.put_file(&path, &bytes).unwrap();
        let opened = setup.open(&disk).unwrap_or_else(|e| panic!("pad {pad}, sector {sector}: {e}"));
        let count = opened.logs[0].2.len();
        assert!(count > 0 && (count <= sizes.len() || bytes[..end] == after[..end]), "pad {pad}: {count}");
    }
}

#[test]
fn a_lost_sector_inside_the_last_commit_is_a_torn_tail() {
    for preallocate in [false, true] {
        lose_each_sector(preallocate, 10, &[60; 15]);
        // With the commit beginning, and ending, at every place in a sector.
        for pad in 0..512 {
            lose_each_sector(preallocate, pad, &[0]);
        }
        for pad in (0..512).step_by(11) {
            lose_each_sector(preallocate, pad, &[1, 300, 40]);
        }
    }
}

#[test]
fn catches_a_torn_tail_that_is_not_cut() {
    let planted = Planted { glue_on_torn_tail: true, ..Planted::default() };
    let log = log(Setup { planted, ..Setup::default() }, 1);
    let cut = log.ends[20] + 30;
    let error = log.check(&log.bytes[..cut]).expect_err("the planted defect was not caught");
    assert!(!error.is_empty());
}
