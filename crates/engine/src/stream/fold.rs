//! What the log of a stream folds to when it is opened.

use crate::id::id_text;
use crate::log::RecordView;
use crate::records::{self, Folded};
use postroad_core::dedup::DedupWindow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the log of a stream folds to.
#[derive(Default)]
pub(crate) struct StreamFold {
    pub(crate) members: BTreeMap<u64, Folded>,
    pub(crate) dedup: Option<DedupWindow<Arc<[u8]>>>,
    pub(crate) last_time: u64,
}

impl StreamFold {
    pub(crate) fn apply(&mut self, view: &RecordView<'_>) -> Result<(), String> {
        self.last_time = view.time;
        if view.kind == "pub" {
            if let Some(dedup) = &mut self.dedup
                && let Some((_, Some(id))) = view.publish_key()
            {
                dedup.insert(id_text(id)[..].into(), view.seq, view.time);
            }
            return Ok(());
        }
        if view.kind == "gap" {
            #[derive(serde::Deserialize)]
            struct Gap {
                first: u64,
                last: u64,
            }
            let gap: Gap = serde_json::from_slice(view.line).map_err(|e| e.to_string())?;
            for member in self.members.values_mut() {
                member.floor.settle(gap.first, gap.last);
            }
            return Ok(());
        }
        records::fold(&mut self.members, view)
    }
}
