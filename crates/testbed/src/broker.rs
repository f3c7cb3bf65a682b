//! Which brokers there are, what they listen for, and how they are asked for.

use anyhow::{Error, bail};
use std::fmt;
use std::str::FromStr;

/// A broker that tests talk to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Broker {
    /// RabbitMQ with streams, management, MQTT, STOMP and Web-STOMP.
    RabbitMq,
    /// nats-server with JetStream.
    Nats,
    /// nats-streaming-server (STAN), with its nats-server inside, stored in files.
    NatsStreaming,
    /// Eclipse Mosquitto.
    Mosquitto,
    /// Redis, every write synced.
    Redis,
    /// beanstalkd, every write synced.
    Beanstalkd,
}

/// The STAN cluster id of every nats-streaming-server started here.
pub const STAN_CLUSTER: &str = "test-cluster";

impl Broker {
    /// All of them, quickest start first.
    pub const ALL: [Self; 6] =
        [Self::Redis, Self::Beanstalkd, Self::Mosquitto, Self::Nats, Self::NatsStreaming, Self::RabbitMq];

    /// The name on the command line and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::RabbitMq => "rabbitmq",
            Self::Nats => "nats",
            Self::NatsStreaming => "nats-streaming",
            Self::Mosquitto => "mosquitto",
            Self::Redis => "redis",
            Self::Beanstalkd => "beanstalkd",
        }
    }

    /// The program that serves it.
    pub fn program(self) -> &'static str {
        match self {
            Self::RabbitMq => "rabbitmq-server",
            Self::Nats => "nats-server",
            Self::NatsStreaming => "nats-streaming-server",
            Self::Mosquitto => "mosquitto",
            Self::Redis => "redis-server",
            Self::Beanstalkd => "beanstalkd",
        }
    }

    /// What a client may connect to, the main door first.
    pub fn services(self) -> &'static [Service] {
        match self {
            Self::RabbitMq => &[
                Service::Amqp,
                Service::Stream,
                Service::Management,
                Service::Mqtt,
                Service::Stomp,
                Service::WebStomp,
            ],
            Self::Nats | Self::NatsStreaming => &[Service::Nats, Service::Monitor],
            Self::Mosquitto => &[Service::Mqtt],
            Self::Redis => &[Service::Redis],
            Self::Beanstalkd => &[Service::Beanstalk],
        }
    }

    /// The environment variable with the address of one that somebody else runs:
    /// `POSTROAD_TEST_RABBITMQ_URL` for the main door, `POSTROAD_TEST_RABBITMQ_STREAM_URL` for another.
    pub fn variable(self, service: Service) -> String {
        let upper = |name: &str| name.to_uppercase().replace('-', "_");
        if self.services()[0] == service {
            format!("POSTROAD_TEST_{}_URL", upper(self.name()))
        } else {
            format!("POSTROAD_TEST_{}_{}_URL", upper(self.name()), upper(service.name()))
        }
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Broker {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match Self::ALL.into_iter().find(|broker| broker.name() == text) {
            Some(broker) => Ok(broker),
            None => bail!("no broker `{text}`; there are {}", Self::ALL.map(Self::name).join(", ")),
        }
    }
}

/// One door of a broker: a protocol on a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Service {
    /// AMQP 0-9-1.
    Amqp,
    /// The RabbitMQ Streams protocol.
    Stream,
    /// RabbitMQ's HTTP API.
    Management,
    /// MQTT over TCP.
    Mqtt,
    /// STOMP over TCP.
    Stomp,
    /// STOMP over WebSocket, at `/ws`.
    WebStomp,
    /// The NATS protocol.
    Nats,
    /// The HTTP monitor of NATS.
    Monitor,
    /// RESP.
    Redis,
    /// beanstalkd's protocol.
    Beanstalk,
}

