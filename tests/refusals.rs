//! A 401, on whatever path: which grants of its credential it ends, and which calls it makes late.

use http::StatusCode;
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

use crate::support::raw::{RawUpstream, Turn, says, silent};
use crate::support::signer::{Signed, entry};
use crate::support::{Reply, World, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const DESKTOPS: &str = "/v2/PROJECT/desktops";

/// A scope in the service of `DESKTOPS` each, the first of them that of `LIST`.
const SCOPES: [&str; 3] = [LIST, "/v2/another/products", "/v2/PROJECT/products/sharer"];
const OTHER_SERVICE: &str = "/v1/PROJECT/product";

const PRODUCTS: &str = "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"products\":[]}";
const OF_THE_API_GATEWAY: &str = "{\"error_code\":\"APIGW.0301\"}";
const OF_THE_SERVICE: &str = "{\"error_code\":\"WKS.00211302\"}";

/// `OF_THE_SERVICE`, compressed with gzip.
const COMPRESSED: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\x4a\x2d\x2a\xca\x2f\x8a\x4f\xce\
    \x4f\x49\x55\xb2\x52\x0a\xf7\x0e\xd6\x33\x30\x30\x32\x34\x34\x36\x30\x52\xaa\x05\
    \x00\xb8\xf4\x00\x30\x1d\x00\x00\x00";

fn refusal(more: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 401 Unauthorized\r\n{more}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Who asks: with a token, or with an access key whose signatures the gateway verifies.
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

    /// A world in which this credential can be used, before an upstream with these turns, and then product lists.
    async fn before(&self, turns: impl IntoIterator<Item = Turn>) -> (World, RawUpstream) {
        let upstream = RawUpstream::start(turns.into_iter().chain([says(PRODUCTS)]).collect::<Vec<_>>()).await;
        let settings = match self {
            Self::Token(_) => String::new(),
            Self::Key(key) => entry(key, ""),
        };
        let simulator = Simulator::start().await.unwrap();
        (World::before(simulator, upstream.url(), upstream.url(), &settings).await, upstream)
    }

    /// The same, once the credential has a grant in every scope and in the other service, and another token has one
    /// in the first scope. The turn is for the next call.
    async fn granted_before(&self, turn: Turn) -> (World, RawUpstream) {
        let proofs = std::iter::repeat_n(says(PRODUCTS), SCOPES.len() + 2);
        let (world, upstream) = self.before(proofs.chain([turn])).await;
        for path in SCOPES.iter().chain([&OTHER_SERVICE]) {
            assert_eq!(self.get(&world, path).await.status(), StatusCode::OK);
            assert!(self.get(&world, path).await.is_hit(), "{path}");
        }
        assert_eq!(world.get_as("another", "/v2/PROJECT/products").await.status(), StatusCode::OK);
        world.seconds_pass(1);
        (world, upstream)
    }

    /// In which of the scopes this credential has a grant still.
    async fn hits(&self, world: &World) -> [bool; 3] {
        let mut hits = [false; 3];
        for (hit, path) in hits.iter_mut().zip(SCOPES) {
            *hit = self.get(world, path).await.is_hit();
        }
        hits
    }
}

#[tokio::test]
async fn a_401_on_a_path_of_no_operation_ends_all_grants_of_its_credential_in_that_service_and_no_others() {
    for credential in Credential::both() {
        let (world, _upstream) = credential.granted_before(says(refusal("", OF_THE_API_GATEWAY))).await;
        credential.get(&world, DESKTOPS).await.assert_refused(StatusCode::UNAUTHORIZED);
        assert!(credential.get(&world, OTHER_SERVICE).await.is_hit(), "{credential:?}: the other service");
        assert!(world.get_as("another", LIST).await.is_hit(), "{credential:?}: another token");
        assert_eq!(credential.hits(&world).await, [false; 3], "{credential:?}");
        assert_eq!(credential.hits(&world).await, [true; 3], "{credential:?}: proved again");
    }
}

#[tokio::test]
async fn a_401_with_the_services_own_code_on_a_path_of_no_operation_ends_no_grant() {
    for credential in Credential::both() {
        let (world, upstream) = credential.granted_before(says(refusal("", OF_THE_SERVICE))).await;
        let reply = credential.get(&world, DESKTOPS).await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::UNAUTHORIZED, OF_THE_SERVICE));
        let calls = upstream.requests();
        assert_eq!(credential.hits(&world).await, [true; 3], "{credential:?}");
        assert!(credential.get(&world, OTHER_SERVICE).await.is_hit());
        assert_eq!(upstream.requests(), calls);
    }
}

