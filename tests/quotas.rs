//! Quotas: the gateway does not send what upstream would refuse. Upstream enforces quotas of the simulator. The clock is
//! paused, and moves on as soon as all tasks wait, so all times are exact.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use workspace_gateway::testing::catalogue::{Quota, QuotaPolicy, Service};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::simulator::{EnforcedQuota, QuotaCall, QuotaWindow, Quotas, RefusalText};
use workspace_gateway::testing::upstream::UpstreamError;

use crate::support::in_process::{Answers, InProcess, ListCall};
use crate::support::{Reply, config, get_in_process, handle};

const SECOND: Duration = Duration::from_secs(1);
const LATENCY: Duration = Duration::from_millis(300);
const LIST: &str = "/v2/p/products?os_type=Linux";

/// Upstream with quotas.
#[derive(Default)]
struct Limited {
    quotas: Mutex<Quotas>,
    calls: Mutex<Vec<(Instant, String)>>,
    /// What the next relayed request gets. Otherwise it gets `{}`.
    relayed: Mutex<Option<Response<Bytes>>>,
}

impl Answers for Limited {
    async fn answer(&self, call: ListCall) -> Result<Response<Bytes>, UpstreamError> {
        self.calls.lock().unwrap().push((Clock::System.timer_now(), call.target));
        let counted =
            QuotaCall { service: Service::Workspace, api: "products", user: Some(&call.credential), app: None };
        let verdict = self.quotas.lock().unwrap().call(&counted, call.at);
        sleep(LATENCY).await;
        if verdict.is_accepted() {
            return Ok(Response::new(Bytes::from_static(br#"{"products":[]}"#)));
        }
        let mut response = Response::new(verdict.body("id"));
        *response.headers_mut() = verdict.headers(false);
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        Ok(response)
    }

    async fn answer_relayed(&self) -> Response<Bytes> {
        sleep(2 * SECOND).await;
        self.relayed.lock().unwrap().take().unwrap_or_else(|| Response::new(Bytes::from_static(b"{}")))
    }
}

struct World {
    gateway: Arc<Gateway>,
    upstream: Arc<Limited>,
}

fn settings(text: &str) -> Config {
    config("http://127.0.0.1:1", "http://127.0.0.1:1", &format!("[cache]\nttl_jitter = \"0%\"\n{text}"))
}

impl World {
    fn new(text: &str) -> Self {
        let upstream = Arc::new(Limited::default());
        let called = Arc::new(InProcess(Arc::clone(&upstream)));
        let gateway = Gateway::with_upstream(called, &settings(text), Clock::System, Random::System).unwrap();
        Self { gateway, upstream }
    }

    fn limit(&self, policy: QuotaPolicy, calls: u32, window: Duration) {
        let quota = EnforcedQuota::new(policy, Quota { calls, window }, QuotaWindow::Sliding);
        self.upstream.quotas.lock().unwrap().set(quota);
    }

    /// Asks for a list, by its number. Returns the response and the time that it took.
    async fn get(&self, token: &str, list: usize) -> (Reply, Duration) {
        let begun = Clock::System.timer_now();
        let reply = get_in_process(&self.gateway, token, &format!("{LIST}&product_id={list}")).await;
        (reply, Clock::System.timer_now() - begun)
    }

    /// The number of calls since the last look.
    fn calls(&self) -> usize {
        std::mem::take(&mut *self.upstream.calls.lock().unwrap()).len()
    }
}

fn header<'r>(reply: &'r Reply, name: &str) -> &'r str {
    reply.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_request_that_upstream_throttles_waits_for_its_turn_and_is_sent_once_more() {
    let world = World::new("");
    world.limit(QuotaPolicy::User, 2, 10 * SECOND);
    for list in 0..2 {
        assert_eq!(world.get("a", list).await.0.status(), StatusCode::OK);
    }
    assert_eq!(world.calls(), 2);
    let (reply, time) = world.get("a", 2).await;
    assert_eq!((reply.status(), world.calls()), (StatusCode::OK, 2));
    // Its turn is 10 s after the first call was sent, and a little later.
    assert!(time > 9 * SECOND && time < 10 * SECOND, "{time:?}");
    // Now the limit is known, so nothing is sent that would be refused.
    let (reply, _) = world.get("a", 3).await;
    assert_eq!((reply.status(), world.calls()), (StatusCode::OK, 1));
    let (reply, time) = world.get("b", 4).await;
    assert_eq!((reply.status(), time), (StatusCode::OK, LATENCY), "another caller does not wait");
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_turn_comes_too_late_gets_a_429_that_says_when_to_retry() {
    let world = World::new("");
    world.limit(QuotaPolicy::User, 1, 120 * SECOND);
    world.get("a", 0).await;
    // Upstream's own refusal says it, too, although upstream did not.
    let (reply, time) = world.get("a", 1).await;
    assert_eq!((reply.status(), time), (StatusCode::TOO_MANY_REQUESTS, LATENCY));
    assert!(!reply.text().contains("workspace-gateway"), "{}", reply.text());
    assert_eq!(header(&reply, "retry-after"), "120");
    world.calls();
    let (reply, time) = world.get("a", 2).await;
    assert_eq!((reply.status(), world.calls()), (StatusCode::TOO_MANY_REQUESTS, 0));
    assert_eq!(time, 35 * SECOND, "upstream.answer_timeout");
    assert!(reply.text().contains("APIGW.0308") && reply.text().contains("policy user over ratelimit"));
    assert_eq!(header(&reply, "retry-after"), "85");
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_followed_to_its_end() {
    let world = World::new("");
    let quota = Quota { calls: 2, window: 300 * SECOND };
    let mut limit = EnforcedQuota::new(QuotaPolicy::User, quota, QuotaWindow::Sliding);
    limit.answers.retry_after = true;
    world.upstream.quotas.lock().unwrap().set(limit);
    world.get("a", 0).await;
    // Another client of this user has used the rest, which the gateway cannot know.
    let now = Clock::System.now();
    world.upstream.quotas.lock().unwrap().use_quota(Service::Workspace, QuotaPolicy::User, "a", 1, now);
    let (reply, _) = world.get("a", 1).await;
    assert_eq!(reply.status(), StatusCode::TOO_MANY_REQUESTS);
    world.calls();
    // Longer than any backoff.
    sleep(100 * SECOND).await;
    let (reply, _) = world.get("a", 2).await;
    assert_eq!((reply.status(), world.calls()), (StatusCode::TOO_MANY_REQUESTS, 0));
}

/// The value of a series in the metrics.
fn metric(world: &World, series: &str) -> f64 {
    let page = world.gateway.metrics().encode().unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("workspace_gateway_{series} ")));
    line.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
}

const USER_QUOTA: &str = "[[quota]]\nservice = \"workspace\"\npolicy = \"user\"\nlimit = 2\nwindow = \"10s\"\n";

#[tokio::test(start_paused = true)]
async fn waits_for_a_quota_are_measured_without_the_wait_for_a_slot() {
    let world = Arc::new(World::new(&format!("[upstream]\nmax_calls_per_caller = 1\n{USER_QUOTA}")));
    let mut requests = JoinSet::new();
    for list in 0..3 {
        let world = Arc::clone(&world);
        requests.spawn(async move { world.get("a", list).await });
    }
    sleep(SECOND).await;
    let waiting = || metric(&world, "quota_waiting{policy=\"user\",service=\"workspace\"}");
    assert_eq!((world.calls(), waiting()), (2, 1.0));
    let mut times: Vec<_> = requests.join_all().await.into_iter().map(|(_, time)| time).collect();
    times.sort();
    // The second waits for the slot of the first. The third does, too, and then for the quota: a window and 1 % of it
    // after the first.
    let last = Duration::from_millis(10_100);
    assert_eq!(times, [LATENCY, 2 * LATENCY, last + LATENCY]);
    let waits = ["count", "sum"].map(|of| metric(&world, &format!("quota_wait_seconds_{of}{{policy=\"user\"}}")));
    assert_eq!((waits, waiting()), ([1.0, (last - 2 * LATENCY).as_secs_f64()], 0.0));
}

#[tokio::test(start_paused = true)]
async fn the_wait_of_a_request_whose_turn_comes_too_late_is_measured() {
    let world = World::new("[[quota]]\nservice = \"workspace\"\npolicy = \"ip\"\nlimit = 1\nwindow = \"1h\"\n");
    world.get("a", 0).await;
    assert_eq!(world.get("a", 1).await.0.status(), StatusCode::TOO_MANY_REQUESTS);
    let waits = ["count", "sum"].map(|of| metric(&world, &format!("quota_wait_seconds_{of}{{policy=\"ip\"}}")));
    assert_eq!(waits, [1.0, 35.0], "upstream.answer_timeout");
    assert_eq!(metric(&world, "quota_refusals_total{policy=\"ip\",source=\"gateway\"}"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_short_retry_after_is_waited_for_even_if_upstream_names_no_limit() {
    let world = World::new("");
    let quota = Quota { calls: 1, window: 20 * SECOND };
    let mut limit = EnforcedQuota::new(QuotaPolicy::User, quota, QuotaWindow::Sliding);
    (limit.answers.retry_after, limit.answers.text) = (true, RefusalText::Plain);
    world.upstream.quotas.lock().unwrap().set(limit);
    world.get("a", 0).await;
    world.calls();
    let (reply, time) = world.get("a", 1).await;
    assert_eq!((reply.status(), world.calls()), (StatusCode::OK, 2));
    assert!(time > 19 * SECOND && time <= 21 * SECOND, "{time:?}");
    // Calls of this caller wait, and those of others do not.
    let (two, three, other) = tokio::join!(world.get("a", 2), world.get("a", 3), world.get("b", 4));
    assert_eq!(other.1, LATENCY);
    // One of them has met a 429 twice.
    let [accepted, refused] = if two.0.status() == StatusCode::OK { [two.0, three.0] } else { [three.0, two.0] };
    assert_eq!((accepted.status(), refused.status()), (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS));
    assert_eq!(header(&refused, "retry-after"), "20");
}

#[tokio::test(start_paused = true)]
async fn the_longer_of_a_known_limit_and_retry_after_is_waited_for() {
    let world = World::new("");
    let limit = |seconds, retry_after| {
        let quota = Quota { calls: 1, window: seconds * SECOND };
        let mut limit = EnforcedQuota::new(QuotaPolicy::User, quota, QuotaWindow::Sliding);
        if retry_after {
            (limit.answers.retry_after, limit.answers.text) = (true, RefusalText::Plain);
        }
        world.upstream.quotas.lock().unwrap().set(limit);
    };
    limit(4, false);
    world.get("a", 0).await;
    world.get("a", 1).await;
    // Now one of 4 s is known, and another one is in force.
    limit(20, true);
    world.get("b", 2).await;
    let now = Clock::System.now();
    world.upstream.quotas.lock().unwrap().use_quota(Service::Workspace, QuotaPolicy::User, "a", 1, now);
    world.calls();
    let (reply, time) = world.get("a", 3).await;
    assert_eq!((reply.status(), world.calls()), (StatusCode::OK, 2));
    assert!(time > 20 * SECOND && time < 26 * SECOND, "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_only_if_a_known_limit_and_retry_after_both_end_before_its_deadline() {
    // The window of the known limit, what the response asks for, and when the request comes, in seconds.
    for (known, asked, after) in [(4, 60, 0), (60, 4, 61)] {
        let world = World::new("");
        world.limit(QuotaPolicy::User, 1, known * SECOND);
        world.get("a", 0).await;
        world.get("a", 1).await;
        sleep(after * SECOND).await;
        // Another limit is in force, which upstream does not name, and another client of this user has used it up.
        let mut limit =
            EnforcedQuota::new(QuotaPolicy::User, Quota { calls: 1, window: asked * SECOND }, QuotaWindow::Sliding);
        (limit.answers.retry_after, limit.answers.text) = (true, RefusalText::Plain);
        world.upstream.quotas.lock().unwrap().set(limit);
        let now = Clock::System.now();
        world.upstream.quotas.lock().unwrap().use_quota(Service::Workspace, QuotaPolicy::User, "a", 1, now);
        world.calls();
        let (reply, time) = world.get("a", 2).await;
        assert_eq!((reply.status(), world.calls()), (StatusCode::TOO_MANY_REQUESTS, 1), "{known} s");
        assert!(time < 5 * SECOND, "{known} s: it waited for {time:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_a_grant_gets_a_stale_response_at_once() {
    let world = World::new("ttl = \"10s\"\nstale_while_revalidate = \"0s\"\n");
    world.limit(QuotaPolicy::User, 1, 100 * SECOND);
    world.get("a", 0).await;
    world.get("a", 1).await;
    sleep(20 * SECOND).await;
    world.calls();
    let (reply, time) = world.get("a", 0).await;
    assert_eq!((reply.status(), time, world.calls()), (StatusCode::OK, Duration::ZERO, 0));
    assert!(header(&reply, "cache-status").contains("detail=backoff"), "{:?}", reply.headers());
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_waits_for_its_own_limit_starts_no_refresh() {
    let world = World::new("ttl = \"10s\"\nstale_while_revalidate = \"1h\"\n");
    world.limit(QuotaPolicy::User, 1, 100 * SECOND);
    let refreshes = || metric(&world, "refreshes_total");
    world.get("a", 0).await;
    world.get("a", 1).await;
    sleep(20 * SECOND).await;
    world.calls();
    for _ in 0..5 {
        assert_eq!(world.get("a", 0).await.1, Duration::ZERO);
        sleep(SECOND).await;
    }
    assert_eq!((refreshes(), world.calls()), (0.0, 0));
    // Its turn has come.
    sleep(100 * SECOND).await;
    assert_eq!(world.get("a", 0).await.1, Duration::ZERO);
    sleep(SECOND).await;
    assert_eq!((refreshes(), world.calls()), (1.0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_upstream_throttles_is_repeated_after_its_backoff_and_waits_for_its_turn() {
    let world = World::new("ttl = \"1h\"\n[grants]\ngrant_ttl = \"5m\"\nrenew_ahead = \"60s\"\n");
    world.get("a", 0).await;
    sleep(250 * SECOND).await;
    world.limit(QuotaPolicy::User, 1, 12 * SECOND);
    get_in_process(&world.gateway, "a", "/v2/q/products").await;
    // The next call is the renewal.
    world.get("a", 0).await;
    sleep(SECOND).await;
    assert_eq!(world.calls(), 3);

    // The backoff is 5 s, because upstream asks for no other.
    sleep(5 * SECOND).await;
    world.get("a", 0).await;
    assert_eq!(world.calls(), 0, "the limit holds the renewal back");
    sleep(10 * SECOND).await;
    assert_eq!(world.calls(), 1, "the renewal is sent without another request");
}

#[tokio::test(start_paused = true)]
async fn a_caller_whose_grant_has_lapsed_gets_a_stale_response_if_upstream_throttles_it() {
    let world = World::new("ttl = \"1h\"\n[grants]\ngrant_ttl = \"200s\"\nrenew_ahead = \"0s\"\n");
    world.limit(QuotaPolicy::User, 1, 20 * SECOND);
    world.get("a", 0).await;
    sleep(220 * SECOND).await;
    // Another client of this user has used the quota up.
    let now = Clock::System.now();
    world.upstream.quotas.lock().unwrap().use_quota(Service::Workspace, QuotaPolicy::User, "a", 1, now);
    let (reply, time) = world.get("a", 0).await;
    assert_eq!((reply.status(), time), (StatusCode::OK, LATENCY), "it need not wait for its turn");
}

#[tokio::test(start_paused = true)]
async fn a_configured_limit_holds_from_the_start_and_ends_with_the_setting() {
    let quota = "[[quota]]\nservice = \"workspace\"\npolicy = \"ip\"\nlimit = 1\nwindow = \"1h\"\n";
    let world = World::new(quota);
    // The caller has no proof, and the limit is that of all callers.
    assert_eq!(world.get("a", 0).await.0.status(), StatusCode::OK);
    let mut waiting = JoinSet::new();
    let (gateway, begun) = (Arc::clone(&world.gateway), Clock::System.timer_now());
    waiting.spawn(async move { get_in_process(&gateway, "b", LIST).await });
    sleep(SECOND).await;
    assert_eq!(world.calls(), 1, "only the first");
    world.gateway.reload(&settings("")).unwrap();
    let reply = waiting.join_next().await.unwrap().unwrap();
    assert_eq!((reply.status(), Clock::System.timer_now() - begun), (StatusCode::OK, SECOND + LATENCY));
}

#[tokio::test(start_paused = true)]
async fn no_limit_is_learnt_that_the_settings_deny() {
    let world = World::new("[[quota]]\nservice = \"workspace\"\npolicy = \"user\"\nlimit = \"none\"\n");
    world.limit(QuotaPolicy::User, 1, 10 * SECOND);
    world.get("a", 0).await;
    for list in 1..4 {
        let (reply, time) = world.get("a", list).await;
        assert_eq!((reply.status(), time), (StatusCode::TOO_MANY_REQUESTS, LATENCY));
    }
    assert_eq!(world.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_not_sent_extends_no_grant() {
    let world = World::new("ttl = \"1h\"\n[grants]\ngrant_ttl = \"200s\"\nrenew_ahead = \"0s\"\n");
    world.limit(QuotaPolicy::User, 1, 300 * SECOND);
    world.get("a", 0).await;
    world.get("a", 1).await;
    // The grant has lapsed, and a failure outside the gateway would extend it.
    sleep(220 * SECOND).await;
    world.calls();
    let (reply, _) = world.get("a", 0).await;
    assert_eq!((reply.status(), world.calls()), (StatusCode::TOO_MANY_REQUESTS, 0));
}

#[tokio::test(start_paused = true)]
async fn twenty_two_pages_at_once_are_answered_within_what_is_left_of_a_quota() {
    let world = World::new("");
    world.limit(QuotaPolicy::User, 200, 300 * SECOND);
    for list in 0..150 {
        world.get("a", list).await;
    }
    let world = Arc::new(world);
    let mut pages = JoinSet::new();
    for page in 150..172 {
        let world = Arc::clone(&world);
        pages.spawn(async move { world.get("a", page).await });
    }
    for (reply, time) in pages.join_all().await {
        assert_eq!(reply.status(), StatusCode::OK);
        assert!(time <= 5 * SECOND, "{time:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_its_limit_holds_back_lets_another_caller_lead() {
    let world = Arc::new(World::new(""));
    world.limit(QuotaPolicy::User, 1, 10 * SECOND);
    for token in ["b", "c", "d", "a"] {
        world.get(token, 0).await;
    }
    // Upstream refuses this one, so the limit is known. Then it is used up.
    assert_eq!(world.get("a", 1).await.0.status(), StatusCode::OK);
    world.calls();
    let mut requests = JoinSet::new();
    for token in ["a", "b", "b", "c", "c", "d"] {
        let world = Arc::clone(&world);
        requests.spawn(async move { world.get(token, 2).await });
    }
    for (reply, time) in requests.join_all().await {
        assert_eq!(reply.status(), StatusCode::OK);
        assert!(time <= SECOND, "{time:?}");
    }
    assert_eq!(world.calls(), 1, "all share one call, and the caller that was held back finds the entry");
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_upstream_raises_releases_those_that_it_has_held_back() {
    let world = Arc::new(World::new(""));
    for token in ["a", "b"] {
        world.get(token, 0).await;
    }
    world.limit(QuotaPolicy::Api, 1, 30 * SECOND);
    world.get("a", 1).await;
    let held = tokio::spawn({
        let world = Arc::clone(&world);
        async move { world.get("a", 2).await }
    });
    sleep(SECOND).await;
    world.limit(QuotaPolicy::Api, 1, 4 * SECOND);
    // The other caller does not know of the limit, and meets it.
    assert_eq!(world.get("b", 3).await.0.status(), StatusCode::OK);
    let (reply, time) = held.await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    assert!(time < 15 * SECOND, "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn a_response_to_a_relayed_request_releases_lists_that_a_limit_has_held_back() {
    let world = Arc::new(World::new(""));
    world.limit(QuotaPolicy::User, 2, 50 * SECOND);
    for list in 0..3 {
        world.get("a", list).await;
    }
    let text = r#"{"error_code":"APIGW.0308","error_msg":"policy user over ratelimit,limit:2,time:4 second"}"#;
    let mut refusal = Response::new(Bytes::from_static(text.as_bytes()));
    *refusal.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    *world.upstream.relayed.lock().unwrap() = Some(refusal);
    // It is sent before a list is held back, and answered after that.
    let relayed = tokio::spawn({
        let world = Arc::clone(&world);
        let request = Request::post("/v2/p/desktops").header("host", "any").header("x-auth-token", "a");
        async move { handle(&world.gateway, request).await }
    });
    sleep(SECOND).await;
    let held = tokio::spawn({
        let world = Arc::clone(&world);
        async move { world.get("a", 3).await }
    });
    world.limit(QuotaPolicy::User, 2, 4 * SECOND);
    assert_eq!(relayed.await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    let (reply, time) = held.await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    assert!(time < 10 * SECOND, "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_must_lead_no_longer_repeats_its_call_only_once() {
    let world = Arc::new(World::new(""));
    world.get("a", 0).await;
    world.limit(QuotaPolicy::User, 1, 10 * SECOND);
    let use_quota = || {
        let now = Clock::System.now();
        world.upstream.quotas.lock().unwrap().use_quota(Service::Workspace, QuotaPolicy::User, "a", 1, now);
    };
    // Another client of this user is faster.
    use_quota();
    world.calls();
    let asking = tokio::spawn({
        let world = Arc::clone(&world);
        async move { world.get("a", 1).await }
    });
    sleep(SECOND).await;
    for _ in 0..20 {
        use_quota();
        sleep(SECOND).await;
    }
    let (reply, _) = asking.await.unwrap();
    assert_eq!((reply.status(), world.calls()), (StatusCode::TOO_MANY_REQUESTS, 2));
}
