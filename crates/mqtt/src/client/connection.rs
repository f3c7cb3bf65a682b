//! A connection: TCP or TLS, CONNECT and CONNACK.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use postroad_core::{Error, ErrorKind, Result};
use std::num::{NonZeroU16, NonZeroU32};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

use super::outgoing::Terms;
use super::{MqttOptions, NAME, lost, refusal};
use crate::codec::{Connack, Connect, Decoder, Limits, Packet, Qos, Utf8, Version};

/// Until CONNACK is there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest packet that a client takes.
const MAXIMUM_PACKET_SIZE: NonZeroU32 = NonZeroU32::MIN.saturating_add((16 << 20) - 1);

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// How a session is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Session<'a> {
    pub(super) client_id: &'a str,
    pub(super) clean_start: bool,
    /// Seconds.
    pub(super) expiry: u32,
}

pub(super) struct Connection {
    pub(super) stream: Box<dyn Stream>,
    pub(super) decoder: Decoder,
    pub(super) buffer: BytesMut,
    pub(super) connack: Connack,
    pub(super) keep_alive: Duration,
}

impl Connection {
    /// What the server said of itself.
    pub(super) fn terms(&self) -> Terms {
        let properties = &self.connack.properties;
        Terms {
            session_present: self.connack.session_present,
            receive_maximum: properties.receive_maximum.map_or(u16::MAX, NonZeroU16::get),
            maximum_packet_size: properties.maximum_packet_size.map_or(u32::MAX, NonZeroU32::get),
        }
    }

    /// The highest QoS of the server.
    pub(super) fn maximum_qos(&self) -> Qos {
        match self.connack.properties.maximum_qos {
            Some(false) => Qos::AtMostOnce,
            Some(true) => Qos::AtLeastOnce,
            None => Qos::ExactlyOnce,
        }
    }

    /// The next packet.
    pub(super) async fn packet(&mut self) -> Result<Packet> {
        loop {
            match self.decoder.decode(&mut self.buffer) {
                Ok(Some(packet)) => return Ok(packet),
                Ok(None) => {}
                Err(why) => return Err(lost(format!("the server sent what is no MQTT: {why}"))),
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(lost("the server closed the connection")),
                Ok(_) => {}
                Err(why) => return Err(lost(why.to_string())),
            }
        }
    }

    /// Writes all of `bytes`.
    pub(super) async fn write(&mut self, mut bytes: BytesMut) -> Result<()> {
        while bytes.has_remaining() {
            self.stream.write_buf(&mut bytes).await.map_err(|why| lost(why.to_string()))?;
        }
        Ok(())
    }
}

/// Connects, within 10 seconds.
///
/// # Errors
/// [`Disconnected`](ErrorKind::Disconnected) when nobody answers as an MQTT server does, and what a refusing CONNACK means.
pub(super) async fn connect(options: &MqttOptions, session: Session<'_>) -> Result<Connection> {
    match tokio::time::timeout(CONNECT_TIMEOUT, connect_now(options, session)).await {
        Ok(connected) => connected,
        Err(_) => Err(lost(format!("no CONNACK in {CONNECT_TIMEOUT:?}"))),
    }
}

async fn connect_now(options: &MqttOptions, session: Session<'_>) -> Result<Connection> {
    let socket = TcpStream::connect((options.host.as_str(), options.port)).await;
    let socket = socket.map_err(|why| lost(format!("{}:{}: {why}", options.host, options.port)))?;
    socket.set_nodelay(true).map_err(|why| lost(why.to_string()))?;
    let stream: Box<dyn Stream> =
        if options.tls { encrypt(options, socket).await? } else { Box::new(socket) };

    let limits = Limits { max_packet_size: MAXIMUM_PACKET_SIZE.get(), ..super::log::limits() };
    let mut connection = Connection {
        stream,
        decoder: Decoder::client(Version::V5, limits),
        buffer: BytesMut::new(),
        connack: Connack::accepted(false),
        keep_alive: options.keep_alive,
    };
    let mut bytes = BytesMut::new();
    let packet = connect_packet(options, session)?;
    packet.encode(&mut bytes).map_err(|why| Error::new(ErrorKind::Config, NAME, why.to_string()))?;
    connection.write(bytes).await?;
    match connection.packet().await? {
        Packet::Connack(connack) if connack.reason.is_error() => {
            let text = connack.properties.reason_string.as_ref().map(Utf8::as_str);
            Err(refusal(connack.reason, text))
        }
        Packet::Connack(connack) => {
            // [MQTT-3.2.2-21]
            if let Some(seconds) = connack.properties.server_keep_alive {
                connection.keep_alive = match seconds {
                    // Never: the server does not look, this side still does.
                    0 => options.keep_alive,
                    seconds => Duration::from_secs(seconds.into()),
                };
            }
            connection.connack = *connack;
            Ok(connection)
        }
        other => Err(lost(format!("the server began with a {:?}", other.packet_type()))),
    }
}

fn connect_packet(options: &MqttOptions, session: Session<'_>) -> Result<Connect> {
    let text = |what: &str, text: &str| {
        Utf8::new(text.to_owned())
            .map_err(|why| Error::new(ErrorKind::Config, NAME, format!("{what}: {why}")))
    };
    let mut connect = Connect::new(Version::V5, text("client id", session.client_id)?);
    connect.clean_start = session.clean_start;
    connect.keep_alive = u16::try_from(options.keep_alive.as_secs()).unwrap_or(u16::MAX).max(1);
    connect.user_name = options.user.as_deref().map(|user| text("user name", user)).transpose()?;
    connect.password = options.password.as_ref().map(|password| password.clone().into_bytes().into());
    connect.properties.session_expiry_interval = Some(session.expiry);
    connect.properties.receive_maximum = NonZeroU16::new(options.receive_maximum);
    connect.properties.maximum_packet_size = Some(MAXIMUM_PACKET_SIZE);
    Ok(connect)
}

async fn encrypt(options: &MqttOptions, socket: TcpStream) -> Result<Box<dyn Stream>> {
    let config = |text: String| Error::new(ErrorKind::Config, NAME, text);
    let file = options.ca.as_deref().ok_or_else(|| config("mqtts: needs `ca=FILE`".to_owned()))?;
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(file);
    let certificates = certificates.map_err(|why| config(format!("{}: {why}", file.display())))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|why| config(format!("{}: {why}", file.display())))?;
        roots.add(certificate).map_err(|why| config(format!("{}: {why}", file.display())))?;
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|why| config(why.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(options.host.clone()).map_err(|why| config(why.to_string()))?;
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, socket).await;
    Ok(Box::new(stream.map_err(|why| lost(format!("TLS with {}: {why}", options.host)))?))
}
