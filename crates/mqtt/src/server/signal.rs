//! From the thread that commits to the thread of the broker.

use postroad_engine::log::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

/// Wakes the turn; what comes while it runs is remembered.
#[derive(Debug, Default)]
pub(super) struct CommitSignal {
    signalled: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl CommitSignal {
    /// Whom to wake. Call before [`CommitSignal::take`].
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

impl Signal for CommitSignal {
    fn signal(&self) {
        // Signalled and not looked at yet: the turn is on its way.
        if self.signalled.swap(true, Ordering::AcqRel) {
            return;
        }
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
