//! Durable writes around the page cache.
//!
//! A write through a descriptor opened with `O_DSYNC` returns when a following `fdatasync` would (open(2)). With
//! `O_DIRECT` beside it the kernel neither copies the data into the page cache nor walks it for dirty pages: one request to
//! the device and its flush.
//!
//! The price is alignment: memory, offset and length are multiples of [`BLOCK`]. So the first block is written again
//! with what it held before, as the page cache would do.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;

/// What durable writes begin and end at. A multiple of every usual sector and of most filesystems' block size.
pub(crate) const BLOCK: usize = 4096;

/// Memory of which an aligned part is used.
#[derive(Debug, Default)]
struct Aligned(Vec<u8>);

impl Aligned {
    /// `len` bytes; what was written there before, if that was not more.
    fn get(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len + BLOCK {
            self.0 = vec![0; len + BLOCK];
        }
        let skip = self.0.as_ptr().align_offset(BLOCK);
        &mut self.0[skip..skip + len]
    }
}

/// A buffer for large writes, shared by all files of a storage: commits come one after the other. It grows to the largest
/// batch with its filler, which 16 times the committer's `max_batch_bytes` and the largest record bound, and stays.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch(Arc<Mutex<Aligned>>);

/// How one file is written.
#[derive(Debug)]
pub(super) struct Through {
    state: State,
    scratch: Scratch,
    tail: Tail,
}

#[derive(Debug)]
enum State {
    Untried,
    On(File),
    /// This file cannot be written so: no such flags, other alignment, no `/proc`.
    Off,
}

/// The end of the file as it stands on the disk, so that a small write copies its data and nothing else.
#[derive(Debug, Default)]
struct Tail {
    // Of the first byte of `memory`; `None`: nothing is known.
    start: Option<u64>,
    // Up to here there is data; behind it nothing but `fill`.
    end: usize,
    fill: u8,
    memory: Aligned,
}

impl Tail {
    const LEN: usize = 2 * BLOCK;

    /// `bytes` from `start` on were written; their data ends at `end`.
    fn keep(&mut self, bytes: &[u8], start: u64, end: usize, fill: u8) {
        let block = end - end % BLOCK;
        self.start = Some(start + block as u64);
        (self.end, self.fill) = (end - block, fill);
        let memory = self.memory.get(Self::LEN);
        memory[..self.end].copy_from_slice(&bytes[block..end]);
        memory[self.end..].fill(fill);
    }
}

impl Through {
    pub(super) fn new(scratch: Scratch) -> Self {
        Self { state: State::Untried, scratch, tail: Tail::default() }
    }

    /// The file was changed in another way.
    pub(super) fn forget(&mut self) {
        self.tail.start = None;
    }

    /// See [`StorageFile::write_through`](super::StorageFile::write_through). False: not here, nothing was written.
    pub(super) fn write(
        &mut self,
        file: &File,
        data: &[u8],
        at: u64,
        fill: u8,
        until: u64,
    ) -> io::Result<bool> {
        if matches!(self.state, State::Untried) {
            self.state = open(file).map_or(State::Off, State::On);
        }
        let State::On(direct) = &self.state else { return Ok(false) };
        if !until.is_multiple_of(BLOCK as u64) {
            return Ok(false);
        }
        let start = at - at % BLOCK as u64;
        let (head, end) = ((at - start) as usize, (at - start) as usize + data.len());
        let len = (until - start) as usize;
        let known = self.tail.start.take() == Some(start) && self.tail.fill == fill;
        let result = if known && len <= Tail::LEN && head == self.tail.end {
            let bytes = self.tail.memory.get(Tail::LEN);
            bytes[head..end].copy_from_slice(data);
            direct.write_all_at(&bytes[..len], start).map(|()| {
                (self.tail.start, self.tail.end) = (Some(start), end);
                if end >= BLOCK {
                    let block = end - end % BLOCK;
                    bytes.copy_within(block..end, 0);
                    bytes[end - block..end].fill(fill);
                    (self.tail.start, self.tail.end) = (Some(start + block as u64), end - block);
                }
            })
        } else {
            let mut scratch = self.scratch.0.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = scratch.get(len);
            if known && head <= self.tail.end {
                bytes[..head].copy_from_slice(&self.tail.memory.get(Tail::LEN)[..head]);
            } else {
                file.read_exact_at(&mut bytes[..head], start)?;
            }
            bytes[head..end].copy_from_slice(data);
            bytes[end..].fill(fill);
            direct.write_all_at(bytes, start).map(|()| self.tail.keep(bytes, start, end, fill))
        };
        match result {
            Ok(()) => Ok(true),
            // The filesystem took the flags and not the request: it writes nothing then.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.state = State::Off;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Opens the file once more, by its descriptor: its name may have changed.
fn open(file: &File) -> io::Result<File> {
    let flags = (OFlags::DIRECT | OFlags::DSYNC).bits();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().write(true).custom_flags(flags.cast_signed()).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{OpenMode, RealStorage, Storage, read_range};

    /// On the disk of the target directory: `/tmp` may be memory.
    fn temp() -> tempfile::TempDir {
        tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
    }

    /// What a write through leaves is what ordinary writes would have left, whatever came before it.
    #[test]
    fn leaves_the_same_file_as_ordinary_writes() {
        let temp = temp();
        for seed in 0..30 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let storage = RealStorage::new();
            let path = temp.path().join(format!("f{seed}"));
            let file = storage.open(&path, OpenMode::Create).unwrap();
            let (mut model, mut end) = (Vec::new(), 0);
            for _ in 0..40 {
                let data: Vec<u8> = (0..rng.usize(1..9000)).map(|_| rng.u8(..)).collect();
                match rng.u8(0..8) {
                    0 => {
                        file.write_at(&data, end as u64).unwrap();
                        model.resize(model.len().max(end + data.len()), 0);
                        model[end..end + data.len()].copy_from_slice(&data);
                        end += data.len();
                    }
                    1 => {
                        file.set_len(end as u64).unwrap();
                        model.truncate(end);
                    }
                    _ => {
                        let until = (end + data.len() + rng.usize(0..3 * BLOCK)).next_multiple_of(BLOCK);
                        file.write_through(&data, end as u64, b'\n', until as u64).unwrap();
                        model.truncate(end);
                        model.extend_from_slice(&data);
                        model.resize(until.max(model.len()), b'\n');
                        // Behind `until` the file keeps what it had.
                        let rest = read_range(&*file, until as u64, 1 << 20).unwrap();
                        model.extend_from_slice(&rest);
                        end += data.len();
                    }
                }
                assert!(read_range(&*file, 0, 1 << 20).unwrap() == model, "seed {seed}");
            }
        }
    }

    #[test]
    fn is_taken_where_the_disk_can() {
        let temp = temp();
        let path = temp.path().join("f");
        std::fs::write(&path, "abc").unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut through = Through::new(Scratch::default());
        if !through.write(&file, b"def", 3, b'\n', BLOCK as u64).unwrap() {
            println!("no O_DIRECT here");
            return;
        }
        assert!(!through.write(&file, b"x", 6, b'\n', 7).unwrap(), "not up to the end of a block");
        assert!(through.write(&file, b"ghi", 6, b'\n', BLOCK as u64).unwrap());
        let mut expected = b"abcdefghi".to_vec();
        expected.resize(BLOCK, b'\n');
        assert!(std::fs::read(&path).unwrap() == expected);
    }
}
