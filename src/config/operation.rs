//! `[[operation]]`: the form of an entry. `operations.rs` checks entries and applies them.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::entries::Entry;
use super::enums::ServiceName;
use super::names::{BaseUrl, HeaderField, OperationName, PathTemplate};
use super::ttl::Ttl;
use super::units::Window;
use crate::catalogue::{BodyCheck, Forwarded, Sharing};

/// `[[operation]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
pub struct OperationSettings {
    pub name: OperationName,
    pub path: Option<PathTemplate>,
    pub service: Option<ServiceName>,
    /// An origin of its own, instead of `service`.
    pub upstream: Option<BaseUrl>,
    pub ttl: Option<Ttl>,
    pub stale_while_revalidate: Option<Window>,
    pub stale_if_error: Option<Window>,
    pub sharing: Option<Sharing>,
    pub keyed_headers: Option<Vec<HeaderField>>,
    /// Request headers that are sent upstream but are not part of the cache key.
    pub forward_headers: Option<ForwardHeaders>,
    pub body: Option<BodyCheck>,
    /// Query parameters that are left out of the cache key when they are empty.
    pub empty_is_absent: Option<Vec<String>>,
    /// Query parameters that are left out of the cache key when they have this value.
    pub defaults: Option<BTreeMap<String, String>>,
}

impl Entry for OperationSettings {
    const EXPECTED: &'static str = "entries of the form [[operation]], each with a name";
}

/// A list of header names, or `"*"` for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardHeaders(pub Forwarded);

impl<'de> Deserialize<'de> for ForwardHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;

        impl<'de> Visitor<'de> for Names {
            type Value = ForwardHeaders;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"*\", or a list of header names such as [\"traceparent\"]")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ForwardHeaders, E> {
                let all = (text == "*").then_some(ForwardHeaders(Forwarded::All));
                all.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<ForwardHeaders, A::Error> {
                let mut names = Vec::new();
                while let Some(HeaderField(name)) = seq.next_element()? {
                    names.push(name);
                }
                Ok(ForwardHeaders(Forwarded::Named(names.into())))
            }
        }

        deserializer.deserialize_any(Names)
    }
}

impl Serialize for ForwardHeaders {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Forwarded::All => serializer.serialize_str("*"),
            Forwarded::Named(names) => serializer.collect_seq(names.iter().map(http::HeaderName::as_str)),
        }
    }
}
