//! The brokers under measurement, and how each is started.

use crate::server::Peer;
use crate::sh;
use anyhow::{Context, Result};
use postroad_testbed::debian::{self, Tool};
use postroad_testbed::run::which;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MOSQUITTO: Tool = Tool { name: "mosquitto", file: "mosquitto", package: "mosquitto" };

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
    PostroadMemory,
    Mosquitto { nodelay: bool },
    Mochi,
    MochiBolt,
}

impl Brand {
    pub(super) const ALL: [Self; 6] = [
        Self::Postroad,
        Self::PostroadMemory,
        Self::Mosquitto { nodelay: true },
        Self::Mosquitto { nodelay: false },
        Self::Mochi,
        Self::MochiBolt,
    ];

    pub(super) fn plain(self) -> Broker {
        Broker { brand: self, slow_disk: false, kept: false }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Postroad => "postroad",
            Self::PostroadMemory => "postroad-memory",
            Self::Mosquitto { .. } => "mosquitto",
            Self::Mochi => "mochi",
            Self::MochiBolt => "mochi-bolt",
        }
    }
}

impl Broker {
    /// Whether its state is on the disk whenever it is killed. If not, it is asked to end and then saves.
    pub(super) fn survives_kill(self) -> bool {
        self.brand == Brand::Postroad
    }
}

impl Peer for Broker {
    fn name(self) -> &'static str {
        self.brand.name()
    }

    fn program(self, ours: &Path) -> Option<PathBuf> {
        match self.brand {
            Brand::Postroad | Brand::PostroadMemory => ours.is_file().then(|| ours.to_path_buf()),
            Brand::Mosquitto { .. } => debian::find(&MOSQUITTO),
            Brand::Mochi | Brand::MochiBolt => Some(mochi()).filter(|file| file.is_file()),
        }
    }

    fn command(self, program: &Path, dir: &Path, port: u16) -> Result<Command> {
        let mut command = Command::new(program);
        let listen = format!("127.0.0.1:{port}");
        match self.brand {
            Brand::Postroad | Brand::PostroadMemory => {
                command.arg("serve").arg("--data").arg(dir.join("data"));
                command.args(["--jsonlog", "off", "--http", "off", "--lines", "off", "--mqtt", &listen]);
                command.args(["--sync", if self.brand == Brand::Postroad { "fdatasync" } else { "memory" }]);
            }
            Brand::Mosquitto { nodelay } => {
                let file = dir.join("mosquitto.conf");
                fs::write(&file, mosquitto_conf(dir, port, nodelay, self.kept))?;
                command.arg("-c").arg(file);
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
        stream.write_all(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x00\x00\x05probe").ok()?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).ok()?;
        // An orderly end: no broker has to wonder.
        let _ = stream.write_all(b"\xE0\x00");
        (answer == [0x20, 2, 0, 0]).then(String::new)
    }

    fn mode(self, _: &str) -> Result<String> {
        Ok(match self.brand {
            Brand::Postroad => "journal.sync=fdatasync",
            Brand::PostroadMemory => "journal.sync=memory",
            Brand::Mosquitto { .. } if self.kept => "memory, saved at its end",
            Brand::Mochi if self.kept => "Bolt without syncs",
            Brand::Mosquitto { nodelay: true } => "memory (set_tcp_nodelay true)",
            Brand::Mosquitto { nodelay: false } => "memory",
            Brand::Mochi => "memory",
            Brand::MochiBolt => "Bolt, a synced transaction for each record",
        }
        .into())
    }
}

/// Without the limits at which it drops messages or clients. It saves at its end if `kept`.
fn mosquitto_conf(dir: &Path, port: u16, nodelay: bool, kept: bool) -> String {
    format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nmax_inflight_messages 0\n\
         max_queued_messages 0\nset_tcp_nodelay {nodelay}\nlog_dest stderr\nlog_type error\nlog_type warning\n\
         persistence {kept}\npersistence_location {}/\n",
        dir.display()
    )
}

fn mochi() -> PathBuf {
    postroad_testbed::places::tools().join("mochi-bench")
}

/// Gets the brokers that are not here. Gives what cannot run, with the reason.
pub(super) fn ensure(wanted: &[Broker], ours: &Path) -> Vec<(Brand, String)> {
    let mut missing = Vec::new();
    for broker in wanted {
        let got = match broker.brand {
            Brand::Postroad | Brand::PostroadMemory => speaks_mqtt(ours),
            Brand::Mosquitto { .. } => debian::fetch(&[&MOSQUITTO]),
            Brand::Mochi | Brand::MochiBolt => build_mochi(),
        };
        if let Err(error) = got {
            missing.push((broker.brand, format!("{error:#}")));
        }
    }
    missing
}

fn speaks_mqtt(ours: &Path) -> Result<()> {
    let help = sh::output(Command::new(ours).args(["serve", "--help"]))?;
    anyhow::ensure!(help.contains("--mqtt"), "{} has no --mqtt", ours.display());
    Ok(())
}

/// Builds the broker of `xtask/bench/mochi`; Go knows when nothing has changed.
fn build_mochi() -> Result<()> {
    let go = which("go").context("there is no go to build mochi")?;
    let build = ["build", "-trimpath", "-o"];
    let source = sh::root().join("xtask/bench/mochi");
    sh::output(Command::new(go).args(build).arg(mochi()).arg(".").current_dir(source)).map(drop)
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
    use super::{Brand, Broker, mosquitto_conf};
    use crate::server::Peer;
    use std::fs;
    use std::path::Path;
    use std::process::Command;
    use std::time::{Duration, Instant};

    #[test]
    fn mosquitto_runs_without_limits_and_with_the_nagle_that_is_asked_for() {
        let text = mosquitto_conf(Path::new("/x"), 1883, false, true);
        for line in
            ["max_inflight_messages 0", "max_queued_messages 0", "set_tcp_nodelay false", "persistence true"]
        {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
    }

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
    fn the_two_mosquittos_are_one_server_in_the_table() {
        let names = Brand::ALL.map(Brand::name);
        assert_eq!(names.iter().filter(|name| **name == "mosquitto").count(), 2);
    }
}
