//! Subscriptions: who they are, and who consumes them.

use crate::log::{Signal, Ticket};
use crate::stream::Stream;
use postroad_core::mailbox::{ConsumerId, Window};
use postroad_core::retry::RetryPolicy;
use postroad_core::{Filter, StartAt};
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a consumer asks for.
#[derive(Clone, Debug)]
pub struct SubscribeRequest {
    /// Which subjects.
    pub filter: Filter,
    /// With a name the subscription is durable.
    pub name: Option<String>,
    /// Shared between consumers; each of them says so.
    pub group: bool,
    /// Where a new subscription starts.
    pub from: StartAt,
    /// What this consumer may hold.
    pub window: Window,
    /// Redelivery.
    pub policy: PolicyRequest,
}

/// The rules of redelivery that a consumer asks for; what it leaves out is as stored, or the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRequest {
    /// An unsettled delivery comes back after this long.
    pub ack_wait: Option<Duration>,
    /// Waits before delivery 2, 3, ….
    pub backoff: Option<Vec<Duration>>,
    /// After so many deliveries the message is a dead letter; 0: never.
    pub max_deliveries: Option<u32>,
}

impl PolicyRequest {
    pub(crate) fn apply(&self, stored: &RetryPolicy) -> RetryPolicy {
        RetryPolicy {
            ack_wait: self.ack_wait.unwrap_or(stored.ack_wait),
            backoff: self.backoff.clone().unwrap_or_else(|| stored.backoff.clone()),
            max_deliveries: self.max_deliveries.map_or(stored.max_deliveries, NonZeroU32::new),
        }
    }
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
    // The commit that makes it durable as it is.
    durable_at: AtomicU64,
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
    // Messages of each topic that retention removed while nobody was there to be told.
    missed: BTreeMap<Arc<str>, u64>,
}

impl Subscription {
    pub(crate) fn new(id: u64, filter: Filter, name: Option<Arc<str>>, shape: Shape) -> Arc<Self> {
        Arc::new(Self {
            id,
            filter,
            name,
            shape: Mutex::new(shape),
            state: Mutex::new(SubState::default()),
            durable_at: AtomicU64::new(0),
        })
    }

    /// Says when the subscription is durable, after `ticket` was added to what it waits for.
    pub(crate) fn durable_at(&self, ticket: Ticket) -> Ticket {
        Ticket(self.durable_at.fetch_max(ticket.0, Ordering::SeqCst).max(ticket.0))
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

    /// Retention removed messages: whoever consumes is told, or whoever comes next.
    pub(crate) fn lagged(&self, topic: &str, lost: u64) {
        let mut state = self.state();
        if state.consumers.is_empty() {
            *state.missed.entry(topic.into()).or_default() += lost;
            return;
        }
        drop(state);
        self.note(&Note::Lagged(topic.into(), lost));
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
    pub(crate) fn attach(&mut self, id: ConsumerId, mut attached: Attached) {
        let missed = std::mem::take(&mut self.missed);
        attached.notes.extend(missed.into_iter().map(|(topic, lost)| Note::Lagged(topic, lost)));
        self.consumers.insert(id, attached);
    }

    pub(crate) fn streams(&self) -> Vec<Arc<Stream>> {
        self.streams.clone()
    }
}
