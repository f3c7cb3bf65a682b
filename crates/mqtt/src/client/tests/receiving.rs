//! The inbox: each message is handed out until it is settled, and never again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use postroad_core::mailbox::Window;
use postroad_core::retry::RetryPolicy;
use postroad_core::{Outcome, Settled, Timestamp};

use super::{SimLog, Wire, cases, dialect, hunt};
use crate::client::incoming::{Given, Incoming};
use crate::client::{MqttOptions, Planted};
use crate::codec::{Ack, Packet, PacketId, Publish, Qos, Utf8, Version};

const COUNT: u64 = 60;
const WINDOW: usize = 4;

/// Where the server is with a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Sent,
    Released,
}

/// Sends its messages in order, each until PUBCOMP.
#[derive(Default)]
struct Server {
    queue: VecDeque<u64>,
    open: BTreeMap<PacketId, (u64, Stage)>,
    known: bool,
}

fn publish(number: u64, id: PacketId, dup: bool) -> Packet {
    let mut publish = Publish::new(Utf8::from_static("a"), number.to_string());
    publish.qos = Qos::ExactlyOnce;
    publish.packet_id = Some(id);
    publish.dup = dup;
    publish.into()
}

impl Server {
    fn send(&mut self, down: &mut Wire) {
        while self.open.len() < WINDOW
            && let Some(number) = self.queue.pop_front()
        {
            // The lowest id that is free: ids are used again soon.
            let id = (1..=u16::MAX).filter_map(PacketId::new).find(|id| !self.open.contains_key(id)).unwrap();
            self.open.insert(id, (number, Stage::Sent));
            down.0.push_back(publish(number, id, false));
        }
    }

    fn connected(&mut self, down: &mut Wire) {
        for (id, (number, stage)) in &self.open {
            down.0.push_back(match stage {
                Stage::Sent => publish(*number, *id, true),
                Stage::Released => Packet::Pubrel(Ack::new(*id)),
            });
        }
        self.send(down);
    }

    fn packet(&mut self, packet: &Packet, down: &mut Wire) -> Result<(), String> {
        match packet {
            Packet::Pubrec(ack) => {
                if let Some((_, stage)) = self.open.get_mut(&ack.packet_id) {
                    *stage = Stage::Released;
                    down.0.push_back(Packet::Pubrel(Ack::new(ack.packet_id)));
                }
            }
            Packet::Pubcomp(ack) => {
                if self.open.remove(&ack.packet_id).is_some_and(|(_, stage)| stage == Stage::Sent) {
                    return Err("PUBCOMP before PUBREC".to_owned());
                }
                self.send(down);
            }
            other => return Err(format!("the client sent {other:?}")),
        }
        Ok(())
    }
}

struct World {
    random: fastrand::Rng,
    version: Version,
    options: MqttOptions,
    log: SimLog,
    client: Incoming,
    now: u64,
    connected: bool,
    server: Server,
    up: Wire,
    down: Wire,
    held: Vec<Given>,
    asked: Vec<(u64, Settled)>,
    /// Acked, with or without an answer.
    acked_ever: BTreeSet<u64>,
    settled: BTreeSet<u64>,
}

fn client(log: &SimLog, records: Vec<super::Record>, options: &MqttOptions) -> Incoming {
    let policy = RetryPolicy { ack_wait: Duration::from_millis(50), ..RetryPolicy::default() };
    let window = Window { count: 7, bytes: 1 << 20 };
    Incoming::new(Box::new(log.clone()), records, "a".parse().unwrap(), true, policy, window, options)
}

