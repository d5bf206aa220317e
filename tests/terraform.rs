//! The Terraform provider, as captured: its headers, its order of parameters, its pages until one is empty, and both
//! of its ways to say who asks. What it signs doesn't cover `Host`.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use ring::hmac;
use serde::Deserialize;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::signing::{
    Payload, SignedTarget, canonical_request, parse_date, show_date, string_to_sign,
};
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

use crate::support::signer::{date, entry};
use crate::support::{PROJECT, Reply, World};

const SIGNED: &str = "accept;content-type;user-agent;x-sdk-date";

/// What it presents.
enum Credential<'a> {
    /// A new one for every run.
    Token(&'a str),
    Key(&'a IssuedKey),
}

/// The headers of a request for a path.
fn headers(credential: &Credential<'_>, path: &str, now: SystemTime) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("user-agent", "terraform-provider-iac golangsdk/2.0.0".to_owned()),
        ("accept", "application/json".to_owned()),
        ("content-type", "application/json;charset=utf8".to_owned()),
        ("accept-encoding", "gzip".to_owned()),
    ];
    match credential {
        Credential::Token(token) => headers.push(("x-auth-token", (*token).to_owned())),
        Credential::Key(key) => {
            headers.push(("x-project-id", PROJECT.to_owned()));
            headers.push(("x-sdk-date", show_date(now)));
            headers.push(("authorization", authorization(key, path, &headers)));
        }
    }
    headers
}

