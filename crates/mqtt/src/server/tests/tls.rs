//! Certificates made for the test, real handshakes.

use super::super::config::TlsFiles;
use super::super::{EdgeServer, ServerError};
use super::{Running, ask, config, is_closed, listen, start};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "the authority");
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Authority { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
}

struct Identity {
    certificate: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

impl Authority {
    fn sign(&self, name: &str) -> Identity {
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, "not the name");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.der().clone(), pem: certificate.pem(), key }
    }
}

fn write_files(directory: &Path, server: &Identity, clients: Option<&Authority>) -> TlsFiles {
    std::fs::write(directory.join("cert.pem"), &server.pem).unwrap();
    std::fs::write(directory.join("key.pem"), server.key.serialize_pem()).unwrap();
    if let Some(clients) = clients {
        std::fs::write(directory.join("ca.pem"), &clients.pem).unwrap();
    }
    TlsFiles {
        certificate: directory.join("cert.pem"),
        key: directory.join("key.pem"),
        client_ca: clients.map(|_| directory.join("ca.pem")),
        require_client_certificate: clients.is_some(),
    }
}

type TlsClient = StreamOwned<ClientConnection, TcpStream>;

fn connect(server: &Running, trusted: &Authority, identity: Option<&Identity>) -> std::io::Result<TlsClient> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(
                vec![identity.certificate.clone()],
                PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap(),
            )
            .unwrap(),
    };
    let client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(client, server.connect());
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    stream.flush()?;
    Ok(stream)
}

fn serve(files: TlsFiles) -> Running {
    let mut listen = listen();
    listen.tls = Some(files);
    listen.sockets.send_buffer = Some(16 << 10);
    start(config(vec![listen]))
}

#[test]
fn packets_go_through_tls() {
    let directory = tempfile::tempdir().unwrap();
    let ours = authority();
    let server = serve(write_files(directory.path(), &ours.sign("server"), None));
    let mut stream = connect(&server, &ours, None).unwrap();
    assert_eq!(ask(&mut stream, b'e', b"hello"), b"hello");
    assert_eq!(ask(&mut stream, b'd', b"durable"), b"durable");
    assert_eq!(ask(&mut stream, b'n', b""), b"");
    // More than rustls buffers and more than the socket takes.
    for size in [1, 20, 64] {
        stream.write_all(&super::packet(b'f', &[200, size])).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        for _ in 0..200 {
            assert_eq!(super::answer(&mut stream), vec![b'f'; usize::from(size) << 10]);
        }
    }
    assert_eq!(ask(&mut stream, b'x', b""), b"bye");
    assert!(is_closed(&mut stream), "with a close_notify");
    // Its last packet and its goodbye in one segment: what is ready still goes out.
    let mut stream = connect(&server, &ours, None).unwrap();
    std::io::Write::write_all(&mut stream.conn.writer(), &super::packet(b'e', b"last")).unwrap();
    stream.conn.send_close_notify();
    let mut wire = Vec::new();
    while stream.conn.wants_write() {
        stream.conn.write_tls(&mut wire).unwrap();
    }
    stream.sock.write_all(&wire).unwrap();
    assert_eq!(super::answer(&mut stream), b"last");
    assert!(connect(&server, &authority(), None).is_err(), "another authority");
    // Not TLS at all.
    let mut plain = server.connect();
    plain.write_all(&super::packet(b'e', b"plain text here")).unwrap();
    assert!(!is_closed(&mut plain), "an alert comes first");
    server.until("counted", |stats| stats.failed_handshakes >= 1 && stats.connections == 0);
    server.end().unwrap();
}

