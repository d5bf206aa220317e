//! HTTPS to upstream: the gateway must trust only the configured authorities, and only for the right name.

use std::path::PathBuf;

use http::StatusCode;
use workspace_gateway::testing::gateway::Gateway;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::{PROJECT, World, config, tls};

const LIST: &str = "/v2/PROJECT/products";

/// Serves the simulator over TLS. Returns its URL and the file of its authority.
pub async fn serve_tls(simulator: &Simulator, name: &str) -> (String, PathBuf) {
    let (acceptor, file) = tls::acceptor(name);
    (tls::serve(simulator, acceptor).await, file)
}

#[tokio::test]
async fn a_private_authority_in_ca_file_is_trusted() {
    let simulator = Simulator::start().await.unwrap();
    let (url, ca_file) = serve_tls(&simulator, "trusted").await;
    let settings = format!("[upstream]\nca_file = {ca_file:?}");
    let world = World::with_upstreams(simulator, &url, &url, &settings).await;
    assert!(world.get(LIST).await.cache_status().contains("; stored"));
    assert!(world.get(LIST).await.cache_status().contains("; hit"));
    assert_eq!(world.get("/v2/PROJECT/desktops").await.status(), StatusCode::OK);
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn an_unknown_authority_is_not_trusted_and_the_503_says_so() {
    let simulator = Simulator::start().await.unwrap();
    let (url, _) = serve_tls(&simulator, "untrusted").await;
    let world = World::with_upstreams(simulator, &url, &url, "").await;
    let reply = world.get(LIST).await;
    assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.cache_status(), "workspace-gateway; fwd=miss; detail=local");
    let (code, message) = reply.error();
    assert_eq!(code, "APIGW.0201");
    for part in ["TLS handshake failed", "UnknownIssuer", "upstream.ca_file"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(world.upstream_calls(), 0, "the gateway sent no token");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not_trusted() {
    let simulator = Simulator::start().await.unwrap();
    let (url, ca_file) = serve_tls(&simulator, "another-name").await;
    let url = url.replace("localhost", "127.0.0.1");
    let world = World::with_upstreams(simulator, &url, &url, &format!("[upstream]\nca_file = {ca_file:?}")).await;
    let reply = world.get(&format!("/v2/{PROJECT}/products")).await;
    assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(reply.error().1.contains("not valid for"), "{reply:?}");
}

#[tokio::test]
async fn an_invalid_ca_file_is_rejected_at_start() {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("no-certificates.pem");
    std::fs::write(&file, "nothing here").unwrap();
    for path in [file, PathBuf::from("/does/not/exist.pem")] {
        let config = config("https://w", "https://a", &format!("[upstream]\nca_file = {path:?}"));
        let Err(error) = Gateway::new(&config, workspace_gateway::testing::clock::Clock::System) else {
            panic!("{path:?} was accepted")
        };
        assert!(error.to_string().contains(&format!("upstream.ca_file {}", path.display())), "{error}");
    }
}
