//! An outcome that takes more than one commit.

use crate::error::EngineError;
use crate::log::{Signal, Ticket};
use std::sync::{Arc, Mutex, PoisonError};

/// What the caller of a command waits for.
#[derive(Clone, Debug)]
pub enum Receipt {
    /// Done when this ticket is committed.
    At(Ticket),
    /// Done when this says so.
    Later(Arc<Later>),
}

/// Several steps, each of which ends with a commit or an error.
#[derive(Default)]
pub struct Later {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: usize,
    ticket: Ticket,
    error: Option<EngineError>,
    waiters: Vec<Arc<dyn Signal>>,
}

impl std::fmt::Debug for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Later")
    }
}

impl Later {
    /// Waits for `steps` steps.
    pub(crate) fn new(steps: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { open: steps, ..State::default() }) })
    }

    /// One step is done when `ticket` is committed.
    pub(crate) fn step(&self, result: Result<Ticket, EngineError>) {
        let waiters = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.open = state.open.saturating_sub(1);
            match result {
                Ok(ticket) => state.ticket = state.ticket.max(ticket),
                Err(error) => state.error = Some(error),
            }
            if state.open > 0 {
                return;
            }
            std::mem::take(&mut state.waiters)
        };
        for waiter in waiters {
            waiter.signal();
        }
    }

    /// `None`: not yet, `signal` will be called. Else the ticket to wait for, or the error.
    pub fn poll(&self, signal: &Arc<dyn Signal>) -> Option<Result<Ticket, EngineError>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.open > 0 {
            if !state.waiters.iter().any(|w| Arc::ptr_eq(w, signal)) {
                state.waiters.push(signal.clone());
            }
            return None;
        }
        Some(match &state.error {
            Some(error) => Err(error.clone()),
            None => Ok(state.ticket),
        })
    }
}
