//! Randomness: keys, ids and jitter. The only place that asks the system for them, so that a test can give all of them by one
//! seed. (Maps of std have keys of their own, which no answer depends on.)

use std::fmt;
use std::io;
use std::sync::Arc;

use blake3::{Hasher, OutputReader};

use crate::sync::Mutex;

/// Where random bytes come from.
#[derive(Clone)]
pub enum Random {
    /// The operating system: bytes that nobody can foresee.
    System,
    /// A seed: the same bytes in each run, for tests.
    Seeded(Arc<Seed>),
}

/// What all random bytes of a test follow from.
pub struct Seed {
    key: [u8; 32],
    numbers: Mutex<OutputReader>,
}

impl Random {
    /// Bytes that follow from a seed.
    pub fn seeded(key: [u8; 32]) -> Self {
        let numbers = Mutex::new(Hasher::new_keyed(&key).finalize_xof());
        Self::Seeded(Arc::new(Seed { key, numbers }))
    }

    /// A random key. A seed gives each purpose a key of its own, the same one whenever it is asked for.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn key(&self, purpose: &str) -> io::Result<[u8; 32]> {
        match self {
            Self::System => {
                let mut key = [0; 32];
                getrandom::fill(&mut key)?;
                Ok(key)
            }
            Self::Seeded(seed) => Ok(*blake3::keyed_hash(&seed.key, purpose.as_bytes()).as_bytes()),
        }
    }

    /// The next random number.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn u32(&self) -> io::Result<u32> {
        match self {
            Self::System => Ok(getrandom::u32()?),
            Self::Seeded(seed) => {
                let mut number = [0; 4];
                seed.numbers.lock().fill(&mut number);
                Ok(u32::from_le_bytes(number))
            }
        }
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What follows from a seed may be a key.
        f.write_str("Random(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_again_and_the_system_does_not() {
        let some = |random: &Random| (random.key("a").unwrap(), [(); 4].map(|()| random.u32().unwrap()));
        assert_eq!(some(&Random::seeded([1; 32])), some(&Random::seeded([1; 32])));
        let (one, other) = (Random::seeded([1; 32]), Random::seeded([2; 32]));
        assert_ne!(some(&one), some(&other));
        assert_ne!(some(&Random::System), some(&Random::System));
        assert_ne!(one.key("a").unwrap(), one.key("b").unwrap());
        assert_ne!([one.u32().unwrap(), one.u32().unwrap()], [one.u32().unwrap(), one.u32().unwrap()]);
        assert_eq!(format!("{one:?}"), "Random(…)");
    }
}
