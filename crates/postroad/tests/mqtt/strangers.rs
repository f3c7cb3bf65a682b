//! Clients that nobody here wrote: mosquitto's, Eclipse Paho for Python, MQTT.js over TCP and WebSocket, rumqttc. Each
//! publishes and subscribes at each QoS, with retained messages, wills and shared subscriptions, and comes back to its
//! session after a kill. What a machine lacks is got once, into the target directory.

mod rumqttc;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use postroad_testbed::{debian, places};

use crate::broker::Broker;
use crate::support::{PATIENCE, limited, missing, need, turn};

const PUB: debian::Tool =
    debian::Tool { name: "mosquitto_pub", file: "mosquitto_pub", package: "mosquitto-clients" };
const SUB: debian::Tool =
    debian::Tool { name: "mosquitto_sub", file: "mosquitto_sub", package: "mosquitto-clients" };

const PAHO: &str = "paho-mqtt==2.1.0";
const MQTT_JS: &str = "mqtt@5.14.1";

fn qos_levels() -> std::ops::RangeInclusive<u8> {
    0..=2
}

/// Each version's steps, by the names that the scripts give them.
const STEPS: [&str; 5] = ["qos", "retained", "will", "shared", "resume"];

/// A directory for a package, made by `make` where it was not made before; one process at a time does.
fn fetched(package: &str, make: impl FnOnce(&Path) -> Result<(), String>) -> Option<PathBuf> {
    let home = places::target().join("mqtt-clients");
    fs::create_dir_all(&home).expect("a directory below target");
    let what = package.replace("==", "-").replace('@', "-");
    let lock = File::create(home.join(format!("{what}.lock"))).expect("a lock file");
    lock.lock().expect("the lock");
    let (dir, mark) = (home.join(&what), home.join(&what).join(".complete"));
    if !mark.exists() {
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a directory below target");
        if let Err(error) = make(&dir) {
            missing(&format!("{package}: {error}"));
            return None;
        }
        File::create(mark).expect("a file below target");
    }
    Some(dir)
}

/// Runs a command to its end; what it said is for when it fails.
fn quietly(command: &mut Command) -> Result<(), String> {
    let done = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}\n{}", done.status, String::from_utf8_lossy(&done.stderr)))
}

/// `program`, ended after two minutes whatever it does: all steps of a script take a tenth of it.
fn patient(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "120", program]);
    command
}

