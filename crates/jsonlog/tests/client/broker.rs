//! A real broker in this process, on its own port and directory.

use std::sync::Arc;
use std::time::Duration;

use postroad_engine::{Engine, EngineConfig};
use postroad_jsonlog::client::{Client, ClientOptions};
use postroad_jsonlog::server::{Server, ServerConfig};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) struct Broker {
    pub(crate) url: String,
    engine: Arc<Engine>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
    _data: tempfile::TempDir,
}

impl Broker {
    pub(crate) async fn start() -> Self {
        Self::with(|_, _| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut EngineConfig, &mut ServerConfig)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut engine = EngineConfig {
            data: Some(data.path().to_owned()),
            preallocate: false,
            segment_bytes: 1 << 20,
            disk_floor: 0,
            ..EngineConfig::default()
        };
        let mut server = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::default() };
        change(&mut engine, &mut server);
        let engine = Engine::open(engine).unwrap();
        engine.start(Box::new(|why| panic!("the engine failed: {why}"))).unwrap();
        let server = Server::bind(Arc::clone(&engine), server).await.unwrap();
        let url = format!("jsonlog://{}", server.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(server.run(
            async {
                let _ = stopped.await;
            },
            Duration::from_secs(2),
        ));
        Self { url, engine, stop: Some(stop), running, _data: data }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.url, ClientOptions::default()).await.unwrap()
    }

    /// Stops it the orderly way.
    pub(crate) async fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).unwrap();
            (&mut self.running).await.unwrap();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.running.abort();
        let _ = self.engine.shutdown();
    }
}
