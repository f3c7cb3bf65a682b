//! Every rule of the mailbox by its name.

use super::*;
use crate::mailbox::{Counts, Failures, NotInFlight};

#[test]
fn the_highest_priority_comes_first_then_the_lowest_sequence() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, WIDE);
    for (seq, priority) in [(1, 0), (2, 5), (3, -1), (4, 5), (5, i64::MAX), (6, i64::MIN), (7, 0)] {
        mailbox.offer(seq, seq, priority);
    }
    assert_eq!(mailbox.top_priority(), Some(i64::MAX));
    let taken = take(&mut mailbox, A, 0, 9);
    let order: Vec<_> = taken.iter().map(|t| (t.seq, t.priority)).collect();
    assert_eq!(order, [(5, i64::MAX), (2, 5), (4, 5), (1, 0), (7, 0), (3, -1), (6, i64::MIN)]);
    assert!(taken.iter().all(|t| t.attempt == 1));
    assert_eq!(mailbox.top_priority(), None);
}

#[test]
fn a_late_message_of_high_priority_overtakes() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 3, 0);
    assert_eq!(take_seqs(&mut mailbox, A, 0, 1), [1]);
    mailbox.offer(4, 4, 9);
    assert_eq!(take_seqs(&mut mailbox, A, 0, 9), [4, 2, 3]);
}

#[test]
fn a_retried_message_returns_to_its_place() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 5, 0);
    assert_eq!(take_seqs(&mut mailbox, A, 0, 4), [1, 2, 3, 4]);
    for seq in [3, 1] {
        mailbox.settle(A, seq, retry(), 0, &mut Vec::new()).unwrap();
    }
    let again: Vec<_> = take(&mut mailbox, A, 0, 9).iter().map(|t| (t.seq, t.attempt)).collect();
    assert_eq!(again, [(1, 2), (3, 2), (5, 1)]);
}

#[test]
fn the_backoff_list_sets_the_waits_and_its_last_one_repeats() {
    let mut mailbox = Mailbox::new(policy(100, &[10, 30], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 1, 0);
    let mut now = 1000;
    for (attempt, wait) in [(1, 10), (2, 30), (3, 30), (4, 30)] {
        let (taken, records) = take_and_settle(&mut mailbox, now, retry());
        assert_eq!(taken.attempt, attempt);
        let Record::Tried { failures, .. } = &records[0] else { panic!("{records:?}") };
        assert_eq!((failures.attempts, failures.due), (attempt, now + wait));
        assert_eq!(mailbox.next_deadline(), Some(now + wait));
        assert_eq!(tick(&mut mailbox, now + wait - 1), []);
        assert!(take(&mut mailbox, A, now + wait - 1, 1).is_empty(), "too early");
        now += wait;
        tick(&mut mailbox, now);
    }
    // An expired lease waits by the same list, from when it was found.
    take(&mut mailbox, A, now, 1);
    tick(&mut mailbox, now + 150);
    assert_eq!(mailbox.next_deadline(), Some(now + 180));
}

#[test]
fn a_delay_of_its_own_overrides_the_backoff() {
    let mut mailbox = Mailbox::new(policy(100, &[50], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 1, 0);
    take_and_settle(&mut mailbox, 0, retry_after(7));
    assert_eq!(mailbox.next_deadline(), Some(7));
    tick(&mut mailbox, 7);
    take_and_settle(&mut mailbox, 7, retry_after(0));
    assert_eq!(take(&mut mailbox, A, 7, 1)[0].attempt, 3, "a delay of zero is at once");
}

#[test]
fn a_delay_below_a_millisecond_is_still_a_delay() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 1, 0);
    let short = Verdict::Retry { after: Some(Duration::from_micros(1)), reason: None };
    take_and_settle(&mut mailbox, 0, short);
    tick(&mut mailbox, 0);
    assert!(take(&mut mailbox, A, 0, 1).is_empty());
    tick(&mut mailbox, 1);
    assert_eq!(take_seqs(&mut mailbox, A, 1, 1), [1]);
}

