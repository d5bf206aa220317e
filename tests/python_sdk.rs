//! The official Python SDK, pointed at the gateway as a user would.
//!
//! Needs an interpreter that has `tests/python_sdk/requirements.txt` installed, named by
//! `WORKSPACE_GATEWAY_TEST_PYTHON`. Without one these tests say so and prove nothing; in CI that is
//! a failure.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use http::StatusCode;
use serde::Deserialize;
use workspace_gateway::catalogue::Service;

use crate::support::{PROJECT, World};

const PYTHON: &str = "WORKSPACE_GATEWAY_TEST_PYTHON";

/// What the SDK makes of one call.
#[derive(Debug, Deserialize)]
struct Call {
    operation: String,
    status: u16,
    /// Their ids.
    #[serde(default)]
    products: Vec<String>,
    error: Option<Exception>,
    headers: std::collections::HashMap<String, String>,
}

/// What it raises instead.
#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "type")]
    kind: String,
    code: String,
    message: String,
    request_id: String,
}

/// How a user points the SDK at the gateway.
#[derive(Clone, Copy)]
enum BaseUrl {
    /// `with_endpoint`, a line of code.
    Endpoint,
    /// The environment, without a change to the code.
    Environment,
}

/// The operations in the order of the script, with what upstream is asked and what a user would.
const OPERATIONS: [(&str, Service, &str); 3] = [
    ("ListProducts", Service::Workspace, "/v2/PROJECT/products?os_type=Linux"),
    ("ListSharerProducts", Service::Workspace, "/v2/PROJECT/products/sharer"),
    ("ListProduct", Service::AppStream, "/v1/PROJECT/product"),
];

/// Runs the script: six calls, or `None` where there is no SDK to run it with.
async fn sdk(world: &World, token: &str, base_url: BaseUrl, options: &[&str]) -> Option<Vec<Call>> {
    let Some(python) = std::env::var_os(PYTHON).filter(|python| !python.is_empty()) else {
        assert!(std::env::var_os("CI").is_none(), "{PYTHON} is not set: CI must not skip the Python SDK");
        // Straight to the terminal: what goes through `eprintln!` is shown for failed tests only.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED, nothing proved: {} needs the Python SDK. Install tests/python_sdk/requirements.txt \
             in a virtual environment and set {PYTHON} to its interpreter.",
            std::thread::current().name().unwrap_or("a test of python_sdk")
        );
        return None;
    };
    let url = world.url("");
    let mut command = Command::new(python);
    // Nothing of this machine's: neither its proxies nor the region or key of whoever runs the test.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_ascii_lowercase();
        if text.ends_with("_proxy") || text.starts_with("huaweicloud_") {
            command.env_remove(name);
        }
    }
    // A proxy that does not exist, and the variable that users behind one need.
    command.env("HTTP_PROXY", "http://proxy.invalid:3128").env("NO_PROXY", "127.0.0.1");
    command.env("TOKEN", token).env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python_sdk/list_products.py")).arg(PROJECT);
    match base_url {
        BaseUrl::Endpoint => command.arg(&url),
        BaseUrl::Environment => command
            .arg("region")
            .env("HUAWEICLOUD_SDK_REGION_WORKSPACE_CN_NORTH_4", &url)
            .env("HUAWEICLOUD_SDK_REGION_WORKSPACEAPP_CN_NORTH_4", &url),
    };
    command.args(options);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    let calls: Vec<Call> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let operations: Vec<_> = calls.iter().map(|call| call.operation.as_str()).collect();
    assert_eq!(operations, OPERATIONS.map(|(operation, ..)| operation).repeat(2), "{stderr}");
    Some(calls)
}

