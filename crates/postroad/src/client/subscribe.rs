//! `postroad sub`: events to stdout, and an ack for each that was written there, not before.

use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    io::{self, Write},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use postroad_jsonlog::client::{
    Client, ClientError, ErrorKind, Event, Events, Note, Reply, SubscribeOptions,
};
use tokio::{task::block_in_place, time::Instant};

use super::{Interrupt, LAST_CALL, connect, failure};
use crate::{
    cli::{EventFormat, SubArgs},
    exit::{Exit, Failure},
};

/// Events written with one flush.
const MAX_BATCH: usize = 1024;
/// Ack commands without a reply; beyond it nothing more is read.
const MAX_ACKS: usize = 4096;
const DEFAULT_PREFETCH: u32 = 256;

/// What a subscription has to say.
enum Came {
    Event(Event),
    Notes(Vec<Note>),
    End,
}

/// Why the command ends.
enum Stop {
    /// `--count` is reached, or the user said so.
    Done,
    /// Nothing came for `--wait`.
    Idle,
    /// Who reads stdout went away.
    ReaderGone,
    Failed(Failure),
}

pub(crate) async fn run(args: SubArgs) -> Result<(), Failure> {
    let mut interrupt = Interrupt::listen()?;
    let client = connect(&args.server).await?;
    let options = SubscribeOptions {
        filter: args.topic.clone(),
        name: args.name.clone(),
        group: args.group,
        from: args.from,
        prefetch: prefetch(&args),
        ack_wait: args.ack_wait,
        max_deliveries: args.max_deliveries,
        backoff: args.backoff.clone(),
    };
    let mut events = client
        .subscribe(&options)
        .await
        .map_err(|error| failure(&error, format!("cannot subscribe to {}", args.topic)))?;

    let mut acks = Acks { client: client.clone(), waiting: VecDeque::new(), late: 0 };
    let mut seen = 0;
    let stop = follow(&args, &mut events, &mut acks, &mut seen, &mut interrupt).await;
    // First the subscription ends, so that the server does not send what nobody will write.
    drop(events);
    let settled = acks.finish(&args.topic).await;
    // The connection is closed in order; if that fails, everything that matters has been answered.
    let _ = tokio::time::timeout(LAST_CALL, client.quit()).await;
    match stop {
        Stop::Failed(failure) => return Err(failure),
        Stop::Done | Stop::Idle | Stop::ReaderGone => settled?,
    }
    match args.count {
        Some(count) if seen < count && !matches!(stop, Stop::ReaderGone) => {
            Err(Failure::new(Exit::Failed, format!("only {seen} of {count} events came"))
                .fix("wait longer (--wait), or start earlier (--from)"))
        }
        _ => Ok(()),
    }
}

/// A window of one for a named subscription that stops at a count: what is sent ahead counts as delivered.
fn prefetch(args: &SubArgs) -> u32 {
    match (args.prefetch, args.count, &args.name) {
        (Some(prefetch), ..) => prefetch,
        (None, Some(_), Some(_)) if !args.no_ack => 1,
        (None, Some(count), _) => u32::try_from(count)
            .unwrap_or(u32::MAX)
            .clamp(1, if args.no_ack { 65_536 } else { DEFAULT_PREFETCH }),
        (None, None, _) => DEFAULT_PREFETCH,
    }
}

/// Writes and acks until there is a reason to stop.
async fn follow(
    args: &SubArgs,
    events: &mut Events,
    acks: &mut Acks,
    seen: &mut u64,
    interrupt: &mut Interrupt,
) -> Stop {
    let mut idle_since = Instant::now();
    let mut batch: Vec<Event> = Vec::new();
    let mut text = Vec::new();
    loop {
        let left = args.count.map_or(u64::MAX, |count| count - *seen);
        if left == 0 {
            return Stop::Done;
        }
        let came = tokio::select! {
            biased;
            () = interrupt.wait() => return Stop::Done,
            answered = acks.next(), if !acks.waiting.is_empty() => match answered {
                Ok(()) => continue,
                Err(error) => return Stop::Failed(lost(&error, &args.topic)),
            },
            came = next(events), if acks.waiting.len() < MAX_ACKS => came,
            () = idle(idle_since, args.wait) => return Stop::Idle,
        };
        match came {
            Came::Event(event) => batch.push(event),
            Came::Notes(notes) => {
                for note in notes {
                    let _ = writeln!(io::stderr(), "note: {} {}: {}", note.code, note.topic, note.text);
                }
                continue;
            }
            Came::End => {
                return match events.error() {
                    Some(error) => {
                        Stop::Failed(failure(&error, format!("the subscription of {} ended", args.topic)))
                    }
                    None => Stop::Done,
                };
            }
        }
        // What else is here already goes out with the same flush.
        while batch.len() < MAX_BATCH && (batch.len() as u64) < left {
            let Some(event) = next_if_here(events).await else { break };
            batch.push(event);
        }
        text.clear();
        for event in &batch {
            write_event(&mut text, args.output, &event.topic, event.seq, event.attempt, &event.json);
        }
        // A reader that is slow may hold this thread; the connection has another.
        let written = block_in_place(|| {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&text).and_then(|()| stdout.flush())
        });
        if let Err(error) = written {
            if error.kind() == io::ErrorKind::BrokenPipe {
                return Stop::ReaderGone;
            }
            let failed = Failure::new(Exit::Io, "cannot write to stdout");
            return Stop::Failed(failed.why(error).fix("the events that were not written come again"));
        }
        *seen += batch.len() as u64;
        if !args.no_ack
            && let Err(error) = acks.send(&batch).await
        {
            return Stop::Failed(lost(&error, &args.topic));
        }
        batch.clear();
        idle_since = Instant::now();
    }
}

