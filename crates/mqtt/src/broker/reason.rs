//! The reasons of dead letters.

/// PUBACK or PUBREC with a reason code of 0x80 or above (MQTT 5.0).
pub const REFUSED: &str = "the subscriber refused it";
/// Its Message Expiry Interval was over before it was sent for the first time.
pub const EXPIRED: &str = "it expired";
/// The queue of a session or a work queue had no room, for a new message or for a retained one.
pub const FULL: &str = "the queue is full";
/// The Maximum Packet Size of the subscriber.
pub const TOO_LARGE: &str = "larger than the subscriber takes";
/// The access rules at the time of delivery.
pub const NOT_ALLOWED: &str = "the subscriber may not receive it";
/// Clean Start, or the end of a session by its client or an administrator.
pub const ENDED: &str = "the session ended";
/// The session was away for longer than its Session Expiry Interval.
pub const SESSION_EXPIRED: &str = "the session expired";
/// The last subscription to a work queue ended.
pub const QUEUE_REMOVED: &str = "the queue was removed";
/// A message of a work queue after its last try.
pub const EXHAUSTED: &str = "deliveries exhausted";
/// A message of a work queue that has one try only.
pub const CONSUMER_REFUSED: &str = "the consumer refused it";
/// The log lost it: only damage, or a deleted file, does that. The letter has no payload and no topic.
pub const MISSING: &str = "the message is not in the log any more";
/// A will whose client may not publish it any more.
pub const WILL: &str = "the will may not be published";
