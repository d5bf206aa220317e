//! TLS for clients: whatever is said in it is answered as in plain text, to those who may, and what isn't TLS is told so.

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

use crate::support::line::Line;
use crate::support::process::folder;
use crate::support::tls::{Authority, Certified, Client, connect_by};
use crate::support::{PROJECT, World, raw, read, within, without_key};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

/// The files of a gateway, in a folder of a test's own.
pub struct Files(pub PathBuf);

impl Files {
    pub fn new(name: &str) -> Self {
        Self(folder(name))
    }

    pub fn write(&self, certified: &Certified) {
        std::fs::write(self.0.join("tls.crt"), &certified.certificate).unwrap();
        std::fs::write(self.0.join("tls.key"), &certified.key).unwrap();
    }

    /// Whose clients it takes.
    pub fn write_client_ca(&self, authority: &Authority) {
        std::fs::write(self.0.join("clients.pem"), authority.pem()).unwrap();
    }

    /// `[listen]`, which more settings of it may follow.
    pub fn settings(&self) -> String {
        format!("[listen]\ncert_file = {:?}\nkey_file = {:?}\n", self.0.join("tls.crt"), self.0.join("tls.key"))
    }

    pub fn settings_with_client_ca(&self) -> String {
        format!("{}client_ca_file = {:?}\n", self.settings(), self.0.join("clients.pem"))
    }
}

/// A world whose clients speak TLS, and who has certified it.
async fn secured(name: &str, settings: &str) -> (World, Authority) {
    let (files, authority) = (Files::new(name), Authority::new());
    files.write(&authority.certifies("localhost"));
    let world = World::with(&format!("{}{settings}", files.settings())).await;
    (world, authority)
}

/// The fast path is for those of one connection, too, so that more is said on it.
pub async fn line(world: &World, client: &Client<'_>) -> Line<TlsStream<TcpStream>> {
    Line::over(within(client.connect(world.server.proxy_address())).await.unwrap())
}

/// How many handshakes have come to nothing.
fn failed(world: &World) -> f64 {
    world.metric("workspace_gateway_connections_ended_total{cause=\"handshake\"}")
}

fn chosen(stream: &TlsStream<TcpStream>) -> Option<&str> {
    stream.get_ref().1.alpn_protocol().map(|name| std::str::from_utf8(name).unwrap())
}

#[tokio::test]
async fn clients_choose_the_versions_of_tls_and_http() {
    let (world, authority) = secured("tls-versions", "").await;
    let head = world.head(LIST, &[]);
    for (versions, offers, expected) in [
        (rustls::ALL_VERSIONS, &[][..], None),
        (&[&rustls::version::TLS12], &["http/1.1"], Some("http/1.1")),
        (&[&rustls::version::TLS13], &["http/1.1"], Some("http/1.1")),
    ] {
        let client = Client { versions, offers, ..Client::of(&authority) };
        let stream = within(client.connect(world.server.proxy_address())).await.unwrap();
        assert_eq!(chosen(&stream), expected);
        let answer = Line::over(stream).asks(&head).await;
        assert!(answer.status() == 200 && answer.body.contains("products"), "{answer:?}");
    }
    for offers in [&["h2"][..], &["h2", "http/1.1"], &["http/1.1", "h2"]] {
        let client = Client { offers, ..Client::of(&authority) };
        let stream = within(client.connect(world.server.proxy_address())).await.unwrap();
        assert_eq!(chosen(&stream), Some("h2"), "the better one, whatever is named first");
        let (status, cache_status) = ask_in_http2(stream, &world).await;
        assert_eq!((status, &*without_key(&cache_status).0), (200, "workspace-gateway; hit; ttl=300"));
    }
    let client = Client { offers: &["spdy/3"], ..Client::of(&authority) };
    assert!(within(client.connect(world.server.proxy_address())).await.is_err());
    assert_eq!((world.upstream_calls(), failed(&world)), (1, 1.0));
}

