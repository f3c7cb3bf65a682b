//! Reading what is left of a damaged log, going on behind every bad place.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    error::JournalError,
    record::{self, RecordView},
    recovery::{parse_cut, parse_gap},
    segment::{self, FILLER, Header},
    storage::{OpenMode, Storage, read_range},
    syndrome,
    verify::{Problem, ProblemKind},
};

/// How many directories deep logs are looked for.
const MAX_DEPTH: usize = 16;
/// What a blank line between records is called.
const BLANK: &str = "a blank line between records";

/// The directories with segment files in `root` and below.
pub(crate) fn journal_dirs(storage: &dyn Storage, root: &Path) -> Result<Vec<PathBuf>, JournalError> {
    let mut found = Vec::new();
    let mut open = vec![(root.to_owned(), 0)];
    while let Some((dir, depth)) = open.pop() {
        let entries = storage.list(&dir).map_err(|e| JournalError::io("list", &dir, e))?;
        if entries.iter().any(|e| !e.is_dir && segment::parse_file_name(&e.name).is_some()) {
            found.push(dir.clone());
        }
        if depth < MAX_DEPTH {
            open.extend(entries.iter().filter(|e| e.is_dir).map(|e| (dir.join(&e.name), depth + 1)));
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) struct Names {
    pub(crate) numbers: Vec<u64>,
    pub(crate) aside: Vec<PathBuf>,
}

pub(crate) fn segment_names(storage: &dyn Storage, dir: &Path) -> Result<Names, JournalError> {
    let entries = storage.list(dir).map_err(|e| JournalError::io("list", dir, e))?;
    let files = || entries.iter().filter(|e| !e.is_dir);
    let mut numbers: Vec<u64> = files().filter_map(|e| segment::parse_file_name(&e.name)).collect();
    numbers.sort_unstable();
    let aside = files().filter(|e| e.name.contains(".jsonl.torn-") || e.name.contains(".jsonl.damaged-"));
    Ok(Names { numbers, aside: aside.map(|e| dir.join(&e.name)).collect() })
}

pub(crate) fn read(storage: &dyn Storage, path: &Path) -> Result<Vec<u8>, JournalError> {
    let io = |e| JournalError::io("read", path, e);
    let file = storage.open(path, OpenMode::Read).map_err(io)?;
    let len = usize::try_from(file.len().map_err(io)?).unwrap_or(usize::MAX);
    read_range(&*file, 0, len).map_err(io)
}

/// The header and its length.
pub(crate) fn split_header(bytes: &[u8], number: u64) -> Result<(Header, usize), String> {
    let len = memchr::memchr(FILLER, bytes).ok_or("the header has no end")?;
    let header = Header::decode(&bytes[..len])?;
    if header.number == number {
        Ok((header, len + 1))
    } else {
        Err("the segment has another file's name".into())
    }
}

/// True if a segment was being made when a crash came: there is nothing in it that was ever a record.
pub(crate) fn unfinished(bytes: &[u8]) -> bool {
    bytes.len() < 64 << 10 && !bytes.split(|b| *b == FILLER).any(|l| record::has_tail(l) && !l.contains(&0))
}

/// A segment as far as it can be read.
pub(crate) struct Survey {
    /// Its header, if that can be read.
    pub(crate) header: Option<Header>,
    /// The salt of its records, if the header says it or they agree on it.
    pub(crate) salt: Option<u32>,
    /// The valid records in the right order.
    pub(crate) kept: Vec<Kept>,
    /// Valid records behind others that should come later.
    pub(crate) strays: Vec<Kept>,
    pub(crate) problems: Vec<Problem>,
    /// Where the records end; filler and a torn tail are left out.
    pub(crate) end: u64,
    /// Where they ended before a repair, if there was one.
    pub(crate) was: Option<u64>,
    /// The last write was torn by a crash.
    pub(crate) torn: bool,
    /// The message that follows.
    pub(crate) next_seq: u64,
    /// Lines read, the header too.
    pub(crate) lines: u64,
}

/// A valid record: where it is in the file (without LF), and what it is.
pub(crate) struct Kept {
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) what: KeptKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeptKind {
    Message(u64),
    /// Messages declared lost.
    Lost(u64, u64),
    /// Another record; the message before it.
    Other(u64),
}

impl KeptKind {
    /// The first message that may stand before it no more, and the one that must follow.
    pub(crate) fn span(self) -> (u64, u64) {
        match self {
            Self::Message(seq) => (seq, seq.saturating_add(1)),
            Self::Lost(first, last) => (first, last.saturating_add(1)),
            Self::Other(seq) => (seq.saturating_add(1), seq.saturating_add(1)),
        }
    }
}

/// Reads one segment. `expected` is the first message that should be in it, if known.
pub(crate) fn survey(path: &Path, bytes: &[u8], number: u64, expected: Option<u64>, is_last: bool) -> Survey {
    let mut reading = Reading {
        path,
        bytes,
        survey: Survey {
            header: None,
            salt: None,
            kept: Vec::new(),
            strays: Vec::new(),
            problems: Vec::new(),
            end: 0,
            was: None,
            torn: false,
            next_seq: expected.unwrap_or(1),
            lines: 0,
        },
        salt: 0,
        at: 0,
        len: 0,
    };
    match split_header(bytes, number) {
        Ok((header, len)) => reading.header(header, len, expected),
        Err(_) if is_last && (number == 1 || expected.is_some()) && unfinished(bytes) => {
            reading.survey.lines = 1;
            reading.len = bytes.len();
            reading.survey.torn = true;
            reading.problem(ProblemKind::TornTail);
            return reading.survey;
        }
        Err(what) => reading.bad_header(what),
    }
    // The same judgement as at a start: what a crash explains is no damage.
    let torn_at = if is_last && reading.survey.header.is_some() {
        let scan = segment::scan(bytes, reading.at, reading.salt, true, |_, _| Ok(()));
        scan.damage.filter(|damage| damage.torn).map(|damage| damage.offset as usize)
    } else {
        None
    };
    reading.lines(torn_at);
    reading.survey
}

struct Reading<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    survey: Survey,
    salt: u32,
    // The line being looked at, without its LF.
    at: usize,
    len: usize,
}

impl Reading<'_> {
    fn problem(&mut self, kind: ProblemKind) {
        let bytes = (self.len + 1).min(self.bytes.len() - self.at) as u64;
        let (line, offset) = (self.survey.lines, self.at as u64);
        self.survey.problems.push(Problem { path: self.path.to_owned(), line, offset, bytes, kind });
    }

    fn bad(&mut self, what: &str) {
        self.problem(ProblemKind::BadRecord(what.to_owned()));
    }

    fn header(&mut self, header: Header, len: usize, expected: Option<u64>) {
        self.survey.lines = 1;
        self.len = len - 1;
        let first = expected.unwrap_or(header.base);
        if header.base > first {
            self.problem(ProblemKind::MissingMessages { first, last: header.base - 1 });
        } else if header.base < first {
            let what = format!("the segment begins at {}, {first} was expected", header.base);
            self.problem(ProblemKind::OutOfOrder(what));
        }
        self.survey.next_seq = header.base.max(first);
        self.salt = header.salt;
        self.survey.salt = Some(header.salt);
        self.survey.header = Some(header);
        self.at = len;
        self.survey.end = len as u64;
    }

    fn bad_header(&mut self, what: String) {
        self.survey.lines = 1;
        let line = memchr::memchr(FILLER, self.bytes).unwrap_or(self.bytes.len());
        self.len = line;
        self.problem(ProblemKind::BadHeader(what));
        // Without the salt no line verifies, but it follows from the lines.
        self.survey.salt = guess_salt(self.bytes);
        self.salt = self.survey.salt.unwrap_or(0);
        // A record may be glued to the header whose LF is gone.
        if let Some(skip) = segment::valid_end(&self.bytes[..line], self.salt).filter(|skip| *skip > 0)
            && line < self.bytes.len()
        {
            self.place(skip, line - skip);
        }
        self.at = (line + 1).min(self.bytes.len());
        self.survey.end = self.at as u64;
    }

    fn lines(&mut self, torn_at: Option<usize>) {
        while self.at < self.bytes.len() {
            let rest = &self.bytes[self.at..];
            let len = memchr::memchr(FILLER, rest);
            self.len = len.unwrap_or(rest.len());
            if rest[..self.len].iter().all(|b| *b == 0) && rest.iter().all(|b| *b == FILLER || *b == 0) {
                break;
            }
            self.survey.lines += 1;
            if torn_at == Some(self.at) {
                self.survey.torn = true;
                self.len = rest.len();
                self.problem(ProblemKind::TornTail);
                break;
            }
            self.line(len.is_some());
            self.at += (self.len + 1).min(rest.len());
            self.survey.end = self.at as u64;
        }
    }

    fn line(&mut self, has_end: bool) {
        let line = &self.bytes[self.at..self.at + self.len];
        if line.iter().all(|b| *b == 0) {
            // A run of blank lines is one problem.
            match self.survey.problems.last_mut() {
                Some(Problem { offset, bytes, kind: ProblemKind::BadRecord(what), .. })
                    if what == BLANK && *offset + *bytes == self.at as u64 =>
                {
                    *bytes += self.len as u64 + 1;
                }
                _ => self.bad(BLANK),
            }
        } else if !has_end {
            self.bad("the line has no end");
        } else if record::verify(line, self.salt) {
            self.place(self.at, self.len);
        } else if let Some(skip) = segment::valid_end(line, self.salt) {
            // The rest of a damaged line has a whole one glued behind it.
            self.bad("damaged bytes in front of a record");
            self.place(self.at + skip, self.len - skip);
        } else if syndrome::one_byte_off(line, self.salt) {
            self.bad("the checksum does not match: one byte has changed");
        } else {
            self.bad("the checksum does not match");
        }
    }

    /// A verified line: is it where it should be?
    fn place(&mut self, offset: usize, len: usize) {
        let Some(view) = RecordView::parse(&self.bytes[offset..offset + len]) else {
            return self.bad("the line is no record");
        };
        let (first, last, what) = match view.kind {
            "pub" if view.publish_key().is_some() => (view.seq, view.seq, KeptKind::Message(view.seq)),
            "gap" => match parse_gap(&view) {
                Ok((first, last)) => (first, last, KeptKind::Lost(first, last)),
                Err(what) => return self.bad(&what),
            },
            "pub" | "seg" => {
                let what = format!("a record of kind {} that does not belong here", view.kind);
                return self.problem(ProblemKind::OutOfOrder(what));
            }
            "cut" => {
                self.survey.was = parse_cut(&view);
                return;
            }
            _ => (view.seq.saturating_add(1), view.seq, KeptKind::Other(view.seq)),
        };
        let expected = self.survey.next_seq;
        if first < expected || first == 0 {
            let text = format!("a record of message {} where {expected} was expected", view.seq);
            self.survey.strays.push(Kept { offset, len, what });
            return self.problem(ProblemKind::OutOfOrder(text));
        }
        if first > expected {
            self.problem(ProblemKind::MissingMessages { first: expected, last: first - 1 });
        }
        self.survey.next_seq = last.saturating_add(1);
        self.survey.kept.push(Kept { offset, len, what });
    }
}

/// The salt under which lines of a segment verify whose header cannot be read: named by its remains and confirmed by a
/// line, or agreed on by two lines.
fn guess_salt(bytes: &[u8]) -> Option<u32> {
    let mut lines = bytes.split(|b| *b == FILLER);
    let named = lines.next().and_then(|line| {
        let at = memchr::memmem::find(line, b"\"salt\":\"")? + 8;
        let digits = std::str::from_utf8(line.get(at..at + 8)?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    });
    let mut votes: BTreeMap<u32, u32> = BTreeMap::new();
    // A thousand lines are enough, and bound the memory.
    for salt in bytes.split(|b| *b == FILLER).filter_map(syndrome::salt_of).take(1000) {
        *votes.entry(salt).or_default() += if Some(salt) == named { 2 } else { 1 };
    }
    votes.into_iter().filter(|(_, votes)| *votes >= 2).max_by_key(|(_, votes)| *votes).map(|(salt, _)| salt)
}
