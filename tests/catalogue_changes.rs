//! A catalogue that changes while the gateway has lists of it: when responses are outdated, and for how long.

use std::time::Duration;

use http::HeaderMap;
use workspace_gateway::testing::simulator::ChangeUnit;

use crate::support::{PROJECT, WAIT_FOR_UPSTREAM, World};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";
const TTL: Duration = Duration::from_secs(60);
/// The smallest step of the clock.
const TICK: Duration = Duration::from_nanos(1);

#[tokio::test]
async fn a_response_from_memory_is_outdated_from_the_change_until_the_refresh() {
    let world = World::with(&format!("[cache]\nttl = \"60s\"\n{WAIT_FOR_UPSTREAM}")).await;
    let target = LIST.replace("PROJECT", PROJECT);
    let upstream_at = |at| world.simulator.product_list_at(&world.token, &target, &HeaderMap::new(), at).unwrap();
    world.simulator.change_catalogue_every(&ChangeUnit::List("ListProducts".to_owned()), Some(TTL), 1);
    let (mut outdated, mut current) = (0, 0);
    for entry in 0..30 {
        let stored = world.get(LIST).await;
        assert!(!stored.is_hit(), "{entry}: {stored:?}");
        assert_eq!(stored.body(), &upstream_at(world.now()), "{entry}");
        let expiry = world.now() + TTL;
        match world.simulator.next_change(&target, world.now()).filter(|change| *change < expiry) {
            None => current += 1,
            Some(change) => {
                outdated += 1;
                world.clock.advance(change - world.now() - TICK);
                let before = world.get(LIST).await;
                assert!(before.is_hit(), "{entry}: {before:?}");
                assert_eq!(before.body(), &upstream_at(world.now()), "{entry}");

                world.clock.advance(TICK);
                let after = world.get(LIST).await;
                assert!(after.is_hit(), "{entry}: {after:?}");
                assert_ne!(after.body(), &upstream_at(world.now()), "{entry}");
                assert_eq!(after.body(), &upstream_at(change - TICK), "{entry}");
            }
        }
        // The last moment of the entry: it is as old as its TTL allows.
        world.clock.advance(expiry - world.now() - TICK);
        let last = world.get(LIST).await;
        assert!(last.is_hit(), "{entry}: {last:?}");
        assert_eq!(last.body(), stored.body(), "{entry}");
        world.clock.advance(TICK);
    }
    assert!(outdated > 10 && current > 5, "{outdated} entries were outdated before their end, {current} were not");
}
