//! Why a request was a miss, and why a response was not stored. Each has one reason, which is counted. `Cache-Status` shows
//! it unless that would disclose something to the caller.

use http::{HeaderName, Method, StatusCode};
use strum::VariantArray;
use workspace_gateway::testing::cache::miss::Miss;
use workspace_gateway::testing::cache::unstorable::Unstorable;

use crate::support::{Reply, World};

const LIST: &str = "/v2/PROJECT/products";

/// How often each reason was counted. Reasons that were not counted are left out.
fn missed(world: &World) -> Vec<(Miss, f64)> {
    let counted = |miss: Miss| {
        let labels = format!("operation=\"ListProducts\",reason=\"{}\"", miss.into_str());
        world.metric(&format!("workspace_gateway_misses_total{{{labels}}}"))
    };
    Miss::VARIANTS.iter().map(|&miss| (miss, counted(miss))).filter(|(_, count)| *count > 0.0).collect()
}

/// A world and the token of a caller with a grant. The call that proved it has been counted as a miss.
async fn world_with_grant(settings: &str) -> (World, String) {
    let world = World::with(settings).await;
    let [token] = world.granted_tokens().await;
    (world, token)
}

async fn ask(world: &World, token: &str, headers: &[(&str, &str)]) -> Reply {
    let headers = [&[("x-auth-token", token)], headers].concat();
    world.http.send(Method::GET, &world.url(LIST), &headers, "").await
}

/// Invalidates what is stored.
async fn write(world: &World, token: &str) {
    world.seconds_pass(1);
    world.http.send(Method::POST, &world.url(LIST), &[("x-auth-token", token)], "{}").await;
    world.seconds_pass(1);
}

#[tokio::test]
async fn each_reason_for_a_miss_is_counted_and_shown() {
    let mut seen = Vec::new();
    for (expected, params) in [
        (Miss::NoEntry, "fwd=miss; fwd-status=200; stored; detail=no-entry"),
        (Miss::Expired, "fwd=stale; fwd-status=200; stored; detail=expired"),
        (Miss::NeedsConfirmation, "fwd=stale; fwd-status=200; stored; detail=needs-confirmation"),
        (Miss::NoGrant, "fwd=miss; fwd-status=200; stored; detail=proved"),
        (Miss::GrantLapsed, "fwd=miss; fwd-status=200; stored; detail=proved"),
        (Miss::Private, "fwd=miss; fwd-status=200; stored; detail=private"),
        (Miss::Uncacheable, "fwd=miss; fwd-status=200; stored; detail=uncacheable"),
        (Miss::ClientNoCache, "fwd=request; fwd-status=200; stored; detail=client-no-cache"),
        (Miss::ClientMaxAge, "fwd=request; fwd-status=200; stored; detail=client-max-age"),
        (Miss::ClientMinFresh, "fwd=request; fwd-status=200; stored; detail=client-min-fresh"),
    ] {
        let sharing = if expected == Miss::Private { "[cache]\nsharing = \"caller\"\n" } else { "" };
        let grant_ttl = if expected == Miss::GrantLapsed { "5m" } else { "2h" };
        let (world, token) = world_with_grant(&format!("{sharing}[grants]\ngrant_ttl = \"{grant_ttl}\"\n")).await;
        let mut caller = token.clone();
        let mut headers: &[(&str, &str)] = &[];
        match expected {
            Miss::NoEntry | Miss::Private => {}
            Miss::Expired => {
                ask(&world, &token, &[]).await;
                world.seconds_pass(7_000);
            }
            Miss::NeedsConfirmation => {
                ask(&world, &token, &[]).await;
                write(&world, &token).await;
            }
            Miss::NoGrant => caller = world.simulator.token(crate::support::PROJECT),
            Miss::GrantLapsed => world.seconds_pass(400),
            Miss::Uncacheable => {
                let (name, value) = (HeaderName::from_static("cache-control"), "no-store".parse().unwrap());
                world.simulator.add_header(name, value);
                assert_eq!(
                    ask(&world, &token, &[]).await.cache_params(),
                    "fwd=miss; fwd-status=200; detail=cache-directives",
                    "the reason why it is not stored comes first"
                );
                world.simulator.remove_headers();
            }
            Miss::ClientNoCache | Miss::ClientMaxAge | Miss::ClientMinFresh => {
                ask(&world, &token, &[]).await;
                world.seconds_pass(10);
                headers = match expected {
                    Miss::ClientNoCache => &[("cache-control", "no-cache")],
                    Miss::ClientMaxAge => &[("cache-control", "max-age=5")],
                    _ => &[("cache-control", "min-fresh=299")],
                };
            }
        }
        let before: f64 = missed(&world).iter().map(|(_, count)| count).sum();
        let (reply, counted) = (ask(&world, &caller, headers).await, missed(&world));
        assert_eq!(reply.cache_params(), params, "{expected:?}");
        let after: f64 = counted.iter().map(|(_, count)| count).sum();
        assert_eq!(after, before + 1.0, "{expected:?}: {counted:?}");
        assert!(counted.iter().any(|(miss, _)| *miss == expected), "{expected:?}: {counted:?}");
        seen.push(expected);
    }
    assert_eq!(seen, Miss::VARIANTS, "a reason is missing here");
}

