//! Links in Markdown files that point into the repository must point at something.

use super::Tracked;
use crate::sh;
use std::path::Path;

/// Links that lead nowhere.
pub(crate) fn check(files: &[Tracked]) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| file.is("md")) {
        let dir = Path::new(&file.name).parent().unwrap_or_else(|| Path::new(""));
        for link in file.text.as_deref().map(links).unwrap_or_default() {
            let target = match link.strip_prefix('/') {
                Some(from_root) => sh::root().join(from_root),
                None => sh::root().join(dir).join(&link),
            };
            if !target.exists() {
                wrong.push(format!("{}: the link to `{link}` leads nowhere", file.name));
            }
        }
    }
    wrong
}

/// The local targets of `[text](target)` outside of code, without their anchors.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        // Every second piece between backticks is code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for (at, _) in prose.match_indices("](") {
            let Some(target) = prose[at + 2..].split([')', ' ']).next() else { continue };
            let path = target.split('#').next().unwrap_or_default();
            let elsewhere = path.contains("://") || path.starts_with("mailto:");
            if !path.is_empty() && !elsewhere {
                found.push(path.to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::links;

    #[test]
    fn only_local_links_outside_of_code_count() {
        let text = "[a](docs/a.md) and [b](b.md#part) `[c](c.md)` [`d`](d.md)\n```\n[e](e.md)\n```\n[f](https://f.org/x) [g](#here)";
        assert_eq!(links(text), ["docs/a.md", "b.md", "d.md"]);
    }
}
