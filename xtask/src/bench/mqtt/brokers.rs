//! The brokers under measurement, and how each is started.

use super::install::{self, MOSQUITTO};
use super::packets::{self, Version};
use super::settings;
use crate::server::{Peer, free_port};
use crate::sh;
use anyhow::{Context, Result};
use postroad_testbed::debian;
use postroad_testbed::run::which;
use postroad_testbed::{Broker as Standard, Service};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A broker with its settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Broker {
    pub(super) brand: Brand,
    /// Every sync of the disk takes 5 ms longer.
    pub(super) slow_disk: bool,
    /// State is to survive a restart, if it can.
    pub(super) kept: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Brand {
    Postroad,
    PostroadOs,
    PostroadMemory,
    Mosquitto { nodelay: bool },
    Mochi,
    MochiBolt,
    Aedes,
    AedesLevel,
    Nats,
    NatsAlways,
    Rumqttd,
    RabbitMq,
    Moquette,
    MoquetteH2,
}

impl Brand {
    pub(super) const ALL: [Self; 15] = [
        Self::Postroad,
        Self::PostroadOs,
        Self::PostroadMemory,
        Self::Mosquitto { nodelay: true },
        Self::Mosquitto { nodelay: false },
        Self::Mochi,
        Self::MochiBolt,
        Self::Aedes,
        Self::AedesLevel,
        Self::Nats,
        Self::NatsAlways,
        Self::Rumqttd,
        Self::RabbitMq,
        Self::Moquette,
        Self::MoquetteH2,
    ];

    pub(super) fn plain(self) -> Broker {
        Broker { brand: self, slow_disk: false, kept: false }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Postroad => "postroad",
            Self::PostroadOs => "postroad-os",
            Self::PostroadMemory => "postroad-memory",
            Self::Mosquitto { .. } => "mosquitto",
            Self::Mochi => "mochi",
            Self::MochiBolt => "mochi-bolt",
            Self::Aedes => "aedes",
            Self::AedesLevel => "aedes-level",
            Self::Nats => "nats",
            Self::NatsAlways => "nats-always",
            Self::Rumqttd => "rumqttd",
            Self::RabbitMq => "rabbitmq",
            Self::Moquette => "moquette",
            Self::MoquetteH2 => "moquette-h2",
        }
    }

    /// Whether what goes wrong with it fails the run.
    pub(super) fn ours(self) -> bool {
        matches!(self, Self::Postroad | Self::PostroadOs | Self::PostroadMemory)
    }

    /// Whether a run has it that names no servers. The others take minutes to get, seconds for every start, or time
    /// that a run of them all would not have; a quick run does not wait for Bolt either.
    pub(super) fn by_default(self, quick: bool) -> bool {
        if self == Self::MochiBolt {
            return !quick;
        }
        !matches!(
            self,
            Self::AedesLevel
                | Self::Nats
                | Self::NatsAlways
                | Self::Rumqttd
                | Self::RabbitMq
                | Self::Moquette
                | Self::MoquetteH2
        )
    }

    /// Why it cannot be asked for `version`, if so.
    pub(super) fn lacks_version(self, version: Version) -> Option<&'static str> {
        match self {
            Self::Postroad
            | Self::PostroadOs
            | Self::PostroadMemory
            | Self::Mosquitto { .. }
            | Self::Mochi
            | Self::MochiBolt => None,
            _ if version == Version::V311 => None,
            Self::Rumqttd => Some("its listener here is the one for MQTT 3.1.1"),
            Self::RabbitMq => Some("Debian's has no MQTT 5.0"),
            _ => Some("it has no MQTT 5.0"),
        }
    }

    /// Why it has no row at this QoS, if so.
    pub(super) fn lacks_qos(self, qos: u8) -> Option<&'static str> {
        match (self, qos) {
            (Self::RabbitMq, 2) => Some("it lowers QoS 2 to 1"),
            _ => None,
        }
    }

    /// Whether a restart with much to remember says something of it.
    pub(super) fn recovers(self) -> bool {
        matches!(self, Self::Postroad | Self::Mosquitto { nodelay: true } | Self::Mochi)
    }
}

