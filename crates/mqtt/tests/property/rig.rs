//! A broker with both its doors on a simulated disk, two neighbours whose exchanges must go on, and strangers.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postroad_engine::log::JournalStore;
use postroad_journal::CommitterOptions;
use postroad_journal::storage::{CrashMode, SimStorage};
use postroad_mqtt::access::{Access, Attempt, Denied, Exchange, Identity, Permit, Step};
use postroad_mqtt::broker::{BrokerConfig, BrokerError, ListenerConfig, Overflow, Peer};
use postroad_mqtt::codec::{
    Ack, Connect, Decoder, Limits, Packet, PacketId, PacketType, Publish, Qos, ReasonCode, Subscribe,
    Subscription, Utf8, Version,
};
use postroad_mqtt::lines::{DoorId, DoorListener, Doors, LinesConfig, Role};

/// Bytes that may wait for one connection before it gets no more messages.
pub(crate) const MAX_OUTPUT: usize = 8 << 10;
/// The largest packet, and the longest line.
pub(crate) const MAX_PACKET: usize = 4 << 10;

/// Neighbours are known by their certificate; topics under `n/` are theirs.
struct Walls;

impl Access for Walls {
    fn authenticate(&self, attempt: &Attempt<'_>) -> Result<Identity, Denied> {
        match (attempt.certificate, attempt.user_name) {
            (Some(name), _) => Ok(Identity::user(name)),
            (None, Some("wrong")) => Err(Denied::BadUserNameOrPassword),
            (None, _) => Ok(Identity::anonymous()),
        }
    }

    fn begin_exchange(&self, method: &str, _: &Attempt<'_>) -> Result<Box<dyn Exchange>, Denied> {
        if method == "m" { Ok(Box::new(Countdown(2))) } else { Err(Denied::BadMethod) }
    }

    fn may_publish(&self, who: &Identity, _: &str, topic: &str, _: bool) -> bool {
        who.name().is_some() == topic.starts_with("n/")
    }

    fn may_subscribe(&self, _: &Identity, _: &str, filter: &str) -> Permit {
        if filter.ends_with("/no") { Permit::No(ReasonCode::NotAuthorized) } else { Permit::Yes }
    }

    fn may_receive(&self, who: &Identity, _: &str, topic: &str) -> bool {
        who.name().is_some() || !topic.starts_with("n/")
    }
}

/// An authentication of a few steps. `no` fails.
struct Countdown(u8);

impl Exchange for Countdown {
    fn step(&mut self, data: Option<&[u8]>) -> Step {
        self.0 = self.0.saturating_sub(1);
        match data {
            Some(b"no") => Step::Denied(Denied::Malformed),
            _ if self.0 == 0 => Step::Done(Identity::anonymous(), None),
            _ => Step::Continue(vec![self.0]),
        }
    }
}

/// A neighbour's side of its connection.
type End = (DoorId, Decoder);

/// See the module.
pub(crate) struct Rig {
    pub(crate) doors: Doors,
    pub(crate) storage: SimStorage,
    pub(crate) now: u64,
    store: Arc<JournalStore>,
    config: BrokerConfig,
    publisher: Option<End>,
    subscriber: Option<End>,
    sent: u64,
}

fn config(drop_oldest: bool) -> BrokerConfig {
    BrokerConfig {
        max_subscriptions: 8,
        max_queued: 16,
        max_queued_bytes: 16 << 10,
        overflow: if drop_oldest { Overflow::DropOldest } else { Overflow::DropNewest },
        max_output: MAX_OUTPUT,
        max_queues: 4,
        max_retained: 8,
        sys_interval: Duration::ZERO,
        ..BrokerConfig::default()
    }
}

fn listener() -> ListenerConfig {
    ListenerConfig {
        max_packet_size: MAX_PACKET as u32,
        max_connect_size: 1 << 10,
        receive_maximum: 4,
        topic_alias_maximum: 2,
        ..ListenerConfig::default()
    }
}

fn open(
    storage: &SimStorage,
    config: &BrokerConfig,
    now: u64,
) -> Result<(Doors, Arc<JournalStore>), BrokerError> {
    let options = CommitterOptions {
        disk_floor: 0,
        preallocate: false,
        direct_io: false,
        ..CommitterOptions::default()
    };
    let store = JournalStore::open_on(Arc::new(storage.clone()), Path::new("/data"), 64 << 10, options, now)?;
    let store = Arc::new(store);
    let lines = LinesConfig {
        max_line: MAX_PACKET,
        max_topics: 4,
        max_held: 8,
        max_letters: 8,
        max_output: MAX_OUTPUT,
        ..LinesConfig::default()
    };
    let doors = Doors::open(config.clone(), lines, store.clone(), Arc::new(Walls), now)?;
    Ok((doors, store))
}

