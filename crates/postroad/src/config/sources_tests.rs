use std::{ffi::OsString, fs, time::Duration};

use super::*;
use crate::config::{ByteSize, LagPolicy, Listen, Span, Sync};

fn env(vars: &[(&str, &str)]) -> impl Iterator<Item = (OsString, OsString)> {
    vars.iter().map(|(name, value)| (name.into(), value.into())).collect::<Vec<_>>().into_iter()
}

fn flags(flags: &[(&str, &str, &str)]) -> Overrides {
    let owned =
        |(flag, key, value): &(&str, &str, &str)| (flag.to_string(), key.to_string(), value.to_string());
    Overrides { file: None, flags: flags.iter().map(owned).collect() }
}

fn file(text: &str) -> (tempfile::TempDir, Overrides) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("postroad.toml");
    fs::write(&path, text).unwrap();
    (dir, Overrides { file: Some(path), flags: Vec::new() })
}

fn refused(overrides: &Overrides, vars: &[(&str, &str)]) -> String {
    let failure = load(overrides, env(vars)).unwrap_err();
    assert_eq!(failure.exit, Exit::Config);
    failure.to_string()
}

#[test]
fn defaults_are_valid_and_say_so() {
    let loaded = load(&Overrides::default(), env(&[])).unwrap();
    assert_eq!(loaded.config.jsonlog.listen.to_string(), "127.0.0.1:8000");
    assert_eq!(loaded.config.journal.sync, Sync::Fdatasync);
    assert_eq!(loaded.config.retention.max_age, Span(Duration::from_secs(604_800)));
    assert_eq!(loaded.origin("jsonlog.words.pub"), "default");
}

#[test]
fn later_sources_win_and_are_named() {
    let (_dir, mut overrides) = file(
        "[jsonlog]\nmax_line = \"2MiB\"\nmax_connections = 5\nmax_output = \"8KiB\"\n[server]\ndata = \"from-file\"\n",
    );
    overrides.flags.push(("--data".into(), "server.data".into(), "from-flag".into()));
    let vars = [
        ("POSTROAD__SERVER__DATA", "from-env"),
        ("POSTROAD__JSONLOG__MAX_CONNECTIONS", "6"),
        ("POSTROAD_URL", "x"),
    ];
    let loaded = load(&overrides, env(&vars)).unwrap();
    assert_eq!(loaded.config.server.data.to_str(), Some("from-flag"));
    assert_eq!(loaded.config.jsonlog.max_connections, 6);
    assert_eq!(loaded.config.jsonlog.max_line, ByteSize(2 << 20));
    assert_eq!(loaded.origin("server.data"), "flag --data");
    assert_eq!(loaded.origin("jsonlog.max_connections"), "env POSTROAD__JSONLOG__MAX_CONNECTIONS");
    assert!(loaded.origin("jsonlog.max_output").starts_with("file:"));
    assert_eq!(loaded.origin("server.insecure"), "default");
}

#[test]
fn the_environment_has_no_types_but_settings_have() {
    let vars = [
        ("POSTROAD__SERVER__DATA", "123"),
        ("POSTROAD__SERVER__INSECURE", "yes"),
        ("POSTROAD__JSONLOG__TOKENS", "env:A, file:/b"),
        ("POSTROAD__JSONLOG__WORDS__PUB", "put"),
        ("POSTROAD__JSONLOG__LISTEN", "off"),
        ("POSTROAD__LIMITS__LAG_POLICY", "detach"),
        ("POSTROAD__JOURNAL__SEGMENT_BYTES", "1048576"),
        ("POSTROAD__RETENTION__MAX_EVENTS", "1_000"),
    ];
    let config = load(&Overrides::default(), env(&vars)).unwrap().config;
    assert_eq!(config.server.data.to_str(), Some("123"));
    assert!(config.server.insecure);
    assert_eq!(
        config.jsonlog.tokens.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["env:A", "file:/b"]
    );
    assert_eq!(config.jsonlog.words.publish, "put");
    assert_eq!(config.jsonlog.listen, Listen::Off);
    assert_eq!(config.limits.lag_policy, LagPolicy::Detach);
    assert_eq!(config.journal.segment_bytes, ByteSize(1 << 20));
    assert_eq!(config.retention.max_events, 1000);
}

#[test]
fn unknown_keys_name_the_source_and_the_nearest() {
    let (dir, overrides) =
        file("[jsonlog]\nmax_lines = 5\n[jurnal]\nsync = \"os\"\n[server]\nsegment_bytes = 1\n");
    let text = refused(&overrides, &[("POSTROAD__JSONLOG__MAXLINE", "1"), ("POSTROAD__JSONLOG", "1")]);
    let path = dir.path().join("postroad.toml").display().to_string();
    for expected in [
        format!("`jsonlog.max_lines` in {path} does not exist; the nearest is `jsonlog.max_line`"),
        format!("`jurnal.sync` in {path} does not exist; the nearest is `journal.sync`"),
        "the nearest is `journal.segment_bytes`".to_owned(),
        "POSTROAD__JSONLOG__MAXLINE (`jsonlog.maxline`) does not exist; the nearest is POSTROAD__JSONLOG__MAX_LINE"
            .to_owned(),
        "POSTROAD__JSONLOG (`jsonlog`) is a section".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected}\nnot in\n{text}");
    }
    let text = refused(&flags(&[("--set jsonlog.listn", "jsonlog.listn", "off")]), &[]);
    assert!(text.contains("from flag --set jsonlog.listn") && text.contains("`jsonlog.listen`"), "{text}");
}

