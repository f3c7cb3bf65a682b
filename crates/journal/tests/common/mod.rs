//! A log with a model beside it: what was appended, what was reported committed, and the check after a crash.
#![allow(dead_code, unreachable_pub, clippy::unused_self)] // Each test file uses its part.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use postroad_journal::{
    Committer, CommitterOptions, Journal, JournalError, JournalOptions, PayloadKind, Planted, Publish,
    RecordView, Recovery, Ticket,
    record::TAIL_LEN,
    storage::{SimStorage, Storage},
};

pub const ROOT: &str = "/data";

/// What the log should do and how.
#[derive(Clone, Debug)]
pub struct Setup {
    pub logs: usize,
    pub segment_bytes: u64,
    pub preallocate: bool,
    pub disk_floor: u64,
    pub planted: Planted,
}

impl Default for Setup {
    fn default() -> Self {
        Self { logs: 1, segment_bytes: 1500, preallocate: false, disk_floor: 0, planted: Planted::default() }
    }
}

impl Setup {
    pub fn committer(&self) -> CommitterOptions {
        CommitterOptions {
            disk_floor: self.disk_floor,
            preallocate: self.preallocate,
            // Readers must come from the disk.
            tail_cache_bytes: 0,
            planted: self.planted,
            ..CommitterOptions::default()
        }
    }

    pub fn dir(&self, log: usize) -> PathBuf {
        Path::new(ROOT).join(format!("log{log}"))
    }

    pub fn journal(&self, log: usize) -> JournalOptions {
        JournalOptions { name: format!("log{log}"), segment_bytes: self.segment_bytes }
    }

    /// Opens everything; the records of each log in order.
    pub fn open(&self, storage: &SimStorage) -> Result<Opened, JournalError> {
        let committer = Committer::open(Arc::new(storage.clone()), Path::new(ROOT), self.committer())?;
        let mut opened = Opened { committer, logs: Vec::new() };
        for log in 0..self.logs {
            let mut records = Vec::new();
            let (journal, recovery) =
                Journal::open(&opened.committer, &self.dir(log), self.journal(log), &mut |view| {
                    records.push(describe(view)?);
                    Ok(())
                })?;
            opened.logs.push((journal, recovery, records));
        }
        Ok(opened)
    }
}

pub struct Opened {
    pub committer: Arc<Committer>,
    pub logs: Vec<(Journal, Recovery, Vec<Record>)>,
}

/// A record, as the model and the log both know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub seq: u64,
    pub kind: String,
    /// What the owner of the log put in.
    pub content: String,
}

pub fn describe(view: &RecordView<'_>) -> Result<Record, String> {
    let line = std::str::from_utf8(view.line).map_err(|e| e.to_string())?;
    if view.kind == "gap" {
        return Ok(Record { seq: view.seq, kind: "gap".into(), content: String::new() });
    }
    let key = if view.kind == "pub" { ",\"e\":" } else { ",\"x\":" };
    let start = line.find(key).ok_or("no content")? + key.len();
    let content = line[start..line.len() - TAIL_LEN].to_owned();
    Ok(Record { seq: view.seq, kind: view.kind.to_owned(), content })
}

/// The payload number `n`, of about `size` bytes; every one is different.
pub fn payload(n: u64, size: usize) -> Vec<u8> {
    format!("{{\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(size)).into_bytes()
}

pub fn publish(payload: &[u8], priority: i64) -> Publish<'_> {
    Publish { priority, id: None, subject: None, headers: None, kind: PayloadKind::Json, payload }
}

/// One step of a workload.
#[derive(Clone, Debug)]
pub enum Step {
    /// Messages of these sizes in one go.
    Publish {
        log: usize,
        sizes: Vec<usize>,
    },
    /// The same, and nobody asks for a sync.
    Buffered {
        log: usize,
        sizes: Vec<usize>,
    },
    /// What is written is synced.
    Sync,
    /// A record that is no message.
    Mark {
        log: usize,
    },
    Commit,
    Roll {
        log: usize,
    },
    /// Trims all whole segments before this fraction (in 256ths) of what is there.
    Trim {
        log: usize,
        fraction: u8,
    },
    /// Clean shutdown and start.
    Restart,
}

/// What one log must hold.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub appended: Vec<(Record, Ticket)>,
    /// How many of those were reported committed.
    pub committed: usize,
    /// How many of those were reported written.
    pub written: usize,
    /// Messages before this one may be gone.
    pub trimmed: u64,
}

