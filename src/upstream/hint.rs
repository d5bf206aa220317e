//! Messages for failed connections: a sentence that says why, and a hint that says what to do.

use std::error::Error;
use std::io;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, InvalidMessage, PeerIncompatible};

use super::causes::{causes, root_cause};
use crate::certificate::date;

/// Describes the root cause of an error, with a hint if there is one for this error.
pub(super) fn describe_error(error: &(dyn Error + 'static)) -> String {
    let tls = || causes(error).filter_map(|cause| cause.downcast_ref::<rustls::Error>());
    let message = tls().find_map(certificate_message).unwrap_or_else(|| root_cause(error).to_string());
    let io_hint = causes(error).filter_map(|cause| cause.downcast_ref()).find_map(io_hint);
    match tls().find_map(tls_hint).or(io_hint) {
        Some(hint) => format!("{message}. {hint}"),
        None => message,
    }
}

/// How many names of a certificate a message lists.
const MAX_NAMES: usize = 10;

/// A message for certificate errors that rustls describes with type names or Unix times. `None` if its own message is
/// clear.
fn certificate_message(error: &rustls::Error) -> Option<String> {
    let rustls::Error::InvalidCertificate(wrong) = error else { return None };
    let date = |time: &UnixTime| date(i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    Some(match wrong {
        CertificateError::UnknownIssuer => "the certificate's issuer is not trusted (UnknownIssuer)".to_owned(),
        CertificateError::Expired => "the certificate expired".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("the certificate expired on {}; this machine's clock says {}", date(not_after), date(time))
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the certificate is not valid before {}; this machine's clock says {}",
            date(not_before),
            date(time)
        ),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<_> = presented.iter().take(MAX_NAMES).map(|name| without_type(name)).collect();
            let mut names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
            if presented.len() > MAX_NAMES {
                names = format!("{names} and {} more", presented.len() - MAX_NAMES);
            }
            format!("the certificate is not valid for {}, but for {names}", expected.to_str())
        }
        CertificateError::Other(_) if is_ca_certificate(wrong) => {
            "the server's certificate is a CA certificate".to_owned()
        }
        _ => return None,
    })
}

/// A name without its type. rustls formats names as `DnsName("w.example")`.
fn without_type(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

fn is_ca_certificate(wrong: &CertificateError) -> bool {
    matches!(wrong, CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity"))
}

/// The message of tokio-rustls if the connection ends before the handshake is complete.
const HANDSHAKE_EOF: &str = "tls handshake eof";

fn io_hint(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Some(
            "No service listens there, or a firewall rejects the connection: check the host, the port and the firewall",
        ),
        io::ErrorKind::UnexpectedEof if error.to_string() == HANDSHAKE_EOF => Some(
            "The server closed the connection during the TLS handshake. It may not use TLS on this port: use the \
             https port or an http:// URL",
        ),
        _ => None,
    }
}

/// The hint for a name that was not resolved.
pub(super) const NOT_RESOLVED: &str = "The host name does not exist, or no DNS server answered: check the host name, \
     the region and the DNS servers in /etc/resolv.conf";

const CLIENT_CERTIFICATE: &str = "The server demands a client certificate, and the gateway does not support these: use \
     an endpoint that does not demand one";

fn tls_hint(error: &rustls::Error) -> Option<&'static str> {
    match error {
        rustls::Error::InvalidCertificate(wrong) => certificate_hint(wrong),
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => Some(CLIENT_CERTIFICATE),
        rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => Some(
            "The server demands a client certificate, which the gateway does not support, or the two have no TLS \
             version or cipher suite in common",
        ),
        rustls::Error::PeerIncompatible(PeerIncompatible::NoSignatureSchemesInCommon) => Some(WEAK),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Some("The server does not use TLS on this port: use the https port or an http:// URL")
        }
        _ => None,
    }
}

const WEAK: &str = "The certificate's key or signature is too weak or of an unsupported type: expected RSA of 2048 to \
     8192 bits, ECDSA on P-256 or P-384, or Ed25519, signed with SHA-256 or better";

#[allow(deprecated, reason = "rustls may still return these variants")]
fn certificate_hint(wrong: &CertificateError) -> Option<&'static str> {
    Some(match wrong {
        CertificateError::UnknownIssuer => {
            "If the server's certificate is self-signed or issued by a private authority, add it or the authority to \
             upstream.ca_file"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "Renew the certificate on the server, or correct this machine's clock"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "The certificate is not valid yet: correct this machine's clock, or wait"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "The certificate is for another name: use one of its names in the URL, or install a certificate for this \
             name"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "The certificate is not for servers: expected serverAuth in its extended key usage"
        }
        CertificateError::BadSignature => {
            "The trusted authority with this name did not sign the certificate, or the key is too weak: add the right \
             authority or the certificate itself to upstream.ca_file, and use RSA keys of at least 2048 bits"
        }
        CertificateError::UnsupportedSignatureAlgorithm
        | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => WEAK,
        CertificateError::Other(_) if is_ca_certificate(wrong) => {
            "Add this exact certificate to upstream.ca_file, or install a server certificate that this CA issued"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rustls::OtherError;
    use rustls::pki_types::ServerName;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("CaUsedAsEndEntity")]
    struct CaUsedAsEndEntity;

    #[test]
    fn an_error_is_described_in_plain_words_with_a_hint() {
        let time = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let certificate = |wrong| io::Error::other(rustls::Error::InvalidCertificate(wrong));
        let other = CertificateError::Other(OtherError(Arc::new(CaUsedAsEndEntity)));
        let expected = ServerName::try_from("w.example").unwrap();
        let presented = vec!["DnsName(\"a.example\")".to_owned(), "IpAddress(192.0.2.1)".to_owned()];
        for (error, expected) in [
            (certificate(other), "the server's certificate is a CA certificate. Add this exact certificate"),
            (
                certificate(CertificateError::ExpiredContext {
                    time: time(1_800_000_000),
                    not_after: time(1_577_836_800),
                }),
                "the certificate expired on 2020-01-01T00:00:00Z; this machine's clock says 2027-01-15T08:00:00Z. ",
            ),
            (
                certificate(CertificateError::NotValidYetContext { time: time(0), not_before: time(1_577_836_800) }),
                "the certificate is not valid before 2020-01-01T00:00:00Z; this machine's clock says 1970-01",
            ),
            (
                certificate(CertificateError::NotValidForNameContext { expected: expected.clone(), presented }),
                "the certificate is not valid for w.example, but for a.example, 192.0.2.1. The",
            ),
            (
                certificate(CertificateError::NotValidForNameContext { expected, presented: Vec::new() }),
                "the certificate is not valid for w.example, but for no name. The",
            ),
            (
                io::Error::other(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)),
                "received corrupt message of type InvalidContentType. The server does not use TLS on this port",
            ),
            (io::Error::new(io::ErrorKind::UnexpectedEof, HANDSHAKE_EOF), "tls handshake eof. The server closed"),
            (io::Error::from_raw_os_error(111), "Connection refused (os error 111). No service listens there"),
        ] {
            let message = describe_error(&error);
            assert!(message.starts_with(expected), "{message}");
            assert!(["Other(", "Context", "UNIX", "DnsName"].iter().all(|word| !message.contains(word)), "{message}");
        }
        assert_eq!(describe_error(&io::Error::from(io::ErrorKind::UnexpectedEof)), "unexpected end of file");
    }
}
