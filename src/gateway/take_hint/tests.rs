//! Two gateways in one process. The hints of each are handed to the other, in any order and more than once.

use std::future::pending;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::super::key_trial::KeyTurn;
use super::*;
use crate::budget::Charge;
use crate::cache::grants::PendingGrant;
use crate::cache::lifetime::ResponseTimes;
use crate::catalogue::{Origin, Service};
use crate::clock::{Clock, ManualClock};
use crate::config::Config;
use crate::gateway::message::{Message, decode};
use crate::gateway::settle::EndedCall;
use crate::gateway::{CacheRequest, Gateway, Lookup, pacing};
use crate::random::Random;
use crate::request::caller::Credential;
use crate::request::key::RequestKey;
use crate::request::request_directives::RequestDirectives;
use crate::signing::AccessKey;
use crate::stream::StreamBody;
use crate::sync::Mutex;
use crate::telemetry::events::Event;
use crate::upstream::client::FetchContext;
use crate::upstream::gate::Class;
use crate::upstream::key_breaker::SignatureOutcome;
use crate::upstream::{PendingResponse, Upstream, UpstreamError, UpstreamResponse};

const SECOND: Duration = Duration::from_secs(1);
const SETTINGS: &str = "region = \"eu-west-101\"";

/// An upstream that never answers: the tests give the gateways its responses.
struct Silent;

impl Upstream for Silent {
    fn fetch_list<'a>(
        &'a self,
        _: &'a RequestKey,
        _: FetchContext,
        _: Charge,
    ) -> PendingResponse<'a, UpstreamResponse> {
        Box::pin(pending())
    }

    fn relay<'a>(
        &'a self,
        _: Service,
        _: &'a Origin,
        _: &'a Parts,
        _: StreamBody,
    ) -> PendingResponse<'a, Response<StreamBody>> {
        Box::pin(pending())
    }
}

struct Bench {
    clock: ManualClock,
    random: Random,
    configs: [String; 2],
}

/// A hint as it is told.
fn sent(hint: Hint) -> Vec<u8> {
    Message::Hint(hint).encode().unwrap()
}

fn read(bytes: &[u8]) -> Option<Hint> {
    match decode(bytes)? {
        Message::Hint(hint) => Some(hint),
        _ => None,
    }
}

/// A gateway, and the hints that it has told with their times.
struct Teller {
    gateway: Arc<Gateway>,
    told: Arc<Mutex<Vec<(Instant, Hint)>>>,
}

impl Bench {
    fn new(configs: [&str; 2]) -> (Self, [Teller; 2]) {
        let configs = configs.map(|config| format!("{SETTINGS}\n{config}"));
        let bench = Self { clock: ManualClock::default(), random: Random::seeded([1; 32]), configs };
        let tellers = [0, 1].map(|index| bench.teller(index));
        (bench, tellers)
    }

    fn teller(&self, index: usize) -> Teller {
        let config = Config::from_layers("test.toml", &self.configs[index], &[]).unwrap();
        let (told, clock) = (Arc::<Mutex<Vec<_>>>::default(), Clock::Manual(self.clock.clone()));
        let (sent, sending_clock) = (Arc::clone(&told), clock.clone());
        let sink = Arc::new(move |hint: Hint| sent.lock().push((sending_clock.now(), hint)));
        let gateway = Gateway::with_hints(Arc::new(Silent), sink, &config, clock, self.random.clone()).unwrap();
        Teller { gateway, told }
    }
}

impl Teller {
    /// The hints since the last time, as the others get them.
    fn told(&self) -> Vec<(Instant, Hint)> {
        let told = std::mem::take(&mut *self.told.lock());
        told.into_iter().map(|(at, hint)| (at, read(&sent(hint)).unwrap())).collect()
    }

    fn take(&self, hints: &[(Instant, Hint)]) {
        for (at, hint) in hints {
            self.gateway.take_hint(hint, self.gateway.now() - *at);
        }
    }

