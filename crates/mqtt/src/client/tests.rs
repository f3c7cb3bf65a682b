//! The rules in random worlds: a server that keeps its promises, a network that cuts, and a client that dies at any step and
//! remembers what was committed. Nothing may be lost or come twice, and planted bugs must show.

mod receiving;
mod sending;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use postroad_core::Error;

use super::log::{Log, Mark, Record};
use super::{MqttOptions, Planted};
use crate::codec::{Direction, Frame, Packet, Version, decode_packet, frame};

/// A log whose commits the world decides.
#[derive(Clone, Default)]
struct SimLog(Arc<Mutex<SimState>>);

#[derive(Default)]
struct SimState {
    records: Vec<Record>,
    /// Records before these were replaced by a snapshot.
    offset: Mark,
    committed: Mark,
    snapshot_every: usize,
}

impl SimLog {
    fn commit(&self) {
        let mut state = self.0.lock().unwrap();
        state.committed = state.offset + state.records.len() as Mark;
    }

    /// What the next life reads: all that was committed, and perhaps some of the rest.
    fn crash(&self, random: &mut fastrand::Rng) -> Vec<Record> {
        let mut state = self.0.lock().unwrap();
        let safe = (state.committed - state.offset) as usize;
        let kept = random.usize(safe..=state.records.len());
        state.records.truncate(kept);
        state.committed = state.offset + kept as Mark;
        state.records.clone()
    }
}

impl Log for SimLog {
    fn append(&mut self, record: &Record) -> Mark {
        // What is read back must be the same.
        let mut state = self.0.lock().unwrap();
        state.records.push(reread(record));
        state.offset + state.records.len() as Mark
    }

    fn committed(&self) -> Mark {
        self.0.lock().unwrap().committed
    }

    fn flush(&mut self) {}

    fn is_durable(&self) -> bool {
        true
    }

    fn wants_snapshot(&self) -> bool {
        let state = self.0.lock().unwrap();
        // Only when all is committed, since here what it replaces is gone at once.
        state.records.len() > state.snapshot_every
            && state.committed == state.offset + state.records.len() as Mark
    }

    fn snapshot(&mut self, records: Vec<Record>) {
        let mut state = self.0.lock().unwrap();
        state.offset = state.committed;
        // It is whole or it is not there.
        state.committed += records.len() as Mark;
        state.snapshot_every = 200 + records.len();
        state.records = records.iter().map(reread).collect();
    }

    fn failure(&self) -> Option<Error> {
        None
    }
}

/// Through its line and back.
fn reread(record: &Record) -> Record {
    let mut line = br#"{"s":1,"t":1,"k":""#.to_vec();
    line.extend_from_slice(record.kind().as_bytes());
    line.extend_from_slice(b"\"");
    record.write(&mut line);
    line.extend_from_slice(br#","c":"00000000"}"#);
    let view = postroad_journal::RecordView::parse(&line).expect("a record");
    Record::read(&view).expect("its fields")
}

/// One direction of a connection.
#[derive(Default)]
struct Wire(VecDeque<Packet>);

impl Wire {
    /// What a client wrote.
    fn take_from(&mut self, out: &mut BytesMut, version: Version) {
        while !out.is_empty() {
            let Ok(Frame::Whole { header, body }) = frame(out, u32::MAX) else { panic!("half a packet") };
            let whole = out.split_to(header + body).freeze();
            let limits = super::log::limits();
            self.0.push_back(decode_packet(whole, version, Direction::ToServer, &limits).unwrap());
        }
    }
}

/// The version of this world's connections, and what its client is told.
fn dialect(seed: u64, planted: Planted) -> (Version, MqttOptions) {
    let version = if seed.is_multiple_of(2) { Version::V5 } else { Version::V311 };
    // Payloads are numbers, also where a message has no properties.
    (version, MqttOptions { planted, plain: true, ..MqttOptions::new("", 0) })
}

/// The first seed of `seeds` in which `world` finds something.
fn hunt(seeds: u64, world: impl Fn(u64) -> Result<(), String>) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| world(seed).err().map(|why| (seed, why)))
}

/// How many worlds: `POSTROAD_CASES` times the usual number.
fn cases() -> u64 {
    let times = std::env::var("POSTROAD_CASES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    150 * times
}
