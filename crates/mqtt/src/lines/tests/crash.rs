//! The broker dies at every step of the exchanges of a publisher and a consumer, once and twice; what it had not synced
//! is lost, and so is what was on its way. Every message must arrive once, in order.

use super::rig::{Rig, json, pubcomp, publish, pubrec, pubrel, sub};
use crate::lines::{DoorId, LinesConfig, Planted};
use std::collections::{BTreeSet, VecDeque};

const MESSAGES: u64 = 3;

/// A publisher that remembers what it must.
#[derive(Default)]
struct Publisher {
    conn: Option<DoorId>,
    /// Messages that were completed.
    done: u64,
    /// The id of the present one, once it is known.
    id: Option<u64>,
    asked: bool,
}

/// A consumer that remembers what it must: the ids between PUBREC and PUBREL.
#[derive(Default)]
struct Consumer {
    conn: Option<DoorId>,
    open: BTreeSet<u64>,
    got: Vec<u64>,
    to_say: VecDeque<String>,
}

struct World {
    rig: Rig,
    crashes: Vec<usize>,
    points: usize,
    publisher: Publisher,
    consumer: Consumer,
}

impl World {
    fn new(planted: Planted, crashes: &[usize]) -> Self {
        let mut rig = Rig::with(LinesConfig { planted, ..LinesConfig::default() }, 2000);
        let amy = rig.consumer("amy");
        rig.ask(amy, &sub("t"));
        let consumer = Consumer { conn: Some(amy), ..Consumer::default() };
        Self { rig, crashes: crashes.to_vec(), points: 0, publisher: Publisher::default(), consumer }
    }

    /// A point where the broker may die; true if it did.
    fn point(&mut self) -> bool {
        self.points += 1;
        if !self.crashes.contains(&(self.points - 1)) {
            return false;
        }
        self.rig.crash();
        self.publisher.conn = None;
        self.publisher.asked = false;
        self.consumer.conn = None;
        self.consumer.to_say.clear();
        true
    }

    /// Says a line; the broker may die before and after it is committed.
    fn say(&mut self, id: DoorId, line: &str) -> bool {
        self.rig.send(id, line);
        self.listen();
        if self.point() {
            return false;
        }
        self.rig.commit();
        if self.point() {
            return false;
        }
        self.listen();
        true
    }

    fn listen(&mut self) {
        if let Some(id) = self.publisher.conn {
            for line in self.rig.hear(id) {
                if line.starts_with("ERROR") {
                    // What was promised is not known: it is lost.
                    self.publisher.done += 1;
                    self.publisher.id = None;
                    self.publisher.asked = false;
                    continue;
                }
                let line = json(&line);
                match line["type"].as_str() {
                    Some("PUBREC") => self.publisher.id = line["msgId"].as_u64(),
                    _ => {
                        self.publisher.done += 1;
                        self.publisher.id = None;
                    }
                }
                self.publisher.asked = false;
            }
        }
        if let Some(id) = self.consumer.conn {
            for line in self.rig.hear(id) {
                if !line.starts_with('{') {
                    continue;
                }
                let line = json(&line);
                let id = line["msgId"].as_u64().unwrap();
                if line["type"] == "PUB" {
                    if self.consumer.open.insert(id) {
                        self.consumer.got.push(line["msg"].as_u64().unwrap());
                    }
                    self.consumer.to_say.push_back(pubrec(id, "t"));
                } else {
                    self.consumer.open.remove(&id);
                    self.consumer.to_say.push_back(pubcomp(id, "t"));
                }
            }
        }
    }

    fn turn(&mut self) {
        let publisher = match self.publisher.conn {
            Some(id) => id,
            None => {
                let id = self.rig.publisher();
                self.publisher.conn = Some(id);
                id
            }
        };
        if self.publisher.done < MESSAGES && !self.publisher.asked {
            self.publisher.asked = true;
            let line = match self.publisher.id {
                Some(id) => pubrel(id),
                None => publish("t", &(self.publisher.done + 1).to_string()),
            };
            if !self.say(publisher, &line) {
                return;
            }
        }
        let Some(consumer) = self.consumer.conn else {
            let id = self.rig.consumer("amy");
            self.consumer.conn = Some(id);
            self.rig.commit();
            self.listen();
            return;
        };
        if let Some(line) = self.consumer.to_say.pop_front() {
            self.say(consumer, &line);
        }
    }

