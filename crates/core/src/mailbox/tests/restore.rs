//! What a crash leaves: the records and the messages, nothing else.

use super::*;
use crate::mailbox::{Counts, Failures};

fn failures(attempts: u32, due: Millis) -> Failures {
    Failures { attempts, first: 5, last: 6, due, reason: None }
}

#[test]
fn a_delivery_cut_short_by_a_crash_is_not_an_attempt() {
    let mut mailbox = Mailbox::new(policy(100, &[], 2), 0);
    mailbox.restore_tried(1, 1, &failures(1, 0));
    mailbox.offer(1, 2, 0);
    mailbox.attach(A, WIDE);
    let taken: Vec<_> = take(&mut mailbox, A, 0, 9).iter().map(|t| (t.seq, t.attempt)).collect();
    assert_eq!(taken, [(1, 2), (2, 1)], "one failure is on record for 1, none for 2");
}

#[test]
fn what_was_settled_does_not_come_back() {
    let mut mailbox = Mailbox::new(policy(10_000, &[], 0), 0);
    mailbox.restore_tried(2, 5, &failures(1, 900));
    mailbox.restore_settled(1, 2);
    mailbox.restore_settled(4, 4);
    mailbox.restore_settled(7, 8);
    // Offered in pieces that cut across all of it.
    for (first, last, priority) in [(1, 3, 0), (4, 6, 1), (7, 10, 2)] {
        mailbox.offer(first, last, priority);
    }
    assert_eq!(mailbox.counts(), Counts { ready: 3, delayed: 2, ..Counts::default() });
    mailbox.attach(A, WIDE);
    assert_eq!(take_seqs(&mut mailbox, A, 0, 9), [9, 10, 6]);
    tick(&mut mailbox, 900);
    let late: Vec<_> = take(&mut mailbox, A, 900, 9).iter().map(|t| (t.seq, t.attempt, t.priority)).collect();
    assert_eq!(late, [(5, 2, 1), (3, 2, 0)]);
    assert_eq!(mailbox.settle_range(A, 1, 10, &Verdict::Ack, 900, &mut Vec::new()), 5);
    assert_eq!(mailbox.floor().floor(), 10);
}

#[test]
fn an_offer_that_starts_inside_what_was_settled_skips_it() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.restore_settled(3, 6);
    for seq in 1..=8 {
        mailbox.offer(seq, seq, 0);
    }
    mailbox.attach(A, WIDE);
    assert_eq!(take_seqs(&mut mailbox, A, 0, 9), [1, 2, 7, 8]);
}

#[test]
fn failures_of_what_was_settled_before_are_ignored() {
    let mut mailbox = Mailbox::new(policy(100, &[], 1), 3);
    mailbox.restore_settled(5, 5);
    mailbox.restore_tried(1, 6, &failures(1, 0));
    let known: Vec<u64> = mailbox.failures().map(|(seq, _)| seq).collect();
    assert_eq!(known, [4, 6]);
}

#[test]
fn a_delay_outlives_a_crash() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.restore_tried(1, 1, &failures(1, 70));
    mailbox.offer(1, 1, 0);
    mailbox.attach(A, WIDE);
    assert_eq!(mailbox.next_deadline(), Some(70));
    tick(&mut mailbox, 69);
    assert!(take(&mut mailbox, A, 69, 1).is_empty());
    tick(&mut mailbox, 70);
    assert_eq!(take(&mut mailbox, A, 70, 1)[0].attempt, 2);
}

#[test]
fn a_dead_letter_not_yet_durable_is_written_after_the_crash() {
    for due in [0, 70] {
        let mut mailbox = Mailbox::new(policy(100, &[], 2), 0);
        mailbox.restore_tried(2, 3, &failures(2, due));
        mailbox.offer(1, 5, 0);
        assert!(mailbox.next_deadline().is_some_and(|next| next <= 10), "there is work for a tick");
        let records = tick(&mut mailbox, 10);
        let seqs: Vec<u64> = records
            .iter()
            .map(|record| match record {
                Record::Dying { seq, failures } => {
                    assert_eq!((failures.attempts, failures.first, failures.last), (2, 5, 6));
                    assert!(failures.reason.is_some());
                    *seq
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(seqs, [2, 3]);
        assert_eq!(mailbox.counts(), Counts { ready: 3, dying: 2, ..Counts::default() });
        assert_eq!(mailbox.next_deadline(), None);
        mailbox.attach(A, WIDE);
        assert_eq!(take_seqs(&mut mailbox, A, 10, 9), [1, 4, 5]);
        assert!(mailbox.buried(2, &mut Vec::new()) && mailbox.buried(3, &mut Vec::new()));
        assert!(mailbox.floor().is_settled(3));
    }
}

#[test]
fn the_newest_record_of_a_message_wins() {
    let mut mailbox = Mailbox::new(policy(100, &[], 9), 0);
    mailbox.restore_tried(1, 3, &failures(1, 50));
    mailbox.restore_tried(2, 2, &failures(4, 0));
    mailbox.offer(1, 3, 0);
    assert_eq!(mailbox.counts(), Counts { ready: 1, delayed: 2, ..Counts::default() });
    mailbox.attach(A, WIDE);
    assert_eq!(take(&mut mailbox, A, 0, 1), [Taken { seq: 2, attempt: 5, priority: 0 }]);
}
