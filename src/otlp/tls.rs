//! TLS to a receiver: which certificates are trusted.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;

use crate::config::otlp::{OtlpConfig, OtlpProtocol};
use crate::config::read_file::{read_regular, shown_path};
use crate::upstream::{Authorities, tls};

/// The TLS configuration for receivers. `None` if none has an https URL.
///
/// # Errors
/// If `otlp.ca_file` contains no usable certificates.
pub(crate) fn tls_config(config: &OtlpConfig) -> io::Result<Option<Arc<ClientConfig>>> {
    if ![&config.traces, &config.metrics].into_iter().flatten().any(|url| url.is_tls) {
        return Ok(None);
    }
    let setting = "otlp.ca_file";
    let pem = config.ca_file.as_ref().map(|path| {
        read_regular(path).map_err(|error| io::Error::other(format!("{setting} {}: {error}", shown_path(path))))
    });
    let pem = pem.transpose()?;
    let named = config.ca_file.as_deref().zip(pem.as_deref()).map(|(path, pem)| Authorities { setting, path, pem });
    let mut tls = tls(named)?;
    let protocol: &[u8] = if config.protocol == OtlpProtocol::Grpc { b"h2" } else { b"http/1.1" };
    tls.alpn_protocols = vec![protocol.to_vec()];
    Ok(Some(Arc::new(tls)))
}