impl Model {
    /// The recovered records must be what was appended, without a hole, from at most the trimmed place to at least the committed one.
    pub fn check(&self, recovered: &[Record]) -> Result<(), String> {
        let all: Vec<&Record> = self.appended.iter().map(|(record, _)| record).collect();
        // Trimming takes whole segments, so the first one kept begins anywhere up to the first message that had to stay.
        let latest = all.iter().position(|r| r.seq >= self.trimmed).unwrap_or(all.len());
        let start = match recovered.first() {
            Some(first) => {
                all.iter().position(|r| *r == first).ok_or_else(|| format!("{first:?} was never appended"))?
            }
            None if self.committed <= latest => return Ok(()),
            None => return Err(format!("empty, but {} records were committed", self.committed)),
        };
        if start > latest || (self.trimmed == 0 && start > 0) {
            return Err(format!("begins at record {start}, but only {latest} were trimmed"));
        }
        let end = start + recovered.len();
        if end > all.len() || all[start..end].iter().zip(recovered).any(|(a, b)| *a != b) {
            return Err(format!("records {start}..{end} are not what was appended"));
        }
        if end < self.committed {
            return Err(format!("ends at record {end}, but {} were committed", self.committed));
        }
        Ok(())
    }
}

/// A workload being run.
pub struct Run {
    pub setup: Setup,
    pub storage: SimStorage,
    pub opened: Option<Opened>,
    pub models: Vec<Model>,
    pub now: u64,
    counter: u64,
}

impl Run {
    pub fn new(setup: &Setup, storage: &SimStorage) -> Self {
        Self {
            setup: setup.clone(),
            storage: storage.clone(),
            opened: None,
            models: vec![Model::default(); setup.logs],
            now: 1_700_000_000_000,
            counter: 0,
        }
    }

    /// Opens what is there and checks it against the models.
    pub fn open(&mut self) -> Result<Result<(), String>, JournalError> {
        let opened = self.setup.open(&self.storage)?;
        let mut result = Ok(());
        for (model, (_, _, records)) in self.models.iter_mut().zip(&opened.logs) {
            let checked = model.check(records);
            result = result.and(checked);
            // What is served counts as committed from here on, and what is not there never will be.
            let ends = records.last().and_then(|last| model.appended.iter().position(|(r, _)| r == last));
            model.appended.truncate(ends.map_or(0, |at| at + 1));
            model.committed = model.appended.len();
            model.written = model.committed;
            for (_, ticket) in &mut model.appended {
                *ticket = Ticket(0);
            }
        }
        self.opened = Some(opened);
        Ok(result)
    }

    fn journal(&self, log: usize) -> &Journal {
        &self.opened.as_ref().expect("open").logs[log].0
    }

    fn roll_if_full(&mut self, log: usize) {
        if self.journal(log).wants_roll() {
            self.roll(log);
        }
    }

    fn roll(&mut self, log: usize) {
        self.counter += 1;
        // Any salt will do; the same run always has the same.
        self.journal(log).roll(self.now, (self.counter as u32).wrapping_mul(0x9e37_79b9));
    }

    /// Notes what the committer says is committed.
    pub fn note(&mut self) {
        let Some(opened) = &self.opened else { return };
        let (done, written) = (opened.committer.committed(), opened.committer.written());
        assert!(done <= written);
        for model in &mut self.models {
            let up_to = |done| model.appended.iter().take_while(|(_, ticket)| *ticket <= done).count();
            let (committed, written) = (up_to(done), up_to(written));
            model.committed = model.committed.max(committed);
            model.written = model.written.max(written);
        }
    }

    pub fn step(&mut self, step: &Step) -> Result<(), JournalError> {
        self.now += 7;
        let result = self.try_step(step);
        self.note();
        result
    }

    fn try_step(&mut self, step: &Step) -> Result<(), JournalError> {
        match step {
            Step::Publish { log, sizes } | Step::Buffered { log, sizes } => {
                self.roll_if_full(*log);
                let payloads: Vec<Vec<u8>> = sizes
                    .iter()
                    .map(|size| {
                        self.counter += 1;
                        payload(self.counter, *size)
                    })
                    .collect();
                let journal = self.journal(*log).clone();
                let mut writer = journal.writer(self.now);
                if matches!(step, Step::Buffered { .. }) {
                    writer = writer.buffered();
                }
                for payload in payloads {
                    let seq = writer.publish(&publish(&payload, 0));
                    let content = String::from_utf8(payload).expect("text");
                    let record = Record { seq, kind: "pub".into(), content };
                    self.models[*log].appended.push((record, writer.ticket()));
                }
            }
            Step::Mark { log } => {
                self.roll_if_full(*log);
                self.counter += 1;
                let text = format!("mark {}", self.counter);
                let journal = self.journal(*log).clone();
                let mut writer = journal.writer(self.now);
                writer.record("mark", |out| postroad_journal::record::push_text_field(out, "x", &text));
                let content = serde_json::Value::from(text).to_string();
                let record = Record { seq: writer.last_seq(), kind: "mark".into(), content };
                self.models[*log].appended.push((record, writer.ticket()));
            }
            Step::Commit => {
                let committer = self.opened.as_ref().expect("open").committer.clone();
                while committer.commit_now()? {}
            }
            Step::Sync => drop(self.opened.as_ref().expect("open").committer.sync_now()?),
            Step::Roll { log } => self.roll(*log),
            Step::Trim { log, fraction } => {
                let stats = self.journal(*log).stats();
                let seq = stats.first
                    + (stats.committed + 1).saturating_sub(stats.first) * u64::from(*fraction) / 256;
                self.models[*log].trimmed = self.models[*log].trimmed.max(seq);
                self.journal(*log).trim(seq)?;
            }
            Step::Restart => {
                self.try_step(&Step::Commit)?;
                self.try_step(&Step::Sync)?;
                self.note();
                for (journal, ..) in &self.opened.as_ref().expect("open").logs {
                    journal.close()?;
                }
                self.opened = None;
                self.open()?.expect("a clean restart loses nothing");
            }
        }
        Ok(())
    }

