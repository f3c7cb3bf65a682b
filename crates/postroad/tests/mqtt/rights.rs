//! Who may do what, while it changes; and files that are not what they should be, which never give anybody a right.

use std::time::{Duration, Instant};

use crate::client::{Client, Connect, Will};
use crate::guarded::{Files, Guarded, RELOADED};
use crate::support::{PATIENCE, eventually, turn};
use crate::wire::{Props, Publish, Version};

const USERS: &[(&str, &str)] = &[("alice", "wonderland"), ("bob", "builder")];
const ALL: &str = "all\n  allow readwrite #\n";

fn guarded(acl: &str) -> Guarded {
    Files { users: USERS, acl: Some(acl), ..Files::default() }.start()
}

fn alice(server: &Guarded, id: &str) -> Client {
    server.open(Version::V5, id, "alice", "wonderland")
}

fn bob(server: &Guarded, id: &str) -> Client {
    server.open(Version::V5, id, "bob", "builder")
}

/// The codes for what is not allowed: SUBACK, PUBACK and PUBREC of 5.0; before it a closed connection.
#[test]
fn what_is_not_allowed_is_refused() {
    let _turn = turn();
    let server = guarded("user alice\n  allow publish a/#\n  allow subscribe b/#\n  deny receive b/secret\n");
    let mut client = alice(&server, "c");
    let codes = client.subscribe_all(
        &[("b/#", 2), ("b/x", 1), ("a/x", 1), ("#", 1), ("$share/g/b/+", 1), ("$share/g/a", 1)],
        Props::default(),
    );
    assert_eq!(codes, [2, 1, 0x87, 0x87, 1, 0x87]);
    for qos in [1, 2] {
        assert!(client.publish("a/x", "m", qos) < 0x80);
        assert_eq!(client.publish("b/x", "m", qos), 0x87, "the connection stays");
    }
    client.publish("b/x", "at QoS 0", 0);
    client.quiet();
    for qos in [1, 2] {
        let mut old = server.open(Version::V3, "old", "alice", "wonderland");
        old.say(&Publish::new("b/x", "m", qos).id(1).encode(Version::V3));
        assert_eq!(old.closed(), None, "3.1.1 has no other answer (3.3.5)");
    }
    let will = Will::new("b/x", "gone", 1);
    let connect = Connect::new(Version::V5, "will").user("alice").password("wonderland").will(will);
    assert_eq!(server.code(&connect), 0x87, "a will that may not be published");
    // Bob has no block and there is none for all.
    let mut client = bob(&server, "d");
    assert_eq!((client.subscribe("b/x", 1), client.publish("a/x", "m", 1)), (0x87, 0x87));
}

/// CVE-2021-34434, CVE-2018-12546: rights that are taken away are taken from those who are connected, from durable
/// subscriptions, and for retained messages.
#[test]
fn cve_2021_34434_cve_2018_12546_rights_taken_away_end_deliveries() {
    let _turn = turn();
    let server = guarded(ALL);
    let mut publisher = bob(&server, "publisher");
    let durable =
        || Connect::durable(Version::V5, "durable").user("alice").password("wonderland").open(server.port);
    let mut away = durable();
    let mut here = alice(&server, "here");
    for client in [&mut away, &mut here] {
        assert_eq!(client.subscribe("secret/#", 2), 2);
        assert_eq!(client.subscribe("public/#", 2), 2);
    }
    away.cut();
    publisher.publish_this(Publish::new("secret/kept", "retained", 1).retained());
    assert_eq!(here.message().text(), "retained");
    publisher.publish("secret/1", "queued", 2);
    assert_eq!(here.message().text(), "queued");

    server.rewrite("acl", "user bob\n  allow readwrite #\nuser alice\n  allow readwrite public/#\n");
    eventually("the new rules are in force", || here.subscribe("secret/none", 1) == 0x87);
    for qos in 0..=2 {
        publisher.publish("secret/2", "not for alice", qos);
        publisher.publish("public/1", "for all", qos);
        assert_eq!(here.message().text(), "for all", "QoS {qos}");
    }
    here.quiet();
    let mut back = durable();
    assert!(back.present);
    assert_eq!(back.texts(2), ["for all", "for all"], "of what was queued the public part");
    let mut again = alice(&server, "again");
    assert_eq!(again.subscribe("secret/kept", 1), 0x87);
    // A wildcard that is allowed as a subscription, with a part that may not be received.
    server.rewrite("acl", "all\n  allow readwrite #\nuser alice\n  deny receive secret/#\n");
    eventually("the new rules are in force", || again.subscribe("#", 1) == 1);
    let got = std::iter::from_fn(|| again.poll(Duration::from_millis(300))).count();
    assert_eq!(got, 0, "the retained message is not for her");
    publisher.publish("secret/3", "x", 1);
    publisher.publish("public/3", "y", 1);
    assert_eq!(again.message().text(), "y");
}