/// Signed as it does.
fn authorization(key: &IssuedKey, path: &str, headers: &[(&'static str, String)]) -> String {
    let named =
        |(name, value): &(&'static str, String)| (HeaderName::from_static(name), HeaderValue::try_from(value).unwrap());
    let headers: HeaderMap = headers.iter().map(named).collect();
    let (path, query) = path.split_once('?').unwrap();
    let target = SignedTarget { path, query: Some(query) };
    let canonical = canonical_request(&Method::GET, target, &headers, SIGNED, &Payload::of(b"")).unwrap();
    let to_sign = string_to_sign(headers["x-sdk-date"].to_str().unwrap(), &canonical);
    let secret = hmac::Key::new(hmac::HMAC_SHA256, key.secret.as_bytes());
    let signature: String =
        hmac::sign(&secret, to_sign.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("SDK-HMAC-SHA256 Access={}, SignedHeaders={SIGNED}, Signature={signature}", key.id)
}

/// One run: the data source for desktop products, page by page.
async fn run(world: &World, credential: Credential<'_>) -> Vec<Reply> {
    let (mut pages, mut offset) = (Vec::new(), 0);
    loop {
        // From the second page on it is in the middle, where the alphabet has it.
        let page_2 = if offset == 0 { String::new() } else { format!("&offset={offset}") };
        let path = format!("/v2/{PROJECT}/products?architecture=x86&charge_mode=1{page_2}&status=normal");
        let headers = headers(&credential, &path, date(world));
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let page = world.http.send(Method::GET, &world.url(&path), &headers, "").await;
        assert_eq!(page.status(), StatusCode::OK, "{path}: {page:?}");
        // Without this it takes the answer for text, and fails.
        assert!(page.header("content-type").starts_with("application/json"));
        let credential = match &credential {
            Credential::Token(token) => token,
            Credential::Key(key) => key.id.as_str(),
        };
        let shown = world.simulator.product_list(credential, &path, &HeaderMap::new(), 0);
        assert_eq!(Some(page.body()), shown.as_ref(), "{path}");
        let products = page.products();
        pages.push(page);
        if products == 0 {
            return pages;
        }
        offset += products;
    }
}

fn hits(pages: &[Reply]) -> usize {
    pages.iter().filter(|page| page.is_hit()).count()
}

#[tokio::test]
async fn with_a_token_it_pages_to_the_empty_page() {
    let world = World::new().await;
    let first = run(&world, Credential::Token(&world.token)).await;
    let pages = first.len();
    assert!(pages > 2 && hits(&first) == 0, "{first:?}");
    let again = run(&world, Credential::Token(&world.token)).await;
    assert_eq!((again.len(), hits(&again)), (pages, pages));
    // A new token proves itself by its first page; what it is shown then is in memory.
    for token in [(); 2].map(|()| world.simulator.token(PROJECT)) {
        let other = run(&world, Credential::Token(&token)).await;
        assert_eq!((other.len(), hits(&other), other[0].is_hit()), (pages, pages - 1, false));
    }
    assert_eq!(world.upstream_calls(), pages + 2);
    assert!(world.simulator.requests_seen().iter().all(|seen| seen.target.ends_with("&status=normal")));
}

/// A gateway that knows some of the keys of its upstream.
async fn world(simulator: Simulator, settings: &str) -> World {
    let (workspace, appstream) = (simulator.url(Service::Workspace), simulator.url(Service::AppStream));
    World::before(simulator, &workspace, &appstream, settings).await
}

#[tokio::test]
async fn with_a_known_key_it_is_answered_from_memory_in_every_run() {
    let simulator = Simulator::start().await.unwrap();
    let key = simulator.access_key(PROJECT);
    let world = world(simulator, &entry(&key, "")).await;
    let pages = run(&world, Credential::Key(&key)).await;
    assert!(pages.len() > 2 && hits(&pages) == 0, "{pages:?}");
    for _ in 0..2 {
        world.seconds_pass(60);
        let again = run(&world, Credential::Key(&key)).await;
        assert_eq!((again.len(), hits(&again)), (pages.len(), pages.len()));
    }
    let seen = world.simulator.requests_seen();
    assert_eq!((seen.len(), world.simulator.signature_failures()), (pages.len(), 0));
    for seen in &seen {
        let signature = seen.signature().unwrap();
        assert_eq!(signature.access, key.id);
        assert!(signature.names().any(|name| name == "host"), "what is signed anew covers it: {seen:?}");
    }
}

#[tokio::test]
async fn with_an_unknown_key_it_is_relayed_as_it_is() {
    let simulator = Simulator::start().await.unwrap();
    let [known, unknown] = [(); 2].map(|()| simulator.access_key(PROJECT));
    let world = world(simulator, &entry(&known, "")).await;
    // Somebody else's pages are in memory; they are not for who can't be verified.
    let pages = run(&world, Credential::Key(&known)).await.len();
    world.simulator.forget_requests();
    for _ in 0..2 {
        for page in run(&world, Credential::Key(&unknown)).await {
            assert!(page.cache_status().ends_with("fwd=bypass; detail=unverified-signature"), "{page:?}");
        }
    }
    let seen = world.simulator.requests_seen();
    assert_eq!((seen.len(), world.simulator.signature_failures()), (2 * pages, 0));
    let gateway = world.server.proxy_address().to_string();
    for seen in &seen {
        let signature = seen.signature().unwrap();
        assert_eq!((signature.access, signature.signed_headers), (unknown.id.as_str(), SIGNED));
        assert_ne!(seen.headers["host"], gateway);
        // Query and headers as they were sent, in their order.
        let date = parse_date(seen.headers["x-sdk-date"].to_str().unwrap()).unwrap();
        for (name, value) in headers(&Credential::Key(&unknown), &seen.target, date) {
            assert_eq!(seen.headers[name], value, "{name}");
        }
    }
}

#[derive(Deserialize)]
struct Captured {
    name: String,
    ak: String,
    sk: String,
    request_target: String,
    headers: std::collections::BTreeMap<String, String>,
    authorization: String,
}

impl Captured {
    /// Replays it, byte for byte but for the gateway's address.
    async fn send(&self, world: &World) -> Reply {
        let mut headers: Vec<_> = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        headers.push(("authorization", &self.authorization));
        world.http.send(Method::GET, &world.url(&self.request_target), &headers, "").await
    }
}

/// Of all that was captured, it alone is still good when it is relayed. The others cover the address that they were
/// made for.
#[tokio::test]
async fn what_was_captured_is_relayed_if_it_is_terraforms() {
    let captured: Vec<Captured> = serde_json::from_str(include_str!("sign_vectors.json")).unwrap();
    let simulator = Simulator::start().await.unwrap();
    let world = world(simulator, "").await;
    let mut relayed = 0;
    for request in &captured {
        let key = IssuedKey {
            id: request.ak.clone(),
            secret: request.sk.clone(),
            security_token: request.headers.get("X-Security-Token").cloned(),
        };
        world.simulator.add_access_key(PROJECT, &key);
        let then = parse_date(&request.headers["X-Sdk-Date"]).unwrap();
        world.simulator.take_date_from(move || then);
        let reply = request.send(&world).await;
        if request.name.starts_with("terraform") {
            relayed += 1;
            assert_eq!(reply.status(), StatusCode::OK, "{reply:?}");
            assert!(reply.cache_status().ends_with("fwd=bypass; detail=unverified-signature"), "{reply:?}");
        } else {
            assert_eq!(reply.status(), StatusCode::UNAUTHORIZED, "{}: {reply:?}", request.name);
            assert!(reply.error().1.contains("[[access_key]]"), "{reply:?}");
        }
    }
    assert_eq!((captured.len(), relayed, world.upstream_calls()), (6, 1, 1));
    assert_eq!(world.simulator.signature_failures(), 0);
}
