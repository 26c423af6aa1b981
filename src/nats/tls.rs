//! TLS to a NATS server: the system's certificate authorities or the ones that are named, a client
//! certificate if there is one, and always the name of the host. One provider (ring), never the
//! process default. Knows no sockets.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::error::TlsError;
use super::options::Options;

/// The TLS side of the options for one connection. Files are read anew each time.
pub(super) fn client_config(options: &Options) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots(options)?);
    let config = match &options.tls_client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let private = PrivateKeyDer::from_pem_file(key);
            let private = private.map_err(|error| TlsError::Pem(key.clone(), error))?;
            let chain = certificates(certificate)?;
            let config = builder.with_client_auth_cert(chain, private);
            config.map_err(TlsError::Setup)?
        }
    };
    Ok(Arc::new(config))
}

/// The name that is sent and checked.
pub(super) fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name(host.to_owned()))
}

fn roots(options: &Options) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = &options.tls_ca else {
        // One that cannot be read must not keep us from using the others.
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        return match roots.is_empty() {
            true => Err(TlsError::NoSystemRoots),
            false => Ok(roots),
        };
    };
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|error| TlsError::Roots(path.clone(), error))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error| TlsError::Pem(path.to_owned(), error);
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    match certificates.is_empty() {
        true => Err(TlsError::Empty(path.to_owned())),
        false => Ok(certificates),
    }
}
