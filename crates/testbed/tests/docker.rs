//! Brokers in containers: up, answering on every door, frozen, killed, restarted, and gone.
//!
//! Runs where a Docker daemon answers; elsewhere it says why not. With `POSTROAD_TESTBED=docker` that is a failure.

use postroad_testbed::docker::{self, Daemon, Data, Project, Spec, images};
use postroad_testbed::wire::Line;
use postroad_testbed::{Broker, Port, Service, Wanted, probe};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

fn daemon() -> Option<Arc<Daemon>> {
    static DAEMON: OnceLock<Option<Arc<Daemon>>> = OnceLock::new();
    if std::env::var("POSTROAD_TESTBED").is_ok_and(|mode| mode == "native") {
        return None;
    }
    let found = DAEMON.get_or_init(|| match Daemon::find() {
        Ok(daemon) => Some(Arc::new(daemon)),
        Err(error) => {
            let insists = std::env::var("POSTROAD_TESTBED").is_ok_and(|mode| mode == "docker");
            assert!(!insists, "{error:#}");
            println!("not run: brokers in containers ({error:#})");
            None
        }
    });
    found.clone()
}

/// A broker in a container, with the claims on its ports.
struct Contained {
    project: Project,
    broker: Broker,
    doors: BTreeMap<Service, SocketAddr>,
    _ports: Vec<Port>,
}

impl Contained {
    fn up(daemon: &Arc<Daemon>, broker: Broker, version: Option<&str>, data: Data) -> Self {
        let claims: Vec<Port> = broker.services().iter().map(|_| Port::claim().unwrap()).collect();
        let numbers: BTreeMap<Service, u16> =
            broker.services().iter().copied().zip(claims.iter().map(Port::number)).collect();
        let image = images::resolve(daemon, broker, version).unwrap().image;
        let start = Instant::now();
        let spec = Spec { data, ..Spec::broker(broker, image.clone(), &numbers) };
        let project = Project::up(daemon, spec).unwrap();
        println!("{image}: healthy after {:.1} s", start.elapsed().as_secs_f64());
        let doors = numbers.into_iter().map(|(service, port)| (service, (Ipv4Addr::LOCALHOST, port).into()));
        Self { project, broker, doors: doors.collect(), _ports: claims }
    }

    fn line(&self, service: Service) -> Line {
        Line::connect(self.doors[&service]).unwrap()
    }
}

/// For a matrix of versions: `POSTROAD_TEST_BROKER=rabbitmq@3.13`. Without it there is nothing to do.
#[test]
fn the_broker_that_was_asked_for() {
    let Ok(wanted) = std::env::var("POSTROAD_TEST_BROKER") else { return };
    let wanted: Wanted = wanted.parse().unwrap();
    comes_up_and_goes(wanted.broker, &wanted.version.expect("BROKER@VERSION"));
}

