//! The core of the official Node SDK, configured for the gateway as a user would do it.

use crate::sdk::{Call, Client, Sdk, scenes};

#[tokio::test(flavor = "multi_thread")]
async fn all_are_answered_and_repeats_are_hits() {
    scenes::all_are_answered_and_repeats_are_hits(Sdk::Node, |scene| {
        // The SDK keeps the path of its base URL and signs it.
        let (workspace, appstream) = (Some(scene.world.url("/workspace")), Some(scene.world.url("/appstream")));
        vec![
            Client { workspace: workspace.clone(), appstream: appstream.clone(), ..scene.permanent("prefix") },
            Client { workspace, appstream, ..scene.temporary("temporary key, prefix") },
        ]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_exceptions() {
    let throttled = |call: &Call| {
        let throttled = (429, "APIGW.0308", "The throttling threshold has been reached");
        assert_eq!(call.refusal(), throttled);
    };
    scenes::refusals_are_exceptions(Sdk::Node, throttled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_in_the_configuration_locks_no_key() {
    scenes::a_wrong_secret_in_the_configuration_locks_no_key(Sdk::Node).await;
}
