//! Tests of the simulator over real sockets.

mod connections;
mod quotas;

use std::collections::HashSet;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, SERVER, SET_COOKIE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::task::JoinSet;

use super::{ChangeUnit, Simulator};
use crate::catalogue::Service;
use crate::catalogue::Service::{AppStream, Workspace};
use crate::clock::{Clock, ManualClock};
use crate::request::caller::X_AUTH_TOKEN;

const PRODUCTS: &str = "/v2/p/products";
const SHARER: &str = "/v2/p/products/sharer";
const V1: &str = "/v1/p/product";

const MINUTE: Duration = Duration::from_secs(60);
/// The smallest step of the clock.
const TICK: Duration = Duration::from_nanos(1);

struct Bench {
    simulator: Simulator,
    client: Client<HttpConnector, Full<Bytes>>,
    token: String,
}

impl Bench {
    async fn new() -> Self {
        let simulator = Simulator::start().await.unwrap();
        let token = simulator.token("p");
        Self { simulator, client: Client::builder(TokioExecutor::new()).build_http(), token }
    }

    /// With a clock that stands still.
    async fn with_clock() -> (Self, ManualClock) {
        let (bench, clock) = (Self::new().await, ManualClock::default());
        bench.simulator.set_clock(Clock::Manual(clock.clone()));
        (bench, clock)
    }

    /// What the usual token gets at a moment.
    fn list_at(&self, target: &str, headers: &HeaderMap, at: Instant) -> Bytes {
        self.simulator.product_list_at(&self.token, target, headers, at).unwrap()
    }

    async fn send(&self, service: Service, method: Method, target: &str, headers: &HeaderMap) -> Response<Bytes> {
        let uri = self.simulator.url(service) + target;
        let mut request = Request::builder().method(method).uri(uri).body(Full::default()).unwrap();
        *request.headers_mut() = headers.clone();
        let (head, body) = self.client.request(request).await.unwrap().into_parts();
        Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }

    async fn get_as(&self, token: &str, service: Service, target: &str) -> Response<Bytes> {
        self.send(service, Method::GET, target, &with_token(token)).await
    }

    async fn get(&self, service: Service, target: &str) -> Response<Bytes> {
        self.get_as(&self.token, service, target).await
    }

    async fn body(&self) -> Bytes {
        self.get(Workspace, PRODUCTS).await.into_body()
    }

    fn raw(&self) -> TcpStream {
        TcpStream::connect(self.simulator.url(Workspace).strip_prefix("http://").unwrap()).unwrap()
    }

    fn raw_request(&self) -> String {
        format!("GET {PRODUCTS} HTTP/1.1\r\nhost: w\r\nx-auth-token: {}\r\n\r\n", self.token)
    }
}

fn with_token(token: &str) -> HeaderMap {
    HeaderMap::from_iter([(X_AUTH_TOKEN, HeaderValue::from_str(token).unwrap())])
}

fn error(response: &Response<Bytes>) -> (u16, String) {
    let body: Value = serde_json::from_slice(response.body()).unwrap();
    let code = body["error_code"].as_str().unwrap().to_owned();
    assert!(body["error_msg"].is_string());
    if code.starts_with("APIGW.") {
        assert_eq!(body["request_id"], response.headers()["x-request-id"].to_str().unwrap());
    } else {
        assert_eq!(body.get("request_id"), None);
    }
    (response.status().as_u16(), code)
}

#[tokio::test]
async fn the_three_operations_respond_with_the_usual_headers() {
    let bench = Bench::new().await;
    let mut ids = HashSet::new();
    for (service, path) in [(Workspace, PRODUCTS), (Workspace, SHARER), (AppStream, V1)] {
        let response = bench.get(service, path).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[SERVER], "api-gateway");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json;charset=utf8");
        let id = response.headers()["x-request-id"].to_str().unwrap();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        assert!(ids.insert(id.to_owned()));
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        assert!(!body["products"].as_array().unwrap().is_empty());

        let head = bench.send(service, Method::HEAD, path, &with_token(&bench.token)).await;
        assert_eq!(head.headers()[CONTENT_LENGTH], response.headers()[CONTENT_LENGTH]);
        assert!(head.body().is_empty());
    }
}

