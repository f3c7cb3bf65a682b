//! A disk in memory that loses, tears and fails on demand, the same way for the same seed.

mod disk;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use self::disk::{Disk, Ino, SECTOR};
use super::{BLOCK, DirEntry, LockGuard, OpenMode, Storage, StorageFile};

/// What is left after [`SimStorage::crash`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrashMode {
    /// Power loss at its worst: all that was not synced is gone, names as well as bytes.
    DropUnsynced,
    /// Only the process died. Everything is still there, but what was not synced is still not durable.
    KeepAll,
    /// Power loss: of each file every 512-byte sector that was not synced, its length, and every name change survives or not,
    /// independently. What is lost has its old content, or zeros past the old end.
    RandomSectors,
    /// Power loss on a disk that keeps order: changes survive up to a random one, which may be torn at any byte.
    RandomPrefix,
}

impl CrashMode {
    /// All modes.
    pub const ALL: [Self; 4] = [Self::DropUnsynced, Self::KeepAll, Self::RandomSectors, Self::RandomPrefix];
}

/// How the k-th call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// `EIO`, without effect. A failed sync also loses what it should have written: it stays readable, and no later sync
    /// saves it. That is what Linux does.
    Eio,
    /// `ENOSPC`, without effect.
    Enospc,
    /// A write stores a random part of its bytes and then gives `EIO`. Other calls: as [`FaultKind::Eio`].
    ShortWriteThenEio,
    /// A write stores a random part of its bytes and reports that; the rest follows in another call. Other calls succeed.
    ShortWrite,
    /// `EINTR` once. It is retried inside, as the standard library does, and costs one more call.
    EintrOnce,
}

impl FaultKind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::Eio, Self::Enospc, Self::ShortWriteThenEio, Self::ShortWrite, Self::EintrOnce];
}

/// The kind of one call to the disk, as counted by [`SimStorage::calls`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // Each is named after the method that makes it.
pub enum Call {
    MakeDir,
    List,
    Open,
    Create,
    Rename,
    Remove,
    RemoveDir,
    SyncDir,
    SyncFilesystem,
    FreeBytes,
    Lock,
    Write,
    Read,
    Len,
    SetLen,
    SyncData,
    SyncAll,
}

/// A simulated disk. Clones share it.
///
/// Calls are numbered from 1, across crashes. Nothing here depends on anything but the seed and the sequence of calls.
#[derive(Clone)]
pub struct SimStorage {
    state: Arc<Mutex<State>>,
}

struct State {
    disk: Disk,
    rng: fastrand::Rng,
    /// Every call so far, in order.
    trace: Vec<(Call, PathBuf)>,
    faults: BTreeMap<u64, FaultKind>,
    crash_at: Option<u64>,
    crashed: bool,
    /// Counts crashes; handles and locks of an earlier life are dead.
    life: u64,
    ignored: HashSet<Call>,
    capacity: u64,
    syncfs: bool,
    locks: HashMap<Ino, u64>,
    next_lock: u64,
}

/// What the fault plan says about one call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plan {
    Do,
    /// Report success and do nothing.
    Ignore,
    /// The machine dies in this call: changes may have reached the cache, nobody hears of it.
    Die,
    Fail(FaultKind),
}

/// Space of a disk without a quota: 1 TiB.
const UNLIMITED_BYTES: u64 = 1 << 40;

