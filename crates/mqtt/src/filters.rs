//! Which topic filters match a topic (section 4.7).

use postroad_engine::{LevelTrie, Wildcards};

/// `+` for one level, `#` for any number: `sport/#` matches `sport` too.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TopicWildcards {}

impl Wildcards for TopicWildcards {
    const ONE: &'static str = "+";
    const REST: &'static str = "#";
    const REST_MAY_BE_NONE: bool = true;
}

/// Values under topic filters: of subscriptions, of rules.
pub(crate) type Filters<T> = LevelTrie<T, TopicWildcards>;

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
        assert_eq!(filters.remove("a/b/#", |v| *v == 3), 1);
        assert_eq!(filters.remove("a/b/#", |v| *v == 3), 0);
        assert_eq!(filters.remove("a/b/#", |v| *v == 2), 1);
        assert_eq!(filters.remove("a/+/c", |_| true), 1);
        assert!(filters.is_empty());
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
