//! One caller's slow or failed call does not keep an answer from the others, and upstream is asked no more than
//! necessary when it is slow or failing for everybody.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::random::Random;

use crate::support::{Call, Reply, Scripted, ask, config, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const OTHER: &str = "/v2/PROJECT/products?os_type=Windows";
const PROOF: &str = "/v2/PROJECT/products?limit=1";

const EMPTY: &str = r#"{"products":[]}"#;
const FULL: &str = r#"{"products":["full"]}"#;

/// A gateway on a paused clock, with an upstream that the test answers for. `stale_if_slow` is 1 s (`cache.stale_if_slow`).
struct Bench {
    gateway: Arc<Gateway>,
    calls: UnboundedReceiver<Call>,
}

impl Bench {
    /// These callers hold grants.
    async fn with_granted(tokens: &[&'static str]) -> Self {
        let (upstream, calls) = Scripted::new();
        let config =
            config("http://127.0.0.1:1", "http://127.0.0.1:1", "[cache]\nstale_if_slow = \"1s\"\nttl_jitter = \"0%\"");
        let gateway = Gateway::before(upstream, &config, Clock::System, Random::System).unwrap();
        let mut bench = Self { gateway, calls };
        for token in tokens {
            bench.is_answered(token, PROOF).await;
        }
        bench
    }

    fn begin(&self, token: &'static str, path: &'static str) -> JoinHandle<Reply> {
        let gateway = Arc::clone(&self.gateway);
        tokio::spawn(async move { ask(&gateway, token, path).await })
    }

    /// The next call to upstream, whose it may be.
    async fn next_call(&mut self) -> Call {
        within(self.calls.recv()).await.unwrap()
    }

    /// The next call to upstream, which is this caller's.
    async fn call_of(&mut self, token: &str) -> Call {
        let call = self.next_call().await;
        assert_eq!(call.token, token);
        call
    }

    /// Upstream answers a caller's question with a list.
    async fn is_answered(&mut self, token: &'static str, path: &'static str) {
        // A question of its own, so that upstream is asked.
        let gateway = Arc::clone(&self.gateway);
        let asking = tokio::spawn(async move { ask_anew(&gateway, token, path).await });
        self.call_of(token).await.answer(StatusCode::OK, EMPTY);
        assert_eq!(within(asking).await.unwrap().status(), StatusCode::OK);
    }

    /// No call has begun.
    async fn is_quiet(&mut self) {
        // The clock is paused: this lets everybody go on who can.
        sleep(Duration::from_millis(1)).await;
        assert!(self.calls.try_recv().is_err(), "an additional call");
    }
}

/// Asks with a request that no answer in memory satisfies.
async fn ask_anew(gateway: &Arc<Gateway>, token: &str, path: &str) -> Reply {
    crate::support::ask_with(gateway, token, path, &[("cache-control", "no-cache")]).await
}

/// The clock is paused: time passes once everybody waits, and at once.
async fn pass(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

/// Less than `stale_if_slow`.
async fn a_moment_passes() {
    sleep(Duration::from_millis(100)).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_makes_a_second_call_when_only_the_leader_is_slow() {
    let mut bench = Bench::with_granted(&["leader", "one", "two", "other"]).await;
    let leading = bench.begin("leader", LIST);
    let slow = bench.call_of("leader").await;
    let waiting = [bench.begin("one", LIST), bench.begin("two", LIST), bench.begin("leader", LIST)];
    pass(1).await;
    bench.is_quiet().await;
    bench.is_answered("other", OTHER).await;
    let second = bench.next_call().await;
    assert_ne!(second.token, "leader");
    second.answer(StatusCode::OK, FULL);
    for asking in waiting.into_iter().chain([leading]) {
        let reply = within(asking).await.unwrap();
        assert_eq!((reply.status(), reply.text()), (StatusCode::OK, FULL));
    }
    // Its own end changes nothing for anybody.
    slow.answer(StatusCode::INTERNAL_SERVER_ERROR, "{}");
    bench.is_quiet().await;
    let next = within(bench.begin("two", LIST)).await.unwrap();
    assert!(next.cache_status().contains("; hit"), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn no_second_call_is_made_while_upstream_is_slow_for_everybody() {
    let mut bench = Bench::with_granted(&["leader", "one", "other"]).await;
    let asking = [bench.begin("leader", LIST), bench.begin("one", LIST)];
    let slow = bench.call_of("leader").await;
    let other = bench.begin("other", OTHER);
    let slow_too = bench.call_of("other").await;
    pass(10).await;
    bench.is_quiet().await;
    slow.answer(StatusCode::OK, FULL);
    for asking in asking {
        assert_eq!(within(asking).await.unwrap().text(), FULL);
    }
    slow_too.answer(StatusCode::OK, EMPTY);
    within(other).await.unwrap();
    bench.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_list_that_was_sent_before_the_slow_call_tells_nothing() {
    let mut bench = Bench::with_granted(&["leader", "one", "other"]).await;
    let other = bench.begin("other", OTHER);
    let earlier = bench.call_of("other").await;
    let _leading = bench.begin("leader", LIST);
    let _slow = bench.call_of("leader").await;
    let _waiting = bench.begin("one", LIST);
    pass(2).await;
    earlier.answer(StatusCode::OK, EMPTY);
    within(other).await.unwrap();
    bench.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn there_are_three_calls_at_most_and_a_failure_ends_only_its_own() {
    let mut bench = Bench::with_granted(&["leader", "one", "two", "three", "other"]).await;
    let leading = bench.begin("leader", LIST);
    let first = bench.call_of("leader").await;
    let mut waiting = HashMap::from(["one", "two", "three"].map(|token| (token.to_owned(), bench.begin(token, LIST))));
    pass(2).await;
    bench.is_answered("other", OTHER).await;
    let second = bench.next_call().await;
    pass(2).await;
    bench.is_quiet().await;
    bench.is_answered("other", OTHER).await;
    let third = bench.next_call().await;
    pass(2).await;
    bench.is_answered("other", OTHER).await;
    bench.is_quiet().await;
    let leading_second = waiting.remove(&second.token).unwrap();
    second.answer(StatusCode::FORBIDDEN, r#"{"error_code":"APIGW.0302"}"#);
    assert_eq!(within(leading_second).await.unwrap().status(), StatusCode::FORBIDDEN);
    first.answer(StatusCode::INTERNAL_SERVER_ERROR, "{}");
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
    third.answer(StatusCode::OK, FULL);
    for (_, asking) in waiting {
        assert_eq!(within(asking).await.unwrap().text(), FULL);
    }
    bench.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_leaders_500_is_its_own_where_upstream_answers_others() {
    let mut bench = Bench::with_granted(&["leader", "one", "two", "other"]).await;
    let leading = bench.begin("leader", LIST);
    let failing = bench.call_of("leader").await;
    let waiting = [bench.begin("one", LIST), bench.begin("two", LIST)];
    a_moment_passes().await;
    bench.is_answered("other", OTHER).await;
    failing.answer(StatusCode::INTERNAL_SERVER_ERROR, "{}");
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
    bench.next_call().await.answer(StatusCode::OK, FULL);
    for asking in waiting {
        assert_eq!(within(asking).await.unwrap().text(), FULL);
    }
    bench.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_call_is_repeated_once() {
    let mut bench = Bench::with_granted(&["leader", "one", "two", "late", "other"]).await;
    let leading = bench.begin("leader", LIST);
    let failing = bench.call_of("leader").await;
    let waiting = [bench.begin("one", LIST), bench.begin("two", LIST)];
    a_moment_passes().await;
    bench.is_answered("other", OTHER).await;
    failing.answer(StatusCode::BAD_GATEWAY, "{}");
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::BAD_GATEWAY);
    let repeated = bench.next_call().await;
    let late = bench.begin("late", LIST);
    a_moment_passes().await;
    bench.is_answered("other", OTHER).await;
    repeated.answer(StatusCode::BAD_GATEWAY, "{}");
    for asking in waiting.into_iter().chain([late]) {
        assert_eq!(within(asking).await.unwrap().status(), StatusCode::BAD_GATEWAY);
    }
    bench.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_500_goes_to_everybody_while_upstream_answers_nobody() {
    let mut bench = Bench::with_granted(&["leader", "one"]).await;
    let asking = [bench.begin("leader", LIST), bench.begin("one", LIST)];
    let failing = bench.call_of("leader").await;
    a_moment_passes().await;
    failing.answer(StatusCode::INTERNAL_SERVER_ERROR, "{}");
    for asking in asking {
        assert_eq!(within(asking).await.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
    bench.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_grant_has_ended_leads_nobody() {
    let mut bench = Bench::with_granted(&["one"]).await;
    pass(290).await;
    for token in ["leader", "other"] {
        bench.is_answered(token, PROOF).await;
    }
    let leading = bench.begin("leader", LIST);
    let slow = bench.call_of("leader").await;
    let asking = bench.begin("one", LIST);
    // Its grant ends after 300 s.
    pass(20).await;
    bench.is_answered("other", OTHER).await;
    bench.is_quiet().await;
    slow.answer(StatusCode::OK, FULL);
    assert_eq!(within(leading).await.unwrap().text(), FULL);
    bench.call_of("one").await.answer(StatusCode::FORBIDDEN, r#"{"error_code":"APIGW.0302"}"#);
    assert_eq!(within(asking).await.unwrap().status(), StatusCode::FORBIDDEN);
}