impl SimStorage {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                disk: Disk::new(),
                rng: fastrand::Rng::with_seed(seed),
                trace: Vec::new(),
                faults: BTreeMap::new(),
                crash_at: None,
                crashed: false,
                life: 0,
                ignored: HashSet::new(),
                capacity: UNLIMITED_BYTES,
                syncfs: true,
                locks: HashMap::new(),
                next_lock: 0,
            })),
        }
    }

    /// An independent copy of the disk as it is, un-synced changes included, with its own seed, no fault plan and no locks.
    /// The quota and [`SimStorage::set_syncfs`] are kept.
    #[must_use]
    pub fn fork(&self, seed: u64) -> Self {
        let copy = Self::new(seed);
        {
            let from = self.state();
            let mut to = copy.state();
            to.disk = from.disk.clone();
            to.capacity = from.capacity;
            to.syncfs = from.syncfs;
        }
        copy
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of calls made so far.
    pub fn calls(&self) -> u64 {
        self.state().trace.len() as u64
    }

    /// Every call made so far with the path it was made on, the first call first.
    pub fn trace(&self) -> Vec<(Call, PathBuf)> {
        self.state().trace.clone()
    }

    /// Makes call number `k` fail. May be used for several calls.
    pub fn fail_at(&self, k: u64, kind: FaultKind) {
        self.state().faults.insert(k, kind);
    }

    /// Stops the world in call number `k`: it and every later one fail ([`is_simulated_crash`]) until [`SimStorage::crash`].
    ///
    /// Call `k` itself, if it changes something, may have reached the cache. A sync at `k` does nothing.
    pub fn crash_at(&self, k: u64) {
        self.state().crash_at = Some(k);
    }

    /// True once call [`SimStorage::crash_at`] has been reached.
    pub fn has_crashed(&self) -> bool {
        self.state().crashed
    }

    /// The machine (or for [`CrashMode::KeepAll`] the process) dies now. What is left can be opened afresh; open files of the
    /// earlier life fail, its locks are released, and what is left of the fault plan is dropped.
    pub fn crash(&self, mode: CrashMode) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.disk.crash(mode, &mut state.rng);
        state.faults.clear();
        state.crash_at = None;
        state.crashed = false;
        state.life += 1;
        state.locks.clear();
    }

    /// A disk that lies: calls of this kind report success and do nothing. For kinds that return nothing.
    pub fn ignore(&self, call: Call) {
        self.state().ignored.insert(call);
    }

    /// The most bytes that all files together may have, or `None` for no limit worth the name (1 TiB).
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes.unwrap_or(UNLIMITED_BYTES);
    }

    /// Whether [`Storage::sync_filesystem`] works (the default) or says that it cannot.
    pub fn set_syncfs(&self, works: bool) {
        self.state().syncfs = works;
    }

    /// Reads a file without this being a call.
    pub fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state();
        Ok(state.disk.content(state.disk.find(path)?)?.to_vec())
    }

    /// What a power loss would leave of a file at worst, without this being a call.
    pub fn read_durable(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state();
        Ok(state.disk.durable_content(state.disk.find(path)?)?.to_vec())
    }

    /// Replaces the contents of a file, or makes it, durably and without this being a call. For damage by other hands.
    pub fn put_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let disk = &mut self.state().disk;
        let file = match disk.find(path) {
            Ok(file) => file,
            Err(_) => disk.create(path)?,
        };
        disk.set_len(file, 0)?;
        disk.write(file, bytes, 0)?;
        disk.sync_file(file);
        let (dir, _) = disk.parent(path)?;
        disk.sync_dir(dir);
        Ok(())
    }

    fn call<T>(
        &self,
        call: Call,
        path: &Path,
        mut act: impl FnMut(&mut Disk) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.state();
        loop {
            match state.begin(call, path)? {
                Plan::Fail(FaultKind::EintrOnce) => {}
                Plan::Do | Plan::Ignore | Plan::Fail(FaultKind::ShortWrite) => return act(&mut state.disk),
                Plan::Die => {
                    let _reached_the_cache = act(&mut state.disk);
                    return Err(crashed());
                }
                Plan::Fail(FaultKind::Enospc) => return Err(Errno::NOSPC.into()),
                Plan::Fail(FaultKind::Eio | FaultKind::ShortWriteThenEio) => return Err(Errno::IO.into()),
            }
        }
    }

    /// As [`Self::call`], for what a lying disk may skip.
    fn change(
        &self,
        call: Call,
        path: &Path,
        act: impl FnMut(&mut Disk) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.state().ignored.contains(&call) {
            self.call(call, path, |_| Ok(()))
        } else {
            self.call(call, path, act)
        }
    }

    /// A call that makes things durable: it does nothing if the machine dies in it, and loses what it failed to write.
    fn sync<T>(
        &self,
        call: Call,
        path: &Path,
        done: T,
        failed: impl Fn(&mut Disk),
        act: impl Fn(&mut Disk) -> io::Result<()>,
    ) -> io::Result<T> {
        let mut state = self.state();
        loop {
            match state.begin(call, path)? {
                Plan::Fail(FaultKind::EintrOnce) => {}
                Plan::Ignore => return Ok(done),
                Plan::Do | Plan::Fail(FaultKind::ShortWrite) => return act(&mut state.disk).map(|()| done),
                Plan::Die => return Err(crashed()),
                Plan::Fail(kind) => {
                    failed(&mut state.disk);
                    return Err(if kind == FaultKind::Enospc {
                        Errno::NOSPC.into()
                    } else {
                        Errno::IO.into()
                    });
                }
            }
        }
    }
}

