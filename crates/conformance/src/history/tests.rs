use super::*;

const TERMS: Terms = Terms { window_count: 2, window_bytes: 100, lease: 1000, ordered: true, lanes: None };

/// A history in which one message goes the right way, then `more`.
fn with(more: Vec<(u64, Event)>) -> Vec<Record> {
    let mut all = vec![
        (0, subscribed(TERMS)),
        (1, publish(1)),
        (2, Event::Confirmed { message: 1, duplicate: false }),
        (3, delivered(1, 1)),
        (4, settle(1, VerdictKind::Final)),
        (5, settled(1, VerdictKind::Final, true)),
    ];
    all.extend(more);
    all.into_iter().map(|(millis, event)| Record { millis, event }).collect()
}

fn subscribed(terms: Terms) -> Event {
    Event::Subscribed { subscription: 0, consumer: 0, terms }
}

fn publish(message: u64) -> Event {
    Event::Publish { message, source: 0, lane: 0, digest: message }
}

fn delivered(message: u64, attempt: u32) -> Event {
    Event::Delivered { subscription: 0, consumer: 0, message, attempt, bytes: 40, digest: message }
}

fn settle(message: u64, verdict: VerdictKind) -> Event {
    Event::Settle { subscription: 0, message, verdict }
}

fn settled(message: u64, verdict: VerdictKind, done: bool) -> Event {
    Event::Settled { subscription: 0, message, verdict, done }
}

fn found(more: Vec<(u64, Event)>) -> Vec<Violation> {
    let rules = Rules { ended: true, attempts_dense: true, ..Rules::default() };
    check(&with(more), &rules).into_iter().map(|finding| finding.violation).collect()
}

const AT: (u32, u64) = (0, 2);

#[test]
fn a_right_one_is_right() {
    assert_eq!(found(vec![]), []);
    // Retried, then done; a lease that ends; a consumer that goes; a restart that forgets the attempt.
    let done = |at| vec![(at, settle(2, VerdictKind::Final)), (at, settled(2, VerdictKind::Final, true))];
    for between in [
        vec![
            (20, settle(2, VerdictKind::Again)),
            (21, settled(2, VerdictKind::Again, true)),
            (22, delivered(2, 2)),
        ],
        vec![(20 + 1000, delivered(2, 2))],
        vec![
            (20, Event::Gone { subscription: 0, consumer: 0 }),
            (21, subscribed(TERMS)),
            (22, delivered(2, 2)),
        ],
        vec![(20, Event::Restarted), (21, delivered(2, 1))],
        vec![
            (20, settle(2, VerdictKind::Final)),
            (21, settled(2, VerdictKind::Final, false)),
            (22, delivered(2, 2)),
        ],
    ] {
        let mut more = vec![(10, publish(2)), (11, delivered(2, 1))];
        more.extend(between);
        more.extend(done(2000));
        assert_eq!(found(more.clone()), [], "{more:?}");
    }
    // Not confirmed, so it may be lost.
    assert_eq!(found(vec![(10, publish(2)), (11, Event::Unknown { message: 2 })]), []);
}

#[test]
fn every_violation_is_found() {
    let (subscription, message) = AT;
    let ok = |at| [(at, settle(2, VerdictKind::Final)), (at, settled(2, VerdictKind::Final, true))];
    let confirmed = (11, Event::Confirmed { message: 2, duplicate: false });
    let cases: Vec<(Vec<(u64, Event)>, Vec<Violation>)> = vec![
        (vec![(10, publish(2)), confirmed], vec![Violation::Lost { subscription, message }]),
        (vec![(10, publish(2)), (12, delivered(2, 1))], vec![Violation::Open { subscription, message }]),
        (
            [vec![(10, delivered(2, 1))], ok(11).to_vec()].concat(),
            vec![Violation::Phantom { subscription, message }],
        ),
        (
            [
                vec![(10, publish(2)), (11, Event::Refused { message: 2 }), (12, delivered(2, 1))],
                ok(13).to_vec(),
            ]
            .concat(),
            vec![Violation::RefusedDelivered { subscription, message }],
        ),
        (
            [
                vec![
                    (10, Event::Publish { message: 2, source: 0, lane: 0, digest: 99 }),
                    (12, delivered(2, 1)),
                ],
                ok(13).to_vec(),
            ]
            .concat(),
            vec![Violation::Changed { subscription, message }],
        ),
        (
            [
                vec![(10, delivered(1, 2))],
                vec![(11, settle(1, VerdictKind::Final)), (12, settled(1, VerdictKind::Final, true))],
            ]
            .concat(),
            vec![Violation::AfterAck { subscription, message: 1 }],
        ),
        (
            [vec![(10, publish(2)), (11, delivered(2, 1)), (12, delivered(2, 2))], ok(13).to_vec()].concat(),
            vec![Violation::Duplicate { subscription, message }],
        ),
        (
            [
                vec![
                    (10, publish(2)),
                    (11, delivered(2, 1)),
                    (12, settle(2, VerdictKind::Again)),
                    (13, delivered(2, 1)),
                ],
                ok(14).to_vec(),
            ]
            .concat(),
            vec![Violation::Attempt { subscription, message, attempt: 1, before: 1 }],
        ),
        (
            [
                vec![
                    (10, publish(2)),
                    (11, delivered(2, 1)),
                    (12, settle(2, VerdictKind::Again)),
                    (13, delivered(2, 3)),
                ],
                ok(14).to_vec(),
            ]
            .concat(),
            vec![Violation::Attempt { subscription, message, attempt: 3, before: 1 }],
        ),
        (
            [vec![(10, publish(2)), (11, delivered(2, 2))], ok(12).to_vec()].concat(),
            vec![Violation::Attempt { subscription, message, attempt: 2, before: 0 }],
        ),
    ];
    for (more, expected) in cases {
        assert_eq!(found(more.clone()), expected, "{more:?}");
    }
}

#[test]
fn windows_lanes_and_order() {
    let rules = Rules::default();
    let violations = |more| -> Vec<Violation> {
        check(&with(more), &rules).into_iter().map(|finding| finding.violation).collect()
    };
    let published: Vec<_> = (2..=4).map(|message| (10, publish(message))).collect();
    let three = [published.clone(), (2..=4).map(|message| (11, delivered(message, 1))).collect()].concat();
    assert_eq!(
        violations(three.clone()),
        [
            Violation::WindowCount { subscription: 0, consumer: 0, in_flight: 3 },
            Violation::WindowBytes { subscription: 0, consumer: 0, bytes: 120 },
        ]
    );
    // A verdict under way makes room, as far as can be seen from here.
    let mut room = three;
    room.insert(5, (11, settle(3, VerdictKind::Final)));
    assert_eq!(violations(room), []);
    let swapped = [published, vec![(11, delivered(3, 1)), (12, delivered(2, 1))]].concat();
    assert_eq!(violations(swapped), [Violation::OutOfOrder { subscription: 0, message: 2 }]);
    let lanes = Terms { lanes: Some(5..7), ..TERMS };
    let other = vec![
        (10, Event::Subscribed { subscription: 1, consumer: 0, terms: lanes }),
        (11, publish(2)),
        (12, Event::Delivered { subscription: 1, consumer: 0, message: 2, attempt: 1, bytes: 1, digest: 2 }),
    ];
    assert_eq!(violations(other), [Violation::Misrouted { subscription: 1, message: 2 }]);
}
