//! The properties of MQTT 5.0 (section 2.2.2), one struct for each packet that has some.

mod field;

use std::num::{NonZeroU16, NonZeroU32};

use bytes::{Bytes, BytesMut};

use super::read::Reader;
use super::write;
use super::{DecodeError, EncodeError, Limits, SubscriptionId, Utf8};
pub(super) use field::Field;

/// What the structs have in common.
pub(super) trait Properties: Default {
    fn read_one(&mut self, id: u32, reader: &mut Reader, limits: &Limits) -> Result<(), DecodeError>;
    /// What the fields permit only together.
    fn check_read(&self) -> Result<(), DecodeError>;
    fn check_write(&self) -> Result<(), EncodeError>;
    /// Bytes after the property length.
    fn body_len(&self) -> usize;
    fn write_body(&self, out: &mut BytesMut);
}

/// Reads property length and properties.
pub(super) fn read<P: Properties>(reader: &mut Reader, limits: &Limits) -> Result<P, DecodeError> {
    Ok(read_boxed(reader, limits)?.map_or_else(P::default, |boxed| *boxed))
}

/// Like [`read`], but nothing for a length of 0.
pub(super) fn read_boxed<P: Properties>(
    reader: &mut Reader,
    limits: &Limits,
) -> Result<Option<Box<P>>, DecodeError> {
    let len = reader.varint()? as usize;
    if len == 0 {
        return Ok(None);
    }
    let mut part = Reader::new(reader.take(len).map_err(|_| DecodeError::PropertyLength)?);
    let mut properties = Box::<P>::default();
    while !part.is_empty() {
        let id = part.varint()?;
        properties.read_one(id, &mut part, limits)?;
    }
    properties.check_read()?;
    Ok(Some(properties))
}

/// The length of property length and properties.
pub(super) fn len(body_len: usize) -> usize {
    write::varint_len(body_len) + body_len
}

pub(super) fn body_len<P: Properties>(properties: Option<&P>) -> usize {
    properties.map_or(0, P::body_len)
}

pub(super) fn check<P: Properties>(properties: Option<&P>) -> Result<(), EncodeError> {
    properties.map_or(Ok(()), P::check_write)
}

pub(super) fn write<P: Properties>(properties: Option<&P>, out: &mut BytesMut) {
    write::varint(body_len(properties), out);
    if let Some(properties) = properties {
        properties.write_body(out);
    }
}