/// Every door answers in its protocol, and after `down` the daemon knows nothing of it.
fn comes_up_and_goes(broker: Broker, version: &str) {
    let Some(daemon) = daemon() else { return };
    let contained = Contained::up(&daemon, broker, Some(version), Data::Memory);
    eventually("every door answers", || probe::once(contained.broker, &contained.doors).is_ok());
    probe::once(contained.broker, &contained.doors).unwrap();
    let name = contained.project.name().to_owned();
    assert!(docker::projects(&daemon).unwrap().contains(&name));
    let start = Instant::now();
    contained.project.down().unwrap();
    println!("{broker}@{version}: down after {:.1} s", start.elapsed().as_secs_f64());
    assert!(!docker::projects(&daemon).unwrap().contains(&name), "{name} is still there");
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn rabbitmq_4_0() {
    comes_up_and_goes(Broker::RabbitMq, "4.0");
}

#[test]
fn rabbitmq_3_10() {
    // Upstream's 3.10 has no streams on by default and is long out of support: this one is always ours.
    comes_up_and_goes(Broker::RabbitMq, "3.10");
}

#[test]
fn nats_current_and_2_10() {
    comes_up_and_goes(Broker::Nats, "2.15");
    comes_up_and_goes(Broker::Nats, "2.10");
}

#[test]
fn nats_streaming() {
    comes_up_and_goes(Broker::NatsStreaming, "0.25.6");
}

#[test]
fn mosquitto_of_both_debians() {
    comes_up_and_goes(Broker::Mosquitto, "2.0.21");
    comes_up_and_goes(Broker::Mosquitto, "2.0.11");
}

#[test]
fn beanstalkd() {
    comes_up_and_goes(Broker::Beanstalkd, "1.12");
}

#[test]
fn an_image_of_another_recipe_is_built_again() {
    let Some(daemon) = daemon() else { return };
    let resolve = || images::resolve(&daemon, Broker::Beanstalkd, Some("1.12")).unwrap();
    let image = resolve().image;
    assert_eq!(resolve().how, images::How::Here);
    // As if it had been built of a Dockerfile that has changed since.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("Dockerfile"), format!("FROM {image}\n")).unwrap();
    let mut old = daemon.docker();
    old.args(["build", "-q", "--label", "io.postroad.recipe=another", "-t", &image]).arg(dir.path());
    assert!(old.env("DOCKER_BUILDKIT", "0").output().unwrap().status.success());
    assert_eq!(resolve().how, images::How::Built);
    assert_eq!(resolve().how, images::How::Here);
}

#[test]
fn redis_keeps_its_data_on_disk_and_loses_them_in_memory() {
    let Some(daemon) = daemon() else { return };
    for (data, kept) in [(Data::Disk, true), (Data::Memory, false)] {
        let redis = Contained::up(&daemon, Broker::Redis, Some("7.0"), data);
        redis.line(Service::Redis).ask("SET k v\r\n", "+OK").unwrap();
        redis.project.kill().unwrap();
        assert!(
            Line::connect(redis.doors[&Service::Redis])
                .and_then(|mut line| line.ask("PING\r\n", "+PONG"))
                .is_err()
        );
        redis.project.start().unwrap();
        let answer = if kept { "$1" } else { "$-1" };
        redis.line(Service::Redis).ask("GET k\r\n", answer).unwrap();
        if kept {
            redis.project.restart().unwrap();
            redis.line(Service::Redis).ask("GET k\r\n", answer).unwrap();
        }
        assert!(redis.project.log_tail(50).unwrap().contains("Ready to accept connections"));
        redis.project.down().unwrap();
    }
}

#[test]
fn a_paused_broker_does_not_answer_until_it_goes_on() {
    let Some(daemon) = daemon() else { return };
    let redis = Contained::up(&daemon, Broker::Redis, Some("7.0"), Data::Memory);
    let mut line = redis.line(Service::Redis);
    line.ask("PING\r\n", "+PONG").unwrap();
    redis.project.pause().unwrap();
    // The command is sent to nobody who runs; its answer is there after the pause, on the same connection.
    line.send("PING\r\n").unwrap();
    assert!(std::net::TcpStream::connect(redis.doors[&Service::Redis]).is_ok(), "the port stays open");
    redis.project.unpause().unwrap();
    assert!(line.line().unwrap().starts_with("+PONG"));
    redis.project.down().unwrap();
}

#[test]
fn a_broker_that_does_not_start_shows_its_log_and_leaves_nothing() {
    let Some(daemon) = daemon() else { return };
    // An image without the program of the service.
    let image = images::resolve(&daemon, Broker::Beanstalkd, Some("1.12")).unwrap().image;
    let port = Port::claim().unwrap();
    let ports = BTreeMap::from([(Service::Redis, port.number())]);
    let error = Project::up(&daemon, Spec::broker(Broker::Redis, image, &ports)).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("redis-server"), "{text}");
    let own = format!("-{}-", std::process::id());
    let mine = |name: &String| name.contains(&own) && text.contains(name.as_str());
    assert!(!docker::projects(&daemon).unwrap().iter().any(mine), "{text}");
}

#[test]
fn compose_understands_every_file_and_refuses_a_bad_one() {
    let Some(daemon) = daemon() else { return };
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../compose");
    let mut checked = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|ext| ext == "yml") {
            docker::check(&daemon, &file).unwrap();
            checked += 1;
        }
    }
    assert!(checked >= 8, "only {checked} files");
    // The same file with a typo in it, in each of three ways.
    let good = std::fs::read_to_string(dir.join("redis.yml")).unwrap();
    for (was, is) in
        [("healthcheck:", "healthchek:"), ("redis-disk:\n", "redis-disc:\n"), ("profiles: [", "profiles: [[")]
    {
        let bad = tempfile::Builder::new().suffix(".yml").tempfile().unwrap();
        let text = good.replace(was, is).replace("POSTROAD_DATA:-memory", "POSTROAD_DATA:-disk");
        assert_ne!(text, good);
        std::fs::write(bad.path(), text).unwrap();
        assert!(docker::check(&daemon, bad.path()).is_err(), "{is} was accepted");
    }
}

