//! Upstream is reached through the proxy that the environment names. The proxy's password is never disclosed.

use std::ffi::OsString;
use std::sync::{Arc, Mutex};

use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::proxy_config::ProxyConfig;
use workspace_gateway::testing::simulator::Simulator;

use crate::commands::{code, file, run_in, stderr, stdout};
use crate::support::process::{Process, folder};
use crate::support::raw_upstream::{RawUpstream, closes, sends, silent};
use crate::support::{Http, PROJECT, World, config, reserve_port, tls};

const LIST: &str = "/v2/PROJECT/products";
const OTHER: &str = "/v2/PROJECT/desktops";

/// A proxy that opens a tunnel to any target.
struct TunnelProxy {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

/// What many proxies answer.
const ESTABLISHED: &str = "HTTP/1.0 200 Connection established\r\n\r\n";

impl TunnelProxy {
    async fn start(acceptor: Option<TlsAcceptor>) -> Self {
        Self::start_with(ESTABLISHED, acceptor).await
    }

    /// A proxy that sends this response before it opens the tunnel.
    async fn start_with(response: &'static str, acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, acceptor) = (Arc::clone(&seen), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => open_tunnel(stream, response, &seen).await,
                        Some(acceptor) => open_tunnel(acceptor.accept(stream).await.unwrap(), response, &seen).await,
                    }
                });
            }
        });
        Self { port, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// The targets of all CONNECT requests.
    fn targets(&self) -> Vec<String> {
        let target = |head: &String| head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
        self.heads().iter().map(target).collect()
    }
}

async fn open_tunnel(mut client: impl AsyncRead + AsyncWrite + Unpin, response: &str, seen: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap().to_owned();
    seen.lock().unwrap().push(head);
    let mut upstream = TcpStream::connect(target).await.unwrap();
    client.write_all(response.as_bytes()).await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
}

/// The simulator behind TLS, its URL, and the settings that make the gateway trust it.
async fn upstream(name: &str) -> (Simulator, String, String) {
    let simulator = Simulator::start().await.unwrap();
    let (acceptor, ca_file) = tls::acceptor(name);
    let url = tls::serve(&simulator, acceptor).await;
    (simulator, url, format!("[upstream]\nca_file = {ca_file:?}\n"))
}

/// These settings, in an environment with these variables.
fn config_in(environment: &[(&str, &str)], url: &str, settings: &str) -> Config {
    let find =
        |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
    Config { proxy_config: ProxyConfig::read(find).unwrap(), ..config(url, url, settings) }
}

fn authority(url: &str) -> String {
    url.split_once("://").unwrap().1.to_owned()
}

#[tokio::test]
async fn many_requests_use_one_tunnel_through_the_proxy() {
    let (simulator, url, settings) = upstream("egress").await;
    let proxy = TunnelProxy::start(None).await;
    let proxy_url = format!("http://127.0.0.1:{}", proxy.port);
    let world = World::with_config(simulator, &config_in(&[("HTTPS_PROXY", &proxy_url)], &url, &settings)).await;
    assert!(world.get(LIST).await.cache_status().contains("; stored"));
    assert!(world.get(LIST).await.is_hit());
    for _ in 0..2 {
        let reply = world.http.send(Method::POST, &world.url(OTHER), &[("x-auth-token", &world.token)], "body").await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::OK, "body"));
    }
    assert_eq!(world.upstream_calls(), 3);
    assert_eq!(proxy.targets(), [authority(&url)]);
    let head = proxy.heads().remove(0);
    let fields: Vec<&str> = head.trim_end().split("\r\n").skip(1).collect();
    let agent = concat!("user-agent: workspace-gateway/", env!("CARGO_PKG_VERSION"));
    assert_eq!(fields, [&format!("host: {}", authority(&url)), agent], "the proxy gets no header of the client");
}

#[tokio::test]
async fn the_proxy_receives_the_configured_credentials() {
    for (user, expected) in [
        ("user:secret", "Basic dXNlcjpzZWNyZXQ="),
        ("user", "Basic dXNlcjo="),
        // me@corp and s:e/cret%
        ("me%40corp:s%3Ae%2Fcret%25", "Basic bWVAY29ycDpzOmUvY3JldCU="),
    ] {
        let (simulator, url, settings) = upstream("egress-credentials").await;
        let proxy = TunnelProxy::start(None).await;
        let proxy_url = format!("http://{user}@localhost:{}", proxy.port);
        let world = World::with_config(simulator, &config_in(&[("https_proxy", &proxy_url)], &url, &settings)).await;
        assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
        let head = proxy.heads().remove(0);
        assert!(head.contains(&format!("\r\nproxy-authorization: {expected}\r\n")), "{head}");
        assert!(!world.simulator.requests_seen()[0].headers.contains_key("proxy-authorization"));
    }
}

