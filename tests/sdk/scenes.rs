//! The tests that every SDK must pass.

use std::collections::HashSet;

use http::{HeaderMap, StatusCode};
use serde_json::Value;
use workspace_gateway::testing::catalogue::Service;
use workspace_gateway::testing::simulator::{IssuedKey, Simulator};

use super::{Call, Client, OPERATIONS, Sdk};
use crate::support::signer::entry;
use crate::support::{PROJECT, World, without_key};

/// The beginning of the gateway's message for a wrong signature.
const SIGNATURE_FAILURE: &str =
    "workspace-gateway: Incorrect IAM authentication information: verify aksk signature fail: ";

/// A gateway with access keys.
pub struct Scene {
    pub world: World,
    permanent: IssuedKey,
    temporary: IssuedKey,
    another_temporary: IssuedKey,
}

impl Scene {
    pub async fn new() -> Self {
        let simulator = Simulator::start().await.unwrap();
        let permanent = simulator.access_key(PROJECT);
        let [temporary, another_temporary] = [(); 2].map(|()| simulator.temporary_access_key(PROJECT));
        let world = world_with_keys(simulator, &[&permanent, &temporary, &another_temporary]).await;
        Self { world, permanent, temporary, another_temporary }
    }

    /// A client with a key that does not expire.
    pub fn permanent(&self, name: &'static str) -> Client {
        Client::with_key(name, &self.world.url(""), &self.permanent)
    }

    pub fn temporary(&self, name: &'static str) -> Client {
        Client::with_key(name, &self.world.url(""), &self.temporary)
    }

    /// A client with temporary credentials that no other client uses.
    pub fn another(&self, name: &'static str) -> Client {
        Client::with_key(name, &self.world.url(""), &self.another_temporary)
    }

    pub fn token(&self, name: &'static str) -> Client {
        Client::with_token(name, &self.world.url(""), &self.world.token)
    }

    /// The client connects to upstream without a gateway.
    fn directly(&self, client: Client) -> Client {
        let url = |service| Some(self.world.simulator.url(service));
        Client { workspace: url(Service::Workspace), appstream: url(Service::AppStream), rounds: 1, ..client }
    }
}

async fn world_with_keys(simulator: Simulator, keys: &[&IssuedKey]) -> World {
    let (workspace, appstream) = (simulator.url(Service::Workspace), simulator.url(Service::AppStream));
    World::with_upstreams(simulator, &workspace, &appstream, &keys.iter().map(|key| entry(key, "")).collect::<String>())
        .await
}

/// Calls all operations with each kind of credential. Each credential causes one upstream call per operation. The other
/// responses are hits, and equal to those of upstream.
pub async fn all_are_answered_and_repeats_are_hits(sdk: Sdk, others: impl FnOnce(&Scene) -> Vec<Client>) {
    let scene = Scene::new().await;
    let simulator = &scene.world.simulator;
    let mut clients = vec![
        scene.permanent("permanent key"),
        scene.temporary("temporary key"),
        scene.token("token and signature"),
        scene.directly(scene.permanent("permanent key, directly")),
        scene.directly(scene.temporary("temporary key, directly")),
    ];
    clients.extend(others(&scene));
    let Some(calls) = sdk.run(&clients).await else { return };

    assert_eq!(simulator.signature_failures(), 0);
    let mut proved = HashSet::new();
    let mut request_ids = HashSet::new();
    for (client, calls) in clients.iter().zip(&calls) {
        let is_direct = client.workspace.as_ref() == Some(&simulator.url(Service::Workspace));
        let credential = client.token.as_ref().unwrap_or(&client.id);
        let proves = !is_direct && proved.insert(credential);
        for (round, calls) in calls.chunks(OPERATIONS.len()).enumerate() {
            for (call, (operation, _, path)) in calls.iter().zip(OPERATIONS) {
                let context = format!("{}, {operation}, round {round}: {call:?}", client.name);
                assert_eq!(call.status, 200, "{context}");
                assert!(call.products == products(&scene.world, credential, path), "{context}");
                assert!(request_ids.insert(&call.headers["x-request-id"]), "{context}");
                if !is_direct {
                    assert_eq!(call.is_hit(), !(proves && round == 0), "{context}");
                }
            }
        }
    }
    let (first, repeat) = (&calls[0][0], &calls[0][OPERATIONS.len()]);
    let hit = "workspace-gateway; hit; ttl=300";
    let stored = "workspace-gateway; fwd=miss; fwd-status=200; stored; detail=proved";
    let statuses = [first, repeat].map(|call| without_key(&call.headers["cache-status"]));
    assert_eq!((&*statuses[0].0, &*statuses[1].0), (stored, hit));
    assert_eq!(statuses[0].1, statuses[1].1, "the cache keys are equal");
    assert_one_call_per_credential_and_operation(&scene, &proved);
}

/// The product ids that upstream shows.
fn products(world: &World, credential: &str, path: &str) -> Vec<String> {
    let path = path.replace("PROJECT", PROJECT);
    let list = world.simulator.product_list_at(credential, &path, &HeaderMap::new(), world.now()).unwrap();
    let list: Value = serde_json::from_slice(&list).unwrap();
    let id = |product: &Value| product["product_id"].as_str().unwrap().to_owned();
    let ids: Vec<_> = list["products"].as_array().unwrap().iter().map(id).collect();
    assert!(!ids.is_empty());
    ids
}

