//! From a signal of the engine to the task of a connection.

use postroad_engine::log::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

/// Wakes one task; signals that come while it runs are remembered.
#[derive(Debug, Default)]
pub(super) struct WakeSignal {
    signalled: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl WakeSignal {
    pub(super) fn wake(&self) {
        // Already signalled and not looked at: the task is on its way.
        if self.signalled.swap(true, Ordering::AcqRel) {
            return;
        }
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Remembers whom to wake. Call before [`WakeSignal::take`].
    pub(super) fn register(&self, waker: &Waker) {
        let mut slot = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_none_or(|old| !old.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    /// True if there was a signal since the last call.
    pub(super) fn take(&self) -> bool {
        self.signalled.swap(false, Ordering::AcqRel)
    }
}

impl Signal for WakeSignal {
    fn signal(&self) {
        self.wake();
    }
}
