//! The JSON-log protocol as an inhabitant: the product's own sessions, and clients that speak its lines.

mod consumer;
mod lines;
mod login;
mod publisher;
mod resident;
mod tap;

use crate::history::{History, Start, SubSpec, Tag, Topic};
use crate::inhabitants::{Guest, Protocol, Resident};
use crate::plan::{CLIENTS, Climate};
use consumer::Consumer;
use fastrand::Rng;
use login::Login;
use postroad_engine::Engine;
use publisher::Publisher;
use resident::Sessions;
use std::fmt::Write as _;
use std::sync::Arc;

pub(super) const TOPICS: [&str; 3] = ["a/1", "a/2", "b"];

const fn spec(
    filter: &'static str,
    topics: &'static [Topic],
    name: Option<&'static str>,
    prefetch: u32,
    ack_wait: u64,
    backoff: &'static [u64],
    max_deliveries: u32,
) -> SubSpec {
    SubSpec {
        filter,
        name,
        group: false,
        from: Start::First,
        prefetch,
        ack_wait,
        max_deliveries,
        backoff,
        topics,
    }
}

/// Windows, waits and limits of every size; what is shared, and what is not.
pub(super) static SPECS: [SubSpec; 9] = [
    spec("a/1", &[0], Some("x"), 3, 1000, &[], 0),
    SubSpec { group: true, ..spec("a/1", &[0], Some("g"), 2, 500, &[100, 300], 3) },
    spec("a/*", &[0, 1], Some("w"), 4, 700, &[], 2),
    SubSpec { from: Start::New, ..spec(">", &[0, 1, 2], Some("all"), 100, 2000, &[50], 0) },
    SubSpec { from: Start::New, ..spec("b", &[2], None, 2, 400, &[], 2) },
    SubSpec { group: true, ..spec("b", &[2], Some("one"), 1, 60_000, &[], 0) },
    spec("a/>", &[0, 1], None, 5, 900, &[200], 0),
    SubSpec { from: Start::Ago(1500), ..spec("b", &[2], Some("t"), 3, 1500, &[], 0) },
    SubSpec { from: Start::Ago(800), ..spec("*", &[2], None, 20, 800, &[], 0) },
];

/// The protocol. It has no state.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonLog;

impl Protocol for JsonLog {
    fn topics(&self) -> &'static [&'static str] {
        &TOPICS
    }

    fn specs(&self) -> &'static [SubSpec] {
        &SPECS
    }

    fn move_in(&self, engine: &Arc<Engine>, climate: &Climate) -> Box<dyn Resident> {
        Box::new(Sessions::new(engine.clone(), climate))
    }

    fn guests(&self, seed: u64, climate: &Climate) -> Vec<Box<dyn Guest>> {
        let mut rng = Rng::with_seed(seed ^ 0x67ae_5500);
        let mut guests: Vec<Box<dyn Guest>> = Vec::new();
        for at in 0..CLIENTS {
            let login = Login::new(climate, rng.u8(..5) == 0);
            if at < 3 {
                guests.push(Box::new(Publisher::new(login, rng.u8(..3) > 0)));
            } else {
                // A group has two members now and then, and so does an exclusive subscription.
                guests.push(Box::new(Consumer::new(login, rng.u8(..SPECS.len() as u8))));
            }
        }
        guests
    }
}

/// Enters a sending and gives its tag: an event whose bytes nobody else sends.
pub(super) fn send(
    history: &mut History,
    message: u32,
    topic: Topic,
    priority: i64,
    size: usize,
    batch: Option<Tag>,
) -> Tag {
    history.send(message, topic, priority, batch, |tag| {
        let mut json = format!("{{\"t\":{tag},\"id\":{message}");
        if priority != 0 {
            // Writing to a string cannot fail.
            let _ = write!(json, ",\"priority\":{priority}");
        }
        json.push_str(",\"pad\":\"");
        json.extend((0..size).map(|i| char::from(b'a' + (tag as usize + i) as u8 % 26)));
        json.push_str("\"}");
        json.into_bytes()
    })
}

/// The tag in an event.
pub(super) fn tag_of(json: &[u8]) -> Option<Tag> {
    let digits = json.strip_prefix(b"{\"t\":")?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

/// The id in an event.
pub(super) fn id_of(json: &[u8]) -> Option<u32> {
    let rest = std::str::from_utf8(json).ok()?.split_once(",\"id\":")?.1;
    let end = rest.find(|c: char| !c.is_ascii_digit())?;
    rest[..end].parse().ok()
}
