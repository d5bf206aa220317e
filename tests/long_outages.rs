//! Outages of hours, of each kind, while callers send a request every few seconds or minutes. Proved callers get stale
//! responses exactly as long as the settings say, and then the error. After the outage everything is fresh again.
//!
//! The runtime's clock is paused, so hours pass at once and all times are exact.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use tokio::task::JoinSet;
use tokio::time::sleep;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::upstream::UpstreamError;

use crate::support::in_process::{Answers, InProcess, ListCall};
use crate::support::{Reply, config, get_in_process};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

const TTL: Duration = Duration::from_secs(300);
const BACKOFF: Duration = Duration::from_secs(5);
const STALE_IF_SLOW: Duration = SECOND;
const RENEW_AHEAD: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);
/// The `Retry-After` of 503 and 429.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// The duration of a successful call.
const LATENCY: Duration = Duration::from_millis(200);

/// The requests that each caller sends in turn. The first two are in one scope.
const TARGETS: [&str; 4] = [
    "/v2/PROJECT/products?os_type=Linux",
    "/v2/PROJECT/products?os_type=Windows",
    "/v2/PROJECT/products/sharer",
    "/v1/PROJECT/product",
];

/// The request intervals of the callers. The grants of the slowest caller lapse before the outage, too.
const INTERVALS: [Duration; 6] = [
    SECOND,
    Duration::from_secs(2),
    Duration::from_secs(7),
    Duration::from_secs(20),
    Duration::from_secs(61),
    Duration::from_secs(290),
];
/// A caller that sends requests only after the start of the outage.
const UNPROVED: usize = INTERVALS.len();

/// The state of upstream.
#[derive(Clone, Copy, Debug, PartialEq)]
enum UpstreamState {
    Healthy,
    /// Connections are refused.
    Unreachable,
    /// 503 with `Retry-After`.
    Unavailable,
    /// 429 with `Retry-After`.
    Throttling,
    /// There is no response.
    Silent,
}

impl UpstreamState {
    /// The backoff after a failure.
    fn backoff(self) -> Duration {
        match self {
            Self::Unavailable | Self::Throttling => RETRY_AFTER,
            Self::Healthy | Self::Unreachable | Self::Silent => BACKOFF,
        }
    }

    /// The duration of a failing call.
    fn call_duration(self) -> Duration {
        if self == Self::Silent { ANSWER_TIMEOUT } else { Duration::ZERO }
    }

    /// The response to callers that get nothing stale: status, code, and the beginning of the message.
    fn failure(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Healthy => (StatusCode::OK, "", ""),
            Self::Unreachable => (
                StatusCode::BAD_GATEWAY,
                "APIGW.0201",
                "workspace-gateway: Backend unavailable: cannot connect to upstream.test: refused",
            ),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "WKS.00050902", "The service is unavailable"),
            Self::Throttling => {
                (StatusCode::TOO_MANY_REQUESTS, "APIGW.0308", "The throttling threshold has been reached")
            }
            Self::Silent => (
                StatusCode::GATEWAY_TIMEOUT,
                "APIGW.0201",
                "workspace-gateway: Backend timeout: no complete response in time",
            ),
        }
    }
}

/// A call that the gateway has sent.
#[derive(Clone, Copy, Debug)]
struct Call {
    caller: usize,
    key: usize,
    sent: Instant,
    is_good: bool,
}

/// Upstream: both services.
struct Services {
    state: Mutex<UpstreamState>,
    calls: Mutex<Vec<Call>>,
}

