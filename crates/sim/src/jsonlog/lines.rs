//! Bytes to lines, whatever the pieces they come in.

/// Holds what is not a whole line yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    held: Vec<u8>,
    read: usize,
}

impl Lines {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.read > 0 {
            self.held.drain(..self.read);
            self.read = 0;
        }
        self.held.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        let rest = &self.held[self.read..];
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        self.read += end + 1;
        Some(&rest[..end])
    }

    pub(super) fn clear(&mut self) {
        self.held.clear();
        self.read = 0;
    }
}

/// Splits off the first word.
pub(super) fn word(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}
