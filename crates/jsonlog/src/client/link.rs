//! One connection: what waits to be written, what waits for a reply, and the two tasks that move it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};

use super::codec::{LineSplitter, ServerLine, protocol};
use super::error::{ClientError, ErrorKind};
use super::events::{Event, Note, Subs};
use super::reply::{Answer, Expect};

/// How long replies are waited for after the last handle is gone.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// How long the reader may look for a `bye` after a write failed.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Read in pieces of this size; also what a small event may keep alive of its neighbours.
const READ_ROOM: usize = 64 * 1024;
/// The write buffer is given back when it grew beyond this.
const KEEP_BUFFER: usize = 1 << 20;

/// A reply, or the end of the connection.
pub(crate) type Outcome = Result<Answer, ClientError>;

/// Who is told.
pub(crate) enum Slot {
    /// Nobody.
    Nobody,
    /// A [`Reply`](super::Reply).
    Oneshot(oneshot::Sender<Outcome>),
    /// A callback, run by the reading task without any lock held. It must not block.
    Call(Box<dyn FnOnce(Outcome) + Send>),
}

impl Slot {
    pub(crate) fn tell(self, outcome: Outcome) {
        match self {
            Self::Nobody => {}
            // Who dropped the reply does not want it.
            Self::Oneshot(tx) => drop(tx.send(outcome)),
            Self::Call(f) => f(outcome),
        }
    }
}

/// What a reply changes on this side.
#[derive(Debug)]
pub(super) enum Effect {
    None,
    /// `err` ends this subscription before it began.
    Subscribe(u64),
    /// `ok` ends the subscriptions of this filter and name.
    Unsubscribe(String, Option<String>),
    /// The subscription of a dropped handle is over.
    Leave(u64),
}

struct Waiting {
    expect: Expect,
    effect: Effect,
    slot: Slot,
}

/// The bounds of the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) queue_bytes: usize,
    pub(super) in_flight: usize,
}

pub(super) struct State {
    /// Commands not handed to the socket yet.
    out: BytesMut,
    /// How many commands are in `out`: they are the last of `waiting`.
    unsent: usize,
    /// Bytes that the writer is busy with.
    writing: usize,
    waiting: VecDeque<Waiting>,
    /// Tasks that wait for room.
    for_room: Vec<Waker>,
    pub(super) subs: Subs,
    limits: Limits,
    ended: Option<ClientError>,
    /// This side closes: nothing new is taken.
    closing: bool,
    /// Woken, and dropped, without the lock: a waker may own a task that holds one of our handles.
    woken: Vec<Waker>,
}

impl State {
    fn has_room(&self) -> bool {
        self.out.len() + self.writing < self.limits.queue_bytes && self.waiting.len() < self.limits.in_flight
    }

    /// The error of a command that comes too late.
    fn over(&self) -> Option<ClientError> {
        match &self.ended {
            Some(why) => Some(never_sent(why)),
            None => self.closing.then(|| never_sent(&closed_here())),
        }
    }

    /// Encodes a command with `write` and queues it, whether there is room or not.
    pub(super) fn push(
        &mut self,
        expect: Expect,
        effect: Effect,
        slot: Slot,
        write: impl FnOnce(&mut BytesMut),
    ) -> Result<(), (ClientError, Slot)> {
        if let Some(why) = self.over() {
            return Err((why, slot));
        }
        write(&mut self.out);
        self.unsent += 1;
        self.waiting.push_back(Waiting { expect, effect, slot });
        Ok(())
    }

    /// `unsub` whose reply nobody awaits.
    pub(super) fn unsub_forgotten(&mut self, id: u64, filter: &str, name: Option<&str>) {
        let line = unsub_line(filter, name, false);
        // Refused only when the connection has ended, and then there is nothing to unsubscribe.
        let _ = self.push(Expect::Done, Effect::Leave(id), Slot::Nobody, |out| put_line(out, &line));
    }

    /// Wakes the task when there is room, or when the connection ends.
    fn wait(&mut self, cx: &Context<'_>) {
        if !self.for_room.iter().any(|w| w.will_wake(cx.waker())) {
            self.for_room.push(cx.waker().clone());
        }
    }

    fn wake_for_room(&mut self) {
        // Half empty, so that waiters come in crowds and not one by one.
        let low = self.out.len() + self.writing <= self.limits.queue_bytes / 2
            && self.waiting.len() <= self.limits.in_flight / 2;
        if low || self.ended.is_some() {
            self.woken.append(&mut self.for_room);
        }
    }

