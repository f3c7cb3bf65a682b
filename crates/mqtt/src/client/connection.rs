//! A connection: TCP or TLS, CONNECT and CONNACK, and which version is spoken.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use super::{MqttOptions, NAME, lost, lower_qos, refusal};
use crate::codec::{Connack, Connect, Decoder, Limits, Packet, Qos, ReasonCode, Utf8, Version};

/// Until CONNACK is there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two tries with a server that closes the connection without an answer.
const CLOSED_PAUSE: Duration = Duration::from_millis(100);
/// How many QoS 1 and 2 messages are under way to a server that cannot say how many it takes: before 5.0 there is no
/// Receive Maximum. Servers have limits all the same, and the lowest known is mosquitto's 20: what is beyond, it answers
/// with a PUBREC whose error 3.1.1 has no place for, and drops.
const WINDOW_BEFORE_V5: u16 = 20;
/// The largest packet that a client takes.
const MAXIMUM_PACKET_SIZE: NonZeroU32 = NonZeroU32::MIN.saturating_add((16 << 20) - 1);

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The server, and which version it turned out to speak.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) options: Arc<MqttOptions>,
    agreed: Mutex<Option<Version>>,
}

impl Target {
    pub(super) fn new(options: Arc<MqttOptions>) -> Self {
        Self { options, agreed: Mutex::new(None) }
    }

    fn agreed(&self) -> MutexGuard<'_, Option<Version>> {
        self.agreed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was asked for, or what was agreed on.
    pub(super) fn version(&self) -> Option<Version> {
        self.options.version.or_else(|| *self.agreed())
    }
}

/// How a session is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Session<'a> {
    pub(super) client_id: &'a str,
    pub(super) clean_start: bool,
    /// Seconds.
    pub(super) expiry: u32,
}

pub(super) struct Connection {
    pub(super) version: Version,
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
        let unsaid = if self.version.is_v5() { u16::MAX } else { WINDOW_BEFORE_V5 };
        Terms {
            version: self.version,
            session_present: self.connack.session_present,
            receive_maximum: properties.receive_maximum.map_or(unsaid, NonZeroU16::get),
            maximum_packet_size: properties.maximum_packet_size.map_or(u32::MAX, NonZeroU32::get),
        }
    }

    /// The highest QoS of the server. One of 3.1.1 cannot say it.
    fn maximum_qos(&self) -> Qos {
        match self.connack.properties.maximum_qos {
            Some(false) => Qos::AtMostOnce,
            Some(true) => Qos::AtLeastOnce,
            None => Qos::ExactlyOnce,
        }
    }

    /// Waits for an answer of any kind, and looks whether it is one of this version: a server that knows only older
    /// ones refuses as they do [MQTT-3.1.2-2], with a CONNACK of two bytes, which 5.0 does not have.
    async fn first_bytes(&mut self) -> Result<(), No> {
        while self.buffer.len() < 2 {
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(No::Closed(lost("the server closed the connection"))),
                Ok(_) => {}
                Err(why) => return Err(No::Closed(lost(why.to_string()))),
            }
        }
        if self.version.is_v5() && self.buffer.starts_with(&[0x20, 2]) {
            return Err(No::Version(refusal(ReasonCode::UnsupportedProtocolVersion, None)));
        }
        Ok(())
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
/// [`Disconnected`](ErrorKind::Disconnected) when nobody answers as an MQTT server does,
/// [`Unsupported`](ErrorKind::Unsupported) when the server's highest QoS is lower, and what a refusing CONNACK means.
pub(super) async fn connect(target: &Target, session: Session<'_>) -> Result<Connection> {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, negotiate(target, session)).await;
    let connection = connected.map_err(|_| lost(format!("no CONNACK in {CONNECT_TIMEOUT:?}")))??;
    let highest = connection.maximum_qos();
    if highest < target.options.qos {
        return Err(lower_qos(highest));
    }
    Ok(connection)
}

/// Why a try to connect failed.
enum No {
    /// The server does not speak this version.
    Version(Error),
    /// It closed the connection without an answer, as some do that do not speak this version.
    Closed(Error),
    Failed(Error),
}

