//! What the lines of an ACL file allow.

use super::super::acl::Acl;
use super::super::{Identity, UserLimits};

const FILE: &str = "\
# everybody
all
  allow receive   news/#
  deny  publish   frozen/#
  limit connections 5
  limit subscriptions 9

user alice
  allow readwrite home/%u/#
  allow publish   devices/%c/state
  deny  publish   home/alice/locked/#
  allow subscribe all/#
  deny  receive   all/secret/#
  allow publish   frozen/x
  limit connections 2

user Bob the Builder
  allow subscribe a b/#
  allow publish   100%%/%u
  deny  subscribe a b/c/+

user root
  allow readwrite #
  allow subscribe $SYS/#
  deny  readwrite own/%c/x

anonymous
  allow subscribe public/+/temperature
";

/// User, client id, action (`p`, `s`, `r`), topic or filter, allowed.
const CASES: &[(&str, &str, char, &str, bool)] = &[
    // What no rule names is denied.
    ("alice", "c", 'p', "elsewhere", false),
    ("alice", "c", 's', "elsewhere", false),
    ("alice", "c", 'r', "elsewhere", false),
    ("carol", "c", 'p', "home/carol/x", false),
    ("", "c", 'p', "public/x/temperature", false),
    // `all` is for everybody, and its rules add to the user's.
    ("alice", "c", 'r', "news/today", true),
    ("carol", "c", 'r', "news", true),
    ("", "c", 'r', "news/today", true),
    ("carol", "c", 's', "news/#", false),
    // Blocks of others do not count.
    ("Bob the Builder", "c", 'p', "home/alice/x", false),
    ("alice", "c", 's', "public/+/temperature", false),
    // `readwrite` is all three, `subscribe` is two.
    ("alice", "c", 'p', "home/alice/x", true),
    ("alice", "c", 's', "home/alice/#", true),
    ("alice", "c", 'r', "home/alice", true),
    ("", "c", 's', "public/+/temperature", true),
    ("", "c", 'r', "public/1/temperature", true),
    // Denied is denied, in whatever block and order.
    ("alice", "c", 'p', "home/alice/locked/x", false),
    ("alice", "c", 'r', "home/alice/locked/x", true),
    ("alice", "c", 'p', "frozen/x", false),
    ("root", "c", 'p', "frozen/x", false),
    // A subscription is covered whole, or refused.
    ("alice", "c", 's', "home/+/x", false),
    ("alice", "c", 's', "home/#", false),
    ("alice", "c", 's', "#", false),
    ("", "c", 's', "public/#", false),
    ("", "c", 's', "public/a/+", false),
    ("", "c", 's', "+/a/temperature", false),
    // ... and a denied part refuses it, unless only receiving is denied.
    ("Bob the Builder", "c", 's', "a b/#", false),
    ("Bob the Builder", "c", 's', "a b/+/d", false),
    ("Bob the Builder", "c", 's', "a b/d", true),
    ("Bob the Builder", "c", 'r', "a b/c/d", false),
    ("alice", "c", 's', "all/#", true),
    ("alice", "c", 'r', "all/open", true),
    ("alice", "c", 'r', "all/secret/x", false),
    // Prefixes of shared subscriptions.
    ("alice", "c", 's', "$share/g/home/alice/#", true),
    ("alice", "c", 's', "$share/g/home/bob/#", false),
    ("alice", "c", 's', "$queue/home/alice/x", true),
    ("alice", "c", 's', "$queue/home/bob/x", false),
    ("root", "c", 's', "$share/g", false),
    ("root", "c", 's', "$share/g/$queue/x", false),
    // Values.
    ("alice", "dev7", 'p', "devices/dev7/state", true),
    ("alice", "dev7", 'p', "devices/dev8/state", false),
    ("Bob the Builder", "c", 'p', "100%/Bob the Builder", true),
    ("Bob the Builder", "c", 'p', "100%%/Bob the Builder", false),
    // The server's topics, CVE-2018-12543.
    ("root", "c", 'p', "x/$y", true),
    ("root", "c", 'p', "$SYS/x", false),
    ("root", "c", 's', "$SYS/broker/#", true),
    ("root", "c", 's', "$dlq/#", false),
    ("root", "c", 's', "#", false),
];

fn who(name: &str) -> Identity {
    if name.is_empty() { Identity::anonymous() } else { Identity::user(name) }
}

#[test]
fn rules() {
    let acl = Acl::parse(FILE).unwrap();
    for &(name, client_id, action, filter, allowed) in CASES {
        let who = who(name);
        let is = match action {
            'p' => acl.may_publish(&who, client_id, filter),
            's' => acl.may_subscribe(&who, client_id, filter),
            _ => acl.may_receive(&who, client_id, filter),
        };
        assert_eq!(is, allowed, "{name} {client_id} {action} {filter}");
    }
}

#[test]
fn order_does_not_matter() {
    let mut lines = ["  allow readwrite #", "  deny subscribe a/#", "  deny publish b"];
    for _ in 0..3 {
        lines.rotate_left(1);
        let acl = Acl::parse(&format!("user u\n{}\n", lines.join("\n"))).unwrap();
        assert!(!acl.may_subscribe(&who("u"), "c", "a/b"));
        assert!(!acl.may_publish(&who("u"), "c", "b"));
        assert!(acl.may_publish(&who("u"), "c", "a/b"));
    }
}