#[test]
fn delays_too_long_to_count_do_not_overflow() {
    let mut mailbox = Mailbox::new(RetryPolicy { ack_wait: Duration::MAX, ..policy(0, &[], 0) }, 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 1, 0);
    let forever = Verdict::Retry { after: Some(Duration::MAX), reason: None };
    take_and_settle(&mut mailbox, u64::MAX / 4, forever);
    assert_eq!(mailbox.counts().delayed, 1);
    assert!(mailbox.next_deadline().unwrap() > u64::MAX / 4);
}

#[test]
fn the_last_delivery_allowed_ends_in_a_dead_letter_with_the_consumers_reason() {
    let mut mailbox = Mailbox::new(policy(100, &[], 2), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 1, 3);
    let (_, records) = take_and_settle(&mut mailbox, 10, retry_because("no stock"));
    let failures = Failures { attempts: 1, first: 10, last: 10, due: 0, reason: Some("no stock".into()) };
    assert_eq!(records, [Record::Tried { first: 1, last: 1, failures: failures.clone() }]);
    // The second says nothing: the first one's words stay.
    let (_, records) = take_and_settle(&mut mailbox, 20, retry_after(500));
    assert_eq!(records, [Record::Dying { seq: 1, failures: Failures { attempts: 2, last: 20, ..failures } }]);
    assert_eq!(mailbox.counts(), Counts { dying: 1, ..Counts::default() });
    assert!(take(&mut mailbox, A, 10_000, 1).is_empty());
    assert_eq!(mailbox.next_deadline(), None);
    assert!(!mailbox.floor().is_settled(1), "not settled before its dead letter is durable");
}

#[test]
fn every_way_to_exhaust_the_deliveries_names_a_reason() {
    let mut seen = Vec::new();
    for way in 0..3 {
        let mut mailbox = Mailbox::new(policy(100, &[70], 1), 0);
        mailbox.attach(A, WIDE);
        mailbox.offer(1, 1, 0);
        take(&mut mailbox, A, 5, 1);
        let mut records = Vec::new();
        match way {
            0 => mailbox.settle(A, 1, retry(), 9, &mut records).unwrap(),
            1 => mailbox.tick(105, &mut records),
            _ => mailbox.detach(A, 9, &mut records),
        }
        let [Record::Dying { seq: 1, failures }] = &records[..] else { panic!("{records:?}") };
        assert_eq!((failures.attempts, failures.due), (1, 0));
        seen.push(failures.reason.clone().expect("a reason"));
    }
    seen.dedup();
    assert_eq!(seen.len(), 3, "each says what happened: {seen:?}");
}

#[test]
fn no_maximum_means_never_dead() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 1, 0);
    for attempt in 1..1000 {
        let (taken, records) = take_and_settle(&mut mailbox, attempt, retry());
        assert_eq!(u64::from(taken.attempt), attempt);
        assert!(matches!(records[..], [Record::Tried { .. }]));
    }
}

#[test]
fn a_dead_verdict_is_settled_when_its_letter_is_durable() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, window(1));
    mailbox.offer(1, 2, 0);
    let (_, records) = take_and_settle(&mut mailbox, 10, dead("poison"));
    let failures = Failures { attempts: 1, first: 10, last: 10, due: 0, reason: Some("poison".into()) };
    assert_eq!(records, [Record::Dying { seq: 1, failures }]);
    assert_eq!(take_seqs(&mut mailbox, A, 10, 9), [2], "the window is free again");
    assert_eq!(mailbox.settle(A, 1, Verdict::Ack, 10, &mut Vec::new()), Err(NotInFlight));

    let mut records = Vec::new();
    assert!(!mailbox.buried(2, &mut records), "2 is in flight, not dying");
    assert!(mailbox.buried(1, &mut records));
    assert!(!mailbox.buried(1, &mut records), "only once");
    assert_eq!(records, [Record::Settled { first: 1, last: 1 }]);
    assert_eq!(mailbox.floor().floor(), 1);
    assert_eq!(mailbox.failures().count(), 0);
}

