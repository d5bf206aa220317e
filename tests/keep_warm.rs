//! Keep warm: the gateway itself sends the requests that `[[keep_warm]]` names, with a configured access key.
//!
//! Where hours pass, the runtime's clock is paused and upstream has no sockets. So all times are exact.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::config::keep_warm::calls_per_minute;
use workspace_gateway::testing::config::{Config, Mode};
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::simulator::IssuedKey;
use workspace_gateway::testing::telemetry::events::Event;
use workspace_gateway::testing::upstream::UpstreamError;

use crate::support::in_process::{ACCESS_KEY, Answers, InProcess, ListCall, send_signed};
use crate::support::signer::{Signed, entry, world_with_keys};
use crate::support::{PROJECT, Reply, config, get_in_process, within};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

const LINUX: &str = "/v2/PROJECT/products?os_type=Linux";
const WINDOWS: &str = "/v2/PROJECT/products?os_type=Windows";
const OTHER: &str = "/v2/PROJECT/products?limit=5";
const APPS: &str = "/v1/PROJECT/product";
const ALL: [&str; 3] = [LINUX, WINDOWS, APPS];
/// The scopes of `ALL`, each with the number of its requests.
const ALL_SCOPES: [(&str, usize); 2] = [("/v2/p/products", 2), ("/v1/p/product", 1)];

const PROVED: &str = "workspace_gateway_keep_warm_calls_total{result=\"proved\"}";
const FAILED: &str = "workspace_gateway_keep_warm_calls_total{result=\"failed\"}";
const REFUSED: &str = "workspace_gateway_keep_warm_calls_total{result=\"refused\"}";
const STOPPED: &str = "workspace_gateway_keep_warm_stopped_keys";
const QUEUED: &str = "workspace_gateway_upstream_calls_queued_by_class{class=\"keep-warm\",kind=\"product-list\"}";

/// The duration of a call.
const LATENCY: Duration = Duration::from_millis(300);

/// The `[[keep_warm]]` entry of an access key.
fn keep_warm(key: &str, targets: &[&str]) -> String {
    let requests: Vec<_> = targets.iter().map(|target| target.replace("PROJECT", "{project_id}")).collect();
    format!("[[keep_warm]]\naccess_key = {key:?}\nprojects = [{PROJECT:?}]\nrequests = {requests:?}\n")
}

#[derive(Clone, Copy)]
enum Answer {
    List,
    /// A list with this lifetime.
    ListFor(u32),
    Status(StatusCode),
    RetryAfter(u32),
    /// A list, or a 429 if there was another one within a minute.
    OnceAMinute,
    Unreachable,
}

/// An upstream that records its calls.
struct Services {
    answer: Mutex<Answer>,
    latency: Mutex<Duration>,
    calls: Mutex<Vec<ListCall>>,
    /// When the latest list was answered, and how many calls were throttled.
    answered: Mutex<(Option<Instant>, usize)>,
}

impl Services {
    fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn delay(&self, latency: Duration) {
        *self.latency.lock().unwrap() = latency;
    }

