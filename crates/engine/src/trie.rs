//! Which filters match a name of levels: a trie.

use std::collections::HashMap;
use std::marker::PhantomData;

/// The wildcards of a filter.
pub trait Wildcards {
    /// Stands for one level.
    const ONE: &'static str;
    /// At the end, stands for all further levels.
    const REST: &'static str;
    /// Whether [`REST`](Self::REST) also stands for none.
    const REST_MAY_BE_NONE: bool;
}

/// Those of subjects: `*`, and `>` for one level or more.
#[derive(Clone, Copy, Debug)]
pub enum SubjectWildcards {}

impl Wildcards for SubjectWildcards {
    const ONE: &'static str = "*";
    const REST: &'static str = ">";
    const REST_MAY_BE_NONE: bool = false;
}

/// Filters of subjects.
pub type SubjectTrie<T> = LevelTrie<T, SubjectWildcards>;

/// Filters with a value each. Finding those that match takes time that depends on the levels of the name and on what
/// matches, not on how many filters there are, and recurses no deeper than the filters that were accepted.
#[derive(Debug)]
pub struct LevelTrie<T, W> {
    root: Node<T>,
    len: usize,
    wildcards: PhantomData<W>,
}

#[derive(Debug)]
struct Node<T> {
    children: HashMap<Box<str>, Self>,
    one: Option<Box<Self>>,
    // Values of filters that end here, and of those that end here with the rest.
    here: Vec<T>,
    rest: Vec<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { children: HashMap::new(), one: None, here: Vec::new(), rest: Vec::new() }
    }
}

impl<T, W> Default for LevelTrie<T, W> {
    fn default() -> Self {
        Self { root: Node::default(), len: 0, wildcards: PhantomData }
    }
}

impl<T, W: Wildcards> LevelTrie<T, W> {
    /// How many values are held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True if some filter has this first level.
    pub fn has_first(&self, level: &str) -> bool {
        self.root.children.contains_key(level)
    }

    /// Adds a value under a valid filter.
    pub fn insert(&mut self, filter: &str, value: T) {
        self.len += 1;
        let mut node = &mut self.root;
        for level in filter.split('/') {
            if level == W::REST {
                node.rest.push(value);
                return;
            }
            node = if level == W::ONE {
                node.one.get_or_insert_default()
            } else if node.children.contains_key(level) {
                // Most levels are there already: no allocation to find out.
                match node.children.get_mut(level) {
                    Some(node) => node,
                    None => return,
                }
            } else {
                node.children.entry(level.into()).or_default()
            };
        }
        node.here.push(value);
    }

    /// The first value under exactly `filter` for which `is` holds.
    pub fn find_mut(&mut self, filter: &str, is: impl Fn(&T) -> bool) -> Option<&mut T> {
        let mut node = &mut self.root;
        for level in filter.split('/') {
            if level == W::REST {
                return node.rest.iter_mut().find(|value| is(value));
            }
            node = if level == W::ONE { node.one.as_deref_mut()? } else { node.children.get_mut(level)? };
        }
        node.here.iter_mut().find(|value| is(value))
    }

    /// Removes the values under exactly `filter` for which `gone` holds; says how many.
    pub fn remove(&mut self, filter: &str, mut gone: impl FnMut(&T) -> bool) -> usize {
        let levels: Vec<&str> = filter.split('/').collect();
        let removed = self.root.remove::<W>(&levels, &mut gone);
        self.len -= removed;
        removed
    }

    /// Calls `each` with every value whose filter matches `name`.
    pub fn matches<'a>(&'a self, name: &str, mut each: impl FnMut(&'a T)) {
        // A wildcard in the first level leaves the broker's own names alone; in MQTT, [MQTT-4.7.2-1].
        let wild = !name.starts_with('$');
        self.root.matches::<W>(Some(name), wild, &mut each);
    }
}

impl<T> Node<T> {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.one.is_none() && self.here.is_empty() && self.rest.is_empty()
    }

    fn remove<W: Wildcards>(&mut self, levels: &[&str], gone: &mut impl FnMut(&T) -> bool) -> usize {
        let Some((level, below)) = levels.split_first() else { return drop_from(&mut self.here, gone) };
        if *level == W::REST {
            return drop_from(&mut self.rest, gone);
        }
        if *level == W::ONE {
            let Some(child) = &mut self.one else { return 0 };
            let removed = child.remove::<W>(below, gone);
            if child.is_empty() {
                self.one = None;
            }
            return removed;
        }
        let Some(child) = self.children.get_mut(*level) else { return 0 };
        let removed = child.remove::<W>(below, gone);
        if child.is_empty() {
            self.children.remove(*level);
        }
        removed
    }

    fn matches<'a, W: Wildcards>(&'a self, name: Option<&str>, wild: bool, each: &mut impl FnMut(&'a T)) {
        if wild && (name.is_some() || W::REST_MAY_BE_NONE) {
            self.rest.iter().for_each(&mut *each);
        }
        let Some(name) = name else {
            self.here.iter().for_each(each);
            return;
        };
        let (level, below) = match memchr::memchr(b'/', name.as_bytes()) {
            Some(at) => (&name[..at], Some(&name[at + 1..])),
            None => (name, None),
        };
        if let Some(child) = self.children.get(level) {
            child.matches::<W>(below, true, each);
        }
        if wild && let Some(child) = &self.one {
            child.matches::<W>(below, true, each);
        }
    }
}

fn drop_from<T>(values: &mut Vec<T>, gone: &mut impl FnMut(&T) -> bool) -> usize {
    let before = values.len();
    values.retain(|value| !gone(value));
    if values.is_empty() {
        *values = Vec::new();
    }
    before - values.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use postroad_core::Filter;
    use proptest::prelude::*;

    #[test]
    fn removed_filters_leave_nothing() {
        let mut trie = SubjectTrie::default();
        for (i, filter) in ["a/*/c", "a/b/>", "a/b/>", "*", ">"].into_iter().enumerate() {
            trie.insert(filter, i);
        }
        assert_eq!(trie.find_mut("a/b/>", |i| *i == 2), Some(&mut 2));
        assert_eq!(trie.find_mut("a/b", |_| true), None);
        for filter in ["a/*/c", "a/b/>", "*", ">"] {
            assert!(trie.remove(filter, |_| true) > 0);
        }
        assert!(trie.is_empty() && trie.root.is_empty());
    }

    proptest! {
        #[test]
        fn matches_what_the_filters_match(
            filters in prop::collection::vec("(\\$?[ab]|\\*)(/([ab]|\\*)){0,3}(/>)?", 0..12),
            subjects in prop::collection::vec("\\$?[ab](/[ab]){0,4}", 1..12),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let mut trie = SubjectTrie::default();
            for (i, filter) in filters.iter().enumerate() {
                trie.insert(filter, i);
            }
            let mut live: Vec<bool> = vec![true; filters.len()];
            for index in removed.iter().filter(|_| !filters.is_empty()) {
                let i = index.index(filters.len());
                prop_assert_eq!(trie.remove(&filters[i], |value| *value == i), usize::from(live[i]));
                live[i] = false;
            }
            prop_assert_eq!(trie.len(), live.iter().filter(|l| **l).count());
            for subject in &subjects {
                let mut found = Vec::new();
                trie.matches(subject, |value| found.push(*value));
                found.sort_unstable();
                let expected: Vec<usize> = (0..filters.len())
                    .filter(|i| live[*i] && Filter::new(filters[*i].as_str()).unwrap().matches(subject))
                    .collect();
                prop_assert_eq!(found, expected, "{}", subject);
            }
        }
    }
}
