//! Message ids: JSON tokens that are compared as text.

use std::borrow::Cow;

/// The id that the JSON token `token` (a string or a number) means: `17` and `"17"` are the same.
pub(crate) fn id_text(token: &[u8]) -> Cow<'_, [u8]> {
    match token {
        [b'"', text @ .., b'"'] if !text.contains(&b'\\') => Cow::Borrowed(text),
        [b'"', ..] => match serde_json::from_slice::<String>(token) {
            Ok(text) => Cow::Owned(text.into_bytes()),
            Err(_) => Cow::Borrowed(token),
        },
        _ => Cow::Borrowed(token),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_its_text_are_one_id() {
        assert_eq!(&*id_text(b"17"), b"17");
        assert_eq!(&*id_text(b"\"17\""), b"17");
        assert_eq!(&*id_text(br#""a\"b""#), b"a\"b");
        assert_eq!(&*id_text(b"\""), b"\"");
    }
}
