//! The snapshot: what a later process may use of this one's memory. It has the entries except copies from a
//! second tier, the scopes that have become private, and the last proof of each caller in each scope. A later process takes
//! these for lapsed grants.
//!
//! [`keep`] decides when it is written and removed.

pub(crate) mod fuzz;
mod keep;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::memory::Memory;
use super::scope_record::{ScopeRecord, operation_meaning, scope_meaning};
use crate::cache::freshness::Lifetime;
use crate::cache::grants::{CallerScope, RestoredProof};
use crate::cache::record;
use crate::cache::store::{CacheKey, Epoch, PrivateName};
use crate::catalogue::Catalogue;
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::random::Random;
use crate::request::caller::Caller;
use crate::request::digest::Digests;
use crate::request::key::{RequestKey, Scope};
use crate::seal::Sealer;
use crate::snapshot::SnapshotFile;
use crate::sync::Mutex;
use crate::telemetry::outcome::SnapshotResult;

/// The lifetimes of restored entries are those that they had. As after a reload, other settings apply to new ones.
const UNLIMITED: Lifetime =
    Lifetime { ttl: Duration::MAX, stale_while_revalidate: Duration::MAX, stale_if_error: Duration::MAX };

/// The file, and the key to it.
pub(super) struct Snapshot {
    file: SnapshotFile,
    sealer: Arc<Sealer>,
    /// Held while the file is written.
    writing: Mutex<()>,
    /// The number of revocations that the file takes into account. It does so, too, if it does not exist.
    up_to_date: AtomicU64,
}

/// The version of [`Record`] and of all types in it. Increase it when one of them changes.
const VERSION: u8 = 1;

/// A record of the file. Times are counted back from [`Self::Written`], which comes first.
#[derive(Serialize, Deserialize)]
enum Record<'a> {
    Written {
        version: u8,
        at: Moment,
    },
    #[serde(borrow)]
    Private(ScopeRecord<'a>),
    #[serde(borrow)]
    Proofs(Vec<ProofRecord<'a>>),
    #[serde(borrow)]
    Entry(StoredRecord<'a>),
}

#[derive(Serialize, Deserialize)]
struct ProofRecord<'a> {
    caller: [u8; 32],
    #[serde(borrow)]
    scope: ScopeRecord<'a>,
    proved_before: Duration,
    /// If it is from an earlier snapshot: when that was written.
    covers_until_before: Option<Duration>,
}

#[derive(Serialize, Deserialize)]
struct StoredRecord<'a> {
    /// The only caller that may see it.
    owner: Option<[u8; 32]>,
    path: &'a str,
    query: &'a str,
    #[serde(borrow)]
    headers: Vec<(&'a str, &'a [u8])>,
    record: &'a [u8],
}

impl Snapshot {
    /// Opens the snapshot that the settings name. `None` if they name none. It blocks. If this fails, the snapshot of an
    /// earlier process is removed, because this process could not remove it when something is revoked.
    ///
    /// # Errors
    /// If the file system refuses it, or the secret beside the file is unusable.
    pub(super) fn open(config: &Config, random: &Random) -> io::Result<Option<Self>> {
        let Some(path) = &config.settings.cache.snapshot else { return Ok(None) };
        let file = SnapshotFile::new(path, random.clone())?;
        // What it shows could otherwise come back after a denial, in the next process.
        file.check_removal()?;
        let sealer = file.secret().and_then(|secret| Sealer::new(&secret, &[], random));
        let sealer = Arc::new(sealer.inspect_err(|_| drop(file.remove()))?);
        Ok(Some(Self { file, sealer, writing: Mutex::default(), up_to_date: AtomicU64::default() }))
    }

