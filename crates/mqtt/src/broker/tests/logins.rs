//! Passwords that are checked elsewhere: what happens to the connection meanwhile, and to those that come too many.

use crate::access::{FileAccess, FileSettings, PasswordCheck, users};
use crate::broker::{Broker, BrokerConfig, ConnId, ListenerConfig, Peer};
use crate::codec::{Connack, Connect, Decoder, Limits, Packet, ReasonCode, Utf8, Version};
use bytes::{Bytes, BytesMut};
use postroad_engine::log::{LogStore as _, MemoryStore};
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

struct Street {
    broker: Broker,
    store: Arc<MemoryStore>,
    access: Arc<FileAccess>,
    users: std::path::PathBuf,
    now: u64,
    _directory: tempfile::TempDir,
}

fn street(max_logins: usize) -> Street {
    let directory = tempfile::tempdir().unwrap();
    let users = directory.path().join("users");
    users::add(&users, "alice", b"wonderland", 4096).unwrap();
    let settings = FileSettings { users: Some(users.clone()), ..FileSettings::default() };
    let access = Arc::new(FileAccess::open(settings).unwrap());
    let config = BrokerConfig { max_logins, sys_interval: Duration::ZERO, ..BrokerConfig::default() };
    let store = Arc::new(MemoryStore::new(64 << 20));
    let mut broker = Broker::open(config, store.clone(), access.clone(), 1000).unwrap();
    broker.log_in_elsewhere();
    Street { broker, store, access, users, now: 1000, _directory: directory }
}

fn connect(version: Version, client: &str, password: &'static str) -> Vec<u8> {
    let mut connect = Connect::new(version, Utf8::try_from(client.to_owned()).unwrap());
    connect.user_name = Some(Utf8::from_static("alice"));
    connect.password = Some(Bytes::from_static(password.as_bytes()));
    connect.properties.session_expiry_interval = version.is_v5().then_some(u32::MAX);
    let mut bytes = BytesMut::new();
    Packet::Connect(Box::new(connect)).encode(version, &mut bytes).unwrap();
    bytes.to_vec()
}

impl Street {
    fn dial(&mut self, address: &str) -> ConnId {
        let peer = Peer { address: Some(address.parse().unwrap()), certificate: None };
        self.broker.connect(&Arc::new(ListenerConfig::default()), peer, self.now).unwrap()
    }

    fn come(&mut self, address: &str, client: &str, password: &'static str) -> ConnId {
        let id = self.dial(address);
        let mut bytes = BytesMut::from(&connect(Version::V5, client, password)[..]);
        self.broker.input(id, &mut bytes, self.now);
        assert!(bytes.is_empty());
        id
    }

    fn answer(&mut self, (id, check): (ConnId, PasswordCheck)) {
        self.broker.logged_in(id, check.run(), self.now);
        self.commit();
    }

    fn commit(&mut self) {
        self.store.flush(true);
        self.broker.committed(self.now);
    }

    fn next(&mut self) -> ConnId {
        let (id, _) = self.broker.next_login().unwrap();
        id
    }

    /// What was said to a client; `None`: nothing.
    fn said(&mut self, id: ConnId) -> Option<ReasonCode> {
        let outbox = self.broker.outbox(id).unwrap();
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        outbox.slices(&mut slices);
        let mut bytes = BytesMut::new();
        for slice in &slices {
            bytes.extend_from_slice(slice);
        }
        drop(slices);
        outbox.advance(bytes.len());
        let mut decoder = Decoder::client(Version::V5, Limits::default());
        match decoder.decode(&mut bytes).unwrap()? {
            Packet::Connack(connack) => {
                let Connack { reason, .. } = *connack;
                Some(reason)
            }
            Packet::Disconnect(disconnect) => Some(disconnect.reason),
            other => panic!("{other:?}"),
        }
    }

    fn is_closed(&mut self, id: ConnId) -> bool {
        self.broker.outbox(id).is_none_or(|outbox| outbox.close_after())
    }
}

const HERE: &str = "10.0.0.1:1000";

#[test]
fn nothing_is_read_until_the_password_is_checked() {
    let mut street = street(256);
    let id = street.dial(HERE);
    let mut bytes = BytesMut::from(&connect(Version::V5, "c", "wonderland")[..]);
    bytes.extend_from_slice(&[0xC0, 0]);
    street.broker.input(id, &mut bytes, street.now);
    assert_eq!(&bytes[..], [0xC0, 0], "what came behind CONNECT waits");
    assert!(!street.broker.wants_input(id));
    street.broker.input(id, &mut bytes, street.now);
    assert_eq!(bytes.len(), 2, "also when it is tried again");
    assert_eq!(street.said(id), None);
    let mut touched = Vec::new();
    street.broker.touched(&mut touched);
    touched.clear();
    let check = street.broker.next_login().unwrap();
    assert!(street.broker.next_login().is_none());
    assert!(!street.broker.wants_input(id), "the check has begun, no more");
    street.answer(check);
    street.broker.touched(&mut touched);
    assert_eq!(touched, [id], "it may be read");
    assert!(street.broker.wants_input(id));
    assert_eq!(street.said(id), Some(ReasonCode::Success));
    street.broker.input(id, &mut bytes, street.now);
    assert!(bytes.is_empty());
}

#[test]
fn a_password_that_was_right_is_not_checked_again_and_a_wrong_one_is() {
    let mut street = street(256);
    for (password, reason) in [
        ("wonderland", ReasonCode::Success),
        ("wrong", ReasonCode::BadUserNameOrPassword),
        ("wrong", ReasonCode::BadUserNameOrPassword),
    ] {
        let id = street.come(HERE, "first", password);
        let check = street.broker.next_login().unwrap();
        street.answer(check);
        assert_eq!(street.said(id), Some(reason));
    }
    let id = street.come(HERE, "second", "wonderland");
    assert!(street.broker.next_login().is_none());
    street.commit();
    assert_eq!(street.said(id), Some(ReasonCode::Success));
}

