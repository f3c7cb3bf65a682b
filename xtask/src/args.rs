//! Flags: `--name` and `--name VALUE` (or `--name=VALUE`). Anything unknown is an error.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::str::FromStr;

/// The parsed flags and the words between them.
pub(crate) struct Args {
    switches: Vec<String>,
    values: BTreeMap<String, String>,
    pub(crate) words: Vec<String>,
}

impl Args {
    /// Parses `raw`; `switches` stand alone, `valued` take a value.
    pub(crate) fn parse(raw: &[String], switches: &[&str], valued: &[&str]) -> Result<Self> {
        let mut found = Self { switches: Vec::new(), values: BTreeMap::new(), words: Vec::new() };
        let mut rest = raw.iter();
        while let Some(word) = rest.next() {
            let Some(flag) = word.strip_prefix("--") else {
                found.words.push(word.clone());
                continue;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if switches.contains(&name) && inline.is_none() {
                found.switches.push(name.to_owned());
            } else if valued.contains(&name) {
                let value = match inline {
                    Some(value) => value,
                    None => rest.next().with_context(|| format!("--{name} needs a value"))?.clone(),
                };
                found.values.insert(name.to_owned(), value);
            } else {
                bail!("unknown flag {word}; see `cargo xtask help`");
            }
        }
        Ok(found)
    }

    pub(crate) fn has(&self, switch: &str) -> bool {
        self.switches.iter().any(|s| s == switch)
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The value of `--name` as a `T`.
    pub(crate) fn get<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => bail!("--{name} {text}: not a number this flag can take"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Args;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn flags_values_and_words() {
        let args = Args::parse(
            &words("jsonlog --quick --seconds 2 --json=a.json"),
            &["quick"],
            &["seconds", "json"],
        )
        .unwrap();
        assert!(args.has("quick"));
        assert_eq!(args.get::<u64>("seconds").unwrap(), Some(2));
        assert_eq!(args.text("json"), Some("a.json"));
        assert_eq!(args.words, ["jsonlog"]);
    }

    #[test]
    fn what_is_unknown_or_incomplete_is_refused() {
        assert!(Args::parse(&words("--slow"), &["quick"], &[]).is_err());
        assert!(Args::parse(&words("--seconds"), &[], &["seconds"]).is_err());
        assert!(Args::parse(&words("--quick=1"), &["quick"], &[]).is_err());
        let args = Args::parse(&words("--seconds x"), &[], &["seconds"]).unwrap();
        assert!(args.get::<u64>("seconds").is_err());
    }
}
