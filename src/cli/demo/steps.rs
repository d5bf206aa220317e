//! The script of the demo: who sends which request, how the upstreams behave, and which response is expected.

use std::time::Duration;

use http::StatusCode;

/// The number of concurrent requests in a burst.
pub(super) const BURST: usize = 200;

/// Short lifetimes for the sharer list, so that the demo can show what happens when it expires. The quota is one that
/// upstream is known to have; the demo does not use it up.
pub(super) const SETTINGS: &str = r#"
[cache]
ttl_jitter = "0%"
negative_ttl = "1s"
backoff = "1s"
stale_if_slow = "400ms"

[[operation]]
name = "ListSharerProducts"
ttl = "1500ms"
stale_while_revalidate = "1s"

[[quota]]
service = "workspace"
policy = "api"
limit = 2000
window = "1m"
"#;

#[derive(Clone, Copy)]
pub(super) enum DemoCaller {
    First,
    Second,
    /// The first and the second in turn.
    Both,
    /// A valid token that upstream has not accepted yet.
    New,
    /// An invalid token.
    Invalid,
    /// Signs with an access key that is in the gateway's settings.
    Signer,
    /// Signs with an access key that is not.
    UnknownSigner,
}

/// How the upstreams behave from this step on.
#[derive(Clone, Copy)]
pub(super) enum UpstreamState {
    Unchanged,
    Healthy,
    /// Answers 503.
    Down,
    /// Answers 429 with this `Retry-After`, in seconds.
    Throttled(u32),
    /// Needs this time to answer.
    Slow(Duration),
}

/// A request, or several at once, and what is expected.
pub(super) struct Step {
    pub(super) path: &'static str,
    pub(super) query: &'static str,
    pub(super) note: &'static str,
    pub(super) upstream: UpstreamState,
    /// Time to wait before the step, in milliseconds.
    pub(super) wait: u64,
    pub(super) at_once: usize,
    pub(super) caller: DemoCaller,
    pub(super) expected_status: StatusCode,
    /// The query of the one upstream call that the step causes. `None`: it must cause no call.
    pub(super) upstream_query: Option<&'static str>,
}

const PRODUCTS: &str = "/v2/PROJECT/products";
const SHARER: &str = "/v2/PROJECT/products/sharer";
const PRODUCT: &str = "/v1/PROJECT/product";

fn step(path: &'static str, query: &'static str, note: &'static str, upstream_query: Option<&'static str>) -> Step {
    Step {
        path,
        query,
        note,
        upstream: UpstreamState::Unchanged,
        wait: 0,
        at_once: 1,
        caller: DemoCaller::First,
        expected_status: StatusCode::OK,
        upstream_query,
    }
}

pub(super) fn all() -> Vec<Step> {
    let mut steps = healthy_steps();
    steps.extend(failure_steps());
    steps
}

fn healthy_steps() -> Vec<Step> {
    let second = |query, note, call| Step { caller: DemoCaller::Second, ..step(PRODUCTS, query, note, call) };
    let burst = |note, call| Step {
        at_once: BURST,
        caller: DemoCaller::Both,
        ..step(PRODUCTS, "architecture=arm", note, call)
    };
    let refused = |note, call| Step {
        caller: DemoCaller::Invalid,
        expected_status: StatusCode::UNAUTHORIZED,
        ..step(PRODUCTS, "os_type=Linux", note, call)
    };
    let signed = |caller, note, call| Step { caller, ..step(PRODUCTS, "os_type=Linux", note, call) };
    vec![
        step(PRODUCTS, "os_type=Linux", "first request", Some("os_type=Linux")),
        step(PRODUCTS, "os_type=Linux", "repeated", None),
        step(PRODUCTS, "limit=100&offset=0&os_type=Linux", "with default values", None),
        step(PRODUCTS, "os_type=Windows&charge_mode=1", "other parameters", Some("charge_mode=1&os_type=Windows")),
        step(PRODUCTS, "charge_mode=1&os_type=Windows", "in another order", None),
        step(PRODUCT, "os_type=&package_type=general", "first request", Some("package_type=general")),
        step(PRODUCT, "package_type=general", "without the empty parameter", None),
        second("os_type=Linux", "second caller, no grant yet", Some("os_type=Linux")),
        second("charge_mode=1&os_type=Windows", "second caller, with a grant", None),
        burst("burst of 200, two callers", Some("architecture=arm")),
        burst("burst of 200 again", None),
        refused("invalid token: 401", Some("os_type=Linux")),
        refused("repeated at once: same 401", None),
        signed(DemoCaller::Signer, "signed (AK/SK), known key", Some("os_type=Linux")),
        signed(DemoCaller::Signer, "signed again", None),
        Step {
            expected_status: StatusCode::UNAUTHORIZED,
            ..signed(DemoCaller::UnknownSigner, "signed with an unknown key", None)
        },
    ]
}

fn failure_steps() -> Vec<Step> {
    const QUERY: &str = "is_gpu=0";
    let after = |wait, upstream, note, causes_call: bool| Step {
        wait,
        upstream,
        ..step(SHARER, QUERY, note, causes_call.then_some(QUERY))
    };
    let new_caller = Step {
        caller: DemoCaller::New,
        expected_status: StatusCode::SERVICE_UNAVAILABLE,
        ..after(0, UpstreamState::Unchanged, "a caller without a grant", true)
    };
    vec![
        after(0, UpstreamState::Unchanged, "first request", true),
        after(1_600, UpstreamState::Unchanged, "1.6 s later: expired", true),
        after(300, UpstreamState::Unchanged, "refreshed in the background", false),
        after(2_600, UpstreamState::Down, "outage: upstream sends 503", true),
        after(0, UpstreamState::Unchanged, "repeated at once", false),
        new_caller,
        after(1_100, UpstreamState::Healthy, "the outage is over", true),
        after(2_600, UpstreamState::Throttled(1), "429 with Retry-After: 1", true),
        after(0, UpstreamState::Unchanged, "repeated at once", false),
        after(1_100, UpstreamState::Healthy, "1.1 s later", true),
        after(2_600, UpstreamState::Slow(Duration::from_millis(700)), "upstream needs 700 ms", true),
        after(500, UpstreamState::Healthy, "the slow call was stored", false),
    ]
}
