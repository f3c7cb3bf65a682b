//! Packets as they should be.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;
use postroad_mqtt::codec::{
    Ack, AckProperties, Auth, AuthProperties, Connack, ConnackProperties, Connect, ConnectProperties,
    Direction, Disconnect, DisconnectProperties, Packet, PacketId, Publish, PublishProperties, Qos,
    ReasonCode, RetainHandling, Suback, Subscribe, SubscribeProperties, Subscription, SubscriptionId,
    Unsuback, Unsubscribe, UnsubscribeProperties, Utf8, Version, Will, WillProperties,
};

use super::{ALL, BOTH, Case, DOWN, UP, V3, V5, V31, V311, bytes};

fn id(number: u16) -> PacketId {
    PacketId::new(number).unwrap()
}

fn text(text: &str) -> Utf8 {
    Utf8::try_from(text).unwrap()
}

fn sub_id(number: u32) -> SubscriptionId {
    SubscriptionId::new(number).unwrap()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(Utf8, Utf8)> {
    pairs.iter().map(|(name, value)| (text(name), text(value))).collect()
}

#[derive(Default)]
struct Table(Vec<Case>);

impl Table {
    fn case(
        &mut self,
        name: &'static str,
        versions: &'static [Version],
        directions: &'static [Direction],
        wire: &str,
        packet: impl Into<Packet>,
    ) {
        let (bytes, expected) = (bytes(wire), Ok(packet.into()));
        self.0.push(Case { name, versions, directions, bytes, expected, canonical: true });
    }

    /// The last case is not how it would be written here.
    fn loose(&mut self) {
        self.0.last_mut().unwrap().canonical = false;
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut table = Table::default();
    connect(&mut table);
    connack(&mut table);
    publish(&mut table);
    acks(&mut table);
    subscribe(&mut table);
    rest(&mut table);
    table.0
}

fn connect(t: &mut Table) {
    let plain = |version| Connect::new(version, text("a"));
    t.case("connect 3.1", V31, UP, "10 0F 00 06 4D 51 49 73 64 70 03 02 00 3C 00 01 61", plain(Version::V31));
    t.case("connect 3.1.1", V311, UP, "10 0D 00 04 4D 51 54 54 04 02 00 3C 00 01 61", plain(Version::V311));
    t.case("connect 5", V5, UP, "10 0E 00 04 4D 51 54 54 05 02 00 3C 00 00 01 61", plain(Version::V5));
    t.case("connect names its own version", V311, UP, "10 ~ 'MQTT' 05 02 003C {} 'a'", plain(Version::V5));
    let keep = Connect { clean_start: false, keep_alive: 0, ..plain(Version::V311) };
    t.case("connect without clean session", V311, UP, "10 ~ 'MQTT' 04 00 0000 'a'", keep.clone());
    let keep = Connect { version: Version::V5, ..keep };
    t.case("connect without clean start", V5, UP, "10 ~ 'MQTT' 05 00 0000 {} 'a'", keep);
    let empty = |version| Connect::new(version, text(""));
    t.case("connect without a client id 3.1.1", V311, UP, "10 ~ 'MQTT' 04 02 003C ''", empty(Version::V311));
    t.case("connect without a client id 5", V5, UP, "10 ~ 'MQTT' 05 02 003C {} ''", empty(Version::V5));
    let keep = Connect { clean_start: false, ..empty(Version::V5) };
    t.case("connect without a client id, resuming 5", V5, UP, "10 ~ 'MQTT' 05 00 003C {} ''", keep);
    let long = Connect::new(Version::V31, text("a client id of 31 bytes is long"));
    let wire = "10 ~ 'MQIsdp' 03 02 003C 'a client id of 31 bytes is long'";
    t.case("connect 3.1 with a long client id", V31, UP, wire, long);
    let utf8 = Connect::new(Version::V311, text("é€😀\u{feff}"));
    t.case(
        "connect with two, three and four bytes a character",
        V311,
        UP,
        "10 ~ 'MQTT' 04 02 003C 'é€😀\u{feff}'",
        utf8,
    );
    let user = |version| Connect { user_name: Some(text("u")), ..plain(version) };
    t.case("connect user 3.1", V31, UP, "10 ~ 'MQIsdp' 03 82 003C 'a' 'u'", user(Version::V31));
    t.case("connect user 3.1.1", V311, UP, "10 ~ 'MQTT' 04 82 003C 'a' 'u'", user(Version::V311));
    t.case("connect user 5", V5, UP, "10 ~ 'MQTT' 05 82 003C {} 'a' 'u'", user(Version::V5));
    let both = |version| Connect { password: Some("p\0\u{1}".into()), ..user(version) };
    t.case(
        "connect user, password 3.1",
        V31,
        UP,
        "10 ~ 'MQIsdp' 03 C2 003C 'a' 'u' 0003 70 00 01",
        both(Version::V31),
    );
    t.case(
        "connect user, password 3.1.1",
        V311,
        UP,
        "10 ~ 'MQTT' 04 C2 003C 'a' 'u' 0003 70 00 01",
        both(Version::V311),
    );
    t.case(
        "connect user, password 5",
        V5,
        UP,
        "10 ~ 'MQTT' 05 C2 003C {} 'a' 'u' 0003 70 00 01",
        both(Version::V5),
    );
    let password = Connect { password: Some("p".into()), ..plain(Version::V5) };
    t.case("connect password alone 5", V5, UP, "10 ~ 'MQTT' 05 42 003C {} 'a' 'p'", password);
    let empty = Connect { user_name: Some(text("")), password: Some(Bytes::new()), ..plain(Version::V311) };
    t.case("connect with empty user and password", V311, UP, "10 ~ 'MQTT' 04 C2 003C 'a' '' ''", empty);

    let will = |qos, retain, properties| {
        Some(Will { topic: text("w/t"), payload: "gone".into(), qos, retain, properties })
    };
    let with_will = |version, qos, retain| Connect { will: will(qos, retain, None), ..plain(version) };
    let wire = "10 ~ 'MQTT' 04 06 003C 'a' 'w/t' 'gone'";
    t.case("connect will 0", V311, UP, wire, with_will(Version::V311, Qos::AtMostOnce, false));
    let wire = "10 ~ 'MQTT' 04 0E 003C 'a' 'w/t' 'gone'";
    t.case("connect will 1", V311, UP, wire, with_will(Version::V311, Qos::AtLeastOnce, false));
    let wire = "10 ~ 'MQTT' 04 36 003C 'a' 'w/t' 'gone'";
    t.case("connect will 2, retained", V311, UP, wire, with_will(Version::V311, Qos::ExactlyOnce, true));
    let wire = "10 ~ 'MQIsdp' 03 26 003C 'a' 'w/t' 'gone'";
    t.case("connect will 3.1", V31, UP, wire, with_will(Version::V31, Qos::AtMostOnce, true));
    let wire = "10 ~ 'MQTT' 05 16 003C {} 'a' {} 'w/t' 'gone'";
    t.case("connect will 5", V5, UP, wire, with_will(Version::V5, Qos::ExactlyOnce, false));
    let empty = Will { payload: Bytes::new(), ..will(Qos::AtMostOnce, false, None).unwrap() };
    let wire = "10 ~ 'MQTT' 04 06 003C 'a' 'w/t' ''";
    t.case(
        "connect with an empty will",
        V311,
        UP,
        wire,
        Connect { will: Some(empty), ..plain(Version::V311) },
    );
    let properties = WillProperties {
        payload_format_indicator: Some(true),
        message_expiry_interval: Some(60),
        content_type: Some(text("text/plain")),
        response_topic: Some(text("re")),
        correlation_data: Some(Bytes::from_static(&[0, 255])),
        will_delay_interval: Some(5),
        user_properties: pairs(&[("k", "v")]),
    };
    let wire = "10 ~ 'MQTT' 05 06 003C {} 'a'
        { 01 01 02 0000003C 03 'text/plain' 08 're' 09 0002 00 FF 18 00000005 26 'k' 'v' } 'w/t' 'gone'";
    let will = will(Qos::AtMostOnce, false, Some(Box::new(properties)));
    t.case("connect with every will property", V5, UP, wire, Connect { will, ..plain(Version::V5) });
    let properties = ConnectProperties {
        session_expiry_interval: Some(u32::MAX),
        authentication_method: Some(text("SCRAM-SHA-256")),
        authentication_data: Some("n,,n=u".into()),
        request_problem_information: Some(false),
        request_response_information: Some(true),
        receive_maximum: NonZeroU16::new(20),
        topic_alias_maximum: Some(0),
        maximum_packet_size: NonZeroU32::new(65536),
        user_properties: pairs(&[("k", "1"), ("k", "2"), ("", "")]),
    };
    let wire =
        "10 ~ 'MQTT' 05 02 003C { 11 FFFFFFFF 15 'SCRAM-SHA-256' 16 'n,,n=u' 17 00 19 01 21 0014 22 0000
        27 00010000 26 'k' '1' 26 'k' '2' 26 '' '' } 'a'";
    t.case("connect with every property", V5, UP, wire, Connect { properties, ..plain(Version::V5) });
    let properties = ConnectProperties {
        session_expiry_interval: Some(1),
        receive_maximum: NonZeroU16::new(2),
        ..ConnectProperties::default()
    };
    let wire = "10 ~ 'MQTT' 05 02 003C { 21 0002 11 00000001 } 'a'";
    t.case(
        "connect with properties in another order",
        V5,
        UP,
        wire,
        Connect { properties, ..plain(Version::V5) },
    );
    t.loose();
}

fn connack(t: &mut Table) {
    t.case("connack 3", V3, DOWN, "20 02 00 00", Connack::accepted(false));
    t.case("connack 3.1.1 with a session", V311, DOWN, "20 02 01 00", Connack::accepted(true));
    t.case("connack 3.1 reserves the first byte", V31, DOWN, "20 02 01 00", Connack::accepted(false));
    t.loose();
    t.case("connack 5", V5, DOWN, "20 03 00 00 00", Connack::accepted(false));
    t.case("connack 5 with a session", V5, DOWN, "20 03 01 00 00", Connack::accepted(true));
    for (wire, reason) in [
        ("20 02 00 01", ReasonCode::UnsupportedProtocolVersion),
        ("20 02 00 02", ReasonCode::ClientIdentifierNotValid),
        ("20 02 00 03", ReasonCode::ServerUnavailable),
        ("20 02 00 04", ReasonCode::BadUserNameOrPassword),
        ("20 02 00 05", ReasonCode::NotAuthorized),
    ] {
        t.case("connack 3 refused", V3, DOWN, wire, Connack::refused(reason));
    }
    t.case(
        "connack 5 refused",
        V5,
        DOWN,
        "20 03 00 84 00",
        Connack::refused(ReasonCode::UnsupportedProtocolVersion),
    );
    t.case(
        "connack 5 not authorized",
        V5,
        DOWN,
        "20 03 00 87 00",
        Connack::refused(ReasonCode::NotAuthorized),
    );
    let properties = ConnackProperties {
        session_expiry_interval: Some(10),
        assigned_client_identifier: Some(text("auto-1")),
        server_keep_alive: Some(30),
        authentication_method: Some(text("m")),
        authentication_data: Some("d".into()),
        response_information: Some(text("re/")),
        server_reference: Some(text("other")),
        reason_string: Some(text("why")),
        receive_maximum: NonZeroU16::new(65535),
        topic_alias_maximum: Some(16),
        maximum_qos: Some(true),
        retain_available: Some(false),
        maximum_packet_size: NonZeroU32::new(1),
        wildcard_subscription_available: Some(true),
        subscription_identifiers_available: Some(false),
        shared_subscription_available: Some(true),
        user_properties: pairs(&[("k", "v")]),
    };
    let wire = "20 ~ 00 00 { 11 0000000A 12 'auto-1' 13 001E 15 'm' 16 'd' 1A 're/' 1C 'other' 1F 'why' 21 FFFF 22 0010
        24 01 25 00 27 00000001 28 01 29 00 2A 01 26 'k' 'v' }";
    t.case("connack with every property", V5, DOWN, wire, Connack { properties, ..Connack::accepted(false) });
}