    /// Takes the reply to the oldest command.
    fn reply(&mut self, line: Line, done: &mut Vec<(Slot, Outcome)>) -> Result<(), ClientError> {
        let Some(waiting) = self.waiting.front() else {
            return Err(ClientError::new(ErrorKind::Protocol, "a reply without a command"));
        };
        // `unsent` ones were never written: nothing can have been answered.
        if self.waiting.len() <= self.unsent {
            return Err(ClientError::new(ErrorKind::Protocol, "a reply to a command that was not sent"));
        }
        let outcome = match line {
            Line::Ok(text) => Ok(waiting.expect.read(&text)?),
            Line::Err(why) => Err(why),
            Line::Peek(event) if waiting.expect == Expect::Peek => Ok(Answer::Peek(event)),
            Line::Peek(event) => return Err(protocol("`ok` or `err`", event.json.as_ref())),
        };
        if let Some(waiting) = self.waiting.pop_front() {
            match (waiting.effect, &outcome) {
                (Effect::Subscribe(id), Err(_)) => self.subs.remove(id),
                (Effect::Leave(id), _) => self.subs.left(id),
                (Effect::Unsubscribe(filter, name), Ok(_)) => {
                    self.subs.unsubscribed(&filter, name.as_deref());
                }
                _ => {}
            }
            done.push((waiting.slot, outcome));
        }
        Ok(())
    }

    /// One line from the server. An error ends the connection.
    fn take(
        &mut self,
        line: ServerLine,
        now: Instant,
        done: &mut Vec<(Slot, Outcome)>,
    ) -> Result<(), ClientError> {
        match line {
            ServerLine::Ok(text) => self.reply(Line::Ok(text), done),
            ServerLine::Err(why) => self.reply(Line::Err(why), done),
            ServerLine::Event { topic, seq, attempt, json } => {
                let name = std::str::from_utf8(&topic).map_err(|_| protocol("a topic in UTF-8", &topic))?;
                if attempt == 0 {
                    self.reply(
                        Line::Peek(Event { topic: Arc::from(name), seq, attempt, json, received: now }),
                        done,
                    )
                } else {
                    self.subs.deliver(name, seq, attempt, json, now);
                    Ok(())
                }
            }
            ServerLine::Note { code, topic, text } => {
                self.subs.note(&Note { code, topic, text });
                Ok(())
            }
            ServerLine::Bye { code, text } => {
                let text = format!("the server closed the connection: {code} {text}");
                Err(ClientError::new(ErrorKind::Disconnected, text.trim_end()))
            }
            ServerLine::Help => Ok(()),
            ServerLine::Hello(_) => Err(ClientError::new(ErrorKind::Protocol, "a second greeting")),
        }
    }

    /// The connection is over; everybody who waits is told why.
    fn end(&mut self, why: &ClientError, done: &mut Vec<(Slot, Outcome)>) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(why.clone());
        // The server may have done what was written, whatever ended the connection.
        let unknown = match why.kind() {
            ErrorKind::Protocol | ErrorKind::Disconnected => why.clone(),
            _ => ClientError::new(ErrorKind::Disconnected, why.text()),
        };
        let written = self.waiting.len() - self.unsent;
        for (i, waiting) in self.waiting.drain(..).enumerate() {
            let error = if i < written { unknown.clone() } else { never_sent(why) };
            done.push((waiting.slot, Err(error)));
        }
        self.unsent = 0;
        self.out = BytesMut::new();
        self.subs.end_all(why);
        self.wake_for_room();
    }
}

/// A line that answers a command.
enum Line {
    Ok(bytes::Bytes),
    Err(ClientError),
    Peek(Event),
}

fn never_sent(why: &ClientError) -> ClientError {
    ClientError::new(ErrorKind::Closed, format!("never sent: {}", why.text()))
}

fn closed_here() -> ClientError {
    ClientError::new(ErrorKind::Closed, "this side closed the connection")
}

pub(super) fn unsub_line(filter: &str, name: Option<&str>, forget: bool) -> String {
    let name = name.map(|n| format!(" as {n}")).unwrap_or_default();
    format!("unsub {filter}{name}{}", if forget { " forget" } else { "" })
}

pub(super) fn put_line(out: &mut BytesMut, line: &str) {
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(b"\n");
}