    fn request(&self, token: &'static str, query: &str) -> CacheRequest {
        let gateway = &self.gateway;
        let (active, token) = (gateway.active(), HeaderValue::from_static(token));
        let (operation, path_match) = active.catalogue.operation("/v2/p/products").unwrap();
        let no_fields = HeaderMap::new();
        let key = RequestKey::read(&active.catalogue, operation, path_match, Some(query), &no_fields, false).unwrap();
        let caller_scope = CallerScope { caller: gateway.callers.of_token(&token), scope: key.scope().clone() };
        let connection = gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into());
        CacheRequest {
            active: Arc::clone(&active),
            credential: Credential::Token(token),
            client: connection.client(&active, Some(caller_scope.caller)),
            account: connection.account.clone(),
            half_close: Arc::default(),
            lookup: Arc::new(Lookup { caller_scope, key: Arc::new(key), directives: RequestDirectives::default() }),
        }
    }

    fn grant(&self, request: &CacheRequest) {
        let now = self.gateway.now();
        self.gateway.memory.grants.begin_call(request.lookup.caller_scope.clone(), now).proved(now);
    }

    /// A call for a request has got this response. `is_alone`: it was made for its caller alone.
    fn answered(&self, request: &CacheRequest, response: Response<Bytes>, is_alone: bool) {
        self.ended(request, is_alone, |call, pending_grant| {
            let status = response.status();
            call.settle(pending_grant, response, status, None);
        });
    }

    /// A call for a request has failed.
    fn failed(&self, request: &CacheRequest, error: &UpstreamError, is_external: bool) {
        self.ended(request, false, |call, pending_grant| call.settle_failure(pending_grant, error, is_external, None));
    }

    fn ended(&self, request: &CacheRequest, is_alone: bool, settle: impl FnOnce(EndedCall<'_>, PendingGrant)) {
        let Gateway { memory, observer, .. } = &*self.gateway;
        let now = self.gateway.now();
        let shared = memory.store.cache_key(&request.lookup.key, request.lookup.caller_scope.caller);
        let cache_key = &if is_alone { shared.of(request.lookup.caller_scope.caller) } else { shared };
        let times = ResponseTimes { sent: now, received: now, date: self.gateway.date() };
        let epoch = memory.store.epoch();
        let call = EndedCall {
            memory,
            observer,
            request,
            cache_key,
            is_for_caller_alone: is_alone,
            is_key_only: true,
            epoch,
            times,
        };
        settle(call, memory.grants.begin_call(request.lookup.caller_scope.clone(), now));
    }

    fn backs_off(&self, request: &CacheRequest) -> bool {
        let Lookup { key, caller_scope, .. } = &*request.lookup;
        let cache_key = self.gateway.memory.store.cache_key(key, caller_scope.caller);
        self.gateway.memory.backoffs.is_active_for(&cache_key, caller_scope, self.gateway.now())
    }
}

fn response(status: u16, retry_after: Option<u64>) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    retry_after.map(|seconds| response.headers_mut().insert("retry-after", HeaderValue::from(seconds)));
    response
}

#[test]
fn a_failure_holds_back_its_caller_everywhere_and_a_second_callers_holds_back_everybody() {
    for (status, other_query_waits) in [(500, false), (429, true)] {
        let (bench, [one, other]) = Bench::new([""; 2]);
        let requests = ["a", "b", "c"].map(|token| one.request(token, "limit=1"));
        let other_query = one.request("a", "limit=2");
        requests.iter().for_each(|request| one.grant(request));
        one.answered(&requests[0], response(status, Some(30)), false);
        let first = one.told();
        other.take(&first);
        assert!(other.backs_off(&requests[0]) && !other.backs_off(&requests[1]), "{status}");
        assert_eq!(other.backs_off(&other_query), other_query_waits, "{status}");
        other.take(&first);
        assert!(!other.backs_off(&requests[1]), "one failure that was told twice is not two");
        bench.clock.advance(SECOND);
        one.answered(&requests[1], response(status, Some(30)), false);
        let second = one.told();
        other.take(&second);
        assert!(other.backs_off(&requests[2]), "{status}");
        // In another order, late, and again.
        let late = bench.teller(1);
        bench.clock.advance(SECOND);
        late.take(&[second.clone(), first.clone(), first, second].concat());
        assert!(late.backs_off(&requests[2]), "{status}");
        assert!(other.told().is_empty() && late.told().is_empty(), "what was told is not told on");
    }
}

#[test]
fn a_told_backoff_ends_when_that_of_the_teller_does_and_after_a_minute_at_the_latest() {
    let (bench, [one, other]) = Bench::new([""; 2]);
    let request = one.request("a", "");
    for is_alone in [false, true] {
        one.grant(&request);
        one.answered(&request, response(503, Some(30)), is_alone);
        let told = one.told();
        bench.clock.advance(20 * SECOND);
        other.take(&told);
        assert!(other.backs_off(&request), "{is_alone}");
        bench.clock.advance(10 * SECOND);
        assert!(!one.backs_off(&request) && !other.backs_off(&request), "{is_alone}");
    }
    let CallerScope { caller, scope } = request.lookup.caller_scope.clone();
    let long = Hint::caller_backoff(&CallerScope { caller, scope }, Duration::MAX);
    other.gateway.take_hint(&long, Duration::ZERO);
    bench.clock.advance(59 * SECOND);
    assert!(other.backs_off(&request));
    bench.clock.advance(SECOND);
    assert!(!other.backs_off(&request));
    other.gateway.take_hint(&long, Duration::MAX);
    other.gateway.take_hint(&long, 61 * SECOND);
    assert!(!other.backs_off(&request));
}

#[test]
fn only_a_granted_callers_failure_is_told_and_only_as_what_it_may_begin_there() {
    let (_, [one, other]) = Bench::new([""; 2]);
    let [granted, unknown] = ["a", "b"].map(|token| one.request(token, ""));
    one.grant(&granted);
    one.answered(&unknown, response(500, None), false);
    one.answered(&unknown, response(429, Some(60)), true);
    assert!(one.told().is_empty(), "anyone can invent tokens");
    // A renewal: its own key has a backoff here, which would extend a lapsed grant there.
    one.answered(&granted, response(500, None), true);
    let told = one.told();
    assert_eq!(told.len(), 1);
    other.take(&told);
    let own_key = other
        .gateway
        .memory
        .store
        .cache_key(&granted.lookup.key, granted.lookup.caller_scope.caller)
        .of(granted.lookup.caller_scope.caller);
    let extends = |teller: &Teller| teller.gateway.memory.backoffs.is_active_for_owner(&own_key, teller.gateway.now());
    assert!(extends(&one) && !extends(&other));
    assert!(other.backs_off(&granted));
}

