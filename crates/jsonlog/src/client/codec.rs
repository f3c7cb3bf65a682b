//! Bytes to lines, lines to what they say. Pure: no socket, no clock.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::error::{ClientError, ErrorKind};

/// Cuts a byte stream into lines, whatever the pieces it comes in.
#[derive(Debug)]
pub struct LineSplitter {
    buf: BytesMut,
    /// Bytes at the front of `buf` that hold no LF, so that a long line is searched once.
    searched: usize,
    max_line: usize,
}

impl LineSplitter {
    /// A splitter for lines of at most `max_line` bytes, their end not counted.
    pub fn new(max_line: usize) -> Self {
        Self { buf: BytesMut::new(), searched: 0, max_line }
    }

    /// Where to put what was read; there is room for at least `room` bytes.
    pub fn space(&mut self, room: usize) -> &mut BytesMut {
        if self.buf.capacity() - self.buf.len() < room {
            // Doubling, so that a line of n bytes is moved O(log n) times.
            self.buf.reserve(room.max(self.buf.len()));
        }
        &mut self.buf
    }

    /// The next whole line without its LF or CRLF, sharing the memory it was read into.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] when a line is longer than the limit, ended or not.
    pub fn next_line(&mut self) -> Result<Option<Bytes>, ClientError> {
        let Some(at) = memchr::memchr(b'\n', &self.buf[self.searched..]) else {
            self.searched = self.buf.len();
            // One byte more than the limit may be the CR of a line that fits.
            return if self.buf.len() > self.max_line + 1 { Err(self.too_long()) } else { Ok(None) };
        };
        let at = self.searched + at;
        let mut line = self.buf.split_to(at + 1);
        self.searched = 0;
        line.truncate(at);
        if line.last() == Some(&b'\r') {
            line.truncate(at - 1);
        }
        if line.len() > self.max_line {
            return Err(self.too_long());
        }
        Ok(Some(line.freeze()))
    }

    fn too_long(&self) -> ClientError {
        ClientError::new(
            ErrorKind::Protocol,
            format!(
                "the server sent a line of more than {} bytes; raise ClientOptions::max_reply",
                self.max_line
            ),
        )
    }
}

/// When the server says `ok`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyncMode {
    /// After the record is on disk.
    Fdatasync,
    /// After the record was handed to the operating system; a power failure can lose it.
    Os,
    /// Nothing is written to a disk.
    Memory,
    /// A word this client does not know. Promise nothing.
    Unknown,
}

/// What the server said when the connection opened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Greeting {
    /// Name and version, such as `postroad/0.1.0`.
    pub server: String,
    /// When an `ok` is sent.
    pub sync: SyncMode,
    /// The longest line the server takes, in bytes without its end.
    pub max_line: usize,
    /// True when the first command must be `hello` with a token.
    pub auth: bool,
    /// How long the `id` of an event is remembered (`dedup=DURATION`). `None`: not at all, or the server does not say.
    pub dedup: Option<Duration>,
}

/// One line from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerLine {
    /// `hello …`.
    Hello(Greeting),
    /// `ok`, and what follows it (empty for a plain `ok`).
    Ok(Bytes),
    /// `err CODE TEXT`.
    Err(ClientError),
    /// `event TOPIC SEQ ATTEMPT JSON`; attempt 0 is the reply to `peek`.
    Event {
        /// The topic, UTF-8.
        topic: Bytes,
        /// The number of the event in its topic.
        seq: u64,
        /// 1 for the first delivery; 0 for `peek`.
        attempt: u32,
        /// Exactly as published.
        json: Bytes,
    },
    /// `note CODE TOPIC TEXT`.
    Note {
        /// `lagged`, `detached`, `corrupt`.
        code: String,
        /// The topic or filter it is about.
        topic: String,
        /// For people.
        text: String,
    },
    /// `bye CODE TEXT`: the last line.
    Bye {
        /// Why the server closes.
        code: String,
        /// For people.
        text: String,
    },
    /// A line of text for people.
    Help,
}