#[tokio::test]
async fn tokens_are_checked() {
    type SetState = fn(&Simulator, &str);
    let bench = Bench::new().await;
    let simulator = &bench.simulator;
    let other = simulator.token("q");
    let longest = simulator.token_of_length("p", 102_400);
    assert_eq!(bench.get_as(&longest, Workspace, PRODUCTS).await.status(), StatusCode::OK);
    assert_eq!(
        error(&bench.send(Workspace, Method::GET, PRODUCTS, &HeaderMap::new()).await),
        (401, "APIGW.0301".into())
    );
    assert_eq!(error(&bench.get_as("made-up", Workspace, PRODUCTS).await), (401, "APIGW.0301".into()));
    assert_eq!(error(&bench.get_as(&other, Workspace, PRODUCTS).await), (403, "WKS.00081102".into()));

    let states = [
        (Simulator::expire as SetState, 401, "APIGW.0301"),
        (Simulator::revoke, 401, "APIGW.0307"),
        (Simulator::deny, 403, "APIGW.0302"),
    ];
    for (set_state, status, code) in states {
        set_state(simulator, &bench.token);
        let refused = bench.get(Workspace, PRODUCTS).await;
        assert_eq!(error(&refused), (status, code.into()));
        assert_eq!(refused.headers().contains_key(CONNECTION), status == 401);
        assert_eq!(refused.headers().contains_key(TRANSFER_ENCODING), status == 401);
        assert_eq!(bench.get_as(&longest, Workspace, PRODUCTS).await.status(), StatusCode::OK);
    }
    let head = bench.send(Workspace, Method::HEAD, PRODUCTS, &with_token("made-up")).await;
    assert_eq!((head.status(), head.body().len()), (StatusCode::UNAUTHORIZED, 0));
    simulator.restore(&bench.token);
    assert_eq!(bench.get(Workspace, PRODUCTS).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_path_belongs_to_one_service() {
    let bench = Bench::new().await;
    for (service, path) in [(AppStream, PRODUCTS), (Workspace, V1), (AppStream, "/v2/p/desktops"), (Workspace, "/v9/p")]
    {
        assert_eq!(error(&bench.get(service, path).await), (404, "APIGW.0101".into()), "{path}");
    }
    assert_eq!(bench.get(AppStream, "/v2/p/job/1").await.status(), StatusCode::OK);
    assert_eq!(error(&bench.get(Workspace, "/v2/p/products?limit=101").await), (400, "WKS.00211102".into()));
}

#[tokio::test]
async fn failures_can_be_injected() {
    let bench = Bench::new().await;
    for (status, code) in [
        (400, "WKS.00211102"),
        (404, "WKS.00211902"),
        (500, "WKS.00211401"),
        (502, "APIGW.0201"),
        (503, "WKS.00050902"),
        (504, "APIGW.0201"),
    ] {
        bench.simulator.fail_with(StatusCode::from_u16(status).ok());
        assert_eq!(error(&bench.get(Workspace, PRODUCTS).await), (status, code.into()));
    }
    bench.simulator.fail_with(Some(StatusCode::NOT_MODIFIED));
    assert!(bench.get(Workspace, PRODUCTS).await.body().is_empty());
    bench.simulator.fail_with(None);

    bench.simulator.throttle(Some(1));
    assert_eq!(bench.get(Workspace, PRODUCTS).await.status(), StatusCode::OK);
    assert_eq!(error(&bench.get(AppStream, V1).await), (429, "APIGW.0308".into()));
    bench.simulator.throttle(None);
    assert_eq!(bench.get(AppStream, V1).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn one_token_can_fail_alone() {
    let bench = Bench::new().await;
    let other = bench.simulator.token("p");
    bench.simulator.throttle_token(&other, true);
    for service in [Workspace, AppStream] {
        let path = if service == Workspace { PRODUCTS } else { V1 };
        assert_eq!(error(&bench.get_as(&other, service, path).await), (429, "APIGW.0308".into()));
        assert_eq!(bench.get(service, path).await.status(), StatusCode::OK);
    }
    bench.simulator.throttle_token(&other, false);
    bench.simulator.fail_token(&bench.token, Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(error(&bench.get(Workspace, PRODUCTS).await), (503, "WKS.00050902".into()));
    assert_eq!(bench.get_as(&other, Workspace, PRODUCTS).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn tokens_above_the_length_limit_are_refused() {
    let bench = Bench::new().await;
    let long = bench.simulator.token_of_length("p", 9_000);
    for (status, code) in [(StatusCode::BAD_REQUEST, "WKS.00211102"), (StatusCode::URI_TOO_LONG, "APIGW.0201")] {
        bench.simulator.limit_token_length(Some((8_999, status)));
        assert_eq!(error(&bench.get_as(&long, Workspace, PRODUCTS).await), (status.as_u16(), code.into()));
        assert_eq!(error(&bench.get_as(&"x".repeat(9_000), Workspace, "/v2/p").await).0, status.as_u16());
        assert_eq!(bench.get(Workspace, PRODUCTS).await.status(), StatusCode::OK);
    }
    bench.simulator.limit_token_length(None);
    assert_eq!(bench.get_as(&long, Workspace, PRODUCTS).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_barrier_can_hold_one_token_or_one_target() {
    type Switch = fn(&Simulator, &str);
    let bench = Bench::new().await;
    let token = bench.token.clone();
    for (hold, release, target_or_token) in [
        (Simulator::hold_token as Switch, Simulator::release_token as Switch, token.as_str()),
        (Simulator::hold_target, Simulator::release_target, "/v2/p/products?os_type=Linux"),
    ] {
        bench.simulator.forget_requests();
        hold(&bench.simulator, target_or_token);
        let held = bench.get(Workspace, "/v2/p/products?os_type=Linux");
        tokio::pin!(held);
        tokio::select! {
            _ = &mut held => panic!("answered"),
            () = bench.simulator.wait_for_requests(1) => {}
        }
        let other = bench.simulator.token("p");
        assert_eq!(bench.get_as(&other, Workspace, PRODUCTS).await.status(), StatusCode::OK);
        bench.simulator.fail_with(Some(StatusCode::BAD_GATEWAY));
        release(&bench.simulator, target_or_token);
        assert_eq!(held.await.status(), StatusCode::BAD_GATEWAY, "the behaviour at its release applies");
        bench.simulator.fail_with(None);
    }
}

#[tokio::test]
async fn lists_depend_on_version_token_language_and_overrides() {
    let bench = Bench::new().await;
    let (first, other) = (bench.body().await, bench.simulator.token("p"));
    assert_eq!(bench.body().await, first, "the same request gets the same list");
    let mut headers = with_token(&bench.token);
    headers.insert("x-language", HeaderValue::from_static("zh-cn"));
    assert_ne!(bench.send(Workspace, Method::GET, PRODUCTS, &headers).await.body(), &first);

    bench.simulator.change_catalogue();
    let second = bench.body().await;
    assert_ne!(second, first);
    bench.simulator.restrict_view(&other);
    assert_ne!(bench.get_as(&other, Workspace, PRODUCTS).await.body(), &second);
    assert_eq!(bench.body().await, second);

    let name = HeaderName::from_static("cache-control");
    bench.simulator.add_header(name.clone(), HeaderValue::from_static("no-store"));
    bench.simulator.add_header(SET_COOKIE, HeaderValue::from_static("a=1"));
    bench.simulator.add_header(SET_COOKIE, HeaderValue::from_static("b=2"));
    bench.simulator.add_header(CONTENT_TYPE, HeaderValue::from_static("text/html"));
    bench.simulator.set_list_body(Some(Bytes::from_static(b"<html>")));
    let odd = bench.get(Workspace, PRODUCTS).await;
    assert_eq!(odd.body(), "<html>");
    assert_eq!(
        (&odd.headers()[&name], &odd.headers()[CONTENT_TYPE]),
        (&"no-store".parse().unwrap(), &"text/html".parse().unwrap())
    );
    assert_eq!(odd.headers().get_all(SET_COOKIE).iter().count(), 2);
    assert!(bench.get(Workspace, "/v9").await.headers().contains_key(&name), "on every response");
    bench.simulator.remove_headers();
    bench.simulator.set_list_body(None);
    let usual = bench.get(Workspace, PRODUCTS).await;
    assert_eq!((usual.body(), usual.headers().contains_key(name)), (&second, false));
}

#[tokio::test]
async fn held_requests_get_the_behaviour_at_their_release() {
    const REQUESTS: usize = 300;
    let bench = Bench::new().await;
    bench.simulator.hold();
    let mut waiting = JoinSet::new();
    for _ in 0..REQUESTS {
        let (client, uri) = (bench.client.clone(), bench.simulator.url(Workspace) + PRODUCTS);
        let request = Request::get(uri).header(X_AUTH_TOKEN, &bench.token).body(Full::default()).unwrap();
        waiting.spawn(async move { client.request(request).await.unwrap().status() });
    }
    bench.simulator.wait_for_requests(REQUESTS).await;
    assert!(waiting.try_join_next().is_none());
    bench.simulator.fail_with(Some(StatusCode::BAD_GATEWAY));
    bench.simulator.release();
    assert!(waiting.join_all().await.into_iter().all(|status| status == StatusCode::BAD_GATEWAY));
    assert_eq!(bench.simulator.request_count(), REQUESTS);

    bench.simulator.forget_requests();
    bench.get(AppStream, "/v1/p/product?os_type=Windows").await;
    bench.simulator.wait_for_requests(1).await;
    let seen = bench.simulator.requests_seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].service, &seen[0].method), (AppStream, &Method::GET));
    assert_eq!(seen[0].target, "/v1/p/product?os_type=Windows");
    assert_eq!(seen[0].headers[X_AUTH_TOKEN], bench.token);
    assert!(!seen[0].has_body);
}

#[tokio::test]
async fn responses_can_be_delayed() {
    let bench = Bench::new().await;
    bench.simulator.delay(Duration::from_secs(3_600));
    let answer = bench.get(Workspace, PRODUCTS);
    let arrived = bench.simulator.wait_for_requests(1);
    tokio::select! {
        _ = answer => panic!("answered at once"),
        () = arrived => {}
    }
}

#[tokio::test]
async fn product_list_at_returns_what_is_sent() {
    let bench = Bench::new().await;
    let chinese = HeaderMap::from_iter([(HeaderName::from_static("x-language"), HeaderValue::from_static("zh-cn"))]);
    let mut shown = HashSet::new();
    for (names_projects, changes, narrow) in [(false, false, false), (true, true, false), (true, true, true)] {
        bench.simulator.include_project_in_lists(names_projects);
        if changes {
            bench.simulator.change_catalogue();
        }
        if narrow {
            bench.simulator.restrict_view(&bench.token);
        }
        for language in [&HeaderMap::new(), &chinese] {
            let expected = bench.list_at(PRODUCTS, language, Clock::System.now());
            let mut headers = with_token(&bench.token);
            headers.extend(language.clone());
            assert_eq!(bench.send(Workspace, Method::GET, PRODUCTS, &headers).await.body(), &expected);
            assert_eq!(expected.starts_with(br#"{"project_id":"p","#), names_projects);
            assert!(shown.insert(expected), "{changes}, {language:?}");
        }
    }
    let now = Clock::System.now();
    for no_list in ["/v2/p/products?limit=101", "/v2/p/desktops", "/"] {
        assert_eq!(bench.simulator.product_list_at(&bench.token, no_list, &HeaderMap::new(), now), None);
    }
}

#[tokio::test]
async fn a_list_changes_at_its_moment_and_its_past_is_known() {
    let (bench, clock) = Bench::with_clock().await;
    let now = || Clock::Manual(clock.clone()).now();
    let (begin, plain) = (now(), HeaderMap::new());
    let first = bench.body().await;
    bench.simulator.change_catalogue_every(&ChangeUnit::List("ListProducts".to_owned()), Some(MINUTE), 1);
    for round in 0..20 {
        let before = bench.body().await;
        let change = bench.simulator.next_change(PRODUCTS, now()).unwrap();
        clock.advance(change - now() - TICK);
        assert_eq!(bench.body().await, before, "{round}");
        clock.advance(TICK);
        let after = bench.body().await;
        assert_ne!(after, before, "{round}");
        assert_eq!(bench.list_at(PRODUCTS, &plain, change), after, "{round}");
        assert_eq!(bench.list_at(PRODUCTS, &plain, change - TICK), before, "{round}");
    }
    assert_eq!(bench.list_at(PRODUCTS, &plain, begin), first);
    assert!(now() - begin > 10 * MINUTE && now() - begin < 40 * MINUTE);
    // Another list, the same list under another spelling, and a list of another operation.
    let at = bench.simulator.next_change(PRODUCTS, now());
    assert_ne!(bench.simulator.next_change("/v2/p/products?os_type=Linux", now()), at);
    assert_eq!(bench.simulator.next_change("/v2/p/products?limit=100&offset=0", now()), at);
    assert_eq!(bench.simulator.next_change(SHARER, now()), None);
    assert_eq!(bench.get(Workspace, SHARER).await.body(), &bench.list_at(SHARER, &plain, begin));

    bench.simulator.change_catalogue_every(&ChangeUnit::List("ListProducts".to_owned()), None, 0);
    let last = bench.body().await;
    clock.advance(60 * MINUTE);
    assert_eq!(bench.body().await, last);
    assert_eq!(bench.simulator.change_catalogue(), now());
    assert_ne!(bench.body().await, last);
}

#[tokio::test]
async fn one_caller_has_a_limited_view_since_it_was_restricted() {
    let (bench, clock) = Bench::with_clock().await;
    let (begin, plain, other) = (Clock::Manual(clock.clone()).now(), HeaderMap::new(), bench.simulator.token("p"));
    let at = |token: &str, at| bench.simulator.product_list_at(token, PRODUCTS, &plain, at).unwrap();
    let whole = bench.body().await;
    clock.advance(MINUTE);
    bench.simulator.restrict_view(&other);
    let limited = bench.get_as(&other, Workspace, PRODUCTS).await.into_body();
    assert_ne!(limited, whole);
    assert_eq!(bench.body().await, whole);
    for (moment, expected) in [(begin, &whole), (begin + MINUTE - TICK, &whole), (begin + MINUTE, &limited)] {
        assert_eq!((&at(&other, moment), &at(&bench.token, moment)), (expected, &whole));
    }
    // Its lists change with those of the others.
    bench.simulator.change_catalogue_every(&ChangeUnit::Catalogue, Some(MINUTE), 1);
    let change = bench.simulator.next_change(PRODUCTS, begin + MINUTE).unwrap();
    clock.advance(change - begin - MINUTE);
    let changed = bench.get_as(&other, Workspace, PRODUCTS).await.into_body();
    assert_eq!(at(&other, change), changed);
    assert_eq!(at(&other, change - TICK), limited);
    assert!(changed != limited && changed != bench.body().await);
}

#[tokio::test]
async fn lists_can_have_etags() {
    let bench = Bench::new().await;
    assert!(!bench.get(Workspace, PRODUCTS).await.headers().contains_key("etag"));
    bench.simulator.send_etags(true);
    let tag = bench.get(Workspace, PRODUCTS).await.headers()["etag"].clone();
    let mut headers = with_token(&bench.token);
    headers.insert("if-none-match", tag.clone());
    let current = bench.send(Workspace, Method::GET, PRODUCTS, &headers).await;
    assert_eq!((current.status(), &current.headers()["etag"]), (StatusCode::NOT_MODIFIED, &tag));
    assert!(current.body().is_empty());
    bench.simulator.change_catalogue();
    let changed = bench.send(Workspace, Method::GET, PRODUCTS, &headers).await;
    assert!(changed.status() == StatusCode::OK && changed.headers()["etag"] != tag);
}
