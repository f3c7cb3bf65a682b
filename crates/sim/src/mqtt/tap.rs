//! Bytes at the broker's door, read as packets and noted as facts.

use super::cast::{Ask, FILTERS, TOPICS};
use super::facts::{Fact, Seen, Tag, Who, Will};
use super::guest::Tap;
use crate::history::Conn;
use bytes::BytesMut;
use postroad_mqtt::codec::{Decoder, Limits, Packet, PacketId, Publish, ReasonCode, Utf8, Version};
use postroad_mqtt::lines::DEAD_LETTERS;
use std::collections::HashMap;

/// What passes the door on one connection.
pub(super) struct PacketTap {
    conn: Conn,
    who: Who,
    up: Decoder,
    up_bytes: BytesMut,
    down: Decoder,
    down_bytes: BytesMut,
    aliases: HashMap<u16, Utf8>,
    broken: bool,
}

impl PacketTap {
    pub(super) fn new(conn: Conn, who: Who, version: Version) -> Self {
        Self {
            conn,
            who,
            up: Decoder::server(Limits::default()),
            up_bytes: BytesMut::new(),
            down: Decoder::client(version, Limits::default()),
            down_bytes: BytesMut::new(),
            aliases: HashMap::new(),
            broken: false,
        }
    }

    fn entered(&mut self, packet: Packet, seen: &mut Seen) {
        let conn = self.conn;
        match packet {
            Packet::Connect(connect) => {
                let lasting = match connect.version {
                    Version::V5 => connect.properties.session_expiry_interval.unwrap_or(0),
                    _ if connect.clean_start => 0,
                    _ => u32::MAX,
                };
                let window = connect.properties.receive_maximum.map_or(u16::MAX, std::num::NonZeroU16::get);
                let will = connect.will.as_ref().and_then(|will| {
                    let tag = seen.tag_of(&will.payload).ok().flatten()?;
                    let delay =
                        will.properties.as_ref().and_then(|properties| properties.will_delay_interval);
                    Some(Will { tag, delay: delay.unwrap_or(0) })
                });
                let (who, clean) = (self.who, connect.clean_start);
                seen.note(Fact::Connect { conn, who, clean, lasting, window, will });
            }
            Packet::Publish(publish) => match tag_of(&publish, seen) {
                Ok(Some(tag)) => {
                    let id = publish.packet_id.map_or(0, PacketId::get);
                    seen.note(Fact::Publish { conn, id, tag, dup: publish.dup });
                }
                _ => seen.note(Fact::Wrong("a client published what nobody knows".into())),
            },
            Packet::Puback(ack) | Packet::Pubrec(ack) if ack.reason.is_error() => {
                seen.note(Fact::Refused { conn, id: ack.packet_id.get() });
            }
            Packet::Puback(ack) | Packet::Pubcomp(ack) => {
                seen.note(Fact::Settled { conn, id: ack.packet_id.get() });
            }
            Packet::Pubrec(ack) => seen.note(Fact::Received { conn, id: ack.packet_id.get() }),
            Packet::Pubrel(ack) => seen.note(Fact::Release { conn, id: ack.packet_id.get() }),
            Packet::Subscribe(subscribe) => {
                for subscription in &subscribe.filters {
                    if let Some(filter) = FILTERS.iter().position(|f| subscription.filter == *f) {
                        let has_id =
                            subscribe.properties.as_ref().is_some_and(|p| p.subscription_id.is_some());
                        let ask = Ask {
                            filter: filter as u8,
                            qos: subscription.qos as u8,
                            no_local: subscription.no_local,
                            as_published: subscription.retain_as_published,
                            handling: subscription.retain_handling as u8,
                            has_id,
                        };
                        seen.note(Fact::Subscribe { conn, id: subscribe.packet_id.get(), ask });
                    }
                }
            }
            Packet::Unsubscribe(unsubscribe) => {
                for name in &unsubscribe.filters {
                    if let Some(filter) = FILTERS.iter().position(|f| name == f) {
                        let id = unsubscribe.packet_id.get();
                        seen.note(Fact::Unsubscribe { conn, id, filter: filter as u8 });
                    }
                }
            }
            Packet::Disconnect(_) => seen.note(Fact::Gone { conn, polite: true }),
            _ => {}
        }
    }