impl ServerLine {
    /// Reads one line, given without its end.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] when it is none of the protocol; the connection cannot go on, because replies could
    /// no longer be matched to commands.
    pub fn parse(line: &Bytes) -> Result<Self, ClientError> {
        let (word, rest) = split_word(line);
        match word {
            b"ok" => Ok(Self::Ok(line.slice_ref(rest))),
            b"event" => Self::event(line, rest),
            b"err" => {
                let (code, text) = split_word(rest);
                Ok(Self::Err(ClientError::from_reply(&lossy(code), &lossy(text))))
            }
            b"note" => {
                let (code, rest) = split_word(rest);
                let (topic, text) = split_word(rest);
                Ok(Self::Note { code: lossy(code), topic: lossy(topic), text: lossy(text) })
            }
            b"bye" => {
                let (code, text) = split_word(rest);
                Ok(Self::Bye { code: lossy(code), text: lossy(text) })
            }
            b"help" => Ok(Self::Help),
            b"hello" => greeting(rest).map(Self::Hello),
            _ => Err(protocol("a line of the protocol", line)),
        }
    }

    fn event(line: &Bytes, rest: &[u8]) -> Result<Self, ClientError> {
        let (topic, rest) = split_word(rest);
        let (seq, rest) = split_word(rest);
        let (attempt, json) = split_word(rest);
        let (Some(seq), Some(attempt)) = (number(seq), number(attempt)) else {
            return Err(protocol("`event TOPIC SEQ ATTEMPT JSON`", line));
        };
        if topic.is_empty() || json.is_empty() || std::str::from_utf8(topic).is_err() {
            return Err(protocol("`event TOPIC SEQ ATTEMPT JSON`", line));
        }
        Ok(Self::Event {
            topic: line.slice_ref(topic),
            seq,
            // The server counts in 32 bits; a larger count would be its defect, not a reason to fail.
            attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
            json: line.slice_ref(json),
        })
    }
}

/// The decimal number in `digits`, without sign or spaces.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The first word, and what follows the one space after it.
pub(super) fn split_word(text: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b' ', text) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &text[text.len()..]),
    }
}

fn greeting(rest: &[u8]) -> Result<Greeting, ClientError> {
    let text = lossy(rest);
    let mut words = text.split(' ');
    let server = words.next().unwrap_or_default().to_owned();
    let mut greeting =
        Greeting { server, sync: SyncMode::Unknown, max_line: 1 << 20, auth: false, dedup: None };
    let mut version = false;
    for word in words {
        // Words this client does not know are for newer ones.
        match word.split_once('=') {
            None if word == "jsonlog/1" => version = true,
            Some(("sync", "fdatasync")) => greeting.sync = SyncMode::Fdatasync,
            Some(("sync", "os")) => greeting.sync = SyncMode::Os,
            Some(("sync", "memory")) => greeting.sync = SyncMode::Memory,
            Some(("max_line", n)) => {
                greeting.max_line = n.parse().map_err(|_| protocol("max_line=BYTES", rest))?;
            }
            Some(("auth", how)) => greeting.auth = how != "none",
            Some(("dedup", window)) => {
                greeting.dedup = humantime::parse_duration(window).ok().filter(|window| !window.is_zero());
            }
            _ => {}
        }
    }
    if version { Ok(greeting) } else { Err(protocol("a greeting with `jsonlog/1`", rest)) }
}

