//! Who gets in: passwords, SCRAM-SHA-256 (4.12), and that those who do not get in hold up nobody.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Client, Connect};
use crate::guarded::{Files, Guarded, RELOADED, Scram, add_user, user_line};
use crate::support::{PATIENCE, alone, eventually, turn};
use crate::wire::{Packet, Props, Value, Version, frame, prop};

const USERS: &[(&str, &str)] = &[("alice", "wonderland"), ("bob", "builder")];
const METHOD: &str = "SCRAM-SHA-256";

fn guarded() -> Guarded {
    Files { users: USERS, ..Files::default() }.start()
}

/// 3.2.2.2: names and passwords; a wrong one ends the connection with the code for it, and others are not asked why.
#[test]
fn mqtt_3_2_2_2_passwords() {
    let _turn = turn();
    let server = guarded();
    let v3 = |user: &str, password: &str| Connect::new(Version::V3, "v3").user(user).password(password);
    let v5 = |user: &str, password: &str| Connect::new(Version::V5, "v5").user(user).password(password);
    // Twice: what was right once is remembered, and what was wrong is not.
    for _ in 0..2 {
        for (user, password, code) in
            [("alice", "wonderland", 0), ("bob", "builder", 0), ("alice", "builder", 1), ("mallory", "x", 1)]
        {
            assert_eq!(server.code(&v3(user, password)), code * 4, "{user} {password}");
            assert_eq!(server.code(&v5(user, password)), code * 0x86, "{user} {password}");
        }
    }
    assert_eq!(server.code(&v3("alice", "")), 4);
    assert_eq!(server.code(&Connect::new(Version::V3, "v3").user("alice")), 4, "a name alone");
    assert_eq!(server.code(&Connect::new(Version::V3, "v3")), 5, "nobody in particular");
    assert_eq!(server.code(&Connect::new(Version::V5, "v5")), 0x87);
    let mut refused = v5("alice", "wrong").try_open(server.port).expect("CONNACK");
    assert_eq!(refused.closed(), None, "[MQTT-3.2.2-7]: closed after the refusal");
}

/// What a client sends in one segment behind its CONNECT is served when the password was checked, in its order.
#[test]
fn what_comes_behind_connect_waits_for_the_log_in() {
    let _turn = turn();
    let server = guarded();
    for version in [Version::V3, Version::V5] {
        for (password, right) in [("wonderland", true), ("wrong", false), ("wonderland", true)] {
            let connect = Connect::new(version, "hasty").user("alice").password(password);
            let mut client = Client::silent(server.port, version).expect("a connection");
            client.say(&[&connect.encode()[..], &[0xC0, 0], &[0xC0, 0]].concat());
            let code = match client.next(PATIENCE) {
                Ok(Some(Packet::Connack { code, .. })) => code,
                other => panic!("{other:?}"),
            };
            assert_eq!(code == 0, right);
            if right {
                for _ in 0..2 {
                    assert_eq!(client.next(PATIENCE).expect("open"), Some(Packet::Pingresp));
                }
            } else {
                assert_eq!(client.closed(), None);
            }
        }
    }
}

/// [MQTT-3.1.4-3]: a client id alone takes nobody's session over.
#[test]
fn only_who_gets_in_takes_over() {
    let _turn = turn();
    let server = guarded();
    let mut first = server.open(Version::V5, "taken", "alice", "wonderland");
    for (user, password) in [("alice", "wrong"), ("mallory", "wonderland")] {
        let connect = Connect::new(Version::V5, "taken").user(user).password(password);
        assert_eq!(server.code(&connect), 0x86);
    }
    // The session is alice's: another user is not let in to it.
    let connect = Connect::new(Version::V5, "taken").user("bob").password("builder");
    assert_eq!(server.code(&connect), 0x87);
    first.ping();
    let _second = server.open(Version::V5, "taken", "alice", "wonderland");
    assert_eq!(first.closed(), Some(0x8E));
}

