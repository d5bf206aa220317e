//! Random keys, ids and jitter. No other file may get random bytes from the system, so that a test can replace all of
//! them by a seed. The seeds of hash maps, which decide in which order their entries are visited, are here, too.

use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, RandomState};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use blake3::{Hasher, OutputReader};
use foldhash::fast::{FoldHasher, SeedableRandomState};

use crate::sync::Mutex;

/// A map on the path of each upstream call. A call looks up its caller, address and connection some hundred times, which
/// took a tenth of its instructions with the hasher of std (SipHash).
///
/// foldhash is the hasher of hashbrown. Its seed is random in each process and differs between maps. It resists collisions
/// as long as nobody sees hashes or their timing. These maps are bounded, and what a client chooses in a request key is
/// hashed with a secret before ([`secret_hash`]).
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, HashState>;

/// The seed of a map.
#[derive(Clone)]
pub(crate) struct HashState(SeedableRandomState);

static FIXES_HASH_SEEDS: AtomicBool = AtomicBool::new(false);

/// Gives all maps that are made from now on, and [`secret_hash`], the same seed, for tests: then a run can be repeated.
pub fn fix_hash_seeds() {
    FIXES_HASH_SEEDS.store(true, Ordering::Relaxed);
}

impl Default for HashState {
    fn default() -> Self {
        Self(match FIXES_HASH_SEEDS.load(Ordering::Relaxed) {
            true => SeedableRandomState::fixed(),
            false => SeedableRandomState::random(),
        })
    }
}

impl BuildHasher for HashState {
    type Hasher = FoldHasher<'static>;

    fn build_hasher(&self) -> Self::Hasher {
        self.0.build_hasher()
    }
}

/// The hash of something that a client chooses, for maps (SipHash). Its seed is secret and random in each process, so that a
/// client cannot choose values with one hash.
pub(crate) fn secret_hash(value: &(impl Hash + ?Sized)) -> u64 {
    static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    match FIXES_HASH_SEEDS.load(Ordering::Relaxed) {
        true => BuildHasherDefault::<DefaultHasher>::default().hash_one(value),
        false => SEED.hash_one(value),
    }
}

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
