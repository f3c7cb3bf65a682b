//! The users file: names and password hashes.
//!
//! ```text
//! # A comment.
//! %unknown:KEY
//! alice:$scram-sha-256$15000$SALT$STORED_KEY$SERVER_KEY
//! ```
//!
//! One hash is for plain passwords and for SCRAM-SHA-256 (RFC 5802, section 3): a SALT of 8 to 32 bytes, and the two
//! keys, all in base64. The file does not have the password, nor what a client would need to log in.
//!
//! KEY is 32 random bytes, from which answers to unknown user names are made that look like those to known ones. [`add`]
//! puts it there. Without it, another one is drawn at each start, and who asks before and after it can tell which users
//! there are.
//!
//! Passwords are compared as bytes. SASLprep (RFC 4013), which SCRAM asks for, changes nothing in ASCII; other
//! passwords have to come in normal form KC.

mod credential;
mod edit;

use std::ops::RangeInclusive;
use std::sync::Arc;

pub(super) use credential::{Credential, Mark};
pub use edit::{Change, add, list, remove};

use super::crypto::{self, Hash};
use super::error::LineError;

/// The iterations of new password hashes: some milliseconds of processor time for each login with a plain password,
/// and on the client's side for each with SCRAM.
pub const DEFAULT_ITERATIONS: u32 = 15_000;

/// How many iterations there may be: RFC 7677 asks for 4096 at least, and a login must end.
pub const ITERATIONS: RangeInclusive<u32> = 4096..=1_000_000;

const UNKNOWN: &str = "%unknown";

/// The users of a users file.
#[derive(Debug)]
pub struct Users {
    /// By name, ascending.
    users: Vec<(Arc<str>, Credential)>,
    /// What the answers to unknown names are made from.
    unknown: Hash,
    /// For marks of passwords that were right; random, and nowhere but in this process.
    secret: Hash,
}

/// The lines with something on them, with their numbers.
pub(super) fn lines(text: &str) -> Result<impl Iterator<Item = (usize, &str)>, LineError> {
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(LineError {
            line: text.lines().count(),
            what: "the last line has no line end: the file may have been cut; look, and add one".to_owned(),
        });
    }
    let lines = text.lines().enumerate().map(|(n, line)| (n + 1, line.trim()));
    Ok(lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')))
}

/// Why a name cannot be in the file.
fn unusable_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("a user name must not be empty")
    } else if name.len() > 255 {
        Some("a user name must not have more than 255 bytes")
    } else if name.contains(':') || name.contains(char::is_control) {
        Some("a user name must not have ':' or control characters in it")
    } else if name.trim() != name || name.starts_with(['#', '%']) {
        Some("a user name must not begin with '#', '%' or a space, or end with a space")
    } else {
        None
    }
}

impl Users {
    /// Reads the text of a users file. `secret` is random and stays the same for the life of the process.
    pub fn parse(text: &str, secret: [u8; 32]) -> Result<Self, LineError> {
        let mut users: Vec<(Arc<str>, Credential, usize)> = Vec::new();
        let mut unknown = None;
        for (line, text) in lines(text)? {
            let wrong = |what: String| LineError { line, what };
            let (name, hash) = text.split_once(':').ok_or_else(|| {
                wrong("not NAME:HASH; lines of users are written by 'postroad mqtt user add NAME'".to_owned())
            })?;
            if name == UNKNOWN {
                let key = crypto::decode_hash(hash);
                let key = key.ok_or_else(|| {
                    wrong("not 32 bytes in base64; without the line they are random".to_owned())
                })?;
                if unknown.replace(key).is_some() {
                    return Err(wrong(format!("a second '{UNKNOWN}' line; remove one")));
                }
                continue;
            }
            if let Some(what) = unusable_name(name) {
                return Err(wrong(format!("{what}; rename or remove '{name}'")));
            }
            let credential = Credential::parse(hash).map_err(|what| {
                wrong(format!("{what}; write the line again with 'postroad mqtt user add {name}'"))
            })?;
            users.push((name.into(), credential, line));
        }
        users.sort_by(|a, b| (&a.0, a.2).cmp(&(&b.0, b.2)));
        if let Some(((name, ..), (.., line))) =
            users.iter().zip(users.iter().skip(1)).find(|(a, b)| a.0 == b.0)
        {
            return Err(LineError {
                line: *line,
                what: format!("'{name}' is there twice; remove one of the lines"),
            });
        }
        let users = users.into_iter().map(|(name, credential, _)| (name, credential)).collect();
        Ok(Self { users, unknown: unknown.unwrap_or(secret), secret })
    }

    /// No users.
    pub(super) fn none(secret: Hash) -> Self {
        Self { users: Vec::new(), unknown: secret, secret }
    }

    /// The names, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.users.iter().map(|(name, _)| &**name)
    }

    fn find(&self, name: &str) -> Option<&Credential> {
        let at = self.users.binary_search_by(|(other, _)| (**other).cmp(name)).ok()?;
        self.users.get(at).map(|(_, credential)| credential)
    }

    /// The user's credential, or for an unknown name one that no password fits and that looks like those of the others.
    pub(super) fn find_or_decoy(&self, name: &str) -> (Credential, bool) {
        // Made for known names too, so that both take the same time.
        let tag = crypto::hmac(&self.unknown, name.as_bytes());
        let pick = tag.iter().rev().take(8).fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        let like = (pick as usize).checked_rem(self.users.len()).and_then(|n| self.users.get(n));
        let decoy = Credential::decoy(&tag, like.map(|(_, credential)| credential));
        match self.find(name) {
            Some(credential) => (credential.clone(), true),
            None => (decoy, false),
        }
    }

    /// Whether it is the user's password. Takes the time of a hash, if it is not one that was right before.
    pub(super) fn verify(&self, name: &str, password: &[u8]) -> Option<Mark> {
        let (credential, known) = self.find_or_decoy(name);
        (credential.verify(password, &self.secret) && known).then(|| credential.mark())
    }

    /// The same without a hash: only a password that was right before is known.
    pub(super) fn recall(&self, name: &str, password: &[u8]) -> Option<Mark> {
        // Computed for unknown names, too, so that all take the same time.
        let tag = crypto::hmac(&self.secret, password);
        self.find(name).filter(|credential| credential.was_right(&tag)).map(Credential::mark)
    }

    /// The mark of the user's password, while there is such a user.
    pub(super) fn mark(&self, name: &str) -> Option<Mark> {
        self.find(name).map(Credential::mark)
    }
}