fn publish(t: &mut Table) {
    let plain = || Publish::new(text("a/b"), "hi");
    t.case("publish 0", V3, BOTH, "30 07 00 03 61 2F 62 68 69", plain());
    t.case("publish 0 in 5", V5, BOTH, "30 08 00 03 61 2F 62 00 68 69", plain());
    t.case("publish retained", V3, BOTH, "31 ~ 'a/b' \"hi\"", Publish { retain: true, ..plain() });
    let one = |number| Publish { qos: Qos::AtLeastOnce, packet_id: Some(id(number)), ..plain() };
    t.case("publish 1", V3, BOTH, "32 09 00 03 61 2F 62 00 0A 68 69", one(10));
    t.case("publish 1 in 5", V5, BOTH, "32 ~ 'a/b' 000A {} \"hi\"", one(10));
    t.case(
        "publish 1 again",
        ALL,
        BOTH,
        "3A ~ 'a/b' FFFF 00",
        Publish { dup: true, payload: Bytes::from_static(b"\0"), ..one(65535) },
    );
    t.0.last_mut().unwrap().versions = V3;
    let two = |number| Publish { qos: Qos::ExactlyOnce, packet_id: Some(id(number)), ..plain() };
    t.case("publish 2", V3, BOTH, "34 ~ 'a/b' 0001 \"hi\"", two(1));
    t.case("publish 2 in 5", V5, BOTH, "34 ~ 'a/b' 0001 {} \"hi\"", two(1));
    let wire = "3D ~ 'a/b' 0001 {} \"hi\"";
    t.case("publish 2 again, retained", V5, BOTH, wire, Publish { dup: true, retain: true, ..two(1) });
    t.case("publish 3.1 says dup at 0", V31, BOTH, "38 ~ 'a/b' \"hi\"", Publish { dup: true, ..plain() });
    t.case("publish nothing", V3, BOTH, "30 ~ 'a/b'", Publish::new(text("a/b"), ""));
    t.case("publish nothing in 5", V5, BOTH, "30 ~ 'a/b' {}", Publish::new(text("a/b"), ""));
    for name in [
        "/",
        "//",
        "/a",
        "a/",
        "a//b",
        " ",
        "a b",
        "$SYS/x",
        "$",
        "é€😀",
        "\u{1}",
        "\u{feff}a",
        "\u{7f}",
        "\u{9f}",
        "\u{ffff}",
        "\u{2a6d4}",
        ".",
        "*",
        ">",
    ] {
        let wire = format!("30 ~ '{name}'");
        t.case("publish to an odd topic", V3, BOTH, &wire, Publish::new(text(name), ""));
    }
    let long = "x".repeat(65535);
    t.case(
        "publish to the longest topic",
        V3,
        BOTH,
        &format!("30 ~ '{long}'"),
        Publish::new(text(&long), ""),
    );
    let deep = "/".repeat(127);
    t.case("publish to 128 levels", V3, BOTH, &format!("30 ~ '{deep}'"), Publish::new(text(&deep), ""));
    for len in [122, 123, 16_378, 16_379, 200_000] {
        // 127 and 128 bytes, 16383 and 16384: where the length gets a byte more.
        let payload = "p".repeat(len);
        let wire = format!("30 ~ 'a/b' \"{payload}\"");
        t.case("publish of some length", V3, BOTH, &wire, Publish::new(text("a/b"), payload));
    }
    let with = |properties| Publish { properties: Some(Box::new(properties)), ..plain() };
    let none = PublishProperties::default;
    let alias = PublishProperties { topic_alias: NonZeroU16::new(1), ..none() };
    t.case("publish with an alias", V5, BOTH, "30 ~ 'a/b' { 23 0001 } \"hi\"", with(alias.clone()));
    t.case(
        "publish by alias",
        V5,
        BOTH,
        "30 ~ '' { 23 0001 } \"hi\"",
        Publish { topic: text(""), ..with(alias) },
    );
    let format = PublishProperties { payload_format_indicator: Some(false), ..none() };
    t.case("publish bytes", V5, BOTH, "30 ~ 'a/b' { 01 00 } \"hi\"", with(format));
    let expiry = PublishProperties { message_expiry_interval: Some(0), ..none() };
    t.case("publish that expires at once", V5, BOTH, "30 ~ 'a/b' { 02 00000000 } \"hi\"", with(expiry));
    let ids = PublishProperties { subscription_ids: vec![sub_id(1)], ..none() };
    t.case("publish with a subscription id", V5, DOWN, "30 ~ 'a/b' { 0B 01 } \"hi\"", with(ids));
    let ids = PublishProperties {
        subscription_ids: [127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455, 127]
            .map(sub_id)
            .to_vec(),
        ..none()
    };
    let wire =
        "30 ~ 'a/b' { 0B 7F 0B 8001 0B FF7F 0B 808001 0B FFFF7F 0B 80808001 0B FFFFFF7F 0B 7F } \"hi\"";
    t.case("publish with many subscription ids", V5, DOWN, wire, with(ids));
    let empty = PublishProperties {
        content_type: Some(text("")),
        response_topic: Some(text("")),
        correlation_data: Some(Bytes::new()),
        user_properties: pairs(&[("", "")]),
        ..none()
    };
    let wire = "30 ~ 'a/b' { 03 '' 08 '' 09 '' 26 '' '' } \"hi\"";
    t.case("publish with empty properties", V5, BOTH, wire, with(empty));
    let every = PublishProperties {
        payload_format_indicator: Some(true),
        message_expiry_interval: Some(u32::MAX),
        content_type: Some(text("application/json")),
        response_topic: Some(text("re/1")),
        correlation_data: Some("c".into()),
        subscription_ids: vec![sub_id(2)],
        topic_alias: NonZeroU16::new(65535),
        user_properties: pairs(&[("a", "1"), ("b", "2"), ("a", "1")]),
    };
    let wire =
        "33 ~ 'a/b' 0002 { 02 FFFFFFFF 0B 02 23 FFFF 01 01 03 'application/json' 08 're/1' 09 'c' 26 'a' '1'
        26 'b' '2' 26 'a' '1' } \"hi\"";
    let packet = Publish { qos: Qos::AtLeastOnce, retain: true, packet_id: Some(id(2)), ..with(every) };
    t.case("publish with every property", V5, DOWN, wire, packet);
}

