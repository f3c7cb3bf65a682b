//! Secrets by reference. They are read when they are needed and never printed.

use std::{env, fmt, fs};

use serde::{Deserialize, Serialize, Serializer};

/// `file:PATH`, `env:NAME`, or the secret itself.
///
/// A reference is printed as it is; a secret written out is masked everywhere.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    /// The secrets behind it: a file holds one a line, the others are one. Never empty.
    pub(crate) fn resolve(&self) -> Result<Vec<String>, String> {
        if let Some(path) = self.0.strip_prefix("file:") {
            let text = fs::read_to_string(path).map_err(|error| format!("cannot read `{self}`: {error}"))?;
            let secrets: Vec<String> =
                text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
            if secrets.is_empty() {
                return Err(format!("the file of `{self}` is empty"));
            }
            return Ok(secrets);
        }
        let secret = match self.0.strip_prefix("env:") {
            Some(name) => env::var(name).map_err(|error| format!("`{self}`: {error}"))?,
            None => self.0.clone(),
        };
        if secret.is_empty() {
            return Err(format!("`{self}` is empty"));
        }
        Ok(vec![secret])
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reference = self.0.starts_with("file:") || self.0.starts_with("env:");
        f.write_str(if reference { &self.0 } else { "********" })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_secret_is_masked_and_a_reference_is_not() {
        let secret = Secret::from("hunter2".to_owned());
        assert_eq!(format!("{secret} {secret:?}"), "******** ********");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"********\"");
        assert_eq!(Secret::from("file:/run/t".to_owned()).to_string(), "file:/run/t");
        assert_eq!(secret.resolve().unwrap(), ["hunter2"]);
    }

    #[test]
    fn a_file_holds_one_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        fs::write(&path, "one\n\n two \r\n").unwrap();
        assert_eq!(Secret::from(format!("file:{}", path.display())).resolve().unwrap(), ["one", "two"]);
        fs::write(&path, " \n").unwrap();
        let error = Secret::from(format!("file:{}", path.display())).resolve().unwrap_err();
        assert!(error.contains("is empty"), "{error}");
    }

    #[test]
    fn what_is_missing_is_an_error_that_names_the_reference() {
        let error = Secret::from("env:POSTROAD_TEST_NOT_SET".to_owned()).resolve().unwrap_err();
        assert!(error.contains("env:POSTROAD_TEST_NOT_SET"), "{error}");
        assert!(Secret::from("file:/nowhere/at/all".to_owned()).resolve().is_err());
        assert!(Secret::from(String::new()).resolve().is_err());
        assert!(Secret::from("file:".to_owned()).resolve().is_err());
    }
}
