//! The snapshot: what a later process may use of this one's memory. It has the entries, the scopes that have become
//! private, and the last proof of each caller in each scope. A later process takes these for lapsed grants.
//!
//! [`keep`] decides when it is written and removed.

mod keep;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::memory::Memory;
use crate::cache::freshness::Lifetime;
use crate::cache::grants::CallerScope;
use crate::cache::record;
use crate::cache::store::{CacheKey, PrivateName};
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
}

/// A record of the file. Times are counted back from [`Self::Written`], which comes first.
#[derive(Serialize, Deserialize)]
enum Record<'a> {
    Written(Moment),
    #[serde(borrow)]
    Private(ScopeRecord<'a>),
    #[serde(borrow)]
    Proofs(Vec<ProofRecord<'a>>),
    #[serde(borrow)]
    Entry(EntryRecord<'a>),
}

#[derive(Serialize, Deserialize)]
struct ScopeRecord<'a> {
    /// The path of the scope. Or the name of an operation, whose scopes are all private.
    place: &'a str,
    is_operation: bool,
    /// A digest of what it means.
    meaning: [u8; 32],
}

#[derive(Serialize, Deserialize)]
struct ProofRecord<'a> {
    caller: [u8; 32],
    #[serde(borrow)]
    scope: ScopeRecord<'a>,
    proved_before: Duration,
}

#[derive(Serialize, Deserialize)]
struct EntryRecord<'a> {
    /// The only caller that may see it.
    owner: Option<[u8; 32]>,
    path: &'a str,
    query: &'a str,
    #[serde(borrow)]
    headers: Vec<(&'a str, &'a [u8])>,
    record: &'a [u8],
}

impl Snapshot {
    /// Opens the snapshot that the settings name, and makes this process its owner. `None` if they name none. It blocks.
    ///
    /// # Errors
    /// If the file system refuses it, or the secret beside the file is unusable.
    pub(super) fn open(config: &Config, random: &Random) -> io::Result<Option<Self>> {
        let Some(path) = &config.settings.cache.snapshot else { return Ok(None) };
        let file = SnapshotFile::new(path, random.clone())?;
        let sealer = Arc::new(Sealer::new(&file.secret()?, &[], random)?);
        file.claim()?;
        Ok(Some(Self { file, sealer, writing: Mutex::default() }))
    }

    pub(super) fn sealer(&self) -> &Arc<Sealer> {
        &self.sealer
    }

    /// Writes what memory has. It blocks.
    fn write(&self, memory: &Memory, clock: &Clock) -> io::Result<SnapshotResult> {
        let _writing = self.writing.lock();
        let revocations = memory.revocations.count();
        let Some(mut writer) = self.file.write(&self.sealer)? else { return Ok(SnapshotResult::NotOwner) };
        let now = clock.now();
        let moment = clock.moment().ok_or_else(|| io::Error::other("the wall clock shows a time before 1970"))?;
        let mut add = |record: &Record<'_>| {
            let bytes = postcard::to_allocvec(record).map_err(io::Error::other)?;
            writer.add(&bytes)
        };
        add(&Record::Written(moment))?;
        for private in memory.store.private() {
            add(&Record::Private(match &private {
                PrivateName::Scope(scope) => ScopeRecord::of(scope),
                PrivateName::Operation(operation) => ScopeRecord {
                    place: &operation.name,
                    is_operation: true,
                    meaning: *blake3::hash(operation.meaning().as_bytes()).as_bytes(),
                },
            }))?;
        }
        let mut meanings = HashMap::new();
        let mut result = Ok(());
        memory.grants.visit_proofs(now, |proofs| {
            let record = |(caller_scope, proved): &'_ (CallerScope, Instant)| {
                let CallerScope { caller, scope } = caller_scope;
                let meaning = *meanings.entry(scope.clone()).or_insert_with(|| meaning(scope));
                (caller.to_sealed(), meaning, now.saturating_duration_since(*proved))
            };
            let found: Vec<_> = proofs.iter().map(record).collect();
            let records = proofs.iter().zip(found).map(|((caller_scope, _), (caller, meaning, proved_before))| {
                let scope = ScopeRecord { place: caller_scope.scope.path(), is_operation: false, meaning };
                ProofRecord { caller, scope, proved_before }
            });
            let records: Vec<_> = records.collect();
            if result.is_ok() && !records.is_empty() {
                result = add(&Record::Proofs(records));
            }
        });
        result?;
        for (cache_key, entry) in memory.store.usable_entries() {
            let CacheKey { owner, key } = &*cache_key;
            // One that cannot be encoded would be a miss anyway.
            let Some(record) = record::encode(key, &entry, now) else { continue };
            add(&Record::Entry(EntryRecord {
                owner: owner.map(Caller::to_sealed),
                path: key.scope().path(),
                query: key.query(),
                headers: key.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect(),
                record: &record,
            }))?;
        }
        let is_valid = || memory.revocations.count() == revocations;
        Ok(if writer.finish(is_valid)? { SnapshotResult::Written } else { SnapshotResult::Revoked })
    }
}

