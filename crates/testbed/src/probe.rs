//! Whether a broker is ready: it is when each of its doors answers in its own protocol.

use crate::broker::{Broker, STAN_CLUSTER, Service};
use crate::process::POLL;
use crate::wire::{self, Line};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// `guest:guest`, the login of every RabbitMQ from loopback, in base64.
pub const GUEST: &str = "Z3Vlc3Q6Z3Vlc3Q=";

/// Asks every door once; the error is that of the first that does not answer as it should.
pub fn once(broker: Broker, doors: &BTreeMap<Service, SocketAddr>) -> Result<()> {
    for (service, address) in doors {
        door(broker, *service, *address).with_context(|| format!("{} on {address}", service.name()))?;
    }
    Ok(())
}

fn door(broker: Broker, service: Service, address: SocketAddr) -> Result<()> {
    match service {
        Service::Redis => Line::connect(address)?.ask("PING\r\n", "+PONG").map(drop),
        Service::Beanstalk => Line::connect(address)?.ask("stats\r\n", "OK ").map(drop),
        Service::Nats if broker == Broker::NatsStreaming => {
            wire::stan_listens(&mut wire::nats(address)?, STAN_CLUSTER)
        }
        Service::Nats => wire::nats(address).map(drop),
        Service::Monitor => {
            // JetStream and STAN recover their files after the port is open.
            let path = if broker == Broker::NatsStreaming { "/streaming/serverz" } else { "/healthz" };
            let (status, body) = wire::http_get(address, path, None)?;
            ensure!(status == 200, "{path}: {status} {body}");
            Ok(())
        }
        Service::Mqtt => {
            let login = (broker == Broker::RabbitMq).then_some(("guest", "guest"));
            let mut mqtt = wire::mqtt(address, "postroad-probe", login)?;
            mqtt.send([0xe0, 0])
        }
        Service::Amqp => wire::amqp_close(wire::amqp(address, "guest", "guest")?),
        Service::Stream => wire::stream_properties(address).map(drop),
        Service::Management => {
            let (status, body) = wire::http_get(address, "/api/overview", Some(GUEST))?;
            ensure!(status == 200, "/api/overview: {status} {body}");
            Ok(())
        }
        Service::Stomp => wire::stomp(address, "guest", "guest").map(drop),
        Service::WebStomp => wire::web_socket(address, "/ws", "v12.stomp"),
    }
}

/// Asks until all answer. `alive` is asked in between and ends the wait with its error.
pub(crate) fn until_ready(
    broker: Broker,
    doors: &BTreeMap<Service, SocketAddr>,
    limit: Duration,
    mut alive: impl FnMut() -> Result<()>,
) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let Err(last) = once(broker, doors) else { return Ok(start.elapsed()) };
        alive()?;
        if start.elapsed() > limit {
            return Err(last.context(format!("{broker} is not ready after {limit:?}")));
        }
        std::thread::sleep(POLL);
    }
}
