//! What is known about a broker from its replies, under load and over crashes, and the check of it.
//!
//! - `ok` for a publish: the event is in the log once, with that number and those bytes, for ever.
//! - no reply: it may be there (of a `pubn` a first part), but only as it was sent.
//! - `ok` for an ack or a bury: the event never comes again to the group. A nack, or no reply: it comes again
//!   unless the command got through.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::{Client, Event, PATIENCE};

pub(crate) const TOPICS: [&str; 2] = ["k/a", "k/b"];
const GROUP: &str = "sub k/* as g group from=first prefetch=64";

type Place = (String, u64);

#[derive(Default)]
struct State {
    /// JSON of everything that was ever sent, with its topic.
    sent: HashMap<String, &'static str>,
    stored: BTreeMap<Place, String>,
    /// Sent without a reply: of each group a first part may be in the log.
    unknown: Vec<Vec<String>>,
    refused: Vec<String>,
    acked: HashSet<Place>,
    buried: HashSet<Place>,
    settle_unknown: HashSet<Place>,
    bury_unknown: HashMap<Place, usize>,
    held: HashSet<Place>,
    /// What the log had at the last check.
    log: BTreeMap<String, Vec<String>>,
    rounds: usize,
}

/// Shared by the threads of a test.
#[derive(Default)]
pub(crate) struct Truth(Mutex<State>);

