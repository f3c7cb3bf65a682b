//! A blocking client that speaks lines and checks that every line it reads is one the protocol knows.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::PATIENCE;

const CODES: &[&str] = &[
    "bad-command",
    "bad-args",
    "bad-topic",
    "bad-event",
    "not-utf8",
    "too-long",
    "too-large",
    "not-in-flight",
    "not-subscribed",
    "already-subscribed",
    "in-use",
    "not-found",
    "disk-full",
    "busy",
    "auth",
    "denied",
    "corrupt",
    "shutting-down",
    "internal",
];
const BYES: &[&str] = &["quit", "shutting-down", "framing", "slow", "busy", "failed"];
const NOTES: &[&str] = &["lagged", "lagging", "detached", "corrupt"];

/// A delivery (or, with attempt 0, what `peek` showed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) topic: String,
    pub(crate) seq: u64,
    pub(crate) attempt: u64,
    pub(crate) json: String,
}

impl Event {
    fn parse(line: &str) -> Self {
        let mut parts = line.splitn(5, ' ').skip(1);
        let mut next = || parts.next().unwrap_or_else(|| panic!("not an event line: {line:?}"));
        let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("not an event line: {line:?}"));
        Self {
            topic: next().to_owned(),
            seq: number(next()),
            attempt: number(next()),
            json: next().to_owned(),
        }
    }

    /// One value of the event's JSON.
    pub(crate) fn get(&self, pointer: &str) -> serde_json::Value {
        let value: serde_json::Value = serde_json::from_str(&self.json).expect("the broker sent JSON");
        value.pointer(pointer).cloned().unwrap_or_else(|| panic!("{pointer} is not in {}", self.json))
    }
}

/// One thing the server said.
#[derive(Debug)]
pub(crate) enum Item {
    Reply(String),
    Event(Event),
    Note(String),
    Help(String),
    Bye(String),
    Eof,
    Silence,
}

/// A connection.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    /// The first line.
    pub(crate) greeting: String,
    events: VecDeque<Event>,
    /// `note` lines met while waiting for something else.
    pub(crate) notes: Vec<String>,
    /// The last line, when the server said why it closes.
    pub(crate) bye: Option<String>,
}

impl Client {
    /// Connects and reads the greeting.
    pub(crate) fn connect(port: u16) -> io::Result<Self> {
        let mut client = Self::silent(port)?;
        match client.raw_line(Instant::now() + PATIENCE)? {
            Some(line) if line.starts_with("hello ") => client.greeting = line,
            other => return Err(io::Error::other(format!("no greeting but {other:?}"))),
        }
        Ok(client)
    }

