//! `postroad pub`: lines from stdin to a topic, counted only when the server has confirmed them.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
    thread,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use postroad_jsonlog::client::{BulkAck, Client, ClientError, ErrorKind, PublishAck, Reply};
use tokio::sync::mpsc;

use super::{
    Interrupt, LAST_CALL, connect, failure,
    input::{self, Batch, Bounds, End, Lines},
};
use crate::{
    cli::{PubArgs, ReportFormat},
    exit::{Exit, Failure},
};

/// Batches on their way at once. More would not be faster, and fewer lines are unknown when a connection breaks.
const WINDOW: usize = 32;

/// What the input thread says.
enum Said {
    Batch(Batch),
    End(End),
}

/// A batch that has no reply yet.
struct Sent {
    lines: Lines,
    bytes: u64,
    reply: Awaited,
}

enum Awaited {
    One(Reply<PublishAck>),
    Bulk(Reply<BulkAck>),
}

impl Awaited {
    /// The outcome. Cancel-safe.
    async fn outcome(&mut self) -> Result<BulkAck, ClientError> {
        match self {
            Self::Bulk(reply) => reply.await,
            Self::One(reply) => reply.await.map(|ack| {
                let seq = if ack.duplicate { 0 } else { ack.seq };
                BulkAck { first: seq, last: seq, duplicates: ack.duplicate.into() }
            }),
        }
    }
}

/// What became of the input so far.
#[derive(Debug, Default)]
struct Tally {
    published: u64,
    duplicates: u64,
    first: u64,
    last: u64,
    /// Lines of batches that were refused, or never sent.
    refused: Vec<(u64, u64)>,
    /// Lines of batches whose reply never came.
    unknown: Vec<(u64, u64)>,
    /// The first error, and the input line that it is about, when the server named one.
    error: Option<(ClientError, Option<u64>)>,
}

impl Tally {
    fn add(&mut self, lines: &Lines, outcome: Result<BulkAck, ClientError>) {
        match outcome {
            Ok(ack) => {
                self.published += lines.count().saturating_sub(ack.duplicates);
                self.duplicates += ack.duplicates;
                if ack.first > 0 {
                    self.first = if self.first == 0 { ack.first } else { self.first };
                    self.last = ack.last;
                }
            }
            Err(error) => {
                let list = if error.outcome_unknown() { &mut self.unknown } else { &mut self.refused };
                let (first, last) = lines.span();
                match list.last_mut() {
                    Some(range) if range.1 + 1 >= first => range.1 = last,
                    _ => list.push((first, last)),
                }
                self.error.get_or_insert_with(|| {
                    let line = bad_line(&error, lines);
                    (error, line)
                });
            }
        }
    }

    /// What is stored, in words.
    fn stored(&self, topic: &str) -> String {
        let mut text = format!("{} events are stored in {topic}", self.published);
        if self.published > 0 {
            let _ = write!(text, " ({}-{})", self.first, self.last);
        }
        if self.duplicates > 0 {
            let _ = write!(text, ", {} were there already", self.duplicates);
        }
        for (what, list) in [("not stored", &self.refused), ("unknown", &self.unknown)] {
            if !list.is_empty() {
                let _ = write!(text, "; {what}: {}", ranges(list));
            }
        }
        text
    }
}

/// The input line that an error is about. Of a bulk the server names it: `line 3: …`.
fn bad_line(error: &ClientError, lines: &Lines) -> Option<u64> {
    if !matches!(error.kind(), ErrorKind::BadEvent | ErrorKind::NotUtf8 | ErrorKind::TooLong) {
        return None;
    }
    if lines.count() == 1 {
        return Some(lines.line(0));
    }
    let place: u64 = error.text().strip_prefix("line ")?.split_once(':')?.0.parse().ok()?;
    Some(lines.line(place.checked_sub(1)?))
}

