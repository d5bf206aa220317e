//! TLS files: errors are reported, and a reload uses changed files. A reload must not disturb open connections.

use std::path::Path;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::config::Config;
use workspace_gateway::testing::server::Server;
use workspace_gateway::testing::simulator::Simulator;

use crate::commands::{code, run, stderr};
use crate::support::process::Process;
use crate::support::raw_client::{RawClient, head_as};
use crate::support::tls::{Authority, Client, connect_with};
use crate::support::{PROJECT, World, config, send_raw, within};
use crate::tls_listener::{Files, client_connection};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const FILE_CONTENT: [&str; 2] = ["listen.cert_file (file content)", "listen.key_file (file content)"];

async fn connect(world: &World, authority: &Authority) -> TlsStream<TcpStream> {
    within(Client::of(authority).connect(world.server.proxy_address())).await.unwrap()
}

fn peer_certificate(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test]
async fn a_renewed_certificate_is_used_for_new_connections_only() {
    let (files, authority) = (Files::new("tls-renewed"), Authority::new());
    let [first, second] = [(); 2].map(|()| authority.issue("localhost"));
    files.write(&first);
    let world = World::with(&files.settings()).await;
    let head = world.head(LIST, &[]);
    let old = connect(&world, &authority).await;
    assert_eq!(peer_certificate(&old), first.der());
    let mut old = RawClient::new(old);
    assert_eq!(old.exchange(&head).await.status(), 200);
    // A request in flight.
    world.simulator.hold();
    let mut waiting = client_connection(&world, &Client::of(&authority)).await;
    waiting.send(world.head("/v2/PROJECT/products?os_type=Windows", &[])).await;
    within(world.simulator.wait_for_requests(2)).await;

    assert_eq!(world.reload(&files.settings()).unwrap().applied, Vec::<String>::new());
    files.write(&second);
    assert_eq!(world.reload(&files.settings()).unwrap().applied, FILE_CONTENT);
    let new = connect(&world, &authority).await;
    assert_eq!(peer_certificate(&new), second.der());
    let mut new = RawClient::new(new);
    assert_eq!(new.exchange(&head).await.status(), 200);
    world.simulator.release();
    assert_eq!(waiting.read_response().await.status(), 200);
    assert_eq!(old.exchange(&head).await.status(), 200);
    assert_eq!(world.metric("workspace_gateway_connections"), 3.0);
}

#[tokio::test]
async fn an_invalid_file_changes_nothing() {
    let (files, authority) = (Files::new("tls-refused"), Authority::new());
    let [first, second] = [(); 2].map(|()| authority.issue("localhost"));
    files.write(&first);
    files.write_client_ca(&authority);
    let world = World::with(&files.settings()).await;
    for (name, text, parts) in [
        ("tls.crt", second.certificate.as_str(), &["listen.key_file: ", "tls.key", "not the key of", "tls.crt"][..]),
        ("tls.crt", &first.key, &["listen.cert_file: ", "tls.crt", "found none"]),
        ("tls.crt", "", &["listen.cert_file: ", "found none"]),
        ("tls.crt", "-----BEGIN CERTIFICATE-----\nhush", &["listen.cert_file: ", "expected a PEM file"]),
        (
            "tls.crt",
            "-----BEGIN CERTIFICATE-----\naHVzaA==\n-----END CERTIFICATE-----",
            &["listen.cert_file: ", "tls.crt"],
        ),
        ("tls.key", &second.key, &["listen.key_file: ", "tls.key", "not the key of"]),
        ("tls.key", &first.certificate, &["listen.key_file: ", "tls.key", "private key that is not encrypted"]),
        ("tls.key", "-----BEGIN hush", &["listen.key_file: ", "expected a PEM file"]),
        ("tls.key", "-----BEGIN PRIVATE KEY-----\nhush", &["listen.key_file: ", "expected a PEM file"]),
        ("tls.key", "-----BEGIN PRIVATE KEY-----\naHVzaA==\n-----END PRIVATE KEY-----", &["listen.key_file: ", "RSA"]),
        ("clients.pem", "nothing", &["listen.client_ca_file: ", "clients.pem", "found none"]),
    ] {
        let before = std::fs::read_to_string(files.0.join(name)).unwrap();
        std::fs::write(files.0.join(name), text).unwrap();
        let wrong = format!("mode = \"bypass\"\n{}", files.settings_with_client_ca());
        let error = world.reload(&wrong).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains("hush"), "{error}");
        assert_eq!(peer_certificate(&connect(&world, &authority).await), first.der(), "{text}");
        std::fs::write(files.0.join(name), before).unwrap();
    }
    std::fs::remove_file(files.0.join("tls.key")).unwrap();
    let error = world.reload(&files.settings()).unwrap_err().to_string();
    assert!(error.contains("listen.key_file: ") && error.contains("No such file"), "{error}");
    std::fs::create_dir(files.0.join("tls.key")).unwrap();
    assert!(world.reload(&files.settings()).unwrap_err().to_string().contains("a regular file"));
    assert_eq!(world.metric("workspace_gateway_reloads_total{result=\"refused\"}"), 13.0);
    let mut client = client_connection(&world, &Client::of(&authority)).await;
    assert!(
        !client.exchange(world.head(LIST, &[])).await.header("cache-status").contains("bypass"),
        "the mode has not changed"
    );
    // Vice versa: another invalid setting must not change TLS.
    files.0.join("tls.key").read_dir().unwrap();
    std::fs::remove_dir(files.0.join("tls.key")).unwrap();
    files.write(&second);
    let wrong = format!("{}[upstream]\nca_file = \"/does/not/exist.pem\"\n", files.settings());
    assert!(world.reload(&wrong).unwrap_err().to_string().contains("upstream.ca_file"));
    assert_eq!(peer_certificate(&connect(&world, &authority).await), first.der());
}

