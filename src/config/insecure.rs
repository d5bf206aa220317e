//! The setting that lets plain text out of this machine.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Whether plain text is let out of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insecure(pub bool);

impl<'de> Deserialize<'de> for Insecure {
    /// From a word, too: flags and variables have nothing else.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bool;

        impl Visitor<'_> for Bool {
            type Value = Insecure;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true or false")
            }

            fn visit_bool<E: Error>(self, is_insecure: bool) -> Result<Insecure, E> {
                Ok(Insecure(is_insecure))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Insecure, E> {
                let wrong = |_| E::custom(format_args!("{text:?} is not allowed: expected true or false"));
                text.parse().map(Insecure).map_err(wrong)
            }
        }

        deserializer.deserialize_any(Bool)
    }
}

impl Serialize for Insecure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(self.0)
    }
}