fn acks(t: &mut Table) {
    use Packet::{Puback, Pubcomp, Pubrec, Pubrel};
    let ack = |number, reason| Ack::with_reason(id(number), reason);
    t.case("puback", ALL, BOTH, "40 02 00 01", Puback(Ack::new(id(1))));
    t.case("pubrec", ALL, BOTH, "50 02 00 02", Pubrec(Ack::new(id(2))));
    t.case("pubrel", ALL, BOTH, "62 02 01 00", Pubrel(Ack::new(id(256))));
    t.case("pubcomp", ALL, BOTH, "70 02 FF FF", Pubcomp(Ack::new(id(65535))));
    t.case("pubrel 3.1 again", V31, BOTH, "6A 02 00 01", Pubrel(Ack::new(id(1))));
    t.loose();
    t.case("puback that says success", V5, BOTH, "40 03 00 01 00", Puback(Ack::new(id(1))));
    t.loose();
    t.case("pubrec that says no properties", V5, BOTH, "50 04 00 01 00 00", Pubrec(Ack::new(id(1))));
    t.loose();
    t.case("puback to nobody", V5, BOTH, "40 03 00 01 10", Puback(ack(1, ReasonCode::NoMatchingSubscribers)));
    t.case("puback refused", V5, BOTH, "40 03 00 01 97", Puback(ack(1, ReasonCode::QuotaExceeded)));
    t.case("pubrec refused", V5, BOTH, "50 03 00 01 91", Pubrec(ack(1, ReasonCode::PacketIdentifierInUse)));
    t.case(
        "pubrel unknown",
        V5,
        BOTH,
        "62 03 00 01 92",
        Pubrel(ack(1, ReasonCode::PacketIdentifierNotFound)),
    );
    t.case(
        "pubcomp unknown",
        V5,
        BOTH,
        "70 03 00 01 92",
        Pubcomp(ack(1, ReasonCode::PacketIdentifierNotFound)),
    );
    t.case(
        "pubcomp unknown, no properties",
        V5,
        BOTH,
        "70 04 00 01 92 00",
        Pubcomp(ack(1, ReasonCode::PacketIdentifierNotFound)),
    );
    t.loose();
    let why = || {
        Some(Box::new(AckProperties {
            reason_string: Some(text("why")),
            user_properties: pairs(&[("k", "v")]),
        }))
    };
    let with = |reason| Ack { properties: why(), ..ack(7, reason) };
    t.case(
        "puback and why",
        V5,
        BOTH,
        "40 ~ 0007 80 { 1F 'why' 26 'k' 'v' }",
        Puback(with(ReasonCode::UnspecifiedError)),
    );
    t.case(
        "pubrec and why",
        V5,
        BOTH,
        "50 ~ 0007 00 { 1F 'why' 26 'k' 'v' }",
        Pubrec(with(ReasonCode::Success)),
    );
    t.case(
        "pubrel and why",
        V5,
        BOTH,
        "62 ~ 0007 00 { 1F 'why' 26 'k' 'v' }",
        Pubrel(with(ReasonCode::Success)),
    );
    t.case(
        "pubcomp and why",
        V5,
        BOTH,
        "70 ~ 0007 00 { 1F 'why' 26 'k' 'v' }",
        Pubcomp(with(ReasonCode::Success)),
    );
}

