//! Each rule on the least history that breaks it, and on one that does not.

use super::check;
use crate::mqtt::cast::{Ask, EVER, LETTERS, READER, ask};
use crate::mqtt::facts::{Fact, LineFact, Seen, Sent, Tag, Will};
use Fact::{Closed, Connack, Drained, Opened};

/// Places in the lists of the cast.
const A1: u8 = 0;
const L1: u8 = 8;
const RETAINED: u8 = 3;
const SUBSCRIBER: u8 = 3;
const PUBLISHER: u8 = 0;
const AMY: u8 = 14;
const PAM: u8 = 16;

fn sent(topic: u8, qos: u8) -> Sent {
    Sent { by: PUBLISHER, topic, qos, ..Sent::default() }
}

fn connect(conn: u32, who: u8) -> Fact {
    Fact::Connect { conn, who, clean: false, lasting: EVER, window: 2, will: None }
}

fn subscribe(conn: u32, ask: Ask) -> [Fact; 2] {
    [Fact::Subscribe { conn, id: 1, ask }, Fact::Subscribed { conn, id: 1, ok: true }]
}

fn publish(id: u16, tag: Tag) -> [Fact; 2] {
    [Fact::Publish { conn: 1, id, tag, dup: false }, Fact::Taken { conn: 1, id, ok: true }]
}

fn deliver(id: u16, tag: Tag) -> Fact {
    Fact::Deliver { conn: 2, id, tag: Some(tag), qos: 2, retain: false, dup: false, ids: 0, expiry: None }
}

/// PUBREC, PUBREL, PUBCOMP, and the application.
fn take(id: u16, tag: Tag) -> [Fact; 4] {
    [
        Fact::App { who: SUBSCRIBER, tag, retain: false },
        Fact::Received { conn: 2, id },
        Fact::Released { conn: 2, id },
        Fact::Settled { conn: 2, id },
    ]
}

/// A publisher on connection 1 and a subscriber on connection 2, and what follows.
fn world(ask: Ask, rest: &[&[Fact]]) -> Vec<Fact> {
    let mut facts = vec![
        Opened,
        connect(1, PUBLISHER),
        Connack { conn: 1, present: false },
        connect(2, SUBSCRIBER),
        Connack { conn: 2, present: false },
    ];
    facts.extend(subscribe(2, ask));
    facts.extend(rest.iter().flat_map(|facts| facts.iter().cloned()));
    facts
}

/// Runs the rules; facts are a millisecond apart. Waits stand for themselves.
fn verdict(sent: &[Sent], facts: Vec<Fact>) -> Result<(), String> {
    verdict_on(false, sent, facts)
}

/// The same, on a disk that may fail or be full.
fn verdict_on(disk_fails: bool, sent: &[Sent], facts: Vec<Fact>) -> Result<(), String> {
    let facts = facts.into_iter().enumerate().map(|(at, fact)| (at as u64, fact)).collect();
    check(&Seen { facts, sent: sent.to_vec(), disk_fails, ..Seen::default() }).map_err(|broken| broken.why)
}

fn breaks(what: &str, sent: &[Sent], facts: Vec<Fact>) {
    match verdict(sent, facts) {
        Err(why) if why.contains(what) => {}
        other => panic!("{what}: {other:?}"),
    }
}

fn keeps(sent: &[Sent], facts: Vec<Fact>) {
    assert_eq!(verdict(sent, facts), Ok(()));
}

fn dead(client: &str, id: &str, reason: &str) -> Fact {
    Fact::Dead { client: client.into(), tag: Some(0), id: id.into(), reason: reason.into() }
}

fn line(conn: u32, who: u8, fact: LineFact) -> Fact {
    Fact::Line { conn, who, fact }
}

