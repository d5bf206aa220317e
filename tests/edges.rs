//! Edge cases of HTTP, in HTTP/1.1 and HTTP/2, for an operation and for a relayed path.
//!
//! Each row names its RFC section, and is a row of the reference page `deploy/http.md`. Invalid responses are tested in
//! `upstream.rs`.

use std::fmt;

use bytes::Bytes;
use http::header::LAST_MODIFIED;
use http::{HeaderValue, Method, Request, StatusCode, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::frames::{
    DATA, END_HEADERS, END_STREAM, FrameClient, GOAWAY, HEADERS, RST_STREAM, block, frame, head_with,
};
use crate::support::raw_client::RawClient;
use crate::support::raw_upstream::{RawUpstream, sends};
use crate::support::{PROJECT, World, send_raw, within};

const PAGE: &str = include_str!("../deploy/http.md");

/// An operation, and a path that is relayed.
const PATHS: [&str; 2] = ["/v2/PROJECT/products", "/v2/PROJECT/desktops"];

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    /// The request reaches upstream.
    Passed,
    /// The gateway answers with this status, and upstream sees nothing.
    Answered(u16),
    /// The gateway answers with this status, and upstream does not see the end of the request.
    BrokenOff(u16),
    /// The stream is reset without a response, and upstream sees nothing.
    Reset,
}

use Cell::{Answered, BrokenOff, Passed, Reset};

/// What is sent after the head.
#[derive(Clone, Copy)]
enum Sent {
    Nothing,
    /// A body, after a 100 response.
    AfterContinue,
    /// A body, and a trailer section with this field.
    Trailer(&'static str, &'static str),
}

/// A request and its expected results.
struct Row {
    what: &'static str,
    /// The RFC section that requires it.
    rule: &'static str,
    method: &'static str,
    /// The request target, if it is not the path.
    target: Option<&'static str>,
    host: &'static str,
    fields: &'static [(&'static str, &'static str)],
    sent: Sent,
    /// Results for the operation and for the relayed path.
    http1: [Cell; 2],
    http2: [Cell; 2],
}

const ROW: Row = Row {
    what: "",
    rule: "",
    method: "GET",
    target: None,
    host: "gateway",
    fields: &[],
    sent: Sent::Nothing,
    http1: [Passed, Passed],
    http2: [Passed, Passed],
};