    /// Removes the file, unless it was written after the latest revocation. It blocks, but does not wait for a writer: a
    /// file that is being written does not replace anything after a revocation.
    fn remove(&self, memory: &Memory) -> io::Result<()> {
        let revocations = memory.revocations.count();
        if self.up_to_date.load(Ordering::Acquire) < revocations {
            self.file.remove()?;
            self.up_to_date.fetch_max(revocations, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Makes this process the one that writes the file. It blocks.
    pub(super) fn claim(&self) -> io::Result<()> {
        self.file.claim()
    }

    pub(super) fn sealer(&self) -> &Arc<Sealer> {
        &self.sealer
    }

    /// Writes what memory has. It blocks.
    fn write(&self, memory: &Memory, clock: &Clock) -> io::Result<SnapshotResult> {
        let _writing = self.writing.lock();
        let revocations = memory.revocations.count();
        let Some(mut writer) = self.file.write(&self.sealer)? else { return Ok(SnapshotResult::NotOwner) };
        // In this order: if the machine is suspended between the two, the reader takes ages for too high, not too low.
        let at = clock.moment().ok_or_else(|| io::Error::other("the wall clock shows a time before 1970"))?;
        let now = clock.now();
        let mut add = |record: &Record<'_>| {
            let bytes = postcard::to_allocvec(record).map_err(io::Error::other)?;
            writer.add(&bytes)
        };
        add(&Record::Written { version: VERSION, at })?;
        for private in memory.store.private() {
            add(&Record::Private(match &private {
                PrivateName::Scope(scope) => ScopeRecord::new(scope, scope_meaning(scope)),
                PrivateName::Operation(operation) => {
                    ScopeRecord::of_operation(&operation.name, operation_meaning(operation))
                }
            }))?;
        }
        let mut meanings = HashMap::new();
        let before = |at| now.saturating_duration_since(at);
        let mut result = Ok(());
        memory.grants.visit_proofs(now, |proofs| {
            let record = |proof: &'_ RestoredProof| {
                let CallerScope { caller, scope } = &proof.caller_scope;
                let meaning = *meanings.entry(scope.clone()).or_insert_with(|| scope_meaning(scope));
                (caller.to_sealed(), meaning, before(proof.proved), proof.covers_until.map(before))
            };
            let found: Vec<_> = proofs.iter().map(record).collect();
            let records =
                proofs.iter().zip(found).map(|(proof, (caller, meaning, proved_before, covers_until_before))| {
                    let scope = ScopeRecord::new(&proof.caller_scope.scope, meaning);
                    ProofRecord { caller, scope, proved_before, covers_until_before }
                });
            let records: Vec<_> = records.collect();
            if result.is_ok() && !records.is_empty() {
                result = add(&Record::Proofs(records));
            }
        });
        result?;
        for (cache_key, entry) in memory.store.usable_entries(now) {
            let CacheKey { owner, key } = &*cache_key;
            // A copy from a second tier may have been requested later than its record would say, so a later process could show
            // it on a grant that had ended by then. The tier has it.
            if entry.sent_by() > entry.freshness_info().sent {
                continue;
            }
            // One that cannot be encoded would be a miss anyway.
            let Some(record) = record::encode(key, &entry, now) else { continue };
            add(&Record::Entry(StoredRecord::of(key, *owner, &record)))?;
        }
        let is_valid = || memory.revocations.count() == revocations;
        if !writer.finish(is_valid)? {
            return Ok(SnapshotResult::Revoked);
        }
        self.up_to_date.fetch_max(revocations, Ordering::AcqRel);
        Ok(SnapshotResult::Written)
    }
}

impl<'a> StoredRecord<'a> {
    fn of(key: &'a RequestKey, owner: Option<Caller>, record: &'a [u8]) -> Self {
        Self {
            owner: owner.map(Caller::to_sealed),
            path: key.scope().path(),
            query: key.query(),
            headers: key.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect(),
            record,
        }
    }
}

/// Restores records in their order.
struct Restorer<'m> {
    memory: &'m Memory,
    catalogue: &'m Catalogue,
    digests: &'m Digests,
    now: Instant,
    moment: Moment,
    /// Entries are restored only while there is no purge.
    epoch: Epoch,
    /// When the snapshot was written, by the clock of this process.
    written: Option<Instant>,
    proofs: Vec<RestoredProof>,
    /// The scopes of proofs, by their paths and meanings. A file may have several meanings of a path, if the settings were
    /// changed. `None` for one that is not valid any more.
    scopes: HashMap<(String, [u8; 32]), Option<Scope>>,
    /// Whether all proofs of the file are known so far.
    is_complete: bool,
    restored: RestoredCounts,
}

