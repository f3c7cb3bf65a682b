//! Dead letters from outside: they survive `kill -9`, every door reads them, and they go back to MQTT.

use std::process::Command;
use std::time::Duration;

use crate::client::{Client, Connect};
use crate::support::{A_WHILE, Server, Setup, eventually, free_port, seed, turn};
use crate::wire::{PUBREC, Packet, Props, Publish, Value, Version, ack_with, prop};

fn server() -> (Server, u16) {
    let port = free_port();
    let setup = Setup::default().argument("--mqtt").argument(&format!("127.0.0.1:{port}"));
    (setup.start(), port)
}

/// `postroad dlq WORDS`: whether it worked, and what it said.
fn dlq(server: &Server, words: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postroad"));
    command.arg("dlq").args(words).args(["--url", &format!("jsonlog://{}", server.addr())]);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

fn listed(server: &Server) -> String {
    let (ok, said) = dlq(server, &["ls"]);
    assert!(ok, "{said}");
    said
}

fn refuse(worker: &mut Client, count: usize) {
    for _ in 0..count {
        let message = worker.raw_message();
        worker.say(&ack_with(PUBREC, message.id, 0x83));
    }
}

#[test]
fn letters_outlive_a_kill_and_go_back_to_mqtt() {
    let _turn = turn();
    let (mut server, port) = server();
    let mut reader = Connect::durable(Version::V5, "reader").open(port);
    reader.subscribe("$dead/#", 1);
    let connect = Connect::durable(Version::V5, "worker");
    let mut worker = connect.open(port);
    worker.subscribe("jobs/#", 2);
    let mut publisher = Connect::new(Version::V5, "publisher").open(port);
    for n in 1..=3 {
        let message = Publish::new("jobs/a", format!("{{\"n\":{n}}}"), 2);
        publisher.publish_this(message.prop(prop::CONTENT_TYPE, Value::Text("application/json".into())));
    }
    refuse(&mut worker, 3);
    for n in 1..=3 {
        let letter = reader.message();
        assert_eq!((letter.topic.as_str(), letter.text()), ("$dead/jobs/a", &*format!("{{\"n\":{n}}}")));
        let said = letter.props.user();
        assert!(said.contains(&("postroad-dead-reason", "the subscriber refused it")), "{said:?}");
        assert!(said.contains(&("postroad-dead-attempts", "1")), "{said:?}");
    }
    eventually("the letters are in their topic", || listed(&server) == "jobs/a\t3\n");
    server.kill9();
    server.restart();
    assert_eq!(listed(&server), "jobs/a\t3\n");
    let (_, said) = dlq(&server, &["ls", "jobs/a"]);
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(said.contains("mqtt client worker") && said.contains("the subscriber refused it"), "{said}");
    let mut lines = server.client();
    assert!(lines.peek("$dead/jobs/a", "@1").json.contains("\"event\":{\"n\":1}"));
    // Nobody hears of them twice, and what was refused does not come again.
    let mut reader = Connect::durable(Version::V5, "reader").resume().open(port);
    let mut worker = connect.clone().resume().open(port);
    while let Some(packet) = reader.poll(A_WHILE) {
        // The record of a PUBACK may be lost: at QoS 1 that is a repetition, under the same id.
        assert!(matches!(&packet, Packet::Publish(message) if message.dup), "{packet:?}");
    }
    worker.quiet();
    // Back to where they came from.
    let (ok, said) = dlq(&server, &["kick", "jobs/a"]);
    assert!(ok && said.starts_with("3 dead letters"), "{said}");
    for n in 1..=3 {
        let message = worker.message();
        assert_eq!((message.text(), message.qos), (&*format!("{{\"n\":{n}}}"), 2));
        assert_eq!(message.props.text(prop::CONTENT_TYPE), Some("application/json"));
    }
    assert_eq!(listed(&server), "");
    server.kill9();
    server.restart();
    let mut worker = connect.clone().resume().open(port);
    worker.quiet();
    assert_eq!(listed(&server), "");
    assert_eq!(
        server.client().cmd("stats jobs/a").split(' ').nth(1),
        Some("not-found"),
        "no topic of JSON-log"
    );
    // To nobody they do not go.
    let mut publisher = Connect::new(Version::V5, "publisher").open(port);
    publisher.publish("jobs/a", "again", 2);
    refuse(&mut worker, 1);
    eventually("the letter is in its topic", || listed(&server) == "jobs/a\t1\n");
    worker.unsubscribe("jobs/#");
    let (ok, said) = dlq(&server, &["kick", "jobs/a"]);
    assert!(!ok && said.contains("nobody subscribes"), "{said}");
    assert_eq!(listed(&server), "jobs/a\t1\n");
    let mut late = Connect::new(Version::V5, "late").open(port);
    late.subscribe("jobs/#", 2);
    let (ok, said) = dlq(&server, &["kick", "jobs/a"]);
    assert!(ok, "{said}");
    assert_eq!(late.message().text(), "again");
    worker.disconnect_with(0, &Props::default());
}

#[test]
fn whenever_it_is_killed_each_refused_message_has_one_letter() {
    let _turn = turn();
    let (mut server, port) = server();
    let connect = Connect::durable(Version::V5, "worker");
    let mut worker = connect.open(port);
    worker.subscribe("jobs/#", 2);
    let mut rng = seed("dead");
    let rounds = 12u64;
    for n in 1..=rounds {
        let mut publisher = Connect::new(Version::V5, "publisher").open(port);
        publisher.publish("jobs/k", &n.to_string(), 2);
        refuse(&mut worker, 1);
        std::thread::sleep(Duration::from_millis(rng.u64(0..40)));
        server.kill9();
        server.restart();
        worker = connect.clone().resume().open(port);
        // The word of the worker, or the letter: one of them is there.
        eventually("the letter is in its topic", || {
            if let Some(Packet::Publish(message)) = worker.poll(Duration::from_millis(20)) {
                worker.say(&ack_with(PUBREC, message.id, 0x83));
            }
            listed(&server) == format!("jobs/k\t{n}\n")
        });
    }
    let mut lines = server.client();
    for n in 1..=rounds {
        let letter = lines.peek("$dead/jobs/k", &format!("@{n}"));
        assert!(letter.json.contains(&format!("\"event\":\"{n}\"")), "{}", letter.json);
    }
}
