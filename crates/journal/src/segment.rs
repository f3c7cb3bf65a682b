//! Segment files: their names, their first line, and reading one from end to end.

use crate::record::{self, RecordView};
use crate::syndrome;
use std::path::{Path, PathBuf};

/// What pre-written space holds: blank lines, which `jq`, `grep` and every JSON-lines reader skip.
pub const FILLER: u8 = b'\n';
/// The unit in which a disk may lose part of an un-synced write.
pub const SECTOR: usize = 512;
/// The largest segment number and first sequence accepted from a file; counting on from it cannot overflow.
const MAX_NUMBER: u64 = 1 << 62;

/// The file name of segment `number` (from 1, without gaps).
pub fn file_name(number: u64) -> String {
    format!("{number:010}.jsonl")
}

/// The number in a segment file name.
pub fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".jsonl")?;
    if digits.len() < 10 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|n| (1..=MAX_NUMBER).contains(n))
}

/// The path of segment `number` in `dir`.
pub fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(file_name(number))
}

/// The first line of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its number, the one in the file name.
    pub number: u64,
    /// The sequence of the first message that it can hold.
    pub base: u64,
    /// Where the records of the segment before it end, in bytes; 0 if there is none. A sealed segment that lost its end is
    /// noticed by this even if the end was not a message.
    pub prev: u64,
    /// Seeds the checksum of every other line, so that a line of another segment never verifies here.
    pub salt: u32,
    /// Whose log it is: a topic, or another name of the owner.
    pub name: String,
    /// When it was made.
    pub time: u64,
}

#[derive(serde::Deserialize)]
struct HeaderFields {
    v: u32,
    number: u64,
    base: u64,
    prev: u64,
    salt: String,
    name: String,
}

impl Header {
    /// The header as a line, with LF. Its own checksum has no salt.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(160);
        let begin = record::start(&mut out, self.base - 1, self.time, "seg", false);
        record::push_number_field(&mut out, "v", u64::from(record::FORMAT_VERSION));
        record::push_number_field(&mut out, "number", self.number);
        record::push_number_field(&mut out, "base", self.base);
        record::push_number_field(&mut out, "prev", self.prev);
        out.extend_from_slice(b",\"salt\":\"");
        record::push_hex(&mut out, self.salt);
        out.push(b'"');
        record::push_text_field(&mut out, "name", &self.name);
        record::finish(&mut out, begin, 0);
        out
    }

    /// Reads a header line (without LF); says what is wrong with it.
    pub fn decode(line: &[u8]) -> Result<Self, String> {
        if !record::verify(line, 0) {
            return Err("the checksum of the segment header does not match".into());
        }
        let view = RecordView::parse(line).filter(|view| view.kind == "seg").ok_or("not a segment header")?;
        let fields: HeaderFields =
            serde_json::from_slice(line).map_err(|error| format!("not a segment header: {error}"))?;
        if fields.v != record::FORMAT_VERSION {
            return Err(format!(
                "format version {} is unknown; this program reads version {}",
                fields.v,
                record::FORMAT_VERSION
            ));
        }
        let salt = u32::from_str_radix(&fields.salt, 16).map_err(|_| "the salt is no hex number")?;
        if fields.base == 0 || fields.base - 1 != view.seq {
            return Err("the base of the segment does not fit its sequence".into());
        }
        if fields.number == 0 || fields.number > MAX_NUMBER || fields.base > MAX_NUMBER {
            return Err("the numbers of the segment are out of range".into());
        }
        Ok(Self {
            number: fields.number,
            base: fields.base,
            prev: fields.prev,
            salt,
            name: fields.name,
            time: view.time,
        })
    }
}

/// Bytes that are no valid record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The line, from 1.
    pub line: u64,
    /// The byte offset of the line.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
    /// True if a crash in the middle of an un-synced write explains it: nothing durable is lost by cutting here.
    pub torn: bool,
}

/// How reading a segment ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The byte after the last valid record before the damage, or before the filler.
    pub end: u64,
    /// Lines read.
    pub lines: u64,
    /// Why reading stopped, if not at the end.
    pub damage: Option<Damage>,
}