const ROWS: &[Row] = &[
    Row { what: "nothing special", rule: "RFC 9110 §9.3.1", ..ROW },
    Row {
        what: "an empty Host",
        rule: "RFC 9110 §4.2.1",
        host: "",
        http1: [Answered(400), Answered(400)],
        http2: [Answered(400), Answered(400)],
        ..ROW
    },
    Row {
        what: "a Host that is only a port",
        rule: "RFC 9110 §4.2.1",
        host: ":8080",
        http1: [Answered(400), Answered(400)],
        http2: [Answered(400), Answered(400)],
        ..ROW
    },
    Row {
        what: "OPTIONS of the whole server",
        rule: "RFC 9110 §9.3.7",
        method: "OPTIONS",
        target: Some("*"),
        http1: [Answered(200), Answered(200)],
        http2: [Answered(200), Answered(200)],
        ..ROW
    },
    Row { what: "OPTIONS", rule: "RFC 9110 §9.3.7", method: "OPTIONS", ..ROW },
    Row {
        what: "OPTIONS that ends at the first hop",
        rule: "RFC 9110 §7.6.2",
        method: "OPTIONS",
        fields: &[("max-forwards", "0")],
        http1: [Answered(200), Answered(200)],
        http2: [Answered(200), Answered(200)],
        ..ROW
    },
    Row {
        what: "OPTIONS that ends at the second hop",
        rule: "RFC 9110 §7.6.2",
        method: "OPTIONS",
        fields: &[("max-forwards", "1")],
        ..ROW
    },
    Row { what: "Max-Forwards with another method", rule: "RFC 9110 §7.6.2", fields: &[("max-forwards", "0")], ..ROW },
    Row {
        what: "TRACE",
        rule: "RFC 9110 §9.3.8",
        method: "TRACE",
        http1: [Answered(405), Answered(405)],
        http2: [Answered(405), Answered(405)],
        ..ROW
    },
    // The fields of an upgrade are not forwarded.
    Row {
        what: "an upgrade to WebSocket",
        rule: "RFC 9110 §7.8, RFC 9113 §8.2.2",
        fields: &[("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")],
        http2: [Reset, Reset],
        ..ROW
    },
    Row {
        what: "an upgrade to HTTP/2",
        rule: "RFC 9113 §3.1",
        fields: &[
            ("connection", "upgrade, http2-settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
        ],
        http2: [Reset, Reset],
        ..ROW
    },
    Row {
        what: "an extended CONNECT",
        rule: "RFC 8441 §4",
        method: "CONNECT",
        fields: &[(":protocol", "websocket")],
        // In HTTP/1.1 this is a field with an empty name.
        http1: [Answered(400), Answered(400)],
        http2: [Reset, Reset],
        ..ROW
    },
    Row {
        what: "trailers that are accepted",
        rule: "RFC 9110 §6.5.1",
        fields: &[("te", "trailers"), ("trailer", "x-checksum")],
        ..ROW
    },
    Row {
        what: "a target with a byte outside ASCII",
        rule: "RFC 9112 §3.2",
        target: Some("/v2/PROJECT/desktops?name=\u{e9}"),
        http1: [Answered(400), Answered(400)],
        http2: [Answered(400), Answered(400)],
        ..ROW
    },
    Row {
        what: "a body that waits for a 100",
        rule: "RFC 9110 §10.1.1",
        method: "POST",
        fields: &[("expect", "100-continue")],
        sent: Sent::AfterContinue,
        ..ROW
    },
    Row {
        what: "a trailer field",
        rule: "RFC 9110 §6.5",
        method: "POST",
        sent: Sent::Trailer("x-checksum", "1"),
        ..ROW
    },
    Row {
        what: "a pseudo-header field in the trailers",
        rule: "RFC 9113 §8.1",
        method: "POST",
        sent: Sent::Trailer(":path", "/v2/other"),
        http1: [BrokenOff(400), BrokenOff(400)],
        http2: [BrokenOff(400), BrokenOff(400)],
        ..ROW
    },
    Row {
        what: "blanks around a value in the trailers",
        rule: "RFC 9110 §5.5, RFC 9113 §8.2.1",
        method: "POST",
        sent: Sent::Trailer("x-checksum", " 1 "),
        http2: [BrokenOff(400), BrokenOff(400)],
        ..ROW
    },
];

/// The observed result and the response head.
struct Observed {
    cell: Cell,
    head: String,
}

impl Row {
    fn target(&self, path: &str) -> String {
        self.target.unwrap_or(path).replace("PROJECT", PROJECT)
    }

    /// Its fields, with Host and a token.
    fn fields<'a>(&'a self, token: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        [("host", self.host), ("x-auth-token", token)].into_iter().chain(self.fields.iter().copied())
    }

    async fn over_http1(&self, world: &World, path: &str) -> (u16, String) {
        let fields: String = self.fields(&world.token).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!("{} {} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n", self.method, self.target(path));
        let response = send_raw(world.server.proxy_address(), request).await;
        let status = response.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("{}: {response}", self.what)), response.to_ascii_lowercase())
    }

    /// Without `:authority`: the field `Host` replaces it (RFC 9113 §8.3.1).
    async fn over_http2(&self, world: &World, path: &str) -> (u16, String) {
        let stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let request = Request::builder().version(Version::HTTP_11).method(self.method).uri(self.target(path));
        let request = self.fields(&world.token).fold(request, |request, (name, value)| request.header(name, value));
        let sent = sender.send_request(request.body(()).unwrap(), true).unwrap().0;
        let response = within(sent).await.unwrap();
        (response.status().as_u16(), format!("{:?}", response.headers()).to_ascii_lowercase())
    }

    /// Sends frames that no HTTP/2 client library sends: with fields of HTTP/1.1, or `:protocol` without the setting
    /// for it.
    async fn is_reset_in_http2(&self, world: &World, path: &str) -> bool {
        let target = self.target(path);
        let pseudo = [(":method", self.method), (":scheme", "http"), (":authority", self.host), (":path", &*target)];
        let (after, before) = self.fields.iter().copied().partition::<Vec<_>, _>(|(name, _)| !name.starts_with(':'));
        let fields = [&pseudo, &before[..], &[("x-auth-token", world.token.as_str())], &after[..]].concat();
        let mut client = FrameClient::connect(world).await;
        client.send(&[&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields))]).await;
        client.read_frame().await.is_none_or(|first| [RST_STREAM, GOAWAY].contains(&first.kind))
    }

    /// Sends the request with a body and returns the status. Upstream answers after the body has arrived, and only if
    /// the request is to be passed.
    async fn body_over_http1(&self, world: &World, path: &str, is_passed: bool) -> u16 {
        let mut stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
        let fields: String = self.fields(&world.token).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head =
            format!("{} {} HTTP/1.1\r\n{fields}Transfer-Encoding: chunked\r\n\r\n", self.method, self.target(path));
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut received = Vec::new();
        if matches!(self.sent, Sent::AfterContinue) {
            let expected = b"HTTP/1.1 100 Continue\r\n\r\n";
            within(async {
                while received.len() < expected.len() && stream.read_buf(&mut received).await.unwrap() > 0 {}
            })
            .await;
            assert_eq!(String::from_utf8(received.split_off(0)).unwrap().as_bytes(), expected);
        }
        within(world.simulator.wait_for_requests(1)).await;
        let trailer = match self.sent {
            Sent::Trailer(name, value) => format!("{name}: {value}\r\n"),
            _ => String::new(),
        };
        stream.write_all(format!("6\r\na body\r\n0\r\n{trailer}\r\n").as_bytes()).await.unwrap();
        if is_passed {
            world.simulator.release();
        }
        within(async { while received.len() < 12 && stream.read_buf(&mut received).await.unwrap() > 0 {} }).await;
        let received = String::from_utf8_lossy(&received);
        received.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{self}: {received}"))
    }

    async fn body_over_http2(&self, world: &World, path: &str, is_passed: bool) -> u16 {
        let mut client = FrameClient::connect(world).await;
        let head = head_with(self.method, &self.target(path), &world.token, self.fields);
        client.send(&[&frame(HEADERS, END_HEADERS, 1, &head)]).await;
        if matches!(self.sent, Sent::AfterContinue) {
            let first = client.read_frame().await.unwrap();
            assert!(first.is_continue(), "{self}: {first:?}");
        }
        within(world.simulator.wait_for_requests(1)).await;
        match self.sent {
            Sent::Trailer(name, value) => {
                let trailers = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[(name, value)]));
                client.send(&[&frame(DATA, 0, 1, b"a body"), &trailers]).await;
            }
            _ => client.send(&[&frame(DATA, END_STREAM, 1, b"a body")]).await,
        }
        if is_passed {
            world.simulator.release();
        }
        let received = client.read_frame().await.unwrap();
        received.status().unwrap_or_else(|| panic!("{self}: {received:?}"))
    }

    async fn observe(&self, world: &World, path: &str, is_http2: bool, expected: Cell) -> Observed {
        if !matches!(self.sent, Sent::Nothing) {
            world.simulator.hold();
            let is_passed = expected == Passed;
            let status = match is_http2 {
                true => self.body_over_http2(world, path, is_passed).await,
                false => self.body_over_http1(world, path, is_passed).await,
            };
            return Observed { cell: if status == 200 { Passed } else { BrokenOff(status) }, head: String::new() };
        }
        let before = world.upstream_calls();
        if is_http2 && self.http2 == [Reset, Reset] {
            let is_reset = self.is_reset_in_http2(world, path).await && world.upstream_calls() == before;
            return Observed { cell: if is_reset { Reset } else { Passed }, head: String::new() };
        }
        let (status, head) =
            if is_http2 { self.over_http2(world, path).await } else { self.over_http1(world, path).await };
        let cell = if world.upstream_calls() > before { Passed } else { Answered(status) };
        Observed { cell, head }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Passed => f.write_str("passed"),
            Answered(status @ ..400) => write!(f, "answered ({status})"),
            Answered(status) => write!(f, "refused ({status})"),
            BrokenOff(status) => write!(f, "broken off ({status})"),
            Reset => f.write_str("refused (reset)"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.rule)
    }
}

