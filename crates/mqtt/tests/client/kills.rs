//! A publisher with an outbox and a consumer with an inbox, each killed again and again (`kill -9`) in the middle of
//! their exchanges with a real server, while connections are cut. Nothing may be lost, and nothing come again after
//! its ack was answered.
//!
//! The processes are this test's own program, told by the environment what to do. They write down what they know in files,
//! each line with one call.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use postroad_conformance::proxy::Proxy;
use postroad_core::{
    Backend, Envelope, MessageId, PublisherExt as _, SubscribeOptions, SubscriptionExt as _,
};
use postroad_mqtt::client::{Mqtt, MqttOptions};
use postroad_mqtt::codec::{Direction, Limits, Packet, Version, decode_packet};

use crate::own::Own;

const ROLE: &str = "POSTROAD_MQTT_ROLE";
const URL: &str = "POSTROAD_MQTT_URL";
const NOTES: &str = "POSTROAD_MQTT_NOTES";
const COUNT: &str = "POSTROAD_MQTT_COUNT";
const PLANT: &str = "POSTROAD_MQTT_PLANT";
const TOPIC: &str = "kills/a";

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

struct Notes(File);

impl Notes {
    fn open() -> Self {
        let path = variable(NOTES);
        Self(OpenOptions::new().create(true).append(true).open(path).unwrap())
    }

    fn write(&mut self, line: &str) {
        self.0.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Publishes in order what is not known to be confirmed.
async fn publish(backend: &Mqtt, count: u64) {
    let mut notes = Notes::open();
    let done = lines(Path::new(&variable(NOTES))).len() as u64;
    let publisher = backend.publisher().await.unwrap();
    let mut tickets = std::collections::VecDeque::new();
    for number in done..count {
        publisher.ready().await.unwrap();
        // Slow enough to be killed in the middle.
        tokio::time::sleep(Duration::from_millis(u64::from(count < 1000))).await;
        let id = MessageId::text(format!("m-{number}")).unwrap();
        let envelope = Envelope::new(TOPIC.parse().unwrap(), number.to_string()).with_id(id);
        tickets.push_back((number, publisher.publish(envelope)));
        if tickets.len() > 50
            && let Some((number, ticket)) = tickets.pop_front()
        {
            ticket.await.into_result().unwrap();
            notes.write(&number.to_string());
        }
    }
    for (number, ticket) in tickets {
        ticket.await.into_result().unwrap();
        notes.write(&number.to_string());
    }
}

/// Receives until it is killed; subscribes again when its connection is cut.
async fn receive(backend: &Mqtt) {
    let mut notes = Notes::open();
    loop {
        let options = SubscribeOptions::new(TOPIC.parse().unwrap()).named("n");
        let Ok(mut inbox) = backend.subscribe(options).await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        notes.write("ready");
        let mut batch = Vec::new();
        while inbox.next_batch(&mut batch, 16).await.is_ok() {
            let mut settled = Vec::new();
            for delivery in batch.drain(..) {
                let number = String::from_utf8_lossy(&delivery.envelope.payload).into_owned();
                let again = if delivery.redelivered { " again" } else { "" };
                notes.write(&format!("got {number}{again}"));
                settled.push((number, delivery.ack()));
            }
            for (number, settled) in settled {
                if settled.await.is_ok() {
                    notes.write(&format!("acked {number}"));
                }
            }
        }
    }
}

#[test]
#[ignore = "a process of the tests here"]
fn worker() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let until = Instant::now() + Duration::from_secs(10);
        let backend = loop {
            let mut options = MqttOptions::from_url(&variable(URL)).unwrap();
            options.planted.id_forgotten = std::env::var(PLANT).is_ok_and(|plant| plant == "id_forgotten");
            match Mqtt::connect(options).await {
                Ok(backend) => break backend,
                // The connection of the question may be cut, too.
                Err(why) => assert!(Instant::now() < until, "{why}"),
            }
        };
        match role.as_str() {
            "publish" => publish(&backend, variable(COUNT).parse().unwrap()).await,
            _ => receive(&backend).await,
        }
    });
}

struct Worker {
    role: &'static str,
    url: String,
    notes: PathBuf,
    count: u64,
    plant: &'static str,
    child: Child,
}

