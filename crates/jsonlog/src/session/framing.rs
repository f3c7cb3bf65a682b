//! Bytes to lines and bulk bodies, bounded, wherever the packets were split.

/// What is being received.
#[derive(Debug, Default)]
enum Expect {
    #[default]
    Line,
    /// The rest of a line that is too long.
    LineEnd,
    /// The body of a `pubn` of this topic and count.
    Body { topic: String, count: u64, bytes: usize },
    /// A body that is not wanted: this many bytes are left.
    Skip(u64),
}

/// One piece of input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Line(&'a [u8]),
    /// A line was longer than allowed; it is being skipped.
    TooLong,
    Body {
        topic: String,
        count: u64,
        body: &'a [u8],
    },
}

/// Splits input; holds what is incomplete, and what came after a pause.
#[derive(Debug, Default)]
pub(super) struct Framer {
    held: Vec<u8>,
    expect: Expect,
}

/// The unread part of one input: what was held, then what came.
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Framer {
    /// Bytes held.
    pub(super) fn held(&self) -> usize {
        self.held.capacity()
    }

    /// Joins what is held with `data`. Give back what [`Framer::next`] left with [`Framer::keep`].
    pub(super) fn take_held(&mut self, data: &[u8]) -> Option<Vec<u8>> {
        if self.held.is_empty() {
            return None;
        }
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(data);
        Some(all)
    }

    /// Keeps the rest of an input.
    pub(super) fn keep(&mut self, input: &Input<'_>) {
        let rest = &input.bytes[input.at..];
        self.held = rest.to_vec();
    }

    /// The same, where the input was what [`Framer::take_held`] gave: its memory is used again, so that a line that
    /// comes in small pieces is not copied each time.
    pub(super) fn keep_owned(&mut self, mut all: Vec<u8>, at: usize) {
        if at == all.len() {
            return;
        }
        if at > 0 {
            all.drain(..at);
            all.shrink_to(all.len() * 2);
        }
        self.held = all;
    }

    /// The next bytes are the body of a `pubn`.
    pub(super) fn expect_body(&mut self, topic: &str, count: u64, bytes: usize) {
        self.expect = Expect::Body { topic: topic.to_owned(), count, bytes };
    }

    /// The next bytes are to be skipped.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.expect = Expect::Skip(bytes);
    }

    /// The next complete piece, or `None` if more bytes are needed.
    pub(super) fn next<'a>(&mut self, input: &mut Input<'a>, max_line: usize) -> Option<Piece<'a>> {
        loop {
            let rest = &input.bytes[input.at..];
            match &mut self.expect {
                Expect::Line => {
                    let Some(len) = memchr::memchr(b'\n', rest) else {
                        // One more for the CR of its end.
                        if rest.len() > max_line + 1 {
                            input.at = input.bytes.len();
                            self.expect = Expect::LineEnd;
                            return Some(Piece::TooLong);
                        }
                        return None;
                    };
                    input.at += len + 1;
                    let line = &rest[..len];
                    let line = line.strip_suffix(b"\r").unwrap_or(line);
                    return Some(if line.len() > max_line { Piece::TooLong } else { Piece::Line(line) });
                }
                Expect::LineEnd => {
                    let Some(len) = memchr::memchr(b'\n', rest) else {
                        input.at = input.bytes.len();
                        return None;
                    };
                    input.at += len + 1;
                    self.expect = Expect::Line;
                }
                Expect::Body { topic, count, bytes } => {
                    if rest.len() < *bytes {
                        return None;
                    }
                    let body = &rest[..*bytes];
                    input.at += *bytes;
                    let piece = Piece::Body { topic: std::mem::take(topic), count: *count, body };
                    self.expect = Expect::Line;
                    return Some(piece);
                }
                Expect::Skip(left) => {
                    let skipped = (rest.len() as u64).min(*left);
                    input.at += skipped as usize;
                    *left -= skipped;
                    if *left > 0 {
                        return None;
                    }
                    self.expect = Expect::Line;
                }
            }
        }
    }
}

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Got {
        Line(Vec<u8>),
        TooLong,
        Body(Vec<u8>),
    }

    /// Feeds `parts`; a line `b<n>` announces a body, `s<n>` bytes to skip.
    fn feed(parts: &[&[u8]]) -> Vec<Got> {
        let mut framer = Framer::default();
        let mut got = Vec::new();
        for part in parts {
            let all = framer.take_held(part);
            let bytes = all.as_deref().unwrap_or(part);
            let mut input = Input::new(bytes);
            while let Some(piece) = framer.next(&mut input, 10) {
                match piece {
                    Piece::Line(line) => {
                        match line.split_first() {
                            Some((b'b', n)) => {
                                framer.expect_body("t", 1, std::str::from_utf8(n).unwrap().parse().unwrap());
                            }
                            Some((b's', n)) => framer.skip(std::str::from_utf8(n).unwrap().parse().unwrap()),
                            _ => {}
                        }
                        got.push(Got::Line(line.to_vec()));
                    }
                    Piece::TooLong => got.push(Got::TooLong),
                    Piece::Body { body, .. } => got.push(Got::Body(body.to_vec())),
                }
            }
            let at = input.position();
            match all {
                Some(all) => framer.keep_owned(all, at),
                None => framer.keep(&input),
            }
            assert!(framer.held.len() <= 12, "holds {}", framer.held.len());
        }
        got
    }

    proptest! {
        #[test]
        fn packets_may_be_split_anywhere(
            items in prop::collection::vec(prop_oneof![
                "[x-z]{0,14}\r?\n".prop_map(String::into_bytes),
                "[x\n]{0,9}".prop_map(|body| format!("b{}\n{body}", body.len()).into_bytes()),
                "[x\n]{0,9}".prop_map(|body| format!("s{}\n{body}", body.len()).into_bytes()),
            ], 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let bytes: Vec<u8> = items.concat();
            let whole = feed(&bytes.iter().map(std::slice::from_ref).collect::<Vec<_>>());
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let parts: Vec<&[u8]> = at.windows(2).map(|w| &bytes[w[0]..w[1]]).filter(|p| p.len() <= 12).collect();
            if parts.concat().len() == bytes.len() {
                prop_assert_eq!(feed(&parts), whole);
            }
        }
    }

    #[test]
    fn a_long_line_is_reported_once_and_skipped() {
        assert_eq!(feed(&[b"aaaaaaaaaaaa", b"aaaa", b"a\nok\n"]), [Got::TooLong, Got::Line(b"ok".to_vec())]);
        assert_eq!(feed(&[b"0123456789\r\n"]), [Got::Line(b"0123456789".to_vec())]);
        assert_eq!(feed(&[b"0123456789a\r\n"]), [Got::TooLong]);
    }
}