#[test]
fn a_dead_letter_that_could_not_be_written_comes_back() {
    for (max, exhausted) in [(0, false), (1, true)] {
        let mut mailbox = Mailbox::new(policy(100, &[], max), 0);
        mailbox.attach(A, WIDE);
        mailbox.offer(1, 1, 4);
        let (_, records) = take_and_settle(&mut mailbox, 10, dead("poison"));
        assert!(mailbox.revive(1, 50));
        assert!(!mailbox.revive(1, 50), "it is not dying any more");
        assert!(!mailbox.buried(1, &mut Vec::new()));
        assert_eq!(mailbox.counts(), Counts { delayed: 1, ..Counts::default() });
        assert_eq!(mailbox.next_deadline(), Some(50));
        assert_eq!(tick(&mut mailbox, 49), []);
        if exhausted {
            assert_eq!(tick(&mut mailbox, 50), records, "it dies again, unchanged");
            assert!(mailbox.buried(1, &mut Vec::new()));
        } else {
            assert_eq!(tick(&mut mailbox, 50), []);
            assert_eq!(take(&mut mailbox, A, 50, 1), [Taken { seq: 1, attempt: 2, priority: 4 }]);
        }
    }
}

#[test]
fn what_a_gone_consumer_held_is_ready_at_once_with_its_attempt_counted() {
    let mut mailbox = Mailbox::new(policy(100, &[60], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.attach(B, window(1));
    mailbox.offer(1, 4, 0);
    take(&mut mailbox, A, 0, 2);
    take(&mut mailbox, B, 0, 2);
    let mut records = Vec::new();
    mailbox.detach(A, 20, &mut records);
    let failures = Failures { attempts: 1, first: 20, last: 20, due: 0, reason: None };
    assert_eq!(records, [Record::Tried { first: 1, last: 2, failures }], "no backoff; one record");
    assert_eq!(mailbox.consumer_count(), 1);
    assert_eq!(mailbox.held(B, 0, 9), [3], "the other keeps what it holds");
    assert!(take(&mut mailbox, A, 20, 9).is_empty(), "a consumer that is gone gets nothing");
    // Back with the same name: an empty window and nothing in flight.
    mailbox.attach(A, window(3));
    assert_eq!(mailbox.settle(A, 1, Verdict::Ack, 20, &mut Vec::new()), Err(NotInFlight));
    let again: Vec<_> = take(&mut mailbox, A, 20, 9).iter().map(|t| (t.seq, t.attempt)).collect();
    assert_eq!(again, [(1, 2), (2, 2), (4, 1)]);
}

#[test]
fn an_expired_lease_comes_back_and_its_late_verdict_is_refused() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, window(1));
    mailbox.offer(1, 1, 0);
    take(&mut mailbox, A, 10, 1);
    assert_eq!(mailbox.next_deadline(), Some(110));
    assert_eq!(tick(&mut mailbox, 109), []);
    assert!(mailbox.holds(A, 1));
    let failures = Failures { attempts: 1, first: 110, last: 110, due: 0, reason: None };
    assert_eq!(tick(&mut mailbox, 110), [Record::Tried { first: 1, last: 1, failures }]);
    assert_eq!(mailbox.settle(A, 1, Verdict::Ack, 110, &mut Vec::new()), Err(NotInFlight));
    assert_eq!(mailbox.touch(A, 1, 110), Err(NotInFlight));
    assert_eq!(take(&mut mailbox, A, 110, 1)[0].attempt, 2, "the window is free again");
}

/// `A` has let the lease of message 1 end at 100.
fn a_was_late(others_window: Window) -> Mailbox {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, window(2));
    mailbox.offer(1, 3, 0);
    take(&mut mailbox, A, 0, 1);
    mailbox.attach(B, others_window);
    tick(&mut mailbox, 100);
    mailbox
}