impl Worker {
    fn start(role: &'static str, url: String, notes: PathBuf, count: u64, plant: &'static str) -> Self {
        let child = Self::spawn(role, &url, &notes, count, plant);
        Self { role, url, notes, count, plant, child }
    }

    fn spawn(role: &str, url: &str, notes: &Path, count: u64, plant: &str) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kills::worker", "--ignored", "--nocapture"])
            .env(ROLE, role)
            .env(URL, url)
            .env(NOTES, notes)
            .env(COUNT, count.to_string())
            .env(PLANT, plant)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// `kill -9`, and another one in its place. Whether it had ended by itself.
    fn kill(&mut self) -> bool {
        if let Some(status) = self.child.try_wait().unwrap() {
            assert!(status.success(), "{} ended with {status}", self.role);
            return true;
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(self.role, &self.url, &self.notes, self.count, self.plant);
        false
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What each message went through, and what is wrong with it.
fn check(notes: &[String], count: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut acked: BTreeMap<&str, usize> = BTreeMap::new();
    let mut got: BTreeMap<&str, usize> = BTreeMap::new();
    for line in notes {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("got"), Some(number), again) => {
                if acked.contains_key(number) {
                    wrong.push(format!("{number} came after its ack"));
                }
                let before = got.entry(number).or_default();
                if *before > 0 && again.is_none() {
                    wrong.push(format!("{number} came twice as if it were new"));
                }
                *before += 1;
            }
            (Some("acked"), Some(number), _) => *acked.entry(number).or_default() += 1,
            _ => {}
        }
    }
    wrong.extend(
        (0..count)
            .map(|n| n.to_string())
            .filter(|n| !got.contains_key(n.as_str()))
            .map(|n| format!("{n} is lost")),
    );
    wrong
}

/// Messages that the server sent again after its PUBREL, which it must not [MQTT-4.3.3-6], by what the inbox wrote down: PUBREL
/// for the id of a message, and then this message once more, with the same id and DUP.
fn sent_after_pubrel(inbox: &Path) -> BTreeSet<String> {
    use base64::Engine as _;
    let mut ids = BTreeMap::new();
    let mut released = BTreeSet::new();
    let mut again = BTreeSet::new();
    let files = std::fs::read_dir(inbox).unwrap().flatten().filter(|entry| entry.path().is_dir());
    for file in files.flat_map(|log| std::fs::read_dir(log.path()).unwrap().flatten()) {
        for line in lines(&file.path()) {
            let Ok(record) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
            if record["k"] == "rel" {
                released.extend(record["packet_id"].as_u64());
            }
            let Some(packet) = record["packet"].as_str().filter(|_| record["k"] == "in") else { continue };
            let packet = base64::engine::general_purpose::STANDARD.decode(packet).unwrap();
            let packet = decode_packet(packet.into(), Version::V5, Direction::ToClient, &Limits::default());
            let Ok(Packet::Publish(publish)) = packet else { panic!("{line}") };
            let id = u64::from(publish.packet_id.expect("QoS 2").get());
            let number = String::from_utf8_lossy(&publish.payload).into_owned();
            if publish.dup && released.contains(&id) && ids.get(&number) == Some(&id) {
                again.insert(number.clone());
            }
            released.remove(&id);
            ids.insert(number, id);
        }
    }
    again
}

fn rounds() -> u32 {
    std::env::var("POSTROAD_KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// What is wrong after `rounds` kills and cuts, and `each` messages for each of them; and of which messages the server sent
/// more than it may.
fn run(
    server: SocketAddr,
    rounds: u32,
    each: u64,
    plant: &'static str,
    version: &str,
) -> (Vec<String>, BTreeSet<String>) {
    let proxy = Proxy::start(server).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let url = |boxes: String| format!("mqtt://{}?client_id=kills&version={version}&{boxes}", proxy.address());
    let count = each * u64::from(rounds);

    let mut consumer = Worker::start(
        "receive",
        url(format!("inbox={}", place("in").display())),
        place("received"),
        count,
        plant,
    );
    let until = Instant::now() + Duration::from_secs(20);
    while !lines(&place("received")).iter().any(|line| line == "ready") {
        assert!(Instant::now() < until, "the consumer does not subscribe");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut producer = Worker::start(
        "publish",
        url(format!("outbox={}", place("out").display())),
        place("published"),
        count,
        "",
    );
    let mut random = fastrand::Rng::new();
    println!("seed {}", random.get_seed());
    let (mut kills, mut cuts) = (0, 0);
    for _ in 0..rounds {
        std::thread::sleep(Duration::from_millis(random.u64(20..250)));
        match random.u8(..5) {
            0 => {
                proxy.cut();
                cuts += 1;
            }
            1 | 2 => {
                kills += 1;
                consumer.kill();
            }
            _ => {
                kills += 1;
                producer.kill();
            }
        }
    }
    // Now in peace.
    let until = Instant::now() + Duration::from_secs(60);
    while producer.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "the publisher does not end: {:?}", lines(&place("published")).len());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(lines(&place("published")).len() as u64, count, "confirmed");
    let acked = || lines(&place("received")).iter().filter(|line| line.starts_with("acked ")).count();
    let mut last = (acked(), Instant::now());
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = acked();
        if now != last.0 {
            last = (now, Instant::now());
        }
        // Quiet: all that will come has come.
        if last.1.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
    let notes = lines(&place("received"));
    let again = notes.iter().filter(|line| line.ends_with(" again")).count();
    let wrong = check(&notes, count);
    let broken = sent_after_pubrel(&place("in"));
    println!(
        "{kills} kills, {cuts} cuts, {count} messages, {again} deliveries were repeated before their ack"
    );
    if !wrong.is_empty() && plant.is_empty() {
        // Notes and boxes: what both sides knew.
        println!("kept: {}", directory.keep().display());
    }
    (wrong, broken)
}

fn assert_nothing(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(10)]);
}

#[test]
fn nothing_is_lost_or_comes_again_when_both_clients_are_killed() {
    let server = Own::start();
    let (wrong, again) = run(server.address(), rounds(), 400, "", "5");
    assert_nothing(&wrong);
    assert!(again.is_empty(), "{again:?}");
}

#[test]
fn nor_with_3_1_1() {
    let server = Own::start();
    let (wrong, again) = run(server.address(), rounds(), 400, "", "3.1.1");
    assert_nothing(&wrong);
    assert!(again.is_empty(), "{again:?}");
}

/// It keeps its state in memory, and is not killed here. It keeps no more than a thousand messages for a consumer that is
/// away, and drops the others: there are fewer.
///
/// When a client connects twice in a row and is gone before mosquitto has sent the first PUBREL of the first time, it has
/// forgotten the second time that PUBREC came, and sends these messages again. It takes some fifty runs to see it; what
/// the inbox wrote down proves it, and only that is let pass.
fn with_mosquitto(version: &str) {
    let server = crate::harness::mosquitto();
    let address = server.address(postroad_testbed::Service::Mqtt).unwrap();
    let (mut wrong, again) = run(address, rounds().min(20), 45, "", version);
    let of = |what: &String| what.split(' ').next().is_some_and(|number| again.contains(number));
    wrong.retain(|what| !(of(what) && what.contains(" came ")));
    if !again.is_empty() {
        println!("mosquitto sent {} messages again after their PUBREL", again.len());
    }
    assert_nothing(&wrong);
}

#[test]
fn nor_with_mosquitto() {
    with_mosquitto("5");
}

#[test]
fn nor_with_mosquitto_in_3_1_1() {
    with_mosquitto("3.1.1");
}

#[test]
fn catches_an_inbox_that_forgets_ids() {
    let server = Own::start();
    // By chance, but a likely one: each kill in the middle of an exchange shows it.
    let caught = (0..5).find_map(|_| run(server.address(), 20, 400, "id_forgotten", "5").0.pop());
    assert!(caught.is_some_and(|what| what.contains("came after its ack") || what.contains("came twice")));
}

#[test]
fn the_checker_sees_what_is_wrong() {
    let notes = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(check(&notes("got 0\nacked 0"), 1).is_empty());
    assert!(check(&notes("got 0\ngot 0 again\nacked 0"), 1).is_empty());
    assert_eq!(check(&notes("got 0\nacked 0\ngot 0 again"), 1), ["0 came after its ack"]);
    assert_eq!(check(&notes("got 0\ngot 0"), 1), ["0 came twice as if it were new"]);
    assert_eq!(check(&notes("got 1"), 2), ["0 is lost"]);
}
