//! The few primitives that passwords and SCRAM need, from ring.

use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac, pbkdf2};

/// A SHA-256 value.
pub(super) type Hash = [u8; digest::SHA256_OUTPUT_LEN];

fn hash_of(bytes: &[u8]) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(bytes);
    hash
}

pub(super) fn sha256(bytes: &[u8]) -> Hash {
    hash_of(digest::digest(&digest::SHA256, bytes).as_ref())
}

pub(super) fn hmac(key: &[u8], bytes: &[u8]) -> Hash {
    hash_of(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), bytes).as_ref())
}

/// `Hi()` of RFC 5802.
pub(super) fn salted(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Hash {
    let mut out = Hash::default();
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password, &mut out);
    out
}

/// Whether they are the same, in a time that does not tell where they differ: ring's comparison is offered through
/// HMAC only.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"postroad compare");
    hmac::verify(&key, b, hmac::sign(&key, a).as_ref()).is_ok()
}

pub(super) fn xor(a: Hash, b: &Hash) -> Hash {
    let mut out = a;
    for (out, b) in out.iter_mut().zip(b) {
        *out ^= b;
    }
    out
}

/// Random bytes from the system.
pub(super) fn random<const N: usize>() -> Result<[u8; N], std::io::Error> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| std::io::Error::other("the system gave no random bytes"))?;
    Ok(bytes)
}

pub(super) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

pub(super) fn decode_hash(text: &str) -> Option<Hash> {
    decode(text)?.try_into().ok()
}