#[test]
fn who_let_a_lease_end_is_passed_over_while_another_has_room() {
    let mut mailbox = a_was_late(window(2));
    assert_eq!(mailbox.consumers_with_room().collect::<Vec<_>>(), [B]);
    assert_eq!(take_seqs(&mut mailbox, A, 100, 9), [0; 0]);
    assert_eq!(take_seqs(&mut mailbox, B, 100, 1), [1]);
    assert_eq!(take_seqs(&mut mailbox, A, 100, 9), [0; 0], "B has room for one more");
    assert_eq!(take_seqs(&mut mailbox, B, 100, 9), [2]);
    assert_eq!(take_seqs(&mut mailbox, A, 100, 9), [3], "nobody else could");
}

#[test]
fn who_let_a_lease_end_is_not_passed_over_for_ever() {
    let mut mailbox = a_was_late(WIDE);
    assert_eq!(mailbox.next_deadline(), Some(200));
    tick(&mut mailbox, 199);
    assert_eq!(take_seqs(&mut mailbox, A, 199, 9), [0; 0]);
    tick(&mut mailbox, 200);
    assert_eq!(mailbox.next_deadline(), None);
    assert_eq!(mailbox.consumers_with_room().collect::<Vec<_>>(), [A, B]);
    assert_eq!(take_seqs(&mut mailbox, A, 200, 9), [1, 2]);
}

#[test]
fn a_verdict_in_time_ends_being_passed_over() {
    for touch in [false, true] {
        let mut mailbox = a_was_late(window(0));
        assert_eq!(take_seqs(&mut mailbox, A, 100, 1), [1]);
        mailbox.attach(B, window(1));
        assert_eq!(take_seqs(&mut mailbox, A, 101, 1), [0; 0]);
        if touch {
            mailbox.touch(A, 1, 101).expect("in flight");
        } else {
            mailbox.settle(A, 1, Verdict::Ack, 101, &mut Vec::new()).expect("in flight");
        }
        assert_eq!(take_seqs(&mut mailbox, A, 101, 1), [2]);
    }
}

#[test]
fn who_holds_all_the_bytes_it_may_has_no_room() {
    let mut mailbox = a_was_late(Window { count: 9, bytes: 1 });
    assert_eq!(take_seqs(&mut mailbox, B, 100, 1), [1]);
    assert_eq!(take_seqs(&mut mailbox, A, 100, 1), [2]);
}

#[test]
fn the_one_consumer_is_never_passed_over() {
    let mut mailbox = a_was_late(WIDE);
    mailbox.detach(B, 100, &mut Vec::new());
    assert_eq!(take_seqs(&mut mailbox, A, 100, 1), [1]);
}

#[test]
fn a_touch_starts_the_lease_again() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 2, 0);
    take(&mut mailbox, A, 0, 2);
    assert_eq!(mailbox.touch(B, 1, 60), Err(NotInFlight), "not its lease");
    assert_eq!(mailbox.touch(A, 3, 60), Err(NotInFlight));
    assert_eq!(mailbox.touch(A, 1, 60), Ok(()));
    assert_eq!(mailbox.next_deadline(), Some(100), "2 was not touched");
    tick(&mut mailbox, 100);
    assert_eq!(mailbox.held(A, 0, 9), [1]);
    assert_eq!(mailbox.next_deadline(), Some(160));
    assert_eq!(tick(&mut mailbox, 159), []);
    tick(&mut mailbox, 160);
    assert_eq!(mailbox.held(A, 0, 9), []);
}

