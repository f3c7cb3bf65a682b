//! What all sessions of a server share: limits, words, tokens, counts.

use crate::protocol::{VERSION, Words};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Bounds of a session. Each has a default in the protocol document.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a line without its end.
    pub max_line: usize,
    /// Bytes of a `pubn` body.
    pub max_bulk: usize,
    /// Replies that wait for a commit.
    pub max_replies: usize,
    /// Bytes of output held.
    pub max_output: usize,
    /// Subscriptions.
    pub max_subscriptions: usize,
    /// Bytes of half-sent lines, all sessions together.
    pub max_partial: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_line: 1 << 20,
            max_bulk: 8 << 20,
            max_replies: 65_536,
            max_output: 256 << 10,
            max_subscriptions: 1000,
            max_partial: 256 << 20,
        }
    }
}

/// What all sessions share.
#[derive(Debug)]
pub struct Hub {
    pub(super) words: Words,
    pub(super) tokens: Vec<String>,
    pub(super) limits: Limits,
    pub(super) started: Instant,
    connections: AtomicUsize,
    accepted: AtomicU64,
    // The names that sessions gave themselves, by their number.
    names: Mutex<BTreeMap<u64, String>>,
    // Bytes of half-sent lines in all sessions.
    partial: AtomicUsize,
}

impl Hub {
    /// A hub without sessions.
    pub fn new(words: Words, tokens: Vec<String>, limits: Limits) -> Self {
        Self {
            words,
            tokens,
            limits,
            started: Instant::now(),
            connections: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            names: Mutex::new(BTreeMap::new()),
            partial: AtomicUsize::new(0),
        }
    }

    /// Sessions now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Sessions since the start.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Says the number of the new session.
    pub(super) fn connected(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.accepted.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn rename(&self, number: u64, name: Option<String>) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        match name {
            Some(name) => {
                tracing::info!(connection = number, name, "a client says its name");
                names.insert(number, name);
            }
            None => {
                names.remove(&number);
            }
        }
    }

    /// The names that sessions gave themselves, at most 1000.
    pub(super) fn names(&self) -> Vec<String> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.values().take(1000).cloned().collect()
    }

    pub(super) fn disconnected(&self, number: u64, held: usize) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.partial.fetch_sub(held, Ordering::Relaxed);
    }

    /// A session holds `after` bytes of half a line where it held `before`; false if that is too much for all.
    pub(super) fn hold(&self, before: usize, after: usize) -> bool {
        if after >= before {
            let total = self.partial.fetch_add(after - before, Ordering::Relaxed) + (after - before);
            return after == before || total <= self.limits.max_partial;
        }
        self.partial.fetch_sub(before - after, Ordering::Relaxed);
        true
    }

    pub(super) fn greeting(&self, sync: &str, dedup: std::time::Duration) -> String {
        let dedup = match dedup.as_millis() {
            0 => String::new(),
            millis if millis % 1000 == 0 => format!(" dedup={}s", millis / 1000),
            millis => format!(" dedup={millis}ms"),
        };
        let auth = if self.tokens.is_empty() { "none" } else { "token" };
        format!(
            "hello postroad/{} jsonlog/{VERSION} sync={sync} max_line={} auth={auth}{dedup}",
            env!("CARGO_PKG_VERSION"),
            self.limits.max_line
        )
    }

    /// Takes as long for a wrong token as for a right one.
    pub(super) fn knows_token(&self, token: &str) -> bool {
        self.tokens.iter().fold(false, |known, candidate| {
            let differs = candidate.bytes().zip(token.bytes()).fold(0, |acc, (a, b)| acc | (a ^ b));
            known | (differs == 0 && candidate.len() == token.len())
        })
    }
}
