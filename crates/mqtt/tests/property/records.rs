//! Any records in the broker's log: a start, or an error, never a panic; and what starts works, and starts again.

use std::fmt::Write as _;
use std::path::Path;

use postroad_journal::record;
use postroad_journal::segment::{self, Header};
use postroad_journal::storage::{CrashMode, SimStorage, Storage};

use super::rig::Rig;

const SALT: u32 = 77;

/// The first byte says how the rest is read: as lines, or as a program that makes records.
pub(crate) fn check(data: &[u8]) {
    let [mode, rest @ ..] = data else { return };
    let lines = if mode & 1 == 0 { from_lines(rest) } else { from_program(rest) };
    let storage = SimStorage::new(1);
    let dir = Path::new("/data/mqtt");
    storage.create_dir_all(dir).expect("a directory");
    let header = Header { number: 1, base: 1, prev: 0, salt: SALT, name: "mqtt".into(), time: 1 };
    let mut file = header.encode();
    file.extend_from_slice(&lines);
    storage.put_file(&segment::path(dir, 1), &file).expect("a file");
    // What it says is said whole.
    let Ok(mut rig) = Rig::open(storage, mode & 2 != 0) else { return };
    rig.exchange();
    rig.crash(CrashMode::DropUnsynced);
    rig.exchange();
    // All wills, leases and expiries are due.
    rig.pass(u64::from(u32::MAX) * 1000);
    rig.exchange();
    rig.crash(CrashMode::DropUnsynced);
    rig.exchange();
}

/// With the right checksum.
fn push(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(body);
    let sum = record::checksum(SALT, body);
    out.extend_from_slice(format!(",\"c\":\"{sum:08x}\"}}\n").as_bytes());
}

/// Each line a record, whatever its checksum was.
fn from_lines(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in data.split(|byte| *byte == b'\n') {
        let body = match line.strip_suffix(b"}") {
            Some(_) if record::has_tail(line) => &line[..line.len() - record::TAIL_LEN],
            Some(body) => body,
            None => continue,
        };
        push(&mut out, body);
    }
    out
}

const KINDS: [&str; 24] = [
    "pub", "here", "away", "gone", "subs", "unsub", "rel", "rec", "done", "give", "skip", "mem", "queue",
    "qgone", "qdone", "qtry", "qgive", "qskip", "open", "begin", "end", "pub", "here", "pub",
];

// None of the neighbours'.
const TOPICS: [&str; 8] = ["a", "a/b", "b", "$dead/a", "#", "", "$share/g/a", "$queue/q/a"];

/// Numbers where things change.
fn number(byte: u8) -> u64 {
    match byte {
        0..=200 => u64::from(byte % 12),
        201..=210 => 65_530 + u64::from(byte - 201),
        211..=220 => u64::from(u32::MAX) - u64::from(byte - 211),
        221..=230 => u64::MAX - u64::from(byte - 221),
        231..=240 => (1 << 62) + u64::from(byte - 231),
        _ => 1 << (byte - 231),
    }
}

/// A record for each few bytes: its kind, which fields it has, and their values.
fn from_program(mut data: &[u8]) -> Vec<u8> {
    let (mut out, mut seq, mut time) = (Vec::new(), 0_u64, 1_000_u64);
    while let [kind, fields, more, rest @ ..] = data {
        data = rest;
        let mut next = || match data {
            [first, rest @ ..] => {
                data = rest;
                *first
            }
            [] => 0,
        };
        let name = KINDS[usize::from(*kind) % KINDS.len()];
        let snapshot = if kind & 0x80 != 0 && name != "pub" { "z" } else { "" };
        seq += u64::from(name == "pub");
        time += 10;
        let mut body = format!("{{\"s\":{seq},\"t\":{time},\"k\":\"{snapshot}{name}\",\"m\":1");
        // Writing to a string cannot fail.
        if name == "pub" {
            let topic = TOPICS[usize::from(next()) % 5];
            let _ = write!(body, ",\"u\":\"{topic}\",\"h\":{{\"q\":{}", next() % 4);
            for (bit, key) in ["r", "f", "p", "w", "x", "h", "o"].iter().enumerate() {
                if fields >> bit & 1 != 0 {
                    let _ = write!(body, ",\"{key}\":{}", number(next()));
                }
            }
            if fields & 0x80 != 0 {
                let _ = write!(body, ",\"g\":[[{},\"g\",\"a\"]]", number(next()));
            }
            body.push_str(if more & 1 == 0 { "},\"x\":\"hi\"" } else { "}" });
        } else {
            for (bit, key) in ["d", "n", "to", "q", "o", "x", "w", "at"].iter().enumerate() {
                if fields >> bit & 1 != 0 {
                    let _ = write!(body, ",\"{key}\":{}", number(next()));
                }
            }
            for (bit, key) in ["u", "un", "keep"].iter().enumerate() {
                if more >> bit & 1 != 0 {
                    let _ = write!(body, ",\"{key}\":{}", number(next()));
                }
            }
            for (bit, key) in ["i", "p"].iter().enumerate() {
                if more >> (3 + bit) & 1 != 0 {
                    let _ = write!(body, ",\"{key}\":[{},{}]", number(next()), number(next()));
                }
            }
            if more & 0x20 != 0 {
                let _ = write!(body, ",\"f\":\"{}\"", TOPICS[usize::from(next()) % TOPICS.len()]);
            }
            if more & 0x40 != 0 {
                let _ = write!(body, ",\"id\":\"{}\"", ["one", "two", "three", "q"][usize::from(next()) % 4]);
            }
            if more & 0x80 != 0 {
                let what = number(next());
                match name {
                    "here" => {
                        let _ = write!(
                            body,
                            ",\"will\":{{\"topic\":\"a\",\"payload\":\"aGk=\",\"head\":{{\"q\":{}}},\"delay\":{what}}}",
                            next() % 4
                        );
                    }
                    _ => {
                        let _ = write!(
                            body,
                            ",\"tries\":[{what},{},{},{}]",
                            number(next()),
                            number(next()),
                            number(next())
                        );
                    }
                }
            }
        }
        push(&mut out, body.as_bytes());
    }
    out
}
