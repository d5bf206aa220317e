//! Decodes and restores records without a gateway around, for `tests/fuzz` and tests. No part of the gateway uses it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response};

use super::{
    ProofRecord, Record, RestoredCounts, Restorer, ScopeRecord, StoredRecord, UNLIMITED, VERSION, operation_meaning,
    scope_meaning,
};
use crate::budget::Budget;
use crate::cache::backoffs::Backoffs;
use crate::cache::entry::Entry;
use crate::cache::freshness::{FreshnessInfo, Lifetime};
use crate::cache::grants::{GrantPolicy, Grants, RenewalPolicy};
use crate::cache::record;
use crate::cache::revocations::Revocations;
use crate::cache::store::{PrivateName, Store};
use crate::catalogue::Catalogue;
use crate::clock::{Clock, Moment};
use crate::config::Config;
use crate::gateway::hint::Hints;
use crate::gateway::memory::Memory;
use crate::gateway::{key_trial, message};
use crate::request::caller::Caller;
use crate::request::digest::Digests;
use crate::request::key::RequestKey;

/// The most memory that restored entries may take, in bytes.
const MAX_SIZE: u64 = 64 << 20;

/// Decodes the content of a notice, and encodes it again. `None` if it is none.
pub fn encoded_again(content: &[u8]) -> Option<Vec<u8>> {
    message::decode(content)?.encode()
}

/// The same for what trials of an access key have shown.
pub fn trial_encoded_again(record: &[u8]) -> Option<Vec<u8>> {
    key_trial::encode(&key_trial::decode(record).ok()?)
}

/// Reads records for one request key, and snapshots. Each record and snapshot is read by an empty memory.
pub struct RecordReader {
    catalogue: Catalogue,
    grants: GrantPolicy,
    digests: Digests,
    key: RequestKey,
    now: Instant,
    moment: Moment,
}

impl RecordReader {
    /// A reader for the key of this path and query, at the time that the clock shows. `None` if the path is not that of
    /// an operation, or the wall clock shows a time before 1970.
    pub fn new(config: &Config, path: &str, query: &str, clock: &Clock) -> Option<Self> {
        let catalogue = config.catalogue.clone();
        let (operation, path_match) = catalogue.operation(path)?;
        let key = RequestKey::read(&catalogue, operation, path_match, Some(query), &HeaderMap::new(), false).ok()?;
        let hour = Duration::from_secs(3600);
        let grants = GrantPolicy {
            grant_ttl: hour,
            denial_ttl: hour,
            outage_grace: Some(hour),
            renewal: RenewalPolicy { max_lead: Duration::ZERO, jitter: 0 },
            max_grants: 1000,
        };
        let digests = Digests::new([1; 32], [2; 32]);
        Some(Self { grants, digests, key, now: clock.now(), moment: clock.moment()?, catalogue })
    }

    /// What identifies the key in a record.
    pub fn key_name(&self) -> Vec<u8> {
        record::name(&self.key)
    }

