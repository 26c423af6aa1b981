//! What both our clients need of TLS: certificates, keys and names, read as rustls wants them. Whom
//! to trust is theirs to say. One provider (ring), never the process default. Knows no sockets.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};

/// TLS cannot be used as configured. Nothing was sent yet.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The system has none, or they cannot be read.
    #[error("the system has no trusted root certificates")]
    NoSystemRoots,
    /// A PEM file.
    #[error("read {}", .0.display())]
    Pem(PathBuf, #[source] pem::Error),
    /// The file was read.
    #[error("{} holds no certificate", .0.display())]
    Empty(PathBuf),
    /// A certificate that can vouch for nothing.
    #[error("use the certificates in {}", .0.display())]
    Roots(PathBuf, #[source] rustls::Error),
    /// Neither a host name nor an address.
    #[error("\"{0}\" cannot be a name in a certificate")]
    Name(String),
    /// Key and certificate do not fit, for example.
    #[error("set up TLS")]
    Rustls(#[source] rustls::Error),
}

/// Certificates, the client's own first, and its key.
pub type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// What a client's configuration begins with.
pub fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, SetupError> {
    ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(SetupError::Rustls)
}

/// What it ends with.
pub fn finish(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    certificate: Option<ClientCertificate>,
) -> Result<ClientConfig, SetupError> {
    match certificate {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => {
            let config = builder.with_client_auth_cert(chain, key);
            config.map_err(SetupError::Rustls)
        }
    }
}

/// The only provider of cryptography.
pub fn provider() -> CryptoProvider {
    ring::default_provider()
}

/// The name that is sent and checked.
pub fn server_name(host: &str) -> Result<ServerName<'static>, SetupError> {
    ServerName::try_from(host.to_owned()).map_err(|_| SetupError::Name(host.to_owned()))
}

/// The system's certificate authorities. One that cannot be read must not keep us from using the
/// others.
pub fn system_roots() -> Result<RootCertStore, SetupError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match roots.is_empty() {
        true => Err(SetupError::NoSystemRoots),
        false => Ok(roots),
    }
}

/// Those certificates of a file as authorities.
pub fn roots(
    certificates: &[CertificateDer<'static>],
    path: &Path,
) -> Result<RootCertStore, SetupError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let added = roots.add(certificate.clone());
        added.map_err(|error| SetupError::Roots(path.to_owned(), error))?;
    }
    Ok(roots)
}

/// The certificates in a PEM file, of which there is one at least.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let failed = |error| SetupError::Pem(path.to_owned(), error);
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    match certificates.is_empty() {
        true => Err(SetupError::Empty(path.to_owned())),
        false => Ok(certificates),
    }
}

/// The private key in a PEM file.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, SetupError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| SetupError::Pem(path.to_owned(), error))
}