#[tokio::test]
async fn a_proxy_may_use_tls() {
    let simulator = Simulator::start().await.unwrap();
    let (acceptor, ca_file) = tls::acceptor("egress-tls");
    let url = tls::serve(&simulator, acceptor.clone()).await;
    let proxy = TunnelProxy::start(Some(acceptor)).await;
    let proxy_url = format!("https://user:secret@localhost:{}", proxy.port);
    let settings = format!("[upstream]\nca_file = {ca_file:?}");
    let world = World::with_config(simulator, &config_in(&[("HTTPS_PROXY", &proxy_url)], &url, &settings)).await;
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    assert_eq!(proxy.targets(), [authority(&url)]);
    assert!(proxy.heads()[0].contains("\r\nproxy-authorization: Basic "));
}

#[tokio::test]
async fn every_2xx_response_of_a_proxy_opens_the_tunnel() {
    for response in [
        "HTTP/1.1 201 Created\r\n\r\n",
        "HTTP/1.1 202 Accepted\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 299 x\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ] {
        let (simulator, url, settings) = upstream("egress-2xx").await;
        let proxy = TunnelProxy::start_with(response, None).await;
        let proxy_url = format!("http://127.0.0.1:{}", proxy.port);
        let world = World::with_config(simulator, &config_in(&[("HTTPS_PROXY", &proxy_url)], &url, &settings)).await;
        let reply = world.get(LIST).await;
        assert_eq!(reply.status(), StatusCode::OK, "{response}: {reply:?}");
        assert_eq!(proxy.targets(), [authority(&url)]);
    }
}

#[tokio::test]
async fn hosts_in_no_proxy_are_reached_directly() {
    let (simulator, url, settings) = upstream("egress-no-proxy").await;
    let port = url.rsplit(':').next().unwrap();
    let with_port = format!("localhost:{port}");
    for (list, is_covered) in [
        ("localhost", true),
        ("example,.localhost", true),
        ("*", true),
        (&*with_port, true),
        ("localhost:1", false),
        ("host,example.localhost,127.0.0.1", false),
    ] {
        let proxy = TunnelProxy::start(None).await;
        let proxy_url = format!("http://127.0.0.1:{}", proxy.port);
        let environment = [("HTTPS_PROXY", &*proxy_url), ("NO_PROXY", list)];
        let world = World::with_config(simulator.clone(), &config_in(&environment, &url, &settings)).await;
        assert_eq!(world.get(LIST).await.status(), StatusCode::OK, "{list}");
        assert_eq!(proxy.targets().len(), usize::from(!is_covered), "{list}");
    }
}

