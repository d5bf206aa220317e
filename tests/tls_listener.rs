//! TLS for clients: requests are answered as in plaintext. Clients without a required certificate must not be answered.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::server::Server;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::process::folder;
use crate::support::raw_client::RawClient;
use crate::support::tls::{Authority, Client, Identity, connect_with};
use crate::support::{PROJECT, World, read_config, send_raw, within, without_key};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

/// The TLS files of a gateway, in a folder for one test.
pub struct Files(pub PathBuf);

impl Files {
    pub fn new(name: &str) -> Self {
        Self(folder(name))
    }

    pub fn write(&self, identity: &Identity) {
        std::fs::write(self.0.join("tls.crt"), &identity.certificate).unwrap();
        std::fs::write(self.0.join("tls.key"), &identity.key).unwrap();
    }

    /// The authority of client certificates.
    pub fn write_client_ca(&self, authority: &Authority) {
        std::fs::write(self.0.join("clients.pem"), authority.pem()).unwrap();
    }

    /// The `[listen]` section. More of its settings may follow.
    pub fn settings(&self) -> String {
        format!("[listen]\ncert_file = {:?}\nkey_file = {:?}\n", self.0.join("tls.crt"), self.0.join("tls.key"))
    }

    pub fn settings_with_client_ca(&self) -> String {
        format!("{}client_ca_file = {:?}\n", self.settings(), self.0.join("clients.pem"))
    }
}

/// A gateway with TLS, and the authority of its certificate.
async fn world_with_tls(name: &str, settings: &str) -> (World, Authority) {
    let (files, authority) = (Files::new(name), Authority::new());
    files.write(&authority.issue("localhost"));
    let world = World::with(&format!("{}{settings}", files.settings())).await;
    (world, authority)
}

pub async fn client_connection(world: &World, client: &Client<'_>) -> RawClient<TlsStream<TcpStream>> {
    RawClient::new(within(client.connect(world.server.proxy_address())).await.unwrap())
}

fn failed_handshakes(world: &World) -> f64 {
    world.metric("workspace_gateway_connections_ended_total{cause=\"handshake\"}")
}

fn negotiated_protocol(stream: &TlsStream<TcpStream>) -> Option<&str> {
    stream.get_ref().1.alpn_protocol().map(|name| std::str::from_utf8(name).unwrap())
}

#[tokio::test]
async fn clients_negotiate_the_versions_of_tls_and_http() {
    let (world, authority) = world_with_tls("tls-versions", "").await;
    let head = world.head(LIST, &[]);
    for (versions, offers, expected) in [
        (rustls::ALL_VERSIONS, &[][..], None),
        (&[&rustls::version::TLS12], &["http/1.1"], Some("http/1.1")),
        (&[&rustls::version::TLS13], &["http/1.1"], Some("http/1.1")),
    ] {
        let client = Client { versions, offers, ..Client::of(&authority) };
        let stream = within(client.connect(world.server.proxy_address())).await.unwrap();
        assert_eq!(negotiated_protocol(&stream), expected);
        let response = RawClient::new(stream).exchange(&head).await;
        assert!(response.status() == 200 && response.body.contains("products"), "{response:?}");
    }
    for offers in [&["h2"][..], &["h2", "http/1.1"], &["http/1.1", "h2"]] {
        let client = Client { offers, ..Client::of(&authority) };
        let stream = within(client.connect(world.server.proxy_address())).await.unwrap();
        assert_eq!(negotiated_protocol(&stream), Some("h2"), "HTTP/2 is preferred, in any order");
        let (status, cache_status) = get_over_http2(stream, &world).await;
        assert_eq!((status, &*without_key(&cache_status).0), (200, "workspace-gateway; hit; ttl=300"));
    }
    let client = Client { offers: &["spdy/3"], ..Client::of(&authority) };
    assert!(within(client.connect(world.server.proxy_address())).await.is_err());
    assert_eq!((world.upstream_calls(), failed_handshakes(&world)), (1, 1.0));
}

