//! A set of sequence numbers kept as disjoint inclusive ranges.

use std::collections::BTreeMap;

/// Sequence numbers as disjoint, non-adjacent inclusive ranges.
///
/// Costs memory per *range*, not per number, so "everything up to a million except three" is four entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// True if nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ranges are held.
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// How many numbers are in the set.
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|(a, b)| b - a + 1).sum()
    }

    /// True if `n` is in the set.
    pub fn contains(&self, n: u64) -> bool {
        self.ranges.range(..=n).next_back().is_some_and(|(_, &last)| last >= n)
    }

    /// The lowest range.
    pub fn first(&self) -> Option<(u64, u64)> {
        self.ranges.first_key_value().map(|(a, b)| (*a, *b))
    }

    /// The highest range.
    pub fn last(&self) -> Option<(u64, u64)> {
        self.ranges.last_key_value().map(|(a, b)| (*a, *b))
    }

    /// Removes and returns the lowest range.
    pub fn pop_first(&mut self) -> Option<(u64, u64)> {
        self.ranges.pop_first()
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(a, b)| (*a, *b))
    }

    /// Adds `first..=last`; joins what touches. An inverted range adds nothing.
    pub fn insert(&mut self, mut first: u64, mut last: u64) {
        if first > last {
            return;
        }
        if let Some((&a, &b)) = self.ranges.range(..=first).next_back()
            && b >= first.saturating_sub(1)
        {
            if b >= last {
                return;
            }
            first = a;
        }
        while let Some((&a, &b)) = self.ranges.range(first..=last.saturating_add(1)).next() {
            last = last.max(b);
            self.ranges.remove(&a);
        }
        self.ranges.insert(first, last);
    }

    /// Removes `first..=last`.
    pub fn remove(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        if let Some((&a, &b)) = self.ranges.range(..first).next_back()
            && b >= first
        {
            self.ranges.insert(a, first - 1);
            if b > last {
                self.ranges.insert(last + 1, b);
                return;
            }
        }
        while let Some((&a, &b)) = self.ranges.range(first..=last).next() {
            self.ranges.remove(&a);
            if b > last {
                self.ranges.insert(last + 1, b);
            }
        }
    }

    /// Calls `gap` for each maximal run of `first..=last` that is *not* in the set, ascending.
    pub fn gaps(&self, first: u64, last: u64, mut gap: impl FnMut(u64, u64)) {
        let mut at = first;
        if let Some((_, &b)) = self.ranges.range(..=first).next_back()
            && b >= first
        {
            if b >= last {
                return;
            }
            at = b + 1;
        }
        for (&a, &b) in self.ranges.range(at..) {
            if a > last {
                break;
            }
            if a > at {
                gap(at, a - 1);
            }
            if b >= last {
                return;
            }
            at = b + 1;
        }
        if at <= last {
            gap(at, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(ops in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..60)) {
            let mut set = RangeSet::new();
            let mut model = BTreeSet::new();
            for (add, first, len) in ops {
                let last = first + len;
                if add {
                    set.insert(first, last);
                    model.extend(first..=last);
                } else {
                    set.remove(first, last);
                    model.retain(|n| *n < first || *n > last);
                }
                prop_assert_eq!(set.count(), model.len() as u64);
                for n in 0..80 {
                    prop_assert_eq!(set.contains(n), model.contains(&n));
                }
                let ranges: Vec<_> = set.iter().collect();
                for pair in ranges.windows(2) {
                    prop_assert!(pair[0].1 + 1 < pair[1].0, "ranges touch: {:?}", ranges);
                }
                let mut missing = BTreeSet::new();
                set.gaps(5, 50, |a, b| missing.extend(a..=b));
                let expected: BTreeSet<u64> = (5..=50).filter(|n| !model.contains(n)).collect();
                prop_assert_eq!(missing, expected);
            }
        }
    }
}
