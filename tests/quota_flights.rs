//! Flights while upstream limits the calls of a caller: who makes the call, who waits for it, and which calls are not
//! needed any more. The test gives the responses of upstream. The clock is paused: it moves on as soon as all tasks wait.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use workspace_gateway::testing::cache::store::PurgeSelection;
use workspace_gateway::testing::upstream::UpstreamError;

use crate::support::scripted::{Bench, EMPTY, settings};
use crate::support::{all_replies, get_in_process};

const SECOND: Duration = Duration::from_secs(1);
const LIST: &str = "/v2/p/products?product_id=list";
const OTHER: &str = "/v2/p/products?product_id=other";
const PROOF: &str = "/v2/p/products?limit=1";

impl Bench {
    /// Upstream refuses a call of a caller that has just made one, and names a limit of one call in so many seconds.
    async fn throttle(&mut self, token: &'static str, seconds: u64) {
        let pending = self.begin(token, OTHER);
        self.next_call_of(token).await.answer(StatusCode::TOO_MANY_REQUESTS, refusal(seconds));
        if seconds < 35 {
            self.next_call_of(token).await.answer(StatusCode::OK, EMPTY);
        }
        pending.await.unwrap();
    }
}

/// One call in so many seconds, of all callers.
fn ip_quota(seconds: u64) -> String {
    format!("[[quota]]\nservice = \"workspace\"\npolicy = \"ip\"\nlimit = 1\nwindow = \"{seconds}s\"\n")
}

/// One call of a caller in so many seconds.
fn user_quota(seconds: u64) -> String {
    ip_quota(seconds).replace("\"ip\"", "\"user\"")
}

