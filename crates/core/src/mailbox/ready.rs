//! The order in which unsettled messages become deliverable: priority, then sequence.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

/// Ready sequences by priority, as runs: a million contiguous messages of one priority are one entry.
#[derive(Debug, Default)]
pub(super) struct Ready {
    // The largest priority first.
    classes: BTreeMap<Reverse<i64>, VecDeque<(u64, u64)>>,
    count: u64,
}

impl Ready {
    pub(super) fn len(&self) -> u64 {
        self.count
    }

    pub(super) fn top_priority(&self) -> Option<i64> {
        self.classes.first_key_value().map(|(p, _)| p.0)
    }

    /// Adds `first..=last`, none of which is in the set.
    pub(super) fn insert(&mut self, first: u64, last: u64, priority: i64) {
        self.count += last - first + 1;
        let runs = self.classes.entry(Reverse(priority)).or_default();
        match runs.back_mut() {
            Some(back) if back.1 + 1 == first => back.1 = last,
            Some(back) if back.1 < first => runs.push_back((first, last)),
            None => runs.push_back((first, last)),
            Some(_) => {
                let at = runs.partition_point(|run| run.1 < first);
                let joins_next = runs.get(at).is_some_and(|run| last + 1 == run.0);
                let joins_previous = at > 0 && runs[at - 1].1 + 1 == first;
                match (joins_previous, joins_next) {
                    (true, true) => {
                        runs[at - 1].1 = runs[at].1;
                        runs.remove(at);
                    }
                    (true, false) => runs[at - 1].1 = last,
                    (false, true) => runs[at].0 = first,
                    (false, false) => runs.insert(at, (first, last)),
                }
            }
        }
    }

    /// Takes the first messages in order, as many of one run as there are, at most `max`: first, last, priority.
    pub(super) fn pop(&mut self, max: u64) -> Option<(u64, u64, i64)> {
        let mut class = self.classes.first_entry()?;
        let priority = class.key().0;
        let runs = class.get_mut();
        let front = runs.front_mut()?;
        let first = front.0;
        let last = front.1.min(first.saturating_add(max.max(1) - 1));
        if last == front.1 {
            runs.pop_front();
            if runs.is_empty() {
                class.remove();
            }
        } else {
            front.0 = last + 1;
        }
        self.count -= last - first + 1;
        Some((first, last, priority))
    }

    /// Drops everything below `seq`; says how many there were.
    pub(super) fn drop_below(&mut self, seq: u64) -> u64 {
        let mut dropped = 0;
        self.classes.retain(|_, runs| {
            while let Some(front) = runs.front_mut() {
                if front.1 < seq {
                    dropped += front.1 - front.0 + 1;
                    runs.pop_front();
                } else {
                    if front.0 < seq {
                        dropped += seq - front.0;
                        front.0 = seq;
                    }
                    break;
                }
            }
            !runs.is_empty()
        });
        self.count -= dropped;
        dropped
    }

    /// Bytes of memory held, roughly.
    pub(super) fn memory(&self) -> usize {
        self.classes.values().map(|runs| runs.capacity() * 16 + 64).sum()
    }
}
