//! The operating system's disk.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::FlockOperation;

use super::through::{Scratch, Through};
use super::{DirEntry, LockGuard, OpenMode, Storage, StorageFile, release};

/// Files on the operating system's disk.
///
/// Cheap to create; one per process is the intended use, because the descriptors that `syncfs` needs are kept in it.
#[derive(Debug)]
pub struct RealStorage {
    roots: Mutex<HashMap<PathBuf, Root>>,
    /// `syncfs` reports write-back errors.
    syncfs_reports: bool,
    scratch: Scratch,
}

/// A directory whose filesystem may be synced as a whole.
#[derive(Debug, Clone)]
struct Root {
    /// Open since before the writes it must vouch for.
    dir: Arc<File>,
    device: u64,
    /// Some file below lives on another filesystem, so that one `syncfs` does not reach everything.
    spans: bool,
}

impl Default for RealStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl RealStorage {
    /// The operating system's disk.
    pub fn new() -> Self {
        Self { roots: Mutex::default(), syncfs_reports: syncfs_reports_errors(), scratch: Scratch::default() }
    }

    fn roots(&self) -> MutexGuard<'_, HashMap<PathBuf, Root>> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the descriptor for `syncfs` if there is none yet; returns it and whether it was there before.
    fn root(&self, dir: &Path) -> io::Result<(Root, bool)> {
        let mut roots = self.roots();
        if let Some(root) = roots.get(dir) {
            return Ok((root.clone(), true));
        }
        let file = File::open(dir)?;
        let device = file.metadata()?.dev();
        let root = Root { dir: Arc::new(file), device, spans: false };
        roots.insert(dir.to_owned(), root.clone());
        Ok((root, false))
    }

    /// Notices a file that a `syncfs` of its root would miss.
    fn check_device(&self, path: &Path, file: &File) -> io::Result<()> {
        let mut roots = self.roots();
        for (dir, root) in roots.iter_mut() {
            if !root.spans && path.starts_with(dir) && file.metadata()?.dev() != root.device {
                root.spans = true;
            }
        }
        Ok(())
    }
}

impl Storage for RealStorage {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut at = dir;
        while !at.as_os_str().is_empty() && !at.is_dir() {
            missing.push(at);
            match at.parent() {
                Some(parent) => at = parent,
                None => break,
            }
        }
        // `at` may have been made by a process that died before it synced the parent. No other level can be in that state,
        // because each is synced before the next is made.
        if let Some(parent) = at.parent() {
            match self.sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }) {
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
                other => other?,
            }
        }
        for made in missing.into_iter().rev() {
            match fs::create_dir(made) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && made.is_dir() => {}
                Err(e) => return Err(e),
            }
            self.sync_dir(parent_of(made))?;
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // Follow links; one that vanished or dangles is no file of ours.
            let meta = match fs::metadata(entry.path()) {
                Ok(meta) => meta,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            entries.push(DirEntry {
                name: entry.file_name().to_string_lossy().into_owned(),
                is_dir: meta.is_dir(),
                len: if meta.is_dir() { 0 } else { meta.len() },
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => {}
            OpenMode::Write => {
                options.write(true);
            }
            OpenMode::Create => {
                options.write(true).create_new(true);
            }
        }
        let file = options.open(path)?;
        release::hold(&file)?;
        if mode != OpenMode::Read {
            self.check_device(path, &file)?;
        }
        let through = Mutex::new(Through::new(self.scratch.clone()));
        Ok(Arc::new(RealFile { file, through }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        release::remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn sync_filesystem(&self, root: &Path) -> io::Result<bool> {
        if !self.syncfs_reports {
            return Ok(false);
        }
        let (root, known) = self.root(root)?;
        if !known || root.spans {
            return Ok(false);
        }
        sync_filesystem_of(&root.dir)
    }

    fn free_bytes(&self, root: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn lock(&self, dir: &Path) -> io::Result<LockGuard> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join(".lock"))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
            if e == rustix::io::Errno::WOULDBLOCK {
                io::Error::new(
                    io::ErrorKind::WouldBlock,
                    format!("{} is in use by another process", dir.display()),
                )
            } else {
                e.into()
            }
        })?;
        self.root(dir)?;
        // The lock belongs to the open file description and ends with it. The file stays: removing it would let two
        // processes lock two files of one name.
        Ok(Box::new(file))
    }
}

struct RealFile {
    file: File,
    through: Mutex<Through>,
}

impl RealFile {
    fn through(&self) -> MutexGuard<'_, Through> {
        self.through.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageFile for RealFile {
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.through().forget();
        self.file.write_all_at(data, at)
    }

    fn write_through(&self, data: &[u8], at: u64, fill: u8, until: u64) -> io::Result<()> {
        if self.through().write(&self.file, data, at, fill, until)? {
            return Ok(());
        }
        self.write_at(data, at)?;
        let end = at + data.len() as u64;
        if until > end {
            let filling = vec![fill; usize::try_from(until - end).unwrap_or(usize::MAX)];
            self.write_at(&filling, end)?;
        }
        self.sync_data()
    }

    fn prefetch(&self) {
        #[cfg(target_os = "linux")]
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::WillNeed);
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.through().forget();
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(target_os = "linux")]
fn sync_filesystem_of(dir: &File) -> io::Result<bool> {
    rustix::fs::syncfs(dir)?;
    Ok(true)
}

#[cfg(not(target_os = "linux"))]
fn sync_filesystem_of(_dir: &File) -> io::Result<bool> {
    Ok(false)
}

