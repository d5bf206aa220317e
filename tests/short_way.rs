//! A head that has come before is answered by the short way, which says what the long one would say, to the same
//! callers, and counts it alike.

use crate::support::World;
use crate::support::line::Line;

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

#[tokio::test]
async fn a_head_that_was_a_hit_is_answered_by_the_short_way_on_any_connection() {
    let world = World::new().await;
    let head = world.head(LIST, &[]);
    let mut line = Line::to(&world).await;
    for (result, repeated) in [("fwd=miss", 0), ("; hit", 0), ("; hit", 1), ("; hit", 2)] {
        let answer = line.asks(&head).await;
        assert!(answer.status() == 200 && answer.header("cache-status").contains(result), "{answer:?}");
        assert_eq!(world.repeated(), repeated, "{result}");
    }
    assert!(Line::to(&world).await.asks(&head).await.status() == 200);
    assert_eq!((world.repeated(), world.upstream_calls()), (3, 1));
}
