//! Reads lists of entries such as `[[operation]]`. The error for a single `[operation]` table says what is expected.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// An entry of a list.
pub(super) trait Entry {
    /// What errors say is expected, such as `entries of the form [[operation]], each with a name`.
    const EXPECTED: &'static str;
}

pub(super) fn read<'de, D: Deserializer<'de>, E: Deserialize<'de> + Entry>(
    deserializer: D,
) -> Result<Vec<E>, D::Error> {
    struct Entries<E>(PhantomData<E>);

    impl<'de, E: Deserialize<'de> + Entry> Visitor<'de> for Entries<E> {
        type Value = Vec<E>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(E::EXPECTED)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = seq.next_element()? {
                entries.push(entry);
            }
            Ok(entries)
        }
    }

    deserializer.deserialize_any(Entries(PhantomData))
}
