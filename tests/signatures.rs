//! Access keys: whoever signs with one that is configured is a caller like one with a token, and nothing that
//! fails upstream is ever sent there.

use std::time::Duration;

use http::{Method, StatusCode};
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::signing::{Payload, SCHEME};
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

use crate::support::signer::{Signed, at_once, date, entry, one_key, world};
use crate::support::{Http, PROJECT, within};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const DESKTOPS: &str = "/v2/PROJECT/desktops";

fn signatures(result: &str) -> String {
    format!("workspace_gateway_signatures_total{{result=\"{result}\"}}")
}

#[tokio::test]
async fn who_signs_with_a_known_key_is_a_caller() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT), simulator.temporary_access_key(PROJECT)];
    let (world, [key, temporary]) = world(create, |keys| keys.each_ref().map(|key| entry(key, "")).concat()).await;
    let host = world.simulator.url(Service::Workspace).replace("http://", "");
    let mut bodies = Vec::new();
    for key in [&key, &temporary] {
        world.seconds_pass(1);
        let first = Signed::get(&world, key, LIST).send(&world).await;
        assert!(first.cache_status().contains("detail=proved"), "{first:?}");
        let seen = world.simulator.requests_seen().pop().unwrap();
        // Signed anew, over what a question always says.
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
    // Callers share: the one with a token is proved, and asks for what was kept.
    assert!(world.get("/v2/PROJECT/products?limit=0").await.cache_status().contains("detail=proved"));
    let shared = world.get(LIST).await;
    assert!(shared.is_hit());
    assert!(bodies.iter().all(|body| body == shared.text()));
    assert_eq!((world.upstream_calls(), world.simulator.signature_failures()), (3, 0));
    assert!((world.metric(&signatures("verified")) - 8.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_retry_resends_its_signature_and_is_answered() {
    let (world, key) = one_key().await;
    let request = Signed::get(&world, &key, LIST);
    let first = request.send(&world).await;
    world.seconds_pass(14 * 60);
    let again = request.send(&world).await;
    assert_eq!([first.status(), again.status()], [StatusCode::OK; 2]);
    assert_eq!(world.simulator.signature_failures(), 0, "what is sent is signed when it is sent");
    world.seconds_pass(61);
    assert_eq!(request.send(&world).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn whatever_else_a_known_key_signs_is_signed_anew_and_streamed() {
    let (world, key) = one_key().await;
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
        // An operation that can't be answered from memory.
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
async fn what_a_known_key_has_not_signed_is_refused_here() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT), simulator.temporary_access_key(PROJECT)];
    let settings = |[key, temporary]: &[IssuedKey; 2]| {
        [entry(key, &format!("projects = [{PROJECT:?}]")), entry(temporary, "")].concat()
    };
    let (world, [key, temporary]) = world(create, settings).await;
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
        (Signed::get(&world, &wrong_secret, LIST), "signature-wrong", "the secret configured"),
        (Signed::get(&world, &wrong_secret, DESKTOPS), "signature-wrong", "the secret configured"),
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
        (Signed::get(&world, &key, "/v2/other/products"), "key-project", "doesn't have this project"),
        (Signed::get(&world, &key, "/v1/other/app-groups"), "key-project", "doesn't have this project"),
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
async fn a_signed_body_has_an_end() {
    let (world, key) = one_key().await;
    let at_most = "x".repeat(12 * 1024 * 1024);
    let reply = Signed::new(&world, &key, Method::POST, DESKTOPS, &at_most).send(&world).await;
    assert_eq!((reply.status(), reply.body().len()), (StatusCode::OK, at_most.len()));
    let reply = Signed::new(&world, &key, Method::POST, DESKTOPS, &(at_most + "x")).send(&world).await;
    assert_eq!(reply.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(reply.error().1.contains("at most 12582912 bytes"), "{reply:?}");
    assert_eq!((world.upstream_calls(), world.simulator.signature_failures()), (1, 0));
}

#[tokio::test]
async fn keys_that_are_not_known_here_are_relayed_only_where_they_may_be_valid() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT), simulator.access_key(PROJECT)];
    let (world, [_, stranger]) = world(create, |[known, _]| entry(known, "")).await;
    let upstream = world.simulator.url(Service::Workspace).replace("http://", "");
    for path in [LIST, DESKTOPS] {
        // Over the address it was typed for: this gateway.
        let reply = Signed::get(&world, &stranger, path).send(&world).await;
        assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
        assert!(reply.error().1.contains("[[access_key]]") && reply.error().1.contains("X-Auth-Token"), "{reply:?}");
    }
    assert_eq!(world.upstream_calls(), 0);
    for path in [LIST, LIST, DESKTOPS] {
        // Over upstream's own.
        let mut request = Signed::get(&world, &stranger, path);
        request.headers.insert("host", upstream.parse().unwrap());
        let request = request.sign(&stranger, &["content-type"], &Payload::of(b""), date(&world));
        let reply = request.send(&world).await;
        assert_eq!(reply.status(), StatusCode::OK, "{reply:?}");
        let seen = world.simulator.requests_seen().pop().unwrap();
        for name in ["authorization", "x-sdk-date", "content-type", "host"] {
            assert_eq!(seen.headers[name], request.headers[name], "verbatim");
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
async fn other_schemes_are_never_verified() {
    let (world, key) = one_key().await;
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
async fn beside_a_token_a_signature_does_not_count() {
    let (world, key) = one_key().await;
    let token = world.token.clone();
    // Not even a wrong one of a known key, which is not sent on for upstream to count.
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
    // What the gateway has been told, the client has, too.
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT)];
    let wrong = |key: &IssuedKey| IssuedKey { secret: "mistyped".to_owned(), ..key.clone() };
    let (world, [key]) = world(create, |[key]| entry(&wrong(key), "")).await;
    let wrong = wrong(&key);
    let asked = |path: &'static str| Signed::get(&world, &wrong, path);
    let (list, desktops) = (asked(LIST), asked(DESKTOPS));
    let crowd = std::iter::repeat_n([&list, &desktops], 20).flatten().map(|request| request.send(&world));
    for reply in within(at_once(crowd)).await {
        assert_eq!(
            (reply.status(), reply.json()["error_code"].as_str()),
            (StatusCode::UNAUTHORIZED, Some("APIGW.0301"))
        );
    }
    assert_eq!(world.simulator.failures_in_a_row(&key.id), 3);
    let held = asked(LIST).send(&world).await;
    assert!(held.error().1.contains("AK access failed to reach the limit,forbidden"), "{held:?}");
    // Nobody else is worse off.
    assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    // Then it is tried, once at a time.
    world.seconds_pass(300);
    let again = asked(LIST);
    for reply in within(at_once((0..10).map(|_| again.send(&world)))).await {
        assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!((world.simulator.failures_in_a_row(&key.id), world.simulator.is_locked(&key.id)), (4, false));
    for _ in 0..30 {
        world.seconds_pass(300);
        assert_eq!(asked(LIST).send(&world).await.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!((world.simulator.failures_in_a_row(&key.id), world.simulator.is_locked(&key.id)), (5, false));
    world.reload(&entry(&key, "")).unwrap();
    assert_eq!(Signed::get(&world, &key, LIST).send(&world).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_upstream_refuses_counts_though_the_client_has_hung_up() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT)];
    let wrong = |key: &IssuedKey| IssuedKey { secret: "mistyped".to_owned(), ..key.clone() };
    let (world, [key]) = world(create, |[key]| entry(&wrong(key), "")).await;
    let request = Signed::get(&world, &wrong(&key), DESKTOPS);
    world.simulator.hold();
    {
        let crowd = at_once((0..3).map(|_| request.send(&world)));
        let seen = within(world.simulator.arrived(3));
        tokio::pin!(crowd);
        tokio::select! {
            _ = &mut crowd => panic!("nobody is answered yet"),
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
    let held = request.send(&world).await;
    assert!(held.error().1.contains("AK access failed to reach the limit,forbidden"), "{held:?}");
    assert_eq!(world.simulator.failures_in_a_row(&key.id), 3);
}

#[tokio::test]
async fn a_crowd_that_signs_with_a_key_nobody_has_used_is_answered() {
    let (world, key) = one_key().await;
    let (list, desktops) = (Signed::get(&world, &key, LIST), Signed::get(&world, &key, DESKTOPS));
    let crowd = std::iter::repeat_n([&list, &desktops], 30).flatten().map(|request| request.send(&world));
    assert!(within(at_once(crowd)).await.iter().all(|reply| reply.status() == StatusCode::OK));
    assert_eq!(
        (world.upstream_calls(), world.simulator.signature_failures()),
        (31, 0),
        "one question, and what is relayed"
    );
}

#[tokio::test]
async fn upstreams_refusal_ends_a_keys_grant_like_a_tokens() {
    let (world, key) = one_key().await;
    let ask = async || Signed::get(&world, &key, LIST).send(&world).await;
    assert_eq!(ask().await.status(), StatusCode::OK);
    assert!(ask().await.is_hit());
    world.simulator.deny(&key.id);
    world.seconds_pass(301);
    assert_eq!(ask().await.status(), StatusCode::FORBIDDEN);
    let repeated = ask().await;
    assert!(repeated.cache_status().contains("detail=denied"), "{repeated:?}");
    assert_eq!((world.upstream_calls(), world.simulator.signature_failures()), (2, 0));
}

#[tokio::test]
async fn over_http2_the_authority_is_the_host_that_is_signed() {
    let (world, key) = one_key().await;
    let mut request = Signed::get(&world, &key, LIST);
    request.headers.remove("host");
    let headers: Vec<_> =
        request.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    let reply = Http::http2().send(Method::GET, &request.url, &headers, "").await;
    assert_eq!(reply.status(), StatusCode::OK, "{reply:?}");
    assert_eq!(world.simulator.signature_failures(), 0);
}

#[tokio::test]
async fn a_reload_brings_keys_and_takes_them_away() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT), simulator.access_key(PROJECT)];
    let (world, [one, other]) = world(create, |_| String::new()).await;
    let status = async |key: &IssuedKey| Signed::get(&world, key, LIST).send(&world).await.status();
    assert_eq!([status(&one).await, status(&other).await], [StatusCode::UNAUTHORIZED; 2]);
    let wrong = IssuedKey { secret: "mistyped".to_owned(), ..one.clone() };
    world.reload(&entry(&wrong, "")).unwrap();
    assert_eq!(status(&one).await, StatusCode::UNAUTHORIZED, "its secret is another");
    let changes = world.reload(&(entry(&one, "") + &entry(&other, ""))).unwrap();
    assert!(changes.applied.contains(&format!("access_key.{} (its secret)", one.id)), "{changes:?}");
    assert_eq!([status(&one).await, status(&other).await], [StatusCode::OK; 2]);
    world.reload(&entry(&other, "")).unwrap();
    assert_eq!([status(&one).await, status(&other).await], [StatusCode::UNAUTHORIZED, StatusCode::OK]);
    // A bad file is refused as a whole.
    let twice = entry(&one, "") + &entry(&one, "");
    assert!(world.reload(&twice).unwrap_err().to_string().contains("twice"));
    assert_eq!([status(&one).await, status(&other).await], [StatusCode::UNAUTHORIZED, StatusCode::OK]);
    assert_eq!((world.upstream_calls(), world.simulator.signature_failures()), (2, 0));
}

#[tokio::test]
async fn a_request_under_way_goes_on_though_its_key_is_gone() {
    let (world, key) = one_key().await;
    world.simulator.hold();
    let (list, desktops) = (Signed::get(&world, &key, LIST), Signed::get(&world, &key, DESKTOPS));
    let asking = at_once([list.send(&world), desktops.send(&world)].into_iter());
    let taken_away = async {
        within(world.simulator.arrived(2)).await;
        world.reload("").unwrap();
        world.simulator.release();
    };
    let (replies, ()) = tokio::join!(asking, taken_away);
    assert!(replies.iter().all(|reply| reply.status() == StatusCode::OK), "{replies:?}");
    assert_eq!(list.send(&world).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn explain_shows_what_is_signed_and_what_that_is_worth() {
    let create = |simulator: &Simulator| [simulator.access_key(PROJECT), simulator.temporary_access_key(PROJECT)];
    let (world, [stranger, key]) = world(create, |[_, key]| entry(key, "")).await;
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
    assert!(bad["verdict"].as_str().unwrap().starts_with("answered 401 here, and not sent on"), "{bad}");
    assert!(bad["signature"]["canonical_request"].to_string().contains("content-type:text/plain"), "{bad}");
    let unknown = explain(&Signed::get(&world, &stranger, LIST)).await;
    assert_eq!(unknown["signature"]["result"], "unknown-key");
    assert!(unknown["verdict"].as_str().unwrap().contains("401 here"), "{unknown}");
    let passes = explain(&Signed::get(&world, &key, DESKTOPS)).await;
    assert!(passes["verdict"].as_str().unwrap().ends_with("signed anew for upstream's Host"), "{passes}");
    assert_eq!(world.upstream_calls(), 0);
    request.send(&world).await;
    assert!(explain(&request).await["operation"]["now"]["caller"].as_str().unwrap().starts_with("granted"));
}

#[tokio::test]
async fn secrets_are_never_told() {
    let (world, key) = one_key().await;
    let signed = Signed::get(&world, &key, LIST);
    let wrong = signed.clone().with("content-type", "text/plain");
    let mut told = format!("{:?}{:?}", signed.send(&world).await, wrong.send(&world).await);
    told += world.http.get(&world.metrics_url("/metrics")).await.text();
    let signature = signed.headers["authorization"].to_str().unwrap().rsplit_once('=').unwrap().1.to_owned();
    for secret in [&key.secret, &signature] {
        assert!(!told.contains(secret.as_str()));
    }
    assert!(!told.contains(&key.id), "nor is there a series for each key");
}
