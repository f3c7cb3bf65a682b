//! What is tested: `postroad serve --mqtt`, or what the environment names.

use std::time::{Duration, Instant};

use postroad_testbed::debian;

use crate::client::{Client, Connect};
use crate::shim::Shim;
use crate::support::{PATIENCE, Server, Setup, free_port};
use crate::wire::Version;

/// A broker that answers.
pub(crate) struct Broker {
    server: Option<Server>,
    port: u16,
    websocket: Option<u16>,
}

/// Debian's mosquitto, as it comes, with persistence switched on: the broker that the tests themselves are tested on.
const MOSQUITTO: debian::Tool = debian::Tool { name: "mosquitto", file: "mosquitto", package: "mosquitto" };

const MOSQUITTO_SETUP: &str = r#"
mkdir -p "$2"
{
    echo "listener $1 127.0.0.1"
    echo "allow_anonymous true"
    echo "persistence true"
    echo "persistence_location $2/"
    [ "$(id -u)" = 0 ] && echo "user root"
    printf '%s\n' "$3"
} >"$2/mosquitto.conf"
exec "$0" -c "$2/mosquitto.conf"
"#;

impl Broker {
    /// The one to be tested.
    pub(crate) fn start() -> Self {
        if let Ok(url) = std::env::var("POSTROAD_TEST_MQTT_URL") {
            let port = url.trim_end_matches('/').rsplit(':').next().and_then(|port| port.parse().ok());
            let port = port.unwrap_or_else(|| panic!("POSTROAD_TEST_MQTT_URL={url}: mqtt://127.0.0.1:PORT"));
            return Self { server: None, port, websocket: None };
        }
        let port = free_port();
        let setup = match std::env::var("POSTROAD_TEST_MQTT_COMMAND") {
            Ok(command) => {
                Setup::default().program(&["sh", "-c", r#"exec "$0" "$@""#, &command, "{port}", "{data}"])
            }
            // Small segments, so that snapshots and the end of segments are among what is interrupted.
            Err(_) => Setup::default()
                .argument("--mqtt")
                .argument(&format!("127.0.0.1:{port}"))
                .argument("--set")
                .argument("journal.segment_bytes=1MiB"),
        };
        Self::launch(setup, port)
    }

    /// Postroad, whatever the environment names, with settings of its own and maybe a slow disk.
    pub(crate) fn with_settings(settings: &[&str], shim: Option<&Shim>) -> Self {
        let port = free_port();
        let mut setup = Setup::default().argument("--mqtt").argument(&format!("127.0.0.1:{port}"));
        for setting in settings.iter().chain(&["journal.segment_bytes=1MiB"]) {
            setup = setup.argument("--set").argument(setting);
        }
        Self::launch(shim.map_or_else(|| setup.clone(), |shim| shim.with(setup.clone())), port)
    }

    /// The one to be tested, with a door for WebSocket besides. Another broker's program is told its port in
    /// `POSTROAD_TEST_MQTT_WEBSOCKET_PORT`.
    pub(crate) fn with_websocket() -> Self {
        let (port, websocket) = (free_port(), free_port());
        let setup = match std::env::var("POSTROAD_TEST_MQTT_COMMAND") {
            Ok(command) => {
                let words = ["sh", "-c", r#"exec "$0" "$@""#, &command, "{port}", "{data}"];
                let setup = Setup::default().program(&words);
                setup.env("POSTROAD_TEST_MQTT_WEBSOCKET_PORT", websocket.to_string())
            }
            Err(_) => Setup::default()
                .argument("--mqtt")
                .argument(&format!("127.0.0.1:{port}"))
                .argument("--http")
                .argument(&format!("127.0.0.1:{websocket}")),
        };
        let mut broker = Self::launch(setup, port);
        broker.websocket = Some(websocket);
        broker
    }

    pub(crate) fn websocket_port(&self) -> u16 {
        self.websocket.expect("a broker with a door for WebSocket")
    }

    /// Debian's mosquitto with further settings.
    pub(crate) fn mosquitto(settings: &str) -> Self {
        if let Err(error) = debian::fetch(&[&MOSQUITTO]) {
            panic!(
                "this test needs mosquitto, installed or to be unpacked from its Debian package: {error:#}"
            );
        }
        let program = debian::find(&MOSQUITTO).expect("it was fetched").display().to_string();
        let words = ["sh", "-c", MOSQUITTO_SETUP, &program, "{port}", "{data}", settings];
        Self::launch(Setup::default().program(&words), free_port())
    }

    fn launch(setup: Setup, port: u16) -> Self {
        let mut broker = Self { server: Some(setup.door(port).launch()), port, websocket: None };
        broker.wait_ready();
        broker
    }

    fn wait_ready(&mut self) {
        let (port, server) = (self.port, self.server());
        let end = Instant::now() + PATIENCE;
        let probe = Connect::new(Version::V3, "ready");
        while !probe.try_open(port).is_ok_and(|client| client.code == 0) {
            assert!(server.alive(), "the broker ended at its start\n{}", server.stderr());
            assert!(Instant::now() < end, "no CONNACK in {PATIENCE:?}\n{}", server.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn server(&mut self) -> &mut Server {
        self.server.as_mut().expect("this test stops the broker: unset POSTROAD_TEST_MQTT_URL")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A session for one connection.
    pub(crate) fn v3(&self, id: &str) -> Client {
        Connect::new(Version::V3, id).open(self.port)
    }

    /// A session for one connection.
    pub(crate) fn v5(&self, id: &str) -> Client {
        Connect::new(Version::V5, id).open(self.port)
    }

    /// `kill -9`.
    pub(crate) fn kill9(&mut self) {
        self.server().kill9();
    }

    /// Starts again on the same data, and waits until it answers.
    pub(crate) fn restart(&mut self) {
        self.server().respawn();
        self.wait_ready();
    }

    /// Starts again and does not wait.
    pub(crate) fn respawn(&mut self) {
        self.server().respawn();
    }

    /// `kill -9`, and starts again.
    pub(crate) fn bounce9(&mut self) {
        self.kill9();
        self.restart();
    }

    /// Ends in good order, and starts again.
    pub(crate) fn stop_and_start(&mut self) {
        self.server().terminate();
        self.server().wait_exit(PATIENCE);
        self.restart();
    }

    /// Resident memory in KiB; `None` when somebody else runs it.
    pub(crate) fn rss(&self) -> Option<u64> {
        self.server.as_ref().map(Server::rss)
    }

    /// True while the process runs, as far as that is ours to know.
    pub(crate) fn alive(&mut self) -> bool {
        self.server.as_mut().is_none_or(Server::alive)
    }
}
