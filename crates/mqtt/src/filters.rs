//! Which subscriptions match a topic: a trie over levels, MQTT's rules.

use std::collections::HashMap;

/// Values under topic filters. Matching takes time that depends on the levels of the topic and on what matches, not on
/// how many filters there are; it does not recurse deeper than the filters that were accepted.
#[derive(Debug)]
pub(super) struct Filters<T> {
    root: Node<T>,
    len: usize,
}

#[derive(Debug)]
struct Node<T> {
    children: HashMap<Box<str>, Self>,
    // The level `+`.
    one: Option<Box<Self>>,
    // Filters that end here, and those that end with `#` here.
    here: Vec<T>,
    rest: Vec<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { children: HashMap::new(), one: None, here: Vec::new(), rest: Vec::new() }
    }
}

impl<T> Default for Filters<T> {
    fn default() -> Self {
        Self { root: Node::default(), len: 0 }
    }
}

impl<T> Filters<T> {
    /// Subscriptions there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a value under a valid filter.
    pub(super) fn insert(&mut self, filter: &str, value: T) {
        self.len += 1;
        let mut node = &mut self.root;
        for level in filter.split('/') {
            node = match level {
                "#" => {
                    node.rest.push(value);
                    return;
                }
                "+" => node.one.get_or_insert_default(),
                // Most levels are there already: no allocation to find out.
                level if node.children.contains_key(level) => match node.children.get_mut(level) {
                    Some(node) => node,
                    None => return,
                },
                level => node.children.entry(level.into()).or_default(),
            };
        }
        node.here.push(value);
    }

    /// The value under exactly `filter` for which `is` holds.
    pub(super) fn find_mut(&mut self, filter: &str, is: impl Fn(&T) -> bool) -> Option<&mut T> {
        let mut node = &mut self.root;
        for level in filter.split('/') {
            node = match level {
                "#" => return node.rest.iter_mut().find(|value| is(value)),
                "+" => node.one.as_deref_mut()?,
                level => node.children.get_mut(level)?,
            };
        }
        node.here.iter_mut().find(|value| is(value))
    }

    /// Removes the value under exactly `filter` for which `is` holds.
    pub(super) fn remove(&mut self, filter: &str, is: impl Fn(&T) -> bool) -> Option<T> {
        let levels: Vec<&str> = filter.split('/').collect();
        let removed = self.root.remove(&levels, &is);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Calls `each` with every value whose filter matches `topic`.
    pub(super) fn matches<'a>(&'a self, topic: &str, mut each: impl FnMut(&'a T)) {
        // [MQTT-4.7.2-1]: a wildcard in the first level does not match a `$`.
        let wild = !topic.starts_with('$');
        self.root.matches(Some(topic), wild, &mut each);
    }
}

impl<T> Node<T> {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.one.is_none() && self.here.is_empty() && self.rest.is_empty()
    }

    fn matches<'a>(&'a self, topic: Option<&str>, wild: bool, each: &mut impl FnMut(&'a T)) {
        if wild {
            // `sport/#` matches `sport` too.
            self.rest.iter().for_each(&mut *each);
        }
        let Some(topic) = topic else {
            self.here.iter().for_each(each);
            return;
        };
        let (level, rest) = match memchr::memchr(b'/', topic.as_bytes()) {
            Some(at) => (&topic[..at], Some(&topic[at + 1..])),
            None => (topic, None),
        };
        if let Some(node) = self.children.get(level) {
            node.matches(rest, true, each);
        }
        if wild && let Some(node) = &self.one {
            node.matches(rest, true, each);
        }
    }

    fn remove(&mut self, levels: &[&str], is: &impl Fn(&T) -> bool) -> Option<T> {
        fn take<T>(values: &mut Vec<T>, is: &impl Fn(&T) -> bool) -> Option<T> {
            let at = values.iter().position(is)?;
            let value = values.swap_remove(at);
            if values.is_empty() {
                *values = Vec::new();
            }
            Some(value)
        }
        let Some((level, rest)) = levels.split_first() else { return take(&mut self.here, is) };
        match *level {
            "#" => take(&mut self.rest, is),
            "+" => {
                let node = self.one.as_mut()?;
                let removed = node.remove(rest, is);
                if node.is_empty() {
                    self.one = None;
                }
                removed
            }
            level => {
                let node = self.children.get_mut(level)?;
                let removed = node.remove(rest, is);
                if node.is_empty() {
                    self.children.remove(level);
                }
                removed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::topic;
    use proptest::prelude::*;

    #[test]
    fn what_matches() {
        let mut filters = Filters::default();
        for filter in
            ["sport/tennis/+", "sport/#", "#", "+/+", "/+", "+", "$SYS/#", "a//b", "sport/+/player1"]
        {
            filters.insert(filter, filter);
        }
        let matching = |topic: &str| {
            let mut found = Vec::new();
            filters.matches(topic, |filter| found.push(*filter));
            found.sort_unstable();
            found
        };
        assert_eq!(matching("sport"), ["#", "+", "sport/#"]);
        assert_eq!(matching("/finance"), ["#", "+/+", "/+"]);
        assert_eq!(matching("$SYS/broker"), ["$SYS/#"]);
        assert_eq!(matching("$SYS"), ["$SYS/#"]);
        assert_eq!(matching("a//b"), ["#", "a//b"]);
        assert_eq!(matching("sport/tennis/player1"), ["#", "sport/#", "sport/+/player1", "sport/tennis/+"]);
    }

    #[test]
    fn removed_filters_leave_nothing() {
        let mut filters = Filters::default();
        filters.insert("a/+/c", 1);
        filters.insert("a/b/#", 2);
        filters.insert("a/b/#", 3);
        assert_eq!(filters.remove("a/b/#", |v| *v == 3), Some(3));
        assert_eq!(filters.remove("a/b/#", |v| *v == 3), None);
        assert_eq!(filters.remove("a/b/#", |v| *v == 2), Some(2));
        assert_eq!(filters.remove("a/+/c", |_| true), Some(1));
        assert_eq!(filters.len(), 0);
        assert!(filters.root.is_empty());
    }

    fn level() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), "[ab]", Just("$x".to_owned())]
    }

    proptest! {
        #[test]
        fn the_trie_agrees_with_the_definition(
            filters in proptest::collection::vec(
                (proptest::collection::vec(prop_oneof![level(), Just("+".to_owned())], 1..4), any::<bool>()), 1..12),
            topic in proptest::collection::vec(level(), 1..5),
        ) {
            let topic = topic.join("/");
            prop_assume!(!topic.is_empty());
            let mut trie = Filters::default();
            let mut expected = Vec::new();
            for (i, (levels, rest)) in filters.into_iter().enumerate() {
                let mut filter = levels.join("/");
                if rest {
                    filter.push_str("/#");
                }
                if filter.is_empty() {
                    continue;
                }
                if topic::matches(&filter, &topic) {
                    expected.push(i);
                }
                trie.insert(&filter, i);
            }
            let mut found = Vec::new();
            trie.matches(&topic, |i| found.push(*i));
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