/// In a process of its own, see the next test: brings Redis up, says so, and waits to be killed.
#[test]
fn child_that_is_killed() {
    if std::env::var_os("POSTROAD_TEST_KILLED_CHILD").is_none() {
        return;
    }
    let daemon = daemon().unwrap();
    println!("starting");
    let redis = Contained::up(&daemon, Broker::Redis, Some("7.0"), Data::Disk);
    println!("up {}", redis.project.name());
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn a_killed_run_leaves_no_container_network_or_volume() {
    let Some(daemon) = daemon() else { return };
    images::resolve(&daemon, Broker::Redis, Some("7.0")).unwrap();
    // Killed when all is up, and while Compose is at it.
    for at in ["up ", "starting"] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed", "--nocapture"])
            .env("POSTROAD_TEST_KILLED_CHILD", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let own = format!("-{}-", child.id());
        let mine = || docker::projects(&daemon).unwrap().into_iter().find(|name| name.contains(&own));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.by_ref().any(|line| line.unwrap().contains(at)), "the child did not say `{at}`");
        eventually("the child's project is there", || mine().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("all of it is gone", || mine().is_none());
    }
}

#[test]
fn postroad_stops_cleanly_and_keeps_what_it_confirmed() {
    let Some(daemon) = daemon() else { return };
    let Some(program) = postroad_program() else {
        println!("not run: Postroad in a container (target has no program; `cargo build`)");
        return;
    };
    stops_cleanly(&daemon, images::postroad(&daemon, &program).unwrap().image);
}

/// The image for users, built as they build it: `POSTROAD_TEST_DOCKERFILE=1`. Without it there is nothing to do.
#[test]
fn the_image_of_the_dockerfile() {
    if std::env::var_os("POSTROAD_TEST_DOCKERFILE").is_none() {
        return;
    }
    let Some(daemon) = daemon() else { return };
    let start = Instant::now();
    let image = images::postroad_from_source(&daemon).unwrap().image;
    println!("{image}: built in {:.1} s", start.elapsed().as_secs_f64());
    stops_cleanly(&daemon, image);
}

/// Up and healthy; not root, its data in a volume; it stops by itself, and keeps what it confirmed.
fn stops_cleanly(daemon: &Arc<Daemon>, image: String) {
    let format = "{{.Config.User}} {{json .Config.Volumes}}";
    let out = daemon.docker().args(["image", "inspect", "--format", format, &image]).output().unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap().trim(), "postroad {\"/data\":{}}");
    let port = Port::claim().unwrap();
    let spec = Spec { data: Data::Disk, ..Spec::postroad(image, port.number()) };
    let postroad = Project::up(daemon, spec).unwrap();
    let connect = || {
        let mut line = Line::connect((Ipv4Addr::LOCALHOST, port.number()).into()).unwrap();
        assert!(line.until(b"\n").unwrap().starts_with(b"hello postroad"));
        line
    };
    let publish = |line: &mut Line, number: u32| {
        line.send(format!("pub orders {{\"id\":\"{number}\"}}\n")).unwrap();
        let answer = String::from_utf8(line.until(b"\n").unwrap()).unwrap();
        assert_eq!(answer.trim_end(), format!("ok {number}"));
    };
    let mut open = connect();
    publish(&mut open, 1);

    // With a client connected: it is told, and the stop is a clean one.
    let start = Instant::now();
    assert_eq!(postroad.stop().unwrap(), 0, "the exit code after `docker stop`");
    let took = start.elapsed();
    println!("stopped after {:.1} s", took.as_secs_f64());
    // After that the daemon would kill it: `stop_grace_period`.
    assert!(took < Duration::from_secs(20), "it took {took:?}");
    postroad.start().unwrap();
    publish(&mut connect(), 2);

    postroad.kill().unwrap();
    postroad.start().unwrap();
    publish(&mut connect(), 3);
    assert_ne!(postroad.exec(&["id", "-u"]).unwrap().trim(), "0", "it runs as root");
    postroad.down().unwrap();
}

fn postroad_program() -> Option<std::path::PathBuf> {
    let target = postroad_testbed::places::target();
    ["debug/postroad", "release/postroad"].iter().map(|path| target.join(path)).find(|path| path.is_file())
}
