//! How much one commit takes. A disk that lets each commit wait, however little it writes, is asked less often for more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a disk writes in a nanosecond, if it is fast. A slower one seems to let commits wait, which does no harm: what is
/// left for the next commit would wait as long.
const BYTES_A_NS: u64 = 1;
/// A commit that waits no longer than this is not made larger.
const FAST: u64 = 1_000_000;
/// Times that a commit may become larger.
const MOST: u64 = 16;
/// Commits over which the wait is averaged, about.
const SPAN: u64 = 8;

/// How long commits wait apart from what they write, in nanoseconds, as it was lately.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    /// A commit of so many bytes took so long. By one thread at a time.
    pub(super) fn note(&self, bytes: u64, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) / SPAN;
        let wait = took.saturating_sub(bytes / BYTES_A_NS / SPAN);
        let before = self.0.load(Ordering::Relaxed);
        self.0.store((before - before / SPAN).saturating_add(wait), Ordering::Relaxed);
    }

    /// How many times the usual size the next one may have.
    pub(super) fn factor(&self) -> usize {
        (self.0.load(Ordering::Relaxed) / FAST).clamp(1, MOST) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;
    use crate::storage::SimStorage;
    use crate::{Committer, CommitterOptions, Journal, JournalOptions};
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    fn factor_after(commits: &[(u64, u64)]) -> usize {
        let pace = Pace::default();
        for (bytes, micros) in commits.iter().cycle().take(commits.len().max(100)) {
            pace.note(*bytes, Duration::from_micros(*micros));
        }
        pace.factor()
    }

    #[test]
    fn commits_grow_where_each_waits_and_not_with_what_they_write() {
        assert_eq!(Pace::default().factor(), 1);
        assert_eq!(factor_after(&[(400, 100)]), 1);
        assert_eq!(factor_after(&[(1 << 20, 1700)]), 1);
        assert_eq!(factor_after(&[(400, 5100)]), 5);
        assert_eq!(factor_after(&[(1 << 20, 6100)]), 5);
        assert_eq!(factor_after(&[(5 << 20, 10_300)]), 5);
        assert_eq!(factor_after(&[(400, 1_000_000)]), 16);
        assert_eq!(factor_after(&[(400, u64::MAX / 1000)]), 16);
    }

    #[test]
    fn one_slow_commit_changes_little_and_a_disk_that_recovers_is_believed() {
        let pace = Pace::default();
        pace.note(400, Duration::from_millis(8));
        assert_eq!(pace.factor(), 1);
        for _ in 0..100 {
            pace.note(400, Duration::from_millis(8));
        }
        assert!(pace.factor() > 6);
        for _ in 0..40 {
            pace.note(8 << 20, Duration::from_millis(9));
        }
        assert_eq!(pace.factor(), 1);
    }

    /// Commits that it takes for 40 records of 100 bytes, where one has 1000 on a fast disk.
    fn commits(wait: Duration) -> u32 {
        let options =
            CommitterOptions { max_batch_bytes: 1000, disk_floor: 0, ..CommitterOptions::default() };
        let committer = Committer::open(Arc::new(SimStorage::new(1)), Path::new("/d"), options).unwrap();
        let options = JournalOptions { name: "log".into(), segment_bytes: 1 << 20 };
        let (journal, _) = Journal::open(&committer, Path::new("/d/log"), options, &mut |_| Ok(())).unwrap();
        journal.roll(1, 1);
        while committer.commit_now().unwrap() {}
        (0..100).for_each(|_| committer.pace.note(100, wait));
        for _ in 0..40 {
            journal.writer(1).record("x", |out| out.extend_from_slice(&[b' '; 70]));
        }
        let mut commits = 0;
        while committer.commit_now().unwrap() {
            commits += 1;
        }
        commits
    }

    #[test]
    fn what_is_appended_is_put_into_fewer_commits() {
        let (fast, slow) = (commits(Duration::from_micros(100)), commits(Duration::from_millis(10)));
        assert!(fast >= 4 && slow == 1, "{fast} on a fast disk, {slow} on a slow one");
    }
}
