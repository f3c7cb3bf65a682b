//! Which messages reach whom: filters (4.7), subscriptions that overlap (3.3.4), shared ones (4.8), `$`-topics.

use std::collections::HashSet;
use std::time::Duration;

use crate::broker::Broker;
use crate::client::{Client, Connect};
use crate::support::turn;
use crate::wire::{Packet, Props, Publish, Value, Version, ack, prop};

const BOTH: [Version; 2] = [Version::V3, Version::V5];

fn with_id(id: u32) -> Props {
    Props::default().with(prop::SUBSCRIPTION_ID, Value::Var(id))
}

/// [MQTT-4.7.1-1], [MQTT-4.7.1-2], [MQTT-4.7.3-4]: what matches, and what does not.
#[test]
fn mqtt_4_7_1_filters_match_by_levels() {
    let _turn = turn();
    let broker = Broker::start();
    let mut publisher = broker.v5("match-pub");
    for (number, (filter, topic, matches)) in [
        ("sport/#", "sport", true),
        ("sport/#", "sport/", true),
        ("sport/#", "sport/a/b/c", true),
        ("sport/#", "sports", false),
        ("sport/+", "sport", false),
        ("sport/+", "sport/", true),
        ("sport/+", "sport/a", true),
        ("sport/+", "sport/a/b", false),
        ("+/+", "/finance", true),
        ("/+", "/finance", true),
        ("+", "/finance", false),
        ("+/a/+", "x/a/", true),
        ("#", "any/thing", true),
        ("a//b", "a//b", true),
        ("a/+/b", "a//b", true),
        ("a//b", "a/b", false),
        ("ACCOUNTS", "Accounts", false),
        ("with space/ä/日本", "with space/ä/日本", true),
        ("a\u{308}", "ä", false),
        ("/", "/", true),
        ("+/+", "/", true),
        ("#", "/", true),
    ]
    .into_iter()
    .enumerate()
    {
        for version in BOTH {
            let mut subscriber = Connect::new(version, &format!("match-{number}")).open(broker.port());
            assert_eq!(subscriber.subscribe(filter, 1), 1);
            let text = format!("{number} {version:?}");
            publisher.publish(topic, &text, 1);
            if matches {
                let message = subscriber.message();
                assert_eq!((message.topic.as_str(), message.text()), (topic, text.as_str()), "{filter}");
            } else {
                subscriber.quiet();
            }
        }
    }
}

/// [MQTT-4.7.2-1]: wildcards at the front do not match topics that begin with `$`; `$SYS/#` does.
#[test]
fn mqtt_4_7_2_1_wildcards_do_not_match_dollar_topics() {
    let _turn = turn();
    let broker = Broker::start();
    let mut wild = broker.v5("dollar-wild");
    wild.subscribe("#", 1);
    wild.subscribe("+/broker/#", 1);
    wild.subscribe("+/#", 1);
    let mut named = broker.v5("dollar-named");
    assert!(named.subscribe("$SYS/#", 1) < 0x80);
    let message = named.message();
    assert!(message.topic.starts_with("$SYS/"), "{message:?}");
    wild.quiet_for(Duration::from_secs(2));
}

/// 4.3.3: the QoS is the lower of what was published and what was granted.
#[test]
fn mqtt_3_8_4_8_the_qos_is_the_lower_of_both() {
    let _turn = turn();
    let broker = Broker::start();
    for version in BOTH {
        let mut subscriber = Connect::new(version, "qos-sub").open(broker.port());
        let mut publisher = Connect::new(version, "qos-pub").open(broker.port());
        for granted in 0..=2 {
            assert_eq!(subscriber.subscribe("qos/lower", granted), granted);
            for published in 0..=2 {
                publisher.publish("qos/lower", "m", published);
                assert_eq!(subscriber.message().qos, granted.min(published));
            }
        }
        subscriber.quiet();
    }
}

