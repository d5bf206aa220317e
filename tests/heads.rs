//! Request heads that upstream could read in another way than the gateway, and heads that are expensive to process. The
//! gateway rejects them in upstream's error format, before anything is relayed. Also: one token is one caller.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::net::TcpStream;
use workspace_gateway::testing::request::validate::{Invalid, MAX_MEMBERS};

use crate::support::raw_client::RawClient;
use crate::support::signer::{Signed, entry, world_with_keys};
use crate::support::{Http, PROJECT, World, send_raw, within};

const LIST: &str = "/v2/PROJECT/products";
const GRANTS: &str = "workspace_gateway_grants";

/// Sends an HTTP/2 request with these fields, even if they are malformed.
async fn http2(world: &World, method: Method, fields: &[(&str, &[u8])], body: &'static str) -> Response<Bytes> {
    let stream = TcpStream::connect(world.server.proxy_address()).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let path = if body.is_empty() { LIST } else { "/v2/PROJECT/desktops" };
    let mut request = Request::builder().method(method).uri(format!("http://g{}", path.replace("PROJECT", PROJECT)));
    for (name, value) in fields {
        request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
    }
    let mut sender = sender.ready().await.unwrap();
    let (response, mut upload) = sender.send_request(request.body(()).unwrap(), body.is_empty()).unwrap();
    if !body.is_empty() {
        upload.send_data(body.into(), true).unwrap();
    }
    within(async {
        let (head, mut body) = response.await.unwrap().into_parts();
        let mut received = Vec::new();
        while let Some(part) = body.data().await {
            received.extend(part.unwrap());
        }
        Response::from_parts(head, received.into())
    })
    .await
}

