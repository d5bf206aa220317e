//! The entries that a purge selects.

use crate::catalogue::Operation;
use crate::request::key::{RequestKey, Scope};

/// The conditions of a purge. An entry must meet all of them. Without conditions, all entries are selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PurgeSelection {
    /// The name of an operation.
    pub operation: Option<String>,
    pub project_id: Option<String>,
    /// A canonical query.
    pub query: Option<String>,
}

impl PurgeSelection {
    pub fn matches(&self, key: &RequestKey) -> bool {
        self.query.as_deref().is_none_or(|query| query == key.query()) && self.matches_scope(key.scope())
    }

    /// Whether it selects all entries of a scope.
    pub fn covers_scope(&self, scope: &Scope) -> bool {
        self.query.is_none() && self.matches_scope(scope)
    }

    /// Whether it selects all entries of an operation.
    pub(super) fn covers_operation(&self, operation: &Operation) -> bool {
        let matches_name = self.operation.as_deref().is_none_or(|name| *name == *operation.name);
        self.query.is_none() && self.project_id.is_none() && matches_name
    }

    fn matches_scope(&self, scope: &Scope) -> bool {
        self.operation.as_deref().is_none_or(|name| *name == *scope.operation().name)
            && self.project_id.as_deref().is_none_or(|project_id| project_id == scope.project_id())
    }
}
