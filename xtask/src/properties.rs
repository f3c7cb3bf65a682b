//! The names of all property tests, so that they can be run again with more cases.

use crate::tidy::Tracked;

/// Names of the tests inside `proptest! { … }`, over all Rust files below `crates`.
pub(crate) fn names(files: &[Tracked]) -> Vec<String> {
    let rust = files.iter().filter(|file| file.is("rs") && file.name.starts_with("crates/"));
    let mut names: Vec<String> = rust.filter_map(|file| file.text.as_deref()).flat_map(of_file).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// rustfmt leaves the inside of a macro alone but not its last brace: it stands below `proptest!`.
fn of_file(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside: Option<usize> = None;
    let mut test = false;
    for line in text.lines() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        match inside {
            None if trimmed.starts_with("proptest! {") || trimmed.starts_with("proptest::proptest! {") => {
                inside = Some(indent);
            }
            Some(start) if trimmed == "}" && indent == start => inside = None,
            Some(_) if trimmed == "#[test]" => test = true,
            Some(_) if test => {
                if let Some(rest) = trimmed.strip_prefix("fn ") {
                    names.extend(rest.split('(').next().map(|name| name.trim().to_owned()));
                    test = false;
                }
            }
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::of_file;

    #[test]
    fn only_tests_inside_the_macro_are_named() {
        let text = "mod tests {\n    proptest! {\n        #![x]\n        /// Why.\n        #[test]\n        fn holds(a in 0..1) {\n            \
                    fn inner() {}\n        }\n\n        #[test]\n        fn too(\n            b in 0..1,\n        ) {}\n    }\n\n    #[test]\n    fn plain() {}\n}\n";
        assert_eq!(of_file(text), ["holds", "too"]);
    }
}
