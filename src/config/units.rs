//! Values with a form of their own: durations, sizes, addresses, URLs and names. Each is read from
//! text in one place and says what is allowed when the text is wrong.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use http::uri::Scheme;
use http::{HeaderName, Uri};
use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::catalogue::headers::is_open;
use crate::catalogue::{BodyCheck, Origin, Service, Sharing, Template};

/// A duration greater than zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A duration that may be zero, which means never.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Window(pub Duration);

/// A part of a whole, in hundredths.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Percent(pub u8);

/// A number of bytes greater than zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

/// An address and port to listen on; port 0 lets the system choose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address(pub SocketAddr);

/// The URL of an upstream service: scheme, host and port.
#[derive(Clone, PartialEq, Eq)]
pub struct BaseUrl(pub Origin);

/// The name of an operation.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OperationName(pub String);

/// The paths of an operation.
#[derive(Clone, PartialEq, Eq)]
pub struct PathTemplate(pub Template);

/// One of the two services.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ServiceName(pub Service);

/// A request header that is a client's to set.
#[derive(Clone, PartialEq, Eq)]
pub struct HeaderField(pub HeaderName);

/// The public half of an access key.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKeyId(pub String);

/// The id of a project.
#[derive(Clone, PartialEq, Eq)]
pub struct ProjectId(pub String);

/// The name of a region.
#[derive(Clone, PartialEq, Eq)]
pub struct Region(String);

/// A log level.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Level(pub tracing::Level);

/// Whether the cache is in use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Product lists are answered from memory.
    Cache,
    /// Everything is forwarded, nothing is kept.
    Bypass,
}

impl Mode {
    /// The name used in the configuration, on the admin listener and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Bypass => "bypass",
        }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl LogFormat {
    /// The name used in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// What becomes of callers whose grant has lapsed when upstream can't be asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OnOutage {
    /// They are given stale answers for a while.
    Serve,
    /// They are told of the outage.
    Refuse,
}

impl OnOutage {
    /// The name used in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Refuse => "refuse",
        }
    }
}

/// How many, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 1 to 1000000")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Count, E> {
                let count = usize::try_from(number).ok().filter(|count| (1..=1_000_000).contains(count));
                count.map(Count).ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
            }
        }

        deserializer.deserialize_i64(Number)
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0 as u64)
    }
}

impl Size {
    /// As a length in memory.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// What is allowed, for the error.
pub(super) trait Allowed {
    const ALLOWED: &'static str;
}

/// A wrong value as it may be shown: a password in a URL is not.
fn without_user(text: &str) -> Cow<'_, str> {
    match text.rsplit_once('@') {
        Some((user, host)) => {
            let scheme = user.split_once("://").map_or("", |(scheme, _)| scheme);
            Cow::Owned(format!("{scheme}://…@{host}"))
        }
        None => Cow::Borrowed(text),
    }
}

/// Reading from text and writing as text, with our own words where that fails, and through both serde.
macro_rules! written_as_text {
    ($type:ty, $allowed:literal, $parse:expr, $show:expr) => {
        impl Allowed for $type {
            const ALLOWED: &'static str = $allowed;
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let parse: fn(&str) -> Option<Self> = $parse;
                parse(text)
                    .ok_or_else(|| format!("{:?} is not allowed: expected {}", without_user(text), Self::ALLOWED))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let show: fn(&Self) -> String = $show;
                f.write_str(&show(self))
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(<$type as Allowed>::ALLOWED)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(|_| E::invalid_value(Unexpected::Str(&without_user(text)), &self))
                    }
                }

                deserializer.deserialize_str(Text).map_err(D::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.to_string())
            }
        }
    };
}

/// Clocks can't count to the end of time.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

written_as_text!(
    Span,
    "a duration from 1ms to a year with a unit, such as \"500ms\", \"30s\" or \"5m\"",
    |text| {
        let duration = humantime::parse_duration(text).ok()?;
        (Duration::from_millis(1)..=LONGEST).contains(&duration).then_some(Span(duration))
    },
    |span| humantime::format_duration(span.0).to_string()
);