#[test]
fn exactly_once() {
    let one = &[sent(A1, 2)];
    let a1 = ask(0, 2);
    keeps(one, world(a1, &[&publish(1, 0), &[deliver(1, 0)], &take(1, 0), &[Drained]]));
    breaks("is lost", one, world(a1, &[&publish(1, 0)]));
    breaks("0 times", one, world(a1, &[&publish(1, 0), &[deliver(1, 0)]]));
    breaks(
        "again under id 2",
        one,
        world(a1, &[&publish(1, 0), &[deliver(1, 0)], &take(1, 0), &[deliver(2, 0)]]),
    );
    breaks("all was settled", one, world(a1, &[&publish(1, 0), &[Drained, deliver(1, 0)]]));
    breaks("who asked for", one, world(ask(3, 2), &[&publish(1, 0), &[deliver(1, 0)]]));
    breaks("at QoS 2", one, world(ask(0, 1), &[&publish(1, 0), &[deliver(1, 0)]]));
    breaks("nothing was published under it", one, world(a1, &[&[Fact::Taken { conn: 1, id: 9, ok: true }]]));
    breaks(
        "from whom no PUBREC came",
        one,
        world(a1, &[&publish(1, 0), &[deliver(1, 0)], &take(1, 0)[2..3]]),
    );
    let unknown = Fact::Complete { conn: 1, id: 1, known: false };
    breaks("PUBCOMP 1 says that the id is not known", one, world(a1, &[&publish(1, 0), &[unknown]]));
}

#[test]
fn again_on_the_next_connection() {
    let two = &[sent(A1, 2), sent(A1, 2)];
    let again = |id, tag, dup| Fact::Deliver {
        conn: 3,
        id,
        tag: Some(tag),
        qos: 2,
        retain: false,
        dup,
        ids: 0,
        expiry: None,
    };
    let back =
        [Fact::Gone { conn: 2, polite: false }, connect(3, SUBSCRIBER), Connack { conn: 3, present: true }];
    let with = |rest: &[&[Fact]]| {
        let before: Vec<Fact> = [&publish(1, 0)[..], &publish(2, 1), &[deliver(1, 0)]].concat();
        let mut parts: Vec<&[Fact]> = vec![&before];
        parts.extend(rest);
        world(ask(0, 2), &parts)
    };
    breaks("without DUP", two, with(&[&back, &[again(1, 0, false)]]));
    breaks("again after PUBREL", two, with(&[&take(1, 0)[..3], &back, &[again(1, 0, true)]]));
    breaks("id 1 to c3 is of message", two, with(&[&back, &[again(1, 1, false)]]));
    breaks("twice on one connection", two, with(&[&[deliver(1, 0)]]));
    breaks("c3, who takes 2", two, with(&[&[deliver(2, 1), deliver(3, 1)]]));
    breaks(
        "comes to c3 after",
        two,
        world(ask(0, 2), &[&publish(1, 0), &publish(2, 1), &[deliver(1, 1), deliver(2, 0)]]),
    );
    let lost =
        [Fact::Gone { conn: 2, polite: false }, connect(3, SUBSCRIBER), Connack { conn: 3, present: false }];
    breaks("the session of c3 is gone", two, with(&[&lost]));
    breaks(
        "session present, and there was none",
        &[],
        vec![Opened, connect(1, 0), Connack { conn: 1, present: true }],
    );
    let clean = Fact::Connect { conn: 1, who: 0, clean: true, lasting: EVER, window: 1, will: None };
    breaks("a new one was asked for", &[], vec![Opened, clean, Connack { conn: 1, present: true }]);
    let refused = Fact::Subscribed { conn: 2, id: 7, ok: false };
    breaks("SUBACK 7 refuses", &[], world(ask(0, 2), &[&[refused]]));
}

#[test]
fn retained_and_the_options_of_subscriptions() {
    let kept = &[Sent { retain: true, ..sent(RETAINED, 2) }];
    let flag = |retain, ids| Fact::Deliver {
        conn: 2,
        id: 1,
        tag: Some(0),
        qos: 2,
        retain,
        dup: false,
        ids,
        expiry: None,
    };
    let options = |with: fn(&mut Ask)| {
        let mut asked = ask(5, 2);
        with(&mut asked);
        asked
    };
    let live = |asked, retain, ids| world(asked, &[&publish(1, 0), &[flag(retain, ids)], &take(1, 0)]);
    breaks("retains nothing", kept, live(ask(5, 2), false, 0));
    breaks("RETAIN is not as it was", kept, live(options(|ask| ask.as_published = true), false, 0));
    breaks("who did not want that", kept, live(options(|ask| ask.handling = 2), true, 0));
    breaks("was not retained", &[sent(RETAINED, 2)], live(ask(5, 2), true, 0));
    breaks("identifiers 0", kept, live(options(|ask| ask.has_id = true), false, 0));
    breaks("identifiers 1000000", kept, live(ask(5, 2), false, 1 << 6));
    let mut own = options(|ask| ask.no_local = true);
    own.filter = 5;
    let by_itself = &[Sent { by: SUBSCRIBER, retain: true, ..sent(RETAINED, 2) }];
    breaks("who asked for None", by_itself, live(own, false, 0));
    let replay = |id| Fact::Deliver {
        conn: 2,
        id,
        tag: Some(0),
        qos: 2,
        retain: true,
        dup: false,
        ids: 0,
        expiry: None,
    };
    let old = options(|ask| ask.handling = 1);
    breaks(
        "whose subscription is old",
        kept,
        world(old, &[&publish(1, 0), &[replay(1)], &take(1, 0), &[replay(2)]]),
    );
}

