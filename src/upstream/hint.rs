//! What to do about a connection that has failed, for each cause that tells: a plain sentence that says why, and a hint.

use std::error::Error;
use std::io;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, InvalidMessage, PeerIncompatible};

use super::causes::{causes, root_cause};
use crate::certificate::date;

/// The innermost cause in words, and what to do about it, if anything is known.
pub(super) fn explained(error: &(dyn Error + 'static)) -> String {
    let tls = || causes(error).filter_map(|cause| cause.downcast_ref::<rustls::Error>());
    let words = tls().find_map(in_words).unwrap_or_else(|| root_cause(error).to_string());
    let of_system = causes(error).filter_map(|cause| cause.downcast_ref()).find_map(of_io);
    match tls().find_map(hint).or(of_system) {
        Some(hint) => format!("{words}. {hint}"),
        None => words,
    }
}

/// How many names of a peer's certificate are told.
const MOST_NAMES: usize = 10;

/// What rustls says in its own types' names, or in Unix time, in words. Nothing, where its words will do.
fn in_words(error: &rustls::Error) -> Option<String> {
    let rustls::Error::InvalidCertificate(wrong) = error else { return None };
    let date = |time: &UnixTime| date(i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    Some(match wrong {
        CertificateError::UnknownIssuer => "the certificate's issuer is not trusted (UnknownIssuer)".to_owned(),
        CertificateError::Expired => "the certificate expired".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("the certificate expired on {}; this machine's clock says {}", date(not_after), date(time))
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the certificate is not valid yet, only from {} on; this machine's clock says {}",
            date(not_before),
            date(time)
        ),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<_> = presented.iter().take(MOST_NAMES).map(|name| bare(name)).collect();
            let mut names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
            if presented.len() > MOST_NAMES {
                names = format!("{names} and {} more", presented.len() - MOST_NAMES);
            }
            format!("the certificate is not valid for {}, but for {names}", expected.to_str())
        }
        CertificateError::Other(_) if is_of_authority(wrong) => {
            "the server's certificate is a CA certificate".to_owned()
        }
        _ => return None,
    })
}

/// A name without its type: rustls writes `DnsName("w.example")`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

fn is_of_authority(wrong: &CertificateError) -> bool {
    matches!(wrong, CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity"))
}

/// The words of tokio-rustls for a connection that ends before TLS is complete.
const HANDSHAKE_EOF: &str = "tls handshake eof";

fn of_io(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Some(
            "Nothing accepts connections there, or a firewall refuses them: expected the host and port of a service that runs",
        ),
        io::ErrorKind::UnexpectedEof if error.to_string() == HANDSHAKE_EOF => Some(
            "The server closed the connection during TLS. It may not speak TLS: expected the port for https, or an http:// URL",
        ),
        _ => None,
    }
}

/// What to do about a name that is not resolved.
pub(super) const NOT_RESOLVED: &str = "The name is not known, or no DNS server answered: expected a host name without a spelling \
     mistake, a known region, and a DNS server in /etc/resolv.conf that can be reached";

const CLIENT_CERTIFICATE: &str = "Upstream demands a client certificate. The gateway has none: expected an endpoint \
     that asks for none";

fn hint(error: &rustls::Error) -> Option<&'static str> {
    match error {
        rustls::Error::InvalidCertificate(wrong) => of_certificate(wrong),
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => Some(CLIENT_CERTIFICATE),
        rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => Some(
            "It demands a client certificate, of which the gateway has none, or has no version or cipher suite in common with it",
        ),
        rustls::Error::PeerIncompatible(PeerIncompatible::NoSignatureSchemesInCommon) => Some(WEAK),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Some("The server does not speak TLS on this port: expected the port for https, or an http:// URL")
        }
        _ => None,
    }
}

const WEAK: &str = "The certificate's key or signature is too weak, or of a kind that is not supported: expected RSA of 2048 \
     to 8192 bits, ECDSA on P-256 or P-384, or Ed25519, signed with SHA-256 or better";

#[allow(deprecated, reason = "older variants that rustls may still give")]
fn of_certificate(wrong: &CertificateError) -> Option<&'static str> {
    Some(match wrong {
        CertificateError::UnknownIssuer => {
            "Its issuer is not trusted: if upstream has a private certificate authority, or a self-signed certificate, name \
             that in upstream.ca_file"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "The certificate has expired: renew it where it is shown, or set this machine's clock"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "The certificate is not valid yet: set this machine's clock, or wait"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "The certificate is for another name: expected a URL with one of its names, or a certificate for this name"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "The certificate is not for servers: expected serverAuth in its extended key usage"
        }
        CertificateError::BadSignature => {
            "It is not signed by the trusted authority of the same name, or with a key that is too weak: expected its authority, \
             or the certificate itself, in upstream.ca_file, and keys of 2048 bits or more with RSA"
        }
        CertificateError::UnsupportedSignatureAlgorithm
        | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => WEAK,
        CertificateError::Other(_) if is_of_authority(wrong) => {
            "The certificate is an authority's: name this very certificate in upstream.ca_file, or have upstream show one that \
             the authority has issued"
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
    fn a_failure_is_a_plain_sentence_and_says_what_to_do() {
        let time = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let certificate = |wrong| io::Error::other(rustls::Error::InvalidCertificate(wrong));
        let other = CertificateError::Other(OtherError(Arc::new(CaUsedAsEndEntity)));
        let expected = ServerName::try_from("w.example").unwrap();
        let presented = vec!["DnsName(\"a.example\")".to_owned(), "IpAddress(192.0.2.1)".to_owned()];
        for (error, expected) in [
            (certificate(other), "the server's certificate is a CA certificate. The certificate is"),
            (
                certificate(CertificateError::ExpiredContext {
                    time: time(1_800_000_000),
                    not_after: time(1_577_836_800),
                }),
                "the certificate expired on 2020-01-01T00:00:00Z; this machine's clock says 2027-01-15T08:00:00Z. The",
            ),
            (
                certificate(CertificateError::NotValidYetContext { time: time(0), not_before: time(1_577_836_800) }),
                "the certificate is not valid yet, only from 2020-01-01T00:00:00Z on; this machine's clock says 1970-01",
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
                "received corrupt message of type InvalidContentType. The server does not speak TLS on this port: expected",
            ),
            (io::Error::new(io::ErrorKind::UnexpectedEof, HANDSHAKE_EOF), "tls handshake eof. The server closed"),
            (io::Error::from_raw_os_error(111), "Connection refused (os error 111). Nothing accepts connections there"),
        ] {
            let said = explained(&error);
            assert!(said.starts_with(expected), "{said}");
            assert!(["Other(", "Context", "UNIX", "DnsName"].iter().all(|word| !said.contains(word)), "{said}");
        }
        assert_eq!(explained(&io::Error::from(io::ErrorKind::UnexpectedEof)), "unexpected end of file");
    }
}
