//! From individual verdicts to one contiguous position.

use crate::range_set::RangeSet;

/// What is settled: everything up to the floor, and ranges above it.
///
/// Backends that can only store one offset (streams) store [`AckFloor::floor`]; it never passes an open
/// number, so a restart from it repeats work and never skips any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AckFloor {
    floor: u64,
    above: RangeSet,
}

impl AckFloor {
    /// Everything up to and including `floor` counts as settled; 0 means nothing does.
    pub fn new(floor: u64) -> Self {
        Self { floor, above: RangeSet::new() }
    }

    /// The highest number with nothing open at or below it.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// The settled ranges above the floor.
    pub fn above(&self) -> &RangeSet {
        &self.above
    }

    /// True if `n` is settled.
    pub fn is_settled(&self, n: u64) -> bool {
        n <= self.floor || (!self.above.is_empty() && self.above.contains(n))
    }

    /// Settles `first..=last`.
    #[inline]
    pub fn settle(&mut self, first: u64, last: u64) {
        if last <= self.floor {
            return;
        }
        if first == self.floor + 1 && self.above.is_empty() {
            self.floor = last;
            return;
        }
        if first <= self.floor + 1 {
            self.floor = last;
        } else {
            self.above.insert(first, last);
        }
        while let Some((a, b)) = self.above.first() {
            if a > self.floor + 1 {
                break;
            }
            self.above.pop_first();
            self.floor = self.floor.max(b);
        }
    }

    /// Raises the floor to at least `floor`: what lies below no longer exists.
    pub fn advance_to(&mut self, floor: u64) {
        self.settle(1, floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_floor_never_passes_an_open_number(settles in prop::collection::vec((1u64..40, 0u64..5), 0..50)) {
            let mut floor = AckFloor::new(0);
            let mut settled = [false; 64];
            for (first, len) in settles {
                floor.settle(first, first + len);
                for n in first..=first + len {
                    settled[n as usize] = true;
                }
                let expected = (1..64).take_while(|n| settled[*n as usize]).last().unwrap_or(0);
                prop_assert_eq!(floor.floor(), expected);
                for n in 1..64u64 {
                    prop_assert_eq!(floor.is_settled(n), settled[n as usize]);
                }
            }
        }
    }
}
