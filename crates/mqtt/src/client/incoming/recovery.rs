//! What an inbox is after a start: the fold of its records, and the records that say the same in few.

use std::sync::Arc;

use postroad_core::{Subject, Timestamp};

use super::super::envelope;
use super::super::log::Record;
use super::{Held, Id, Incoming};
use crate::codec::{Publish, Qos};

impl Incoming {
    pub(super) fn fold(&mut self, record: Record) {
        match record {
            Record::Next(number) => self.next = self.next.max(number),
            Record::In { number, publish, time } => {
                self.next = self.next.max(number + 1);
                if publish.qos == Qos::ExactlyOnce
                    && let Some(id) = publish.packet_id
                {
                    self.ids.insert(id, Id::Stored(0));
                }
                self.restore(number, publish, time);
            }
            Record::Open(id) => _ = self.ids.insert(id, Id::Stored(0)),
            Record::Released(id) => _ = self.ids.remove(&id),
            Record::Fresh => self.ids.clear(),
            Record::Settled { first, last } => {
                let gone: Vec<u64> = self.held.range(first..=last).map(|(number, _)| *number).collect();
                for held in gone.iter().filter_map(|number| self.held.remove(number)) {
                    self.bytes -= u64::from(held.bytes);
                }
            }
            Record::Tried { first, last, failures } => {
                self.mailbox.restore_tried(first, last, &failures);
                for (_, held) in self.held.range_mut(first..=last) {
                    held.redelivered = true;
                }
            }
            // Of an outbox.
            _ => {}
        }
    }

    fn restore(&mut self, number: u64, publish: Publish, time: Timestamp) {
        // It was read before it was stored.
        let Ok(subject) = Subject::new(publish.topic.as_str()) else { return };
        let envelope = Arc::new(envelope::decode(subject, &publish, time));
        let bytes = u32::try_from(envelope.len_bytes()).unwrap_or(u32::MAX);
        // Whether it was out when the last process ended, nobody knows.
        let held = Held { envelope, bytes, redelivered: true, attempt: 0, stored: Some((publish, time)) };
        self.bytes += u64::from(bytes);
        if let Some(before) = self.held.insert(number, held) {
            self.bytes -= u64::from(before.bytes);
        }
    }

    /// Everything that a later life must know.
    pub(super) fn open_records(&self) -> Vec<Record> {
        let mut records = vec![Record::Next(self.next)];
        for (number, held) in &self.held {
            if let Some((publish, time)) = &held.stored {
                let mut publish = publish.clone();
                // Its id may be another message's by now; those that are open follow.
                if publish.qos == Qos::ExactlyOnce {
                    publish.qos = Qos::AtLeastOnce;
                }
                records.push(Record::In { number: *number, publish, time: *time });
            }
        }
        records.extend(self.ids.keys().map(|id| Record::Open(*id)));
        for (number, failures) in self.mailbox.failures() {
            records.push(Record::Tried { first: number, last: number, failures: failures.clone() });
        }
        records
    }
}
