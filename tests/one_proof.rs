//! One proof for concurrent requests: the requests of a caller without a grant wait for one call. The clock is paused: it
//! moves on as soon as all tasks wait.

use std::sync::atomic::Ordering;

use http::StatusCode;
use tokio::time::sleep;
use workspace_gateway::testing::clock::Clock;

use crate::renewal::{LATENCY, LIST, OTHER, SECOND, World};
use crate::support::all_replies;

/// 22 pages of eleven lists in three scopes.
fn pages() -> Vec<String> {
    let lists = (0..11).map(|list| {
        let path = ["/v2/p/products", "/v2/p/products/sharer", "/v1/p/product"][list % 3];
        format!("{path}?product_id=list-{list}")
    });
    lists.flat_map(|list| [list.clone(), format!("{list}&offset=100")]).collect()
}

#[tokio::test(start_paused = true)]
async fn a_new_caller_with_22_requests_at_once_makes_one_call_for_each_scope() {
    let world = World::new("");
    for page in pages() {
        world.get("a", &page).await;
    }
    let replies = all_replies(pages().iter().map(|page| world.begin("b", page)).collect()).await;
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::OK));
    assert_eq!(world.calls("b"), 3);
    let waited = replies.iter().filter(|reply| reply.cache_status().contains("; hit; ")).collect::<Vec<_>>();
    assert!(waited.len() == 19 && waited.iter().all(|reply| reply.cache_status().ends_with("; detail=coalesced")));
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_the_proof_whether_or_not_there_is_an_entry() {
    let world = World::new("");
    world.prove("a").await;
    let (_proof, began) = (world.begin("b", "/v2/p/products?offset=100"), Clock::System.timer_now());
    tokio::task::yield_now().await;
    let (stored, missing) = (world.begin("b", LIST), world.begin("b", OTHER));
    assert!(stored.await.unwrap().is_hit());
    assert_eq!(began.elapsed(), LATENCY);
    // The missing one is fetched after the proof.
    assert_eq!(missing.await.unwrap().status(), StatusCode::OK);
    assert_eq!((began.elapsed(), world.calls("b")), (2 * LATENCY, 2));
}

#[tokio::test(start_paused = true)]
async fn after_three_calls_without_a_proof_each_request_makes_its_own() {
    let world = World::new("");
    world.refuse("b", StatusCode::INTERNAL_SERVER_ERROR, None);
    world.delay(LATENCY / 10);
    let pages: Vec<_> = (0..9).map(|page| format!("/v2/p/products?offset={page}")).collect();
    let replies = all_replies(pages.iter().map(|page| world.begin("b", page)).collect()).await;
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::INTERNAL_SERVER_ERROR));
    let times: Vec<_> = world.upstream.calls.lock().unwrap().iter().map(|(at, _)| *at).collect();
    let calls_at = |call: u32| times.iter().filter(|at| **at == times[0] + call * LATENCY / 10).count();
    assert_eq!([0, 1, 2, 3].map(calls_at), [1, 1, 1, 6]);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_a_proof_no_longer_than_stale_if_slow() {
    let world = World::new("");
    world.delay(10 * SECOND);
    let began = Clock::System.timer_now();
    let (_proof, other) = (world.begin("b", LIST), world.begin("b", OTHER));
    sleep(SECOND / 2).await;
    assert_eq!(world.upstream.in_flight.load(Ordering::Relaxed), 1);
    sleep(SECOND).await;
    assert_eq!(world.upstream.in_flight.load(Ordering::Relaxed), 2, "stale_if_slow is 1 s");
    assert_eq!((other.await.unwrap().status(), began.elapsed()), (StatusCode::OK, 11 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_denial_of_the_first_call_answers_the_requests_that_wait() {
    let world = World::new("");
    world.refuse("b", StatusCode::FORBIDDEN, None);
    let replies = all_replies([LIST, OTHER].iter().map(|path| world.begin("b", path)).collect()).await;
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::FORBIDDEN));
    assert_eq!(world.calls("b"), 1);
}
