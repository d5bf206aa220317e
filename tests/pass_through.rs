//! Requests that are no operation are relayed to the service they belong to. Bodies are streamed in both directions.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use workspace_gateway::testing::catalogue::Service;

use crate::support::{Parts, World, send_raw, within};

#[tokio::test]
async fn known_paths_are_relayed_to_their_service_and_others_rejected() {
    let world = World::new().await;
    for (path, service) in [
        ("/v2/PROJECT/desktops", Service::Workspace),
        ("/v3/PROJECT/x/y?z=1&z=2&a+b", Service::Workspace),
        ("/v1/PROJECT/app-center/apps", Service::Workspace),
        ("/v1/PROJECT/app-groups", Service::AppStream),
        ("/v2/PROJECT/job/42", Service::AppStream),
        ("/v2/PROJECT/%70roducts", Service::Workspace),
        ("/v2//PROJECT/../x/./y/", Service::Workspace),
    ] {
        let reply = world.get(path).await;
        assert_eq!(reply.status(), StatusCode::OK, "{path}");
        let seen = world.simulator.requests_seen().pop().unwrap();
        assert_eq!(
            (seen.service, format!("http://h{}", seen.target)),
            (service, world.url(path).replace(&world.server.proxy_address().to_string(), "h"))
        );
    }
    let calls = world.upstream_calls();
    for path in ["/", "/v4/PROJECT/products", "/metrics", "/v22/x"] {
        let reply = world.get(path).await;
        assert_eq!(reply.status(), StatusCode::NOT_FOUND, "{path}");
        let (code, message) = reply.error();
        assert_eq!(code, "APIGW.0101");
        let expected = "workspace-gateway: The API does not exist or has not been published in the environment";
        assert!(message.starts_with(expected), "{message}");
    }
    assert_eq!(world.upstream_calls(), calls);
}

#[tokio::test]
async fn any_method_and_body_size_is_relayed_byte_for_byte() {
    let world = World::new().await;
    let token = [("x-auth-token", world.token.as_str()), ("content-type", "text/plain")];
    let large: Bytes = (0..20_000_000u32).map(|index| (index % 251) as u8).collect();
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let reply = world.http.send(method.clone(), &world.url("/v2/PROJECT/desktops"), &token, "small").await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "small"), "{method}");
        assert_eq!(reply.header("content-type"), "text/plain");
    }
    let reply = world.http.send(Method::POST, &world.url("/v1/PROJECT/anything"), &token, large.clone()).await;
    assert!(reply.body() == &large, "{} bytes of {}", reply.body().len(), large.len());
    let head = world.http.send(Method::HEAD, &world.url("/v2/PROJECT/desktops"), &token, "").await;
    assert_eq!((head.status(), head.body().len()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn bodies_are_streamed_in_both_directions() {
    let world = World::new().await;
    let (parts, body) = mpsc::channel(1);
    let client: Client<_, Parts> = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::post(world.url("/v2/PROJECT/desktops")).header("x-auth-token", &world.token);
    let exchange = tokio::spawn(client.request(request.body(Parts(body)).unwrap()));
    parts.send(Bytes::from_static(b"first")).await.unwrap();
    // The response begins before the request has ended.
    let mut reply = within(exchange).await.unwrap().unwrap().into_body();
    for part in ["first", "second", "third"] {
        if part != "first" {
            parts.send(Bytes::from_static(part.as_bytes())).await.unwrap();
        }
        let frame = within(reply.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), part);
    }
    drop(parts);
    assert!(within(reply.frame()).await.is_none());
}

#[tokio::test]
async fn an_idle_relay_is_answered_504() {
    let world = World::with("[upstream]\nidle_timeout = \"50ms\"\nanswer_timeout = \"1h\"").await;
    world.simulator.hold();
    let reply = world.get("/v2/PROJECT/desktops").await;
    assert_eq!(reply.status(), StatusCode::GATEWAY_TIMEOUT);
    assert!(reply.error().1.contains("no data in either direction"));
}

#[tokio::test]
async fn an_idle_response_is_aborted() {
    let incomplete = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc";
    let world = World::with_fixed_upstream(incomplete, "[upstream]\nidle_timeout = \"50ms\"").await;
    // The read ends only because the gateway closes the connection.
    let response = send_raw(world.server.proxy_address(), "GET /v2/p/desktops HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("abc"), "{response}");
}

#[tokio::test]
async fn a_stalled_upload_is_ended_even_after_the_response() {
    // Upstream answers at once, reads no more, and does not close the connection.
    let denial = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}";
    let world = World::with_fixed_upstream(denial, "[upstream]\nidle_timeout = \"50ms\"").await;
    let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let head = "POST /v2/p/desktops HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    within(stream.read_to_end(&mut response)).await.unwrap();
    assert!(response.starts_with(b"HTTP/1.1 401 "), "{}", String::from_utf8_lossy(&response));
    world.until_metric("workspace_gateway_connections", 0.0).await;
}

#[tokio::test]
async fn a_call_abandoned_by_its_client_is_counted() {
    let world = World::new().await;
    world.simulator.hold();
    let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    stream.write_all(b"GET /v2/p/desktops HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    within(world.simulator.wait_for_requests(1)).await;
    // With a reset: a client that only closes its sending side may still wait for the response.
    stream.set_zero_linger().unwrap();
    drop(stream);
    world
        .until_metric("workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"abandoned\"}", 1.0)
        .await;
    assert_eq!(world.metric("workspace_gateway_upstream_requests_in_flight{service=\"workspace\"}"), 0.0);
    assert_eq!(world.metric("workspace_gateway_requests_in_flight"), 0.0);
}

#[tokio::test]
async fn a_relayed_response_is_not_stored() {
    let world = World::new().await;
    for calls in 1..=2 {
        let reply = world.get("/v2/PROJECT/desktops").await;
        assert!(!reply.headers().contains_key("cache-status"));
        assert_eq!(world.upstream_calls(), calls);
    }
}