impl State {
    fn begin(&mut self, call: Call, path: &Path) -> io::Result<Plan> {
        self.trace.push((call, path.to_owned()));
        if self.crashed {
            return Err(crashed());
        }
        let number = self.trace.len() as u64;
        if self.crash_at == Some(number) {
            self.crashed = true;
            return Ok(Plan::Die);
        }
        if let Some(kind) = self.faults.remove(&number) {
            return Ok(Plan::Fail(kind));
        }
        Ok(if self.ignored.contains(&call) { Plan::Ignore } else { Plan::Do })
    }

    fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.disk.used())
    }
}

impl Storage for SimStorage {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut levels: Vec<&Path> = dir.ancestors().filter(|p| p.file_name().is_some()).collect();
        levels.reverse();
        let there = levels.iter().take_while(|p| self.state().disk.find(p).is_ok()).count();
        // As the real one: the last level that is there may not be durable yet.
        if let Some(last) = there.checked_sub(1).map(|i| levels[i]) {
            let ino = self.state().disk.find(last)?;
            if !self.state().disk.is_dir(ino) {
                return Err(Errno::NOTDIR.into());
            }
            self.sync_dir(parent_of(last))?;
        }
        for level in &levels[there..] {
            self.call(Call::MakeDir, level, |disk| disk.make_dir(level))?;
            self.sync_dir(parent_of(level))?;
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let entries = self.call(Call::List, dir, |disk| disk.list(dir))?;
        Ok(entries.into_iter().map(|(name, is_dir, len)| DirEntry { name, is_dir, len }).collect())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let ino = if mode == OpenMode::Create {
            self.call(Call::Create, path, |disk| disk.create(path))?
        } else {
            self.call(Call::Open, path, |disk| {
                let ino = disk.find(path)?;
                disk.content(ino).map(|_| ino)
            })?
        };
        let life = self.state().life;
        Ok(Arc::new(SimFile { storage: self.clone(), path: path.to_owned(), ino, mode, life }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(Call::Rename, from, |disk| disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(Call::Remove, path, |disk| disk.remove(path, false))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.change(Call::RemoveDir, path, |disk| disk.remove(path, true))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let sync = |disk: &mut Disk| {
            let ino = disk.find(dir)?;
            disk.sync_dir(ino);
            Ok(())
        };
        self.sync(Call::SyncDir, dir, (), |_| {}, sync)
    }

    fn sync_filesystem(&self, root: &Path) -> io::Result<bool> {
        if !self.state().syncfs {
            return Ok(false);
        }
        let sync = |disk: &mut Disk| {
            disk.find(root)?;
            disk.sync_everything();
            Ok(())
        };
        self.sync(Call::SyncFilesystem, root, true, |disk| disk.lose_dirty(None), sync)
    }

    fn free_bytes(&self, root: &Path) -> io::Result<u64> {
        self.call(Call::FreeBytes, root, |disk| disk.find(root))?;
        Ok(self.state().free())
    }

    fn lock(&self, dir: &Path) -> io::Result<LockGuard> {
        let ino = self.call(Call::Lock, dir, |disk| {
            let ino = disk.find(dir)?;
            let file = dir.join(".lock");
            if disk.find(&file).is_err() {
                disk.create(&file)?;
            }
            Ok(ino)
        })?;
        let mut state = self.state();
        if state.locks.contains_key(&ino) {
            let message = format!("{} is in use by another process", dir.display());
            return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
        }
        state.next_lock += 1;
        let id = state.next_lock;
        state.locks.insert(ino, id);
        Ok(Box::new(SimLock { storage: self.clone(), ino, id }))
    }
}

struct SimLock {
    storage: SimStorage,
    ino: Ino,
    id: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.storage.state();
        if state.locks.get(&self.ino) == Some(&self.id) {
            state.locks.remove(&self.ino);
        }
    }
}

struct SimFile {
    storage: SimStorage,
    path: PathBuf,
    ino: Ino,
    mode: OpenMode,
    life: u64,
}

impl SimFile {
    /// The process that opened this file must not have died since.
    fn alive(&self) -> io::Result<()> {
        if self.storage.state().life == self.life { Ok(()) } else { Err(crashed()) }
    }

    fn writable(&self) -> io::Result<()> {
        self.alive()?;
        if self.mode == OpenMode::Read { Err(Errno::BADF.into()) } else { Ok(()) }
    }

    /// One `pwrite`: may store less than asked for.
    fn write_some(&self, data: &[u8], at: u64) -> io::Result<usize> {
        let mut guard = self.storage.state();
        let state = &mut *guard;
        let plan = state.begin(Call::Write, &self.path)?;
        let len = state.disk.content(self.ino)?.len() as u64;
        let grows = (at + data.len() as u64).saturating_sub(len);
        let missing = grows.saturating_sub(state.free()).min(data.len() as u64) as usize;
        let fits = match (at + (data.len() - missing) as u64, missing) {
            (_, 0) => data,
            // Disks run out of space by the block.
            (end, _) => &data[..(end - end % SECTOR as u64).max(len.min(end)).saturating_sub(at) as usize],
        };
        let (part, result) = match plan {
            Plan::Fail(FaultKind::EintrOnce) => return Err(Errno::INTR.into()),
            Plan::Fail(FaultKind::Eio) => return Err(Errno::IO.into()),
            Plan::Fail(FaultKind::Enospc) => return Err(Errno::NOSPC.into()),
            Plan::Ignore => return Ok(data.len()),
            _ if fits.is_empty() && !data.is_empty() => return Err(Errno::NOSPC.into()),
            Plan::Fail(FaultKind::ShortWrite) => {
                let part = &fits[..state.rng.usize(fits.len().min(1)..=fits.len())];
                (part, Ok(part.len()))
            }
            Plan::Fail(FaultKind::ShortWriteThenEio) => {
                (&fits[..state.rng.usize(..=fits.len())], Err(Errno::IO.into()))
            }
            Plan::Do => (fits, Ok(fits.len())),
            Plan::Die => (fits, Err(crashed())),
        };
        if !part.is_empty() {
            state.disk.write(self.ino, part, at)?;
        }
        result
    }
}

impl StorageFile for SimFile {
    fn write_at(&self, mut data: &[u8], mut at: u64) -> io::Result<()> {
        self.writable()?;
        while !data.is_empty() {
            match self.write_some(data, at) {
                Ok(written) => {
                    data = &data[written..];
                    at += written as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Of what was written otherwise it makes durable only what is in the same blocks.
    fn write_through(&self, data: &[u8], at: u64, fill: u8, until: u64) -> io::Result<()> {
        let mut all = data.to_vec();
        all.resize(usize::try_from(until.saturating_sub(at)).unwrap_or(0).max(data.len()), fill);
        self.write_at(&all, at)?;
        self.alive()?;
        let from = at as usize - at as usize % BLOCK;
        let end = (at as usize + all.len()).next_multiple_of(BLOCK);
        let sync = |disk: &mut Disk| {
            disk.sync_range(self.ino, from, end);
            Ok(())
        };
        self.storage.sync(Call::SyncData, &self.path, (), |disk| disk.lose_dirty(Some(self.ino)), sync)
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.alive()?;
        self.storage.call(Call::Read, &self.path, |disk| {
            let content = disk.content(self.ino)?;
            let start = content.len().min(usize::try_from(at).unwrap_or(usize::MAX));
            let read = buf.len().min(content.len() - start);
            buf[..read].copy_from_slice(&content[start..start + read]);
            Ok(read)
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.alive()?;
        self.storage.call(Call::Len, &self.path, |disk| Ok(disk.content(self.ino)?.len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?;
        let grows = {
            let state = self.storage.state();
            len.saturating_sub(state.disk.content(self.ino)?.len() as u64) > state.free()
        };
        self.storage.change(Call::SetLen, &self.path, |disk| {
            if grows {
                return Err(Errno::NOSPC.into());
            }
            disk.set_len(self.ino, len)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync_as(Call::SyncData)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_as(Call::SyncAll)
    }
}

impl SimFile {
    fn sync_as(&self, call: Call) -> io::Result<()> {
        self.alive()?;
        let sync = |disk: &mut Disk| {
            disk.sync_file(self.ino);
            Ok(())
        };
        self.storage.sync(call, &self.path, (), |disk| disk.lose_dirty(Some(self.ino)), sync)
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// The error of every call after a simulated crash.
#[derive(Debug)]
struct Crashed;

impl fmt::Display for Crashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated machine has crashed")
    }
}

impl Error for Crashed {}

fn crashed() -> io::Error {
    io::Error::other(Crashed)
}

/// True for the error that every call gives between [`SimStorage::crash_at`] and [`SimStorage::crash`], and that files opened before a crash
/// give for ever.
pub fn is_simulated_crash(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<Crashed>)
}

impl fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("SimStorage")
            .field("calls", &state.trace.len())
            .field("crashed", &state.crashed)
            .finish_non_exhaustive()
    }
}
