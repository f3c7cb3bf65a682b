//! Checking and printing the log files of a stopped (or running) broker.
//!
//! Nothing here changes a file; [`crate::repair`] does.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::{
    error::JournalError,
    record::RecordView,
    segment::{self, FILLER, Header},
    storage::{OpenMode, Storage, read_range},
    survey::{KeptKind, Names, journal_dirs, read, segment_names, split_header, survey, unfinished},
};

/// What [`verify`] found below a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Every log, by directory.
    pub journals: Vec<JournalReport>,
}

/// What [`verify`] found in one log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalReport {
    /// The directory of its segments.
    pub dir: PathBuf,
    /// Its name, from the newest segment whose header can be read.
    pub name: String,
    /// Segment files.
    pub segments: usize,
    /// Valid records, segment headers left out.
    pub records: u64,
    /// Messages among them.
    pub messages: u64,
    /// Bytes of all segment files, with space written ahead.
    pub bytes: u64,
    /// The first message that is there or declared lost; 0 if there is none.
    pub first: u64,
    /// The last one; 0 if there is none.
    pub last: u64,
    /// Messages that an earlier repair declared lost, as inclusive ranges.
    pub declared_lost: Vec<(u64, u64)>,
    /// What is wrong now, in file order.
    pub problems: Vec<Problem>,
    /// Files that recovery or repair kept aside.
    pub aside: Vec<PathBuf>,
}

/// One thing that is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The segment file.
    pub path: PathBuf,
    /// The line, from 1; 0 if the file as a whole is meant.
    pub line: u64,
    /// The byte offset of the line.
    pub offset: u64,
    /// How many bytes from there are meant.
    pub bytes: u64,
    /// What is wrong.
    pub kind: ProblemKind,
}

/// What can be wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The last write was cut short by a crash before it was acknowledged. The next start cuts it off and keeps it aside: no damage.
    TornTail,
    /// Bytes that are no valid record, and why.
    BadRecord(String),
    /// The segment header cannot be used, and why.
    BadHeader(String),
    /// These messages (inclusive) are not there.
    MissingMessages {
        /// The first of them.
        first: u64,
        /// The last of them.
        last: u64,
    },
    /// A valid record in the wrong place, such as a line that is there twice.
    OutOfOrder(String),
    /// The segment ends before the place where the next one says that its records end.
    MissingEnd,
    /// There is no file of this number between others.
    MissingFile,
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TornTail => {
                f.write_str("a write was cut short by a crash; the next start cuts it off (no damage)")
            }
            Self::BadRecord(what) | Self::BadHeader(what) | Self::OutOfOrder(what) => f.write_str(what),
            Self::MissingMessages { first, last } if first == last => write!(f, "message {first} is missing"),
            Self::MissingMessages { first, last } => write!(f, "messages {first} to {last} are missing"),
            Self::MissingEnd => f.write_str("the segment has lost its end"),
            Self::MissingFile => f.write_str("the file is missing"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} (byte {}): {}", self.path.display(), self.line, self.offset, self.kind)
    }
}

impl VerifyReport {
    /// True if every log would open. A torn tail is no damage.
    pub fn is_sound(&self) -> bool {
        self.journals.iter().all(JournalReport::is_sound)
    }
}

impl JournalReport {
    /// True if this log would open. A torn tail is no damage.
    pub fn is_sound(&self) -> bool {
        self.problems.iter().all(|p| p.kind == ProblemKind::TornTail)
    }
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for journal in &self.journals {
            let JournalReport { segments, records, messages, bytes, first, last, .. } = journal;
            let state = if journal.is_sound() { "sound" } else { "DAMAGED" };
            writeln!(
                f,
                "{}: {state}; {segments} files, {bytes} bytes, {records} records, {messages} messages ({first} to {last})",
                journal.dir.display()
            )?;
            for (first, last) in &journal.declared_lost {
                writeln!(f, "  messages {first} to {last} were lost before and are declared so")?;
            }
            for problem in &journal.problems {
                writeln!(f, "  {problem}")?;
            }
            for path in &journal.aside {
                writeln!(f, "  kept aside: {}", path.display())?;
            }
        }
        Ok(())
    }
}

/// Reads every segment of every log in `root` and the directories below it, and says what is wrong, as far as it can
/// be told: it goes on behind each bad record. Memory: the size of one segment.
///
/// A broker may be running; its last write can then look torn.
pub fn verify(storage: &dyn Storage, root: &Path) -> Result<VerifyReport, JournalError> {
    let mut report = VerifyReport::default();
    for dir in journal_dirs(storage, root)? {
        report.journals.push(verify_journal(storage, &dir)?);
    }
    Ok(report)
}

/// Prints the records of every log in `root` and below as they are, one a line, without headers and filler: those whose `s` is at
/// least `from`. Says how many. Stops with [`JournalError::Corrupt`] at damage; a torn tail is left out.
pub fn cat(
    storage: &dyn Storage,
    root: &Path,
    from: u64,
    out: &mut dyn io::Write,
) -> Result<u64, JournalError> {
    let mut printed = 0;
    let mut print = |path: &Path, view: &RecordView<'_>| {
        printed += 1;
        let line = out.write_all(view.line).and_then(|()| out.write_all(b"\n"));
        line.map_err(|error| JournalError::io("print", path, error))
    };
    records(storage, root, from, &mut print)?;
    Ok(printed)
}

