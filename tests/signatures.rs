//! Access keys: a client that signs with a configured key is a caller, like a client with a token. The gateway must not
//! send a signature upstream that is known to be wrong.

use std::time::Duration;

use http::{Method, StatusCode};
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::signing::{Payload, SCHEME};
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

use crate::support::signer::{Signed, date, entry, join_all, world_with_key, world_with_keys};
use crate::support::{Http, PROJECT, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const DESKTOPS: &str = "/v2/PROJECT/desktops";

fn signatures(result: &str) -> String {
    format!("workspace_gateway_signatures_total{{result=\"{result}\"}}")
}

#[tokio::test]
async fn a_client_that_signs_with_a_configured_key_is_a_caller() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT), simulator.temporary_access_key(PROJECT)];
    let (world, [key, temporary]) =
        world_with_keys(create, |keys| keys.each_ref().map(|key| entry(key, "")).concat()).await;
    let host = world.simulator.url(Service::Workspace).replace("http://", "");
    let mut bodies = Vec::new();
    for key in [&key, &temporary] {
        world.seconds_pass(1);
        let first = Signed::get(&world, key, LIST).send(&world).await;
        assert!(first.cache_status().contains("detail=proved"), "{first:?}");
        let seen = world.simulator.requests_seen().pop().unwrap();
        // The gateway signs the upstream request itself, always over the same headers.
        let said = seen.signature().unwrap();
        assert_eq!([said.access, seen.headers["host"].to_str().unwrap()], [&*key.id, &*host]);
        let covered = ["content-type;host;x-project-id;x-sdk-date", ";x-security-token"];
        let covered = covered[..1 + usize::from(key.security_token.is_some())].concat();
        assert_eq!([said.signed_headers, seen.headers["x-project-id"].to_str().unwrap()], [&*covered, PROJECT]);
        assert!(!seen.headers.contains_key("x-auth-token"));
        for _ in 0..3 {
            let again = Signed::get(&world, key, LIST).send(&world).await;
            assert!(again.is_hit(), "{again:?}");
            bodies.push(again.text().to_owned());
        }
    }
    // Callers with keys and callers with tokens share entries.
    assert!(world.get("/v2/PROJECT/products?limit=0").await.cache_status().contains("detail=proved"));
    let shared = world.get(LIST).await;
    assert!(shared.is_hit());
    assert!(bodies.iter().all(|body| body == shared.text()));
    assert_eq!((world.upstream_calls(), world.simulator.signature_failures()), (3, 0));
    assert!((world.metric(&signatures("verified")) - 8.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_retry_with_the_same_signature_is_answered() {
    let (world, key) = world_with_key().await;
    let request = Signed::get(&world, &key, LIST);
    let first = request.send(&world).await;
    world.seconds_pass(14 * 60);
    let again = request.send(&world).await;
    assert_eq!([first.status(), again.status()], [StatusCode::OK; 2]);
    assert_eq!(
        world.simulator.signature_failures(),
        0,
        "the gateway signs each upstream request with the current date"
    );
    world.seconds_pass(61);
    assert_eq!(request.send(&world).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn relayed_requests_are_signed_again_and_streamed() {
    let (world, key) = world_with_key().await;
    let body = r#"{"desktop":{"name":"d"}}"#;
    let unsigned = Signed { method: Method::POST, ..Signed::get(&world, &key, DESKTOPS) };
    let unsigned = Signed { body: body.into(), ..unsigned }.with("x-sdk-content-sha256", Payload::UNSIGNED);
    let hashed = Payload::of(body.as_bytes());
    for request in [
        Signed::get(&world, &key, DESKTOPS),
        Signed::get(&world, &key, "/v2/PROJECT/desktops/a%20b?name=x%2By+z&name=a&empty="),
        Signed::new(&world, &key, Method::DELETE, DESKTOPS, ""),
        Signed::new(&world, &key, Method::POST, DESKTOPS, body),
        Signed::new(&world, &key, Method::PUT, DESKTOPS, &"x".repeat(300_000)),
        Signed::new(&world, &key, Method::POST, DESKTOPS, body).with("x-sdk-content-sha256", hashed.as_str()).sign(
            &key,
            &["x-sdk-content-sha256", "content-type"],
            &hashed,
            date(&world),
        ),
        unsigned.sign(&key, &["x-sdk-content-sha256"], &Payload::unsigned(), date(&world)),
        // An operation whose response cannot be stored.
        Signed::get(&world, &key, "/v2/PROJECT/products?a=1&a=2"),
    ] {
        let reply = request.send(&world).await;
        assert_eq!(reply.status(), StatusCode::OK, "{} {}: {reply:?}", request.method, request.url);
        if !request.body.is_empty() {
            assert_eq!(reply.body(), &request.body, "the simulator echoes");
        }
    }
    assert_eq!((world.upstream_calls(), world.simulator.signature_failures()), (8, 0));
}

#[tokio::test]
async fn invalid_signatures_of_a_configured_key_are_rejected() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT), simulator.temporary_access_key(PROJECT)];
    let settings = |[key, temporary]: &[IssuedKey; 2]| {
        [entry(key, &format!("projects = [{PROJECT:?}]")), entry(temporary, "")].concat()
    };
    let (world, [key, temporary]) = world_with_keys(create, settings).await;
    let good = Signed::get(&world, &key, LIST);
    let elsewhere = Signed { url: world.url("/v2/PROJECT/products?os_type=Windows"), ..good.clone() };
    let old = good.clone().sign(&key, &[], &Payload::of(b""), date(&world) - Duration::from_secs(901));
    let wrong_secret = IssuedKey { secret: "another".to_owned(), ..key.clone() };
    let said = good.headers["authorization"].to_str().unwrap().to_owned();
    let token = Signed::get(&world, &temporary, LIST);
    let posted = Signed::new(&world, &key, Method::POST, DESKTOPS, "body");
    let hash = Payload::of(b"another");
    let mut unsent = good.clone();
    unsent.headers.remove("content-type");
    for (request, reason, words) in [
        (elsewhere, "signature-wrong", "verify aksk signature fail"),
        (good.clone().with("content-type", "text/plain"), "signature-wrong", "verify aksk"),
        (good.clone().with("host", "workspace.example"), "signature-wrong", "verify aksk"),
        (Signed { method: Method::HEAD, ..good.clone() }, "signature-wrong", ""),
        (Signed::get(&world, &wrong_secret, LIST), "signature-wrong", "the configured secret"),
        (Signed::get(&world, &wrong_secret, DESKTOPS), "signature-wrong", "the configured secret"),
        (Signed { body: b"other".into(), ..posted.clone() }, "signature-wrong", "verify aksk"),
        (posted.with("x-sdk-content-sha256", hash.as_str()), "signature-content", "X-Sdk-Content-Sha256"),
        (old, "signature-skew", "signature expired"),
        (unsent, "signature-coverage", "covers is missing"),
        (good.clone().with("x-sdk-date", "today"), "signature-date", "20261122T120000Z"),
        (
            good.clone().with("authorization", &said.replace(SCHEME, "sdk-hmac-sha256")),
            "signature-malformed",
            "SignedHeaders=",
        ),
        (good.clone().with("x-security-token", "T"), "security-token", "permanent ones have none"),
        (token.clone().with("x-security-token", "T"), "security-token", "X-Security-Token"),
        (Signed::get(&world, &key, "/v2/other/products"), "key-project", "not configured for this project"),
        (Signed::get(&world, &key, "/v1/other/app-groups"), "key-project", "not configured for this project"),
    ] {
        let before = world.metric(&signatures(reason));
        let reply = request.send(&world).await;
        let what = format!("{reason}: {} {} {reply:?}", request.method, request.url);
        let status = if reason == "key-project" { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED };
        assert_eq!(reply.status(), status, "{what}");
        if request.method != Method::HEAD {
            let (code, message) = reply.error();
            assert!(code.starts_with("APIGW.030") && message.contains(words), "{what}");
            let begins = if reason == "key-project" { "the " } else { "Incorrect IAM authentication information: " };
            assert!(message.starts_with(&format!("workspace-gateway: {begins}")), "{what}");
        }
        assert!((world.metric(&signatures(reason)) - before - 1.0).abs() < f64::EPSILON, "{what}");
    }
    assert_eq!(world.upstream_calls(), 0);
    assert_eq!([good.send(&world).await.status(), token.send(&world).await.status()], [StatusCode::OK; 2]);
}

#[tokio::test]
async fn a_signed_body_is_limited_to_12_mib() {
    let (world, key) = world_with_key().await;
    let at_most = "x".repeat(12 * 1024 * 1024);
    let reply = Signed::new(&world, &key, Method::POST, DESKTOPS, &at_most).send(&world).await;
    assert_eq!((reply.status(), reply.body().len()), (StatusCode::OK, at_most.len()));
    let reply = Signed::new(&world, &key, Method::POST, DESKTOPS, &(at_most + "x")).send(&world).await;
    assert_eq!(reply.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(reply.error().1.contains("at most 12582912 bytes"), "{reply:?}");
    assert_eq!((world.upstream_calls(), world.simulator.signature_failures()), (1, 0));
}

#[tokio::test]
async fn unknown_keys_are_relayed_only_if_upstream_may_accept_the_signature() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT), simulator.access_key(PROJECT)];
    let (world, [_, stranger]) = world_with_keys(create, |[known, _]| entry(known, "")).await;
    let upstream = world.simulator.url(Service::Workspace).replace("http://", "");
    for path in [LIST, DESKTOPS] {
        // The signature covers the gateway's address.
        let reply = Signed::get(&world, &stranger, path).send(&world).await;
        assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
        assert!(reply.error().1.contains("[[access_key]]") && reply.error().1.contains("X-Auth-Token"), "{reply:?}");
    }
    assert_eq!(world.upstream_calls(), 0);
    for path in [LIST, LIST, DESKTOPS] {
        // The signature covers upstream's address.
        let mut request = Signed::get(&world, &stranger, path);
        request.headers.insert("host", upstream.parse().unwrap());
        let request = request.sign(&stranger, &["content-type"], &Payload::of(b""), date(&world));
        let reply = request.send(&world).await;
        assert_eq!(reply.status(), StatusCode::OK, "{reply:?}");
        let seen = world.simulator.requests_seen().pop().unwrap();
        for name in ["authorization", "x-sdk-date", "content-type", "host"] {
            assert_eq!(seen.headers[name], request.headers[name], "relayed unchanged");
        }
        if path == LIST {
            assert!(reply.cache_status().ends_with("fwd=bypass; detail=unverified-signature"), "{reply:?}");
        }
    }
    assert_eq!((world.upstream_calls(), world.simulator.signature_failures()), (3, 0));
    assert!((world.metric(&signatures("unknown-key")) - 3.0).abs() < f64::EPSILON);
    assert!((world.metric(&signatures("signature-bound-here")) - 2.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn other_signature_schemes_are_not_verified() {
    let (world, key) = world_with_key().await;
    let signed = Signed::get(&world, &key, LIST);
    let said = signed.headers["authorization"].to_str().unwrap().to_owned();
    for scheme in ["SDK-HMAC-SM3", "SDK-ECDSA-P256-SHA256", "SDK-SM2-SM3", "V11-HMAC-SHA256"] {
        let bound = signed.clone().with("authorization", &said.replace(SCHEME, scheme)).send(&world).await;
        assert_eq!(bound.status(), StatusCode::UNAUTHORIZED, "{scheme}");
        let seen = world.upstream_calls();
        let free = said.replace(SCHEME, scheme).replace("content-type;host;", "content-type;");
        let relayed = signed.clone().with("authorization", &free).send(&world).await;
        assert!(relayed.cache_status().contains("detail=unverified-signature"), "{scheme}: {relayed:?}");
        assert_eq!(world.upstream_calls(), seen + 1);
        assert_eq!(world.simulator.requests_seen().pop().unwrap().headers["authorization"], free);
    }
}

#[tokio::test]
async fn a_signature_beside_a_token_is_ignored() {
    let (world, key) = world_with_key().await;
    let token = world.token.clone();
    // A wrong signature of a configured key, too. It must not reach upstream, which counts failures.
    let wrong = IssuedKey { secret: "another".to_owned(), ..key };
    for path in [LIST, LIST, DESKTOPS] {
        let reply = Signed::get(&world, &wrong, path).with("x-auth-token", &token).send(&world).await;
        assert_eq!(reply.status(), StatusCode::OK);
    }
    assert!(world.simulator.requests_seen().iter().all(|seen| !seen.headers.contains_key("authorization")));
    assert_eq!((world.upstream_calls(), world.simulator.signature_failures()), (2, 0));
}

#[tokio::test]
async fn a_wrong_secret_in_the_configuration_does_not_lock_the_key() {
    // The gateway and the client have the same wrong secret.
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT)];
    let wrong = |key: &IssuedKey| IssuedKey { secret: "mistyped".to_owned(), ..key.clone() };
    let (world, [key]) = world_with_keys(create, |[key]| entry(&wrong(key), "")).await;
    let wrong = wrong(&key);
    let request = |path: &'static str| Signed::get(&world, &wrong, path);
    let (list, desktops) = (request(LIST), request(DESKTOPS));
    let requests = std::iter::repeat_n([&list, &desktops], 20).flatten().map(|request| request.send(&world));
    for reply in within(join_all(requests)).await {
        assert_eq!(
            (reply.status(), reply.json()["error_code"].as_str()),
            (StatusCode::UNAUTHORIZED, Some("APIGW.0301"))
        );
    }
    assert_eq!(world.simulator.failures_in_a_row(&key.id), 3);
    let suspended = request(LIST).send(&world).await;
    assert!(suspended.error().1.contains("AK access failed to reach the limit,forbidden"), "{suspended:?}");
    // Other callers are not affected.
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    // After the suspension, one request at a time goes upstream.
    world.seconds_pass(300);
    let again = request(LIST);
    for reply in within(join_all((0..10).map(|_| again.send(&world)))).await {
        assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!((world.simulator.failures_in_a_row(&key.id), world.simulator.is_locked(&key.id)), (4, false));
    for _ in 0..30 {
        world.seconds_pass(300);
        assert_eq!(request(LIST).send(&world).await.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!((world.simulator.failures_in_a_row(&key.id), world.simulator.is_locked(&key.id)), (5, false));
    world.reload(&entry(&key, "")).unwrap();
    assert_eq!(Signed::get(&world, &key, LIST).send(&world).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn refused_signatures_count_after_the_client_has_disconnected() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT)];
    let wrong = |key: &IssuedKey| IssuedKey { secret: "mistyped".to_owned(), ..key.clone() };
    let (world, [key]) = world_with_keys(create, |[key]| entry(&wrong(key), "")).await;
    let request = Signed::get(&world, &wrong(&key), DESKTOPS);
    world.simulator.hold();
    {
        let requests = join_all((0..3).map(|_| request.send(&world)));
        let seen = within(world.simulator.wait_for_requests(3));
        tokio::pin!(requests);
        tokio::select! {
            _ = &mut requests => panic!("upstream has not answered yet"),
            () = seen => {}
        }
    }
    world.simulator.release();
    within(async {
        while world.simulator.failures_in_a_row(&key.id) < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let suspended = request.send(&world).await;
    assert!(suspended.error().1.contains("AK access failed to reach the limit,forbidden"), "{suspended:?}");
    assert_eq!(world.simulator.failures_in_a_row(&key.id), 3);
}

#[tokio::test]
async fn concurrent_requests_with_an_unused_key_are_answered() {
    let (world, key) = world_with_key().await;
    let (list, desktops) = (Signed::get(&world, &key, LIST), Signed::get(&world, &key, DESKTOPS));
    let requests = std::iter::repeat_n([&list, &desktops], 30).flatten().map(|request| request.send(&world));
    assert!(within(join_all(requests)).await.iter().all(|reply| reply.status() == StatusCode::OK));
    assert_eq!(
        (world.upstream_calls(), world.simulator.signature_failures()),
        (31, 0),
        "one fetch of the list, and the relayed requests"
    );
}

#[tokio::test]
async fn a_denial_ends_the_grant_of_an_access_key() {
    let (world, key) = world_with_key().await;
    let get = async || Signed::get(&world, &key, LIST).send(&world).await;
    assert_eq!(get().await.status(), StatusCode::OK);
    assert!(get().await.is_hit());
    world.simulator.deny(&key.id);
    world.seconds_pass(301);
    assert_eq!(get().await.status(), StatusCode::FORBIDDEN);
    let repeated = get().await;
    assert!(repeated.cache_status().contains("detail=denied"), "{repeated:?}");
    assert_eq!((world.upstream_calls(), world.simulator.signature_failures()), (2, 0));
}

#[tokio::test]
async fn over_http2_the_authority_is_the_signed_host() {
    let (world, key) = world_with_key().await;
    let mut request = Signed::get(&world, &key, LIST);
    request.headers.remove("host");
    let headers: Vec<_> =
        request.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    let reply = Http::http2().send(Method::GET, &request.url, &headers, "").await;
    assert_eq!(reply.status(), StatusCode::OK, "{reply:?}");
    assert_eq!(world.simulator.signature_failures(), 0);
}

#[tokio::test]
async fn a_reload_adds_and_removes_keys() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT), simulator.access_key(PROJECT)];
    let (world, [one, other]) = world_with_keys(create, |_| String::new()).await;
    let status = async |key: &IssuedKey| Signed::get(&world, key, LIST).send(&world).await.status();
    assert_eq!([status(&one).await, status(&other).await], [StatusCode::UNAUTHORIZED; 2]);
    let wrong = IssuedKey { secret: "mistyped".to_owned(), ..one.clone() };
    world.reload(&entry(&wrong, "")).unwrap();
    assert_eq!(status(&one).await, StatusCode::UNAUTHORIZED, "the configured secret is wrong");
    let changes = world.reload(&(entry(&one, "") + &entry(&other, ""))).unwrap();
    assert!(changes.applied.contains(&format!("access_key.{} (secret)", one.id)), "{changes:?}");
    assert_eq!([status(&one).await, status(&other).await], [StatusCode::OK; 2]);
    world.reload(&entry(&other, "")).unwrap();
    assert_eq!([status(&one).await, status(&other).await], [StatusCode::UNAUTHORIZED, StatusCode::OK]);
    // An invalid configuration is rejected as a whole.
    let twice = entry(&one, "") + &entry(&one, "");
    assert!(world.reload(&twice).unwrap_err().to_string().contains("twice"));
    assert_eq!([status(&one).await, status(&other).await], [StatusCode::UNAUTHORIZED, StatusCode::OK]);
    assert_eq!((world.upstream_calls(), world.simulator.signature_failures()), (2, 0));
}

#[tokio::test]
async fn a_request_in_flight_finishes_after_its_key_is_removed() {
    let (world, key) = world_with_key().await;
    world.simulator.hold();
    let (list, desktops) = (Signed::get(&world, &key, LIST), Signed::get(&world, &key, DESKTOPS));
    let pending = join_all([list.send(&world), desktops.send(&world)].into_iter());
    let remove_key = async {
        within(world.simulator.wait_for_requests(2)).await;
        world.reload("").unwrap();
        world.simulator.release();
    };
    let (replies, ()) = tokio::join!(pending, remove_key);
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::OK), "{replies:?}");
    assert_eq!(list.send(&world).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn explain_shows_the_signed_parts_and_the_verdict() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT), simulator.temporary_access_key(PROJECT)];
    let (world, [stranger, key]) = world_with_keys(create, |[_, key]| entry(key, "")).await;
    let explain = async |request: &Signed| {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("url", &request.url);
        for (name, value) in &request.headers {
            query.append_pair("header", &format!("{name}: {}", value.to_str().unwrap()));
        }
        let explained = world.http.get(&world.admin_url(&format!("/explain?{}", query.finish()))).await;
        for secret in [&key.secret, key.security_token.as_ref().unwrap()] {
            assert!(!explained.text().contains(secret.as_str()), "{}", explained.text());
        }
        explained.json()
    };
    let request = Signed::get(&world, &key, LIST);
    let good = explain(&request).await;
    assert_eq!(good["signature"]["result"], "verified");
    assert_eq!(good["signature"]["access_key"], key.id);
    assert_eq!(good["operation"]["credential"], format!("access key {} (signature verified)", key.id));
    assert!(good["operation"]["now"]["caller"].as_str().unwrap().starts_with("not granted"));
    let canonical = &good["signature"]["canonical_request"];
    let list = format!("/v2/{PROJECT}/products/");
    assert_eq!([&canonical[0], &canonical[1], &canonical[2]], ["GET", &list, "os_type=Linux"]);
    let shown = canonical.as_array().unwrap();
    assert!(shown.iter().any(|line| line == "x-security-token:(not shown)"), "{shown:?}");
    let sent = good["operation"]["key"]["upstream_request"].as_array().unwrap();
    assert!(sent.iter().any(|line| line == "authorization: (signed anew with the caller's access key)"), "{sent:?}");

    let bad = explain(&request.clone().with("content-type", "text/plain")).await;
    assert_eq!(bad["signature"]["result"], "signature-wrong");
    assert!(
        bad["verdict"]["sentence"].as_str().unwrap().starts_with("answered 401 here, and not sent upstream"),
        "{bad}"
    );
    assert!(bad["signature"]["canonical_request"].to_string().contains("content-type:text/plain"), "{bad}");
    let unknown = explain(&Signed::get(&world, &stranger, LIST)).await;
    assert_eq!(unknown["signature"]["result"], "unknown-key");
    assert!(unknown["verdict"]["sentence"].as_str().unwrap().contains("401 here"), "{unknown}");
    let passes = explain(&Signed::get(&world, &key, DESKTOPS)).await;
    assert!(passes["verdict"]["sentence"].as_str().unwrap().ends_with("signed anew for upstream's Host"), "{passes}");
    assert_eq!(world.upstream_calls(), 0);
    request.send(&world).await;
    assert!(explain(&request).await["operation"]["now"]["caller"].as_str().unwrap().starts_with("granted"));
    let status = world.http.get(&world.admin_url("/status")).await.json();
    assert_eq!(status["callers"]["by_id"][0]["access_key"], key.id);
}

#[tokio::test]
async fn responses_and_metrics_contain_no_secret_or_signature() {
    let (world, key) = world_with_key().await;
    let signed = Signed::get(&world, &key, LIST);
    let wrong = signed.clone().with("content-type", "text/plain");
    let mut output = format!("{:?}{:?}", signed.send(&world).await, wrong.send(&world).await);
    output += world.http.get(&world.metrics_url("/metrics")).await.text();
    let signature = signed.headers["authorization"].to_str().unwrap().rsplit_once('=').unwrap().1.to_owned();
    for secret in [&key.secret, &signature] {
        assert!(!output.contains(secret.as_str()));
    }
    assert!(!output.contains(&key.id), "there is no metric series per key");
}
