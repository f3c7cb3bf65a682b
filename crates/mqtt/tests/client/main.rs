//! The client against real servers: mosquitto as a process, and this crate's own.

mod harness;
mod kills;
mod own;
mod use_cases;

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

/// At QoS 1.
mod qos1 {
    postroad_conformance::conformance_tests!(super::harness::MqttHarness::qos1());
}
