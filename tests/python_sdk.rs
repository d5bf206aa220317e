//! The official Python SDK, pointed at the gateway as a user would.

use crate::sdk::{Call, Client, Sdk, scenes};

#[tokio::test(flavor = "multi_thread")]
async fn all_are_answered_and_repeats_are_hits() {
    scenes::all_are_answered_and_repeats_are_hits(Sdk::Python, |scene| {
        vec![
            scene.permanent("permanent key, asynchronously").asynchronous(),
            scene.another("new temporary key, asynchronously").asynchronous(),
            scene.token("token and signature, asynchronously").asynchronous(),
            Client { signs: false, ..scene.token("token alone") },
            // The environment alone points it at the gateway.
            Client { workspace: None, appstream: None, ..scene.permanent("region") },
            Client { workspace: Some(scene.world.url("/workspace/")), ..scene.permanent("prefix") },
        ]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_exceptions() {
    // It reads 429 as the end of its own retries, without looking at the answer.
    let throttled = |call: &Call| {
        let error = call.error.as_ref().unwrap();
        assert_eq!((call.status, error.kind.as_str(), error.code.as_str()), (429, "ClientRequestException", "429"));
    };
    scenes::refusals_are_exceptions(Sdk::Python, throttled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_in_the_configuration_locks_no_key() {
    scenes::a_wrong_secret_in_the_configuration_locks_no_key(Sdk::Python).await;
}
