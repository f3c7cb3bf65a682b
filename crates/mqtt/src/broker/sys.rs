//! `$SYS`: what the broker says of itself.

use super::message::{Message, Origin};
use super::retained::Kept;
use super::{Broker, Timer, Waiting};
use crate::codec::{Qos, Utf8};
use postroad_core::mailbox::Millis;
use std::sync::Arc;

/// Counts since the broker was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Packets received.
    pub packets_received: u64,
    /// Packets sent, PUBLISH not counted.
    pub packets_sent: u64,
    /// PUBLISH packets received that were not repetitions.
    pub messages_received: u64,
    /// PUBLISH packets sent.
    pub messages_sent: u64,
    /// Of these, those sent before.
    pub resent: u64,
    /// PUBLISH packets of QoS 2 that had been received before.
    pub repeated: u64,
    /// PUBLISH packets refused.
    pub refused_messages: u64,
    /// Messages dropped: QoS 0 for slow clients, too large, expired, not allowed.
    pub dropped: u64,
    /// Messages for queues that were full.
    pub overflowed: u64,
    /// Dead letters.
    pub dead: u64,
    /// Dead letters that nobody stored, and that were too many.
    pub forgotten_letters: u64,
    /// Wills published.
    pub wills: u64,
    /// Connections accepted.
    pub connects: u64,
    /// Connections with a session that ended.
    pub disconnects: u64,
    /// Connections refused, for any reason.
    pub refused: u64,
    /// Of these, for bad credentials.
    pub denied: u64,
    /// Of these, because too many others were logging in.
    pub busy: u64,
    /// Connections closed because of malformed packets.
    pub malformed: u64,
    /// Sessions that expired.
    pub expired_sessions: u64,
    /// Client ids given.
    pub assigned: u64,
}

impl Broker {
    pub(super) fn start_sys(&mut self, now: Millis) {
        if !self.config.sys_interval.is_zero() {
            self.timers.insert((now, Timer::Sys));
        }
    }

    pub(super) fn publish_sys(&mut self, now: Millis) {
        let counters = self.counters;
        let sessions = self.state.sessions.len() as u64;
        let connected = counters.connects - counters.disconnects;
        self.state.retained.expire(now);
        let values: [(&'static str, String); 14] = [
            ("$SYS/broker/version", concat!("postroad ", env!("CARGO_PKG_VERSION")).to_owned()),
            ("$SYS/broker/uptime", format!("{} seconds", now.saturating_sub(self.started) / 1000)),
            ("$SYS/broker/clients/connected", connected.to_string()),
            ("$SYS/broker/clients/disconnected", sessions.saturating_sub(connected).to_string()),
            ("$SYS/broker/clients/total", sessions.to_string()),
            ("$SYS/broker/clients/expired", counters.expired_sessions.to_string()),
            ("$SYS/broker/messages/received", counters.packets_received.to_string()),
            ("$SYS/broker/messages/sent", (counters.packets_sent + counters.messages_sent).to_string()),
            ("$SYS/broker/publish/messages/received", counters.messages_received.to_string()),
            ("$SYS/broker/publish/messages/sent", counters.messages_sent.to_string()),
            ("$SYS/broker/publish/messages/dropped", (counters.dropped + counters.overflowed).to_string()),
            ("$SYS/broker/publish/messages/dead", counters.dead.to_string()),
            ("$SYS/broker/retained messages/count", self.state.retained.len().to_string()),
            ("$SYS/broker/subscriptions/count", self.state.subscription_count().to_string()),
        ];
        for (topic, value) in values {
            self.say(Utf8::from_static(topic), value, now);
        }
        let interval = u64::try_from(self.config.sys_interval.as_millis()).unwrap_or(u64::MAX / 2);
        self.timers.insert((now + interval.max(1), Timer::Sys));
    }

    /// Counters and sizes, as Prometheus reads them.
    pub fn metrics(&self) -> String {
        let c = &self.counters;
        let gauge = |count: usize| count as u64;
        let queued = self
            .state
            .sessions
            .iter()
            .filter_map(|(_, session)| session.outgoing())
            .map(super::outgoing::Outgoing::len);
        let work: u64 = self.state.queues.iter().map(|(_, queue)| queue.len()).sum();
        let values: [(&str, &str, &str, u64); 24] = [
            ("packets_received_total", "counter", "packets received", c.packets_received),
            ("packets_sent_total", "counter", "packets sent, PUBLISH not counted", c.packets_sent),
            (
                "messages_received_total",
                "counter",
                "messages received, repetitions not counted",
                c.messages_received,
            ),
            ("messages_sent_total", "counter", "messages sent", c.messages_sent),
            ("messages_resent_total", "counter", "of these, those sent before", c.resent),
            ("messages_repeated_total", "counter", "messages of QoS 2 received again", c.repeated),
            ("messages_refused_total", "counter", "messages refused", c.refused_messages),
            (
                "messages_dropped_total",
                "counter",
                "messages not sent: slow, too large, expired, not allowed",
                c.dropped,
            ),
            ("messages_overflowed_total", "counter", "messages for queues that were full", c.overflowed),
            ("dead_letters_total", "counter", "dead letters", c.dead),
            ("wills_total", "counter", "wills published", c.wills),
            ("connects_total", "counter", "connections accepted", c.connects),
            ("disconnects_total", "counter", "connections ended", c.disconnects),
            ("refused_total", "counter", "connections refused", c.refused),
            ("denied_total", "counter", "of these, for bad credentials", c.denied),
            ("busy_total", "counter", "of these, because too many others were logging in", c.busy),
            ("malformed_total", "counter", "connections closed for malformed packets", c.malformed),
            ("sessions_expired_total", "counter", "sessions expired", c.expired_sessions),
            ("connections", "gauge", "connections now", gauge(self.conns.len())),
            (
                "logins",
                "gauge",
                "clients that wait for the check of their password",
                gauge(self.logins.len()),
            ),
            ("sessions", "gauge", "sessions now", gauge(self.state.sessions.len())),
            ("subscriptions", "gauge", "subscriptions now", gauge(self.state.subscription_count())),
            ("retained", "gauge", "retained messages now", gauge(self.state.retained.len())),
            (
                "queued",
                "gauge",
                "messages that wait for sessions and work queues",
                queued.sum::<usize>() as u64 + work,
            ),
        ];
        let mut out = String::with_capacity(4096);
        for (name, kind, help, value) in values {
            out.push_str(&format!(
                "# HELP postroad_mqtt_{name} {help}\n# TYPE postroad_mqtt_{name} {kind}\npostroad_mqtt_{name} {value}\n"
            ));
        }
        out
    }

    /// Publishes and retains a value, in memory only.
    fn say(&mut self, topic: Utf8, value: String, now: Millis) {
        let message = Arc::new(Message {
            topic,
            payload: value.into(),
            qos: Qos::AtMostOnce,
            retain: true,
            time: now,
            expires: None,
            properties: None,
        });
        let mut targets = Vec::new();
        self.state.route(&message, None, Some(&Origin::default().chosen), &mut targets);
        let kept = Kept { seq: 0, qos: Qos::AtMostOnce, expires: None, message: Some(message.clone()) };
        self.state.retained.set(&message.topic, false, kept);
        if !targets.is_empty() {
            self.perform(Waiting::Offer { seq: 0, message, targets: targets.into() }, now);
        }
    }
}
