//! A broker behind the proxy of the conformance kit.

use postroad_conformance::proxy::Proxy;
use postroad_testbed::{Broker, Mode, Options, Service, Testbed, wire::Line};

#[test]
fn a_broker_behind_the_proxy_is_lost_and_found() {
    let options = Options { mode: Some(Mode::Native), ..Options::default() };
    let redis = Testbed::start(Broker::Redis, &options).unwrap();
    let proxy = Proxy::start(redis.address(Service::Redis).unwrap()).unwrap();
    let mut line = Line::connect(proxy.address()).unwrap();
    line.ask("PING\r\n", "+PONG").unwrap();
    proxy.cut();
    assert!(line.ask("PING\r\n", "+PONG").is_err());
    Line::connect(proxy.address()).unwrap().ask("PING\r\n", "+PONG").unwrap();
}
