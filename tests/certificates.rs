//! Upstream certificates: which are trusted, and what the error advises for the others. `check --probe` reports the
//! same as a call.

use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa};
use rustls::SupportedProtocolVersion;
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsAcceptor;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::Clock;
use workspace_gateway::testing::simulator::Simulator;

use crate::commands::{code, run_in, stderr, stdout};
use crate::support::process::folder;
use crate::support::tls::{Authority, Identity, acceptor_for, serve, server};
use crate::support::{World, reserve_port, within};

const LIST: &str = "/v2/PROJECT/products";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A self-signed CA certificate for `localhost`, as `openssl req -x509` makes it.
fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> Identity {
    let mut parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut parameters);
    Identity::self_signed(parameters)
}

fn from_now(days: u32, is_past: bool) -> SystemTime {
    let now = Clock::System.date();
    if is_past { now - days * DAY } else { now + days * DAY }
}

/// A server with a certificate, the content of `upstream.ca_file`, and the result of a call or probe.
struct Case {
    name: &'static str,
    acceptor: TlsAcceptor,
    trusted: String,
    host: &'static str,
    /// Parts of the error: the cause and the advice. Empty if the call succeeds.
    failure: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    let localhost = "localhost";
    let case = |name, shown: &Identity, trusted: &str, failure| {
        let (acceptor, trusted) = (acceptor_for(shown), trusted.to_owned());
        Case { name, acceptor, trusted, host: localhost, failure }
    };
    let named = |name, shown: &Identity, failure| case(name, shown, &shown.certificate, failure);
    let authority = Authority::new();
    let other = self_signed(|parameters| parameters.distinguished_name.push(DnType::CommonName, "other"));
    let itself = self_signed(|_| {});
    let plain = self_signed(|parameters| parameters.is_ca = IsCa::NoCa);
    let expired = self_signed(|parameters| parameters.not_after = from_now(1, true).into());
    let not_yet_valid = self_signed(|parameters| parameters.not_before = from_now(1, false).into());
    let client_only =
        self_signed(|parameters| parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    let issued = authority.issue(localhost);
    let server = Authority::of_server(localhost);
    vec![
        named("self-signed", &itself, &[]),
        named("self-signed-no-authority", &plain, &[]),
        named("of-an-unknown-issuer-named-itself", &issued, &[]),
        case("of-an-authority", &issued, &authority.pem(), &[]),
        case(
            "same-name-other-key",
            &self_signed(|_| {}),
            &itself.certificate,
            &["the server's certificate is a CA certificate. ", "Add this exact certificate"],
        ),
        case(
            "same-name-other-key-no-authority",
            &self_signed(|_| {}),
            &plain.certificate,
            &["the server's certificate is a CA certificate. "],
        ),
        case(
            "of-an-unknown-issuer",
            &issued,
            &other.certificate,
            &["issuer is not trusted (UnknownIssuer). ", "add it or the authority to upstream.ca_file"],
        ),
        case("issued-by-a-named-server", &server.issue(localhost), &server.pem(), &["UnknownIssuer"]),
        named("expired", &expired, &["the certificate expired on 20", "Renew the certificate on the server"]),
        named("not-valid-yet", &not_yet_valid, &["not valid yet", "correct this machine's clock, or wait"]),
        named("of-a-client", &client_only, &["not for servers: expected serverAuth"]),
        Case {
            host: "127.0.0.1",
            ..named(
                "other-name",
                &itself,
                &["not valid for 127.0.0.1, but for localhost. ", "The certificate is for another name"],
            )
        },
    ]
}

fn settings(name: &str, trusted: &str) -> (String, PathBuf) {
    let folder = folder(&format!("certificates-{name}"));
    let ca_file = folder.join("ca.pem");
    std::fs::write(&ca_file, trusted).unwrap();
    let settings = format!("[upstream]\nca_file = {ca_file:?}\n");
    let file = folder.join("config.toml");
    std::fs::write(&file, &settings).unwrap();
    (settings, file)
}

/// Runs `check --probe` on another thread, so that the servers of the test can answer.
async fn probe(url: &str, file: &std::path::Path, environment: &'static [(&'static str, &'static str)]) -> Output {
    let (url, file) = (url.to_owned(), file.display().to_string());
    let upstream = move || {
        let arguments = ["check", "--probe", "--workspace-url", &url, "--appstream-url", &url, "--config", &file];
        run_in(environment, &arguments)
    };
    within(tokio::task::spawn_blocking(upstream)).await.unwrap()
}

#[tokio::test]
async fn each_certificate_is_accepted_or_rejected_with_advice() {
    for Case { name, acceptor, trusted, host, failure } in cases() {
        let simulator = Simulator::start().await.unwrap();
        let url = serve(&simulator, acceptor).await.replace("localhost", host);
        let (settings, file) = settings(name, &trusted);
        let world = World::with_upstreams(simulator.clone(), &url, &url, &settings).await;
        let reply = world.get(LIST).await;
        let is_stored = reply.headers().get("cache-status").is_some_and(|it| it.to_str().unwrap().contains("; stored"));
        assert_eq!(is_stored, failure.is_empty(), "{name}: {reply:?}");
        for part in failure {
            assert!(reply.error().1.contains(part), "{name}, {part}: {reply:?}");
        }
        let calls = simulator.request_count();
        let output = probe(&url, &file, &[]).await;
        let line = stdout(&output).lines().rfind(|line| line.contains(&format!(": {url} is "))).unwrap();
        assert_eq!(code(&output), i32::from(!failure.is_empty()), "{name}: {line} {}", stderr(&output));
        for part in failure {
            assert!(line.contains(" is not reachable: ") && line.contains(part), "{name}, {part}: {line}");
        }
        if failure.is_empty() {
            for part in [
                " is reachable: localhost resolves to ",
                "; connected to 127.0.0.1:",
                "; TLSv1",
                "; certificate for localhost, issued by ",
            ] {
                assert!(line.contains(part), "{name}, {part}: {line}");
            }
            assert!(line.contains(", valid until 4096-01-01T00:00:00Z"), "{name}: {line}");
        }
        assert_eq!(simulator.request_count(), calls, "{name}: the probe sends no request");
    }
}

#[tokio::test]
async fn the_error_says_that_upstream_demands_a_client_certificate() {
    let authority = Authority::new();
    let identity = authority.issue("localhost");
    let versions: [&'static SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];
    for version in versions {
        let simulator = Simulator::start().await.unwrap();
        let tls = server(&identity, Some(&authority), &[version]);
        let url = serve(&simulator, TlsAcceptor::from(Arc::new(tls))).await;
        let (settings, file) = settings("client-certificate", &authority.pem());
        let world = World::with_upstreams(simulator, &url, &url, &settings).await;
        let reply = world.get(LIST).await;
        assert!(reply.error().1.contains("demands a client certificate"), "{version:?}: {reply:?}");
        let output = probe(&url, &file, &[]).await;
        assert_eq!(code(&output), 1, "{version:?}: {}", stdout(&output));
        assert!(stdout(&output).contains("demands a client certificate"), "{version:?}: {}", stdout(&output));
    }
}

/// One server answers in plain HTTP, as most servers do. The other closes the connection.
#[tokio::test]
async fn the_error_says_that_a_port_has_no_tls() {
    let (_, file) = settings("plaintext", &Authority::new().pem());
    let closing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closing_url = format!("https://{}", closing.local_addr().unwrap());
    let closing = tokio::spawn(async move {
        loop {
            let (mut stream, _) = closing.accept().await.unwrap();
            // The ClientHello is read, so that closing sends no reset.
            let _ = stream.read(&mut [0; 4096]).await;
        }
    });
    let simulator = Simulator::start().await.unwrap();
    let plaintext_url = simulator.url(Service::Workspace).replace("http://", "https://");
    for (url, expected) in [
        (&plaintext_url, "The server does not use TLS on this port: use the https port or an http:// URL"),
        (&closing_url, "It may not use TLS on this port: use the https port or an http:// URL"),
    ] {
        let output = probe(url, &file, &[]).await;
        assert!(code(&output) == 1 && stdout(&output).contains(expected), "{expected}: {}", stdout(&output));
        let world = World::with_upstreams(simulator.clone(), url, url, "").await;
        let reply = world.get(LIST).await;
        assert_eq!(reply.status(), StatusCode::BAD_GATEWAY);
        assert!(reply.error().1.contains(expected), "{expected}: {reply:?}");
    }
    closing.abort();
}

#[tokio::test]
async fn a_probe_reports_the_failed_step_within_its_timeout() {
    let (_, file) = settings("probe", &Authority::new().pem());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reserved = reserve_port();
    let closed = reserved.local_addr().unwrap();
    let silent = format!("https://{}", listener.local_addr().unwrap());
    std::fs::write(&file, "[upstream]\nconnect_timeout = \"100ms\"\n").unwrap();
    for (url, expected) in [
        (silent.as_str(), "is not reachable: cannot connect to 127.0.0.1:"),
        (&silent, "within 100ms (upstream.connect_timeout)"),
        (&format!("http://{closed}"), "Connection refused"),
        (&format!("http://{closed}"), ". No service listens there"),
        ("https://no-such-host.invalid", "is not reachable: cannot resolve no-such-host.invalid: "),
        (
            "https://no-such-host.invalid",
            ". The host name does not exist, or no DNS server answered: check the host name",
        ),
    ] {
        let output = probe(url, &file, &[]).await;
        assert!(code(&output) == 1 && stdout(&output).contains(expected), "{expected}: {}", stdout(&output));
    }
    let plain = format!("http://{}", listener.local_addr().unwrap());
    let output = probe(&plain, &file, &[]).await;
    assert!(
        code(&output) == 0 && stdout(&output).contains(" is reachable: connected to 127.0.0.1:"),
        "{}",
        stdout(&output)
    );
    std::fs::write(&file, "[upstream]\nconnect_timeout = \"x\"\n").unwrap();
    assert_eq!(code(&probe(&plain, &file, &[]).await), 2);
}
