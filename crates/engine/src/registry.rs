//! Which subscriptions there are, and the catalog log that remembers the durable ones.

use crate::error::EngineError;
use crate::log::{Append, Log, RecordView, Ticket};
use crate::subscription::{Shape, Subscription};
use crate::trie::SubjectTrie;
use postroad_core::Filter;
use postroad_core::retry::RetryPolicy;
use postroad_journal::record::{push_number_field, push_text_field};
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

/// All subscriptions. The catalog has `sub` records (the newest of an id counts), `unsub` records, and `next` records
/// that keep ids from being used twice.
#[derive(Default)]
pub(crate) struct Registry {
    durable: HashMap<(String, String), Arc<Subscription>>,
    trie: SubjectTrie<Arc<Subscription>>,
    catalog: Option<Arc<dyn Log>>,
    last_id: u64,
    recovered: BTreeMap<u64, Fields>,
    records: usize,
}

#[derive(serde::Deserialize)]
struct Fields {
    n: u64,
    #[serde(default)]
    filter: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    group: bool,
    #[serde(default)]
    ack_wait: u64,
    #[serde(default)]
    backoff: Vec<u64>,
    #[serde(default)]
    max_deliveries: u32,
}

impl Shape {
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.group == other.group && self.policy == other.policy
    }
}

impl Registry {
    pub(crate) fn fold(&mut self, view: &RecordView<'_>) -> Result<(), String> {
        if !matches!(view.kind, "sub" | "unsub" | "next") {
            return Ok(());
        }
        let fields: Fields = serde_json::from_slice(view.line).map_err(|error| error.to_string())?;
        self.records += 1;
        self.last_id = self.last_id.max(fields.n);
        match view.kind {
            "sub" => {
                Filter::new(fields.filter.as_str()).map_err(|error| error.to_string())?;
                self.recovered.insert(fields.n, fields);
            }
            "unsub" => {
                self.recovered.remove(&fields.n);
            }
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn finish_recovery(&mut self, catalog: Arc<dyn Log>) {
        self.catalog = Some(catalog);
        for fields in std::mem::take(&mut self.recovered).into_values() {
            let Ok(filter) = Filter::new(fields.filter.as_str()) else { continue };
            let policy = RetryPolicy {
                ack_wait: Duration::from_millis(fields.ack_wait),
                backoff: fields.backoff.into_iter().map(Duration::from_millis).collect(),
                max_deliveries: NonZeroU32::new(fields.max_deliveries),
            };
            let shape = Shape { group: fields.group, policy };
            self.insert(&Subscription::new(fields.n, filter, Some(fields.name.into()), shape));
        }
    }

    /// Rewrites the catalog when most of it is history.
    pub(crate) fn compact(&mut self, now: u64) -> Result<(), EngineError> {
        let Some(log) = self.catalog.clone() else { return Ok(()) };
        if self.records < 1000 || self.records < 4 * self.durable.len() {
            return Ok(());
        }
        self.snapshot(&log, now)?;
        self.records = self.durable.len() + 1;
        Ok(())
    }

    /// Begins the catalog anew if nothing of it can be trimmed before; true if it did.
    pub(crate) fn renew(&self, now: u64) -> Result<bool, EngineError> {
        let Some(log) = &self.catalog else { return Ok(false) };
        if !log.snapshot_due() || log.sealed().is_empty() {
            return Ok(false);
        }
        self.snapshot(log, now)?;
        Ok(true)
    }

    fn snapshot(&self, log: &Arc<dyn Log>, now: u64) -> Result<(), EngineError> {
        log.snapshot(now, &mut |append| {
            let mut out = Vec::new();
            push_number_field(&mut out, "n", self.last_id);
            append.record("next", &out);
            for sub in self.durable.values() {
                write(append, sub);
            }
        })?;
        Ok(())
    }

    pub(crate) fn catalog(&self) -> Option<Arc<dyn Log>> {
        self.catalog.clone()
    }

    /// The log of a stream has this id. It may be of a subscription whose record in the catalog a crash took: whoever
    /// got that id again would find the position of another.
    pub(crate) fn taken(&mut self, id: u64) {
        self.last_id = self.last_id.max(id);
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn find(&self, filter: &str, name: &str) -> Option<Arc<Subscription>> {
        self.durable.get(&(filter.to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn matching(&self, topic: &str) -> Vec<Arc<Subscription>> {
        let mut subs = Vec::new();
        self.trie.matches(topic, |sub| subs.push(sub.clone()));
        subs
    }

    pub(crate) fn insert(&mut self, sub: &Arc<Subscription>) {
        self.trie.insert(sub.filter.as_str(), sub.clone());
        if let Some(name) = &sub.name {
            self.durable.insert((sub.filter.as_str().to_owned(), name.to_string()), sub.clone());
        }
    }

    pub(crate) fn remove(&mut self, sub: &Arc<Subscription>) {
        self.trie.remove(sub.filter.as_str(), |other| Arc::ptr_eq(other, sub));
        if let Some(name) = &sub.name {
            self.durable.remove(&(sub.filter.as_str().to_owned(), name.to_string()));
        }
    }

    pub(crate) fn clear(&mut self) {
        for sub in self.durable.drain().map(|(_, sub)| sub) {
            sub.state().streams.clear();
        }
        self.trie = SubjectTrie::default();
        self.catalog = None;
    }

    /// Makes a durable subscription, or its new shape, durable.
    pub(crate) fn record(&mut self, sub: &Arc<Subscription>, now: u64) -> Result<Ticket, EngineError> {
        self.append(now, &mut |append| write(append, sub))
    }

    pub(crate) fn record_forgotten(
        &mut self,
        sub: &Arc<Subscription>,
        now: u64,
    ) -> Result<Ticket, EngineError> {
        self.append(now, &mut |append| {
            let mut out = Vec::new();
            push_number_field(&mut out, "n", sub.id);
            append.record("unsub", &out);
        })
    }

    fn append(&mut self, now: u64, write: &mut dyn FnMut(&mut dyn Append)) -> Result<Ticket, EngineError> {
        let Some(log) = self.catalog.clone() else { return Err(EngineError::ShuttingDown) };
        if log.wants_snapshot() {
            self.snapshot(&log, now)?;
        }
        self.records += 1;
        Ok(log.append(now, write)?)
    }
}

fn write(append: &mut dyn Append, sub: &Arc<Subscription>) {
    let shape = sub.shape();
    let mut out = Vec::with_capacity(160);
    push_number_field(&mut out, "n", sub.id);
    push_text_field(&mut out, "filter", sub.filter.as_str());
    push_text_field(&mut out, "name", sub.name.as_deref().unwrap_or_default());
    if shape.group {
        out.extend_from_slice(b",\"group\":true");
    }
    push_number_field(&mut out, "ack_wait", shape.policy.ack_wait.as_millis() as u64);
    if !shape.policy.backoff.is_empty() {
        let waits: Vec<String> = shape.policy.backoff.iter().map(|d| d.as_millis().to_string()).collect();
        out.extend_from_slice(format!(",\"backoff\":[{}]", waits.join(",")).as_bytes());
    }
    if let Some(max) = shape.policy.max_deliveries {
        push_number_field(&mut out, "max_deliveries", u64::from(max.get()));
    }
    append.record("sub", &out);
}