/// Lines of a program's standard output; the program ends with it.
struct Program {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap_or_else(|error| {
                panic!("{command:?}: {error}");
            });
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line; `None` at the end.
    fn line(&self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE * 2) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the client says nothing"),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a script through all its steps, for both versions.
fn script(broker: &mut Broker, command: &mut Command, versions: [&str; 2]) {
    let mut program = Program::start(command);
    let mut steps = Vec::new();
    while let Some(line) = program.line() {
        if line == "kill" {
            broker.bounce9();
            program.child.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("it reads");
        } else if let Some(step) = line.strip_prefix("ok ") {
            steps.push(step.to_owned());
        } else {
            println!("{line}");
        }
    }
    let status = program.child.wait().expect("its end");
    let wanted: Vec<String> =
        versions.iter().flat_map(|version| STEPS.map(|step| format!("{version} {step}"))).collect();
    assert_eq!(steps, wanted, "{status}");
    assert!(status.success(), "{status}");
}

#[test]
fn paho_python() {
    let _turn = turn();
    need("python3", "python3-venv");
    let made = fetched(PAHO, |dir| {
        quietly(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
        quietly(Command::new(dir.join("bin/pip")).args(["install", "--quiet", PAHO]))
    });
    let Some(dir) = made else { return };
    let mut broker = Broker::start();
    let program = dir.join("bin/python").display().to_string();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mqtt/strangers/paho_client.py");
    let port = broker.port().to_string();
    script(&mut broker, patient(&program).args([file, &port]), ["v3", "v5"]);
}

fn mqtt_js(broker: &mut Broker, url: &str) {
    need("node", "nodejs");
    need("npm", "npm");
    let made = fetched(MQTT_JS, |dir| {
        let flags = ["install", "--no-save", "--no-audit", "--no-fund", "--silent", "--prefix"];
        quietly(Command::new("npm").args(flags).arg(dir).arg(MQTT_JS).current_dir(dir))
    });
    let Some(dir) = made else { return };
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mqtt/strangers/mqttjs_client.js");
    script(broker, patient("node").arg(file).arg(dir).arg(url), ["v4", "v5"]);
}

#[test]
fn mqtt_js_over_tcp() {
    let _turn = turn();
    let mut broker = Broker::start();
    let url = format!("mqtt://127.0.0.1:{}", broker.port());
    mqtt_js(&mut broker, &url);
}

#[test]
fn mqtt_js_over_websocket() {
    let _turn = turn();
    let mut broker = Broker::with_websocket();
    let url = format!("ws://127.0.0.1:{}/mqtt", broker.websocket_port());
    mqtt_js(&mut broker, &url);
}

/// One of mosquitto's programs, with what both take.
fn mosquitto(tool: &debian::Tool, broker: &Broker, version: &str, arguments: &[&str]) -> Command {
    let program = debian::find(tool).expect("it was fetched").display().to_string();
    let mut command = limited(&program);
    command.args(["-h", "127.0.0.1", "-p", &broker.port().to_string(), "-V", version]).args(arguments);
    command
}

/// The lines that mosquitto_sub prints, all of them.
fn printed(command: &mut Command) -> Vec<String> {
    let done = command.output().expect("it starts");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn mosquitto_clients() {
    let _turn = turn();
    if let Err(error) = debian::fetch(&[&PUB, &SUB]) {
        missing(&format!("mosquitto's clients: {error:#}"));
        return;
    }
    let mut broker = Broker::start();
    for version in ["mqttv311", "mqttv5"] {
        let publish = |broker: &Broker, arguments: &[&str]| {
            quietly(&mut mosquitto(&PUB, broker, version, arguments)).expect("mosquitto_pub");
        };
        for level in qos_levels() {
            let (topic, qos) = (format!("mosq/{version}/{level}"), &*level.to_string());
            // It says on which topic it subscribed only in its log; a retained message says that it is there.
            publish(&broker, &["-t", &topic, "-m", "ready", "-q", qos, "-r"]);
            let watch = ["-t", &topic, "-q", qos, "-C", "3", "-F", "%q %r %p"];
            let subscriber = Program::start(&mut mosquitto(&SUB, &broker, version, &watch));
            assert_eq!(subscriber.line(), Some(format!("{qos} 1 ready")));
            publish(&broker, &["-t", &topic, "-m", "one", "-q", qos]);
            publish(&broker, &["-t", &topic, "-m", "two", "-q", qos]);
            assert_eq!(subscriber.line(), Some(format!("{qos} 0 one")));
            assert_eq!(subscriber.line(), Some(format!("{qos} 0 two")));
            assert_eq!(subscriber.line(), None);
        }
        let (id, topic) = (format!("mosq-{version}"), format!("mosq/{version}/durable"));
        let mut durable = vec!["-i", &id, "-c", "-q", "2", "-t", &topic];
        if version == "mqttv5" {
            durable.extend(["-x", "∞"]);
        }
        let made = [&durable[..], &["-E"]].concat();
        printed(&mut mosquitto(&SUB, &broker, version, &made));
        for number in 0..20 {
            publish(&broker, &["-t", &topic, "-m", &number.to_string(), "-q", "2"]);
        }
        broker.bounce9();
        let all = [&durable[..], &["-C", "20"]].concat();
        let wanted: Vec<String> = (0..20).map(|number| number.to_string()).collect();
        assert_eq!(printed(&mut mosquitto(&SUB, &broker, version, &all)), wanted, "{version}");
        will_of_mosquitto_sub(&broker, version);
        shared_by_two_mosquitto_subs(&broker, version);
    }
}

/// mosquitto_sub without `timeout` around it, to be killed itself.
fn mortal_sub(broker: &Broker, version: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(debian::find(&SUB).expect("it was fetched"));
    command.args(["-h", "127.0.0.1", "-p", &broker.port().to_string(), "-V", version]).args(arguments);
    command
}

fn will_of_mosquitto_sub(broker: &Broker, version: &str) {
    let topic = format!("mosq/{version}/will");
    let mut watcher = broker.v5("mosq-watcher");
    watcher.subscribe(&topic, 2);
    let id = format!("mosq-mortal-{version}");
    let will = ["-i", &id, "-t", &topic, "--will-topic", &topic, "--will-payload", "gone", "--will-qos", "2"];
    let mut mortal = Program::start(&mut mortal_sub(broker, version, &will));
    let mut publisher = broker.v3("mosq-publisher");
    // Until it hears it is subscribed, and so connected.
    let mut heard = false;
    for _ in 0..100 {
        publisher.publish(&topic, "there?", 1);
        assert_eq!(watcher.message().text(), "there?");
        heard = mortal.lines.recv_timeout(Duration::from_millis(100)).is_ok();
        if heard {
            break;
        }
    }
    assert!(heard, "mosquitto_sub hears nothing");
    mortal.child.kill().expect("kill");
    assert_eq!(watcher.message().text(), "gone");
}

fn shared_by_two_mosquitto_subs(broker: &Broker, version: &str) {
    let (filter, topic) = (format!("$share/g/mosq/{version}/shared"), format!("mosq/{version}/shared"));
    // A topic of its own says that a member is there.
    let members = ["1", "2"].map(|name| {
        let ready = format!("mosq/{version}/ready/{name}");
        quietly(&mut mosquitto(&PUB, broker, version, &["-t", &ready, "-m", "ready", "-q", "1", "-r"]))
            .expect("mosquitto_pub");
        let member =
            Program::start(&mut mortal_sub(broker, version, &["-q", "2", "-t", &filter, "-t", &ready]));
        assert_eq!(member.line().as_deref(), Some("ready"));
        member
    });
    for number in 0..20 {
        let text = number.to_string();
        quietly(&mut mosquitto(&PUB, broker, version, &["-t", &topic, "-m", &text, "-q", "2"]))
            .expect("mosquitto_pub");
    }
    let mut got: Vec<Vec<u32>> = vec![Vec::new(), Vec::new()];
    let late = std::time::Instant::now() + PATIENCE;
    while got.iter().map(Vec::len).sum::<usize>() < 20 {
        assert!(std::time::Instant::now() < late, "{got:?}");
        for (member, got) in members.iter().zip(&mut got) {
            if let Ok(line) = member.lines.recv_timeout(Duration::from_millis(50)) {
                got.push(line.parse().expect("a number"));
            }
        }
    }
    assert!(got.iter().all(|got| !got.is_empty()), "both members get some: {got:?}");
    let mut all = got.concat();
    all.sort_unstable();
    assert_eq!(all, (0..20).collect::<Vec<_>>());
    for member in &members {
        assert!(member.lines.recv_timeout(Duration::from_millis(200)).is_err(), "nothing comes twice");
    }
}