macro_rules! properties {
    (
        $(#[doc = $doc:literal])*
        $name:ident $(($check:path))? {
            $($(#[doc = $field_doc:literal])* $field:ident: $slot:ty = $kind:ident $id:literal,)*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[doc = $field_doc])* pub $field: $slot,)*
            /// Names and values for the application, in the order of the packet.
            pub user_properties: Vec<(Utf8, Utf8)>,
        }

        impl Properties for $name {
            fn read_one(&mut self, id: u32, reader: &mut Reader, limits: &Limits) -> Result<(), DecodeError> {
                match id {
                    $($id => field::$kind::read(&mut self.$field, reader),)*
                    field::USER_PROPERTY => {
                        field::read_user_property(&mut self.user_properties, reader, limits)
                    }
                    _ => Err(DecodeError::PropertyUnknown),
                }
            }

            fn check_read(&self) -> Result<(), DecodeError> {
                $($check(self)?;)?
                Ok(())
            }

            fn check_write(&self) -> Result<(), EncodeError> {
                $(field::$kind::check(&self.$field)?;)*
                Ok(())
            }

            fn body_len(&self) -> usize {
                $(field::$kind::len(&self.$field) +)* field::user_properties_len(&self.user_properties)
            }

            fn write_body(&self, out: &mut BytesMut) {
                $(field::$kind::write(&self.$field, $id, out);)*
                field::write_user_properties(&self.user_properties, out);
            }
        }
    };
}

/// Data belongs to a method.
fn check_connect(properties: &ConnectProperties) -> Result<(), DecodeError> {
    if properties.authentication_data.is_some() && properties.authentication_method.is_none() {
        return Err(DecodeError::AuthenticationData);
    }
    Ok(())
}

fn check_connack(properties: &ConnackProperties) -> Result<(), DecodeError> {
    if properties.authentication_data.is_some() && properties.authentication_method.is_none() {
        return Err(DecodeError::AuthenticationData);
    }
    Ok(())
}

fn check_auth(properties: &AuthProperties) -> Result<(), DecodeError> {
    if properties.authentication_method.is_none() {
        return Err(DecodeError::AuthenticationMethod);
    }
    Ok(())
}

properties! {
    /// What CONNECT may say (section 3.1.2.11).
    ConnectProperties(check_connect) {
        /// Seconds that the session lives on without a connection; `u32::MAX` is for ever, absent is 0.
        session_expiry_interval: Option<u32> = U32 0x11,
        /// The authentication method.
        authentication_method: Option<Utf8> = Text 0x15,
        /// The data of the authentication method.
        authentication_data: Option<Bytes> = Binary 0x16,
        /// Whether reason strings and user properties may come with failures; absent is true.
        request_problem_information: Option<bool> = Flag 0x17,
        /// Whether response information is wanted; absent is false.
        request_response_information: Option<bool> = Flag 0x19,
        /// How many QoS 1 and 2 messages the client takes unacknowledged; absent is 65535.
        receive_maximum: Option<NonZeroU16> = ReceiveMaximum 0x21,
        /// The highest topic alias that the client takes; absent is 0, none.
        topic_alias_maximum: Option<u16> = U16 0x22,
        /// The largest packet in bytes that the client takes; absent is no limit.
        maximum_packet_size: Option<NonZeroU32> = MaximumPacketSize 0x27,
    }
}

properties! {
    /// What a will may say (section 3.1.3.2).
    WillProperties {
        /// Whether the payload is UTF-8.
        payload_format_indicator: Option<bool> = Flag 0x01,
        /// Seconds that the message is of use.
        message_expiry_interval: Option<u32> = U32 0x02,
        /// What the payload is, a MIME type for example.
        content_type: Option<Utf8> = Text 0x03,
        /// The topic for a response.
        response_topic: Option<Utf8> = ResponseTopic 0x08,
        /// What tells the requester which response it is.
        correlation_data: Option<Bytes> = Binary 0x09,
        /// Seconds between the end of the connection and the will; absent is 0.
        will_delay_interval: Option<u32> = U32 0x18,
    }
}

properties! {
    /// What CONNACK may say (section 3.2.2.3).
    ConnackProperties(check_connack) {
        /// Seconds that the session lives on, if it is not what the client asked for.
        session_expiry_interval: Option<u32> = U32 0x11,
        /// The client id that the server chose.
        assigned_client_identifier: Option<Utf8> = Text 0x12,
        /// The keep alive in seconds that the client must use instead of its own.
        server_keep_alive: Option<u16> = U16 0x13,
        /// The authentication method.
        authentication_method: Option<Utf8> = Text 0x15,
        /// The data of the authentication method.
        authentication_data: Option<Bytes> = Binary 0x16,
        /// What response topics are made of.
        response_information: Option<Utf8> = Text 0x1A,
        /// Another server.
        server_reference: Option<Utf8> = Text 0x1C,
        /// What happened, for people.
        reason_string: Option<Utf8> = Text 0x1F,
        /// How many QoS 1 and 2 messages the server takes unacknowledged; absent is 65535.
        receive_maximum: Option<NonZeroU16> = ReceiveMaximum 0x21,
        /// The highest topic alias that the server takes; absent is 0, none.
        topic_alias_maximum: Option<u16> = U16 0x22,
        /// The highest QoS of the server: false is 0, true is 1, absent is 2.
        maximum_qos: Option<bool> = MaximumQos 0x24,
        /// Whether the server keeps retained messages; absent is true.
        retain_available: Option<bool> = Flag 0x25,
        /// The largest packet in bytes that the server takes; absent is no limit.
        maximum_packet_size: Option<NonZeroU32> = MaximumPacketSize 0x27,
        /// Whether the server has wildcard subscriptions; absent is true.
        wildcard_subscription_available: Option<bool> = Flag 0x28,
        /// Whether the server has subscription identifiers; absent is true.
        subscription_identifiers_available: Option<bool> = Flag 0x29,
        /// Whether the server has shared subscriptions; absent is true.
        shared_subscription_available: Option<bool> = Flag 0x2A,
    }
}

properties! {
    /// What PUBLISH may say (section 3.3.2.3).
    PublishProperties {
        /// Whether the payload is UTF-8.
        payload_format_indicator: Option<bool> = Flag 0x01,
        /// Seconds that the message is of use.
        message_expiry_interval: Option<u32> = U32 0x02,
        /// What the payload is, a MIME type for example.
        content_type: Option<Utf8> = Text 0x03,
        /// The topic for a response.
        response_topic: Option<Utf8> = ResponseTopic 0x08,
        /// What tells the requester which response it is.
        correlation_data: Option<Bytes> = Binary 0x09,
        /// The subscriptions of this client that match; only a server says it.
        subscription_ids: Vec<SubscriptionId> = SubscriptionIds 0x0B,
        /// The number that stands for the topic name on this connection.
        topic_alias: Option<NonZeroU16> = TopicAlias 0x23,
    }
}

impl PublishProperties {
    /// Those that belong to the message, not to one delivery of it.
    pub(super) fn message_len(&self) -> usize {
        field::Flag::len(&self.payload_format_indicator)
            + field::Text::len(&self.content_type)
            + field::ResponseTopic::len(&self.response_topic)
            + field::Binary::len(&self.correlation_data)
            + field::user_properties_len(&self.user_properties)
    }

    pub(super) fn write_message(&self, out: &mut BytesMut) {
        field::Flag::write(&self.payload_format_indicator, 0x01, out);
        field::Text::write(&self.content_type, 0x03, out);
        field::ResponseTopic::write(&self.response_topic, 0x08, out);
        field::Binary::write(&self.correlation_data, 0x09, out);
        field::write_user_properties(&self.user_properties, out);
    }
}

/// Those of one delivery of a message.
pub(super) struct DeliveryProperties<'a> {
    pub(super) message_expiry_interval: Option<u32>,
    pub(super) topic_alias: Option<NonZeroU16>,
    pub(super) subscription_ids: &'a [SubscriptionId],
}

impl DeliveryProperties<'_> {
    pub(super) fn len(&self) -> usize {
        field::U32::len(&self.message_expiry_interval)
            + field::TopicAlias::len(&self.topic_alias)
            + field::subscription_ids_len(self.subscription_ids)
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        field::U32::write(&self.message_expiry_interval, 0x02, out);
        field::write_subscription_ids(self.subscription_ids, 0x0B, out);
        field::TopicAlias::write(&self.topic_alias, 0x23, out);
    }
}

properties! {
    /// What PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK and UNSUBACK may say (section 3.4.2.2).
    AckProperties {
        /// What happened, for people.
        reason_string: Option<Utf8> = Text 0x1F,
    }
}

properties! {
    /// What SUBSCRIBE may say (section 3.8.2.1).
    SubscribeProperties {
        /// The number that comes with every message of these subscriptions.
        subscription_id: Option<SubscriptionId> = SubscribeId 0x0B,
    }
}

properties! {
    /// What UNSUBSCRIBE may say (section 3.10.2.1).
    UnsubscribeProperties {}
}

properties! {
    /// What DISCONNECT may say (section 3.14.2.2).
    DisconnectProperties {
        /// Seconds that the session lives on; only a client says it.
        session_expiry_interval: Option<u32> = U32 0x11,
        /// Another server.
        server_reference: Option<Utf8> = Text 0x1C,
        /// What happened, for people.
        reason_string: Option<Utf8> = Text 0x1F,
    }
}

properties! {
    /// What AUTH may say (section 3.15.2.2).
    AuthProperties(check_auth) {
        /// The authentication method.
        authentication_method: Option<Utf8> = Text 0x15,
        /// The data of the authentication method.
        authentication_data: Option<Bytes> = Binary 0x16,
        /// What happened, for people.
        reason_string: Option<Utf8> = Text 0x1F,
    }
}
