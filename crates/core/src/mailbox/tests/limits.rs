//! What bounds the memory of a mailbox, and that a crowd does not break it.

use super::*;

#[test]
fn a_million_contiguous_messages_cost_no_memory() {
    let mut at_once = Mailbox::new(policy(100, &[], 0), 0);
    at_once.offer(1, 1_000_000, 0);
    let mut one_by_one = Mailbox::new(policy(100, &[], 0), 0);
    for seq in 1..=1_000_000 {
        one_by_one.offer(seq, seq, 0);
    }
    for mut mailbox in [at_once, one_by_one] {
        assert_eq!(mailbox.counts().ready, 1_000_000);
        assert!(mailbox.memory() <= 256, "{} bytes", mailbox.memory());
        // Still so when a window of them went out and came back in two halves.
        mailbox.attach(A, window(1000));
        assert_eq!(take(&mut mailbox, A, 0, 2000).len(), 1000);
        mailbox.settle_range(A, 1, 1000, &Verdict::Ack, 0, &mut Vec::new());
        assert_eq!(mailbox.counts().pending(), 999_000);
        mailbox.trim(500_001);
        assert_eq!(mailbox.counts().ready, 500_000);
        assert_eq!(take_seqs(&mut mailbox, A, 0, 2), [500_001, 500_002]);
        assert!(mailbox.memory() < 64 * 1024, "{} bytes", mailbox.memory());
    }
}

#[test]
fn runs_that_broke_melt_together_again() {
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 1000, 0);
    take(&mut mailbox, A, 0, 1000);
    // The even ones come back first, then the odd ones fill every hole.
    for seq in (2..=1000).step_by(2).chain((1..1000).step_by(2)) {
        mailbox.settle(A, seq, retry(), 0, &mut Vec::new()).unwrap();
    }
    assert_eq!(mailbox.counts().ready, 1000);
    let order = take_seqs(&mut mailbox, A, 0, 2000);
    assert_eq!(order, (1..=1000).collect::<Vec<u64>>());
}

#[test]
fn scattered_priorities_cost_at_most_64_bytes_a_message() {
    const MESSAGES: u64 = 100_000;
    for levels in [2, 10, 256, 1000] {
        let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
        let mut random = 1u64;
        for seq in 1..=MESSAGES {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            mailbox.offer(seq, seq, (random >> 33) as i64 % levels);
        }
        let each = mailbox.memory() as u64 / MESSAGES;
        assert!(each <= 64, "{each} bytes a message with {levels} priorities");
    }
}

#[test]
fn one_stuck_lease_does_not_grow_the_deadline_queue() {
    let mut mailbox = Mailbox::new(policy(u64::MAX / 8, &[], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.attach(B, window(1));
    mailbox.offer(1, 1_000_001, 0);
    assert_eq!(take_seqs(&mut mailbox, A, 0, 1), [1]);
    let (mut out, mut records) = (Vec::new(), Vec::new());
    let mut longest = 0;
    for seq in 2..=1_000_001 {
        out.clear();
        mailbox.take(B, seq, 1, |_| 1, &mut out);
        assert_eq!(out[0].seq, seq);
        mailbox.settle(B, seq, Verdict::Ack, seq, &mut records).unwrap();
        longest = longest.max(mailbox.deadlines.len());
    }
    assert!(longest <= 128, "{longest} deadlines for at most two leases");
    assert!(mailbox.memory() < 8192, "{} bytes", mailbox.memory());
    assert_eq!(records, [Record::Settled { first: 2, last: 1_000_001 }]);
    assert_eq!(mailbox.floor().floor(), 0);
    assert_eq!(mailbox.floor().above().range_count(), 1);
    assert_eq!(mailbox.next_deadline(), Some(u64::MAX / 8), "the stuck one is still watched");
    mailbox.settle(A, 1, Verdict::Ack, 0, &mut records).unwrap();
    assert_eq!(mailbox.floor().floor(), 1_000_001);
    assert_eq!(mailbox.next_deadline(), None);
}

#[test]
fn a_lease_touched_forever_does_not_grow_the_deadline_queue() {
    let mut mailbox = Mailbox::new(policy(1000, &[], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 2, 0);
    take(&mut mailbox, A, 0, 2);
    mailbox.touch(A, 1, 999).unwrap();
    // 1 stays at the head of the queue and is never touched again; 2 always is.
    mailbox.set_policy(policy(1_000_000_000, &[], 0));
    for now in 1000..200_000 {
        mailbox.touch(A, 2, now).unwrap();
        assert!(mailbox.deadlines.len() <= 128, "{} deadlines for two leases", mailbox.deadlines.len());
    }
    assert_eq!(mailbox.next_deadline(), Some(1999));
}

#[test]
fn one_message_tried_again_and_again_does_not_grow_anything() {
    let mut mailbox = Mailbox::new(policy(1000, &[], 0), 0);
    mailbox.attach(A, WIDE);
    mailbox.offer(1, 2, 0);
    let mut records = Vec::new();
    take(&mut mailbox, A, 0, 1);
    // All in the same millisecond: every lease has the same deadline as the one before.
    for attempt in 1..100_000 {
        let taken = take(&mut mailbox, A, 0, 1)[0];
        assert_eq!((taken.seq, taken.attempt), (2, attempt));
        mailbox.settle(A, 2, retry(), 0, &mut records).unwrap();
        records.clear();
        assert!(mailbox.deadlines.len() <= 128);
    }
    take(&mut mailbox, A, 0, 1);
    assert_eq!(tick(&mut mailbox, 1000).len(), 2, "each lease expires once");
    assert_eq!(mailbox.counts().ready, 2);
    assert_eq!(mailbox.next_deadline(), None);
}

#[test]
fn a_full_window_that_expires_or_leaves_returns_whole() {
    const HELD: u64 = 20_000;
    let mut mailbox = Mailbox::new(policy(100, &[], 0), 0);
    mailbox.attach(A, WIDE);
    // Falling priorities: the order of delivery is the reverse of the sequence.
    for seq in 1..=HELD {
        mailbox.offer(seq, seq, seq as i64 % 100);
    }
    assert_eq!(take(&mut mailbox, A, 0, usize::MAX).len() as u64, HELD);
    assert_eq!(mailbox.held(A, 0, u64::MAX), (1..=HELD).collect::<Vec<_>>());
    tick(&mut mailbox, 100);
    assert_eq!(mailbox.counts().ready, HELD);
    assert_eq!(take(&mut mailbox, A, 100, usize::MAX).len() as u64, HELD);
    mailbox.detach(A, 150, &mut Vec::new());
    assert_eq!(mailbox.counts().ready, HELD);
    assert_eq!(mailbox.next_deadline(), None);
    mailbox.attach(A, WIDE);
    let taken = take(&mut mailbox, A, 150, usize::MAX);
    assert!(taken.iter().all(|t| t.attempt == 3));
    assert!(taken.is_sorted_by_key(|t| (std::cmp::Reverse(t.priority), t.seq)));
    assert_eq!(taken.len() as u64, HELD);
}
