//! `covers` and `overlaps` against their definitions: all topics of a small world, and a matcher written apart.

use proptest::prelude::*;

use super::super::pattern::{Pattern, Values};

const VALUES: Values<'_> = Values { user: Some("a"), client_id: "b" };

/// Section 4.7, level by level from the front.
fn matches(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        (["#"], _) => true,
        (["+", filter @ ..], [_, topic @ ..]) => matches(filter, topic),
        ([level, filter @ ..], [name, topic @ ..]) => level == name && matches(filter, topic),
        (filter, topic) => filter.is_empty() && topic.is_empty(),
    }
}

fn is_match(filter: &str, topic: &str) -> bool {
    let (filter, topic): (Vec<_>, Vec<_>) = (filter.split('/').collect(), topic.split('/').collect());
    !(topic[0].starts_with('$') && matches!(filter[0], "+" | "#")) && matches(&filter, &topic)
}

/// Every topic of up to four levels, and the empty one, of which the rules for filters know nothing bad.
fn topics() -> Vec<String> {
    let mut topics = Vec::new();
    let mut last = vec![None::<String>];
    for _ in 0..4 {
        last = last
            .iter()
            .flat_map(|front| {
                ["a", "b", "", "$x"].map(|level| {
                    Some(front.as_ref().map_or_else(|| level.to_owned(), |front| format!("{front}/{level}")))
                })
            })
            .collect();
        topics.extend(last.iter().flatten().cloned());
    }
    topics
}

fn filter() -> impl Strategy<Value = String> {
    let level = prop_oneof![Just("a"), Just("b"), Just(""), Just("$x"), Just("+"), Just("+")];
    (proptest::collection::vec(level, 0..3), prop_oneof![Just("a"), Just("+"), Just("#"), Just("#")])
        .prop_map(|(mut levels, last)| {
            levels.push(last);
            levels.join("/")
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn covers_and_overlaps_are_what_they_say(pattern in filter(), filter in filter()) {
        let parsed = Pattern::parse(&pattern).unwrap();
        prop_assert_eq!(parsed.to_string(), pattern.clone());
        let all = topics();
        let of_filter: Vec<_> = all.iter().filter(|topic| is_match(&filter, topic)).collect();
        let within = of_filter.iter().all(|topic| is_match(&pattern, topic));
        let touching = of_filter.iter().any(|topic| is_match(&pattern, topic));
        prop_assert_eq!(parsed.covers(&filter, VALUES), within, "{} covers {}", pattern, filter);
        prop_assert_eq!(parsed.overlaps(&filter, VALUES), touching, "{} overlaps {}", pattern, filter);
        for topic in &all {
            prop_assert_eq!(parsed.covers(topic, VALUES), is_match(&pattern, topic), "{} covers {}", pattern, topic);
            prop_assert_eq!(parsed.overlaps(topic, VALUES), is_match(&pattern, topic), "{} overlaps {}", pattern, topic);
        }
    }

    #[test]
    fn values_are_text_of_their_level(pattern in filter()) {
        // `%u` is `a` and `%c` is `b`.
        let with_values = pattern.replace('a', "%u").replace('b', "%c");
        let (plain, with_values) = (Pattern::parse(&pattern).unwrap(), Pattern::parse(&with_values).unwrap());
        for topic in topics() {
            prop_assert_eq!(plain.covers(&topic, VALUES), with_values.covers(&topic, VALUES));
            prop_assert_eq!(plain.overlaps(&topic, VALUES), with_values.overlaps(&topic, VALUES));
        }
    }

    #[test]
    fn no_text_panics(pattern in "[a+#/%uc$\\PC]{0,12}", filter in "\\PC{0,12}", user in "\\PC{0,4}", client_id in "[+#/$a]{0,3}") {
        if let Ok(pattern) = Pattern::parse(&pattern) {
            let values = Values { user: Some(&user), client_id: &client_id };
            pattern.covers(&filter, values);
            pattern.overlaps(&filter, values);
        }
    }
}

#[test]
fn a_filter_of_as_many_levels_as_fit_is_walked_not_recursed_cve_2019_11779() {
    let deep = "/".repeat(65_535);
    let pattern = Pattern::parse(&format!("{deep}#")).unwrap();
    assert!(pattern.covers(&deep, VALUES));
    assert!(pattern.overlaps(&deep, VALUES));
    assert!(!Pattern::parse("/+/a").unwrap().covers(&deep, VALUES));
}
