//! Certificates of upstream's: which are trusted, and what to do about the others. `check --probe` tells the same as a call.

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
use crate::support::tls::{Authority, Certified, acceptor_of, serve, server};
use crate::support::{World, within};

const LIST: &str = "/v2/PROJECT/products";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate for `localhost` that is its own issuer, and an authority's, as `openssl req -x509` makes it.
fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> Certified {
    let mut parameters = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut parameters);
    Certified::by_itself(parameters)
}

fn from_now(days: u32, is_past: bool) -> SystemTime {
    let now = Clock::System.date();
    if is_past { now - days * DAY } else { now + days * DAY }
}

/// A server with a certificate, a file of trusted ones, and what a call or probe comes to.
struct Case {
    name: &'static str,
    acceptor: TlsAcceptor,
    trusted: String,
    host: &'static str,
    /// Why it fails, and what to do about it; nothing if it succeeds.
    failure: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    let localhost = "localhost";
    let case = |name, shown: &Certified, trusted: &str, failure| {
        let (acceptor, trusted) = (acceptor_of(shown), trusted.to_owned());
        Case { name, acceptor, trusted, host: localhost, failure }
    };
    let named = |name, shown: &Certified, failure| case(name, shown, &shown.certificate, failure);
    let authority = Authority::new();
    let other = self_signed(|parameters| parameters.distinguished_name.push(DnType::CommonName, "other"));
    let itself = self_signed(|_| {});
    let plain = self_signed(|parameters| parameters.is_ca = IsCa::NoCa);
    let expired = self_signed(|parameters| parameters.not_after = from_now(1, true).into());
    let early = self_signed(|parameters| parameters.not_before = from_now(1, false).into());
    let of_client =
        self_signed(|parameters| parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    let issued = authority.certifies(localhost);
    let server = Authority::of_a_server(localhost);
    vec![
        named("self-signed", &itself, &[]),
        named("self-signed-no-authority", &plain, &[]),
        named("of-an-unknown-issuer-named-itself", &issued, &[]),
        case("of-an-authority", &issued, &authority.pem(), &[]),
        case(
            "same-name-other-key",
            &self_signed(|_| {}),
            &itself.certificate,
            &["the server's certificate is a CA certificate. ", "name this very certificate"],
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
            &["issuer is not trusted (UnknownIssuer). ", "name that in upstream.ca_file"],
        ),
        case("issued-by-a-named-server", &server.certifies(localhost), &server.pem(), &["UnknownIssuer"]),
        named("expired", &expired, &["the certificate expired on 20", "renew it where it is shown"]),
        named("not-valid-yet", &early, &["not valid yet", "set this machine's clock, or wait"]),
        named("of-a-client", &of_client, &["not for servers: expected serverAuth"]),
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

/// Runs `check --probe`, while servers of the test answer.
async fn probe(url: &str, file: &std::path::Path, environment: &'static [(&'static str, &'static str)]) -> Output {
    let (url, file) = (url.to_owned(), file.display().to_string());
    let upstream = move || {
        let arguments = ["check", "--probe", "--workspace-url", &url, "--appstream-url", &url, "--config", &file];
        run_in(environment, &arguments)
    };
    within(tokio::task::spawn_blocking(upstream)).await.unwrap()
}

#[tokio::test]
async fn a_certificate_is_trusted_if_its_authority_or_itself_is_named_and_else_the_error_says_what_to_do() {
    for Case { name, acceptor, trusted, host, failure } in cases() {
        let simulator = Simulator::start().await.unwrap();
        let url = serve(&simulator, acceptor).await.replace("localhost", host);
        let (settings, file) = settings(name, &trusted);
        let world = World::before(simulator.clone(), &url, &url, &settings).await;
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
            assert!(line.contains(" is not reached: ") && line.contains(part), "{name}, {part}: {line}");
        }
        if failure.is_empty() {
            for part in [
                " is reached: localhost is ",
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
async fn an_upstream_that_demands_a_client_certificate_is_told_of_as_such() {
    let authority = Authority::new();
    let certified = authority.certifies("localhost");
    let versions: [&'static SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];
    for version in versions {
        let simulator = Simulator::start().await.unwrap();
        let tls = server(&certified, Some(&authority), &[version]);
        let url = serve(&simulator, TlsAcceptor::from(Arc::new(tls))).await;
        let (settings, file) = settings("client-certificate", &authority.pem());
        let world = World::before(simulator, &url, &url, &settings).await;
        let reply = world.get(LIST).await;
        assert!(reply.error().1.contains("demands a client certificate"), "{version:?}: {reply:?}");
        let output = probe(&url, &file, &[]).await;
        assert_eq!(code(&output), 1, "{version:?}: {}", stdout(&output));
        assert!(stdout(&output).contains("demands a client certificate"), "{version:?}: {}", stdout(&output));
    }
}

/// One server answers in plain HTTP, as most do, and one closes the connection.
#[tokio::test]
async fn an_https_url_of_a_port_without_tls_is_told_of_as_such() {
    let (_, file) = settings("plaintext", &Authority::new().pem());
    let closing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closes = format!("https://{}", closing.local_addr().unwrap());
    let closing = tokio::spawn(async move {
        loop {
            let (mut stream, _) = closing.accept().await.unwrap();
            // The ClientHello is read, so that the end is no reset.
            let _ = stream.read(&mut [0; 4096]).await;
        }
    });
    let simulator = Simulator::start().await.unwrap();
    let answers = simulator.url(Service::Workspace).replace("http://", "https://");
    for (url, expected) in [
        (&answers, "The server does not speak TLS on this port: expected the port for https, or an http:// URL"),
        (&closes, "It may not speak TLS: expected the port for https, or an http:// URL"),
    ] {
        let output = probe(url, &file, &[]).await;
        assert!(code(&output) == 1 && stdout(&output).contains(expected), "{expected}: {}", stdout(&output));
        let world = World::before(simulator.clone(), url, url, "").await;
        let reply = world.get(LIST).await;
        assert_eq!(reply.status(), StatusCode::BAD_GATEWAY);
        assert!(reply.error().1.contains(expected), "{expected}: {reply:?}");
    }
    closing.abort();
}

#[tokio::test]
async fn a_probe_tells_which_step_failed_and_ends_in_time() {
    let (_, file) = settings("probe", &Authority::new().pem());
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = format!("https://{}", mute.local_addr().unwrap());
    std::fs::write(&file, "[upstream]\nconnect_timeout = \"100ms\"\n").unwrap();
    for (url, expected) in [
        (silent.as_str(), "is not reached: cannot connect to 127.0.0.1:"),
        (&silent, "within 100ms (upstream.connect_timeout)"),
        (&format!("http://{closed}"), "Connection refused"),
        (&format!("http://{closed}"), ". Nothing accepts connections there"),
        ("https://no-such-host.invalid", "is not reached: cannot resolve no-such-host.invalid: "),
        ("https://no-such-host.invalid", ". The name is not known, or no DNS server answered: expected a host name"),
    ] {
        let output = probe(url, &file, &[]).await;
        assert!(code(&output) == 1 && stdout(&output).contains(expected), "{expected}: {}", stdout(&output));
    }
    let plain = format!("http://{}", mute.local_addr().unwrap());
    let output = probe(&plain, &file, &[]).await;
    assert!(
        code(&output) == 0 && stdout(&output).contains(" is reached: connected to 127.0.0.1:"),
        "{}",
        stdout(&output)
    );
    std::fs::write(&file, "[upstream]\nconnect_timeout = \"x\"\n").unwrap();
    assert_eq!(code(&probe(&plain, &file, &[]).await), 2);
}
