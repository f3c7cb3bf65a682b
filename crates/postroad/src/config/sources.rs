//! Where settings come from, in which order, and how a wrong one is reported.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
};

use figment::{
    Figment, Metadata, Profile, Provider,
    error::Kind,
    providers::{Format as _, Serialized, Toml},
    value::{Dict, Map, Value},
};

use super::Config;
use crate::exit::{Exit, Failure};

/// The prefix of environment variables that are settings.
const ENV_PREFIX: &str = "POSTROAD__";

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) file: Option<PathBuf>,
    /// `(flag as the user wrote it, dotted key, value)`; the later one wins.
    pub(crate) flags: Vec<(String, String, String)>,
}

/// A valid configuration and where each value came from.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    figment: Figment,
}

impl Loaded {
    /// `default`, `file:PATH`, `env NAME` or `flag --NAME`.
    pub(crate) fn origin(&self, key: &str) -> String {
        self.figment.find_metadata(key).map_or_else(|| "default".to_owned(), |found| found.name.to_string())
    }
}

/// Where a layer of settings comes from.
#[derive(Clone, Debug)]
enum Origin {
    Default,
    File(PathBuf),
    Env(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

struct Layer {
    origin: Origin,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// Reads all sources. `env` is the environment; only names that start with `POSTROAD__` matter.
///
/// Every unknown key of every source is reported at once; nothing is ignored.
pub(crate) fn load(
    overrides: &Overrides,
    env: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Loaded, Failure> {
    let defaults = default_values()?;
    let mut layers = vec![Layer { origin: Origin::Default, values: defaults.clone() }];
    if let Some(path) = &overrides.file {
        layers.push(read_file(path)?);
    }
    layers.extend(read_env(env, &defaults)?);
    for (flag, key, value) in &overrides.flags {
        let values = nest(key.split('.'), typed(value, find(&defaults, key)));
        layers.push(Layer { origin: Origin::Flag(flag.clone()), values });
    }

    let mut complaints = Vec::new();
    for layer in &layers {
        unknown_keys(&layer.origin, &layer.values, &defaults, &mut complaints);
    }
    if !complaints.is_empty() {
        return Err(Failure::new(Exit::Config, "the configuration has settings that do not exist")
            .why(complaints.join("\n"))
            .fix("correct or remove them; `postroad config show` lists every setting"));
    }

    let figment = layers.into_iter().fold(Figment::new(), Figment::merge);
    let config: Config = figment.extract().map_err(|error| invalid(&error))?;
    let loaded = Loaded { config, figment };
    super::check::check(&loaded)?;
    Ok(loaded)
}

/// Every setting with its default; also the list of what exists.
pub(super) fn default_values() -> Result<Dict, Failure> {
    values_of(&Config::default())
}

/// A configuration as a tree of plain values.
pub(super) fn values_of(config: &Config) -> Result<Dict, Failure> {
    Figment::from(Serialized::defaults(config))
        .extract()
        .map_err(|error| Failure::new(Exit::Internal, "cannot write the configuration").why(error))
}

fn read_file(path: &Path) -> Result<Layer, Failure> {
    let failed = |why: String, fix: &str| {
        Failure::new(Exit::Config, format!("cannot use the configuration file {}", path.display()))
            .why(why)
            .fix(fix)
    };
    let text = fs::read_to_string(path)
        .map_err(|error| failed(error.to_string(), "name a readable TOML file with --config"))?;
    let values = Toml::from_str(&text)
        .map_err(|error| failed(error.to_string(), "correct the TOML at the place that is named"))?;
    Ok(Layer { origin: Origin::File(path.to_owned()), values })
}

fn read_env(env: impl Iterator<Item = (OsString, OsString)>, defaults: &Dict) -> Result<Vec<Layer>, Failure> {
    // Sorted, so that errors come in the same order every time.
    let mut found = BTreeMap::new();
    for (name, value) in env {
        let Some(name) = name.to_str().filter(|name| name.starts_with(ENV_PREFIX)) else { continue };
        let value = value.into_string().map_err(|_| {
            Failure::new(Exit::Config, format!("the environment variable {name} is not UTF-8"))
                .fix("set it to text")
        })?;
        found.insert(name.to_owned(), value);
    }
    Ok(found
        .into_iter()
        .map(|(name, value)| {
            let key = name[ENV_PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            let values = nest(key.split('.'), typed(&value, find(defaults, &key)));
            Layer { origin: Origin::Env(name), values }
        })
        .collect())
}

/// Text from the environment or a flag, as the type that its setting has.
///
/// What does not fit stays text, and is refused with the setting's own words when it is read.
fn typed(text: &str, like: Option<&Value>) -> Value {
    match like {
        Some(Value::Bool(..)) => match text {
            "true" | "1" | "yes" | "on" => true.into(),
            "false" | "0" | "no" | "off" => false.into(),
            _ => text.into(),
        },
        Some(Value::Num(..)) => match text.replace('_', "").parse::<u64>() {
            Ok(number) => number.into(),
            Err(_) => text.into(),
        },
        Some(Value::Array(..)) => {
            let parts: Vec<Value> =
                text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(Value::from).collect();
            parts.into()
        }
        _ => text.into(),
    }
}

fn nest<'a>(mut levels: impl Iterator<Item = &'a str>, value: Value) -> Dict {
    fn rest<'a>(levels: &mut impl Iterator<Item = &'a str>, value: Value) -> Value {
        match levels.next() {
            None => value,
            Some(level) => Dict::from([(level.to_owned(), rest(levels, value))]).into(),
        }
    }
    let first = levels.next().unwrap_or_default().to_owned();
    Dict::from([(first, rest(&mut levels, value))])
}

fn find<'a>(values: &'a Dict, key: &str) -> Option<&'a Value> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    match (values.get(first)?, rest) {
        (value, None) => Some(value),
        (Value::Dict(_, inner), Some(rest)) => find(inner, rest),
        _ => None,
    }
}

