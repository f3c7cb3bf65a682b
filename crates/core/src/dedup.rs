//! Which messages were published before.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use crate::envelope::MessageId;

/// What makes a publish the same publish.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DedupKey {
    /// The message's id.
    Id(MessageId),
    /// The publisher's name and its own count.
    Producer {
        /// The publisher.
        name: Arc<str>,
        /// Its count.
        sequence: u64,
    },
}

/// Remembers keys for a while and up to a number, whichever ends first.
///
/// Pure: time comes in as milliseconds and must not go back. Memory: about three times the size of a key for each one.
///
/// ```
/// use std::time::Duration;
/// use postroad_core::dedup::DedupWindow;
///
/// let mut window = DedupWindow::new(2, Duration::from_secs(60));
/// assert_eq!(window.insert("a", 1, 0), None);
/// assert_eq!(window.insert("a", 2, 59_999), Some(1)); // the position of the first
/// assert_eq!(window.insert("a", 3, 60_000), None); // too long ago
/// ```
#[derive(Debug, Clone)]
pub struct DedupWindow<K = DedupKey> {
    // Position and birth.
    known: HashMap<K, (u64, u64)>,
    // In the order of insertion, which is the order of age.
    ages: VecDeque<(u64, K)>,
    max_count: usize,
    max_age: u64,
}

impl<K: Hash + Eq + Clone> DedupWindow<K> {
    /// Remembers the last `max_count` keys that are younger than `max_age`. With either 0 it remembers nothing.
    pub fn new(max_count: usize, max_age: Duration) -> Self {
        let max_age = u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX);
        Self { known: HashMap::new(), ages: VecDeque::new(), max_count, max_age }
    }

    /// The position under which `key` was published, if that is remembered at `now`. Changes nothing.
    pub fn get(&self, key: &K, now: u64) -> Option<u64> {
        let (position, born) = *self.known.get(key)?;
        (now.saturating_sub(born) < self.max_age).then_some(position)
    }

    /// `key` is published at `now` under `position`. If it was before, gives that position and changes nothing.
    pub fn insert(&mut self, key: K, position: u64, now: u64) -> Option<u64> {
        self.expire(now);
        if let Some((earlier, _)) = self.known.get(&key) {
            return Some(*earlier);
        }
        if self.max_count == 0 || self.max_age == 0 {
            return None;
        }
        if self.ages.len() == self.max_count {
            self.forget_oldest();
        }
        self.known.insert(key.clone(), (position, now));
        self.ages.push_back((now, key));
        None
    }

    /// Forgets what is too old at `now`. [`insert`](Self::insert) does it too.
    pub fn expire(&mut self, now: u64) {
        while self.ages.front().is_some_and(|(born, _)| now.saturating_sub(*born) >= self.max_age) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.ages.pop_front() {
            self.known.remove(&key);
        }
    }

    /// How many keys it remembers.
    pub fn len(&self) -> usize {
        self.ages.len()
    }

    /// Whether it remembers none.
    pub fn is_empty(&self) -> bool {
        self.ages.is_empty()
    }

    /// What it remembers, oldest first: key, position, and when. For snapshots.
    pub fn iter(&self) -> impl Iterator<Item = (&K, u64, u64)> {
        self.ages.iter().filter_map(|(born, key)| Some((key, self.known.get(key)?.0, *born)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_an_id_or_a_producers_count() {
        let mut window = DedupWindow::new(10, Duration::from_secs(1));
        let id = DedupKey::Id(MessageId::text("x").unwrap());
        let count = |sequence| DedupKey::Producer { name: "p".into(), sequence };
        assert_eq!(window.insert(id.clone(), 1, 0), None);
        assert_eq!(window.insert(count(1), 2, 0), None);
        assert_eq!(window.insert(count(2), 3, 0), None);
        assert_eq!(window.insert(count(1), 4, 0), Some(2));
        assert_eq!(window.get(&id, 999), Some(1));
        assert_eq!(window.get(&id, 1000), None);
    }

    proptest! {
        /// A list of all publishes that counted, searched from the end, is the whole truth.
        #[test]
        fn as_a_list_would(
            count in 0usize..5,
            age in 0u64..20,
            publishes in prop::collection::vec((0u8..8, 0u64..6), 0..60),
        ) {
            let mut window = DedupWindow::new(count, Duration::from_millis(age));
            let mut list: Vec<(u8, u64, u64)> = Vec::new();
            let mut now = 0;
            for (position, (key, later)) in publishes.into_iter().enumerate() {
                now += later;
                list.retain(|(_, _, born)| now - born < age);
                let skip = list.len().saturating_sub(count);
                let known = list[skip..].iter().find(|(kept, ..)| *kept == key).map(|(_, position, _)| *position);
                prop_assert_eq!(window.get(&key, now), known);
                prop_assert_eq!(window.insert(key, position as u64, now), known);
                if known.is_none() {
                    list.push((key, position as u64, now));
                }
                prop_assert!(window.len() <= count);
                prop_assert_eq!(window.iter().count(), window.len());
                prop_assert_eq!(window.is_empty(), window.iter().next().is_none());
            }
        }
    }
}
