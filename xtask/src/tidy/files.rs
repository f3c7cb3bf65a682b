//! What must not be in a file, and files that grew too long.

use super::Tracked;

/// Lines of a Rust file past which it is listed.
pub(crate) const LONG: usize = 600;

/// Rust files past the limit, longest first.
pub(crate) fn long(files: &[Tracked]) -> Vec<(usize, &str)> {
    let rust = files.iter().filter(|file| file.is("rs"));
    let mut long: Vec<_> = rust
        .filter_map(|file| Some((file.text.as_ref()?.lines().count(), file.name.as_str())))
        .filter(|(lines, _)| *lines > LONG)
        .collect();
    long.sort_unstable_by(|a, b| b.cmp(a));
    long
}

/// Words that tie a file to somebody's machine, each with the reason. Put together here, so that this
/// file does not have them.
fn unwanted() -> Vec<(String, &'static str)> {
    let path = "a path of somebody's machine";
    let host = "a host of a package registry: clients know theirs, mirrors have others";
    let mut words: Vec<(String, &str)> = ["wo|rk/", "ro|ot/", "ho|me/", "Us|ers/"]
        .map(|dir| (format!("/{}", dir.replace('|', "")), path))
        .into();
    for name in [
        "deb.deb|ian.org",
        "security.deb|ian.org",
        "static.cra|tes.io",
        "index.cra|tes.io",
        "proxy.gol|ang.org",
        "registry.np|mjs.org",
        "files.python|hosted.org",
        "repo1.ma|ven.org",
        "repo.maven.apa|che.org",
    ] {
        words.push((name.replace('|', ""), host));
    }
    words.push((["../sha", "red"].concat(), "not part of this repository"));
    words
}

/// Lines with something in them that must not be there.
pub(crate) fn check(files: &[Tracked]) -> Vec<String> {
    let unwanted = unwanted();
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| !file.is("lock")) {
        let Some(text) = &file.text else { continue };
        for (number, line) in text.lines().enumerate() {
            for (word, why) in &unwanted {
                if has(line, word) {
                    wrong.push(format!("{}:{}: `{word}`: {why}", file.name, number + 1));
                }
            }
        }
    }
    wrong
}

/// Whether `word` is in the line; a path only where it begins (`src/work/` and `$dir/work/` are fine).
fn has(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !word.starts_with('/') || before.is_none_or(|c| !(c.is_alphanumeric() || "._-*})/".contains(c)))
    })
}

#[cfg(test)]
mod tests {
    use super::{LONG, check, has, long};
    use crate::tidy::Tracked;

    fn file(name: &str, text: &str) -> Tracked {
        Tracked { name: name.into(), text: Some(text.into()) }
    }

    #[test]
    fn paths_of_a_machine_are_found_where_they_begin() {
        let home = ["/ho", "me/"].concat();
        assert!(has(&format!("see {home}ann/x"), &home));
        assert!(has(&format!("\"{home}ann\""), &home));
        assert!(!has(&format!("docs{home}x"), &home));
        let host = ["index.cra", "tes.io"].concat();
        let files = [file("a.md", &format!("get it from https://{host}/x")), file("Cargo.lock", &host)];
        assert_eq!(check(&files).len(), 1);
    }

    #[test]
    fn only_long_rust_files_are_listed() {
        let text = "x\n".repeat(LONG + 1);
        assert_eq!(
            long(&[file("a.rs", &text), file("b.md", &text), file("c.rs", "x\n")]),
            [(LONG + 1, "a.rs")]
        );
    }
}