/// 3.3.4, [MQTT-3.3.5-1] in 3.1.1: subscriptions that overlap give one copy, at the highest QoS, with all identifiers.
#[test]
fn mqtt_3_3_4_overlapping_subscriptions_give_one_copy() {
    let _turn = turn();
    let broker = Broker::start();
    for version in BOTH {
        let mut subscriber = Connect::new(version, "overlap").open(broker.port());
        for (id, filter, qos) in [(3, "overlap/#", 0), (1, "overlap/+", 2), (2, "overlap/a", 1), (9, "x", 2)]
        {
            subscriber.subscribe_all(&[(filter, qos)], with_id(id));
        }
        broker.v5("overlap-pub").publish("overlap/a", "m", 2);
        let message = subscriber.message();
        assert_eq!((message.text(), message.qos), ("m", 2), "{version:?}");
        if version == Version::V5 {
            assert_eq!(message.props.subscription_ids(), [1, 2, 3], "[MQTT-3.3.4-4]");
        }
        subscriber.quiet();
    }
}

/// [MQTT-3.8.4-3], 3.8.2.1.2: a subscription made again takes the place of the old one, with its identifier and QoS.
#[test]
fn mqtt_3_8_4_3_a_subscription_made_again_replaces_the_old() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v5("again");
    client.subscribe_all(&[("again", 2)], with_id(5));
    client.subscribe_all(&[("again", 1)], with_id(268_435_455));
    client.publish("again", "m", 2);
    let message = client.message();
    assert_eq!((message.qos, message.props.subscription_ids()), (1, vec![268_435_455]));
    client.subscribe("again", 0);
    client.publish("again", "n", 2);
    let message = client.message();
    assert_eq!((message.qos, message.props.subscription_ids()), (0, vec![]));
    client.quiet();
}

/// [MQTT-3.8.4-5], -6, [MQTT-3.9.3-1]: many filters in one SUBSCRIBE, answered one by one, in order.
#[test]
fn mqtt_3_8_4_6_each_filter_has_its_code() {
    let _turn = turn();
    let broker = Broker::start();
    for version in BOTH {
        let mut client = Connect::new(version, "many").open(broker.port());
        let filters = [("m/0", 0), ("m/1", 1), ("m/2", 2), ("m/+", 1), ("m/0", 2)];
        assert_eq!(client.subscribe_all(&filters, Props::default()), [0, 1, 2, 1, 2]);
        client.publish("m/0", "x", 2);
        assert_eq!(client.message().qos, 2, "the later of two in one packet counts");
        client.quiet();
    }
}

/// [MQTT-3.10.4-1] to -6, 3.11.3: unsubscribing stops new messages; 5.0 says for each filter whether there was one.
#[test]
fn mqtt_3_10_4_unsubscribe() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v5("unsub");
    client.subscribe("u/a", 1);
    assert_eq!(client.unsubscribe("u/a"), [0]);
    assert_eq!(client.unsubscribe("u/a"), [0x11], "no subscription existed");
    let mut old = broker.v3("unsub-3");
    old.subscribe("u/+", 1);
    assert_eq!(
        old.unsubscribe("u/a"),
        [0_u8; 0],
        "[MQTT-3.10.4-1]: compared by character; 3.1.1 has no codes"
    );
    client.publish("u/a", "m", 1);
    assert_eq!(old.texts(1), ["m"]);
    old.unsubscribe("u/+");
    client.publish("u/a", "n", 1);
    old.quiet();
    client.quiet();
}

/// [MQTT-3.10.4-3]: what is in flight when its subscription ends is still finished.
#[test]
fn mqtt_3_10_4_3_unsubscribe_finishes_what_is_in_flight() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v5("unsub-flight");
    client.subscribe("uf", 2);
    broker.v5("uf-pub").publish("uf", "m", 2);
    let message = client.raw_message();
    client.unsubscribe("uf");
    client.finish(&message);
    client.quiet();
}