/// Calls `each` with the records of every log in `root` and below, in order, without headers: those whose `s` is at least `from`;
/// with the file that each is in. Stops at the first error of `each`, and with [`JournalError::Corrupt`] at damage; a torn
/// tail is left out. A broker may be running: it can delete a segment meanwhile, which is an error of the kind
/// [`io::ErrorKind::NotFound`]. Memory: the size of one segment.
pub fn records(
    storage: &dyn Storage,
    root: &Path,
    from: u64,
    each: &mut dyn FnMut(&Path, &RecordView<'_>) -> Result<(), JournalError>,
) -> Result<(), JournalError> {
    for dir in journal_dirs(storage, root)? {
        let numbers = segment_names(storage, &dir)?.numbers;
        for (i, &number) in numbers.iter().enumerate() {
            let path = segment::path(&dir, number);
            // Whole segments before `from` need not be read, only the header of the next one.
            if let Some(&next) = numbers.get(i + 1)
                && header_of(storage, &segment::path(&dir, next))?.is_some_and(|header| header.base <= from)
            {
                continue;
            }
            let bytes = read(storage, &path)?;
            let is_last = i + 1 == numbers.len();
            let (header, len) = match split_header(&bytes, number) {
                Ok(header) => header,
                Err(_) if is_last && unfinished(&bytes) => continue,
                Err(what) => return Err(corrupt(&path, 1, 0, what)),
            };
            let mut failed = None;
            let scan = segment::scan(&bytes, len, header.salt, true, |view, _| {
                if view.seq >= from {
                    failed = each(&path, &view).err();
                }
                if failed.is_some() { Err(String::new()) } else { Ok(()) }
            });
            if let Some(error) = failed {
                return Err(error);
            }
            if let Some(damage) = scan.damage.filter(|damage| !(is_last && damage.torn)) {
                return Err(corrupt(&path, damage.line, damage.offset, damage.what));
            }
        }
    }
    Ok(())
}

fn header_of(storage: &dyn Storage, path: &Path) -> Result<Option<Header>, JournalError> {
    let io = |e| JournalError::io("read", path, e);
    let file = storage.open(path, OpenMode::Read).map_err(io)?;
    let bytes = read_range(&*file, 0, 64 << 10).map_err(io)?;
    Ok(memchr::memchr(FILLER, &bytes).and_then(|len| Header::decode(&bytes[..len]).ok()))
}

pub(crate) fn corrupt(path: &Path, line: u64, offset: u64, what: String) -> JournalError {
    JournalError::Corrupt { path: path.to_owned(), line, offset, what }
}

/// What the next segment must fit to.
struct Before {
    path: PathBuf,
    number: u64,
    next_seq: u64,
    end: u64,
    was: Option<u64>,
    lines: u64,
    /// Nothing is wrong with it so far.
    clean: bool,
}

fn verify_journal(storage: &dyn Storage, dir: &Path) -> Result<JournalReport, JournalError> {
    let Names { numbers, aside } = segment_names(storage, dir)?;
    let mut report =
        JournalReport { dir: dir.to_owned(), segments: numbers.len(), aside, ..JournalReport::default() };
    let mut before: Option<Before> = None;
    for (i, &number) in numbers.iter().enumerate() {
        let path = segment::path(dir, number);
        let bytes = read(storage, &path)?;
        let expected = before.as_ref().map(|b| b.next_seq);
        let survey = survey(&path, &bytes, number, expected, i + 1 == numbers.len());
        if let Some(before) = &before {
            let at = |path: PathBuf, line, offset, bytes, kind| Problem { path, line, offset, bytes, kind };
            if before.number + 1 < number {
                let missing = segment::path(dir, before.number + 1);
                report.problems.push(at(missing, 0, 0, 0, ProblemKind::MissingFile));
            } else if let Some(header) = &survey.header
                && before.clean
                && !fits(header.prev, before.end, before.was)
            {
                let lost = header.prev.saturating_sub(before.end);
                let path = before.path.clone();
                report.problems.push(at(path, before.lines + 1, before.end, lost, ProblemKind::MissingEnd));
            }
        }
        report.bytes += bytes.len() as u64;
        report.records += survey.kept.len() as u64;
        for kept in &survey.kept {
            let first = match kept.what {
                KeptKind::Message(seq) => {
                    report.messages += 1;
                    seq
                }
                KeptKind::Lost(first, last) => {
                    report.declared_lost.push((first, last));
                    first
                }
                KeptKind::Other(_) => continue,
            };
            if report.first == 0 {
                report.first = first;
            }
        }
        if report.first > 0 {
            report.last = survey.next_seq - 1;
        }
        if let Some(header) = &survey.header {
            report.name.clone_from(&header.name);
        }
        before = Some(Before {
            path,
            number,
            next_seq: survey.next_seq,
            end: survey.end,
            was: survey.was,
            lines: survey.lines,
            // Behind other damage the length says nothing new.
            clean: survey.problems.is_empty(),
        });
        report.problems.extend(survey.problems);
    }
    Ok(report)
}

/// Do the records before a segment end where it says, or did they before a repair?
pub(crate) fn fits(prev: u64, end: u64, was: Option<u64>) -> bool {
    prev == end || Some(prev) == was
}