/// The dotted names of all settings below `values`.
pub(super) fn leaves(values: &Dict) -> Vec<String> {
    fn walk(prefix: &str, values: &Dict, into: &mut Vec<String>) {
        for (name, value) in values {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            match value {
                Value::Dict(_, inner) => walk(&key, inner, into),
                _ => into.push(key),
            }
        }
    }
    let mut keys = Vec::new();
    walk("", values, &mut keys);
    keys
}

fn unknown_keys(origin: &Origin, values: &Dict, defaults: &Dict, complaints: &mut Vec<String>) {
    let valid = leaves(defaults);
    for key in leaves(values) {
        if valid.contains(&key) {
            continue;
        }
        let said = match origin {
            Origin::File(path) => format!("`{key}` in {}", path.display()),
            Origin::Env(name) => format!("{name} (`{key}`)"),
            Origin::Default | Origin::Flag(_) => format!("`{key}` from {origin}"),
        };
        if let Some(Value::Dict(..)) = find(defaults, &key) {
            complaints.push(format!("{said} is a section, not a setting"));
            continue;
        }
        let nearest = nearest(&key, &valid).unwrap_or_default();
        let nearest = match origin {
            Origin::Env(_) => format!("{ENV_PREFIX}{}", nearest.replace('.', "__").to_ascii_uppercase()),
            _ => format!("`{nearest}`"),
        };
        complaints.push(format!("{said} does not exist; the nearest is {nearest}"));
    }
}

/// The valid key that `key` was most likely meant to be.
fn nearest<'a>(key: &str, valid: &'a [String]) -> Option<&'a str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let name = last(key);
    // A name that is nearly right counts more than a section that is.
    valid.iter().map(String::as_str).min_by_key(|candidate| {
        (distance(&name, &last(candidate)) * 2 + distance(key, candidate), candidate.len())
    })
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn invalid(error: &figment::Error) -> Failure {
    let key = error.path.join(".");
    let origin = error.metadata.as_ref().map_or_else(|| "default".to_owned(), |found| found.name.to_string());
    let why = if key.contains("token") {
        // The value may be a secret: say what is expected, not what was found.
        "expected a list of secrets, like [\"file:/run/secrets/token\"]".to_owned()
    } else {
        match &error.kind {
            Kind::UnknownVariant(found, known) => {
                format!("`{found}` is not one of {}", known.join(", "))
            }
            Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
                let expected = match expected.as_str() {
                    "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
                    "a boolean" | "bool" => "true or false",
                    other => other,
                };
                format!("expected {expected}, found {found}")
            }
            other => other.to_string(),
        }
    };
    Failure::new(Exit::Config, format!("the setting `{key}` is not valid ({origin})"))
        .why(why)
        .fix("correct it there; `postroad config show --sources` shows every setting and where it comes from")
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