written_as_text!(
    Window,
    "a duration from 0s to a year with a unit, such as \"0s\", \"30s\" or \"5m\"",
    |text| {
        // humantime takes a bare 0.
        let has_unit = text.ends_with(|last: char| last.is_ascii_alphabetic());
        let duration = humantime::parse_duration(text).ok().filter(|_| has_unit)?;
        (duration <= LONGEST).then_some(Window(duration))
    },
    |window| humantime::format_duration(window.0).to_string()
);

written_as_text!(
    Percent,
    "a part from 0% to 50%, such as \"10%\"",
    |text| text.strip_suffix('%')?.parse().ok().filter(|part| *part <= 50).map(Percent),
    |part| format!("{}%", part.0)
);

written_as_text!(
    Size,
    "a size from 1B to 1TiB with a unit, such as \"64KiB\" or \"64MiB\"",
    |text| {
        // bytesize takes a bare number for bytes; a forgotten unit is more likely.
        let has_unit = text.ends_with(|last: char| last.is_ascii_alphabetic());
        let bytes = text.parse::<ByteSize>().ok().filter(|_| has_unit)?.as_u64();
        (1..=1 << 40).contains(&bytes).then_some(Size(bytes))
    },
    |size| {
        // The largest unit that loses nothing, so that what is printed can be read back.
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let (unit, name) = units.into_iter().find(|(unit, _)| size.0.is_multiple_of(*unit)).unwrap_or((1, "B"));
        format!("{}{name}", size.0 / unit)
    }
);

written_as_text!(
    Address,
    "an IP address and a port, such as \"127.0.0.1:8080\"",
    |text| { text.parse().ok().map(Address) },
    |address| address.0.to_string()
);

written_as_text!(
    BaseUrl,
    "an http or https URL of a host and maybe a port, with no path, query or user",
    |text| {
        // The URI parser drops a fragment and lets any digits be a port.
        let is_whole = !text.contains('#');
        let parts = text.parse::<Uri>().ok().filter(|_| is_whole)?.into_parts();
        let scheme = parts.scheme.filter(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS)?;
        let authority = parts.authority.filter(|authority| !authority.host().is_empty())?;
        let is_host_and_port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => true,
            Some(_) => authority.port_u16().is_some_and(|port| port > 0),
            None => false,
        };
        let has_path = parts.path_and_query.is_some_and(|path| path.as_str() != "/");
        (is_host_and_port && !has_path).then(|| BaseUrl(Origin::new(scheme, authority)))
    },
    |url| url.0.to_string()
);

written_as_text!(
    HeaderField,
    "the name of a header that is no credential and that the gateway does not set",
    |text| {
        // A credential in the key would be kept in clear, and the others would have no or a wrong effect.
        HeaderName::from_str(text).ok().filter(is_open).map(HeaderField)
    },
    |header| header.0.to_string()
);

written_as_text!(
    AccessKeyId,
    "1 to 128 of A-Z a-z 0-9 _ -",
    |text| is_plain_word(text, 128).then(|| AccessKeyId(text.to_owned())),
    |id| id.0.clone()
);

written_as_text!(
    ProjectId,
    "1 to 255 of A-Z a-z 0-9 _ -",
    |text| is_plain_word(text, 255).then(|| ProjectId(text.to_owned())),
    |id| id.0.clone()
);

