//! A broker on a simulated disk that can be killed, and clients whose side of the protocol is done by hand.

use super::reasons::Gate;
use crate::broker::{Broker, BrokerConfig, ConnId, DeadLetter, ListenerConfig, Peer};
use crate::codec::{
    Ack, Connack, Connect, Decoder, Limits, Packet, PacketId, Publish, Qos, Subscribe, Subscription, Utf8,
    Version,
};
use bytes::BytesMut;
use postroad_engine::log::JournalStore;
use postroad_journal::CommitterOptions;
use postroad_journal::storage::{CrashMode, SimStorage};
use std::collections::HashMap;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

pub(super) struct Rig {
    pub(super) broker: Broker,
    pub(super) storage: SimStorage,
    pub(super) now: u64,
    pub(super) config: BrokerConfig,
    pub(super) listener: Arc<ListenerConfig>,
    pub(super) gate: Arc<Gate>,
    store: Arc<JournalStore>,
    lives: u64,
    segment_bytes: u64,
    ends: HashMap<ConnId, Decoder>,
}

fn open(
    storage: &SimStorage,
    segment_bytes: u64,
    life: u64,
    config: &BrokerConfig,
    gate: &Arc<Gate>,
    now: u64,
) -> (Broker, Arc<JournalStore>) {
    let options = CommitterOptions {
        disk_floor: 0,
        preallocate: false,
        direct_io: false,
        ..CommitterOptions::default()
    };
    let store = JournalStore::open_on(
        Arc::new(storage.clone()),
        Path::new("/data"),
        segment_bytes,
        options,
        7 + life,
    );
    let store = Arc::new(store.unwrap());
    let broker = Broker::open(config.clone(), store.clone(), gate.clone(), now).unwrap();
    (broker, store)
}

pub(super) fn text(s: &str) -> Utf8 {
    Utf8::try_from(s).unwrap()
}

