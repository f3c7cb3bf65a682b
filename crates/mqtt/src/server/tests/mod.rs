//! The edge on real sockets.

mod commits;
mod limits;
mod machine;
mod tls;
mod transport;

use super::config::{EdgeConfig, Listen, SocketOptions};
use super::{EdgeServer, ServerError, ServerHandle, ServerStats};
use machine::{Commands, TestRules};
use postroad_engine::log::{JournalStore, LogStore};
use postroad_journal::CommitterOptions;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An edge with the commands of [`machine`] behind it, on a journal on the disk.
struct Running {
    addresses: Vec<SocketAddr>,
    handle: ServerHandle,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<Result<(), ServerError>>>,
    store: Arc<dyn LogStore>,
    _directory: tempfile::TempDir,
}

fn listen() -> Listen<TestRules> {
    Listen {
        address: ([127, 0, 0, 1], 0).into(),
        tls: None,
        websocket: None,
        sockets: SocketOptions::default(),
        rules: Arc::default(),
    }
}

fn config(listeners: Vec<Listen<TestRules>>) -> EdgeConfig<TestRules> {
    EdgeConfig {
        listeners,
        max_connections: 20_000,
        max_partial: 256 << 20,
        write_timeout: Duration::from_secs(60),
    }
}

fn start(config: EdgeConfig<TestRules>) -> Running {
    start_on(config, |journal| journal)
}

/// The same with another store in front of the journal.
fn start_on(
    config: EdgeConfig<TestRules>,
    front: impl FnOnce(Arc<dyn LogStore>) -> Arc<dyn LogStore>,
) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let store =
        Arc::new(JournalStore::open(directory.path(), 64 << 20, CommitterOptions::default()).unwrap());
    store.start(Box::new(|_| {})).unwrap();
    let store = front(store);
    let server = EdgeServer::bind(config, store.clone()).unwrap();
    let (addresses, handle) = (server.addresses().unwrap(), server.handle());
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let log = store.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let stopping = async {
            let _ = stopping.await;
        };
        runtime.block_on(server.run(move |_| Commands::open(log), stopping, Duration::from_secs(5)))
    });
    Running { addresses, handle, stop: Some(stop), thread: Some(thread), store, _directory: directory }
}

impl Running {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addresses[0]).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn ask_to_stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    /// How the server ended.
    fn end(mut self) -> Result<(), ServerError> {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let result = self.thread.take().unwrap().join().unwrap();
        self.store.stop();
        result
    }

    /// Waits until the counters are as wanted.
    fn until(&self, what: &str, wanted: impl Fn(ServerStats) -> bool) {
        let begin = Instant::now();
        while !wanted(self.handle.stats()) {
            assert!(begin.elapsed() < Duration::from_secs(10), "{what}: {:?}", self.handle.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        // It must not write into a directory that is being removed.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
            self.store.stop();
        }
    }
}

/// One packet of a client.
fn packet(command: u8, argument: &[u8]) -> Vec<u8> {
    let mut packet = (argument.len() as u16 + 1).to_be_bytes().to_vec();
    packet.push(command);
    packet.extend_from_slice(argument);
    packet
}

/// One answer.
fn answer(stream: &mut impl Read) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    answer
}

fn ask(stream: &mut (impl Read + Write), command: u8, argument: &[u8]) -> Vec<u8> {
    stream.write_all(&packet(command, argument)).unwrap();
    stream.flush().unwrap();
    answer(stream)
}

/// True if the peer is gone.
fn is_closed(stream: &mut impl Read) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => rest.is_empty(),
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}