fn is_plain_word(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

written_as_text!(
    OperationName,
    "1 to 64 of A-Z a-z 0-9 _ -, and none of the words none, workspace, appstream and own",
    |text| {
        // These stand in the same metrics for what is no operation.
        let is_taken = ["none", "workspace", "appstream", "own"].contains(&text);
        (is_plain_word(text, 64) && !is_taken).then(|| OperationName(text.to_owned()))
    },
    |name| name.0.clone()
);

written_as_text!(
    PathTemplate,
    "a path of up to 16 segments, each of A-Z a-z 0-9 - . _ ~ or a {name} that is there once, such as \
     \"/v2/{project_id}/availability-zones\"",
    |text| text.parse().ok().map(PathTemplate),
    |path| path.0.to_string()
);

written_as_text!(
    ServiceName,
    "workspace or appstream",
    |text| { Service::ALL.into_iter().find(|service| service.as_str() == text).map(ServiceName) },
    |service| service.0.as_str().to_owned()
);

written_as_text!(
    BodyCheck,
    "products, field:NAME, json or none",
    |text| match text {
        "products" => Some(BodyCheck::Field("products".into())),
        "json" => Some(BodyCheck::Json),
        "none" => Some(BodyCheck::None),
        _ => {
            let name = text.strip_prefix("field:")?;
            let is_name = (1..=128).contains(&name.len()) && !name.chars().any(char::is_control);
            is_name.then(|| BodyCheck::Field(name.into()))
        }
    },
    |check| match check {
        BodyCheck::Field(name) if **name == *"products" => "products".to_owned(),
        BodyCheck::Field(name) => format!("field:{name}"),
        BodyCheck::Json => "json".to_owned(),
        BodyCheck::None => "none".to_owned(),
    }
);

written_as_text!(
    Mode,
    "cache or bypass",
    |text| { [Mode::Cache, Mode::Bypass].into_iter().find(|mode| mode.as_str() == text) },
    |mode| mode.as_str().to_owned()
);

written_as_text!(
    Sharing,
    "project or caller",
    |text| { [Sharing::Project, Sharing::Caller].into_iter().find(|sharing| sharing.as_str() == text) },
    |sharing| sharing.as_str().to_owned()
);

written_as_text!(
    OnOutage,
    "serve or refuse",
    |text| { [OnOutage::Serve, OnOutage::Refuse].into_iter().find(|on_outage| on_outage.as_str() == text) },
    |on_outage| on_outage.as_str().to_owned()
);

written_as_text!(
    LogFormat,
    "text or json",
    |text| { [LogFormat::Text, LogFormat::Json].into_iter().find(|format| format.as_str() == text) },
    |format| format.as_str().to_owned()
);

written_as_text!(
    Region,
    "1 to 64 of a-z 0-9 -, such as \"cn-north-4\"",
    |text| {
        let is_name = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        (is_name && (1..=64).contains(&text.len())).then(|| Region(text.to_owned()))
    },
    |region| region.0.clone()
);

written_as_text!(
    Level,
    "error, warn, info, debug or trace",
    |text| {
        let levels = ["error", "warn", "info", "debug", "trace"];
        levels.contains(&text).then(|| text.parse().ok()).flatten().map(Level)
    },
    |level| level.0.as_str().to_ascii_lowercase()
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_read_back() {
        for text in ["1ms", "35s", "5m", "1h 30m"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        for text in ["1B", "1025B", "64KiB", "64MiB", "3GiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for text in ["0s", "1ms", "10m"] {
            assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
        }
        for text in ["products", "field:availability_zones", "json", "none"] {
            assert_eq!(text.parse::<BodyCheck>().unwrap().to_string(), text);
        }
        assert_eq!("1.5KiB".parse::<Size>().unwrap().to_string(), "1536B");
        assert_eq!("https://h:8443/".parse::<BaseUrl>().unwrap().to_string(), "https://h:8443");
    }

    #[test]
    fn what_is_not_allowed_says_what_is() {
        for text in [
            "https://user:secret@h",
            "//h",
            "h",
            "https://",
            "https://h/p",
            "https://h?q",
            "https://h/?q",
            "https://h#x",
            "https://h:",
            "https://h:0",
            "https://h:99999",
        ] {
            let message = text.parse::<BaseUrl>().unwrap_err();
            assert!(message.contains("expected an http or https URL"), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
        for text in ["", "5", "-1s", "5 parsecs"] {
            assert!(text.parse::<Span>().unwrap_err().contains("\"5m\""));
        }
        for text in ["", "0", "5", "-1s"] {
            assert!(text.parse::<Window>().unwrap_err().contains("\"0s\""));
        }
        for text in ["", "5", "-1MiB", "0MiB", "5 apples", "2TiB", "99999999999GiB"] {
            assert!(text.parse::<Size>().unwrap_err().contains("\"64MiB\""));
        }
    }
}
