//! Records from many tasks, in one order.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::{Event, Record};

/// A history that is being written, on Tokio's clock. Share it behind an `Arc`.
#[derive(Debug)]
pub struct Recorder {
    start: Instant,
    records: Mutex<Vec<Record>>,
}

impl Recorder {
    /// Empty; its time begins now.
    pub fn new() -> Self {
        Self { start: Instant::now(), records: Mutex::default() }
    }

    /// Writes it down. Requests before they are made, answers after they came.
    pub fn record(&self, event: Event) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that times do not go back.
        let millis = self.start.elapsed().as_millis() as u64;
        records.push(Record { millis, event });
    }

    /// All of it so far.
    pub fn history(&self) -> Vec<Record> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}
