//! Who takes part in an MQTT world, and with what habits.

use super::facts::Who;
use fastrand::Rng;
use postroad_mqtt::codec::Version;

/// Topics that are published to, the last one by wills alone.
pub const TOPICS: [&str; 15] =
    ["a/1", "a/2", "b", "r/1", "r/2", "p/1", "s/1", "s/2", "l/1", "l/2", "e/1", "x/1", "q/1", "m/1", "w/1"];
/// The first of them whose messages may be retained, and the first after these.
pub const RETAINED: std::ops::Range<u8> = 3..6;
/// The same of those that line clients use.
pub const LINES: std::ops::Range<u8> = 8..10;
/// Messages here expire.
pub const EXPIRING: u8 = 10;
/// Messages here are refused now and then.
pub const REFUSED: u8 = 11;
/// Messages here are work.
pub const WORK: u8 = 12;
/// Messages here are in memory only.
pub const MEMORY: u8 = 13;
/// Wills go here.
pub const WILLS: u8 = 14;
/// Where dead letters of the line dialect are.
pub const LETTERS: u8 = u8::MAX;

/// The name of a topic of [`TOPICS`], or of [`LETTERS`].
pub fn topic(topic: u8) -> &'static str {
    TOPICS.get(usize::from(topic)).copied().unwrap_or(postroad_mqtt::lines::DEAD_LETTERS)
}

/// Filters that are subscribed to. Topics of the shared ones match no others.
pub const FILTERS: [&str; 17] = [
    "a/1",
    "a/+",
    "a/#",
    "b",
    "+",
    "r/#",
    "r/1",
    "$share/g/s/#",
    "#",
    "l/1",
    "l/+",
    "w/#",
    "p/#",
    "e/#",
    "x/#",
    "$queue/jobs/q/#",
    "m/#",
];
/// The one that is shared.
pub const SHARED: u8 = 7;
/// The one that only the auditor uses, at the end.
pub const ALL: u8 = 8;
/// The one that is a work queue.
pub const QUEUE: u8 = 15;

/// What a subscription asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ask {
    /// Index into [`FILTERS`].
    pub filter: u8,
    /// The highest QoS.
    pub qos: u8,
    /// Not what the client itself publishes.
    pub no_local: bool,
    /// The retain flag stays as it was.
    pub as_published: bool,
    /// When retained messages come: 0, always; 1, if it is new; 2, never.
    pub handling: u8,
    /// It has an identifier, which is one more than `filter`.
    pub has_id: bool,
}

/// A subscription without options.
pub const fn ask(filter: u8, qos: u8) -> Ask {
    Ask { filter, qos, no_local: false, as_published: false, handling: 0, has_id: false }
}

/// Which door a client uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// MQTT.
    Mqtt,
    /// Lines, to receive.
    Consumers,
    /// Lines, to publish.
    Publishers,
}

/// What a client of the line dialect is.
#[derive(Clone, Debug)]
pub struct LineRole {
    /// The name it logs in with.
    pub name: &'static str,
    /// Its door.
    pub door: Door,
    /// What it publishes survives its process.
    pub keeps: bool,
    /// What it subscribes to: of [`TOPICS`], or [`LETTERS`].
    pub topics: Vec<u8>,
    /// It never unsubscribes.
    pub faithful: bool,
    /// Messages that it has not released, at most.
    pub in_flight: usize,
}

/// The clients of the line dialect; they come after the auditor.
pub fn lines(seed: u64) -> Vec<LineRole> {
    let mut rng = Rng::with_seed(seed ^ 0x006c_696e_6573);
    let consumer = |name, topics, faithful| LineRole {
        name,
        door: Door::Consumers,
        keeps: true,
        topics,
        faithful,
        in_flight: 0,
    };
    let mut publisher = |name, keeps| LineRole {
        name,
        door: Door::Publishers,
        keeps,
        topics: Vec::new(),
        faithful: true,
        in_flight: [1, 3, 8][rng.usize(..3)],
    };
    vec![
        consumer("amy", vec![8, 9], true),
        consumer("bob", vec![8, LETTERS], false),
        publisher("pam", true),
        publisher("pip", false),
    ]
}

/// The one who reads the dead letters of the line dialect.
pub const READER: Who = AUDITOR + 2;

