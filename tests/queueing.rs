//! Upstream calls beyond the limits are queued. A caller that sends too many requests waits only for its own calls.

use http::StatusCode;

use crate::support::{World, all_replies, within};

const QUEUED: &str = "workspace_gateway_upstream_calls_queued";
const CALLS: &str = "workspace_gateway_upstream_calls";

const RELAY: &str = "{kind=\"relay\",service=\"workspace\"}";
const LIST: &str = "{kind=\"product-list\",service=\"workspace\"}";

fn list(number: usize) -> String {
    format!("/v2/PROJECT/products?product_id={number}")
}

#[tokio::test]
async fn a_looping_caller_waits_only_for_its_own_calls() {
    let world = World::with("[upstream]\nmax_calls = 8\nmax_calls_per_caller = 2").await;
    let [looping, other] = world.granted_tokens().await;
    world.simulator.hold();
    let mut requests: Vec<_> = (0..10).map(|number| world.begin(&looping, &list(number))).collect();
    world.until_metric(&format!("{QUEUED}{LIST}"), 8.0).await;
    requests.push(world.begin_and_reach_upstream(&other, &list(10), 3).await);
    assert_eq!(world.metric(&format!("{CALLS}{LIST}")), 3.0);
    world.simulator.release();
    assert!(all_replies(requests).await.iter().all(|reply| reply.status() == StatusCode::OK));
    assert_eq!(world.upstream_calls(), 11);
    world.until_metric(&format!("{CALLS}{LIST}"), 0.0).await;
    assert_eq!(world.metric(&format!("{QUEUED}{LIST}")), 0.0);
}

#[tokio::test]
async fn invented_tokens_leave_half_of_the_slots_to_proved_callers() {
    let world = World::with("[upstream]\nmax_calls = 4\nmax_calls_per_caller = 2").await;
    let [proved] = world.granted_tokens().await;
    for (path, series) in [(list(0), LIST), ("/v2/PROJECT/desktops".to_owned(), RELAY)] {
        // A successful relay makes its caller known to the service.
        assert_eq!(world.get_as(&proved, "/v2/PROJECT/desktops").await.status(), StatusCode::OK);
        world.simulator.forget_requests();
        world.simulator.hold();
        let mut requests: Vec<_> = (0..10).map(|number| world.begin(&format!("invented-{number}"), &path)).collect();
        world.until_metric(&format!("{QUEUED}{series}"), 8.0).await;
        requests.push(world.begin_and_reach_upstream(&proved, &path, 3).await);
        world.simulator.release();
        let statuses: Vec<_> = all_replies(requests).await.iter().map(|reply| reply.status().as_u16()).collect();
        assert_eq!((&statuses[..10], statuses[10]), (&[401; 10][..], 200), "{path}");
    }
}

#[tokio::test]
async fn a_503_names_the_settings_that_a_call_waits_for() {
    // Unknown callers have one of the two slots.
    let settings = "[upstream]\nmax_calls = 2\nmax_calls_per_caller = 1\nanswer_timeout = \"50ms\"\n\
                    first_byte_timeout = \"50ms\"\nconnect_timeout = \"50ms\"";
    let world = World::with(settings).await;
    world.simulator.hold();
    let first = world.begin_and_reach_upstream("", "/v2/PROJECT/desktops", 1).await;
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
async fn a_streamed_response_counts_as_a_call_until_its_end() {
    let incomplete = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome of it";
    let world = World::with_fixed_upstream(incomplete, "").await;
    let request = world.begin("t", "/v2/PROJECT/desktops");
    world.until_metric("workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"200\"}", 1.0).await;
    assert_eq!(world.metric(&format!("{CALLS}{RELAY}")), 1.0);
    // The client disconnects.
    request.abort();
    world.until_metric(&format!("{CALLS}{RELAY}"), 0.0).await;
}

#[tokio::test]
async fn a_caller_at_its_own_limit_leads_no_shared_fetch() {
    let world = World::with("[upstream]\nmax_calls_per_caller = 1").await;
    let [looping, other] = world.granted_tokens().await;
    world.simulator.hold();
    let first = world.begin_and_reach_upstream(&looping, &list(1), 1).await;
    let queued = world.begin(&looping, &list(2));
    world.until_metric(&format!("{QUEUED}{LIST}"), 1.0).await;
    // The same request of another caller is sent at once, and its response answers both.
    let leader = world.begin_and_reach_upstream(&other, &list(2), 2).await;
    world.simulator.release();
    assert!(all_replies(vec![first, queued, leader]).await.iter().all(|reply| reply.status() == StatusCode::OK));
}

#[tokio::test]
async fn an_abandoned_request_is_removed_from_the_queue() {
    // With the default of `half_close`, a client that closes its connection might still read (`half_close.rs`).
    let world = World::with("[upstream]\nmax_calls = 2\n[limits]\nmax_flights = 1\nhalf_close = \"0s\"").await;
    world.simulator.hold();
    let first = world.begin_and_reach_upstream("first", &list(0), 1).await;
    let requests: Vec<_> = (1..20).map(|number| world.begin(&format!("invented-{number}"), &list(number))).collect();
    world.until_metric(&format!("{QUEUED}{LIST}"), 19.0).await;
    requests.iter().for_each(tokio::task::JoinHandle::abort);
    world.until_metric(&format!("{QUEUED}{LIST}"), 0.0).await;
    world.simulator.release();
    assert_eq!(within(first).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(world.upstream_calls(), 1);
}
