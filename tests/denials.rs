//! A 401 on any path: which grants of its credential it ends, and which calls it marks as late.

use http::StatusCode;
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

use crate::support::raw_upstream::{RawUpstream, Reaction, sends, silent};
use crate::support::signer::{Signed, entry};
use crate::support::{Reply, World, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const DESKTOPS: &str = "/v2/PROJECT/desktops";

/// A path in each of three scopes in the service of `DESKTOPS`.
const SCOPES: [&str; 3] = [LIST, "/v2/another/products", "/v2/PROJECT/products/sharer"];
const OTHER_SERVICE: &str = "/v1/PROJECT/product";

const PRODUCTS: &str = "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"products\":[]}";
const OF_THE_API_GATEWAY: &str = "{\"error_code\":\"APIGW.0301\"}";
const OF_THE_SERVICE: &str = "{\"error_code\":\"WKS.00211302\"}";

/// `OF_THE_SERVICE`, compressed with gzip.
const COMPRESSED: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\x4a\x2d\x2a\xca\x2f\x8a\x4f\xce\
    \x4f\x49\x55\xb2\x52\x0a\xf7\x0e\xd6\x33\x30\x30\x32\x34\x34\x36\x30\x52\xaa\x05\
    \x00\xb8\xf4\x00\x30\x1d\x00\x00\x00";

fn denial(more: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 401 Unauthorized\r\n{more}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A token, or an access key whose signatures the gateway verifies.
#[derive(Clone, Debug)]
enum Credential {
    Token(&'static str),
    Key(IssuedKey),
}

impl Credential {
    fn both() -> [Self; 2] {
        let key = IssuedKey { id: "AK".to_owned(), secret: "secret".to_owned(), security_token: None };
        [Self::Token("token"), Self::Key(key)]
    }

    async fn get(&self, world: &World, path: &str) -> Reply {
        match self {
            Self::Token(token) => world.get_as(token, path).await,
            Self::Key(key) => Signed::get(world, key, path).send(world).await,
        }
    }

    fn begin(&self, world: &World, path: &str) -> tokio::task::JoinHandle<Reply> {
        match self {
            Self::Token(token) => world.begin(token, path),
            Self::Key(key) => Signed::get(world, key, path).begin(world),
        }
    }

    /// A world that knows this credential. Its upstream has these reactions, and after them it sends product lists.
    async fn world_with_upstream(&self, reactions: impl IntoIterator<Item = Reaction>) -> (World, RawUpstream) {
        let upstream = RawUpstream::start(reactions.into_iter().chain([sends(PRODUCTS)]).collect::<Vec<_>>()).await;
        let settings = match self {
            Self::Token(_) => String::new(),
            Self::Key(key) => entry(key, ""),
        };
        let simulator = Simulator::start().await.unwrap();
        (World::with_upstreams(simulator, upstream.url(), upstream.url(), &settings).await, upstream)
    }

    /// The same, with grants: this credential has one in every scope and in the other service, and another token has one in
    /// the first scope. The next call gets this reaction.
    async fn granted_world(&self, reaction: Reaction) -> (World, RawUpstream) {
        let proofs = std::iter::repeat_n(sends(PRODUCTS), SCOPES.len() + 2);
        let (world, upstream) = self.world_with_upstream(proofs.chain([reaction])).await;
        for path in SCOPES.iter().chain([&OTHER_SERVICE]) {
            assert_eq!(self.get(&world, path).await.status(), StatusCode::OK);
            assert!(self.get(&world, path).await.is_hit(), "{path}");
        }
        assert_eq!(world.get_as("another", "/v2/PROJECT/products").await.status(), StatusCode::OK);
        world.seconds_pass(1);
        (world, upstream)
    }

    /// In which scopes this credential still has a grant.
    async fn hits(&self, world: &World) -> [bool; 3] {
        let mut hits = [false; 3];
        for (hit, path) in hits.iter_mut().zip(SCOPES) {
            *hit = self.get(world, path).await.is_hit();
        }
        hits
    }
}

#[tokio::test]
async fn a_relayed_401_ends_all_grants_of_its_credential_in_that_service() {
    for credential in Credential::both() {
        let (world, _upstream) = credential.granted_world(sends(denial("", OF_THE_API_GATEWAY))).await;
        credential.get(&world, DESKTOPS).await.assert_refused(StatusCode::UNAUTHORIZED);
        assert!(credential.get(&world, OTHER_SERVICE).await.is_hit(), "{credential:?}: the other service");
        assert!(world.get_as("another", LIST).await.is_hit(), "{credential:?}: another token");
        assert_eq!(credential.hits(&world).await, [false; 3], "{credential:?}");
        assert_eq!(credential.hits(&world).await, [true; 3], "{credential:?}: proved again");
    }
}

#[tokio::test]
async fn a_relayed_401_with_the_services_own_code_ends_no_grant() {
    for credential in Credential::both() {
        let (world, upstream) = credential.granted_world(sends(denial("", OF_THE_SERVICE))).await;
        let reply = credential.get(&world, DESKTOPS).await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::UNAUTHORIZED, OF_THE_SERVICE));
        let calls = upstream.requests();
        assert_eq!(credential.hits(&world).await, [true; 3], "{credential:?}");
        assert!(credential.get(&world, OTHER_SERVICE).await.is_hit());
        assert_eq!(upstream.requests(), calls);
    }
}

#[tokio::test]
async fn a_product_list_401_with_the_services_own_code_ends_one_scopes_grant() {
    for credential in Credential::both() {
        let (world, _upstream) = credential.granted_world(sends(denial("", OF_THE_SERVICE))).await;
        let reply = credential.get(&world, "/v2/PROJECT/products?os_type=Windows").await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::UNAUTHORIZED, OF_THE_SERVICE));
        assert_eq!(credential.hits(&world).await, [false, true, true], "{credential:?}");
        // For two seconds the gateway repeats the denial.
        world.seconds_pass(2);
        let reply = credential.get(&world, LIST).await;
        assert!(reply.status() == StatusCode::OK && !reply.is_hit(), "{reply:?}");
    }
}

