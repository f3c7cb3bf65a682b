//! Making a damaged log usable again without hiding what was lost.
//!
//! A damaged segment is copied to `….jsonl.damaged-N` and replaced by one with all its valid records. Messages that
//! are gone are declared by a `gap` record, so that sequences stay contiguous and everybody can see what is missing. A
//! `cut` record says where the records ended before, because the next segment says so too.
//!
//! Undamaged segments are not touched, and a torn tail is left to the next start.

use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
};

use crate::{
    error::JournalError,
    record,
    recovery::MAX_GAP,
    segment::{self, FILLER, Header},
    storage::{OpenMode, Storage},
    survey::{Kept, KeptKind, Survey, journal_dirs, read, segment_names, split_header, survey},
    verify::{Problem, ProblemKind, corrupt, fits},
};

/// What [`repair`] did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Every log that is damaged.
    pub journals: Vec<JournalRepair>,
    /// False if it was only a plan.
    pub applied: bool,
}

/// What [`repair`] did, or would do, with one log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalRepair {
    /// The directory of its segments.
    pub dir: PathBuf,
    /// Messages that could not be saved, as inclusive ranges. Ranges of earlier repairs are not among them.
    pub lost: Vec<(u64, u64)>,
    /// Everything that was wrong. A bad record that is no message (a settlement, say) has no number: it is only found here.
    pub problems: Vec<Problem>,
    /// Records saved from the segments that were rewritten.
    pub saved: u64,
    /// Each segment that was rewritten, with the copy of what it was. None for a file that was missing.
    pub rewritten: Vec<(PathBuf, Option<PathBuf>)>,
}

impl fmt::Display for RepairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wrote, keeps) = if self.applied { ("rewrote", "kept") } else { ("would rewrite", "keeping") };
        if self.journals.is_empty() {
            writeln!(f, "nothing to repair")?;
        }
        for journal in &self.journals {
            writeln!(f, "{}:", journal.dir.display())?;
            for problem in &journal.problems {
                writeln!(f, "  {problem}")?;
            }
            for (path, aside) in &journal.rewritten {
                write!(f, "  {wrote} {}", path.display())?;
                match aside {
                    Some(aside) => writeln!(f, "; {keeps} what it was as {}", aside.display())?,
                    None => writeln!(f, "; it was missing")?,
                }
            }
            for (first, last) in &journal.lost {
                writeln!(f, "  LOST: messages {first} to {last}")?;
            }
            writeln!(f, "  {} records saved from these files", journal.saved)?;
        }
        Ok(())
    }
}

/// Repairs every damaged log in `root` and below, at the time `now` (milliseconds since 1970); without `apply` only says what
/// it would do.
///
/// With `apply` the data directory must not be in use ([`JournalError::Locked`]). A crash at any moment leaves each segment
/// either as it was or repaired; running it again finishes the work. Needs the space of the damaged files twice.
pub fn repair(
    storage: &dyn Storage,
    root: &Path,
    now: u64,
    apply: bool,
) -> Result<RepairReport, JournalError> {
    let _lock = if apply {
        Some(storage.lock(root).map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => JournalError::Locked { path: root.to_owned() },
            _ => JournalError::io("lock", root, e),
        })?)
    } else {
        None
    };
    let mut report = RepairReport { journals: Vec::new(), applied: apply };
    for dir in journal_dirs(storage, root)? {
        let mut repair = Repair {
            storage,
            dir: &dir,
            now,
            apply,
            done: JournalRepair { dir: dir.clone(), ..JournalRepair::default() },
        };
        repair.run()?;
        if !repair.done.rewritten.is_empty() {
            report.journals.push(repair.done);
        }
    }
    Ok(report)
}

struct Repair<'a> {
    storage: &'a dyn Storage,
    dir: &'a Path,
    now: u64,
    apply: bool,
    done: JournalRepair,
}

/// The segment before the one at hand, as it is after the repair.
struct Before {
    next_seq: u64,
    end: u64,
    name: String,
}

