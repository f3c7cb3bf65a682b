//! One password hash.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};

use super::super::crypto::{self, Hash};
use super::super::error::AccessError;
use super::{DEFAULT_ITERATIONS, ITERATIONS};

const METHOD: &str = "scram-sha-256";
const SALT: usize = 16;

/// What the server keeps of a password: RFC 5802, section 3.
#[derive(Clone)]
pub(in crate::access) struct Credential {
    pub(in crate::access) iterations: NonZeroU32,
    pub(in crate::access) salt: Box<[u8]>,
    pub(in crate::access) stored_key: Hash,
    pub(in crate::access) server_key: Hash,
    /// A keyed hash of the password, once it was right: clients that all come back at once cost no PBKDF2 each.
    proven: Arc<OnceLock<Hash>>,
}

/// Tells one password of a user from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::access) struct Mark([u8; 8]);

/// `StoredKey` of a salted password.
fn stored_key(salted: &Hash) -> Hash {
    crypto::sha256(&crypto::hmac(salted, b"Client Key"))
}

impl Credential {
    /// The hash of a password with a new salt.
    pub(super) fn new(password: &[u8], iterations: u32) -> Result<Self, AccessError> {
        if password.is_empty() || password.len() > usize::from(u16::MAX) {
            return Err(AccessError::Unusable("a password must have 1 to 65535 bytes"));
        }
        let iterations = NonZeroU32::new(iterations).filter(|n| ITERATIONS.contains(&n.get()));
        let iterations = iterations.ok_or(AccessError::Unusable("the iterations must be 4096 to 1000000"))?;
        let salt = crypto::random::<SALT>()
            .map_err(|e| AccessError::io("draw a salt for", "password".as_ref(), e))?;
        Ok(Self::of(&crypto::salted(password, &salt, iterations), &salt, iterations))
    }

    /// The credential of a salted password.
    pub(in crate::access) fn of(salted: &Hash, salt: &[u8], iterations: NonZeroU32) -> Self {
        Self {
            iterations,
            salt: salt.into(),
            stored_key: stored_key(salted),
            server_key: crypto::hmac(salted, b"Server Key"),
            proven: Arc::default(),
        }
    }

    /// Reads `$scram-sha-256$ITERATIONS$SALT$STORED_KEY$SERVER_KEY`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('$').collect();
        let ["", method, iterations, salt, stored_key, server_key] = parts[..] else {
            return Err("the hash is not $scram-sha-256$ITERATIONS$SALT$STORED_KEY$SERVER_KEY".to_owned());
        };
        if method != METHOD {
            return Err(format!("the hash is of '{method}', not of {METHOD}"));
        }
        let iterations = iterations.parse::<NonZeroU32>().ok().filter(|n| ITERATIONS.contains(&n.get()));
        let iterations = iterations.ok_or_else(|| {
            format!("the iterations are not {} to {}", ITERATIONS.start(), ITERATIONS.end())
        })?;
        let salt = crypto::decode(salt).filter(|salt| (8..=32).contains(&salt.len()));
        let salt = salt.ok_or("the salt is not 8 to 32 bytes in base64")?;
        let key = |text, name| {
            crypto::decode_hash(text).ok_or_else(|| format!("the {name} key is not 32 bytes in base64"))
        };
        Ok(Self {
            iterations,
            salt: salt.into(),
            stored_key: key(stored_key, "stored")?,
            server_key: key(server_key, "server")?,
            proven: Arc::default(),
        })
    }

    /// One that no password fits, the same each time for the same `tag`, in the form of `like`.
    pub(super) fn decoy(tag: &Hash, like: Option<&Self>) -> Self {
        let mut salt = crypto::hmac(tag, b"salt").to_vec();
        salt.truncate(like.map_or(SALT, |like| like.salt.len()));
        Self {
            iterations: like
                .map(|like| like.iterations)
                .or(NonZeroU32::new(DEFAULT_ITERATIONS))
                .unwrap_or(NonZeroU32::MIN),
            salt: salt.into(),
            stored_key: crypto::hmac(tag, b"stored key"),
            server_key: crypto::hmac(tag, b"server key"),
            proven: Arc::default(),
        }
    }

    /// Whether the password is the one. `secret` must always be the same.
    pub(super) fn verify(&self, password: &[u8], secret: &Hash) -> bool {
        let tag = crypto::hmac(secret, password);
        if self.was_right(&tag) {
            return true;
        }
        let salted = crypto::salted(password, &self.salt, self.iterations);
        let right = crypto::same(&self.stored_key, &stored_key(&salted));
        if right {
            let _ = self.proven.set(tag);
        }
        right
    }

    /// Whether the password with this tag, its keyed hash, was right before.
    pub(super) fn was_right(&self, tag: &Hash) -> bool {
        self.proven.get().is_some_and(|proven| crypto::same(proven, tag))
    }

    pub(in crate::access) fn mark(&self) -> Mark {
        let mut mark = [0; 8];
        mark.iter_mut().zip(crypto::sha256(&self.stored_key)).for_each(|(to, from)| *to = from);
        Mark(mark)
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [salt, stored, server] = [&*self.salt, &self.stored_key, &self.server_key].map(crypto::encode);
        write!(f, "${METHOD}${}${salt}${stored}${server}", self.iterations)
    }
}

/// Without the keys, so that no log has them.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}