fn refusal(seconds: u64) -> String {
    let text = format!("policy user over ratelimit,limit:1,time:{seconds} second");
    format!(r#"{{"error_code":"APIGW.0308","error_msg":"{text}"}}"#)
}

#[tokio::test(start_paused = true)]
async fn a_request_that_upstream_throttles_twice_is_not_sent_a_third_time_for_a_slow_flight() {
    let mut bench = Bench::with_granted("", &["a", "b", "c"]).await;
    sleep(20 * SECOND).await;
    // Its first call is throttled. After the purge, another caller begins a flight that it joins.
    let asking = bench.begin("a", LIST);
    let first = bench.next_call_of("a").await;
    bench.gateway.purge(&PurgeSelection::default());
    let _leading = bench.begin("b", LIST);
    let _slow = bench.next_call_of("b").await;
    first.answer(StatusCode::TOO_MANY_REQUESTS, refusal(10));
    sleep(12 * SECOND).await;
    // That flight is slow, and upstream answers another call.
    bench.complete_call("c", OTHER).await;
    bench.next_call_of("a").await.answer(StatusCode::TOO_MANY_REQUESTS, refusal(10));
    bench.settle().await;
    assert!(asking.is_finished());
    let reply = asking.await.unwrap();
    assert_eq!(reply.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(reply.headers().contains_key("retry-after"));
}

#[tokio::test(start_paused = true)]
async fn equal_requests_of_a_caller_that_its_limit_holds_back_share_one_call() {
    let mut bench = Bench::with_granted("", &["a", "b"]).await;
    bench.throttle("a", 10).await;
    let held: Vec<_> = (0..5).map(|_| bench.begin("a", LIST)).collect();
    bench.assert_no_call().await;
    sleep(11 * SECOND).await;
    let call = bench.next_call_of("a").await;
    sleep(20 * SECOND).await;
    bench.assert_no_call().await;
    call.answer(StatusCode::OK, EMPTY);
    for reply in all_replies(held).await {
        assert_eq!(reply.status(), StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_the_call_of_a_caller_that_its_limit_holds_back() {
    let mut bench = Bench::with_granted("", &["a", "b"]).await;
    bench.throttle("a", 10).await;
    let held: Vec<_> = (0..2).map(|_| bench.begin("a", LIST)).collect();
    bench.settle().await;
    let other = bench.begin("b", LIST);
    bench.next_call_of("b").await.answer(StatusCode::OK, EMPTY);
    assert_eq!(other.await.unwrap().status(), StatusCode::OK);
    // The entry is for those that are held back, too.
    for reply in all_replies(held).await {
        assert_eq!(reply.status(), StatusCode::OK);
    }
    bench.assert_no_call().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_outlives_the_call_that_it_shares_with_an_earlier_one() {
    let mut bench = Bench::with_granted("", &["a"]).await;
    bench.throttle("a", 60).await;
    // 25 s later, the first of them can wait for 35 s, and its turn comes 1 s after that.
    sleep(25 * SECOND).await;
    let early = bench.begin("a", LIST);
    sleep(10 * SECOND).await;
    let late = bench.begin("a", LIST);
    sleep(27 * SECOND).await;
    assert_eq!(early.await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    bench.next_call_of("a").await.answer(StatusCode::OK, EMPTY);
    assert_eq!(late.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_makes_a_call_for_a_slow_flight_as_soon_as_its_own_limit_allows_it() {
    let mut bench = Bench::with_granted("", &["a", "b", "c"]).await;
    bench.throttle("b", 20).await;
    let _leading = bench.begin("a", LIST);
    let _slow = bench.next_call_of("a").await;
    let waiting = bench.begin("b", LIST);
    sleep(2 * SECOND).await;
    // Upstream answers others. But this caller has to wait until its limit allows a call.
    bench.complete_call("c", OTHER).await;
    sleep(17 * SECOND).await;
    bench.assert_no_call().await;
    sleep(3 * SECOND).await;
    bench.next_call_of("b").await.answer(StatusCode::OK, EMPTY);
    assert_eq!(waiting.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_makes_a_call_for_a_slow_flight_as_soon_as_another_call_of_its_caller_has_ended() {
    let mut bench = Bench::with_granted("[upstream]\nmax_calls_per_caller = 1\n", &["a", "b", "c"]).await;
    let _leading = bench.begin("a", LIST);
    let _slow = bench.next_call_of("a").await;
    let busy = bench.begin("b", OTHER);
    let under_way = bench.next_call_of("b").await;
    let waiting = bench.begin("b", LIST);
    sleep(2 * SECOND).await;
    bench.complete_call("c", PROOF).await;
    bench.assert_no_call().await;
    // It is no reason for an additional call itself.
    under_way.answer(StatusCode::BAD_GATEWAY, "");
    bench.next_call_of("b").await.answer(StatusCode::OK, EMPTY);
    assert_eq!(waiting.await.unwrap().status(), StatusCode::OK);
    assert_eq!(busy.await.unwrap().status(), StatusCode::BAD_GATEWAY);
}

#[tokio::test(start_paused = true)]
async fn a_held_call_is_not_sent_if_all_its_clients_have_gone() {
    let mut bench = Bench::with_granted("", &["a", "b"]).await;
    bench.throttle("a", 10).await;
    let held: Vec<_> = (0..2).map(|_| bench.begin("a", LIST)).collect();
    bench.settle().await;
    held.iter().for_each(JoinHandle::abort);
    sleep(11 * SECOND).await;
    bench.assert_no_call().await;
    // Nothing of it is left.
    let asking = bench.begin("a", LIST);
    bench.next_call_of("a").await.answer(StatusCode::OK, EMPTY);
    assert_eq!(asking.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_held_call_is_sent_for_the_last_client_that_waits_for_it() {
    let mut bench = Bench::with_granted("", &["a", "b", "c"]).await;
    bench.gateway.reload(&settings(&ip_quota(20))).unwrap();
    bench.complete_call("c", OTHER).await;
    let leading = bench.begin("a", LIST);
    bench.settle().await;
    let (gone, waiting) = (bench.begin("b", LIST), bench.begin("b", LIST));
    bench.settle().await;
    leading.abort();
    gone.abort();
    bench.next_call_of("a").await.answer(StatusCode::OK, EMPTY);
    assert_eq!(waiting.await.unwrap().status(), StatusCode::OK);
}

const SHORT_LIVED: &str = "ttl = \"10s\"\nstale_while_revalidate = \"5s\"\nstale_if_error = \"0s\"\n";

#[tokio::test(start_paused = true)]
async fn a_held_refresh_for_which_a_client_waits_takes_that_client_s_turn() {
    let mut bench = Bench::with_granted(SHORT_LIVED, &["a", "b", "c"]).await;
    bench.complete_call("a", LIST).await;
    sleep(11 * SECOND).await;
    bench.gateway.reload(&settings(&format!("{SHORT_LIVED}{}", ip_quota(40)))).unwrap();
    bench.complete_call("c", PROOF).await;
    assert_eq!(bench.begin("a", LIST).await.unwrap().status(), StatusCode::OK);
    // The entry can no longer be used.
    sleep(6 * SECOND).await;
    let waiting = bench.begin("b", LIST);
    bench.settle().await;
    let other = bench.begin("c", OTHER);
    // A refresh would be sent after the other call, and not after 35 s.
    bench.next_call_of("a").await.answer(StatusCode::OK, EMPTY);
    assert_eq!(waiting.await.unwrap().status(), StatusCode::OK);
    assert_eq!(other.await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(start_paused = true)]
async fn a_held_refresh_is_sent_although_no_client_waits_for_it() {
    let mut bench = Bench::with_granted(SHORT_LIVED, &["a", "b"]).await;
    bench.complete_call("a", LIST).await;
    sleep(11 * SECOND).await;
    bench.gateway.reload(&settings(&format!("{SHORT_LIVED}{}", ip_quota(20)))).unwrap();
    bench.complete_call("b", PROOF).await;
    assert_eq!(bench.begin("a", LIST).await.unwrap().status(), StatusCode::OK);
    sleep(6 * SECOND).await;
    // A client waits for it for a moment.
    let waiting = bench.begin("b", LIST);
    bench.settle().await;
    waiting.abort();
    bench.next_call_of("a").await.answer(StatusCode::OK, EMPTY);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_relayed_because_it_is_too_large_waits_for_its_turn() {
    let mut bench = Bench::with_granted(&user_quota(10), &["a"]).await;
    sleep(20 * SECOND).await;
    let asking = bench.begin("a", LIST);
    bench.next_call_of("a").await.fail(UpstreamError::TooLarge(StatusCode::OK));
    bench.assert_no_call().await;
    sleep(11 * SECOND).await;
    bench.next_call_of("a").await.answer_complete(StatusCode::OK, EMPTY);
    assert_eq!(asking.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn retry_after_does_not_count_requests_that_give_up_before_their_turn() {
    let mut bench = Bench::with_granted(&user_quota(10), &["a"]).await;
    let pending: Vec<_> = (0..200)
        .map(|number| {
            let gateway = Arc::clone(&bench.gateway);
            tokio::spawn(
                async move { get_in_process(&gateway, "a", &format!("/v2/p/products?product_id={number}")).await },
            )
        })
        .collect();
    let answering = tokio::spawn(async move {
        while let Some(call) = bench.calls.recv().await {
            call.answer(StatusCode::OK, EMPTY);
        }
    });
    // One is sent every 10 s. The others give up after 30 s.
    let (mut sent, mut throttled) = (0, 0);
    for reply in all_replies(pending).await {
        match reply.status() {
            StatusCode::OK => sent += 1,
            status => {
                throttled += 1;
                let retry_after: u64 = reply.header("retry-after").parse().unwrap();
                assert!(status == StatusCode::TOO_MANY_REQUESTS && retry_after <= 11, "{status} {retry_after}");
            }
        }
    }
    assert!(sent >= 2 && throttled > 190, "{sent} {throttled}");
    answering.abort();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_has_not_reached_upstream_takes_nothing_from_the_quota() {
    let mut bench = Bench::with_granted(&user_quota(10), &["a"]).await;
    sleep(20 * SECOND).await;
    let failing = bench.begin("a", LIST);
    bench.next_call_of("a").await.fail(UpstreamError::Connect("refused".to_owned()));
    assert_eq!(failing.await.unwrap().status(), StatusCode::BAD_GATEWAY);
    let _other = bench.begin("a", OTHER);
    bench.settle().await;
    assert!(bench.calls.try_recv().is_ok(), "it waits");
}