    /// Says what arrived, and how many points there were.
    fn run(mut self) -> (Vec<u64>, usize) {
        for _ in 0..60 {
            self.turn();
        }
        // What is left comes when time passes.
        self.rig.pass(1000);
        self.rig.crash();
        self.consumer.conn = None;
        self.publisher.conn = None;
        self.consumer.to_say.clear();
        for _ in 0..30 {
            self.turn();
        }
        (self.consumer.got, self.points)
    }
}

fn wrong(planted: Planted) -> Vec<(Vec<usize>, Vec<u64>)> {
    let expected: Vec<u64> = (1..=MESSAGES).collect();
    let (got, points) = World::new(planted, &[]).run();
    assert_eq!(got, expected);
    assert!(points > 20, "{points}");
    let mut found = Vec::new();
    for first in 0..points {
        let (got, _) = World::new(planted, &[first]).run();
        if got != expected {
            found.push((vec![first], got));
        }
        for second in (first + 1)..(first + 9).min(points) {
            let (got, _) = World::new(planted, &[first, second]).run();
            if got != expected {
                found.push((vec![first, second], got));
            }
        }
    }
    found
}

#[test]
fn every_message_arrives_once_whenever_the_broker_dies() {
    assert_eq!(wrong(Planted::default()), []);
}

#[test]
fn a_reply_before_the_commit_is_found() {
    assert_ne!(wrong(Planted { reply_before_commit: true, ..Planted::default() }), []);
}

#[test]
fn a_release_of_two_records_is_found() {
    assert_ne!(wrong(Planted { release_in_two: true, ..Planted::default() }), []);
}

/// The states one by one, by name.
#[test]
fn each_state_of_a_publisher_survives() {
    let mut rig = Rig::new();
    rig.subscriber("amy", "t");
    let publisher = rig.publisher();
    // PUB is not committed: nobody knows of it.
    rig.send(publisher, &publish("t", "\"lost\""));
    rig.crash();
    let publisher = rig.publisher();
    assert_eq!(rig.ask(publisher, &publish("t", "\"kept\"")), [super::rig::pubrec_out(1)]);
    // PUBREC was answered.
    rig.crash();
    let amy = rig.consumer("amy");
    assert_eq!(rig.settle(amy), [""; 0], "not released, not delivered");
    let publisher = rig.publisher();
    // PUBREL is not committed.
    rig.send(publisher, &pubrel(1));
    rig.crash();
    let amy = rig.consumer("amy");
    assert_eq!(rig.settle(amy), [""; 0]);
    let publisher = rig.publisher();
    // PUBREL is committed, PUBCOMP is lost.
    rig.send(publisher, &pubrel(1));
    rig.commit();
    rig.crash();
    let amy = rig.consumer("amy");
    let heard = rig.settle(amy);
    assert_eq!(super::rig::messages(&heard), ["kept"]);
    let publisher = rig.publisher();
    assert_eq!(rig.ask(publisher, &pubrel(1)), [super::rig::pubcomp_out(1)]);
    assert_eq!(rig.take(amy, &heard[0]), [""; 0]);
}

#[test]
fn each_state_of_a_consumer_survives() {
    let mut rig = Rig::new();
    rig.subscriber("amy", "t");
    let publisher = rig.publisher();
    rig.put(publisher, "t", "1");
    rig.put(publisher, "t", "2");
    let again = |rig: &mut Rig| {
        rig.crash();
        let amy = rig.consumer("amy");
        let heard = rig.settle(amy);
        assert_eq!(heard.len(), 1, "{heard:?}");
        (amy, heard[0].clone())
    };
    // Sent, and not answered.
    let (amy, first) = again(&mut rig);
    let name = super::rig::name_of(&first);
    // PUBREC is not committed: the message comes again, under its id.
    rig.send(amy, &pubrec(name, "t"));
    let (amy, heard) = again(&mut rig);
    assert_eq!(heard, first);
    // PUBREC is committed: PUBREL comes, and never the message.
    rig.send(amy, &pubrec(name, "t"));
    rig.commit();
    let (amy, heard) = again(&mut rig);
    assert_eq!(heard, super::rig::pubrel_out(name));
    // PUBCOMP is not committed: PUBREL once more.
    rig.send(amy, &pubcomp(name, "t"));
    let (amy, heard) = again(&mut rig);
    assert_eq!(heard, super::rig::pubrel_out(name));
    // PUBCOMP is committed: the next message.
    rig.send(amy, &pubcomp(name, "t"));
    rig.commit();
    let (_, heard) = again(&mut rig);
    assert_eq!(super::rig::messages(&[heard]), [2]);
}
