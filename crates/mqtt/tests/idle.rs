//! What an idle connection costs. Alone in its process: it looks at the memory of all of it.

use postroad_engine::log::{JournalStore, LogStore};
use postroad_journal::CommitterOptions;
use postroad_mqtt::access::OpenAccess;
use postroad_mqtt::server::{ListenerOptions, Server, ServerConfig};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// Resident bytes of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Descriptors this process may have.
fn descriptors() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

#[test]
fn idle_connections_own_no_buffers() {
    let directory = tempfile::tempdir().unwrap();
    let store =
        Arc::new(JournalStore::open(directory.path(), 64 << 20, CommitterOptions::default()).unwrap());
    store.start(Box::new(|_| {})).unwrap();
    let listener = ListenerOptions { address: ([127, 0, 0, 1], 0).into(), ..ListenerOptions::default() };
    let config = ServerConfig { listeners: vec![listener], ..ServerConfig::default() };
    let server = Server::bind(config, store, Arc::new(OpenAccess)).unwrap();
    let (address, handle) = (server.local_addrs().unwrap()[0], server.handle());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(server.run(std::future::pending())).unwrap();
    });
    let count = 10_000.min((descriptors() - 100) / 2);
    // What is there once is there before.
    let mut all = Vec::with_capacity(count);
    let mut open = |count: usize, say: bool| {
        for n in 0..count {
            let mut stream = TcpStream::connect(address).unwrap();
            if say {
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut packet = b"\x10\x12\0\x04MQTT\x04\x02\0\0\0\x06".to_vec();
                packet.extend_from_slice(format!("{:06}", n + 100_000).as_bytes());
                stream.write_all(&packet).unwrap();
                stream.read_exact(&mut [0; 4]).unwrap();
            }
            all.push(stream);
        }
    };
    open(count / 10, true);
    let first = resident();
    let silent = count * 2 / 5;
    open(silent, false);
    while handle.stats().connections < (count / 10 + silent) as u64 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let second = resident();
    let speaking = count / 2;
    open(speaking, true);
    let third = resident();
    let (before, after) = ((second - first) / silent as u64, (third - second) / speaking as u64);
    println!("{count} connections: {before} bytes each before CONNECT, {after} bytes each with a session");
    // The smallest buffer one could give a connection is more than this leaves room for.
    assert!(before <= 2560 && after <= 4096, "{before} {after}");
}