/// 4.8.2: each message goes to one member; members that leave get no more; groups and plain ones are apart.
#[test]
fn mqtt_4_8_2_a_group_gets_each_message_once() {
    let _turn = turn();
    let broker = Broker::start();
    let mut members: Vec<Client> = (0..3).map(|number| broker.v5(&format!("member-{number}"))).collect();
    for member in &mut members {
        assert_eq!(member.subscribe("$share/g/sh/+", 2), 2);
    }
    let mut other = broker.v5("other-group");
    other.subscribe("$share/h/sh/#", 1);
    let mut plain = broker.v5("plain");
    plain.subscribe("sh/#", 2);
    let mut old = broker.v3("old-member");
    assert!(old.subscribe("$share/old/sh/#", 1) <= 2, "3.1.1 clients may share");
    let mut publisher = broker.v5("sh-pub");
    for number in 0..30 {
        publisher.publish(&format!("sh/{number}"), &number.to_string(), number % 3);
    }
    let everything: HashSet<String> = (0..30).map(|number: u8| number.to_string()).collect();
    for whole in [&mut other, &mut plain, &mut old] {
        let got: Vec<String> = whole.texts(30);
        assert_eq!(got.iter().cloned().collect::<HashSet<_>>(), everything);
    }
    let got = share_out(&mut members, 30);
    assert_eq!(got.iter().cloned().collect::<HashSet<_>>(), everything);
    members.pop().expect("three").disconnect();
    assert_eq!(members[1].unsubscribe("$share/g/sh/+"), [0]);
    publisher.publish("sh/last", "last", 1);
    assert_eq!(members[0].message().text(), "last");
    members[1].quiet();
}

/// The messages of a group's members, `count` in all.
fn share_out(members: &mut [Client], count: usize) -> Vec<String> {
    let mut got = Vec::new();
    let end = std::time::Instant::now() + crate::support::PATIENCE;
    while got.len() < count {
        assert!(std::time::Instant::now() < end, "only {got:?}");
        for member in members.iter_mut() {
            while let Some(packet) = member.poll(Duration::from_millis(5)) {
                match packet {
                    Packet::Publish(message) => {
                        member.finish(&message);
                        got.push(message.text().to_owned());
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    for member in members {
        member.quiet();
    }
    got
}

/// 4.8.2: while some member is there nobody's messages wait for one that is not, at QoS 0 to 2.
#[test]
fn mqtt_4_8_2_absent_members_get_nothing_new() {
    let _turn = turn();
    let broker = Broker::start();
    let away = Connect::durable(Version::V5, "away-member");
    let mut gone = away.open(broker.port());
    gone.subscribe("$share/aw/aw", 2);
    gone.cut();
    let mut here = broker.v5("here-member");
    here.subscribe("$share/aw/aw", 2);
    let mut publisher = broker.v5("aw-pub");
    // The broker may notice a cut a little later than we make it.
    std::thread::sleep(Duration::from_millis(100));
    for number in 0..20 {
        publisher.publish("aw", &number.to_string(), 2);
    }
    assert_eq!(here.texts(20).len(), 20);
}

/// [MQTT-4.8.2-5]: a QoS 2 message whose exchange with a member has begun is never given to another.
/// [MQTT-4.8.2-4]: it is finished when that member comes back.
#[test]
fn mqtt_4_8_2_5_an_exchange_is_never_handed_on() {
    let _turn = turn();
    let broker = Broker::start();
    let first = Connect::durable(Version::V5, "exchange-1");
    let mut one = first.open(broker.port());
    one.subscribe("$share/ex/ex", 2);
    broker.v5("ex-pub").publish("ex", "m", 2);
    let message = one.raw_message();
    one.say(&ack(crate::wire::PUBREC, message.id));
    one.acked(crate::wire::PUBREL, message.id);
    let mut two = broker.v5("exchange-2");
    two.subscribe("$share/ex/ex", 2);
    one.cut();
    two.quiet_for(Duration::from_millis(500));
    let mut one = first.open(broker.port());
    one.acked(crate::wire::PUBREL, message.id);
    one.say(&ack(crate::wire::PUBCOMP, message.id));
    one.quiet();
    two.quiet();
}

/// Several thousand filters of one client and one message that a few match: nobody is forgotten, nothing is slow.
#[test]
fn many_subscriptions() {
    let _turn = turn();
    let broker = Broker::start();
    let mut client = broker.v5("thousands");
    for chunk in 0..40 {
        let names: Vec<String> = (0..50).map(|number| format!("t/{chunk}/{number}/+")).collect();
        let filters: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        assert_eq!(client.subscribe_all(&filters, Props::default()), [1; 50]);
    }
    let mut publisher = broker.v5("thousands-pub");
    for number in 0..50 {
        let topic = format!("t/{}/{number}/x", number % 40);
        publisher.publish_this(Publish::new(&topic, &topic, 1));
        assert_eq!(client.message().text(), topic);
    }
    client.quiet();
}
