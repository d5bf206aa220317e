//! The short way under attack: whatever is sent, and however it is cut, no byte of one thing is taken for another, and
//! every request has its own answer, in order.

use crate::support::line::{Heard, Line};
use crate::support::{PROJECT, World};

const LIST: &str = "/v2/PROJECT/products?os_type=Linux";

/// A world in which a head is known.
async fn knowing() -> (World, String) {
    let world = World::new().await;
    let known = world.head(LIST, &[]);
    world.learns(&known).await;
    (world, known)
}

fn is_hit(answer: &Heard) -> bool {
    answer.status() == 200 && answer.header("cache-status").contains("; hit")
}

#[tokio::test]
async fn blank_lines_before_a_request_are_never_answered_for_it() {
    for blank in ["\r\n\r\n", "\n\n", "\r\n", "\n\r\n", "\r\n\r\n\r\n\r\n"] {
        let (world, known) = knowing().await;
        let mut line = Line::to(&world).await;
        for _ in 0..3 {
            line.says(blank).await;
            line.hears_nothing().await;
            assert!(is_hit(&line.asks(&known).await));
        }
        // Whoever sends but that has asked nothing, and is shown nothing.
        let mut other = Line::to(&world).await;
        other.says(blank).await;
        other.hears_nothing().await;
    }
}