/// Lists everything twice with a valid token: three calls upstream, three answers from memory.
async fn lists_everything_and_repeats_are_hits(base_url: BaseUrl, options: &[&str]) {
    let world = World::new().await;
    let Some(calls) = sdk(&world, &world.token, base_url, options).await else { return };

    // Upstream saw one call for each operation: with the token, and without the SDK's signature.
    let seen = world.simulator.requests_seen();
    let asked: Vec<_> = seen.iter().map(|seen| (seen.service, seen.target.clone())).collect();
    assert_eq!(asked, OPERATIONS.map(|(_, service, path)| (service, path.replace("PROJECT", PROJECT))));
    for seen in &seen {
        assert_eq!(seen.headers["x-auth-token"], *world.token);
        for bound_here in ["authorization", "x-sdk-date"] {
            assert!(!seen.headers.contains_key(bound_here), "{bound_here} in {seen:?}");
        }
    }

    let (first, repeat) = calls.split_at(OPERATIONS.len());
    for (((operation, _, path), first), repeat) in OPERATIONS.into_iter().zip(first).zip(repeat) {
        assert_eq!((first.status, repeat.status), (200, 200), "{operation}");
        assert!(!first.products.is_empty(), "{operation}");
        assert_eq!(first.products, repeat.products, "{operation}");
        // Nothing was lost on the way: what a plain client is shown has the same products.
        let plain = world.get(path).await.json();
        let ids = plain["products"].as_array().unwrap().iter().map(|product| product["product_id"].as_str().unwrap());
        assert!(ids.eq(first.products.iter().map(String::as_str)), "{operation}");

        let proved = "workspace-gateway; fwd=miss; fwd-status=200; stored; detail=proved";
        assert_eq!(first.headers["cache-status"], proved, "each operation is a scope of its own");
        assert_eq!(repeat.headers["cache-status"], "workspace-gateway; hit; ttl=300");
        assert_ne!(first.headers["x-request-id"], repeat.headers["x-request-id"], "{operation}");
        // The SDK's repeat and the plain client's.
        let hits =
            format!("workspace_gateway_requests_total{{operation=\"{operation}\",result=\"hit\",status=\"200\"}}");
        world.until_metric(&hits, 2.0).await;
    }
    assert_eq!(world.upstream_calls(), OPERATIONS.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_alone() {
    lists_everything_and_repeats_are_hits(BaseUrl::Endpoint, &["--no-signature"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_and_the_signature_that_the_sdk_adds() {
    lists_everything_and_repeats_are_hits(BaseUrl::Endpoint, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pointed_at_the_gateway_by_the_environment_alone() {
    lists_everything_and_repeats_are_hits(BaseUrl::Environment, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_is_an_exception_with_code_message_and_request_id() {
    let world = World::new().await;
    // What a valid token has put into memory does not change it.
    for (_, _, path) in OPERATIONS {
        assert_eq!(world.get(path).await.status(), StatusCode::OK);
    }
    let Some(calls) = sdk(&world, "no-such-token", BaseUrl::Endpoint, &["--no-signature"]).await else { return };
    for call in &calls {
        let error = call.error.as_ref().unwrap_or_else(|| panic!("{call:?}"));
        assert_eq!((error.kind.as_str(), call.status), ("ClientRequestException", 401));
        assert_eq!(error.code, "APIGW.0301");
        assert_eq!(error.message, "Incorrect IAM authentication information: decrypt token fail");
        assert_eq!(error.request_id, call.headers["x-request-id"]);
        assert!(!error.request_id.is_empty());
    }
}

/// Relayed, the signature could only fail, and failures lock the access key.
#[tokio::test(flavor = "multi_thread")]
async fn a_signature_alone_is_refused_here_and_the_exception_says_why() {
    let world = World::new().await;
    let Some(calls) = sdk(&world, &world.token, BaseUrl::Endpoint, &["--no-token"]).await else { return };
    for call in &calls {
        let error = call.error.as_ref().unwrap_or_else(|| panic!("{call:?}"));
        assert_eq!((error.kind.as_str(), call.status), ("ClientRequestException", 401));
        assert!(error.message.contains("over this gateway's address"), "{error:?}");
        assert_eq!(error.request_id, call.headers["x-request-id"]);
    }
    assert_eq!(world.upstream_calls(), 0);
}
