//! Real sockets through the edge that MQTT has.

use crate::access::OpenAccess;
use crate::lines::{LinesConfig, Role};
use crate::server::{LinesOptions, ListenerOptions, Server, ServerConfig};
use postroad_engine::log::{JournalStore, LogStore};
use postroad_journal::CommitterOptions;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

struct Peer {
    lines: BufReader<TcpStream>,
}

impl Peer {
    fn dial(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { lines: BufReader::new(stream) }
    }

    fn say(&mut self, line: &str) {
        self.lines.get_mut().write_all(format!("{line}\r\n").as_bytes()).unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.hear()
    }
}

#[test]
fn a_session_over_tcp_and_the_end_of_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn LogStore> =
        Arc::new(JournalStore::open(directory.path(), 64 << 20, CommitterOptions::default()).unwrap());
    store.start(Box::new(|error| panic!("{error}"))).unwrap();
    let at = ListenerOptions { address: ([127, 0, 0, 1], 0).into(), ..ListenerOptions::default() };
    let config = ServerConfig { listeners: vec![at.clone()], ..ServerConfig::default() };
    let lines = LinesOptions {
        listeners: vec![(Role::Consumers, at.clone()), (Role::Publishers, at)],
        lines: LinesConfig::default(),
    };
    let server = Server::bind_with_lines(config, lines, store.clone(), Arc::new(OpenAccess)).unwrap();
    let addresses = server.local_addrs().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let stopped = async move {
            let _ = stopped.await;
        };
        runtime.block_on(server.run(stopped)).unwrap();
    });
    let mut amy = Peer::dial(addresses[1]);
    assert_eq!(amy.hear(), "Please login!");
    assert_eq!(amy.ask("log amy"), "Succesfully logged in!");
    assert_eq!(amy.ask(r#"{"type":"SUB","topic":"t"}"#), "OK");
    let mut publisher = Peer::dial(addresses[2]);
    for n in 1..=200 {
        assert_eq!(
            publisher.ask(&format!(r#"{{"type":"PUB","topic":"t","msg":{n}}}"#)),
            format!(r#"{{"msgId":{n},"type":"PUBREC"}}"#)
        );
        assert_eq!(
            publisher.ask(&format!(r#"{{"type":"PUBREL","msgId":{n}}}"#)),
            format!(r#"{{"msgId":{n},"type":"PUBCOMP"}}"#)
        );
        let heard = super::rig::json(&amy.hear());
        assert_eq!(heard["msg"], n);
        let id = &heard["msgId"];
        assert_eq!(amy.ask(&format!(r#"{{"type":"PUBREC","msgId":{id},"topic":"t"}}"#)), "OK");
        assert_eq!(amy.hear(), format!(r#"{{"msgId":{id},"type":"PUBREL"}}"#));
        assert_eq!(amy.ask(&format!(r#"{{"type":"PUBCOMP","msgId":{id},"topic":"t"}}"#)), "OK");
    }
    stop.send(()).unwrap();
    assert_eq!(amy.hear(), "ERROR \"the server goes down\"");
    assert_eq!(amy.hear(), "", "and closed");
    server.join().unwrap();
    store.stop();
}