#[tokio::test]
async fn tls_and_client_certificates_can_be_switched_on_and_off() {
    let (files, authority) = (Files::new("tls-switched"), Authority::new());
    files.write(&authority.issue("localhost"));
    files.write_client_ca(&authority);
    let world = World::new().await;
    let head = world.head(LIST, &[]);
    let mut plain = RawClient::connect(&world).await;
    assert_eq!(plain.exchange(&head).await.status(), 200);
    let changes = world.reload(&files.settings()).unwrap();
    assert_eq!(changes.applied, ["listen.cert_file", "listen.key_file"]);
    let mut secured = client_connection(&world, &Client::of(&authority)).await;
    assert_eq!((secured.exchange(&head).await.status(), plain.exchange(&head).await.status()), (200, 200));
    assert!(send_raw(world.server.proxy_address(), &head).await.starts_with("HTTP/1.1 400 "));

    assert_eq!(world.reload(&files.settings_with_client_ca()).unwrap().applied, ["listen.client_ca_file"]);
    let versions = &[&rustls::version::TLS12];
    let stranger = Client { versions, ..Client::of(&authority) };
    assert!(within(stranger.connect(world.server.proxy_address())).await.is_err());
    let identity = authority.issue("client");
    let known = Client { identity: Some(&identity), ..stranger };
    let (connector, address) = (known.connector(), world.server.proxy_address());
    let stream = within(connect_with(&connector, address)).await.unwrap();
    assert_eq!(RawClient::new(stream).exchange(&head).await.status(), 200);
    // New authorities apply immediately, also to clients that were accepted before.
    let other = Authority::new();
    files.write_client_ca(&other);
    let changes = world.reload(&files.settings_with_client_ca()).unwrap();
    assert_eq!(changes.applied, ["listen.client_ca_file (file content)"]);
    assert!(within(connect_with(&connector, address)).await.is_err());

    world.reload("").unwrap();
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    assert_eq!((secured.exchange(&head).await.status(), plain.exchange(&head).await.status()), (200, 200));
}

/// A configuration whose proxy listens on all addresses.
fn config_on_all_addresses(simulator: &Simulator, settings: &str) -> Config {
    let url = simulator.url(workspace_gateway::testing::catalogue::Service::Workspace);
    let mut config = config(&url, &url, settings);
    config.settings.listen.proxy = "0.0.0.0:0".parse().unwrap();
    config
}

#[tokio::test]
async fn plaintext_is_refused_for_the_address_in_use_not_the_new_one() {
    let (files, authority) = (Files::new("tls-exposed"), Authority::new());
    files.write(&authority.issue("localhost"));
    let simulator = Simulator::start().await.unwrap();
    // With an address that was not checked when the settings were read.
    let Err(error) =
        Server::start(&config_on_all_addresses(&simulator, ""), workspace_gateway::testing::clock::Clock::System).await
    else {
        panic!("clients would send tokens in plaintext")
    };
    assert!(error.to_string().starts_with("listen.proxy: \"0.0.0.0:"), "{error}");

    let config = config_on_all_addresses(&simulator, &files.settings());
    let world = World::with_config(simulator, &config).await;
    // The new settings have a loopback address. But a change of the address needs a restart.
    let error = world.reload("").unwrap_err().to_string();
    assert!(error.starts_with("listen.proxy: \"0.0.0.0:") && error.contains("insecure_plaintext"), "{error}");
    assert!(world.server.reloading().exposed().is_empty());
    let port = world.server.proxy_address().port();
    let client = Client::of(&authority);
    let connected = client.connect(([127, 0, 0, 1], port).into());
    assert!(within(connected).await.is_ok(), "the listener still uses TLS");
    let allowed = "[listen]\ninsecure_plaintext = true\n";
    world.reload(allowed).unwrap();
    assert_eq!(world.server.reloading().exposed(), [("listen.proxy", world.server.proxy_address())]);
    let head = world.head(LIST, &[]);
    assert_eq!(RawClient::connect_to(([127, 0, 0, 1], port).into()).await.exchange(&head).await.status(), 200);
    // The permission cannot be removed while the listener uses plaintext.
    assert!(world.reload("").is_err());
    assert!(world.reload(&files.settings()).is_ok());
    assert!(world.reload("").is_err());
}

