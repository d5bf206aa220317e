//! Which server certificates are trusted: those that chain to an authority of the system or of a file
//! (`upstream.ca_file`), and those that are in that file themselves.
//!
//! webpki rejects a server certificate that is also a CA certificate, as `openssl req -x509` creates it, and one with
//! an unknown issuer. If exactly this certificate is in the file, the operator trusts that server. Then its issuer does
//! not matter, but its name, validity period and purpose are still verified. The server must sign the handshake with
//! its key in any case ([`ServerCertVerifier::verify_tls13_signature`]), so no other server can use the certificate.
//!
//! A certificate in the file that is not a CA certificate must not become a trust anchor. webpki does not check whether
//! a trust anchor may issue certificates, so the owner of its key could issue certificates for every name.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::certificate::Certificate;

/// Certificates that are trusted in addition to the system's certificate authorities.
#[derive(Clone, Copy)]
pub struct Authorities<'f> {
    /// The setting that names the file, for error messages.
    pub setting: &'static str,
    /// The path of the file.
    pub path: &'f Path,
    /// The content of the file: certificates in PEM.
    pub pem: &'f [u8],
}

/// The TLS configuration for connections to upstream and proxies, and to what spans and metrics are exported to.
///
/// # Errors
/// If the file contains no usable certificates.
pub(crate) fn tls(named: Option<Authorities<'_>>) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let named = named.map(certificates).transpose()?.unwrap_or_default();
    let roots = Arc::new(roots(&named)?);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    // Without a file there may be no authorities at all. Then no certificate is trusted, but http:// URLs work.
    if named.is_empty() {
        return Ok(builder.with_root_certificates(roots).with_no_client_auth());
    }
    let verifier = Arc::new(Verifier::new(roots, named, provider)?);
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn certificates(Authorities { setting, path, pem }: Authorities<'_>) -> io::Result<Vec<CertificateDer<'static>>> {
    let unusable = |why: &str| io::Error::other(format!("{setting} {}: {why}", path.display()));
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|_| unusable("expected a PEM file of certificates"))?;
    if certificates.is_empty() {
        return Err(unusable("expected a PEM file with at least one certificate, found none"));
    }
    for certificate in &certificates {
        RootCertStore::empty().add(certificate.clone()).map_err(|error| unusable(&error.to_string()))?;
    }
    Ok(certificates)
}

fn roots(named: &[CertificateDer<'static>]) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "cannot load some of the system's certificate authorities");
    }
    roots.add_parsable_certificates(system.certs);
    for certificate in
        named.iter().filter(|certificate| Certificate::read(certificate).is_some_and(|parsed| parsed.may_issue))
    {
        roots.add(certificate.clone()).map_err(io::Error::other)?;
    }
    Ok(roots)
}

/// Verifies the certificates in the file without their issuer, and all others through the authorities.
#[derive(Debug)]
struct Verifier {
    /// `None` if there are no authorities. webpki's verifier requires at least one.
    by_authorities: Option<Arc<WebPkiServerVerifier>>,
    named: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(
        roots: Arc<RootCertStore>,
        named: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> io::Result<Self> {
        let build = || WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build();
        let by_authorities = (!roots.is_empty()).then(build).transpose().map_err(io::Error::other)?;
        Ok(Self { by_authorities, named, provider })
    }
}

/// Verifies a certificate, except for its issuer.
fn verify_without_issuer(certificate: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
    let parsed = Certificate::read(certificate).ok_or(CertificateError::BadEncoding)?;
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let time = |seconds: i64| {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds.try_into().unwrap_or_default()))
    };
    if seconds < parsed.not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before: time(parsed.not_before) }.into());
    }
    if seconds > parsed.not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after: time(parsed.not_after) }.into());
    }
    if !parsed.is_for_servers {
        return Err(CertificateError::InvalidPurpose.into());
    }
    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.named.contains(end_entity) {
            verify_without_issuer(end_entity, server_name, now)?;
            return Ok(ServerCertVerified::assertion());
        }
        match &self.by_authorities {
            Some(webpki) => webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
