//! Choices: settings whose value is one of a few words.

use super::units::written_as_text;
use crate::catalogue::{BodyCheck, Service, Sharing};

words! {
    /// Whether the cache is in use.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Mode {
        /// Product lists are answered from memory.
        Cache = "cache",
        /// Everything is forwarded, nothing is kept.
        Bypass = "bypass",
    }

    /// The form of a log line.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum LogFormat {
        /// For people.
        Text = "text",
        /// For machines.
        Json = "json",
    }

    /// What becomes of callers whose grant has lapsed when upstream can't be asked.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum OnOutage {
        /// They are given stale answers for a while.
        Serve = "serve",
        /// They are told of the outage.
        Refuse = "refuse",
    }

    /// Which requests have a line in the log.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum AccessLog {
        /// Each.
        All = "all",
        /// Those that have failed or taken long.
        SlowAndFailed = "slow-and-failed",
        /// None.
        Off = "off",
    }
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
            |text| $name::ALL.into_iter().find(|value| value.as_str() == text),
            |value| value.as_str().to_owned()
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