pub(super) fn protocol(wanted: &str, got: &[u8]) -> ClientError {
    let shown = String::from_utf8_lossy(&got[..got.len().min(80)]).escape_debug().to_string();
    ClientError::new(ErrorKind::Protocol, format!("expected {wanted}, got {shown:?}"))
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines_of(bytes: &[u8], cuts: &[usize], max_line: usize) -> Result<Vec<Bytes>, ClientError> {
        let mut splitter = LineSplitter::new(max_line);
        let mut lines = Vec::new();
        let mut rest = bytes;
        let mut cuts = cuts.iter().copied().cycle();
        while !rest.is_empty() {
            let n = cuts.next().unwrap_or(rest.len()).clamp(1, rest.len());
            splitter.space(n).extend_from_slice(&rest[..n]);
            rest = &rest[n..];
            while let Some(line) = splitter.next_line()? {
                lines.push(line);
            }
        }
        Ok(lines)
    }

    fn parse(line: &str) -> Result<ServerLine, ClientError> {
        ServerLine::parse(&Bytes::copy_from_slice(line.as_bytes()))
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_lines(
            lines in prop::collection::vec("[^\r\n]{0,40}", 0..20),
            crlf in prop::collection::vec(any::<bool>(), 20),
            cuts in prop::collection::vec(1usize..50, 1..30),
        ) {
            let mut bytes = Vec::new();
            for (line, crlf) in lines.iter().zip(&crlf) {
                bytes.extend_from_slice(line.as_bytes());
                bytes.extend_from_slice(if *crlf { b"\r\n" } else { b"\n" });
            }
            let got = lines_of(&bytes, &cuts, 200).unwrap();
            let want: Vec<Bytes> = lines.iter().map(|l| Bytes::copy_from_slice(l.as_bytes())).collect();
            prop_assert_eq!(got, want);
        }

        #[test]
        fn no_bytes_panic_or_outgrow_the_limit(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b' '), any::<u8>()], 0..400),
            cuts in prop::collection::vec(1usize..20, 1..10),
        ) {
            let whole = lines_of(&bytes, &[usize::MAX], 32);
            let cut = lines_of(&bytes, &cuts, 32);
            prop_assert_eq!(whole.is_err(), cut.is_err());
            for line in cut.unwrap_or_default() {
                prop_assert!(line.len() <= 32);
                let _ = ServerLine::parse(&line);
            }
        }

        #[test]
        fn an_event_line_round_trips(
            topic in "[a-z$][a-z0-9/.-]{0,20}", seq in any::<u64>(), attempt in any::<u32>(), json in "\\{[^\r\n]{0,60}\\}",
        ) {
            let got = parse(&format!("event {topic} {seq} {attempt} {json}")).unwrap();
            prop_assert_eq!(
                got,
                ServerLine::Event { topic: Bytes::from(topic), seq, attempt, json: Bytes::from(json) }
            );
        }
    }

    #[test]
    fn a_line_at_the_limit_passes_and_one_over_does_not() {
        let at = [b"12345678\r\n".as_slice(), b"12345678\n"].concat();
        assert_eq!(lines_of(&at, &[1], 8).unwrap().len(), 2);
        assert_eq!(lines_of(b"123456789\n", &[1], 8).unwrap_err().kind(), ErrorKind::Protocol);
        // No end in sight: refused without waiting for it.
        assert!(lines_of(b"1234567890", &[1], 8).is_err());
    }

    #[test]
    fn the_lines_of_the_protocol_page() {
        let hello = "hello postroad/0.1.0 jsonlog/1 sync=fdatasync max_line=1048576 auth=none";
        let Ok(ServerLine::Hello(g)) = parse(hello) else { panic!("not a greeting") };
        assert_eq!(
            (g.server.as_str(), g.sync, g.max_line, g.auth),
            ("postroad/0.1.0", SyncMode::Fdatasync, 1 << 20, false)
        );
        let newer = "hello x/9 jsonlog/1 sync=quorum max_line=5 auth=token color=blue dedup=2m";
        let Ok(ServerLine::Hello(g)) = parse(newer) else { panic!("not a greeting") };
        assert_eq!((g.sync, g.max_line, g.auth), (SyncMode::Unknown, 5, true));
        assert_eq!(g.dedup, Some(Duration::from_secs(120)));
        assert_eq!(parse("ok").unwrap(), ServerLine::Ok(Bytes::new()));
        assert_eq!(parse("ok 7 duplicate").unwrap(), ServerLine::Ok("7 duplicate".into()));
        assert_eq!(
            parse("err busy 10000 topics: the limit").unwrap(),
            ServerLine::Err(ClientError::new(ErrorKind::Busy, "10000 topics: the limit"))
        );
        assert_eq!(
            parse("err brand-new thing").unwrap(),
            ServerLine::Err(ClientError::new(ErrorKind::Other, "brand-new thing"))
        );
        assert_eq!(
            parse(r#"event a/b 3 0 {"x": 1}"#).unwrap(),
            ServerLine::Event { topic: "a/b".into(), seq: 3, attempt: 0, json: r#"{"x": 1}"#.into() }
        );
        assert_eq!(
            parse("note lagged a 5 events were removed").unwrap(),
            ServerLine::Note {
                code: "lagged".into(),
                topic: "a".into(),
                text: "5 events were removed".into()
            }
        );
        assert_eq!(parse("bye quit").unwrap(), ServerLine::Bye { code: "quit".into(), text: String::new() });
        assert_eq!(parse("help pub TOPIC JSON").unwrap(), ServerLine::Help);
    }

    #[test]
    fn what_is_not_the_protocol_is_refused() {
        for line in [
            "",
            "OK",
            "okay",
            "HTTP/1.1 400 Bad Request",
            "event",
            "event t",
            "event t 1 1",
            "event t 1 1 ",
            "event t x 1 {}",
            "event t -1 1 {}",
            "event t 1 +1 {}",
            "event  1 1 {}",
            "hello",
            "hello x jsonlog/2",
            "hello x jsonlog/1 max_line=no",
            "event t 99999999999999999999 1 {}",
        ] {
            assert_eq!(parse(line).unwrap_err().kind(), ErrorKind::Protocol, "{line:?}");
        }
    }
}