#[test]
fn a_client_certificate_gives_a_name_and_only_from_the_right_authority() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, clients, others) = (authority(), authority(), authority());
    let files = write_files(directory.path(), &ours.sign("server"), Some(&clients));
    let server = serve(files.clone());
    for name in ["sensor-7", "Müller & Söhne"] {
        let mut stream = connect(&server, &ours, Some(&clients.sign(name))).unwrap();
        assert_eq!(ask(&mut stream, b'n', b""), name.as_bytes());
    }
    // In TLS 1.3 the client hears of it only after its handshake.
    for identity in [None, Some(others.sign("sensor-7"))] {
        let refused = connect(&server, &ours, identity.as_ref()).and_then(|mut stream| {
            stream.write_all(&super::packet(b'n', b""))?;
            std::io::Read::read_exact(&mut stream, &mut [0; 1])
        });
        assert!(refused.is_err(), "{:?}", identity.map(|identity| identity.pem));
    }
    server.until("counted", |stats| stats.failed_handshakes == 2);
    drop(server);
    // Optional: no certificate, no name; a wrong one is still refused.
    let server = serve(TlsFiles { require_client_certificate: false, ..files });
    let mut stream = connect(&server, &ours, None).unwrap();
    assert_eq!(ask(&mut stream, b'n', b""), b"");
    let wrong = connect(&server, &ours, Some(&others.sign("sensor-7"))).and_then(|mut stream| {
        stream.write_all(&super::packet(b'n', b""))?;
        std::io::Read::read_exact(&mut stream, &mut [0; 1])
    });
    assert!(wrong.is_err());
}

#[test]
fn certificates_change_while_connections_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (authority(), authority());
    let server = serve(write_files(directory.path(), &old.sign("server"), None));
    let mut before = connect(&server, &old, None).unwrap();
    assert_eq!(ask(&mut before, b'e', b"1"), b"1");
    std::fs::write(directory.path().join("cert.pem"), "no certificate").unwrap();
    let error = server.handle.reload_certificates().unwrap_err();
    assert!(error.to_string().contains("cert.pem"), "{error}");
    assert!(connect(&server, &old, None).is_ok(), "the old one stays");
    // A certificate without its key is an error as well.
    std::fs::write(directory.path().join("cert.pem"), new.sign("server").pem).unwrap();
    assert!(server.handle.reload_certificates().is_err());
    write_files(directory.path(), &new.sign("server"), None);
    server.handle.reload_certificates().unwrap();
    assert!(connect(&server, &old, None).is_err());
    assert_eq!(ask(&mut connect(&server, &new, None).unwrap(), b'e', b"2"), b"2");
    assert_eq!(ask(&mut before, b'e', b"3"), b"3");
}

#[test]
fn half_a_handshake_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let ours = authority();
    let server = serve(write_files(directory.path(), &ours.sign("server"), None));
    let begin = Instant::now();
    let mut half: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for stream in &mut half {
        stream.write_all(&[22, 3, 1]).unwrap();
    }
    for stream in &mut half {
        assert!(is_closed(stream));
    }
    assert!(begin.elapsed() >= Duration::from_millis(290), "{:?}", begin.elapsed());
    server.until("counted", |stats| stats.failed_handshakes == 20 && stats.connections == 0);
}

#[test]
fn a_missing_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut files = write_files(directory.path(), &authority().sign("server"), None);
    files.key = directory.path().join("missing.pem");
    let mut listen = listen();
    listen.tls = Some(files);
    let store = Arc::new(postroad_engine::log::MemoryStore::new(1 << 20));
    let error = EdgeServer::bind(config(vec![listen]), store).err().unwrap();
    assert!(
        matches!(&error, ServerError::Certificate { path, .. } if path.ends_with("missing.pem")),
        "{error}"
    );
}

#[test]
fn names_are_read_from_der_and_cuts_of_it_give_none_or_the_name() {
    let ours = authority();
    let identity = ours.sign("n");
    let der = identity.certificate.as_ref();
    assert_eq!(super::super::certificate::common_name(der).as_deref(), Some("n"));
    for cut in 0..der.len() {
        assert_eq!(super::super::certificate::common_name(&der[..cut]), None, "the outer length is checked");
    }
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..20_000 {
        let mut changed = der.to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..changed.len().min(200));
            changed[at] = random.u8(..);
        }
        let _ = super::super::certificate::common_name(&changed);
    }
    assert_eq!(super::super::certificate::common_name(ours.sign("a\0b").certificate.as_ref()), None);
}
