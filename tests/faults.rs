//! On which side of the gateway a call has failed, by real failures of real sockets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use tokio::net::TcpListener;
use workspace_gateway::testing::catalogue::{Origin, Service};
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::proxy_config::ProxyConfig;
use workspace_gateway::testing::request::hop::Via;
use workspace_gateway::testing::simulator::Simulator;
use workspace_gateway::testing::stream::nothing;
use workspace_gateway::testing::upstream::client::{CallLimits, HttpClient};
use workspace_gateway::testing::upstream::{Authorities, Fault, Upstream, UpstreamError};

use crate::support::process::{Process, folder};
use crate::support::raw::{RawUpstream, Turn, closes, resets, says};
use crate::support::tls::{Authority, Certified};
use crate::support::{HANG, Http, PROJECT, tls, within};

/// What becomes of a call to this URL, with an authority's file and through a proxy, if there are any.
struct ProxyRoute<'w> {
    url: &'w str,
    ca_file: Option<&'w Path>,
    proxy: Option<&'w str>,
    connect: Duration,
}

impl<'w> ProxyRoute<'w> {
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
        let named = self.ca_file.zip(pem.as_deref()).map(|(path, pem)| Authorities { path, pem });
        let client = HttpClient::new(named, proxy_config, limits, Via::new(1), Clock::System, |_| {}).unwrap();
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

/// A host that accepts connections and does nothing about them.
async fn mute() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

async fn unused() -> String {
    mute().await.1
}

/// The simulator at `https://localhost`, with this certificate.
async fn certified(certified: &Certified) -> String {
    let simulator = Simulator::start().await.unwrap();
    tls::serve(&simulator, tls::acceptor_of(certified)).await
}

fn pem(name: &str, authority: &Authority) -> PathBuf {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.pem"));
    std::fs::write(&file, authority.pem()).unwrap();
    file
}

#[tokio::test]
async fn a_port_on_which_nobody_listens_is_outside() {
    ProxyRoute::to(&unused().await).assert_fails(Fault::Outside, "connect").await;
}

#[tokio::test]
async fn an_answer_that_is_missing_broken_or_no_http_is_outside() {
    let two_lengths = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx";
    for turn in
        [closes(), resets(), says("SSH-2.0-x\r\n\r\n"), says("HTTP/1.1 200 OK\r\nX: ").then_closes(), says(two_lengths)]
    {
        let upstream = RawUpstream::start([turn]).await;
        ProxyRoute::to(upstream.url()).assert_fails(Fault::Outside, "broken").await;
    }
}

#[tokio::test]
async fn a_head_that_is_larger_than_the_gateway_reads_is_a_limit_of_its_own() {
    let giant = format!("HTTP/1.1 200 OK\r\n{}\r\n", format!("X-Filler: {}\r\n", "x".repeat(2500)).repeat(99));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a:\r\n".repeat(1_030));
    for head in [giant, many] {
        let upstream = RawUpstream::start([says(head)]).await;
        ProxyRoute::to(upstream.url()).assert_fails(Fault::Local, "broken").await;
    }
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_unreachable() {
    ProxyRoute::to("http://nowhere.invalid").assert_fails(Fault::Unreachable, "connect").await;
}

#[tokio::test]
async fn a_connect_timeout_is_outside_once_the_name_is_resolved() {
    let (_listener, url) = mute().await;
    let url = url.replace("http://127.0.0.1", "https://localhost");
    let limited = ProxyRoute { connect: Duration::from_millis(300), ..ProxyRoute::to(&url) };
    limited.assert_fails(Fault::Outside, "connect").await;
}

#[tokio::test]
async fn tls_that_fails_on_the_peers_side_is_outside() {
    let garbage = tls_that_says("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    ProxyRoute::to(&garbage).assert_fails(Fault::Outside, "tls").await;
    let closing = tls_that_says("").await;
    ProxyRoute::to(&closing).assert_fails(Fault::Outside, "connect").await;
    // A fatal alert: handshake_failure.
    let alert = tls_that_says("\u{15}\u{3}\u{3}\0\u{2}\u{2}\u{28}").await;
    ProxyRoute::to(&alert).assert_fails(Fault::Outside, "tls").await;
}

#[tokio::test]
async fn an_alert_about_what_the_gateway_has_sent_is_local() {
    // certificate_required, bad_certificate and protocol_version.
    for alert in ["\u{74}", "\u{2a}", "\u{46}"] {
        let url = tls_that_says(&format!("\u{15}\u{3}\u{3}\0\u{2}\u{2}{alert}")).await;
        ProxyRoute::to(&url).assert_fails(Fault::Local, "local").await;
    }
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_the_peers_fault() {
    let authority = Authority::new();
    let file = pem("faults-expired", &authority);
    let url = certified(&authority.certifies_until("localhost", 2020)).await;
    ProxyRoute { ca_file: Some(&file), ..ProxyRoute::to(&url) }.assert_fails(Fault::Outside, "tls").await;
}

#[tokio::test]
async fn a_certificate_that_the_gateway_does_not_trust_may_be_its_own_fault() {
    let authority = Authority::new();
    let file = pem("faults-untrusted", &authority);
    let url = certified(&authority.certifies("localhost")).await;
    ProxyRoute::to(&url).assert_fails(Fault::Local, "local").await;
    let url = certified(&authority.certifies("another.example")).await;
    ProxyRoute { ca_file: Some(&file), ..ProxyRoute::to(&url) }.assert_fails(Fault::Local, "local").await;
}

#[tokio::test]
async fn a_proxy_that_does_not_answer_is_outside_and_one_that_refuses_is_not() {
    let no_way = |status: &str| says(format!("HTTP/1.1 {status} x\r\n\r\n"));
    let cases: [(Turn, Fault, &str); 9] = [
        (closes(), Fault::Outside, "connect"),
        (resets(), Fault::Outside, "connect"),
        (says("SSH-2.0-x\r\n\r\n"), Fault::Outside, "connect"),
        (no_way("502"), Fault::Outside, "connect"),
        (no_way("504"), Fault::Outside, "connect"),
        (no_way("407"), Fault::Local, "local"),
        (no_way("403"), Fault::Local, "local"),
        (no_way("400"), Fault::Local, "local"),
        (no_way("302"), Fault::Local, "local"),
    ];
    for (turn, fault, label) in cases {
        let proxy = RawUpstream::start([turn]).await;
        ProxyRoute::through(proxy.url()).assert_fails(fault, label).await;
    }
    ProxyRoute::through(&unused().await).assert_fails(Fault::Outside, "connect").await;
    ProxyRoute::through("http://nowhere.invalid:1").assert_fails(Fault::Unreachable, "connect").await;
    let (_listener, url) = mute().await;
    ProxyRoute { connect: Duration::from_millis(300), ..ProxyRoute::through(&url) }
        .assert_fails(Fault::Outside, "connect")
        .await;
    let untrusted = certified(&Authority::new().certifies("localhost")).await;
    ProxyRoute::through(&untrusted).assert_fails(Fault::Local, "local").await;
}

#[tokio::test]
async fn without_descriptors_a_call_fails_as_local_and_upstream_is_not_called_ill() {
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
    // The client's connection is there, and none to the other service.
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

/// A URL at which bytes are said at once, whatever is asked; with none, the connection is closed.
async fn tls_that_says(text: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (listener, url) = mute().await;
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
