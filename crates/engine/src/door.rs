//! Protocols that keep their messages themselves, and take their dead letters back.

use crate::dead::Death;
use crate::log::PayloadKind;
use bytes::Bytes;

/// A dead letter that is to be published again where it came from.
#[derive(Clone, Debug)]
pub struct Returned {
    /// The id of the letter: the same one comes again if a crash took the answer.
    pub id: String,
    /// Its death; [`Death::topic`] is where it was published.
    pub death: Death,
    /// What [`Letter::headers`](crate::Letter) said, as a JSON object.
    pub headers: Option<Vec<u8>>,
    /// How the payload is written.
    pub kind: PayloadKind,
    /// The payload, as [`crate::log::Publish`] has it.
    pub payload: Bytes,
}

/// To be called once, from any thread: what became of each letter, in their order. Those with `Ok` are published, durably.
pub type Done = Box<dyn FnOnce(Vec<Result<(), String>>) + Send>;

/// A protocol with messages of its own. See [`crate::Engine::open_door`].
pub trait Door: Send + Sync {
    /// Publishes letters of this door again. Must not wait.
    fn take_back(&self, letters: Vec<Returned>, done: Done);
}