async fn next(events: &mut Events) -> Came {
    poll_fn(|cx| {
        let notes = events.take_notes();
        if !notes.is_empty() {
            return Poll::Ready(Came::Notes(notes));
        }
        events.poll_next(cx).map(|event| event.map_or(Came::End, Came::Event))
    })
    .await
}

async fn next_if_here(events: &mut Events) -> Option<Event> {
    poll_fn(|cx| match events.poll_next(cx) {
        Poll::Ready(event) => Poll::Ready(event),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

async fn idle(since: Instant, wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep_until(since + wait).await,
        None => std::future::pending().await,
    }
}

fn write_event(out: &mut Vec<u8>, format: EventFormat, topic: &str, seq: u64, attempt: u32, event: &[u8]) {
    // Writing to memory does not fail.
    let _ = match format {
        EventFormat::Raw => Ok(()),
        EventFormat::Text => write!(out, "{topic} {seq} {attempt} "),
        EventFormat::Json => {
            let topic = serde_json::Value::from(topic);
            write!(out, "{{\"topic\":{topic},\"seq\":{seq},\"attempt\":{attempt},\"event\":")
        }
    };
    out.extend_from_slice(event);
    if format == EventFormat::Json {
        out.push(b'}');
    }
    out.push(b'\n');
}

fn lost(error: &ClientError, topic: &str) -> Failure {
    failure(error, format!("the last acks in {topic} are not confirmed; those events may come again"))
}

/// The acks on their way.
struct Acks {
    client: Client,
    waiting: VecDeque<Reply<()>>,
    /// Acks that came after the event had been taken back.
    late: u64,
}

impl Acks {
    /// Acks exactly these events, in as few commands as they allow.
    async fn send(&mut self, events: &[Event]) -> Result<(), ClientError> {
        let mut by_topic: BTreeMap<&Arc<str>, Vec<u64>> = BTreeMap::new();
        for event in events {
            by_topic.entry(&event.topic).or_default().push(event.seq);
        }
        for (topic, mut seqs) in by_topic {
            seqs.sort_unstable();
            for (first, last) in runs(&seqs) {
                self.waiting.push_back(self.client.ack_range(topic, first, last).await?);
            }
        }
        Ok(())
    }

    /// The reply to the oldest one. Cancel-safe.
    async fn next(&mut self) -> Result<(), ClientError> {
        let Some(reply) = self.waiting.front_mut() else { return Ok(()) };
        let outcome = reply.await;
        self.waiting.pop_front();
        match outcome {
            Err(error) if error.kind() == ErrorKind::NotInFlight => {
                if self.late == 0 {
                    let _ = writeln!(
                        io::stderr(),
                        "note: an event was written later than its --ack-wait and comes again; raise it, or lower --prefetch"
                    );
                }
                self.late += 1;
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Waits until all are answered.
    async fn finish(&mut self, topic: &str) -> Result<(), Failure> {
        let all = async {
            while !self.waiting.is_empty() {
                self.next().await?;
            }
            Ok(())
        };
        let silent = || ClientError::new(ErrorKind::Disconnected, "the server does not answer");
        let answered: Result<(), ClientError> =
            tokio::time::timeout(LAST_CALL, all).await.unwrap_or_else(|_| Err(silent()));
        answered.map_err(|error| lost(&error, topic))
    }
}

/// Sorted numbers as ranges without gaps: a range must not ack an event that was not written.
fn runs(seqs: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &seq in seqs {
        match runs.last_mut() {
            Some((_, last)) if seq <= last.saturating_add(1) => *last = seq,
            _ => runs.push((seq, seq)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_only_what_was_written() {
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[3]), [(3, 3)]);
        assert_eq!(runs(&[1, 2, 2, 3, 5, 7, 8]), [(1, 3), (5, 5), (7, 8)]);
        assert_eq!(runs(&[u64::MAX - 1, u64::MAX]), [(u64::MAX - 1, u64::MAX)]);
    }

    #[test]
    fn formats() {
        let text = |format| {
            let mut out = Vec::new();
            write_event(&mut out, format, "a/\"b\"", 7, 2, br#"{"id":  1}"#);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(EventFormat::Raw), "{\"id\":  1}\n");
        assert_eq!(text(EventFormat::Text), "a/\"b\" 7 2 {\"id\":  1}\n");
        assert_eq!(
            text(EventFormat::Json),
            "{\"topic\":\"a/\\\"b\\\"\",\"seq\":7,\"attempt\":2,\"event\":{\"id\":  1}}\n"
        );
    }
}
