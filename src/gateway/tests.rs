//! Tests of what cannot be caused from outside: the order of the steps of a fetch, and the class of a connection.

use super::*;
use crate::budget::ConnectionClass;
use crate::cache::flights::FlightCaller;
use crate::cache::grants::CallerScope;
use crate::catalogue::Service;
use crate::config::{Config, Override};
use crate::fast_path::{Responder, ResponderState};
use crate::request::key::RequestKey;
use crate::request::request_directives::RequestDirectives;
use crate::simulator::Simulator;
use http::HeaderValue;

fn gateway(url: &str) -> Arc<Gateway> {
    let set_url = |path| Override { path, value: url.into(), origin: "test".to_owned() };
    let overrides = [set_url(&["upstream", "workspace_url"]), set_url(&["upstream", "appstream_url"])];
    Gateway::new(&Config::from_layers("test.toml", "", &overrides).unwrap(), Clock::System).unwrap()
}

fn connection(gateway: &Gateway) -> Connection {
    gateway.connection(([127, 0, 0, 1], 8080).into(), [127, 0, 0, 1].into())
}

fn request(gateway: &Gateway, token: &HeaderValue) -> CacheRequest {
    let active = gateway.active();
    let (operation, place) = active.catalogue.operation("/v2/p/products").unwrap();
    let key = RequestKey::read(&active.catalogue, operation, place, None, &HeaderMap::new(), false).unwrap();
    let caller_scope = CallerScope { caller: gateway.callers.of_token(token), scope: key.scope().clone() };
    let credential = Credential::Token(token.clone());
    let lookup = Lookup { caller_scope, key: Arc::new(key), directives: RequestDirectives::default() };
    let connection = connection(gateway);
    let client = connection.client(&active, Some(lookup.caller_scope.caller));
    let account = connection.account.clone();
    CacheRequest {
        active: Arc::clone(&active),
        credential,
        client,
        account,
        half_close: Arc::default(),
        lookup: Arc::new(lookup),
    }
}

/// Fetches, and returns the result.
async fn fetch(gateway: &Arc<Gateway>, request: &CacheRequest) -> FetchResult {
    let cache_key = gateway.memory.store.cache_key(&request.lookup.key, request.lookup.caller_scope.caller);
    let caller = FlightCaller { caller: request.lookup.caller_scope.caller, is_known: true };
    let (mut waiter, leader) = gateway.fetcher.shared_flights.join(&cache_key, caller);
    let (head, ()) = Request::new(()).into_parts();
    let (sinks, clock, id) = (Arc::clone(&gateway.observer.sinks), gateway.clock.clone(), gateway.request_ids.next());
    let mut record = RequestRecord::begin(sinks, clock, id, &head, [127, 0, 0, 1].into());
    let (leader, purpose) = (leader.unwrap(), FetchPurpose::Response);
    let fetch = NewFetch { leader, cache_key, purpose, proof: None, throttled: None };
    gateway.start_fetch(fetch, request, &HeaderMap::new(), &mut record);
    waiter.result().await.unwrap().result
}

#[tokio::test]
async fn a_fetch_makes_no_call_for_what_the_previous_one_has_stored() {
    let simulator = Simulator::start().await.unwrap();
    let gateway = gateway(&simulator.url(Service::Workspace));
    let token = HeaderValue::try_from(simulator.token("p")).unwrap();
    let request = request(&gateway, &token);
    assert!(matches!(fetch(&gateway, &request).await, FetchResult::Sent { response: Ok(_), .. }));
    assert!(matches!(
        gateway.memory.look_up(&request.lookup, gateway.clock.now()),
        LookupResult::Hit(_, HitKind::Fresh)
    ));
    assert!(matches!(fetch(&gateway, &request).await, FetchResult::NotSent { throttled: None }));
    assert_eq!(simulator.request_count(), 1);
}

#[tokio::test]
async fn a_response_to_head_has_the_length_of_the_body_and_no_body() {
    let gateway = gateway("http://127.0.0.1:1");
    for path in ["/nowhere", "/v2/p/products"] {
        let ask = async |method: Method| {
            let request = Request::builder().method(method).uri(path).header("host", "any").header("x-auth-token", "t");
            let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
            gateway.handle(request, &connection(&gateway)).await
        };
        let length = ask(Method::GET).await.into_body().size_hint().exact().unwrap();
        let head = ask(Method::HEAD).await;
        assert_eq!(head.headers()["content-length"], length.to_string());
        assert_eq!(head.into_body().size_hint().exact(), Some(0));
    }
}

#[tokio::test]
async fn a_connection_is_known_after_upstream_has_accepted_its_caller() {
    let simulator = Simulator::start().await.unwrap();
    let gateway = gateway(&simulator.url(Service::Workspace));
    let valid = simulator.token("p");
    let ask = async |connection: &Connection, path: &str, token: Option<&str>| {
        let request = Request::builder().uri(path).header("host", "any");
        let request = token.into_iter().fold(request, |request, token| request.header("x-auth-token", token));
        let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
        gateway.handle(request, connection).await;
        connection.account().class()
    };
    for path in ["/v2/p/products", "/v2/p/desktops", "/v2/p/products?unknown=1"] {
        let connection = connection(&gateway);
        assert_eq!(ask(&connection, path, None).await, ConnectionClass::NoCredential, "{path}");
        assert_eq!(ask(&connection, path, Some("invented")).await, ConnectionClass::Unknown, "{path}");
        assert_eq!(ask(&connection, path, Some(&valid)).await, ConnectionClass::Known, "{path}");
        assert_eq!(ask(&connection, path, Some("invented")).await, ConnectionClass::Known, "{path}");
    }
    // A hit on the fast path makes the connection known, too.
    let head = format!("GET /v2/p/products HTTP/1.1\r\nhost: any\r\nx-auth-token: {valid}\r\n\r\n");
    let state = ResponderState { is_free: true, is_closing: false };
    let takes = |connection: &Arc<Connection>| {
        Responder::new(Arc::clone(&gateway), Arc::clone(connection)).take(head.as_bytes(), state)
    };
    let first = Arc::new(connection(&gateway));
    for _ in 0..2 {
        assert!(!takes(&first));
        ask(&first, "/v2/p/products", Some(&valid)).await;
    }
    let second = Arc::new(connection(&gateway));
    assert!(takes(&second));
    assert_eq!(second.account().class(), ConnectionClass::Known);
}