fn subscribe(t: &mut Table) {
    let of = |filters: &[(&str, Qos)]| Subscribe {
        packet_id: id(10),
        filters: filters.iter().map(|(filter, qos)| Subscription::new(text(filter), *qos)).collect(),
        properties: None,
    };
    let one = |filter| of(&[(filter, Qos::AtLeastOnce)]);
    t.case("subscribe", V3, UP, "82 08 00 0A 00 03 61 2F 62 01", one("a/b"));
    t.case("subscribe 5", V5, UP, "82 09 00 0A 00 00 03 61 2F 62 01", one("a/b"));
    t.case("subscribe 3.1 again", V31, UP, "8A ~ 000A 'a/b' 01", one("a/b"));
    t.loose();
    let two = of(&[("a/b", Qos::AtLeastOnce), ("c/d", Qos::ExactlyOnce), ("a/b", Qos::AtMostOnce)]);
    t.case("subscribe to three", V3, UP, "82 ~ 000A 'a/b' 01 'c/d' 02 'a/b' 00", two);
    for filter in [
        "#",
        "+",
        "/",
        "/#",
        "+/+",
        "a/#",
        "a/+/b",
        "/+",
        "+/",
        "a//b",
        "$SYS/#",
        "$shared/x",
        " ",
        "a/+/#",
        "$queue/a",
    ] {
        t.case("subscribe to a filter", V3, UP, &format!("82 ~ 000A '{filter}' 01"), one(filter));
        t.case("subscribe to a filter 5", V5, UP, &format!("82 ~ 000A {{}} '{filter}' 01"), one(filter));
    }
    for filter in ["$share/g/a/b", "$share/g/#", "$share/g//", "$share/g h/+", "$share/$g/$SYS"] {
        t.case("subscribe shared", V5, UP, &format!("82 ~ 000A {{}} '{filter}' 01"), one(filter));
    }
    t.case("subscribe 3 knows no shares", V3, UP, "82 ~ 000A '$share//a' 01", one("$share//a"));
    let options = |no_local, retain_as_published, retain_handling| {
        let mut packet = one("a");
        let first = &mut packet.filters[0];
        (first.no_local, first.retain_as_published, first.retain_handling) =
            (no_local, retain_as_published, retain_handling);
        packet
    };
    let wire = "82 ~ 000A {} 'a' 05";
    t.case("subscribe no local", V5, UP, wire, options(true, false, RetainHandling::Send));
    let wire = "82 ~ 000A {} 'a' 09";
    t.case("subscribe retain as published", V5, UP, wire, options(false, true, RetainHandling::Send));
    let wire = "82 ~ 000A {} 'a' 11";
    t.case("subscribe retain handling 1", V5, UP, wire, options(false, false, RetainHandling::SendIfNew));
    let wire = "82 ~ 000A {} 'a' 2D";
    t.case("subscribe every option", V5, UP, wire, options(true, true, RetainHandling::DoNotSend));
    let properties = SubscribeProperties {
        subscription_id: Some(sub_id(268_435_455)),
        user_properties: pairs(&[("k", "v")]),
    };
    let wire = "82 ~ 000A { 0B FFFFFF7F 26 'k' 'v' } 'a/b' 01";
    t.case(
        "subscribe with every property",
        V5,
        UP,
        wire,
        Subscribe { properties: Some(Box::new(properties)), ..one("a/b") },
    );
    for (wire, number) in
        [("7F", 127), ("8001", 128), ("FF7F", 16_383), ("808001", 16_384), ("80808001", 2_097_152)]
    {
        let properties = SubscribeProperties { subscription_id: Some(sub_id(number)), ..Default::default() };
        let properties = Some(Box::new(properties));
        let wire = format!("82 ~ 000A {{ 0B {wire} }} 'a/b' 01");
        t.case("subscribe with an id", V5, UP, &wire, Subscribe { properties, ..one("a/b") });
    }

    let un = |filters: &[&str]| Unsubscribe {
        packet_id: id(11),
        filters: filters.iter().map(|filter| text(filter)).collect(),
        properties: None,
    };
    t.case("unsubscribe", V3, UP, "A2 07 00 0B 00 03 61 2F 62", un(&["a/b"]));
    t.case("unsubscribe 5", V5, UP, "A2 08 00 0B 00 00 03 61 2F 62", un(&["a/b"]));
    t.case("unsubscribe 3.1 again", V31, UP, "AA ~ 000B 'a/b'", un(&["a/b"]));
    t.loose();
    t.case("unsubscribe from three", V3, UP, "A2 ~ 000B 'a/b' '#' '+/c'", un(&["a/b", "#", "+/c"]));
    t.case("unsubscribe shared", V5, UP, "A2 ~ 000B {} '$share/g/a'", un(&["$share/g/a"]));
    let properties = UnsubscribeProperties { user_properties: pairs(&[("k", "v")]) };
    let wire = "A2 ~ 000B { 26 'k' 'v' } 'a/b'";
    t.case(
        "unsubscribe with properties",
        V5,
        UP,
        wire,
        Unsubscribe { properties: Some(Box::new(properties)), ..un(&["a/b"]) },
    );

    let suback =
        |reasons: &[ReasonCode]| Suback { packet_id: id(10), reasons: reasons.to_vec(), properties: None };
    use ReasonCode as R;
    t.case("suback", V3, DOWN, "90 03 00 0A 00", suback(&[R::Success]));
    t.case(
        "suback of four",
        V3,
        DOWN,
        "90 ~ 000A 01 02 80 00",
        suback(&[R::GrantedQos1, R::GrantedQos2, R::UnspecifiedError, R::Success]),
    );
    t.case("suback 5", V5, DOWN, "90 04 00 0A 00 02", suback(&[R::GrantedQos2]));
    let every = suback(&[
        R::NotAuthorized,
        R::TopicFilterInvalid,
        R::SharedSubscriptionsNotSupported,
        R::WildcardSubscriptionsNotSupported,
    ]);
    t.case("suback 5 refused", V5, DOWN, "90 ~ 000A {} 87 8F 9E A2", every);
    let why = || {
        Some(Box::new(AckProperties {
            reason_string: Some(text("why")),
            user_properties: pairs(&[("k", "v")]),
        }))
    };
    let wire = "90 ~ 000A { 1F 'why' 26 'k' 'v' } 01";
    t.case("suback and why", V5, DOWN, wire, Suback { properties: why(), ..suback(&[R::GrantedQos1]) });
    let unsuback =
        |reasons: &[ReasonCode]| Unsuback { packet_id: id(11), reasons: reasons.to_vec(), properties: None };
    t.case("unsuback", V3, DOWN, "B0 02 00 0B", unsuback(&[]));
    t.case(
        "unsuback 5",
        V5,
        DOWN,
        "B0 ~ 000B {} 00 11 87",
        unsuback(&[R::Success, R::NoSubscriptionExisted, R::NotAuthorized]),
    );
    let wire = "B0 ~ 000B { 1F 'why' 26 'k' 'v' } 00";
    t.case("unsuback and why", V5, DOWN, wire, Unsuback { properties: why(), ..unsuback(&[R::Success]) });
}

