//! TLS as libpq means it: what each sslmode checks, client certificates, and the hash that binds a
//! login to the session. Knows no sockets.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use super::certificate::Certificate;
use super::params::{Params, RootCert, SslMode};
use crate::tls::{self, ClientCertificate, SetupError};

/// The TLS side of `params` for one connection. Files are read anew each time.
pub(super) fn client_config(params: &Params) -> Result<ClientConfig, TlsError> {
    let verifier = Verifier {
        trust: trust(params)?,
        algorithms: tls::provider().signature_verification_algorithms,
    };
    let builder = tls::builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = tls::finish(builder, client_certificate(params)?)?;
    config.enable_sni = params.sslsni;
    // Mandatory where TLS starts at the first byte (ProcessSSLStartup, backend_startup.c).
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

/// TLS cannot be used as configured. Nothing was sent yet.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// `verify-ca` and `verify-full` need one.
    #[error("sslmode={sslmode} needs a root certificate, and {} does not exist", .path.display())]
    NoRoots {
        /// As configured.
        sslmode: SslMode,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// `sslrootcert=system` with less than `verify-full`.
    #[error("sslrootcert=system needs sslmode=verify-full")]
    WeakSslMode,
    /// libpq insists on it as well.
    #[error("the private key {} is accessible to group or others", .0.display())]
    KeyPermissions(PathBuf),
    /// Files, or a name.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// What a certificate must prove.
#[derive(Debug)]
enum Trust {
    /// Nothing: encryption against listeners only.
    Anybody,
    /// That one of the roots vouches for it.
    Chain(Roots),
    /// And that it was issued for this host.
    ChainAndName(Roots),
}

#[derive(Debug)]
struct Roots {
    anchors: RootCertStore,
    /// Trusted as they stand: what `openssl req -x509` makes is a CA certificate and, in many
    /// installations, the server's own, which webpki refuses to combine and OpenSSL does not.
    exact: Vec<CertificateDer<'static>>,
}

/// libpq's table (§ "SSL Support"): `require` checks the chain if there is a root file.
fn trust(params: &Params) -> Result<Trust, TlsError> {
    let strict = params.sslmode >= SslMode::VerifyCa;
    if params.sslmode < SslMode::Require {
        return Ok(Trust::Anybody);
    }
    let roots = match &params.sslrootcert {
        Some(RootCert::System) if params.sslmode < SslMode::VerifyFull => {
            return Err(TlsError::WeakSslMode);
        }
        Some(RootCert::System) => system_roots()?,
        Some(RootCert::File(path)) if strict || path.exists() => file_roots(params, path)?,
        Some(RootCert::File(_)) => return Ok(Trust::Anybody),
        None => match default_file(params, "root.crt") {
            Ok(path) => file_roots(params, &path)?,
            Err(path) if strict => {
                let sslmode = params.sslmode;
                return Err(TlsError::NoRoots { sslmode, path });
            }
            Err(_) => return Ok(Trust::Anybody),
        },
    };
    Ok(match params.sslmode {
        SslMode::VerifyFull => Trust::ChainAndName(roots),
        _ => Trust::Chain(roots),
    })
}

fn system_roots() -> Result<Roots, TlsError> {
    Ok(Roots {
        anchors: tls::system_roots()?,
        exact: Vec::new(),
    })
}

fn file_roots(params: &Params, path: &Path) -> Result<Roots, TlsError> {
    if !path.exists() {
        return Err(TlsError::NoRoots {
            sslmode: params.sslmode,
            path: path.to_owned(),
        });
    }
    let exact = tls::certificates(path)?;
    let anchors = tls::roots(&exact, path)?;
    Ok(Roots { anchors, exact })
}

/// `Err` is where it was looked for.
fn default_file(params: &Params, name: &str) -> Result<PathBuf, PathBuf> {
    let Some(directory) = &params.ssl_directory else {
        return Err(Path::new("~/.postgresql").join(name));
    };
    let path = directory.join(name);
    if path.exists() { Ok(path) } else { Err(path) }
}

fn client_certificate(params: &Params) -> Result<Option<ClientCertificate>, TlsError> {
    let certificate = match &params.sslcert {
        Some(path) => path.clone(),
        None => match default_file(params, "postgresql.crt") {
            Ok(path) => path,
            Err(_) => return Ok(None),
        },
    };
    let key = match &params.sslkey {
        Some(path) => path.clone(),
        None => default_file(params, "postgresql.key").unwrap_or_else(|path| path),
    };
    check_key_permissions(&key)?;
    let private = tls::private_key(&key)?;
    Ok(Some((tls::certificates(&certificate)?, private)))
}

/// `initialize_SSL`, fe-secure-openssl.c: 0600, or 0640 if the file is root's.
#[cfg(unix)]
fn check_key_permissions(key: &Path) -> Result<(), TlsError> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(key)
        .map_err(|error| SetupError::Pem(key.to_owned(), pem::Error::Io(error)))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    match metadata.mode() & forbidden {
        0 => Ok(()),
        _ => Err(TlsError::KeyPermissions(key.to_owned())),
    }
}

#[cfg(not(unix))]
fn check_key_permissions(_: &Path) -> Result<(), TlsError> {
    Ok(())
}

/// rustls's own verifier knows neither "chain without name" nor "nothing", nor a certificate that
/// is its own root.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn verify_chain(
        &self,
        roots: &Roots,
        chain: (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let (certificate, intermediates) = chain;
        if roots.exact.iter().any(|root| root == certificate) {
            return verify_not_expired(certificate, now);
        }
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(certificate)?,
            &roots.anchors,
            intermediates,
            now,
            self.algorithms.all,
        )
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = (end_entity, intermediates);
        match &self.trust {
            Trust::Anybody => {}
            Trust::Chain(roots) => self.verify_chain(roots, chain, now)?,
            Trust::ChainAndName(roots) => {
                self.verify_chain(roots, chain, now)?;
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    /// Checked even where anybody is trusted: channel binding proves the certificate, and only this
    /// signature proves that the server has its key.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // webpki does not parse version 1, which the recipe in Postgres's own documentation
        // ("Creating Certificates") makes. If it got past verify_server_cert, its key will do.
        if ParsedCertificate::try_from(certificate).is_err() {
            let certificate = Certificate::parse(certificate).ok_or(
                rustls::Error::InvalidCertificate(CertificateError::BadEncoding),
            )?;
            let key = certificate.public_key();
            return verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms);
        }
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn verify_not_expired(certificate: &[u8], now: UnixTime) -> Result<(), rustls::Error> {
    let not_after = Certificate::parse(certificate).and_then(|parsed| parsed.not_after());
    match (timestamp(now), not_after) {
        (Some(now), Some(not_after)) if now <= not_after => Ok(()),
        (_, None) => Err(CertificateError::BadEncoding.into()),
        _ => Err(CertificateError::Expired.into()),
    }
}

/// `YYYYMMDDHHMMSS` in UTC, as certificates write it; `None` after the year 9999.
fn timestamp(at: UnixTime) -> Option<String> {
    let at = i64::try_from(at.as_secs()).ok()?;
    let at = time::OffsetDateTime::from_unix_timestamp(at).ok()?;
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    let month = u8::from(month);
    Some(format!(
        "{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}"
    ))
}

/// What rustls said, if `error` (of a stream wrapped in TLS) came from it.
pub(super) fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_are_written_as_certificates_write_them() {
        let at = |seconds| timestamp(UnixTime::since_unix_epoch(Duration::from_secs(seconds)));
        assert_eq!(at(951_782_399).as_deref(), Some("20000228235959"));
        assert_eq!(at(951_782_400).as_deref(), Some("20000229000000"));
        assert_eq!(at(u64::MAX), None);
    }
}
