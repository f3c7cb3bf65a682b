//! Subjects and filters: `/`-separated levels, the same rules for every protocol.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A subject that breaks a rule; says which, and how to fix it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubjectError {
    /// No bytes at all.
    #[error("a subject is 1 to 255 bytes, this one is empty: name at least one level, like `orders`")]
    Empty,
    /// More than [`Subject::MAX_LEN`] bytes.
    #[error("a subject is at most 255 bytes, this one is {len}: shorten its levels")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Two separators in a row, or one at an end.
    #[error("level {level} of `{subject}` is empty: no `/` at the start or the end, and no `//`")]
    EmptyLevel {
        /// The whole subject.
        subject: String,
        /// Which level, the first is 1.
        level: usize,
    },
    /// A level that a file system would read as a folder.
    #[error("level {level} of `{subject}` is `.` or `..`: give it a name")]
    DotLevel {
        /// The whole subject.
        subject: String,
        /// Which level, the first is 1.
        level: usize,
    },
    /// A character that no level may have.
    #[error("{character:?} is not allowed in `{subject}`: no spaces, control characters or `\\`")]
    Character {
        /// The whole subject, control characters escaped.
        subject: String,
        /// The first bad character.
        character: char,
    },
    /// A wildcard where a plain subject is needed.
    #[error("`{subject}` has a wildcard in level {level}: `*` and `>` stand in filters only")]
    Wildcard {
        /// The whole subject.
        subject: String,
        /// Which level, the first is 1.
        level: usize,
    },
    /// A wildcard that is only part of its level.
    #[error("level {level} of `{subject}` mixes a wildcard with text: a level is `*`, `>` or plain text")]
    PartialWildcard {
        /// The whole filter.
        subject: String,
        /// Which level, the first is 1.
        level: usize,
    },
    /// `>` before the last level.
    #[error("`>` is level {level} of `{subject}`, but only the last level may be `>`: use `*` there")]
    TailNotLast {
        /// The whole filter.
        subject: String,
        /// Which level, the first is 1.
        level: usize,
    },
}

/// The first level of dead letters: those of `orders` are on `$dead/orders`.
pub const DEAD: &str = "$dead";
const DEAD_PREFIX: &str = "$dead/";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wildcards {
    Refused,
    Allowed,
}

/// Returns whether there was a wildcard.
fn check(text: &str, wildcards: Wildcards) -> Result<bool, SubjectError> {
    if text.is_empty() {
        return Err(SubjectError::Empty);
    }
    // So that every subject, the longest too, has a dead-letter subject.
    let len = text.strip_prefix(DEAD_PREFIX).unwrap_or(text).len();
    if len > Subject::MAX_LEN {
        return Err(SubjectError::TooLong { len });
    }
    if let Some(character) = text.chars().find(|c| c.is_control() || c.is_whitespace() || *c == '\\') {
        return Err(SubjectError::Character { subject: text.escape_debug().to_string(), character });
    }
    let mut wild = false;
    let mut tail = None;
    for (index, name) in text.split('/').enumerate() {
        let level = index + 1;
        let subject = || text.to_owned();
        if let Some(level) = tail {
            return Err(SubjectError::TailNotLast { subject: subject(), level });
        }
        match name {
            "" => return Err(SubjectError::EmptyLevel { subject: subject(), level }),
            "." | ".." => return Err(SubjectError::DotLevel { subject: subject(), level }),
            _ if !name.contains(['*', '>']) => continue,
            _ if wildcards == Wildcards::Refused => {
                return Err(SubjectError::Wildcard { subject: subject(), level });
            }
            "*" => {}
            ">" => tail = Some(level),
            _ => return Err(SubjectError::PartialWildcard { subject: subject(), level }),
        }
        wild = true;
    }
    Ok(wild)
}

/// `/` and `.` change places, so that the mapping has an inverse for every subject.
fn swap_separators(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '/' => '.',
            '.' => '/',
            other => other,
        })
        .collect()
}

/// Where a message goes: 1 to 255 bytes, levels separated by `/`, no wildcards. Cheap to clone.
///
/// No level is empty, `.` or `..`; no control characters, no whitespace, no `\`, no `*`, no `>`. The prefix
/// `$dead/` does not count to the 255 bytes. Subjects whose first level starts with `$` belong to the broker.
///
/// ```
/// use postroad_core::Subject;
///
/// let subject: Subject = "orders/eu/paid".parse()?;
/// assert_eq!(subject.levels().count(), 3);
/// assert_eq!(subject.to_dotted(), "orders.eu.paid");
/// assert_eq!(subject.dead_letter().as_str(), "$dead/orders/eu/paid");
/// assert!(Subject::new("orders//paid").is_err());
/// # Ok::<(), postroad_core::SubjectError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(Arc<str>);

impl Subject {
    /// The most bytes that a subject has, not counting a leading `$dead/`.
    pub const MAX_LEN: usize = 255;

    /// Checks `text` and takes it.
    pub fn new(text: impl AsRef<str> + Into<Arc<str>>) -> Result<Self, SubjectError> {
        check(text.as_ref(), Wildcards::Refused)?;
        Ok(Self(text.into()))
    }

