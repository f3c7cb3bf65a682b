use proptest::prelude::*;

use super::*;

#[test]
fn every_rule_has_its_error() {
    let long = "a".repeat(256);
    let cases: &[(&str, SubjectError)] = &[
        ("", SubjectError::Empty),
        (&long, SubjectError::TooLong { len: 256 }),
        ("/a", SubjectError::EmptyLevel { subject: "/a".into(), level: 1 }),
        ("a//b", SubjectError::EmptyLevel { subject: "a//b".into(), level: 2 }),
        ("a/", SubjectError::EmptyLevel { subject: "a/".into(), level: 2 }),
        ("a/../b", SubjectError::DotLevel { subject: "a/../b".into(), level: 2 }),
        (".", SubjectError::DotLevel { subject: ".".into(), level: 1 }),
        ("a b", SubjectError::Character { subject: "a b".into(), character: ' ' }),
        ("a\n", SubjectError::Character { subject: "a\\n".into(), character: '\n' }),
        ("a\\b", SubjectError::Character { subject: "a\\\\b".into(), character: '\\' }),
        ("a\u{3000}b", SubjectError::Character { subject: "a\\u{3000}b".into(), character: '\u{3000}' }),
    ];
    for (text, error) in cases {
        assert_eq!(Subject::new(*text).as_ref(), Err(error), "{text:?}");
        assert_eq!(Filter::new(*text).as_ref(), Err(error), "{text:?}");
    }
    assert_eq!(Subject::new("a/*"), Err(SubjectError::Wildcard { subject: "a/*".into(), level: 2 }));
    assert_eq!(Subject::new("a>"), Err(SubjectError::Wildcard { subject: "a>".into(), level: 1 }));
    assert_eq!(Filter::new("a/b*"), Err(SubjectError::PartialWildcard { subject: "a/b*".into(), level: 2 }));
    assert_eq!(Filter::new("a/>/b"), Err(SubjectError::TailNotLast { subject: "a/>/b".into(), level: 2 }));
    assert_eq!(Filter::new("**"), Err(SubjectError::PartialWildcard { subject: "**".into(), level: 1 }));
}

#[test]
fn what_is_allowed() {
    for text in ["a", "a/b", "$dead/a", "a.b/..c", "ünï/码", "a+#b", "$", "-", "A:1"] {
        assert_eq!(Subject::new(text).unwrap().as_str(), text);
        assert!(Filter::new(text).unwrap().is_literal());
    }
    for text in ["*", ">", "a/>", "*/>", "*/a/*", "$dead/>"] {
        assert!(!Filter::new(text).unwrap().is_literal(), "{text}");
    }
}

#[test]
fn the_longest_subject_has_a_dead_letter_subject() {
    let subject = Subject::new("a".repeat(255)).unwrap();
    let dead = subject.dead_letter();
    assert_eq!(Subject::new(dead.as_str()).unwrap(), dead);
    assert_eq!(dead.dead_letter(), dead);
    assert_eq!(dead.origin(), Some(subject.clone()));
    assert_eq!(subject.origin(), None);
    assert!(Subject::new(format!("{dead}a")).is_err());
}

#[test]
fn wildcards_do_not_reach_the_brokers_subjects() {
    for (filter, subject, expected) in [
        (">", "$dead/a", false),
        ("*/a", "$dead/a", false),
        ("$dead/>", "$dead/a", true),
        ("$dead/*", "$dead/a", true),
        ("a/*", "a/$x", true),
        ("a/>", "a", false),
        ("a/>", "a/b/c", true),
        ("a/*", "a/b/c", false),
        ("a", "a/b", false),
        ("a/b", "a", false),
    ] {
        assert_eq!(Filter::new(filter).unwrap().matches(subject), expected, "{filter} on {subject}");
    }
}

#[test]
fn an_error_says_how_to_fix_it() {
    let error = Subject::new("orders//paid").unwrap_err();
    assert_eq!(
        error.to_string(),
        "level 2 of `orders//paid` is empty: no `/` at the start or the end, and no `//`"
    );
}

/// The rules once more, written to be read and not to be fast.
fn naive_match(filter: &[&str], subject: &[&str]) -> bool {
    match (filter, subject) {
        ([], []) => true,
        ([">"], [_, ..]) => true,
        (["*", filter @ ..], [_, subject @ ..]) => naive_match(filter, subject),
        ([level, filter @ ..], [name, subject @ ..]) => level == name && naive_match(filter, subject),
        _ => false,
    }
}

fn naive_valid(text: &str, filter: bool) -> bool {
    let levels: Vec<_> = text.split('/').collect();
    let limit = if text.starts_with("$dead/") { 261 } else { 255 };
    text.len() <= limit
        && levels.iter().enumerate().all(|(index, level)| {
            let plain = !level.is_empty()
                && *level != "."
                && *level != ".."
                && level
                    .chars()
                    .all(|c| !c.is_control() && !c.is_whitespace() && !['\\', '*', '>'].contains(&c));
            plain || (filter && (*level == "*" || (*level == ">" && index + 1 == levels.len())))
        })
}

proptest! {
    #[test]
    fn matches_as_the_naive_matcher_does(
        filter in prop::collection::vec(prop::sample::select(vec!["a", "b", "$d", "*"]), 1..5),
        tail in any::<bool>(),
        subject in prop::collection::vec(prop::sample::select(vec!["a", "b", "$d", "ab"]), 1..6),
    ) {
        let mut filter = filter;
        if tail {
            filter.push(">");
        }
        let hidden = subject[0].starts_with('$') && ["*", ">"].contains(&filter[0]);
        let expected = !hidden && naive_match(&filter, &subject);
        prop_assert_eq!(Filter::new(filter.join("/")).unwrap().matches(&subject.join("/")), expected);
    }

    #[test]
    fn accepts_exactly_what_the_rules_say(text in r"[ab./*>\\ $é\n]{0,8}") {
        prop_assert_eq!(Subject::new(text.as_str()).is_ok(), naive_valid(&text, false));
        prop_assert_eq!(Filter::new(text.as_str()).is_ok(), naive_valid(&text, true));
    }

    #[test]
    fn any_text_is_an_answer(text in any::<String>()) {
        prop_assert_eq!(Subject::new(text.as_str()).is_ok(), naive_valid(&text, false));
    }

    #[test]
    fn dots_and_back(text in r"[ab.$]{1,3}(/[ab.]{1,3}){0,4}") {
        if let Ok(subject) = Subject::new(text.as_str()) {
            let dotted = subject.to_dotted();
            prop_assert_eq!(dotted.split('.').count(), subject.levels().count());
            prop_assert_eq!(Subject::from_dotted(&dotted), Ok(subject));
        }
    }
}
