//! What a lapsed caller gets when its own call fails. After a local failure, or one that the caller causes, it gets nothing
//! stored. After an outside failure it gets nothing that is newer than its grant.
//!
//! The caller's token is revoked. Its grant ended at 300 s, five minutes after the call that proved it.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio::time::advance;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;
use workspace_gateway::testing::simulator::Simulator;
use workspace_gateway::testing::upstream::UpstreamError;

use crate::support::raw_upstream::{RawUpstream, sends};
use crate::support::{
    Call, PROJECT, PROOF, Reply, Scripted, World, config, get_in_process, get_in_process_with, handle, within,
};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const ANOTHER: &str = "/v2/PROJECT/products?os_type=Other";

/// When the stored entry was requested, by another caller that has a grant.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    /// At 250 s, before the revoked caller's grant ended.
    Before,
    /// At 305 s, after that.
    After,
}

impl Stored {
    const BOTH: [Self; 2] = [Self::Before, Self::After];

    fn second(self) -> u64 {
        match self {
            Self::Before => 250,
            Self::After => 305,
        }
    }
}

/// The second at which the revoked caller sends its request. The stored entry is fresh then.
const REQUESTED: u64 = 310;

fn assert_not_served(reply: &Reply, failure: StatusCode, stored: Stored) {
    assert_eq!(reply.status(), failure, "{stored:?}: {reply:?}");
    assert!(!reply.text().contains("products"), "{stored:?}: {reply:?}");
}

/// A gateway over sockets, the stored response, and the revoked token.
async fn world_with_revoked_token(stored: Stored, settings: &str) -> (World, Reply, String) {
    let world = World::with(settings).await;
    let [other, token] = world.granted_tokens().await;
    world.seconds_pass(stored.second());
    world.simulator.change_catalogue();
    assert_eq!(world.get_as(&other, PROOF).await.status(), StatusCode::OK);
    let response = world.get_as(&other, LIST).await;
    assert!(response.cache_status().contains("; stored"), "{response:?}");
    world.seconds_pass(REQUESTED - stored.second());
    assert!(world.get_as(&other, LIST).await.is_hit());
    world.simulator.revoke(&token);
    world.simulator.forget_requests();
    (world, response, token)
}

/// A gateway without sockets. The test answers the upstream calls and advances the clock.
struct InProcess {
    gateway: Arc<Gateway>,
    calls: UnboundedReceiver<Call>,
}

