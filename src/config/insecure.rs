//! `listen.insecure_plaintext`: a boolean that can also be read from the text of a flag or variable.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Whether plaintext is allowed beyond loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insecure(pub bool);

impl<'de> Deserialize<'de> for Insecure {
    /// Accepts a string, too, because flags and variables are strings.
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