#[test]
fn expiry() {
    let short = &[Sent { expires: Some(1), ..sent(10, 2) }];
    let left = |expiry| Fact::Deliver {
        conn: 2,
        id: 1,
        tag: Some(0),
        qos: 2,
        retain: false,
        dup: false,
        ids: 0,
        expiry,
    };
    keeps(short, world(ask(13, 2), &[&publish(1, 0), &[left(Some(1))], &take(1, 0)]));
    breaks("expires after", short, world(ask(13, 2), &[&publish(1, 0), &[left(None)]]));
    breaks("expires after", short, world(ask(13, 2), &[&publish(1, 0), &[left(Some(2))]]));
    breaks("had not", short, world(ask(13, 2), &[&publish(1, 0), &[dead("c3", "1", "it expired")]]));
    let long = &[Sent { expires: Some(9), ..sent(10, 2) }];
    breaks("too little", long, world(ask(13, 2), &[&publish(1, 0), &[left(Some(1))]]));
}

#[test]
fn dead_letters() {
    let one = &[sent(11, 2)];
    let asked = ask(14, 2);
    let full = "the queue is full";
    keeps(one, world(asked, &[&publish(1, 0), &[dead("c3", "1", full)]]));
    breaks("is lost", one, world(asked, &[&publish(1, 0), &[dead("c4", "1", full)]]));
    breaks(
        "died twice",
        one,
        world(asked, &[&publish(1, 0), &[dead("c3", "1", full), dead("c3", "2", full)]]),
    );
    breaks("is a dead letter", one, world(asked, &[&publish(1, 0), &[dead("c3", "1", full), deliver(1, 0)]]));
    let no = [deliver(1, 0), Fact::Refused { conn: 2, id: 1 }];
    breaks("refused message 0, and it is no dead letter", one, world(asked, &[&publish(1, 0), &no]));
    keeps(one, world(asked, &[&publish(1, 0), &no, &[dead("c3", "1", "the subscriber refused it")]]));
}

#[test]
fn work() {
    let one = &[sent(12, 2)];
    let asked = ask(15, 1);
    let give = |id| Fact::Deliver {
        conn: 2,
        id,
        tag: Some(0),
        qos: 1,
        retain: false,
        dup: false,
        ids: 0,
        expiry: None,
    };
    breaks("nobody did the work", one, world(asked, &[&publish(1, 0), &[give(1)]]));
    keeps(one, world(asked, &[&publish(1, 0), &[give(1), give(2), Fact::Settled { conn: 2, id: 2 }]]));
    keeps(one, world(asked, &[&publish(1, 0), &[dead("$queue/jobs", "1", "deliveries exhausted")]]));
    let five: Vec<Fact> = (1..6).map(give).collect();
    breaks("for the 5th time", one, world(asked, &[&publish(1, 0), &five]));
}

