//! What is in flight, by sequence.

use super::ConsumerId;
use std::collections::VecDeque;

/// One delivery that waits for its verdict.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) seq: u64,
    pub(super) deadline: u64,
    pub(super) priority: i64,
    pub(super) consumer: ConsumerId,
    pub(super) attempt: u32,
    pub(super) bytes: u32,
    live: bool,
}

/// Leases ordered by sequence. Deliveries go out and are settled nearly in order, so a deque with
/// tombstones beats a tree; the worst case stays bounded by the windows of the consumers.
#[derive(Debug, Default)]
pub(super) struct Leases {
    slots: VecDeque<Lease>,
    live: usize,
}

impl Lease {
    pub(super) fn new(
        seq: u64,
        deadline: u64,
        priority: i64,
        consumer: ConsumerId,
        attempt: u32,
        bytes: u32,
    ) -> Self {
        Self { seq, deadline, priority, consumer, attempt, bytes, live: true }
    }
}

impl Leases {
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// A run of neighbours, ascending.
    #[inline]
    pub(super) fn insert(&mut self, mut run: impl Iterator<Item = Lease>) {
        let Some(first) = run.next() else { return };
        if self.slots.back().is_none_or(|back| back.seq < first.seq) {
            let before = self.slots.len();
            self.slots.push_back(first);
            self.slots.extend(run);
            self.live += self.slots.len() - before;
            return;
        }
        for lease in std::iter::once(first).chain(run) {
            self.live += 1;
            let at = self.slots.partition_point(|slot| slot.seq < lease.seq);
            match self.slots.get_mut(at) {
                Some(slot) if slot.seq == lease.seq => {
                    debug_assert!(!slot.live);
                    *slot = lease;
                }
                _ => self.slots.insert(at, lease),
            }
        }
    }

    fn position(&self, seq: u64) -> Option<usize> {
        let front = self.slots.front()?.seq;
        let guess = usize::try_from(seq.checked_sub(front)?).unwrap_or(usize::MAX);
        let at = match self.slots.get(guess) {
            Some(slot) if slot.seq == seq => guess,
            _ => self.slots.binary_search_by_key(&seq, |slot| slot.seq).ok()?,
        };
        self.slots[at].live.then_some(at)
    }

    pub(super) fn get_mut(&mut self, seq: u64) -> Option<&mut Lease> {
        let at = self.position(seq)?;
        Some(&mut self.slots[at])
    }

    pub(super) fn get(&self, seq: u64) -> Option<&Lease> {
        self.position(seq).map(|at| &self.slots[at])
    }

    pub(super) fn remove(&mut self, seq: u64) -> Option<Lease> {
        let at = self.position(seq)?;
        Some(self.remove_at(at))
    }

    /// Removes the lease of `seq` if `consumer` holds it.
    #[inline]
    pub(super) fn remove_held(&mut self, seq: u64, consumer: ConsumerId) -> Option<Lease> {
        // In order, it is the first one, which is always live.
        if let Some(&front) = self.slots.front()
            && front.seq == seq
        {
            if front.consumer != consumer {
                return None;
            }
            self.live -= 1;
            self.slots.pop_front();
            if self.slots.front().is_some_and(|slot| !slot.live) {
                self.shrink();
            }
            return Some(front);
        }
        let at = self.position(seq)?;
        if self.slots[at].consumer != consumer {
            return None;
        }
        Some(self.remove_at(at))
    }

    /// Removes the leases of `first`, `first + 1` and so on up to `last`, if `first` is the oldest of all, as long as
    /// `consumer` holds them; says how many those were, and their bytes.
    pub(super) fn remove_oldest(
        &mut self,
        consumer: ConsumerId,
        first: u64,
        last: u64,
    ) -> Option<(u64, u64)> {
        let (mut count, mut bytes) = (0, 0);
        for slot in &self.slots {
            let is_next = slot.seq == first + count && slot.seq <= last;
            if !is_next || slot.consumer != consumer || !slot.live {
                break;
            }
            count += 1;
            bytes += u64::from(slot.bytes);
        }
        if count == 0 {
            return None;
        }
        self.slots.drain(..count as usize);
        self.live -= count as usize;
        self.shrink();
        Some((count, bytes))
    }

    fn remove_at(&mut self, at: usize) -> Lease {
        let lease = self.slots[at];
        self.slots[at].live = false;
        self.live -= 1;
        self.shrink();
        lease
    }

    /// The oldest one.
    #[inline]
    pub(super) fn front(&self) -> Option<&Lease> {
        self.slots.front()
    }

    /// The first live one in `first..=last` with this deadline.
    pub(super) fn first_due(&self, first: u64, last: u64, deadline: u64) -> Option<u64> {
        let from = self.slots.partition_point(|slot| slot.seq < first);
        let run = self.slots.range(from..).take_while(|slot| slot.seq <= last);
        run.filter(|slot| slot.live && slot.deadline == deadline).map(|slot| slot.seq).next()
    }

    fn shrink(&mut self) {
        while self.slots.front().is_some_and(|slot| !slot.live) {
            self.slots.pop_front();
        }
        while self.slots.back().is_some_and(|slot| !slot.live) {
            self.slots.pop_back();
        }
        if self.slots.len() > 64 && self.slots.len() > 4 * self.live {
            self.slots.retain(|slot| slot.live);
        }
    }

    /// The live sequences in `first..=last` that `consumer` holds.
    pub(super) fn held(
        &self,
        consumer: ConsumerId,
        first: u64,
        last: u64,
    ) -> impl DoubleEndedIterator<Item = u64> + '_ {
        let from = self.slots.partition_point(|slot| slot.seq < first);
        self.slots
            .range(from..)
            .take(
                usize::try_from(last.saturating_sub(first))
                    .unwrap_or(usize::MAX)
                    .saturating_add(1)
                    .min(self.slots.len() - from),
            )
            .filter(move |slot| slot.live && slot.consumer == consumer && slot.seq <= last)
            .map(|slot| slot.seq)
    }

    /// The live sequences below `seq`.
    pub(super) fn below(&self, seq: u64) -> Vec<u64> {
        self.slots
            .iter()
            .take_while(|slot| slot.seq < seq)
            .filter(|slot| slot.live)
            .map(|slot| slot.seq)
            .collect()
    }
}
