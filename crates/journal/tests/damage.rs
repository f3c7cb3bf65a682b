//! Bytes that changed after they were durable: an error that names file and line, never fewer records in silence.

mod common;

use std::path::PathBuf;

use common::{Record, Run, Setup, Step, corrupt};
use postroad_journal::{
    JournalError, Planted, Recovery,
    storage::{SimStorage, Storage},
};

struct Log {
    setup: Setup,
    storage: SimStorage,
    files: Vec<(PathBuf, Vec<u8>)>,
    records: Vec<Record>,
}

/// Three segments with everything in them. The last record of each is committed alone or with others.
fn log(setup: Setup, steps_per_segment: usize) -> Log {
    let setup = Setup { segment_bytes: 8 << 10, ..setup };
    let storage = SimStorage::new(1);
    let mut run = Run::new(&setup, &storage);
    let mut steps = Vec::new();
    for segment in 0..3 {
        if segment > 0 {
            steps.push(Step::Roll { log: 0 });
        }
        for i in 0..steps_per_segment {
            steps.push(Step::Publish { log: 0, sizes: vec![3 + i, 40, 11] });
            steps.push(Step::Mark { log: 0 });
            if i % 2 == 1 {
                steps.push(Step::Commit);
            }
        }
        steps.push(Step::Commit);
    }
    run.run(&steps).unwrap();
    let files = common::segments(&storage, &setup.dir(0));
    assert_eq!(files.len(), 3);
    let records = run.models[0].appended.iter().map(|(record, _)| record.clone()).collect();
    Log { setup, storage, files, records }
}

impl Log {
    fn with(&self, file: usize, bytes: &[u8]) -> Result<(Recovery, Vec<Record>), JournalError> {
        let disk = self.storage.fork(1);
        disk.put_file(&self.files[file].0, bytes).unwrap();
        self.setup.open(&disk).map(|mut opened| {
            let (_, recovery, records) = opened.logs.remove(0);
            (recovery, records)
        })
    }

    fn used(&self, file: usize) -> usize {
        self.files[file].1.iter().rposition(|b| *b != b'\n').unwrap() + 2
    }

    /// The line of byte `at`, from 1.
    fn line(&self, file: usize, at: usize) -> u64 {
        common::line_of(&self.files[file].1, at)
    }

    fn flips(&self, file: usize) -> impl Iterator<Item = (usize, Vec<u8>)> + '_ {
        let bytes = &self.files[file].1;
        (0..self.used(file)).flat_map(move |at| {
            [1 << (at % 8), 0xFF, bytes[at] ^ b'\n'].into_iter().filter(|mask| *mask != 0).map(move |mask| {
                let mut flipped = bytes.clone();
                flipped[at] ^= mask;
                (at, flipped)
            })
        })
    }

    /// A flip in a sealed segment must be an error at the line that changed.
    fn check_sealed(&self, file: usize) -> Result<(), String> {
        for (at, bytes) in self.flips(file) {
            match self.with(file, &bytes) {
                Ok((_, records)) => return Err(format!("byte {at}: opened, with {} records", records.len())),
                Err(error) => match corrupt(&error) {
                    None => return Err(format!("byte {at}: {error}")),
                    Some((path, line, _)) if path != self.files[file].0 || line != self.line(file, at) => {
                        return Err(format!("byte {at} of line {}: {error}", self.line(file, at)));
                    }
                    Some(_) => {}
                },
            }
        }
        Ok(())
    }
}

#[test]
fn a_flip_at_any_byte_of_a_sealed_segment_names_file_and_line() {
    let log = log(Setup::default(), 3);
    log.check_sealed(0).unwrap();
    log.check_sealed(1).unwrap();
}

#[test]
fn a_flip_in_the_last_segment_is_damage_unless_a_crash_explains_it() {
    for preallocate in [false, true] {
        let log = log(Setup { preallocate, ..Setup::default() }, 2);
        let bytes = &log.files[2].1;
        let used = log.used(2);
        let last_line = 1 + bytes[..used - 1].iter().rposition(|b| *b == b'\n').unwrap();
        for (at, flipped) in log.flips(2) {
            match log.with(2, &flipped) {
                Err(error) => {
                    let (path, line, _) = corrupt(&error).unwrap_or_else(|| panic!("byte {at}: {error}"));
                    assert_eq!((path, line), (&*log.files[2].0, log.line(2, at)), "byte {at}: {error}");
                }
                Ok((recovery, records)) => {
                    // Only what looks like the middle of a write: the last line without its end. And it is told.
                    // A changed byte anywhere else is told from that by what it does to the checksum.
                    assert!(
                        at >= used - 17,
                        "byte {at} of {last_line}..{used}: opened, {} records",
                        records.len()
                    );
                    assert!(recovery.torn.is_some(), "byte {at}: nobody was told");
                    assert_eq!(records, log.records[..log.records.len() - 1], "byte {at}");
                }
            }
        }
    }
}

#[test]
fn a_cut_sealed_segment_is_damage_at_every_byte() {
    let log = log(Setup::default(), 3);
    let bytes = &log.files[1].1;
    for cut in 0..log.used(1) {
        match log.with(1, &bytes[..cut]) {
            Ok((_, records)) => {
                panic!("cut at {cut}: opened, {} of {} records", records.len(), log.records.len())
            }
            Err(error) => assert!(corrupt(&error).is_some(), "cut at {cut}: {error}"),
        }
    }
}

