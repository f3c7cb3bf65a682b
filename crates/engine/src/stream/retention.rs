//! What is not kept, and who is told.

use super::{KICK, Stream};
use crate::config::LagPolicy;
use crate::engine::Shared;
use crate::error::EngineError;
use crate::subscription::Note;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Stream {
    /// Removes what retention does not keep; reports and detaches who lags.
    pub(crate) fn maintain(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<(), EngineError> {
        let now = shared.now();
        let config = &shared.config;
        let mut detach = Vec::new();
        let mut notes = Vec::new();
        let interest = {
            let mut state = self.state();
            let mut lowest = None;
            for member in state.members.values_mut().filter(|m| m.sub.is_durable()) {
                let floor = member.mailbox.floor().floor();
                let lag = member.mailbox.counts().pending();
                let over = config.lag_events.is_some_and(|limit| lag > limit) && member.sub.id != KICK;
                if over && !member.lagging {
                    tracing::warn!(
                        topic = self.topic.as_str(),
                        subscription = member.sub.title(),
                        lag,
                        "subscription lags past its limit"
                    );
                    match config.lag_policy {
                        LagPolicy::Note => {
                            notes.push((member.sub.clone(), Note::Lagging(self.topic.as_str().into(), lag)));
                        }
                        LagPolicy::Detach => detach.push(member.sub.clone()),
                    }
                }
                member.lagging = over;
                lowest = Some(lowest.map_or(floor, |l: u64| l.min(floor)));
            }
            lowest
        };
        for (sub, note) in notes {
            sub.note(&note);
        }
        for sub in detach {
            sub.note(&Note::Detached(self.topic.as_str().into()));
            shared.forget(&sub)?;
        }
        let sealed = self.log.sealed();
        let stats = self.log.stats();
        let keep = &config.retention;
        let mut bytes = stats.bytes;
        let mut trim_to = 0;
        for (i, &(last, size, _)) in sealed.iter().enumerate() {
            // The next segment began when the last message of this one was there.
            let ended = sealed.get(i + 1).map_or(now, |next| next.2);
            let too_many = keep.max_bytes.is_some_and(|max| bytes > max)
                || keep.max_events.is_some_and(|max| stats.last - last.min(stats.last) >= max)
                || keep.max_age.is_some_and(|max| Duration::from_millis(now.saturating_sub(ended)) > max)
                || (keep.interest && interest.is_some_and(|floor| floor >= last));
            if !too_many {
                break;
            }
            bytes -= size;
            trim_to = last + 1;
        }
        if trim_to == 0 {
            return Ok(());
        }
        {
            let state = self.state();
            if self.log.snapshot_due() {
                // What is to go may hold the only state of a subscription: the next turn removes it.
                self.snapshot(&state, now)?;
                drop(state);
                shared.store.flush(false);
                return Ok(());
            }
        }
        self.trim(shared, trim_to)
    }

    fn trim(self: &Arc<Self>, shared: &Arc<Shared>, seq: u64) -> Result<(), EngineError> {
        let first = self.log.trim(seq)?;
        let mut notes = Vec::new();
        {
            let mut state = self.state();
            for member in state.members.values_mut() {
                let lost = member.mailbox.trim(first);
                if lost > 0 {
                    notes.push((member.sub.clone(), lost));
                }
            }
        }
        tracing::info!(topic = self.topic.as_str(), first, "retention removed old segments");
        for (sub, lost) in notes {
            shared.counters.trimmed.fetch_add(lost, Ordering::Relaxed);
            tracing::warn!(
                topic = self.topic.as_str(),
                subscription = sub.title(),
                lost,
                "retention removed events that were not settled"
            );
            sub.lagged(self.topic.as_str(), lost);
        }
        Ok(())
    }
}
