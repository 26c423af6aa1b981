//! TLS to a NATS server: the system's certificate authorities or the ones that are named, a client
//! certificate if there is one, and always the name of the host. Knows no sockets.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use super::options::Options;
use crate::tls::{self, SetupError};

/// The TLS side of the options for one connection. Files are read anew each time.
pub(super) fn client_config(options: &Options) -> Result<Arc<ClientConfig>, SetupError> {
    let builder = tls::builder()?.with_root_certificates(roots(options)?);
    let certificate = match &options.tls_client {
        None => None,
        Some((certificate, key)) => {
            let key = tls::private_key(key)?;
            Some((tls::certificates(certificate)?, key))
        }
    };
    tls::finish(builder, certificate).map(Arc::new)
}

fn roots(options: &Options) -> Result<RootCertStore, SetupError> {
    match &options.tls_ca {
        None => tls::system_roots(),
        Some(path) => tls::roots(&tls::certificates(path)?, path),
    }
}