/// Reads the records of a segment, after its header at `bytes[..from]`, until the end or the first damage.
///
/// `visit` gets each record with its offset and may refuse it with a reason, which is damage too (and never torn).
pub fn scan(
    bytes: &[u8],
    from: usize,
    salt: u32,
    check: bool,
    mut visit: impl FnMut(RecordView<'_>, u64) -> Result<(), String>,
) -> Scan {
    let mut at = from;
    let mut lines = 1;
    loop {
        let rest = &bytes[at..];
        let Some(&first) = rest.first() else {
            return Scan { end: at as u64, lines, damage: None };
        };
        if first == FILLER || first == 0 {
            if rest.iter().all(|b| *b == FILLER || *b == 0) {
                return Scan { end: at as u64, lines, damage: None };
            }
            return damaged(bytes, at, lines, salt, "a blank line between records");
        }
        let Some(len) = memchr::memchr(b'\n', rest) else {
            return damaged(bytes, at, lines, salt, "the line has no end");
        };
        let line = &rest[..len];
        if check && !record::verify(line, salt) {
            return damaged(bytes, at, lines, salt, "the checksum does not match");
        }
        let Some(view) = RecordView::parse(line) else {
            return damaged(bytes, at, lines, salt, "the line is no record");
        };
        if let Err(what) = visit(view, at as u64) {
            let damage = Damage { line: lines + 1, offset: at as u64, what, torn: false };
            return Scan { end: at as u64, lines, damage: Some(damage) };
        }
        lines += 1;
        at += len + 1;
    }
}

/// Decides whether damage at `at` can be the rest of a write that was never acknowledged.
///
/// Everything from the first record of a commit (mark `m`) on was written while everything before it was already on
/// disk. So: a marked record after the damage proves that the damaged bytes were durable: corruption. An unmarked
/// one belongs to the same write as the damage, and a disk that lost part of that write lost whole sectors, which
/// still hold what was there before (filler, or nothing). Otherwise, with valid records behind it, the bytes
/// changed later: corruption. So they did if the damaged line is whole but for one byte.
fn damaged(bytes: &[u8], at: usize, lines: u64, salt: u32, what: &str) -> Scan {
    let mut next = at;
    // Up to the first LF, or the second one if the first is the byte that changed.
    let mut ends = memchr::memchr_iter(b'\n', &bytes[at..]).take(2);
    // A lost sector that ends with the first byte of a record leaves that, too.
    let lost_first = at % SECTOR == SECTOR - 1 && matches!(bytes[at], FILLER | 0);
    let mut torn = lost_first || !ends.any(|len| syndrome::one_byte_off(&bytes[at..at + len], salt));
    while let Some(len) = memchr::memchr(b'\n', &bytes[next..]) {
        let line = &bytes[next..next + len];
        if let Some(skip) = valid_end(line, salt) {
            let marked = RecordView::parse(&line[skip..]).is_none_or(|view| view.commit_start);
            torn = torn && !marked && lost_a_sector(bytes, at, next + skip);
            if !torn {
                break;
            }
        }
        next += len + 1;
    }
    let damage = Damage { line: lines + 1, offset: at as u64, what: what.to_owned(), torn };
    Scan { end: at as u64, lines, damage: Some(damage) }
}

/// Where in `line` a valid record begins that lasts to its end: at 0, or behind the rest of another one whose LF is gone.
pub(crate) fn valid_end(line: &[u8], salt: u32) -> Option<usize> {
    // Bounded: a payload may be full of what looks like a beginning.
    const TRIES: usize = 16;
    if !record::has_tail(line) {
        return None;
    }
    memchr::memmem::find_iter(line, b"{\"s\":").take(TRIES).find(|skip| record::verify(&line[*skip..], salt))
}

/// True if, between `from` and `to`, what falls into some sector, up to that sector's end, is nothing but filler.
fn lost_a_sector(bytes: &[u8], from: usize, to: usize) -> bool {
    let mut sector = from / SECTOR * SECTOR;
    // The sector in which the valid record begins was not lost.
    while sector + SECTOR <= to {
        if bytes[sector.max(from)..sector + SECTOR].iter().all(|b| *b == FILLER || *b == 0) {
            return true;
        }
        sector += SECTOR;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back() {
        let header = Header {
            number: 3,
            base: 18,
            prev: 900,
            salt: 0x89ab_cdef,
            name: "orders/\"eu\"".into(),
            time: 5,
        };
        let line = header.encode();
        assert_eq!(Header::decode(&line[..line.len() - 1]), Ok(header));
        for i in 0..line.len() - 1 {
            let mut bad = line[..line.len() - 1].to_vec();
            bad[i] ^= 4;
            assert!(Header::decode(&bad).is_err(), "byte {i}");
        }
    }

    #[test]
    fn names_carry_numbers() {
        assert_eq!(parse_file_name(&file_name(7)), Some(7));
        assert_eq!(parse_file_name("0000000000.jsonl"), None);
        assert_eq!(parse_file_name("7.jsonl"), None);
        assert_eq!(parse_file_name("0000000001.jsonl.torn-12"), None);
    }
}