#[test]
fn the_smaller_limit_counts() {
    let acl = Acl::parse(FILE).unwrap();
    let limits = |connections, subscriptions| UserLimits {
        max_connections: Some(connections),
        max_subscriptions: Some(subscriptions),
    };
    assert_eq!(acl.limits(&who("alice")), limits(2, 9));
    assert_eq!(acl.limits(&who("carol")), limits(5, 9));
    assert_eq!(Acl::parse("").unwrap().limits(&who("alice")), UserLimits::default());
}

#[test]
fn a_value_with_wildcards_allows_nothing_cve_2017_7650() {
    let acl =
        Acl::parse("all\n allow readwrite users/%u/#\n allow readwrite ids/%c\n allow readwrite %c/#\n")
            .unwrap();
    for odd in ["+", "#", "a/b", "/", "a+", "#b", "\0", "a\0", "$SYS", ""] {
        for topic in [
            "users/x/y",
            "users/a/b/c",
            "users/+/x",
            "users//x",
            "ids/x",
            "ids/a/b",
            "ids/",
            "x/y",
            "/y",
            "$SYS/y",
        ] {
            let by_name = Identity::user(odd);
            assert!(!acl.may_publish(&by_name, odd, topic), "{odd:?} publishes {topic}");
            assert!(!acl.may_receive(&by_name, odd, topic), "{odd:?} receives {topic}");
            assert!(!acl.may_subscribe(&by_name, odd, topic), "{odd:?} subscribes to {topic}");
        }
        assert!(!acl.may_subscribe(&Identity::user(odd), odd, "users/+/#"), "{odd:?}");
        assert!(!acl.may_subscribe(&Identity::user(odd), odd, "#"), "{odd:?}");
        assert!(!acl.may_subscribe(&Identity::user(odd), odd, &format!("ids/{odd}")), "{odd:?}");
    }
    assert!(!acl.may_publish(&Identity::anonymous(), "c", "users//x"), "nobody's name is not the empty one");
    assert!(acl.may_publish(&Identity::user("x"), "c", "users/x/y"));
}

#[test]
fn a_value_with_wildcards_escapes_no_deny() {
    let acl = Acl::parse("all\n allow readwrite #\n deny readwrite own/%c/x\n deny publish by/%u\n").unwrap();
    let user = Identity::user("u");
    assert!(!acl.may_publish(&user, "c", "own/c/x"));
    assert!(acl.may_publish(&user, "c", "own/d/x"));
    for odd in ["a/b", "+", "#", ""] {
        assert!(!acl.may_publish(&user, odd, "own/a/b/x"), "{odd:?}");
        assert!(!acl.may_subscribe(&user, odd, "own/#"), "{odd:?}");
        assert!(acl.may_publish(&user, odd, "else"), "{odd:?}");
    }
    assert!(!acl.may_publish(&Identity::anonymous(), "c", "by/x"));
}

#[test]
fn an_empty_file_allows_nothing() {
    for text in ["", "\n", "# only a comment\n", "all\n", "user alice\nanonymous\n"] {
        let acl = Acl::parse(text).unwrap();
        for name in ["alice", ""] {
            assert!(
                !acl.may_publish(&who(name), "c", "a") && !acl.may_receive(&who(name), "c", "a"),
                "{text:?}"
            );
            assert!(
                !acl.may_subscribe(&who(name), "c", "a") && !acl.may_subscribe(&who(name), "c", "#"),
                "{text:?}"
            );
        }
    }
}

#[test]
fn what_means_nothing_is_an_error_with_its_line() {
    for (text, line, hint) in [
        ("allow publish a\n", 1, "'user NAME' on a line above"),
        ("all\nallow publish\n", 2, "filter is missing"),
        ("all\nallow\n", 2, "write 'allow publish FILTER'"),
        ("all\nallow write a\n", 2, "is no action"),
        ("all\n\n# x\npermit publish a\n", 4, "means nothing here"),
        ("all\nallow publish a/#/b\n", 2, "last level"),
        ("all\nallow publish a#\n", 2, "whole level"),
        ("all\nallow publish a+/b\n", 2, "whole level"),
        ("all\nallow publish %x\n", 2, "%u, %c, or %%"),
        ("all\nallow publish a%\n", 2, "%u, %c, or %%"),
        ("all\nallow subscribe $share/g/a\n", 2, "filter alone"),
        ("all\nallow subscribe $queue/a\n", 2, "filter alone"),
        ("all\nallow publish a\0\n", 2, "control characters"),
        ("all\nlimit connections many\n", 2, "not a number"),
        ("all\nlimit connections -1\n", 2, "not a number"),
        ("all\nlimit bytes 1\n", 2, "limit connections N"),
        ("user\n", 1, "name is missing"),
        ("everyone\n", 1, "means nothing here"),
        ("all users\n", 1, "means nothing here"),
        ("\u{feff}all\n", 1, "means nothing here"),
        ("all\nallow publish a", 2, "no line end"),
    ] {
        let error = Acl::parse(text).unwrap_err();
        assert_eq!(error.line, line, "{text:?}: {error}");
        assert!(error.what.contains(hint), "{text:?}: {error}");
    }
}

#[test]
fn a_cut_file_is_an_error_but_between_lines() {
    for cut in 0..FILE.len() {
        let text = &FILE[..cut];
        assert_eq!(Acl::parse(text).is_ok(), text.is_empty() || text.ends_with('\n'), "{text:?}");
    }
    assert!(Acl::parse(&FILE.replace('\n', "\r\n")).is_ok());
}
