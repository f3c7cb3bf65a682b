//! What happened at the edge.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counted since the start, for whoever looks from another thread.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) open: Counter,
    pub(super) accepted: Counter,
    pub(super) refused: Counter,
    pub(super) failed_handshakes: Counter,
    pub(super) slow: Counter,
    pub(super) partial: Counter,
    pub(super) overfull: Counter,
    pub(super) turns: Counter,
    pub(super) inline_commits: Counter,
}

/// Written by one thread only, so that it is no more than a load and a store.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, by: u64) {
        self.0.store(self.get().wrapping_add(by), Ordering::Relaxed);
    }

    pub(super) fn sub(&self, by: u64) {
        self.0.store(self.get().saturating_sub(by), Ordering::Relaxed);
    }
}

/// What happened at the edge since the start, and how it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Connections now, those in a handshake or about to be closed included.
    pub connections: u64,
    /// Connections that were accepted.
    pub accepted: u64,
    /// Connections that were closed at once: there were too many.
    pub refused: u64,
    /// TLS handshakes and WebSocket upgrades that failed or took too long.
    pub failed_handshakes: u64,
    /// Connections that were closed because their peer read nothing for too long.
    pub slow: u64,
    /// Bytes held now of packets that have not wholly arrived.
    pub partial_bytes: u64,
    /// Connections that were closed because all of them held too many such bytes.
    pub overfull: u64,
    /// Times the thread went over the connections it had heard of, to commit and to write.
    pub turns: u64,
    /// Commits this thread ran itself.
    pub inline_commits: u64,
}

impl Counters {
    pub(super) fn stats(&self) -> ServerStats {
        ServerStats {
            connections: self.open.get(),
            accepted: self.accepted.get(),
            refused: self.refused.get(),
            failed_handshakes: self.failed_handshakes.get(),
            slow: self.slow.get(),
            partial_bytes: self.partial.get(),
            overfull: self.overfull.get(),
            turns: self.turns.get(),
            inline_commits: self.inline_commits.get(),
        }
    }
}
