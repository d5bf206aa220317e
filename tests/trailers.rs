//! Trailer sections of relayed messages (RFC 9110 §6.5). Fields that are forbidden in trailers must not be relayed.

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use tokio::net::TcpStream;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::raw_client::RawClient;
use crate::support::raw_upstream::{RawUpstream, Reaction, sends, silent};
use crate::support::{World, within};

const LIST: &str = "/v2/PROJECT/products";
const RELAYED: &str = "/v2/PROJECT/desktops";

const RESPONSE: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Checksum, X-Auth-Token\r\n\r\n\
                      4\r\nbody\r\n0\r\nX-Checksum: 5\r\nX-Auth-Token: t\r\nX-Other: 6\r\n\r\n";

async fn world_with_upstream(reactions: impl Into<Vec<Reaction>>) -> (World, RawUpstream) {
    let upstream = RawUpstream::start(reactions).await;
    (World::with_upstreams(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), "").await, upstream)
}

async fn http2(world: &World) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

fn names(trailers: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<_> = trailers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn http1_clients_that_accept_trailers_get_the_announced_ones() {
    let accepted: &[&str] = &["TE: trailers", "Connection: te, close"];
    for (fields, end) in [(accepted, "\r\n0\r\nx-checksum: 5\r\n\r\n"), (&["Connection: close"], "\r\n0\r\n\r\n")] {
        let (world, upstream) = world_with_upstream([sends(RESPONSE)]).await;
        let mut client = RawClient::connect(&world).await;
        client.send(world.head(RELAYED, fields)).await;
        let received = String::from_utf8(client.read_to_end().await).unwrap();
        assert!(received.ends_with(&format!("4\r\nbody{end}")), "{received}");
        assert!(received.contains("\r\ntrailer: x-checksum\r\n"), "{received}");
        let head = upstream.heads()[0].to_ascii_lowercase();
        let accepts_trailers = head.contains("\r\nte: trailers\r\n") && head.contains("\r\nconnection: te\r\n");
        assert_eq!(accepts_trailers, fields == accepted, "{head}");
    }
}

#[tokio::test]
async fn http2_clients_get_all_allowed_trailers() {
    let (world, _upstream) = world_with_upstream([sends(RESPONSE)]).await;
    let request = Request::get(world.url(RELAYED)).header("x-auth-token", &world.token).body(()).unwrap();
    let response = http2(&world).await.send_request(request, true).unwrap().0;
    let mut body = within(response).await.unwrap().into_body();
    assert_eq!(within(body.data()).await.unwrap().unwrap(), "body");
    assert!(within(body.data()).await.is_none());
    let trailers = within(body.trailers()).await.unwrap().unwrap();
    assert_eq!(names(&trailers), ["x-checksum", "x-other"]);
}

#[tokio::test]
async fn product_lists_are_stored_and_returned_without_trailers() {
    let list = RESPONSE.replace("4\r\nbody", "f\r\n{\"products\":[]}");
    let (world, upstream) = world_with_upstream([sends(list)]).await;
    for calls in [1, 1] {
        let mut client = RawClient::connect(&world).await;
        let response = client.exchange(world.head(LIST, &["TE: trailers", "Connection: te"])).await;
        assert_eq!((response.body.as_str(), response.all("trailer").len()), ("{\"products\":[]}", 0), "{response:?}");
        assert_eq!(upstream.requests(), calls);
    }
}

/// Sends a chunked upload. Returns what upstream receives after its head.
async fn upload(fields: &str, trailers: &str) -> String {
    // The raw upstream reads the body like a second head.
    let (world, upstream) =
        world_with_upstream([silent(), sends("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")]).await;
    let mut client = RawClient::connect(&world).await;
    let head = format!("POST {} HTTP/1.1\r\nhost: gateway\r\ntransfer-encoding: chunked\r\n{fields}\r\n", RELAYED);
    let response = client.exchange(format!("{head}4\r\nbody\r\n0\r\n{trailers}\r\n")).await;
    assert_eq!(response.status(), 200);
    upstream.heads().pop().unwrap()
}

#[tokio::test]
async fn announced_trailers_of_an_upload_reach_upstream() {
    let trailers = "X-Checksum: 5\r\nContent-Length: 9\r\nX-Other: 6\r\n";
    for (announced, end) in [
        ("trailer: X-Checksum\r\n", "x-checksum: 5\r\n"),
        ("trailer: X-Checksum, Content-Length\r\ntrailer: x-other\r\n", "x-checksum: 5\r\nx-other: 6\r\n"),
        ("", ""),
    ] {
        let body = upload(announced, trailers).await;
        assert_eq!(body, format!("4\r\nbody\r\n0\r\n{end}\r\n"), "{announced}");
    }
}

#[tokio::test]
async fn trailers_of_an_http2_upload_reach_upstream() {
    let (world, upstream) =
        world_with_upstream([silent(), sends("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")]).await;
    let request = Request::post(world.url(RELAYED)).header("trailer", "x-checksum").body(()).unwrap();
    let (response, mut body) = http2(&world).await.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"body"), false).unwrap();
    body.send_trailers(HeaderMap::from_iter([("x-checksum".parse().unwrap(), "5".parse().unwrap())])).unwrap();
    within(response).await.unwrap();
    assert_eq!(upstream.heads().pop().unwrap(), "4\r\nbody\r\n0\r\nx-checksum: 5\r\n\r\n");
}

#[tokio::test]
async fn a_trailer_section_that_is_too_large_ends_the_response() {
    let large = format!("X-Checksum: {}\r\n\r\n", "5".repeat(17 * 1024));
    let (world, _upstream) = world_with_upstream([sends(RESPONSE.replace("X-Checksum: 5\r\n", &large))]).await;
    let mut client = RawClient::connect(&world).await;
    client.send(world.head(RELAYED, &["TE: trailers", "Connection: te, close"])).await;
    let received = String::from_utf8(client.read_to_end().await).unwrap();
    assert!(received.ends_with("4\r\nbody\r\n"), "{received}");
}
