//! The scopes and operations that have become private: callers share no entries there, although the configuration
//! allows it. Pure.
//!
//! One operation must not affect another: the number of private scopes is bounded for each operation. An operation that
//! reaches the bound becomes private as a whole.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::selection::PurgeSelection;
use crate::catalogue::{Operation, Sharing};
use crate::request::key::Scope;

/// The maximum number of private scopes of one operation. Each one requires two callers with different responses.
pub(super) const MAX_SCOPES: usize = 128;

/// What has become private.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrivateExtent {
    /// One operation, for one project or other captured path segment.
    Scope,
    /// One operation, for all captured path segments.
    Operation,
}

impl PrivateExtent {
    /// Whether another scope has become private together with a scope.
    pub(super) fn covers(self, scope: &Scope, other: &Scope) -> bool {
        match self {
            Self::Scope => other == scope,
            Self::Operation => other.operation() == scope.operation(),
        }
    }
}

/// A scope or an operation that has become private.
#[derive(Clone, Debug)]
pub(crate) enum PrivateName {
    Operation(Arc<Operation>),
    Scope(Scope),
}

#[derive(Default)]
pub(super) struct PrivateScopes(HashMap<Arc<Operation>, Private>);

enum Private {
    Operation,
    /// At most [`MAX_SCOPES`].
    Scopes(HashSet<Scope>),
}

impl PrivateScopes {
    /// Whether a scope is private, by configuration or because it has become private.
    pub(super) fn contains(&self, scope: &Scope) -> bool {
        scope.operation().sharing == Sharing::Caller
            || self.0.get(scope.operation()).is_some_and(|private| match private {
                Private::Operation => true,
                Private::Scopes(scopes) => scopes.contains(scope),
            })
    }

    /// Makes a scope private. At the bound, the whole operation becomes private, and its single scopes are removed.
    pub(super) fn add(&mut self, scope: &Scope) -> PrivateExtent {
        let private = self.0.entry(Arc::clone(scope.operation()));
        let private = private.or_insert_with(|| Private::Scopes(HashSet::new()));
        match private {
            Private::Scopes(scopes) if scopes.len() < MAX_SCOPES || scopes.contains(scope) => {
                scopes.insert(scope.clone());
                PrivateExtent::Scope
            }
            Private::Scopes(_) | Private::Operation => {
                *private = Private::Operation;
                PrivateExtent::Operation
            }
        }
    }

    /// Makes an operation private as a whole. Returns false if it was so before.
    pub(super) fn add_operation(&mut self, operation: &Arc<Operation>) -> bool {
        if operation.sharing == Sharing::Caller {
            return false;
        }
        match self.0.entry(Arc::clone(operation)) {
            Entry::Occupied(private) if matches!(private.get(), Private::Operation) => false,
            private => {
                private.insert_entry(Private::Operation);
                true
            }
        }
    }

    /// Removes the scopes and operations that a purge covers completely. A purge of one project does not remove an
    /// operation that is private as a whole.
    pub(super) fn purge(&mut self, selection: &PurgeSelection) {
        self.0.retain(|operation, private| match private {
            Private::Operation => !selection.covers_operation(operation),
            Private::Scopes(scopes) => {
                scopes.retain(|scope| !selection.covers_scope(scope));
                !scopes.is_empty()
            }
        });
    }

    pub(super) fn names(&self) -> Vec<PrivateName> {
        let names = self.0.iter().flat_map(|(operation, private)| match private {
            Private::Operation => vec![PrivateName::Operation(Arc::clone(operation))],
            Private::Scopes(scopes) => scopes.iter().cloned().map(PrivateName::Scope).collect(),
        });
        names.collect()
    }

    /// The number of private scopes. An operation that is private as a whole counts once.
    pub(super) fn count(&self) -> usize {
        let counts = self.0.values().map(|private| match private {
            Private::Operation => 1,
            Private::Scopes(scopes) => scopes.len(),
        });
        counts.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    fn scope(catalogue: &Catalogue, path: &str) -> Scope {
        let (operation, captured) = catalogue.operation(path).unwrap();
        Scope::read(catalogue, operation, captured).unwrap()
    }

    fn purge(operation: Option<&str>, project_id: Option<&str>) -> PurgeSelection {
        let own = |text: Option<&str>| text.map(str::to_owned);
        PurgeSelection { operation: own(operation), project_id: own(project_id), query: None }
    }

    #[test]
    fn too_many_private_scopes_make_their_operation_private_and_no_other() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let in_project = |number: usize| scope(&catalogue, &format!("/v2/{number}/products"));
        let mut private = PrivateScopes::default();
        for number in 0..MAX_SCOPES {
            assert_eq!(private.add(&in_project(number)), PrivateExtent::Scope);
        }
        assert_eq!(private.add(&in_project(0)), PrivateExtent::Scope, "it is private already");
        assert!(!private.contains(&in_project(MAX_SCOPES)));
        assert_eq!(private.add(&in_project(MAX_SCOPES)), PrivateExtent::Operation);
        assert!(private.contains(&in_project(usize::MAX)));
        assert_eq!(private.count(), 1, "single scopes are removed");
        for path in ["/v2/0/products/sharer", "/v1/0/product"] {
            assert!(!private.contains(&scope(&catalogue, path)), "{path}");
        }
    }

    #[test]
    fn only_a_purge_of_a_whole_operation_ends_its_private_state() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let [one, other] = ["/v2/p/products", "/v2/q/products"].map(|path| scope(&catalogue, path));
        let mut private = PrivateScopes::default();
        assert!(private.add_operation(one.operation()) && !private.add_operation(one.operation()));
        assert_eq!(private.add(&other), PrivateExtent::Operation);
        let one_query = PurgeSelection { query: Some(String::new()), ..purge(Some("ListProducts"), None) };
        for selection in [
            purge(None, Some("p")),
            purge(Some("ListProducts"), Some("p")),
            purge(Some("ListSharerProducts"), None),
            one_query,
        ] {
            private.purge(&selection);
            assert!(private.contains(&one) && private.contains(&other), "{selection:?}");
        }
        for selection in [purge(Some("ListProducts"), None), PurgeSelection::default()] {
            private.add_operation(one.operation());
            private.purge(&selection);
            assert!(!private.contains(&one) && private.count() == 0, "{selection:?}");
        }
    }

    #[test]
    fn a_purge_of_a_project_ends_the_private_state_of_its_scopes() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let [one, other] = ["/v2/p/products", "/v2/q/products"].map(|path| scope(&catalogue, path));
        let mut private = PrivateScopes::default();
        private.add(&one);
        private.add(&other);
        private.purge(&purge(None, Some("p")));
        assert!(!private.contains(&one) && private.contains(&other));
    }
}
