//! SCRAM-SHA-256 (RFC 5802, RFC 7677) without channel binding, as the authentication data of MQTT 5.0 (section 4.12):
//! neither side learns the other's secret, and both prove that they have it.
//!
//! [`ScramServer`] and [`ScramClient`] are state machines; they get their nonces, from [`nonce`] outside of tests.
//!
//! ```text
//! CONNECT  n,,n=USER,r=NONCE
//! AUTH     r=NONCE+MORE,s=SALT,i=ITERATIONS
//! AUTH     c=biws,r=NONCE+MORE,p=PROOF
//! CONNACK  v=SIGNATURE
//! ```

mod client;
mod server;

pub use client::{ScramClient, ScramError};
pub use server::ScramServer;

use super::crypto::{self, Hash};

/// The authentication method's name.
pub const METHOD: &str = "SCRAM-SHA-256";

/// The most bytes of the other side's nonce.
const NONCE_MAX: usize = 512;

/// A random nonce: 144 bits, in base64.
pub fn nonce() -> std::io::Result<String> {
    Ok(crypto::encode(&crypto::random::<18>()?))
}

/// The value of an attribute, `NAME=VALUE`.
fn value(attribute: Option<&str>, name: char) -> Option<&str> {
    attribute?.strip_prefix(name)?.strip_prefix('=')
}

/// Whether it is one or more printable characters (RFC 5802, section 7).
fn is_nonce(text: &str) -> bool {
    (1..=NONCE_MAX).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, 0x21..=0x7e) && byte != b',')
}

/// The messages that both sides sign.
fn auth_message(client_first_bare: &str, server_first: &str, client_final_bare: &str) -> String {
    format!("{client_first_bare},{server_first},{client_final_bare}")
}

/// `ClientKey` XOR `ClientSignature`; with a proof for the key, the key.
fn masked(key_or_proof: Hash, stored_key: &Hash, auth_message: &str) -> Hash {
    crypto::xor(key_or_proof, &crypto::hmac(stored_key, auth_message.as_bytes()))
}

#[cfg(test)]
mod tests;
