//! The server's side.

use std::mem;
use std::sync::Arc;

use super::super::crypto;
use super::super::users::{Credential, Users};
use super::super::{Denied, Exchange, Identity, Step};
use super::{auth_message, is_nonce, masked, value};

/// One login, from the users of a users file. An unknown user is found out only with the last message, in the way a
/// wrong password is.
#[derive(Debug)]
pub struct ScramServer {
    users: Arc<Users>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Waits for the client's first message.
    First {
        nonce: String,
        asked: bool,
    },
    /// Waits for the proof.
    Final(Box<Challenge>),
    Over,
}

/// What was sent, and what the proof must fit.
#[derive(Debug)]
struct Challenge {
    user: String,
    known: bool,
    credential: Credential,
    /// `c=` of the last message: the header of the first, in base64.
    header: String,
    nonce: String,
    client_first_bare: String,
    server_first: String,
}

impl ScramServer {
    /// A login that adds `nonce`, printable ASCII without commas and never used before, to the client's.
    pub fn new(users: Arc<Users>, nonce: String) -> Self {
        Self { users, state: State::First { nonce, asked: false } }
    }

    fn challenge(&self, message: &str, nonce: &str) -> Option<Challenge> {
        let (binding, rest) = message.split_once(',')?;
        // `p=` asks for a channel binding, and `y` says that none was offered: none was.
        if !matches!(binding, "n" | "y") {
            return None;
        }
        let (authzid, client_first_bare) = rest.split_once(',')?;
        let mut attributes = client_first_bare.split(',');
        // An `m=` in front would be an extension that must be understood.
        let user = unescape(value(attributes.next(), 'n')?)?;
        let client_nonce = value(attributes.next(), 'r').filter(|nonce| is_nonce(nonce))?;
        // To act for somebody else is not offered.
        if !authzid.is_empty() && unescape(value(Some(authzid), 'a')?)? != user {
            return None;
        }
        let (credential, known) = self.users.find_or_decoy(&user);
        let nonce = format!("{client_nonce}{nonce}");
        let server_first =
            format!("r={nonce},s={},i={}", crypto::encode(&credential.salt), credential.iterations);
        Some(Challenge {
            user,
            known,
            credential,
            header: crypto::encode(format!("{binding},{authzid},").as_bytes()),
            nonce,
            client_first_bare: client_first_bare.to_owned(),
            server_first,
        })
    }

    fn advance(&mut self, data: Option<&[u8]>) -> Result<Step, Denied> {
        let state = mem::replace(&mut self.state, State::Over);
        let message = std::str::from_utf8(data.unwrap_or_default()).map_err(|_| Denied::Malformed)?;
        match state {
            // A client may leave the first word to the server (RFC 4422, section 5); it has nothing to say.
            State::First { nonce, asked: false } if message.is_empty() => {
                self.state = State::First { nonce, asked: true };
                Ok(Step::Continue(Vec::new()))
            }
            State::First { nonce, .. } => {
                let challenge = self.challenge(message, &nonce).ok_or(Denied::Malformed)?;
                let answer = challenge.server_first.clone().into_bytes();
                self.state = State::Final(Box::new(challenge));
                Ok(Step::Continue(answer))
            }
            State::Final(challenge) => {
                let signature = challenge.answer(message)?;
                let identity = Identity::with_password(&challenge.user, challenge.credential.mark());
                Ok(Step::Done(identity, Some(format!("v={signature}").into_bytes())))
            }
            State::Over => Err(Denied::NotAuthorized),
        }
    }
}

impl Challenge {
    /// The server's signature, if the proof is right.
    fn answer(&self, message: &str) -> Result<String, Denied> {
        let (bare, proof) = message.rsplit_once(",p=").ok_or(Denied::Malformed)?;
        let proof = crypto::decode_hash(proof).ok_or(Denied::Malformed)?;
        let mut attributes = bare.split(',');
        let header = value(attributes.next(), 'c').ok_or(Denied::Malformed)?;
        let nonce = value(attributes.next(), 'r').ok_or(Denied::Malformed)?;
        if header != self.header || nonce != self.nonce {
            return Err(Denied::Malformed);
        }
        let signed = auth_message(&self.client_first_bare, &self.server_first, bare);
        let client_key = masked(proof, &self.credential.stored_key, &signed);
        let right = crypto::same(&crypto::sha256(&client_key), &self.credential.stored_key);
        if right && self.known {
            Ok(crypto::encode(&crypto::hmac(&self.credential.server_key, signed.as_bytes())))
        } else {
            Err(Denied::BadUserNameOrPassword)
        }
    }
}

impl Exchange for ScramServer {
    fn step(&mut self, data: Option<&[u8]>) -> Step {
        self.advance(data).unwrap_or_else(Step::Denied)
    }
}

/// A user name as it was before `=` and `,` were written as `=3D` and `=2C`.
fn unescape(name: &str) -> Option<String> {
    let mut parts = name.split('=');
    let mut out = parts.next()?.to_owned();
    for part in parts {
        let (char, rest) = match (part.strip_prefix("2C"), part.strip_prefix("3D")) {
            (Some(rest), _) => (',', rest),
            (_, Some(rest)) => ('=', rest),
            _ => return None,
        };
        out.push(char);
        out.push_str(rest);
    }
    (!out.is_empty() && !out.contains('\0')).then_some(out)
}