#[tokio::test]
async fn each_edge_case_is_handled_as_its_row_says() {
    let mut wrong = Vec::new();
    for row in ROWS {
        for (is_http2, expected) in [(false, row.http1), (true, row.http2)] {
            for (path, expected) in PATHS.into_iter().zip(expected) {
                // With an empty cache.
                let world = World::new().await;
                let observed = row.observe(&world, path, is_http2, expected).await;
                if observed.cell != expected {
                    wrong.push(format!("{row}, HTTP/2 {is_http2}, {path}: {:?}, not {expected:?}", observed.cell));
                }
                let is_options = row.method == "OPTIONS" && matches!(observed.cell, Answered(_));
                if is_options && !observed.head.contains("get, head, post, put, patch, delete, options") {
                    wrong.push(format!("{row}: no Allow in {}", observed.head));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reference_page_has_each_row() {
    for row in ROWS {
        let [in_http1, in_http2] = [row.http1, row.http2].map(|cells| cells.map(|cell| cell.to_string()).join(" | "));
        let line = format!("| {} | {} | {in_http1} | {in_http2} |", row.what, row.rule);
        assert!(PAGE.contains(&line), "{line}");
    }
    let lines = PAGE.lines().filter(|line| line.starts_with("| ")).count();
    assert_eq!(lines, 1 + ROWS.len(), "the page has a line without a row here");
}

#[tokio::test]
async fn max_forwards_is_decremented_for_options_only() {
    let world = World::new().await;
    for (method, sent) in [(Method::OPTIONS, "6"), (Method::GET, "7"), (Method::POST, "7")] {
        world.simulator.forget_requests();
        let fields = [("x-auth-token", world.token.as_str()), ("max-forwards", "7")];
        world.http.send(method.clone(), &world.url(PATHS[1]), &fields, "").await;
        assert_eq!(world.simulator.requests_seen()[0].headers["max-forwards"], sent, "{method}");
    }
}

#[tokio::test]
async fn if_modified_since_gets_a_304_from_memory() {
    let world = World::new().await;
    let modified = httpdate::fmt_http_date(Clock::System.date() - std::time::Duration::from_secs(3_600));
    world.simulator.add_header(LAST_MODIFIED, HeaderValue::from_str(&modified).unwrap());
    let complete = world.get(PATHS[0]).await;
    assert_eq!(complete.status(), StatusCode::OK);
    let current = world.get_with(PATHS[0], &[("if-modified-since", &modified)]).await;
    assert_eq!((current.status(), current.body().len()), (StatusCode::NOT_MODIFIED, 0));
    assert_eq!(current.header("last-modified"), modified);
    let earlier = world.get_with(PATHS[0], &[("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")]).await;
    assert_eq!((earlier.status(), earlier.body()), (StatusCode::OK, complete.body()));
    assert!(earlier.is_hit());
}

#[tokio::test]
async fn a_list_that_is_not_utf_8_is_forwarded_and_not_stored() {
    let world = World::new().await;
    let body = Bytes::from_static(b"{\"products\":[{\"name\":\"\xe9\"}]}");
    world.simulator.set_list_body(Some(body.clone()));
    for _ in 0..2 {
        let reply = world.get(PATHS[0]).await;
        assert_eq!((reply.status(), reply.body()), (StatusCode::OK, &body));
        assert!(!reply.is_hit());
    }
    assert_eq!(world.metric("workspace_gateway_grants"), 0.0);
}

#[tokio::test]
async fn an_upgrade_request_is_forwarded_without_the_upgrade() {
    let world = World::new().await;
    let fields = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: eA==\r\n";
    let token = &world.token;
    let head = format!("GET /v2/{PROJECT}/desktops HTTP/1.1\r\nhost: gateway\r\nx-auth-token: {token}\r\n{fields}\r\n");
    let mut client = RawClient::connect(&world).await;
    // The connection continues in HTTP/1.1.
    for _ in 0..2 {
        let response = client.exchange(&head).await;
        assert_eq!((response.status(), response.all("upgrade").len()), (200, 0), "{response:?}");
    }
    let seen = world.simulator.requests_seen().pop().unwrap();
    assert!(!seen.headers.contains_key("upgrade") && !seen.headers.contains_key("connection"), "{:?}", seen.headers);
}

#[tokio::test]
async fn an_upstream_that_switches_protocols_causes_a_502() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let upstream = RawUpstream::start([sends(switch)]).await;
    let world = World::with_upstreams(Simulator::start().await.unwrap(), upstream.url(), upstream.url(), "").await;
    for path in PATHS {
        let head = world.head(path, &["connection: upgrade", "upgrade: websocket"]);
        let response = RawClient::connect(&world).await.exchange(head).await;
        assert_eq!(response.status(), 502, "{response:?}");
    }
}
