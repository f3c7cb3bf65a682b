//! Lines in, batches out: what is there is one batch, so that a typed line leaves at once and a file in large pieces.

use std::io::{ErrorKind, Read};

use postroad_jsonlog::protocol::check_event;

/// Events that are published together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    /// The events, each with its LF.
    pub(super) body: Vec<u8>,
    pub(super) lines: Lines,
}

impl Batch {
    fn push(&mut self, event: &[u8], line: u64) {
        self.lines.push(line);
        self.body.extend_from_slice(event);
        self.body.push(b'\n');
    }
}

/// Which lines of the input the events of a batch are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lines {
    count: u64,
    /// The place in the batch and the input line of each event that does not follow the one before it.
    jumps: Vec<(u64, u64)>,
}

impl Lines {
    pub(super) fn push(&mut self, line: u64) {
        if self.line(self.count) != line {
            self.jumps.push((self.count, line));
        }
        self.count += 1;
    }

    /// How many events they are.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The input line of the event at `place`, counted from 0.
    pub(super) fn line(&self, place: u64) -> u64 {
        self.jumps
            .iter()
            .rev()
            .find(|(from, _)| *from <= place)
            .map_or(0, |(from, line)| line + (place - from))
    }

    /// The first and the last of them.
    pub(super) fn span(&self) -> (u64, u64) {
        (self.line(0), self.line(self.count.saturating_sub(1)))
    }
}

/// Why the input ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All was read.
    Eof,
    /// This line is no event; those before it were given.
    Bad { line: u64, why: String },
    /// The input cannot be read any further.
    Unreadable(String),
    /// `give` had enough.
    Stopped,
}

/// Bounds of what is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes read at once, and so about the size of a batch.
    pub(super) batch: usize,
    /// The longest event.
    pub(super) line: usize,
}

/// Reads events until the input ends, giving each batch to `give` until it says no.
pub(super) fn read(mut input: impl Read, bounds: Bounds, mut give: impl FnMut(Batch) -> bool) -> End {
    let mut buffer = Vec::new();
    // Bytes of `buffer` that are read, and those of them known to hold no LF.
    let (mut filled, mut searched) = (0, 0);
    let mut line = 0;
    loop {
        if buffer.len() - filled < bounds.batch {
            buffer.resize(filled + bounds.batch, 0);
        }
        let read = match input.read(&mut buffer[filled..filled + bounds.batch]) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return End::Unreadable(error.to_string()),
        };
        if read == 0 && filled > 0 {
            // The last line may have no end.
            buffer[filled] = b'\n';
            filled += 1;
        }
        filled += read;
        let mut batch = Batch::default();
        let mut bad = None;
        let mut done = 0;
        while let Some(at) = memchr::memchr(b'\n', &buffer[searched..filled]) {
            line += 1;
            let event = &buffer[done..searched + at];
            let event = event.strip_suffix(b"\r").unwrap_or(event);
            done = searched + at + 1;
            searched = done;
            if event.trim_ascii().is_empty() {
                continue;
            }
            if let Err(why) = check(event, bounds.line) {
                bad = Some(End::Bad { line, why });
                break;
            }
            batch.push(event, line);
        }
        if batch.lines.count() > 0 && !give(batch) {
            return End::Stopped;
        }
        if let Some(bad) = bad {
            return bad;
        }
        if read == 0 {
            return End::Eof;
        }
        buffer.copy_within(done..filled, 0);
        filled -= done;
        searched = filled;
        // One byte more may be the CR of a line that fits.
        if filled > bounds.line + 1 {
            return End::Bad { line: line + 1, why: too_long(filled, bounds.line) };
        }
    }
}

/// The events of the command line, as if each were a line.
pub(super) fn arguments(events: &[String], bounds: Bounds, mut give: impl FnMut(Batch) -> bool) -> End {
    let mut batch = Batch::default();
    let mut end = End::Eof;
    for (line, event) in (1..).zip(events) {
        let event = event.as_bytes();
        let checked = if event.contains(&b'\n') {
            Err("it has line breaks".to_owned())
        } else {
            check(event, bounds.line)
        };
        if let Err(why) = checked {
            end = End::Bad { line, why };
            break;
        }
        batch.push(event, line);
    }
    if batch.lines.count() > 0 && !give(batch) { End::Stopped } else { end }
}

