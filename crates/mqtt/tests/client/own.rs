//! This crate's server on its own thread, with its data on disk; stopped and started again at the same place.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use postroad_engine::log::{JournalStore, LogStore as _};
use postroad_journal::CommitterOptions;
use postroad_mqtt::access::OpenAccess;
use postroad_mqtt::broker::ListenerConfig;
use postroad_mqtt::server::{ListenerOptions, Server, ServerConfig, ServerError, TlsFiles};
use tokio::sync::oneshot;

pub(crate) struct Own {
    running: Option<Running>,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<(), ServerError>>,
    store: Arc<JournalStore>,
}

fn run(directory: &Path, address: SocketAddr, tls: Option<TlsFiles>) -> (Running, SocketAddr) {
    let options = CommitterOptions { preallocate: false, disk_floor: 0, ..CommitterOptions::default() };
    let store = Arc::new(JournalStore::open(directory, 4 << 20, options).unwrap());
    store.start(Box::new(|why| panic!("the log failed: {why}"))).unwrap();
    let listener = ListenerOptions {
        address,
        tls,
        rules: Arc::new(ListenerConfig { max_packet_size: 2 << 20, ..ListenerConfig::default() }),
        ..ListenerOptions::default()
    };
    let config = ServerConfig { listeners: vec![listener], ..ServerConfig::default() };
    let server = Server::bind(config, store.clone(), Arc::new(OpenAccess)).unwrap();
    let address = server.local_addrs().unwrap()[0];
    let (stop, stopping) = oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(server.run(async {
            let _ = stopping.await;
        }))
    });
    (Running { stop, thread, store }, address)
}

impl Own {
    pub(crate) fn start() -> Self {
        Self::with(None)
    }

    pub(crate) fn with(tls: Option<TlsFiles>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (running, address) = run(directory.path(), ([127, 0, 0, 1], 0).into(), tls);
        Self { running: Some(running), address, directory }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.stop.send(());
            running.thread.join().unwrap().unwrap();
            running.store.stop();
        }
    }

    pub(crate) fn restart(&mut self) {
        self.stop();
        let (running, _) = run(self.directory.path(), self.address, None);
        self.running = Some(running);
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.stop();
    }
}
