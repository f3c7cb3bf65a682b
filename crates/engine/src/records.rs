//! The engine's records in a stream's log, and the state they fold to.
//!
//! | kind | fields | meaning |
//! |---|---|---|
//! | `sub` | `n` id, `filter`, `name`, `floor` | subscription `n` joined; everything up to `floor` is settled for it |
//! | `ack` | `n`, `r` ranges | settled |
//! | `try` | `n`, `r` one range, `a` attempts, `f` first and `l` last failure, `d` due, `w` reason | failed once more |
//! | `cp` | as `sub`, and `r` | the whole state at the start of a segment; its `try` records follow |

use crate::log::{Append, RecordView};
use postroad_core::ack_floor::AckFloor;
use postroad_core::mailbox::{Failures, Mailbox, Record};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The durable state of one subscription in one stream.
#[derive(Debug, Default)]
pub(crate) struct Folded {
    pub(crate) floor: AckFloor,
    pub(crate) tried: BTreeMap<u64, Failures>,
}

#[derive(serde::Deserialize)]
struct Fields {
    n: u64,
    #[serde(default)]
    floor: u64,
    #[serde(default)]
    r: Vec<(u64, u64)>,
    #[serde(default)]
    a: u32,
    #[serde(default)]
    f: u64,
    #[serde(default)]
    l: u64,
    #[serde(default)]
    d: u64,
    w: Option<String>,
}

/// Folds one record; kinds of others are skipped.
pub(crate) fn fold(members: &mut BTreeMap<u64, Folded>, view: &RecordView<'_>) -> Result<(), String> {
    if !matches!(view.kind, "sub" | "cp" | "ack" | "try") {
        return Ok(());
    }
    let fields: Fields = serde_json::from_slice(view.line).map_err(|error| error.to_string())?;
    match view.kind {
        "sub" | "cp" => {
            // A snapshot that a crash cut off behind its `cp` must not take the attempts that older segments tell of.
            let tried = match members.remove(&fields.n) {
                Some(known) if view.kind == "cp" => known.tried,
                _ => BTreeMap::new(),
            };
            let mut floor = AckFloor::new(fields.floor);
            for (first, last) in fields.r {
                floor.settle(first, last);
            }
            let tried = tried.into_iter().filter(|(seq, _)| !floor.is_settled(*seq)).collect();
            members.insert(fields.n, Folded { floor, tried });
        }
        kind => {
            // Of a subscription that joined in a segment that is gone and was forgotten since.
            let Some(member) = members.get_mut(&fields.n) else { return Ok(()) };
            for (first, last) in fields.r {
                if first > last || last > view.seq {
                    return Err(format!("settles {first} to {last} of {}", view.seq));
                }
                if kind == "ack" {
                    member.floor.settle(first, last);
                    let gone: Vec<u64> = member.tried.range(first..=last).map(|(seq, _)| *seq).collect();
                    for seq in gone {
                        member.tried.remove(&seq);
                    }
                } else {
                    let failures = Failures {
                        attempts: fields.a,
                        first: fields.f,
                        last: fields.l,
                        due: fields.d,
                        reason: fields.w.as_deref().map(Arc::from),
                    };
                    for seq in first..=last {
                        member.tried.insert(seq, failures.clone());
                    }
                }
            }
        }
    }
    Ok(())
}

impl Folded {
    /// A mailbox in this state, before anything is offered to it.
    pub(crate) fn restore(&self, mailbox: &mut Mailbox) {
        mailbox.restore_settled(1, self.floor.floor());
        for (first, last) in self.floor.above().iter() {
            mailbox.restore_settled(first, last);
        }
        for (seq, failures) in &self.tried {
            mailbox.restore_tried(*seq, *seq, failures);
        }
    }
}

fn number(out: &mut Vec<u8>, key: &str, value: u64) {
    postroad_journal::record::push_number_field(out, key, value);
}

fn ranges(out: &mut Vec<u8>, ranges: impl Iterator<Item = (u64, u64)>) {
    out.extend_from_slice(b",\"r\":[");
    for (i, (first, last)) in ranges.enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let _ = std::io::Write::write_fmt(out, format_args!("{comma}[{first},{last}]"));
    }
    out.push(b']');
}

fn tried(append: &mut dyn Append, id: u64, first: u64, last: u64, failures: &Failures) {
    let mut out = Vec::with_capacity(128);
    number(&mut out, "n", id);
    ranges(&mut out, std::iter::once((first, last)));
    number(&mut out, "a", u64::from(failures.attempts));
    number(&mut out, "f", failures.first);
    number(&mut out, "l", failures.last);
    if failures.due > 0 {
        number(&mut out, "d", failures.due);
    }
    if let Some(reason) = &failures.reason {
        postroad_journal::record::push_text_field(&mut out, "w", reason);
    }
    append.record("try", &out);
}

/// Appends what a mailbox emitted; `Dying` is not a record of this log (the dead letter is one of another).
pub(crate) fn append(append: &mut dyn Append, id: u64, records: &[Record]) {
    let settled = || {
        records.iter().filter_map(|record| match record {
            Record::Settled { first, last } => Some((*first, *last)),
            _ => None,
        })
    };
    if settled().next().is_some() {
        let mut out = Vec::with_capacity(64);
        number(&mut out, "n", id);
        ranges(&mut out, settled());
        append.record("ack", &out);
    }
    for record in records {
        match record {
            Record::Tried { first, last, failures } => tried(append, id, *first, *last, failures),
            // Its last attempt counts even if the dead letter comes to nothing.
            Record::Dying { seq, failures } => tried(append, id, *seq, *seq, failures),
            Record::Settled { .. } => {}
        }
    }
}

/// Appends that a subscription joined (`sub`), or its whole state (`cp`).
pub(crate) fn checkpoint(
    append: &mut dyn Append,
    kind: &str,
    id: u64,
    filter: &str,
    name: &str,
    mailbox: &Mailbox,
) {
    let mut out = Vec::with_capacity(128);
    number(&mut out, "n", id);
    postroad_journal::record::push_text_field(&mut out, "filter", filter);
    postroad_journal::record::push_text_field(&mut out, "name", name);
    let floor = mailbox.floor();
    number(&mut out, "floor", floor.floor());
    if !floor.above().is_empty() {
        ranges(&mut out, floor.above().iter());
    }
    append.record(kind, &out);
    for (seq, failures) in mailbox.failures() {
        tried(append, id, seq, seq, failures);
    }
}
