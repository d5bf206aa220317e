//! Renewal ahead: a caller that keeps sending requests does not wait for the renewals of its grant. The clock is paused:
//! it moves on as soon as all tasks wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, RETRY_AFTER};
use http::{HeaderValue, Method, Response, StatusCode};
use tokio::time::{Instant, sleep};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::upstream::UpstreamError;

use crate::support::in_process::{ACCESS_KEY, Answers, InProcess, ListCall, send_signed};
use crate::support::{Reply, config, get_in_process, get_in_process_with};

pub const SECOND: Duration = Duration::from_secs(1);
pub const LATENCY: Duration = Duration::from_millis(300);
pub const LIST: &str = "/v2/p/products?os_type=Linux";
pub const OTHER: &str = "/v2/p/products?os_type=Windows";

/// Answers all calls after a time.
pub struct Answering {
    /// When, and with which token or access key.
    pub calls: Mutex<Vec<(Instant, String)>>,
    /// By token or access key: the status, and `Retry-After` in seconds. 200: a list with `Cache-Control: no-store`.
    refusals: Mutex<HashMap<String, (StatusCode, Option<u32>)>>,
    latency: Mutex<Duration>,
    pub in_flight: AtomicUsize,
}

impl Answers for Answering {
    async fn answer(&self, call: ListCall) -> Result<Response<Bytes>, UpstreamError> {
        self.calls.lock().unwrap().push((Clock::System.timer_now(), call.credential.clone()));
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let latency = *self.latency.lock().unwrap();
        sleep(latency).await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let refusal = self.refusals.lock().unwrap().get(&call.credential).copied();
        let Some((status, retry_after)) = refusal else {
            return Ok(Response::new(Bytes::from_static(br#"{"products":[]}"#)));
        };
        let body: &[u8] = match status {
            StatusCode::OK => br#"{"products":[]}"#,
            _ => br#"{"error_code":"APIGW.0301","error_msg":"no"}"#,
        };
        let mut response = Response::new(Bytes::from_static(body));
        *response.status_mut() = status;
        if status == StatusCode::OK {
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        response.headers_mut().extend(retry_after.map(|seconds| (RETRY_AFTER, seconds.into())));
        Ok(response)
    }
}

pub struct World {
    pub gateway: Arc<Gateway>,
    pub upstream: Arc<Answering>,
}

impl World {
    pub fn new(settings: &str) -> Self {
        Self::with_ttl("1h", settings)
    }

    fn with_ttl(ttl: &str, settings: &str) -> Self {
        let upstream = Arc::new(Answering {
            calls: Mutex::default(),
            refusals: Mutex::default(),
            latency: Mutex::new(LATENCY),
            in_flight: AtomicUsize::new(0),
        });
        let settings = format!("[cache]\nttl = \"{ttl}\"\nttl_jitter = \"0%\"\n{settings}");
        let config = config("http://127.0.0.1:1", "http://127.0.0.1:1", &settings);
        let called = Arc::new(InProcess(Arc::clone(&upstream)));
        Self { gateway: Gateway::with_upstream(called, &config, Clock::System, Random::System).unwrap(), upstream }
    }

    pub async fn get(&self, token: &str, path: &str) -> Reply {
        get_in_process(&self.gateway, token, path).await
    }

    /// A caller that has a grant, and an entry.
    pub async fn prove(&self, token: &str) {
        assert_eq!(self.get(token, LIST).await.status(), StatusCode::OK);
    }

    /// The number of calls since the last look, of a caller.
    pub fn calls(&self, token: &str) -> usize {
        let mut calls = self.upstream.calls.lock().unwrap();
        let before = calls.len();
        calls.retain(|(_, its)| its != token);
        before - calls.len()
    }

    pub fn refuse(&self, token: &str, status: StatusCode, retry_after: Option<u32>) {
        self.upstream.refusals.lock().unwrap().insert(token.to_owned(), (status, retry_after));
    }

    pub fn delay(&self, latency: Duration) {
        *self.upstream.latency.lock().unwrap() = latency;
    }

    /// Sends a request every second for some seconds. Returns the seconds, after `start`, of the calls and of the
    /// requests that waited.
    async fn poll(&self, token: &str, from: u64, to: u64, start: Instant) -> (Vec<u64>, Vec<u64>) {
        let (mut calls, mut waits) = (Vec::new(), Vec::new());
        for second in from..to {
            tokio::time::sleep_until(start + Duration::from_secs(second)).await;
            let begun = Clock::System.timer_now();
            self.get(token, LIST).await;
            waits.extend((Clock::System.timer_now() > begun).then_some(second));
            // A renewal that has begun is sent before the next request.
            sleep(SECOND / 1000).await;
            calls.extend(std::iter::repeat_n(second, self.calls(token)));
        }
        (calls, waits)
    }

    pub fn begin(&self, token: &'static str, path: &str) -> tokio::task::JoinHandle<Reply> {
        let (gateway, path) = (Arc::clone(&self.gateway), path.to_owned());
        tokio::spawn(async move { get_in_process(&gateway, token, &path).await })
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_keeps_sending_requests_does_not_wait_for_renewals() {
    let world = World::new("");
    let start = Clock::System.timer_now();
    world.prove("a").await;
    // The longest lead is 30 s, and a quarter of it for a caller that polls every second.
    assert_eq!(world.poll("a", 1, 900, start).await, (vec![1, 293, 586, 879], vec![]));
}

#[tokio::test(start_paused = true)]
async fn without_renewal_ahead_a_caller_waits_every_five_minutes() {
    let world = World::new("[grants]\nrenew_ahead = \"0s\"\n");
    let start = Clock::System.timer_now();
    world.prove("a").await;
    assert_eq!(world.poll("a", 1, 900, start).await, (vec![1, 300, 600], vec![300, 600]));
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_concerns_only_its_caller_and_is_repeated_after_a_growing_time() {
    let world = World::new("");
    let start = Clock::System.timer_now();
    world.prove("a").await;
    world.refuse("a", StatusCode::SERVICE_UNAVAILABLE, None);
    let (calls, waits) = world.poll("a", 1, 300, start).await;
    assert_eq!((calls, waits), (vec![1, 293, 299], vec![]));
    // The other caller proves itself, and gets the entry from memory from then on.
    world.prove("b").await;
    assert!(world.get("b", LIST).await.is_hit());
    assert_eq!(world.calls("b"), 1);
    let page = world.gateway.metrics().encode().unwrap();
    assert!(page.contains("workspace_gateway_renewals_total{result=\"failed\"} 2"), "{page}");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_upstream_asks_to_retry_later_waits_as_long() {
    let world = World::new("[grants]\nrenew_ahead = \"60s\"\n");
    let start = Clock::System.timer_now();
    world.prove("a").await;
    world.refuse("a", StatusCode::TOO_MANY_REQUESTS, Some(9));
    assert_eq!(world.poll("a", 1, 298, start).await.0, [1, 285, 295]);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_upstream_denies_ends_the_grant() {
    let world = World::new("");
    let start = Clock::System.timer_now();
    world.prove("a").await;
    world.refuse("a", StatusCode::UNAUTHORIZED, None);
    let (calls, _) = world.poll("a", 1, 294, start).await;
    assert_eq!(calls, [1, 293]);
    tokio::time::sleep_until(start + 294 * SECOND).await;
    assert_eq!(world.get("a", LIST).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_whose_response_cannot_be_stored_concerns_only_its_caller() {
    let world = World::with_ttl("294s", "");
    let start = Clock::System.timer_now();
    world.prove("a").await;
    world.poll("a", 1, 200, start).await;
    assert_eq!(world.get("b", OTHER).await.status(), StatusCode::OK);
    world.poll("a", 201, 293, start).await;
    // The entry expires while the renewal is in flight.
    world.refuse("a", StatusCode::OK, None);
    world.delay(3 * SECOND);
    world.poll("a", 293, 294, start).await;
    tokio::time::sleep_until(start + 298 * SECOND).await;
    let reply = world.get("b", LIST).await;
    assert!(reply.cache_status().contains("; hit;") && reply.cache_status().contains("detail=revalidating"));
}

#[tokio::test(start_paused = true)]
async fn many_invented_tokens_prevent_no_renewal() {
    let world = World::new("[limits]\nmax_flights = 8\n");
    let start = Clock::System.timer_now();
    world.prove("a").await;
    assert_eq!(world.poll("a", 1, 280, start).await.0, [1]);
    // Slow calls of unknown callers. Without a limit for these, they would be as many as there may be flights.
    world.delay(30 * SECOND);
    let invented = ["b", "c", "d", "e", "f", "g", "h", "i"].map(|token| world.begin(token, LIST));
    let (calls, waits) = world.poll("a", 280, 300, start).await;
    assert_eq!((calls, waits), (vec![293], vec![]));
    for reply in invented {
        assert_eq!(reply.await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn only_if_cached_renews_nothing() {
    let world = World::new("");
    let start = Clock::System.timer_now();
    world.prove("a").await;
    tokio::time::sleep_until(start + 299 * SECOND).await;
    let reply = get_in_process_with(&world.gateway, "a", LIST, &[("cache-control", "only-if-cached")]).await;
    assert!(reply.is_hit());
    sleep(SECOND / 2).await;
    assert_eq!(world.calls("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_suspended_access_key_renews_nothing() {
    for is_suspended in [false, true] {
        let world = World::new(&format!("[grants]\ndenial_ttl = \"1ms\"\n{ACCESS_KEY}"));
        let get = async |target: &str| send_signed(&world.gateway, Method::GET, target, None).await.status();
        assert_eq!(get(LIST).await, StatusCode::OK);
        sleep(290 * SECOND).await;
        // Refusals at the other service suspend the key, and leave the grants of this one.
        world.refuse("AK", StatusCode::UNAUTHORIZED, None);
        for _ in 0..if is_suspended { 3 } else { 2 } {
            assert_eq!(get("/v1/p/product").await, StatusCode::UNAUTHORIZED);
            sleep(SECOND / 2).await;
        }
        world.calls("AK");
        sleep(5 * SECOND).await;
        // A suspended key gets no response from memory either.
        let expected = if is_suspended { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
        assert_eq!(get(LIST).await, expected);
        sleep(SECOND).await;
        assert_eq!(world.calls("AK"), usize::from(!is_suspended));
    }
}