impl<'a> ScopeRecord<'a> {
    fn of(scope: &'a Scope) -> Self {
        Self { place: scope.path(), is_operation: false, meaning: meaning(scope) }
    }

    /// `None` if there is no such scope any more.
    fn scope(&self, catalogue: &Catalogue) -> Option<Scope> {
        let (operation, path_match) = catalogue.operation(self.place)?;
        let scope = Scope::read(catalogue, operation, path_match).ok()?;
        (!self.is_operation && meaning(&scope) == self.meaning).then_some(scope)
    }

    fn private(&self, catalogue: &Catalogue) -> Option<PrivateName> {
        if !self.is_operation {
            return self.scope(catalogue).map(PrivateName::Scope);
        }
        let operation = catalogue.operations().iter().find(|operation| *operation.name == *self.place)?;
        let is_same = *blake3::hash(operation.meaning().as_bytes()).as_bytes() == self.meaning;
        is_same.then(|| PrivateName::Operation(Arc::clone(operation)))
    }
}

fn meaning(scope: &Scope) -> [u8; 32] {
    *blake3::hash(&record::scope_name(scope)).as_bytes()
}

/// Restores records in their order.
struct Restorer<'m> {
    memory: &'m Memory,
    catalogue: &'m Catalogue,
    digests: &'m Digests,
    now: Instant,
    moment: Moment,
    /// When the snapshot was written, by the clock of this process.
    written: Option<Instant>,
    proofs: Vec<(CallerScope, Instant)>,
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
        let record = postcard::from_bytes(record).ok()?;
        let Self { memory, catalogue, .. } = *self;
        if let Record::Written(moment) = record {
            self.written = self.now.checked_sub(moment.until(&self.moment)?);
            return Some(());
        }
        let written = self.written?;
        match record {
            Record::Written(_) => {}
            Record::Private(scope) => memory.store.restore_private(&scope.private(catalogue)?),
            Record::Proofs(proofs) => {
                let proof = |ProofRecord { caller, scope, proved_before }: ProofRecord<'_>| {
                    let caller_scope =
                        CallerScope { caller: Caller::from_sealed(caller), scope: scope.scope(catalogue)? };
                    Some((caller_scope, written.checked_sub(proved_before)?))
                };
                self.proofs.extend(proofs.into_iter().filter_map(proof));
            }
            Record::Entry(EntryRecord { owner, path, query, headers, record }) => {
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
                let is_stored = memory.store.insert_copy((&key, owner), copy, memory.store.epoch());
                self.restored.entries += usize::from(is_stored);
            }
        }
        Some(())
    }

    /// Restores the proofs. Returns what was restored, and how long ago the snapshot was written. `None` if there was
    /// nothing.
    fn finish(mut self) -> Option<(RestoredCounts, Duration)> {
        let written = self.written?;
        let proofs = std::mem::take(&mut self.proofs);
        let count = proofs.len();
        if self.memory.grants.restore(proofs, written) {
            self.restored.proofs = count;
        }
        Some((self.restored, self.now.saturating_duration_since(written)))
    }
}