#[tokio::test]
async fn a_client_that_does_not_use_the_negotiated_protocol_is_disconnected() {
    let (world, authority) = world_with_tls("tls-alpn", "").await;
    let (http1, http2) = (world.head(LIST, &[]), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_owned());
    for (offers, bytes, is_answered) in [
        (&["h2"][..], &http1, false),
        (&["http/1.1"], &http2, false),
        (&["h2"], &http2, true),
        (&["http/1.1"], &http1, true),
        (&[], &http1, true),
        (&[], &http2, true),
    ] {
        let client = Client { offers, ..Client::of(&authority) };
        let mut stream = within(client.connect(world.server.proxy_address())).await.unwrap();
        within(stream.write_all(bytes.as_bytes())).await.unwrap();
        let read = within(stream.read(&mut [0; 64])).await;
        assert_eq!(read.is_ok_and(|read| read > 0), is_answered, "{offers:?}, {bytes}");
    }
    assert_eq!(failed_handshakes(&world), 2.0);
}

async fn get_over_http2(stream: TlsStream<TcpStream>, world: &World) -> (u16, String) {
    let (sender, connection) = within(h2::client::handshake(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut sender: SendRequest<Bytes> = within(sender.ready()).await.unwrap();
    let url = format!("https://localhost{}", LIST.replace("PROJECT", PROJECT));
    let request = Request::get(url).header("x-auth-token", &world.token).body(()).unwrap();
    let response = within(sender.send_request(request, true).unwrap().0).await.unwrap();
    (response.status().as_u16(), response.headers()["cache-status"].to_str().unwrap().to_owned())
}

#[tokio::test]
async fn misses_hits_and_the_fast_path_return_the_same_body_over_tls() {
    let large = format!("{{\"products\":[{{\"name\":\"{}\"}}]}}", "x".repeat(300 * 1024));
    for body in [None, Some(large)] {
        let (world, authority) = world_with_tls("tls-fast-path", "fast_path = true\n").await;
        world.simulator.set_list_body(body.clone().map(Bytes::from));
        let head = world.head(LIST, &[]);
        let mut client = client_connection(&world, &Client::of(&authority)).await;
        let mut bodies = Vec::new();
        for (result, repeated) in [("fwd=miss", 0), ("; hit", 0), ("; hit", 1), ("; hit", 2)] {
            let response = client.exchange(&head).await;
            assert!(response.status() == 200 && response.header("cache-status").contains(result), "{response:?}");
            assert_eq!(world.fast_path_hits(), repeated, "{result}");
            bodies.push(response.body);
        }
        assert!(bodies.iter().all(|one| *one == body.clone().unwrap_or_else(|| bodies[0].clone())));
        // One head in two parts, then two heads at once.
        client.send(&head[..30]).await;
        client.send(&head[30..]).await;
        client.send(format!("{head}{head}")).await;
        for _ in 0..3 {
            assert!(client.read_response().await.header("cache-status").contains("; hit"));
        }
        client.assert_no_response().await;
        assert_eq!(world.upstream_calls(), 1);
    }
}

#[tokio::test]
async fn relayed_uploads_are_streamed_over_tls() {
    let (world, authority) = world_with_tls("tls-pass-through", "").await;
    let mut client = client_connection(&world, &Client::of(&authority)).await;
    let body = "x".repeat(200 * 1024);
    let head = world.head("/v2/PROJECT/desktops", &[&format!("content-length: {}", body.len())]);
    client.send(head.replace("GET ", "POST ")).await;
    client.send(&body).await;
    assert_eq!(client.read_response().await.status(), 200);
    let seen = world.simulator.requests_seen();
    assert_eq!(seen[0].headers["content-length"], body.len().to_string().as_str());
}

#[tokio::test]
async fn clients_without_a_trusted_certificate_are_rejected() {
    let (files, authority, clients) = (Files::new("tls-client-ca"), Authority::new(), Authority::new());
    files.write(&authority.issue("localhost"));
    files.write_client_ca(&clients);
    let world = World::with(&files.settings_with_client_ca()).await;
    let head = world.head(LIST, &[]);
    let (unknown, known) = (Authority::new().issue("client"), clients.issue("client"));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let before = failed_handshakes(&world);
        for identity in [None, Some(&unknown), Some(&known)] {
            let client = Client { identity, versions: &[version], ..Client::of(&authority) };
            let mut response = vec![0; 12];
            // In TLS 1.3 a client learns that it is rejected only after its handshake, when it reads.
            let exchange = within(async {
                let mut stream = client.connect(world.server.proxy_address()).await?;
                stream.write_all(head.as_bytes()).await?;
                stream.read_exact(&mut response).await
            });
            match exchange.await {
                Ok(_) => {
                    assert!(identity.is_some_and(|identity| identity.key == known.key) && response == b"HTTP/1.1 200")
                }
                Err(_) => assert!(identity.is_none_or(|identity| identity.key == unknown.key)),
            }
        }
        assert_eq!(failed_handshakes(&world), before + 2.0);
    }
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn plain_http_on_a_tls_listener_is_answered_400() {
    let (world, _) = world_with_tls("tls-plain", "").await;
    let post = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(100_000));
    for request in [world.head(LIST, &[]), post, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "\r\n".to_owned()] {
        let mut client = TcpStream::connect(world.server.proxy_address()).await.unwrap();
        within(client.write_all(request.as_bytes())).await.unwrap();
        let mut response = String::new();
        within(client.read_to_string(&mut response)).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"), "{head}");
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(json["error_msg"].as_str().unwrap().contains("use an https URL"), "{json}");
    }
    assert_eq!(world.upstream_calls(), 0);
    world.until_metric("workspace_gateway_connections", 0.0).await;
    assert_eq!(failed_handshakes(&world), 4.0);
}

#[tokio::test]
async fn listeners_without_tls_do_not_accept_tls() {
    let (world, authority) = world_with_tls("tls-elsewhere", "").await;
    let client = Client::of(&authority);
    let metrics = world.http.get(&world.metrics_url("/healthz")).await;
    assert_eq!(metrics.status(), 200, "the metrics listener uses plaintext");
    assert_eq!(
        world.http.get(&world.admin_url("/mode")).await.status(),
        200,
        "the admin listener on loopback uses plaintext"
    );
    for address in [world.server.metrics_address(), world.server.admin_address()] {
        assert!(within(client.connect(address)).await.is_err());
    }
    let plain = World::new().await;
    assert!(within(client.connect(plain.server.proxy_address())).await.is_err());
    // A TLS handshake on a plaintext listener is invalid HTTP.
    let response = send_raw(plain.server.proxy_address(), b"\x16\x03\x01\0\x7f\x01\0\0\x7b\x03\x03").await;
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
}

/// A gateway whose admin listener is not on loopback.
async fn world_with_remote_admin(settings: &str) -> Result<World, String> {
    let simulator = Simulator::start().await.unwrap();
    let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
    let mut config = read_config(&workspace, &appstream, settings).map_err(|error| error.to_string())?;
    config.settings.listen.admin.0 = ([0, 0, 0, 0], 0).into();
    let started = Server::start(&config, Clock::System).await;
    started.map_err(|error| error.to_string())?.stop().await;
    Ok(World::with_config(simulator, &config).await)
}

/// Whether a second connection resumes the TLS session of the first one.
async fn is_session_resumed(world: &World, client: &Client<'_>) -> bool {
    let connector = client.connector();
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let stream = within(connect_with(&connector, world.server.proxy_address())).await.unwrap();
        let mut client = RawClient::new(stream);
        // The session ticket arrives with the response at the latest.
        assert_eq!(client.exchange(world.head(LIST, &[])).await.status(), 200);
        kinds.push(client.into_stream().get_ref().1.handshake_kind().unwrap());
    }
    assert_eq!(kinds[0], HandshakeKind::Full);
    kinds[1] != HandshakeKind::Full
}