#[tokio::test]
async fn upstreams_of_operations_use_the_proxy_for_https_but_not_for_http() {
    let (simulator, own, settings) = upstream("egress-own").await;
    let proxy = TunnelProxy::start(None).await;
    let proxy_url = format!("http://127.0.0.1:{}", proxy.port);
    let settings = format!(
        "{settings}[[operation]]\nname = \"Own\"\npath = \"/v2/{{project_id}}/own\"\nupstream = \"{own}\"\nbody = \"none\"\n"
    );
    let plain = simulator.url(workspace_gateway::testing::catalogue::Service::Workspace);
    let world = World::with_config(simulator, &config_in(&[("HTTPS_PROXY", &proxy_url)], &plain, &settings)).await;
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    assert_eq!(proxy.targets(), [""; 0]);
    assert!(world.get("/v2/PROJECT/own").await.cache_status().contains("; stored"));
    assert_eq!(proxy.targets(), [authority(&own)]);
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn a_proxy_failure_is_answered_502_and_a_proxy_refusal_503() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(20_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: x\r\n".repeat(101));
    for (reaction, is_local, reason) in [
        (sends("HTTP/1.1 403 Denied by policy\r\nContent-Length: 4\r\n\r\nuser"), true, "it answers 403 Forbidden"),
        (sends("HTTP/1.1 407 user:secret\r\n\r\n"), true, "it answers 407 Proxy Authentication Required"),
        (sends("HTTP/1.0 502 x\r\n\r\n").then_closes(), false, "it answers 502 Bad Gateway"),
        (sends("HTTP/1.1 302 x\r\nLocation: http://user:secret@x/\r\n\r\n"), true, "it answers 302 Found"),
        (sends("HTTP/1.1 200 OK\r\n\r\nmore"), false, "it sent data before the TLS handshake"),
        (sends("HTTP/1.1 204 OK\r\n\r\nmore"), false, "it sent data before the TLS handshake"),
        (sends("HTTP/1.1 101 x\r\n\r\n"), true, "it answers 101 Switching Protocols"),
        (sends("SSH-2.0-x\r\n\r\n"), false, "its response is not HTTP: invalid HTTP version"),
        (sends("HTTP/1.1 099 x\r\n\r\n"), false, "its response is not HTTP: invalid status code"),
        (sends(&many), true, "its response has more than 100 fields"),
        (sends(&endless), true, "its response header is larger than 16 KiB"),
        (closes(), false, "connection closed before message completed"),
        (sends("HTTP/1.1 200 OK\r\nX: ").then_closes(), false, "connection closed before message completed"),
    ] {
        let (status, kind, detail) = if is_local {
            (StatusCode::SERVICE_UNAVAILABLE, "the gateway could not make the call", "local")
        } else {
            (StatusCode::BAD_GATEWAY, "Backend unavailable", "connect")
        };
        let proxy = RawUpstream::start([reaction]).await;
        let proxy_url = proxy.url().replace("http://", "http://user:secret@");
        let config = config_in(&[("HTTPS_PROXY", &proxy_url)], "https://upstream.example", "");
        let world = World::with_config(Simulator::start().await.unwrap(), &config).await;
        for path in [LIST, OTHER] {
            let reply = world.get(path).await;
            assert_eq!(reply.status(), status);
            let expected = format!(
                "workspace-gateway: {kind}: cannot connect to upstream.example: the proxy {}: {reason}",
                proxy.url()
            );
            assert_eq!(reply.error(), ("APIGW.0201".to_owned(), expected));
            if path == LIST {
                assert_eq!(reply.cache_status(), format!("workspace-gateway; fwd=miss; detail={detail}"));
            }
        }
        assert_eq!(proxy.requests(), 2, "{reason}: the gateway does not retry");
        assert!(
            proxy.heads()[0].starts_with("CONNECT upstream.example:443 HTTP/1.1\r\nhost: upstream.example:443\r\n")
        );
    }
}

#[tokio::test]
async fn the_error_after_a_407_of_a_proxy_suggests_credentials() {
    let proxy = RawUpstream::start([sends("HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n")]).await;
    let config = config_in(&[("HTTPS_PROXY", proxy.url())], "https://upstream.example", "");
    let world = World::with_config(Simulator::start().await.unwrap(), &config).await;
    let (_, message) = world.get(LIST).await.error();
    assert!(
        message.ends_with("it answers 407 Proxy Authentication Required: add USER:PASSWORD@ to HTTPS_PROXY"),
        "{message}"
    );
}

#[tokio::test]
async fn an_unreachable_proxy_is_answered_502() {
    let reserved = reserve_port();
    let address = reserved.local_addr().unwrap();
    let config = config_in(&[("HTTPS_PROXY", &format!("user:secret@{address}"))], "https://upstream.example", "");
    let world = World::with_config(Simulator::start().await.unwrap(), &config).await;
    let (_, message) = world.get(LIST).await.error();
    assert!(message.contains(&format!("the proxy http://{address}: Connection refused")), "{message}");
}

#[tokio::test]
async fn an_untrusted_proxy_certificate_is_a_local_failure() {
    let (acceptor, _) = tls::acceptor("egress-untrusted");
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                assert!(acceptor.accept(stream).await.is_err(), "the gateway trusted the proxy");
            }
        });
        port
    };
    let proxy_url = format!("https://user:secret@localhost:{port}");
    let config = config_in(&[("HTTPS_PROXY", &proxy_url)], "https://upstream.example", "");
    let world = World::with_config(Simulator::start().await.unwrap(), &config).await;
    let reply = world.get(LIST).await;
    assert_eq!(reply.cache_status(), "workspace-gateway; fwd=miss; detail=local");
    let (_, message) = reply.error();
    assert!(message.contains(&format!("the proxy https://localhost:{port}: ")), "{message}");
    assert!(message.contains("UnknownIssuer") && !message.contains("secret"), "{message}");
}

#[tokio::test]
async fn connecting_through_a_proxy_is_limited_by_connect_timeout() {
    // Silent from the beginning, and silent in the TLS handshake.
    for reaction in [silent(), sends("HTTP/1.1 200 OK\r\n\r\n")] {
        let proxy = RawUpstream::start([reaction]).await;
        let proxy_url = proxy.url().replace("http://", "http://user:secret@");
        let config = config_in(
            &[("HTTPS_PROXY", &proxy_url)],
            "https://upstream.example",
            "[upstream]\nconnect_timeout = \"50ms\"\nfirst_byte_timeout = \"1h\"\nanswer_timeout = \"1h\"",
        );
        let world = World::with_config(Simulator::start().await.unwrap(), &config).await;
        let reply = world.get(LIST).await;
        assert_eq!(reply.cache_status(), "workspace-gateway; fwd=miss; detail=connect");
        let expected =
            format!("not connected through the proxy {} within 50ms (upstream.connect_timeout)", proxy.url());
        assert!(reply.error().1.ends_with(&expected), "{reply:?}");
        proxy.wait_for_closes(1).await;
    }
}

