//! A value that one side sets once and the other waits for, without a runtime.

use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Debug)]
enum State<T> {
    Waiting(Option<Waker>),
    Done(T),
}

/// Shared by a resolver and a future. The value stays, so a future polled again after the end answers again.
#[derive(Debug)]
pub(crate) struct Slot<T>(Mutex<State<T>>);

impl<T: Clone> Slot<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State::Waiting(None)))
    }

    /// Only the first value counts.
    pub(crate) fn set(&self, value: T) {
        let waker = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let State::Waiting(waker) = &mut *state else { return };
            let waker = waker.take();
            *state = State::Done(value);
            waker
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn get(&self) -> Option<T> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Done(value) => Some(value.clone()),
            State::Waiting(_) => None,
        }
    }

    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<T> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Done(value) => Poll::Ready(value.clone()),
            State::Waiting(Some(waker)) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            State::Waiting(empty) => {
                *empty = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
