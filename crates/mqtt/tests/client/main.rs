//! The client against real servers: mosquitto as a process, and this crate's own.

mod harness;
mod kills;
mod own;
mod rabbitmq;
mod use_cases;
mod versions;

/// Without an outbox or inbox, against mosquitto.
mod mosquitto {
    postroad_conformance::conformance_tests!(super::harness::MqttHarness::mosquitto());
}

/// Without an outbox or inbox, against this crate's server and its data on disk.
mod plain {
    postroad_conformance::conformance_tests!(super::harness::MqttHarness::plain());
}

/// With an outbox and an inbox, against this crate's server and its data on disk.
mod durable {
    postroad_conformance::conformance_tests!(super::harness::MqttHarness::durable());
}

/// With an inbox, and connections that get lost.
mod inbox {
    postroad_conformance::conformance_tests!(super::harness::MqttHarness::inbox());
}

/// With 3.1.1, without an outbox or inbox, against this crate's server and its data on disk.
mod v311 {
    postroad_conformance::conformance_tests!(super::harness::MqttHarness::v311());
}

/// RabbitMQ 3.10, which has 3.1.1 and QoS 1.
mod rabbitmq_3_10 {
    postroad_conformance::conformance_tests!(super::harness::MqttHarness::rabbitmq(&super::rabbitmq::V3_10));
}

/// At QoS 1.
mod qos1 {
    postroad_conformance::conformance_tests!(super::harness::MqttHarness::qos1());
}