impl InProcess {
    async fn new(stored: Stored, settings: &str) -> Self {
        let (upstream, calls) = Scripted::new();
        let nowhere = "http://127.0.0.1:1";
        let config = config(nowhere, nowhere, settings);
        let gateway = Gateway::with_upstream(upstream, &config, Clock::System, Random::System).unwrap();
        let mut this = Self { gateway, calls };
        for (second, token, path) in [(0, "revoked", OTHER), (stored.second(), "other", LIST)] {
            advance(Duration::from_secs(second)).await;
            let pending = this.begin(token, path);
            this.call().await.answer(StatusCode::OK, format!(r#"{{"products":["of {second}"]}}"#));
            assert_eq!(within(pending).await.unwrap().status(), StatusCode::OK);
        }
        advance(Duration::from_secs(REQUESTED - stored.second())).await;
        this
    }

    fn begin(&self, token: &'static str, path: &'static str) -> JoinHandle<Reply> {
        let gateway = Arc::clone(&self.gateway);
        tokio::spawn(async move { get_in_process(&gateway, token, path).await })
    }

    async fn call(&mut self) -> Call {
        within(self.calls.recv()).await.unwrap()
    }

    /// The reply to the revoked caller when its call fails with this error.
    async fn fail_call(&mut self, error: UpstreamError) -> Reply {
        let pending = self.begin("revoked", LIST);
        self.call().await.fail(error);
        within(pending).await.unwrap()
    }
}

#[tokio::test]
async fn an_outside_failure_shows_a_lapsed_caller_nothing_newer_than_its_grant() {
    for stored in Stored::BOTH {
        let (world, entry, token) = world_with_revoked_token(stored, "").await;
        world.simulator.reset_connections(true);
        let reply = world.get_as(&token, LIST).await;
        match stored {
            Stored::Before => assert_eq!((reply.status(), reply.body()), (StatusCode::OK, entry.body()), "{reply:?}"),
            Stored::After => assert_not_served(&reply, StatusCode::BAD_GATEWAY, stored),
        }
        // The same during the backoff that follows.
        let again = world.get_as(&token, LIST).await;
        assert_eq!(
            (again.status(), again.body() == entry.body()),
            (reply.status(), stored == Stored::Before),
            "{again:?}"
        );
    }
}

#[tokio::test]
async fn a_429_shows_a_lapsed_caller_nothing_newer_than_its_grant() {
    for stored in Stored::BOTH {
        let (world, entry, token) = world_with_revoked_token(stored, "").await;
        // Other callers have used up the quota.
        world.simulator.throttle(Some(0));
        let reply = world.get_as(&token, LIST).await;
        match stored {
            Stored::Before => assert_eq!((reply.status(), reply.body()), (StatusCode::OK, entry.body()), "{reply:?}"),
            Stored::After => assert_not_served(&reply, StatusCode::TOO_MANY_REQUESTS, stored),
        }
    }
}

#[tokio::test]
async fn a_call_that_is_never_sent_shows_a_lapsed_caller_nothing() {
    for stored in Stored::BOTH {
        let limits = |answer| format!("[upstream]\nmax_calls_per_caller = 1\nanswer_timeout = \"{answer}\"\n");
        let (world, _, token) = world_with_revoked_token(stored, &limits("1h")).await;
        // The call waits for another call of the same caller, which has more time.
        world.simulator.hold_token(&token);
        let first = world.begin_and_reach_upstream(&token, ANOTHER, 1).await;
        let short = "connect_timeout = \"100ms\"\nfirst_byte_timeout = \"100ms\"\n";
        world.reload(&(limits("100ms") + short)).unwrap();
        assert_not_served(&world.get_as(&token, LIST).await, StatusCode::SERVICE_UNAVAILABLE, stored);
        assert_eq!(world.upstream_calls(), 1, "its call was never sent");
        assert_not_served(&world.get_as(&token, LIST).await, StatusCode::SERVICE_UNAVAILABLE, stored);
        world.simulator.release_token(&token);
        within(first).await.unwrap().assert_refused(StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test(start_paused = true)]
async fn a_local_failure_shows_a_lapsed_caller_nothing() {
    for stored in Stored::BOTH {
        let mut gateway = InProcess::new(stored, "").await;
        let error = || UpstreamError::Local("Too many open files (os error 24)".to_owned());
        for _ in 0..2 {
            assert_not_served(&gateway.fail_call(error()).await, StatusCode::SERVICE_UNAVAILABLE, stored);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_soon_after_the_call_was_sent_shows_a_lapsed_caller_nothing() {
    for stored in Stored::BOTH {
        let settings = "[upstream]\nmax_calls_per_caller = 1\nanswer_timeout = \"35s\"\n";
        let mut gateway = InProcess::new(stored, settings).await;
        let first = gateway.begin("revoked", ANOTHER);
        let call = gateway.call().await;
        let second = gateway.begin("revoked", LIST);
        advance(Duration::from_secs(34)).await;
        call.answer(StatusCode::NOT_FOUND, "");
        assert_eq!(within(first).await.unwrap().status(), StatusCode::NOT_FOUND);
        // Upstream has one second for the second call and does not answer.
        let _unanswered = gateway.call().await;
        assert_not_served(&within(second).await.unwrap(), StatusCode::GATEWAY_TIMEOUT, stored);
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_route_is_an_outage_only_ten_seconds_after_the_last_response() {
    let error = || UpstreamError::Unreachable("upstream.test: No route to host".to_owned());
    for (seconds, status) in [(9, StatusCode::BAD_GATEWAY), (11, StatusCode::OK)] {
        let mut gateway = InProcess::new(Stored::Before, "").await;
        let answered = gateway.begin("other", ANOTHER);
        gateway.call().await.answer(StatusCode::NOT_FOUND, "");
        assert_eq!(within(answered).await.unwrap().status(), StatusCode::NOT_FOUND);
        advance(Duration::from_secs(seconds)).await;
        let reply = gateway.fail_call(error()).await;
        assert_eq!(reply.status(), status, "after {seconds} s: {reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_counts_as_reached_at_the_head_of_a_response_to_a_write() {
    let mut gateway = InProcess::new(Stored::Before, "").await;
    let write =
        Request::post(LIST.replace("PROJECT", PROJECT)).header("host", "gateway").header("x-auth-token", "other");
    let writing = {
        let gateway = Arc::clone(&gateway.gateway);
        tokio::spawn(async move { handle(&gateway, write).await })
    };
    // The body does not end.
    gateway.call().await.answer(StatusCode::OK, "{");
    let reply = gateway.fail_call(UpstreamError::Unreachable("upstream.test: No route to host".to_owned())).await;
    assert_not_served(&reply, StatusCode::BAD_GATEWAY, Stored::Before);
    writing.abort();
}

#[tokio::test]
async fn a_401_whose_body_never_ends_shows_a_lapsed_caller_nothing() {
    for stored in Stored::BOTH {
        let list = sends("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"products\":[]}");
        let endless = sends("HTTP/1.1 401 Unauthorized\r\nContent-Length: 100\r\n\r\n{");
        let upstream = RawUpstream::start([list.clone(), list, endless]).await;
        let world = World::with_upstreams(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), "").await;
        assert_eq!(world.get_as("revoked", OTHER).await.status(), StatusCode::OK);
        world.seconds_pass(stored.second());
        assert_eq!(world.get_as("other", LIST).await.status(), StatusCode::OK);
        world.seconds_pass(REQUESTED - stored.second());
        assert_not_served(&world.get_as("revoked", LIST).await, StatusCode::UNAUTHORIZED, stored);
    }
}

/// A failure of a caller's own call that extends its lapsed grant.
#[derive(Clone, Debug)]
enum Outage {
    Status(StatusCode),
    Error(UpstreamError),
}

impl Outage {
    fn all() -> Vec<Self> {
        let message = || "upstream.test".to_owned();
        let statuses = [500, 502, 503, 504, 511, 429].map(|status| Self::Status(StatusCode::from_u16(status).unwrap()));
        let errors = [
            UpstreamError::Connect(message()),
            UpstreamError::Unreachable(message()),
            UpstreamError::Tls(message()),
            UpstreamError::FirstByte,
            UpstreamError::Timeout,
            UpstreamError::Broken(message()),
        ];
        statuses.into_iter().chain(errors.map(Self::Error)).collect()
    }

    /// The status for a caller that gets no stored response.
    fn status(&self) -> StatusCode {
        match self {
            Self::Status(status) => *status,
            Self::Error(UpstreamError::FirstByte | UpstreamError::Timeout) => StatusCode::GATEWAY_TIMEOUT,
            Self::Error(_) => StatusCode::BAD_GATEWAY,
        }
    }
}

impl InProcess {
    /// The reply to the revoked caller when its call fails with this outage.
    async fn fail_call_with(&mut self, outage: &Outage) -> Reply {
        let pending = self.begin("revoked", LIST);
        let call = self.call().await;
        match outage {
            Outage::Status(status) => call.answer(*status, ""),
            Outage::Error(error) => call.fail(error.clone()),
        }
        within(pending).await.unwrap()
    }

    /// The reply to the revoked caller, without an upstream call.
    async fn get_without_call(&mut self) -> Reply {
        let reply = within(self.begin("revoked", LIST)).await.unwrap();
        assert!(self.calls.try_recv().is_err(), "{reply:?}");
        reply
    }
}

fn assert_served(reply: &Reply, outage: &Outage) {
    assert_eq!((reply.status(), reply.text()), (StatusCode::OK, r#"{"products":["of 250"]}"#), "{outage:?}: {reply:?}");
}

/// So long after the last response a missing route counts as an outage, too.
const UPSTREAM_UNREACHED: Duration = Duration::from_secs(11);

#[tokio::test(start_paused = true)]
async fn each_outside_failure_extends_a_grant_unless_on_outage_is_refuse() {
    for stored in Stored::BOTH {
        for outage in Outage::all() {
            for (settings, is_served) in [("", stored == Stored::Before), ("[grants]\non_outage = \"refuse\"\n", false)]
            {
                let mut gateway = InProcess::new(stored, settings).await;
                advance(UPSTREAM_UNREACHED).await;
                if is_served {
                    assert_served(&gateway.fail_call_with(&outage).await, &outage);
                    assert_served(&gateway.get_without_call().await, &outage);
                    continue;
                }
                for _ in 0..2 {
                    assert_not_served(&gateway.fail_call_with(&outage).await, outage.status(), stored);
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_backoff_serves_nothing_after_the_outage_grace_ends() {
    for outage in Outage::all() {
        let settings = "[cache]\nnegative_ttl = \"60s\"\nbackoff = \"60s\"\nstale_if_error = \"1d\"\n[grants]\noutage_grace = \"1h\"\n";
        let mut gateway = InProcess::new(Stored::Before, settings).await;
        // The grant was proved at 0 s.
        advance(Duration::from_secs(3_590 - REQUESTED)).await;
        assert_served(&gateway.fail_call_with(&outage).await, &outage);
        advance(Duration::from_secs(9)).await;
        assert_served(&gateway.get_without_call().await, &outage);
        for _ in 0..2 {
            advance(Duration::from_secs(1)).await;
            assert_not_served(&gateway.fail_call_with(&outage).await, outage.status(), Stored::Before);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_extended_grant_does_not_show_an_entry_stored_meanwhile() {
    for outage in Outage::all() {
        let mut gateway = InProcess::new(Stored::Before, "[cache]\nnegative_ttl = \"60s\"\nbackoff = \"60s\"\n").await;
        advance(UPSTREAM_UNREACHED).await;
        assert_served(&gateway.fail_call_with(&outage).await, &outage);
        // The other caller has a grant. Its request replaces the entry.
        let serving_gateway = Arc::clone(&gateway.gateway);
        let refreshing = tokio::spawn(async move {
            get_in_process_with(&serving_gateway, "other", LIST, &[("cache-control", "no-cache")]).await
        });
        gateway.call().await.answer(StatusCode::OK, r#"{"products":["newer"]}"#);
        let newer = within(refreshing).await.unwrap();
        assert!(newer.cache_status().contains("; stored"), "{newer:?}");
        // During the backoff, and after it.
        for seconds in [0, 11, 60] {
            advance(Duration::from_secs(seconds)).await;
            assert_not_served(&gateway.fail_call_with(&outage).await, outage.status(), Stored::Before);
        }
        let reply = within(gateway.begin("other", LIST)).await.unwrap();
        assert_eq!((reply.is_hit(), reply.body()), (true, newer.body()), "{outage:?}: {reply:?}");
    }
}