#[tokio::test]
async fn a_caller_without_a_grant_gets_the_same_details_whatever_is_stored() {
    let mut details = Vec::new();
    // Nothing stored; then an entry that is fresh, stale, expired, or invalidated.
    for (is_stored, seconds, is_invalidated) in
        [(false, 0, false), (true, 0, false), (true, 400, false), (true, 7_000, false), (true, 0, true)]
    {
        let (world, token) = world_with_grant("[grants]\ngrant_ttl = \"2h\"\n").await;
        if is_stored {
            ask(&world, &token, &[]).await;
        }
        if is_invalidated {
            write(&world, &token).await;
        }
        world.seconds_pass(seconds + 1);
        let stranger = world.simulator.token(crate::support::PROJECT);
        world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
        let failed = ask(&world, &stranger, &[("cache-control", "max-age=1")]).await.cache_params().to_owned();
        world.simulator.fail_with(None);
        let labels = "operation=\"ListProducts\",reason=\"no-grant\"";
        let proofs = world.metric(&format!("workspace_gateway_misses_total{{{labels}}}"));
        details.push((failed, ask(&world, &stranger, &[]).await.cache_params().to_owned(), proofs));
    }
    let first = details[0].clone();
    assert_eq!(first.0, "fwd=miss; fwd-status=503; detail=status");
    assert!(details.iter().all(|detail| *detail == first), "{details:?}");
}

#[tokio::test]
async fn hits_and_bypasses_are_not_counted_as_misses() {
    let (world, token) = world_with_grant("").await;
    ask(&world, &token, &[]).await;
    let before = missed(&world);
    assert!(ask(&world, &token, &[]).await.is_hit());
    ask(&world, &token, &[("range", "bytes=0-1")]).await;
    ask(&world, &token, &[("cache-control", "no-store")]).await;
    assert_eq!(missed(&world), before);
    // A miss without an upstream call is counted, too.
    world.seconds_pass(7_000);
    assert_eq!(ask(&world, &token, &[("cache-control", "only-if-cached")]).await.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_ne!(missed(&world), before);
}

#[tokio::test]
async fn each_response_that_is_not_stored_is_counted_once() {
    let (world, token) = world_with_grant("").await;
    let counted = |reason: Unstorable| {
        world.metric(&format!("workspace_gateway_unstored_responses_total{{reason=\"{}\"}}", reason.into_str()))
    };
    let all = || Unstorable::VARIANTS.iter().map(|reason| counted(*reason)).sum::<f64>();
    assert_eq!(all(), 0.0);
    world.simulator.deny(&token);
    assert_eq!(ask(&world, &token, &[]).await.cache_params(), "fwd=miss; fwd-status=403; detail=denied");
    assert_eq!((counted(Unstorable::Denied), all()), (1.0, 1.0));
    world.seconds_pass(1);
    let [other] = world.granted_tokens().await;
    world.simulator.hold();
    let leader = world.begin_and_reach_upstream(&other, LIST, world.upstream_calls() + 1).await;
    world.purge();
    world.simulator.release();
    assert_eq!(leader.await.unwrap().cache_params(), "fwd=miss; fwd-status=200; detail=purged");
    assert_eq!((counted(Unstorable::Purged), all()), (1.0, 2.0));
    world.simulator.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
    ask(&world, &other, &[]).await;
    assert_eq!((counted(Unstorable::Status), all()), (1.0, 3.0));
}

#[tokio::test]
async fn the_digest_of_a_cache_key_is_the_same_for_all_callers() {
    let worlds = [World::new().await, World::new().await];
    let [one, two] = worlds[0].granted_tokens().await;
    let digest_of = async |token: &str, query: &str| {
        worlds[0].get_as(token, &format!("{LIST}?{query}")).await.key().expect("a digest")
    };
    let digest = digest_of(&one, "limit=1&offset=2").await;
    assert!(digest.len() == 16 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest}");
    // A hit, another spelling, another caller, and a caller without a grant.
    let stranger = worlds[0].simulator.token(crate::support::PROJECT);
    for (token, query) in [
        (&one, "limit=1&offset=2"),
        (&one, "offset=2&limit=1"),
        (&two, "limit=1&offset=2"),
        (&stranger, "limit=1&offset=2"),
    ] {
        assert_eq!(digest_of(token, query).await, digest, "{query}");
    }
    assert_ne!(digest_of(&one, "limit=1&offset=3").await, digest);
    // A failure has a digest, too, and so has a remembered denial.
    worlds[0].simulator.fail_with(Some(StatusCode::BAD_GATEWAY));
    assert_ne!(digest_of(&one, "limit=4").await, digest);
    worlds[0].simulator.fail_with(None);
    worlds[0].simulator.deny(&two);
    let denied = [digest_of(&two, "limit=5").await, digest_of(&two, "limit=5").await, digest_of(&two, "limit=6").await];
    assert!(denied[0] == denied[1] && denied[1] != denied[2], "{denied:?}");
    // A bypassed request has none.
    assert_eq!(worlds[0].get_as(&one, &format!("{LIST}?limit=1&limit=1")).await.key(), None);
    let elsewhere = worlds[1].get(&format!("{LIST}?limit=1&offset=2")).await.key();
    assert_ne!(elsewhere.expect("a digest"), digest, "each process has its own digests");
}

#[tokio::test]
async fn a_failed_bypass_shows_both_reasons() {
    let (world, token) = world_with_grant("").await;
    let range = [("range", "bytes=0-1")];
    assert_eq!(ask(&world, &token, &range).await.cache_params(), "fwd=bypass; detail=range");
    world.simulator.reset_connections(true);
    let failed = ask(&world, &token, &range).await;
    assert_eq!(
        (failed.status(), failed.cache_params()),
        (StatusCode::BAD_GATEWAY, "fwd=bypass; detail=range; failure=broken")
    );
    // A request that is no bypass shows one reason.
    assert_eq!(ask(&world, &token, &[]).await.cache_params(), "fwd=miss; detail=broken");
}
