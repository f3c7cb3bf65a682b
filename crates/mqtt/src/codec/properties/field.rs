//! How one property is read and written.

use std::mem::size_of_val;
use std::num::{NonZeroU16, NonZeroU32};

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::read::Reader;
use crate::codec::{DecodeError, EncodeError, Limits, SubscriptionId, Utf8, write};

/// A kind of property. Every identifier is below 128, so that it takes one byte.
pub(in crate::codec) trait Field {
    type Slot;
    fn read(slot: &mut Self::Slot, reader: &mut Reader) -> Result<(), DecodeError>;
    /// Bytes with the identifier; 0 if absent.
    fn len(slot: &Self::Slot) -> usize;
    fn write(slot: &Self::Slot, id: u8, out: &mut BytesMut);
    fn check(_: &Self::Slot) -> Result<(), EncodeError> {
        Ok(())
    }
}

/// Fills a slot that may be filled once.
fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), DecodeError> {
    if slot.replace(value).is_some() { Err(DecodeError::PropertyTwice) } else { Ok(()) }
}

macro_rules! once {
    ($($name:ident: $value:ty, |$reader:ident| $read:expr, |$it:ident| $len:expr, |$out:ident| $write:expr;)*) => {$(
        pub(in crate::codec) struct $name;

        impl Field for $name {
            type Slot = Option<$value>;

            fn read(slot: &mut Self::Slot, $reader: &mut Reader) -> Result<(), DecodeError> {
                once(slot, $read)
            }

            fn len(slot: &Self::Slot) -> usize {
                slot.as_ref().map_or(0, |$it| 1 + $len)
            }

            fn write(slot: &Self::Slot, id: u8, $out: &mut BytesMut) {
                if let Some($it) = slot {
                    $out.put_u8(id);
                    $write;
                }
            }
        }
    )*};
}

fn flag(reader: &mut Reader, error: DecodeError) -> Result<bool, DecodeError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(error),
    }
}

fn response_topic(reader: &mut Reader) -> Result<Utf8, DecodeError> {
    let topic = reader.utf8()?;
    if topic.contains(['+', '#']) { Err(DecodeError::ResponseTopic) } else { Ok(topic) }
}

fn subscription_id(reader: &mut Reader) -> Result<SubscriptionId, DecodeError> {
    SubscriptionId::new(reader.varint()?).ok_or(DecodeError::SubscriptionIdZero)
}

fn subscription_id_len(id: SubscriptionId) -> usize {
    write::varint_len(id.get() as usize)
}

once! {
    Flag: bool, |r| flag(r, DecodeError::PropertyFlag)?, |it| size_of_val(it), |out| out.put_u8(u8::from(*it));
    MaximumQos: bool, |r| flag(r, DecodeError::MaximumQos)?, |it| size_of_val(it), |out| out.put_u8(u8::from(*it));
    U16: u16, |r| r.u16()?, |it| size_of_val(it), |out| out.put_u16(*it);
    U32: u32, |r| r.u32()?, |it| size_of_val(it), |out| out.put_u32(*it);
    ReceiveMaximum: NonZeroU16, |r| NonZeroU16::new(r.u16()?).ok_or(DecodeError::ReceiveMaximumZero)?, |it| size_of_val(it),
        |out| out.put_u16(it.get());
    TopicAlias: NonZeroU16, |r| NonZeroU16::new(r.u16()?).ok_or(DecodeError::TopicAliasZero)?, |it| size_of_val(it),
        |out| out.put_u16(it.get());
    MaximumPacketSize: NonZeroU32, |r| NonZeroU32::new(r.u32()?).ok_or(DecodeError::MaximumPacketSizeZero)?,
        |it| size_of_val(it), |out| out.put_u32(it.get());
    Text: Utf8, |r| r.utf8()?, |it| 2 + it.len(), |out| write::binary(it.as_bytes(), out);
    ResponseTopic: Utf8, |r| response_topic(r)?, |it| 2 + it.len(), |out| write::binary(it.as_bytes(), out);
    SubscribeId: SubscriptionId, |r| subscription_id(r)?, |it| subscription_id_len(*it),
        |out| write::varint(it.get() as usize, out);
}

pub(in crate::codec) struct Binary;

impl Field for Binary {
    type Slot = Option<Bytes>;

    fn read(slot: &mut Self::Slot, reader: &mut Reader) -> Result<(), DecodeError> {
        once(slot, reader.binary()?)
    }

    fn len(slot: &Self::Slot) -> usize {
        slot.as_ref().map_or(0, |bytes| 3 + bytes.len())
    }

    fn write(slot: &Self::Slot, id: u8, out: &mut BytesMut) {
        if let Some(bytes) = slot {
            out.put_u8(id);
            write::binary(bytes, out);
        }
    }

    fn check(slot: &Self::Slot) -> Result<(), EncodeError> {
        slot.as_deref().map_or(Ok(()), write::check_binary)
    }
}

/// One property for each subscription.
pub(in crate::codec) struct SubscriptionIds;

impl Field for SubscriptionIds {
    type Slot = Vec<SubscriptionId>;

    fn read(slot: &mut Self::Slot, reader: &mut Reader) -> Result<(), DecodeError> {
        slot.push(subscription_id(reader)?);
        Ok(())
    }

    fn len(slot: &Self::Slot) -> usize {
        subscription_ids_len(slot)
    }

    fn write(slot: &Self::Slot, id: u8, out: &mut BytesMut) {
        write_subscription_ids(slot, id, out);
    }
}

pub(super) fn subscription_ids_len(ids: &[SubscriptionId]) -> usize {
    ids.iter().map(|id| 1 + subscription_id_len(*id)).sum()
}

pub(super) fn write_subscription_ids(ids: &[SubscriptionId], id: u8, out: &mut BytesMut) {
    for number in ids {
        out.put_u8(id);
        write::varint(number.get() as usize, out);
    }
}

pub(super) const USER_PROPERTY: u32 = 0x26;

pub(super) fn read_user_property(
    properties: &mut Vec<(Utf8, Utf8)>,
    reader: &mut Reader,
    limits: &Limits,
) -> Result<(), DecodeError> {
    if properties.len() >= limits.user_properties {
        return Err(DecodeError::UserProperties);
    }
    properties.push((reader.utf8()?, reader.utf8()?));
    Ok(())
}

pub(super) fn user_properties_len(properties: &[(Utf8, Utf8)]) -> usize {
    properties.iter().map(|(name, value)| 5 + name.len() + value.len()).sum()
}

pub(super) fn write_user_properties(properties: &[(Utf8, Utf8)], out: &mut BytesMut) {
    for (name, value) in properties {
        out.put_u8(USER_PROPERTY as u8);
        write::binary(name.as_bytes(), out);
        write::binary(value.as_bytes(), out);
    }
}