/// Publishing can be forbidden and allowed while the client is connected.
#[test]
fn rules_for_publishers_change_while_they_are_connected() {
    let _turn = turn();
    let server = guarded(ALL);
    let mut client = alice(&server, "c");
    let mut watcher = bob(&server, "w");
    watcher.subscribe("a/#", 1);
    for _ in 0..2 {
        assert_eq!(client.publish("a/b", "yes", 1), 0);
        assert_eq!(watcher.message().text(), "yes");
        server.rewrite("acl", "user bob\n  allow readwrite #\nuser alice\n  deny publish a/#\n");
        eventually("forbidden", || client.publish("a/b", "no?", 1) == 0x87);
        assert_eq!(client.publish("a/b", "no", 2), 0x87);
        while watcher.poll(Duration::from_millis(200)).is_some() {}
        server.rewrite("acl", ALL);
        eventually("allowed", || client.publish("a/c", "yes?", 1) == 0);
        while watcher.poll(Duration::from_millis(200)).is_some() {}
    }
}

/// CVE-2017-7650: names that are patterns, in rules with `%c` and `%u`, open nothing.
#[test]
fn cve_2017_7650_patterns_in_names_open_nothing() {
    let _turn = turn();
    // A name that begins with `#` is refused by `user add`, and cannot be in the file.
    let users =
        [("alice", "wonderland"), ("bob", "builder"), ("+", "x"), ("a/b", "x"), ("$SYS", "x"), ("x#", "x")];
    let acl = "all\n  allow readwrite by-client/%c/#\n  allow readwrite by-user/%u/#\n  deny publish by-client/%c/locked\n";
    let server = Files { users: &users, acl: Some(acl), ..Files::default() }.start();
    let mut victim = bob(&server, "victim");
    assert_eq!(victim.subscribe("by-client/victim/#", 1), 1);
    assert_eq!(victim.subscribe("by-user/bob/#", 1), 1);
    for name in ["#", "+", "a/b", "$SYS", "x#"] {
        for (id, user, password) in [(name, "alice", "wonderland"), ("plain", name, "x")] {
            if user == "#" {
                let connect = Connect::new(Version::V5, id).user(user).password(password);
                assert_eq!(server.code(&connect), 0x86);
                continue;
            }
            let mut client = server.open(Version::V5, id, user, password);
            let own = if id == name { "by-client" } else { "by-user" };
            for filter in ["#", "+/+/#", "by-client/#", "by-user/#", "by-client/victim/#", "by-user/bob/#"] {
                assert_eq!(client.subscribe(filter, 1), 0x87, "{id} {user}: {filter}");
            }
            for filter in
                [format!("{own}/{name}"), format!("{own}/{name}/#"), format!("{own}/+"), format!("{own}/+/x")]
            {
                // `#` inside of a filter is none at all.
                if filter.contains("#/") || filter.contains("x#") {
                    continue;
                }
                assert_eq!(client.subscribe(&filter, 1), 0x87, "{id} {user}: {filter}");
            }
            for topic in ["by-client/victim/x", "by-user/bob/x", "by-client/victim", "by-user/bob"] {
                assert_eq!(client.publish(topic, "mine", 1), 0x87, "{id} {user}: {topic}");
            }
        }
    }
    victim.quiet();
    assert_eq!(victim.publish("by-client/victim/locked", "x", 1), 0x87);
    assert!(victim.publish("by-client/victim/open", "x", 1) < 0x80);
}

