//! Which responses are stored, for which callers, and for how long.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};

use super::*;
use crate::cache::freshness::{FreshnessInfo, Lifetime};
use crate::catalogue::Catalogue;
use crate::clock::Clock;
use crate::request::caller::Callers;

const SECOND: Duration = Duration::from_secs(1);

/// A store and one request key.
struct Bench {
    store: Store,
    key: Arc<RequestKey>,
    start: Instant,
}

impl Bench {
    fn new() -> Self {
        let catalogue = Catalogue::for_tests(Vec::new());
        let (operation, captured) = catalogue.operation("/v2/p/products").unwrap();
        let key = RequestKey::read(&catalogue, operation, captured, None, &HeaderMap::new(), false).unwrap();
        let store = Store::new(1 << 20, Budget::new(1 << 20), Arc::default(), |_| {});
        Self { store, key: Arc::new(key), start: Clock::System.now() }
    }

    fn caller(name: &'static str) -> Caller {
        Callers::new([0; 32]).of_token(&HeaderValue::from_static(name))
    }

    /// Stores the response to a request of a caller that was sent at `second`.
    fn insert(&self, caller: &'static str, body: &'static str, second: u32, epoch: Epoch) -> StoreResult {
        self.insert_for(Audience::All, caller, body, second, epoch).0
    }

    /// The same, for the audience that upstream allows.
    fn insert_for(
        &self,
        audience: Audience,
        caller: &'static str,
        body: &'static str,
        second: u32,
        epoch: Epoch,
    ) -> (StoreResult, Option<PrivateExtent>) {
        let sent = self.start + second * SECOND;
        let lifetime = Lifetime { ttl: 60 * SECOND, ..Lifetime::default() };
        let freshness_info = FreshnessInfo { sent, initial_age: Duration::ZERO, lifetime };
        let builder = EntryBuilder::new(&Response::new(Bytes::from_static(body.as_bytes())), freshness_info, None);
        let digest = *blake3::hash(body.as_bytes()).as_bytes();
        let observation = Observation { digest, caller: Self::caller(caller), sent, received: sent };
        self.store.insert(&self.key, builder, audience, observation, epoch)
    }

    fn purge(&self, selection: &PurgeSelection) -> usize {
        self.store.purge(selection, self.start)
    }

    /// Stores the response to a request of another process that was sent at `second`.
    fn insert_copy(&self, body: &'static str, second: u32, epoch: Epoch) -> bool {
        let lifetime = Lifetime { ttl: 60 * SECOND, ..Lifetime::default() };
        let freshness_info =
            FreshnessInfo { sent: self.start + second * SECOND, initial_age: Duration::ZERO, lifetime };
        let response = Response::new(Bytes::from_static(body.as_bytes()));
        let copy = (EntryBuilder::new(&response, freshness_info, None), Observations::default());
        self.store.insert_copy((&self.key, None), copy, epoch)
    }

    /// Stores a refusal of a request that was sent at `second`.
    fn insert_negative(&self, cache_key: &CacheKey, second: u32, epoch: Epoch) -> StoreResult {
        let freshness_info = FreshnessInfo {
            sent: self.start + second * SECOND,
            initial_age: Duration::ZERO,
            lifetime: Lifetime::default(),
        };
        self.store.insert_negative(cache_key, Entry::new(&Response::new(Bytes::new()), freshness_info, None), epoch)
    }

    fn get(&self, caller: &'static str) -> Option<Bytes> {
        let cache_key = self.store.cache_key(&self.key, Self::caller(caller));
        self.store.get(&cache_key).map(|entry| entry.body().clone())
    }
}

#[test]
fn a_response_from_before_a_purge_does_not_replace_a_later_one() {
    let bench = Bench::new();
    let before = bench.store.epoch();
    assert_eq!(bench.purge(&PurgeSelection::default()), 0);
    assert_eq!(bench.insert("a", "new", 1, bench.store.epoch()), StoreResult::Stored);
    assert_eq!(bench.insert("a", "old", 2, before), StoreResult::Purged);
    assert_eq!(bench.get("b").unwrap(), "new");
    assert_eq!(bench.purge(&PurgeSelection::default()), 1);
    assert_eq!(bench.get("b"), None);
}

#[test]
fn the_response_to_the_later_request_is_the_newer_one() {
    let bench = Bench::new();
    let epoch = bench.store.epoch();
    assert_eq!(bench.insert("a", "second", 2, epoch), StoreResult::Stored);
    assert_eq!(bench.insert("a", "first", 1, epoch), StoreResult::Outdated);
    assert_eq!(bench.insert("b", "at once", 2, epoch), StoreResult::Outdated);
    assert_eq!(bench.get("c").unwrap(), "second");
}

