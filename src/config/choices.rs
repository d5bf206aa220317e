//! Choices: settings whose value is one of a few words.

use strum::{IntoStaticStr, VariantArray};

use super::units::written_as_text;
use crate::catalogue::{BodyCheck, Service, Sharing};

/// Whether the cache is in use.
#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Mode {
    /// Product lists are answered from memory.
    Cache,
    /// Everything is forwarded, nothing is kept.
    Bypass,
}

/// The form of a log line.
#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// What becomes of callers whose grant has lapsed when upstream can't be asked.
#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum OnOutage {
    /// They are given stale answers for a while.
    Serve,
    /// They are told of the outage.
    Refuse,
}

/// Which requests have a line in the log.
#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum AccessLog {
    /// Each.
    All,
    /// Those that have failed or taken long.
    SlowAndFailed,
    /// None.
    Off,
}

/// One of the two services.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ServiceName(pub Service);

/// A log level.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Level(pub tracing::Level);

/// Reading and writing one of the words of an enum.
macro_rules! one_of {
    ($name:ident, $allowed:literal) => {
        written_as_text!(
            $name,
            $allowed,
            |text| $name::VARIANTS.iter().copied().find(|value| value.into_str() == text),
            |value| value.into_str().to_owned()
        );
    };
}

one_of!(Mode, "cache or bypass");
one_of!(LogFormat, "text or json");
one_of!(OnOutage, "serve or refuse");
one_of!(AccessLog, "all, slow-and-failed or off");
one_of!(Sharing, "project or caller");

written_as_text!(
    ServiceName,
    "workspace or appstream",
    |text| Service::ALL.into_iter().find(|service| service.as_str() == text).map(ServiceName),
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
        for text in ["products", "field:availability_zones", "json", "none"] {
            assert_eq!(text.parse::<BodyCheck>().unwrap().to_string(), text);
        }
    }
}
