//! Doors on a simulated disk that can be killed, and peers of both kinds.

use crate::access::OpenAccess;
use crate::broker::{BrokerConfig, ListenerConfig, Peer};
use crate::codec::{
    Connect, Decoder, Limits, Packet, PacketId, Publish, Qos, Subscribe, Subscription, Utf8, Version,
};
use crate::lines::{DoorId, DoorListener, Doors, LinesConfig, Planted, Role};
use bytes::BytesMut;
use postroad_engine::log::JournalStore;
use postroad_journal::CommitterOptions;
use postroad_journal::storage::{CrashMode, SimStorage};
use std::collections::HashMap;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Rig {
    pub(super) doors: Doors,
    pub(super) storage: SimStorage,
    pub(super) now: u64,
    pub(super) config: LinesConfig,
    store: Arc<JournalStore>,
    segment_bytes: u64,
    lives: u64,
    decoders: HashMap<DoorId, Decoder>,
}

fn open(
    storage: &SimStorage,
    segment_bytes: u64,
    life: u64,
    config: &LinesConfig,
    now: u64,
) -> (Doors, Arc<JournalStore>) {
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
    let broker = BrokerConfig { sys_interval: Duration::ZERO, ..BrokerConfig::default() };
    let doors = Doors::open(broker, config.clone(), store.clone(), Arc::new(OpenAccess), now).unwrap();
    (doors, store)
}

pub(super) fn text(s: &str) -> Utf8 {
    Utf8::try_from(s).unwrap()
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(LinesConfig::default(), 64 << 20)
    }

    pub(super) fn planted(planted: Planted) -> Self {
        Self::with(LinesConfig { planted, ..LinesConfig::default() }, 64 << 20)
    }

    pub(super) fn with(config: LinesConfig, segment_bytes: u64) -> Self {
        let storage = SimStorage::new(1);
        let now = 1_000_000;
        let (doors, store) = open(&storage, segment_bytes, 0, &config, now);
        let mut rig =
            Self { doors, storage, now, config, store, segment_bytes, lives: 0, decoders: HashMap::new() };
        rig.commit();
        rig
    }

    /// The process dies, and the disk loses what it had not synced.
    pub(super) fn crash(&mut self) {
        self.storage.crash(CrashMode::DropUnsynced);
        self.lives += 1;
        self.decoders.clear();
        let (doors, store) = open(&self.storage, self.segment_bytes, self.lives, &self.config, self.now);
        self.doors = doors;
        self.store = store;
        self.commit();
    }

    pub(super) fn commit(&mut self) {
        while self.doors.pending().is_some() {
            while self.store.committer().commit_now().unwrap() {}
            self.doors.committed(self.now);
        }
    }

    /// Time passes, and nothing is late.
    pub(super) fn pass(&mut self, millis: u64) {
        let until = self.now + millis;
        while let Some(due) = self.doors.next_deadline()
            && due <= until
        {
            self.now = due.max(self.now);
            self.doors.tick(self.now);
            self.commit();
        }
        self.now = until;
    }

    pub(super) fn dial(&mut self, role: Role) -> DoorId {
        let rules = Arc::new(ListenerConfig::default());
        self.doors.connect(&DoorListener::Lines(role, rules), Peer::default(), self.now).unwrap()
    }

    pub(super) fn consumer(&mut self, name: &str) -> DoorId {
        let id = self.dial(Role::Consumers);
        self.send(id, &format!("log {name}"));
        let heard = self.hear(id);
        assert_eq!(heard[..2], ["Please login!", "Succesfully logged in!"], "{heard:?}");
        assert_eq!(heard.len(), 2, "{heard:?}");
        id
    }

    /// A consumer with a subscription.
    pub(super) fn subscriber(&mut self, name: &str, topic: &str) -> DoorId {
        let id = self.consumer(name);
        assert_eq!(self.ask(id, &sub(topic)), ["OK"]);
        id
    }

    pub(super) fn publisher(&mut self) -> DoorId {
        let id = self.dial(Role::Publishers);
        assert_eq!(self.hear(id), [""; 0]);
        id
    }

    /// Publishes and releases.
    pub(super) fn put(&mut self, id: DoorId, topic: &str, msg: &str) {
        let heard = self.ask(id, &publish(topic, msg));
        let name = name_of(&heard[0]);
        assert_eq!(heard, [pubrec_out(name)]);
        assert_eq!(self.ask(id, &pubrel(name)), [pubcomp_out(name)]);
    }

    /// Does a consumer's part for one delivery that was heard.
    pub(super) fn take(&mut self, id: DoorId, heard: &str) -> Vec<String> {
        let (name, topic) = (name_of(heard), topic_of(heard));
        assert_eq!(self.ask(id, &pubrec(name, &topic)), ["OK".to_owned(), pubrel_out(name)]);
        let rest = self.ask(id, &pubcomp(name, &topic));
        assert_eq!(rest.first().map(String::as_str), Some("OK"), "{rest:?}");
        rest[1..].to_vec()
    }

    pub(super) fn send(&mut self, id: DoorId, line: &str) {
        self.raw(id, format!("{line}\r\n").as_bytes());
    }

    pub(super) fn raw(&mut self, id: DoorId, bytes: &[u8]) {
        let mut buf = BytesMut::from(bytes);
        self.doors.input(id, &mut buf, self.now);
        assert!(buf.is_empty(), "{buf:?}");
    }

    fn bytes(&mut self, id: DoorId) -> BytesMut {
        let mut bytes = BytesMut::new();
        if let Some(outbox) = self.doors.outbox(id) {
            while !outbox.is_empty() {
                let mut slices: Vec<IoSlice<'_>> = Vec::new();
                outbox.slices(&mut slices);
                let part: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
                outbox.advance(part.len());
                bytes.extend_from_slice(&part);
            }
        }
        self.doors.written(id, self.now);
        bytes
    }

    /// What has come, without a commit.
    pub(super) fn hear(&mut self, id: DoorId) -> Vec<String> {
        let bytes = String::from_utf8(self.bytes(id).to_vec()).unwrap();
        assert!(bytes.is_empty() || bytes.ends_with("\r\n"));
        bytes.split_terminator("\r\n").map(str::to_owned).collect()
    }

    /// What comes when all is committed.
    pub(super) fn settle(&mut self, id: DoorId) -> Vec<String> {
        self.commit();
        self.hear(id)
    }

    pub(super) fn ask(&mut self, id: DoorId, line: &str) -> Vec<String> {
        self.send(id, line);
        self.settle(id)
    }

    pub(super) fn closes(&mut self, id: DoorId) -> bool {
        self.doors.outbox(id).is_none_or(|out| out.close_after())
    }

    pub(super) fn lose(&mut self, id: DoorId) {
        self.doors.lost(id, self.now);
        self.commit();
    }

    pub(super) fn mqtt(&mut self, client: &str) -> DoorId {
        let listener = DoorListener::Mqtt(Arc::new(ListenerConfig::default()));
        let id = self.doors.connect(&listener, Peer::default(), self.now).unwrap();
        self.decoders.insert(id, Decoder::client(Version::V5, Limits::default()));
        let mut connect = Connect::new(Version::V5, text(client));
        connect.clean_start = false;
        connect.properties.session_expiry_interval = Some(u32::MAX);
        self.packet(id, &Packet::Connect(Box::new(connect)));
        id
    }

    pub(super) fn packet(&mut self, id: DoorId, packet: &Packet) {
        let mut bytes = BytesMut::new();
        packet.encode(Version::V5, &mut bytes).unwrap();
        self.doors.input(id, &mut bytes, self.now);
        self.commit();
    }

    pub(super) fn packets(&mut self, id: DoorId) -> Vec<Packet> {
        self.commit();
        let mut bytes = self.bytes(id);
        let decoder = self.decoders.get_mut(&id).unwrap();
        let mut packets = Vec::new();
        while let Some(packet) = decoder.decode(&mut bytes).unwrap() {
            packets.push(packet);
        }
        packets
    }

    pub(super) fn mqtt_subscribe(&mut self, id: DoorId, filter: &str) {
        let filters = vec![Subscription::new(text(filter), Qos::ExactlyOnce)];
        let packet_id = PacketId::MIN;
        self.packet(id, &Packet::Subscribe(Subscribe { packet_id, filters, properties: None }));
    }

    pub(super) fn mqtt_publish(&mut self, id: DoorId, topic: &str, payload: &[u8], qos: Qos, packet: u16) {
        let mut publish = Publish::new(text(topic), payload.to_vec());
        publish.qos = qos;
        publish.packet_id = PacketId::new(packet).filter(|_| qos != Qos::AtMostOnce);
        self.packet(id, &Packet::Publish(publish));
    }
}

