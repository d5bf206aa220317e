//! The content of a notice: what one gateway tells the others. `fleet_log.rs` applies it.

use serde::{Deserialize, Serialize};

use super::hint::Hint;
use super::scope_record::ScopeRecord;
use crate::cache::store::PurgeSelection;

/// The version of [`Message`] and of all types in it, also where `key_trial.rs` leaves one of them. Increase it when one of
/// them changes.
pub(super) const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
pub(super) enum Message<'a> {
    /// Only the engine has something that is void now.
    EngineVoid,
    /// So many callers were denied that not each of them can be told.
    AllGrants,
    /// The same for purges, invalidations and private scopes.
    AllEntries,
    /// Upstream has refused a caller in a scope.
    Denied {
        caller: [u8; 32],
        #[serde(borrow)]
        scope: ScopeRecord<'a>,
    },
    /// Upstream has refused the credential of a caller.
    Refused {
        caller: [u8; 32],
        service: &'a str,
    },
    #[serde(borrow)]
    Purged(SelectionRecord<'a>),
    /// An unsafe method has changed a scope.
    #[serde(borrow)]
    Invalidated(ScopeRecord<'a>),
    /// Callers do not share the responses of a scope or an operation any more.
    #[serde(borrow)]
    Private(ScopeRecord<'a>),
    Hint(Hint),
}

#[derive(Serialize, Deserialize)]
pub(super) struct SelectionRecord<'a> {
    operation: Option<&'a str>,
    project_id: Option<&'a str>,
    query: Option<&'a str>,
}

impl Message<'_> {
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        postcard::to_extend(self, vec![VERSION]).ok()
    }
}

/// Decodes a message. `None` if it has another version, or is none.
pub(super) fn decode(content: &[u8]) -> Option<Message<'_>> {
    let (version, content) = content.split_first()?;
    (*version == VERSION).then(|| postcard::from_bytes(content).ok())?
}

impl<'a> From<&'a PurgeSelection> for SelectionRecord<'a> {
    fn from(PurgeSelection { operation, project_id, query }: &'a PurgeSelection) -> Self {
        Self { operation: operation.as_deref(), project_id: project_id.as_deref(), query: query.as_deref() }
    }
}

impl From<SelectionRecord<'_>> for PurgeSelection {
    fn from(SelectionRecord { operation, project_id, query }: SelectionRecord<'_>) -> Self {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Self { operation: owned(operation), project_id: owned(project_id), query: owned(query) }
    }
}