#[tokio::test]
async fn sessions_are_not_resumed_with_client_certificates() {
    let (files, authority) = (Files::new("tls-sessions"), Authority::new());
    files.write(&authority.issue("localhost"));
    files.write_client_ca(&authority);
    let identity = authority.issue("client");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let versions = &[version];
        let client = Client { identity: Some(&identity), versions, offers: &["http/1.1"], ..Client::of(&authority) };
        // A certificate that was valid in the first handshake may have expired since.
        let world = World::with(&files.settings_with_client_ca()).await;
        assert!(!is_session_resumed(&world, &client).await, "{version:?}");
        let world = World::with(&files.settings()).await;
        assert!(is_session_resumed(&world, &client).await, "{version:?}: without client certificates");
    }
}

#[tokio::test]
async fn a_remote_operator_needs_tls_and_the_token() {
    let (files, authority) = (Files::new("tls-operator"), Authority::new());
    files.write(&authority.issue("localhost"));
    let token = "admin_token = \"0123456789abcdef\"\n";
    for (settings, expected) in [
        (files.settings(), "or a listen.admin_token"),
        (format!("[listen]\n{token}"), "is not allowed in plaintext, because clients send tokens to it"),
    ] {
        let refused = world_with_remote_admin(&settings).await.err().unwrap();
        assert!(refused.starts_with("listen.admin: \"0.0.0.0:") && refused.contains(expected), "{refused}");
    }
    assert!(world_with_remote_admin(&format!("[listen]\n{token}insecure_plaintext = true\n")).await.is_ok());
    let world = world_with_remote_admin(&format!("{}{token}", files.settings())).await.unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], world.server.admin_address().port()));
    let response = send_raw(address, format!("GET /status HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
    assert!(response.starts_with("HTTP/1.1 400 ") && response.contains("use an https URL"), "{response}");
    let status_of = async |head: String| {
        RawClient::new(within(Client::of(&authority).connect(address)).await.unwrap()).exchange(head).await.status()
    };
    for (path, authorization, status) in [
        ("/", "", 200),
        ("/status", "", 401),
        ("/status", "Authorization: Bearer 0123456789abcdeF\r\n", 401),
        ("/status", "Authorization: Bearer 0123456789abcdef\r\n", 200),
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{authorization}\r\n");
        assert_eq!(status_of(head).await, status, "{path} {authorization}");
    }
    // A reload that would remove the token is rejected as a whole.
    let refused = world.reload(&files.settings()).unwrap_err().to_string();
    assert!(refused.contains("or a listen.admin_token"), "{refused}");
    let head = format!("GET /status HTTP/1.1\r\nHost: {address}\r\n\r\n");
    assert_eq!(status_of(head).await, 401);
}

#[tokio::test]
async fn silent_connections_are_closed_after_the_header_timeout() {
    let (world, authority) =
        world_with_tls("tls-silent", "[limits]\nheader_timeout = \"40ms\"\nmax_connections = 2\n").await;
    let silent = [connect(&world).await, connect(&world).await];
    let mut client = client_connection(&world, &Client { offers: &["http/1.1"], ..Client::of(&authority) }).await;
    assert_eq!(client.exchange(world.head(LIST, &[])).await.status(), 200);
    for mut client in silent {
        assert_eq!(within(client.read(&mut [0; 1])).await.unwrap(), 0);
    }
    let ended = world.metric("workspace_gateway_connections_ended_total{cause=\"header-timeout\"}");
    assert!(ended >= 1.0 && failed_handshakes(&world) == 0.0);
}

async fn connect(world: &World) -> TcpStream {
    let address: SocketAddr = world.server.proxy_address();
    TcpStream::connect(address).await.unwrap()
}

#[tokio::test]
async fn shutdown_finishes_requests_in_flight_and_sends_close_notify() {
    let (world, authority) = world_with_tls("tls-drain", "").await;
    let client = Client::of(&authority);
    let head = world.head(LIST, &[]);
    let mut idle = client_connection(&world, &client).await;
    assert_eq!(idle.exchange(world.head("/nowhere", &[])).await.status(), 404);
    world.simulator.hold();
    let mut pending = client_connection(&world, &client).await;
    pending.send(&head).await;
    within(world.simulator.wait_for_requests(1)).await;
    let World { simulator, server, .. } = world;
    let stopping = tokio::spawn(server.stop());
    // Without close_notify the client would report an error.
    assert!(idle.read_responses().await.is_empty());
    assert!(!stopping.is_finished());
    simulator.release();
    assert_eq!(pending.read_response().await.status(), 200);
    assert!(pending.read_responses().await.is_empty());
    within(stopping).await.unwrap();
}