#[test]
fn wills() {
    let will = &[sent(14, 2)];
    let asked = ask(11, 2);
    let dying = |delay| {
        let will = Some(Will { tag: 0, delay });
        [
            Fact::Connect { conn: 5, who: 8, clean: false, lasting: EVER, window: 1, will },
            Connack { conn: 5, present: false },
        ]
    };
    let back = [connect(6, 8), Connack { conn: 6, present: true }];
    let gone = |polite| [Fact::Gone { conn: 5, polite }];
    breaks("is lost for c3", will, world(asked, &[&dying(0), &gone(false), &back]));
    keeps(will, world(asked, &[&dying(0), &gone(false), &[deliver(1, 0)], &take(1, 0), &back]));
    keeps(will, world(asked, &[&dying(1), &gone(false), &back]));
    breaks(
        "was not to be published",
        will,
        world(asked, &[&dying(1), &gone(false), &[deliver(1, 0)], &back]),
    );
    breaks("said goodbye", will, world(asked, &[&dying(0), &gone(true), &[deliver(1, 0)]]));
    breaks("back in time", will, world(asked, &[&dying(1), &gone(false), &back, &[deliver(1, 0)]]));
    // A crash breaks connections, too.
    let crash = [Closed, Opened, connect(7, SUBSCRIBER), Connack { conn: 7, present: true }];
    breaks("is lost for c3", will, world(asked, &[&dying(0), &crash, &back]));
    // Who had subscribed before the crash, and is told by its end, may not be told.
    keeps(will, world(asked, &[&dying(0), &[Fact::Stopping], &crash, &back]));
}

#[test]
fn publishers_of_lines() {
    use LineFact::{Done, Error, Held, Let, Put};
    let one = &[Sent { by: PAM, line: true, ..sent(L1, 2) }, Sent { by: PAM, line: true, ..sent(L1, 2) }];
    let asked = ask(9, 2);
    let pam = |fact| line(7, PAM, fact);
    let held = [pam(Put { tag: 0 }), pam(Held { tag: 0, name: 1 })];
    let released = [pam(Let { name: 1 }), pam(Done { name: 1 })];
    keeps(one, world(asked, &[&held]));
    breaks("was not released", one, world(asked, &[&held, &[deliver(1, 0)]]));
    breaks("is lost for c3", one, world(asked, &[&held, &released]));
    keeps(one, world(asked, &[&held, &released, &[deliver(1, 0)], &take(1, 0)]));
    breaks(
        "of message 0 and of 1",
        one,
        world(asked, &[&held, &[pam(Put { tag: 1 }), pam(Held { tag: 1, name: 1 })]]),
    );
    breaks("nothing was held", one, world(asked, &[&released]));
    let why = "ERROR \"unknown msgId\"".to_owned();
    let error = pam(Error { to: Some(Box::new(Let { name: 1 })), why });
    breaks("its PUBREL is answered", one, world(asked, &[&held, &[error]]));
}

#[test]
fn consumers_of_lines() {
    use LineFact::{
        Completed, Deliver, Error, Received, Recorded, Released, Settled, Sub, Subbed, Unsub, Unsubbed,
    };
    let two = &[sent(L1, 2), sent(L1, 2)];
    let amy = |fact| line(7, AMY, fact);
    let subscribed = [amy(Sub { topic: L1 }), amy(Subbed { topic: L1 })];
    let came = |name, tag| amy(Deliver { topic: L1, name, tag: Some(tag) });
    let app = |tag| Fact::App { who: AMY, tag, retain: false };
    let taken = |name, tag| {
        vec![
            app(tag),
            amy(Received { name }),
            amy(Recorded { name }),
            amy(Released { name }),
            amy(Settled { name }),
        ]
    };
    let with = |rest: &[&[Fact]]| {
        let mut parts: Vec<&[Fact]> = vec![&subscribed];
        parts.extend(rest);
        world(ask(3, 2), &parts)
    };
    let (first, second) = (publish(1, 0), publish(2, 1));
    breaks("is lost for 14", two, with(&[&first]));
    keeps(two, with(&[&first, &[came(1, 0)], &taken(1, 0), &[amy(Completed { name: 1 })]]));
    breaks("0 times", two, with(&[&first, &[came(1, 0)]]));
    breaks("was not published", two, with(&[&[came(1, 0)]]));
    breaks("did not subscribe", two, world(ask(3, 2), &[&first, &[came(1, 0)]]));
    let left = [amy(Unsub { topic: L1 }), amy(Unsubbed { topic: L1 })];
    breaks("did not subscribe", two, with(&[&first, &left, &[came(1, 0)]]));
    breaks("is on its way", two, with(&[&first, &second, &[came(1, 0), came(2, 1)]]));
    breaks(
        "of (8, Some(0), None) and of (8, Some(1), None)",
        two,
        with(&[&first, &second, &[came(1, 0)], &taken(1, 0), &[came(1, 1)]]),
    );
    breaks("under another id", two, with(&[&first, &[came(1, 0)], &taken(1, 0), &[came(2, 0)]]));
    breaks("again after its PUBREC", two, with(&[&first, &[came(1, 0)], &taken(1, 0), &[came(1, 0)]]));
    breaks("comes to 14 after", two, with(&[&first, &second, &[came(2, 1)], &taken(2, 1), &[came(1, 0)]]));
    breaks("6th time", two, with(&[&first, &vec![came(1, 0); 6]]));
    breaks("no PUBREC came", two, with(&[&first, &[came(1, 0), amy(Released { name: 1 })]]));
    let over = [amy(Completed { name: 1 }), amy(Released { name: 1 })];
    breaks("after its PUBCOMP", two, with(&[&first, &[came(1, 0)], &taken(1, 0), &over]));
    breaks("all was settled", two, with(&[&first, &[Drained, came(1, 0)]]));
    let why = "ERROR \"unknown msgId\"".to_owned();
    let unknown = [amy(Received { name: 1 }), amy(Error { to: Some(Box::new(Received { name: 1 })), why })];
    breaks("it is on its way", two, with(&[&first, &[came(1, 0)], &unknown]));
    // Parked, brought back, and not sent again yet.
    let end = [amy(Completed { name: 1 })];
    keeps(
        two,
        with(&[&first, &vec![came(1, 0); 5], &subscribed, &unknown, &[came(1, 0)], &taken(1, 0), &end]),
    );
}