/// What was restored.
#[derive(Clone, Copy, Debug, Default)]
struct RestoredCounts {
    entries: usize,
    proofs: usize,
}

impl Restorer<'_> {
    /// Restores a record. `None` if it is none, or is not usable any more.
    fn add(&mut self, record: &[u8]) -> Option<()> {
        let record = postcard::from_bytes(record);
        self.is_complete &= record.is_ok();
        let record = record.ok()?;
        let Self { memory, catalogue, .. } = *self;
        if let Record::Written { version, at } = record {
            let passed = at.until(&self.moment).filter(|_| version == VERSION);
            self.written = passed.and_then(|passed| self.now.checked_sub(passed));
            self.is_complete &= self.written.is_some();
            return self.written.map(|_| ());
        }
        let written = self.written?;
        match record {
            Record::Written { .. } => {}
            Record::Private(scope) => memory.store.restore_private(&scope.private(catalogue)?),
            Record::Proofs(proofs) => {
                let Self { proofs: restored, scopes, .. } = self;
                let proof = |it: ProofRecord<'_>| {
                    let name = (it.scope.place.to_owned(), it.scope.meaning);
                    let scope = scopes.entry(name).or_insert_with(|| it.scope.scope(catalogue)).clone();
                    let covers_until = match it.covers_until_before {
                        Some(before) => Some(written.checked_sub(before)?),
                        None => None,
                    };
                    Some(RestoredProof {
                        caller_scope: CallerScope { caller: Caller::from_sealed(it.caller), scope: scope? },
                        proved: written.checked_sub(it.proved_before)?,
                        covers_until,
                    })
                };
                let expected = restored.len() + proofs.len();
                restored.extend(proofs.into_iter().filter_map(proof));
                self.is_complete &= restored.len() == expected;
            }
            Record::Entry(StoredRecord { owner, path, query, headers, record }) => {
                let (operation, path_match) = catalogue.operation(path)?;
                let mut fields = HeaderMap::new();
                for (name, value) in headers {
                    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
                    fields.append(name, HeaderValue::from_bytes(value).ok()?);
                }
                let key = RequestKey::read(catalogue, operation, path_match, Some(query), &fields, false).ok()?;
                let record = Bytes::copy_from_slice(record);
                // It compares the key.
                let (builder, observations) = record::decode(&record, &key, UNLIMITED, written)?;
                let copy = (builder.with_key_digest(self.digests.of_key(&key)), observations);
                let (key, owner) = (Arc::new(key), owner.map(Caller::from_sealed));
                let is_stored = memory.store.insert_copy((&key, owner), copy, self.epoch);
                self.restored.entries += usize::from(is_stored);
            }
        }
        Some(())
    }

    /// Restores the proofs. Returns what was restored, and how long ago the snapshot was written. `None` if there was
    /// nothing. `was_read`: whether all of the snapshot was read.
    fn finish(mut self, was_read: bool) -> Option<(RestoredCounts, Duration)> {
        let proofs = std::mem::take(&mut self.proofs);
        let count = proofs.len();
        let written = self.written;
        if written.is_some_and(|written| self.memory.grants.restore(proofs, written)) {
            self.restored.proofs = count;
        } else {
            self.is_complete &= count == 0;
        }
        if !was_read || !self.is_complete {
            self.memory.grants.lose_track();
        }
        let written = written?;
        Some((self.restored, self.now.saturating_duration_since(written)))
    }
}
