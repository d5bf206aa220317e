//! Where callers share nothing though the configuration would let them: single scopes, and operations as a whole. Pure.
//!
//! What goes wrong with one operation stays with it: the number of scopes is bounded for each operation, and an operation
//! that reaches the bound turns private as a whole.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::selection::PurgeSelection;
use crate::catalogue::{Operation, Sharing};
use crate::request::key::Scope;

/// How many scopes of one operation can be private. Each takes two callers with different views to come about.
pub(super) const MAX_SCOPES: usize = 128;

/// How much has turned private at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrivateExtent {
    /// One operation in one project.
    Scope,
    /// One operation, whatever its path captures.
    Operation,
}

/// What has turned private, by operation.
#[derive(Default)]
pub(super) struct PrivateScopes(HashMap<Arc<Operation>, Private>);

enum Private {
    Whole,
    /// These scopes, and never more than [`MAX_SCOPES`].
    Scopes(HashSet<Scope>),
}

impl PrivateScopes {
    /// Whether callers share nothing in a scope, by configuration or because it has turned private.
    pub(super) fn holds(&self, scope: &Scope) -> bool {
        scope.operation().sharing == Sharing::Caller
            || self.0.get(scope.operation()).is_some_and(|private| match private {
                Private::Whole => true,
                Private::Scopes(scopes) => scopes.contains(scope),
            })
    }

    /// Makes a scope private. At the bound the whole operation turns private, and its single scopes are forgotten.
    pub(super) fn add(&mut self, scope: &Scope) -> PrivateExtent {
        let private = self.0.entry(Arc::clone(scope.operation()));
        let private = private.or_insert_with(|| Private::Scopes(HashSet::new()));
        match private {
            Private::Scopes(scopes) if scopes.len() < MAX_SCOPES || scopes.contains(scope) => {
                scopes.insert(scope.clone());
                PrivateExtent::Scope
            }
            Private::Scopes(_) | Private::Whole => {
                *private = Private::Whole;
                PrivateExtent::Operation
            }
        }
    }

    /// Makes an operation private as a whole. Says whether it has not been so before.
    pub(super) fn add_operation(&mut self, operation: &Arc<Operation>) -> bool {
        if operation.sharing == Sharing::Caller {
            return false;
        }
        match self.0.entry(Arc::clone(operation)) {
            Entry::Occupied(private) if matches!(private.get(), Private::Whole) => false,
            private => {
                private.insert_entry(Private::Whole);
                true
            }
        }
    }

    /// Forgets what a purge holds all of. A purge of one project can't undo what holds for all projects.
    pub(super) fn purge(&mut self, selection: &PurgeSelection) {
        self.0.retain(|operation, private| match private {
            Private::Whole => !selection.holds_all_of_operation(operation),
            Private::Scopes(scopes) => {
                scopes.retain(|scope| !selection.holds_all_of(scope));
                !scopes.is_empty()
            }
        });
    }

    /// How many there are. An operation that is private as a whole counts once.
    pub(super) fn count(&self) -> usize {
        let counts = self.0.values().map(|private| match private {
            Private::Whole => 1,
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
        let (operation, place) = catalogue.operation(path).unwrap();
        Scope::read(catalogue, operation, place).unwrap()
    }

    fn purge(operation: Option<&str>, project_id: Option<&str>) -> PurgeSelection {
        let own = |text: Option<&str>| text.map(str::to_owned);
        PurgeSelection { operation: own(operation), project_id: own(project_id), query: None }
    }

    #[test]
    fn too_many_private_scopes_turn_their_operation_private_and_no_other() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let in_project = |number: usize| scope(&catalogue, &format!("/v2/{number}/products"));
        let mut private = PrivateScopes::default();
        for number in 0..MAX_SCOPES {
            assert_eq!(private.add(&in_project(number)), PrivateExtent::Scope);
        }
        assert_eq!(private.add(&in_project(0)), PrivateExtent::Scope, "it is there already");
        assert!(!private.holds(&in_project(MAX_SCOPES)));
        assert_eq!(private.add(&in_project(MAX_SCOPES)), PrivateExtent::Operation);
        assert!(private.holds(&in_project(usize::MAX)));
        assert_eq!(private.count(), 1, "single scopes are forgotten");
        for path in ["/v2/0/products/sharer", "/v1/0/product"] {
            assert!(!private.holds(&scope(&catalogue, path)), "{path}");
        }
    }

    #[test]
    fn only_a_purge_of_all_of_an_operation_lifts_what_holds_for_all_of_it() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let [one, other] = ["/v2/p/products", "/v2/q/products"].map(|path| scope(&catalogue, path));
        let mut private = PrivateScopes::default();
        assert!(private.add_operation(one.operation()) && !private.add_operation(one.operation()));
        assert_eq!(private.add(&other), PrivateExtent::Operation);
        let one_question = PurgeSelection { query: Some(String::new()), ..purge(Some("ListProducts"), None) };
        for selection in [
            purge(None, Some("p")),
            purge(Some("ListProducts"), Some("p")),
            purge(Some("ListSharerProducts"), None),
            one_question,
        ] {
            private.purge(&selection);
            assert!(private.holds(&one) && private.holds(&other), "{selection:?}");
        }
        for selection in [purge(Some("ListProducts"), None), PurgeSelection::default()] {
            private.add_operation(one.operation());
            private.purge(&selection);
            assert!(!private.holds(&one) && private.count() == 0, "{selection:?}");
        }
    }

    #[test]
    fn a_purge_of_a_project_lifts_what_holds_for_its_scopes() {
        let catalogue = Catalogue::for_tests(Vec::new());
        let [one, other] = ["/v2/p/products", "/v2/q/products"].map(|path| scope(&catalogue, path));
        let mut private = PrivateScopes::default();
        private.add(&one);
        private.add(&other);
        private.purge(&purge(None, Some("p")));
        assert!(!private.holds(&one) && private.holds(&other));
    }
}
