//! Servers and the way there, for the conformance kit.

use std::future::ready;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postroad_conformance::proxy::{Proxy, Way};
use postroad_conformance::{Chaos, ChaosAbilities, Environment, Failure, Harness, Need, Tempo};
use postroad_core::{Backend, BoxFuture, Capabilities, Durability, MessageId};
use postroad_mqtt::client::{Mqtt, MqttOptions};
use postroad_mqtt::codec::{Qos, Version};
use postroad_testbed::{Broker, Mode, Options, Running, Service, Testbed};

use crate::own::Own;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mosquitto,
    Plain,
    Durable,
    Inbox,
    Qos1,
    V311,
    RabbitMq(&'static crate::rabbitmq::Kind),
}

pub(crate) struct MqttHarness {
    kind: Kind,
    capabilities: Capabilities,
}

enum Server {
    Mosquitto(Running),
    Own(Own),
    RabbitMq(crate::rabbitmq::Lent),
}

pub(crate) fn mosquitto() -> Running {
    let options = Options { mode: Some(Mode::Native), ..Options::default() };
    Testbed::start(Broker::Mosquitto, &options).expect("mosquitto")
}

impl Server {
    /// For a case that does `harm` to it, if it does.
    fn start(kind: Kind, harm: bool) -> Self {
        match kind {
            Kind::RabbitMq(which) => Self::RabbitMq(which.lend(harm)),
            Kind::Mosquitto => Self::Mosquitto(mosquitto()),
            _ => Self::Own(Own::start()),
        }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Mosquitto(running) => running.address(Service::Mqtt).expect("its door"),
            Self::Own(own) => own.address(),
            Self::RabbitMq(lent) => lent.address(),
        }
    }
}

fn options(kind: Kind, address: SocketAddr) -> MqttOptions {
    let mut options = MqttOptions::new(address.ip().to_string(), address.port());
    options.durability = if kind == Kind::Mosquitto { Durability::Memory } else { Durability::Disk };
    match kind {
        Kind::Qos1 => options.qos = Qos::AtLeastOnce,
        Kind::V311 => options.version = Some(Version::V311),
        Kind::RabbitMq(_) => {
            options.qos = Qos::AtLeastOnce;
            (options.user, options.password) = (Some("guest".to_owned()), Some("guest".to_owned()));
        }
        _ => {}
    }
    options
}

impl MqttHarness {
    fn new(kind: Kind) -> Self {
        // As CONNACK says, so a server must be asked.
        let server = Server::start(kind, false);
        let mut options = options(kind, server.address());
        let directory = tempfile::tempdir().expect("a directory");
        add_boxes(kind, &mut options, directory.path(), 0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let capabilities = runtime.block_on(async {
            let backend = Mqtt::connect(options).await.expect("a server");
            backend.close().await.expect("a close");
            backend.capabilities().clone()
        });
        Self { kind, capabilities }
    }

    pub(crate) fn mosquitto() -> Self {
        Self::new(Kind::Mosquitto)
    }

    pub(crate) fn plain() -> Self {
        Self::new(Kind::Plain)
    }

    pub(crate) fn durable() -> Self {
        Self::new(Kind::Durable)
    }

    pub(crate) fn inbox() -> Self {
        Self::new(Kind::Inbox)
    }

    pub(crate) fn qos1() -> Self {
        Self::new(Kind::Qos1)
    }

    pub(crate) fn v311() -> Self {
        Self::new(Kind::V311)
    }

    pub(crate) fn rabbitmq(which: &'static crate::rabbitmq::Kind) -> Self {
        Self::new(Kind::RabbitMq(which))
    }
}

/// An outbox of its own for each client, since only one can have it; one inbox for all, since a name must be found again.
fn add_boxes(kind: Kind, options: &mut MqttOptions, directory: &Path, client: u64) {
    if kind == Kind::Durable {
        options.outbox = Some(directory.join(format!("out{client}")));
    }
    if matches!(kind, Kind::Durable | Kind::Inbox) {
        options.inbox = Some(directory.join("in"));
    }
}

impl Harness for MqttHarness {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Mosquitto => "mqtt-mosquitto",
            Kind::Plain => "mqtt",
            Kind::Durable => "mqtt-durable",
            Kind::Inbox => "mqtt-inbox",
            Kind::Qos1 => "mqtt-qos1",
            Kind::V311 => "mqtt-v311",
            Kind::RabbitMq(which) => which.name,
        }
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn chaos(&self) -> ChaosAbilities {
        if let Kind::RabbitMq(_) = self.kind {
            // Killed, it forgets acks that it has taken, which the contract does not allow: `rabbitmq` has a test of what
            // holds then.
            return ChaosAbilities { restart: true, kill: false, cut: true, half_open: true, pause: true };
        }
        let own = self.kind != Kind::Mosquitto;
        // An outbox is there to go on when a connection is lost; the kit wants to hear of it at once.
        let connections = self.kind != Kind::Durable;
        ChaosAbilities { restart: own, kill: false, cut: connections, half_open: connections, pause: !own }
    }

