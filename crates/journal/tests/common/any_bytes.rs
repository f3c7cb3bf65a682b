//! What must hold for any bytes at all as segment files. Shared by the property tests and the fuzz target.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use postroad_journal::{
    Committer, CommitterOptions, Journal, JournalError, JournalOptions, PayloadKind, Publish,
    record::{self, TAIL_LEN},
    repair::{fix_crc, repair},
    segment::{self, Header},
    storage::{CrashMode, SimStorage},
    verify::{cat, verify},
};

const ROOT: &str = "/data";

type Lines = Vec<(u64, String, Vec<u8>)>;

fn open(storage: &SimStorage) -> Result<(Arc<Committer>, Journal, Lines), JournalError> {
    let options = CommitterOptions { disk_floor: 0, preallocate: false, ..CommitterOptions::default() };
    let committer = Committer::open(Arc::new(storage.clone()), Path::new(ROOT), options)?;
    let mut lines = Vec::new();
    let options = JournalOptions { name: "log".into(), segment_bytes: 1 << 20 };
    let (journal, _) = Journal::open(&committer, &dir(), options, &mut |view| {
        lines.push((view.seq, view.kind.to_owned(), view.line.to_vec()));
        Ok(())
    })?;
    Ok((committer, journal, lines))
}

fn dir() -> PathBuf {
    Path::new(ROOT).join("log")
}

/// Puts right checksums on lines that end as a record does, and a header with the right number first.
fn bless(bytes: &[u8], number: u64, base: u64, prev: u64) -> Vec<u8> {
    let header = Header { number, base, prev, salt: 77, name: "log".into(), time: 1 };
    let mut out = header.encode();
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let body = line.strip_suffix(b"\n").unwrap_or(line);
        if record::has_tail(body) {
            let body = &body[..body.len() - TAIL_LEN];
            out.extend_from_slice(body);
            out.extend_from_slice(format!(",\"c\":\"{:08x}\"}}\n", record::checksum(77, body)).as_bytes());
        } else {
            out.extend_from_slice(line);
        }
    }
    out
}

/// `data`: the first byte says whether checksums and headers are made right; 0xFF separates segment files.
pub(crate) fn check(data: &[u8]) {
    let Some((&mode, data)) = data.split_first() else { return };
    let storage = SimStorage::new(1);
    let dir = dir();
    postroad_journal::storage::Storage::create_dir_all(&storage, &dir).unwrap();
    let mut files = Vec::new();
    let mut prev = 0;
    let mut base = 1;
    for (i, part) in data.split(|b| *b == 0xFF).take(3).enumerate() {
        let number = i as u64 + 1;
        let bytes = if mode & 1 == 0 { part.to_vec() } else { bless(part, number, base, prev) };
        prev = bytes.len() as u64;
        base += bytes.windows(9).filter(|w| w == b"\"k\":\"pub\"").count() as u64;
        storage.put_file(&segment::path(&dir, number), &bytes).unwrap();
        files.push(bytes);
    }
    let report = verify(&storage, Path::new(ROOT)).unwrap();
    let _ = cat(&storage, Path::new(ROOT), u64::from(mode), &mut std::io::sink());
    let _ = fix_crc(&storage.fork(1), &segment::path(&dir, 1));

    let opened = open(&storage.fork(1));
    assert_eq!(report.is_sound(), opened.is_ok(), "{report}\n{:?}", opened.err());
    match opened {
        Ok(_) => go_on(&storage, &files),
        Err(error) => {
            assert!(matches!(error, JournalError::Corrupt { .. }), "{error}");
            let fixed = storage.fork(2);
            match repair(&fixed, Path::new(ROOT), 5, true) {
                Ok(done) => {
                    let report = verify(&fixed, Path::new(ROOT)).unwrap();
                    assert!(report.is_sound(), "{done}\n{report}");
                    go_on(&fixed, &files);
                }
                Err(error) => assert!(matches!(error, JournalError::Corrupt { .. }), "{error}"),
            }
        }
    }
}

/// The log opens: it shows nothing that is not in the files, and can be read and written.
fn go_on(storage: &SimStorage, files: &[Vec<u8>]) {
    let (committer, journal, lines) = open(storage).unwrap();
    for (_, kind, line) in &lines {
        let there = files.iter().any(|file| file.windows(line.len()).any(|w| w == line));
        assert!(there || kind == "gap", "{}", String::from_utf8_lossy(line));
    }
    let messages: Vec<u64> =
        lines.iter().filter(|(_, kind, _)| kind == "pub").map(|(seq, ..)| *seq).collect();
    assert!(messages.is_sorted_by(|a, b| a < b));
    let stats = journal.stats();
    for seq in messages.iter().chain([&0, &stats.first, &stats.last, &(stats.last + 1)]) {
        match journal.read(*seq) {
            Ok(event) => assert_eq!(event.is_some(), messages.contains(seq)),
            Err(error) => assert!(matches!(error, JournalError::Corrupt { .. }), "{error}"),
        }
    }
    if journal.wants_roll() {
        journal.roll(2, 3);
    }
    let publish = Publish {
        priority: 0,
        id: None,
        subject: None,
        headers: None,
        kind: PayloadKind::Json,
        payload: b"1",
    };
    let seq = journal.writer(3).publish(&publish);
    assert_eq!(seq, stats.last + 1);
    committer.commit_now().unwrap();
    drop((committer, journal));
    storage.crash(CrashMode::DropUnsynced);
    let (_, _, again) = open(storage).unwrap();
    assert_eq!(again[..lines.len()], lines);
    assert_eq!((again.len(), again[lines.len()].0), (lines.len() + 1, seq));
}
