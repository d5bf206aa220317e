//! Time includes suspension: whichever clock alone runs ahead, nothing from before counts as fresh, and a wall clock that is
//! set back changes nothing.

use std::time::Duration;

use http::StatusCode;
use workspace_gateway::testing::clock::ManualClock;
use workspace_gateway::testing::simulator::Simulator;

use crate::support::clocks::ShiftedClocks;
use crate::support::line::Line;
use crate::support::process::{Process, folder};
use crate::support::{Http, PROJECT, World, with_fast_path};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

const HOUR: Duration = Duration::from_secs(3600);

type Move = fn(&ManualClock);

/// By each of these an hour has passed.
const JUMPS: [(&str, Move); 3] = [
    ("the wall clock alone", |clock| clock.advance_wall(HOUR)),
    ("the boot clock alone", |clock| clock.advance_boot(HOUR)),
    ("a suspension", |clock| clock.suspend(HOUR)),
];

/// None of these lets any time pass.
const NO_JUMPS: [(&str, Move); 2] = [
    ("the wall clock is set back", |clock| clock.set_wall_back(HOUR)),
    ("the wall clock drifts", |clock| clock.advance_wall(Duration::from_secs(20))),
];

/// Entries that outlive every grant, and the other way round.
const LASTING_ENTRIES: &str = "[cache]\nttl = \"1d\"\n[grants]\ngrant_ttl = \"30m\"\n";
const LASTING_GRANTS: &str = "[cache]\nttl = \"30m\"\n[grants]\ngrant_ttl = \"1d\"\n";

#[tokio::test]
async fn after_a_jump_grants_are_lapsed_and_entries_stale_and_no_known_head_is_answered() {
    for (settings, what) in [(LASTING_ENTRIES, "grants"), (LASTING_GRANTS, "entries")] {
        for (name, jump) in JUMPS {
            let world = World::with(&with_fast_path(true, settings)).await;
            let head = world.head(LIST, &[]);
            world.learns(&head).await;
            let (calls, repeated) = (world.upstream_calls(), world.fast_path_hits());
            jump(&world.clock);
            let answer = Line::to(&world).await.asks(&head).await;
            assert!(answer.header("cache-status").contains("fwd="), "{what}, {name}: {answer:?}");
            assert_eq!((world.upstream_calls(), world.fast_path_hits()), (calls + 1, repeated), "{what}, {name}");
        }
    }
}

#[tokio::test]
async fn the_age_of_an_answer_includes_a_jump() {
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
        let world = World::with(&with_fast_path(true, "")).await;
        let head = world.head(LIST, &[]);
        world.learns(&head).await;
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
            let repeated = world.fast_path_hits();
            let answer = Line::to(&world).await.asks(&head).await;
            assert_eq!(answer.header("age"), age.to_string(), "{name}: {answer:?}");
            assert_eq!((world.upstream_calls(), world.fast_path_hits()), (calls, repeated + 1), "{name}");
        }
        // Nothing lives longer, either.
        world.seconds_pass(301);
        world.get(LIST).await;
        assert_eq!(world.upstream_calls(), calls + 1, "{name}");
    }
}

#[tokio::test]
async fn a_wall_clock_that_comes_back_from_a_step_back_counts_as_a_jump() {
    let world = World::new().await;
    world.get(LIST).await;
    world.clock.set_wall_back(HOUR);
    assert!(world.get(LIST).await.is_hit());
    world.clock.advance_wall(HOUR);
    assert!(!world.get(LIST).await.is_hit());
    assert_eq!(world.upstream_calls(), 2);
}

#[tokio::test]
async fn slow_drift_counts_once_it_is_more_than_thirty_seconds() {
    let world = World::new().await;
    world.get(LIST).await;
    for (drift, age) in [(15, "0"), (15, "0"), (1, "31"), (20, "31")] {
        world.clock.advance_wall(Duration::from_secs(drift));
        let hit = world.get(LIST).await;
        assert!(hit.is_hit() && hit.header("age") == age, "{drift} s, {age}: {hit:?}");
    }
}

#[tokio::test]
async fn after_a_jump_no_denial_is_remembered() {
    for (name, jump) in JUMPS {
        let world = World::new().await;
        let unknown = "0".repeat(40);
        for _ in 0..2 {
            assert_eq!(world.get_as(&unknown, LIST).await.status(), StatusCode::UNAUTHORIZED);
        }
        assert_eq!(world.upstream_calls(), 1, "{name}: it is remembered");
        jump(&world.clock);
        assert_eq!(world.get_as(&unknown, LIST).await.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(world.upstream_calls(), 2, "{name}");
    }
}

#[tokio::test]
async fn after_a_jump_the_backoff_is_over() {
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

/// The machine's own clocks, moved one by one below the running program.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[tokio::test]
async fn the_program_sees_each_clock_of_the_machine_jump() {
    let folder = folder("clocks");
    let file = folder.join("gateway.toml");
    std::fs::write(&file, "[log]\nformat = \"json\"\n[cache]\nttl = \"30m\"\n[grants]\ngrant_ttl = \"30m\"\n").unwrap();
    let clocks = ShiftedClocks::new(&folder);
    let simulator = Simulator::start().await.unwrap();
    let gateway = Process::start_under(&["env"], &simulator, &file, &clocks.environment()).await;
    let (http, token, url) = (Http::new(), simulator.token(PROJECT), gateway.proxy.clone() + LIST);
    let url = url.replace("PROJECT", PROJECT);
    let headers = [("x-auth-token", token.as_str())];
    let asks = || http.send(http::Method::GET, &url, &headers, "");
    asks().await;
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
            let answer = asks().await;
            calls += usize::from(!is_hit);
            assert_eq!(answer.is_hit(), is_hit, "{boot} s, {wall} s: {answer:?}");
            assert_eq!(simulator.request_count(), calls, "{boot} s, {wall} s");
        }
    }
}
