//! The documents list the settings that there are: all of them, and no others.

use std::collections::BTreeSet;
use std::process::Command;

use crate::support::turn;

/// `section.key` of each setting, as the program prints them.
fn settings() -> BTreeSet<String> {
    let done =
        Command::new(env!("CARGO_BIN_EXE_postroad")).args(["config", "show"]).output().expect("it starts");
    let text = String::from_utf8(done.stdout).expect("text");
    let mut section = String::new();
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((key, _)) = line.split_once(" = ") {
            found.insert(format!("{section}.{key}"));
        }
    }
    assert!(found.len() > 50, "{text}");
    found
}

/// What the first column of the tables below `heading` names; `.sub` behind `a.pub` is `a.sub`.
fn documented(file: &str, heading: &str) -> BTreeSet<String> {
    let path = format!("{}/../../docs/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("the document");
    let (_, part) = text.split_once(heading).unwrap_or_else(|| panic!("{file}: {heading}"));
    let part = part.split("\n## ").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for line in part.lines().filter(|line| line.starts_with("| `")) {
        let cell = line.split('|').nth(1).unwrap_or_default();
        let mut section = String::new();
        for name in cell.split('`').skip(1).step_by(2) {
            let name = if name.starts_with('.') { format!("{section}{name}") } else { name.to_owned() };
            section = name.rsplit_once('.').map(|(section, _)| section.to_owned()).unwrap_or_default();
            found.insert(name);
        }
    }
    found
}

#[test]
fn the_documents_list_each_setting() {
    let _turn = turn();
    let there = settings();
    assert_eq!(documented("cli.md", "\n## Settings\n"), there, "docs/cli.md");
    let of = |prefixes: &[&str]| -> BTreeSet<String> {
        let ours = |key: &&String| prefixes.iter().any(|prefix| key.starts_with(prefix));
        there.iter().filter(ours).cloned().collect()
    };
    assert_eq!(documented("mqtt.md", "\n## Settings\n"), of(&["mqtt.", "http."]), "docs/mqtt.md");
    assert_eq!(documented("mqtt.md", "\n## The line dialect\n"), of(&["lines."]), "docs/mqtt.md");
}
