//! How each broker is started: its command, its configuration, its ports.

use crate::broker::{Broker, STAN_CLUSTER, Service};
use crate::ports::Port;
use crate::process::{Launch, Run};
use crate::programs::Program;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

/// The ports of one server.
#[derive(Debug)]
pub(crate) struct Ports {
    doors: BTreeMap<Service, Port>,
    /// RabbitMQ's port mapper and its door for other nodes and its command line.
    mapper: Option<Port>,
    nodes: Option<Port>,
}

impl Ports {
    pub(crate) fn claim(broker: Broker) -> Result<Self> {
        let mut doors = BTreeMap::new();
        for service in broker.services() {
            doors.insert(*service, Port::claim()?);
        }
        let erlang = || (broker == Broker::RabbitMq).then(Port::claim).transpose();
        Ok(Self { doors, mapper: erlang()?, nodes: erlang()? })
    }

    fn of(&self, service: Service) -> Result<u16> {
        let port = self.doors.get(&service).with_context(|| format!("no port for {}", service.name()))?;
        Ok(port.number())
    }

    pub(crate) fn addresses(&self) -> BTreeMap<Service, SocketAddr> {
        let address = |port: &Port| SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        self.doors.iter().map(|(service, port)| (*service, address(port))).collect()
    }
}

/// Writes the configuration into the run's directory and gives the command. The same again on the same
/// directory is a restart with the same data.
pub(crate) fn prepare(program: &Program, run: &Run, ports: &Ports) -> Result<Launch> {
    let data = run.dir.join("data");
    fs::create_dir_all(&data)?;
    let mut launch = match program.broker {
        Broker::Redis => Launch::new(&program.file)
            .args(["--bind", "127.0.0.1", "--port", &ports.of(Service::Redis)?.to_string()])
            .args(["--daemonize", "no", "--save", "", "--appendonly", "yes", "--appendfsync", "always"])
            .args(["--dir".into(), data]),
        Broker::Beanstalkd => Launch::new(&program.file)
            .args(["-l", "127.0.0.1", "-p", &ports.of(Service::Beanstalk)?.to_string(), "-f", "0", "-b"])
            .args([data]),
        Broker::Mosquitto => {
            let config = run.dir.join("mosquitto.conf");
            let mut text = format!(
                "listener {} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {}/\n\
                 autosave_interval 1\nautosave_on_changes true\n",
                ports.of(Service::Mqtt)?,
                data.display()
            );
            if rustix::process::geteuid().is_root() {
                // It would change to a user that may not be there and may not write here.
                text.push_str("user root\n");
            }
            fs::write(&config, text)?;
            Launch::new(&program.file).args(["-c".into(), config])
        }
        Broker::Nats | Broker::NatsStreaming => {
            let config = run.dir.join("nats.conf");
            let data = data.display();
            let store = if program.broker == Broker::Nats {
                format!("jetstream {{ store_dir: \"{data}\" }}\n")
            } else {
                format!("streaming {{ cluster_id: \"{STAN_CLUSTER}\", store: file, dir: \"{data}\" }}\n")
            };
            let (client, monitor) = (ports.of(Service::Nats)?, ports.of(Service::Monitor)?);
            let text = format!("listen: \"127.0.0.1:{client}\"\nhttp: \"127.0.0.1:{monitor}\"\n{store}");
            fs::write(&config, text)?;
            Launch::new(&program.file).args(["-c".into(), config])
        }
        Broker::RabbitMq => rabbitmq(program, run, ports)?,
    };
    launch.env.extend(program.env.iter().cloned());
    Ok(launch)
}

/// The port mapper runs in the foreground, in the broker's group: as a daemon it would outlive it.
/// Looking for it until it answers takes some milliseconds.
const RABBITMQ: &str = r#"
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 &
until epmd -port "$ERL_EPMD_PORT" -names >/dev/null 2>&1; do kill -0 $! || exit 70; done
exec "$0"
"#;

fn rabbitmq(program: &Program, run: &Run, ports: &Ports) -> Result<Launch> {
    let port = |of: &Option<Port>| of.as_ref().map(Port::number).context("RabbitMQ needs two more ports");
    let (mapper, nodes) = (port(&ports.mapper)?, port(&ports.nodes)?);
    let (config, plugins) = (run.dir.join("rabbitmq.conf"), run.dir.join("enabled_plugins"));
    let stream = ports.of(Service::Stream)?;
    let mut text = String::new();
    for (key, service) in [
        ("listeners.tcp.1", Service::Amqp),
        ("stream.listeners.tcp.1", Service::Stream),
        ("mqtt.listeners.tcp.1", Service::Mqtt),
        ("stomp.listeners.tcp.1", Service::Stomp),
    ] {
        text.push_str(&format!("{key} = 127.0.0.1:{}\n", ports.of(service)?));
    }
    text.push_str(&format!(
        "stream.advertised_host = 127.0.0.1\nstream.advertised_port = {stream}\n\
         management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}\n\
         web_stomp.tcp.ip = 127.0.0.1\nweb_stomp.tcp.port = {}\n\
         disk_free_limit.absolute = 50MB\nvm_memory_high_watermark.absolute = 512MB\n\
         log.console = true\nlog.console.level = info\nlog.file = false\n",
        ports.of(Service::Management)?,
        ports.of(Service::WebStomp)?
    ));
    fs::write(&config, text)?;
    fs::write(
        &plugins,
        "[rabbitmq_management,rabbitmq_mqtt,rabbitmq_stomp,rabbitmq_stream,rabbitmq_web_stomp].\n",
    )?;
    let dir = |name: &str| run.dir.join(name);
    // The name is part of the data's path: it must be the same after a restart.
    let node = format!("{}@localhost", run.name);
    Ok(Launch::new("sh")
        .args(["-c".into(), RABBITMQ.into(), program.file.clone().into_os_string()])
        .env("HOME", &run.dir)
        .env("RABBITMQ_NODENAME", node)
        .env("RABBITMQ_CONF_ENV_FILE", dir("no-rabbitmq-env.conf"))
        .env("RABBITMQ_CONFIG_FILE", config)
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", dir("no-advanced.config"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", plugins)
        .env("RABBITMQ_MNESIA_BASE", dir("data"))
        .env("RABBITMQ_LOG_BASE", dir("log"))
        .env("RABBITMQ_GENERATED_CONFIG_DIR", dir("generated"))
        .env("RABBITMQ_SCHEMA_DIR", dir("schema"))
        .env("RABBITMQ_PID_FILE", dir("rabbitmq.pid"))
        .env("RABBITMQ_DIST_PORT", nodes.to_string())
        .env("ERL_EPMD_PORT", mapper.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("LANG", "C.UTF-8")
        .env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "+S 2:2 -start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
        ))
}