/// Refuses what the server would refuse, by its own rules, so that nothing after it is sent.
fn check(event: &[u8], longest: usize) -> Result<(), String> {
    if event.len() > longest {
        return Err(too_long(event.len(), longest));
    }
    let event = std::str::from_utf8(event).map_err(|error| format!("it is not UTF-8: {error}"))?;
    check_event(event).map(drop)
}

fn too_long(length: usize, longest: usize) -> String {
    format!("it is longer than the server takes: {length} bytes of at most {longest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { batch: 64, line: 100 };

    /// Gives one piece a call, as a pipe does.
    struct Pieces(Vec<Vec<u8>>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let mut piece = self.0.remove(0);
            let rest = piece.split_off(piece.len().min(buffer.len()));
            buffer[..piece.len()].copy_from_slice(&piece);
            if !rest.is_empty() {
                self.0.insert(0, rest);
            }
            Ok(piece.len())
        }
    }

    fn all(pieces: &[&str]) -> (Vec<Batch>, End) {
        let mut batches = Vec::new();
        let pieces = Pieces(pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect());
        let end = read(pieces, BOUNDS, |batch| {
            batches.push(batch);
            true
        });
        (batches, end)
    }

    fn events(batches: &[Batch]) -> String {
        batches.iter().map(|batch| String::from_utf8_lossy(&batch.body)).collect()
    }

    #[test]
    fn what_is_there_is_one_batch() {
        let (batches, end) = all(&["{}\n", "{\"a\":1}\n{\"a\":2}\n", "{\"a\":", "3}\n"]);
        assert_eq!(batches.iter().map(|batch| batch.lines.count()).collect::<Vec<_>>(), [1, 2, 1]);
        assert_eq!(events(&batches), "{}\n{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n");
        assert_eq!(end, End::Eof);
    }

    #[test]
    fn a_last_line_without_end_and_crlf_count() {
        let (batches, end) = all(&["{}\r\n{\"a\":1}"]);
        assert_eq!((events(&batches).as_str(), end), ("{}\n{\"a\":1}\n", End::Eof));
        assert_eq!(all(&[]), (Vec::new(), End::Eof));
    }

    #[test]
    fn blank_lines_are_skipped_and_counted() {
        let (batches, _) = all(&["\n{}\n{}\n\n\n{}\n"]);
        let lines = &batches[0].lines;
        assert_eq!((lines.line(0), lines.line(1), lines.line(2), lines.span()), (2, 3, 6, (2, 6)));
    }

    #[test]
    fn a_bad_line_ends_it_and_what_came_before_is_given() {
        for (bad, why) in [
            ("nope", "JSON object"),
            ("[1]", "JSON object"),
            ("{\"a\":1} {}", "trailing"),
            ("{\"a\":\"\u{1}\"}", "control character"),
            ("{\"id\":[]}", "id must be"),
        ] {
            let (batches, end) = all(&["{}\n", &format!("{{}}\n{bad}\n{{}}\n")]);
            assert_eq!(events(&batches), "{}\n{}\n");
            let End::Bad { line: 3, why: said } = end else { panic!("{bad}: {end:?}") };
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_before_it_ends() {
        let long = format!("{{\"a\":\"{}\"}}\n", "x".repeat(100));
        assert!(matches!(all(&["{}\n", &long]).1, End::Bad { line: 2, .. }));
        let endless: Vec<String> = (0..10).map(|_| "x".repeat(50)).collect();
        let (batches, end) = all(&endless.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(batches.is_empty() && matches!(end, End::Bad { line: 1, .. }), "{end:?}");
        let fits = format!("{{\"a\":\"{}\"}}\r\n", "x".repeat(92));
        assert_eq!(all(&[&fits]).1, End::Eof);
    }

    #[test]
    fn arguments_are_events() {
        let run = |events: &[&str]| {
            let mut got = Vec::new();
            let events: Vec<String> = events.iter().map(ToString::to_string).collect();
            let end = arguments(&events, BOUNDS, |batch| {
                got.push(batch);
                true
            });
            (super::tests::events(&got), end)
        };
        assert_eq!(run(&["{}", " {\"a\":1} "]), ("{}\n {\"a\":1} \n".to_owned(), End::Eof));
        assert!(matches!(run(&["{}", "{\n}"]).1, End::Bad { line: 2, .. }));
    }

    #[test]
    fn a_reader_that_has_enough_stops_it() {
        let mut given = 0;
        let end = read(&b"{}\n"[..], BOUNDS, |_| {
            given += 1;
            false
        });
        assert_eq!((given, end), (1, End::Stopped));
    }
}