/// Upstream received each credential once for each operation, and no other credential.
fn assert_one_call_per_credential_and_operation(scene: &Scene, credentials: &HashSet<&String>) {
    let seen = scene.world.simulator.requests_seen();
    let mut calls = Vec::new();
    for seen in seen.iter().filter(|seen| seen.headers.contains_key("via")) {
        let token = seen.headers.get("x-auth-token").map(|token| token.to_str().unwrap());
        let has_security_token = seen.headers.contains_key("x-security-token");
        let credential = match (token, seen.signature()) {
            (Some(token), None) => {
                // The signature for the gateway is removed.
                assert!(!seen.headers.contains_key("x-sdk-date") && !has_security_token, "{seen:?}");
                token
            }
            (None, Some(signature)) => {
                assert!(signature.names().any(|name| name == "host"), "{seen:?}");
                assert_eq!(has_security_token, signature.access != scene.permanent.id, "{seen:?}");
                signature.access
            }
            _ => panic!("{seen:?}"),
        };
        calls.push((credential, seen.service, seen.target.clone()));
    }
    let mut expected: Vec<_> = credentials
        .iter()
        .flat_map(|one| OPERATIONS.map(|(_, service, path)| (one.as_str(), service, path.replace("PROJECT", PROJECT))))
        .collect();
    let order =
        |one: &(&str, Service, String), other: &(&str, Service, String)| (one.0, &one.2).cmp(&(other.0, &other.2));
    calls.sort_by(order);
    expected.sort_by(order);
    assert_eq!(calls, expected);
}

/// A refusal of the gateway or of upstream is an exception of the SDK with code, message and request id.
pub async fn refusals_are_exceptions(sdk: Sdk, throttled: fn(&Call)) {
    let scene = Scene::new().await;
    let simulator = &scene.world.simulator;
    // Stored responses must not make a difference.
    for (_, _, path) in OPERATIONS {
        assert_eq!(scene.world.get(path).await.status(), StatusCode::OK);
    }
    simulator.forget_requests();
    let url = scene.world.url("");
    let failing = |name, status| {
        let token = simulator.token(PROJECT);
        simulator.fail_token(&token, Some(status));
        Client::with_token(name, &url, &token)
    };
    let unknown = simulator.access_key(PROJECT);
    let clients = [
        Client { secret: "another".to_owned(), ..scene.permanent("wrong secret") },
        Client { security_token: Some("another".to_owned()), ..scene.temporary("wrong security token") },
        Client { security_token: None, ..scene.temporary("no security token") },
        Client::with_key("unknown key", &url, &unknown),
        Client { token: Some("no-such-token".to_owned()), ..scene.token("bad token") },
        failing("not found", StatusCode::NOT_FOUND),
        failing("unavailable", StatusCode::SERVICE_UNAVAILABLE),
        failing("throttled", StatusCode::TOO_MANY_REQUESTS),
    ]
    .map(|client| Client { rounds: 1, ..client });
    let Some(calls) = sdk.run(&clients).await else { return };

    let (security_token, bad) = ("X-Security-Token is not the one", "APIGW.0301");
    let expected = [
        (401, bad, format!("{SIGNATURE_FAILURE}the signature is not valid for this request")),
        (401, bad, format!("{SIGNATURE_FAILURE}{security_token}")),
        (401, bad, format!("{SIGNATURE_FAILURE}{security_token}")),
        (401, bad, format!("{SIGNATURE_FAILURE}the signature covers this gateway's address")),
        (401, bad, "Incorrect IAM authentication information: decrypt token fail".to_owned()),
        (404, "WKS.00211902", "The resource does not exist".to_owned()),
        (503, "WKS.00050902", "The service is unavailable".to_owned()),
    ];
    for (calls, (status, code, message)) in calls.iter().zip(&expected) {
        for call in calls {
            let (refused_status, refused_code, refused_message) = call.refusal();
            assert_eq!((refused_status, refused_code), (*status, *code), "{call:?}");
            assert!(refused_message.starts_with(message), "{call:?}");
        }
    }
    calls[expected.len()].iter().for_each(throttled);
    // No signed request was sent upstream.
    assert!(simulator.requests_seen().iter().all(|seen| seen.signature().is_none()));
    assert_eq!(simulator.signature_failures(), 0);
}

/// The gateway and the application have the same wrong secret.
pub async fn a_wrong_secret_in_the_configuration_locks_no_key(sdk: Sdk) {
    let simulator = Simulator::start().await.unwrap();
    let key = simulator.access_key(PROJECT);
    let mistyped = IssuedKey { secret: "mistyped".to_owned(), ..key.clone() };
    let world = world_with_keys(simulator, &[&mistyped]).await;
    let client = Client { rounds: 4, ..Client::with_key("mistyped", &world.url(""), &mistyped) };
    let Some(calls) = sdk.run(&[client]).await else { return };
    for call in &calls[0] {
        let (status, code, message) = call.refusal();
        assert_eq!((status, code), (401, "APIGW.0301"), "{message}");
    }
    let (_, _, last) = calls[0][11].refusal();
    assert!(last.contains("check its secret in the gateway's configuration"), "{last}");
    assert_eq!((world.simulator.signature_failures(), world.upstream_calls()), (3, 3));
    assert_eq!((world.simulator.failures_in_a_row(&key.id), world.simulator.is_locked(&key.id)), (3, false));
}
