//! The configuration as text: a valid file again, with the origin of each value on demand.

use std::fmt::Write as _;

use figment::value::{Dict, Value};

use super::{Loaded, sources};
use crate::exit::Failure;

impl Loaded {
    /// TOML that gives this configuration when it is read; secrets are masked.
    pub(crate) fn show(&self, with_sources: bool) -> Result<String, Failure> {
        let values = sources::values_of(&self.config)?;
        let mut text = String::new();
        self.section("", &values, with_sources, &mut text);
        Ok(text.trim_start().to_owned())
    }

    fn section(&self, name: &str, values: &Dict, with_sources: bool, text: &mut String) {
        let key_of = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        let settings: Vec<(&String, String)> = values
            .iter()
            .filter(|(_, value)| !matches!(value, Value::Dict(..)))
            .map(|(key, value)| (key, literal(value)))
            .collect();
        if !settings.is_empty() {
            let _ = writeln!(text, "\n[{name}]");
        }
        let width = settings.iter().map(|(key, value)| key.len() + value.len()).max().unwrap_or(0);
        for (key, value) in settings {
            let _ = write!(text, "{key} = {value}");
            if with_sources {
                let pad = width - key.len() - value.len();
                let _ = write!(text, "{:pad$}  # {}", "", self.origin(&key_of(key)));
            }
            text.push('\n');
        }
        for (key, value) in values {
            if let Value::Dict(_, inner) = value {
                self.section(&key_of(key), inner, with_sources, text);
            }
        }
    }
}

/// A TOML value. JSON strings are TOML strings.
fn literal(value: &Value) -> String {
    match value {
        Value::String(_, text) => serde_json::Value::from(text.as_str()).to_string(),
        Value::Array(_, items) => format!("[{}]", items.iter().map(literal).collect::<Vec<_>>().join(", ")),
        Value::Bool(_, on) => on.to_string(),
        other => other.to_u128().map(|number| number.to_string()).unwrap_or_default(),
    }
}
