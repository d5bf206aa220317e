//! Trailer sections of relayed messages: they pass in both directions, without what must not travel there.

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use tokio::net::TcpStream;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::line::Line;
use crate::support::raw::{RawUpstream, Turn, says, silent};
use crate::support::{World, within};

const LIST: &str = "/v2/PROJECT/products";
const RELAYED: &str = "/v2/PROJECT/desktops";

const ANSWER: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Checksum, X-Auth-Token\r\n\r\n\
                      4\r\nbody\r\n0\r\nX-Checksum: 5\r\nX-Auth-Token: t\r\nX-Other: 6\r\n\r\n";

async fn before(turns: impl Into<Vec<Turn>>) -> (World, RawUpstream) {
    let upstream = RawUpstream::start(turns).await;
    (World::before(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), "").await, upstream)
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
async fn a_client_of_http1_that_accepts_them_gets_those_that_were_announced() {
    let accepted: &[&str] = &["TE: trailers", "Connection: te, close"];
    for (fields, end) in [(accepted, "\r\n0\r\nx-checksum: 5\r\n\r\n"), (&["Connection: close"], "\r\n0\r\n\r\n")] {
        let (world, upstream) = before([says(ANSWER)]).await;
        let mut line = Line::to(&world).await;
        line.says(world.head(RELAYED, fields)).await;
        let heard = String::from_utf8(line.hears_bytes().await).unwrap();
        assert!(heard.ends_with(&format!("4\r\nbody{end}")), "{heard}");
        assert!(heard.contains("\r\ntrailer: x-checksum\r\n"), "{heard}");
        let asked = upstream.heads()[0].to_ascii_lowercase();
        let says_so = asked.contains("\r\nte: trailers\r\n") && asked.contains("\r\nconnection: te\r\n");
        assert_eq!(says_so, fields == accepted, "{asked}");
    }
}

#[tokio::test]
async fn a_client_of_http2_gets_all_that_may_travel() {
    let (world, _upstream) = before([says(ANSWER)]).await;
    let request = Request::get(world.url(RELAYED)).header("x-auth-token", &world.token).body(()).unwrap();
    let response = http2(&world).await.send_request(request, true).unwrap().0;
    let mut body = within(response).await.unwrap().into_body();
    assert_eq!(within(body.data()).await.unwrap().unwrap(), "body");
    assert!(within(body.data()).await.is_none());
    let trailers = within(body.trailers()).await.unwrap().unwrap();
    assert_eq!(names(&trailers), ["x-checksum", "x-other"]);
}

#[tokio::test]
async fn a_product_list_is_kept_and_given_without_them() {
    let list = ANSWER.replace("4\r\nbody", "f\r\n{\"products\":[]}");
    let (world, upstream) = before([says(list)]).await;
    for calls in [1, 1] {
        let mut line = Line::to(&world).await;
        let answer = line.asks(world.head(LIST, &["TE: trailers", "Connection: te"])).await;
        assert_eq!((answer.body.as_str(), answer.all("trailer").len()), ("{\"products\":[]}", 0), "{answer:?}");
        assert_eq!(upstream.requests(), calls);
    }
}

/// An upload by chunks, and what follows its head at upstream.
async fn uploaded(fields: &str, trailers: &str) -> String {
    // What it takes for a second head is the body.
    let (world, upstream) = before([silent(), says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")]).await;
    let mut line = Line::to(&world).await;
    let head = format!("POST {} HTTP/1.1\r\nhost: gateway\r\ntransfer-encoding: chunked\r\n{fields}\r\n", RELAYED);
    let answer = line.asks(format!("{head}4\r\nbody\r\n0\r\n{trailers}\r\n")).await;
    assert_eq!(answer.status(), 200);
    upstream.heads().pop().unwrap()
}

#[tokio::test]
async fn an_uploads_trailers_reach_upstream_as_far_as_they_were_announced() {
    let trailers = "X-Checksum: 5\r\nContent-Length: 9\r\nX-Other: 6\r\n";
    for (announced, end) in [
        ("trailer: X-Checksum\r\n", "x-checksum: 5\r\n"),
        ("trailer: X-Checksum, Content-Length\r\ntrailer: x-other\r\n", "x-checksum: 5\r\nx-other: 6\r\n"),
        ("", ""),
    ] {
        let body = uploaded(announced, trailers).await;
        assert_eq!(body, format!("4\r\nbody\r\n0\r\n{end}\r\n"), "{announced}");
    }
}

#[tokio::test]
async fn an_uploads_trailers_in_http2_reach_upstream() {
    let (world, upstream) = before([silent(), says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")]).await;
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
    let (world, _upstream) = before([says(ANSWER.replace("X-Checksum: 5\r\n", &large))]).await;
    let mut line = Line::to(&world).await;
    line.says(world.head(RELAYED, &["TE: trailers", "Connection: te, close"])).await;
    let heard = String::from_utf8(line.hears_bytes().await).unwrap();
    assert!(heard.ends_with("4\r\nbody\r\n"), "{heard}");
}
