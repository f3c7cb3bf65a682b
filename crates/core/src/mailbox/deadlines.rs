//! When leases end, as runs: a batch that is taken together is one entry.

use super::Millis;
use super::leases::Leases;
use std::collections::VecDeque;

/// The leases of `first..=last` that are live and still have this deadline.
#[derive(Clone, Copy, Debug)]
struct Run {
    deadline: Millis,
    first: u64,
    last: u64,
}

/// Runs by deadline. `first` of the front run is always a live lease of its deadline, so the next deadline is exact;
/// what became stale behind it goes when it gets there, or when there is too much of it.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    runs: VecDeque<Run>,
}

impl Deadlines {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.runs.capacity()
    }

    pub(super) fn next(&self) -> Option<Millis> {
        self.runs.front().map(|run| run.deadline)
    }

    /// The leases of `first..=last` end at `deadline`. Deadlines nearly always come in order; a policy that got shorter
    /// may put one before others.
    #[inline]
    pub(super) fn push(&mut self, deadline: Millis, first: u64, last: u64) {
        match self.runs.back_mut() {
            Some(back) if back.deadline == deadline && back.last + 1 == first => back.last = last,
            Some(back) if back.deadline > deadline => {
                let at = self.runs.partition_point(|run| run.deadline <= deadline);
                self.runs.insert(at, Run { deadline, first, last });
            }
            _ => self.runs.push_back(Run { deadline, first, last }),
        }
    }

    /// The lease of `seq` is over or has another deadline.
    #[inline]
    pub(super) fn release(&mut self, seq: u64, leases: &Leases) {
        if let Some(front) = self.runs.front_mut()
            && front.first == seq
        {
            // In order, the oldest lease is the next of the run.
            match leases.front() {
                Some(next) if (seq..=front.last).contains(&next.seq) && next.deadline == front.deadline => {
                    front.first = next.seq;
                }
                _ => self.tidy(leases),
            }
        }
        self.drop_stale(leases);
    }

    /// Many leases are over.
    pub(super) fn released(&mut self, leases: &Leases) {
        self.tidy(leases);
        self.drop_stale(leases);
    }

    fn drop_stale(&mut self, leases: &Leases) {
        if self.runs.len() > 64 && self.runs.len() > 4 * leases.len() {
            self.runs.retain(|run| is_live(run, leases));
        }
    }

    fn tidy(&mut self, leases: &Leases) {
        while let Some(front) = self.runs.front_mut() {
            if let Some(seq) = leases.first_due(front.first, front.last, front.deadline) {
                front.first = seq;
                break;
            }
            self.runs.pop_front();
        }
    }

    /// A lease that has ended at `now`, which the caller releases.
    pub(super) fn ended(&self, now: Millis) -> Option<u64> {
        self.runs.front().filter(|run| run.deadline <= now).map(|run| run.first)
    }
}

fn is_live(run: &Run, leases: &Leases) -> bool {
    leases.first_due(run.first, run.last, run.deadline).is_some()
}
