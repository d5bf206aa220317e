//! Runs the official SDKs as a user does, in an interpreter of their own. One interpreter runs all clients of a test,
//! because its start is slow.
//!
//! An environment variable names each installed SDK. Without it, the tests of that SDK are skipped with a message. In
//! CI they fail.

pub mod scenes;

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::simulator::IssuedKey;

use crate::support::PROJECT;

/// The operations in the order of the scripts, with the service and the target of the upstream request.
pub const OPERATIONS: [(&str, Service, &str); 3] = [
    ("ListProducts", Service::Workspace, "/v2/PROJECT/products?os_type=Linux"),
    ("ListSharerProducts", Service::Workspace, "/v2/PROJECT/products/sharer"),
    ("ListProduct", Service::AppStream, "/v1/PROJECT/product"),
];

/// A client of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct Client {
    pub name: &'static str,
    /// The base URLs. `None`: the SDK reads those of the first client from the environment.
    pub workspace: Option<String>,
    pub appstream: Option<String>,
    pub id: String,
    pub secret: String,
    pub security_token: Option<String>,
    pub token: Option<String>,
    /// Whether the client sends the signature, which the SDK always makes.
    pub signs: bool,
    pub style: Style,
    /// The number of times that the client calls all operations.
    pub rounds: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    Sync,
    Async,
}

impl Client {
    /// A client that signs with this key, for two rounds.
    pub fn with_key(name: &'static str, base_url: &str, key: &IssuedKey) -> Self {
        let IssuedKey { id, secret, security_token } = key.clone();
        let base_url = Some(base_url.to_owned());
        let (workspace, appstream) = (base_url.clone(), base_url);
        let (token, signs, style) = (None, true, Style::Sync);
        Self { name, workspace, appstream, id, secret, security_token, token, signs, style, rounds: 2 }
    }

    /// A client with a token. The SDKs require a key, so it also has a key that does not exist.
    pub fn with_token(name: &'static str, base_url: &str, token: &str) -> Self {
        let (id, secret) = ("AKEXAMPLE".to_owned(), "sk-example".to_owned());
        let key = IssuedKey { id, secret, security_token: None };
        Self { token: Some(token.to_owned()), ..Self::with_key(name, base_url, &key) }
    }

    pub fn asynchronous(self) -> Self {
        Self { style: Style::Async, ..self }
    }
}

/// The result of one call.
#[derive(Debug, Deserialize)]
pub struct Call {
    pub client: String,
    pub operation: String,
    pub status: u16,
    /// The product ids.
    #[serde(default)]
    pub products: Vec<String>,
    pub error: Option<Exception>,
    pub headers: HashMap<String, String>,
}

/// An exception of the SDK.
#[derive(Debug, Deserialize)]
pub struct Exception {
    #[serde(rename = "type")]
    pub kind: String,
    pub code: String,
    pub message: String,
    pub request_id: String,
}

impl Call {
    /// Whether the call had a successful response from the cache.
    pub fn is_hit(&self) -> bool {
        self.status == 200 && self.headers["cache-status"].contains("; hit")
    }

    /// Status, code and message of a refused call. Panics unless it is an exception of the SDK with the response's
    /// request id.
    pub fn refusal(&self) -> (u16, &str, &str) {
        let error = self.error.as_ref().unwrap_or_else(|| panic!("no exception: {self:?}"));
        let kind = if self.status < 500 { "ClientRequestException" } else { "ServerResponseException" };
        assert_eq!((error.kind.as_str(), self.products.len()), (kind, 0), "{self:?}");
        assert!(!error.request_id.is_empty() && error.request_id == self.headers["x-request-id"], "{self:?}");
        (self.status, &error.code, &error.message)
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Sdk {
    Python,
    Node,
}

impl Sdk {
    /// The environment variable, and its meaning.
    fn variable(self) -> (&'static str, &'static str) {
        match self {
            Self::Python => {
                ("WORKSPACE_GATEWAY_TEST_PYTHON", "an interpreter that has tests/python_sdk/requirements.txt installed")
            }
            Self::Node => (
                "WORKSPACE_GATEWAY_TEST_NODE_MODULES",
                "the node_modules that `npm ci` makes of tests/node_sdk; node itself has to be on the PATH",
            ),
        }
    }

    fn command(self, found: &Path) -> Command {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        match self {
            Self::Python => {
                let mut command = Command::new(found);
                command.arg(tests.join("python_sdk/list_products.py")).env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
            Self::Node => {
                let mut command = Command::new("node");
                command.arg(tests.join("node_sdk/list_products.js"));
                command.env("NODE_MODULES", std::path::absolute(found).unwrap());
                command
            }
        }
    }

    /// Runs a plan. Returns the calls of each client in order, or `None` if the SDK is not installed.
    pub async fn run(self, clients: &[Client]) -> Option<Vec<Vec<Call>>> {
        let (variable, meaning) = self.variable();
        let Some(found) = std::env::var_os(variable).filter(|found| !found.is_empty()).map(PathBuf::from) else {
            assert!(std::env::var_os("CI").is_none(), "{variable} is not set: CI must not skip the {self:?} SDK");
            // Not `eprintln!`: its output is shown for failed tests only.
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: {} needs the {self:?} SDK. Set {variable} to {meaning}.",
                std::thread::current().name().unwrap_or("a test with an SDK")
            );
            return None;
        };
        let mut command = self.command(&found);
        // Without the proxies, regions and keys of the environment.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_ascii_lowercase();
            if text.ends_with("_proxy") || text.starts_with("huaweicloud_") {
                command.env_remove(name);
            }
        }
        // Both SDKs write a file to it.
        command.env("HOME", env!("CARGO_TARGET_TMPDIR"));
        // A proxy that does not exist, and the exception that users behind a proxy need.
        command.env("HTTP_PROXY", "http://proxy.invalid:3128").env("NO_PROXY", "127.0.0.1");
        for (service, url) in [("WORKSPACE", &clients[0].workspace), ("WORKSPACEAPP", &clients[0].appstream)] {
            let url = url.as_ref().expect("the first client has its base URLs");
            command.env(format!("HUAWEICLOUD_SDK_REGION_{service}_CN_NORTH_4"), url);
        }
        let plan = serde_json::json!({ "project_id": PROJECT, "clients": clients }).to_string();
        let lines = tokio::task::spawn_blocking(move || output(command, &plan)).await.unwrap();
        let calls = lines.lines().filter_map(|line| line.strip_prefix("call "));
        let mut calls = calls.map(|call| serde_json::from_str::<Call>(call).unwrap());
        let plan = clients.iter().map(|client| {
            let calls: Vec<_> = calls.by_ref().take(OPERATIONS.len() * client.rounds).collect();
            let made = calls.iter().map(|call| (call.client.as_str(), call.operation.as_str()));
            let planned = OPERATIONS.map(|(operation, ..)| (client.name, operation)).repeat(client.rounds);
            assert!(made.eq(planned), "{self:?}, {}: {calls:?}", client.name);
            calls
        });
        Some(plan.collect())
    }
}

fn output(mut command: Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // The script reads all of its input before it writes output.
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}