/// The message of an error in upstream's format.
fn error_message(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!(json["request_id"].as_str().unwrap().len(), 32);
    json["error_msg"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn one_token_is_one_caller_whatever_blanks_surround_it() {
    let world = World::new().await;
    assert!(world.get(LIST).await.cache_status().contains("detail=proved"));
    let token = &world.token;
    for value in [format!(" {token}"), format!("{token} "), format!("\t{token}"), format!(" \t{token}\t  ")] {
        let response = http2(&world, Method::GET, &[("x-auth-token", value.as_bytes())], "").await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{value:?}");
        assert!(error_message(response.body()).contains("RFC 9113 §8.2.1"), "{response:?}");
        let head = format!("GET /v2/{PROJECT}/products HTTP/1.1\r\nHost: g\r\nX-Auth-Token:{value}\r\n\r\n");
        let response = RawClient::connect(&world).await.exchange(head).await;
        assert!(response.header("cache-status").contains("; hit"), "{value:?}: {response:?}");
    }
    // The same applies to other fields.
    let token = token.as_bytes();
    for name in ["x-language", "accept", "cookie", "x-any"] {
        let response = http2(&world, Method::GET, &[("x-auth-token", token), (name, b"v ")], "").await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{name}");
    }
    // Cookie fields are joined, so the blank is not at the end of the joined value.
    let cookies: [(&str, &[u8]); 3] = [("x-auth-token", token), ("cookie", b"a=1 "), ("cookie", b"b=2")];
    assert_eq!(http2(&world, Method::GET, &cookies, "").await.status(), StatusCode::BAD_REQUEST);
    assert_eq!((world.upstream_calls(), world.metric(GRANTS)), (1, 1.0));
}

#[tokio::test]
async fn a_second_token_and_underscored_field_names_are_rejected() {
    let world = World::new().await;
    world.get(LIST).await;
    let token = world.token.as_str();
    for (fields, invalid) in [
        (vec![("x-auth-token", token), ("x-auth-token", token)], Invalid::Token),
        (vec![("x-auth-token", token), ("X-AUTH-TOKEN", "other")], Invalid::Token),
        (vec![("x-auth-token", token), ("x-auth-token", "")], Invalid::Token),
        (vec![("x-auth-token", ""), ("x-auth-token", "")], Invalid::Token),
        (vec![("x-auth-token", token), ("x_auth_token", "other")], Invalid::Underscore),
        (vec![("x_auth-token", token)], Invalid::Underscore),
        (vec![("x-auth-token", token), ("X_Project_Id", "other")], Invalid::Underscore),
        (vec![("x-auth-token", token), ("x_language", "en-us")], Invalid::Underscore),
        (vec![("x-auth-token", token), ("content_length", "5")], Invalid::Underscore),
        (vec![("x-auth-token", token), ("transfer_encoding", "chunked")], Invalid::Underscore),
    ] {
        for (client, path) in [(Http::new(), LIST), (Http::http2(), LIST), (Http::new(), "/v2/PROJECT/desktops")] {
            let reply = client.send(Method::GET, &world.url(path), &fields, "").await;
            assert_eq!(reply.status(), StatusCode::BAD_REQUEST, "{fields:?} {reply:?}");
            assert_eq!(reply.error().1, format!("workspace-gateway: {}", invalid.describe()));
        }
    }
    let request = format!("GET /v2/{PROJECT}/products HTTP/1.1\r\nHost: g\r\nX-Auth-Token: ");
    let request = [request.as_bytes(), b"\xa0", token.as_bytes(), b"\r\n\r\n"].concat();
    assert_eq!(
        RawClient::connect(&world).await.exchange(request).await.status(),
        400,
        "some servers read 0xA0 as a blank"
    );
    assert!(world.get(LIST).await.is_hit());
    assert_eq!((world.upstream_calls(), world.metric(GRANTS)), (1, 1.0));
}

#[tokio::test]
async fn trace_odd_transfer_encodings_and_non_ascii_targets_are_rejected() {
    let world = World::new().await;
    let token = format!("Host: g\r\nX-Auth-Token: {}\r\n", world.token);
    for (request_line, fields, body, status, invalid) in [
        ("TRACE /v2/PROJECT/desktops", "", "", 405, Invalid::Trace),
        ("TRACE /v2/PROJECT/products", "", "", 405, Invalid::Trace),
        ("TRACK /v2/PROJECT/desktops", "", "", 405, Invalid::Trace),
        (
            "POST /v2/PROJECT/desktops",
            "Transfer-Encoding: gzip, chunked\r\n",
            "0\r\n\r\n",
            501,
            Invalid::TransferEncoding,
        ),
        (
            "POST /v2/PROJECT/desktops",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
            501,
            Invalid::TransferEncoding,
        ),
        ("GET /v2/PROJECT/products?os_type=\u{e9}", "", "", 400, Invalid::Target),
        ("GET /v2/PROJECT/\u{4e2d}", "", "", 400, Invalid::Target),
    ] {
        let request_line = request_line.replace("PROJECT", PROJECT);
        let response = RawClient::connect(&world)
            .await
            .exchange(format!("{request_line} HTTP/1.1\r\n{token}{fields}\r\n{body}"))
            .await;
        assert_eq!(response.status(), status, "{request_line} {fields} {response:?}");
        assert_eq!(
            error_message(response.body.as_bytes()),
            format!("workspace-gateway: {}", invalid.describe()),
            "{request_line}"
        );
        let allow = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
        assert_eq!(response.all("allow"), if status == 405 { vec![allow] } else { vec![] });
    }
    assert_eq!(world.upstream_calls(), 0);
    // Methods that `Allow` does not list are relayed, too.
    let other = format!("PROPFIND /v2/{PROJECT}/desktops HTTP/1.1\r\n{token}\r\n");
    assert_eq!(RawClient::connect(&world).await.exchange(other).await.status(), 200);
    let chunked =
        format!("POST /v2/{PROJECT}/desktops HTTP/1.1\r\n{token}Transfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n");
    assert_eq!(RawClient::connect(&world).await.exchange(chunked).await.status(), 200);
}

#[tokio::test]
async fn equal_content_lengths_are_relayed_as_one_and_different_ones_rejected() {
    let world = World::new().await;
    let token = world.token.as_bytes();
    let equal: [(&str, &[u8]); 3] = [("x-auth-token", token), ("content-length", b"5"), ("content-length", b"5")];
    let response = http2(&world, Method::POST, &equal, "hello").await;
    assert_eq!((response.status(), &response.body()[..]), (StatusCode::OK, &b"hello"[..]));
    let seen = world.simulator.requests_seen().pop().unwrap();
    assert_eq!(seen.headers.get_all("content-length").iter().collect::<Vec<_>>(), ["5"]);
    let different: [(&str, &[u8]); 3] = [("x-auth-token", token), ("content-length", b"5"), ("content-length", b"05")];
    let response = http2(&world, Method::POST, &different, "hello").await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(error_message(response.body()), format!("workspace-gateway: {}", Invalid::ContentLength.describe()));
    assert_eq!(world.upstream_calls(), 1);
}

#[tokio::test]
async fn too_many_list_members_or_query_parameters_are_rejected() {
    let world = World::new().await;
    let many = |member: &str| member.repeat(60_000);
    for fields in [
        format!("Connection: {}a\r\nAuthorization: X SignedHeaders={}b, Signature=00\r\n", many("a,"), many("b;")),
        format!("Connection: {}\r\n", many("a,")),
        format!("Via: {}\r\n", many("1.1 g,")[..250_000].to_owned()),
        format!("Cache-Control: {}\r\n", many("a,")),
        format!("If-None-Match: {}\r\n", many(r#""","#)),
        format!("Authorization: SDK-HMAC-SHA256 {}\r\n", many("a ")),
    ] {
        let head = format!("GET /v2/{PROJECT}/desktops HTTP/1.1\r\nHost: g\r\nConnection: close\r\n{fields}\r\n");
        let response = send_raw(world.server.proxy_address(), head).await;
        assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
        assert!(response.contains(&format!("at most {MAX_MEMBERS} list members")), "{response}");
    }
    let query = vec!["a=1"; 15_000].join("&");
    let head = format!("GET /v2/{PROJECT}/products?{query} HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n");
    assert!(send_raw(world.server.proxy_address(), head).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(world.upstream_calls(), 0);
}

/// Paths that name `PROJECT` and that another server could read as a path of another project.
const ODD_PATHS: [&str; 24] = [
    "/v2/PROJECT/..;/other/desktops",
    "/v2/PROJECT/..;a=b/other/desktops",
    "/v2/PROJECT/..%3b/other/desktops",
    "/v2/PROJECT/%2e%2e/other/desktops",
    "/v2/PROJECT/%252e%252e/other/desktops",
    "/v2/PROJECT/%c0%ae%c0%ae/other/desktops",
    "/v2/PROJECT/..%2fother/desktops",
    "/v2/PROJECT/..%5cother/desktops",
    "/v2/PROJECT/..\\other\\desktops",
    "/v2/PROJECT/../other/desktops",
    "/v2/PROJECT/./desktops",
    "/v2/PROJECT//desktops",
    "/v2//PROJECT/desktops",
    "/v2/PROJECT/desktops/",
    "/v2/PROJECT;x/desktops",
    "/v2/PROJECT/a%20b",
    "/v2/PROJECT/a:b",
    "/workspace/v2/PROJECT/..;/other/desktops",
    "/workspace/..;/v2/PROJECT/desktops",
    "/workspace//v2/PROJECT/%2e%2e/other/desktops",
    "//v2/PROJECT/..;/other/desktops",
    "//workspace//v2/PROJECT/..%3b/other",
    "/v2/PROJECT/..;/other/products",
    "/v2/PROJECT/products/..;/..;/other/products",
];

#[tokio::test]
async fn a_key_limited_to_projects_signs_no_ambiguous_path() {
    let limit = format!("projects = [{PROJECT:?}]");
    let create = |simulator: &workspace_gateway::testing::simulator::Simulator| [simulator.access_key(PROJECT)];
    let (world, [key]) = world_with_keys(create, |[key]| entry(key, &limit)).await;
    let gateway = world.url("");
    for path in ODD_PATHS {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            let request = Signed::new(&world, &key, method.clone(), path, "");
            // Also in absolute form, which the client sends unchanged.
            let target = request.url.strip_prefix(&gateway).unwrap_or(&request.url).to_owned();
            for target in [target.clone(), format!("{gateway}{target}")] {
                let fields: String = request
                    .headers
                    .iter()
                    .map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()))
                    .collect();
                let head = format!("{method} {target} HTTP/1.1\r\n{fields}content-length: 0\r\n\r\n");
                let response = RawClient::connect(&world).await.exchange(head).await;
                // A path that belongs to no service is rejected with 404 before the key is checked.
                assert!([403, 404].contains(&response.status()), "{target}: {response:?}");
                if response.status() == 403 {
                    assert!(response.body.contains("A-Z a-z 0-9 - . _ ~"), "{response:?}");
                }
            }
        }
    }
    assert_eq!(world.upstream_calls(), 0);
    for path in ["/v2/PROJECT/desktops/a.b_c-d~1", "/workspace/v2/PROJECT/desktops", "//v2/PROJECT/desktops", LIST] {
        let reply = Signed::get(&world, &key, path).send(&world).await;
        assert_eq!(reply.status(), StatusCode::OK, "{path}: {reply:?}");
    }
}

#[tokio::test]
async fn explain_rejects_the_same_requests_as_serve() {
    let world = World::new().await;
    let explain = async |url: &str, headers: &[&str]| {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("url", url).append_pair("header", "X-Auth-Token: t");
        for header in headers {
            query.append_pair("header", header);
        }
        let explained = world.http.get(&world.admin_url(&format!("/explain?{}", query.finish()))).await;
        explained.json()["verdict"]["sentence"].as_str().unwrap().to_owned()
    };
    let many = format!("Via: {}", "a,".repeat(300));
    for (url, header, invalid) in [
        ("/v2/p/products", "X-Auth-Token: t", Invalid::Token),
        ("/v2/p/products", "X_Auth_Token: t", Invalid::Underscore),
        ("/nowhere", "X_Project_Id: p", Invalid::Underscore),
        ("/v2/p/products", "Transfer-Encoding: gzip, chunked", Invalid::TransferEncoding),
        ("/v2/p/\u{e9}", "Accept: a", Invalid::Target),
        ("/v2/p/x", &many, Invalid::Members),
    ] {
        let expected = format!(
            "answered {} here, and not sent upstream: {}: {}",
            invalid.status().as_u16(),
            invalid.into_str(),
            invalid.describe()
        );
        assert_eq!(explain(url, &[header]).await, expected);
    }
    let lengths = ["Content-Length: 1", "Content-Length: 2"];
    assert!(
        explain("/v2/p/x", &lengths).await.starts_with("answered 400 here, and not sent upstream: content-length: ")
    );
    assert!(
        explain("/v2/p/products", &["X-Language:  a "]).await.starts_with("a call to upstream: this caller has no")
    );
}
