//! Reading written messages back, from memory where they still are, else from the segments.

use crate::committer::lock;
use crate::error::JournalError;
use crate::journal::{Journal, LOST, State};
use crate::record::{self, Event, RecordView};
use crate::storage::{OpenMode, StorageFile};
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes read ahead when several messages are asked for.
const READ_AHEAD: usize = 256 << 10;
const READ_ONE: usize = 4 << 10;

enum Place {
    /// The record and what follows it in its batch.
    Memory(Bytes),
    File {
        number: u64,
        offset: u64,
        size: usize,
    },
    /// Trimmed, lost, or not written yet.
    Nowhere,
}

struct Source {
    number: u64,
    path: PathBuf,
    salt: u32,
    file: Arc<dyn StorageFile>,
    // What was read last, and where it begins.
    window: Bytes,
    start: u64,
}

impl Journal {
    /// The message `seq`; `None` if it is not written, or not there any more.
    pub fn read(&self, seq: u64) -> Result<Option<Event>, JournalError> {
        let mut events = Vec::with_capacity(1);
        self.read_many(&[seq], &mut events)?;
        Ok(events.pop())
    }

    /// The messages `seqs` in that order, without those that are not there.
    pub fn read_many(&self, seqs: &[u64], out: &mut Vec<Event>) -> Result<(), JournalError> {
        let places: Vec<Place> = {
            let state = lock(&self.inner.state);
            seqs.iter().map(|seq| locate(&state, *seq)).collect()
        };
        let mut source: Option<Source> = None;
        let ahead = if seqs.len() > 1 { READ_AHEAD } else { READ_ONE };
        for (place, &seq) in places.into_iter().zip(seqs) {
            let line = match place {
                Place::Nowhere => continue,
                Place::Memory(bytes) => {
                    let end = memchr::memchr(b'\n', &bytes).unwrap_or(bytes.len());
                    bytes.slice(..end)
                }
                Place::File { number, offset, size } => {
                    if source.as_ref().is_none_or(|s| s.number != number) {
                        source = self.open_source(number)?;
                    }
                    // Trimmed in between.
                    let Some(source) = &mut source else { continue };
                    self.line_at(source, offset, size.max(ahead))?
                }
            };
            let event = RecordView::parse(&line).and_then(|view| view.event(&line));
            match event.filter(|event| event.seq == seq) {
                Some(event) => out.push(event),
                None => return Err(self.damaged(seq, "the record is not the message that was there")),
            }
        }
        Ok(())
    }

    /// The first message that was appended at `time` or later; `last + 1` if there is none.
    pub fn seek_time(&self, time: u64) -> Result<u64, JournalError> {
        let stats = self.stats();
        let (mut low, mut high) = (stats.first, stats.committed + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            // A message that repair could not save: look at the next one that is there.
            let mut probe = middle;
            let mut at = None;
            while probe < high && at.is_none() {
                at = self.read(probe)?.map(|event| event.time);
                probe += 1;
            }
            match at {
                Some(at) if at < time => low = probe,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    fn open_source(&self, number: u64) -> Result<Option<Source>, JournalError> {
        let (path, salt, file) = {
            let state = lock(&self.inner.state);
            let Some(segment) = state.segments.iter().find(|s| s.header.number == number) else {
                return Ok(None);
            };
            (segment.path.clone(), segment.header.salt, segment.file.clone())
        };
        let file = match file {
            Some(file) => file,
            None => match self.inner.committer.storage.open(&path, OpenMode::Read) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                other => other.map_err(|e| JournalError::io("open", &path, e))?,
            },
        };
        Ok(Some(Source { number, path, salt, file, window: Bytes::new(), start: 0 }))
    }

    /// The verified line at `offset`.
    fn line_at(&self, source: &mut Source, offset: u64, mut want: usize) -> Result<Bytes, JournalError> {
        loop {
            let skip = offset.checked_sub(source.start).and_then(|n| usize::try_from(n).ok());
            if let Some(skip) = skip.filter(|skip| *skip < source.window.len()) {
                let rest = &source.window[skip..];
                if let Some(len) = memchr::memchr(b'\n', rest) {
                    let line = source.window.slice(skip..skip + len);
                    let check = !self.inner.committer.options.planted.no_crc_check;
                    if check && !record::verify(&line, source.salt) {
                        return Err(damaged(source, offset, "the checksum does not match"));
                    }
                    return Ok(line);
                }
                if source.start == offset {
                    if source.window.len() < want {
                        return Err(damaged(source, offset, "the record has no end"));
                    }
                    want *= 2;
                }
            }
            let mut buffer = vec![0; want];
            let read = source
                .file
                .read_at(&mut buffer, offset)
                .map_err(|e| JournalError::io("read", &source.path, e))?;
            if read == 0 {
                return Err(damaged(source, offset, "the file is too short"));
            }
            buffer.truncate(read);
            source.window = buffer.into();
            source.start = offset;
        }
    }

    fn damaged(&self, seq: u64, what: &str) -> JournalError {
        JournalError::Corrupt {
            path: self.dir().to_owned(),
            line: 0,
            offset: 0,
            what: format!("message {seq}: {what}"),
        }
    }
}

fn damaged(source: &Source, offset: u64, what: &str) -> JournalError {
    JournalError::Corrupt { path: source.path.clone(), line: 0, offset, what: what.to_owned() }
}

fn locate(state: &State, seq: u64) -> Place {
    if seq > state.written_seq {
        return Place::Nowhere;
    }
    let Some(segment) = state.segment_of(seq) else { return Place::Nowhere };
    let offset = segment.index[(seq - segment.header.base) as usize];
    if offset == LOST {
        return Place::Nowhere;
    }
    let (number, offset) = (segment.header.number, u64::from(offset));
    let after = state.tail.partition_point(|c| (c.number, c.offset) <= (number, offset));
    if let Some(chunk) = after.checked_sub(1).and_then(|at| state.tail.get(at)) {
        let skip = (offset - chunk.offset.min(offset)) as usize;
        if chunk.number == number && skip < chunk.bytes.len() {
            return Place::Memory(chunk.bytes.slice(skip..));
        }
    }
    Place::File { number, offset, size: state.size_of(seq) as usize }
}
