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
    key: Arc<RequestKey>,
    begun: Instant,
}

impl Bench {
    fn new() -> Self {
        let catalogue = Catalogue::for_tests(Vec::new());
        let (operation, place) = catalogue.operation("/v2/p/products").unwrap();
        let key = RequestKey::read(&catalogue, operation, place, None, &HeaderMap::new(), false).unwrap();
        let store = Store::new(1 << 20, Budget::new(1 << 20), |_| {});
        Self { store, key: Arc::new(key), begun: Clock::System.now() }
    }

    fn caller(name: &'static str) -> Caller {
        Callers::new([0; 32]).of_token(&HeaderValue::from_static(name))
    }

    /// What a caller was answered, having asked in this second.
    fn keep(&self, caller: &'static str, body: &'static str, second: u32, epoch: Epoch) -> Kept {
        self.keep_for(Audience::All, caller, body, second, epoch).0
    }

    /// The same, for those that upstream says it is for.
    fn keep_for(
        &self,
        audience: Audience,
        caller: &'static str,
        body: &'static str,
        second: u32,
        epoch: Epoch,
    ) -> (Kept, Option<PrivateExtent>) {
        let sent = self.begun + second * SECOND;
        let lifetime = Lifetime { ttl: 60 * SECOND, ..Lifetime::default() };
        let life = Life { sent, initial_age: Duration::ZERO, lifetime };
        let draft = Draft::new(&Response::new(Bytes::from_static(body.as_bytes())), life, None);
        let digest = *blake3::hash(body.as_bytes()).as_bytes();
        let view = Observation { digest, caller: Self::caller(caller), sent, received: sent };
        self.store.keep(&self.key, draft, audience, view, epoch)
    }

    fn purge(&self, selection: &PurgeSelection) -> usize {
        self.store.purge(selection, self.begun)
    }

    /// What another process was answered, which had asked in this second.
    fn keep_copy(&self, body: &'static str, second: u32, epoch: Epoch) -> bool {
        let lifetime = Lifetime { ttl: 60 * SECOND, ..Lifetime::default() };
        let life = Life { sent: self.begun + second * SECOND, initial_age: Duration::ZERO, lifetime };
        self.store.keep_copy(
            &self.key,
            Draft::new(&Response::new(Bytes::from_static(body.as_bytes())), life, None),
            epoch,
        )
    }

    fn get(&self, caller: &'static str) -> Option<Bytes> {
        let cache_key = self.store.cache_key(&self.key, Self::caller(caller));
        self.store.get(&cache_key).map(|entry| entry.body().clone())
    }
}

#[test]
fn an_answer_from_before_a_purge_leaves_what_came_after_alone() {
    let bench = Bench::new();
    let before = bench.store.epoch();
    assert_eq!(bench.purge(&PurgeSelection::default()), 0);
    assert_eq!(bench.keep("a", "new", 1, bench.store.epoch()), Kept::Stored);
    assert_eq!(bench.keep("a", "old", 2, before), Kept::Purged);
    assert_eq!(bench.get("b").unwrap(), "new");
    assert_eq!(bench.purge(&PurgeSelection::default()), 1);
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
    let shared = bench.store.cache_key(&bench.key, Bench::caller("a"));
    for (second, caller, body) in [(1, "a", "one"), (2, "b", "two"), (3, "a", "one")] {
        assert_eq!(bench.keep(caller, body, second, epoch), Kept::Stored);
    }
    let sent = bench.begun;
    assert!(bench.store.may_share(&shared, epoch, sent));
    let last = bench.keep_for(Audience::All, "b", "two", 4, epoch);
    assert_eq!(last, (Kept::Stored, Some(PrivateExtent::Scope)));
    assert!(!bench.store.may_share(&shared, epoch, sent));
    assert_eq!((bench.get("b").unwrap(), bench.get("a"), bench.get("c")), ("two".into(), None, None));
    assert_eq!(bench.keep("a", "one", 5, epoch), Kept::Stored);
    assert_eq!((bench.get("b").unwrap(), bench.get("a").unwrap()), ("two".into(), "one".into()));
    assert_eq!(bench.store.usage().private_scopes, 1);

    let elsewhere = PurgeSelection { project_id: Some("other".to_owned()), ..PurgeSelection::default() };
    bench.purge(&elsewhere);
    assert_eq!(bench.store.usage().private_scopes, 1);
    assert_eq!(bench.purge(&PurgeSelection::default()), 2);
    assert_eq!(bench.keep("a", "one", 6, bench.store.epoch()), Kept::Stored);
    assert_eq!(bench.get("c").unwrap(), "one");
}

#[test]
fn an_answer_that_varies_on_the_credential_makes_its_operation_private_however_late_it_comes() {
    let bench = Bench::new();
    let epoch = bench.store.epoch();
    assert_eq!(bench.keep("a", "shared", 2, epoch), Kept::Stored);
    let late = bench.keep_for(Audience::Caller, "b", "own", 1, epoch);
    assert_eq!(late, (Kept::Stored, Some(PrivateExtent::Operation)));
    assert_eq!((bench.get("a"), bench.get("b").unwrap()), (None, "own".into()));
    assert_eq!(bench.keep_for(Audience::Caller, "b", "older", 0, epoch), (Kept::Outdated, None));
    let project = PurgeSelection { project_id: Some("p".to_owned()), ..PurgeSelection::default() };
    bench.purge(&project);
    assert_eq!((bench.store.usage().entries, bench.store.usage().private_scopes), (0, 1));
    bench.purge(&PurgeSelection { operation: Some("ListProducts".to_owned()), ..PurgeSelection::default() });
    assert_eq!(bench.store.usage().private_scopes, 0);
}