fn ranges(list: &[(u64, u64)]) -> String {
    let range = |(first, last): &(u64, u64)| {
        if first == last { format!("line {first}") } else { format!("lines {first}-{last}") }
    };
    list.iter().map(range).collect::<Vec<_>>().join(", ")
}

pub(crate) async fn run(args: PubArgs) -> Result<(), Failure> {
    let mut interrupt = Interrupt::listen()?;
    let client = connect(&args.server).await?;
    let bounds =
        Bounds { batch: (args.batch.0 as usize).clamp(1 << 10, 64 << 20), line: client.greeting().max_line };
    let progress = Progress::new(&args);
    let mut input = start_input(args.events.clone(), bounds)?;

    let started = Instant::now();
    let mut tally = Tally::default();
    let mut waiting: VecDeque<Sent> = VecDeque::new();
    let mut end = None;
    let mut give_up = None;
    while end.is_none() || !waiting.is_empty() {
        tokio::select! {
            biased;
            outcome = first_outcome(&mut waiting), if !waiting.is_empty() => {
                let Some(sent) = waiting.pop_front() else { continue };
                progress.answered(&sent, &outcome, tally.published);
                tally.add(&sent.lines, outcome);
                if tally.error.is_some() {
                    // What follows a refused event is not sent; what is on its way is waited for.
                    end.get_or_insert(End::Stopped);
                }
            }
            said = input.recv(), if end.is_none() && waiting.len() < WINDOW => match said {
                Some(Said::Batch(batch)) => match send(&client, &args.topic, &batch).await {
                    Ok(reply) => {
                        let bytes = batch.body.len() as u64;
                        waiting.push_back(Sent { lines: batch.lines, bytes, reply });
                    }
                    Err(error) => {
                        tally.add(&batch.lines, Err(error));
                        end = Some(End::Stopped);
                    }
                },
                Some(Said::End(reason)) => end = Some(reason),
                None => end = Some(End::Unreadable("the thread that reads it ended".into())),
            },
            () = interrupt.wait(), if give_up.is_none() => {
                end = Some(End::Stopped);
                give_up = Some(tokio::time::Instant::now() + LAST_CALL);
            }
            () = sleep_until(give_up), if give_up.is_some() => {
                for sent in waiting.drain(..) {
                    tally.add(&sent.lines, Err(ClientError::new(ErrorKind::Disconnected, "no reply")));
                }
            }
        }
    }
    let elapsed = started.elapsed();
    progress.finish();
    let outcome = judge(&args, &tally, end.unwrap_or(End::Eof), give_up.is_some());
    report(&args, &tally, elapsed, outcome.is_ok());
    outcome
}

