//! Random keys, ids and jitter. No other file may get random bytes from the system, so that a test can replace all of
//! them by a seed. (Hash maps have their own random seeds. No response depends on these.)

use std::fmt;
use std::io;
use std::sync::Arc;

use blake3::{Hasher, OutputReader};

use crate::sync::Mutex;

/// A map on the path of each upstream call. A call looks up its caller, address and connection some hundred times, which
/// took a tenth of its instructions with the hasher of std (SipHash).
///
/// foldhash is the hasher of hashbrown. Its seed is random in each process and differs between maps. It resists collisions
/// as long as nobody sees hashes or their timing. These maps are bounded, and what a client chooses in a request key is
/// hashed with a secret before (`request/key.rs`).
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

/// The source of random bytes.
#[derive(Clone)]
pub enum Random {
    /// The operating system: unpredictable bytes.
    System,
    /// For tests: the same bytes in each run.
    Seeded(Arc<Seed>),
}

/// The source of all random bytes of a test.
pub struct Seed {
    key: [u8; 32],
    numbers: Mutex<OutputReader>,
}

impl Random {
    pub fn seeded(key: [u8; 32]) -> Self {
        let numbers = Mutex::new(Hasher::new_keyed(&key).finalize_xof());
        Self::Seeded(Arc::new(Seed { key, numbers }))
    }

    /// A random key. A seed gives each purpose its own key, which is the same on each call.
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
        // A seed determines keys, so it must not be printed.
        f.write_str("Random(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_bytes_again_and_the_system_does_not() {
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