#[tokio::test]
async fn a_401_with_a_compressed_body_ends_all_grants() {
    for credential in Credential::both() {
        let compressed = denial("Content-Encoding: gzip\r\n", COMPRESSED);
        let (world, _upstream) = credential.granted_world(sends(compressed)).await;
        let reply = credential.get(&world, DESKTOPS).await;
        assert_eq!((reply.status(), reply.header("content-encoding")), (StatusCode::UNAUTHORIZED, "gzip"));
        assert_eq!(reply.body(), COMPRESSED);
        assert!(credential.get(&world, OTHER_SERVICE).await.is_hit());
        assert_eq!(credential.hits(&world).await, [false; 3], "{credential:?}");
    }
}

#[tokio::test]
async fn a_response_to_a_call_sent_before_an_api_gateway_401_grants_nothing() {
    let delayed = || silent().then_waits().then_sends(PRODUCTS);
    // The code of the 401, and whether a call that was sent before it grants.
    for (code, grants) in [(OF_THE_API_GATEWAY, false), (OF_THE_SERVICE, true)] {
        for credential in Credential::both() {
            // Upstream has to accept an access key once before two of its calls may be in flight.
            let (world, upstream) =
                credential.world_with_upstream([sends(PRODUCTS), delayed(), sends(denial("", code))]).await;
            assert_eq!(credential.get(&world, SCOPES[2]).await.status(), StatusCode::OK);
            let pending = credential.begin(&world, LIST);
            upstream.wait_for_requests(2).await;
            world.seconds_pass(1);
            assert_eq!(credential.get(&world, DESKTOPS).await.status(), StatusCode::UNAUTHORIZED);
            upstream.resume();
            let reply = within(pending).await.unwrap();
            assert_eq!(reply.status(), StatusCode::OK, "the caller gets the response to its own call");
            assert_eq!(reply.cache_status().ends_with("; detail=late"), !grants, "{credential:?}: {reply:?}");
            assert_eq!(credential.get(&world, LIST).await.is_hit(), grants, "{credential:?} {code}");
            assert!(credential.get(&world, LIST).await.is_hit(), "a call that is sent after it grants");
        }
    }
}

#[tokio::test]
async fn a_response_to_a_call_sent_after_the_denied_call_grants() {
    for credential in Credential::both() {
        let delayed = || silent().then_waits();
        let reactions =
            [sends(PRODUCTS), delayed().then_sends(denial("", OF_THE_API_GATEWAY)), delayed().then_sends(PRODUCTS)];
        let (world, upstream) = credential.world_with_upstream(reactions).await;
        assert_eq!(credential.get(&world, SCOPES[2]).await.status(), StatusCode::OK);
        let mut pending = Vec::new();
        for (calls, path) in (2..).zip([DESKTOPS, LIST]) {
            world.seconds_pass(1);
            pending.push(credential.begin(&world, path));
            upstream.wait_for_requests(calls).await;
        }
        for (pending, status) in pending.into_iter().zip([StatusCode::UNAUTHORIZED, StatusCode::OK]) {
            upstream.resume();
            assert_eq!(within(pending).await.unwrap().status(), status);
        }
        assert_eq!(credential.hits(&world).await, [true, false, false], "{credential:?}");
    }
}
