//! The requests of the Terraform provider, as captured: its headers, its parameter order, and its pages until one is
//! empty. It sends a token or a signature. Its signature does not cover `Host`.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use ring::hmac;
use serde::Deserialize;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::clock::{Clock, ManualClock};
use workspace_gateway::testing::signing::{
    Payload, SignedTarget, canonical_request, parse_date, show_date, string_to_sign,
};
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

use crate::support::signer::{date, entry};
use crate::support::{PROJECT, Reply, World};

const SIGNED: &str = "accept;content-type;user-agent;x-sdk-date";

enum Credential<'a> {
    /// The provider gets a new token for each run.
    Token(&'a str),
    Key(&'a IssuedKey),
}

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

/// The signature of the provider.
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

/// One run of the data source for desktop products, page by page.
async fn run(world: &World, credential: Credential<'_>) -> Vec<Reply> {
    let (mut pages, mut offset) = (Vec::new(), 0);
    loop {
        // The parameters are in alphabetical order. The first page has no offset.
        let page_2 = if offset == 0 { String::new() } else { format!("&offset={offset}") };
        let path = format!("/v2/{PROJECT}/products?architecture=x86&charge_mode=1{page_2}&status=normal");
        let headers = headers(&credential, &path, date(world));
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let page = world.http.send(Method::GET, &world.url(&path), &headers, "").await;
        assert_eq!(page.status(), StatusCode::OK, "{path}: {page:?}");
        // The provider fails if the response has no JSON content type.
        assert!(page.header("content-type").starts_with("application/json"));
        let credential = match &credential {
            Credential::Token(token) => token,
            Credential::Key(key) => key.id.as_str(),
        };
        let shown = world.simulator.product_list_at(credential, &path, &HeaderMap::new(), world.now());
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
async fn terraform_with_a_token_reads_pages_until_one_is_empty() {
    let world = World::new().await;
    let first = run(&world, Credential::Token(&world.token)).await;
    let pages = first.len();
    assert!(pages > 2 && hits(&first) == 0, "{first:?}");
    let again = run(&world, Credential::Token(&world.token)).await;
    assert_eq!((again.len(), hits(&again)), (pages, pages));
    // The first page of a new token is its proof. The other pages are hits.
    for token in [(); 2].map(|()| world.simulator.token(PROJECT)) {
        let other = run(&world, Credential::Token(&token)).await;
        assert_eq!((other.len(), hits(&other), other[0].is_hit()), (pages, pages - 1, false));
    }
    assert_eq!(world.upstream_calls(), pages + 2);
    assert!(world.simulator.requests_seen().iter().all(|seen| seen.target.ends_with("&status=normal")));
}

async fn world(simulator: Simulator, settings: &str) -> World {
    let (workspace, appstream) = (simulator.url(Service::Workspace), simulator.url(Service::AppStream));
    World::with_upstreams(simulator, &workspace, &appstream, settings).await
}

#[tokio::test]
async fn repeated_runs_with_a_known_key_are_hits() {
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
        assert!(signature.names().any(|name| name == "host"), "the signature of the gateway covers Host: {seen:?}");
    }
}

#[tokio::test]
async fn requests_with_an_unknown_key_are_relayed_unchanged() {
    let simulator = Simulator::start().await.unwrap();
    let [known, unknown] = [(); 2].map(|()| simulator.access_key(PROJECT));
    let world = world(simulator, &entry(&known, "")).await;
    // Another caller's pages are stored. They must not be shown to a caller that is not verified.
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
        // The query and the headers are unchanged.
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
    /// Replays the request unchanged, except for the address.
    async fn send(&self, world: &World) -> Reply {
        let mut headers: Vec<_> = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        headers.push(("authorization", &self.authorization));
        world.http.send(Method::GET, &world.url(&self.request_target), &headers, "").await
    }
}

/// The signatures of the other captured requests cover the address of their upstream, so they cannot be valid here.
#[tokio::test]
async fn of_the_captured_requests_only_terraforms_is_relayed() {
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
        let clock = ManualClock::default();
        clock.set_wall_back(Clock::Manual(clock.clone()).date().duration_since(then).unwrap());
        world.simulator.set_clock(Clock::Manual(clock));
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