#[test]
fn only_the_holder_may_settle_and_only_once() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.attach(B, WIDE);
    mailbox.offer(1, 1, 0);
    let mut records = Vec::new();
    assert_eq!(mailbox.settle(A, 1, Verdict::Ack, 0, &mut records), Err(NotInFlight), "ready");
    take(&mut mailbox, A, 0, 1);
    for verdict in [Verdict::Ack, Verdict::Discard, retry(), dead("x")] {
        assert_eq!(mailbox.settle(B, 1, verdict, 1, &mut records), Err(NotInFlight));
    }
    // The lease moves from A to B: A's word counts no more.
    tick(&mut mailbox, 100);
    assert_eq!(take_seqs(&mut mailbox, B, 100, 1), [1]);
    for verdict in [Verdict::Ack, Verdict::Discard, retry(), dead("x")] {
        assert_eq!(mailbox.settle(A, 1, verdict, 101, &mut records), Err(NotInFlight));
    }
    assert_eq!(records, []);
    assert_eq!(mailbox.settle(B, 1, Verdict::Ack, 101, &mut records), Ok(()));
    assert_eq!(mailbox.settle(B, 1, Verdict::Ack, 101, &mut records), Err(NotInFlight), "only once");
    assert_eq!(records, [Record::Settled { first: 1, last: 1 }]);
}

#[test]
fn a_discarded_message_is_settled_like_an_acked_one() {
    let mut mailbox = Mailbox::new(policy(100, &[], 1), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 1, 0);
    let (_, records) = take_and_settle(&mut mailbox, 0, Verdict::Discard);
    assert_eq!(records, [Record::Settled { first: 1, last: 1 }]);
    assert_eq!(mailbox.counts().pending(), 0);
}

#[test]
fn a_window_counts_what_is_unsettled() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, window(2));
    mailbox.attach(B, window(0));
    mailbox.offer(1, 9, 0);
    assert_eq!(take_seqs(&mut mailbox, A, 0, 9), [1, 2]);
    assert!(take(&mut mailbox, A, 0, 9).is_empty());
    assert!(take(&mut mailbox, B, 0, 9).is_empty(), "a window of nothing takes nothing");
    assert_eq!(mailbox.consumers_with_room().count(), 0);
    mailbox.settle(A, 1, Verdict::Ack, 0, &mut Vec::new()).unwrap();
    assert_eq!(mailbox.consumers_with_room().collect::<Vec<_>>(), [A]);
    assert_eq!(take_seqs(&mut mailbox, A, 0, 9), [3]);
    // A smaller window takes nothing away, but has to drain first.
    mailbox.attach(A, window(1));
    assert_eq!(mailbox.held(A, 0, 9), [2, 3]);
    mailbox.settle(A, 2, Verdict::Ack, 0, &mut Vec::new()).unwrap();
    assert!(take(&mut mailbox, A, 0, 9).is_empty());
    mailbox.settle(A, 3, Verdict::Ack, 0, &mut Vec::new()).unwrap();
    assert_eq!(take_seqs(&mut mailbox, A, 0, 9), [4]);
}

#[test]
fn a_byte_window_lets_one_large_message_through_alone() {
    let size = |seq: u64| if seq == 3 { 5000 } else { 40 };
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, Window { count: 10, bytes: 100 });
    mailbox.offer(1, 5, 0);
    let round = |mailbox: &mut Mailbox, ack: &[u64]| {
        for &seq in ack {
            mailbox.settle(A, seq, Verdict::Ack, 0, &mut Vec::new()).unwrap();
        }
        let mut out = Vec::new();
        mailbox.take(A, 0, 9, size, &mut out);
        out.iter().map(|t| t.seq).collect::<Vec<_>>()
    };
    assert_eq!(round(&mut mailbox, &[]), [1, 2], "80 of 100 bytes");
    assert_eq!(round(&mut mailbox, &[1]), [], "the large one waits its turn; nothing overtakes it");
    assert_eq!(mailbox.counts(), Counts { ready: 3, in_flight: 1, ..Counts::default() });
    assert_eq!(round(&mut mailbox, &[2]), [3], "alone, though it is larger than the window");
    assert_eq!(round(&mut mailbox, &[3]), [4, 5]);
}

