//! What the line dialect can be told.

use crate::broker::ListenerConfig;
use std::sync::Arc;
use std::time::Duration;

/// The topic that lines and messages go to which nobody could do anything with.
pub const DEAD_LETTERS: &str = "deadLetterChan";

/// Which half of the dialect a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Consumers: they log in; port 4040 by custom.
    Consumers,
    /// Publishers: they do not; port 4041 by custom.
    Publishers,
}

/// A listener of [`Doors`](super::Doors).
#[derive(Clone, Debug)]
pub enum DoorListener {
    /// MQTT.
    Mqtt(Arc<ListenerConfig>),
    /// The line dialect. Of the rules the name, `max_connections`, `connect_timeout` (before the first line nothing
    /// is known of a peer, so only for TLS) and `allow_anonymous` count.
    Lines(Role, Arc<ListenerConfig>),
}

/// The line dialect, on all its listeners.
#[derive(Clone, Debug)]
pub struct LinesConfig {
    /// Bytes of a line without its end. A longer one ends the connection.
    pub max_line: usize,
    /// How long a PUB or a PUBREL waits for its answer before it is sent again.
    pub resend: Duration,
    /// How often a PUB or a PUBREL is sent, the first time included.
    pub max_sends: u32,
    /// How often a consumer is asked to log in.
    pub max_prompts: u32,
    /// Topics of one user, those they left with UNSUB included: the broker keeps their place in each.
    pub max_topics: usize,
    /// Messages that were published and not released, of all publishers together. One more is refused.
    pub max_held: usize,
    /// How long such a message is kept. Then it is a dead letter.
    pub hold: Duration,
    /// Dead letters that are kept for consumers who have not subscribed yet. Then the oldest goes.
    pub max_letters: usize,
    /// Replies of one connection that wait for a commit before no more is read from it.
    pub max_replies: usize,
    /// Bytes that wait to be written to one connection before no more is read from it, and nothing sent again.
    pub max_output: usize,
    #[doc(hidden)]
    pub planted: Planted,
}

/// Deliberate defects, for the tests that prove that tests find them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planted {
    /// Replies do not wait for the commit.
    pub reply_before_commit: bool,
    /// That a held message is published, and that it is held no more, are two records.
    pub release_in_two: bool,
    /// PUBCOMP is believed whatever its id.
    pub any_pubcomp: bool,
    /// Messages are named by their packet id.
    pub packet_ids: bool,
    /// Who does not answer is asked for ever.
    pub never_park: bool,
    /// After the last PUBREL nothing happens.
    pub never_give_up: bool,
    /// A log-in begins each topic anew.
    pub place_lost: bool,
}

impl Default for LinesConfig {
    fn default() -> Self {
        Self {
            max_line: 64 << 10,
            resend: Duration::from_secs(10),
            max_sends: 5,
            max_prompts: 5,
            max_topics: 100,
            max_held: 10_000,
            hold: Duration::from_secs(24 * 60 * 60),
            max_letters: 1000,
            max_replies: 1024,
            max_output: 256 << 10,
            planted: Planted::default(),
        }
    }
}
