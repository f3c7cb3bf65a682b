//! Messages from one door to the other.

use super::rig::{Rig, messages, publish, pubrec, text};
use crate::broker::{ListenerConfig, Peer};
use crate::codec::{Ack, Packet, PacketId, Publish, Qos, ReasonCode, Version};
use crate::lines::DoorListener;
use bytes::BytesMut;
use std::sync::Arc;

fn published(packets: &[Packet]) -> Vec<(Vec<u8>, Qos, Option<String>)> {
    let publishes = packets.iter().filter_map(|packet| match packet {
        Packet::Publish(publish) => Some(publish),
        _ => None,
    });
    publishes
        .map(|p| {
            let kind = p.properties.as_ref().and_then(|properties| properties.content_type.as_deref());
            (p.payload.to_vec(), p.qos, kind.map(str::to_owned))
        })
        .collect()
}

#[test]
fn what_comes_at_qos_0_waits_for_its_record_too() {
    let mut rig = Rig::new();
    let amy = rig.subscriber("amy", "t");
    let client = rig.mqtt("m");
    let mut bytes = BytesMut::new();
    let publish = Packet::Publish(Publish::new(text("t"), b"on".to_vec()));
    publish.encode(Version::V5, &mut bytes).unwrap();
    rig.doors.input(client, &mut bytes, rig.now);
    // Its name is that of its record: after a crash another message would have it.
    assert_eq!(rig.hear(amy), [""; 0]);
    assert_eq!(messages(&rig.settle(amy)), ["on"]);
}

#[test]
fn what_is_published_in_lines_arrives_over_mqtt() {
    let mut rig = Rig::new();
    let subscriber = rig.mqtt("s");
    rig.mqtt_subscribe(subscriber, "a/#");
    rig.packets(subscriber);
    let publisher = rig.publisher();
    rig.put(publisher, "a/b", "{\"n\": 1}");
    rig.put(publisher, "a/b", "\"on\"");
    rig.put(publisher, "a/b", "17");
    let json = Some("application/json".to_owned());
    assert_eq!(
        published(&rig.packets(subscriber)),
        [
            (b"{\"n\": 1}".to_vec(), Qos::ExactlyOnce, json.clone()),
            (b"on".to_vec(), Qos::ExactlyOnce, Some("text/plain".to_owned())),
            (b"17".to_vec(), Qos::ExactlyOnce, json),
        ]
    );
}

#[test]
fn what_is_published_over_mqtt_arrives_in_lines_whatever_its_qos() {
    let mut rig = Rig::new();
    let amy = rig.subscriber("amy", "a/b");
    let publisher = rig.mqtt("p");
    rig.mqtt_publish(publisher, "a/b", b"off", Qos::AtMostOnce, 0);
    rig.mqtt_publish(publisher, "a/b", b"{\"n\":\n1}", Qos::AtLeastOnce, 1);
    rig.mqtt_publish(publisher, "a/b", &[0xff], Qos::ExactlyOnce, 2);
    rig.mqtt_publish(publisher, "a/c", b"another topic", Qos::ExactlyOnce, 3);
    let heard = rig.settle(amy);
    assert_eq!(messages(&heard), ["off"]);
    // All of them are kept now, whatever MQTT would have promised.
    rig.crash();
    let amy = rig.consumer("amy");
    let again = rig.settle(amy);
    assert_eq!(again, heard);
    let next = rig.take(amy, &again[0]);
    assert_eq!(messages(&next), [super::rig::json("{\"n\":1}")]);
    let next = rig.take(amy, &next[0]);
    assert_eq!(messages(&next), [super::rig::json("{\"base64\":\"/w==\"}")]);
    assert_eq!(rig.take(amy, &next[0]), [""; 0]);
}

#[test]
fn retained_messages_are_history() {
    let mut rig = Rig::new();
    let publisher = rig.mqtt("p");
    let mut kept = Publish::new(text("t"), "old");
    kept.retain = true;
    rig.packet(publisher, &Packet::Publish(kept));
    let amy = rig.subscriber("amy", "t");
    assert_eq!(rig.settle(amy), [""; 0]);
}

#[test]
fn no_mqtt_client_gets_the_session_of_a_consumer() {
    let mut rig = Rig::new();
    let amy = rig.subscriber("amy", "t");
    for client in ["$lines/amy/t", "$lines//held", "$lines/"] {
        let thief = rig.mqtt(client);
        let packets = rig.packets(thief);
        let Some(Packet::Connack(connack)) = packets.first() else { panic!("{packets:?}") };
        assert_eq!(connack.reason, ReasonCode::ClientIdentifierNotValid);
        assert!(rig.closes(thief));
    }
    let publisher = rig.publisher();
    rig.put(publisher, "t", "1");
    assert_eq!(messages(&rig.settle(amy)), [1]);
}

#[test]
fn both_doors_share_one_log_and_its_exchanges() {
    let mut rig = Rig::new();
    let amy = rig.subscriber("amy", "t");
    let subscriber = rig.mqtt("s");
    rig.mqtt_subscribe(subscriber, "t");
    rig.packets(subscriber);
    let publisher = rig.publisher();
    assert_eq!(rig.ask(publisher, &publish("t", "1")).len(), 1);
    let publisher = rig.mqtt("p");
    rig.mqtt_publish(publisher, "t", b"2", Qos::ExactlyOnce, 9);
    let heard = rig.settle(amy);
    assert_eq!(messages(&heard), ["2"], "1 is not released");
    rig.send(amy, &pubrec(super::rig::name_of(&heard[0]), "t"));
    rig.packet(subscriber, &Packet::Pubrec(Ack::new(PacketId::MIN)));
    rig.crash();
    let publisher = rig.publisher();
    assert_eq!(rig.ask(publisher, &super::rig::pubrel(1)).len(), 1);
    let amy = rig.consumer("amy");
    let owed = rig.settle(amy);
    assert_eq!(owed, [super::rig::pubrel_out(super::rig::name_of(&heard[0]))]);
    let subscriber = rig.mqtt("s");
    let packets = rig.packets(subscriber);
    assert!(packets.contains(&Packet::Pubrel(Ack::new(PacketId::MIN))), "{packets:?}");
    assert_eq!(published(&packets).len(), 1);
}

#[test]
fn a_listener_without_anonymous_clients_takes_no_lines() {
    let mut rig = Rig::new();
    let rules = Arc::new(ListenerConfig { allow_anonymous: false, ..ListenerConfig::default() });
    let listener = DoorListener::Lines(crate::lines::Role::Publishers, rules);
    assert!(rig.doors.connect(&listener, Peer::default(), rig.now).is_err());
}