impl Broker {
    /// Whether its state is on the disk whenever it is killed. If not, it is asked to end and then saves.
    pub(super) fn survives_kill(self) -> bool {
        matches!(self.brand, Brand::Postroad | Brand::PostroadOs)
    }
}

impl Peer for Broker {
    fn name(self) -> &'static str {
        self.brand.name()
    }

    fn program(self, ours: &Path) -> Option<PathBuf> {
        let file = match self.brand {
            Brand::Postroad | Brand::PostroadOs | Brand::PostroadMemory => ours.to_path_buf(),
            Brand::Mosquitto { .. } => debian::find(&MOSQUITTO)?,
            Brand::Mochi | Brand::MochiBolt => install::mochi(),
            Brand::Aedes | Brand::AedesLevel => which("node")?,
            Brand::Nats | Brand::NatsAlways => install::nats()?,
            Brand::Rumqttd => install::rumqttd(),
            Brand::Moquette | Brand::MoquetteH2 => which("java")?,
            // The testbed knows.
            Brand::RabbitMq => return None,
        };
        file.is_file().then_some(file)
    }

    fn command(self, program: &Path, dir: &Path, port: u16) -> Result<Command> {
        let mut command = Command::new(program);
        let listen = format!("127.0.0.1:{port}");
        let write = |name: &str, text: String| {
            let file = dir.join(name);
            fs::write(&file, text).with_context(|| format!("writing {}", file.display())).map(|()| file)
        };
        match self.brand {
            Brand::Postroad | Brand::PostroadOs | Brand::PostroadMemory => {
                command.arg("serve").arg("--data").arg(dir.join("data"));
                command.args(["--jsonlog", "off", "--http", "off", "--lines", "off", "--mqtt", &listen]);
                command.args([
                    "--sync",
                    if self.brand == Brand::PostroadMemory { "memory" } else { "fdatasync" },
                ]);
                if self.brand == Brand::PostroadOs {
                    command.args(["--set", "mqtt.durability=os"]);
                }
            }
            Brand::Mosquitto { nodelay } => {
                let text = settings::mosquitto(dir, port, nodelay, self.kept);
                command.arg("-c").arg(write("mosquitto.conf", text)?);
            }
            Brand::Mochi | Brand::MochiBolt => {
                command.args(["-listen", &listen]);
                if self.brand == Brand::MochiBolt || self.kept {
                    command.arg("-store").arg(dir.join("mochi.bolt"));
                }
                if self.brand == Brand::Mochi {
                    command.arg("-sync=false");
                }
            }
            Brand::Aedes | Brand::AedesLevel => {
                command.arg(install::aedes().join("server.js")).arg(port.to_string());
                if self.brand == Brand::AedesLevel {
                    command.arg(dir.join("level"));
                }
            }
            Brand::Nats | Brand::NatsAlways => {
                let text = settings::nats(dir, port, free_port()?, self.brand == Brand::NatsAlways);
                command.arg("-c").arg(write("nats.conf", text)?);
            }
            Brand::Rumqttd => {
                command.arg("--quiet").arg("-c").arg(write("rumqttd.toml", settings::rumqttd(port))?);
            }
            Brand::Moquette | Brand::MoquetteH2 => {
                fs::create_dir_all(dir.join("config"))?;
                let text = settings::moquette(dir, port, self.brand == Brand::MoquetteH2);
                write("config/moquette.conf", text)?;
                let log = write("log4j.properties", settings::LOG4J.into())?;
                command.arg(format!("-Dmoquette.path={}", dir.display()));
                command.arg(format!("-Dlog4j.configuration=file:{}", log.display()));
                command.arg("-cp").arg(install::moquette().join("*")).arg("io.moquette.broker.Server");
                command.current_dir(dir);
            }
            Brand::RabbitMq => {}
        }
        if self.slow_disk {
            fs::write(dir.join("delay"), "")?;
            command.env("LD_PRELOAD", shim()?).env("SHIM_DIR", dir);
        }
        Ok(command)
    }

    /// A CONNECT of 3.1.1 and its CONNACK.
    fn answer(self, addr: SocketAddr) -> Option<String> {
        let mut stream = TcpStream::connect(addr).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        let mut hello = Vec::new();
        packets::connect(&mut hello, Version::V311, "probe", true);
        stream.write_all(&hello).ok()?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).ok()?;
        // An orderly end: no broker has to wonder.
        let _ = stream.write_all(b"\xE0\x00");
        (answer == [0x20, 2, 0, 0]).then(String::new)
    }

    fn mode(self, _: &str) -> Result<String> {
        Ok(match self.brand {
            Brand::Postroad => "journal.sync=fdatasync",
            Brand::PostroadOs => "mqtt.durability=os",
            Brand::PostroadMemory => "journal.sync=memory",
            Brand::Mosquitto { .. } if self.kept => "memory, saved at its end",
            Brand::Mochi if self.kept => "Bolt without syncs",
            Brand::Mosquitto { nodelay: true } => "memory (set_tcp_nodelay true)",
            Brand::Mosquitto { nodelay: false } => "memory",
            Brand::Mochi | Brand::Aedes | Brand::Moquette => "memory",
            Brand::MochiBolt => "Bolt, a synced transaction for each record",
            Brand::AedesLevel => "LevelDB, written before the answer, not synced",
            Brand::Nats => "JetStream files, synced every 2 min (sync_interval, its default)",
            Brand::NatsAlways => "JetStream files, sync_interval: always",
            Brand::Rumqttd => "memory (a log of 10 segments of 100 MB)",
            Brand::RabbitMq => {
                "durable queues: QoS 1 is confirmed when it is on the disk, or was taken before; QoS 0 memory"
            }
            Brand::MoquetteH2 => "H2, committed every 30 s",
        }
        .into())
    }

    fn testbed(self) -> Option<(Standard, Service)> {
        (self.brand == Brand::RabbitMq).then_some((Standard::RabbitMq, Service::Mqtt))
    }
}