#[test]
fn a_scope_whose_responses_diverge_is_private_until_purged() {
    let bench = Bench::new();
    let epoch = bench.store.epoch();
    let shared = bench.store.cache_key(&bench.key, Bench::caller("a"));
    for (second, caller, body) in [(1, "a", "one"), (2, "b", "two"), (3, "a", "one")] {
        assert_eq!(bench.insert(caller, body, second, epoch), StoreResult::Stored);
    }
    let sent = bench.start;
    assert!(bench.store.may_share(&shared, epoch, sent));
    let last = bench.insert_for(Audience::All, "b", "two", 4, epoch);
    assert_eq!(last, (StoreResult::Stored, Some(PrivateExtent::Scope)));
    assert!(!bench.store.may_share(&shared, epoch, sent));
    assert_eq!((bench.get("b").unwrap(), bench.get("a"), bench.get("c")), ("two".into(), None, None));
    assert_eq!(bench.insert("a", "one", 5, epoch), StoreResult::Stored);
    assert_eq!((bench.get("b").unwrap(), bench.get("a").unwrap()), ("two".into(), "one".into()));
    assert_eq!(bench.store.usage().private_scopes, 1);

    let elsewhere = PurgeSelection { project_id: Some("other".to_owned()), ..PurgeSelection::default() };
    bench.purge(&elsewhere);
    assert_eq!(bench.store.usage().private_scopes, 1);
    assert_eq!(bench.purge(&PurgeSelection::default()), 2);
    assert_eq!(bench.insert("a", "one", 6, bench.store.epoch()), StoreResult::Stored);
    assert_eq!(bench.get("c").unwrap(), "one");
}

#[test]
fn a_response_that_varies_on_the_credential_makes_its_operation_private_even_if_it_is_outdated() {
    let bench = Bench::new();
    let epoch = bench.store.epoch();
    assert_eq!(bench.insert("a", "shared", 2, epoch), StoreResult::Stored);
    let late = bench.insert_for(Audience::Caller, "b", "own", 1, epoch);
    assert_eq!(late, (StoreResult::Stored, Some(PrivateExtent::Operation)));
    assert_eq!((bench.get("a"), bench.get("b").unwrap()), (None, "own".into()));
    assert_eq!(bench.insert_for(Audience::Caller, "b", "older", 0, epoch), (StoreResult::Outdated, None));
    let project = PurgeSelection { project_id: Some("p".to_owned()), ..PurgeSelection::default() };
    bench.purge(&project);
    assert_eq!((bench.store.usage().entries, bench.store.usage().private_scopes), (0, 1));
    bench.purge(&PurgeSelection { operation: Some("ListProducts".to_owned()), ..PurgeSelection::default() });
    assert_eq!(bench.store.usage().private_scopes, 0);
}

#[test]
fn entries_from_before_an_invalidation_are_only_validated_and_later_ones_are_stored() {
    let bench = Bench::new();
    let epoch = bench.store.epoch();
    let cache_key = bench.store.cache_key(&bench.key, Bench::caller("a"));
    bench.insert("a", "old", 1, epoch);
    let at = bench.start + 2 * SECOND;
    bench.store.invalidate(bench.key.scope(), at);
    assert_eq!(bench.get("a"), None);
    assert_eq!(bench.store.get_for_validation(&cache_key).unwrap().body(), "old");
    assert_eq!(bench.insert("a", "in flight", 2, epoch), StoreResult::Invalidated);
    let insert_negative = |second: u32| bench.insert_negative(&cache_key, second, epoch);
    assert_eq!(insert_negative(2), StoreResult::Invalidated);
    assert!(!bench.store.may_share(&cache_key, epoch, at) && bench.store.may_share(&cache_key, epoch, at + SECOND));
    assert_eq!(insert_negative(3), StoreResult::Stored);
    assert!(bench.store.negative(&cache_key).is_some());
    assert_eq!(bench.insert("a", "new", 4, epoch), StoreResult::Stored);
    assert_eq!((bench.get("a").unwrap(), bench.store.epoch()), ("new".into(), epoch));
}