    /// A valid record of an entry. `None` if it cannot be encoded.
    pub fn entry_record(&self) -> Option<Vec<u8>> {
        let mut response = Response::new(Bytes::from_static(br#"{"products":[]}"#));
        for (name, value) in [("content-type", "application/json"), ("etag", "\"1\"")] {
            response.headers_mut().insert(name, value.parse().ok()?);
        }
        let minute = Duration::from_secs(60);
        let lifetime = Lifetime { ttl: 5 * minute, stale_while_revalidate: minute, stale_if_error: 60 * minute };
        let freshness_info = FreshnessInfo { sent: self.now, initial_age: Duration::ZERO, lifetime };
        record::encode(&self.key, &Entry::new(&response, freshness_info, None), self.now)
    }

    /// The records of a valid snapshot, with a record of each kind. `None` if one cannot be encoded.
    pub fn snapshot_records(&self) -> Option<Vec<Vec<u8>>> {
        let (scope, entry) = (self.key.scope(), self.entry_record()?);
        let (caller, proved_before) = ([3; 32], Duration::from_secs(1));
        let operation = scope.operation();
        let records = [
            Record::Written { version: VERSION, at: self.moment },
            Record::Entry(StoredRecord::of(&self.key, None, &entry)),
            Record::Private(ScopeRecord::new(scope, scope_meaning(scope))),
            Record::Private(ScopeRecord::of_operation(&operation.name, operation_meaning(operation))),
            Record::Proofs(vec![ProofRecord {
                caller,
                scope: ScopeRecord::new(scope, scope_meaning(scope)),
                proved_before,
                covers_until_before: None,
            }]),
            Record::Entry(StoredRecord::of(&self.key, Some(Caller::from_sealed(caller)), &entry)),
        ];
        records.iter().map(|record| postcard::to_allocvec(record).ok()).collect()
    }

    /// Whether it is a record of an entry for the key.
    pub fn is_entry(&self, record: &[u8]) -> bool {
        record::decode(&Bytes::copy_from_slice(record), &self.key, UNLIMITED, self.now).is_some()
    }

    /// Restores the records of a snapshot in their order. Returns what identifies each entry, proof and private scope that
    /// was restored: these bytes must be in a record.
    pub fn restore<'r>(&self, records: impl IntoIterator<Item = &'r [u8]>) -> Vec<Vec<u8>> {
        let memory = self.memory();
        let mut restorer = Restorer {
            memory: &memory,
            catalogue: &self.catalogue,
            digests: &self.digests,
            now: self.now,
            moment: self.moment,
            epoch: memory.store.epoch(),
            written: None,
            proofs: Vec::new(),
            scopes: HashMap::new(),
            is_complete: true,
            restored: RestoredCounts::default(),
        };
        for record in records {
            // What is not usable is skipped.
            let _ = restorer.add(record);
        }
        let _ = restorer.finish(true);
        let mut restored: Vec<_> = memory.store.entries().map(|(cache_key, _)| record::name(&cache_key.key)).collect();
        restored.extend(memory.store.private().iter().map(|private| {
            let hash = match private {
                PrivateName::Scope(scope) => scope_meaning(scope),
                PrivateName::Operation(operation) => operation_meaning(operation),
            };
            hash.to_vec()
        }));
        memory.grants.visit_proofs(self.now, |proofs| {
            restored.extend(proofs.iter().map(|proof| scope_meaning(&proof.caller_scope.scope).to_vec()));
        });
        restored
    }

    fn memory(&self) -> Memory {
        let revocations = Arc::<Revocations>::default();
        let budget = Budget::new(usize::MAX);
        Memory {
            grants: Arc::new(Grants::new(self.grants, Arc::clone(&revocations))),
            store: Arc::new(Store::new(MAX_SIZE, budget, Arc::clone(&revocations), |_| {})),
            backoffs: Backoffs::new(),
            known_callers: Arc::default(),
            revocations,
            second_tier: None,
            fleet: None,
            hints: Hints::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> RecordReader {
        let settings = "region = \"eu-west-101\"";
        let config = Config::from_layers("config.toml", settings, &[]).unwrap();
        RecordReader::new(&config, "/v2/p/products", "a=1", &Clock::System).unwrap()
    }

    fn restore(reader: &RecordReader, records: &[Vec<u8>]) -> Vec<Vec<u8>> {
        reader.restore(records.iter().map(Vec::as_slice))
    }

    #[test]
    fn the_valid_records_are_restored() {
        let reader = reader();
        assert!(reader.is_entry(&reader.entry_record().unwrap()));
        let records = reader.snapshot_records().unwrap();
        let (scope, name) = (reader.key.scope(), reader.key_name());
        let operation = operation_meaning(scope.operation()).to_vec();
        let scope = scope_meaning(scope).to_vec();
        assert_eq!(restore(&reader, &records[..2]), std::slice::from_ref(&name));
        assert_eq!(restore(&reader, &records[..3]), [name.clone(), scope.clone()]);
        // If the operation is private, so are its scopes. The entry of the owner comes besides the shared one.
        assert_eq!(restore(&reader, &records), [name.clone(), name, operation, scope]);
    }

    #[test]
    fn a_proof_for_an_earlier_meaning_of_a_path_is_not_restored_whatever_comes_before_it() {
        let reader = reader();
        let scope = reader.key.scope();
        let proof = |caller, meaning| ProofRecord {
            caller: [caller; 32],
            scope: ScopeRecord::new(scope, meaning),
            proved_before: Duration::from_secs(1),
            covers_until_before: None,
        };
        let (valid, other) = (scope_meaning(scope), [0; 32]);
        for meanings in [[valid, other], [other, valid], [other, other]] {
            let proofs = (1..).zip(meanings).map(|(caller, meaning)| proof(caller, meaning)).collect();
            let records = [Record::Written { version: VERSION, at: reader.moment }, Record::Proofs(proofs)];
            let records: Vec<_> = records.iter().map(|record| postcard::to_allocvec(record).unwrap()).collect();
            let expected = meanings.iter().filter(|meaning| **meaning == valid).count();
            assert_eq!(restore(&reader, &records).len(), expected);
        }
    }

    #[test]
    fn nothing_is_restored_without_the_time_when_the_snapshot_was_written() {
        let reader = reader();
        assert!(restore(&reader, &reader.snapshot_records().unwrap()[1..]).is_empty());
    }
}
