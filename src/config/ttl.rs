//! The setting `ttl` of `[cache]` and `[[operation]]`: a fixed duration, or limits within which the gateway chooses one.

use std::fmt;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::redact::redacted;
use super::units::{Allowed, Span, written_as_text};
use crate::catalogue::{AdaptiveTtl, DEFAULT_TTL, Operation};

/// How long a response is fresh where upstream gives no lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Ttl {
    Fixed(Span),
    Adaptive(AdaptiveTtlSettings),
}

/// `ttl = { max_stale = "1%", min = "30s", max = "1h" }`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of settings")]
pub struct AdaptiveTtlSettings {
    pub max_stale: MaxStale,
    #[serde(default = "default_min")]
    pub min: Span,
    #[serde(default = "default_max")]
    pub max: Span,
}

/// The largest share of stale answers.
#[derive(Clone, Copy, PartialEq)]
pub struct MaxStale {
    /// In percent, as it is written, so that it can be printed exactly.
    percent: f64,
}

written_as_text!(
    MaxStale,
    "a share of more than 0% and at most 50%, such as \"1%\" or \"0.5%\"",
    |text| {
        let number = text.strip_suffix('%')?;
        // A number as Rust reads it may also have a sign or an exponent.
        let is_decimal = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let percent: f64 = number.parse().ok().filter(|_| is_decimal)?;
        (percent > 0.0 && percent <= 50.0).then_some(MaxStale { percent })
    },
    |share| format!("{}%", share.percent)
);

fn default_min() -> Span {
    Span(Duration::from_secs(30))
}

fn default_max() -> Span {
    Span(Duration::from_secs(60 * 60))
}

impl Ttl {
    /// The limits of an adaptive ttl.
    pub fn adaptive(self) -> Option<AdaptiveTtl> {
        match self {
            Self::Fixed(_) => None,
            Self::Adaptive(AdaptiveTtlSettings { max_stale, min, max }) => {
                Some(AdaptiveTtl { max_stale: max_stale.percent / 100.0, min: min.0, max: max.0 })
            }
        }
    }

    /// The fixed ttl. For an adaptive one: the ttl while the share of stale answers is unknown, which is `cache.ttl`
    /// within the limits.
    pub fn fallback(self, cache_ttl: Self) -> Duration {
        let start = match cache_ttl {
            Self::Fixed(ttl) => ttl.0,
            Self::Adaptive(_) => DEFAULT_TTL,
        };
        match self {
            Self::Fixed(ttl) => ttl.0,
            // Checked settings have min ≤ max. Unchecked ones must not panic, as `clamp` would.
            Self::Adaptive(limits) => start.min(limits.max.0).max(limits.min.0),
        }
    }

    /// # Errors
    /// If `min` is more than `max`. `setting` is the name, such as `cache.ttl`.
    pub(super) fn check(self, setting: &str) -> Result<(), String> {
        match self {
            Self::Adaptive(AdaptiveTtlSettings { min, max, .. }) if min.0 > max.0 => {
                Err(format!("{setting}: min = {min:?} is not allowed: expected at most max, which is {max:?}"))
            }
            _ => Ok(()),
        }
    }
}

/// The ttl of an operation, for people.
pub(crate) fn describe(operation: &Operation) -> String {
    let show = |ttl: Duration| humantime::format_duration(ttl).to_string();
    match operation.adaptive_ttl {
        None => show(operation.ttl),
        Some(AdaptiveTtl { max_stale, min, max }) => {
            // Without the rounding, 7 % may be shown as 7.000000000000001 %.
            let percent = (max_stale * 1e8).round() / 1e6;
            format!(
                "{} to {}, for at most {percent}% stale answers ({} until they are measured)",
                show(min),
                show(max),
                show(operation.ttl)
            )
        }
    }
}

impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FixedOrAdaptive;

        impl<'de> Visitor<'de> for FixedOrAdaptive {
            type Value = Ttl;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a duration from 1ms to a year with a unit, such as \"30s\" or \"5m\", or a table such as \
                     { max_stale = \"1%\", min = \"30s\", max = \"1h\" }",
                )
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Ttl, E> {
                // It may come from a flag, which cannot have a table.
                let wrong = |_| E::invalid_value(Unexpected::Str(&redacted(text)), &Span::ALLOWED);
                text.parse().map(Ttl::Fixed).map_err(wrong)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Ttl, A::Error> {
                AdaptiveTtlSettings::deserialize(MapAccessDeserializer::new(map)).map(Ttl::Adaptive)
            }
        }

        deserializer.deserialize_any(FixedOrAdaptive)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, SettingsDiff};
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let config = Config::from_layers("f", &format!("region = \"r\"\n{text}"), &[]);
        config.map_err(|error| error.to_string())
    }

    /// The ttl and the adaptive ttl of an operation.
    fn ttl_of(text: &str, name: &str) -> (u64, Option<AdaptiveTtl>) {
        let catalogue = load(text).unwrap().catalogue;
        let operation = catalogue.operations().iter().find(|operation| *operation.name == *name).unwrap();
        (operation.ttl.as_secs(), operation.adaptive_ttl)
    }

    fn seconds(max_stale: f64, min: u64, max: u64) -> Option<AdaptiveTtl> {
        let [min, max] = [min, max].map(Duration::from_secs);
        Some(AdaptiveTtl { max_stale, min, max })
    }

    #[test]
    fn a_share_is_printed_as_it_is_written() {
        for text in ["1%", "0.5%", "7%", "50%", "0.07%", "33.333%"] {
            assert_eq!(text.parse::<MaxStale>().unwrap().to_string(), text);
        }
        for text in ["", "%", "1", "0%", "0.0%", "50.1%", "-1%", "+1%", "1e1%", "NaN%", "inf%", "1 %", "1,5%", "1.2.3%"]
        {
            assert!(text.parse::<MaxStale>().unwrap_err().contains("more than 0% and at most 50%"), "{text}");
        }
    }

    #[test]
    fn until_the_share_is_measured_the_ttl_is_that_of_the_cache_within_the_limits() {
        let entry = |ttl: &str| format!("[[operation]]\nname = \"ListProduct\"\nttl = {ttl}\n");
        let narrow = "{ max_stale = \"2%\", min = \"10m\", max = \"20m\" }";
        let cache = |ttl: &str| format!("[cache]\nttl = {ttl}\n");
        for (text, expected) in [
            (entry("{ max_stale = \"1%\" }"), (300, seconds(0.01, 30, 3600))),
            (entry(narrow), (600, seconds(0.02, 600, 1200))),
            (entry(narrow) + &cache("\"15m\""), (900, seconds(0.02, 600, 1200))),
            (entry(narrow) + &cache("\"2h\""), (1200, seconds(0.02, 600, 1200))),
            (entry(narrow) + &cache("{ max_stale = \"5%\", min = \"1h\" }"), (600, seconds(0.02, 600, 1200))),
            (entry("\"7m\"") + &cache("{ max_stale = \"5%\" }"), (420, None)),
            (cache("{ max_stale = \"5%\" }"), (300, seconds(0.05, 30, 3600))),
            (cache("{ max_stale = \"5%\", max = \"1m\" }"), (60, seconds(0.05, 30, 60))),
        ] {
            assert_eq!(ttl_of(&text, "ListProduct"), expected, "{text}");
        }
    }

    #[test]
    fn an_adaptive_ttl_can_be_printed_and_read_back() {
        let text = "[cache]\nttl = { max_stale = \"0.5%\", max = \"1h 30m\" }\n\
                    [[operation]]\nname = \"ListProduct\"\nttl = { max_stale = \"7%\", min = \"1m\" }";
        let config = load(text).unwrap();
        let printed = config.to_toml();
        assert_eq!(Config::from_layers("f", &printed, &[]).unwrap().settings, config.settings, "{printed}");
        for line in [
            "sharing = \"project\", ttl = 30s to 1h 30m, for at most 0.5% stale answers (5m until they are measured)",
            "sharing = \"project\", ttl = 1m to 1h, for at most 7% stale answers (5m until they are measured)",
        ] {
            assert!(printed.lines().any(|printed| printed.ends_with(line)), "{line}: {printed}");
        }
    }

    #[test]
    fn a_changed_limit_is_listed_by_name() {
        let settings = |ttl: &str| load(&format!("[cache]\nttl = {ttl}")).unwrap().settings;
        let [fixed, one, other] = ["\"5m\"", "{ max_stale = \"1%\" }", "{ max_stale = \"2%\" }"].map(settings);
        assert_eq!(SettingsDiff::between(&one, &other).applied, ["cache.ttl.max_stale"]);
        let names = ["cache.ttl", "cache.ttl.max", "cache.ttl.max_stale", "cache.ttl.min"];
        assert_eq!(SettingsDiff::between(&fixed, &one).applied, names);
    }

    #[test]
    fn an_error_says_what_is_wrong_and_what_is_allowed() {
        let table = "or a table such as { max_stale = \"1%\", min = \"30s\", max = \"1h\" }";
        for (ttl, expected) in [
            ("300", &["cache.ttl: invalid type: integer `300`, expected a duration from 1ms to a year", table][..]),
            ("[]", &["cache.ttl: invalid type: sequence, expected a duration", table]),
            ("\"0s\"", &["cache.ttl: invalid value: string \"0s\", expected a duration from 1ms to a year"]),
            ("{}", &["cache.ttl: missing field `max_stale`"]),
            ("{ max_stale = 1 }", &["cache.ttl.max_stale: ", "`1`", "more than 0% and at most 50%"]),
            ("{ max_stale = \"60%\" }", &["cache.ttl.max_stale: ", "\"60%\"", "more than 0% and at most 50%"]),
            ("{ max_stale = \"1%\", min = \"0s\" }", &["cache.ttl.min: ", "\"0s\"", "a duration from 1ms"]),
            ("{ max_stale = \"1%\", mix = \"1s\" }", &["cache.ttl.mix: unknown field `mix` (did you mean `min`?)"]),
            (
                "{ max_stale = \"1%\", min = \"2h\" }",
                &["cache.ttl: min = \"2h\" is not allowed: expected at most max, which is \"1h\" (line 3, column 1)"],
            ),
        ] {
            let message = load(&format!("[cache]\nttl = {ttl}")).unwrap_err();
            for part in expected {
                assert!(message.contains(part), "{ttl}: {message:?} lacks {part:?}");
            }
        }
        let entry = "[[operation]]\nname = \"ListProduct\"\nttl = { max_stale = \"1%\", min = \"2m\", max = \"1m\" }";
        assert!(load(entry).unwrap_err().contains("operation.ListProduct.ttl: min = \"2m\" is not allowed"));
    }

    #[test]
    fn several_errors_of_a_ttl_are_reported_once_each() {
        let text = "[cache]\nttl = { max_stale = \"60%\", min = \"x\", max = \"y\" }\nttl_jitter = \"z\"";
        let error = Config::from_layers("f", &format!("region = \"r\"\n{text}"), &[]).unwrap_err();
        let mut names: Vec<_> = error.each().iter().map(ToString::to_string).collect();
        names.iter_mut().for_each(|name| *name = name.split(": ").nth(1).unwrap().to_owned());
        names.sort();
        assert_eq!(names, ["cache.ttl.max", "cache.ttl.max_stale", "cache.ttl.min", "cache.ttl_jitter"]);
    }
}