/// What a client is.
#[derive(Clone, Debug)]
pub struct Role {
    /// Its client id.
    pub name: String,
    /// The version that it speaks.
    pub version: Version,
    /// Seconds that its session outlives its connection; 0: it begins anew each time.
    pub lasting: u32,
    /// Its state survives it: packet ids, inbox, and what it has subscribed to.
    pub keeps: bool,
    /// It publishes.
    pub publishes: bool,
    /// What it subscribes to.
    pub filters: Vec<Ask>,
    /// It never unsubscribes.
    pub faithful: bool,
    /// Messages of QoS 1 and 2 that it takes at once (MQTT 5.0).
    pub window: u16,
    /// Topic aliases that it takes (MQTT 5.0).
    pub aliases: u16,
    /// Its messages of QoS 1 and 2 under way at once.
    pub in_flight: usize,
    /// It has a will, with this delay in seconds.
    pub will: Option<u32>,
    /// It refuses some messages of [`REFUSED`] and [`WORK`] (MQTT 5.0).
    pub refuses: bool,
    /// It subscribes again to what it has subscribed to.
    pub again: bool,
}

/// For ever.
pub const EVER: u32 = u32::MAX;

/// MQTT clients of a world, without the auditor.
pub const CLIENTS: usize = 13;

/// The place of the auditor.
pub const AUDITOR: Who = CLIENTS as Who;

/// The cast of a world; the last one is the auditor.
pub fn of(seed: u64) -> Vec<Role> {
    let mut rng = Rng::with_seed(seed ^ 0x6d71_7474);
    let mut cast = Vec::with_capacity(CLIENTS + 1);
    for at in 0..CLIENTS {
        let v5 = rng.bool();
        let mut role = Role {
            name: format!("c{at}"),
            version: if v5 { Version::V5 } else { Version::V311 },
            lasting: EVER,
            keeps: true,
            publishes: false,
            filters: Vec::new(),
            faithful: true,
            window: [1, 2, 5, 20, u16::MAX][rng.usize(..5)],
            aliases: rng.u16(..3),
            in_flight: [1, 3, 8][rng.usize(..3)],
            will: None,
            refuses: false,
            again: false,
        };
        match at {
            // Publishers that remember.
            0 | 1 => role.publishes = true,
            // One that does not.
            2 => {
                role.publishes = true;
                role.filters = vec![ask(3, 2), ask(5, 1)];
                role.lasting = 0;
                role.keeps = false;
            }
            // Subscribers that stay.
            3 => role.filters = vec![ask(1, 2), ask(3, 2), ask(5, 2), ask(9, 2)],
            4 => role.filters = vec![ask(0, 1), ask(2, 2), ask(4, 1), ask(6, 2), ask(11, 2), ask(16, 2)],
            // One that changes its mind.
            5 => {
                role.filters = vec![ask(0, 2), ask(1, 1), ask(3, 2), ask(5, 2)];
                role.faithful = false;
                role.publishes = rng.bool();
            }
            // Members of a group.
            6 | 7 => {
                role.version = Version::V5;
                role.filters = vec![ask(SHARED, 2)];
                if at == 7 {
                    role.filters.push(ask(2, 2));
                    role.keeps = rng.bool();
                    if rng.u8(..4) == 0 {
                        role.lasting = [0, 1, 3][rng.usize(..3)];
                    }
                }
            }
            // One whose will is known, and who hears nothing of itself.
            8 => {
                role.version = Version::V5;
                role.publishes = true;
                role.will = Some([0, 0, 1, 2][rng.usize(..4)]);
                role.filters = vec![Ask { no_local: true, ..ask(10, 2) }];
            }
            // One who wants to know which subscription it was.
            9 => {
                role.version = Version::V5;
                let id = |ask| Ask { has_id: true, ..ask };
                role.filters = vec![
                    Ask { as_published: true, handling: 2, ..id(ask(12, 2)) },
                    id(ask(1, 1)),
                    id(ask(2, 2)),
                    ask(3, 2),
                ];
            }
            // One who is particular.
            10 => {
                role.version = Version::V5;
                role.refuses = true;
                role.again = true;
                role.filters = vec![Ask { handling: 1, ..ask(12, 1) }, ask(13, 2), ask(14, 2)];
            }
            // Workers.
            11 | 12 => {
                role.version = Version::V5;
                role.refuses = at == 12;
                role.filters = vec![ask(QUEUE, 1)];
            }
            _ => {}
        }
        if role.version != Version::V5 && !role.keeps {
            // Before 5.0 nothing says "a new session, and a lasting one".
            role.lasting = 0;
        }
        if role.lasting == 0 {
            role.keeps = false;
        }
        cast.push(role);
    }
    cast.push(Role {
        name: "auditor".into(),
        version: Version::V5,
        lasting: 0,
        keeps: false,
        publishes: false,
        filters: vec![ask(ALL, 2)],
        faithful: true,
        window: u16::MAX,
        aliases: 0,
        in_flight: 1,
        will: None,
        refuses: false,
        again: false,
    });
    cast
}