/// `syncfs` returns write-back errors since Linux 5.8.
fn syncfs_reports_errors() -> bool {
    cfg!(target_os = "linux")
        && fs::read_to_string("/proc/sys/kernel/osrelease")
            .is_ok_and(|release| kernel_at_least(&release, (5, 8)))
}

fn kernel_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= wanted,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::read_range;

    #[test]
    fn files_and_names() {
        let temp = tempfile::tempdir().unwrap();
        let storage = RealStorage::new();
        let dir = temp.path().join("x/y/z");
        storage.create_dir_all(&dir).unwrap();
        storage.create_dir_all(&dir).unwrap();
        assert_eq!(storage.list(&dir.join("no")).unwrap_err().kind(), io::ErrorKind::NotFound);
        let file = storage.open(&dir.join("b"), OpenMode::Create).unwrap();
        assert_eq!(
            storage.open(&dir.join("b"), OpenMode::Create).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(
            storage.open(&dir.join("c"), OpenMode::Write).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        file.write_at(b"hello", 2).unwrap();
        file.sync_data().unwrap();
        file.sync_all().unwrap();
        storage.sync_dir(&dir).unwrap();
        assert_eq!(read_range(&*file, 0, 99).unwrap(), b"\0\0hello");
        assert_eq!(read_range(&*file, 50, 9).unwrap(), b"");
        file.set_len(3).unwrap();
        storage.rename(&dir.join("b"), &dir.join("a")).unwrap();
        storage.create_dir_all(&dir.join("sub")).unwrap();
        let expected = [
            DirEntry { name: "a".into(), is_dir: false, len: 3 },
            DirEntry { name: "sub".into(), is_dir: true, len: 0 },
        ];
        assert_eq!(storage.list(&dir).unwrap(), expected);
        let again = storage.open(&dir.join("a"), OpenMode::Write).unwrap();
        again.write_at(b"X", 0).unwrap();
        let reader = storage.open(&dir.join("a"), OpenMode::Read).unwrap();
        assert_eq!(read_range(&*reader, 0, 9).unwrap(), b"X\0h");
        assert!(reader.write_at(b"no", 0).is_err());
        storage.remove(&dir.join("a")).unwrap();
        storage.remove_dir(&dir.join("sub")).unwrap();
        assert_eq!(storage.list(&dir).unwrap(), []);
    }

    #[test]
    fn a_file_in_the_way_of_a_directory_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let storage = RealStorage::new();
        storage.open(&temp.path().join("f"), OpenMode::Create).unwrap();
        assert!(storage.create_dir_all(&temp.path().join("f")).is_err());
        assert!(storage.create_dir_all(&temp.path().join("f/g")).is_err());
    }

    #[test]
    fn the_lock_is_exclusive_even_within_a_process() {
        let temp = tempfile::tempdir().unwrap();
        let (one, two) = (RealStorage::new(), RealStorage::new());
        let guard = one.lock(temp.path()).unwrap();
        for storage in [&one, &two] {
            assert_eq!(storage.lock(temp.path()).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        }
        drop(guard);
        two.lock(temp.path()).unwrap();
    }

    #[test]
    fn syncfs_needs_a_descriptor_from_before_the_writes() {
        let temp = tempfile::tempdir().unwrap();
        let storage = RealStorage { syncfs_reports: true, ..RealStorage::new() };
        assert!(!storage.sync_filesystem(temp.path()).unwrap(), "too late for earlier errors");
        let works = cfg!(target_os = "linux");
        assert_eq!(storage.sync_filesystem(temp.path()).unwrap(), works);
        let locked = tempfile::tempdir().unwrap();
        let _guard = storage.lock(locked.path()).unwrap();
        assert_eq!(storage.sync_filesystem(locked.path()).unwrap(), works);
    }

    #[test]
    fn syncfs_is_refused_when_a_file_lives_on_another_filesystem() {
        let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else { return };
        let exe = std::env::current_exe().unwrap();
        let temp = tempfile::tempdir_in(exe.parent().unwrap()).unwrap();
        if fs::metadata(elsewhere.path()).unwrap().dev() == fs::metadata(temp.path()).unwrap().dev() {
            return;
        }
        let storage = RealStorage { syncfs_reports: cfg!(target_os = "linux"), ..RealStorage::new() };
        let _guard = storage.lock(temp.path()).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), temp.path().join("topic")).unwrap();
        storage.open(&temp.path().join("here"), OpenMode::Create).unwrap();
        assert_eq!(storage.sync_filesystem(temp.path()).unwrap(), cfg!(target_os = "linux"));
        storage.open(&temp.path().join("topic/there"), OpenMode::Create).unwrap();
        assert!(!storage.sync_filesystem(temp.path()).unwrap());
    }

    #[test]
    fn free_space_is_known() {
        let temp = tempfile::tempdir().unwrap();
        assert!(RealStorage::new().free_bytes(temp.path()).unwrap() > 0);
    }

    #[test]
    fn kernel_releases_compare_as_numbers() {
        assert!(kernel_at_least("5.8.0-generic\n", (5, 8)));
        assert!(kernel_at_least("6.1", (5, 8)));
        assert!(kernel_at_least("5.10.3", (5, 8)));
        assert!(!kernel_at_least("5.7.19", (5, 8)));
        assert!(!kernel_at_least("4.19.0", (5, 8)));
        assert!(!kernel_at_least("weird", (5, 8)));
    }
}