impl From<Error> for No {
    fn from(why: Error) -> Self {
        Self::Failed(why)
    }
}

impl No {
    fn error(self) -> Error {
        let (Self::Version(why) | Self::Closed(why) | Self::Failed(why)) = self;
        why
    }
}

/// With the version that was asked for or that worked before; else 5.0, and 3.1.1 if that is refused.
async fn negotiate(target: &Target, session: Session<'_>) -> Result<Connection> {
    let options = &target.options;
    if let Some(version) = target.version() {
        let connected = connect_now(options, version, session).await;
        if let Err(No::Version(_)) = &connected {
            // It is another server by now: the next connection asks anew.
            *target.agreed() = None;
        }
        return connected.map_err(No::error);
    }
    let mut connected = connect_now(options, Version::V5, session).await;
    if let Err(No::Closed(_)) = &connected {
        // A connection may be closed for many reasons. Twice is taken for an answer.
        tokio::time::sleep(CLOSED_PAUSE).await;
        connected = connect_now(options, Version::V5, session).await;
    }
    let mut version = Version::V5;
    if let Err(No::Version(why) | No::Closed(why)) = &connected {
        tracing::debug!(%why, "the server does not take MQTT 5.0");
        version = Version::V311;
        let older = connect_now(options, version, session).await;
        // When this is closed, too, the version is not the reason.
        if !matches!(older, Err(No::Closed(_))) {
            connected = older;
        }
    }
    let connection = connected.map_err(No::error)?;
    *target.agreed() = Some(version);
    Ok(connection)
}

async fn connect_now(
    options: &MqttOptions,
    version: Version,
    session: Session<'_>,
) -> Result<Connection, No> {
    let socket = TcpStream::connect((options.host.as_str(), options.port)).await;
    let socket = socket.map_err(|why| lost(format!("{}:{}: {why}", options.host, options.port)))?;
    socket.set_nodelay(true).map_err(|why| lost(why.to_string()))?;
    let stream: Box<dyn Stream> =
        if options.tls { encrypt(options, socket).await? } else { Box::new(socket) };

    let limits = Limits { max_packet_size: MAXIMUM_PACKET_SIZE.get(), ..super::log::limits() };
    let mut connection = Connection {
        version,
        stream,
        decoder: Decoder::client(version, limits),
        buffer: BytesMut::new(),
        connack: Connack::accepted(false),
        keep_alive: options.keep_alive,
    };
    let mut bytes = BytesMut::new();
    let packet = connect_packet(options, version, session)?;
    packet.encode(&mut bytes).map_err(|why| Error::new(ErrorKind::Config, NAME, why.to_string()))?;
    // A server that closes at once may be gone before all is written.
    connection.write(bytes).await.map_err(No::Closed)?;
    connection.first_bytes().await?;
    match connection.packet().await? {
        Packet::Connack(connack) if connack.reason.is_error() => {
            let text = connack.properties.reason_string.as_ref().map(Utf8::as_str);
            let why = refusal(connack.reason, text);
            let of_version = connack.reason == ReasonCode::UnsupportedProtocolVersion;
            Err(if of_version { No::Version(why) } else { No::Failed(why) })
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
        other => Err(lost(format!("the server began with a {:?}", other.packet_type())).into()),
    }
}

fn connect_packet(options: &MqttOptions, version: Version, session: Session<'_>) -> Result<Connect> {
    let text = |what: &str, text: &str| {
        Utf8::new(text.to_owned())
            .map_err(|why| Error::new(ErrorKind::Config, NAME, format!("{what}: {why}")))
    };
    let mut connect = Connect::new(version, text("client id", session.client_id)?);
    connect.clean_start = session.clean_start;
    connect.keep_alive = u16::try_from(options.keep_alive.as_secs()).unwrap_or(u16::MAX).max(1);
    connect.user_name = options.user.as_deref().map(|user| text("user name", user)).transpose()?;
    connect.password = options.password.as_ref().map(|password| password.clone().into_bytes().into());
    if !version.is_v5() {
        return Ok(connect);
    }
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