/// `limit connections` and `limit subscriptions`, and the limit of the listener.
#[test]
fn limits_of_users_and_listeners() {
    let _turn = turn();
    let acl = "all\n  allow readwrite #\nuser alice\n  limit connections 2\n  limit subscriptions 3\n";
    let settings = ["mqtt.max_connections=4"];
    let server = Files { users: USERS, acl: Some(acl), settings: &settings }.start();
    let mut first = alice(&server, "1");
    let _second = alice(&server, "2");
    let third = Connect::new(Version::V5, "3").user("alice").password("wonderland");
    assert_eq!(server.code(&third), 0x97);
    let old = Connect::new(Version::V3, "3").user("alice").password("wonderland");
    assert!(!old.try_open(server.port).is_ok_and(|client| client.code == 0), "3.1.1 has no code for it");
    // The one with the same client id takes over: it is no third.
    let _first = alice(&server, "1");
    assert_eq!(first.closed(), Some(0x8E));
    drop((first, third, old));
    let mut bobs: Vec<Client> = Vec::new();
    eventually("those who were refused are gone", || {
        let connect = Connect::new(Version::V5, &format!("b{}", bobs.len())).user("bob").password("builder");
        bobs.extend(connect.try_open(server.port).ok().filter(|client| client.code == 0));
        bobs.len() == 2
    });
    let mut fifth = Client::silent(server.port, Version::V5).expect("the kernel takes it");
    assert!(fifth.next(PATIENCE).is_err(), "closed before CONNECT");
    drop(bobs.pop());
    eventually("room again", || Connect::new(Version::V3, "x").try_open(server.port).is_ok());
    let mut client = alice(&server, "2");
    for n in 0..3 {
        assert_eq!(client.subscribe(&format!("s/{n}"), 1), 1);
    }
    assert_eq!(client.subscribe("s/3", 1), 0x97);
    assert_eq!(client.subscribe("s/2", 2), 2, "one that is there may change");
}

/// CVE-2018-12550, -12551: a file that cannot be understood ends the start; it never means that there are no rules.
#[test]
fn cve_2018_12550_cve_2018_12551_bad_files_end_the_start() {
    let _turn = turn();
    let good =
        std::fs::read(Files { users: USERS, ..Files::default() }.start().file("users")).expect("users");
    let cut = &good[..good.len() - 1];
    for (what, name, content) in [
        ("words that are none", "acl", &b"user alice\n  allow everything #\n"[..]),
        ("not UTF-8", "acl", b"user al\xFFice\n  allow readwrite #\n"),
        ("a rule for nobody", "acl", b"allow readwrite #\n"),
        ("a bad filter", "acl", b"all\n  allow readwrite a/#/b\n"),
        ("cut in its last line", "acl", b"all\n  deny readwrite secre"),
        ("NUL bytes", "acl", &[0; 512]),
        ("no hash", "users", b"alice\n"),
        ("a password instead of a hash", "users", b"alice:wonderland\n"),
        ("cut in its last line", "users", cut),
        ("NUL bytes", "users", &[0; 512]),
        ("twice the same user", "users", &[&good[..], &good[..]].concat()),
        ("a directory", "directory", b""),
        ("none", "none", b""),
    ] {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join(name);
        match name {
            "none" => {}
            "directory" => std::fs::create_dir(&path).expect("a directory"),
            _ => std::fs::write(&path, content).expect("a file"),
        }
        let keys: &[&str] = match name {
            "acl" => &["mqtt.acl"],
            "users" => &["mqtt.users"],
            _ => &["mqtt.acl", "mqtt.users"],
        };
        for key in keys {
            let setting = format!("{key}={}", path.display());
            let mut server = Files { settings: &[&setting], ..Files::default() }.launch();
            let status = server.server.wait_exit(PATIENCE);
            assert_eq!(status.code(), Some(78), "{what}: {key}\n{}", server.server.stderr());
            assert!(server.server.stderr().contains(&*path.display().to_string()), "{what}: names the file");
            assert!(Client::silent(server.port, Version::V5).is_err(), "{what}: nobody listens");
        }
    }
}