fn rest(t: &mut Table) {
    t.case("pingreq", ALL, UP, "C0 00", Packet::Pingreq);
    t.case("pingresp", ALL, DOWN, "D0 00", Packet::Pingresp);
    let disconnect = Disconnect::new;
    t.case("disconnect", ALL, UP, "E0 00", disconnect(ReasonCode::Success));
    t.case("disconnect from a server", V5, DOWN, "E0 00", disconnect(ReasonCode::Success));
    t.case("disconnect and say so", V5, UP, "E0 01 00", disconnect(ReasonCode::Success));
    t.loose();
    t.case("disconnect and say nothing", V5, UP, "E0 02 00 00", disconnect(ReasonCode::Success));
    t.loose();
    t.case("disconnect with the will", V5, UP, "E0 01 04", disconnect(ReasonCode::DisconnectWithWill));
    t.case("disconnect, taken over", V5, DOWN, "E0 01 8E", disconnect(ReasonCode::SessionTakenOver));
    let properties =
        DisconnectProperties { session_expiry_interval: Some(0), ..DisconnectProperties::default() };
    let packet = Disconnect { properties: Some(Box::new(properties)), ..disconnect(ReasonCode::Success) };
    t.case("disconnect and end the session", V5, UP, "E0 ~ 00 { 11 00000000 }", packet);
    let properties = DisconnectProperties {
        server_reference: Some(text("other:1883")),
        reason_string: Some(text("why")),
        user_properties: pairs(&[("k", "v")]),
        ..DisconnectProperties::default()
    };
    let packet = Disconnect { properties: Some(Box::new(properties)), ..disconnect(ReasonCode::ServerMoved) };
    t.case("disconnect, moved", V5, DOWN, "E0 ~ 9D { 1C 'other:1883' 1F 'why' 26 'k' 'v' }", packet);

    t.case(
        "auth without anything",
        V5,
        BOTH,
        "F0 00",
        Auth { reason: ReasonCode::Success, properties: None },
    );
    let properties = AuthProperties { authentication_method: Some(text("m")), ..AuthProperties::default() };
    let auth = |reason, properties| Auth { reason, properties: Some(Box::new(properties)) };
    let wire = "F0 ~ 18 { 15 'm' }";
    t.case("auth", V5, BOTH, wire, auth(ReasonCode::ContinueAuthentication, properties.clone()));
    t.case(
        "auth again",
        V5,
        BOTH,
        "F0 ~ 19 { 15 'm' }",
        auth(ReasonCode::ReAuthenticate, properties.clone()),
    );
    t.case("auth done", V5, BOTH, "F0 ~ 00 { 15 'm' }", auth(ReasonCode::Success, properties.clone()));
    let properties = AuthProperties {
        authentication_data: Some(Bytes::from_static(&[1, 2, 3])),
        reason_string: Some(text("why")),
        user_properties: pairs(&[("k", "v")]),
        ..properties
    };
    let wire = "F0 ~ 18 { 15 'm' 16 0003 010203 1F 'why' 26 'k' 'v' }";
    t.case("auth with every property", V5, BOTH, wire, auth(ReasonCode::ContinueAuthentication, properties));
}
