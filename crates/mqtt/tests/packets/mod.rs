//! Any valid packet.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;
use postroad_mqtt::codec::{
    Ack, AckProperties, Auth, AuthProperties, Connack, ConnackProperties, Connect, ConnectProperties,
    Direction, Disconnect, DisconnectProperties, Packet, PacketId, PacketType, Publish, PublishProperties,
    Qos, ReasonCode, RetainHandling, Suback, Subscribe, SubscribeProperties, Subscription, SubscriptionId,
    Unsuback, Unsubscribe, UnsubscribeProperties, Utf8, Version, Will, WillProperties,
};

/// Draws packets from a generator of random numbers.
pub(crate) struct Any<'a> {
    pub(crate) random: &'a mut fastrand::Rng,
    pub(crate) version: Version,
}

impl Any<'_> {
    fn v5(&self) -> bool {
        self.version.is_v5()
    }

    fn maybe<T>(&mut self, draw: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.random.bool().then(|| draw(self))
    }

    fn text(&mut self, most: usize) -> Utf8 {
        const CHARACTERS: [char; 12] =
            ['a', 'b', 'Z', '0', '/', ' ', '$', '\u{1}', 'é', '€', '😀', '\u{feff}'];
        let len = self.random.usize(0..=most);
        let text: String = (0..len).map(|_| *self.random.choice(&CHARACTERS).unwrap()).collect();
        Utf8::try_from(text).unwrap()
    }

    fn topic(&mut self) -> Utf8 {
        let text = format!("t{}", self.text(20));
        Utf8::try_from(text).unwrap()
    }

    fn filter(&mut self) -> Utf8 {
        let levels = self.random.usize(1..6);
        let mut levels: Vec<String> = (0..levels)
            .map(|_| match self.random.u8(0..4) {
                0 => "+".into(),
                1 => String::new(),
                _ => self.text(4).replace(['/', '$'], "x"),
            })
            .collect();
        if self.random.bool() {
            levels.push("#".into());
        }
        let mut filter = levels.join("/");
        if filter.is_empty() {
            filter.push('/');
        }
        if self.v5() && self.random.u8(0..4) == 0 {
            filter.insert_str(0, "$share/group/");
        }
        Utf8::try_from(filter).unwrap()
    }

    fn bytes(&mut self, most: usize) -> Bytes {
        let len = self.random.usize(0..=most);
        (0..len).map(|_| self.random.u8(..)).collect()
    }

    fn id(&mut self) -> PacketId {
        PacketId::new(self.random.u16(1..)).unwrap()
    }

    fn u16(&mut self) -> u16 {
        self.random.u16(..)
    }

    fn u32(&mut self) -> u32 {
        self.random.u32(..)
    }

    fn nonzero(&mut self) -> NonZeroU16 {
        self.id()
    }

    fn flag(&mut self) -> bool {
        self.random.bool()
    }

    fn qos(&mut self) -> Qos {
        Qos::from_u8(self.random.u8(0..3)).unwrap()
    }

    fn subscription_id(&mut self) -> SubscriptionId {
        let bits = self.random.u32(0..28);
        SubscriptionId::new(self.random.u32(1..2 << bits)).unwrap()
    }

    fn user(&mut self) -> Vec<(Utf8, Utf8)> {
        let count = self.random.usize(0..3);
        (0..count).map(|_| (self.text(5), self.text(5))).collect()
    }

    /// Properties that say nothing are written like none.
    fn boxed<P: Default + PartialEq>(&mut self, draw: impl FnOnce(&mut Self) -> P) -> Option<Box<P>> {
        if !self.v5() || self.flag() {
            return None;
        }
        let properties = draw(self);
        (properties != P::default()).then(|| Box::new(properties))
    }

    fn reason(&mut self, kind: PacketType) -> ReasonCode {
        let codes: Vec<ReasonCode> = ReasonCode::ALL
            .iter()
            .copied()
            .filter(|code| match kind {
                _ if self.v5() => code.allowed_on(kind),
                PacketType::Connack => ReasonCode::from_connack_v3(code.connack_v3()) == Some(*code),
                PacketType::Suback => *code as u8 <= 2 || *code as u8 == 0x80,
                _ => *code == ReasonCode::Success,
            })
            .collect();
        self.random.choice(codes).unwrap()
    }

    fn reasons(&mut self, kind: PacketType) -> Vec<ReasonCode> {
        let count = self.random.usize(1..4);
        (0..count).map(|_| self.reason(kind)).collect()
    }

    fn ack_properties(&mut self) -> Option<Box<AckProperties>> {
        self.boxed(|any| AckProperties {
            reason_string: any.maybe(|any| any.text(9)),
            user_properties: any.user(),
        })
    }

    fn connect(&mut self) -> Connect {
        let mut properties = ConnectProperties::default();
        if self.v5() && self.flag() {
            let method = self.maybe(|any| any.text(5));
            properties = ConnectProperties {
                session_expiry_interval: self.maybe(Self::u32),
                authentication_data: if method.is_some() { self.maybe(|any| any.bytes(9)) } else { None },
                authentication_method: method,
                request_problem_information: self.maybe(Self::flag),
                request_response_information: self.maybe(Self::flag),
                receive_maximum: self.maybe(Self::nonzero),
                topic_alias_maximum: self.maybe(Self::u16),
                maximum_packet_size: self.maybe(|any| NonZeroU32::new(any.random.u32(1..)).unwrap()),
                user_properties: self.user(),
            };
        }
        let will = self.maybe(|any| Will {
            topic: any.topic(),
            payload: any.bytes(40),
            qos: any.qos(),
            retain: any.flag(),
            properties: any.boxed(|any| WillProperties {
                payload_format_indicator: any.maybe(Self::flag),
                message_expiry_interval: any.maybe(Self::u32),
                content_type: any.maybe(|any| any.text(9)),
                response_topic: any.maybe(Self::topic),
                correlation_data: any.maybe(|any| any.bytes(9)),
                will_delay_interval: any.maybe(Self::u32),
                user_properties: any.user(),
            }),
        });
        let user_name = self.maybe(|any| any.text(9));
        let may = self.v5() || user_name.is_some();
        Connect {
            clean_start: self.flag(),
            keep_alive: self.u16(),
            client_id: self.topic(),
            will,
            password: if may { self.maybe(|any| any.bytes(9)) } else { None },
            user_name,
            properties,
            ..Connect::new(self.version, Utf8::default())
        }
    }

    fn connack(&mut self) -> Connack {
        let mut properties = ConnackProperties::default();
        if self.v5() && self.flag() {
            let method = self.maybe(|any| any.text(5));
            properties = ConnackProperties {
                session_expiry_interval: self.maybe(Self::u32),
                assigned_client_identifier: self.maybe(|any| any.text(9)),
                server_keep_alive: self.maybe(Self::u16),
                authentication_data: if method.is_some() { self.maybe(|any| any.bytes(9)) } else { None },
                authentication_method: method,
                response_information: self.maybe(|any| any.text(9)),
                server_reference: self.maybe(|any| any.text(9)),
                reason_string: self.maybe(|any| any.text(9)),
                receive_maximum: self.maybe(Self::nonzero),
                topic_alias_maximum: self.maybe(Self::u16),
                maximum_qos: self.maybe(Self::flag),
                retain_available: self.maybe(Self::flag),
                maximum_packet_size: self.maybe(|any| NonZeroU32::new(any.random.u32(1..)).unwrap()),
                wildcard_subscription_available: self.maybe(Self::flag),
                subscription_identifiers_available: self.maybe(Self::flag),
                shared_subscription_available: self.maybe(Self::flag),
                user_properties: self.user(),
            };
        }
        let reason = self.reason(PacketType::Connack);
        let may = self.version != Version::V31 && reason == ReasonCode::Success;
        Connack { session_present: may && self.flag(), reason, properties }
    }

    fn publish(&mut self, direction: Direction) -> Publish {
        let qos = self.qos();
        let properties = self.boxed(|any| PublishProperties {
            payload_format_indicator: any.maybe(Self::flag),
            message_expiry_interval: any.maybe(Self::u32),
            content_type: any.maybe(|any| any.text(9)),
            response_topic: any.maybe(Self::topic),
            correlation_data: any.maybe(|any| any.bytes(9)),
            subscription_ids: match direction {
                Direction::ToServer => Vec::new(),
                Direction::ToClient => (0..any.random.usize(0..3)).map(|_| any.subscription_id()).collect(),
            },
            topic_alias: any.maybe(Self::nonzero),
            user_properties: any.user(),
        });
        let alias = properties.as_ref().is_some_and(|properties| properties.topic_alias.is_some());
        Publish {
            dup: qos != Qos::AtMostOnce && self.flag(),
            qos,
            retain: self.flag(),
            topic: if alias && self.flag() { Utf8::default() } else { self.topic() },
            packet_id: (qos != Qos::AtMostOnce).then(|| self.id()),
            payload: self.bytes(300),
            properties,
        }
    }

    fn ack(&mut self, kind: PacketType) -> Ack {
        Ack { packet_id: self.id(), reason: self.reason(kind), properties: self.ack_properties() }
    }

    fn subscription(&mut self) -> Subscription {
        let mut subscription = Subscription::new(self.filter(), self.qos());
        if self.v5() {
            subscription.no_local = self.flag() && !subscription.filter.starts_with("$share/");
            subscription.retain_as_published = self.flag();
            let handling = [RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::DoNotSend];
            subscription.retain_handling = *self.random.choice(&handling).unwrap();
        }
        subscription
    }

    /// A packet that may go that way.
    pub(crate) fn packet(&mut self, direction: Direction) -> Packet {
        let up = direction == Direction::ToServer;
        match self.random.u8(0..15) {
            0 if up => self.connect().into(),
            1 if !up => self.connack().into(),
            2 => Packet::Puback(self.ack(PacketType::Puback)),
            3 => Packet::Pubrec(self.ack(PacketType::Pubrec)),
            4 => Packet::Pubrel(self.ack(PacketType::Pubrel)),
            5 => Packet::Pubcomp(self.ack(PacketType::Pubcomp)),
            6 if up => Subscribe {
                packet_id: self.id(),
                filters: (0..self.random.usize(1..4)).map(|_| self.subscription()).collect(),
                properties: self.boxed(|any| SubscribeProperties {
                    subscription_id: any.maybe(Self::subscription_id),
                    user_properties: any.user(),
                }),
            }
            .into(),
            7 if !up => Suback {
                packet_id: self.id(),
                reasons: self.reasons(PacketType::Suback),
                properties: self.ack_properties(),
            }
            .into(),
            8 if up => Unsubscribe {
                packet_id: self.id(),
                filters: (0..self.random.usize(1..4)).map(|_| self.filter()).collect(),
                properties: self.boxed(|any| UnsubscribeProperties { user_properties: any.user() }),
            }
            .into(),
            9 if !up => Unsuback {
                packet_id: self.id(),
                reasons: if self.v5() { self.reasons(PacketType::Unsuback) } else { Vec::new() },
                properties: self.ack_properties(),
            }
            .into(),
            10 if up => Packet::Pingreq,
            11 if !up => Packet::Pingresp,
            12 if self.v5() => Disconnect {
                reason: self.reason(PacketType::Disconnect),
                properties: self.boxed(|any| DisconnectProperties {
                    session_expiry_interval: if up { any.maybe(Self::u32) } else { None },
                    server_reference: any.maybe(|any| any.text(9)),
                    reason_string: any.maybe(|any| any.text(9)),
                    user_properties: any.user(),
                }),
            }
            .into(),
            12 if up => Disconnect::new(ReasonCode::Success).into(),
            13 if self.v5() => Auth {
                reason: self.reason(PacketType::Auth),
                properties: Some(Box::new(AuthProperties {
                    authentication_method: Some(self.text(5)),
                    authentication_data: self.maybe(|any| any.bytes(9)),
                    reason_string: self.maybe(|any| any.text(9)),
                    user_properties: self.user(),
                })),
            }
            .into(),
            _ => self.publish(direction).into(),
        }
    }
}
