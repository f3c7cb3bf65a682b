//! The disk as the journal sees it: one trait, a real and a simulated implementation.
//!
//! Everything the journal does to a disk goes through [`Storage`] and [`StorageFile`], so that the same code runs on
//! [`RealStorage`] and, in tests, on [`SimStorage`], which loses what was not synced, tears writes and fails on demand.
//!
//! What durable means here, for both implementations:
//!
//! - bytes of a file: after [`StorageFile::sync_data`] (contents and length), [`StorageFile::write_through`] or
//!   [`Storage::sync_filesystem`];
//! - a created, renamed or removed name: after [`Storage::sync_dir`] of the directory that holds it, or
//!   [`Storage::sync_filesystem`];
//! - a directory made by [`Storage::create_dir_all`]: on return.

mod real;
mod release;
mod sim;
mod through;

use std::{fmt, io, path::Path, sync::Arc};

pub use real::RealStorage;
pub use sim::{Call, CrashMode, FaultKind, SimStorage, is_simulated_crash};
pub(crate) use through::BLOCK;

/// How [`Storage::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpenMode {
    /// An existing file, for reading only.
    Read,
    /// An existing file, for reading and writing. The contents stay.
    Write,
    /// A new file, for reading and writing. Fails with [`io::ErrorKind::AlreadyExists`] if the name is taken.
    Create,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The last path component. A name that is not UTF-8 is shown lossily; the journal never makes one.
    pub name: String,
    /// True for a directory. A symbolic link counts as what it points to.
    pub is_dir: bool,
    /// Length in bytes; 0 for a directory.
    pub len: u64,
}

/// Releases the lock taken by [`Storage::lock`] when dropped.
pub type LockGuard = Box<dyn Send + Sync>;

/// A disk, or something that behaves like one.
///
/// Calls block. All of them may be made from any thread.
pub trait Storage: Send + Sync + 'static {
    /// Creates `dir` and its missing parents, and syncs the parents of what it created, so that the directories
    /// survive a power loss once this returns. An existing directory is not an error.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// The entries of `dir`, sorted by name in byte order.
    ///
    /// Fails with [`io::ErrorKind::NotFound`] if there is no such directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;

    /// Opens a file. A created name is durable only after [`Storage::sync_dir`].
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>>;

    /// Renames a file or directory, replacing a file of the new name atomically. Durable after [`Storage::sync_dir`] of both parents.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Files that are open keep working. Durable after [`Storage::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory. Durable after [`Storage::sync_dir`] of the parent.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in `dir` durable. An error is final in the same sense as for [`StorageFile::sync_data`].
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes everything on the filesystem of `root` durable in one call (`syncfs`).
    ///
    /// `Ok(false)` means that it was *not* done and the caller must sync file by file: the kernel does not report write-back
    /// errors through `syncfs` (Linux before 5.8, or not Linux), files below `root` live on another filesystem, or the
    /// descriptor for `root` was not open yet (it is from then on; [`Storage::lock`] on `root` opens it early). The
    /// last matters because Linux tells a write-back error only to descriptors that were open when it happened.
    ///
    /// Other programs' dirty pages on that filesystem are flushed too.
    fn sync_filesystem(&self, root: &Path) -> io::Result<bool>;

    /// Bytes that an unprivileged program may still write on the filesystem of `root`.
    fn free_bytes(&self, root: &Path) -> io::Result<u64>;

    /// Takes the exclusive lock `dir/.lock`, without waiting.
    ///
    /// Fails with [`io::ErrorKind::WouldBlock`] if another process, or another guard in this one, holds it. Released when the guard is
    /// dropped, and by the operating system when the process ends in any way.
    fn lock(&self, dir: &Path) -> io::Result<LockGuard>;
}

/// An open file. Positions are explicit, so one handle serves any number of threads.
pub trait StorageFile: Send + Sync {
    /// Writes all of `data` at byte `at`, growing the file as needed (a hole reads as zeros).
    ///
    /// Short writes and `EINTR` are handled inside. After an error any part of the range may have been written.
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()>;

    /// Writes all of `data` at byte `at` and `fill` from its end to byte `until`, and makes the file's contents and length
    /// durable, as [`write_at`](Self::write_at) and [`sync_data`](Self::sync_data) do, in one go where the disk can. The
    /// bytes between the end of `data` and `until` are overwritten even where the file was longer.
    ///
    /// An error is as final as that of a sync, unless it says that there is no space.
    fn write_through(&self, data: &[u8], at: u64, fill: u8, until: u64) -> io::Result<()> {
        let mut all = data.to_vec();
        all.resize(usize::try_from(until.saturating_sub(at)).unwrap_or(0).max(data.len()), fill);
        self.write_at(&all, at)?;
        self.sync_data()
    }

    /// All of it is about to be read: the disk may begin. A hint.
    fn prefetch(&self) {}

    /// Reads from byte `at` until `buf` is full or the file ends, and returns the number of bytes read.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// True if the length is 0.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Truncates, or extends with zeros. Durable after [`StorageFile::sync_data`].
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes contents and length durable (`fdatasync`).
    ///
    /// An error is final: the kernel may have dropped the dirty pages and a second call may succeed over the loss. Stop promising.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes contents and all metadata durable (`fsync`). An error is final, see [`StorageFile::sync_data`].
    fn sync_all(&self) -> io::Result<()>;
}

impl fmt::Debug for dyn Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Storage")
    }
}

impl fmt::Debug for dyn StorageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StorageFile")
    }
}

/// Reads `len` bytes (or up to the end of the file) at `at` into a new vector.
pub fn read_range(file: &dyn StorageFile, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let read = file.read_at(&mut bytes, at)?;
    bytes.truncate(read);
    Ok(bytes)
}
