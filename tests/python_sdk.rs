//! The official Python SDK, configured for the gateway as a user would do it.

use crate::sdk::{Call, Client, Sdk, scenes};

#[tokio::test(flavor = "multi_thread")]
async fn all_are_answered_and_repeats_are_hits() {
    scenes::all_are_answered_and_repeats_are_hits(Sdk::Python, |scene| {
        vec![
            scene.permanent("permanent key, asynchronously").asynchronous(),
            scene.another("new temporary key, asynchronously").asynchronous(),
            scene.token("token and signature, asynchronously").asynchronous(),
            Client { signs: false, ..scene.token("token alone") },
            // Only environment variables name the gateway.
            Client { workspace: None, appstream: None, ..scene.permanent("region") },
            Client { workspace: Some(scene.world.url("/workspace/")), ..scene.permanent("prefix") },
        ]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_exceptions() {
    // The SDK takes a 429 as the end of its own retries and does not read the response.
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