/// The library of the black-box tests that makes disks slow.
fn shim() -> Result<PathBuf> {
    let library = sh::target().join("bench/shim.so");
    let source = sh::root().join("crates/postroad/tests/blackbox/shim.c");
    let own = library.with_extension(format!("{}.so", std::process::id()));
    fs::create_dir_all(sh::target().join("bench"))?;
    sh::output(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&own, &source]))?;
    // Moved into its place whole: another run may be using the old one.
    fs::rename(&own, &library)?;
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::{Brand, Broker};
    use crate::bench::mqtt::packets::Version;
    use crate::server::Peer;
    use std::fs;
    use std::path::Path;
    use std::process::Command;
    use std::time::{Duration, Instant};

    #[test]
    fn a_disk_that_is_slow_takes_five_milliseconds_more_for_a_sync() {
        let dir = tempfile::tempdir().unwrap();
        let slow = Broker { slow_disk: true, ..Brand::Postroad.plain() };
        let with = slow.command(Path::new("postroad"), dir.path(), 1).unwrap();
        let mut dd = Command::new("dd");
        dd.arg("if=/dev/zero").arg(format!("of={}", dir.path().join("file").display()));
        dd.args(["bs=1", "count=1", "conv=fdatasync", "status=none"]);
        dd.envs(with.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let start = Instant::now();
        assert!(dd.status().unwrap().success());
        assert!(start.elapsed() >= Duration::from_millis(5), "{:?}", start.elapsed());
        // Written by the shim at every sync that it let through.
        assert_eq!(fs::read(dir.path().join("calls")).unwrap(), b".");
    }

    #[test]
    fn only_the_two_mosquittos_are_one_server_in_the_table() {
        let mut names = Brand::ALL.map(Brand::name).to_vec();
        assert_eq!(names.iter().filter(|name| **name == "mosquitto").count(), 2);
        names.dedup();
        assert_eq!(names.len(), Brand::ALL.len() - 1);
    }

    #[test]
    fn what_a_broker_cannot_do_is_not_asked_of_it() {
        assert!(Brand::RabbitMq.lacks_qos(2).is_some() && Brand::RabbitMq.lacks_qos(1).is_none());
        for brand in Brand::ALL {
            assert_eq!(brand.lacks_version(Version::V311), None, "{brand:?}");
        }
        assert!(Brand::Nats.lacks_version(Version::V5).is_some());
        assert!(Brand::Mochi.lacks_version(Version::V5).is_none());
    }
}