#[tokio::test]
async fn a_401_with_the_services_own_code_to_a_product_list_ends_the_grant_of_its_scope_only() {
    for credential in Credential::both() {
        let (world, _upstream) = credential.granted_before(says(refusal("", OF_THE_SERVICE))).await;
        let reply = credential.get(&world, "/v2/PROJECT/products?os_type=Windows").await;
        assert_eq!((reply.status(), reply.text()), (StatusCode::UNAUTHORIZED, OF_THE_SERVICE));
        assert_eq!(credential.hits(&world).await, [false, true, true], "{credential:?}");
        // For two seconds that was the refusal, said again.
        world.seconds_pass(2);
        let reply = credential.get(&world, LIST).await;
        assert!(reply.status() == StatusCode::OK && !reply.is_hit(), "{reply:?}");
    }
}

#[tokio::test]
async fn a_code_that_cannot_be_read_because_it_is_compressed_is_none_of_the_services() {
    for credential in Credential::both() {
        let compressed = refusal("Content-Encoding: gzip\r\n", COMPRESSED);
        let (world, _upstream) = credential.granted_before(says(compressed)).await;
        let reply = credential.get(&world, DESKTOPS).await;
        assert_eq!((reply.status(), reply.header("content-encoding")), (StatusCode::UNAUTHORIZED, "gzip"));
        assert_eq!(reply.body(), COMPRESSED);
        assert!(credential.get(&world, OTHER_SERVICE).await.is_hit());
        assert_eq!(credential.hits(&world).await, [false; 3], "{credential:?}");
    }
}

#[tokio::test]
async fn an_answer_to_a_call_sent_before_a_401_of_the_credential_grants_nothing_wherever_that_came() {
    let held = || silent().then_waits().then_says(PRODUCTS);
    // The code of the 401, and whether what was sent before it grants.
    for (code, grants) in [(OF_THE_API_GATEWAY, false), (OF_THE_SERVICE, true)] {
        for credential in Credential::both() {
            // An access key has to be accepted once before two of its calls are made at a time.
            let (world, upstream) = credential.before([says(PRODUCTS), held(), says(refusal("", code))]).await;
            assert_eq!(credential.get(&world, SCOPES[2]).await.status(), StatusCode::OK);
            let asking = credential.begin(&world, LIST);
            upstream.asked(2).await;
            world.seconds_pass(1);
            assert_eq!(credential.get(&world, DESKTOPS).await.status(), StatusCode::UNAUTHORIZED);
            upstream.go_on();
            let reply = within(asking).await.unwrap();
            assert_eq!(reply.status(), StatusCode::OK, "its own answer is its own");
            assert_eq!(reply.cache_status().ends_with("; detail=late"), !grants, "{credential:?}: {reply:?}");
            assert_eq!(credential.get(&world, LIST).await.is_hit(), grants, "{credential:?} {code}");
            assert!(credential.get(&world, LIST).await.is_hit(), "what is sent after it grants");
        }
    }
}

#[tokio::test]
async fn an_answer_to_a_call_sent_after_the_one_that_met_a_401_grants() {
    for credential in Credential::both() {
        let held = || silent().then_waits();
        let turns = [says(PRODUCTS), held().then_says(refusal("", OF_THE_API_GATEWAY)), held().then_says(PRODUCTS)];
        let (world, upstream) = credential.before(turns).await;
        assert_eq!(credential.get(&world, SCOPES[2]).await.status(), StatusCode::OK);
        let mut asking = Vec::new();
        for (calls, path) in (2..).zip([DESKTOPS, LIST]) {
            world.seconds_pass(1);
            asking.push(credential.begin(&world, path));
            upstream.asked(calls).await;
        }
        for (asking, status) in asking.into_iter().zip([StatusCode::UNAUTHORIZED, StatusCode::OK]) {
            upstream.go_on();
            assert_eq!(within(asking).await.unwrap().status(), status);
        }
        assert_eq!(credential.hits(&world).await, [true, false, false], "{credential:?}");
    }
}