    /// The subject of a NATS subject or an AMQP routing key: `.` and `/` change places.
    ///
    /// ```
    /// # use postroad_core::Subject;
    /// let subject = Subject::from_dotted("orders.eu.v1/beta")?;
    /// assert_eq!(subject.as_str(), "orders/eu/v1.beta");
    /// assert_eq!(subject.to_dotted(), "orders.eu.v1/beta");
    /// # Ok::<(), postroad_core::SubjectError>(())
    /// ```
    pub fn from_dotted(text: &str) -> Result<Self, SubjectError> {
        Self::new(swap_separators(text))
    }

    /// As a NATS subject or an AMQP routing key; the inverse of [`from_dotted`](Self::from_dotted).
    pub fn to_dotted(&self) -> String {
        swap_separators(&self.0)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The levels, at least one.
    pub fn levels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether it belongs to the broker: the first level starts with `$`.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with('$')
    }

    /// Whether it is a subject of dead letters.
    pub fn is_dead_letter(&self) -> bool {
        self.0.starts_with(DEAD_PREFIX)
    }

    /// Where the dead letters of this subject go. The dead letters of a dead-letter subject stay on it.
    pub fn dead_letter(&self) -> Self {
        if self.is_dead_letter() {
            return self.clone();
        }
        Self(format!("{DEAD_PREFIX}{}", self.0).into())
    }

    /// The subject whose dead letters these are, if it is a dead-letter subject.
    pub fn origin(&self) -> Option<Self> {
        // `$dead/..` cannot be a subject, so the rest is one.
        self.0.strip_prefix(DEAD_PREFIX).map(|rest| Self(rest.into()))
    }
}

/// Which subjects a subscription wants: each level is plain text or `*` (any one level), and the last may be `>`
/// (one or more levels). A wildcard in the first level does not match subjects starting with `$`.
///
/// ```
/// use postroad_core::Filter;
///
/// let filter: Filter = "orders/*/paid".parse()?;
/// assert!(filter.matches("orders/eu/paid"));
/// assert!(!filter.matches("orders/eu/west/paid"));
///
/// let all = Filter::new(">")?;
/// assert!(all.matches("orders/eu/paid") && !all.matches("$dead/orders"));
/// # Ok::<(), postroad_core::SubjectError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Filter {
    text: Arc<str>,
    literal: bool,
}

impl Filter {
    /// Checks `text` and takes it. The length limit is that of [`Subject`].
    pub fn new(text: impl AsRef<str> + Into<Arc<str>>) -> Result<Self, SubjectError> {
        let wild = check(text.as_ref(), Wildcards::Allowed)?;
        Ok(Self { text: text.into(), literal: !wild })
    }

    /// Whether `subject`, which must be valid, is wanted. Does not allocate.
    pub fn matches(&self, subject: &str) -> bool {
        if self.literal {
            return *self.text == *subject;
        }
        if subject.starts_with('$') && self.text.starts_with(['*', '>']) {
            return false;
        }
        let mut names = subject.split('/');
        for level in self.text.split('/') {
            match (level, names.next()) {
                (_, None) => return false,
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (plain, Some(name)) if plain == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }

    /// Whether it has no wildcard, so that it names one subject.
    pub fn is_literal(&self) -> bool {
        self.literal
    }

    /// The one subject it names, if it has no wildcard.
    pub fn as_subject(&self) -> Option<Subject> {
        self.literal.then(|| Subject(Arc::clone(&self.text)))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The levels, at least one.
    pub fn levels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.text.split('/')
    }

    /// The filter of a NATS subject filter: `.` and `/` change places, `*` and `>` mean the same there.
    pub fn from_dotted(text: &str) -> Result<Self, SubjectError> {
        Self::new(swap_separators(text))
    }

    /// As a NATS subject filter. (There a `>` or `*` in the first level also matches subjects starting with `$`.)
    pub fn to_dotted(&self) -> String {
        swap_separators(&self.text)
    }

    /// As the binding key of an AMQP topic exchange. AMQP's `#` stands for zero or more words, so `a/>` is `a.*.#`.
    ///
    /// ```
    /// # use postroad_core::Filter;
    /// assert_eq!(Filter::new("orders/*/>")?.to_binding_key(), "orders.*.*.#");
    /// # Ok::<(), postroad_core::SubjectError>(())
    /// ```
    pub fn to_binding_key(&self) -> String {
        let dotted = swap_separators(&self.text);
        match dotted.strip_suffix('>') {
            Some(head) => format!("{head}*.#"),
            None => dotted,
        }
    }
}

impl From<Subject> for Filter {
    fn from(subject: Subject) -> Self {
        Self { text: subject.0, literal: true }
    }
}

macro_rules! text_traits {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl FromStr for $type {
            type Err = SubjectError;

            fn from_str(text: &str) -> Result<Self, SubjectError> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $type {
            type Error = SubjectError;

            fn try_from(text: &str) -> Result<Self, SubjectError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = SubjectError;

            fn try_from(text: String) -> Result<Self, SubjectError> {
                Self::new(text)
            }
        }

        impl PartialEq<str> for $type {
            fn eq(&self, other: &str) -> bool {
                self.as_str() == other
            }
        }

        impl PartialEq<&str> for $type {
            fn eq(&self, other: &&str) -> bool {
                self.as_str() == *other
            }
        }
    };
}

text_traits!(Subject);
text_traits!(Filter);

// Hash and Eq of a subject are those of its text, so maps can be asked with a `&str`.
impl Borrow<str> for Subject {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
#[path = "subject_tests.rs"]
mod tests;
