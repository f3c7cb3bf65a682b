//! The MQTT door seen from outside: its socket, its process, its data. Nothing here knows its code; the contract is
//! MQTT 3.1.1 and 5.0, and what Postroad promises beyond them. Tests name the statement they hold it to.
//!
//! `POSTROAD_SEED` repeats a random run, `POSTROAD_MQTT_KILLS` sets how often `kills` kills,
//! `POSTROAD_ALLOW_MISSING` accepts that parts cannot run on this machine. Other brokers can be put to the same tests:
//! `POSTROAD_TEST_MQTT_URL=mqtt://127.0.0.1:PORT` for one that runs (tests that kill it then fail), or
//! `POSTROAD_TEST_MQTT_COMMAND=FILE` for one to be run as `FILE PORT DATA` in the foreground.

#![allow(clippy::format_collect, reason = "short texts, and the plain form reads best")]

#[path = "../support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the other tests from outside")]
mod support;

mod bad_input;
#[path = "../blackbox/shim.rs"]
#[allow(dead_code, reason = "shared with the other tests from outside")]
mod shim;

mod broker;
mod client;
mod dead;
mod durability;
mod guarded;
mod hostile;
mod kills;
mod limits;
mod logins;
mod look;
mod messages;
mod peer;
mod probes;
mod qos2;
mod retained;
mod rights;
mod sessions;
mod settings;
mod sloth;
mod stops;
mod strangers;
mod subscriptions;
mod tls;
mod websocket;
mod wills;
mod wire;
