//! What a lapsed caller is given when its own call fails: nothing if the failure is the gateway's own or the caller's, and
//! nothing that is newer than its grant if the failure is outside.
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

use crate::support::raw::{RawUpstream, says};
use crate::support::{Call, PROJECT, PROOF, Reply, Scripted, World, ask, ask_with, config, handle, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const ANOTHER: &str = "/v2/PROJECT/products?os_type=Other";

/// When the entry was asked for that is kept, by a caller whose grant stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kept {
    /// While the revoked caller's grant stood, at 250 s.
    Before,
    /// After that had ended, at 305 s.
    After,
}

impl Kept {
    const BOTH: [Self; 2] = [Self::Before, Self::After];

    fn second(self) -> u64 {
        match self {
            Self::Before => 250,
            Self::After => 305,
        }
    }
}

/// The second at which the revoked caller asks. What is kept is fresh then.
const ASKED: u64 = 310;

fn revoked(reply: &Reply, failure: StatusCode, kept: Kept) {
    assert_eq!(reply.status(), failure, "{kept:?}: {reply:?}");
    assert!(!reply.text().contains("products"), "{kept:?}: {reply:?}");
}

/// A gateway over sockets, what is kept there, and the revoked token.
async fn over_sockets(kept: Kept, settings: &str) -> (World, Reply, String) {
    let world = World::with(settings).await;
    let [other, token] = world.granted().await;
    world.seconds_pass(kept.second());
    world.simulator.change_catalogue();
    assert_eq!(world.get_as(&other, PROOF).await.status(), StatusCode::OK);
    let entry = world.get_as(&other, LIST).await;
    assert!(entry.cache_status().contains("; stored"), "{entry:?}");
    world.seconds_pass(ASKED - kept.second());
    assert!(world.get_as(&other, LIST).await.is_hit());
    world.simulator.revoke(&token);
    world.simulator.forget_requests();
    (world, entry, token)
}

/// An upstream that a test answers for, and the time, which stands still until it is moved.
struct InProcess {
    gateway: Arc<Gateway>,
    calls: UnboundedReceiver<Call>,
}

