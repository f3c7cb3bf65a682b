//! SUBSCRIBE and UNSUBSCRIBE (sections 3.8 and 3.10).

use bytes::{BufMut, BytesMut};

use super::decoder::Context;
use super::properties;
use super::read::Reader;
use super::{
    DecodeError, EncodeError, PacketId, Qos, SubscribeProperties, UnsubscribeProperties, Utf8, Version,
    topic, write,
};

const NO_LOCAL: u8 = 0x04;
const RETAIN_AS_PUBLISHED: u8 = 0x08;

/// A client wants messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// The packet id, for the SUBACK.
    pub packet_id: PacketId,
    /// Which ones; at least one filter.
    pub filters: Vec<Subscription>,
    /// Properties; none before 5.0.
    pub properties: Option<Box<SubscribeProperties>>,
}

/// One filter of a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The filter; in 5.0 it may be a shared one, whose parts [`topic::shared`] tells.
    pub filter: Utf8,
    /// The highest QoS that messages arrive with.
    pub qos: Qos,
    /// Not those that this client itself publishes. 5.0 only.
    pub no_local: bool,
    /// The retain flag stays as it was published. 5.0 only.
    pub retain_as_published: bool,
    /// When retained messages are sent. 5.0 only.
    pub retain_handling: RetainHandling,
}

/// When a subscription gets retained messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RetainHandling {
    /// With each SUBSCRIBE.
    #[default]
    Send = 0,
    /// If the subscription is new.
    SendIfNew = 1,
    /// Never.
    DoNotSend = 2,
}

impl Subscription {
    /// With no other options.
    pub fn new(filter: Utf8, qos: Qos) -> Self {
        Self {
            filter,
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        }
    }

    fn decode(reader: &mut Reader, context: &Context<'_>) -> Result<Self, DecodeError> {
        let (filter, shared) = read_filter(reader, context)?;
        let options = reader.u8()?;
        let reserved = if context.version.is_v5() { 0xC0 } else { 0xFC };
        if options & reserved != 0 {
            return Err(DecodeError::SubscribeOptions);
        }
        let qos = Qos::from_u8(options & 3).ok_or(DecodeError::SubscribeQos)?;
        let no_local = options & NO_LOCAL != 0;
        if no_local && shared {
            return Err(DecodeError::NoLocalShared);
        }
        let retain_handling = match options >> 4 {
            0 => RetainHandling::Send,
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::DoNotSend,
            _ => return Err(DecodeError::RetainHandling),
        };
        let retain_as_published = options & RETAIN_AS_PUBLISHED != 0;
        Ok(Self { filter, qos, no_local, retain_as_published, retain_handling })
    }

    fn options(&self, version: Version) -> u8 {
        let mut options = self.qos as u8;
        if version.is_v5() {
            options |= (self.retain_handling as u8) << 4;
            if self.no_local {
                options |= NO_LOCAL;
            }
            if self.retain_as_published {
                options |= RETAIN_AS_PUBLISHED;
            }
        }
        options
    }
}

/// A valid filter, and whether it is a shared one, which only 5.0 has.
fn read_filter(reader: &mut Reader, context: &Context<'_>) -> Result<(Utf8, bool), DecodeError> {
    let filter = reader.utf8()?;
    let shared = if context.version.is_v5() { topic::shared(&filter).transpose()? } else { None };
    topic::validate_filter(shared.map_or(&*filter, |shared| shared.filter), context.limits.levels)?;
    let is_shared = shared.is_some();
    Ok((filter, is_shared))
}

impl Subscribe {
    pub(super) fn decode(mut reader: Reader, context: &Context<'_>) -> Result<Self, DecodeError> {
        let packet_id = reader.packet_id()?;
        let properties = match context.version {
            Version::V5 => properties::read_boxed(&mut reader, context.limits)?,
            _ => None,
        };
        if reader.is_empty() {
            return Err(DecodeError::NoFilter);
        }
        let mut filters = Vec::new();
        while !reader.is_empty() {
            if filters.len() >= context.limits.filters {
                return Err(DecodeError::Filters);
            }
            filters.push(Subscription::decode(&mut reader, context)?);
        }
        Ok(Self { packet_id, filters, properties })
    }

    pub(super) fn remaining(&self, version: Version) -> usize {
        let filters: usize = self.filters.iter().map(|subscription| 3 + subscription.filter.len()).sum();
        2 + if version.is_v5() {
            properties::len(properties::body_len(self.properties.as_deref()))
        } else {
            0
        } + filters
    }

    /// Appends the packet to `out`.
    pub fn encode(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        let remaining = self.remaining(version);
        write::fixed_header(0x82, remaining, remaining, out)?;
        out.put_u16(self.packet_id.get());
        if version.is_v5() {
            properties::write(self.properties.as_deref(), out);
        }
        for subscription in &self.filters {
            write::binary(subscription.filter.as_bytes(), out);
            out.put_u8(subscription.options(version));
        }
        Ok(())
    }
}

/// A client wants messages no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// The packet id, for the UNSUBACK.
    pub packet_id: PacketId,
    /// Which ones; at least one filter.
    pub filters: Vec<Utf8>,
    /// Properties; none before 5.0.
    pub properties: Option<Box<UnsubscribeProperties>>,
}

impl Unsubscribe {
    pub(super) fn decode(mut reader: Reader, context: &Context<'_>) -> Result<Self, DecodeError> {
        let packet_id = reader.packet_id()?;
        let properties = match context.version {
            Version::V5 => properties::read_boxed(&mut reader, context.limits)?,
            _ => None,
        };
        if reader.is_empty() {
            return Err(DecodeError::NoUnsubscribeFilter);
        }
        let mut filters = Vec::new();
        while !reader.is_empty() {
            if filters.len() >= context.limits.filters {
                return Err(DecodeError::Filters);
            }
            filters.push(read_filter(&mut reader, context)?.0);
        }
        Ok(Self { packet_id, filters, properties })
    }

    pub(super) fn remaining(&self, version: Version) -> usize {
        let filters: usize = self.filters.iter().map(|filter| 2 + filter.len()).sum();
        2 + if version.is_v5() {
            properties::len(properties::body_len(self.properties.as_deref()))
        } else {
            0
        } + filters
    }

    /// Appends the packet to `out`.
    pub fn encode(&self, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
        let remaining = self.remaining(version);
        write::fixed_header(0xA2, remaining, remaining, out)?;
        out.put_u16(self.packet_id.get());
        if version.is_v5() {
            properties::write(self.properties.as_deref(), out);
        }
        for filter in &self.filters {
            write::binary(filter.as_bytes(), out);
        }
        Ok(())
    }
}
