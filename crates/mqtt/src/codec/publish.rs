//! PUBLISH (section 3.3).

use std::num::NonZeroU16;

use bytes::{BufMut, Bytes, BytesMut};

use super::decoder::Context;
use super::properties::{self, DeliveryProperties};
use super::read::Reader;
use super::{
    DecodeError, Direction, EncodeError, PacketId, PublishProperties, Qos, SubscriptionId, Utf8, Version,
    topic, write,
};

const DUP: u8 = 0x08;
const RETAIN: u8 = 0x01;

/// An application message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// It may be a repetition; at QoS 0 never.
    pub dup: bool,
    /// How often it arrives.
    pub qos: Qos,
    /// To the server: keep it for later subscribers. To a client: it was kept.
    pub retain: bool,
    /// Where it goes. Empty only in 5.0 with a topic alias.
    pub topic: Utf8,
    /// The packet id; none at QoS 0.
    pub packet_id: Option<PacketId>,
    /// What it says.
    pub payload: Bytes,
    /// Properties; none before 5.0.
    pub properties: Option<Box<PublishProperties>>,
}

impl Publish {
    /// A message of QoS 0 without properties.
    pub fn new(topic: Utf8, payload: impl Into<Bytes>) -> Self {
        Self {
            dup: false,
            qos: Qos::AtMostOnce,
            retain: false,
            topic,
            packet_id: None,
            payload: payload.into(),
            properties: None,
        }
    }

    pub(super) fn decode(first: u8, mut reader: Reader, context: &Context<'_>) -> Result<Self, DecodeError> {
        let qos = Qos::from_u8((first >> 1) & 3).ok_or(DecodeError::PublishQos)?;
        let dup = first & DUP != 0;
        if dup && qos == Qos::AtMostOnce && context.version != Version::V31 {
            return Err(DecodeError::DupQos0);
        }
        let topic = reader.utf8()?;
        let packet_id = match qos {
            Qos::AtMostOnce => None,
            _ => Some(reader.packet_id()?),
        };
        let properties: Option<Box<PublishProperties>> = match context.version {
            Version::V5 => properties::read_boxed(&mut reader, context.limits)?,
            _ => None,
        };
        if topic.is_empty() && context.version.is_v5() {
            if properties.as_ref().is_none_or(|properties| properties.topic_alias.is_none()) {
                return Err(DecodeError::TopicMissing);
            }
        } else {
            topic::validate_name(&topic, context.limits.levels)?;
        }
        if context.direction == Direction::ToServer
            && properties.as_ref().is_some_and(|properties| !properties.subscription_ids.is_empty())
        {
            return Err(DecodeError::SubscriptionIdToServer);
        }
        Ok(Self {
            dup,
            qos,
            retain: first & RETAIN != 0,
            topic,
            packet_id,
            payload: reader.rest(),
            properties,
        })
    }

    /// All but the payload.
    pub fn head(&self) -> PublishHead<'_> {
        let properties = self.properties.as_deref();
        PublishHead {
            dup: self.dup,
            qos: self.qos,
            retain: self.retain,
            topic: &self.topic,
            packet_id: self.packet_id,
            payload_len: self.payload.len(),
            message: properties,
            message_expiry_interval: properties.and_then(|properties| properties.message_expiry_interval),
            topic_alias: properties.and_then(|properties| properties.topic_alias),
            subscription_ids: properties.map_or(&[], |properties| &properties.subscription_ids),
        }
    }

    /// The packet's bytes on the wire.
    pub fn encoded_len(&self, version: Version) -> usize {
        self.head().encoded_len(version)
    }

    /// Appends the packet to `out`, its payload too.
    pub fn encode(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        self.head().encode_before(self.payload.len(), version, out)?;
        out.put_slice(&self.payload);
        Ok(())
    }
}

/// One delivery of a message: a PUBLISH without its payload, which can then be sent from where it is.
///
/// The payload and what belongs to the message are shared by all deliveries; the rest is of this one.
#[derive(Debug, Clone, Copy)]
pub struct PublishHead<'a> {
    /// It may be a repetition.
    pub dup: bool,
    /// How often it arrives.
    pub qos: Qos,
    /// Whether it was retained, or is to be.
    pub retain: bool,
    /// Where it goes; empty if the alias is known already.
    pub topic: &'a Utf8,
    /// The packet id; none at QoS 0.
    pub packet_id: Option<PacketId>,
    /// Bytes of the payload that follow.
    pub payload_len: usize,
    /// From here come format, content type, response topic, correlation data and user properties. Its other fields
    /// are of the delivery that it came with, and are not looked at.
    pub message: Option<&'a PublishProperties>,
    /// Seconds that the message is still of use.
    pub message_expiry_interval: Option<u32>,
    /// The alias of the topic.
    pub topic_alias: Option<NonZeroU16>,
    /// The subscriptions that match.
    pub subscription_ids: &'a [SubscriptionId],
}

impl PublishHead<'_> {
    fn delivery(&self) -> DeliveryProperties<'_> {
        DeliveryProperties {
            message_expiry_interval: self.message_expiry_interval,
            topic_alias: self.topic_alias,
            subscription_ids: self.subscription_ids,
        }
    }

    fn properties_len(&self) -> usize {
        self.delivery().len() + self.message.map_or(0, PublishProperties::message_len)
    }

    /// Bytes between fixed header and payload.
    fn variable_len(&self, version: Version) -> usize {
        let packet_id = if self.packet_id.is_some() { 2 } else { 0 };
        let properties = if version.is_v5() { properties::len(self.properties_len()) } else { 0 };
        2 + self.topic.len() + packet_id + properties
    }

    /// The packet's bytes on the wire, its payload too.
    pub fn encoded_len(&self, version: Version) -> usize {
        write::packet_len(self.variable_len(version) + self.payload_len)
    }

    /// Appends all that comes before the payload to `out`.
    pub fn encode(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        self.encode_before(0, version, out)
    }

    /// With room for `more` bytes.
    fn encode_before(&self, more: usize, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        if self.packet_id.is_some() == (self.qos == Qos::AtMostOnce) {
            return Err(EncodeError::PacketId);
        }
        properties::check(self.message)?;
        let variable = self.variable_len(version);
        let mut first = 0x30 | (self.qos as u8) << 1;
        if self.dup {
            first |= DUP;
        }
        if self.retain {
            first |= RETAIN;
        }
        write::fixed_header(first, variable + self.payload_len, variable + more, out)?;
        write::binary(self.topic.as_bytes(), out);
        if let Some(id) = self.packet_id {
            out.put_u16(id.get());
        }
        if version.is_v5() {
            write::varint(self.properties_len(), out);
            self.delivery().write(out);
            if let Some(message) = self.message {
                message.write_message(out);
            }
        }
        Ok(())
    }
}
