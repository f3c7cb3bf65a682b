//! The outbox: each message whose record was committed arrives once.

use std::collections::{BTreeMap, HashSet};

use postroad_core::{Envelope, Receipt, Subject, Ticket, Timestamp};

use super::{SimLog, Wire, cases, dialect, hunt};
use crate::client::outgoing::{Outgoing, Terms};
use crate::client::{MqttOptions, Planted, envelope};
use crate::codec::{Ack, Packet, PacketId, Qos, Version};

/// Takes a message at its PUBLISH and knows its id until PUBREL.
#[derive(Default)]
struct Server {
    ids: HashSet<PacketId>,
    arrived: BTreeMap<u64, usize>,
    /// Its session was made.
    known: bool,
}

impl Server {
    fn packet(&mut self, packet: Packet, back: &mut Wire) -> Result<(), String> {
        match packet {
            Packet::Publish(publish) => {
                let id = publish.packet_id.ok_or("no id")?;
                if self.ids.insert(id) {
                    let number = String::from_utf8_lossy(&publish.payload).parse().map_err(|_| "payload")?;
                    *self.arrived.entry(number).or_default() += 1;
                }
                back.0.push_back(Packet::Pubrec(Ack::new(id)));
            }
            Packet::Pubrel(ack) => {
                self.ids.remove(&ack.packet_id);
                back.0.push_back(Packet::Pubcomp(Ack::new(ack.packet_id)));
            }
            other => return Err(format!("the client sent {other:?}")),
        }
        if self.ids.len() > usize::from(WINDOW) {
            return Err(format!("{} exchanges at once", self.ids.len()));
        }
        Ok(())
    }
}

const WINDOW: u16 = 5;
const NOW: Timestamp = Timestamp::from_millis(1);

struct World {
    random: fastrand::Rng,
    version: Version,
    options: MqttOptions,
    log: SimLog,
    client: Outgoing,
    connected: bool,
    server: Server,
    up: Wire,
    down: Wire,
    /// Payload, and the mark of its record.
    published: Vec<(u64, Ticket)>,
    /// Messages of which a record is surely there.
    durable: HashSet<u64>,
}

impl World {
    fn publish(&mut self) {
        let number = self.published.len() as u64;
        let envelope = Envelope::new(Subject::new("a").unwrap(), number.to_string());
        let publish = envelope::encode(&envelope, Qos::ExactlyOnce).unwrap();
        let (resolver, ticket) = Ticket::pending();
        self.client.publish(publish, None, resolver, NOW);
        self.published.push((number, ticket));
    }

    fn commit(&mut self) {
        self.log.commit();
        self.note_durable();
        self.client.advance(NOW);
    }

    /// What the log holds and what its client has not finished.
    fn note_durable(&mut self) {
        for record in &self.log.0.lock().unwrap().records {
            if let super::Record::Out { publish, .. } = record {
                let number = String::from_utf8_lossy(&publish.payload).parse::<u64>();
                self.durable.extend(number.ok());
            }
        }
    }

    fn connect(&mut self) {
        let terms = Terms {
            version: self.version,
            session_present: self.server.known,
            receive_maximum: WINDOW,
            maximum_packet_size: u32::MAX,
        };
        self.server.known = true;
        self.connected = true;
        self.client.connected(terms, NOW);
    }

    fn cut(&mut self) -> Result<(), String> {
        if self.connected {
            self.up.take_from(&mut self.client.out, self.version);
            // Some of it arrives.
            for _ in 0..self.random.usize(0..=self.up.0.len()) {
                if let Some(packet) = self.up.0.pop_front() {
                    self.server.packet(packet, &mut self.down)?;
                }
            }
        }
        self.connected = false;
        self.up.0.clear();
        self.down.0.clear();
        Ok(())
    }