    fn tempo(&self) -> Tempo {
        match self.kind {
            // It takes ten seconds to start.
            Kind::RabbitMq(_) => Tempo {
                patience: Duration::from_secs(45),
                limit: Duration::from_secs(240),
                ..Tempo::default()
            },
            _ => Tempo::default(),
        }
    }

    fn start(&self, case: &str) -> BoxFuture<'_, Result<Box<dyn Environment>, Failure>> {
        let kind = self.kind;
        let harm = postroad_conformance::find(case)
            .is_some_and(|case| case.needs.iter().any(|need| matches!(need, Need::Restart | Need::Pause)));
        Box::pin(async move {
            let place = blocking(move || {
                let server = Server::start(kind, harm);
                let proxy = Proxy::start(server.address()).map_err(Failure::from)?;
                let directory = tempfile::tempdir()?;
                let server = Arc::new(Mutex::new(server));
                let prefix = format!("case-{}", MessageId::generate());
                Ok(Place { kind, server, proxy, prefix, directory, clients: AtomicU64::new(1) })
            });
            Ok(Box::new(place.await?) as Box<dyn Environment>)
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|why| Failure::new(why.to_string()))?
}

struct Place {
    kind: Kind,
    server: Arc<Mutex<Server>>,
    proxy: Proxy,
    /// A server may be shared.
    prefix: String,
    directory: tempfile::TempDir,
    clients: AtomicU64,
}

impl Place {
    fn with(
        &self,
        work: impl FnOnce(&mut Server) -> Result<(), Failure> + Send + 'static,
    ) -> BoxFuture<'_, Result<(), Failure>> {
        let server = Arc::clone(&self.server);
        Box::pin(blocking(move || work(&mut server.lock().unwrap_or_else(PoisonError::into_inner))))
    }
}

impl Environment for Place {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>, Failure>> {
        let mut options = options(self.kind, self.proxy.address());
        let client = self.clients.fetch_add(1, Ordering::Relaxed);
        add_boxes(self.kind, &mut options, self.directory.path(), client);
        Box::pin(async { Ok(Arc::new(Mqtt::connect(options).await?) as Arc<dyn Backend>) })
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn chaos(&self) -> Option<&dyn Chaos> {
        Some(self)
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.proxy.cut();
        Box::pin(ready(()))
    }
}

fn failed(why: impl std::fmt::Display) -> Failure {
    Failure::new(why.to_string())
}

impl Chaos for Place {
    fn restart(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.with(|server| {
            match server {
                Server::Mosquitto(running) => running.restart().map_err(failed)?,
                Server::Own(own) => own.restart(),
                Server::RabbitMq(lent) => lent.harm()?.restart().map_err(failed)?,
            }
            Ok(())
        })
    }

    fn cut(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.proxy.cut();
        Box::pin(ready(Ok(())))
    }

    fn half_open(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.proxy.half_open(Way::Both);
        Box::pin(ready(Ok(())))
    }

    fn heal(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.proxy.heal();
        Box::pin(ready(Ok(())))
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.with(|server| match server {
            Server::Mosquitto(running) => running.pause().map_err(failed),
            Server::RabbitMq(lent) => lent.harm()?.pause().map_err(failed),
            Server::Own(_) => Err(Failure::new("a thread cannot be paused")),
        })
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.with(|server| match server {
            Server::Mosquitto(running) => running.resume().map_err(failed),
            Server::RabbitMq(lent) => lent.harm()?.resume().map_err(failed),
            Server::Own(_) => Err(Failure::new("a thread cannot be paused")),
        })
    }
}