#[test]
fn a_byte_window_may_be_filled_exactly() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, Window { count: 10, bytes: 3 });
    mailbox.offer(1, 9, 0);
    assert_eq!(take_seqs(&mut mailbox, A, 0, 9), [1, 2, 3]);
}

#[test]
fn a_trim_takes_leases_delays_and_the_dying_with_it() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, window(4));
    mailbox.offer(1, 10, 0);
    take(&mut mailbox, A, 0, 4);
    let mut records = Vec::new();
    mailbox.settle(A, 1, Verdict::Ack, 0, &mut records).unwrap();
    mailbox.settle(A, 2, dead("x"), 0, &mut records).unwrap();
    mailbox.settle(A, 3, retry_after(50), 0, &mut records).unwrap();
    assert_eq!(take_seqs(&mut mailbox, A, 0, 9), [5, 6, 7]);
    records.clear();
    // 1 settled, 2 dying, 3 delayed, 4 to 7 in flight, 8 to 10 ready.
    assert_eq!(mailbox.trim(6), 4);
    assert_eq!(mailbox.counts(), Counts { ready: 3, in_flight: 2, ..Counts::default() });
    assert_eq!(mailbox.trim(6), 0, "once is enough");
    assert_eq!(mailbox.settle(A, 4, Verdict::Ack, 0, &mut records), Err(NotInFlight));
    assert_eq!(mailbox.touch(A, 5, 0), Err(NotInFlight));
    assert!(!mailbox.buried(2, &mut records));
    assert!(!mailbox.revive(2, 99));
    assert_eq!(mailbox.failures().count(), 0);
    assert_eq!(mailbox.floor().floor(), 5);
    assert_eq!(take_seqs(&mut mailbox, A, 0, 9), [8, 9], "the window of the lost leases is free");
    assert_eq!(tick(&mut mailbox, 100).len(), 1, "only what is left expires");
    assert_eq!(mailbox.trim(99), 5);
    assert_eq!(mailbox.counts(), Counts::default());
    assert_eq!(mailbox.next_deadline(), None);
    mailbox.offer(11, 99, 0);
    assert_eq!(mailbox.counts().ready, 1, "only 99 is not trimmed already");
}

#[test]
fn records_of_neighbours_that_ended_alike_are_one() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 10, 0);
    take(&mut mailbox, A, 0, 10);
    let mut records = Vec::new();
    assert_eq!(mailbox.settle_range(A, 1, 4, &Verdict::Ack, 0, &mut records), 4);
    assert_eq!(records, [Record::Settled { first: 1, last: 4 }]);
    assert_eq!(mailbox.settle_range(A, 5, 5, &Verdict::Discard, 0, &mut records), 1);
    assert_eq!(records, [Record::Settled { first: 1, last: 5 }]);
    mailbox.settle(A, 7, Verdict::Ack, 0, &mut records).unwrap();
    assert_eq!(records.len(), 2, "6 is open");
    records.clear();
    mailbox.settle(A, 8, retry_because("a"), 3, &mut records).unwrap();
    mailbox.settle(A, 9, retry_because("b"), 3, &mut records).unwrap();
    mailbox.settle(A, 10, retry_because("b"), 3, &mut records).unwrap();
    let failures =
        |reason: &str| Failures { attempts: 1, first: 3, last: 3, due: 0, reason: Some(reason.into()) };
    assert_eq!(
        records,
        [
            Record::Tried { first: 8, last: 8, failures: failures("a") },
            Record::Tried { first: 9, last: 10, failures: failures("b") },
        ]
    );
}