pub(super) fn sub(topic: &str) -> String {
    format!("{{\"type\":\"SUB\",\"topic\":\"{topic}\"}}")
}

pub(super) fn unsub(topic: &str) -> String {
    format!("{{\"type\":\"UNSUB\",\"topic\":\"{topic}\"}}")
}

pub(super) fn publish(topic: &str, msg: &str) -> String {
    format!("{{\"type\":\"PUB\",\"topic\":\"{topic}\",\"msg\":{msg}}}")
}

pub(super) fn pubrel(name: u64) -> String {
    format!("{{\"type\":\"PUBREL\",\"msgId\":{name}}}")
}

pub(super) fn pubrec(name: u64, topic: &str) -> String {
    format!("{{\"type\":\"PUBREC\",\"msgId\":{name},\"topic\":\"{topic}\"}}")
}

pub(super) fn pubcomp(name: u64, topic: &str) -> String {
    format!("{{\"type\":\"PUBCOMP\",\"msgId\":{name},\"topic\":\"{topic}\"}}")
}

pub(super) fn pubrec_out(name: u64) -> String {
    format!("{{\"msgId\":{name},\"type\":\"PUBREC\"}}")
}

pub(super) fn pubrel_out(name: u64) -> String {
    format!("{{\"msgId\":{name},\"type\":\"PUBREL\"}}")
}

pub(super) fn pubcomp_out(name: u64) -> String {
    format!("{{\"msgId\":{name},\"type\":\"PUBCOMP\"}}")
}

pub(super) fn error(why: &str) -> String {
    format!("ERROR \"{why}\"")
}

pub(super) fn json(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))
}

pub(super) fn name_of(line: &str) -> u64 {
    json(line)["msgId"].as_u64().unwrap()
}

pub(super) fn topic_of(line: &str) -> String {
    json(line)["topic"].as_str().unwrap().to_owned()
}

/// The messages that lines deliver.
pub(super) fn messages(lines: &[String]) -> Vec<serde_json::Value> {
    lines
        .iter()
        .map(|line| json(line))
        .filter(|line| line["type"] == "PUB")
        .map(|line| line["msg"].clone())
        .collect()
}