impl Answers for Services {
    async fn answer(&self, call: ListCall) -> Result<Response<Bytes>, UpstreamError> {
        let state = *self.state.lock().unwrap();
        let caller = call.credential.parse().unwrap();
        let key = TARGETS.iter().position(|target| *target == call.target).unwrap();
        let is_good = state == UpstreamState::Healthy;
        self.calls.lock().unwrap().push(Call { caller, key, sent: call.at, is_good });
        let (status, code, message) = state.failure();
        let mut refusal = Response::new(Bytes::from(format!(r#"{{"error_code":"{code}","error_msg":"{message}"}}"#)));
        *refusal.status_mut() = status;
        match state {
            UpstreamState::Healthy => {
                sleep(LATENCY).await;
                Ok(Response::new(list(key)))
            }
            UpstreamState::Unreachable => Err(UpstreamError::Connect("upstream.test: refused".to_owned())),
            UpstreamState::Unavailable | UpstreamState::Throttling => {
                refusal.headers_mut().insert("retry-after", HeaderValue::from(RETRY_AFTER.as_secs()));
                Ok(refusal)
            }
            UpstreamState::Silent => {
                sleep(ANSWER_TIMEOUT).await;
                Err(UpstreamError::Timeout)
            }
        }
    }
}

fn list(key: usize) -> Bytes {
    format!(r#"{{"products":["of {key}"]}}"#).into()
}

/// The scope of a key, as a path.
fn scope(key: usize) -> &'static str {
    TARGETS[key].split('?').next().unwrap()
}

/// A request of a caller and its response.
#[derive(Debug)]
struct Exchange {
    caller: usize,
    key: usize,
    start: Instant,
    end: Instant,
    reply: Reply,
}

/// An outage and the settings during it.
#[derive(Clone, Copy)]
struct Outage {
    state: UpstreamState,
    stale_if_error: Duration,
    grant_ttl: Duration,
    outage_grace: Duration,
    duration: Duration,
}

/// What happened before, during and after an outage.
struct History {
    outage: Outage,
    outage_start: Instant,
    outage_end: Instant,
    calls: Vec<Call>,
    /// The successful calls.
    good: Vec<Call>,
    exchanges: Vec<Exchange>,
}

impl Outage {
    /// With the default settings.
    fn by_default(state: UpstreamState) -> Self {
        Self { state, stale_if_error: HOUR, grant_ttl: 5 * MINUTE, outage_grace: HOUR, duration: 2 * HOUR }
    }

    async fn run(self) -> History {
        let settings = format!(
            "[cache]\nttl_jitter = \"0%\"\nstale_if_error = \"{}s\"\n[grants]\n\
             grant_ttl = \"{}s\"\noutage_grace = \"{}s\"\n",
            self.stale_if_error.as_secs(),
            self.grant_ttl.as_secs(),
            self.outage_grace.as_secs()
        );
        let services = Arc::new(Services { state: Mutex::new(UpstreamState::Healthy), calls: Mutex::default() });
        let upstream = Arc::new(InProcess(Arc::clone(&services)));
        let config = config("http://upstream.test", "http://upstream.test", &settings);
        let gateway = Gateway::with_upstream(upstream, &config, Clock::System, Random::System).unwrap();
        let exchanges = Arc::new(Mutex::new(Vec::new()));
        let mut clients = JoinSet::new();
        for (caller, interval) in INTERVALS.into_iter().enumerate() {
            clients.spawn(send_repeatedly(Arc::clone(&gateway), caller, interval, Arc::clone(&exchanges)));
        }
        // Half a second off, so that the outage does not start at the time of a request.
        sleep(40 * MINUTE + SECOND / 2).await;
        *services.state.lock().unwrap() = self.state;
        let outage_start = Clock::System.now();
        clients.spawn(send_repeatedly(gateway, UNPROVED, MINUTE, Arc::clone(&exchanges)));
        sleep(self.duration).await;
        *services.state.lock().unwrap() = UpstreamState::Healthy;
        let outage_end = Clock::System.now();
        sleep(30 * MINUTE).await;
        clients.shutdown().await;
        let calls = services.calls.lock().unwrap().clone();
        let good = calls.iter().filter(|call| call.is_good).copied().collect();
        let exchanges = std::mem::take(&mut *exchanges.lock().unwrap());
        History { outage: self, outage_start, outage_end, calls, good, exchanges }
    }
}

async fn send_repeatedly(
    gateway: Arc<Gateway>,
    caller: usize,
    interval: Duration,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
) {
    for key in (0..TARGETS.len()).cycle() {
        let start = Clock::System.now();
        let reply = get_in_process(&gateway, &caller.to_string(), TARGETS[key]).await;
        exchanges.lock().unwrap().push(Exchange { caller, key, start, end: Clock::System.now(), reply });
        sleep(interval.saturating_sub(Clock::System.now() - start)).await;
    }
}

impl History {
    /// When the call of the caller's latest proof before `at` was sent, in the scope of a key.
    fn proof(&self, caller: usize, key: usize, at: Instant) -> Option<Instant> {
        self.latest(at, |call| call.caller == caller && scope(call.key) == scope(key))
    }

    /// When the call was sent whose response was stored at `at`.
    fn stored(&self, key: usize, at: Instant) -> Option<Instant> {
        self.latest(at, |call| call.key == key)
    }

    fn latest(&self, at: Instant, matches: impl Fn(&Call) -> bool) -> Option<Instant> {
        let completed = self.good.partition_point(|call| call.sent + LATENCY <= at);
        self.good[..completed].iter().rfind(|call| matches(call)).map(|call| call.sent)
    }

    /// Until when a caller must get a stored response, as of `now`. A lapsed grant shows no entry that was requested
    /// after its end.
    fn served_until(&self, caller: usize, key: usize, now: Instant) -> Option<Instant> {
        let (stored, proved) = (self.stored(key, now)?, self.proof(caller, key, now)?);
        let end = proved + self.outage.grant_ttl;
        let until = (stored + TTL + self.outage.stale_if_error).min(proved + self.outage.outage_grace);
        (now < end || stored <= end).then_some(until)
    }

    fn is_granted(&self, caller: usize, key: usize, now: Instant) -> bool {
        self.proof(caller, key, now).is_some_and(|proved| now < proved + self.outage.grant_ttl)
    }

    /// The exchanges during the outage.
    fn during_outage(&self) -> impl Iterator<Item = &Exchange> {
        self.exchanges.iter().filter(|exchange| self.outage_start <= exchange.start && exchange.end < self.outage_end)
    }

    /// Each caller gets a stored response as long as the settings say, and then the error.
    fn assert_stale_responses(&self) {
        let mut counts = HashMap::<_, usize>::new();
        for exchange in self.during_outage() {
            let until = self.served_until(exchange.caller, exchange.key, exchange.end);
            let is_served = until.is_some_and(|until| exchange.end < until);
            let after = exchange.end - self.outage_start;
            if is_served {
                assert_eq!(
                    (exchange.reply.status(), exchange.reply.body()),
                    (StatusCode::OK, &list(exchange.key)),
                    "{after:?}: {exchange:?}"
                );
            } else {
                self.assert_failure(exchange, after);
            }
            *counts.entry((exchange.caller == UNPROVED, is_served)).or_default() += 1;
        }
        assert_eq!(counts.get(&(true, true)), None, "an unproved caller gets no stored response");
        for some in [(false, true), (false, false), (true, false)] {
            assert!(counts[&some] > 50, "{counts:?}");
        }
    }

    fn assert_failure(&self, exchange: &Exchange, after: Duration) {
        let (status, code, message) = self.outage.state.failure();
        assert_eq!(exchange.reply.status(), status, "{after:?}: {exchange:?}");
        let body: serde_json::Value = exchange.reply.json();
        assert_eq!(body["error_code"], code, "{after:?}: {exchange:?}");
        assert!(body["error_msg"].as_str().unwrap().starts_with(message), "{after:?}: {exchange:?}");
    }

    /// A granted caller with a stored response waits at most `stale_if_slow`. Others wait at most a second longer than
    /// a call, and perhaps first `stale_if_slow` for another call of theirs.
    fn assert_durations(&self) {
        for exchange in self.during_outage() {
            let is_granted = self.is_granted(exchange.caller, exchange.key, exchange.start + STALE_IF_SLOW);
            let until = self.served_until(exchange.caller, exchange.key, exchange.start);
            let is_served = until.is_some_and(|until| exchange.start + STALE_IF_SLOW < until);
            let limit = if is_granted && is_served { STALE_IF_SLOW } else { ANSWER_TIMEOUT + SECOND + STALE_IF_SLOW };
            assert!(exchange.end - exchange.start <= limit, "{:?}: {exchange:?}", exchange.end - self.outage_start);
        }
    }

    /// While stale responses are served, the gateway backs off between a failure and the next call.
    fn assert_few_calls(&self) {
        let Outage { state, .. } = self.outage;
        let is_served = |call: &&Call| {
            let until = self.served_until(call.caller, call.key, call.sent);
            (self.outage_start..self.outage_end).contains(&call.sent) && until.is_some_and(|until| call.sent < until)
        };
        let calls: Vec<_> = self.calls.iter().filter(is_served).collect();
        // A caller whose grant lapses makes one more call, regardless of the backoff.
        let (granted, lapsed): (Vec<&Call>, Vec<&Call>) =
            calls.iter().partition(|call| self.is_granted(call.caller, call.key, call.sent));
        let gap = |before: &Call, after: &Call| after.sent - (before.sent + state.call_duration());
        for (n, call) in lapsed.iter().enumerate() {
            if let Some(before) = lapsed[..n].iter().rfind(|one| (one.caller, one.key) == (call.caller, call.key)) {
                assert!(gap(before, call) >= state.backoff(), "{before:?}, {call:?}");
            }
        }
        // So does one whose grant ends soon, for itself, perhaps beside a refresh for all.
        let ends_soon = |call: &&Call| {
            let proof = self.proof(call.caller, call.key, call.sent);
            proof.is_some_and(|proof| proof + self.outage.grant_ttl <= call.sent + RENEW_AHEAD)
        };
        let (renewing, granted): (Vec<&Call>, Vec<&Call>) = granted.into_iter().partition(ends_soon);
        for (n, call) in renewing.iter().enumerate() {
            let is_same = |one: &&&Call| (one.caller, scope(one.key)) == (call.caller, scope(call.key));
            let lately = renewing[..n].iter().filter(is_same).filter(|one| gap(one, call) < BACKOFF);
            assert!(lately.count() < 2, "{call:?}");
        }
        for (n, call) in granted.iter().enumerate() {
            let before = &granted[..n];
            match state {
                // The scope backs off for other callers after the same response to a second caller.
                UpstreamState::Throttling | UpstreamState::Unavailable => {
                    let mut lately = before
                        .iter()
                        .filter(|one| scope(one.key) == scope(call.key) && gap(one, call) < state.backoff());
                    assert!(lately.all(|one| one.caller != call.caller), "{call:?}");
                    assert!(lately.count() < 2, "{call:?}");
                }
                _ => {
                    let mut lately =
                        before.iter().filter(|one| one.key == call.key && gap(one, call) < state.backoff());
                    assert!(lately.all(|one| one.caller != call.caller), "{call:?}");
                    assert!(lately.count() < 2, "{call:?}");
                }
            }
        }
        let stale_responses = self.during_outage().filter(|exchange| exchange.reply.status() == StatusCode::OK).count();
        println!("{state:?}: {stale_responses} stale responses cost {} + {} calls", granted.len(), lapsed.len());
        assert!(calls.len() < stale_responses);
    }

    /// After the outage nobody gets an error. After the last backoff nobody gets a response from before.
    fn assert_back_to_normal(&self) {
        // A call from the outage may still wait.
        let recovered = self.outage_end + self.outage.state.call_duration();
        let normal = recovered + self.outage.state.backoff();
        let mut counted = 0;
        for exchange in self.exchanges.iter().filter(|exchange| exchange.start >= recovered) {
            let after = exchange.end - self.outage_end;
            assert_eq!(
                (exchange.reply.status(), exchange.reply.body()),
                (StatusCode::OK, &list(exchange.key)),
                "{after:?}: {exchange:?}"
            );
            if exchange.start >= normal {
                let age = exchange.reply.headers().get("age").map(|age| age.to_str().unwrap().parse::<u64>().unwrap());
                assert!(age.is_none_or(|age| age <= after.as_secs()), "{after:?}: {exchange:?}");
                counted += 1;
            }
        }
        assert!(counted > 100);
    }
}

async fn assert_all(outage: Outage) {
    let history = outage.run().await;
    history.assert_stale_responses();
    history.assert_durations();
    history.assert_few_calls();
    history.assert_back_to_normal();
}

#[tokio::test(start_paused = true)]
async fn limits_hold_while_upstream_is_unreachable_for_hours() {
    assert_all(Outage::by_default(UpstreamState::Unreachable)).await;
}

#[tokio::test(start_paused = true)]
async fn limits_hold_while_upstream_answers_503_for_hours() {
    assert_all(Outage::by_default(UpstreamState::Unavailable)).await;
}

#[tokio::test(start_paused = true)]
async fn limits_hold_while_upstream_answers_429_for_hours() {
    assert_all(Outage::by_default(UpstreamState::Throttling)).await;
}

#[tokio::test(start_paused = true)]
async fn limits_hold_while_upstream_is_silent_for_hours() {
    assert_all(Outage::by_default(UpstreamState::Silent)).await;
}

#[tokio::test(start_paused = true)]
async fn granted_callers_do_not_notice_an_outage_of_half_an_hour() {
    for state in
        [UpstreamState::Unreachable, UpstreamState::Unavailable, UpstreamState::Throttling, UpstreamState::Silent]
    {
        let history = Outage { duration: HOUR / 2, ..Outage::by_default(state) }.run().await;
        let was_granted =
            |exchange: &&Exchange| history.is_granted(exchange.caller, exchange.key, history.outage_start);
        for exchange in history.during_outage().filter(was_granted) {
            assert_eq!(
                (exchange.reply.status(), exchange.reply.body()),
                (StatusCode::OK, &list(exchange.key)),
                "{state:?}: {exchange:?}"
            );
        }
        history.assert_few_calls();
        history.assert_back_to_normal();
    }
}

#[tokio::test(start_paused = true)]
async fn limits_hold_with_a_long_grant_and_a_silent_upstream() {
    assert_all(Outage { grant_ttl: HOUR, ..Outage::by_default(UpstreamState::Silent) }).await;
}

#[tokio::test(start_paused = true)]
async fn limits_hold_if_stale_if_error_ends_before_outage_grace() {
    let outage =
        Outage { stale_if_error: HOUR / 2, outage_grace: 2 * HOUR, ..Outage::by_default(UpstreamState::Unreachable) };
    assert_all(outage).await;
}

#[tokio::test(start_paused = true)]
async fn limits_hold_if_outage_grace_ends_before_stale_if_error() {
    let outage =
        Outage { stale_if_error: 3 * HOUR, outage_grace: HOUR / 2, ..Outage::by_default(UpstreamState::Silent) };
    assert_all(outage).await;
}