#[test]
fn a_response_with_fields_reserved_for_one_caller_is_never_shared() {
    let bench = Bench::new();
    let response = Response::builder().header("cache-control", "private=\"x-own\"").header("x-own", "secret");
    let response = response.header("x-another", "stored").body(Bytes::from_static(b"list")).unwrap();
    let insert = |second: u32| {
        let sent = bench.start + second * SECOND;
        let freshness_info = FreshnessInfo { sent, initial_age: Duration::ZERO, lifetime: Lifetime::default() };
        let observation = Observation { digest: [0; 32], caller: Bench::caller("a"), sent, received: sent };
        bench
            .store
            .insert(
                &bench.key,
                EntryBuilder::new(&response, freshness_info, None),
                Audience::All,
                observation,
                bench.store.epoch(),
            )
            .0
    };
    assert_eq!((insert(1), bench.get("a")), (StoreResult::Purged, None));
    bench.insert_for(Audience::Caller, "b", "own", 2, bench.store.epoch());
    assert_eq!(insert(3), StoreResult::Stored);
    let entry = bench.store.get(&bench.store.cache_key(&bench.key, Bench::caller("a"))).unwrap();
    assert!(entry.head().contains_key("x-another") && !entry.head().contains_key("x-own"));
}

#[test]
fn an_uncacheable_key_is_marked_for_60_seconds() {
    let bench = Bench::new();
    let cache_key = bench.store.cache_key(&bench.key, Bench::caller("a"));
    bench.store.mark_uncacheable(cache_key.clone(), Unstorable::Vary, bench.start);
    let after = |second| bench.store.uncacheable_reason(&cache_key, Bench::caller("a"), bench.start + second * SECOND);
    assert_eq!((after(59), after(60)), (Some(Unstorable::Vary), None));
    bench.store.clear_uncacheable(&cache_key);
    assert_eq!(after(0), None);
    bench.store.mark_uncacheable(cache_key.clone(), Unstorable::Vary, bench.start);
    bench.purge(&PurgeSelection::default());
    assert_eq!(after(0), None);
}

#[test]
fn the_mark_of_one_caller_does_not_apply_to_another() {
    let bench = Bench::new();
    let shared = bench.store.cache_key(&bench.key, Bench::caller("a"));
    bench.store.mark_uncacheable(shared.of(Bench::caller("a")), Unstorable::Vary, bench.start);
    let reason_for = |caller| bench.store.uncacheable_reason(&shared, Bench::caller(caller), bench.start);
    assert_eq!((reason_for("a"), reason_for("b")), (Some(Unstorable::Vary), None));
}

#[test]
fn a_copy_is_stored_only_if_it_is_newer_and_may_be_shared() {
    let bench = Bench::new();
    let epoch = bench.store.epoch();
    assert!(bench.insert_copy("first", 1, epoch));
    assert_eq!(bench.get("a"), Some(Bytes::from_static(b"first")));
    assert!(!bench.insert_copy("sent at the same time", 1, epoch));
    assert_eq!(bench.insert("a", "second", 2, epoch), StoreResult::Stored);
    assert!(!bench.insert_copy("older", 1, epoch));
    bench.store.invalidate(bench.key.scope(), bench.start + 5 * SECOND);
    assert!(!bench.insert_copy("before the invalidation", 5, epoch));
    assert!(bench.insert_copy("after it", 6, epoch));
    // A copy is not an observation, so a different response to another caller is no divergence.
    assert_eq!(bench.insert("b", "later", 7, epoch), StoreResult::Stored);
    assert_eq!(bench.get("a"), Some(Bytes::from_static(b"later")));
    bench.store.purge(&PurgeSelection::default(), bench.start + 8 * SECOND);
    assert!(!bench.insert_copy("call began before the purge", 9, epoch));
    let epoch = bench.store.epoch();
    // Clocks of two machines do not show which of a call and a purge was first. Its source must know.
    assert!(bench.insert_copy("looked up after the purge", 8, epoch));
    bench.store.make_private(bench.key.scope()).unwrap();
    assert!(!bench.insert_copy("shared elsewhere", 10, epoch));
}

#[test]
fn a_later_process_gets_no_entry_that_a_later_refusal_has_followed() {
    for (second, is_usable) in [(1, true), (3, false)] {
        let bench = Bench::new();
        let epoch = bench.store.epoch();
        let cache_key = bench.store.cache_key(&bench.key, Bench::caller("a"));
        if second == 1 {
            bench.insert_negative(&cache_key, second, epoch);
        }
        assert_eq!(bench.insert("a", "list", 2, epoch), StoreResult::Stored);
        if second == 3 {
            assert_eq!(bench.insert_negative(&cache_key, second, epoch), StoreResult::Stored);
        }
        assert_eq!(bench.store.usable_entries(bench.start + 4 * SECOND).count(), usize::from(is_usable));
    }
}