pub(super) fn id(n: u16) -> PacketId {
    PacketId::new(n).unwrap()
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(
            BrokerConfig { sys_interval: std::time::Duration::ZERO, ..BrokerConfig::default() },
            64 << 20,
        )
    }

    pub(super) fn with(config: BrokerConfig, segment_bytes: u64) -> Self {
        let storage = SimStorage::new(1);
        let now = 1_000_000;
        let gate = Arc::<Gate>::default();
        let (broker, store) = open(&storage, segment_bytes, 0, &config, &gate, now);
        let listener = Arc::new(ListenerConfig::default());
        Self {
            broker,
            storage,
            now,
            config,
            listener,
            gate,
            store,
            lives: 0,
            segment_bytes,
            ends: HashMap::new(),
        }
    }

    /// The process dies, and the disk loses what it had not synced.
    pub(super) fn crash(&mut self, mode: CrashMode) {
        self.storage.crash(mode);
        self.lives += 1;
        self.ends.clear();
        let (broker, store) =
            open(&self.storage, self.segment_bytes, self.lives, &self.config, &self.gate, self.now);
        self.broker = broker;
        self.store = store;
    }

    pub(super) fn store(&self) -> &JournalStore {
        &self.store
    }

    pub(super) fn pass(&mut self, millis: u64) {
        self.now += millis;
        self.broker.tick(self.now);
        self.commit();
    }

    /// Everything that waits is committed.
    pub(super) fn commit(&mut self) {
        while self.broker.pending().is_some() {
            let mut some = false;
            while self.store.committer().commit_now().unwrap() {
                some = true;
            }
            if !some {
                // It waits for the sync that comes without anybody asking.
                self.store.committer().sync_now().unwrap();
            }
            self.broker.committed(self.now);
        }
    }

    /// One commit, of what waits first.
    pub(super) fn commit_once(&mut self) {
        assert!(self.store.committer().commit_now().unwrap());
        self.broker.committed(self.now);
    }

    pub(super) fn dial(&mut self, version: Version) -> ConnId {
        let conn = self.broker.connect(&self.listener, Peer::default(), self.now).unwrap();
        self.ends.insert(
            conn,
            Decoder::client(version, Limits { max_packet_size: 16 << 20, ..Limits::default() }),
        );
        conn
    }

    pub(super) fn send(&mut self, conn: ConnId, packet: &Packet) {
        let version = self.ends[&conn].version().unwrap();
        let mut bytes = BytesMut::new();
        packet.encode(version, &mut bytes).unwrap();
        self.broker.input(conn, &mut bytes, self.now);
        assert!(bytes.is_empty());
    }

    /// What has come for a client, without a commit.
    pub(super) fn receive(&mut self, conn: ConnId) -> Vec<Packet> {
        let mut bytes = BytesMut::new();
        if let Some(outbox) = self.broker.outbox(conn) {
            while !outbox.is_empty() {
                let mut slices: Vec<IoSlice<'_>> = Vec::new();
                outbox.slices(&mut slices);
                let part: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
                outbox.advance(part.len());
                bytes.extend_from_slice(&part);
            }
        }
        self.broker.written(conn, self.now);
        let decoder = self.ends.get_mut(&conn).unwrap();
        let mut packets = Vec::new();
        while let Some(packet) = decoder.decode(&mut bytes).unwrap() {
            packets.push(packet);
        }
        assert!(bytes.is_empty());
        packets
    }

    /// What comes for a client when all is committed.
    pub(super) fn settle(&mut self, conn: ConnId) -> Vec<Packet> {
        self.commit();
        let mut packets = self.receive(conn);
        self.commit();
        packets.extend(self.receive(conn));
        packets
    }

    pub(super) fn connect_with(&mut self, connect: Connect) -> (ConnId, Connack) {
        let conn = self.dial(connect.version);
        self.send(conn, &Packet::Connect(Box::new(connect)));
        self.commit();
        let mut bytes = self.receive(conn);
        assert!(!bytes.is_empty(), "no CONNACK");
        let Packet::Connack(connack) = bytes.remove(0) else { panic!("not a CONNACK") };
        for packet in bytes.into_iter().rev() {
            self.push_back(conn, &packet);
        }
        (conn, *connack)
    }

    /// Puts a packet back to be received again.
    fn push_back(&mut self, conn: ConnId, packet: &Packet) {
        let version = self.ends[&conn].version().unwrap();
        let outbox = self.broker.outbox(conn).unwrap();
        let mut bytes = BytesMut::new();
        packet.encode(version, &mut bytes).unwrap();
        let mut rest = BytesMut::new();
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        outbox.slices(&mut slices);
        for slice in &slices {
            rest.extend_from_slice(slice);
        }
        drop(slices);
        outbox.advance(rest.len());
        outbox.write(|out| {
            out.extend_from_slice(&bytes);
            out.extend_from_slice(&rest);
        });
    }

    /// A client with a durable session; says whether there was one.
    pub(super) fn durable(&mut self, client: &str) -> (ConnId, bool) {
        let mut connect = Connect::new(Version::V5, text(client));
        connect.clean_start = false;
        connect.properties.session_expiry_interval = Some(u32::MAX);
        let (conn, connack) = self.connect_with(connect);
        (conn, connack.session_present)
    }

    pub(super) fn clean(&mut self, client: &str) -> ConnId {
        let mut connect = Connect::new(Version::V311, text(client));
        connect.clean_start = true;
        self.connect_with(connect).0
    }

    pub(super) fn subscribe(&mut self, conn: ConnId, filter: &str, qos: Qos) {
        let subscribe = Subscribe {
            packet_id: id(9),
            filters: vec![Subscription::new(text(filter), qos)],
            properties: None,
        };
        self.send(conn, &Packet::Subscribe(subscribe));
        self.commit();
        let packets = self.receive(conn);
        assert!(matches!(packets.first(), Some(Packet::Suback(_))), "{packets:?}");
        for packet in packets.iter().skip(1).rev() {
            self.push_back(conn, packet);
        }
    }

    pub(super) fn publish(&mut self, conn: ConnId, topic: &str, payload: &str, qos: Qos, packet: u16) {
        let mut publish = Publish::new(text(topic), payload.to_owned());
        publish.qos = qos;
        publish.packet_id = PacketId::new(packet).filter(|_| qos != Qos::AtMostOnce);
        self.send(conn, &Packet::Publish(publish));
    }

    pub(super) fn dead(&mut self) -> Vec<DeadLetter> {
        self.pass(100);
        let mut all = Vec::new();
        loop {
            let some = self.broker.dead_letters(self.now);
            if some.is_empty() {
                break;
            }
            all.extend(some);
            self.pass(1);
        }
        all
    }
}

/// PUBLISH packets: payload, QoS, id, DUP.
pub(super) fn publishes(packets: &[Packet]) -> Vec<(String, u8, u16, bool)> {
    let mut found = Vec::new();
    for packet in packets {
        if let Packet::Publish(p) = packet {
            let payload = String::from_utf8(p.payload.to_vec()).unwrap();
            found.push((payload, p.qos as u8, p.packet_id.map_or(0, PacketId::get), p.dup));
        }
    }
    found
}

pub(super) fn pubrec(n: u16) -> Packet {
    Packet::Pubrec(Ack::new(id(n)))
}

pub(super) fn pubrel(n: u16) -> Packet {
    Packet::Pubrel(Ack::new(id(n)))
}

pub(super) fn pubcomp(n: u16) -> Packet {
    Packet::Pubcomp(Ack::new(id(n)))
}

pub(super) fn puback(n: u16) -> Packet {
    Packet::Puback(Ack::new(id(n)))
}