impl InProcess {
    async fn new(kept: Kept, settings: &str) -> Self {
        let (upstream, calls) = Scripted::new();
        let nowhere = "http://127.0.0.1:1";
        let gateway =
            Gateway::before(upstream, &config(nowhere, nowhere, settings), Clock::System, Random::System).unwrap();
        let mut this = Self { gateway, calls };
        for (second, token, path) in [(0, "revoked", OTHER), (kept.second(), "other", LIST)] {
            advance(Duration::from_secs(second)).await;
            let asking = this.begin(token, path);
            this.call().await.answer(StatusCode::OK, format!(r#"{{"products":["of {second}"]}}"#));
            assert_eq!(within(asking).await.unwrap().status(), StatusCode::OK);
        }
        advance(Duration::from_secs(ASKED - kept.second())).await;
        this
    }

    fn begin(&self, token: &'static str, path: &'static str) -> JoinHandle<Reply> {
        let gateway = Arc::clone(&self.gateway);
        tokio::spawn(async move { ask(&gateway, token, path).await })
    }

    async fn call(&mut self) -> Call {
        within(self.calls.recv()).await.unwrap()
    }

    /// What the revoked caller is given when its call fails so.
    async fn fails(&mut self, error: UpstreamError) -> Reply {
        let asking = self.begin("revoked", LIST);
        self.call().await.fail(error);
        within(asking).await.unwrap()
    }
}

#[tokio::test]
async fn a_failure_outside_gives_a_lapsed_caller_what_is_no_newer_than_its_grant() {
    for kept in Kept::BOTH {
        let (world, entry, token) = over_sockets(kept, "").await;
        world.simulator.reset_connection(true);
        let reply = world.get_as(&token, LIST).await;
        match kept {
            Kept::Before => assert_eq!((reply.status(), reply.body()), (StatusCode::OK, entry.body()), "{reply:?}"),
            Kept::After => revoked(&reply, StatusCode::BAD_GATEWAY, kept),
        }
        // Nor for the length of the backoff that follows.
        let again = world.get_as(&token, LIST).await;
        assert_eq!((again.status(), again.body() == entry.body()), (reply.status(), kept == Kept::Before), "{again:?}");
    }
}

#[tokio::test]
async fn a_429_gives_a_lapsed_caller_what_is_no_newer_than_its_grant() {
    for kept in Kept::BOTH {
        let (world, entry, token) = over_sockets(kept, "").await;
        // Others have used up the quota.
        world.simulator.throttle(Some(0));
        let reply = world.get_as(&token, LIST).await;
        match kept {
            Kept::Before => assert_eq!((reply.status(), reply.body()), (StatusCode::OK, entry.body()), "{reply:?}"),
            Kept::After => revoked(&reply, StatusCode::TOO_MANY_REQUESTS, kept),
        }
    }
}

#[tokio::test]
async fn a_turn_that_does_not_come_gives_a_lapsed_caller_nothing() {
    for kept in Kept::BOTH {
        let limits = |answer| format!("[upstream]\nmax_calls_per_caller = 1\nanswer_timeout = \"{answer}\"\n");
        let (world, _, token) = over_sockets(kept, &limits("1h")).await;
        // It waits behind its own call, for less time than that one has.
        world.simulator.hold_token(&token);
        let held = world.begin_and_arrive(&token, ANOTHER, 1).await;
        let short = "connect_timeout = \"100ms\"\nfirst_byte_timeout = \"100ms\"\n";
        world.reload(&(limits("100ms") + short)).unwrap();
        revoked(&world.get_as(&token, LIST).await, StatusCode::SERVICE_UNAVAILABLE, kept);
        assert_eq!(world.upstream_calls(), 1, "its call was never made");
        revoked(&world.get_as(&token, LIST).await, StatusCode::SERVICE_UNAVAILABLE, kept);
        world.simulator.release_token(&token);
        within(held).await.unwrap().assert_refused(StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_the_gateways_own_gives_a_lapsed_caller_nothing() {
    for kept in Kept::BOTH {
        let mut gateway = InProcess::new(kept, "").await;
        let error = || UpstreamError::Local("Too many open files (os error 24)".to_owned());
        for _ in 0..2 {
            revoked(&gateway.fails(error()).await, StatusCode::SERVICE_UNAVAILABLE, kept);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_own_deadline_ends_a_second_after_its_call_was_sent_gives_a_lapsed_caller_nothing() {
    for kept in Kept::BOTH {
        let settings = "[upstream]\nmax_calls_per_caller = 1\nanswer_timeout = \"35s\"\n";
        let mut gateway = InProcess::new(kept, settings).await;
        let first = gateway.begin("revoked", ANOTHER);
        let call = gateway.call().await;
        let asking = gateway.begin("revoked", LIST);
        advance(Duration::from_secs(34)).await;
        call.answer(StatusCode::NOT_FOUND, "");
        assert_eq!(within(first).await.unwrap().status(), StatusCode::NOT_FOUND);
        // Upstream has a second for it, and says nothing.
        let _unanswered = gateway.call().await;
        revoked(&within(asking).await.unwrap(), StatusCode::GATEWAY_TIMEOUT, kept);
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_route_is_an_outage_only_if_nobody_was_answered_for_ten_seconds() {
    let error = || UpstreamError::Unreachable("upstream.test: No route to host".to_owned());
    for (seconds, status) in [(9, StatusCode::BAD_GATEWAY), (11, StatusCode::OK)] {
        let mut gateway = InProcess::new(Kept::Before, "").await;
        let asking = gateway.begin("other", ANOTHER);
        gateway.call().await.answer(StatusCode::NOT_FOUND, "");
        assert_eq!(within(asking).await.unwrap().status(), StatusCode::NOT_FOUND);
        advance(Duration::from_secs(seconds)).await;
        let reply = gateway.fails(error()).await;
        assert_eq!(reply.status(), status, "after {seconds} s: {reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_counts_as_reached_as_soon_as_the_head_of_its_answer_to_a_write_has_come() {
    let mut gateway = InProcess::new(Kept::Before, "").await;
    let write =
        Request::post(LIST.replace("PROJECT", PROJECT)).header("host", "gateway").header("x-auth-token", "other");
    let writing = {
        let gateway = Arc::clone(&gateway.gateway);
        tokio::spawn(async move { handle(&gateway, write).await })
    };
    // Its body goes on for longer than the gateway looks at it.
    gateway.call().await.answer(StatusCode::OK, "{");
    let reply = gateway.fails(UpstreamError::Unreachable("upstream.test: No route to host".to_owned())).await;
    revoked(&reply, StatusCode::BAD_GATEWAY, Kept::Before);
    writing.abort();
}

#[tokio::test]
async fn a_401_whose_body_never_ends_gives_a_lapsed_caller_nothing() {
    for kept in Kept::BOTH {
        let list = says("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"products\":[]}");
        let endless = says("HTTP/1.1 401 Unauthorized\r\nContent-Length: 100\r\n\r\n{");
        let upstream = RawUpstream::start([list.clone(), list, endless]).await;
        let world = World::before(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), "").await;
        assert_eq!(world.get_as("revoked", OTHER).await.status(), StatusCode::OK);
        world.seconds_pass(kept.second());
        assert_eq!(world.get_as("other", LIST).await.status(), StatusCode::OK);
        world.seconds_pass(ASKED - kept.second());
        revoked(&world.get_as("revoked", LIST).await, StatusCode::UNAUTHORIZED, kept);
    }
}

/// What can become of a caller's own call that extends its lapsed grant.
#[derive(Clone, Debug)]
enum Outage {
    Status(StatusCode),
    Error(UpstreamError),
}

impl Outage {
    fn all() -> Vec<Self> {
        let words = || "upstream.test".to_owned();
        let statuses = [500, 502, 503, 504, 511, 429].map(|status| Self::Status(StatusCode::from_u16(status).unwrap()));
        let errors = [
            UpstreamError::Connect(words()),
            UpstreamError::Unreachable(words()),
            UpstreamError::Tls(words()),
            UpstreamError::FirstByte,
            UpstreamError::Timeout,
            UpstreamError::Broken(words()),
        ];
        statuses.into_iter().chain(errors.map(Self::Error)).collect()
    }

    /// The status that a caller is answered with who is shown nothing.
    fn status(&self) -> StatusCode {
        match self {
            Self::Status(status) => *status,
            Self::Error(UpstreamError::FirstByte | UpstreamError::Timeout) => StatusCode::GATEWAY_TIMEOUT,
            Self::Error(_) => StatusCode::BAD_GATEWAY,
        }
    }
}

impl InProcess {
    /// What the revoked caller is given when its call meets this.
    async fn meets(&mut self, outage: &Outage) -> Reply {
        let asking = self.begin("revoked", LIST);
        let call = self.call().await;
        match outage {
            Outage::Status(status) => call.answer(*status, ""),
            Outage::Error(error) => call.fail(error.clone()),
        }
        within(asking).await.unwrap()
    }

    /// What the revoked caller is given without a call of its own.
    async fn remembers(&mut self) -> Reply {
        let reply = within(self.begin("revoked", LIST)).await.unwrap();
        assert!(self.calls.try_recv().is_err(), "{reply:?}");
        reply
    }
}

fn shown(reply: &Reply, outage: &Outage) {
    assert_eq!((reply.status(), reply.text()), (StatusCode::OK, r#"{"products":["of 250"]}"#), "{outage:?}: {reply:?}");
}

/// So long after the last good answer a missing route counts as an outage, too.
const NOBODY_REACHED: Duration = Duration::from_secs(11);

#[tokio::test(start_paused = true)]
async fn each_failure_outside_shows_what_the_grant_covered_and_nothing_where_outages_are_refused() {
    for kept in Kept::BOTH {
        for outage in Outage::all() {
            for (settings, is_shown) in [("", kept == Kept::Before), ("[grants]\non_outage = \"refuse\"\n", false)] {
                let mut gateway = InProcess::new(kept, settings).await;
                advance(NOBODY_REACHED).await;
                if is_shown {
                    shown(&gateway.meets(&outage).await, &outage);
                    shown(&gateway.remembers().await, &outage);
                    continue;
                }
                for _ in 0..2 {
                    revoked(&gateway.meets(&outage).await, outage.status(), kept);
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_backoff_that_is_under_way_when_the_grace_ends_shows_nothing_after_it() {
    for outage in Outage::all() {
        let settings = "[cache]\nnegative_ttl = \"60s\"\nbackoff = \"60s\"\nstale_if_error = \"1d\"\n[grants]\noutage_grace = \"1h\"\n";
        let mut gateway = InProcess::new(Kept::Before, settings).await;
        // The grant was proved at 0 s.
        advance(Duration::from_secs(3_590 - ASKED)).await;
        shown(&gateway.meets(&outage).await, &outage);
        advance(Duration::from_secs(9)).await;
        shown(&gateway.remembers().await, &outage);
        for _ in 0..2 {
            advance(Duration::from_secs(1)).await;
            revoked(&gateway.meets(&outage).await, outage.status(), Kept::Before);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_caller_brings_while_a_grant_is_extended_is_not_shown_by_it() {
    for outage in Outage::all() {
        let mut gateway = InProcess::new(Kept::Before, "[cache]\nnegative_ttl = \"60s\"\nbackoff = \"60s\"\n").await;
        advance(NOBODY_REACHED).await;
        shown(&gateway.meets(&outage).await, &outage);
        // The other caller's grant stands. It has the entry replaced.
        let serving = Arc::clone(&gateway.gateway);
        let asking =
            tokio::spawn(async move { ask_with(&serving, "other", LIST, &[("cache-control", "no-cache")]).await });
        gateway.call().await.answer(StatusCode::OK, r#"{"products":["newer"]}"#);
        let newer = within(asking).await.unwrap();
        assert!(newer.cache_status().contains("; stored"), "{newer:?}");
        // The backoff is under way, then over.
        for seconds in [0, 11, 60] {
            advance(Duration::from_secs(seconds)).await;
            revoked(&gateway.meets(&outage).await, outage.status(), Kept::Before);
        }
        let reply = within(gateway.begin("other", LIST)).await.unwrap();
        assert_eq!((reply.is_hit(), reply.body()), (true, newer.body()), "{outage:?}: {reply:?}");
    }
}
