//! The delivery contract, over TCP, against a real server and its data on disk.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postroad_conformance::proxy::Proxy;
use postroad_conformance::{Chaos, ChaosAbilities, Environment, Failure, Harness};
use postroad_core::{Backend, BoxFuture, Capabilities};
use postroad_engine::{Engine, EngineConfig, SyncMode};
use postroad_jsonlog::backend::JsonLog;
use postroad_jsonlog::client::ClientOptions;
use postroad_jsonlog::server::{Server, ServerConfig};
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinHandle;

postroad_conformance::conformance_tests!(JsonLogHarness::new());

/// A server of its own for each case, behind a proxy.
struct JsonLogHarness {
    capabilities: Capabilities,
    /// It starts again with nothing: what the cases must catch.
    forgetful: bool,
}

impl JsonLogHarness {
    fn new() -> Self {
        // As the greeting says, so one must be asked.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let capabilities = runtime.block_on(async {
            let broker = Broker::start().await.unwrap();
            let capabilities = broker.connect().await.unwrap().capabilities().clone();
            broker.stop().await;
            capabilities
        });
        Self { capabilities, forgetful: false }
    }
}

impl Harness for JsonLogHarness {
    fn name(&self) -> &'static str {
        "jsonlog"
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn chaos(&self) -> ChaosAbilities {
        ChaosAbilities { restart: true, cut: true, half_open: true, ..ChaosAbilities::NONE }
    }

    fn start(&self, _: &str) -> BoxFuture<'_, Result<Box<dyn Environment>, Failure>> {
        Box::pin(async {
            let broker = Broker { forgetful: self.forgetful, ..Broker::start().await? };
            Ok(Box::new(broker) as Box<dyn Environment>)
        })
    }
}

/// A server, its data, and the way there.
struct Broker {
    data: tempfile::TempDir,
    proxy: Proxy,
    address: SocketAddr,
    running: Mutex<Option<Running>>,
    forgetful: bool,
}

/// Until it is stopped.
struct Running {
    engine: Arc<Engine>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(data: &Path, listen: SocketAddr) -> Result<(Self, SocketAddr), Failure> {
        let failure = |why: &dyn std::fmt::Display| Failure::new(format!("starting a server: {why}"));
        let config = EngineConfig {
            data: Some(data.to_owned()),
            sync: SyncMode::Fdatasync,
            preallocate: false,
            segment_bytes: 1 << 20,
            disk_floor: 0,
            dedup_window: Duration::from_secs(120),
            ..EngineConfig::default()
        };
        let engine = Engine::open(config).map_err(|why| failure(&why))?;
        engine.start(Box::new(|why| panic!("the engine failed: {why}"))).map_err(|why| failure(&why))?;
        let config = ServerConfig { listen, ..ServerConfig::default() };
        let server = Server::bind(Arc::clone(&engine), config).await?;
        let address = server.local_addr()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.run(
            async {
                let _ = stopped.await;
            },
            Duration::from_secs(2),
        ));
        Ok((Self { engine, stop, task }, address))
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
        let _ = self.engine.shutdown();
    }
}

impl Broker {
    async fn start() -> Result<Self, Failure> {
        let data = tempfile::tempdir()?;
        let (running, address) = Running::start(data.path(), ([127, 0, 0, 1], 0).into()).await?;
        let proxy = Proxy::start(address).await?;
        Ok(Self { data, proxy, address, running: Mutex::new(Some(running)), forgetful: false })
    }
}

impl Environment for Broker {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>, Failure>> {
        Box::pin(async {
            let url = format!("jsonlog://{}", self.proxy.address());
            let backend = JsonLog::connect(&url, ClientOptions::default()).await?;
            Ok(Arc::new(backend) as Arc<dyn Backend>)
        })
    }

    fn prefix(&self) -> &'static str {
        "case"
    }

    fn chaos(&self) -> Option<&dyn Chaos> {
        Some(self)
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.proxy.cut();
            if let Some(running) = self.running.lock().await.take() {
                running.stop().await;
            }
        })
    }
}

impl Chaos for Broker {
    fn restart(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async {
            let mut running = self.running.lock().await;
            if let Some(running) = running.take() {
                running.stop().await;
            }
            if self.forgetful {
                for entry in std::fs::read_dir(self.data.path())? {
                    let path = entry?.path();
                    if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
                }
            }
            *running = Some(Running::start(self.data.path(), self.address).await?.0);
            Ok(())
        })
    }

    fn cut(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.proxy.cut();
        Box::pin(std::future::ready(Ok(())))
    }

    fn half_open(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.proxy.half_open();
        Box::pin(std::future::ready(Ok(())))
    }

    fn heal(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.proxy.heal();
        Box::pin(std::future::ready(Ok(())))
    }
}

#[test]
fn a_broker_that_forgets_is_caught() {
    let harness = JsonLogHarness { forgetful: true, ..JsonLogHarness::new() };
    // Those of them that wait for what is lost would wait for long.
    let chosen = [
        "connection/restart",
        "connection/attempts_survive_a_restart",
        "checkpoint/restart_replays_the_rest",
    ];
    let report = postroad_conformance::run_some(&harness, |case| chosen.contains(&case.name));
    let caught: Vec<_> = report.failures().map(|entry| entry.case).collect();
    assert_eq!(caught.len(), chosen.len(), "caught by {caught:?} only");
}
