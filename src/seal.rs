//! Seals records: whoever stores them can neither read them, nor change one, nor pass one off as another. It does not
//! know what is in them.
//!
//! Each secret gives several keys (HKDF-SHA256, RFC 5869). A record is encrypted with AES-256-GCM, under a key for this
//! process: the secret's key and a random salt. So a counter is a safe nonce: no
//! other process uses this key. The context says what a record is and where it
//! belongs. It is authenticated, but not part of the record.
//!
//! ```text
//! version (1 byte)  id of the secret (8)  salt (16)  nonce (12)  ciphertext  tag (16)
//! ```

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use strum::{IntoStaticStr, VariantArray};

use crate::random::Random;

/// The version of the format.
const VERSION: u8 = 1;
const ID_LEN: usize = 8;
const SALT_LEN: usize = 16;
const HEAD_LEN: usize = 1 + ID_LEN + SALT_LEN + NONCE_LEN;
/// By how much a sealed record is longer than its content, in bytes.
pub const OVERHEAD: usize = HEAD_LEN + 16;
/// The shortest secret, in bytes.
pub(crate) const MIN_SECRET: usize = 32;

/// Why a record cannot be opened. The label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Unreadable {
    /// It has another version, or is too short to have one.
    Version,
    /// It was sealed with a secret that is not known here.
    Secret,
    /// It was changed, or it belongs elsewhere.
    Damaged,
    /// It is larger than a record may be.
    TooLarge,
}

impl Unreadable {
    /// For an operator: why a record is not used.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Version => "it is of another version of the gateway",
            Self::Secret => "it was sealed with another secret",
            Self::Damaged => "it was changed, or is incomplete",
            Self::TooLarge => "it is larger than cache.max_body_size allows now",
        }
    }
}

/// The keys of one secret.
struct Keys {
    id: [u8; ID_LEN],
    seal: Prk,
    callers: [u8; 32],
    names: [u8; 32],
}

/// Seals with the first of its secrets, and opens with each of them.
pub struct Sealer {
    first: Keys,
    others: Vec<Keys>,
    salt: [u8; SALT_LEN],
    /// The key of `salt` and the first secret.
    key: LessSafeKey,
    sealed: AtomicU64,
}

impl Sealer {
    /// Seals with `secret`, and opens what was sealed with it or with `others`.
    ///
    /// # Errors
    /// If the system has no randomness, or if a secret has less than [`MIN_SECRET`] bytes.
    pub fn new(secret: &[u8], others: &[&[u8]], random: &Random) -> io::Result<Self> {
        let mut salt = [0; SALT_LEN];
        salt.copy_from_slice(&random.key("seal")?[..SALT_LEN]);
        let first = Keys::derive(secret)?;
        let others = others.iter().map(|secret| Keys::derive(secret)).collect::<io::Result<_>>()?;
        let key = first.of_salt(&salt).ok_or_else(|| io::Error::other("cannot derive a key"))?;
        Ok(Self { first, others, salt, key, sealed: AtomicU64::new(0) })
    }

    /// A key for hashes of callers, the same in each process with this secret.
    pub(crate) fn callers_key(&self) -> [u8; 32] {
        self.first.callers
    }

    /// A name for something that is kept elsewhere. It says nothing about it. Another secret gives other names.
    pub(crate) fn name(&self, kind: &str, what: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.first.names);
        // The lengths, so that different names never have the same input.
        hasher.update(&(kind.len() as u64).to_le_bytes()).update(kind.as_bytes()).update(what);
        let mut name = [0; 16];
        hasher.finalize_xof().fill(&mut name);
        name
    }

    /// Seals a record. It can only be opened with the same context. `None` if it is too large for the cipher (64 GiB).
    pub fn seal(&self, context: &[u8], content: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.sealed.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let mut record = Vec::with_capacity(content.len() + OVERHEAD);
        record.push(VERSION);
        for part in [&self.first.id[..], &self.salt, &nonce] {
            record.extend_from_slice(part);
        }
        let aad = Aad::from([&record[..], context].concat());
        record.extend_from_slice(content);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.key.seal_in_place_separate_tag(nonce, aad, &mut record[HEAD_LEN..]).ok()?;
        record.extend_from_slice(tag.as_ref());
        Some(record)
    }

    /// Opens a record in place. Returns its content.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub fn open<'r>(&self, context: &[u8], record: &'r mut [u8]) -> Result<&'r mut [u8], Unreadable> {
        let Some((head, sealed)) = record.split_at_mut_checked(HEAD_LEN) else { return Err(Unreadable::Version) };
        let (version, rest) = head.split_at(1);
        let (id, rest) = rest.split_at(ID_LEN);
        let (salt, nonce) = rest.split_at(SALT_LEN);
        if version != [VERSION] {
            return Err(Unreadable::Version);
        }
        let keys = std::iter::once(&self.first).chain(&self.others).find(|keys| keys.id == id);
        let key = keys.ok_or(Unreadable::Secret)?.of_salt(salt).ok_or(Unreadable::Damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unreadable::Damaged)?;
        let aad = Aad::from([head, context].concat());
        key.open_in_place(nonce, aad, sealed).map_err(|_| Unreadable::Damaged)
    }
}

