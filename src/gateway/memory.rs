//! What is remembered: who may see what, what is kept, where the gateway backs off, and whom upstream knows. `look_up.rs` and
//! `known.rs` have what is read from it.

use std::sync::Arc;

use crate::cache::backoffs::Backoffs;
use crate::cache::grants::Grants;
use crate::cache::known_callers::KnownCallers;
use crate::cache::store::Store;

/// All that lasts from one request to the next about answers and callers.
pub(super) struct Memory {
    pub(super) grants: Arc<Grants>,
    pub(super) store: Arc<Store>,
    pub(super) backoffs: Backoffs,
    pub(super) known_callers: Arc<KnownCallers>,
}
