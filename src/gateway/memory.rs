//! The state that lasts from one request to the next. `look_up.rs` and `caller_class.rs` read it; it has no rules of
//! its own.

use std::sync::Arc;

use super::hint::Hints;
use super::tier::Tier;
use crate::cache::backoffs::Backoffs;
use crate::cache::grants::Grants;
use crate::cache::known_callers::KnownCallers;
use crate::cache::revocations::Revocations;
use crate::cache::store::Store;
use crate::fleet::Fleet;

pub(super) struct Memory {
    pub(super) grants: Arc<Grants>,
    pub(super) store: Arc<Store>,
    pub(super) backoffs: Backoffs,
    pub(super) known_callers: Arc<KnownCallers>,
    pub(super) revocations: Arc<Revocations>,
    /// Shared with other processes.
    pub(super) second_tier: Option<Tier>,
    /// The second tier, if it is the engine of a fleet.
    pub(super) fleet: Option<Arc<Fleet>>,
    pub(super) hints: Hints,
}

impl Memory {
    /// A number that grows with each change of what a snapshot would have.
    pub(super) fn changes(&self) -> u64 {
        self.store.changes() + self.grants.changes() + self.revocations.count()
    }
}
