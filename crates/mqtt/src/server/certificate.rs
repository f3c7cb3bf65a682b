//! The common name of a certificate.
//!
//! The certificate was verified by rustls before; this only finds one field of it (RFC 5280, 4.1) and gives nothing
//! when anything looks different.

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// `2.5.4.3`, `id-at-commonName`.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The last common name of the subject: the most specific one.
pub(super) fn common_name(certificate: &[u8]) -> Option<String> {
    let (tag, certificate, _) = element(certificate)?;
    let (tbs_tag, mut fields, _) = element(certificate)?;
    if tag != SEQUENCE || tbs_tag != SEQUENCE {
        return None;
    }
    // Version (optional), serial number, signature, issuer, validity; then the subject.
    let mut skip = 4;
    if fields.first() == Some(&0xA0) {
        skip += 1;
    }
    for _ in 0..skip {
        fields = element(fields)?.2;
    }
    let (tag, mut names, _) = element(fields)?;
    if tag != SEQUENCE {
        return None;
    }
    let mut found = None;
    while !names.is_empty() {
        let (tag, mut set, rest) = element(names)?;
        if tag != SET {
            return None;
        }
        while !set.is_empty() {
            let (_, pair, more) = element(set)?;
            let (tag, kind, value) = element(pair)?;
            if tag == OBJECT_IDENTIFIER && kind == COMMON_NAME {
                found = text(value);
            }
            set = more;
        }
        names = rest;
    }
    found
}

/// A name that some software would cut or read in another way is none.
fn text(value: &[u8]) -> Option<String> {
    let (tag, value, _) = element(value)?;
    // UTF8String, NumericString, PrintableString, IA5String. T61String and wider ones have no agreed meaning.
    if !matches!(tag, 0x0C | 0x12 | 0x13 | 0x16) {
        return None;
    }
    let name = std::str::from_utf8(value).ok()?;
    (!name.is_empty() && !name.chars().any(char::is_control)).then(|| name.to_owned())
}

/// Tag, content and what follows of the first DER element.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        (digits.iter().fold(0_usize, |sum, digit| sum << 8 | usize::from(*digit)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}
