//! The configuration files of brokers that have one: their defaults, without limits at which they drop messages or
//! clients of these loads.

use std::path::Path;

/// It saves at its end if `kept`.
pub(super) fn mosquitto(dir: &Path, port: u16, nodelay: bool, kept: bool) -> String {
    format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nmax_inflight_messages 0\n\
         max_queued_messages 0\nset_tcp_nodelay {nodelay}\nlog_dest stderr\nlog_type error\nlog_type warning\n\
         persistence {kept}\npersistence_location {}/\n",
        dir.display()
    )
}

/// MQTT is a door of JetStream: `clients` is the port of its own protocol.
pub(super) fn nats(dir: &Path, port: u16, clients: u16, always: bool) -> String {
    let sync = if always { "always" } else { "\"2m\"" };
    format!(
        "server_name: bench\nlisten: \"127.0.0.1:{clients}\"\n\
         jetstream {{ store_dir: \"{}\", sync_interval: {sync} }}\n\
         mqtt {{ listen: \"127.0.0.1:{port}\" }}\n",
        dir.join("jetstream").display()
    )
}

/// The file that comes with it, with its listener for 3.1.1 alone.
pub(super) fn rumqttd(port: u16) -> String {
    format!(
        "id = 0\n[router]\nid = 0\nmax_connections = 10010\nmax_outgoing_packet_count = 200\n\
         max_segment_size = 104857600\nmax_segment_count = 10\n\
         [v4.1]\nname = \"v4-1\"\nlisten = \"127.0.0.1:{port}\"\nnext_connection_delay_ms = 1\n\
         [v4.1.connections]\nconnection_timeout_ms = 60000\nmax_payload_size = 20480\nmax_inflight_count = 100\n\
         dynamic_filters = true\n"
    )
}

/// It tells its makers about itself by default; not here.
pub(super) fn moquette(dir: &Path, port: u16, h2: bool) -> String {
    format!(
        "port {port}\nhost 127.0.0.1\nallow_anonymous true\ntelemetry_enabled false\n\
         persistence_enabled {h2}\npersistent_queue_type h2\ndata_path {}\n",
        dir.join("data").display()
    )
}

/// Moquette's log: what goes wrong, to where all of it goes.
pub(super) const LOG4J: &str = "log4j.rootLogger=WARN, out\nlog4j.appender.out=org.apache.log4j.ConsoleAppender\n\
                                log4j.appender.out.layout=org.apache.log4j.SimpleLayout\n";

#[cfg(test)]
mod tests {
    use super::{moquette, mosquitto, nats};
    use std::path::Path;

    #[test]
    fn mosquitto_runs_without_limits_and_with_the_nagle_that_is_asked_for() {
        let text = mosquitto(Path::new("/x"), 1883, false, true);
        for line in
            ["max_inflight_messages 0", "max_queued_messages 0", "set_tcp_nodelay false", "persistence true"]
        {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
    }

    #[test]
    fn settings_are_as_the_table_says() {
        assert!(nats(Path::new("/x"), 1, 2, true).contains("sync_interval: always"));
        assert!(nats(Path::new("/x"), 1, 2, false).contains("sync_interval: \"2m\""));
        assert!(moquette(Path::new("/x"), 1, false).contains("persistence_enabled false"));
        assert!(moquette(Path::new("/x"), 1, true).contains("telemetry_enabled false"));
    }
}
