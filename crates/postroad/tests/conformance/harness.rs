//! A process for each case, behind a proxy, and what happens to both.

use std::future::ready;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use postroad_conformance::faulty::{Liar, Lie};
use postroad_conformance::proxy::{Proxy, Way};
use postroad_conformance::{Chaos, ChaosAbilities, Environment, Failure, Harness, Tempo};
use postroad_core::{Backend, BoxFuture, Capabilities, Durability};
use postroad_jsonlog::backend::JsonLog;
use postroad_jsonlog::client::ClientOptions;
use postroad_mqtt::client::{Mqtt, MqttOptions};

use crate::support::{PATIENCE, Server, Setup, free_port};

/// The contract has de-duplication, which is off unless it is asked for.
const CONFIG: &str = "
[jsonlog]
dedup_window = \"2m\"

[journal]
segment_bytes = \"1MiB\"
preallocate = false
disk_floor = 0
";

/// What is planted, for the cases to catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    Nothing,
    /// The data is gone.
    ForgetsAtRestart,
    ForgetsAtKill,
    /// A client that lies.
    Lies(Lie),
}

/// How clients come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    JsonLog,
    /// With an inbox, which is what a client of a server that is killed has.
    Mqtt,
}

pub(crate) struct ProcessHarness {
    door: Door,
    capabilities: Capabilities,
    planted: Planted,
}

impl ProcessHarness {
    pub(crate) fn new() -> Self {
        Self::with(Planted::Nothing)
    }

    pub(crate) fn with(planted: Planted) -> Self {
        // As the greeting says, so one must be asked.
        static CAPABILITIES: OnceLock<Capabilities> = OnceLock::new();
        let capabilities = CAPABILITIES.get_or_init(|| {
            let server = Setup::config(CONFIG).start();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let asked = runtime.block_on(JsonLog::connect(&url(server.addr()), ClientOptions::default()));
            asked.expect("a greeting").capabilities().clone()
        });
        Self { door: Door::JsonLog, capabilities: capabilities.clone(), planted }
    }

    pub(crate) fn mqtt() -> Self {
        Self::mqtt_with(Planted::Nothing)
    }

    pub(crate) fn mqtt_with(planted: Planted) -> Self {
        // As CONNACK says.
        static CAPABILITIES: OnceLock<Capabilities> = OnceLock::new();
        let capabilities = CAPABILITIES.get_or_init(|| {
            let (_server, address) = start(Door::Mqtt);
            let inbox = tempfile::tempdir().expect("a directory");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let asked = runtime.block_on(Mqtt::connect(mqtt_options(address, inbox.path())));
            asked.expect("a CONNACK").capabilities().clone()
        });
        Self { door: Door::Mqtt, capabilities: capabilities.clone(), planted }
    }
}

impl ProcessHarness {
    pub(crate) fn planted(&self) -> Planted {
        self.planted
    }
}

/// A process, and where its door is.
fn start(door: Door) -> (Server, SocketAddr) {
    let setup = Setup::config(CONFIG);
    match door {
        Door::JsonLog => {
            let server = setup.start();
            let address = ([127, 0, 0, 1], server.port()).into();
            (server, address)
        }
        Door::Mqtt => {
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
            (setup.argument("--mqtt").argument(&address.to_string()).start(), address)
        }
    }
}

fn mqtt_options(address: SocketAddr, inbox: &Path) -> MqttOptions {
    let mut options = MqttOptions::new(address.ip().to_string(), address.port());
    options.durability = Durability::Disk;
    options.inbox = Some(inbox.to_owned());
    options
}

fn url(address: impl std::fmt::Display) -> String {
    format!("jsonlog://{address}")
}

impl Harness for ProcessHarness {
    fn name(&self) -> &'static str {
        match self.door {
            Door::JsonLog => "jsonlog",
            Door::Mqtt => "mqtt-process",
        }
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn chaos(&self) -> ChaosAbilities {
        ChaosAbilities { restart: true, kill: true, cut: true, half_open: true, pause: true }
    }

