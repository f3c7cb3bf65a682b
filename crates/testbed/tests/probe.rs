//! Each broker is brought up, spoken to, hurt, and taken away without a trace.

use postroad_testbed::wire::{self, Line};
use postroad_testbed::{Broker, Mode, Options, Running, STAN_CLUSTER, Service, Testbed, probe};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn native() -> Options {
    Options { mode: Some(Mode::Native), ..Options::default() }
}

fn start(broker: Broker) -> Running {
    let start = Instant::now();
    let running = Testbed::start(broker, &native()).unwrap_or_else(|error| panic!("{error:#}"));
    println!(
        "{broker} {} ({}) ready after {:?}: {:?}",
        running.version(),
        running.source(),
        start.elapsed(),
        running.addresses()
    );
    running
}

/// Processes that carry the mark of this run in their environment, or work in its directory.
fn processes_of(run: &str) -> Vec<String> {
    let mark = format!("POSTROAD_TESTBED_RUN={run}");
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids =
        entries.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    pids.filter(|entry| {
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        let at = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
            || at.to_string_lossy().contains(run)
    })
    .map(|entry| entry.file_name().to_string_lossy().into_owned())
    .collect()
}

fn run_of(running: &Running) -> (String, PathBuf) {
    let dir = running.dir().expect("a process of ours").to_path_buf();
    (dir.file_name().unwrap().to_string_lossy().into_owned(), dir)
}

/// Drops it and sees that neither a process nor a file stays.
fn leaves_nothing(running: Running) {
    let (run, dir) = run_of(&running);
    assert!(!processes_of(&run).is_empty(), "the mark is not seen at all");
    drop(running);
    assert_eq!(processes_of(&run), [""; 0]);
    assert!(!dir.exists(), "{} stays", dir.display());
}

fn redis_get(address: SocketAddr, key: &str) -> String {
    let mut redis = Line::connect(address).unwrap();
    let length = redis.ask(&format!("GET {key}\r\n"), "$").unwrap();
    if length == "$-1" { String::new() } else { redis.line().unwrap() }
}

#[test]
fn redis_keeps_what_it_answered_through_kill_9() {
    let mut redis = start(Broker::Redis);
    let address = redis.address(Service::Redis).unwrap();
    Line::connect(address).unwrap().ask("SET colour green\r\n", "+OK").unwrap();
    redis.kill().unwrap();
    assert!(Line::connect(address).is_err(), "it answers after kill -9");
    redis.start().unwrap();
    assert_eq!(redis_get(address, "colour"), "green");
    redis.restart().unwrap();
    assert_eq!(redis_get(address, "colour"), "green");
    leaves_nothing(redis);
}

#[test]
fn beanstalkd_gives_a_job_back_after_a_restart() {
    let mut beanstalkd = start(Broker::Beanstalkd);
    let address = beanstalkd.address(Service::Beanstalk).unwrap();
    Line::connect(address).unwrap().ask("put 0 0 60 5\r\nhello\r\n", "INSERTED 1").unwrap();
    beanstalkd.restart().unwrap();
    let mut line = Line::connect(address).unwrap();
    line.ask("reserve-with-timeout 2\r\n", "RESERVED 1 5").unwrap();
    assert_eq!(line.line().unwrap(), "hello");
    line.ask("delete 1\r\n", "DELETED").unwrap();
    leaves_nothing(beanstalkd);
}

#[test]
fn mosquitto_delivers_with_qos_1() {
    let mosquitto = start(Broker::Mosquitto);
    mqtt_round_trip(mosquitto.address(Service::Mqtt).unwrap(), None);
    leaves_nothing(mosquitto);
}

/// Subscribes with QoS 1, publishes with QoS 1, sees PUBACK and the message.
fn mqtt_round_trip(address: SocketAddr, login: Option<(&str, &str)>) {
    let mut reader = wire::mqtt(address, "reader", login).unwrap();
    reader.send(wire::mqtt_packet(0x82, &[&[0, 1], &wire::mqtt_text("testbed/a"), &[1]])).unwrap();
    assert_eq!(wire::mqtt_read(&mut reader).unwrap(), (0x90, vec![0, 1, 1]));
    let mut writer = wire::mqtt(address, "writer", login).unwrap();
    let topic = wire::mqtt_text("testbed/a");
    writer.send(wire::mqtt_packet(0x32, &[&topic, &[0, 7], b"hello"])).unwrap();
    assert_eq!(wire::mqtt_read(&mut writer).unwrap(), (0x40, vec![0, 7]));
    let (first, body) = wire::mqtt_read(&mut reader).unwrap();
    assert_eq!(first, 0x32, "a PUBLISH with QoS 1");
    assert!(body.starts_with(&topic) && body.ends_with(b"hello"), "{body:?}");
    reader.send([&[0x40, 2], &body[topic.len()..topic.len() + 2]].concat()).unwrap();
}