/// 32 bytes, for [`Prk::expand`].
struct Bytes32;

impl KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

impl Keys {
    fn derive(secret: &[u8]) -> io::Result<Self> {
        if secret.len() < MIN_SECRET {
            return Err(io::Error::other(format!("the secret is too short: at least {MIN_SECRET} bytes are needed")));
        }
        let secret = Salt::new(HKDF_SHA256, b"workspace-gateway").extract(secret);
        let [id, seal, callers, names] =
            [&b"id"[..], b"seal", b"callers", b"names"].map(|purpose| expand(&secret, &[purpose]));
        let none = || io::Error::other("cannot derive a key");
        let (wide_id, mut id) = (id.ok_or_else(none)?, [0; ID_LEN]);
        id.copy_from_slice(&wide_id[..ID_LEN]);
        let seal = Prk::new_less_safe(HKDF_SHA256, &seal.ok_or_else(none)?);
        Ok(Self { id, seal, callers: callers.ok_or_else(none)?, names: names.ok_or_else(none)? })
    }

    fn of_salt(&self, salt: &[u8]) -> Option<LessSafeKey> {
        let key = expand(&self.seal, &[b"process", salt])?;
        UnboundKey::new(&AES_256_GCM, &key).ok().map(LessSafeKey::new)
    }
}

fn expand(key: &Prk, info: &[&[u8]]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    key.expand(info, Bytes32).ok()?.fill(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OLD: &[u8] = &[1; MIN_SECRET];
    const NEW: &[u8] = &[2; MIN_SECRET];

    fn sealer(secret: &[u8], others: &[&[u8]]) -> Sealer {
        Sealer::new(secret, others, &Random::System).unwrap()
    }

    fn open(sealer: &Sealer, context: &[u8], record: &[u8]) -> Result<Vec<u8>, Unreadable> {
        sealer.open(context, &mut record.to_vec()).map(|content| content.to_vec())
    }

    #[test]
    fn a_record_opens_in_another_process_with_the_same_secret_and_context_only() {
        let record = sealer(OLD, &[]).seal(b"entry a", b"content").unwrap();
        assert_eq!(record.len(), b"content".len() + OVERHEAD);
        let other = sealer(OLD, &[]);
        assert_eq!(open(&other, b"entry a", &record), Ok(b"content".to_vec()));
        assert_eq!(open(&other, b"entry b", &record), Err(Unreadable::Damaged));
        assert_eq!(open(&sealer(NEW, &[]), b"entry a", &record), Err(Unreadable::Secret));
        let other_version = [&[VERSION + 1], &record[1..]].concat();
        assert_eq!(open(&other, b"entry a", &other_version), Err(Unreadable::Version));
        assert_eq!(open(&other, b"entry a", &record[..HEAD_LEN - 1]), Err(Unreadable::Version));
    }

    #[test]
    fn a_secret_is_replaced_in_three_steps_without_an_unreadable_record() {
        let [before, added, swapped, after] =
            [sealer(OLD, &[]), sealer(OLD, &[NEW]), sealer(NEW, &[OLD]), sealer(NEW, &[])];
        for step in [[&before, &added], [&added, &swapped], [&swapped, &after]] {
            for (writer, reader) in [(step[0], step[1]), (step[1], step[0])] {
                let record = writer.seal(b"", b"content").unwrap();
                assert_eq!(open(reader, b"", &record), Ok(b"content".to_vec()));
            }
        }
        let record = before.seal(b"", b"content").unwrap();
        assert_eq!(open(&after, b"", &record), Err(Unreadable::Secret));
        assert_eq!(before.callers_key(), added.callers_key());
        assert_ne!(before.callers_key(), after.callers_key());
    }

    #[test]
    fn two_records_with_the_same_content_differ() {
        let (one, other) = (sealer(OLD, &[]), sealer(OLD, &[]));
        let records = [&one, &one, &other].map(|sealer| sealer.seal(b"", b"content").unwrap());
        for (index, record) in records.iter().enumerate() {
            assert!(records[..index].iter().all(|other| other[HEAD_LEN..] != record[HEAD_LEN..]));
        }
    }

    #[test]
    fn a_short_secret_is_refused() {
        let error = Sealer::new(&[1; MIN_SECRET - 1], &[], &Random::System).err().unwrap();
        assert!(error.to_string().contains("at least 32 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn a_changed_or_truncated_record_never_opens(
            content in prop::collection::vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            change in 1..=u8::MAX,
        ) {
            let sealer = sealer(OLD, &[NEW]);
            let mut record = sealer.seal(b"context", &content).unwrap();
            prop_assert_eq!(open(&sealer, b"context", &record), Ok(content));
            let at = at.index(record.len());
            prop_assert!(open(&sealer, b"context", &record[..at]).is_err());
            record[at] ^= change;
            prop_assert!(open(&sealer, b"context", &record).is_err());
        }
    }
}
