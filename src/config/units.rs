//! Settings that are durations, sizes and numbers. `names.rs` and `enums.rs` have the other forms of text. Each type is
//! parsed in one place, and its error says what is allowed.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration greater than zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

/// A duration that may be zero, which switches the setting off.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Window(pub Duration);

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Percent(pub u8);

/// A number of bytes greater than zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

/// A number from 1 to 1,000,000.
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
    /// `usize::MAX` where the size does not fit.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// What errors say is allowed.
pub(super) trait Allowed {
    const ALLOWED: &'static str;
}

/// Implements parsing, printing and serde for a type from two functions. Errors say what is allowed.
macro_rules! written_as_text {
    ($type:ty, $allowed:literal, $parse:expr, $show:expr) => {
        const _: () = {
            use std::fmt;
            use std::str::FromStr;

            use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
            use serde::{Serialize, Serializer};

            use $crate::config::redact::redacted;
            use $crate::config::units::Allowed;

            impl Allowed for $type {
                const ALLOWED: &'static str = $allowed;
            }

            impl FromStr for $type {
                type Err = String;

                fn from_str(text: &str) -> Result<Self, String> {
                    let parse: fn(&str) -> Option<Self> = $parse;
                    let wrong = || format!("{:?} is not allowed: expected {}", redacted(text), Self::ALLOWED);
                    parse(text).ok_or_else(wrong)
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

                        fn visit_str<E: Error>(self, text: &str) -> Result<$type, E> {
                            text.parse().map_err(|_| E::invalid_value(Unexpected::Str(&redacted(text)), &self))
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
    };
}
pub(super) use written_as_text;

/// One year. Much longer durations would overflow when they are added to a time.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 60 * 60);

written_as_text!(
    Span,
    "a duration from 1ms to a year with a unit, such as \"500ms\", \"30s\" or \"5m\"",
    |text| {
        let duration = humantime::parse_duration(text).ok()?;
        (Duration::from_millis(1)..=MAX_DURATION).contains(&duration).then_some(Span(duration))
    },
    |span| humantime::format_duration(span.0).to_string()
);

written_as_text!(
    Window,
    "a duration from 0s to a year with a unit, such as \"0s\", \"30s\" or \"5m\"",
    |text| {
        // humantime accepts 0 without a unit.
        let has_unit = text.ends_with(|last: char| last.is_ascii_alphabetic());
        let duration = humantime::parse_duration(text).ok().filter(|_| has_unit)?;
        (duration <= MAX_DURATION).then_some(Window(duration))
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
        // bytesize reads a number without a unit as bytes. Here the unit was more likely forgotten.
        let has_unit = text.ends_with(|last: char| last.is_ascii_alphabetic());
        let bytes = text.parse::<ByteSize>().ok().filter(|_| has_unit)?.as_u64();
        (1..=1 << 40).contains(&bytes).then_some(Size(bytes))
    },
    |size| {
        // The largest unit without a fraction, so that the printed size can be read back exactly.
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let (unit, name) = units.into_iter().find(|(unit, _)| size.0.is_multiple_of(*unit)).unwrap_or((1, "B"));
        format!("{}{name}", size.0 / unit)
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_value_can_be_read_back() {
        for text in ["1ms", "35s", "5m", "1h 30m"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        for text in ["1B", "1025B", "64KiB", "64MiB", "3GiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for text in ["0s", "1ms", "10m"] {
            assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
        }
        assert_eq!("1.5KiB".parse::<Size>().unwrap().to_string(), "1536B");
    }

    #[test]
    fn a_wrong_value_is_refused_with_what_is_allowed() {
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