#[test]
fn wrong_values_name_the_key_the_source_and_the_reason() {
    for (name, value, key, why) in [
        ("POSTROAD__JSONLOG__MAX_LINE", "64M", "jsonlog.max_line", "not a size"),
        ("POSTROAD__SERVER__DRAIN_TIMEOUT", "30", "server.drain_timeout", "not a duration"),
        ("POSTROAD__JOURNAL__SYNC", "fsync", "journal.sync", "fdatasync, os, memory"),
        ("POSTROAD__JSONLOG__LISTEN", "8000", "jsonlog.listen", "127.0.0.1:8000"),
        ("POSTROAD__LIMITS__MAX_TOPICS", "many", "limits.max_topics", "whole number"),
        ("POSTROAD__SERVER__INSECURE", "perhaps", "server.insecure", "true or false"),
    ] {
        let text = refused(&Overrides::default(), &[(name, value)]);
        for part in [&format!("`{key}`"), &format!("env {name}"), why] {
            assert!(text.contains(part), "{part} not in\n{text}");
        }
    }
    let (_dir, overrides) = file("[server]\ndrain_timeout = 30\n");
    assert!(refused(&overrides, &[]).contains("not a duration"));
    let (_dir, overrides) = file("[server]\ninsecure = maybe\n");
    assert!(refused(&overrides, &[]).contains("line 2"), "the place in the file");
    let missing = Overrides { file: Some("/nowhere/postroad.toml".into()), flags: Vec::new() };
    assert!(refused(&missing, &[]).contains("/nowhere/postroad.toml"));
}

#[test]
fn secrets_are_never_printed() {
    let (_dir, overrides) = file("[jsonlog]\ntokens = [\"hunter2\", \"file:/run/t\"]\n");
    let loaded = load(&overrides, env(&[])).unwrap();
    let shown = loaded.show(true).unwrap();
    assert!(shown.contains("tokens = [\"********\", \"file:/run/t\"]"), "{shown}");
    assert!(!shown.contains("hunter2") && !format!("{:?}", loaded.config).contains("hunter2"));
    let (_dir, overrides) = file("[jsonlog]\ntokens = \"hunter2\"\n");
    assert!(!refused(&overrides, &[]).contains("hunter2"));
}

#[test]
fn what_is_shown_reads_back_the_same() {
    let vars = [("POSTROAD__SERVER__DATA", "a \"b\"\\c"), ("POSTROAD__RETENTION__MAX_AGE", "36h")];
    let shown = load(&Overrides::default(), env(&vars)).unwrap().show(false).unwrap();
    let (_dir, overrides) = file(&shown);
    assert_eq!(load(&overrides, env(&[])).unwrap().show(false).unwrap(), shown);
    let sources = load(&Overrides::default(), env(&vars)).unwrap().show(true).unwrap();
    assert_eq!(sources.matches("# env POSTROAD__").count(), 2, "{sources}");
    assert_eq!(sources.matches("# default").count(), leaves(&default_values().unwrap()).len() - 2);
}

#[test]
fn an_open_door_without_tokens_needs_insecure() {
    let open = ("--jsonlog", "jsonlog.listen", "0.0.0.0:8000");
    let text = refused(&flags(&[open]), &[]);
    assert!(text.contains("--insecure") && text.contains("jsonlog.tokens"), "{text}");
    assert!(load(&flags(&[open, ("--insecure", "server.insecure", "true")]), env(&[])).is_ok());
    assert!(load(&flags(&[open]), env(&[("POSTROAD__JSONLOG__TOKENS", "env:T")])).is_ok());
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    for (key, value, part) in [
        ("jsonlog.max_line", "16MiB", "jsonlog.max_bulk"),
        ("jsonlog.max_line", "10", "64B"),
        ("jsonlog.max_connections", "0", "nobody can connect"),
        ("jsonlog.write_timeout", "0", "too slow"),
        ("jsonlog.words.pub", "sub", "jsonlog.words.pub"),
        ("jsonlog.words.ack", "nack", "another command"),
        ("jsonlog.words.ack", "a b", "one word"),
        ("limits.max_topics", "0", "no topic"),
        ("journal.queue_bytes", "1MiB", "8MiB"),
    ] {
        let text = refused(&flags(&[("--set", key, value)]), &[]);
        assert!(text.contains(part), "{key}={value}: {part} not in\n{text}");
    }
}

#[test]
fn distance_is_levenshtein() {
    for (a, b, expected) in
        [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("listn", "listen", 1)]
    {
        assert_eq!(distance(a, b), expected, "{a} {b}");
    }
}