    fn take_calls(&self) -> Vec<ListCall> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl Answers for Services {
    async fn answer(&self, call: ListCall) -> Result<Response<Bytes>, UpstreamError> {
        self.calls.lock().unwrap().push(call.clone());
        let (answer, latency) = (*self.answer.lock().unwrap(), *self.latency.lock().unwrap());
        sleep(latency).await;
        let mut response = Response::new(Bytes::from(format!(r#"{{"products":["{}"]}}"#, call.target)));
        match answer {
            Answer::List => {}
            Answer::ListFor(seconds) => {
                let value = HeaderValue::try_from(format!("max-age={seconds}")).unwrap();
                response.headers_mut().insert("cache-control", value);
            }
            Answer::Status(status) => *response.status_mut() = status,
            Answer::RetryAfter(seconds) => {
                *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                response.headers_mut().insert("retry-after", HeaderValue::from(seconds));
            }
            Answer::OnceAMinute => {
                let mut answered = self.answered.lock().unwrap();
                if answered.0.is_some_and(|at| call.at < at + MINUTE) {
                    answered.1 += 1;
                    let body = r#"{"error_code":"APIGW.0308","error_msg":"The throttling threshold has been reached: policy user over ratelimit,limit:1,time:1 minute"}"#;
                    *response.body_mut() = Bytes::from_static(body.as_bytes());
                    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                } else {
                    answered.0 = Some(call.at);
                }
            }
            Answer::Unreachable => return Err(UpstreamError::Connect("refused".to_owned())),
        }
        response.headers_mut().insert("etag", HeaderValue::from_static("\"e\""));
        if call.is_conditional && response.status() == StatusCode::OK {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        Ok(response)
    }
}

/// A gateway in this process that keeps responses warm.
struct Warm {
    services: Arc<Services>,
    gateway: Arc<Gateway>,
    keeping: JoinHandle<()>,
}

fn config_of(settings: &str) -> Config {
    config("http://upstream.test", "http://upstream.test", &format!("{settings}{ACCESS_KEY}"))
}

impl Warm {
    fn new(settings: &str, targets: &[&str]) -> Self {
        Self::with(&config_of(&format!("{settings}\n{}", keep_warm("AK", targets))))
    }

    fn with(config: &Config) -> Self {
        let (answer, latency) = (Mutex::new(Answer::List), Mutex::new(LATENCY));
        let services = Arc::new(Services { answer, latency, calls: Mutex::default(), answered: Mutex::default() });
        let upstream = Arc::new(InProcess(Arc::clone(&services)));
        let gateway = Gateway::with_upstream(upstream, config, Clock::System, Random::seeded([7; 32])).unwrap();
        let keeping = tokio::spawn(Arc::clone(&gateway).keep_warm());
        Self { services, gateway, keeping }
    }

    /// The same, after upstream has accepted the key for a client.
    async fn started(settings: &str, targets: &[&str]) -> Self {
        let warm = Self::new(settings, targets);
        assert_eq!(warm.get(targets[0]).await.status(), StatusCode::OK);
        sleep(10 * SECOND).await;
        assert_eq!(warm.services.take_calls().len(), targets.len(), "the client's call, and those of the others");
        warm
    }

    /// Sends a client's request that is signed with the access key.
    async fn get(&self, target: &str) -> Reply {
        self.get_with(target, None).await
    }

    /// Whether a client gets a fresh response from memory. This causes no call.
    async fn is_warm(&self, target: &str) -> bool {
        self.get_with(target, Some("only-if-cached")).await.is_hit()
    }

    async fn get_with(&self, target: &str, cache_control: Option<&str>) -> Reply {
        let cache_control = cache_control.map(|value| ("cache-control", value));
        send_signed(&self.gateway, Method::GET, target, cache_control).await
    }

    /// Invalidates the responses to GET (RFC 9111 §4.4).
    async fn post(&self, path: &str) {
        assert_eq!(send_signed(&self.gateway, Method::POST, path, None).await.status(), StatusCode::OK);
    }

    fn metric(&self, series: &str) -> f64 {
        let text = self.gateway.metrics().encode().unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// How many calls `check` says are made in an hour.
    fn printed_calls(&self, scopes: &[(&str, usize)]) -> f64 {
        let active = self.gateway.active();
        let (settings, catalogue) = (active.settings(), active.catalogue());
        let scopes = scopes.iter().map(|(path, requests)| (&**catalogue.operation(path).unwrap().0, *requests));
        60.0 * calls_per_minute(scopes, settings.cache.ttl_jitter, settings.grants.grant_ttl.0)
    }
}

#[tokio::test(start_paused = true)]
async fn entries_and_grants_last_for_hours_and_cost_what_check_prints() {
    for (settings, hours, tolerance) in [
        ("", 8, 0.0),
        ("[cache]\nttl_jitter = \"10%\"\n", 8, 0.01),
        ("[cache]\nttl_jitter = \"50%\"\n", 12, 0.02),
        ("[cache]\nttl = \"1m\"\n", 1, 0.0),
        ("[cache]\nttl = \"1h\"\n", 8, 0.0),
        ("[cache]\nttl = \"1h\"\n[grants]\ngrant_ttl = \"50m\"\n", 12, 0.0),
    ] {
        let warm = Warm::started(settings, &ALL).await;
        let begin = Clock::System.now();
        for target in ALL.into_iter().cycle() {
            sleep(131 * SECOND).await;
            assert!(warm.is_warm(target).await, "{settings:?}: {target} after {:?}", Clock::System.now() - begin);
            if Clock::System.now() - begin >= hours * HOUR {
                break;
            }
        }
        let hours = (Clock::System.now() - begin).as_secs_f64() / 3_600.0;
        let calls = warm.services.take_calls();
        assert!(calls.iter().all(|call| call.is_signed && call.is_conditional), "{settings:?}");
        let (made, printed) = (calls.len() as f64, hours * warm.printed_calls(&ALL_SCOPES));
        println!("{settings:?}: {made} calls in {hours:.1} hours, {printed:.1} printed");
        // Each request may be one call ahead or behind.
        assert!((made - printed).abs() <= 3.0 + printed * tolerance, "{settings:?}: {made} calls, {printed} printed");
        assert_eq!(warm.metric(PROVED), (calls.len() + ALL.len() - 1) as f64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_requests_itself_costs_no_further_calls() {
    let warm = Warm::started("[grants]\nrenew_ahead = \"0s\"\n", &[LINUX]).await;
    let begin = Clock::System.now();
    // Each of these is a proof, and refreshes the entry.
    while Clock::System.now() - begin < 10 * HOUR {
        sleep(255 * SECOND).await;
        assert_eq!(warm.get_with(LINUX, Some("no-cache")).await.status(), StatusCode::OK);
        sleep(SECOND).await;
    }
    assert_eq!(warm.services.take_calls().len(), 141);
    assert_eq!(warm.metric(PROVED), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_invalidates_all_the_time_causes_no_more_calls_than_check_prints() {
    for settings in ["", "[cache]\nttl = \"1h\"\n", "[cache]\nttl = \"1m\"\n"] {
        let warm = Warm::started(settings, &ALL).await;
        for _ in 0..HOUR.as_secs() / 5 {
            sleep(5 * SECOND).await;
            warm.post("/v2/PROJECT/products").await;
            warm.post("/v1/PROJECT/product").await;
        }
        let (made, printed) = (warm.services.take_calls().len() as f64, warm.printed_calls(&ALL_SCOPES));
        println!("{settings:?}: {made} calls in an hour, {printed:.1} printed");
        // Each scope may be one call ahead.
        assert!(
            made <= printed + ALL_SCOPES.len() as f64 && made > 0.9 * printed,
            "{settings:?}: {made} calls, {printed} printed"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn it_starts_when_upstream_has_accepted_the_key_for_a_client() {
    let warm = Warm::new("", &ALL);
    warm.services.answer(Answer::Status(StatusCode::FORBIDDEN));
    warm.get(LINUX).await;
    sleep(5 * SECOND).await;
    assert_eq!(warm.services.take_calls().len(), 1, "a refusal is no acceptance");
    warm.services.answer(Answer::List);
    // A token does not show anything about the key.
    get_in_process(&warm.gateway, "token", LINUX).await;
    sleep(5 * SECOND).await;
    assert_eq!(warm.services.take_calls().len(), 1);
    warm.get(LINUX).await;
    sleep(5 * SECOND).await;
    let targets: Vec<_> = warm.services.take_calls().into_iter().map(|call| call.target).collect();
    assert_eq!(targets, ALL, "the client's call, and the two others, one after the other");
    assert_eq!(warm.metric(PROVED), 2.0);
}

#[tokio::test(start_paused = true)]
async fn without_a_client_there_is_one_try_within_five_minutes() {
    for is_refused in [false, true] {
        let warm = Warm::new("", &ALL);
        if is_refused {
            warm.services.answer(Answer::Status(StatusCode::UNAUTHORIZED));
        }
        let begun = Clock::System.now();
        sleep(5 * MINUTE).await;
        let calls = warm.services.take_calls();
        let first = calls[0].at - begun;
        // The moment is random, but the same for the same seed.
        assert!(SECOND < first && first < 299 * SECOND, "{first:?}");
        assert_eq!(calls.len(), if is_refused { 1 } else { ALL.len() });
        sleep(10 * HOUR).await;
        assert_eq!(warm.services.take_calls().is_empty(), is_refused);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_stops_it_until_a_clients_later_call_is_accepted() {
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        let warm = Warm::started("", &ALL).await;
        warm.services.answer(Answer::Status(status));
        sleep(10 * HOUR).await;
        assert_eq!(warm.services.take_calls().len(), 1, "{status}");
        assert_eq!((warm.metric(REFUSED), warm.metric(STOPPED)), (1.0, 1.0));
        let events = warm.gateway.observer().events().recent();
        let stopped = events.iter().find(|it| it.event == Event::KeepWarmStopped).unwrap();
        assert!(stopped.what.contains("AK") && stopped.what.contains(status.as_str()), "{}", stopped.what);
        assert_eq!((stopped.count, stopped.project.as_deref().is_some()), (1, true));
        // A client's refused call changes nothing.
        assert_eq!(warm.get(WINDOWS).await.status(), status);
        sleep(HOUR).await;
        assert_eq!(warm.services.take_calls().len(), 1, "{status}");
        warm.services.answer(Answer::List);
        assert_eq!(warm.get(WINDOWS).await.status(), StatusCode::OK);
        sleep(10 * MINUTE).await;
        assert!(warm.is_warm(LINUX).await && warm.is_warm(APPS).await, "{status}");
        assert_eq!(warm.metric(STOPPED), 0.0);
        warm.services.take_calls();
    }
}

#[tokio::test(start_paused = true)]
async fn it_never_makes_the_trial_call_of_a_suspended_key() {
    let warm = Warm::started("[grants]\ndenial_ttl = \"1ms\"\n", &ALL).await;
    warm.services.answer(Answer::Status(StatusCode::UNAUTHORIZED));
    for _ in 0..3 {
        warm.get_with(LINUX, Some("no-cache")).await;
        sleep(SECOND).await;
    }
    assert_eq!(warm.services.take_calls().len(), 3);
    // The suspension ends after five minutes. An operator may end it, too.
    for _ in 0..10 {
        sleep(HOUR).await;
        warm.gateway.retry_suspended_keys();
        warm.gateway.purge(&PurgeSelection::default());
    }
    assert!(warm.services.take_calls().is_empty() && warm.metric(REFUSED) == 0.0);
    warm.services.answer(Answer::List);
    assert_eq!(warm.get(LINUX).await.status(), StatusCode::OK, "the trial call of a client");
    sleep(5 * SECOND).await;
    assert_eq!(warm.services.take_calls().len(), ALL.len());
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_of_a_client_stops_it_as_well() {
    let warm = Warm::started("", &ALL).await;
    warm.services.answer(Answer::Status(StatusCode::UNAUTHORIZED));
    assert_eq!(warm.get(OTHER).await.status(), StatusCode::UNAUTHORIZED);
    sleep(10 * SECOND).await;
    assert_eq!((warm.metric(STOPPED), warm.metric(REFUSED)), (1.0, 0.0));
    let events = warm.gateway.observer().events().recent();
    let stopped: Vec<_> = events.iter().filter(|it| it.event == Event::KeepWarmStopped).collect();
    assert!(stopped.len() == 1 && stopped[0].count == 1 && stopped[0].what.contains("AK"), "{stopped:?}");
    warm.services.answer(Answer::List);
    warm.services.take_calls();
    sleep(HOUR).await;
    assert_eq!((warm.metric(STOPPED), warm.services.take_calls().len()), (1.0, 0));
    assert_eq!(warm.get(LINUX).await.status(), StatusCode::OK);
    sleep(5 * SECOND).await;
    assert_eq!((warm.metric(STOPPED), warm.services.take_calls().len()), (0.0, ALL.len()));
}

#[tokio::test(start_paused = true)]
async fn a_corrected_secret_waits_for_a_client_and_counts_as_stopped_until_then() {
    let with_secret = |secret: &str| {
        let key = ACCESS_KEY.replace("\"s\"", &format!("{secret:?}"));
        config("http://upstream.test", "http://upstream.test", &format!("{}{key}", keep_warm("AK", &ALL)))
    };
    let warm = Warm::with(&with_secret("wrong"));
    assert_eq!(warm.metric(STOPPED), 0.0, "it has not been tried");
    warm.services.answer(Answer::Status(StatusCode::UNAUTHORIZED));
    sleep(5 * MINUTE).await;
    assert_eq!((warm.metric(STOPPED), warm.services.take_calls().len()), (1.0, 1));
    warm.gateway.reload(&with_secret("s")).unwrap();
    warm.services.answer(Answer::List);
    sleep(HOUR).await;
    assert_eq!((warm.metric(STOPPED), warm.services.take_calls().len()), (1.0, 0));
    assert_eq!(warm.get(LINUX).await.status(), StatusCode::OK);
    sleep(5 * SECOND).await;
    assert_eq!((warm.metric(STOPPED), warm.services.take_calls().len()), (0.0, ALL.len()));
}

#[tokio::test(start_paused = true)]
async fn after_failures_it_waits_longer_and_longer() {
    let warm = Warm::started("", &ALL).await;
    for (answer, seconds) in
        [(Answer::Unreachable, [5, 10, 20, 40, 60, 60, 60]), (Answer::RetryAfter(50), [50, 50, 50, 50, 60, 60, 60])]
    {
        warm.services.answer(answer);
        sleep(20 * MINUTE).await;
        let calls = warm.services.take_calls();
        let gaps: Vec<_> = calls.windows(2).map(|two| (two[1].at - two[0].at - LATENCY).as_secs()).collect();
        assert_eq!(gaps[..7], seconds, "{gaps:?}");
        assert!(gaps[7..].iter().all(|gap| *gap == 60), "{gaps:?}");
        warm.services.answer(Answer::List);
        sleep(2 * MINUTE).await;
        for target in ALL {
            assert!(warm.is_warm(target).await, "{target}");
        }
        warm.services.take_calls();
    }
    assert!(warm.metric(FAILED) > 30.0);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_not_served_to_others_and_begins_no_backoff_for_them() {
    let warm = Warm::started("[cache]\nttl = \"1m\"\n", &[LINUX]).await;
    get_in_process(&warm.gateway, "token", LINUX).await;
    warm.services.answer(Answer::RetryAfter(60));
    sleep(70 * SECOND).await;
    assert!(warm.metric(FAILED) >= 1.0);
    warm.services.answer(Answer::List);
    warm.services.take_calls();
    let reply = get_in_process(&warm.gateway, "token", LINUX).await;
    assert_eq!(reply.status(), StatusCode::OK);
    sleep(SECOND).await;
    assert_eq!(warm.services.take_calls().len(), 1, "its caller revalidates: {reply:?}");
}

#[tokio::test(start_paused = true)]
async fn a_404_is_not_repeated_to_others() {
    let warm = Warm::started("[cache]\nttl = \"1m\"\nnegative_ttl = \"1m\"\n", &[LINUX]).await;
    get_in_process(&warm.gateway, "token", LINUX).await;
    warm.services.answer(Answer::Status(StatusCode::NOT_FOUND));
    sleep(65 * SECOND).await;
    assert_eq!(warm.metric(FAILED), 1.0);
    let reply = get_in_process(&warm.gateway, "token", LINUX).await;
    assert_eq!(reply.status(), StatusCode::OK, "{reply:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_of_upstream_counts_but_no_request_is_sent_more_than_twice_a_minute() {
    for (lifetime, hourly) in [(20_000, 14), (200, 20), (40, 100), (31, 120), (10, 14), (0, 14)] {
        let warm = Warm::new("[cache]\nttl_jitter = \"10%\"\n[grants]\ngrant_ttl = \"10h\"\n", &[LINUX]);
        warm.services.answer(Answer::ListFor(lifetime));
        warm.get(LINUX).await;
        sleep(HOUR).await;
        warm.services.take_calls();
        sleep(10 * HOUR).await;
        let calls = warm.services.take_calls().len();
        let expected = if lifetime == 20_000 { 1 } else { 10 * hourly };
        assert!(calls.abs_diff(expected) <= expected / 20 + 1, "{lifetime} s: {calls}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_while_the_cache_is_switched_off() {
    let warm = Warm::started("", &ALL).await;
    warm.gateway.set_mode(Mode::Bypass);
    sleep(HOUR).await;
    assert!(warm.services.take_calls().is_empty());
    warm.gateway.set_mode(Mode::Cache);
    sleep(5 * SECOND).await;
    assert_eq!(warm.services.take_calls().len(), ALL.len());
}

#[tokio::test(start_paused = true)]
async fn a_reload_takes_effect_at_once() {
    let warm = Warm::started("", &[LINUX]).await;
    let reload = |targets: &[&str]| {
        let entry = if targets.is_empty() { String::new() } else { keep_warm("AK", targets) };
        warm.gateway.reload(&config_of(&entry)).unwrap();
    };
    reload(&[LINUX, APPS]);
    sleep(5 * SECOND).await;
    assert_eq!(warm.services.take_calls().len(), 1, "the added request");
    reload(&[]);
    sleep(10 * HOUR).await;
    assert!(warm.services.take_calls().is_empty());
    reload(&[APPS]);
    sleep(5 * SECOND).await;
    assert_eq!(warm.services.take_calls().len(), 1, "the key has been accepted before");
}

#[tokio::test(start_paused = true)]
async fn a_purge_is_followed_by_calls_and_the_end_by_none() {
    let warm = Warm::started("", &ALL).await;
    // Not shortly before the gateway looks in any case, every 10 s.
    sleep(63 * SECOND).await;
    warm.gateway.purge(&PurgeSelection::default());
    sleep(2 * SECOND).await;
    assert_eq!(warm.services.take_calls().len(), ALL.len());
    warm.keeping.abort();
    assert!(warm.keeping.await.unwrap_err().is_cancelled());
    sleep(10 * HOUR).await;
    assert!(warm.services.take_calls().is_empty());
    assert_eq!(Arc::strong_count(&warm.gateway), 1);
}

#[tokio::test(start_paused = true)]
async fn a_purge_during_a_call_is_followed_by_one_more_at_once() {
    let warm = Warm::started("", &[LINUX]).await;
    warm.services.delay(4 * SECOND);
    sleep(262 * SECOND).await;
    assert_eq!(warm.services.take_calls().len(), 1, "it is in flight");
    warm.gateway.purge(&PurgeSelection::default());
    sleep(8 * SECOND).await;
    assert_eq!(warm.services.take_calls().len(), 1);
    assert!(warm.is_warm(LINUX).await);
    // One purge after the other costs no more than two calls in 30 s.
    for _ in 0..HOUR.as_secs() {
        sleep(SECOND).await;
        warm.gateway.purge(&PurgeSelection::default());
    }
    let calls = warm.services.take_calls().len();
    assert!((100..=110).contains(&calls), "{calls}");
    sleep(35 * SECOND).await;
    assert!(warm.is_warm(LINUX).await);
}

#[tokio::test(start_paused = true)]
async fn access_keys_do_not_wait_for_each_other() {
    let settings = "[upstream]\nmax_calls = 16\nmax_calls_per_caller = 1\n";
    let other = format!("{}{}", ACCESS_KEY.replace("AK", "BK"), keep_warm("BK", &[WINDOWS]));
    let warm = Warm::new(&format!("{settings}{other}"), &[LINUX]);
    sleep(5 * MINUTE).await;
    warm.services.take_calls();
    warm.services.delay(20 * SECOND);
    sleep(MINUTE).await;
    warm.gateway.purge(&PurgeSelection::default());
    sleep(SECOND).await;
    let credentials: BTreeSet<_> = warm.services.take_calls().into_iter().map(|call| call.credential).collect();
    assert_eq!(credentials, BTreeSet::from(["AK".to_owned(), "BK".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_upstream_for_one_operation_does_not_hold_back_the_others() {
    let quota = "[[quota]]\nservice = \"workspace\"\npolicy = \"api\"\nlimit = 1\nwindow = \"1h\"\n";
    let warm = Warm::started(quota, &[LINUX, APPS]).await;
    for _ in 0..3 {
        sleep(17 * MINUTE).await;
        assert!(warm.is_warm(APPS).await && !warm.is_warm(LINUX).await);
    }
    assert_eq!(warm.metric(FAILED), 0.0);
    sleep(10 * MINUTE).await;
    let calls = warm.services.take_calls();
    assert_eq!(calls.iter().filter(|call| call.target == LINUX).count(), 1, "when its window has passed");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_a_slot_does_not_hold_back_the_others_of_its_key() {
    let quota = "[[quota]]\nservice = \"workspace\"\npolicy = \"api\"\nlimit = 3\nwindow = \"1h\"\n";
    let settings = format!("[upstream]\nmax_calls = 1\n[grants]\nrenew_ahead = \"0s\"\n{quota}");
    let warm = Warm::started(&settings, &[LINUX, APPS]).await;
    let client = |target| {
        let gateway = Arc::clone(&warm.gateway);
        tokio::spawn(async move { send_signed(&gateway, Method::GET, target, None).await.status() })
    };
    sleep(245 * SECOND).await;
    warm.services.delay(25 * SECOND);
    let slow = client(WINDOWS);
    sleep(SECOND).await;
    warm.services.delay(LATENCY);
    sleep(19 * SECOND).await;
    assert_eq!(warm.metric(QUEUED), 1.0, "the call for LINUX waits for the slot");
    let last = client(OTHER);
    assert_eq!((slow.await.unwrap(), last.await.unwrap()), (StatusCode::OK, StatusCode::OK));
    // Now the limit is reached for the rest of the hour.
    for _ in 0..3 {
        sleep(15 * MINUTE).await;
        assert!(warm.is_warm(APPS).await && !warm.is_warm(LINUX).await);
    }
    assert_eq!(warm.metric(FAILED), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_learnt_limit_that_holds_back_nothing_else_stays_known() {
    let settings = "[cache]\nttl = \"1m\"\n";
    let warm = Warm::started(settings, &[LINUX, WINDOWS, OTHER]).await;
    warm.services.answer(Answer::OnceAMinute);
    sleep(59 * MINUTE).await;
    let (calls, throttled) = (warm.services.take_calls().len(), warm.services.answered.lock().unwrap().1);
    println!("{calls} calls, {throttled} throttled");
    assert!(calls >= 55 && throttled <= 2, "{calls} calls, {throttled} throttled");
}

#[tokio::test(start_paused = true)]
async fn its_calls_wait_behind_those_of_clients() {
    for is_refreshed in [false, true] {
        let settings = "[upstream]\nmax_calls = 1\nmax_calls_per_caller = 1\n[grants]\nrenew_ahead = \"0s\"\n";
        let warm = Warm::started(settings, &[LINUX]).await;
        // One slot, and more clients than it can serve in time.
        let mut clients = JoinSet::new();
        sleep(255 * SECOND).await;
        for number in 0..100 {
            let gateway = Arc::clone(&warm.gateway);
            clients.spawn(async move { get_in_process(&gateway, &format!("token-{number}"), WINDOWS).await.status() });
        }
        sleep(16 * SECOND).await;
        assert_eq!(warm.metric(QUEUED), 1.0);
        // A client with the same key does not wait for it, and may make the call unnecessary.
        let (target, cache_control) = if is_refreshed { (LINUX, Some("no-cache")) } else { (OTHER, None) };
        assert_eq!(warm.get_with(target, cache_control).await.status(), StatusCode::OK);
        assert_eq!(warm.metric(QUEUED), 1.0);
        while let Some(status) = clients.join_next().await {
            assert_eq!(status.unwrap(), StatusCode::OK);
        }
        sleep(5 * SECOND).await;
        let calls = warm.services.take_calls();
        assert_eq!(calls.len(), 102 - usize::from(is_refreshed));
        let is_last = calls[calls.len() - 1].target.contains("Linux");
        assert_eq!((is_last, warm.metric(PROVED)), if is_refreshed { (false, 0.0) } else { (true, 1.0) });
    }
}

#[tokio::test(start_paused = true)]
async fn many_invented_tokens_keep_nothing_from_being_kept_warm() {
    let warm = Warm::started("[limits]\nmax_flights = 8\n", &[LINUX]).await;
    sleep(235 * SECOND).await;
    // Slow calls of unknown callers. Without a limit for these, they would be as many as there may be flights.
    warm.services.delay(30 * SECOND);
    let mut clients = JoinSet::new();
    for number in 0..8 {
        let gateway = Arc::clone(&warm.gateway);
        clients.spawn(async move { get_in_process(&gateway, &format!("token-{number}"), LINUX).await });
    }
    sleep(25 * SECOND).await;
    let calls = warm.services.take_calls();
    assert_eq!(calls.iter().filter(|call| call.is_signed).count(), 1, "{calls:#?}");
}

#[tokio::test]
async fn the_requests_are_signed_and_have_constant_headers_only() {
    let settings = |[key]: &[IssuedKey; 1]| {
        format!("[cache]\nkeyed_headers = [\"x-language\"]\n{}{}", entry(key, ""), keep_warm(&key.id, &ALL))
    };
    let (world, [key]) = world_with_keys(|simulator| [simulator.temporary_access_key(PROJECT)], settings).await;
    assert_eq!(world.upstream_calls(), 0);
    let reply = Signed::get(&world, &key, LINUX).with("x-language", "zh-cn").send(&world).await;
    assert_eq!(reply.status(), StatusCode::OK);
    within(world.simulator.wait_for_requests(1 + ALL.len())).await;
    world.until_metric(PROVED, ALL.len() as f64).await;
    for seen in &world.simulator.requests_seen()[1..] {
        let mut names: Vec<_> = seen.headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        let expected = [
            "accept",
            "accept-encoding",
            "authorization",
            "content-type",
            "host",
            "user-agent",
            "via",
            "x-project-id",
            "x-request-id",
            "x-sdk-date",
            "x-security-token",
        ];
        assert_eq!(names, expected);
    }
    assert!(Signed::get(&world, &key, LINUX).send(&world).await.is_hit());
    let log_and_status = world.http.get(&world.admin_url("/status")).await.json();
    assert_eq!(log_and_status["keep_warm"]["calls"]["proved"], 3, "{log_and_status}");
    // The server ends it.
    world.server.stop().await;
}