/// Who is removed, or gets another password, is disconnected soon, and the old password is worth nothing.
#[test]
fn a_removed_user_is_disconnected() {
    let _turn = turn();
    let server = guarded();
    let mut alice = server.open(Version::V5, "a", "alice", "wonderland");
    let mut bob = server.open(Version::V5, "b", "bob", "builder");
    add_user(&server.file("users"), "alice", "another");
    let begin = Instant::now();
    assert_eq!(alice.closed(), Some(0x87));
    assert!(begin.elapsed() < RELOADED, "{:?}", begin.elapsed());
    bob.ping();
    let connect = |password: &str| Connect::new(Version::V5, "a").user("alice").password(password);
    assert_eq!(server.code(&connect("wonderland")), 0x86, "also though it was right once");
    assert_eq!(server.code(&connect("another")), 0);
}

fn scram_connect(id: &str, scram: &Scram) -> Connect {
    Connect::new(Version::V5, id)
        .prop(prop::AUTH_METHOD, Value::Text(METHOD.into()))
        .prop(prop::AUTH_DATA, Value::Bytes(scram.first()))
}

fn auth(reason: u8, data: &[u8]) -> Vec<u8> {
    let props = Props::default()
        .with(prop::AUTH_METHOD, Value::Text(METHOD.into()))
        .with(prop::AUTH_DATA, Value::Bytes(data.to_vec()));
    frame(0xF0, &[&[reason][..], &props.encode()].concat())
}

/// Reads AUTH 0x18, and answers it with `change` made to the proof.
#[track_caller]
fn prove(client: &mut Client, scram: &mut Scram, change: impl Fn(&mut Vec<u8>)) {
    match client.next(PATIENCE) {
        Ok(Some(Packet::Auth { code: 0x18, props })) => {
            assert_eq!(props.text(prop::AUTH_METHOD), Some(METHOD), "[MQTT-4.12.0-5]");
            let mut last = scram.last(props.bytes(prop::AUTH_DATA).expect("a challenge"));
            change(&mut last);
            client.say(&auth(0x18, &last));
        }
        other => panic!("no challenge but {other:?}"),
    }
}

/// A client that logged in with SCRAM.
fn scram_client(server: &Guarded, id: &str, user: &str, password: &str) -> Client {
    let mut scram = Scram::new(user, password, "fyko+d2lbbFgONRv9qkxdawL");
    let mut client = Client::silent(server.port, Version::V5).expect("a connection");
    client.say(&scram_connect(id, &scram).encode());
    prove(&mut client, &mut scram, |_| {});
    match client.next(PATIENCE) {
        Ok(Some(Packet::Connack { code: 0, props, .. })) => {
            assert_eq!(props.text(prop::AUTH_METHOD), Some(METHOD), "[MQTT-4.12.0-5]");
            assert_eq!(props.bytes(prop::AUTH_DATA), Some(scram.expected()), "the server has the hash, too");
        }
        other => panic!("no CONNACK but {other:?}"),
    }
    client
}