#[tokio::test]
async fn who_speaks_another_protocol_than_was_negotiated_is_disconnected() {
    let (world, authority) = secured("tls-alpn", "").await;
    let (http1, http2) = (world.head(LIST, &[]), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_owned());
    for (offers, says, is_answered) in [
        (&["h2"][..], &http1, false),
        (&["http/1.1"], &http2, false),
        (&["h2"], &http2, true),
        (&["http/1.1"], &http1, true),
        (&[], &http1, true),
        (&[], &http2, true),
    ] {
        let client = Client { offers, ..Client::of(&authority) };
        let mut stream = within(client.connect(world.server.proxy_address())).await.unwrap();
        within(stream.write_all(says.as_bytes())).await.unwrap();
        let read = within(stream.read(&mut [0; 64])).await;
        assert_eq!(read.is_ok_and(|read| read > 0), is_answered, "{offers:?}, {says}");
    }
    assert_eq!(failed(&world), 2.0);
}

async fn ask_in_http2(stream: TlsStream<TcpStream>, world: &World) -> (u16, String) {
    let (sender, connection) = within(h2::client::handshake(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut sender: SendRequest<Bytes> = within(sender.ready()).await.unwrap();
    let url = format!("https://localhost{}", LIST.replace("PROJECT", PROJECT));
    let request = Request::get(url).header("x-auth-token", &world.token).body(()).unwrap();
    let answer = within(sender.send_request(request, true).unwrap().0).await.unwrap();
    (answer.status().as_u16(), answer.headers()["cache-status"].to_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_miss_a_hit_and_the_fast_path_say_the_same_in_tls() {
    let large = format!("{{\"products\":[{{\"name\":\"{}\"}}]}}", "x".repeat(300 * 1024));
    for body in [None, Some(large)] {
        let (world, authority) = secured("tls-fast-path", "fast_path = true\n").await;
        world.simulator.answer_with(body.clone().map(Bytes::from));
        let head = world.head(LIST, &[]);
        let mut line = line(&world, &Client::of(&authority)).await;
        let mut bodies = Vec::new();
        for (result, repeated) in [("fwd=miss", 0), ("; hit", 0), ("; hit", 1), ("; hit", 2)] {
            let answer = line.asks(&head).await;
            assert!(answer.status() == 200 && answer.header("cache-status").contains(result), "{answer:?}");
            assert_eq!(world.fast_path_hits(), repeated, "{result}");
            bodies.push(answer.body);
        }
        assert!(bodies.iter().all(|one| *one == body.clone().unwrap_or_else(|| bodies[0].clone())));
        // Cut in two by the client, and two at once.
        line.says(&head[..30]).await;
        line.says(&head[30..]).await;
        line.says(format!("{head}{head}")).await;
        for _ in 0..3 {
            assert!(line.hears().await.header("cache-status").contains("; hit"));
        }
        line.hears_nothing().await;
        assert_eq!(world.upstream_calls(), 1);
    }
}

#[tokio::test]
async fn what_passes_through_is_streamed_both_paths() {
    let (world, authority) = secured("tls-pass-through", "").await;
    let mut line = line(&world, &Client::of(&authority)).await;
    let body = "x".repeat(200 * 1024);
    let head = world.head("/v2/PROJECT/desktops", &[&format!("content-length: {}", body.len())]);
    line.says(head.replace("GET ", "POST ")).await;
    line.says(&body).await;
    assert_eq!(line.hears().await.status(), 200);
    let seen = world.simulator.requests_seen();
    assert_eq!(seen[0].headers["content-length"], body.len().to_string().as_str());
}

#[tokio::test]
async fn without_a_certificate_that_the_gateway_knows_nobody_is_answered() {
    let (files, authority, clients) = (Files::new("tls-client-ca"), Authority::new(), Authority::new());
    files.write(&authority.certifies("localhost"));
    files.write_client_ca(&clients);
    let world = World::with(&files.settings_with_client_ca()).await;
    let head = world.head(LIST, &[]);
    let (strange, known) = (Authority::new().certifies("client"), clients.certifies("client"));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let before = failed(&world);
        for certified in [None, Some(&strange), Some(&known)] {
            let client = Client { certified, versions: &[version], ..Client::of(&authority) };
            let mut answer = vec![0; 12];
            // In TLS 1.3 a client hears only after it has asked that it is refused.
            let asked = within(async {
                let mut stream = client.connect(world.server.proxy_address()).await?;
                stream.write_all(head.as_bytes()).await?;
                stream.read_exact(&mut answer).await
            });
            match asked.await {
                Ok(_) => {
                    assert!(certified.is_some_and(|certified| certified.key == known.key) && answer == b"HTTP/1.1 200")
                }
                Err(_) => assert!(certified.is_none_or(|certified| certified.key == strange.key)),
            }
        }
        assert_eq!(failed(&world), before + 2.0);
    }
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn plain_http_is_told_that_tls_is_spoken() {
    let (world, _) = secured("tls-plain", "").await;
    let post = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(100_000));
    for request in [world.head(LIST, &[]), post, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "\r\n".to_owned()] {
        let mut client = TcpStream::connect(world.server.proxy_address()).await.unwrap();
        within(client.write_all(request.as_bytes())).await.unwrap();
        let mut answer = String::new();
        within(client.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"), "{head}");
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(json["error_msg"].as_str().unwrap().contains("expected an https URL"), "{json}");
    }
    assert_eq!(world.upstream_calls(), 0);
    world.until_metric("workspace_gateway_connections", 0.0).await;
    assert_eq!(failed(&world), 4.0);
}

#[tokio::test]
async fn tls_is_not_spoken_where_nobody_said_so() {
    let (world, authority) = secured("tls-elsewhere", "").await;
    let client = Client::of(&authority);
    let metrics = world.http.get(&world.metrics_url("/healthz")).await;
    assert_eq!(metrics.status(), 200, "in plain text, for it has no secret");
    assert_eq!(world.http.get(&world.admin_url("/mode")).await.status(), 200, "and so has whoever is on this machine");
    for address in [world.server.metrics_address(), world.server.admin_address()] {
        assert!(within(client.connect(address)).await.is_err());
    }
    let plain = World::new().await;
    assert!(within(client.connect(plain.server.proxy_address())).await.is_err());
    // What it says in its own way.
    let answer = raw(plain.server.proxy_address(), b"\x16\x03\x01\0\x7f\x01\0\0\x7b\x03\x03").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

/// A gateway whose operator may come from elsewhere.
async fn open_to_operators(settings: &str) -> Result<World, String> {
    let simulator = Simulator::start().await.unwrap();
    let [workspace, appstream] = Service::ALL.map(|service| simulator.url(service));
    let mut config = read(&workspace, &appstream, settings).map_err(|error| error.to_string())?;
    config.settings.listen.admin.0 = ([0, 0, 0, 0], 0).into();
    let started = Server::start(&config, Clock::System).await;
    started.map_err(|error| error.to_string())?.stop().await;
    Ok(World::configured(simulator, &config).await)
}

/// Whether a client that comes again is known by what it was told before, and not asked for a certificate.
async fn is_known_again(world: &World, client: &Client<'_>) -> bool {
    let connector = client.connector();
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let stream = within(connect_by(&connector, world.server.proxy_address())).await.unwrap();
        let mut line = Line::over(stream);
        // With the answer, if not before, has come what it may be known by.
        assert_eq!(line.asks(world.head(LIST, &[])).await.status(), 200);
        kinds.push(line.into_stream().get_ref().1.handshake_kind().unwrap());
    }
    assert_eq!(kinds[0], HandshakeKind::Full);
    kinds[1] != HandshakeKind::Full
}

#[tokio::test]
async fn clients_show_their_certificate_each_time() {
    let (files, authority) = (Files::new("tls-sessions"), Authority::new());
    files.write(&authority.certifies("localhost"));
    files.write_client_ca(&authority);
    let certified = authority.certifies("client");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let versions = &[version];
        let client = Client { certified: Some(&certified), versions, offers: &["http/1.1"], ..Client::of(&authority) };
        // What it had when it was known may have expired since.
        let world = World::with(&files.settings_with_client_ca()).await;
        assert!(!is_known_again(&world, &client).await, "{version:?}");
        let world = World::with(&files.settings()).await;
        assert!(is_known_again(&world, &client).await, "{version:?}: where there is nothing to show");
    }
}

#[tokio::test]
async fn an_operator_elsewhere_speaks_tls_and_shows_the_token() {
    let (files, authority) = (Files::new("tls-operator"), Authority::new());
    files.write(&authority.certifies("localhost"));
    let token = "admin_token = \"0123456789abcdef\"\n";
    for (settings, expected) in [
        (files.settings(), "or a listen.admin_token"),
        (format!("[listen]\n{token}"), "is not allowed in plain text, for tokens travel on it"),
    ] {
        let refused = open_to_operators(&settings).await.err().unwrap();
        assert!(refused.starts_with("listen.admin: \"0.0.0.0:") && refused.contains(expected), "{refused}");
    }
    assert!(open_to_operators(&format!("[listen]\n{token}insecure_plaintext = true\n")).await.is_ok());
    let world = open_to_operators(&format!("{}{token}", files.settings())).await.unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], world.server.admin_address().port()));
    let answer = raw(address, format!("GET /status HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("expected an https URL"), "{answer}");
    let asks = async |head: String| {
        Line::over(within(Client::of(&authority).connect(address)).await.unwrap()).asks(head).await.status()
    };
    for (path, shown, status) in [
        ("/", "", 200),
        ("/status", "", 401),
        ("/status", "Authorization: Bearer 0123456789abcdeF\r\n", 401),
        ("/status", "Authorization: Bearer 0123456789abcdef\r\n", 200),
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{shown}\r\n");
        assert_eq!(asks(head).await, status, "{path} {shown}");
    }
    // A reload that would have it open to everyone is refused as a whole.
    let refused = world.reload(&files.settings()).unwrap_err().to_string();
    assert!(refused.contains("or a listen.admin_token"), "{refused}");
    let head = format!("GET /status HTTP/1.1\r\nHost: {address}\r\n\r\n");
    assert_eq!(asks(head).await, 401);
}

#[tokio::test]
async fn silence_takes_nobodys_place_for_long() {
    let (world, authority) = secured("tls-silent", "[limits]\nheader_timeout = \"40ms\"\nmax_connections = 2\n").await;
    let silent = [connect(&world).await, connect(&world).await];
    let mut line = line(&world, &Client { offers: &["http/1.1"], ..Client::of(&authority) }).await;
    assert_eq!(line.asks(world.head(LIST, &[])).await.status(), 200);
    for mut client in silent {
        assert_eq!(within(client.read(&mut [0; 1])).await.unwrap(), 0);
    }
    let ended = world.metric("workspace_gateway_connections_ended_total{cause=\"header-timeout\"}");
    assert!(ended >= 1.0 && failed(&world) == 0.0);
}

async fn connect(world: &World) -> TcpStream {
    let address: SocketAddr = world.server.proxy_address();
    TcpStream::connect(address).await.unwrap()
}

#[tokio::test]
async fn stopping_finishes_what_is_in_flight_and_says_goodbye() {
    let (world, authority) = secured("tls-drain", "").await;
    let client = Client::of(&authority);
    let head = world.head(LIST, &[]);
    let mut idle = line(&world, &client).await;
    assert_eq!(idle.asks(world.head("/nowhere", &[])).await.status(), 404);
    world.simulator.hold();
    let mut asking = line(&world, &client).await;
    asking.says(&head).await;
    within(world.simulator.arrived(1)).await;
    let World { simulator, server, .. } = world;
    let stopping = tokio::spawn(server.stop());
    // Without a word that it is over this would be an error.
    assert!(idle.hears_out().await.is_empty());
    assert!(!stopping.is_finished());
    simulator.release();
    assert_eq!(asking.hears().await.status(), 200);
    assert!(asking.hears_out().await.is_empty());
    within(stopping).await.unwrap();
}
