//! Which filters match a subject: a trie over levels.

use std::collections::HashMap;

/// Filters with a value each; finds those that match a subject in time that depends on its levels, not on how many
/// filters there are.
#[derive(Debug)]
pub struct SubjectTrie<T> {
    root: Node<T>,
    len: usize,
}

#[derive(Debug)]
struct Node<T> {
    children: HashMap<Box<str>, Self>,
    one: Option<Box<Self>>,
    // Values of filters that end here, and of those that end here with `>`.
    here: Vec<T>,
    rest: Vec<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { children: HashMap::new(), one: None, here: Vec::new(), rest: Vec::new() }
    }
}

impl<T> Default for SubjectTrie<T> {
    fn default() -> Self {
        Self { root: Node::default(), len: 0 }
    }
}

impl<T> SubjectTrie<T> {
    /// How many values are held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a value under a valid filter (`*` one level, a last `>` one or more).
    pub fn insert(&mut self, filter: &str, value: T) {
        self.len += 1;
        let mut node = &mut self.root;
        for level in filter.split('/') {
            node = match level {
                ">" => {
                    node.rest.push(value);
                    return;
                }
                "*" => node.one.get_or_insert_default(),
                level => node.children.entry(level.into()).or_default(),
            };
        }
        node.here.push(value);
    }

    /// Removes the values under exactly `filter` for which `gone` holds; says how many.
    pub fn remove(&mut self, filter: &str, mut gone: impl FnMut(&T) -> bool) -> usize {
        let levels: Vec<&str> = filter.split('/').collect();
        let removed = self.root.remove(&levels, &mut gone);
        self.len -= removed;
        removed
    }

    /// Calls `each` with every value whose filter matches `subject`.
    pub fn matches<'a>(&'a self, subject: &str, mut each: impl FnMut(&'a T)) {
        let levels: Vec<&str> = subject.split('/').collect();
        // A wildcard in the first level leaves the broker's own subjects alone.
        let wild = !subject.starts_with('$');
        self.root.matches(&levels, wild, &mut each);
    }
}

impl<T> Node<T> {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.one.is_none() && self.here.is_empty() && self.rest.is_empty()
    }

    fn remove(&mut self, levels: &[&str], gone: &mut impl FnMut(&T) -> bool) -> usize {
        let drop_from = |values: &mut Vec<T>, gone: &mut dyn FnMut(&T) -> bool| {
            let before = values.len();
            values.retain(|value| !gone(value));
            before - values.len()
        };
        let Some((level, below)) = levels.split_first() else { return drop_from(&mut self.here, gone) };
        match *level {
            ">" => drop_from(&mut self.rest, gone),
            "*" => {
                let Some(child) = &mut self.one else { return 0 };
                let removed = child.remove(below, gone);
                if child.is_empty() {
                    self.one = None;
                }
                removed
            }
            level => {
                let Some(child) = self.children.get_mut(level) else { return 0 };
                let removed = child.remove(below, gone);
                if child.is_empty() {
                    self.children.remove(level);
                }
                removed
            }
        }
    }

    fn matches<'a>(&'a self, levels: &[&str], wild: bool, each: &mut impl FnMut(&'a T)) {
        let Some((level, below)) = levels.split_first() else {
            self.here.iter().for_each(each);
            return;
        };
        if wild {
            self.rest.iter().for_each(&mut *each);
            if let Some(child) = &self.one {
                child.matches(below, true, each);
            }
        }
        if let Some(child) = self.children.get(*level) {
            child.matches(below, true, each);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postroad_core::Filter;
    use proptest::prelude::*;

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
