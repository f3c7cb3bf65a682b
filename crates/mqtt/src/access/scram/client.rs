//! The client's side.

use std::fmt;
use std::num::NonZeroU32;

use super::super::crypto::{self, Hash};
use super::super::users::{Credential, ITERATIONS};
use super::{auth_message, is_nonce, masked, value};

/// Why a client does not go on with a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// Not a message of SCRAM, or one for somebody else.
    #[error("the server's message is not one of SCRAM-SHA-256")]
    Malformed,
    /// The server asks for so few iterations that the password could be guessed from the answer, or for so many that it
    /// would take minutes.
    #[error("the server asks for {0} iterations; 4096 to 1000000 are accepted")]
    Iterations(u32),
    /// The server sent an `e=`.
    #[error("the server refused the login")]
    Refused,
    /// The server does not know the password: it is not the server it should be.
    #[error("the server could not prove that it knows the password")]
    ServerNotProven,
    /// A message that was not its turn.
    #[error("the login is not at this step")]
    OutOfTurn,
}

/// One login. [`first`](Self::first) goes into CONNECT, [`respond`](Self::respond) answers the AUTH that comes back, and
/// [`verify`](Self::verify) must accept the data of CONNACK before the server is trusted.
pub struct ScramClient {
    password: Vec<u8>,
    nonce: String,
    first_bare: String,
    state: State,
}

enum State {
    First,
    /// With the signature the server must send.
    Final(Hash),
    Over,
}

impl ScramClient {
    /// A login with `nonce`, printable ASCII without commas and never used before.
    pub fn new(user: &str, password: impl Into<Vec<u8>>, nonce: String) -> Self {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={user},r={nonce}");
        Self { password: password.into(), nonce, first_bare, state: State::First }
    }

    /// The data for CONNECT.
    pub fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.first_bare).into_bytes()
    }

    /// The answer to the server's first message. Takes the time of a password hash.
    pub fn respond(&mut self, server_first: &[u8]) -> Result<Vec<u8>, ScramError> {
        if !matches!(std::mem::replace(&mut self.state, State::Over), State::First) {
            return Err(ScramError::OutOfTurn);
        }
        let message = std::str::from_utf8(server_first).map_err(|_| ScramError::Malformed)?;
        let mut attributes = message.split(',');
        let nonce =
            value(attributes.next(), 'r').filter(|nonce| is_nonce(nonce)).ok_or(ScramError::Malformed)?;
        let salt = value(attributes.next(), 's').and_then(crypto::decode).ok_or(ScramError::Malformed)?;
        let iterations =
            value(attributes.next(), 'i').and_then(|n| n.parse().ok()).ok_or(ScramError::Malformed)?;
        // The server must have added something, or the whole exchange could be an old one.
        if nonce.strip_prefix(self.nonce.as_str()).is_none_or(str::is_empty) || salt.is_empty() {
            return Err(ScramError::Malformed);
        }
        let iterations = NonZeroU32::new(iterations)
            .filter(|n| ITERATIONS.contains(&n.get()))
            .ok_or(ScramError::Iterations(iterations))?;
        let salted = crypto::salted(&self.password, &salt, iterations);
        let Credential { stored_key, server_key, .. } = Credential::of(&salted, &salt, iterations);
        let bare = format!("c=biws,r={nonce}");
        let signed = auth_message(&self.first_bare, message, &bare);
        let proof = masked(crypto::hmac(&salted, b"Client Key"), &stored_key, &signed);
        self.state = State::Final(crypto::hmac(&server_key, signed.as_bytes()));
        Ok(format!("{bare},p={}", crypto::encode(&proof)).into_bytes())
    }

    /// Whether the server's last message proves that it knows the password.
    pub fn verify(&mut self, server_final: &[u8]) -> Result<(), ScramError> {
        let State::Final(signature) = std::mem::replace(&mut self.state, State::Over) else {
            return Err(ScramError::OutOfTurn);
        };
        let message = std::str::from_utf8(server_final).map_err(|_| ScramError::Malformed)?;
        let first = message.split(',').next();
        if value(first, 'e').is_some() {
            return Err(ScramError::Refused);
        }
        let theirs = value(first, 'v').and_then(crypto::decode_hash).ok_or(ScramError::Malformed)?;
        if crypto::same(&signature, &theirs) { Ok(()) } else { Err(ScramError::ServerNotProven) }
    }
}

/// Without the password.
impl fmt::Debug for ScramClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramClient").field("first", &self.first_bare).finish_non_exhaustive()
    }
}
