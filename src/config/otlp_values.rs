//! The values of `[otlp]`: their forms, and what errors say is allowed. The words are those of OpenTelemetry.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use http::Uri;
use http::uri::{Authority, Scheme};
use percent_encoding::percent_decode_str;
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use strum::{IntoStaticStr, VariantArray};

use super::units::written_as_text;

/// Where a receiver is.
#[derive(Clone, PartialEq, Eq)]
pub struct OtlpUrl {
    pub(crate) is_tls: bool,
    pub(crate) authority: Authority,
    /// Empty, or beginning with a slash.
    pub(crate) path: String,
}

impl OtlpUrl {
    /// Without the brackets of an IPv6 address.
    pub(crate) fn host(&self) -> &str {
        self.authority.host().trim_matches(['[', ']'])
    }

    pub(crate) fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.is_tls { 443 } else { 80 })
    }

    /// Whether others on the network cannot read what is sent there.
    pub(super) fn is_private(&self) -> bool {
        let is_loopback = |address: IpAddr| address.is_loopback();
        self.is_tls || self.host() == "localhost" || self.host().parse().is_ok_and(is_loopback)
    }
}

written_as_text!(
    OtlpUrl,
    "an http or https URL of a host and maybe a port and a path, such as \"http://127.0.0.1:4318\", with no query or user",
    |text| {
        let parts = text.parse::<Uri>().ok().filter(|_| !text.contains('#'))?.into_parts();
        let scheme = parts.scheme.filter(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS)?;
        let authority = parts.authority.filter(|authority| !authority.host().is_empty())?;
        let is_host_and_port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => true,
            Some(_) => authority.port_u16().is_some_and(|port| port > 0),
            None => false,
        };
        let path = parts.path_and_query.filter(|path| path.query().is_none())?;
        let path = path.path().trim_end_matches('/').to_owned();
        is_host_and_port.then(|| OtlpUrl { is_tls: scheme == Scheme::HTTPS, authority, path })
    },
    |url| format!("{}://{}{}", if url.is_tls { "https" } else { "http" }, url.authority, url.path)
);

#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str)]
pub enum OtlpProtocol {
    #[strum(serialize = "http/protobuf")]
    Http,
    #[strum(serialize = "grpc")]
    Grpc,
}

written_as_text!(
    OtlpProtocol,
    "http/protobuf or grpc",
    |text| OtlpProtocol::VARIANTS.iter().copied().find(|value| value.into_str() == text),
    |value| value.into_str().to_owned()
);

/// Which requests have spans.
#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "snake_case")]
pub enum SamplerName {
    AlwaysOn,
    AlwaysOff,
    Traceidratio,
    ParentbasedAlwaysOn,
    ParentbasedAlwaysOff,
    ParentbasedTraceidratio,
}

written_as_text!(
    SamplerName,
    "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio",
    |text| SamplerName::VARIANTS.iter().copied().find(|value| value.into_str() == text),
    |value| value.into_str().to_owned()
);

/// What a receiver calls this service.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceLabel(pub String);

written_as_text!(
    ServiceLabel,
    "1 to 128 characters, none of which is a control character",
    |text| {
        let is_name = (1..=128).contains(&text.len()) && !text.chars().any(char::is_control);
        is_name.then(|| ServiceLabel(text.to_owned()))
    },
    |name| name.0.clone()
);

/// Attributes of the resource.
#[derive(Clone, PartialEq, Eq)]
pub struct ResourceAttributes {
    text: String,
    pub(crate) pairs: Vec<(String, String)>,
}

written_as_text!(
    ResourceAttributes,
    "name=value,name=value with percent-encoded values, such as \"deployment.environment.name=test\"",
    |text| Some(ResourceAttributes { pairs: pairs(text)?, text: text.to_owned() }),
    |attributes| attributes.text.clone()
);

/// Pairs of names and percent-decoded values: `name=value,name=value` (W3C Baggage, without properties).
pub(super) fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok().map(Cow::into_owned)?;
        Some((name.trim().to_owned(), value)).filter(|(name, _)| !name.is_empty())
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

/// A share, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate(pub f64);

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0 to 1, such as 0.1")
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Rate, E> {
                let wrong = || E::invalid_value(Unexpected::Float(number), &self);
                (0.0..=1.0).contains(&number).then_some(Rate(number)).ok_or_else(wrong)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Rate, E> {
                let wrong = || E::invalid_value(Unexpected::Signed(number), &self);
                i32::try_from(number).map_err(|_| wrong()).and_then(|number| self.visit_f64(number.into()))
            }
        }

        deserializer.deserialize_any(Number)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_no_user_and_no_query() {
        for (text, shown, port) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318", 4318),
            ("https://otlp.example/base/", "https://otlp.example/base", 443),
            ("http://[::1]/", "http://[::1]", 80),
        ] {
            let url = text.parse::<OtlpUrl>().unwrap();
            assert_eq!((url.to_string().as_str(), url.port()), (shown, port));
        }
        assert_eq!("http://[::1]".parse::<OtlpUrl>().unwrap().host(), "::1");
        for wrong in ["127.0.0.1:4318", "grpc://h:1", "http://user:secret@h", "http://h/?token=secret", "http://h:0"] {
            let message = wrong.parse::<OtlpUrl>().unwrap_err();
            assert!(message.contains("expected an http or https URL") && !message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn pairs_are_percent_decoded() {
        let expected = [("a", "b c,d"), ("e", ""), ("f", "1=2")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(pairs("a=b%20c%2Cd, e=,f=1=2,").unwrap(), expected);
        assert_eq!((pairs("a"), pairs("=b"), pairs("a=%ff")), (None, None, None));
    }
}
