//! Time includes system suspend (invariant 12): after a forward jump of either clock, nothing from before is fresh. A
//! wall clock that is set back changes nothing.

use std::time::Duration;

use http::StatusCode;
use workspace_gateway::testing::clock::ManualClock;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::clocks::ShiftedClocks;
use crate::support::process::{Process, folder};
use crate::support::raw_client::RawClient;
use crate::support::{Http, PROJECT, World, with_fast_path};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

const HOUR: Duration = Duration::from_secs(3600);

type Move = fn(&ManualClock);

/// After each of these an hour has passed.
const JUMPS: [(&str, Move); 3] = [
    ("the wall clock alone", |clock| clock.advance_wall(HOUR)),
    ("the boot clock alone", |clock| clock.advance_boot(HOUR)),
    ("a suspension", |clock| clock.suspend(HOUR)),
];

/// After each of these no time has passed.
const NO_JUMPS: [(&str, Move); 2] = [
    ("the wall clock is set back", |clock| clock.set_wall_back(HOUR)),
    ("the wall clock drifts", |clock| clock.advance_wall(Duration::from_secs(20))),
];

/// Entries that live longer than grants, and the reverse.
const LASTING_ENTRIES: &str = "[cache]\nttl = \"1d\"\n[grants]\ngrant_ttl = \"30m\"\n";
const LASTING_GRANTS: &str = "[cache]\nttl = \"30m\"\n[grants]\ngrant_ttl = \"1d\"\n";

#[tokio::test]
async fn after_a_clock_jump_grants_are_lapsed_and_entries_stale() {
    for (settings, what) in [(LASTING_ENTRIES, "grants"), (LASTING_GRANTS, "entries")] {
        for (name, jump) in JUMPS {
            let world = World::with(&with_fast_path(true, settings)).await;
            let head = world.head(LIST, &[]);
            world.warm_head_cache(&head).await;
            let (calls, hits) = (world.upstream_calls(), world.fast_path_hits());
            jump(&world.clock);
            let response = RawClient::connect(&world).await.exchange(&head).await;
            assert!(response.header("cache-status").contains("fwd="), "{what}, {name}: {response:?}");
            assert_eq!((world.upstream_calls(), world.fast_path_hits()), (calls + 1, hits), "{what}, {name}");
        }
    }
}

#[tokio::test]
async fn the_age_of_a_response_includes_a_clock_jump() {
    for (name, jump) in JUMPS {
        let world = World::with("[cache]\nttl = \"1d\"\n[grants]\ngrant_ttl = \"1d\"\n").await;
        world.get(LIST).await;
        world.seconds_pass(5);
        jump(&world.clock);
        let hit = world.get(LIST).await;
        assert!(hit.is_hit() && hit.header("age") == "3605", "{name}: {hit:?}");
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_or_drifts_changes_nothing() {
    for (name, change) in NO_JUMPS {
        let world = World::with(&with_fast_path(true, "[grants]\nrenew_ahead = \"0s\"\n")).await;
        let head = world.head(LIST, &[]);
        world.warm_head_cache(&head).await;
        let calls = world.upstream_calls();
        for age in [1, 100, 299] {
            world.seconds_pass(if age == 1 {
                1
            } else if age == 100 {
                99
            } else {
                199
            });
            if age == 100 {
                change(&world.clock);
            }
            let hits = world.fast_path_hits();
            let response = RawClient::connect(&world).await.exchange(&head).await;
            assert_eq!(response.header("age"), age.to_string(), "{name}: {response:?}");
            assert_eq!((world.upstream_calls(), world.fast_path_hits()), (calls, hits + 1), "{name}");
        }
        // Entries do not live longer, either.
        world.seconds_pass(301);
        world.get(LIST).await;
        assert_eq!(world.upstream_calls(), calls + 1, "{name}");
    }
}

#[tokio::test]
async fn a_wall_clock_that_is_set_forward_again_counts_as_a_jump() {
    let world = World::new().await;
    world.get(LIST).await;
    world.clock.set_wall_back(HOUR);
    assert!(world.get(LIST).await.is_hit());
    world.clock.advance_wall(HOUR);
    assert!(!world.get(LIST).await.is_hit());
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn drift_counts_when_it_exceeds_thirty_seconds() {
    let world = World::new().await;
    world.get(LIST).await;
    for (drift, age) in [(15, "0"), (15, "0"), (1, "31"), (20, "31")] {
        world.clock.advance_wall(Duration::from_secs(drift));
        let hit = world.get(LIST).await;
        assert!(hit.is_hit() && hit.header("age") == age, "{drift} s, {age}: {hit:?}");
    }
}

#[tokio::test]
async fn after_a_clock_jump_denials_are_forgotten() {
    for (name, jump) in JUMPS {
        let world = World::new().await;
        let unknown = "0".repeat(40);
        for _ in 0..2 {
            assert_eq!(world.get_as(&unknown, LIST).await.status(), StatusCode::UNAUTHORIZED);
        }
        assert_eq!(world.upstream_calls(), 1, "{name}: the denial is remembered");
        jump(&world.clock);
        assert_eq!(world.get_as(&unknown, LIST).await.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(world.upstream_calls(), 2, "{name}");
    }
}

#[tokio::test]
async fn after_a_clock_jump_the_backoff_is_over() {
    const STALE: &str = "[cache]\nttl = \"1m\"\nstale_if_error = \"1d\"\nstale_while_revalidate = \"1s\"\n\
                         [grants]\ngrant_ttl = \"1d\"\n";
    for (name, jump) in JUMPS {
        let world = World::with(STALE).await;
        world.get(LIST).await;
        world.seconds_pass(120);
        world.simulator.throttle(Some(60));
        for _ in 0..2 {
            assert_eq!(world.get(LIST).await.status(), StatusCode::OK, "{name}");
        }
        let calls = world.upstream_calls();
        world.get(LIST).await;
        assert_eq!(world.upstream_calls(), calls, "{name}: the gateway backs off");
        jump(&world.clock);
        world.get(LIST).await;
        assert!(world.upstream_calls() > calls, "{name}");
    }
}

/// Shifts the system clocks that the running process sees, one by one.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[tokio::test]
async fn the_process_notices_jumps_of_each_system_clock() {
    let folder = folder("clocks");
    let file = folder.join("gateway.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n[cache]\nttl = \"30m\"\n[grants]\ngrant_ttl = \"30m\"\n").unwrap();
    let clocks = ShiftedClocks::new(&folder);
    let simulator = Simulator::start().await.unwrap();
    let gateway = Process::start_with_launcher(&["env"], &simulator, &file, &clocks.environment()).await;
    let (http, token, url) = (Http::new(), simulator.token(PROJECT), gateway.proxy.clone() + LIST);
    let url = url.replace("PROJECT", PROJECT);
    let headers = [("x-auth-token", token.as_str())];
    let get = || http.send(http::Method::GET, &url, &headers, "");
    get().await;
    let mut calls = 1;
    for ((boot, wall), is_hit) in [
        ((0, 0), true),
        ((0, 20), true),
        ((0, -3600), true),
        ((0, 0), false),
        ((0, 3600), false),
        ((3600, 3600), false),
        ((7200, 7200), false),
    ] {
        clocks.shift(boot, wall);
        for is_hit in [is_hit, true, true] {
            let response = get().await;
            calls += usize::from(!is_hit);
            assert_eq!(response.is_hit(), is_hit, "{boot} s, {wall} s: {response:?}");
            assert_eq!(simulator.request_count(), calls, "{boot} s, {wall} s");
        }
    }
}
