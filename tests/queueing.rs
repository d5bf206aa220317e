//! Calls to upstream wait for one another past the bounds, and whoever asks for too much waits behind
//! itself alone.

use http::StatusCode;

use crate::support::{World, all, within};

const QUEUED: &str = "workspace_gateway_upstream_calls_queued";
const CALLS: &str = "workspace_gateway_upstream_calls";

const RELAY: &str = "{kind=\"relay\",service=\"workspace\"}";
const LIST: &str = "{kind=\"product-list\",service=\"workspace\"}";

fn list(number: usize) -> String {
    format!("/v2/PROJECT/products?product_id={number}")
}

#[tokio::test]
async fn a_looping_caller_waits_behind_itself() {
    let world = World::with("[upstream]\nmax_calls = 8\nmax_calls_per_caller = 2").await;
    let [looping, other] = world.granted().await;
    world.simulator.hold();
    let mut asking: Vec<_> = (0..10).map(|number| world.begin(&looping, &list(number))).collect();
    world.until_metric(&format!("{QUEUED}{LIST}"), 8.0).await;
    asking.push(world.begin_and_arrive(&other, &list(10), 3).await);
    assert_eq!(world.metric(&format!("{CALLS}{LIST}")), 3.0);
    world.simulator.release();
    assert!(all(asking).await.iter().all(|reply| reply.status() == StatusCode::OK));
    assert_eq!(world.upstream_calls(), 11);
    world.until_metric(&format!("{CALLS}{LIST}"), 0.0).await;
    assert_eq!(world.metric(&format!("{QUEUED}{LIST}")), 0.0);
}

#[tokio::test]
async fn invented_tokens_leave_half_to_those_that_are_proved() {
    let world = World::with("[upstream]\nmax_calls = 4\nmax_calls_per_caller = 2").await;
    let [proved] = world.granted().await;
    for (path, series) in [(list(0), LIST), ("/v2/PROJECT/desktops".to_owned(), RELAY)] {
        // What a relay is answered well makes its caller known there.
        assert_eq!(world.get_as(&proved, "/v2/PROJECT/desktops").await.status(), StatusCode::OK);
        world.simulator.forget_requests();
        world.simulator.hold();
        let mut asking: Vec<_> = (0..10).map(|number| world.begin(&format!("invented-{number}"), &path)).collect();
        world.until_metric(&format!("{QUEUED}{series}"), 8.0).await;
        asking.push(world.begin_and_arrive(&proved, &path, 3).await);
        world.simulator.release();
        let statuses: Vec<_> = all(asking).await.iter().map(|reply| reply.status().as_u16()).collect();
        assert_eq!((&statuses[..10], statuses[10]), (&[401; 10][..], 200), "{path}");
    }
}

#[tokio::test]
async fn a_503_names_the_settings_that_a_call_waits_for() {
    // One slot of two for unknown callers.
    let settings = "[upstream]\nmax_calls = 2\nmax_calls_per_caller = 1\nanswer_timeout = \"50ms\"\n\
                    first_byte_timeout = \"50ms\"\nconnect_timeout = \"50ms\"";
    let world = World::with(settings).await;
    world.simulator.hold();
    let first = world.begin_and_arrive("", "/v2/PROJECT/desktops", 1).await;
    for path in ["/v2/PROJECT/desktops", "/v2/PROJECT/products?os_type=a+b"] {
        let reply = world.get_as("", path).await;
        assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
        let (code, message) = reply.error();
        assert_eq!(code, "APIGW.0201");
        for setting in ["upstream.max_calls,", "upstream.max_calls_per_caller", "upstream.answer_timeout"] {
            assert!(message.contains(setting), "{message}");
        }
    }
    assert_eq!(world.upstream_calls(), 1);
    world.simulator.release();
    within(first).await.unwrap();
    assert_ne!(world.get_as("", "/v2/PROJECT/desktops").await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_stream_is_under_way_until_its_end() {
    let head_and_a_bit = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome of it";
    let world = World::before_one_that_says(head_and_a_bit, "").await;
    let asking = world.begin("t", "/v2/PROJECT/desktops");
    world.until_metric("workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"200\"}", 1.0).await;
    assert_eq!(world.metric(&format!("{CALLS}{RELAY}")), 1.0);
    // The client hangs up.
    asking.abort();
    world.until_metric(&format!("{CALLS}{RELAY}"), 0.0).await;
}

#[tokio::test]
async fn who_waits_behind_itself_leads_nobody() {
    let world = World::with("[upstream]\nmax_calls_per_caller = 1").await;
    let [looping, other] = world.granted().await;
    world.simulator.hold();
    let first = world.begin_and_arrive(&looping, &list(1), 1).await;
    let queued = world.begin(&looping, &list(2));
    world.until_metric(&format!("{QUEUED}{LIST}"), 1.0).await;
    // The same question of another goes at once, and answers both.
    let asking = world.begin_and_arrive(&other, &list(2), 2).await;
    world.simulator.release();
    assert!(all(vec![first, queued, asking]).await.iter().all(|reply| reply.status() == StatusCode::OK));
}

#[tokio::test]
async fn what_nobody_wants_any_more_does_not_queue() {
    // A client that closes its connection, as these do, might still read (`half_close.rs`).
    let world = World::with("[upstream]\nmax_calls = 2\n[limits]\nmax_flights = 1\nhalf_close = \"0s\"").await;
    world.simulator.hold();
    let first = world.begin_and_arrive("first", &list(0), 1).await;
    let asking: Vec<_> = (1..20).map(|number| world.begin(&format!("invented-{number}"), &list(number))).collect();
    world.until_metric(&format!("{QUEUED}{LIST}"), 19.0).await;
    asking.iter().for_each(tokio::task::JoinHandle::abort);
    world.until_metric(&format!("{QUEUED}{LIST}"), 0.0).await;
    world.simulator.release();
    assert_eq!(within(first).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(world.upstream_calls(), 1);
}
