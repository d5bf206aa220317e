//! The fast path in HTTP/2: the gateway knows a head again that hyper has read, although it came in other bytes.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{Method, StatusCode};
use workspace_gateway::testing::budget::Purpose;
use workspace_gateway::testing::signing::Payload;

use crate::support::signer::{Signed, date};
use crate::support::{Http, Reply, World};
use crate::varying_fields::{gateway, gateway_with_keys, trace};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

/// A response over HTTP/2 to a GET with these headers.
async fn get_http2(world: &World, http: &Http, headers: &[(&str, &str)]) -> Reply {
    let headers: Vec<_> = headers.iter().copied().chain([("x-auth-token", &*world.token)]).collect();
    http.send(Method::GET, &world.url(LIST), &headers, "").await
}

/// The parts of a response that do not differ by response.
fn parts(reply: &Reply) -> (StatusCode, BTreeMap<String, String>, String) {
    let headers = reply.headers().iter().filter(|(name, _)| *name != "x-request-id");
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    assert_eq!(reply.header("x-request-id").len(), 32);
    (reply.status(), headers.collect(), reply.text().to_owned())
}

#[tokio::test]
async fn a_known_http2_head_takes_the_fast_path() {
    let world = gateway("").await;
    let http = Http::http2();
    let tag = get_http2(&world, &http, &[]).await.header("etag").to_owned();
    let (first, second) = (trace(1), trace(2));
    let [first, second] = [&first, &second].map(|line| line.split_once(": ").unwrap().1);
    let none: &[(&str, &str)] = &[];
    for (known, sent, is_fast) in [
        (none, none, true),
        (&[("traceparent", first)], &[("traceparent", second)], true),
        (&[("if-none-match", "\"old\"")], &[("if-none-match", &*tag)], true),
        (&[("if-none-match", &*tag)], &[("if-none-match", "\"old\"")], true),
        (&[("x-a", "1")], &[("x-a", "2")], false),
        (&[("x-a", "1")], &[("x-b", "1")], false),
        (&[("x-a", "1")], &[("x-a", "1"), ("x-a", "1")], false),
        (&[("te", "trailers")], &[("te", "trailers")], false),
        (&[("cache-control", "max-age=60")], &[("cache-control", "no-cache")], false),
        (&[("traceparent", first)], &[("traceparent", first), ("traceparent", first)], false),
        (&[("if-none-match", "\"old\"")], &[("if-none-match", "\"old\", \"older\"")], false),
    ] {
        for _ in 0..3 {
            get_http2(&world, &http, known).await;
        }
        let before = world.fast_path_hits();
        let fast = get_http2(&world, &http, sent).await;
        assert_eq!(world.fast_path_hits(), before + usize::from(is_fast), "{known:?} {sent:?}");
        let number = before.to_string();
        let with_new: Vec<_> = sent.iter().copied().chain([("x-n", &*number)]).collect();
        if is_fast {
            assert_eq!(parts(&fast), parts(&get_http2(&world, &http, &with_new).await), "{known:?} {sent:?}");
            assert_eq!(world.fast_path_hits(), before + 1);
        }
    }
}

#[tokio::test]
async fn a_known_http2_head_takes_the_full_path_while_less_than_half_of_the_budget_is_free() {
    let world = gateway("").await;
    let http = Http::http2();
    for _ in 0..3 {
        get_http2(&world, &http, &[]).await;
    }
    assert_eq!(world.fast_path_hits(), 1);
    let used = "workspace_gateway_memory_used_bytes{purpose=\"requests\"}";
    world.until_metric(used, 0.0).await;
    let budget = world.server.gateway().budget();
    let half = budget.charge(Purpose::Connections, budget.limit() / 2);
    assert!(get_http2(&world, &http, &[]).await.is_hit());
    assert_eq!(world.fast_path_hits(), 1);
    drop(half);
    assert!(get_http2(&world, &http, &[]).await.is_hit());
    assert_eq!(world.fast_path_hits(), 2);
    world.until_metric(used, 0.0).await;
}

#[tokio::test]
async fn an_http2_head_that_is_too_large_with_its_new_values_is_rejected() {
    let world = gateway("[limits]\nmax_head_size = \"8KiB\"\n").await;
    let http = Http::http2();
    let padding = "p".repeat(7_600 - world.token.len());
    let get = async |length| {
        let state = "a".repeat(length);
        get_http2(&world, &http, &[("x-padding", &padding), ("tracestate", &state)]).await.status()
    };
    for _ in 0..3 {
        assert_eq!(get(10).await, 200);
    }
    assert_eq!(world.fast_path_hits(), 1);
    let mut statuses: Vec<_> = Vec::new();
    for length in (0..600).step_by(7) {
        let before = world.fast_path_hits();
        let status = get(length).await;
        // Only a head that the full path accepts, too, takes the fast path.
        statuses.push((status.as_u16(), world.fast_path_hits() > before));
    }
    assert!(statuses.is_sorted_by_key(|&(status, is_fast)| (status, !is_fast)), "{statuses:?}");
    assert!([(200, true), (200, false), (431, false)].iter().all(|one| statuses.contains(one)), "{statuses:?}");
}

#[tokio::test]
async fn a_known_http2_head_is_known_in_no_other_version_and_for_no_other_authority() {
    let world = gateway("").await;
    let http = Http::http2();
    for _ in 0..3 {
        get_http2(&world, &http, &[]).await;
    }
    assert_eq!(world.fast_path_hits(), 1);
    let elsewhere = world.url(LIST).replace("127.0.0.1", "localhost");
    let headers = [("x-auth-token", &*world.token)];
    assert!(http.send(Method::GET, &elsewhere, &headers, "").await.is_hit());
    assert!(Http::new().send(Method::GET, &world.url(LIST), &headers, "").await.is_hit());
    assert_eq!(http.send(Method::HEAD, &world.url(LIST), &headers, "").await.text(), "");
    http.send(Method::GET, &world.url(LIST), &headers, "{}").await;
    assert_eq!(world.fast_path_hits(), 1);
}

#[tokio::test]
async fn a_request_that_is_signed_anew_takes_the_fast_path_in_http2() {
    let (world, [key, _]) = gateway_with_keys("").await;
    let http = Http::http2();
    let signed = |seconds| {
        let mut unsigned = Signed::get(&world, &key, LIST);
        unsigned.headers.clear();
        unsigned.sign(&key, &[], &Payload::of(b""), date(&world) + Duration::from_secs(seconds))
    };
    for (seconds, hits) in [(0, 0), (1, 0), (2, 1), (3, 2), (15 * 60 + 1, 2)] {
        let reply = signed(seconds).send_with(&http).await;
        assert_eq!((reply.status() == 200, world.fast_path_hits()), (seconds < 10, hits), "{seconds}");
    }
    let forged = signed(4).with("x-sdk-date", &line_value(&signed(5), "x-sdk-date")).send_with(&http).await;
    assert_eq!((forged.status().as_u16(), world.fast_path_hits()), (401, 2));
}

fn line_value(signed: &Signed, name: &str) -> String {
    signed.headers[name].to_str().unwrap().to_owned()
}
