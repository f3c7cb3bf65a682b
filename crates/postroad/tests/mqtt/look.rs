//! `postroad mqtt`: what the log says, read beside a server that runs and after it, and who may log in.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value as Json;

use crate::client::{Connect, Will};
use crate::support::{Server, Setup, eventually, free_port, turn};
use crate::wire::{PUBCOMP, PUBREC, PUBREL, Props, Publish, Value, Version, ack, frame, prop, string};

fn postroad(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_postroad"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read it may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(args: &[&str]) -> String {
    let output = postroad(args, "");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of `postroad mqtt WORDS -o json`.
fn look(data: &Path, words: &[&str]) -> Vec<Json> {
    let args = [&["mqtt"], words, &["-o", "json", "--data", data.to_str().unwrap()]].concat();
    text(&args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A server of ours, whatever the environment says, and the port of its MQTT door.
fn server() -> (Server, u16) {
    let port = free_port();
    let setup = Setup::default().argument("--mqtt").argument(&format!("127.0.0.1:{port}"));
    (setup.start(), port)
}

/// Every file below a directory with what is in it.
fn files(dir: &Path, out: &mut Vec<(std::path::PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, out) } else { out.push((path.clone(), std::fs::read(path).unwrap())) }
    }
    out.sort();
}

#[test]
fn what_is_owed_is_seen_while_the_server_runs_and_after_a_kill() {
    let _turn = turn();
    let (mut server, port) = server();
    let mut subscriber = Connect::durable(Version::V5, "look-sub").open(port);
    subscriber.subscribe("look/#", 2);
    let mut publisher = Connect::durable(Version::V5, "look-pub").open(port);
    publisher.say(&Publish::new("look/a", "12345", 2).id(7).encode(Version::V5));
    assert_eq!(publisher.acked(PUBREC, 7), 0);
    let message = subscriber.raw_message();
    subscriber.say(&ack(PUBREC, message.id));
    subscriber.acked(PUBREL, message.id);
    let data = server.data().to_owned();

    let flying = look(&data, &["inflight"]);
    let seen: Vec<_> = flying
        .iter()
        .map(|line| (line["client"].as_str(), line["way"].as_str(), line["packet"].as_u64()))
        .collect();
    let expected = [
        (Some("look-pub"), Some("incoming"), Some(7)),
        (Some("look-sub"), Some("outgoing"), Some(u64::from(message.id))),
    ];
    assert_eq!(seen, expected);
    assert_eq!(
        (flying[1]["phase"].as_str(), flying[1]["topic"].as_str(), flying[1]["bytes"].as_u64()),
        (Some("released"), Some("look/a"), Some(5))
    );
    let sessions = look(&data, &["sessions"]);
    assert!(sessions.iter().all(|session| session["connected"] == true), "{sessions:?}");

    server.kill9();
    let mut before = Vec::new();
    files(&data, &mut before);
    assert_eq!(look(&data, &["inflight"]), flying, "a kill changes nothing");
    let mut after = Vec::new();
    files(&data, &mut after);
    assert!(before == after, "looking changed a file");

    server.respawn();
    server.wait_ready();
    let mut publisher = Connect::durable(Version::V5, "look-pub").open(port);
    publisher.say(&ack(PUBREL, 7));
    publisher.acked(PUBCOMP, 7);
    let mut subscriber = Connect::durable(Version::V5, "look-sub").open(port);
    subscriber.acked(PUBREL, message.id);
    subscriber.say(&ack(PUBCOMP, message.id));
    // The record of a PUBCOMP may wait for some milliseconds.
    eventually("nothing is in flight", || look(&data, &["inflight"]).is_empty());
    let text = text(&["mqtt", "inflight", "--data", data.to_str().unwrap()]);
    assert_eq!(text, "");
}

#[test]
fn a_session_is_shown_with_all_that_it_has() {
    let _turn = turn();
    let (server, port) = server();
    let connect = Connect::durable(Version::V5, "look-one").expiry(90);
    let mut client = connect.will(Will::new("look/gone", "bye", 1).delay(60)).open(port);
    client.subscribe_all(&[("look/x", 2 | 4 | 8)], Props::default());
    client.subscribe_all(&[("$share/g/look/y", 1)], Props::default());
    client.cut();
    eventually("it is away", || look(server.data(), &["session", "look-one"])[0]["connected"] == false);
    let mut publisher = Connect::new(Version::V3, "look-p").open(port);
    for n in 0..3 {
        publisher.publish("look/x", &format!("{n}"), 2);
    }
    let shown = look(server.data(), &["session", "look-one"]).remove(0);
    let expected = serde_json::json!([
        {"filter": "$share/g/look/y", "qos": 1, "no_local": false, "retain_as_published": false, "id": null},
        {"filter": "look/x", "qos": 2, "no_local": true, "retain_as_published": true, "id": null},
    ]);
    assert_eq!(shown["subscriptions"], expected);
    assert_eq!((shown["expiry"].as_u64(), shown["connected"].as_bool()), (Some(90), Some(false)));
    assert_eq!(shown["will"]["topic"], "look/gone");
    let phases: Vec<_> =
        shown["outgoing"].as_array().unwrap().iter().map(|m| m["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["queued"; 3]);
    let data = server.data().to_str().unwrap();
    let text = text(&["mqtt", "session", "look-one", "--data", data]);
    assert!(text.contains("\nsubscription look/x qos 2 no-local retain-as-published\n"), "{text}");
    assert!(text.contains("\nwill look/gone qos 1 3 bytes delay 60 s\n"), "{text}");
    assert_eq!(postroad(&["mqtt", "session", "nobody", "--data", data], "").status.code(), Some(1));
    assert_eq!(postroad(&["mqtt", "sessions", "--data", "/nowhere/at/all"], "").status.code(), Some(73));
}

#[test]
fn retained_messages_are_listed_by_filter_and_expired_ones_are_not() {
    let _turn = turn();
    let (server, port) = server();
    let mut client = Connect::new(Version::V5, "look-r").open(port);
    client.publish_this(Publish::new("look/r/1", "old", 1).retained());
    client.publish_this(Publish::new("look/r/1", "newer", 1).retained());
    client.publish_this(Publish::new("look/r/2", "x", 1).retained());
    client.publish_this(Publish::new("other", "x", 1).retained());
    client.publish_this(Publish::new("other", "", 1).retained());
    let brief = Value::Four(1);
    client.publish_this(Publish::new("look/brief", "x", 1).retained().prop(prop::MESSAGE_EXPIRY, brief));
    let topics = |words: &[&str]| -> Vec<(String, u64)> {
        let lines = look(server.data(), words);
        lines
            .iter()
            .map(|line| (line["topic"].as_str().unwrap().to_owned(), line["bytes"].as_u64().unwrap()))
            .collect()
    };
    assert_eq!(topics(&["retained", "look/r/+"]), [("look/r/1".to_owned(), 5), ("look/r/2".to_owned(), 1)]);
    eventually("it expired", || topics(&["retained"]).len() == 2);
    let data = server.data().to_str().unwrap();
    assert_eq!(postroad(&["mqtt", "retained", "a/#/b", "--data", data], "").status.code(), Some(1));
}

#[test]
fn users_are_added_removed_and_let_in() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users");
    let users = file.to_str().unwrap();
    let user = |words: &[&str], stdin: &str| {
        postroad(&[&["mqtt", "user"], words, &["--users", users]].concat(), stdin)
    };
    assert_eq!(user(&["list"], "").status.code(), Some(73));
    assert_eq!(user(&["add", "alice"], "secret\n").stdout, b"alice added\n");
    assert_eq!(user(&["add", "bob"], "other").stdout, b"bob added\n");
    assert_eq!(user(&["add", "alice"], "newer\n").stdout, b"alice has a new password\n");
    assert_eq!(user(&["add", "eve"], "two\nlines\n").status.code(), Some(65));
    assert_eq!(user(&["add", "eve"], "").status.code(), Some(65), "no password");
    assert_eq!(user(&["add", "e:ve"], "x\n").status.code(), Some(65));
    assert_eq!(user(&["list"], "").stdout, b"alice\nbob\n");
    assert_eq!(user(&["remove", "bob"], "").stdout, b"bob removed\n");
    assert_eq!(user(&["remove", "bob"], "").status.code(), Some(1));
    assert!(!std::fs::read_to_string(&file).unwrap().contains("newer"), "the password is in the file");
    // A password is no argument.
    assert_eq!(user(&["add", "alice", "secret"], "").status.code(), Some(2));

    let port = free_port();
    let setup = Setup::default().argument("--mqtt").argument(&format!("127.0.0.1:{port}"));
    let server = setup.argument("--set").argument(&format!("mqtt.users={users}")).start();
    let code = |password: &str| {
        let head =
            [string("MQTT"), vec![4, 0b1100_0000, 0, 0], string("look-u"), string("alice"), string(password)];
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.write_all(&frame(0x10, &head.concat())).unwrap();
        let mut connack = [0; 4];
        socket.read_exact(&mut connack).unwrap();
        connack[3]
    };
    assert_eq!((code("newer"), code("secret")), (0, 4));
    assert_eq!(look(server.data(), &["sessions"])[0]["user"], "alice");
    let shown = text(&["mqtt", "session", "look-u", "--data", server.data().to_str().unwrap()]);
    assert!(shown.contains("\nuser alice\n"), "{shown}");
}
