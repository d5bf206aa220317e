//! Checks requests that were captured from real clients with their signatures.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderName, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use super::*;
use crate::catalogue::Service;
use crate::clock::{Clock, ManualClock};
use crate::request::caller::X_AUTH_TOKEN;
use crate::signing::{X_SDK_CONTENT_SHA256, X_SECURITY_TOKEN, parse_date};
use crate::simulator::Simulator;

const PROJECT: &str = "00000000000000000000000000000001";

/// A signature of an unknown key.
const SIGNED: &str = "SDK-HMAC-SHA256 Access=STRANGER, SignedHeaders=host;x-sdk-date, Signature=00";

#[derive(Deserialize)]
struct Captured {
    name: String,
    ak: String,
    sk: String,
    method: String,
    request_target: String,
    headers: BTreeMap<String, String>,
    authorization: String,
}

/// A captured request and its key.
struct Case {
    name: String,
    key: IssuedKey,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    date: SystemTime,
}

fn cases() -> Vec<Case> {
    let captured: Vec<Captured> = serde_json::from_str(include_str!("../../../tests/sign_vectors.json")).unwrap();
    captured.into_iter().map(Case::of).collect()
}

/// Terraform's request. Its signature does not cover `Host`.
fn terraform() -> Case {
    cases().into_iter().find(|case| case.name.starts_with("terraform")).unwrap()
}

impl Case {
    fn of(captured: Captured) -> Self {
        let named = |(name, value): (&String, &String)| {
            (HeaderName::try_from(name.as_str()).unwrap(), HeaderValue::try_from(value.as_str()).unwrap())
        };
        let mut headers: HeaderMap = captured.headers.iter().map(named).collect();
        headers.insert(AUTHORIZATION, HeaderValue::try_from(captured.authorization).unwrap());
        let security_token = captured.headers.get("X-Security-Token").cloned();
        Self {
            name: captured.name,
            key: IssuedKey { id: captured.ak, secret: captured.sk, security_token },
            method: captured.method.parse().unwrap(),
            uri: captured.request_target.parse().unwrap(),
            date: parse_date(&captured.headers["X-Sdk-Date"]).unwrap(),
            headers,
        }
    }

    fn set(mut self, name: impl Into<HeaderName>, value: &'static str) -> Self {
        self.headers.insert(name.into(), HeaderValue::from_static(value));
        self
    }

    /// Its header, were it signed with another key.
    fn authorization_of(&self, id: &str) -> HeaderValue {
        let authorization = self.headers[AUTHORIZATION].to_str().unwrap();
        HeaderValue::try_from(authorization.replace(&self.key.id, id)).unwrap()
    }

    fn keys(&self) -> Keys {
        let mut keys = Keys::new([7; 32]);
        keys.add(PROJECT, &self.key);
        keys
    }

    fn check(&self, keys: &mut Keys, now: SystemTime) -> Result<Bearer, ErrorReply> {
        let Self { method, uri, headers, .. } = self;
        keys.check(SignedRequest { method, target: uri.into(), headers, body: b"" }, now)
    }

    /// The result with a new key, and whether it was counted as a failure.
    fn verdict(&self) -> (Result<Bearer, ErrorReply>, bool) {
        let mut keys = self.keys();
        let verdict = self.check(&mut keys, self.date);
        assert_eq!(keys.failures, keys.failures_in_a_row(&self.key.id) as usize);
        (verdict, keys.failures > 0)
    }
}

#[test]
fn captured_requests_are_accepted_within_15_minutes() {
    let (quarter, second) = (Duration::from_secs(15 * 60), Duration::from_secs(1));
    assert_eq!(cases().len(), 6);
    for case in cases() {
        let mut keys = case.keys();
        for now in [case.date, case.date + quarter, case.date - quarter] {
            assert_eq!(case.check(&mut keys, now), Ok(Bearer::of(PROJECT)), "{}", case.name);
        }
        assert_eq!(keys.failures(), 0);
        for (count, now) in [case.date + quarter + second, case.date - quarter - second].into_iter().enumerate() {
            assert_eq!(case.check(&mut keys, now), Err(errors::EXPIRED_SIGNATURE), "{}", case.name);
            assert_eq!(keys.failures(), count + 1);
        }
    }
}

#[test]
fn changed_requests_are_rejected() {
    let bad = || (Err(errors::BAD_SIGNATURE), true);
    for case in cases() {
        let covers_host = !case.name.starts_with("terraform");
        let expected = if covers_host { bad() } else { (Ok(Bearer::of(PROJECT)), false) };
        assert_eq!(case.set(HOST, "elsewhere.example").verdict(), expected);
    }
    for mut case in cases() {
        case.uri = format!("{}&limit=7", case.uri).parse().unwrap();
        assert_eq!(case.verdict(), bad(), "{}", case.name);
    }
    for mut case in cases() {
        case.uri = case.uri.to_string().replace("/product", "/produce").parse().unwrap();
        assert_eq!(case.verdict(), bad(), "{}", case.name);
    }
    for case in cases() {
        assert_eq!(case.set(X_SECURITY_TOKEN, "OTHER").verdict(), bad());
    }
    for mut case in cases().into_iter().filter(|case| case.key.security_token.is_some()) {
        case.headers.remove(X_SECURITY_TOKEN);
        assert_eq!(case.verdict(), bad());
    }
}

