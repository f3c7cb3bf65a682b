//! MQTT in a simulated world: the broker's own state machine on a simulated disk, and clients that keep to the protocol.
//!
//! What must hold on the whole history is in [`check`]: exactly once at QoS 2, at least once at QoS 1, order, windows,
//! packet ids, sessions, retained messages.

mod calm;
pub mod campaign;
pub mod cast;
pub mod check;
mod client;
pub mod facts;
mod guest;
mod kills;
mod line_tap;
mod lines;
mod pipes;
mod tap;
mod world;

pub use world::run;

/// Defects on purpose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plants {
    /// Of the broker.
    pub broker: postroad_mqtt::broker::Planted,
    /// Of its second door.
    pub lines: postroad_mqtt::lines::Planted,
    /// Of its log.
    pub journal: postroad_journal::Planted,
}

impl Plants {
    /// The defect of this name.
    pub fn named(name: &str) -> Option<Self> {
        let mut plants = Self::default();
        let (broker, lines, journal) = (&mut plants.broker, &mut plants.lines, &mut plants.journal);
        let defect = match name {
            "ack-before-commit" => &mut broker.ack_before_commit,
            "release-before-record" => &mut broker.release_before_record,
            "id-forgotten" => &mut broker.id_forgotten,
            "complete-before-record" => &mut broker.complete_before_record,
            "deliver-before-commit" => &mut broker.deliver_before_commit,
            "letter-after-settle" => &mut broker.letter_after_settle,
            "refusal-forgotten" => &mut broker.refusal_forgotten,
            "will-forgotten" => &mut broker.will_forgotten,
            "line-place-lost" => &mut lines.place_lost,
            "line-reply-before-commit" => &mut lines.reply_before_commit,
            "line-release-in-two" => &mut lines.release_in_two,
            "line-any-pubcomp" => &mut lines.any_pubcomp,
            "line-packet-ids" => &mut lines.packet_ids,
            "line-never-park" => &mut lines.never_park,
            "line-never-give-up" => &mut lines.never_give_up,
            "glue-on-torn-tail" => &mut journal.glue_on_torn_tail,
            "no-crc-check" => &mut journal.no_crc_check,
            "no-dir-sync" => &mut journal.no_dir_sync,
            _ => return None,
        };
        *defect = true;
        Some(plants)
    }
}

/// What happened in a world that kept every promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Packets that clients sent on their own account.
    pub commands: u64,
    /// Ends of brokers and clients that nobody asked them about.
    pub kills: u64,
    /// Facts noted.
    pub facts: u64,
    /// Messages that applications got.
    pub deliveries: u64,
    /// Handshakes of QoS 2 that publishers saw to their end.
    pub published: u64,
    /// Handshakes of QoS 2 that subscribers saw to their end.
    pub received: u64,
    /// A number made of every fact: worlds of one plan have the same.
    pub digest: u64,
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which, and by what.
    pub why: String,
    /// The index of the fact that broke it, if one did.
    pub fact: Option<usize>,
    /// What was seen.
    pub seen: facts::Seen,
}
