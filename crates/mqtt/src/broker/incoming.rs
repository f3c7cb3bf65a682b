//! Which QoS 2 messages of a client were taken and not released: the receiver's half of QoS 2.
//!
//! | state of an id | by | PUBLISH | PUBREL |
//! |---|---|---|---|
//! | free | at first, [`reuse`](Incoming::begin) | taken, PUBREC | PUBCOMP 0x92 |
//! | open | PUBLISH | PUBREC, not taken again [MQTT-4.3.3-10] | PUBCOMP |
//! | released | PUBREL | a new message, PUBREC | PUBCOMP 0x00, once more |

use crate::codec::PacketId;
use std::collections::{BTreeMap, VecDeque};

/// Released ids remembered, so that a PUBREL that is sent again is not an error.
const RELEASED: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `before`: by an earlier life of the broker.
    Open {
        logged: bool,
        before: bool,
    },
    Released,
}

/// What PUBREL found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    /// It was open; the log has it if `logged`.
    Open {
        /// The log knows the id.
        logged: bool,
    },
    /// It was released before.
    Again,
    /// It is not known.
    Unknown,
}

/// The ids of one session. See the module.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    states: BTreeMap<PacketId, State>,
    released: VecDeque<PacketId>,
    open: usize,
}

impl Incoming {
    /// Ids that are open.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// The open ids that the log knows.
    pub(super) fn logged(&self) -> impl Iterator<Item = PacketId> + '_ {
        self.states.iter().filter(|(_, s)| matches!(s, State::Open { logged: true, .. })).map(|(id, _)| *id)
    }

    /// True if a message with this id was taken and not released.
    pub(super) fn is_open(&self, id: PacketId) -> bool {
        matches!(self.states.get(&id), Some(State::Open { .. }))
    }

    /// True if it is open, and the message was taken before the broker was opened.
    pub(super) fn is_from_before(&self, id: PacketId) -> bool {
        matches!(self.states.get(&id), Some(State::Open { before: true, .. }))
    }

    /// The broker was opened: what is open now was taken before.
    pub(super) fn restored(&mut self) {
        for state in self.states.values_mut() {
            if let State::Open { before, .. } = state {
                *before = true;
            }
        }
    }

    /// A message with this id is taken.
    pub(super) fn begin(&mut self, id: PacketId, logged: bool) {
        match self.states.insert(id, State::Open { logged, before: false }) {
            Some(State::Open { .. }) => {}
            // Its place in `released` stays: at worst the next release of this id is forgotten a little earlier.
            Some(State::Released) | None => self.open += 1,
        }
    }

    /// PUBREL.
    pub(super) fn release(&mut self, id: PacketId) -> Release {
        match self.states.get_mut(&id) {
            Some(state @ State::Open { .. }) => {
                let State::Open { logged, .. } = *state else { return Release::Unknown };
                *state = State::Released;
                self.open -= 1;
                self.released.push_back(id);
                if self.released.len() > RELEASED
                    && let Some(oldest) = self.released.pop_front()
                    && self.states.get(&oldest) == Some(&State::Released)
                {
                    self.states.remove(&oldest);
                }
                Release::Open { logged }
            }
            Some(State::Released) => Release::Again,
            None => Release::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u16) -> PacketId {
        PacketId::new(n).unwrap()
    }

    #[test]
    fn an_id_is_open_until_it_is_released_and_may_be_used_again_then() {
        let mut ids = Incoming::default();
        assert_eq!(ids.release(id(1)), Release::Unknown);
        ids.begin(id(1), true);
        assert!(ids.is_open(id(1)));
        assert_eq!(ids.open(), 1);
        assert_eq!(ids.release(id(1)), Release::Open { logged: true });
        assert_eq!(ids.release(id(1)), Release::Again);
        assert!(!ids.is_open(id(1)));
        ids.begin(id(1), false);
        assert_eq!(ids.open(), 1);
        assert_eq!(ids.release(id(1)), Release::Open { logged: false });
    }

    #[test]
    fn all_ids_in_turn_take_bounded_memory() {
        let mut ids = Incoming::default();
        for n in 1..=u16::MAX {
            ids.begin(id(n), true);
            ids.release(id(n));
        }
        assert_eq!(ids.open(), 0);
        assert!(ids.states.len() <= RELEASED + 1);
        assert_eq!(ids.release(id(1)), Release::Unknown);
        assert_eq!(ids.release(id(u16::MAX)), Release::Again);
    }
}