#[test]
fn the_sixth_failure_in_a_row_locks_a_key_for_five_minutes() {
    let (good, mut bad) = (terraform(), terraform());
    bad.method = Method::PUT;
    let (mut keys, id, now) = (good.keys(), &good.key.id, good.date);
    // A valid signature resets the count.
    for _ in 0..2 {
        for count in 1..=5 {
            assert_eq!(bad.check(&mut keys, now), Err(errors::BAD_SIGNATURE));
            assert_eq!((keys.failures_in_a_row(id), keys.is_locked(id, now)), (count, false));
        }
        assert!(good.check(&mut keys, now).is_ok());
        assert_eq!(keys.failures_in_a_row(id), 0);
    }
    for _ in 0..6 {
        assert_eq!(bad.check(&mut keys, now), Err(errors::BAD_SIGNATURE));
    }
    assert!(keys.is_locked(id, now));
    assert_eq!(good.check(&mut keys, now + Duration::from_secs(299)), Err(errors::LOCKED));
    assert_eq!((keys.failures(), keys.failures_in_a_row(id)), (17, 6));
    let over = now + Duration::from_secs(300);
    assert!(!keys.is_locked(id, over));
    assert_eq!(bad.check(&mut keys, over), Err(errors::BAD_SIGNATURE));
    assert_eq!((keys.failures_in_a_row(id), keys.is_locked(id, over)), (1, false));
    assert!(good.check(&mut keys, over).is_ok());
}

#[test]
fn the_number_of_counted_unknown_ids_is_bounded() {
    let mut keys = Keys::new([7; 32]);
    for count in 0..=MAX_UNKNOWN_IDS {
        let mut case = terraform();
        let authorization = case.authorization_of(&format!("STRANGER{count}"));
        case.headers.insert(AUTHORIZATION, authorization);
        assert_eq!(case.check(&mut keys, case.date), Err(errors::BAD_SIGNATURE));
        assert!(keys.unknown_ids.len() <= MAX_UNKNOWN_IDS);
    }
    assert_eq!(
        (keys.failures(), keys.failures_in_a_row(&format!("STRANGER{MAX_UNKNOWN_IDS}"))),
        (MAX_UNKNOWN_IDS + 1, 1)
    );
    // A failure without a readable key id is counted for no key.
    let other = terraform().set(AUTHORIZATION, "SDK-HMAC-SM3 Access=A, SignedHeaders=host, Signature=00");
    assert_eq!(other.check(&mut keys, other.date), Err(errors::BAD_SIGNATURE));
    assert_eq!(keys.failures(), MAX_UNKNOWN_IDS + 2);
}

#[test]
fn a_key_is_valid_for_its_project_until_its_state_changes() {
    let other = terraform().set(X_PROJECT_ID, "other");
    assert_eq!(other.verdict(), (Err(errors::OTHER_PROJECT), false), "the signature does not cover it");
    let case = terraform();
    let mut keys = case.keys();
    for (state, refusal) in [
        (CredentialState::Denied, Some(errors::DENIED)),
        (CredentialState::Revoked, Some(errors::BAD_SIGNATURE)),
        (CredentialState::Expired, Some(errors::BAD_SIGNATURE)),
        (CredentialState::Valid, None),
    ] {
        keys.set_state(&case.key.id, state);
        assert_eq!(case.check(&mut keys, case.date).err(), refusal, "{state:?}");
    }
    assert_eq!((keys.failures(), keys.failures_in_a_row(&case.key.id)), (2, 0));
}

#[test]
fn keys_are_unique_and_debug_hides_their_secrets() {
    let mut keys = Keys::new([7; 32]);
    let (one, two) = (keys.create("p", false), keys.create("p", true));
    assert!(one.id != two.id && one.secret != two.secret && one.security_token.is_none());
    let token = two.security_token.as_deref().unwrap();
    assert_eq!((two.id.len(), two.secret.len(), token.len()), (20, 40, 400));
    let shown = format!("{two:?}");
    assert!(shown.contains(&two.id) && !shown.contains(&two.secret) && !shown.contains(token));
}

/// The simulator over sockets, and a client with a key.
struct Bench {
    simulator: Simulator,
    key: IssuedKey,
}