/// 4.12: the whole exchange, and each way to fail it.
#[test]
fn mqtt_4_12_scram_sha_256() {
    let _turn = turn();
    let server = guarded();
    let mut client = scram_client(&server, "scram", "alice", "wonderland");
    assert_eq!(client.subscribe("s", 1), 1);
    assert_eq!(client.publish("s", "in", 1), 0);
    assert_eq!(client.message().text(), "in");

    let refused =
        |what: &str, bytes: &[u8], proof: Option<&mut Scram>, change: fn(&mut Vec<u8>), code: u8| {
            let mut client = Client::silent(server.port, Version::V5).expect("a connection");
            client.say(bytes);
            if let Some(scram) = proof {
                prove(&mut client, scram, change);
            }
            match client.next(PATIENCE) {
                Ok(Some(Packet::Connack { code: said, .. })) => assert_eq!(said, code, "{what}"),
                other => panic!("{what}: {other:?}"),
            }
            assert_eq!(client.closed(), None, "{what}");
        };
    let flip = |proof: &mut Vec<u8>| {
        // Of the proof's base64 one digit, well inside.
        let at = proof.len() - 20;
        proof[at] = if proof[at] == b'A' { b'B' } else { b'A' };
    };
    for (what, user, password, change) in [
        ("a wrong proof", "alice", "wonderland", flip as fn(&mut Vec<u8>)),
        ("a wrong password", "alice", "builder", |_| {}),
        ("an unknown user", "mallory", "wonderland", |_| {}),
    ] {
        let mut scram = Scram::new(user, password, "fyko+d2lbbFgONRv9qkxdawL");
        let bytes = scram_connect("no", &scram).encode();
        refused(what, &bytes, Some(&mut scram), change, 0x86);
    }
    let mut scram = Scram::new("alice", "wonderland", "fyko+d2lbbFgONRv9qkxdawL");
    let bytes = scram_connect("no", &scram).encode();
    let other_nonce = |proof: &mut Vec<u8>| proof[10] ^= 1;
    refused("another nonce", &bytes, Some(&mut scram), other_nonce, 0x87);
    let connect = Connect::new(Version::V5, "no");
    let unknown = connect.clone().prop(prop::AUTH_METHOD, Value::Text("PLAIN".into()));
    refused("a method that is none [MQTT-4.12.0-1]", &unknown.encode(), None, |_| {}, 0x8C);
    let nonsense = scram_connect("no", &scram).prop(prop::AUTH_DATA, Value::Bytes(b"n,,hello".to_vec()));
    refused("no message of SCRAM", &nonsense.encode(), None, |_| {}, 0x87);
}