impl Repair<'_> {
    fn run(&mut self) -> Result<(), JournalError> {
        let names = segment_names(self.storage, self.dir)?;
        let (Some(&first), Some(&last)) = (names.numbers.first(), names.numbers.last()) else {
            return Ok(());
        };
        if last - first > names.numbers.len() as u64 + 10_000 {
            let what = format!("more than 10000 segments are missing between {first} and {last}");
            return Err(corrupt(&segment::path(self.dir, first), 0, 0, what));
        }
        let mut before: Option<Before> = None;
        for number in first..=last {
            let path = segment::path(self.dir, number);
            let next = if number < last { self.header(number + 1)? } else { None };
            let found = names.numbers.binary_search(&number).is_ok();
            let bytes = if found { read(self.storage, &path)? } else { Vec::new() };
            let expected = before.as_ref().map(|b| b.next_seq);
            let mut survey = survey(&path, &bytes, number, expected, number == last);
            if !found {
                survey.problems = vec![problem(&path, 0, 0, ProblemKind::MissingFile)];
            }
            let fitting = next
                .as_ref()
                .is_none_or(|next| next.base <= survey.next_seq && fits(next.prev, survey.end, survey.was));
            if !fitting && survey.problems.is_empty() {
                survey.problems.push(problem(&path, survey.lines + 1, survey.end, ProblemKind::MissingEnd));
            }
            // A segment that was being made when a crash came is the business of the next start.
            let unfinished = survey.torn && survey.header.is_none();
            let damaged = survey.problems.iter().any(|p| p.kind != ProblemKind::TornTail);
            let result = if damaged && !unfinished {
                self.rewrite(&path, number, &bytes, found, &survey, before.as_ref(), next.as_ref())?
            } else {
                let name = survey.header.as_ref().map(|header| header.name.clone()).unwrap_or_default();
                Before { next_seq: survey.next_seq, end: survey.end, name }
            };
            self.done.problems.append(&mut survey.problems);
            before = Some(result);
        }
        Ok(())
    }

    /// The header of a segment, if it is there and can be read.
    fn header(&self, number: u64) -> Result<Option<Header>, JournalError> {
        match read(self.storage, &segment::path(self.dir, number)) {
            Ok(bytes) => Ok(split_header(&bytes, number).ok().map(|(header, _)| header)),
            Err(JournalError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    #[allow(clippy::too_many_arguments)] // One segment and its two neighbours.
    fn rewrite(
        &mut self,
        path: &Path,
        number: u64,
        bytes: &[u8],
        found: bool,
        survey: &Survey,
        before: Option<&Before>,
        next: Option<&Header>,
    ) -> Result<Before, JournalError> {
        let header = self.new_header(path, number, bytes, survey, before, next)?;
        let mut out = header.encode();
        let mut seq = header.base;
        for kept in in_order(bytes, survey) {
            let (first, after) = kept.what.span();
            if first < seq {
                // A second copy; reported as out of order. A range declared lost may reach further than what was found of it.
                if let KeptKind::Lost(..) = kept.what {
                    self.gap(path, &mut out, seq, after, header.salt)?;
                    seq = seq.max(after);
                }
                continue;
            }
            if next.is_some_and(|next| after > next.base) {
                let what = format!(
                    "a record of message {} in front of a segment that begins at it or before",
                    after - 1
                );
                self.done.problems.push(problem(path, 0, kept.offset as u64, ProblemKind::OutOfOrder(what)));
                continue;
            }
            self.gap(path, &mut out, seq, first, header.salt)?;
            out.extend_from_slice(&bytes[kept.offset..kept.offset + kept.len]);
            out.push(FILLER);
            seq = after;
            self.done.saved += 1;
        }
        if let Some(next) = next {
            self.gap(path, &mut out, seq, next.base, header.salt)?;
            seq = seq.max(next.base);
            let begin = record::start(&mut out, seq - 1, self.now, "cut", false);
            record::push_number_field(&mut out, "was", next.prev);
            record::finish(&mut out, begin, header.salt);
        }
        let aside = if found { Some(free_name(self.storage, path)?) } else { None };
        if self.apply {
            replace(self.storage, path, aside.as_deref().map(|aside| (aside, bytes)), &out)?;
        }
        self.done.rewritten.push((path.to_owned(), aside));
        Ok(Before { next_seq: seq, end: out.len() as u64, name: header.name })
    }

    fn new_header(
        &self,
        path: &Path,
        number: u64,
        bytes: &[u8],
        survey: &Survey,
        before: Option<&Before>,
        next: Option<&Header>,
    ) -> Result<Header, JournalError> {
        let old = survey.header.as_ref();
        let base = match (before, old) {
            (Some(before), _) => before.next_seq,
            (None, Some(old)) => old.base,
            // The first segment that is kept, with a header that cannot be read: its remains may say where it begins.
            (None, None) => {
                let kept = in_order(bytes, survey).first().map(|kept| kept.what.span().0);
                let limit = kept.or_else(|| next.map(|next| next.base));
                let named = number_after(bytes, b"\"base\":").filter(|base| *base > 0);
                let Some(base) = named.filter(|base| limit.is_none_or(|limit| *base <= limit)).or(limit)
                else {
                    let what = "neither its header nor a record can be read; nothing can be saved from it";
                    return Err(corrupt(path, 1, 0, what.into()));
                };
                base
            }
        };
        let name = old
            .map(|old| &old.name)
            .or_else(|| before.map(|b| &b.name))
            .or_else(|| next.map(|next| &next.name));
        let Some(name) = name.cloned().or_else(|| name_in(bytes)) else {
            return Err(corrupt(path, 1, 0, "the name of the log cannot be read from any header".into()));
        };
        // A salt of its own for a file that has no lines: any value that is not its neighbours' will do.
        let made_up = || record::checksum(number as u32, format!("{name} {number} {}", self.now).as_bytes());
        Ok(Header {
            number,
            base,
            prev: match (old, before) {
                (Some(old), _) => old.prev,
                (None, Some(before)) => before.end,
                (None, None) => 0,
            },
            salt: survey.salt.unwrap_or_else(made_up),
            name,
            time: old.map_or(self.now, |old| old.time),
        })
    }

    /// Declares the messages from `from` up to but without `to` lost.
    fn gap(
        &mut self,
        path: &Path,
        out: &mut Vec<u8>,
        from: u64,
        to: u64,
        salt: u32,
    ) -> Result<(), JournalError> {
        if from >= to {
            return Ok(());
        }
        if to - from > MAX_GAP {
            let what = format!("messages {from} to {} are missing, more than can be declared lost", to - 1);
            return Err(corrupt(path, 0, 0, what));
        }
        let begin = record::start(out, from - 1, self.now, "gap", false);
        record::push_number_field(out, "first", from);
        record::push_number_field(out, "last", to - 1);
        record::finish(out, begin, salt);
        match self.done.lost.last_mut() {
            Some((_, last)) if *last + 1 == from => *last = to - 1,
            _ => self.done.lost.push((from, to - 1)),
        }
        Ok(())
    }
}

/// Puts a right checksum on every line of a segment file that was edited by hand, and says how many lines that were. What the file
/// was is kept as `….damaged-N`.
///
/// Only lines that are JSON and end as a record does are touched; anything else is an error and changes nothing. That the
/// numbers fit together is for [`crate::verify::verify`] to say. The broker must be stopped.
pub fn fix_crc(storage: &dyn Storage, path: &Path) -> Result<u64, JournalError> {
    let bytes = read(storage, path)?;
    let mut out = Vec::with_capacity(bytes.len());
    let (mut fixed, mut salt, mut offset) = (0, 0, 0);
    for (i, line) in bytes.split(|b| *b == FILLER).enumerate() {
        let at = offset;
        offset += line.len() as u64 + 1;
        // Blank lines are what editors leave; they are no records.
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let wrong = |what: &str| corrupt(path, i as u64 + 1, at, what.to_owned());
        if !record::has_tail(line) {
            return Err(wrong(
                "the line does not end with a checksum; write any, such as ,\"c\":\"00000000\"}",
            ));
        }
        serde_json::from_slice::<serde::de::IgnoredAny>(line).map_err(|e| wrong(&format!("no JSON: {e}")))?;
        let begin = out.len();
        out.extend_from_slice(&line[..line.len() - record::TAIL_LEN]);
        record::finish(&mut out, begin, salt);
        fixed += u64::from(!record::verify(line, salt));
        if begin == 0 {
            salt = Header::decode(&out[..out.len() - 1]).map_err(|what| wrong(&what))?.salt;
        }
    }
    if fixed == 0 {
        return Ok(0);
    }
    let aside = free_name(storage, path)?;
    replace(storage, path, Some((&aside, &bytes)), &out)?;
    Ok(fixed)
}

/// Puts `new` in the place of `path` in one step, with a durable copy of what it was made first.
fn replace(
    storage: &dyn Storage,
    path: &Path,
    aside: Option<(&Path, &[u8])>,
    new: &[u8],
) -> Result<(), JournalError> {
    let dir = path.parent().unwrap_or(path);
    let sync = || storage.sync_dir(dir).map_err(|e| JournalError::io("sync", dir, e));
    if let Some((aside, old)) = aside {
        write_new(storage, aside, old)?;
        sync()?;
    }
    let fresh = PathBuf::from(format!("{}.new", path.display()));
    match storage.remove(&fresh) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(JournalError::io("remove", &fresh, e));
        }
        _ => {}
    }
    write_new(storage, &fresh, new)?;
    storage.rename(&fresh, path).map_err(|e| JournalError::io("rename", &fresh, e))?;
    sync()
}