impl Truth {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().expect("no thread of the test has failed"))
    }

    /// A number for names that must not repeat.
    pub(crate) fn next_round(&self) -> usize {
        self.with(|state| {
            state.held.clear();
            state.rounds += 1;
            state.rounds
        })
    }

    /// Publishes until the connection ends or `until`; then stops with everything answered.
    pub(crate) fn publisher(&self, port: u16, tag: &str, seed: u64, bulk: bool, until: Instant) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let Ok(mut client) = Client::connect(port) else { return };
        let mut n = 0;
        while Instant::now() < until && n < 1500 {
            let topic = TOPICS[rng.usize(..TOPICS.len())];
            let batch: Vec<String> = (0..rng.usize(1..=16))
                .map(|_| {
                    n += 1;
                    let pad = "x".repeat(rng.usize(0..200));
                    format!("{{\"id\":\"{tag}-{n}\",\"priority\":{},\"pad\":\"{pad}\"}}", rng.u8(0..3))
                })
                .collect();
            self.with(|state| state.sent.extend(batch.iter().map(|json| (json.clone(), topic))));
            let alive = if bulk {
                self.bulk(&mut client, topic, batch)
            } else {
                self.singles(&mut client, topic, batch)
            };
            if !alive {
                return;
            }
            if rng.u8(0..4) == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    fn bulk(&self, client: &mut Client, topic: &'static str, batch: Vec<String>) -> bool {
        let body: String = batch.iter().map(|json| format!("{json}\n")).collect();
        let _ = client.try_send(format!("pubn {topic} {} {}\n{body}", batch.len(), body.len()).as_bytes());
        let Some(reply) = client.try_reply() else {
            self.with(|state| state.unknown.push(batch));
            return false;
        };
        if reply.starts_with("err shutting-down ") {
            self.with(|state| state.refused.extend(batch));
            return true;
        }
        let range = reply.strip_prefix("ok ").and_then(|rest| rest.split_once('-'));
        let (first, last) = range.unwrap_or_else(|| panic!("pubn was answered {reply:?}"));
        let (first, last): (u64, u64) = (first.parse().expect("first"), last.parse().expect("last"));
        assert_eq!(last - first + 1, batch.len() as u64, "{reply}");
        self.with(|state| {
            for (seq, json) in (first..).zip(batch) {
                state.store(topic, seq, json);
            }
        });
        true
    }

    fn singles(&self, client: &mut Client, topic: &'static str, batch: Vec<String>) -> bool {
        let lines: String = batch.iter().map(|json| format!("pub {topic} {json}\n")).collect();
        let _ = client.try_send(lines.as_bytes());
        let mut rest = batch.into_iter();
        while let Some(json) = rest.next() {
            let Some(reply) = client.try_reply() else {
                self.with(|state| {
                    state.unknown.extend(std::iter::once(json).chain(rest).map(|json| vec![json]));
                });
                return false;
            };
            if reply.starts_with("err shutting-down ") {
                self.with(|state| state.refused.push(json));
                continue;
            }
            let seq = reply.strip_prefix("ok ").and_then(|seq| seq.parse().ok());
            let seq = seq.unwrap_or_else(|| panic!("pub was answered {reply:?}"));
            self.with(|state| state.store(topic, seq, json));
        }
        true
    }

    /// A member of the group: acks most, nacks some, buries a few, forgets a few, until the connection ends.
    pub(crate) fn consumer(&self, port: u16, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let Ok(mut client) = Client::connect(port) else { return };
        if client.try_send(format!("{GROUP}\n").as_bytes()).is_err() {
            return;
        }
        match client.try_reply() {
            Some(reply) if reply == "ok" => {}
            Some(reply) => assert!(reply.starts_with("err shutting-down "), "{reply}"),
            None => return,
        }
        while let Some(event) = client.try_event(PATIENCE) {
            let place = (event.topic.clone(), event.seq);
            self.delivered(&event, &place);
            let verb = match rng.u8(0..100) {
                0..2 => continue,
                2..12 => "nack",
                12..15 => "bury",
                _ => "ack",
            };
            self.with(|state| match verb {
                // From here on it may be delivered to another member.
                "nack" => drop(state.held.remove(&place)),
                _ => drop(state.settle_unknown.insert(place.clone())),
            });
            if verb == "bury" {
                self.with(|state| *state.bury_unknown.entry(place.clone()).or_default() += 1);
            }
            let _ = client.try_send(format!("{verb} {} @{}\n", place.0, place.1).as_bytes());
            let Some(reply) = client.try_reply() else { return };
            if reply.starts_with("err shutting-down ") {
                continue;
            }
            assert_eq!(reply, "ok", "{verb} {place:?}");
            self.with(|state| match verb {
                "ack" => drop(state.acked.insert(place)),
                "bury" => drop(state.buried.insert(place)),
                _ => {}
            });
        }
    }

    fn delivered(&self, event: &Event, place: &Place) {
        self.with(|state| {
            assert!(!state.acked.contains(place), "delivered after its ack was ok: {event:?}");
            assert!(!state.buried.contains(place), "delivered after it was buried: {event:?}");
            assert!(state.held.insert(place.clone()), "delivered to two members at once: {event:?}");
            assert_eq!(
                state.sent.get(&event.json).copied(),
                Some(event.topic.as_str()),
                "never sent: {event:?}"
            );
            if let Some(json) = state.stored.get(place) {
                assert_eq!(json, &event.json, "{place:?}");
            }
        });
    }

    /// Checks the logs; everything that is new since the last check, or `all`.
    pub(crate) fn check_logs(&self, client: &mut Client, all: bool) {
        for topic in TOPICS {
            let known = self.with(|state| state.log.get(topic).map_or(0, Vec::len));
            let from = if all { 0 } else { known };
            let found = read_log(client, topic, from as u64 + 1);
            self.with(|state| {
                let log = state.log.entry(topic.to_owned()).or_default();
                if all {
                    assert!(
                        found.len() >= log.len() && found[..log.len()] == log[..],
                        "{topic}: history has changed"
                    );
                    *log = found;
                } else {
                    log.extend(found);
                }
            });
        }
        self.with(|state| state.check());
    }

    /// Takes over the group and checks that exactly what is not settled comes.
    pub(crate) fn check_group(&self, client: &mut Client) {
        client.ok(GROUP);
        self.with(|state| state.held.clear());
        let mut came: BTreeSet<Place> = BTreeSet::new();
        let end = Instant::now() + PATIENCE;
        loop {
            let Some(event) = client.try_event(Duration::from_millis(50)) else {
                if TOPICS.iter().all(|topic| is_idle(client, topic)) {
                    break;
                }
                assert!(Instant::now() < end, "the group has something left that does not come");
                continue;
            };
            let place = (event.topic.clone(), event.seq);
            self.delivered(&event, &place);
            client.ok(&format!("ack {} @{}", event.topic, event.seq));
            came.insert(place.clone());
            self.with(|state| state.acked.insert(place));
        }
        let mut letters: HashMap<Place, usize> = HashMap::new();
        for topic in TOPICS {
            for json in read_log(client, &format!("$dead/{topic}"), 1) {
                let letter: serde_json::Value = serde_json::from_str(&json).expect("a dead letter is JSON");
                let seq = letter["seq"].as_u64().expect("a number");
                *letters.entry((topic.to_owned(), seq)).or_default() += 1;
            }
        }
        self.with(|state| {
            for (topic, log) in &state.log {
                for seq in 1..=log.len() as u64 {
                    let place = (topic.clone(), seq);
                    let settled = state.acked.contains(&place) || state.buried.contains(&place);
                    let perhaps = state.settle_unknown.contains(&place);
                    assert!(
                        settled || perhaps || came.contains(&place),
                        "never acked and never came: {place:?}"
                    );
                    let count = letters.get(&place).copied().unwrap_or(0);
                    let most = state.bury_unknown.get(&place).copied().unwrap_or(0);
                    assert!(count <= most, "{count} dead letters of {place:?}, buried {most} times");
                    assert!(count > 0 || !state.buried.contains(&place), "buried and not there: {place:?}");
                }
            }
        });
        println!("{}", self.summary());
    }

    /// How much was in it.
    pub(crate) fn summary(&self) -> String {
        self.with(|state| {
            format!(
                "{} rounds: {} sent, {} ok, {} without a reply, {} refused, {} acked, {} buried",
                state.rounds,
                state.sent.len(),
                state.stored.len(),
                state.unknown.iter().map(Vec::len).sum::<usize>(),
                state.refused.len(),
                state.acked.len(),
                state.buried.len()
            )
        })
    }

    /// Events that got their `ok`.
    pub(crate) fn stored(&self) -> usize {
        self.with(|state| state.stored.len())
    }
}

