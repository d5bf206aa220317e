//! A scope or an operation in records that another process reads. It is not valid there if it means something else.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cache::record;
use crate::cache::store::PrivateName;
use crate::catalogue::{Catalogue, Operation};
use crate::request::key::Scope;

#[derive(Serialize, Deserialize)]
pub(super) struct ScopeRecord<'a> {
    /// The path of the scope. Or the name of an operation, whose scopes are all private.
    pub(super) place: &'a str,
    is_operation: bool,
    /// A digest of what it means.
    pub(super) meaning: [u8; 32],
}

impl<'a> ScopeRecord<'a> {
    pub(super) fn new(scope: &'a Scope, meaning: [u8; 32]) -> Self {
        Self { place: scope.path(), is_operation: false, meaning }
    }

    /// All scopes of the operation with this name.
    pub(super) fn of_operation(name: &'a str, meaning: [u8; 32]) -> Self {
        Self { place: name, is_operation: true, meaning }
    }

    /// `None` if there is no such scope any more.
    pub(super) fn scope(&self, catalogue: &Catalogue) -> Option<Scope> {
        record::find_scope(catalogue, self.place, &self.meaning).filter(|_| !self.is_operation)
    }

    pub(super) fn private(&self, catalogue: &Catalogue) -> Option<PrivateName> {
        if !self.is_operation {
            return self.scope(catalogue).map(PrivateName::Scope);
        }
        let operation = catalogue.operations().iter().find(|operation| *operation.name == *self.place)?;
        (operation_meaning(operation) == self.meaning).then(|| PrivateName::Operation(Arc::clone(operation)))
    }
}

pub(super) fn scope_meaning(scope: &Scope) -> [u8; 32] {
    record::scope_digest(scope)
}

pub(super) fn operation_meaning(operation: &Operation) -> [u8; 32] {
    *blake3::hash(operation.meaning().as_bytes()).as_bytes()
}