#[test]
fn a_refusal_that_nobody_heard_of() {
    let two = &[sent(A1, 2), sent(A1, 2)];
    let first = |tag| Fact::Publish { conn: 1, id: tag as u16 + 1, tag, dup: false };
    let again = |tag| Fact::Publish { conn: 3, id: tag as u16 + 1, tag, dup: true };
    let taken = |tag| Fact::Taken { conn: 3, id: tag as u16 + 1, ok: true };
    let back = [
        Closed,
        Opened,
        connect(3, PUBLISHER),
        Connack { conn: 3, present: true },
        connect(2, SUBSCRIBER),
        Connack { conn: 2, present: true },
    ];
    let published = [first(0), first(1)];
    let facts = world(
        ask(0, 2),
        &[
            &published,
            &back,
            &[again(0), taken(0), again(1), taken(1)],
            &[deliver(1, 1)],
            &take(1, 1),
            &[deliver(2, 0)],
            &take(2, 0),
        ],
    );
    assert_eq!(verdict_on(true, two, facts.clone()), Ok(()), "the disk was full for the first one alone");
    breaks("comes to c3 after", two, facts);
}

#[test]
fn a_goodbye_and_the_end_of_its_transport_are_one_end() {
    let one = &[sent(A1, 2)];
    let gone = |polite| [Fact::Gone { conn: 2, polite }];
    let clean = Fact::Connect { conn: 3, who: SUBSCRIBER, clean: true, lasting: EVER, window: 2, will: None };
    let anew = [clean, Connack { conn: 3, present: false }];
    // What was taken while it was there had to come; what was taken after it may have waited, and die with the session.
    breaks("is lost for c3", one, world(ask(0, 2), &[&publish(1, 0), &gone(true), &gone(false), &anew]));
    keeps(one, world(ask(0, 2), &[&gone(true), &publish(1, 0), &gone(false), &anew]));
}

#[test]
fn lines_that_are_no_commands() {
    let reader = |fact| line(7, READER, fact);
    let subscribed = [reader(LineFact::Sub { topic: LETTERS }), reader(LineFact::Subbed { topic: LETTERS })];
    let junk = [line(8, PAM, LineFact::Junk { junk: 1 }), line(8, PAM, LineFact::Refused { junk: 1 })];
    let letter = reader(LineFact::Letter { name: 1, tag: None, junk: Some(1) });
    let facts = |parts: &[&[Fact]]| parts.concat();
    breaks("line 1 was no command", &[], facts(&[&[Opened], &subscribed, &junk]));
    keeps(&[], facts(&[&[Opened], &subscribed, &junk, &[letter]]));
    keeps(&[], facts(&[&[Opened], &junk, &subscribed]));
}
