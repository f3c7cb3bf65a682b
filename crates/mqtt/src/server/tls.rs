//! Certificates from files, and changing them while the server runs.

use super::ServerError;
use super::config::TlsFiles;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

/// The certificates of one listener.
#[derive(Debug)]
pub(super) struct Certificates {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
}

impl Certificates {
    pub(super) fn load(files: TlsFiles) -> Result<Self, ServerError> {
        let current = RwLock::new(Arc::new(read(&files)?));
        Ok(Self { files, current })
    }

    /// Reads the files again. On an error the old certificates stay; connections keep what they began with.
    pub(super) fn reload(&self) -> Result<(), ServerError> {
        let new = Arc::new(read(&self.files)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(files: &TlsFiles) -> Result<ServerConfig, ServerError> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| bad(&files.key, error))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&files.certificate, error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = tokio_rustls::rustls::RootCertStore::empty();
            for certificate in certificates(ca)? {
                roots.add(certificate).map_err(|error| bad(ca, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier =
                if files.require_client_certificate { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| bad(ca, error))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| bad(&files.certificate, error))?;
    // MQTT connections are long: tickets and a cache would cost each of them memory for a resumption that is rare, and
    // a resumed session would skip the check of a client certificate that a reload no longer trusts.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServerError> {
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| bad(path, error))?;
    if found.is_empty() {
        return Err(bad(path, "there is no certificate in it"));
    }
    Ok(found)
}

fn bad(path: &Path, reason: impl std::fmt::Display) -> ServerError {
    ServerError::Certificate { path: path.to_owned(), reason: reason.to_string() }
}
