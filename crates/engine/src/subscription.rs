//! Subscriptions: who they are, and who consumes them.

use crate::log::Signal;
use crate::stream::Stream;
use postroad_core::mailbox::{ConsumerId, Window};
use postroad_core::retry::RetryPolicy;
use postroad_core::{Filter, StartAt};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a consumer asks for.
#[derive(Clone, Debug)]
pub struct SubscribeRequest {
    /// Which subjects.
    pub filter: Filter,
    /// With a name the subscription is durable.
    pub name: Option<String>,
    /// Shared between consumers.
    pub group: bool,
    /// Where a new subscription starts.
    pub from: StartAt,
    /// What this consumer may hold.
    pub window: Window,
    /// Redelivery; replaces that of an existing subscription.
    pub policy: RetryPolicy,
}

/// Something a consumer should know; nothing it must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Retention removed this many messages of the topic that it had not settled.
    Lagged(Arc<str>, u64),
    /// It lags by this many messages of the topic, past its limit.
    Lagging(Arc<str>, u64),
    /// The subscription fell behind its limit on the topic and was ended.
    Detached(Arc<str>),
    /// A message of the topic cannot be read.
    Corrupt(Arc<str>, String),
}

pub(crate) struct Attached {
    pub(crate) signal: Arc<dyn Signal>,
    pub(crate) window: Window,
    pub(crate) notes: Vec<Note>,
}

/// A subscription over the streams its filter matches.
pub(crate) struct Subscription {
    pub(crate) id: u64,
    pub(crate) filter: Filter,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) shape: Mutex<Shape>,
    pub(crate) state: Mutex<SubState>,
}

/// What can be replaced by subscribing again.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) group: bool,
    pub(crate) policy: RetryPolicy,
}

#[derive(Default)]
pub(crate) struct SubState {
    pub(crate) streams: Vec<Arc<Stream>>,
    // Streams that may have something ready; used when the filter has wildcards.
    pub(crate) active: VecDeque<Arc<Stream>>,
    pub(crate) consumers: BTreeMap<ConsumerId, Attached>,
}

impl Subscription {
    pub(crate) fn new(id: u64, filter: Filter, name: Option<Arc<str>>, shape: Shape) -> Arc<Self> {
        Arc::new(Self { id, filter, name, shape: Mutex::new(shape), state: Mutex::new(SubState::default()) })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, SubState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn shape(&self) -> MutexGuard<'_, Shape> {
        self.shape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.name.is_some()
    }

    /// `FILTER` or `FILTER as NAME`.
    pub(crate) fn title(&self) -> String {
        match &self.name {
            Some(name) => format!("{} as {name}", self.filter.as_str()),
            None => self.filter.as_str().to_owned(),
        }
    }

    pub(crate) fn note(&self, note: &Note) {
        let mut signals = Vec::new();
        for attached in self.state().consumers.values_mut() {
            // Bounded: a consumer that never looks keeps the newest.
            if attached.notes.len() >= 64 {
                attached.notes.remove(0);
            }
            attached.notes.push(note.clone());
            signals.push(attached.signal.clone());
        }
        for signal in signals {
            signal.signal();
        }
    }
}

impl SubState {
    pub(crate) fn streams(&self) -> Vec<Arc<Stream>> {
        self.streams.clone()
    }
}