    fn tempo(&self) -> Tempo {
        match self.planted {
            Planted::Nothing => Tempo::default(),
            // What a lie takes away is not waited for as long.
            _ => Tempo { patience: Duration::from_secs(4), ..Tempo::default() },
        }
    }

    fn start(&self, _: &str) -> BoxFuture<'_, Result<Box<dyn Environment>, Failure>> {
        let (door, planted) = (self.door, self.planted);
        let liar = match planted {
            Planted::Lies(lie) => Some(Liar::new(lie, self.capabilities())),
            _ => None,
        };
        Box::pin(async move {
            let process = blocking(move || {
                let (server, address) = start(door);
                let proxy = Proxy::start(address).map_err(Failure::from)?;
                let inbox = tempfile::tempdir()?;
                Ok(Process { door, server: Arc::new(Mutex::new(server)), proxy, inbox, planted, liar })
            });
            Ok(Box::new(process.await?) as Box<dyn Environment>)
        })
    }
}

/// Runs what waits for a process on a thread where that is allowed. Its panic is a failure of the case.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|why| Failure::new(why.to_string()))?
}

/// A process and the way there.
struct Process {
    door: Door,
    server: Arc<Mutex<Server>>,
    proxy: Proxy,
    /// One for all clients, since a name must be found again.
    inbox: tempfile::TempDir,
    planted: Planted,
    liar: Option<Liar>,
}

fn lock(server: &Mutex<Server>) -> MutexGuard<'_, Server> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// All its connections get lost.
    fn on_the_way(&self, change: impl FnOnce(&Proxy)) -> BoxFuture<'_, Result<(), Failure>> {
        if let Some(liar) = &self.liar {
            liar.connections_get_lost();
        }
        change(&self.proxy);
        Box::pin(ready(Ok(())))
    }

    async fn with(&self, work: impl FnOnce(&mut Server) + Send + 'static) -> Result<(), Failure> {
        let server = Arc::clone(&self.server);
        blocking(move || {
            work(&mut lock(&server));
            Ok(())
        })
        .await
    }
}

impl Environment for Process {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>, Failure>> {
        Box::pin(async {
            if self.door == Door::Mqtt {
                let options = mqtt_options(self.proxy.address(), self.inbox.path());
                return Ok(Arc::new(Mqtt::connect(options).await?) as Arc<dyn Backend>);
            }
            let backend = JsonLog::connect(&url(self.proxy.address()), ClientOptions::default()).await?;
            Ok(match &self.liar {
                Some(liar) => Arc::new(liar.client(backend)) as Arc<dyn Backend>,
                None => Arc::new(backend),
            })
        })
    }

    fn prefix(&self) -> &'static str {
        "case"
    }

    fn chaos(&self) -> Option<&dyn Chaos> {
        Some(self)
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.proxy.cut();
        // The process ends with its `Server`.
        Box::pin(ready(()))
    }
}

fn forget(server: &Server) {
    std::fs::remove_dir_all(server.data()).expect("its data");
}

impl Chaos for Process {
    fn restart(&self) -> BoxFuture<'_, Result<(), Failure>> {
        let planted = self.planted;
        Box::pin(self.with(move |server| {
            server.terminate();
            let status = server.wait_exit(PATIENCE);
            assert!(status.success(), "the broker ended with {status}\n{}", server.stderr());
            if planted == Planted::ForgetsAtRestart {
                forget(server);
            }
            server.restart();
        }))
    }

    fn kill(&self) -> BoxFuture<'_, Result<(), Failure>> {
        let planted = self.planted;
        Box::pin(self.with(move |server| {
            server.kill9();
            if planted == Planted::ForgetsAtKill {
                forget(server);
            }
            server.restart();
        }))
    }

    fn cut(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.on_the_way(Proxy::cut)
    }

    fn half_open(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.on_the_way(|proxy| proxy.half_open(Way::Both))
    }

    fn heal(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.on_the_way(Proxy::heal)
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(self.with(|server| server.pause()))
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(self.with(|server| server.resume()))
    }
}
