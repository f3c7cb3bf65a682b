//! One connection as a state machine: bytes in, bytes out, no socket, no clock of its own.
//!
//! [`Session::input`] takes what was read; [`Session::output`] gives what is to be written, as far as it may be: replies
//! in the order of the commands, each once the commit behind it is there, and deliveries while there is room. The
//! signal given at the start is called when [`Session::output`] may have more.

mod deliver;
mod execute;
mod framing;
mod hub;
mod reply;
mod stats;

pub use hub::{Hub, Limits};

use crate::protocol::Words;
use deliver::Attachment;
use framing::Framer;
use postroad_engine::Engine;
use postroad_engine::log::{Signal, Ticket};
use reply::Replies;
use std::sync::Arc;

/// Why a session ends; the word after `bye`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bye {
    /// The client said so.
    Quit,
    /// The server stops.
    ShuttingDown,
    /// It is not known where the next command begins.
    Framing,
    /// The client does not read.
    Slow,
    /// A limit of the server.
    Busy,
    /// The disk failed.
    Failed,
}

impl Bye {
    fn line(self) -> &'static str {
        match self {
            Self::Quit => "bye quit\n",
            Self::ShuttingDown => "bye shutting-down the server stops; connect again later\n",
            Self::Framing => "bye framing the next command cannot be found; connect again\n",
            Self::Slow => "bye slow this connection was not read for too long\n",
            Self::Busy => "bye busy a limit of the server is reached; connect again later\n",
            Self::Failed => "bye failed the disk of the server failed; what got no ok is not promised\n",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Full,
    Quiet,
}

/// One connection. See the module.
pub struct Session {
    engine: Arc<Engine>,
    hub: Arc<Hub>,
    signal: Arc<dyn Signal>,
    framer: Framer,
    replies: Replies,
    attachments: Vec<Attachment>,
    next_attachment: u32,
    // Where the next round of deliveries begins.
    turn: usize,
    // The highest ticket whose commit will call the signal.
    registered: Ticket,
    // Commands wait for room in the commit queue, or among the replies.
    blocked: bool,
    // The peer sends no more.
    half_closed: bool,
    mode: Mode,
    authorized: bool,
    number: u64,
    // No more input; when all replies are out, this is the last line.
    closing: Option<Bye>,
    done: bool,
    // The stream published to last, so that a burst looks it up once.
    last_stream: Option<Arc<postroad_engine::Stream>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("number", &self.number)
            .field("closing", &self.closing)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A session that has just begun; its first output is the greeting.
    pub fn new(engine: Arc<Engine>, hub: Arc<Hub>, signal: Arc<dyn Signal>) -> Self {
        let authorized = hub.tokens.is_empty();
        let mut replies = Replies::default();
        replies.text(hub.greeting(engine.sync_mode(), engine.config().dedup_window));
        let number = hub.connected();
        Self {
            engine,
            hub,
            signal,
            framer: Framer::default(),
            replies,
            attachments: Vec::new(),
            next_attachment: 0,
            turn: 0,
            registered: Ticket(0),
            blocked: false,
            half_closed: false,
            mode: Mode::Full,
            authorized,
            number,
            closing: None,
            done: false,
            last_stream: None,
        }
    }

    fn words(&self) -> &Words {
        &self.hub.words
    }

    /// True if it makes sense to read more from the socket now.
    pub fn wants_input(&self) -> bool {
        !self.blocked
            && self.closing.is_none()
            && !self.done
            && self.replies.waiting() < self.hub.limits.max_replies
    }

    /// Takes what was read. Afterwards call [`postroad_engine::Engine::flush`], then [`Session::output`].
    pub fn input(&mut self, data: &[u8]) {
        if self.closing.is_some() || self.done {
            return;
        }
        self.run(data);
    }

    /// The peer sends no more: what is complete is still done.
    pub fn end_of_input(&mut self) {
        if self.closing.is_none() {
            // Half a line is no command.
            self.closing = Some(Bye::Quit);
            self.half_closed = true;
        }
    }

    /// Ends the session: replies that wait for a commit are still sent, then `bye`.
    pub fn close(&mut self, bye: Bye) {
        self.closing.get_or_insert(bye);
    }

    /// Writes what may be written to `out`, until it holds about `limit` bytes.
    pub fn output(&mut self, out: &mut Vec<u8>, limit: usize) {
        self.emit_replies(out, limit);
        if self.blocked {
            self.resume();
            self.emit_replies(out, limit);
        }
        if self.engine.failure().is_some() && !self.done {
            // Nothing that waits will be committed.
            self.replies.forget();
            out.extend_from_slice(Bye::Failed.line().as_bytes());
            self.done = true;
        }
        if self.done {
            return;
        }
        if let Some(bye) = self.closing {
            if self.replies.is_empty() {
                if self.half_closed {
                    // `printf … | nc`: nothing more comes, but what is there is wanted.
                    self.emit_deliveries(out, limit);
                }
                self.attachments.clear();
                out.extend_from_slice(bye.line().as_bytes());
                self.done = true;
            }
            return;
        }
        self.emit_deliveries(out, limit);
    }

    /// Goes on with commands that waited for room.
    fn resume(&mut self) {
        if matches!(self.engine.admit(), Err(postroad_engine::EngineError::Busy)) {
            self.engine.notify_next(&self.signal);
        } else if self.replies.waiting() < self.hub.limits.max_replies {
            self.blocked = false;
            self.run(&[]);
            self.engine.flush(false);
        }
    }

    /// True if nothing will come any more.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Bytes of half a command that are held.
    pub fn held_input(&self) -> usize {
        self.framer.held()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.hub.disconnected(self.number, self.framer.held());
    }
}
