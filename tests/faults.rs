//! The fault of a failed call (inside or outside the gateway), tested with real sockets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use tokio::net::{TcpListener, TcpSocket};
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::proxy_config::ProxyConfig;
use workspace_gateway::testing::request::hop::Via;
use workspace_gateway::testing::simulator::Simulator;
use workspace_gateway::testing::stream::nothing;
use workspace_gateway::testing::upstream::client::{CallLimits, HttpClient};
use workspace_gateway::testing::upstream::{Authorities, Fault, Upstream, UpstreamError};

use crate::support::process::{Process, folder};
use crate::support::raw_upstream::{RawUpstream, Reaction, closes, resets, sends};
use crate::support::tls::{Authority, Identity};
use crate::support::{HANG, Http, PROJECT, reserve_port, tls, within};

/// A call to a URL, with an optional CA file and an optional proxy.
struct TestCall<'w> {
    url: &'w str,
    ca_file: Option<&'w Path>,
    proxy: Option<&'w str>,
    connect: Duration,
}

impl<'w> TestCall<'w> {
    fn to(url: &'w str) -> Self {
        Self { url, ca_file: None, proxy: None, connect: HANG }
    }

    fn through(proxy: &'w str) -> Self {
        Self { proxy: Some(proxy), ..Self::to("https://upstream.example") }
    }

    async fn failure(&self) -> UpstreamError {
        let limits = CallLimits {
            connect: self.connect,
            first_byte: HANG,
            answer: HANG,
            idle: HANG,
            age: Duration::ZERO,
            max_body: 1 << 20,
        };
        let proxy_config =
            ProxyConfig::read(|name| self.proxy.filter(|_| name == "HTTPS_PROXY").map(Into::into)).unwrap();
        let pem = self.ca_file.map(|path| std::fs::read(path).unwrap());
        let named =
            self.ca_file.zip(pem.as_deref()).map(|(path, pem)| Authorities { setting: "upstream.ca_file", path, pem });
        let client = HttpClient::new(named, proxy_config, limits, Via::new(1), &Clock::System.into(), |_| {}).unwrap();
        let (scheme, authority) = self.url.split_once("://").unwrap();
        let origin = Origin::new(scheme.parse().unwrap(), authority.parse().unwrap());
        let (head, ()) = Request::get("/v2/p/desktops").body(()).unwrap().into_parts();
        within(client.relay(Service::Workspace, &origin, &head, nothing())).await.unwrap_err()
    }

    async fn assert_fails(&self, fault: Fault, label: &str) {
        let error = self.failure().await;
        assert_eq!((error.fault(), error.failure().into_str()), (fault, label), "{error}");
    }
}

/// A server that accepts connections and never answers.
async fn silent_server() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// A port on which nobody listens, and its URL.
fn closed_port() -> (TcpSocket, String) {
    let reserved = reserve_port();
    let url = format!("http://{}", reserved.local_addr().unwrap());
    (reserved, url)
}

/// The simulator at `https://localhost`, with this certificate.
async fn simulator_with_certificate(identity: &Identity) -> String {
    let simulator = Simulator::start().await.unwrap();
    tls::serve(&simulator, tls::acceptor_for(identity)).await
}

fn pem(name: &str, authority: &Authority) -> PathBuf {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.pem"));
    std::fs::write(&file, authority.pem()).unwrap();
    file
}

#[tokio::test]
async fn a_refused_connection_is_an_outside_fault() {
    let (_reserved, url) = closed_port();
    TestCall::to(&url).assert_fails(Fault::Outside, "connect").await;
}

#[tokio::test]
async fn a_missing_or_malformed_response_is_an_outside_fault() {
    let two_lengths = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx";
    for turn in [
        closes(),
        resets(),
        sends("SSH-2.0-x\r\n\r\n"),
        sends("HTTP/1.1 200 OK\r\nX: ").then_closes(),
        sends(two_lengths),
    ] {
        let upstream = RawUpstream::start([turn]).await;
        TestCall::to(upstream.url()).assert_fails(Fault::Outside, "broken").await;
    }
}

#[tokio::test]
async fn a_response_head_beyond_the_gateways_limit_is_a_local_fault() {
    let giant = format!("HTTP/1.1 200 OK\r\n{}\r\n", format!("X-Filler: {}\r\n", "x".repeat(2500)).repeat(99));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a:\r\n".repeat(1_030));
    for head in [giant, many] {
        let upstream = RawUpstream::start([sends(head)]).await;
        TestCall::to(upstream.url()).assert_fails(Fault::Local, "broken").await;
    }
}

#[tokio::test]
async fn a_host_name_that_does_not_exist_is_unreachable() {
    TestCall::to("http://nowhere.invalid").assert_fails(Fault::Unreachable, "connect").await;
}

#[tokio::test]
async fn a_connect_timeout_after_name_resolution_is_an_outside_fault() {
    let (_listener, url) = silent_server().await;
    let url = url.replace("http://127.0.0.1", "https://localhost");
    let limited = TestCall { connect: Duration::from_millis(300), ..TestCall::to(&url) };
    limited.assert_fails(Fault::Outside, "connect").await;
}