/// The connection as its handles and its tasks share it.
pub(super) struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    to_write: Notify,
    /// The last handle is gone.
    closing: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            state: Mutex::new(State {
                out: BytesMut::new(),
                unsent: 0,
                writing: 0,
                waiting: VecDeque::new(),
                for_room: Vec::new(),
                subs: Subs::default(),
                limits,
                ended: None,
                closing: false,
                woken: Vec::new(),
            }),
            to_write: Notify::new(),
            closing: Notify::new(),
        }
    }

    /// Does `work` under the lock, then wakes who must be woken.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        // The state is never left half changed by what can panic: go on after a poisoning.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut state);
        if state.woken.is_empty() && state.subs.woken.is_empty() {
            return result;
        }
        let (first, second) = (std::mem::take(&mut state.woken), std::mem::take(&mut state.subs.woken));
        drop(state);
        for waker in first.into_iter().chain(second) {
            waker.wake();
        }
        result
    }

    pub(super) fn wake_writer(&self) {
        self.to_write.notify_one();
    }

    /// Queues a command; `Full` when there is no room, unless it is `urgent`.
    pub(super) fn send(
        &self,
        urgent: bool,
        expect: Expect,
        effect: Effect,
        slot: Slot,
        write: impl FnOnce(&mut BytesMut),
    ) -> Result<(), (ClientError, Slot)> {
        let was_empty = self.with(|state| {
            if !urgent && state.over().is_none() && !state.has_room() {
                return Err((ClientError::new(ErrorKind::Full, "the queue of the connection is full"), slot));
            }
            let was_empty = state.out.is_empty();
            state.push(expect, effect, slot, write).map(|()| was_empty)
        })?;
        if was_empty {
            self.wake_writer();
        }
        Ok(())
    }

    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        self.with(|state| match state.over() {
            Some(why) => Poll::Ready(Err(why)),
            None if state.has_room() => Poll::Ready(Ok(())),
            None => {
                state.wait(cx);
                Poll::Pending
            }
        })
    }

    pub(super) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.with(|state| {
            if state.ended.is_some() {
                return Poll::Ready(());
            }
            state.wait(cx);
            Poll::Pending
        })
    }

    /// Why the connection ended, if it has.
    pub(super) fn ended(&self) -> Option<ClientError> {
        self.with(|state| state.ended.clone())
    }

    /// Nothing new is taken; what was queued is still written and answered, within a short time.
    pub(super) fn close(&self) {
        self.with(|state| state.closing = true);
        self.closing.notify_one();
    }

    #[cfg(test)]
    pub(super) fn queued_for_test(&self) -> (usize, usize) {
        self.with(|state| (state.out.len() + state.writing, state.limits.queue_bytes))
    }

    fn end(&self, why: &ClientError) {
        let mut done = Vec::new();
        self.with(|state| state.end(why, &mut done));
        for (slot, outcome) in done {
            slot.tell(outcome);
        }
    }

    /// Takes every whole line that is there, then tells the waiters.
    fn take_lines(
        &self,
        lines: &mut LineSplitter,
        done: &mut Vec<(Slot, Outcome)>,
    ) -> Result<(), ClientError> {
        let now = Instant::now();
        let result = self.with(|state| {
            let result = loop {
                match lines.next_line() {
                    Ok(None) => break Ok(()),
                    Ok(Some(line)) if line.is_empty() => {}
                    Ok(Some(line)) => {
                        if let Err(why) =
                            ServerLine::parse(&line).and_then(|line| state.take(line, now, done))
                        {
                            break Err(why);
                        }
                    }
                    Err(why) => break Err(why),
                }
            };
            state.wake_for_room();
            result
        });
        for (slot, outcome) in done.drain(..) {
            slot.tell(outcome);
        }
        result
    }
}

/// Reads until the connection is over, then ends it for everybody.
pub(super) async fn run(
    shared: Arc<Shared>,
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    lines: LineSplitter,
) {
    let writer = tokio::spawn(write_all(Arc::clone(&shared), write));
    // Also when this task is dropped with its runtime: nobody may wait for ever.
    let guard = EndOnDrop(&shared);
    let why = read_all(&shared, read, lines).await;
    shared.end(&why);
    drop(guard);
    writer.abort();
}

struct EndOnDrop<'a>(&'a Shared);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end(&ClientError::new(ErrorKind::Disconnected, "the tasks of the connection were stopped"));
    }
}

async fn read_all(shared: &Shared, mut read: OwnedReadHalf, mut lines: LineSplitter) -> ClientError {
    let mut done = Vec::new();
    let mut deadline = None;
    // Lines that came together with the greeting.
    if let Err(why) = shared.take_lines(&mut lines, &mut done) {
        return why;
    }
    loop {
        let linger = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            n = read.read_buf(lines.space(READ_ROOM)) => match n {
                Ok(0) => return ClientError::new(ErrorKind::Disconnected, "the server closed the connection"),
                Ok(_) => {
                    if let Err(why) = shared.take_lines(&mut lines, &mut done) {
                        return why;
                    }
                }
                Err(e) => return ClientError::new(ErrorKind::Disconnected, format!("reading failed: {e}")),
            },
            () = shared.closing.notified() => deadline = Some(tokio::time::Instant::now() + LINGER),
            () = linger => return closed_here(),
        }
        if deadline.is_some() && shared.with(|state| state.waiting.is_empty()) {
            return closed_here();
        }
    }
}

async fn write_all(shared: Arc<Shared>, mut write: OwnedWriteHalf) {
    let mut chunk = BytesMut::new();
    loop {
        chunk.clear();
        if chunk.capacity() > KEEP_BUFFER {
            chunk = BytesMut::new();
        }
        let idle = shared.with(|state| {
            std::mem::swap(&mut state.out, &mut chunk);
            state.writing = chunk.len();
            state.unsent = 0;
            state.wake_for_room();
            chunk.is_empty()
        });
        if idle {
            shared.to_write.notified().await;
            continue;
        }
        if let Err(e) = write.write_all(&chunk).await {
            // The server may have said why before it closed.
            tokio::time::sleep(LAST_WORDS).await;
            shared.end(&ClientError::new(ErrorKind::Disconnected, format!("writing failed: {e}")));
            return;
        }
    }
}