/// CVE-2018-12550, -12551, the other half: files that are empty, or have only comments, allow nothing.
#[test]
fn cve_2018_12550_cve_2018_12551_empty_files_allow_nothing() {
    let _turn = turn();
    for text in ["", "\n\n", "# all\n#   allow readwrite #\n", "all\n", "user alice\n"] {
        let server = guarded(text);
        let mut client = alice(&server, "c");
        assert_eq!((client.subscribe("a", 1), client.publish("a", "x", 1)), (0x87, 0x87), "{text:?}");
    }
    for text in ["", "# nobody\n"] {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("users");
        std::fs::write(&path, text).expect("a file");
        let setting = format!("mqtt.users={}", path.display());
        let server = Files { settings: &[&setting], ..Files::default() }.start();
        assert_eq!(server.code(&Connect::new(Version::V5, "c")), 0x87, "{text:?}");
        let connect = Connect::new(Version::V5, "c").user("alice").password("wonderland");
        assert_eq!(server.code(&connect), 0x86, "{text:?}");
        assert_eq!(server.code(&connect.user("").password("")), 0x86, "{text:?}");
    }
}

/// At a reload the old rules stay until there are good new ones, for both files by themselves.
#[test]
fn bad_files_change_nothing_later() {
    let _turn = turn();
    let acl = "user alice\n  allow readwrite a/#\n";
    let server = guarded(acl);
    let mut client = alice(&server, "c");
    let holds = |client: &mut Client| {
        assert_eq!((client.subscribe("a/x", 0), client.subscribe("b", 0)), (0, 0x87));
        assert_eq!((client.publish("a/y", "x", 1) < 0x80, client.publish("b", "x", 1)), (true, 0x87));
        let connect = |password: &str| Connect::new(Version::V5, "d").user("alice").password(password);
        assert_eq!((server.code(&connect("wonderland")), server.code(&connect("x"))), (0, 0x86));
        assert_eq!(server.code(&Connect::new(Version::V5, "e")), 0x87);
    };
    holds(&mut client);
    let users = std::fs::read(server.file("users")).expect("users");
    let complaints = |server: &Guarded| server.server.stderr().matches("the old rules stay in force").count();
    for (name, content) in [
        ("acl", Some(&b"all\n  allow readwrite everything/#/everywhere\n"[..])),
        ("acl", Some(b"all\n  allow readwrite #")),
        ("acl", None),
        ("users", Some(b"alice:\n")),
        ("users", Some(&users[..users.len() / 2])),
        ("users", None),
    ] {
        let before = complaints(&server);
        match content {
            Some(content) => server.rewrite(name, content),
            None => std::fs::remove_file(server.file(name)).expect("it was there"),
        }
        eventually("it is seen", || complaints(&server) > before);
        holds(&mut client);
        server.rewrite("acl", acl);
        server.rewrite("users", &users);
        let begin = Instant::now();
        std::thread::sleep(Duration::from_millis(2500));
        assert!(begin.elapsed() < RELOADED);
        holds(&mut client);
    }
    client.ping();
}

/// What a client id cannot do by itself: ids of inner sessions are not for clients.
#[test]
fn reserved_ids_are_refused() {
    let _turn = turn();
    let server = guarded(ALL);
    let connect = Connect::new(Version::V5, "$lines/alice/x").user("alice").password("wonderland");
    assert_eq!(server.code(&connect), 0x85);
}