/// `path.damaged-N` with the first N that is free.
fn free_name(storage: &dyn Storage, path: &Path) -> Result<PathBuf, JournalError> {
    let dir = path.parent().unwrap_or(path);
    let taken = storage.list(dir).map_err(|e| JournalError::io("list", dir, e))?;
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // One more name than there are files: one is free.
    let names = (1..=taken.len() + 1).map(|n| format!("{file}.damaged-{n}"));
    let free = names.into_iter().find(|name| taken.iter().all(|e| e.name != *name));
    Ok(dir.join(free.unwrap_or(file)))
}

fn write_new(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<(), JournalError> {
    let file = storage.open(path, OpenMode::Create).map_err(|e| JournalError::io("create", path, e))?;
    file.write_at(bytes, 0).map_err(|e| JournalError::io("write", path, e))?;
    file.sync_all().map_err(|e| JournalError::io("sync", path, e))
}

fn problem(path: &Path, line: u64, offset: u64, kind: ProblemKind) -> Problem {
    Problem { path: path.to_owned(), line, offset, bytes: 0, kind }
}

/// The records of a segment in the order of their numbers. Where nothing is out of order that is the order of the file.
fn in_order<'a>(bytes: &[u8], survey: &'a Survey) -> Vec<&'a Kept> {
    let mut all: Vec<&Kept> = survey.kept.iter().collect();
    if !survey.strays.is_empty() {
        all.extend(&survey.strays);
        all.sort_by_key(|kept| (kept.what.span(), kept.offset));
        let mut seen = HashSet::new();
        all.retain(|kept| seen.insert(&bytes[kept.offset..kept.offset + kept.len]));
    }
    all
}

/// The first line, where the remains of a header are.
fn first_line(bytes: &[u8]) -> &[u8] {
    &bytes[..memchr::memchr(FILLER, bytes).unwrap_or(bytes.len())]
}

fn number_after(bytes: &[u8], key: &[u8]) -> Option<u64> {
    let line = first_line(bytes);
    let rest = &line[memchr::memmem::find(line, key)? + key.len()..];
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

fn name_in(bytes: &[u8]) -> Option<String> {
    let line = first_line(bytes);
    let rest = &line[memchr::memmem::find(line, b"\"name\":")? + 7..];
    serde_json::Deserializer::from_slice(rest).into_iter::<String>().next()?.ok()
}