#[test]
fn a_wiped_end_of_a_sealed_segment_is_damage_at_every_byte() {
    let log = log(Setup::default(), 3);
    let bytes = &log.files[1].1;
    for with in [0, b'\n', b' '] {
        for from in (0..log.used(1) - 1).step_by(3) {
            let mut wiped = bytes.clone();
            wiped[from..].fill(with);
            match log.with(1, &wiped) {
                Ok((_, records)) => {
                    panic!("wiped from {from}: opened, {} of {} records", records.len(), log.records.len());
                }
                Err(error) => assert!(corrupt(&error).is_some(), "wiped from {from}: {error}"),
            }
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let log = log(Setup::default(), 2);
    let disk = log.storage.fork(1);
    disk.remove(&log.files[1].0).unwrap();
    let error = log.setup.open(&disk).err().expect("a segment is missing");
    assert_eq!(corrupt(&error).unwrap().0, log.files[1].0);
}

#[test]
fn files_that_were_swapped_or_copied_are_noticed() {
    let log = log(Setup::default(), 2);
    for (to, from) in [(1, 0), (0, 1), (2, 1), (1, 2), (2, 0)] {
        let error = log.with(to, &log.files[from].1).expect_err("another segment's bytes");
        assert_eq!(corrupt(&error).unwrap().0, log.files[to].0);
    }
}

#[test]
fn lines_that_were_moved_doubled_or_removed_are_noticed() {
    let log = log(Setup::default(), 3);
    let bytes = &log.files[1].1;
    let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    let open = |lines: &[&[u8]]| log.with(1, &lines.concat());
    for i in 1..lines.len() {
        let mut doubled = lines.clone();
        doubled.insert(i, lines[i]);
        assert!(corrupt(&open(&doubled).unwrap_err()).is_some(), "line {i} twice");
        let mut removed = lines.clone();
        removed.remove(i);
        assert!(corrupt(&open(&removed).unwrap_err()).is_some(), "line {i} removed");
        if i + 1 < lines.len() {
            let mut swapped = lines.clone();
            swapped.swap(i, i + 1);
            assert!(corrupt(&open(&swapped).unwrap_err()).is_some(), "lines {i} and the next swapped");
        }
    }
}

#[test]
fn a_flip_is_noticed_when_a_message_is_read_too() {
    let log = log(Setup::default(), 2);
    let disk = log.storage.fork(1);
    let opened = log.setup.open(&disk).unwrap();
    let journal = &opened.logs[0].0;
    let stats = journal.stats();
    let whole: Vec<_> = (stats.first..=stats.last).map(|seq| journal.read(seq).unwrap().unwrap()).collect();
    for (path, bytes) in &log.files {
        for at in (0..bytes.len()).step_by(5) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            // The open file sees it, as it sees a disk that forgets.
            disk.put_file(path, &flipped).unwrap();
            for (i, expected) in whole.iter().enumerate() {
                match journal.read(stats.first + i as u64) {
                    Ok(event) => assert_eq!(event.as_ref(), Some(expected), "byte {at}"),
                    Err(error) => assert!(corrupt(&error).is_some(), "byte {at}: {error}"),
                }
            }
        }
        disk.put_file(path, bytes).unwrap();
    }
}

#[test]
fn catches_a_checksum_that_is_not_checked() {
    let planted = Planted { no_crc_check: true, ..Planted::default() };
    let log = log(Setup { planted, ..Setup::default() }, 2);
    let why = log.check_sealed(0).expect_err("the planted defect was not caught");
    assert!(why.contains("opened"), "{why}");
}

#[test]
fn a_flip_in_the_header_of_a_last_segment_with_one_record_loses_nothing_in_silence() {
    let setup = Setup { segment_bytes: 8 << 10, ..Setup::default() };
    let storage = SimStorage::new(1);
    let mut run = Run::new(&setup, &storage);
    run.run(&[
        Step::Publish { log: 0, sizes: vec![5; 4] },
        Step::Commit,
        Step::Roll { log: 0 },
        Step::Commit,
    ])
    .unwrap();
    for (records, trimmed) in [(4, false), (5, false), (5, true), (4, true)] {
        let disk = storage.fork(1);
        let mut run = run.reborn(&disk);
        run.open().unwrap().unwrap();
        if records == 5 {
            run.run(&[Step::Publish { log: 0, sizes: vec![5] }, Step::Commit]).unwrap();
        }
        if trimmed {
            let (journal, ..) = &run.opened.as_ref().unwrap().logs[0];
            assert_eq!(journal.trim(5).unwrap(), 5);
        }
        let (path, bytes) = common::segments(&disk, &setup.dir(0)).pop().unwrap();
        let header = bytes.iter().position(|b| *b == b'\n').unwrap();
        for at in 0..=header {
            for mask in [1 << (at % 8), 0xFF] {
                let mut flipped = bytes.clone();
                flipped[at] ^= mask;
                let damaged = disk.fork(1);
                damaged.put_file(&path, &flipped).unwrap();
                match setup.open(&damaged) {
                    Err(error) => assert!(corrupt(&error).is_some(), "byte {at}: {error}"),
                    Ok(opened) => {
                        let (journal, _, recovered) = &opened.logs[0];
                        assert_eq!((recovered.len(), records), (4, 4), "byte {at}: fewer records");
                        assert_eq!(journal.stats().last, 4, "byte {at}: the sequence began anew");
                    }
                }
            }
        }
    }
}
