//! A slow or failed call of one caller does not delay the other callers. While upstream is slow or fails for all
//! callers, the gateway must not make additional calls.

use std::collections::HashMap;
use std::time::Duration;

use http::StatusCode;
use tokio::time::sleep;

use crate::support::scripted::{Bench, EMPTY};
use crate::support::within;

const LIST: &str = "/v2/p/products?os_type=Linux";
const OTHER: &str = "/v2/p/products?os_type=Windows";
const PROOF: &str = "/v2/p/products?limit=1";

const FULL: &str = r#"{"products":["full"]}"#;

/// The clock is paused. It moves on as soon as all tasks wait.
async fn seconds_pass(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

/// Less than `stale_if_slow`.
async fn a_moment_passes() {
    sleep(Duration::from_millis(100)).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_makes_a_second_call_when_only_the_leader_is_slow() {
    let mut bench = Bench::with_granted("", &["leader", "one", "two", "other"]).await;
    let leading = bench.begin("leader", LIST);
    let slow = bench.next_call_of("leader").await;
    let waiting = [bench.begin("one", LIST), bench.begin("two", LIST), bench.begin("leader", LIST)];
    seconds_pass(1).await;
    bench.assert_no_call().await;
    bench.complete_call("other", OTHER).await;
    let second = bench.next_call().await;
    assert_ne!(second.token, "leader");
    second.answer(StatusCode::OK, FULL);
    for pending in waiting.into_iter().chain([leading]) {
        let reply = within(pending).await.unwrap();
        assert_eq!((reply.status(), reply.text()), (StatusCode::OK, FULL));
    }
    // The end of the slow call affects nobody.
    slow.answer(StatusCode::INTERNAL_SERVER_ERROR, "{}");
    bench.assert_no_call().await;
    let next = within(bench.begin("two", LIST)).await.unwrap();
    assert!(next.cache_status().contains("; hit"), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn no_second_call_is_made_while_upstream_is_slow_for_everybody() {
    let mut bench = Bench::with_granted("", &["leader", "one", "other"]).await;
    let pending = [bench.begin("leader", LIST), bench.begin("one", LIST)];
    let slow = bench.next_call_of("leader").await;
    let other = bench.begin("other", OTHER);
    let slow_too = bench.next_call_of("other").await;
    seconds_pass(10).await;
    bench.assert_no_call().await;
    slow.answer(StatusCode::OK, FULL);
    for pending in pending {
        assert_eq!(within(pending).await.unwrap().text(), FULL);
    }
    slow_too.answer(StatusCode::OK, EMPTY);
    within(other).await.unwrap();
    bench.assert_no_call().await;
}

#[tokio::test(start_paused = true)]
async fn a_success_sent_before_the_slow_call_causes_no_second_call() {
    let mut bench = Bench::with_granted("", &["leader", "one", "other"]).await;
    let other = bench.begin("other", OTHER);
    let earlier = bench.next_call_of("other").await;
    let _leading = bench.begin("leader", LIST);
    let _slow = bench.next_call_of("leader").await;
    let _waiting = bench.begin("one", LIST);
    seconds_pass(2).await;
    earlier.answer(StatusCode::OK, EMPTY);
    within(other).await.unwrap();
    bench.assert_no_call().await;
}

#[tokio::test(start_paused = true)]
async fn at_most_three_calls_run_and_a_failure_ends_only_its_own() {
    let mut bench = Bench::with_granted("", &["leader", "one", "two", "three", "other"]).await;
    let leading = bench.begin("leader", LIST);
    let first = bench.next_call_of("leader").await;
    let mut waiting = HashMap::from(["one", "two", "three"].map(|token| (token.to_owned(), bench.begin(token, LIST))));
    seconds_pass(2).await;
    bench.complete_call("other", OTHER).await;
    let second = bench.next_call().await;
    seconds_pass(2).await;
    bench.assert_no_call().await;
    bench.complete_call("other", OTHER).await;
    let third = bench.next_call().await;
    seconds_pass(2).await;
    bench.complete_call("other", OTHER).await;
    bench.assert_no_call().await;
    let leading_second = waiting.remove(&second.token).unwrap();
    second.answer(StatusCode::FORBIDDEN, r#"{"error_code":"APIGW.0302"}"#);
    assert_eq!(within(leading_second).await.unwrap().status(), StatusCode::FORBIDDEN);
    first.answer(StatusCode::INTERNAL_SERVER_ERROR, "{}");
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
    third.answer(StatusCode::OK, FULL);
    for (_, pending) in waiting {
        assert_eq!(within(pending).await.unwrap().text(), FULL);
    }
    bench.assert_no_call().await;
}

#[tokio::test(start_paused = true)]
async fn a_leaders_500_is_not_shared_while_upstream_answers_others() {
    let mut bench = Bench::with_granted("", &["leader", "one", "two", "other"]).await;
    let leading = bench.begin("leader", LIST);
    let failing = bench.next_call_of("leader").await;
    let waiting = [bench.begin("one", LIST), bench.begin("two", LIST)];
    a_moment_passes().await;
    bench.complete_call("other", OTHER).await;
    failing.answer(StatusCode::INTERNAL_SERVER_ERROR, "{}");
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
    bench.next_call().await.answer(StatusCode::OK, FULL);
    for pending in waiting {
        assert_eq!(within(pending).await.unwrap().text(), FULL);
    }
    bench.assert_no_call().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_is_repeated_once() {
    let mut bench = Bench::with_granted("", &["leader", "one", "two", "late", "other"]).await;
    let leading = bench.begin("leader", LIST);
    let failing = bench.next_call_of("leader").await;
    let waiting = [bench.begin("one", LIST), bench.begin("two", LIST)];
    a_moment_passes().await;
    bench.complete_call("other", OTHER).await;
    failing.answer(StatusCode::BAD_GATEWAY, "{}");
    assert_eq!(within(leading).await.unwrap().status(), StatusCode::BAD_GATEWAY);
    let repeated = bench.next_call().await;
    let late = bench.begin("late", LIST);
    a_moment_passes().await;
    bench.complete_call("other", OTHER).await;
    repeated.answer(StatusCode::BAD_GATEWAY, "{}");
    for pending in waiting.into_iter().chain([late]) {
        assert_eq!(within(pending).await.unwrap().status(), StatusCode::BAD_GATEWAY);
    }
    bench.assert_no_call().await;
}

#[tokio::test(start_paused = true)]
async fn a_500_is_shared_while_upstream_answers_nobody() {
    let mut bench = Bench::with_granted("", &["leader", "one"]).await;
    let pending = [bench.begin("leader", LIST), bench.begin("one", LIST)];
    let failing = bench.next_call_of("leader").await;
    a_moment_passes().await;
    failing.answer(StatusCode::INTERNAL_SERVER_ERROR, "{}");
    for pending in pending {
        assert_eq!(within(pending).await.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
    bench.assert_no_call().await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_grant_has_lapsed_makes_no_second_call() {
    let mut bench = Bench::with_granted("", &["one"]).await;
    seconds_pass(290).await;
    for token in ["leader", "other"] {
        bench.complete_call(token, PROOF).await;
    }
    let leading = bench.begin("leader", LIST);
    let slow = bench.next_call_of("leader").await;
    let pending = bench.begin("one", LIST);
    // Its grant ends after 300 s.
    seconds_pass(20).await;
    bench.complete_call("other", OTHER).await;
    bench.assert_no_call().await;
    slow.answer(StatusCode::OK, FULL);
    assert_eq!(within(leading).await.unwrap().text(), FULL);
    bench.next_call_of("one").await.answer(StatusCode::FORBIDDEN, r#"{"error_code":"APIGW.0302"}"#);
    assert_eq!(within(pending).await.unwrap().status(), StatusCode::FORBIDDEN);
}
