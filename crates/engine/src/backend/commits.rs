//! Answers that wait for their commit.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

use postroad_core::{Receipt as PublishReceipt, Result, SettledResolver, TicketResolver};

use super::error;
use super::sink::Sink;
use crate::engine::Engine;
use crate::later::{Later, Receipt};
use crate::log::{Signal, Ticket};

/// Where a published message went.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub(super) position: u64,
    pub(super) duplicate: bool,
}

impl Stored {
    fn receipt(self) -> PublishReceipt {
        PublishReceipt::Confirmed { position: Some(self.position), duplicate: self.duplicate }
    }
}

/// Who is told.
pub(super) enum Waiting {
    Published(Vec<(TicketResolver, Stored)>),
    /// So many deliveries were settled. `result`: what is said when that is durable.
    Settled {
        resolver: SettledResolver,
        sink: Arc<Sink>,
        count: u64,
        result: Result<()>,
    },
    Done(SettledResolver),
}

impl Waiting {
    pub(super) fn answer(self, committed: Result<()>) {
        match self {
            Self::Published(tickets) => {
                for (resolver, stored) in tickets {
                    match &committed {
                        Ok(()) => resolver.resolve(stored.receipt()),
                        Err(error) => resolver.unknown(error.clone()),
                    }
                }
            }
            Self::Settled { resolver, sink, count, result } => {
                sink.settled(count, committed.is_ok());
                resolver.resolve(committed.and(result));
            }
            Self::Done(resolver) => resolver.resolve(committed),
        }
    }
}

/// All answers of a backend that wait. It is the one signal that the engine's commits call.
pub(super) struct Commits {
    engine: Weak<Engine>,
    me: Weak<Self>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<Ticket, Vec<Waiting>>,
    /// Publishers that wait for room.
    ready: Vec<Waker>,
    /// Told when the log fails.
    sinks: Vec<Weak<Sink>>,
    /// The newest commit that anything here needed.
    last: Ticket,
}

impl Commits {
    pub(super) fn new(engine: &Arc<Engine>) -> Arc<Self> {
        let commits = Arc::new_cyclic(|me| Self {
            engine: Arc::downgrade(engine),
            me: Weak::clone(me),
            state: Mutex::default(),
        });
        // It never comes, so the signal is called when the log fails.
        engine.notify(Ticket(u64::MAX), &commits.signal_of());
        commits
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal_of(&self) -> Arc<dyn Signal> {
        match self.me.upgrade() {
            Some(me) => me,
            None => Arc::new(Nobody),
        }
    }

    /// Answers when `ticket` is committed: at once, if it is.
    pub(super) fn add(&self, ticket: Ticket, waiting: Waiting) {
        let Some(engine) = self.engine.upgrade() else { return };
        if engine.committed() >= ticket {
            waiting.answer(Ok(()));
            return;
        }
        let is_first = {
            let mut state = self.lock();
            state.last = state.last.max(ticket);
            let all = state.waiting.entry(ticket).or_default();
            all.push(waiting);
            all.len() == 1
        };
        if is_first {
            engine.notify(ticket, &self.signal_of());
        }
    }

    /// The same for what may take more than one commit.
    pub(super) fn add_receipt(&self, receipt: Receipt, waiting: Waiting) {
        match receipt {
            Receipt::At(ticket) => self.add(ticket, waiting),
            Receipt::Later(later) => {
                let step = Arc::new_cyclic(|me| Step {
                    commits: Weak::clone(&self.me),
                    later: Arc::downgrade(&later),
                    me: Weak::clone(me),
                    waiting: Mutex::new(Some(waiting)),
                });
                step.signal();
            }
        }
    }

    /// The newest commit that was waited for.
    pub(super) fn last(&self) -> Ticket {
        self.lock().last
    }

    /// Wakes the task at the next commit.
    pub(super) fn wake_next(&self, waker: &Waker) {
        {
            let mut state = self.lock();
            if !state.ready.iter().any(|other| other.will_wake(waker)) {
                state.ready.push(waker.clone());
            }
        }
        if let Some(engine) = self.engine.upgrade() {
            engine.notify_next(&self.signal_of());
        }
    }

    /// Wakes everybody who waits for room.
    pub(super) fn wake_ready(&self) {
        let ready = std::mem::take(&mut self.lock().ready);
        ready.into_iter().for_each(Waker::wake);
    }

    pub(super) fn watch(&self, sink: &Arc<Sink>) {
        let mut state = self.lock();
        state.sinks.retain(|sink| sink.strong_count() > 0);
        state.sinks.push(Arc::downgrade(sink));
    }

    pub(super) fn sinks(&self) -> Vec<Arc<Sink>> {
        self.lock().sinks.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Signal for Commits {
    fn signal(&self) {
        let Some(engine) = self.engine.upgrade() else { return };
        // In this order: what was committed before the failure is committed.
        let failure = engine.failure();
        let committed = engine.committed();
        let (due, rest) = {
            let mut state = self.lock();
            let later = state.waiting.split_off(&Ticket(committed.0.saturating_add(1)));
            let due = std::mem::replace(&mut state.waiting, later);
            let rest = if failure.is_some() { std::mem::take(&mut state.waiting) } else { BTreeMap::new() };
            (due, rest)
        };
        for waiting in due.into_values().flatten() {
            waiting.answer(Ok(()));
        }
        if let Some(failure) = failure {
            let error = error::failed(&failure);
            for waiting in rest.into_values().flatten() {
                waiting.answer(Err(error.clone()));
            }
            for sink in self.sinks() {
                sink.alert();
            }
        }
        self.wake_ready();
    }
}

/// Of what is just being dropped.
struct Nobody;

impl Signal for Nobody {
    fn signal(&self) {}
}

/// Waits for the steps of a [`Later`]. It does not keep it: when the engine is gone, nobody is left to answer.
struct Step {
    commits: Weak<Commits>,
    later: Weak<Later>,
    me: Weak<Self>,
    waiting: Mutex<Option<Waiting>>,
}

impl Signal for Step {
    fn signal(&self) {
        let (Some(later), Some(me)) = (self.later.upgrade(), self.me.upgrade()) else { return };
        let signal: Arc<dyn Signal> = me;
        let Some(result) = later.poll(&signal) else { return };
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(waiting), Some(commits)) = (waiting, self.commits.upgrade()) else { return };
        match result {
            Ok(ticket) => commits.add(ticket, waiting),
            Err(why) => waiting.answer(Err(error::of(why))),
        }
    }
}