/// [MQTT-3.1.2-30]: until CONNACK a client that logs in with AUTH sends AUTH, or goes.
#[test]
fn mqtt_3_1_2_30_only_auth_comes_before_connack() {
    let _turn = turn();
    let server = guarded();
    for (what, bytes) in [
        ("PUBLISH", frame(0x30, b"\0\x01a\0x")),
        ("SUBSCRIBE", frame(0x82, b"\0\x01\0\0\x01a\x01")),
        ("PINGREQ", vec![0xC0, 0]),
        ("CONNECT", Connect::new(Version::V5, "twice").encode()),
        ("AUTH 0x19", auth(0x19, b"x")),
        ("AUTH 0x00", auth(0, b"x")),
    ] {
        let scram = Scram::new("alice", "wonderland", "fyko+d2lbbFgONRv9qkxdawL");
        let mut client = Client::silent(server.port, Version::V5).expect("a connection");
        client.say(&scram_connect("early", &scram).encode());
        let challenge = client.next(PATIENCE);
        assert!(matches!(challenge, Ok(Some(Packet::Auth { .. }))), "{what}: {challenge:?}");
        client.say(&bytes);
        let begin = Instant::now();
        loop {
            match client.next(PATIENCE) {
                Err(_) => break,
                Ok(Some(Packet::Connack { code: 0x80.., .. })) => {}
                other => panic!("{what}: {other:?}"),
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "{what}: at once");
    }
}

/// 4.12.1: to log in again on an open connection, as the same user only; meanwhile all goes on.
#[test]
fn mqtt_4_12_1_re_authentication() {
    let _turn = turn();
    let server = guarded();
    let mut client = scram_client(&server, "again", "alice", "wonderland");
    client.subscribe("again", 1);
    for round in 0..3 {
        let mut scram = Scram::new("alice", "wonderland", &format!("nonce-of-round-{round}-0123456789"));
        client.say(&auth(0x19, &scram.first()));
        client.say(&[0xC0, 0]);
        prove(&mut client, &mut scram, |_| {});
        assert_eq!(client.next(PATIENCE).expect("open"), Some(Packet::Pingresp), "it goes on meanwhile");
        match client.next(PATIENCE) {
            Ok(Some(Packet::Auth { code: 0, props })) => {
                assert_eq!(props.bytes(prop::AUTH_DATA), Some(scram.expected()));
            }
            other => panic!("{other:?}"),
        }
        client.publish("again", "still here", 1);
        assert_eq!(client.message().text(), "still here");
    }
    for (what, user, password) in [
        ("a wrong password", "alice", "wrong"),
        ("another user", "bob", "builder"),
        ("nobody", "mallory", "x"),
    ] {
        let mut client = scram_client(&server, "fails", "alice", "wonderland");
        let mut scram = Scram::new(user, password, "fyko+d2lbbFgONRv9qkxdawL");
        client.say(&auth(0x19, &scram.first()));
        prove(&mut client, &mut scram, |_| {});
        assert_eq!(client.closed(), Some(0x87), "{what} [MQTT-4.12.1-2]");
    }
    let mut client = scram_client(&server, "fails", "alice", "wonderland");
    let mut other = auth(0x19, b"n,,n=alice,r=abcdefgh");
    let at = other.windows(5).position(|part| part == b"SCRAM").expect("the method");
    other[at] = b'X';
    client.say(&other);
    assert_eq!(client.closed(), Some(0x8C), "[MQTT-4.12.1-1]: the method is that of CONNECT");
    // A client without a method in CONNECT has nothing to begin again.
    let mut client = server.open(Version::V5, "plain", "alice", "wonderland");
    client.say(&auth(0x19, b"n,,n=alice,r=abcdefgh"));
    assert!(client.closed().is_some_and(|code| [0x82, 0x8C].contains(&code)), "[MQTT-4.12.0-7]");
}

/// 50 strangers a second guess passwords of which each takes a tenth of a second of a processor: a neighbour is served
/// as before, and the user of that name still gets in.
#[test]
fn strangers_that_guess_hold_up_nobody() {
    let _turn = alone();
    let users = [("neighbour", "quiet")];
    let server = Files { users: &users, ..Files::default() }.start();
    let mut neighbour = server.open(Version::V5, "neighbour", "neighbour", "quiet");
    // Guesses at an unknown name cost as much as those at a known one.
    let text = std::fs::read_to_string(server.file("users")).expect("the users");
    let iterations =
        std::env::var("POSTROAD_TEST_ITERATIONS").map_or(400_000, |n| n.parse().expect("a number"));
    server.rewrite("users", format!("{text}{}", user_line("alice", "wonderland", iterations)));
    let alice = Connect::new(Version::V5, "alice").user("alice").password("wonderland");
    eventually("the new user is known", || server.code(&alice) == 0);
    let p99 = |client: &mut Client, span: Duration| {
        let (begin, mut took) = (Instant::now(), Vec::new());
        while begin.elapsed() < span {
            let sent = Instant::now();
            assert_eq!(client.publish("n", "x", 1), 0x10);
            took.push(sent.elapsed());
            std::thread::sleep(Duration::from_millis(2));
        }
        took.sort_unstable();
        (took[took.len() * 99 / 100], took[took.len() - 1], took.len())
    };
    let before = p99(&mut neighbour, Duration::from_secs(2));
    let (over, asked, busy) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let port = server.port;
    let during = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut open = Vec::new();
            let guess = Connect::new(Version::V5, "stranger").user("alice").password("guess").encode();
            while !over.load(Ordering::Relaxed) {
                let mut client = Client::silent(port, Version::V5).expect("a connection");
                client.say(&guess);
                asked.fetch_add(1, Ordering::Relaxed);
                open.push(client);
                std::thread::sleep(Duration::from_millis(20));
            }
            for client in &mut open {
                match client.next(Duration::from_millis(1)) {
                    Ok(Some(Packet::Connack { code: 0x89, .. })) => {
                        busy.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(None | Some(Packet::Connack { code: 0x86, .. })) | Err(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
        let during = p99(&mut neighbour, Duration::from_secs(6));
        // Its password was right before.
        let begin = Instant::now();
        assert_eq!(server.code(&alice), 0);
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        over.store(true, Ordering::Relaxed);
        during
    });
    println!(
        "p99, worst, messages: {before:?} alone, {during:?} beside {asked:?} guesses, {busy:?} of them busy"
    );
    assert!(asked.load(Ordering::Relaxed) > 100, "{asked:?} guesses");
    assert!(during.0 < Duration::from_millis(50), "p99 {:?}, alone {:?}", during.0, before.0);
}
