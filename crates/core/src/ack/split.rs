//! One delivery made into many pieces of work, and many deliveries into one.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use super::{AckSink, AckToken, Settled, State};
use crate::error::{Error, ErrorKind, Result};
use crate::outcome::Outcome;

impl AckToken {
    /// Splits it into `parts` tokens. When the last of them is settled, this one is, with the worst outcome
    /// ([`Outcome::worse`]). A part that is dropped counts as Retry. Extending a part extends this one.
    ///
    /// The [`Settled`] of every part resolves when this token's verdict is known to have arrived; so awaiting one
    /// part before the others are settled waits for them.
    ///
    /// ```
    /// # use std::{num::NonZeroUsize, sync::{Arc, Mutex}};
    /// # use postroad_core::{AckSink, AckToken, Outcome, Settled};
    /// # #[derive(Default)]
    /// # struct Sink(Mutex<Vec<Outcome>>);
    /// # impl AckSink for Sink {
    /// #     fn settle(&self, _: u64, _: u32, outcome: Outcome) -> Settled {
    /// #         self.0.lock().unwrap().push(outcome);
    /// #         Settled::ok()
    /// #     }
    /// #     fn extend(&self, _: u64, _: u32) -> Settled { Settled::ok() }
    /// # }
    /// # let sink = Arc::new(Sink::default());
    /// # let token = AckToken::new(sink.clone(), 1, 0);
    /// let mut parts = token.fan_out(NonZeroUsize::new(2).unwrap());
    /// parts.pop().unwrap().settle(Outcome::dead_letter("bad line"));
    /// assert!(sink.0.lock().unwrap().is_empty());
    /// parts.pop().unwrap().settle(Outcome::Ack);
    /// assert_eq!(*sink.0.lock().unwrap(), [Outcome::dead_letter("bad line")]);
    /// ```
    pub fn fan_out(self, parts: NonZeroUsize) -> Vec<Self> {
        let parts = parts.get();
        let state = FanState {
            open: parts,
            worst: Outcome::Ack,
            root: Some(self),
            settled: None,
            waiting: Vec::new(),
        };
        let root = Arc::new(FanOut(Mutex::new(state)));
        let sink: Arc<dyn AckSink> = Arc::new(FanSink(root));
        (0..parts).map(|part| Self::new(Arc::clone(&sink), part as u64, 0)).collect()
    }
}

struct FanState {
    open: usize,
    worst: Outcome,
    root: Option<AckToken>,
    settled: Option<Settled>,
    waiting: Vec<Waker>,
}

pub(super) struct FanOut(Mutex<FanState>);

struct FanSink(Arc<FanOut>);

impl FanOut {
    fn lock(&self) -> MutexGuard<'_, FanState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn poll(self: &Arc<Self>, cx: &Context<'_>) -> Poll<Result<()>> {
        let mut state = self.lock();
        // The root's future remembers one waker only, so it gets one that wakes every waiting part.
        let all = Waker::from(Arc::clone(self));
        let answer = match &mut state.settled {
            Some(settled) => std::pin::Pin::new(settled).poll(&mut Context::from_waker(&all)),
            None => Poll::Pending,
        };
        if answer.is_pending() && !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        answer
    }
}

impl Wake for FanOut {
    fn wake(self: Arc<Self>) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl AckSink for FanSink {
    fn settle(&self, _: u64, _: u32, outcome: Outcome) -> Settled {
        let done = {
            let mut state = self.0.lock();
            state.open -= 1;
            let worst = std::mem::replace(&mut state.worst, Outcome::Ack);
            state.worst = worst.worse(outcome);
            if state.open == 0 { state.root.take().map(|root| (root, state.worst.clone())) } else { None }
        };
        // Not under the lock: the root may be a part of another fan-out, or answer on this thread.
        if let Some((root, worst)) = done {
            let settled = root.settle(worst);
            self.0.lock().settled = Some(settled);
            Arc::clone(&self.0).wake();
        }
        Settled(State::Shared(Arc::clone(&self.0)))
    }

    fn extend(&self, _: u64, _: u32) -> Settled {
        match &mut self.0.lock().root {
            Some(root) => root.extend(),
            None => stale(),
        }
    }
}

impl fmt::Debug for FanOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FanOut").field("open", &self.lock().open).finish_non_exhaustive()
    }
}

/// One token for many deliveries, as when a batch becomes one message. Its verdict is that of each of them; its
/// [`Settled`] resolves when all theirs have, with the first error. Dropped, all of them are Retry.
pub fn join(tokens: Vec<AckToken>) -> AckToken {
    AckToken::new(Arc::new(JoinSink(Mutex::new(tokens))), 0, 0)
}

struct JoinSink(Mutex<Vec<AckToken>>);

impl AckSink for JoinSink {
    fn settle(&self, _: u64, _: u32, outcome: Outcome) -> Settled {
        let tokens = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        Settled(State::All(tokens.into_iter().map(|token| token.settle(outcome.clone())).collect()))
    }

    fn extend(&self, _: u64, _: u32) -> Settled {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Settled(State::All(tokens.iter_mut().map(AckToken::extend).collect()))
    }

    fn dropped(&self, _: u64, _: u32) {
        // Each of them says so itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn stale() -> Settled {
    Settled::failed(Error::new(ErrorKind::StaleToken, "core", "every part of this delivery is settled"))
}