async fn first_outcome(waiting: &mut VecDeque<Sent>) -> Result<BulkAck, ClientError> {
    match waiting.front_mut() {
        Some(sent) => sent.reply.outcome().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn send(client: &Client, topic: &str, batch: &Batch) -> Result<Awaited, ClientError> {
    if batch.lines.count() == 1 {
        let event = batch.body.strip_suffix(b"\n").unwrap_or(&batch.body);
        return client.publish(topic, event).await.map(Awaited::One);
    }
    client.publish_bulk(topic, &batch.body, batch.lines.count()).await.map(Awaited::Bulk)
}

/// Reads on a thread of its own: reading a terminal or a pipe blocks.
fn start_input(events: Vec<String>, bounds: Bounds) -> Result<mpsc::Receiver<Said>, Failure> {
    let (tx, rx) = mpsc::channel(2);
    let read = move || {
        let give = |batch| tx.blocking_send(Said::Batch(batch)).is_ok();
        let end = if events.is_empty() {
            input::read(io::stdin().lock(), bounds, give)
        } else {
            input::arguments(&events, bounds, give)
        };
        // The receiver is gone when it had enough.
        let _ = tx.blocking_send(Said::End(end));
    };
    thread::Builder::new()
        .name("input".into())
        .spawn(read)
        .map_err(|error| Failure::new(Exit::Internal, "cannot start a thread").why(error))?;
    Ok(rx)
}

/// Whether everything is stored; else what is not, and why.
fn judge(args: &PubArgs, tally: &Tally, end: End, interrupted: bool) -> Result<(), Failure> {
    let what_of =
        |line: u64| if args.events.is_empty() { format!("line {line}") } else { format!("argument {line}") };
    let stored = tally.stored(&args.topic);
    if interrupted {
        return Err(Failure::new(Exit::Interrupted, format!("interrupted; {stored}")));
    }
    if let Some((error, line)) = &tally.error {
        let what = match line {
            Some(line) => format!("{} is not a valid event; {stored}", what_of(*line)),
            None => format!("not everything could be published; {stored}"),
        };
        let failed = failure(error, what);
        return Err(match error.kind() {
            ErrorKind::Disconnected => failed.fix(
                "what is unknown may be stored or not: look with `postroad sub`, then publish what is missing; \
                 with jsonlog.dedup_window and an `id` in each event all can be published again",
            ),
            _ => failed,
        });
    }
    match end {
        // Stopped without an error is an interruption.
        End::Eof | End::Stopped => Ok(()),
        End::Bad { line, why } => {
            let what =
                format!("{} is not a valid event; {stored}, nothing from it on was sent", what_of(line));
            Err(Failure::new(Exit::Data, what)
                .why(why)
                .fix("correct it: one JSON object on one line; then publish it and what follows"))
        }
        End::Unreadable(why) => Err(Failure::new(Exit::Io, format!("cannot read stdin; {stored}"))
            .why(why)
            .fix("give it a file or a pipe that can be read")),
    }
}

fn report(args: &PubArgs, tally: &Tally, elapsed: Duration, complete: bool) {
    let seconds = elapsed.as_secs_f64();
    if args.output == ReportFormat::Json {
        let report = serde_json::json!({
            "topic": args.topic,
            "published": tally.published,
            "duplicates": tally.duplicates,
            "first": tally.first,
            "last": tally.last,
            "seconds": seconds,
        });
        let _ = writeln!(io::stdout(), "{report}");
    } else if !args.quiet && complete {
        let rate = tally.published as f64 / seconds.max(1e-6);
        let mut text = format!("published {} events to {}", tally.published, args.topic);
        if tally.published > 0 {
            let _ = write!(text, " as {}-{}", tally.first, tally.last);
        }
        if tally.duplicates > 0 {
            let _ = write!(text, ", {} duplicates", tally.duplicates);
        }
        let _ = writeln!(io::stderr(), "{text} in {seconds:.3}s, {rate:.0} events/s");
    }
}

/// What a person sees meanwhile: a bar for bulk work, an `ok` for each line that is typed.
enum Progress {
    None,
    Bar(ProgressBar),
    Typed,
}

impl Progress {
    fn new(args: &PubArgs) -> Self {
        if args.quiet || !args.events.is_empty() || !io::stderr().is_terminal() {
            return Self::None;
        }
        if io::stdin().is_terminal() {
            return Self::Typed;
        }
        // A pipe has no size.
        let size = rustix::fs::fstat(io::stdin()).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
        let (bar, template) = match size.filter(|size| *size > 0) {
            Some(size) => (
                ProgressBar::new(size),
                "{bar:30} {bytes}/{total_bytes}  {msg} events stored  {bytes_per_sec}  {eta} left",
            ),
            None => (ProgressBar::no_length(), "{spinner} {bytes}  {msg} events stored  {bytes_per_sec}"),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message("0");
        Self::Bar(bar)
    }

    fn answered(&self, sent: &Sent, outcome: &Result<BulkAck, ClientError>, before: u64) {
        let Ok(ack) = outcome else { return };
        match self {
            Self::None => {}
            Self::Typed if ack.first == 0 => eprintln!("ok, a duplicate"),
            Self::Typed if ack.first == ack.last => eprintln!("ok {}", ack.last),
            Self::Typed => eprintln!("ok {}-{}", ack.first, ack.last),
            Self::Bar(bar) => {
                bar.inc(sent.bytes);
                bar.set_message((before + sent.lines.count()).to_string());
            }
        }
    }

    fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(numbers: impl IntoIterator<Item = u64>) -> Lines {
        let mut lines = Lines::default();
        numbers.into_iter().for_each(|number| lines.push(number));
        lines
    }

    fn stored(first: u64, last: u64, duplicates: u64) -> BulkAck {
        BulkAck { first, last, duplicates }
    }

    fn error(kind: ErrorKind, text: &str) -> ClientError {
        ClientError::new(kind, text)
    }

    #[test]
    fn only_what_was_confirmed_counts() {
        let mut tally = Tally::default();
        tally.add(&lines(1..=10), Ok(stored(1, 9, 1)));
        tally.add(&lines(11..=12), Ok(stored(0, 0, 2)));
        tally.add(&lines(13..=20), Err(error(ErrorKind::DiskFull, "no room")));
        tally.add(&lines(21..=30), Err(error(ErrorKind::Disconnected, "gone")));
        tally.add(&lines(31..=40), Err(error(ErrorKind::Disconnected, "gone")));
        assert_eq!(
            tally.stored("t"),
            "9 events are stored in t (1-9), 3 were there already; not stored: lines 13-20; unknown: lines 21-40"
        );
        let (error, line) = tally.error.unwrap();
        assert_eq!((error.kind(), line), (ErrorKind::DiskFull, None), "the first error is the one to tell");
    }

    #[test]
    fn a_refused_event_is_named_by_its_input_line() {
        let refused = |text: &str, numbers: &[u64]| {
            let error = ClientError::new(ErrorKind::BadEvent, text);
            bad_line(&error, &lines(numbers.iter().copied()))
        };
        assert_eq!(refused("line 3: no object", &[5, 6, 9]), Some(9));
        assert_eq!(refused("line 1: no object", &[5, 6, 9]), Some(5));
        assert_eq!(refused("no object", &[7]), Some(7));
        assert_eq!(refused("no object", &[7, 8]), None);
        assert_eq!(refused("line 0: ?", &[7, 8]), None);
        assert_eq!(bad_line(&ClientError::new(ErrorKind::DiskFull, "line 1: ?"), &lines([1, 2])), None);
    }

    #[test]
    fn exit_codes_follow_what_happened() {
        use clap::Parser as _;
        let cli = crate::cli::Cli::parse_from(["postroad", "pub", "t"]);
        let crate::cli::Command::Pub(args) = cli.command else { panic!("not pub") };
        let exit = |tally: &Tally, end, interrupted| {
            judge(&args, tally, end, interrupted).err().map(|failure| failure.exit)
        };
        let mut tally = Tally::default();
        tally.add(&lines(1..=10), Ok(stored(1, 10, 0)));
        assert_eq!(exit(&tally, End::Eof, false), None);
        assert_eq!(exit(&tally, End::Stopped, true), Some(Exit::Interrupted));
        assert_eq!(exit(&tally, End::Bad { line: 11, why: "no".into() }, false), Some(Exit::Data));
        for (kind, expected) in [
            (ErrorKind::BadEvent, Exit::Data),
            (ErrorKind::Disconnected, Exit::Unavailable),
            (ErrorKind::DiskFull, Exit::Temporary),
            (ErrorKind::ShuttingDown, Exit::Temporary),
            (ErrorKind::Denied, Exit::Denied),
            (ErrorKind::Internal, Exit::Internal),
        ] {
            let mut tally = Tally::default();
            tally.add(&lines(1..=10), Err(error(kind, "text")));
            assert_eq!(exit(&tally, End::Stopped, false), Some(expected), "{kind:?}");
        }
    }
}
