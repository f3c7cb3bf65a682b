//! Opening a log: read every record, decide what damage means, and make sure that what is served is durable.

use crate::committer::Committer;
use crate::error::JournalError;
use crate::journal::{Journal, JournalOptions, LOST, Segment};
use crate::record::RecordView;
use crate::segment::{self, Damage, FILLER, Header};
use crate::storage::{OpenMode, StorageFile};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What opening a log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Segment files read.
    pub segments: usize,
    /// Records read, of every kind.
    pub records: u64,
    /// Messages among them.
    pub messages: u64,
    /// Bytes of records.
    pub bytes: u64,
    /// A write that was never acknowledged was cut off: where its bytes are kept now.
    pub torn: Option<PathBuf>,
    /// The time of the newest record, milliseconds since 1970.
    pub last_time: u64,
}

/// Messages that one `gap` may declare lost; each costs 4 bytes of memory.
pub(crate) const MAX_GAP: u64 = 1 << 26;

#[derive(serde::Deserialize)]
struct CutFields {
    was: u64,
}

#[derive(serde::Deserialize)]
struct GapFields {
    first: u64,
    last: u64,
}

impl Journal {
    /// Opens (or starts) the log in `dir`. `fold` gets every record in order, segment headers left out; it may refuse
    /// one with a reason, which is corruption.
    ///
    /// A log without segments has no place to append to yet: [`Journal::wants_roll`] is true, call [`Journal::roll`].
    pub fn open(
        committer: &Arc<Committer>,
        dir: &Path,
        options: JournalOptions,
        fold: &mut dyn FnMut(&RecordView<'_>) -> Result<(), String>,
    ) -> Result<(Self, Recovery), JournalError> {
        // Of an earlier opening of the same log.
        committer.finish_removals(dir);
        let storage = &committer.storage;
        let entries = match storage.list(dir) {
            // A new log: its directory is made by the first commit, so that whoever asks for it need not wait for the disk.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(|e| JournalError::io("list", dir, e))?,
        };
        let numbers: Vec<u64> =
            entries.iter().filter(|e| !e.is_dir).filter_map(|e| segment::parse_file_name(&e.name)).collect();
        let mut recovery = Recovery::default();
        let mut segments: VecDeque<Segment> = VecDeque::new();
        let mut buffer = Vec::new();
        let mut before_lines = 0;
        // Where the records of the segment before ended until a repair.
        let mut was = None;
        for (i, &number) in numbers.iter().enumerate() {
            let path = segment::path(dir, number);
            if i > 0 && numbers[i - 1] + 1 != number {
                let missing = segment::path(dir, numbers[i - 1] + 1);
                return Err(corrupt(&missing, 0, 0, "the file is missing"));
            }
            let is_last = i + 1 == numbers.len();
            let mode = if is_last { OpenMode::Write } else { OpenMode::Read };
            let file = storage.open(&path, mode).map_err(|e| JournalError::io("open", &path, e))?;
            read_all(&*file, &path, &mut buffer)?;
            // The disk reads the next one while this one is checked.
            if let Some(next) = numbers.get(i + 1)
                && let Ok(next) = storage.open(&segment::path(dir, *next), OpenMode::Read)
            {
                next.prefetch();
            }
            let Some((header, header_len)) =
                read_header(&buffer, &path, number, is_last && (i > 0 || number == 1))?
            else {
                // The crash came before the header was durable: no record was ever written.
                recovery.torn = set_aside_file(committer, dir, &path)?;
                continue;
            };
            if let Some(before) = segments.back()
                && !crate::verify::fits(header.prev, before.end, was)
            {
                let what = format!("the records end here, the next segment says at byte {}", header.prev);
                return Err(corrupt(&before.path, before_lines + 1, before.end, &what));
            }
            let expected = segments.back().map_or(header.base, Segment::next_seq);
            if header.base != expected {
                let what = format!("the segment begins at {}, {expected} was expected", header.base);
                return Err(corrupt(&path, 1, 0, &what));
            }
            let mut segment = Segment::new(dir, header);
            recovery.last_time = recovery.last_time.max(segment.header.time);
            let check = !committer.options.planted.no_crc_check;
            let mut last_commit = header_len as u64;
            was = None;
            let scan = segment::scan(&buffer, header_len, segment.header.salt, check, |view, offset| {
                recovery.records += 1;
                recovery.last_time = recovery.last_time.max(view.time);
                if view.commit_start {
                    last_commit = offset;
                }
                if view.kind == "cut" {
                    was = parse_cut(&view);
                    return Ok(());
                }
                index(&mut segment, &view, offset)?;
                recovery.messages += u64::from(view.kind == "pub");
                fold(&view)
            });
            before_lines = scan.lines;
            segment.end = scan.end;
            segment.allocated = buffer.len() as u64;
            recovery.segments += 1;
            recovery.bytes += scan.end;
            if let Some(damage) = &scan.damage
                && !(is_last && damage.torn)
            {
                return Err(corrupt(&path, damage.line, damage.offset, &damage.what));
            }
            if is_last {
                write_again(&segment, &*file, &buffer, header_len, last_commit)?;
                settle_tail(committer, &mut segment, &*file, &buffer, scan.damage.as_ref(), &mut recovery)?;
            }
            segment.created = true;
            segments.push_back(segment);
        }
        // Names that a crash left un-synced must not vanish under what is served from them.
        if !entries.is_empty() {
            storage.sync_dir(dir).map_err(|e| JournalError::io("sync", dir, e))?;
        }
        let last_time = recovery.last_time;
        let journal = Self::assemble(committer.clone(), dir.to_owned(), options, segments, last_time);
        Ok((journal, recovery))
    }
}

/// The messages, inclusive, that a `gap` declares lost.
pub(crate) fn parse_gap(view: &RecordView<'_>) -> Result<(u64, u64), String> {
    let gap: GapFields = serde_json::from_slice(view.line).map_err(|e| e.to_string())?;
    if gap.first == 0 || gap.last < gap.first || gap.last - gap.first >= MAX_GAP {
        return Err(format!("a gap from {} to {}", gap.first, gap.last));
    }
    Ok((gap.first, gap.last))
}

/// Where the records of a segment ended before it was repaired, as its `cut` says.
pub(crate) fn parse_cut(view: &RecordView<'_>) -> Option<u64> {
    serde_json::from_slice::<CutFields>(view.line).ok().map(|cut| cut.was)
}

fn index(segment: &mut Segment, view: &RecordView<'_>, offset: u64) -> Result<(), String> {
    let expected = segment.next_seq();
    match view.kind {
        "pub" => {
            if view.seq != expected {
                return Err(format!("message {} where {expected} was expected", view.seq));
            }
            let (priority, _) = view.publish_key().ok_or("the message cannot be read")?;
            segment.push(u32::try_from(offset).map_err(|_| "the segment is too large")?, priority);
        }
        "gap" => {
            let (first, last) = parse_gap(view)?;
            if first != expected {
                return Err(format!("a gap from {first} where {expected} was expected"));
            }
            for _ in first..=last {
                segment.push(LOST, 0);
            }
        }
        "seg" => return Err("a second segment header".into()),
        _ if view.seq.checked_add(1) != Some(expected) => {
            return Err(format!("a record after message {} where {expected} was expected", view.seq));
        }
        _ => {}
    }
    Ok(())
}

fn read_all(file: &dyn StorageFile, path: &Path, buffer: &mut Vec<u8>) -> Result<(), JournalError> {
    let io = |e| JournalError::io("read", path, e);
    let len = usize::try_from(file.len().map_err(io)?).unwrap_or(usize::MAX);
    buffer.resize(len, 0);
    let mut at = 0;
    while at < len {
        match file.read_at(&mut buffer[at..], at as u64).map_err(io)? {
            0 => break,
            n => at += n,
        }
    }
    buffer.truncate(at);
    Ok(())
}

/// The header and its length; `None`: the file was being made when the crash came.
fn read_header(
    bytes: &[u8],
    path: &Path,
    number: u64,
    may_be_unfinished: bool,
) -> Result<Option<(Header, usize)>, JournalError> {
    let end = memchr::memchr(b'\n', bytes);
    let what = match (Header::decode(&bytes[..end.unwrap_or(bytes.len())]), end) {
        (Ok(header), _) if header.number != number => "the segment has another file's name".to_owned(),
        (Ok(header), Some(end)) => return Ok(Some((header, end + 1))),
        (Ok(_), None) => return Ok(None),
        (Err(what), _) => what,
    };
    // The header is synced before the first record. A line that ends like a record is one, or a header that was whole once;
    // sectors that were never written are zeros.
    let used = bytes.split(|b| *b == b'\n').any(|line| crate::record::has_tail(line) && !line.contains(&0));
    if may_be_unfinished && !used && bytes.len() < 64 << 10 {
        Ok(None)
    } else {
        Err(corrupt(path, 1, 0, &what))
    }
}

/// Writes what the last life may have failed to sync once more, as it is.
///
/// After a failed sync the kernel calls the pages clean: they can be read from the cache, and no later sync writes them.
/// Only the header and the last commit can be in that state, because a failed sync is final.
fn write_again(
    segment: &Segment,
    file: &dyn StorageFile,
    bytes: &[u8],
    header_len: usize,
    last_commit: u64,
) -> Result<(), JournalError> {
    let io = |e| JournalError::io("write", &segment.path, e);
    file.write_at(&bytes[..header_len], 0).map_err(io)?;
    file.write_at(&bytes[last_commit as usize..segment.end as usize], last_commit).map_err(io)
}

/// Cuts a torn tail, keeps its bytes aside, and makes everything before it durable.
fn settle_tail(
    committer: &Arc<Committer>,
    segment: &mut Segment,
    file: &dyn StorageFile,
    bytes: &[u8],
    damage: Option<&Damage>,
    recovery: &mut Recovery,
) -> Result<(), JournalError> {
    let rest = &bytes[segment.end as usize..];
    if committer.options.planted.glue_on_torn_tail && damage.is_some() {
        segment.end = bytes.len() as u64;
    } else if damage.is_some() {
        let kept = PathBuf::from(format!("{}.torn-{}", segment.path.display(), segment.end));
        match write_aside(committer, &kept, rest) {
            Ok(()) => tracing::warn!(
                path = %segment.path.display(), offset = segment.end, bytes = rest.len(), kept = %kept.display(),
                "the last write was torn by a crash before it was acknowledged; it was cut off and kept aside"
            ),
            // Nobody was promised these bytes: a full disk must not keep the rest from being served.
            Err(error) if error.is_disk_full() => tracing::warn!(
                path = %segment.path.display(), offset = segment.end, bytes = rest.len(),
                "the last write was torn by a crash before it was acknowledged; the disk is too full to keep it aside"
            ),
            Err(error) => return Err(error),
        }
        recovery.torn = Some(kept);
        cut(segment, file)?;
    } else if rest.iter().any(|b| *b != FILLER) {
        cut(segment, file)?;
    }
    file.sync_all().map_err(|e| JournalError::io("sync", &segment.path, e))
}

fn cut(segment: &mut Segment, file: &dyn StorageFile) -> Result<(), JournalError> {
    file.set_len(segment.end).map_err(|e| JournalError::io("cut", &segment.path, e))?;
    segment.allocated = segment.end;
    Ok(())
}

fn write_aside(committer: &Arc<Committer>, path: &Path, bytes: &[u8]) -> Result<(), JournalError> {
    let storage = &committer.storage;
    let io = |op| move |e| JournalError::io(op, path, e);
    let file = match storage.open(path, OpenMode::Create) {
        // A crash during the last recovery: the same bytes, maybe not all of them.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => storage.open(path, OpenMode::Write),
        other => other,
    };
    let file = file.map_err(io("create"))?;
    let useful = bytes.iter().rposition(|b| *b != FILLER && *b != 0).map_or(0, |at| at + 1);
    file.set_len(0).map_err(io("cut"))?;
    file.write_at(&bytes[..useful], 0).map_err(io("write"))?;
    file.sync_all().map_err(io("sync"))?;
    let Some(dir) = path.parent() else { return Ok(()) };
    storage.sync_dir(dir).map_err(|e| JournalError::io("sync", dir, e))
}

fn set_aside_file(
    committer: &Arc<Committer>,
    dir: &Path,
    path: &Path,
) -> Result<Option<PathBuf>, JournalError> {
    let kept = PathBuf::from(format!("{}.torn-0", path.display()));
    committer.storage.rename(path, &kept).map_err(|e| JournalError::io("rename", path, e))?;
    committer.storage.sync_dir(dir).map_err(|e| JournalError::io("sync", dir, e))?;
    tracing::warn!(path = %path.display(), "a segment was being made when the crash came; it was set aside");
    Ok(Some(kept))
}

fn corrupt(path: &Path, line: u64, offset: u64, what: &str) -> JournalError {
    JournalError::Corrupt { path: path.to_owned(), line, offset, what: what.to_owned() }
}
