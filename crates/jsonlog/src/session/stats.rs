//! What `stats` answers.

use super::Session;
use crate::protocol::{Code, Refusal};
use postroad_engine::Stream;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

impl Session {
    pub(super) fn stats(&self, topic: Option<&str>) -> Result<Value, Refusal> {
        let Some(topic) = topic else { return Ok(self.server_stats()) };
        let stream = self
            .engine
            .stream(topic)
            .ok_or_else(|| Refusal::new(Code::NotFound, "there is no such topic: see topics"))?;
        // Of a topic of dead letters it says how many of its own were not kicked yet.
        let dead = if stream.topic().is_dead_letter() {
            Some(stream.clone())
        } else {
            self.engine.stream(&format!("$dead/{topic}"))
        };
        Ok(stream_stats(&stream, dead.as_deref()))
    }

    fn server_stats(&self) -> Value {
        let counters = self.engine.counters();
        let store = self.engine.store_stats();
        let streams = self.engine.streams();
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "sync": self.engine.sync_mode(),
            "uptime_seconds": self.hub.started.elapsed().as_secs(),
            "connections": self.hub.connections(),
            "connections_total": self.hub.accepted(),
            "names": self.hub.names(),
            "topics": streams.len(),
            "published": get(&counters.published),
            "delivered": get(&counters.delivered),
            "acked": get(&counters.settled),
            "redelivered": get(&counters.redelivered),
            "dead": get(&counters.dead),
            "removed_unacked": get(&counters.trimmed),
            "commits": store.commits,
            "bytes": streams.iter().map(|s| s.log_stats().bytes).sum::<u64>(),
            "bytes_written": store.bytes,
            "bytes_waiting": store.queued,
            "disk_free": store.free,
            "index_bytes": streams.iter().map(|s| s.memory()).sum::<usize>(),
        })
    }
}

fn stream_stats(stream: &Stream, dead: Option<&Stream>) -> Value {
    let log = stream.log_stats();
    let subscriptions: Vec<Value> = stream
        .members()
        .into_iter()
        .map(|member| {
            json!({
                "name": member.name,
                "filter": member.filter,
                "group": member.group,
                "consumers": member.consumers,
                "ready": member.counts.ready,
                "in_flight": member.counts.in_flight,
                "delayed": member.counts.delayed,
                "dying": member.counts.dying,
                "floor": member.floor,
                "lag": member.lag,
            })
        })
        .collect();
    json!({
        "topic": stream.topic().as_str(),
        "first": log.first,
        "last": log.last,
        "events": log.last + 1 - log.first,
        "bytes": log.bytes,
        "segments": log.segments,
        "index_bytes": stream.memory(),
        "dead": dead.map_or(0, Stream::unkicked),
        "subscriptions": subscriptions,
    })
}