impl World {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.now)
    }

    /// Whatever has an answer.
    fn answers(&mut self) {
        let settled = &mut self.settled;
        self.asked.retain_mut(|(number, answer)| match answer.try_get() {
            Some(Ok(())) => {
                settled.insert(*number);
                false
            }
            Some(Err(_)) => false,
            None => true,
        });
    }

    fn take(&mut self) -> Result<(), String> {
        self.answers();
        let mut given = Vec::new();
        self.client.take(self.now(), 3, &mut given);
        for one in given {
            let number = number_of(&one);
            if self.settled.contains(&number) {
                return Err(format!("{number} comes again after its ack"));
            }
            self.held.push(one);
        }
        Ok(())
    }

    fn settle(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let given = self.held.swap_remove(self.random.usize(..self.held.len()));
        let (resolver, answer) = postroad_core::Settled::pending();
        let outcome = if self.random.u8(..4) == 0 { Outcome::retry() } else { Outcome::Ack };
        let number = number_of(&given);
        if outcome == Outcome::Ack {
            self.asked.push((number, answer));
            self.acked_ever.insert(number);
        }
        self.client.settle(given.number, given.attempt, outcome, resolver, self.now());
    }

    fn connect(&mut self) {
        self.connected = true;
        self.client.connected(self.version, self.server.known);
        self.server.known = true;
        self.server.connected(&mut self.down);
    }

    fn cut(&mut self) -> Result<(), String> {
        if self.connected {
            self.up.take_from(&mut self.client.out, self.version);
            for _ in 0..self.random.usize(0..=self.up.0.len()) {
                if let Some(packet) = self.up.0.pop_front() {
                    self.server.packet(&packet, &mut Wire::default())?;
                }
            }
        }
        self.connected = false;
        self.up.0.clear();
        self.down.0.clear();
        self.client.lost();
        Ok(())
    }

    fn crash(&mut self) -> Result<(), String> {
        self.cut()?;
        self.answers();
        self.held.clear();
        let records = self.log.crash(&mut self.random);
        self.client = client(&self.log, records, &self.options);
        // Their resolvers are gone.
        self.answers();
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += self.random.u64(0..3);
        self.client.tick(self.now());
        match self.random.u32(0..100) {
            0..15 => self.take()?,
            15..30 => self.settle(),
            30..45 => {
                self.log.commit();
                self.client.advance();
                self.answers();
            }
            45..65 if self.connected => {
                self.up.take_from(&mut self.client.out, self.version);
                if let Some(packet) = self.up.0.pop_front() {
                    self.server.packet(&packet, &mut self.down)?;
                }
            }
            65..85 if self.connected => {
                if let Some(packet) = self.down.0.pop_front() {
                    let now = self.now();
                    self.client.packet(packet, now).map_err(|why| why.to_string())?;
                }
            }
            85..95 if !self.connected => self.connect(),
            95..97 if self.connected => self.cut()?,
            97 => self.crash()?,
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), String> {
        self.crash()?;
        self.connect();
        for _ in 0..3000 {
            self.now += 10;
            self.client.tick(self.now());
            self.log.commit();
            self.client.advance();
            self.up.take_from(&mut self.client.out, self.version);
            while let Some(packet) = self.up.0.pop_front() {
                self.server.packet(&packet, &mut self.down)?;
            }
            while let Some(packet) = self.down.0.pop_front() {
                let now = self.now();
                self.client.packet(packet, now).map_err(|why| why.to_string())?;
            }
            self.take()?;
            self.settle();
            self.answers();
            if self.settled.len() as u64 == COUNT && self.server.open.is_empty() {
                return Ok(());
            }
        }
        let lost: Vec<_> = (0..COUNT).filter(|number| !self.settled.contains(number)).collect();
        // An ack whose answer the crash took may have counted.
        let stuck: Vec<_> = lost.into_iter().filter(|number| !self.acked_ever.contains(number)).collect();
        if stuck.is_empty() { Ok(()) } else { Err(format!("{stuck:?} never came")) }
    }
}

fn number_of(given: &Given) -> u64 {
    String::from_utf8_lossy(&given.envelope.payload).parse().unwrap()
}

fn world(seed: u64, planted: Planted) -> Result<(), String> {
    let log = SimLog::default();
    log.0.lock().unwrap().snapshot_every = 40;
    let (version, options) = dialect(seed, planted);
    let mut world = World {
        random: fastrand::Rng::with_seed(seed),
        client: client(&log, Vec::new(), &options),
        version,
        options,
        log,
        now: 1,
        connected: false,
        server: Server { queue: (0..COUNT).collect(), ..Server::default() },
        up: Wire::default(),
        down: Wire::default(),
        held: Vec::new(),
        asked: Vec::new(),
        acked_ever: BTreeSet::new(),
        settled: BTreeSet::new(),
    };
    for _ in 0..1500 {
        world.step()?;
    }
    world.finish()
}

#[test]
fn each_message_comes_until_it_is_settled() {
    assert_eq!(hunt(cases(), |seed| world(seed, Planted::default())), None);
}

#[test]
fn catches_acknowledging_before_the_record() {
    let planted = Planted { ack_before_record: true, ..Planted::default() };
    println!("{:?}", hunt(300, |seed| world(seed, planted)).expect("caught"));
}

#[test]
fn catches_a_forgotten_id() {
    let planted = Planted { id_forgotten: true, ..Planted::default() };
    println!("{:?}", hunt(300, |seed| world(seed, planted)).expect("caught"));
}