impl State {
    fn store(&mut self, topic: &str, seq: u64, json: String) {
        let before = self.stored.insert((topic.to_owned(), seq), json);
        assert!(before.is_none(), "two events got the number {topic} {seq}: {before:?}");
    }

    fn check(&self) {
        let mut places: HashMap<&str, Place> = HashMap::new();
        for (topic, log) in &self.log {
            for (seq, json) in (1..).zip(log) {
                assert_eq!(
                    self.sent.get(json).copied(),
                    Some(topic.as_str()),
                    "never sent: {topic} {seq} {json}"
                );
                let before = places.insert(json, (topic.clone(), seq));
                assert!(before.is_none(), "{json} is there twice: {before:?} and {topic} {seq}");
            }
        }
        for ((topic, seq), json) in &self.stored {
            let got = self.log.get(topic).and_then(|log| log.get(*seq as usize - 1));
            assert_eq!(got, Some(json), "got ok and is not there: {topic} {seq}");
        }
        for json in &self.refused {
            assert!(!places.contains_key(json.as_str()), "refused, and there: {json}");
        }
        for batch in &self.unknown {
            let there: Vec<Option<u64>> =
                batch.iter().map(|json| places.get(json.as_str()).map(|place| place.1)).collect();
            let stored: Vec<u64> = there.iter().map_while(|seq| *seq).collect();
            assert_eq!(stored.len(), there.iter().flatten().count(), "not a first part of a pubn: {there:?}");
            assert!(
                stored.windows(2).all(|pair| pair[0] + 1 == pair[1]),
                "a pubn with others between: {stored:?}"
            );
        }
    }
}

/// True when the group has nothing left to deliver of `topic`.
fn is_idle(client: &mut Client, topic: &str) -> bool {
    let reply = client.cmd(&format!("stats {topic}"));
    let Some(text) = reply.strip_prefix("ok ") else { return true };
    let stats: serde_json::Value = serde_json::from_str(text).expect("stats are JSON");
    let group = stats["subscriptions"].as_array().into_iter().flatten().find(|item| item["name"] == "g");
    group.is_none_or(|group| ["ready", "in_flight", "delayed", "lag"].iter().all(|key| group[key] == 0))
}

/// The events of `topic` from `from` on; fails where a number is missing or comes twice.
pub(crate) fn read_log(client: &mut Client, topic: &str, from: u64) -> Vec<String> {
    let reply = client.cmd(&format!("peek {topic} last"));
    let last: u64 = if reply.starts_with("err not-found ") {
        return Vec::new();
    } else {
        reply.split(' ').nth(2).and_then(|seq| seq.parse().ok()).unwrap_or_else(|| panic!("{reply}"))
    };
    if last < from {
        return Vec::new();
    }
    client.ok(&format!("sub {topic} from=@{from} prefetch=60000"));
    let mut found: Vec<Option<String>> = vec![None; (last - from + 1) as usize];
    for count in 1..=found.len() {
        let event = client.event();
        assert!(
            event.topic == topic && event.attempt == 1 && event.seq >= from && event.seq <= last,
            "{event:?}"
        );
        let slot = &mut found[(event.seq - from) as usize];
        assert!(slot.is_none(), "twice: {event:?}");
        *slot = Some(event.json);
        if count % 20_000 == 0 {
            // It also settles what was sent and not read yet: later there may be nothing left.
            let reply = client.cmd(&format!("ack {topic} @1-@{last}"));
            assert!(reply == "ok" || reply.starts_with("err not-in-flight "), "{reply}");
        }
    }
    client.no_event(Duration::from_millis(10));
    client.ok(&format!("unsub {topic}"));
    found.into_iter().map(|json| json.expect("all have come")).collect()
}