    /// Opens and runs the steps until one fails.
    pub fn run(&mut self, steps: &[Step]) -> Result<(), JournalError> {
        if self.opened.is_none() {
            self.open()?.expect("an empty log is fine");
        }
        steps.iter().try_for_each(|step| self.step(step))
    }

    /// A second life of the same log on another disk: same models, nothing open.
    pub fn reborn(&self, storage: &SimStorage) -> Self {
        Self {
            setup: self.setup.clone(),
            storage: storage.clone(),
            opened: None,
            models: self.models.clone(),
            now: self.now + 1000,
            counter: self.counter + 1000,
        }
    }
}

/// A workload with everything in it, small enough to try every crash point.
pub fn workload(logs: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for round in 0..4 {
        for log in 0..logs {
            steps.push(Step::Publish { log, sizes: vec![10, 300, 40] });
            if round % 2 == 0 {
                steps.push(Step::Mark { log });
            }
        }
        steps.push(Step::Commit);
        steps.push(Step::Publish { log: 0, sizes: vec![700] });
        steps.push(Step::Commit);
        if round == 1 {
            steps.push(Step::Roll { log: 0 });
            steps.push(Step::Mark { log: 0 });
        }
        if round == 2 {
            steps.push(Step::Trim { log: 0, fraction: 250 });
            steps.push(Step::Restart);
        }
    }
    steps.push(Step::Mark { log: 0 });
    steps.push(Step::Publish { log: 0, sizes: vec![5, 5] });
    steps.push(Step::Commit);
    steps.push(Step::Publish { log: 0, sizes: vec![90, 1200] });
    steps
}

/// The same where only every third group of messages asks to be synced.
pub fn buffered_workload(logs: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for (at, step) in workload(logs).into_iter().enumerate() {
        match step {
            Step::Publish { log, sizes } if at % 3 > 0 => {
                steps.push(Step::Buffered { log, sizes: sizes.clone() });
                steps.push(Step::Commit);
                if at % 2 == 0 {
                    steps.push(Step::Buffered { log, sizes });
                }
            }
            Step::Roll { .. } => steps.extend([Step::Sync, step]),
            step => steps.push(step),
        }
    }
    // Larger than a sector, so that a disk can lose one of them and keep the next.
    for size in [700, 900, 30, 1100, 600] {
        steps.extend([Step::Buffered { log: logs - 1, sizes: vec![size] }, Step::Commit]);
    }
    steps.extend([Step::Publish { log: 0, sizes: vec![40] }, Step::Commit]);
    steps
}

/// As [`check_after_crash`], for a crash that may have been the death of the process alone: then what was written is
/// there, too.
pub fn check_after(
    run: &Run,
    disk: &SimStorage,
    mode: postroad_journal::storage::CrashMode,
) -> Result<(), String> {
    let mut run = run.reborn(disk);
    if mode == postroad_journal::storage::CrashMode::KeepAll {
        run.models.iter_mut().for_each(|model| model.committed = model.committed.max(model.written));
    }
    check_after_crash(&run, disk)
}

/// Opens the log after a crash, checks it, appends one record, loses power, and checks again: what was served and what was
/// committed since must still be there.
pub fn check_after_crash(run: &Run, disk: &SimStorage) -> Result<(), String> {
    use postroad_journal::storage::CrashMode;
    let mut again = run.reborn(disk);
    again.open().map_err(|e| format!("cannot open after the crash: {e}"))??;
    let step = Step::Publish { log: 0, sizes: vec![20] };
    again.run(&[step, Step::Commit]).map_err(|e| format!("cannot go on after the crash: {e}"))?;
    disk.crash(CrashMode::DropUnsynced);
    let mut last = again.reborn(disk);
    last.open()
        .map_err(|e| format!("cannot open the second time: {e}"))?
        .map_err(|e| format!("second time: {e}"))
}

/// The error if it is one of damage.
pub fn corrupt(error: &JournalError) -> Option<(&Path, u64, u64)> {
    match error {
        JournalError::Corrupt { path, line, offset, .. } => Some((path, *line, *offset)),
        _ => None,
    }
}

/// The segment files of a log, as they are now.
pub fn segments(storage: &SimStorage, dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    storage
        .list(dir)
        .unwrap()
        .into_iter()
        .filter(|e| postroad_journal::segment::parse_file_name(&e.name).is_some())
        .map(|e| {
            let path = dir.join(e.name);
            let bytes = storage.read_file(&path).unwrap();
            (path, bytes)
        })
        .collect()
}

/// The line of byte `at`, from 1.
pub fn line_of(bytes: &[u8], at: usize) -> u64 {
    bytes[..at].split(|b| *b == b'\n').count() as u64
}
