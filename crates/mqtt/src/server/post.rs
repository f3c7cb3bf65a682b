//! Messages that come to the broker from its own process: from any thread to the thread of the broker, and an answer when
//! they are committed.

use super::letters::Letterbox;
use crate::broker::{Broker, Post, PostError, Posted};
use crate::lines::Doors;
use postroad_core::mailbox::Millis;
use postroad_engine::log::{Signal, Ticket};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Messages published in one turn.
const TURN: usize = 256;

/// Called with what became of each message, in their order.
pub(crate) type Answer = Box<dyn FnOnce(Vec<Result<(), PostError>>) + Send>;

struct Batch {
    posts: VecDeque<Post>,
    results: Vec<Result<(), PostError>>,
    ticket: Ticket,
    answer: Answer,
}

impl Batch {
    fn fail(mut self) {
        self.results.extend(self.posts.drain(..).map(|_| Err(PostError::Stopped)));
        // What was not committed may not have been published.
        self.results.iter_mut().filter(|result| result.is_ok()).for_each(|r| *r = Err(PostError::Stopped));
        (self.answer)(self.results);
    }
}

/// Where messages are left for the broker.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    batches: Vec<Batch>,
    signal: Option<Arc<dyn Signal>>,
    closed: bool,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inbox")
    }
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn leave(&self, posts: Vec<Post>, answer: Answer) {
        let batch = Batch { posts: posts.into(), results: Vec::new(), ticket: Ticket(0), answer };
        let signal = {
            let mut state = self.state();
            if state.closed {
                drop(state);
                return batch.fail();
            }
            state.batches.push(batch);
            state.signal.clone()
        };
        if let Some(signal) = signal {
            signal.signal();
        }
    }

    /// Whom to wake.
    pub(crate) fn wake(&self, signal: Arc<dyn Signal>) {
        self.state().signal = Some(signal);
    }
}

/// What publishes them.
pub(crate) trait Postbox: Letterbox {
    fn post(&mut self, post: Post, now: Millis) -> Result<Posted, PostError>;
}

/// The broker's end of an [`Inbox`].
#[derive(Debug)]
pub(crate) struct Desk {
    inbox: Arc<Inbox>,
    open: VecDeque<Batch>,
    /// Published, not committed.
    waiting: VecDeque<Batch>,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("left", &self.posts.len()).finish_non_exhaustive()
    }
}

impl Desk {
    pub(crate) fn new(inbox: Arc<Inbox>) -> Self {
        Self { inbox, open: VecDeque::new(), waiting: VecDeque::new() }
    }

    pub(crate) fn wake_with(&self, signal: Arc<dyn Signal>) {
        self.inbox.wake(signal);
    }

    pub(crate) fn turn(&mut self, to: &mut impl Postbox, now: Millis) {
        while self.waiting.front().is_some_and(|batch| to.committed(batch.ticket))
            && let Some(batch) = self.waiting.pop_front()
        {
            (batch.answer)(batch.results);
        }
        self.open.extend(std::mem::take(&mut self.inbox.state().batches));
        let mut left = TURN;
        while left > 0
            && let Some(batch) = self.open.front_mut()
        {
            let Some(post) = batch.posts.pop_front() else {
                self.waiting.extend(self.open.pop_front());
                continue;
            };
            left -= 1;
            batch.results.push(match to.post(post, now) {
                Ok(Posted(ticket)) => {
                    batch.ticket = batch.ticket.max(ticket);
                    Ok(())
                }
                Err(error) => Err(error),
            });
        }
    }

    pub(crate) fn pending(&self, to: &impl Postbox) -> Option<Ticket> {
        self.waiting.back().map(|batch| batch.ticket).filter(|ticket| !to.committed(*ticket))
    }

    /// At once, if there is something to do.
    pub(crate) fn deadline(&self, to: &impl Postbox) -> Option<Millis> {
        let done = self.waiting.front().is_some_and(|batch| to.committed(batch.ticket));
        (done || !self.open.is_empty() || !self.inbox.state().batches.is_empty()).then_some(0)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let left = {
            let mut state = self.inbox.state();
            state.closed = true;
            std::mem::take(&mut state.batches)
        };
        self.waiting.drain(..).chain(self.open.drain(..)).chain(left).for_each(Batch::fail);
    }
}

impl Postbox for Broker {
    fn post(&mut self, post: Post, now: Millis) -> Result<Posted, PostError> {
        self.post(post, now)
    }
}

impl Postbox for Doors {
    fn post(&mut self, post: Post, now: Millis) -> Result<Posted, PostError> {
        self.post(post, now)
    }
}
