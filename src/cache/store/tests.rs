//! What is kept, for whom, and until when.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};

use super::*;
use crate::cache::freshness::{Life, Lifetime};
use crate::catalogue::Catalogue;
use crate::clock::Clock;
use crate::request::caller::Callers;

const SECOND: Duration = Duration::from_secs(1);

/// A store, and one question.
struct Bench {
    store: Store,
    key: Arc<Key>,
    begun: Instant,
}

impl Bench {
    fn new() -> Self {
        let catalogue = Catalogue::for_tests(Vec::new());
        let (operation, place) = catalogue.operation("/v2/p/products").unwrap();
        let key = Key::read(&catalogue, operation, place, None, &HeaderMap::new(), false).unwrap();
        let store = Store::new(1 << 20, |_| {});
        Self { store, key: Arc::new(key), begun: Clock::System.now() }
    }

    fn caller(name: &'static str) -> Caller {
        Callers::new([0; 32]).of_token(&HeaderValue::from_static(name))
    }

    /// What a caller was answered, having asked in this second.
    fn keep(&self, caller: &'static str, body: &'static str, second: u32, asked: Epoch) -> Kept {
        let sent = self.begun + second * SECOND;
        let lifetime = Lifetime { ttl: 60 * SECOND, ..Lifetime::default() };
        let life = Life { sent, initial_age: Duration::ZERO, lifetime };
        let entry = Entry::new(&Response::new(Bytes::from_static(body.as_bytes())), life, None);
        let digest = *blake3::hash(body.as_bytes()).as_bytes();
        self.store.keep(
            &self.key,
            entry,
            Audience::All,
            View { digest, caller: Self::caller(caller), sent, received: sent },
            asked,
        )
    }

    fn get(&self, caller: &'static str) -> Option<Bytes> {
        let slot = self.store.slot(&self.key, Self::caller(caller));
        self.store.get(&slot).map(|entry| entry.body().clone())
    }
}

#[test]
fn an_answer_from_before_a_purge_leaves_what_came_after_alone() {
    let bench = Bench::new();
    let before = bench.store.epoch();
    assert_eq!(bench.store.purge(&Selection::default()), 0);
    assert_eq!(bench.keep("a", "new", 1, bench.store.epoch()), Kept::Stored);
    assert_eq!(bench.keep("a", "old", 2, before), Kept::Purged);
    assert_eq!(bench.get("b").unwrap(), "new");
    assert_eq!(bench.store.purge(&Selection::default()), 1);
    assert_eq!(bench.get("b"), None);
}

#[test]
fn newer_means_sent_later() {
    let bench = Bench::new();
    let epoch = bench.store.epoch();
    assert_eq!(bench.keep("a", "second", 2, epoch), Kept::Stored);
    assert_eq!(bench.keep("a", "first", 1, epoch), Kept::Outdated);
    assert_eq!(bench.keep("b", "at once", 2, epoch), Kept::Outdated);
    assert_eq!(bench.get("c").unwrap(), "second");
}

#[test]
fn a_scope_that_has_tripped_is_private_until_purged() {
    let bench = Bench::new();
    let epoch = bench.store.epoch();
    let shared = bench.store.slot(&bench.key, Bench::caller("a"));
    for (second, caller, body) in [(1, "a", "one"), (2, "b", "two"), (3, "a", "one")] {
        assert_eq!(bench.keep(caller, body, second, epoch), Kept::Stored);
    }
    assert!(bench.store.may_share(&shared, epoch));
    assert_eq!(bench.keep("b", "two", 4, epoch), Kept::Tripped);
    assert!(!bench.store.may_share(&shared, epoch));
    assert_eq!((bench.get("b").unwrap(), bench.get("a"), bench.get("c")), ("two".into(), None, None));
    assert_eq!(bench.keep("a", "one", 5, epoch), Kept::Stored);
    assert_eq!((bench.get("b").unwrap(), bench.get("a").unwrap()), ("two".into(), "one".into()));
    assert_eq!(bench.store.usage().private_scopes, 1);

    let elsewhere = Selection { project_id: Some("other".to_owned()), ..Selection::default() };
    bench.store.purge(&elsewhere);
    assert_eq!(bench.store.usage().private_scopes, 1);
    assert_eq!(bench.store.purge(&Selection::default()), 2);
    assert_eq!(bench.keep("a", "one", 6, bench.store.epoch()), Kept::Stored);
    assert_eq!(bench.get("c").unwrap(), "one");
}

#[test]
fn where_more_scopes_are_private_than_can_be_remembered_all_are() {
    let catalogue = Catalogue::for_tests(Vec::new());
    let scope = |number: usize| {
        let path = format!("/v2/{number}/products");
        let (operation, place) = catalogue.operation(&path).unwrap();
        Scope::read(&catalogue, operation, place).unwrap()
    };
    let mut rules = Rules::default();
    (0..MAX_PRIVATE_SCOPES).for_each(|number| rules.make_private(&scope(number)));
    assert!(!rules.is_private(&scope(MAX_PRIVATE_SCOPES)));
    rules.make_private(&scope(MAX_PRIVATE_SCOPES));
    assert!(rules.is_private(&scope(MAX_PRIVATE_SCOPES)) && rules.is_private(&scope(usize::MAX)));
    assert_eq!(rules.private_scopes(), MAX_PRIVATE_SCOPES + 1);
}

#[test]
fn what_cannot_be_kept_is_remembered_for_a_while() {
    let bench = Bench::new();
    let slot = bench.store.slot(&bench.key, Bench::caller("a"));
    bench.store.mark_uncacheable(slot.clone(), Unstorable::Vary, bench.begun);
    let after = |second| bench.store.uncacheable(&slot, bench.begun + second * SECOND);
    assert_eq!((after(59), after(60)), (Some(Unstorable::Vary), None));
    bench.store.unmark(&slot);
    assert_eq!(after(0), None);
    bench.store.mark_uncacheable(slot.clone(), Unstorable::Vary, bench.begun);
    bench.store.purge(&Selection::default());
    assert_eq!(after(0), None);
}