#[test]
fn check_and_serve_reject_invalid_files() {
    let (files, authority) = (Files::new("tls-check"), Authority::new());
    let [one, other] = [(); 2].map(|()| authority.issue("localhost"));
    files.write(&one);
    let file = files.0.join("config.toml");
    std::fs::write(&file, format!("region = \"r\"\n{}", files.settings())).unwrap();
    let file = file.to_str().unwrap();
    let checked = run(&["check", "--config", file, "--listen", "0.0.0.0:1"]);
    assert_eq!(code(&checked), 0, "{}", stderr(&checked));
    std::fs::write(files.0.join("tls.key"), &other.key).unwrap();
    for command in ["check", "serve"] {
        let ports = ["--listen", "--metrics-listen", "--admin-listen"].map(|flag| [flag, "127.0.0.1:0"]);
        let output = run(&[&[command, "--config", file], ports.as_flattened()].concat());
        assert_eq!(code(&output), 2);
        assert!(stderr(&output).contains("listen.key_file: ") && stderr(&output).contains("not the key of"));
        let key_line = other.key.lines().nth(1).unwrap();
        assert!(!stderr(&output).contains(key_line), "{}", stderr(&output));
    }
    for (arguments, expected) in [
        (&["--listen", "0.0.0.0:1"][..], "--listen: listen.proxy: \"0.0.0.0:1\" is not allowed in plaintext"),
        (
            &["--insecure-plaintext", "maybe"],
            "--insecure-plaintext: listen.insecure_plaintext: \"maybe\" is not allowed",
        ),
    ] {
        let output = run(&[&["check", "--region", "r"], arguments].concat());
        assert_eq!(code(&output), 2);
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    let allowed = run(&["check", "--region", "r", "--listen", "0.0.0.0:1", "--insecure-plaintext", "true"]);
    assert_eq!(code(&allowed), 0, "{}", stderr(&allowed));
}

async fn start(simulator: &Simulator, file: &Path, listen: &str) -> Process {
    let url = simulator.url(workspace_gateway::testing::catalogue::Service::Workspace);
    let environment = [("WORKSPACE_GATEWAY_LISTEN", listen)];
    Process::start_with_upstreams(&url, &url, file, &environment).await
}

#[tokio::test]
async fn the_program_reloads_renewed_files_and_logs_whether_tls_is_on() {
    let (files, authority) = (Files::new("tls-process"), Authority::new());
    let [first, second] = [(); 2].map(|()| authority.issue("localhost"));
    files.write(&first);
    let simulator = Simulator::start().await.unwrap();
    let file = files.0.join("config.toml");
    let log = "[log]\nformat = \"json\"\n";
    std::fs::write(&file, format!("{}{log}", files.settings())).unwrap();
    let mut process = start(&simulator, &file, "0.0.0.0:0").await;
    let port = process.proxy.rsplit_once(':').unwrap().1.parse().unwrap();
    let address = ([127, 0, 0, 1], port).into();
    let client = Client::of(&authority);
    let stream = within(client.connect(address)).await.unwrap();
    assert_eq!(peer_certificate(&stream), first.der());
    let mut old = RawClient::new(stream);
    let head = head_as(&simulator.token(PROJECT), LIST, &[]);
    assert_eq!(old.exchange(&head).await.status(), 200);
    // One file after the other, so that they do not match in between.
    std::fs::write(files.0.join("tls.key"), &second.key).unwrap();
    let refused = process.wait_for_log("configuration reload failed").await;
    assert!(refused["error"].as_str().unwrap().contains("listen.key_file"), "{refused}");
    std::fs::write(files.0.join("tls.crt"), &second.certificate).unwrap();
    assert_eq!(process.wait_for_log("configuration reloaded").await["changed"], FILE_CONTENT.join(", "));
    assert_eq!(peer_certificate(&within(client.connect(address)).await.unwrap()), second.der());
    assert_eq!(old.exchange(&head).await.status(), 200);
    // Failed handshakes are counted and not logged.
    for _ in 0..20 {
        send_raw(address, "GET / HTTP/1.1\r\n\r\n").await;
        send_raw(address, "\u{16}\u{3}\u{1}\0\u{4}\u{2}\0\0\0").await;
    }
    std::fs::write(&file, format!("[listen]\ninsecure_plaintext = true\n{log}level = \"debug\"\n")).unwrap();
    let warned = process.wait_for_log("clients send tokens in plaintext").await;
    assert_eq!((&warned["level"], &warned["setting"]), (&"WARN".into(), &"listen.proxy".into()));
    assert!(within(client.connect(address)).await.is_err());
    process.wait_for_log("TLS client on a plaintext listener").await;
    drop(old);
    let (exit, log) = process.terminate().await;
    assert_eq!(exit, Some(0));
    assert_eq!(log.matches("handshake").count(), 0, "{log}");
    let ready = log.lines().find(|line| line.contains("\"ready\"")).unwrap();
    assert!(ready.contains("\"tls\":\"on\"") && log.matches("clients send tokens").count() == 1, "{log}");
    for secret in [&first, &second] {
        assert!(!log.contains(secret.key.lines().nth(1).unwrap()));
    }
}

#[tokio::test]
async fn plaintext_is_logged_as_a_warning_and_failed_handshakes_at_debug_level() {
    let (files, authority) = (Files::new("tls-warned"), Authority::new());
    files.write(&authority.issue("localhost"));
    files.write_client_ca(&authority);
    let simulator = Simulator::start().await.unwrap();
    let file = files.0.join("config.toml");
    let log = "[log]\nformat = \"json\"\nlevel = \"debug\"\n";
    std::fs::write(&file, format!("[listen]\ninsecure_plaintext = true\n{log}")).unwrap();
    let (_, output) = start(&simulator, &file, "0.0.0.0:0").await.terminate().await;
    assert!(
        output.matches("clients send tokens in plaintext").count() == 1 && output.contains("\"tls\":\"off\""),
        "{output}"
    );

    std::fs::write(&file, format!("{}{log}", files.settings_with_client_ca())).unwrap();
    let mut process = start(&simulator, &file, "127.0.0.1:0").await;
    let address = process.proxy.strip_prefix("http://").unwrap().parse().unwrap();
    send_raw(address, "GET / HTTP/1.1\r\n\r\n").await;
    let failed = process.wait_for_log("TLS handshake failed").await;
    assert_eq!((&failed["level"], &failed["error"]), (&"DEBUG".into(), &"plain HTTP client on a TLS listener".into()));
    let client = Client { versions: &[&rustls::version::TLS12], ..Client::of(&authority) };
    assert!(within(client.connect(address)).await.is_err());
    let failed = process.wait_for_log("TLS handshake failed").await;
    assert!(failed["error"].as_str().unwrap().contains("certificate"), "{failed}");
    let (_, output) = process.terminate().await;
    assert!(
        output.contains("\"tls\":\"on, with client certificates\"") && !output.contains("clients send tokens"),
        "{output}"
    );
}

#[tokio::test]
async fn certificate_expiry_is_a_metric_and_warned_of_14_days_before() {
    let (files, authority) = (Files::new("tls-end"), Authority::new());
    let day = Duration::from_secs(24 * 60 * 60);
    let ends = |days: u32| authority.issue_until("localhost", Clock::System.date() + days * day);
    let end =
        |days: u32| (Clock::System.date() + days * day).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    files.write(&ends(30));
    let metric = "workspace_gateway_tls_certificate_not_after_seconds";
    let world = World::with(&files.settings()).await;
    assert!((world.metric(metric) - end(30)).abs() < 60.0, "{}", world.metric(metric));
    files.write(&ends(10));
    assert_eq!(world.reload(&files.settings()).unwrap().applied, FILE_CONTENT);
    assert!((world.metric(metric) - end(10)).abs() < 60.0, "{}", world.metric(metric));
    world.reload("").unwrap();
    assert_eq!(world.metric(metric), 0.0);

    let file = files.0.join("config.toml");
    std::fs::write(&file, format!("{}[log]\nformat = \"json\"\n", files.settings())).unwrap();
    let check = || {
        let output = run(&["check", "--region", "cn-north-4", "--config", file.to_str().unwrap()]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        stderr(&output).to_owned()
    };
    let soon = "listen.cert_file: the certificate expires on ";
    assert!(check().contains(&format!("warning: {soon}")), "{}", check());
    let (_, log) = Process::start(&world.simulator, &file).await.terminate().await;
    assert_eq!(log.matches(soon).count(), 1, "{log}");
    files.write(&authority.issue_until_year("localhost", 2020));
    assert!(
        check().contains("warning: listen.cert_file: the certificate expired on 2020-01-01T00:00:00Z"),
        "{}",
        check()
    );
    files.write(&ends(15));
    assert!(!check().contains("cert_file"), "{}", check());
}
