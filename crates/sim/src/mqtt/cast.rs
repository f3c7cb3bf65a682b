//! Who takes part in an MQTT world, and with what habits.

use super::facts::Who;
use fastrand::Rng;
use postroad_mqtt::codec::Version;

/// Topics that are published to.
pub const TOPICS: [&str; 7] = ["a/1", "a/2", "b", "r/1", "r/2", "s/1", "s/2"];
/// The first of them whose messages may be retained, and the first after these.
pub const RETAINED: std::ops::Range<u8> = 3..5;
/// Filters that are subscribed to. Topics of the shared ones match no others.
pub const FILTERS: [&str; 9] = ["a/1", "a/+", "a/#", "b", "+", "r/#", "r/1", "$share/g/s/#", "#"];
/// The one that is shared.
pub const SHARED: u8 = 7;
/// The one that only the auditor uses, at the end.
pub const ALL: u8 = 8;

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
    /// What it subscribes to, with which QoS.
    pub filters: Vec<(u8, u8)>,
    /// It never unsubscribes.
    pub faithful: bool,
    /// Messages of QoS 1 and 2 that it takes at once (MQTT 5.0).
    pub window: u16,
    /// Topic aliases that it takes (MQTT 5.0).
    pub aliases: u16,
    /// Its messages of QoS 1 and 2 under way at once.
    pub in_flight: usize,
}

/// For ever.
pub const EVER: u32 = u32::MAX;

/// Clients of a world, without the auditor.
pub const CLIENTS: usize = 8;

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
        };
        match at {
            // Publishers that remember.
            0 | 1 => role.publishes = true,
            // One that does not.
            2 => {
                role.publishes = true;
                role.filters = vec![(3, 2), (5, 1)];
                role.lasting = 0;
                role.keeps = false;
            }
            // Subscribers that stay.
            3 => role.filters = vec![(1, 2), (3, 2), (5, 2)],
            4 => role.filters = vec![(0, 1), (2, 2), (4, 1), (6, 2)],
            // One that changes its mind.
            5 => {
                role.filters = vec![(0, 2), (1, 1), (3, 2), (5, 2)];
                role.faithful = false;
                role.publishes = rng.bool();
            }
            // Members of a group.
            6 | 7 => {
                role.version = Version::V5;
                role.filters = vec![(SHARED, 2)];
                if at == 7 {
                    role.filters.push((2, 2));
                    role.keeps = rng.bool();
                    if rng.u8(..4) == 0 {
                        role.lasting = [0, 1, 3][rng.usize(..3)];
                    }
                }
            }
            _ => {}
        }
        if !v5 && at < 6 && !role.keeps {
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
        filters: vec![(ALL, 2)],
        faithful: true,
        window: u16::MAX,
        aliases: 0,
        in_flight: 1,
    });
    cast
}