#[test]
fn a_range_settles_what_this_consumer_holds_and_no_more() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, window(2));
    mailbox.attach(B, window(2));
    mailbox.offer(1, 9, 0);
    take(&mut mailbox, A, 0, 2);
    take(&mut mailbox, B, 0, 2);
    let mut records = Vec::new();
    assert_eq!(mailbox.settle_range(A, 9, 1, &Verdict::Ack, 0, &mut records), 0, "inverted");
    assert_eq!(mailbox.settle_range(A, 5, 9, &Verdict::Ack, 0, &mut records), 0, "ready");
    assert_eq!(mailbox.settle_range(A, u64::MAX, u64::MAX, &Verdict::Ack, 0, &mut records), 0);
    assert_eq!(records, []);
    assert_eq!(mailbox.settle_range(B, 0, u64::MAX, &retry(), 0, &mut records), 2);
    assert_eq!(mailbox.held(A, 0, u64::MAX), [1, 2]);
    assert_eq!(mailbox.held(A, 2, 2), [2]);
    assert_eq!(mailbox.held(A, 9, 1), []);
    assert_eq!(mailbox.counts(), Counts { ready: 7, in_flight: 2, ..Counts::default() });
}

#[test]
fn a_range_over_scattered_leases_ends_where_it_says() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, WIDE);
    for seq in [2, 5, 9] {
        mailbox.offer(seq, seq, 0);
    }
    take(&mut mailbox, A, 0, 9);
    assert_eq!(mailbox.held(A, 1, 4), [2]);
    assert_eq!(mailbox.held(A, 3, 8), [5]);
    assert_eq!(mailbox.held(A, 5, 9), [5, 9]);
    assert_eq!(mailbox.held(A, 6, 8), []);
    assert_eq!(mailbox.settle_range(A, 3, 8, &Verdict::Ack, 0, &mut Vec::new()), 1);
    assert_eq!(mailbox.held(A, 0, 99), [2, 9]);
}

#[test]
fn the_next_deadline_is_the_nearer_of_a_lease_and_a_delay() {
    for (delay, nearer) in [(30, 30), (300, 100)] {
        let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
        mailbox.attach(A, WIDE);
        mailbox.offer(1, 2, 0);
        assert_eq!(mailbox.next_deadline(), None, "nothing to wait for");
        take(&mut mailbox, A, 0, 2);
        mailbox.settle(A, 1, retry_after(delay), 0, &mut Vec::new()).unwrap();
        assert_eq!(mailbox.next_deadline(), Some(nearer));
    }
}

#[test]
fn new_rules_leave_running_leases_alone() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 3, 0);
    take(&mut mailbox, A, 0, 1);
    mailbox.set_policy(policy(10, &[5], 0));
    assert_eq!(mailbox.policy().ack_wait, Duration::from_millis(10));
    assert_eq!(mailbox.next_deadline(), Some(100));
    take(&mut mailbox, A, 20, 1);
    assert_eq!(mailbox.next_deadline(), Some(30), "a shorter lease is seen before the longer one");
    mailbox.touch(A, 1, 25).unwrap();
    assert_eq!(mailbox.next_deadline(), Some(30));
    tick(&mut mailbox, 30);
    assert_eq!(mailbox.next_deadline(), Some(35), "the touch brought 1 forward; 2 has the new backoff");
    tick(&mut mailbox, 35);
    assert_eq!(mailbox.counts(), Counts { ready: 2, delayed: 1, ..Counts::default() });
}

#[test]
fn what_lies_below_the_start_or_nowhere_is_not_offered() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 10);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 10, 0);
    mailbox.offer(12, 11, 0);
    assert_eq!(mailbox.counts(), Counts::default());
    mailbox.offer(8, 12, 0);
    assert_eq!(take_seqs(&mut mailbox, A, 0, 9), [11, 12]);
}

#[test]
fn nobody_who_did_not_attach_gets_anything() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.offer(1, 1, 0);
    assert!(take(&mut mailbox, A, 0, 1).is_empty());
    let mut records = Vec::new();
    mailbox.detach(A, 0, &mut records);
    assert_eq!(records, []);
    assert_eq!(mailbox.counts().ready, 1);
}
