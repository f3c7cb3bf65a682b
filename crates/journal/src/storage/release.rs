//! Giving back the space of large files.
//!
//! A filesystem with a journal frees a file in one transaction, and durable writes that need that journal wait for it: the
//! larger the file, the longer. So what has no name any more is first made shorter step by step, unless somebody else still
//! has it: whoever opens a file here holds a shared lock on it (flock(2)).

use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

const STEP: u64 = 1 << 20;
/// So many times longer than a step takes, others have the disk to themselves,
const REST: u32 = 4;
/// unless less than this is freed in a second: a log that grows fast must not fill the disk meanwhile.
const LEAST: u64 = 256 << 20;

/// Says that the file is in use. An error: it is being freed, and has no name any more.
pub(super) fn hold(file: &File) -> io::Result<()> {
    match flock(file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(io::ErrorKind::NotFound.into()),
        // Where there are no such locks, files are freed at once: see below.
        _ => Ok(()),
    }
}

/// Deletes a file.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let large = |file: &File| file.metadata().is_ok_and(|about| about.is_file() && about.len() > STEP);
    let file = File::options().write(true).open(path).ok().filter(large);
    fs::remove_file(path)?;
    let Some(file) = file else { return Ok(()) };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        shorten(&file);
    }
    Ok(())
}

/// The rest is freed when it is closed.
fn shorten(file: &File) {
    // Another name is somebody's copy.
    let Ok(about) = file.metadata() else { return };
    if about.nlink() > 0 {
        return;
    }
    let (mut len, begin) = (about.len(), Instant::now());
    while len > STEP {
        len -= STEP;
        let start = Instant::now();
        if file.set_len(len).is_err() {
            return;
        }
        std::thread::sleep(rest(about.len() - len, begin.elapsed(), start.elapsed()));
    }
}

/// How long to rest when so much was freed in so long, by a last step of so long.
fn rest(freed: u64, took: Duration, step: Duration) -> Duration {
    let may = Duration::from_nanos(freed.saturating_mul(1_000_000_000) / LEAST);
    (step * REST).min(may.saturating_sub(took))
}

#[cfg(test)]
mod tests {
    use super::{STEP, rest};
    use crate::storage::{OpenMode, RealStorage, Storage};
    use std::fs::{self, File};
    use std::path::Path;
    use std::time::Duration;

    const LEN: u64 = 3 * STEP + 5;

    fn make(path: &Path) {
        File::create(path).unwrap().set_len(LEN).unwrap();
    }

    #[test]
    fn others_have_most_of_the_time_unless_that_frees_too_little() {
        let ms = Duration::from_millis;
        assert_eq!(rest(8 << 20, ms(5), Duration::from_micros(300)), Duration::from_micros(1200));
        assert_eq!(rest(64 << 20, ms(245), ms(3)), ms(5), "250 ms for 64 MiB");
        assert_eq!(rest(64 << 20, ms(300), ms(9)), ms(0), "a slow disk gets no rest");
    }

    #[test]
    fn who_has_a_file_that_is_deleted_still_reads_it() {
        let (temp, disk) = (tempfile::tempdir().unwrap(), RealStorage::new());
        let path = temp.path().join("a");
        for mode in [OpenMode::Read, OpenMode::Write] {
            make(&path);
            let file = disk.open(&path, mode).unwrap();
            disk.remove(&path).unwrap();
            assert_eq!(file.len().unwrap(), LEN, "{mode:?}");
        }
        assert!(!path.exists());
    }

    #[test]
    fn a_copy_by_another_name_stays_whole() {
        let (temp, disk) = (tempfile::tempdir().unwrap(), RealStorage::new());
        let (path, copy) = (temp.path().join("a"), temp.path().join("b"));
        make(&path);
        fs::hard_link(&path, &copy).unwrap();
        disk.remove(&path).unwrap();
        assert_eq!(fs::metadata(&copy).unwrap().len(), LEN);
    }

    #[test]
    fn what_nobody_has_is_shortened_and_cannot_be_opened_meanwhile() {
        let (temp, disk) = (tempfile::tempdir().unwrap(), RealStorage::new());
        let path = temp.path().join("a");
        make(&path);
        // As somebody sees it who does not tell that he has it.
        let seen = File::open(&path).unwrap();
        disk.remove(&path).unwrap();
        assert!(seen.metadata().unwrap().len() <= STEP);

        make(&path);
        let freeing = File::open(&path).unwrap();
        rustix::fs::flock(&freeing, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let opened = disk.open(&path, OpenMode::Read).map(drop);
        assert_eq!(opened.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
}
