//! A history for each rule that breaks it, and one that breaks none.

use super::{Audit, DeadLetter, Fact, History, Settle, Start, SubSpec, Terms, Verdict, check};

const SPECS: [SubSpec; 3] = [
    SubSpec {
        filter: "a",
        name: Some("x"),
        group: false,
        from: Start::First,
        prefetch: 2,
        ack_wait: 100,
        max_deliveries: 2,
        backoff: &[],
        topics: &[0],
    },
    SubSpec {
        filter: "a",
        name: Some("g"),
        group: true,
        from: Start::New,
        prefetch: 10,
        ack_wait: 100,
        max_deliveries: 0,
        backoff: &[],
        topics: &[0],
    },
    SubSpec {
        filter: "a",
        name: None,
        group: false,
        from: Start::First,
        prefetch: 10,
        ack_wait: 100,
        max_deliveries: 0,
        backoff: &[],
        topics: &[0],
    },
];

/// Three messages are stored and given to connection 1, which has subscription x, and what follows.
fn story(facts: &[Fact]) -> History {
    let mut history = History::default();
    for _ in 0..4 {
        let message = history.new_message();
        history.send(message, 0, 0, None, |tag| format!("{{\"t\":{tag}}}").into_bytes());
    }
    history.note(Fact::Opened);
    for tag in 0..3 {
        history.note(Fact::Publish(tag));
        history.note(Fact::Stored { tag, seq: u64::from(tag) + 1, duplicate: false });
    }
    history.note(Fact::Attached(1, 0));
    for fact in facts {
        history.note(fact.clone());
    }
    history
}

fn event(conn: u32, seq: u64, attempt: u32) -> Fact {
    Fact::Delivered { conn, topic: 0, seq, attempt, tag: seq as u32 - 1 }
}

fn of(verdict: Verdict, seq: u64) -> Settle {
    Settle { verdict, topic: 0, first: seq, last: seq }
}

fn done(conn: u32, verdict: Verdict, seq: u64) -> [Fact; 2] {
    let settle = of(verdict, seq);
    [Fact::Verdict(conn, settle), Fact::Settled { conn, settle, asked: 0 }]
}

/// Everything is given once and acked.
fn all_acked() -> Vec<Fact> {
    let mut facts = Vec::new();
    for seq in 1..=3 {
        facts.push(event(1, seq, 1));
        facts.extend(done(1, Verdict::Ack, seq));
    }
    facts
}

fn audit() -> Audit {
    let log = (0..3).map(|tag| format!("{{\"t\":{tag}}}").into_bytes()).collect();
    Audit { logs: [(0, log)].into(), pending: [((0, 0), 0), ((1, 0), 0)].into(), ..Audit::default() }
}

fn judge(history: &History, audit: &Audit) -> Result<(), String> {
    check(Terms { specs: &SPECS, dedup: false }, history, audit).map_err(|broken| broken.why)
}

#[track_caller]
fn breaks(facts: &[Fact], why: &str) {
    let told = judge(&story(facts), &audit()).expect_err("a rule is broken");
    assert!(told.contains(why), "{told}");
}

#[test]
fn a_good_story_passes() {
    judge(&story(&all_acked()), &audit()).unwrap();
    // After the lease, or when the connection or the broker is gone, it may come again.
    let mut facts = vec![event(1, 1, 1), Fact::Gone(1), Fact::Attached(2, 0), event(2, 1, 2)];
    facts.extend([Fact::Closed, Fact::Opened, Fact::Attached(1, 0), event(1, 1, 1)]);
    facts.extend(done(1, Verdict::Ack, 1));
    facts.extend(all_acked().split_off(3));
    judge(&story(&facts), &audit()).unwrap();
}

#[test]
fn deliveries_that_must_not_be() {
    let acked = done(1, Verdict::Ack, 1);
    breaks(&[event(1, 1, 1), acked[0].clone(), acked[1].clone(), event(1, 1, 2)], "settled");
    // Also not in another life.
    let again = [Fact::Closed, Fact::Opened, Fact::Attached(2, 0), event(2, 1, 1)];
    breaks(&[&[event(1, 1, 1)], &acked[..], &again[..]].concat(), "settled");
    breaks(&[event(1, 1, 1), event(1, 1, 2)], "has it until");
    breaks(&[event(1, 1, 1), event(1, 2, 1), event(1, 3, 1)], "3 are un-acked, 2 may be");
    breaks(&[event(1, 2, 1), event(1, 1, 1)], "same priority");
    breaks(&[event(1, 1, 3)], "of at most 2");
    breaks(&[event(9, 1, 1)], "no confirmed subscription");
    breaks(
        &[event(1, 1, 2), Fact::Verdict(1, of(Verdict::Nack(None), 1)), event(1, 1, 1)],
        "after attempt 2",
    );
    let delayed = done(1, Verdict::Nack(Some(50)), 1);
    breaks(&[event(1, 1, 1), delayed[0].clone(), delayed[1].clone(), event(1, 1, 2)], "wait until 50");
    breaks(&[Fact::Attached(2, 0)], "exclusive");
    breaks(&[Fact::Delivered { conn: 1, topic: 0, seq: 1, attempt: 1, tag: 2 }], "was said to be sending 0");
    breaks(&[Fact::Stored { tag: 3, seq: 1, duplicate: false }], "was said to be sending 0");
    breaks(&[Fact::Stored { tag: 3, seq: 1, duplicate: true }], "without a window");
    breaks(&[Fact::Wrong("a reply to nothing".into())], "a reply to nothing");
    breaks(&[Fact::Internal("err internal".into())], "err internal");
}

