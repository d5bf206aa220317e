//! Settings whose value is one of a few words. Each word is written here once, for reading, printing and errors.

use strum::{IntoStaticStr, VariantArray};

use super::units::written_as_text;
use crate::catalogue::{BodyCheck, QuotaPolicy, Service, Sharing};

#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Mode {
    Cache,
    /// Everything is relayed, nothing is stored.
    Bypass,
}

#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum LogFormat {
    Text,
    Json,
}

/// What a caller gets whose grant has lapsed and whose call fails for a reason outside the gateway.
#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum OnOutage {
    /// A stale response, until `outage_grace` has passed.
    Serve,
    /// The failure.
    Refuse,
}

/// Which requests are logged.
#[derive(Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum AccessLog {
    All,
    /// Status 500 and above, failed calls, incomplete responses, and requests that took more than 1 s.
    SlowAndFailed,
    Off,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ServiceName(pub Service);

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PolicyName(pub QuotaPolicy);

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Level(pub tracing::Level);

/// Implements reading and printing for an enum whose variants are words.
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
    PolicyName,
    "api, user, app or ip",
    |text| QuotaPolicy::VARIANTS.iter().copied().find(|policy| policy.into_str() == text).map(PolicyName),
    |policy| policy.0.into_str().to_owned()
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
    fn a_printed_body_check_can_be_read_back() {
        for text in ["products", "field:availability_zones", "json", "none"] {
            assert_eq!(text.parse::<BodyCheck>().unwrap().to_string(), text);
        }
    }
}