#[test]
fn a_failure_inside_a_gateway_holds_back_no_other_gateway() {
    for (is_external, told) in [(true, 1), (false, 0)] {
        let (_, [one, _]) = Bench::new([""; 2]);
        let request = one.request("a", "");
        one.grant(&request);
        one.failed(&request, &UpstreamError::Deadline, is_external);
        assert!(one.backs_off(&request), "{is_external}");
        assert_eq!(one.told().len(), told, "{is_external}");
    }
}

#[test]
fn a_hint_about_another_operation_or_upstream_means_nothing() {
    let elsewhere = "upstream = { workspace_url = \"https://elsewhere.example\" }";
    let (_, [one, other]) = Bench::new(["", elsewhere]);
    let request = one.request("a", "");
    one.grant(&request);
    for is_alone in [false, true] {
        one.answered(&request, response(429, Some(30)), is_alone);
        let told = one.told();
        assert_eq!(told.len(), 1);
        other.take(&told);
    }
    assert!(one.backs_off(&request));
    assert!(!other.backs_off(&other.request("a", "")));
}

const KEY: &str = "[[access_key]]\nid = \"AK\"\nsecret = \"a-secret-of-some-length\"";

fn key_of(teller: &Teller) -> Arc<AccessKey> {
    Arc::clone(teller.gateway.active().keys.keys().next().unwrap())
}

#[test]
fn refusals_of_an_access_key_are_told_for_the_upstream_that_counts_them() {
    let (_, [one, other]) = Bench::new([KEY; 2]);
    let (key, active) = (key_of(&one), one.gateway.active());
    for _ in 0..3 {
        assert!(!other.gateway.fetcher.key_breaker.is_suspended(&key, Service::AppStream));
        let permit = one.gateway.fetcher.key_breaker.try_enter(&key, Service::Workspace).unwrap().unwrap();
        let (fetcher, observer) = (&one.gateway.fetcher, &one.gateway.observer);
        fetcher.signature_ended(
            KeyTurn { permit, trial: None },
            SignatureOutcome::Refused,
            false,
            &active.catalogue,
            observer,
        );
        let told = one.told();
        assert_eq!(told.len(), 1);
        assert_eq!(format!("{:?}", told[0].1), "Hint::AccessKey(…)", "the id is not shown");
        other.take(&[&told[..], &told].concat());
        one.take(&told);
    }
    assert!(other.gateway.fetcher.key_breaker.is_suspended(&key, Service::AppStream), "both services have one count");
    let suspensions = |teller: &Teller| {
        teller.gateway.observer.events().recent().iter().filter(|it| it.event == Event::KeySuspended).count()
    };
    assert_eq!((suspensions(&one), suspensions(&other)), (1, 1));
}

#[tokio::test]
async fn a_limit_that_one_gateway_meets_holds_back_the_other() {
    let (_, [one, other]) = Bench::new([""; 2]);
    let request = one.request("a", "");
    one.grant(&request);
    assert!(other.gateway.fetcher.held_for(&request, Class::Proved).is_none());
    let permit = one.gateway.fetcher.gate.enter(Service::Workspace, request.gate_call(Class::Proved)).await;
    let body = br#"{"error_code":"APIGW.0308","error_msg":"policy user over ratelimit,limit:5,time:10 second"}"#;
    let refusal = response(429, Some(7)).map(|_| Bytes::from_static(body));
    let Gateway { fetcher, observer, clock, .. } = &*one.gateway;
    pacing::learn(fetcher, &permit, &refusal, &one.gateway.active().catalogue, observer, clock);
    let told = one.told();
    assert_eq!(told.len(), 1);
    other.take(&[&told[..], &told].concat());
    assert_eq!(other.gateway.fetcher.held_for(&request, Class::Proved), Some(7 * SECOND));
    // A service at another address has other limits.
    let elsewhere = "[upstream]\nworkspace_url = \"https://elsewhere.example\"\nappstream_url = \"https://e.example\"";
    let (_, [_, elsewhere]) = Bench::new(["", elsewhere]);
    elsewhere.take(&told);
    assert!(elsewhere.gateway.fetcher.held_for(&elsewhere.request("a", ""), Class::Proved).is_none());
}

#[test]
fn what_is_no_hint_of_this_version_is_not_read() {
    let (_, [one, _]) = Bench::new([""; 2]);
    let scope = one.request("a", "").lookup.caller_scope.clone();
    let bytes = sent(Hint::caller_backoff(&scope, SECOND));
    assert!(read(&bytes).is_some());
    assert!(read(&[&[bytes[0] + 1], &bytes[1..]].concat()).is_none());
    (0..bytes.len()).for_each(|length| assert!(read(&bytes[..length]).is_none(), "{length}"));
}