#[test]
fn a_touch_holds_it_longer() {
    let mut history = story(&[event(1, 1, 1)]);
    history.now = 90;
    let settle = of(Verdict::Touch, 1);
    history.note(Fact::Verdict(1, settle));
    history.note(Fact::Settled { conn: 1, settle, asked: 90 });
    history.now = 150;
    history.note(event(1, 1, 2));
    assert!(judge(&history, &audit()).unwrap_err().contains("has it until 190"));
}

#[test]
fn what_was_lost_in_the_end() {
    let good = story(&all_acked());
    let broken = |change: fn(&mut Audit)| {
        let mut audit = audit();
        change(&mut audit);
        judge(&good, &audit).expect_err("a rule is broken")
    };
    let log = |audit: &mut Audit| audit.logs.get_mut(&0).unwrap().len();
    assert_eq!(log(&mut audit()), 3);
    assert!(broken(|audit| drop(audit.logs.get_mut(&0).unwrap().pop())).contains("was said to be sending 2"));
    assert!(broken(|audit| audit.logs.get_mut(&0).unwrap().swap(0, 1)).contains("was said"));
    assert!(broken(|audit| audit.logs.get_mut(&0).unwrap()[1][1] = b'!').contains("nobody published"));
    let twice = broken(|audit| audit.logs.get_mut(&0).unwrap().push(b"{\"t\":2}".to_vec()));
    assert!(twice.contains("there twice"), "{twice}");
    let never = broken(|audit| audit.logs.get_mut(&0).unwrap().push(b"{\"t\":3}".to_vec()));
    assert!(never.contains("never came in"), "{never}");
    assert!(
        broken(|audit| {
            audit.pending.remove(&(0, 0));
        })
        .contains("is gone")
    );
    assert!(
        broken(|audit| {
            audit.pending.insert((0, 0), 1);
        })
        .contains("not settled")
    );
    let letter =
        || DeadLetter { subscription: "a as x".into(), topic: 0, seq: 1, payload: b"{\"t\":0}".to_vec() };
    let mut reasonless = audit();
    reasonless.dead = vec![letter()];
    assert!(judge(&good, &reasonless).unwrap_err().contains("without a reason"));
    reasonless.dead = vec![letter(), letter()];
    assert!(judge(&good, &reasonless).unwrap_err().contains("2 times"));
    reasonless.dead = vec![DeadLetter { payload: b"{\"t\":1}".to_vec(), ..letter() }];
    assert!(judge(&good, &reasonless).unwrap_err().contains("is not that message"));
}

#[test]
fn what_was_promised_and_is_not_there() {
    let mut facts = all_acked();
    facts.truncate(6);
    assert!(judge(&story(&facts), &audit()).unwrap_err().contains("never got"));
    facts.push(event(1, 3, 1));
    assert!(judge(&story(&facts), &audit()).unwrap_err().contains("which did not do that"));
    facts.extend(done(1, Verdict::Bury, 3));
    assert!(judge(&story(&facts), &audit()).unwrap_err().contains("no dead letter"));
    let mut refused = story(&all_acked());
    refused.note(Fact::Refused(2));
    assert!(judge(&refused, &audit()).unwrap_err().contains("was refused"));
}

#[test]
fn a_bulk_is_not_torn_in_the_middle() {
    let mut history = story(&all_acked());
    for sent in &mut history.sent[1..] {
        sent.batch = Some(1);
    }
    history.note(Fact::Publish(3));
    judge(&history, &audit()).unwrap();
    history.facts.retain(|(_, fact)| !matches!(fact, Fact::Stored { tag: 2, .. } | Fact::Attached(..)));
    history.facts.retain(|(_, fact)| !matches!(fact, Fact::Delivered { .. } | Fact::Verdict(..)));
    let mut audit = audit();
    audit.logs.get_mut(&0).unwrap()[2] = b"{\"t\":3}".to_vec();
    assert!(judge(&history, &audit).unwrap_err().contains("without the one before it"));
}