#[tokio::test]
async fn serve_logs_the_route_to_upstream_without_the_password() {
    let proxy = RawUpstream::start([sends("HTTP/1.1 407 No\r\n\r\n")]).await;
    let proxy_url = proxy.url().replace("http://", "http://me%40corp:sEcr%65t@");
    let environment = [("HTTPS_PROXY", &*proxy_url), ("NO_PROXY", "appstream.example")];
    let file = folder("egress").join("serve.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\nlevel = \"trace\"\n").unwrap();
    let upstream = ["https://workspace.example", "https://appstream.example"];
    let process = Process::start_with_upstreams(upstream[0], upstream[1], &file, &environment).await;
    let http = Http::new();
    for path in [LIST, OTHER] {
        let url = format!("{}{}", process.proxy, path.replace("PROJECT", PROJECT));
        let reply = http.send(Method::GET, &url, &[("x-auth-token", "token-of-mine")], "").await;
        assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(!format!("{reply:?}").contains("sEcr"));
    }
    drop(http);
    let (_, log) = process.terminate().await;
    for (url, reached) in [
        ("https://workspace.example", format!("through the proxy {} (HTTPS_PROXY)", proxy.url())),
        ("https://appstream.example", "directly (NO_PROXY)".to_owned()),
    ] {
        let events = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let logged: Vec<_> = events.filter(|event| event["message"] == "upstream" && event["url"] == url).collect();
        assert_eq!(logged.len(), 1, "{log}");
        assert_eq!(logged[0]["reached"], reached.as_str());
    }
    assert!(log.contains("407 Proxy Authentication Required"), "{log}");
    // Decoded, percent-encoded, and in Base64.
    for secret in ["sEcret", "sEcr%65t", "corp", "bWVAY29ycDpzRWNyZXQ"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
    assert!(proxy.heads()[0].contains("bWVAY29ycDpzRWNyZXQ"));
}

#[test]
fn check_shows_the_route_to_upstream_without_the_password() {
    let environment = [("HTTPS_PROXY", "http://user:secret@proxy.corp:3128"), ("no_proxy", "*.example")];
    let given = file(
        "egress.toml",
        "region = \"r-1\"\n[[operation]]\nname = \"A\"\npath = \"/v2/{project_id}/a\"\nupstream = \"https://a.example\"\n\
         body = \"json\"\n[[operation]]\nname = \"B\"\npath = \"/v2/{project_id}/b\"\nupstream = \"http://b.local\"\nbody = \"json\"\n",
    );
    let checked = run_in(&environment, &["check", "--config", &given]);
    assert_eq!(code(&checked), 0, "{}", stderr(&checked));
    for line in [
        "# https://workspace.r-1.myhuaweicloud.com is reached through the proxy http://proxy.corp:3128 (HTTPS_PROXY)",
        "# https://appstream.r-1.myhuaweicloud.com is reached through the proxy http://proxy.corp:3128 (HTTPS_PROXY)",
        "# https://a.example is reached directly (NO_PROXY)",
        "# http://b.local is reached directly (no proxy for http)",
    ] {
        assert!(stdout(&checked).lines().any(|shown| shown == line), "{line}: {}", stdout(&checked));
    }
    assert!(!stdout(&checked).contains("secret"));
    let again = run_in(&environment, &["check", "--config", &file("egress-effective.toml", stdout(&checked))]);
    assert_eq!(stdout(&again), stdout(&checked));
    let without = run_in(&[("HTTPS_PROXY", "")], &["check", "--config", &given]);
    assert!(!stdout(&without).contains("is reached"), "{}", stdout(&without));
}

#[test]
fn an_unsupported_proxy_scheme_is_rejected_at_start() {
    for command in ["check", "serve"] {
        let environment = [("HTTPS_PROXY", "socks5://user:secret@proxy.corp:1080")];
        let output = run_in(&environment, &[command, "--region", "r-1"]);
        assert_eq!(code(&output), 2);
        let expected = "workspace-gateway: HTTPS_PROXY: \"socks5://…@proxy.corp:1080\" is not allowed: expected the URL of an \
                        HTTP proxy, http://HOST:PORT or https://HOST:PORT";
        assert!(stderr(&output).starts_with(expected), "{}", stderr(&output));
        assert!(!stderr(&output).contains("secret"));
    }
}
