//! The second tier as a part of memory: what is where, how it is sealed, and what becomes void. `second_tier.rs` uses it
//! in a fetch.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cache::record;
use crate::cache::second_tier::{Name, Order, Place, SecondTier, Voided};
use crate::cache::store::PurgeSelection;
use crate::catalogue::Operation;
use crate::clock::Moment;
use crate::request::key::{RequestKey, Scope};
use crate::seal::{Sealer, Unreadable};

/// How long a request waits for a second tier at most.
pub(super) const LONGEST_LOOK_UP: Duration = Duration::from_millis(8);

/// A second tier, and the key to its records.
pub(super) struct Tier {
    pub(super) store: Arc<dyn SecondTier>,
    pub(super) sealer: Arc<Sealer>,
    pub(super) time_limit: Duration,
}

/// When a record was written.
#[derive(Serialize, Deserialize)]
pub(super) struct Written {
    pub(super) moment: Moment,
    /// What the clock of the tier showed, as the time since 1970.
    pub(super) tier: Duration,
}

impl Tier {
    /// Makes the records void that a purge selects, or more. To be called before the purge.
    pub(super) fn purge(&self, selection: &PurgeSelection) {
        let PurgeSelection { operation, project_id, query: _ } = selection;
        self.store.void(match (operation, project_id) {
            (_, Some(project_id)) => Voided::Set(self.project(project_id)),
            (Some(operation), None) => Voided::Set(self.operation(operation)),
            (None, None) => Voided::Everything,
        });
    }

    /// Makes the records of a scope void.
    pub(super) fn void_scope(&self, scope: &Scope) {
        self.store.void(Voided::Set(self.scope(scope)));
    }

    /// Makes the records of an operation void.
    pub(super) fn void_operation(&self, operation: &Operation) {
        self.store.void(Voided::Set(self.operation(&operation.name)));
    }

    pub(super) fn place(&self, key: &RequestKey) -> Place {
        let scope = key.scope();
        let sets = [self.operation(&scope.operation().name), self.project(scope.project_id()), self.scope(scope)];
        Place { record: self.sealer.name("entry", &record::name(key)), sets }
    }

    fn operation(&self, name: &str) -> Name {
        self.sealer.name("operation", name.as_bytes())
    }

    fn project(&self, project_id: &str) -> Name {
        self.sealer.name("project", project_id.as_bytes())
    }

    fn scope(&self, scope: &Scope) -> Name {
        self.sealer.name("scope", &record::scope_name(scope))
    }

    pub(super) fn open(&self, key: &RequestKey, order: Order, sealed: &Bytes) -> Result<(Written, Bytes), Unreadable> {
        let mut sealed = sealed.to_vec();
        let content = self.sealer.open(&context(key, order), &mut sealed)?;
        let (written, record) = postcard::take_from_bytes(content).map_err(|_| Unreadable::Damaged)?;
        Ok((written, Bytes::copy_from_slice(record)))
    }
}

/// What a record is, and where it belongs.
pub(super) fn context(key: &RequestKey, Order { incarnation, number }: Order) -> Vec<u8> {
    [&b"entry"[..], &incarnation, &number.to_le_bytes(), &record::name(key)].concat()
}
