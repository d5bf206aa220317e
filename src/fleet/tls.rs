//! The TLS configuration for an engine: the system's authorities or those of a file, and maybe a client certificate.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::config::fleet::EngineFiles;

/// # Errors
/// What is wrong with a file, and what is expected.
pub(super) fn config(files: &EngineFiles) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match &files.ca {
        Some((path, pem)) => {
            for certificate in certificates("ca_file", pem)? {
                roots.add(certificate).map_err(|error| format!("fleet.ca_file {path}: {error}"))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    Ok(Arc::new(match &files.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            // The error could repeat a part of the file, which may be the key.
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|_| "fleet.key_file: expected a private key in PEM".to_owned())?;
            let chain = certificates("cert_file", certificate)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| format!("fleet.cert_file: {error}"))?
        }
    }))
}

fn certificates(setting: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(format!("fleet.{setting}: expected a PEM file of certificates")),
    }
}