#[test]
fn a_client_that_is_gone_by_then_changes_nothing() {
    let mut street = street(256);
    let first = street.come(HERE, "c", "wonderland");
    let check = street.broker.next_login().unwrap();
    street.answer(check);
    assert_eq!(street.said(first), Some(ReasonCode::Success));
    // Gone while in line: nobody checks it.
    let gone = street.come(HERE, "c", "wrong");
    street.broker.lost(gone, street.now);
    assert!(street.broker.next_login().is_none());
    // Gone while it is checked: its place may be somebody else's.
    let gone = street.come(HERE, "c", "wrong");
    let (id, _) = street.broker.next_login().unwrap();
    street.broker.lost(gone, street.now);
    let other = street.dial(HERE);
    let alice = street.access.clone();
    let right = crate::access::Access::authenticate(
        &*alice,
        &crate::access::Attempt {
            client_id: "c",
            user_name: Some("alice"),
            password: Some(b"wonderland"),
            certificate: None,
            address: None,
            allow_anonymous: false,
        },
    );
    street.broker.logged_in(id, right, street.now);
    assert_eq!((street.said(other), street.said(first)), (None, None), "nobody was taken over");
    assert!(!street.is_closed(first));
}

#[test]
fn only_who_got_in_takes_a_session_over() {
    let mut street = street(256);
    let first = street.come(HERE, "c", "wonderland");
    let check = street.broker.next_login().unwrap();
    street.answer(check);
    assert_eq!(street.said(first), Some(ReasonCode::Success));
    let wrong = street.come(HERE, "c", "wrong");
    assert!(!street.is_closed(first), "a claim is no proof");
    let check = street.broker.next_login().unwrap();
    street.answer(check);
    assert_eq!(street.said(wrong), Some(ReasonCode::BadUserNameOrPassword));
    assert!(!street.is_closed(first));
    let right = street.come(HERE, "c", "wonderland");
    street.commit();
    assert_eq!(street.said(right), Some(ReasonCode::Success));
    assert_eq!(street.said(first), Some(ReasonCode::SessionTakenOver));
}

#[test]
fn a_check_that_takes_too_long_is_given_up() {
    let mut street = street(256);
    let (running, waiting) = (street.come(HERE, "a", "wonderland"), street.come(HERE, "b", "wonderland"));
    let check = street.broker.next_login().unwrap();
    street.now += 10_000;
    street.broker.tick(street.now);
    assert!(street.is_closed(running) && street.is_closed(waiting));
    assert!(street.broker.next_login().is_none(), "nobody waits for it");
    street.answer(check);
    assert_eq!(street.said(running), None);
}

#[test]
fn a_busy_address_stands_in_its_own_line() {
    let mut street = street(4);
    let strangers: Vec<_> = (0..4).map(|n| street.come(HERE, &format!("s{n}"), "guess")).collect();
    let neighbour = street.come("10.0.0.2:7", "neighbour", "wonderland");
    assert_eq!(street.said(strangers[3]), Some(ReasonCode::ServerBusy));
    assert!(street.is_closed(strangers[3]));
    let more = street.come(HERE, "s4", "guess");
    assert_eq!(street.said(more), Some(ReasonCode::ServerBusy), "the newcomer, of one long line");
    assert_eq!(street.next(), strangers[0]);
    assert_eq!(street.next(), neighbour, "its turn comes before the line of others is over");
    assert_eq!((street.next(), street.next()), (strangers[1], strangers[2]));
    assert!(street.broker.next_login().is_none());
    assert_eq!(street.broker.counters().busy, 2);
    // One network of version 6 is one source.
    let one = street.come("[2001:db8::1]:1", "v6-1", "guess");
    let two = street.come("[2001:db8::ffff:2]:1", "v6-2", "guess");
    let far = street.come("[2001:db8:0:1::1]:1", "v6-3", "guess");
    assert_eq!([street.next(), street.next(), street.next()], [one, far, two]);
}

#[test]
fn before_5_0_busy_is_return_code_3() {
    let mut street = street(0);
    let id = street.dial(HERE);
    let mut bytes = BytesMut::from(&connect(Version::V311, "old", "guess")[..]);
    street.broker.input(id, &mut bytes, street.now);
    let mut slices: Vec<IoSlice<'_>> = Vec::new();
    street.broker.outbox(id).unwrap().slices(&mut slices);
    assert_eq!(&*slices[0], [0x20, 2, 0, 3]);
}

#[test]
fn who_was_removed_meanwhile_does_not_get_in() {
    let mut street = street(256);
    let id = street.come(HERE, "c", "wonderland");
    let check = street.broker.next_login().unwrap();
    users::remove(&street.users, "alice").unwrap();
    assert!(street.access.reload().unwrap());
    // The connections are looked at before the check is done: it must not slip through behind that.
    street.broker.tick(street.now);
    street.answer(check);
    assert_eq!(street.said(id), Some(ReasonCode::BadUserNameOrPassword));
}

#[test]
fn the_end_does_not_wait_for_checks() {
    let mut street = street(256);
    let (running, waiting) = (street.come(HERE, "a", "wonderland"), street.come(HERE, "b", "wonderland"));
    let check = street.broker.next_login().unwrap();
    street.broker.drain(street.now);
    assert!(street.is_closed(running) && street.is_closed(waiting));
    assert!(street.broker.next_login().is_none());
    street.answer(check);
    assert_eq!(street.said(running), None);
}
