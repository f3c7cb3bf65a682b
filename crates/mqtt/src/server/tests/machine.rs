//! A machine that does what a test asks of it: packets are two bytes of length, a command, and its argument.

use super::super::machine::{Machine, Origin, Output, Rules};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use postroad_engine::log::{Log, LogStore, Mark, Ticket};
use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct TestRules {
    pub(crate) max_connections: usize,
    pub(crate) connect_timeout: Duration,
}

impl Default for TestRules {
    fn default() -> Self {
        Self { max_connections: 20_000, connect_timeout: Duration::from_millis(300) }
    }
}

impl Rules for TestRules {
    fn name(&self) -> &'static str {
        "test"
    }
    fn max_connections(&self) -> usize {
        self.max_connections
    }
    fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }
}

#[derive(Default)]
pub(crate) struct TestOutbox {
    chunks: VecDeque<Bytes>,
    close: bool,
}

impl Output for TestOutbox {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
    fn slices<'a>(&'a self, out: &mut Vec<IoSlice<'a>>) {
        out.extend(self.chunks.iter().take(64).map(|chunk| IoSlice::new(chunk)));
    }
    fn advance(&mut self, mut written: usize) {
        while let Some(front) = self.chunks.front_mut() {
            let part = written.min(front.len());
            front.advance(part);
            written -= part;
            if !front.is_empty() {
                return;
            }
            self.chunks.pop_front();
        }
        self.chunks = VecDeque::new();
    }
    fn close_after(&self) -> bool {
        self.close
    }
}

struct Peer {
    outbox: TestOutbox,
    origin: Origin,
    held_until: Option<u64>,
    // Pieces still to be said, and their size.
    flood: u8,
    flood_size: usize,
}

pub(crate) struct Commands {
    log: Arc<dyn Log>,
    store: Arc<dyn LogStore>,
    peers: BTreeMap<u64, Peer>,
    next: u64,
    touched: Vec<u64>,
    waiting: VecDeque<(Ticket, u64, Bytes)>,
}

impl Commands {
    pub(crate) fn open(store: Arc<dyn LogStore>) -> Result<Self, String> {
        let log = store.open_system("edge-test", &mut |_| Ok(())).map_err(|error| error.to_string())?;
        // A log has no segment before its first snapshot.
        log.snapshot(0, &mut |append| append.record("cp", b"")).map_err(|error| error.to_string())?;
        Ok(Self {
            log,
            store,
            peers: BTreeMap::new(),
            next: 0,
            touched: Vec::new(),
            waiting: VecDeque::new(),
        })
    }

    fn say(&mut self, id: u64, words: Bytes) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let mut head = BytesMut::new();
        head.put_u32(words.len() as u32);
        peer.outbox.chunks.push_back(head.freeze());
        if !words.is_empty() {
            peer.outbox.chunks.push_back(words);
        }
        self.touched.push(id);
    }
}

impl Machine for Commands {
    type Id = u64;
    type Listener = TestRules;
    type Outbox = TestOutbox;

    fn connect(&mut self, _: &Arc<TestRules>, origin: Origin, _: u64) -> Option<u64> {
        self.next += 1;
        self.peers.insert(
            self.next,
            Peer { outbox: TestOutbox::default(), origin, held_until: None, flood: 0, flood_size: 0 },
        );
        Some(self.next)
    }

    fn input(&mut self, id: u64, input: &mut BytesMut, now: u64) {
        while self.wants_input(id) && input.len() >= 2 {
            let length = usize::from(u16::from_be_bytes([input[0], input[1]]));
            if input.len() < 2 + length {
                return;
            }
            input.advance(2);
            let packet = input.split_to(length).freeze();
            let argument = packet.slice(1..);
            match packet[0] {
                b'e' => self.say(id, argument),
                b'd' => {
                    let ticket = self.log.append(now, &mut |append| append.record("x", b"")).unwrap();
                    self.waiting.push_back((ticket, id, argument));
                }
                b'f' => {
                    if let Some(peer) = self.peers.get_mut(&id) {
                        peer.flood = argument[0];
                        peer.flood_size = usize::from(argument[1]) << 10;
                    }
                    self.written(id, now);
                }
                b'n' => {
                    let name = self.peers[&id].origin.certificate.clone().unwrap_or_default();
                    self.say(id, Bytes::copy_from_slice(name.as_bytes()));
                }
                b'x' => {
                    self.say(id, Bytes::from_static(b"bye"));
                    self.peers.get_mut(&id).unwrap().outbox.close = true;
                }
                b'h' => self.peers.get_mut(&id).unwrap().held_until = Some(now + 100),
                _ => panic!("as the test wants it"),
            }
        }
    }

    fn lost(&mut self, id: u64, _: u64) {
        self.peers.remove(&id);
    }

    fn committed(&mut self, _: u64) {
        while self.waiting.front().is_some_and(|(ticket, ..)| *ticket <= self.store.committed()) {
            let (_, id, words) = self.waiting.pop_front().unwrap();
            self.say(id, words);
        }
    }

    fn tick(&mut self, now: u64) {
        for (id, peer) in &mut self.peers {
            if peer.held_until.is_some_and(|until| until <= now) {
                peer.held_until = None;
                self.touched.push(*id);
            }
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        self.peers.values().filter_map(|peer| peer.held_until).min()
    }

    fn pending(&mut self) -> Option<Mark> {
        self.waiting.back().map(|(ticket, ..)| Mark::committed(*ticket))
    }

    fn touched(&mut self, out: &mut Vec<u64>) {
        out.append(&mut self.touched);
    }

    fn outbox(&mut self, id: u64) -> Option<&mut TestOutbox> {
        self.peers.get_mut(&id).map(|peer| &mut peer.outbox)
    }

    fn written(&mut self, id: u64, _: u64) {
        // A flood comes piece by piece, as far as the socket takes it.
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.flood > 0 {
            peer.flood -= 1;
            let size = peer.flood_size;
            self.say(id, Bytes::from(vec![b'f'; size]));
        }
    }

    fn wants_input(&mut self, id: u64) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.held_until.is_none() && !peer.outbox.close)
    }

    fn drain(&mut self, _: u64) {
        let ids: Vec<u64> = self.peers.keys().copied().collect();
        for id in ids {
            self.say(id, Bytes::from_static(b"drain"));
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.outbox.close = true;
            }
        }
    }
}
