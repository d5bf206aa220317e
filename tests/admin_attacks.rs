//! Attacks on the admin listener. Each is rejected with a clear error, and the proxy is not affected.

use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{World, send_raw, within};

const LIST: &str = "/v2/PROJECT/products";
const TOKEN: &str = "0123456789abcdef-0123456789abcdef";

async fn is_hit(world: &World) -> bool {
    world.get(LIST).await.is_hit()
}

/// Requests that change state.
const CHANGES: [(Method, &str, &str); 3] = [
    (Method::POST, "/cache/purge?all=true", ""),
    (Method::PUT, "/mode", "bypass"),
    (Method::PUT, "/log-level", "error"),
];

/// Paths that show state.
const READS: [&str; 6] = ["/status", "/cache/entries", "/config", "/explain?url=/v2/p/products", "/mode", "/log-level"];

#[tokio::test]
async fn web_pages_of_other_sites_cannot_use_the_admin_listener() {
    let world = World::new().await;
    world.get(LIST).await;
    let own = format!("http://{}", world.server.admin_address());
    let sent_by_pages: [&[(&str, &str)]; 8] = [
        // DNS rebinding: a foreign name that resolves to this machine's address.
        &[("host", "evil.example:9091")],
        &[("host", "evil.example:9091"), ("origin", "http://evil.example:9091")],
        &[("host", "evil.example:9091"), ("sec-fetch-site", "same-origin")],
        // A form, script, frame or image of another site.
        &[("origin", "http://evil.example")],
        &[("origin", "null")],
        &[("origin", "http://localhost:1")],
        &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
        &[("sec-fetch-site", "same-site")],
    ];
    let reads = READS.map(|path| (Method::GET, path, ""));
    for headers in sent_by_pages {
        for (method, path, body) in CHANGES.iter().chain(&reads) {
            let reply = world.http.send(method.clone(), &world.admin_url(path), headers, *body).await;
            assert_eq!(reply.status(), StatusCode::FORBIDDEN, "{method} {path} {headers:?}");
            assert!(reply.text().starts_with("refused: expected"), "{}", reply.text());
        }
    }
    // A form needs no CORS preflight.
    for (method, path, body) in &CHANGES {
        let form = [("content-type", "text/plain"), ("origin", "https://evil.example")];
        let reply = world.http.send(method.clone(), &world.admin_url(path), &form, *body).await;
        assert_eq!(reply.status(), StatusCode::FORBIDDEN);
    }
    assert!(is_hit(&world).await);
    // The page of this listener is allowed.
    let reply = world.http.send(Method::GET, &world.admin_url("/status"), &[("origin", &own)], "").await;
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.header("cross-origin-resource-policy"), "same-origin");
    assert!(!reply.headers().contains_key("access-control-allow-origin"));
    let preflight = world.http.send(Method::OPTIONS, &world.admin_url("/mode"), &[("origin", &own)], "").await;
    assert_eq!(preflight.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn without_the_token_nothing_is_shown_or_changed() {
    let world = World::with(&format!("[listen]\nadmin_token = \"{TOKEN}\"")).await;
    world.get(LIST).await;
    let reads = READS.map(|path| (Method::GET, path, ""));
    let short = format!("Bearer {}", &TOKEN[1..]);
    for credential in ["", "Bearer", "Bearer x", "Basic eDp4", TOKEN, &short] {
        for (method, path, body) in CHANGES.iter().chain(&reads) {
            let reply =
                world.http.send(method.clone(), &world.admin_url(path), &[("authorization", credential)], *body).await;
            assert_eq!((reply.status(), reply.header("www-authenticate")), (StatusCode::UNAUTHORIZED, "Bearer"));
            assert!(!reply.text().contains(TOKEN));
        }
    }
    let in_query = world.http.get(&world.admin_url(&format!("/status?token={TOKEN}&access_token={TOKEN}"))).await;
    assert_eq!(in_query.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(world.http.get(&world.admin_url("/")).await.status(), StatusCode::OK, "the page itself is public");
    assert!(is_hit(&world).await);
    let credential = format!("Bearer {TOKEN}");
    for (method, path, body) in reads.iter().chain(&CHANGES[..2]) {
        let reply =
            world.http.send(method.clone(), &world.admin_url(path), &[("authorization", &credential)], *body).await;
        assert_eq!(reply.status(), StatusCode::OK, "{method} {path}");
    }
    assert!(!is_hit(&world).await, "the entry is purged and the mode is bypass");
    let status =
        world.http.send(Method::GET, &world.admin_url("/status"), &[("authorization", &credential)], "").await.json();
    let event = status["events"].as_array().unwrap().iter().find(|event| event["kind"] == "admin-denied").unwrap();
    assert_eq!(
        (&event["what"], event["count"].as_u64()),
        (&"a request to the admin listener had a wrong token".into(), Some(54))
    );
    // The token changes at run time.
    world.reload("[listen]\nadmin_token = \"another-one-of-16\"").unwrap();
    let reply = world.http.send(Method::GET, &world.admin_url("/status"), &[("authorization", &credential)], "").await;
    assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_rejected() {
    let world = World::new().await;
    world.get(LIST).await;
    let address = world.server.admin_address();
    for path in [
        "/cache",
        "/cache/",
        "/cache/purge/",
        "//cache/purge?all=true",
        "/./mode",
        "/../mode",
        "/%6dode",
        "/mode%00",
        "/MODE",
        "/status/..",
        "/metrics",
        "/healthz",
        "/page/page.js",
        "/etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/;/mode",
        "*",
    ] {
        let response =
            send_raw(address, format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")).await;
        assert!(response.starts_with("HTTP/1.1 40"), "{path}: {response}");
    }
    for (method, path) in [
        ("DELETE", "/mode"),
        ("POST", "/mode"),
        ("POST", "/status"),
        ("PUT", "/cache/purge"),
        ("GET", "/cache/purge"),
        ("TRACE", "/"),
        ("X", "/config"),
    ] {
        let response =
            send_raw(address, format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"))
                .await;
        assert!(response.starts_with("HTTP/1.1 405") && response.contains("allow: "), "{method} {path}: {response}");
    }
    for line in ["CONNECT evil.example:443", "GET http://evil.example/status", "GET http://localhost:1/status"] {
        let response =
            send_raw(address, format!("{line} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")).await;
        assert!(response.starts_with("HTTP/1.1 40"), "{line}: {response}");
    }
    for hosts in [
        "",
        "Host: localhost\r\nHost: evil.example\r\n",
        "Host: localhost, evil.example\r\n",
        "Host: user@localhost@evil\r\n",
    ] {
        let response = send_raw(address, format!("GET /status HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n")).await;
        assert!(response.starts_with("HTTP/1.1 40"), "{hosts}: {response}");
    }
    assert!(is_hit(&world).await);
}

#[tokio::test]
async fn a_huge_request_body_is_not_read() {
    let world = World::new().await;
    world.get(LIST).await;
    for (method, path) in [("PUT", "/mode"), ("POST", "/cache/purge"), ("PUT", "/log-level")] {
        let mut stream = TcpStream::connect(world.server.admin_address()).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // The gateway stops reading long before a hundredth of the length.
        let mut sent = 0_usize;
        while sent < 100_000_000 {
            match within(stream.write(&[b'x'; 64 * 1024])).await {
                Ok(more) => sent += more,
                Err(_) => break,
            }
        }
        assert!(sent < 100_000_000, "{path}");
        let mut response = Vec::new();
        // The response may be lost: unread data makes the kernel reset the connection.
        if within(stream.read_to_end(&mut response)).await.is_ok() && !response.is_empty() {
            assert!(response.starts_with(b"HTTP/1.1 4"), "{path}");
        }
    }
    assert!(is_hit(&world).await);
}

#[tokio::test]
async fn ten_thousand_unauthorized_purges_change_nothing() {
    let world = Arc::new(World::with(&format!("[listen]\nadmin_token = \"{TOKEN}\"")).await);
    world.get(LIST).await;
    let mut attackers = Vec::new();
    for _ in 0..20 {
        let world = Arc::clone(&world);
        attackers.push(tokio::spawn(async move {
            let url = world.admin_url("/cache/purge?all=true");
            for _ in 0..500 {
                let reply = world.http.send(Method::POST, &url, &[], "").await;
                assert_eq!(reply.status(), StatusCode::UNAUTHORIZED);
            }
        }));
    }
    while !attackers.iter().all(tokio::task::JoinHandle::is_finished) {
        assert!(is_hit(&world).await, "during the attack");
    }
    for attacker in attackers {
        attacker.await.unwrap();
    }
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn the_proxy_answers_during_repeated_purges() {
    let world = Arc::new(World::new().await);
    let purging = tokio::spawn({
        let world = Arc::clone(&world);
        async move {
            let url = world.admin_url("/cache/purge?all=true");
            for _ in 0..500 {
                assert_eq!(world.http.send(Method::POST, &url, &[], "").await.status(), StatusCode::OK);
            }
        }
    });
    while !purging.is_finished() {
        assert_eq!(world.get(LIST).await.status(), StatusCode::OK);
    }
    purging.await.unwrap();
    world.get(LIST).await;
    assert!(is_hit(&world).await);
}

#[tokio::test]
async fn incomplete_request_bodies_do_not_block_the_admin_listener() {
    let world = World::with("[limits]\nheader_timeout = \"40ms\"").await;
    let address = world.server.admin_address();
    // As many connections as the admin listener accepts.
    let mut silent = Vec::new();
    for path in ["/mode", "/log-level"].into_iter().cycle().take(64) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nde");
        stream.write_all(head.as_bytes()).await.unwrap();
        silent.push(stream);
    }
    assert_eq!(within(world.http.get(&world.admin_url("/mode"))).await.status(), StatusCode::OK);
    for mut stream in silent {
        let mut response = String::new();
        within(stream.read_to_string(&mut response)).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 408 ") && response.contains("did not arrive in time"), "{response}");
    }
}

#[tokio::test]
async fn unknown_callers_do_not_change_the_health_of_upstream() {
    let world = World::new().await;
    let health = async || {
        let status = world.http.get(&world.admin_url("/status")).await.json();
        assert_eq!(status["events"], serde_json::json!([]), "{}", status["events"]);
        status["upstream"][0]["health"]["state"].as_str().unwrap().to_owned()
    };
    for body in ["ZZ\r\n", "5\r\nhello\r\nZZ\r\n"] {
        let head = "POST /v2/p/desktops HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        let response = send_raw(world.server.proxy_address(), format!("{head}{body}")).await;
        assert!(
            response.starts_with("HTTP/1.1 400 ") && response.contains("the request body is incomplete or malformed"),
            "{response}"
        );
    }
    world.simulator.fail_with(Some(StatusCode::INTERNAL_SERVER_ERROR));
    world.get_as("made-up", LIST).await;
    world.get_as("made-up", "/v2/PROJECT/desktops").await;
    assert_eq!(health().await, "unknown");
    world.simulator.fail_with(None);
    world.get(LIST).await;
    assert_eq!(health().await, "good");
    assert_eq!(world.metric("workspace_gateway_upstream_requests_total{service=\"workspace\",status=\"upload\"}"), 2.0);
}