impl Service {
    /// The name in variables and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amqp => "amqp",
            Self::Stream => "stream",
            Self::Management => "management",
            Self::Mqtt => "mqtt",
            Self::Stomp => "stomp",
            Self::WebStomp => "web-stomp",
            Self::Nats => "nats",
            Self::Monitor => "monitor",
            Self::Redis => "redis",
            Self::Beanstalk => "beanstalk",
        }
    }

    /// The service with this name.
    pub fn named(name: &str) -> Option<Self> {
        let all = Broker::ALL.into_iter().flat_map(Broker::services);
        all.copied().find(|service| service.name() == name)
    }

    /// What comes before `://` in a URL of it.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Amqp => "amqp",
            Self::Stream => "rabbitmq-stream",
            Self::Management | Self::Monitor => "http",
            Self::Mqtt => "mqtt",
            Self::Stomp => "stomp",
            Self::WebStomp => "ws",
            Self::Nats => "nats",
            Self::Redis => "redis",
            Self::Beanstalk => "beanstalk",
        }
    }

    /// The port that the world expects it on; used where a URL names none.
    pub fn usual_port(self) -> u16 {
        match self {
            Self::Amqp => 5672,
            Self::Stream => 5552,
            Self::Management => 15672,
            Self::Mqtt => 1883,
            Self::Stomp => 61613,
            Self::WebStomp => 15674,
            Self::Nats => 4222,
            Self::Monitor => 8222,
            Self::Redis => 6379,
            Self::Beanstalk => 11300,
        }
    }
}

/// `rabbitmq` or `rabbitmq@3.10`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Which broker.
    pub broker: Broker,
    /// A version or the beginning of one (`4`, `3.10`, `2.0.11`); any if `None`.
    pub version: Option<String>,
}

impl From<Broker> for Wanted {
    fn from(broker: Broker) -> Self {
        Self { broker, version: None }
    }
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.split_once('@') {
            None => Ok(Self::from(text.parse::<Broker>()?)),
            Some((_, "")) => bail!("`{text}` has no version after the @"),
            Some((name, version)) => Ok(Self { broker: name.parse()?, version: Some(version.into()) }),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            None => write!(f, "{}", self.broker),
            Some(version) => write!(f, "{}@{version}", self.broker),
        }
    }
}

/// Whether `version` is `wanted` or one of its patch releases: `3.10.8` is a `3.10`, but `3.1` is not.
pub fn version_matches(version: &str, wanted: &str) -> bool {
    version.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-', '+']))
}

#[cfg(test)]
mod tests {
    use super::{Broker, Service, Wanted, version_matches};

    #[test]
    fn a_broker_is_asked_for_by_name_and_version() {
        let wanted: Wanted = "rabbitmq@3.10".parse().unwrap();
        assert_eq!(wanted, Wanted { broker: Broker::RabbitMq, version: Some("3.10".into()) });
        assert_eq!("nats-streaming".parse::<Wanted>().unwrap(), Broker::NatsStreaming.into());
        assert!("rabbitmq@".parse::<Wanted>().is_err());
        let error = "kafka".parse::<Wanted>().unwrap_err().to_string();
        assert!(error.contains("mosquitto"), "{error}");
    }

    #[test]
    fn versions_match_at_their_dots() {
        assert!(version_matches("3.10.8", "3.10"));
        assert!(version_matches("4.0.5", "4"));
        assert!(version_matches("4.0.5", "4.0.5"));
        assert!(!version_matches("3.10.8", "3.1"));
        assert!(!version_matches("3.10", "3.10.8"));
    }

    #[test]
    fn variables_name_the_broker_and_any_further_door() {
        assert_eq!(Broker::RabbitMq.variable(Service::Amqp), "POSTROAD_TEST_RABBITMQ_URL");
        assert_eq!(Broker::RabbitMq.variable(Service::WebStomp), "POSTROAD_TEST_RABBITMQ_WEB_STOMP_URL");
        assert_eq!(Broker::NatsStreaming.variable(Service::Nats), "POSTROAD_TEST_NATS_STREAMING_URL");
    }
}