#[test]
fn nats_delivers_and_jetstream_stores() {
    let mut nats = start(Broker::Nats);
    let address = nats.address(Service::Nats).unwrap();
    let mut line = wire::nats(address).unwrap();
    line.send("SUB a.> 1\r\nPUB a.b 5\r\nhello\r\n").unwrap();
    assert_eq!(wire::nats_line(&mut line).unwrap(), "MSG a.b 1 5");
    assert_eq!(line.line().unwrap(), "hello");
    let answer = nats_request(
        &mut line,
        "$JS.API.STREAM.CREATE.ORDERS",
        br#"{"name":"ORDERS","subjects":["orders.*"],"storage":"file"}"#,
    );
    assert!(!text(&answer).contains("error"), "{}", text(&answer));
    let stored = nats_request(&mut line, "orders.new", b"{}");
    assert!(text(&stored).contains(r#""seq":1"#), "{}", text(&stored));
    nats.restart().unwrap();
    let mut line = wire::nats(address).unwrap();
    let info = nats_request(&mut line, "$JS.API.STREAM.INFO.ORDERS", b"");
    assert!(text(&info).contains(r#""messages":1"#), "{}", text(&info));
    leaves_nothing(nats);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Sends a request and gives the first answer.
fn nats_request(nats: &mut Line, subject: &str, body: &[u8]) -> Vec<u8> {
    let inbox = "_INBOX.testbed";
    nats.send(format!("SUB {inbox} 9\r\nUNSUB 9 1\r\nPUB {subject} {inbox} {}\r\n", body.len())).unwrap();
    nats.send([body, b"\r\n"].concat()).unwrap();
    let head = wire::nats_line(nats).unwrap();
    assert!(head.starts_with(&format!("MSG {inbox} ")), "{subject} was answered {head:?}");
    let size = head.rsplit(' ').next().unwrap().parse::<usize>().unwrap();
    let mut body = nats.bytes(size + 2).unwrap();
    body.truncate(size);
    body
}

/// A protobuf field of bytes, shorter than 128.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

/// The first field of bytes with this number, in a message that has only such and short numbers.
fn get_field(message: &[u8], number: u8) -> Option<&[u8]> {
    let mut rest = message;
    while let [tag, size, after @ ..] = rest {
        if tag & 7 == 2 {
            let (bytes, after) = after.split_at(usize::from(*size));
            if tag >> 3 == number {
                return Some(bytes);
            }
            rest = after;
        } else {
            rest = after;
        }
    }
    None
}

#[test]
fn nats_streaming_takes_a_client_and_confirms_what_it_publishes() {
    let mut stan = start(Broker::NatsStreaming);
    let address = stan.address(Service::Nats).unwrap();
    for round in 1..=2 {
        let mut line = wire::nats(address).unwrap();
        // ConnectRequest: client id, inbox for heartbeats.
        let client = format!("client-{round}");
        let connect = [field(1, client.as_bytes()), field(2, b"_INBOX.heart")].concat();
        let answer = nats_request(&mut line, &format!("_STAN.discover.{STAN_CLUSTER}"), &connect);
        assert_eq!(get_field(&answer, 5), None, "refused: {}", text(&answer));
        let prefix = text(get_field(&answer, 1).expect("a prefix to publish to"));
        // PubMsg: client id, guid, subject, data.
        let message =
            [field(1, client.as_bytes()), field(2, b"guid-1"), field(3, b"orders"), field(5, b"hello")]
                .concat();
        let ack = nats_request(&mut line, &format!("{prefix}.orders"), &message);
        assert_eq!(get_field(&ack, 1), Some(&b"guid-1"[..]), "{}", text(&ack));
        assert_eq!(get_field(&ack, 2), None, "an error: {}", text(&ack));
        let monitor = stan.address(Service::Monitor).unwrap();
        let (status, body) = wire::http_get(monitor, "/streaming/channelsz?channel=orders", None).unwrap();
        assert_eq!(status, 200);
        assert!(body.contains(&format!(r#""last_seq": {round}"#)), "{body}");
        if round == 1 {
            stan.restart().unwrap();
        }
    }
    leaves_nothing(stan);
}

#[test]
fn rabbitmq_opens_every_door() {
    let mut rabbitmq = start(Broker::RabbitMq);
    let address = |service| rabbitmq.address(service).unwrap();
    wire::amqp_close(wire::amqp(address(Service::Amqp), "guest", "guest").unwrap()).unwrap();
    assert!(wire::amqp(address(Service::Amqp), "guest", "wrong").is_err(), "any password is taken");
    let properties = text(&wire::stream_properties(address(Service::Stream)).unwrap());
    assert!(properties.contains(rabbitmq.version()), "{properties}");
    let opened = text(&wire::stream_open(address(Service::Stream), "guest", "guest").unwrap());
    let advertised = address(Service::Stream).port().to_string();
    assert!(opened.contains(&advertised), "another port is advertised: {opened}");
    let (status, body) =
        wire::http_get(address(Service::Management), "/api/overview", Some(probe::GUEST)).unwrap();
    assert_eq!(status, 200);
    assert!(body.contains(&format!(r#""rabbitmq_version":"{}""#, rabbitmq.version())), "{body}");
    mqtt_round_trip(address(Service::Mqtt), Some(("guest", "guest")));
    wire::web_socket(address(Service::WebStomp), "/ws", "v12.stomp").unwrap();
    let out = rabbitmq.tool("rabbitmqctl").unwrap().args(["eval", "6 * 7."]).output().unwrap();
    assert_eq!(text(&out.stdout).trim(), "42", "{}", text(&out.stderr));
    rabbitmq.restart().unwrap();
    leaves_nothing(rabbitmq);
}

#[test]
fn two_of_a_kind_stand_side_by_side() {
    let (one, two) = (start(Broker::Redis), start(Broker::Redis));
    let address = |running: &Running| running.address(Service::Redis).unwrap();
    Line::connect(address(&one)).unwrap().ask("SET who one\r\n", "+OK").unwrap();
    assert_eq!(redis_get(address(&two), "who"), "");
}

#[test]
fn a_paused_broker_keeps_its_sockets_and_says_nothing() {
    let mut redis = start(Broker::Redis);
    let address = redis.address(Service::Redis).unwrap();
    let mut line = Line::connect(address).unwrap();
    line.ask("PING\r\n", "+PONG").unwrap();
    redis.pause().unwrap();
    let before = Instant::now();
    let error = line.ask("PING\r\n", "+PONG").unwrap_err();
    assert!(before.elapsed() > Duration::from_secs(1), "it did not wait: {error:#}");
    redis.resume().unwrap();
    assert_eq!(line.line().unwrap(), "+PONG", "the answer comes late, on the same connection");
    leaves_nothing(redis);
}

#[test]
fn a_broker_that_cannot_start_shows_its_log() {
    let mut mosquitto = start(Broker::Mosquitto);
    mosquitto.stop().unwrap();
    let config = mosquitto.dir().unwrap().join("mosquitto.conf");
    fs::write(config, "no_such_setting 1\n").unwrap();
    let error = format!("{:#}", mosquitto.start().unwrap_err());
    assert!(error.contains("no_such_setting"), "{error}");
    assert!(error.contains("ended at its start"), "{error}");
    drop(mosquitto);
}

/// Runs as a child of the next test: brings brokers up, says so in a file, and waits to be killed.
#[test]
fn child_that_is_killed() {
    let Some(file) = std::env::var_os("TESTBED_CHILD_SAYS") else { return };
    let runs: Vec<Running> =
        [Broker::Redis, Broker::Mosquitto, Broker::RabbitMq].into_iter().map(start).collect();
    let dirs: Vec<String> = runs.iter().map(|run| run_of(run).1.display().to_string()).collect();
    let aside = PathBuf::from(&file).with_extension("new");
    fs::write(&aside, dirs.join("\n")).unwrap();
    fs::rename(aside, file).unwrap();
    // Its parent has the other end: if that fails before the kill, this ends, too.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}

#[test]
fn a_killed_test_run_leaves_nothing() {
    let said = tempfile::tempdir().unwrap();
    let file = said.path().join("dirs");
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--nocapture"])
        .env("TESTBED_CHILD_SAYS", &file)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let patience = Instant::now() + Duration::from_secs(120);
    while !file.exists() {
        assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
        assert!(Instant::now() < patience, "the child does not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
    let dirs: Vec<PathBuf> = fs::read_to_string(&file).unwrap().lines().map(PathBuf::from).collect();
    let runs: Vec<String> =
        dirs.iter().map(|dir| dir.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(runs.len(), 3);
    assert!(runs.iter().all(|run| !processes_of(run).is_empty()), "they do not run before the kill");
    child.kill().unwrap();
    child.wait().unwrap();
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let left: Vec<String> = runs.iter().flat_map(|run| processes_of(run)).collect();
        let files: Vec<&PathBuf> = dirs.iter().filter(|dir| dir.exists()).collect();
        if left.is_empty() && files.is_empty() {
            break;
        }
        assert!(Instant::now() < patience, "left: processes {left:?}, files {files:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
