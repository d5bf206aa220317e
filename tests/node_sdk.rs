//! The core of the official Node SDK, pointed at the gateway as a user would.

use crate::sdk::{Call, Sdk, scenes};

#[tokio::test(flavor = "multi_thread")]
async fn all_are_answered_and_repeats_are_hits() {
    scenes::all_are_answered_and_repeats_are_hits(Sdk::Node, |_| Vec::new()).await;
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