impl Rig {
    /// On that disk, whatever is there; an error if the broker says that it cannot be.
    pub(crate) fn open(storage: SimStorage, drop_oldest: bool) -> Result<Self, BrokerError> {
        let config = config(drop_oldest);
        let now = 1_000_000;
        let (doors, store) = open(&storage, &config, now)?;
        let mut rig = Self { doors, storage, now, store, config, publisher: None, subscriber: None, sent: 0 };
        rig.commit();
        rig.neighbours();
        Ok(rig)
    }

    /// The neighbours come, or come back.
    fn neighbours(&mut self) {
        self.publisher = Some(self.neighbour("publisher"));
        let mut subscriber = self.neighbour("subscriber");
        let filters = vec![Subscription::new(Utf8::from_static("n/#"), Qos::ExactlyOnce)];
        let subscribe = Subscribe { packet_id: PacketId::MIN, filters, properties: None };
        self.tell(&subscriber, &subscribe.into());
        let heard = self.hear(&mut subscriber);
        assert!(matches!(heard[..], [Packet::Suback(_)]), "{heard:?}");
        self.subscriber = Some(subscriber);
    }

    fn neighbour(&mut self, client: &'static str) -> End {
        let peer = Peer { certificate: Some("neighbour".into()), ..Peer::default() };
        let door = DoorListener::Mqtt(Arc::new(ListenerConfig::default()));
        let id = self.doors.connect(&door, peer, self.now).expect("there is room");
        let mut end = (id, Decoder::client(Version::V5, Limits::default()));
        let mut connect = Connect::new(Version::V5, Utf8::from_static(client));
        connect.clean_start = false;
        connect.keep_alive = 0;
        connect.properties.session_expiry_interval = Some(u32::MAX);
        self.tell(&end, &connect.into());
        let heard = self.hear(&mut end);
        let [Packet::Connack(connack), open @ ..] = &heard[..] else { panic!("{client}: {heard:?}") };
        assert_eq!(connack.reason, ReasonCode::Success);
        // A PUBCOMP may be lost in a crash, nothing else of an exchange that is over.
        for packet in open {
            let Packet::Pubrel(ack) = packet else { panic!("{client}: {packet:?} again") };
            self.tell(&end, &Packet::Pubcomp(Ack::new(ack.packet_id)));
        }
        assert!(self.hear(&mut end).is_empty());
        end
    }

    fn tell(&mut self, end: &End, packet: &Packet) {
        let mut bytes = BytesMut::new();
        packet.encode(Version::V5, &mut bytes).expect("a packet");
        self.doors.input(end.0, &mut bytes, self.now);
        assert!(bytes.is_empty());
    }

    fn hear(&mut self, end: &mut End) -> Vec<Packet> {
        self.commit();
        let mut bytes = BytesMut::from(&self.take(end.0)[..]);
        let mut packets = Vec::new();
        while let Some(packet) = end.1.decode(&mut bytes).expect("the broker speaks MQTT") {
            packets.push(packet);
        }
        assert!(bytes.is_empty());
        packets
    }

    /// One message of QoS 2 between the neighbours, all eight packets of it.
    pub(crate) fn exchange(&mut self) {
        self.sent += 1;
        let payload = Bytes::from(self.sent.to_string());
        let id = PacketId::new(1 + (self.sent % 60_000) as u16).expect("not 0");
        let mut publish = Publish::new(Utf8::from_static("n/1"), payload.clone());
        (publish.qos, publish.packet_id) = (Qos::ExactlyOnce, Some(id));
        let (Some(mut publisher), Some(mut subscriber)) = (self.publisher.take(), self.subscriber.take())
        else {
            panic!("the neighbours are away");
        };
        self.tell(&publisher, &publish.into());
        assert_eq!(self.reasons(&mut publisher), [(PacketType::Pubrec, id)]);
        self.tell(&publisher, &Packet::Pubrel(Ack::new(id)));
        assert_eq!(self.reasons(&mut publisher), [(PacketType::Pubcomp, id)]);

        let heard = self.hear(&mut subscriber);
        let [Packet::Publish(got)] = &heard[..] else { panic!("not one message: {heard:?}") };
        assert_eq!((&got.payload, got.qos, got.dup), (&payload, Qos::ExactlyOnce, false));
        let id = got.packet_id.expect("QoS 2");
        self.tell(&subscriber, &Packet::Pubrec(Ack::new(id)));
        assert_eq!(self.reasons(&mut subscriber), [(PacketType::Pubrel, id)]);
        self.tell(&subscriber, &Packet::Pubcomp(Ack::new(id)));
        assert!(self.hear(&mut subscriber).is_empty());
        (self.publisher, self.subscriber) = (Some(publisher), Some(subscriber));
    }

