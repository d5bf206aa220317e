//! Reads X.509 certificates: validity period, names, issuer and usage. Nothing here decides whether a certificate is
//! trusted.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// The start of the validity period, as Unix time in seconds.
    pub not_before: i64,
    /// The end of the validity period, as Unix time in seconds.
    pub not_after: i64,
    /// The distinguished name of the issuer (RFC 5280 §4.1.2.4).
    pub issuer: String,
    /// The DNS names and IP addresses among the subject alternative names (RFC 5280 §4.2.1.6).
    pub names: Vec<String>,
    /// Whether a server may use it: it has no extended key usage, or that includes serverAuth (RFC 5280 §4.2.1.12).
    pub is_for_servers: bool,
    /// Whether it may issue certificates: it is a CA certificate (RFC 5280 §4.2.1.9), or has a version without this
    /// extension.
    pub may_issue: bool,
}

impl Certificate {
    /// Reads a certificate in DER. `None` if it is malformed.
    pub(crate) fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok()?;
        let names = names.into_iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|address| address.to_string())
            }
            _ => None,
        });
        let usage = certificate.extended_key_usage().ok()?;
        let constraints = certificate.basic_constraints().ok()?;
        let is_authority = constraints.is_some_and(|constraints| constraints.value.ca);
        Some(Self {
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            issuer: certificate.issuer().to_string(),
            names: names.collect(),
            is_for_servers: usage.is_none_or(|usage| usage.value.any || usage.value.server_auth),
            may_issue: is_authority || certificate.version() != X509Version::V3,
        })
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = if self.names.is_empty() { "no name".to_owned() } else { self.names.join(", ") };
        write!(f, "certificate for {names}, issued by {}, valid until {}", self.issuer, date(self.not_after))
    }
}

/// The earliest end of validity in a certificate chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAfter {
    /// Unix time in seconds.
    At(i64),
    /// At least one certificate cannot be read. TLS may still accept it.
    Unknown,
}

impl NotAfter {
    /// The certificates are in DER.
    pub fn of<D: AsRef<[u8]>>(chain: &[D]) -> Self {
        let ends = chain.iter().map(|der| Some(Certificate::read(der.as_ref())?.not_after));
        ends.collect::<Option<Vec<_>>>().and_then(|ends| ends.into_iter().min()).map_or(Self::Unknown, Self::At)
    }
}

/// Formats a Unix time in seconds as RFC 3339. A time before 1970 becomes 1970-01-01T00:00:00Z.
pub(crate) fn date(seconds: i64) -> String {
    let since = Duration::from_secs(seconds.try_into().unwrap_or_default());
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_chain_with_a_certificate_that_cannot_be_read_is_unknown() {
        let key = rcgen::KeyPair::generate().unwrap();
        let of = |year| {
            let mut certificate = rcgen::CertificateParams::new(vec!["w.example".to_owned()]).unwrap();
            certificate.not_after = rcgen::date_time_ymd(year, 1, 1);
            certificate.self_signed(&key).unwrap().der().to_vec()
        };
        let [sooner, later] = [of(2030), of(2031)];
        let end = Certificate::read(&sooner).unwrap().not_after;
        assert_eq!(NotAfter::of(&[later.clone(), sooner.clone()]), NotAfter::At(end));
        assert_eq!(NotAfter::of(&[later, b"none".to_vec(), sooner]), NotAfter::Unknown);
        assert_eq!(NotAfter::of::<Vec<u8>>(&[]), NotAfter::Unknown);
    }
}