    fn crash(&mut self) -> Result<(), String> {
        self.cut()?;
        let records = self.log.crash(&mut self.random);
        self.client = Outgoing::new(Box::new(self.log.clone()), records, &self.options);
        self.note_durable();
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.u32(0..100) {
            0..15 if self.published.len() < 120 => self.publish(),
            0..35 => self.commit(),
            35..60 if self.connected => {
                self.up.take_from(&mut self.client.out, self.version);
                if let Some(packet) = self.up.0.pop_front() {
                    self.server.packet(packet, &mut self.down)?;
                }
            }
            60..85 if self.connected => {
                if let Some(packet) = self.down.0.pop_front() {
                    self.client.packet(&packet, NOW).map_err(|why| why.to_string())?;
                }
            }
            85..95 if !self.connected => self.connect(),
            95..97 if self.connected => {
                self.cut()?;
                let why = crate::client::lost("cut");
                self.client.lost(&why);
            }
            97 => self.crash()?,
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), String> {
        self.crash()?;
        self.connect();
        for _ in 0..5000 {
            self.commit();
            self.up.take_from(&mut self.client.out, self.version);
            while let Some(packet) = self.up.0.pop_front() {
                self.server.packet(packet, &mut self.down)?;
            }
            while let Some(packet) = self.down.0.pop_front() {
                self.client.packet(&packet, NOW).map_err(|why| why.to_string())?;
            }
            if self.client.backlog().0 == 0 {
                break;
            }
        }
        if self.client.backlog().0 > 0 {
            return Err(format!("{} messages are stuck", self.client.backlog().0));
        }
        for (number, ticket) in &self.published {
            let arrived = self.server.arrived.get(number).copied().unwrap_or_default();
            let confirmed = matches!(ticket.try_get(), Some(Receipt::Confirmed { .. }));
            if arrived > 1 {
                return Err(format!("{number} arrived {arrived} times"));
            }
            if arrived == 0 && (confirmed || self.durable.contains(number)) {
                return Err(format!("{number} is lost"));
            }
        }
        Ok(())
    }
}

fn world(seed: u64, planted: Planted) -> Result<(), String> {
    let log = SimLog::default();
    log.0.lock().unwrap().snapshot_every = 50;
    let (version, options) = dialect(seed, planted);
    let mut world = World {
        random: fastrand::Rng::with_seed(seed),
        client: Outgoing::new(Box::new(log.clone()), Vec::new(), &options),
        version,
        options,
        log,
        connected: false,
        server: Server::default(),
        up: Wire::default(),
        down: Wire::default(),
        published: Vec::new(),
        durable: HashSet::new(),
    };
    for _ in 0..1500 {
        world.step()?;
    }
    world.finish()
}

#[test]
fn each_message_arrives_once() {
    assert_eq!(hunt(cases(), |seed| world(seed, Planted::default())), None);
}

/// Such a server would get the same messages again with every connection.
#[test]
fn a_server_that_answers_qos_2_with_puback_is_left() {
    let (version, options) = dialect(1, Planted::default());
    let mut client = Outgoing::new(Box::new(super::super::log::NoLog), Vec::new(), &options);
    let terms = Terms { version, session_present: false, receive_maximum: 5, maximum_packet_size: u32::MAX };
    client.connected(terms, NOW);
    let (resolver, ticket) = Ticket::pending();
    let envelope = Envelope::new(Subject::new("a").unwrap(), "1");
    client.publish(envelope::encode(&envelope, Qos::ExactlyOnce).unwrap(), None, resolver, NOW);
    let why = client.packet(&Packet::Puback(Ack::new(PacketId::MIN)), NOW).unwrap_err();
    assert_eq!(why.kind(), postroad_core::ErrorKind::Unsupported);
    client.lost(&why);
    assert!(matches!(ticket.try_get(), Some(Receipt::Unknown(_))), "the server may have it");
}

#[test]
fn catches_sending_before_the_record() {
    let planted = Planted { send_before_record: true, ..Planted::default() };
    println!("{:?}", hunt(300, |seed| world(seed, planted)).expect("caught"));
}

#[test]
fn catches_releasing_before_the_record() {
    let planted = Planted { release_before_record: true, ..Planted::default() };
    println!("{:?}", hunt(300, |seed| world(seed, planted)).expect("caught"));
}