    /// Connects and leaves the greeting unread.
    pub(crate) fn silent(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            start: 0,
            greeting: String::new(),
            events: VecDeque::new(),
            notes: Vec::new(),
            bye: None,
        })
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends bytes as they are.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("send");
    }

    /// Sends one line.
    pub(crate) fn send(&mut self, line: &str) {
        self.raw(format!("{line}\n").as_bytes());
    }

    /// Says that nothing more will be sent; still reads.
    pub(crate) fn half_close(&self) {
        // The server may have closed already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection with a reset: closing a socket with unread data does that.
    pub(crate) fn reset(mut self) {
        let _ = self.try_send(b"help\n");
        let _ = self.stream.set_read_timeout(Some(Duration::from_secs(2)));
        let _ = self.stream.peek(&mut [0]);
    }

    /// One line as it came, without its end; `None` when the connection ended.
    fn raw_line(&mut self, until: Instant) -> io::Result<Option<String>> {
        let mut seen = self.start;
        loop {
            if let Some(at) = self.buffer[seen..].iter().position(|byte| *byte == b'\n') {
                let end = seen + at;
                let line = self.buffer[self.start..end].to_vec();
                self.start = end + 1;
                let line = String::from_utf8(line).expect("the server sends UTF-8");
                assert!(!line.ends_with('\r'), "the server ends its lines with LF: {line:?}");
                return Ok(Some(line));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            seen = self.buffer.len();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next thing the server says, checked against the protocol's tables.
    pub(crate) fn next(&mut self, patience: Duration) -> Item {
        let line = match self.raw_line(Instant::now() + patience) {
            Ok(Some(line)) => line,
            Ok(None) => return Item::Eof,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Item::Silence,
            Err(error) => panic!("read: {error}"),
        };
        assert!(self.bye.is_none(), "a line after bye: {line:?}");
        let mut words = line.split(' ');
        let first = words.next().unwrap_or_default();
        let second = words.next().unwrap_or_default();
        match first {
            "ok" => Item::Reply(line),
            "err" => {
                assert!(CODES.contains(&second), "an unknown error code: {line:?}");
                assert!(line.len() > "err ".len() + second.len() + 1, "an error without a text: {line:?}");
                assert!(second != "internal", "a defect of the broker: {line:?}");
                Item::Reply(line)
            }
            "event" => Item::Event(Event::parse(&line)),
            "note" => {
                assert!(NOTES.contains(&second), "an unknown note: {line:?}");
                Item::Note(line)
            }
            "help" => Item::Help(line),
            "bye" => {
                assert!(BYES.contains(&second), "an unknown bye: {line:?}");
                self.bye = Some(line.clone());
                Item::Bye(line)
            }
            _ => panic!("not a line of the protocol: {line:?}"),
        }
    }

    /// The next reply; `None` when the connection ended first (the reason is in `bye`).
    /// Events and notes on the way are kept.
    pub(crate) fn try_reply(&mut self) -> Option<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.next(end.saturating_duration_since(Instant::now())) {
                Item::Reply(line) => return Some(line),
                Item::Event(event) if event.attempt == 0 => {
                    return Some(format!("event {} {} 0 {}", event.topic, event.seq, event.json));
                }
                Item::Event(event) => self.events.push_back(event),
                Item::Note(line) => self.notes.push(line),
                Item::Help(line) => panic!("help that nobody asked for: {line:?}"),
                Item::Bye(_) => {}
                Item::Eof => return None,
                Item::Silence => panic!("no reply in {PATIENCE:?}"),
            }
        }
    }

    /// The next reply.
    pub(crate) fn reply(&mut self) -> String {
        match self.try_reply() {
            Some(line) => line,
            None => panic!("the connection ended where a reply was due ({:?})", self.bye),
        }
    }

    /// Sends a command and reads its reply.
    pub(crate) fn cmd(&mut self, line: &str) -> String {
        self.send(line);
        self.reply()
    }

    /// Sends a command that must succeed; the answer is what stands behind `ok`.
    pub(crate) fn ok(&mut self, line: &str) -> String {
        let reply = self.cmd(line);
        let shown: String = line.chars().take(200).collect();
        let rest = reply.strip_prefix("ok").unwrap_or_else(|| panic!("{shown:?} was answered {reply:?}"));
        rest.trim_start().to_owned()
    }

    /// Sends a command that must fail with `code`.
    pub(crate) fn err(&mut self, line: &str, code: &str) -> String {
        let reply = self.cmd(line);
        let shown: String = line.chars().take(200).collect();
        assert!(
            reply.starts_with(&format!("err {code} ")),
            "{shown:?} was answered {reply:?}, not err {code}"
        );
        reply
    }

    /// Publishes; the answer is the sequence.
    pub(crate) fn publish(&mut self, topic: &str, json: &str) -> u64 {
        let rest = self.ok(&format!("pub {topic} {json}"));
        rest.parse().unwrap_or_else(|_| panic!("pub was answered ok {rest:?}"))
    }

    /// `pubn` of these events; the reply as it came.
    pub(crate) fn bulk(&mut self, topic: &str, events: &[String]) -> String {
        let body: String = events.iter().map(|event| format!("{event}\n")).collect();
        self.raw(format!("pubn {topic} {} {}\n{body}", events.len(), body.len()).as_bytes());
        self.reply()
    }

    /// Shows an event.
    pub(crate) fn peek(&mut self, topic: &str, which: &str) -> Event {
        let reply = self.cmd(&format!("peek {topic} {which}"));
        assert!(reply.starts_with("event "), "peek {topic} {which} was answered {reply:?}");
        Event::parse(&reply)
    }

    /// The JSON of `stats`.
    pub(crate) fn stats(&mut self, topic: &str) -> serde_json::Value {
        let rest = self.ok(format!("stats {topic}").trim_end());
        serde_json::from_str(&rest).unwrap_or_else(|error| panic!("stats: {error}: {rest}"))
    }

    /// The next delivery, if one comes in time.
    pub(crate) fn try_event(&mut self, patience: Duration) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        let end = Instant::now() + patience;
        loop {
            match self.next(end.saturating_duration_since(Instant::now())) {
                Item::Event(event) => {
                    assert!(event.attempt > 0, "a delivery with attempt 0: {event:?}");
                    return Some(event);
                }
                Item::Note(line) => self.notes.push(line),
                Item::Bye(_) => {}
                Item::Eof | Item::Silence => return None,
                other => panic!("waiting for an event, got {other:?}"),
            }
        }
    }

    /// The next delivery.
    pub(crate) fn event(&mut self) -> Event {
        match self.try_event(PATIENCE) {
            Some(event) => event,
            None => panic!("no event came ({:?})", self.bye),
        }
    }

    /// The next delivery, which must be this one.
    pub(crate) fn expect(&mut self, topic: &str, seq: u64, attempt: u64) -> Event {
        let event = self.event();
        assert_eq!(
            (event.topic.as_str(), event.seq, event.attempt),
            (topic, seq, attempt),
            "(topic, seq, attempt) of {event:?}"
        );
        event
    }

    /// Nothing is delivered for a while.
    pub(crate) fn no_event(&mut self, patience: Duration) {
        let event = self.try_event(patience);
        assert!(event.is_none(), "an event that should not be: {event:?}");
    }

    /// The server says `bye CODE` as its last line and closes.
    pub(crate) fn expect_bye(&mut self, code: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.next(end.saturating_duration_since(Instant::now())) {
                Item::Bye(line) => {
                    assert!(
                        line == format!("bye {code}") || line.starts_with(&format!("bye {code} ")),
                        "{line:?}"
                    );
                }
                Item::Eof => break,
                Item::Event(event) => self.events.push_back(event),
                Item::Note(line) => self.notes.push(line),
                other => panic!("waiting for bye {code}, got {other:?}"),
            }
        }
        assert!(self.bye.is_some(), "closed without a bye {code}");
    }

    /// Everything until the end of the connection, as text; `None` when it does not end.
    pub(crate) fn drain(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let mut all = self.buffer.split_off(self.start);
        let end = Instant::now() + patience;
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.stream.set_read_timeout(Some(left)).expect("timeout");
            match self.stream.read(&mut chunk) {
                Ok(0) => return Some(all),
                Ok(count) => all.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Some(all),
                Err(_) => return None,
            }
        }
    }
}