impl Bench {
    async fn send(&self, method: Method, path: &str, headers: HeaderMap, body: &'static [u8]) -> Response<Bytes> {
        let uri: Uri = (self.simulator.url(Service::Workspace) + path).parse().unwrap();
        let mut request =
            Request::builder().method(method).uri(&uri).body(Full::new(Bytes::from_static(body))).unwrap();
        *request.headers_mut() = headers;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let (head, body) = client.request(request).await.unwrap().into_parts();
        Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }

    /// Signs a request and sends it.
    async fn send_signed(&self, method: Method, path: &str, signed: &Payload, body: &'static [u8]) -> Response<Bytes> {
        let uri: Uri = (self.simulator.url(Service::Workspace) + path).parse().unwrap();
        let token = self.key.security_token.as_ref().map(|token| HeaderValue::try_from(token).unwrap());
        let key = signing::AccessKey::new(self.key.id.clone(), self.key.secret.as_bytes(), token, Projects::Any);
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::try_from(uri.authority().unwrap().as_str()).unwrap());
        if *signed == Payload::unsigned() {
            headers.insert(X_SDK_CONTENT_SHA256, HeaderValue::from_static(Payload::UNSIGNED));
        }
        let now = crate::clock::Clock::System.date();
        key.sign(&method, (&uri).into(), &mut headers, [], signed, now).unwrap();
        self.send(method, path, headers, body).await
    }
}

#[tokio::test]
async fn signed_requests_get_the_same_responses_as_tokens() {
    let simulator = Simulator::start().await.unwrap();
    for key in [simulator.access_key("p"), simulator.temporary_access_key("p")] {
        let bench = Bench { simulator: simulator.clone(), key };
        let empty = Payload::of(b"");
        let list = bench.send_signed(Method::GET, "/v2/p/products?os_type=Linux&limit=2", &empty, b"").await;
        assert_eq!(list.status(), StatusCode::OK);
        let expected = simulator.product_list_at(
            &bench.key.id,
            "/v2/p/products?os_type=Linux&limit=2",
            &HeaderMap::new(),
            Clock::System.now(),
        );
        assert_eq!(Some(list.body()), expected.as_ref());
        let seen = simulator.requests_seen().pop().unwrap();
        assert_eq!(seen.signature().unwrap().access, bench.key.id);
        assert!(format!("{seen:?}").contains(&bench.key.id) && !format!("{seen:?}").contains("Signature="));

        assert_eq!(bench.send_signed(Method::GET, "/v2/q/products", &empty, b"").await.status(), StatusCode::FORBIDDEN);
        let body = b"{\"a\":1}";
        for signed in [Payload::of(body), Payload::unsigned()] {
            let echo = bench.send_signed(Method::POST, "/v2/p/desktops", &signed, body).await;
            assert_eq!((echo.status(), echo.body().as_ref()), (StatusCode::OK, &body[..]));
        }
        assert_eq!(simulator.signature_failures(), 0);
        simulator.fail_token(&bench.key.id, Some(StatusCode::BAD_GATEWAY));
        assert_eq!(
            bench.send_signed(Method::GET, "/v2/p/products", &empty, b"").await.status(),
            StatusCode::BAD_GATEWAY
        );
    }
    let bench = Bench { key: simulator.access_key("p"), simulator };
    let wrong = bench.send_signed(Method::POST, "/v2/p/desktops", &Payload::of(b"{}"), b"{\"a\":2}").await;
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert!(String::from_utf8_lossy(wrong.body()).contains("verify aksk signature fail"));
    assert_eq!((bench.simulator.signature_failures(), bench.simulator.failures_in_a_row(&bench.key.id)), (1, 1));
}

#[tokio::test]
async fn a_signature_beside_a_token_is_ignored() {
    let simulator = Simulator::start().await.unwrap();
    let token = HeaderValue::try_from(simulator.token("p")).unwrap();
    let bench = Bench { key: simulator.access_key("p"), simulator };
    let signed = (AUTHORIZATION, HeaderValue::from_static(SIGNED));
    let both = HeaderMap::from_iter([signed.clone(), (X_AUTH_TOKEN, token)]);
    assert_eq!(bench.send(Method::GET, "/v2/p/products", both, b"").await.status(), StatusCode::OK);
    assert_eq!(bench.simulator.signature_failures(), 0);
    for _ in 0..6 {
        assert!(!bench.simulator.is_locked("STRANGER"));
        let alone = HeaderMap::from_iter([signed.clone()]);
        assert_eq!(bench.send(Method::GET, "/v2/p/products", alone, b"").await.status(), StatusCode::UNAUTHORIZED);
    }
    assert!(bench.simulator.is_locked("STRANGER"));
    let clock = ManualClock::running();
    clock.advance(LOCKED_FOR);
    bench.simulator.set_clock(Clock::Manual(clock));
    assert!(!bench.simulator.is_locked("STRANGER"));
}
