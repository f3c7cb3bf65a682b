//! How a message looks that could not be done: an ordinary message on `$dead/<subject>`, with headers that tell why.

use std::sync::Arc;

use crate::envelope::Envelope;
use crate::time::Timestamp;

/// Why it is a dead letter. Text.
pub const REASON: &str = "postroad-dead-reason";
/// The subject it was published to. Text.
pub const SUBJECT: &str = "postroad-dead-subject";
/// Its position there. I64; not there if the backend has no positions.
pub const POSITION: &str = "postroad-dead-position";
/// The subscription that gave it up: `FILTER` or `FILTER as NAME`. Text.
pub const SUBSCRIPTION: &str = "postroad-dead-subscription";
/// How often it was delivered. I64.
pub const ATTEMPTS: &str = "postroad-dead-attempts";
/// When the first delivery failed. Time.
pub const FIRST_FAILURE: &str = "postroad-dead-first";
/// When the last delivery failed. Time.
pub const LAST_FAILURE: &str = "postroad-dead-last";

const ALL: [&str; 7] = [REASON, SUBJECT, POSITION, SUBSCRIPTION, ATTEMPTS, FIRST_FAILURE, LAST_FAILURE];

/// The death of a message, as one subscription saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// Why.
    pub reason: Arc<str>,
    /// Its position, where there are positions.
    pub position: Option<u64>,
    /// Who gave it up: `FILTER` or `FILTER as NAME`.
    pub subscription: Arc<str>,
    /// How often it was delivered.
    pub attempts: u32,
    /// When the first delivery failed.
    pub first_failure: Timestamp,
    /// When the last delivery failed.
    pub last_failure: Timestamp,
}

/// The dead letter of `envelope`: the same message on `$dead/<subject>`, never expiring, with [`Death`] in its
/// headers.
///
/// ```
/// use postroad_core::dead_letter::{self, Death};
/// use postroad_core::{Envelope, Timestamp};
///
/// let envelope = Envelope::new("orders/eu".parse()?, "one pizza");
/// let now = Timestamp::now();
/// let death = Death {
///     reason: "no such shop".into(),
///     position: Some(17),
///     subscription: "orders/> as billing".into(),
///     attempts: 5,
///     first_failure: now,
///     last_failure: now,
/// };
/// let dead = dead_letter::bury(&envelope, &death);
/// assert_eq!(dead.subject, "$dead/orders/eu");
/// assert_eq!(dead.headers.get_text(dead_letter::REASON), Some("no such shop"));
/// assert_eq!(dead_letter::revive(&dead), Some(envelope));
/// # Ok::<(), postroad_core::SubjectError>(())
/// ```
pub fn bury(envelope: &Envelope, death: &Death) -> Envelope {
    let mut dead = envelope.clone();
    dead.subject = envelope.subject.dead_letter();
    dead.expires = None;
    let headers = &mut dead.headers;
    headers.set(REASON, Arc::clone(&death.reason));
    headers.set(SUBJECT, envelope.subject.as_str());
    if let Some(position) = death.position {
        headers.set(POSITION, i64::try_from(position).unwrap_or(i64::MAX));
    }
    headers.set(SUBSCRIPTION, Arc::clone(&death.subscription));
    headers.set(ATTEMPTS, death.attempts);
    headers.set(FIRST_FAILURE, death.first_failure);
    headers.set(LAST_FAILURE, death.last_failure);
    dead
}

/// The message as it was before it died, to be published again. `None` if this is no dead letter. Its expiry is not
/// restored.
pub fn revive(dead: &Envelope) -> Option<Envelope> {
    let subject = dead.subject.origin()?;
    let mut envelope = dead.clone();
    envelope.subject = subject;
    for name in ALL {
        envelope.headers.remove(name);
    }
    Some(envelope)
}