    /// What came, of packets that succeed.
    fn reasons(&mut self, end: &mut End) -> Vec<(PacketType, PacketId)> {
        let heard = self.hear(end);
        let ack = |ack: &Ack| {
            assert!(!ack.reason.is_error(), "{ack:?}");
            ack.packet_id
        };
        heard
            .iter()
            .map(|packet| match packet {
                Packet::Pubrec(it) | Packet::Pubrel(it) | Packet::Pubcomp(it) => {
                    (packet.packet_type(), ack(it))
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    pub(crate) fn commit(&mut self) {
        while self.doors.pending().is_some() {
            while self.store.committer().commit_now().expect("the disk is well") {}
            self.doors.committed(self.now);
        }
    }

    pub(crate) fn pass(&mut self, millis: u64) {
        self.now += millis;
        self.doors.tick(self.now);
        self.commit();
    }

    /// The power goes, and comes back.
    pub(crate) fn crash(&mut self, mode: CrashMode) {
        self.storage.crash(mode);
        self.now += 1;
        let (doors, store) = open(&self.storage, &self.config, self.now).expect("what it wrote it can read");
        (self.doors, self.store) = (doors, store);
        self.commit();
        self.neighbours();
    }

    /// A stranger at the MQTT door, or at one of the lines'.
    pub(crate) fn stranger(&mut self, lines: Option<Role>) -> Stranger {
        let rules = Arc::new(listener());
        let door = match lines {
            None => DoorListener::Mqtt(rules),
            Some(role) => DoorListener::Lines(role, rules),
        };
        let id = self.doors.connect(&door, Peer::default(), self.now).expect("there is room");
        Stranger { id, buffer: BytesMut::new(), door }
    }

    /// Takes all that waits for a connection.
    pub(crate) fn take(&mut self, id: DoorId) -> Bytes {
        let mut bytes = BytesMut::new();
        if let Some(outbox) = self.doors.outbox(id) {
            while !outbox.is_empty() {
                let mut slices: Vec<IoSlice<'_>> = Vec::new();
                outbox.slices(&mut slices);
                let part: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                outbox.advance(part.len());
                bytes.extend_from_slice(&part);
            }
        }
        self.doors.written(id, self.now);
        bytes.freeze()
    }
}

/// A peer that sends anything.
pub(crate) struct Stranger {
    id: DoorId,
    buffer: BytesMut,
    door: DoorListener,
}

impl Stranger {
    /// Sends what it has, as far as the broker reads; what it is sent it does not read.
    pub(crate) fn send(&mut self, rig: &mut Rig, bytes: &[u8]) {
        if !rig.doors.wants_input(self.id) {
            return;
        }
        self.buffer.extend_from_slice(bytes);
        rig.doors.input(self.id, &mut self.buffer, rig.now);
        assert!(self.buffer.len() <= MAX_PACKET + 16, "{} bytes are kept", self.buffer.len());
        // Answers to one piece, and messages as long as there is room.
        let most = 2 * MAX_OUTPUT + 4 * MAX_PACKET;
        let out = rig.doors.outbox(self.id).map_or(0, |out| out.len());
        assert!(out <= most, "{out} bytes wait");
    }

    /// Reads all that waits for it; comes again if the broker was to close.
    pub(crate) fn read(&mut self, rig: &mut Rig) -> Bytes {
        rig.commit();
        let bytes = rig.take(self.id);
        if rig.doors.outbox(self.id).is_none_or(|out| out.close_after()) {
            self.again(rig);
        }
        bytes
    }

    /// Its connection is cut, and it comes again.
    pub(crate) fn again(&mut self, rig: &mut Rig) {
        rig.doors.lost(self.id, rig.now);
        rig.commit();
        self.dial(rig);
    }

    /// It comes again, after the broker died.
    pub(crate) fn dial(&mut self, rig: &mut Rig) {
        self.buffer.clear();
        self.id = rig.doors.connect(&self.door, Peer::default(), rig.now).expect("there is room");
    }
}