#[tokio::test]
async fn a_tls_failure_of_the_peer_is_an_outside_fault() {
    let garbage = tls_server_that_sends("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    TestCall::to(&garbage).assert_fails(Fault::Outside, "tls").await;
    let closing = tls_server_that_sends("").await;
    TestCall::to(&closing).assert_fails(Fault::Outside, "connect").await;
    // The fatal alert handshake_failure.
    let alert = tls_server_that_sends("\u{15}\u{3}\u{3}\0\u{2}\u{2}\u{28}").await;
    TestCall::to(&alert).assert_fails(Fault::Outside, "tls").await;
}

#[tokio::test]
async fn a_tls_alert_about_the_gateways_handshake_is_a_local_fault() {
    // The alerts certificate_required, bad_certificate and protocol_version.
    for alert in ["\u{74}", "\u{2a}", "\u{46}"] {
        let url = tls_server_that_sends(&format!("\u{15}\u{3}\u{3}\0\u{2}\u{2}{alert}")).await;
        TestCall::to(&url).assert_fails(Fault::Local, "local").await;
    }
}

#[tokio::test]
async fn an_expired_certificate_is_an_outside_fault() {
    let authority = Authority::new();
    let file = pem("faults-expired", &authority);
    let url = simulator_with_certificate(&authority.issue_until_year("localhost", 2020)).await;
    TestCall { ca_file: Some(&file), ..TestCall::to(&url) }.assert_fails(Fault::Outside, "tls").await;
}

#[tokio::test]
async fn an_untrusted_certificate_is_a_local_fault() {
    let authority = Authority::new();
    let file = pem("faults-untrusted", &authority);
    let url = simulator_with_certificate(&authority.issue("localhost")).await;
    TestCall::to(&url).assert_fails(Fault::Local, "local").await;
    let url = simulator_with_certificate(&authority.issue("another.example")).await;
    TestCall { ca_file: Some(&file), ..TestCall::to(&url) }.assert_fails(Fault::Local, "local").await;
}

#[tokio::test]
async fn an_unavailable_proxy_is_an_outside_fault_and_its_refusal_is_local() {
    let refuses = |status: &str| sends(format!("HTTP/1.1 {status} x\r\n\r\n"));
    let cases: [(Reaction, Fault, &str); 9] = [
        (closes(), Fault::Outside, "connect"),
        (resets(), Fault::Outside, "connect"),
        (sends("SSH-2.0-x\r\n\r\n"), Fault::Outside, "connect"),
        (refuses("502"), Fault::Outside, "connect"),
        (refuses("504"), Fault::Outside, "connect"),
        (refuses("407"), Fault::Local, "local"),
        (refuses("403"), Fault::Local, "local"),
        (refuses("400"), Fault::Local, "local"),
        (refuses("302"), Fault::Local, "local"),
    ];
    for (turn, fault, label) in cases {
        let proxy = RawUpstream::start([turn]).await;
        TestCall::through(proxy.url()).assert_fails(fault, label).await;
    }
    let (_reserved, url) = closed_port();
    TestCall::through(&url).assert_fails(Fault::Outside, "connect").await;
    TestCall::through("http://nowhere.invalid:1").assert_fails(Fault::Unreachable, "connect").await;
    let (_listener, url) = silent_server().await;
    TestCall { connect: Duration::from_millis(300), ..TestCall::through(&url) }
        .assert_fails(Fault::Outside, "connect")
        .await;
    let untrusted = simulator_with_certificate(&Authority::new().issue("localhost")).await;
    TestCall::through(&untrusted).assert_fails(Fault::Local, "local").await;
}

#[tokio::test]
async fn without_file_descriptors_a_call_is_a_local_fault() {
    let simulator = Simulator::start().await.unwrap();
    let file = folder("faults").join("settings.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
    let process = Process::start(&simulator, &file).await;
    let http = Http::new();
    let token = simulator.token(PROJECT);
    let ask = |path: &str| {
        let url = format!("{}{}", process.proxy, path.replace("PROJECT", PROJECT));
        let (http, token) = (http.clone(), token.clone());
        async move { http.send(Method::GET, &url, &[("x-auth-token", &token)], "").await }
    };
    // The client's connection is open, and there is none to the other service.
    assert_eq!(ask("/v2/PROJECT/products").await.status(), StatusCode::OK);
    process.limit_open_files(1);
    let reply = ask("/v1/PROJECT/app-groups").await;
    reply.assert_refused(StatusCode::SERVICE_UNAVAILABLE);
    let (_, message) = reply.error();
    assert!(message.contains("the gateway could not make the call") && message.contains("os error 24"), "{message}");
    process.limit_open_files(1024);
    let metrics = http.get(&format!("{}/metrics", process.metrics)).await;
    let counted = "workspace_gateway_upstream_requests_total{service=\"appstream\",status=\"local\"} 1";
    assert!(metrics.text().contains(counted), "{}", metrics.text());
}

/// An `https://` URL whose server sends these bytes instead of a TLS handshake, and then closes.
async fn tls_server_that_sends(text: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (listener, url) = silent_server().await;
    let bytes: Vec<u8> = text.chars().map(|byte| u8::try_from(u32::from(byte)).unwrap()).collect();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut hello = [0; 16];
            let _ = stream.read(&mut hello).await;
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
    });
    url.replace("http://", "https://")
}