    fn left(&mut self, packet: Packet, seen: &mut Seen) {
        let conn = self.conn;
        match packet {
            Packet::Connack(connack) if connack.reason == ReasonCode::Success => {
                seen.note(Fact::Connack { conn, present: connack.session_present });
            }
            Packet::Connack(connack) => {
                seen.note(Fact::Wrong(format!("CONNACK refuses: {:?}", connack.reason)));
            }
            Packet::Publish(publish) => self.delivered(&publish, seen),
            Packet::Puback(ack) | Packet::Pubrec(ack) => {
                seen.note(Fact::Taken { conn, id: ack.packet_id.get(), ok: !ack.reason.is_error() });
            }
            Packet::Pubrel(ack) => {
                if ack.reason == ReasonCode::Success {
                    seen.note(Fact::Released { conn, id: ack.packet_id.get() });
                } else {
                    seen.note(Fact::Wrong(format!("PUBREL {} says {:?}", ack.packet_id, ack.reason)));
                }
            }
            Packet::Pubcomp(ack) => {
                let known = ack.reason == ReasonCode::Success;
                seen.note(Fact::Complete { conn, id: ack.packet_id.get(), known });
            }
            Packet::Suback(suback) => {
                let ok = suback.reasons.iter().all(|reason| !reason.is_error());
                seen.note(Fact::Subscribed { conn, id: suback.packet_id.get(), ok });
            }
            Packet::Unsuback(unsuback) => {
                seen.note(Fact::Unsubscribed { conn, id: unsuback.packet_id.get() });
            }
            Packet::Disconnect(disconnect)
                if !matches!(
                    disconnect.reason,
                    ReasonCode::SessionTakenOver
                        | ReasonCode::ServerShuttingDown
                        | ReasonCode::UnspecifiedError
                ) =>
            {
                seen.note(Fact::Wrong(format!("DISCONNECT says {:?}", disconnect.reason)));
            }
            _ => {}
        }
    }

    fn delivered(&mut self, publish: &Publish, seen: &mut Seen) {
        let alias = publish.properties.as_ref().and_then(|p| p.topic_alias);
        let topic = match alias {
            Some(alias) if publish.topic.is_empty() => {
                self.aliases.get(&alias.get()).cloned().unwrap_or_default()
            }
            Some(alias) => {
                self.aliases.insert(alias.get(), publish.topic.clone());
                publish.topic.clone()
            }
            None => publish.topic.clone(),
        };
        let tag = match tag_of(publish, seen) {
            Ok(tag) => tag,
            // A filter may match what the line dialect says of lines that were none.
            Err(_) if topic == *DEAD_LETTERS => None,
            Err(why) => return seen.note(Fact::Wrong(why)),
        };
        if let Some(sent) = tag.and_then(|tag| seen.sent.get(tag as usize))
            && topic != *TOPICS[usize::from(sent.topic)]
        {
            return seen.note(Fact::Wrong(format!("message {tag:?} came under {topic}")));
        }
        let id = publish.packet_id.map_or(0, PacketId::get);
        let (qos, retain, dup) = (publish.qos as u8, publish.retain, publish.dup);
        let said = publish.properties.as_deref();
        let ids = said.map_or(0, |said| said.subscription_ids.iter().fold(0, |ids, id| ids | bit(id.get())));
        let expiry = said.and_then(|said| said.message_expiry_interval);
        seen.note(Fact::Deliver { conn: self.conn, id, tag, qos, retain, dup, ids, expiry });
    }
}

impl Tap for PacketTap {
    fn enter(&mut self, bytes: &[u8], seen: &mut Seen) {
        self.up_bytes.extend_from_slice(bytes);
        loop {
            match self.up.decode(&mut self.up_bytes) {
                Ok(Some(packet)) => self.entered(packet, seen),
                Ok(None) => return,
                Err(error) => return seen.note(Fact::Wrong(format!("a client sent {error}"))),
            }
        }
    }

    fn leave(&mut self, bytes: &[u8], seen: &mut Seen) {
        if self.broken {
            return;
        }
        self.down_bytes.extend_from_slice(bytes);
        loop {
            match self.down.decode(&mut self.down_bytes) {
                Ok(Some(packet)) => self.left(packet, seen),
                Ok(None) => return,
                Err(error) => {
                    self.broken = true;
                    return seen.note(Fact::Wrong(format!("the broker sent {error}")));
                }
            }
        }
    }
}

fn bit(id: u32) -> u32 {
    1_u32.checked_shl(id).unwrap_or(0)
}

/// Which message it is. What removes a retained message has no payload to say so, but a property.
fn tag_of(publish: &Publish, seen: &Seen) -> Result<Option<Tag>, String> {
    let says = publish.properties.as_ref().and_then(|properties| properties.correlation_data.as_deref());
    match says.map(<[u8; 4]>::try_from) {
        Some(Ok(tag)) => Ok(Some(Tag::from_be_bytes(tag))),
        _ => seen.tag_of(&publish.payload),
    }
}