#[test]
fn what_was_sent_before_an_invalidation_is_neither_given_nor_kept_and_can_be_asked_about() {
    let bench = Bench::new();
    let epoch = bench.store.epoch();
    let cache_key = bench.store.cache_key(&bench.key, Bench::caller("a"));
    bench.keep("a", "old", 1, epoch);
    let at = bench.begun + 2 * SECOND;
    bench.store.invalidate(bench.key.scope(), at);
    assert_eq!(bench.get("a"), None);
    assert_eq!(bench.store.get_to_confirm(&cache_key).unwrap().body(), "old");
    assert_eq!(bench.keep("a", "on its way", 2, epoch), Kept::Invalidated);
    let no = |second: u32| {
        let life =
            Life { sent: bench.begun + second * SECOND, initial_age: Duration::ZERO, lifetime: Lifetime::default() };
        bench.store.keep_negative(&cache_key, Entry::new(&Response::new(Bytes::new()), life, None), epoch)
    };
    assert_eq!(no(2), Kept::Invalidated);
    assert!(!bench.store.may_share(&cache_key, epoch, at) && bench.store.may_share(&cache_key, epoch, at + SECOND));
    assert_eq!(no(3), Kept::Stored);
    assert!(bench.store.negative(&cache_key).is_some());
    assert_eq!(bench.keep("a", "new", 4, epoch), Kept::Stored);
    assert_eq!((bench.get("a").unwrap(), bench.store.epoch()), ("new".into(), epoch));
}

#[test]
fn what_reserves_headers_for_one_caller_is_never_shared() {
    let bench = Bench::new();
    let answer = Response::builder().header("cache-control", "private=\"x-own\"").header("x-own", "secret");
    let answer = answer.header("x-another", "kept").body(Bytes::from_static(b"list")).unwrap();
    let keep = |second: u32| {
        let sent = bench.begun + second * SECOND;
        let life = Life { sent, initial_age: Duration::ZERO, lifetime: Lifetime::default() };
        let view = Observation { digest: [0; 32], caller: Bench::caller("a"), sent, received: sent };
        bench.store.keep(&bench.key, Draft::new(&answer, life, None), Audience::All, view, bench.store.epoch()).0
    };
    assert_eq!((keep(1), bench.get("a")), (Kept::Purged, None));
    bench.keep_for(Audience::Caller, "b", "own", 2, bench.store.epoch());
    assert_eq!(keep(3), Kept::Stored);
    let kept = bench.store.get(&bench.store.cache_key(&bench.key, Bench::caller("a"))).unwrap();
    assert!(kept.head().contains_key("x-another") && !kept.head().contains_key("x-own"));
}

#[test]
fn what_cannot_be_kept_is_remembered_for_a_while() {
    let bench = Bench::new();
    let cache_key = bench.store.cache_key(&bench.key, Bench::caller("a"));
    bench.store.mark_uncacheable(cache_key.clone(), Unstorable::Vary, bench.begun);
    let after = |second| bench.store.uncacheable(&cache_key, Bench::caller("a"), bench.begun + second * SECOND);
    assert_eq!((after(59), after(60)), (Some(Unstorable::Vary), None));
    bench.store.unmark(&cache_key);
    assert_eq!(after(0), None);
    bench.store.mark_uncacheable(cache_key.clone(), Unstorable::Vary, bench.begun);
    bench.purge(&PurgeSelection::default());
    assert_eq!(after(0), None);
}

#[test]
fn a_mark_of_one_caller_is_no_other_callers() {
    let bench = Bench::new();
    let shared = bench.store.cache_key(&bench.key, Bench::caller("a"));
    bench.store.mark_uncacheable(shared.of(Bench::caller("a")), Unstorable::Vary, bench.begun);
    let met_by = |caller| bench.store.uncacheable(&shared, Bench::caller(caller), bench.begun);
    assert_eq!((met_by("a"), met_by("b")), (Some(Unstorable::Vary), None));
}

#[test]
fn a_copy_is_kept_only_if_it_is_news_and_may_be_shared() {
    let bench = Bench::new();
    let epoch = bench.store.epoch();
    assert!(bench.keep_copy("first", 1, epoch));
    assert_eq!(bench.get("a"), Some(Bytes::from_static(b"first")));
    assert!(!bench.keep_copy("the same moment", 1, epoch));
    assert_eq!(bench.keep("a", "second", 2, epoch), Kept::Stored);
    assert!(!bench.keep_copy("older", 1, epoch));
    bench.store.invalidate(bench.key.scope(), bench.begun + 5 * SECOND);
    assert!(!bench.keep_copy("before the invalidation", 5, epoch));
    assert!(bench.keep_copy("after it", 6, epoch));
    // It is no view: another caller's other answer says nothing.
    assert_eq!(bench.keep("b", "later", 7, epoch), Kept::Stored);
    assert_eq!(bench.get("a"), Some(Bytes::from_static(b"later")));
    bench.store.purge(&PurgeSelection::default(), bench.begun + 8 * SECOND);
    assert!(!bench.keep_copy("asked for before the purge", 9, epoch));
    let epoch = bench.store.epoch();
    assert!(!bench.keep_copy("from before the purge", 8, epoch));
    assert!(bench.keep_copy("from after it", 9, epoch));
    bench.store.make_private(bench.key.scope()).unwrap();
    assert!(!bench.keep_copy("shared elsewhere", 10, epoch));
}
