//! Retained messages: the newest one of each topic that has one.

use super::message::Message;
use crate::codec::{Qos, topic};
use postroad_core::mailbox::Millis;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Topics that match, and topics looked at, in one page.
const PAGE_FOUND: usize = 128;
const PAGE_LOOKED: usize = 4096;

/// Where a retained message is.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// Its number in the log; 0 if it is in memory only.
    pub(super) seq: u64,
    pub(super) qos: Qos,
    pub(super) expires: Option<Millis>,
    /// The message, as long as it can not be read from the log.
    pub(super) message: Option<Arc<Message>>,
}

/// Retained messages by topic, in order.
#[derive(Debug, Default)]
pub(super) struct Retained {
    topics: BTreeMap<Box<str>, Kept>,
}

impl Retained {
    /// Topics that have a retained message.
    pub(super) fn len(&self) -> usize {
        self.topics.len()
    }

    /// Replaces the message of its topic; an empty payload removes it. [MQTT-3.3.1-6]
    pub(super) fn set(&mut self, topic: &str, payload_is_empty: bool, kept: Kept) {
        if payload_is_empty {
            self.topics.remove(topic);
        } else if let Some(old) = self.topics.get_mut(topic) {
            *old = kept;
        } else {
            self.topics.insert(topic.into(), kept);
        }
    }

    pub(super) fn contains(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    /// The message of the topic is in the log now, and its memory is not needed any more.
    pub(super) fn committed(&mut self, topic: &str, seq: u64) {
        if let Some(kept) = self.topics.get_mut(topic)
            && kept.seq == seq
        {
            kept.message = None;
        }
    }

    /// Calls `each` with the topics that match a filter, and their messages.
    pub(super) fn matches(&self, filter: &str, mut each: impl FnMut(&str, &Kept)) {
        let mut after = None;
        while let Some(next) = self.page(filter, after.as_deref(), &mut each) {
            after = Some(next);
        }
    }

    /// The same for the first ones after a topic; says behind which one to go on, if there may be more.
    pub(super) fn page(
        &self,
        filter: &str,
        after: Option<&str>,
        mut each: impl FnMut(&str, &Kept),
    ) -> Option<Box<str>> {
        let prefix = match filter.find(['+', '#']) {
            None => {
                if let (Some((topic, kept)), None) = (self.topics.get_key_value(filter), after) {
                    each(topic, kept);
                }
                return None;
            }
            // `sport/#` matches `sport` too.
            Some(at) => filter[..at].strip_suffix('/').unwrap_or(&filter[..at]),
        };
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let (mut looked, mut found) = (0, 0);
        for (topic, kept) in self.topics.range::<str, _>((from, Bound::Unbounded)) {
            if !topic.starts_with(prefix) {
                return None;
            }
            if topic::matches(filter, topic) {
                each(topic, kept);
                found += 1;
            }
            looked += 1;
            if looked == PAGE_LOOKED || found == PAGE_FOUND {
                return Some(topic.clone());
            }
        }
        None
    }

    /// True if the message of the topic is this one of the log.
    pub(super) fn is_at(&self, topic: &str, seq: u64) -> bool {
        self.topics.get(topic).is_some_and(|kept| kept.seq == seq)
    }

    /// The message of the topic has another number in the log now.
    pub(super) fn moved(&mut self, topic: &str, from: u64, to: u64) {
        if let Some(kept) = self.topics.get_mut(topic)
            && kept.seq == from
        {
            kept.seq = to;
        }
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Kept)> {
        self.topics.iter().map(|(topic, kept)| (&**topic, kept))
    }

    /// Removes what has expired; says how many there were.
    pub(super) fn expire(&mut self, now: Millis) -> usize {
        let before = self.topics.len();
        self.topics.retain(|_, kept| kept.expires.is_none_or(|at| at > now));
        before - self.topics.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(seq: u64) -> Kept {
        Kept { seq, qos: Qos::AtMostOnce, expires: None, message: None }
    }

    #[test]
    fn filters_find_their_topics() {
        let mut retained = Retained::default();
        for (seq, topic) in ["a", "a/b", "a/b/c", "ab", "b", "$SYS/x", "/"].into_iter().enumerate() {
            retained.set(topic, false, kept(seq as u64));
        }
        let found = |filter: &str| {
            let mut found = Vec::new();
            retained.matches(filter, |topic, _| found.push(topic.to_owned()));
            found
        };
        assert_eq!(found("a/#"), ["a", "a/b", "a/b/c"]);
        assert_eq!(found("a/+"), ["a/b"]);
        assert_eq!(found("+/b"), ["a/b"]);
        assert_eq!(found("#"), ["/", "a", "a/b", "a/b/c", "ab", "b"]);
        assert_eq!(found("$SYS/#"), ["$SYS/x"]);
        assert_eq!(found("a/b"), ["a/b"]);
        assert_eq!(found("+/+"), ["/", "a/b"]);
        retained.set("a/b", true, kept(9));
        assert_eq!(retained.len(), 6);
    }

    #[test]
    fn pages_together_are_all_of_them() {
        let mut retained = Retained::default();
        for n in 0..10_000 {
            retained.set(&format!("a/{n}/{}", if n % 7 == 0 { "x" } else { "y" }), false, kept(n));
        }
        for (filter, expected) in [("a/#", 10_000), ("a/+/x", 1429), ("#", 10_000), ("a/9/y", 1), ("b/#", 0)]
        {
            let (mut after, mut found, mut pages) = (None::<Box<str>>, Vec::new(), 0);
            loop {
                let before = found.len();
                after = retained.page(filter, after.as_deref(), |topic, _| found.push(topic.to_owned()));
                assert!(found.len() - before <= PAGE_FOUND);
                pages += 1;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(found.len(), expected, "{filter}");
            assert!(found.is_sorted() && pages >= expected / PAGE_FOUND);
        }
    }
}
