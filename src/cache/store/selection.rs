//! What a purge removes.

use crate::catalogue::Operation;
use crate::request::key::{RequestKey, Scope};

/// What a purge removes. Conditions add up; none at all means everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PurgeSelection {
    /// Only entries of this operation.
    pub operation: Option<String>,
    /// Only entries of this project.
    pub project_id: Option<String>,
    /// Only answers to this canonical query.
    pub query: Option<String>,
}

impl PurgeSelection {
    /// Whether what is kept under a key is among what is selected.
    pub fn holds(&self, key: &RequestKey) -> bool {
        self.query.as_deref().is_none_or(|query| query == key.query()) && self.reaches(key.scope())
    }

    /// Whether all of a scope is among it, so that what is known of the scope as a whole is, too.
    pub fn holds_all_of(&self, scope: &Scope) -> bool {
        self.query.is_none() && self.reaches(scope)
    }

    /// Whether all scopes of an operation are among it.
    pub(super) fn holds_all_of_operation(&self, operation: &Operation) -> bool {
        let names_it = self.operation.as_deref().is_none_or(|name| *name == *operation.name);
        self.query.is_none() && self.project_id.is_none() && names_it
    }

    fn reaches(&self, scope: &Scope) -> bool {
        self.operation.as_deref().is_none_or(|name| *name == *scope.operation().name)
            && self.project_id.as_deref().is_none_or(|project_id| project_id == scope.project_id())
    }
}
