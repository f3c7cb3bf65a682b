//! The tokens of the backend inside, while wrapped ones are out.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use postroad_core::{AckToken, Delivery, MessageId, Settled};

/// By tags of our own.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<State>);

#[derive(Default)]
struct State {
    next: u64,
    out: HashMap<u64, (MessageId, AckToken)>,
}

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts another token into the delivery and keeps its own.
    pub(crate) fn wrap(&self, delivery: &mut Delivery, token: impl FnOnce(u64, u32) -> AckToken) {
        let mut state = self.lock();
        state.next += 1;
        let tag = state.next;
        let ours = token(tag, delivery.token.epoch());
        let inner = std::mem::replace(&mut delivery.token, ours);
        state.out.insert(tag, (delivery.envelope.id.clone(), inner));
    }

    /// The token inside. It is settled without the lock: that may call back.
    pub(crate) fn take(&self, tag: u64) -> Option<(MessageId, AckToken)> {
        self.lock().out.remove(&tag)
    }

    /// Still out.
    pub(crate) fn put_back(&self, tag: u64, id: MessageId, token: AckToken) {
        self.lock().out.insert(tag, (id, token));
    }

    /// All up to this one.
    pub(crate) fn take_up_to(&self, tag: u64) -> Vec<AckToken> {
        self.take_those(|other, _| other <= tag)
    }

    /// All of this message.
    pub(crate) fn take_same(&self, id: &MessageId) -> Vec<AckToken> {
        self.take_those(|_, other| other == id)
    }

    fn take_those(&self, wanted: impl Fn(u64, &MessageId) -> bool) -> Vec<AckToken> {
        let mut state = self.lock();
        let chosen = state.out.iter().filter(|(tag, (id, _))| wanted(**tag, id));
        let tags: Vec<_> = chosen.map(|(tag, _)| *tag).collect();
        tags.iter().filter_map(|tag| state.out.remove(tag)).map(|(_, token)| token).collect()
    }

    /// Makes the lease of the one inside longer.
    pub(crate) fn extend(&self, tag: u64) -> Settled {
        self.lock().out.get_mut(&tag).map_or_else(Settled::ok, |(_, token)| token.extend())
    }

    /// Makes the leases of all of them longer.
    pub(crate) fn extend_all(&self) {
        for (_, token) in self.lock().out.values_mut() {
            drop(token.extend());
        }
    }
}
