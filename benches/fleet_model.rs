//! Searches the model of how gateways tell each other grants and denials (`tests/fleet_model`) within larger bounds
//! than the tests do. It fails if the protocol is violated, or if nothing shows that a rule is needed.
//!
//! `cargo bench --bench fleet_model` leaves out each rule in turn and searches `QUICK`: 33 seconds of a core. With
//! `-- --large` it searches the bounds of `LARGE`, too. They have between 4 and about 30 million states, which take
//! minutes and some GB of memory.

#[path = "../tests/fleet_model/mod.rs"]
mod model;

use model::bounds::{EXCLUDED, NEEDED, NEEDED_LARGE, NOT_NEEDED, bounds, copied, must_be_violated, must_hold};
use model::rules::Rules;
use model::steps::Bounds;

const ALL_FAULTS: &str = "fescrltugq";

/// 325,690 states.
const QUICK: Bounds = copied(2, 2, 1, ALL_FAULTS);

/// 4,109,208 states, 7,641,351, 17,832,542, 15,335,208, and about 30 million.
const LARGE: [Bounds; 5] = [
    Bounds { breaks: 1, has_services: true, ..QUICK },
    copied(3, 2, 1, ALL_FAULTS),
    bounds(2, 3, 2, "fl"),
    copied(2, 2, 2, ALL_FAULTS),
    copied(2, 3, 1, ALL_FAULTS),
];

fn main() {
    for (name, bounds) in &EXCLUDED {
        must_be_violated(name, bounds, Rules::protocol());
    }
    for (rule, bounds) in NEEDED.iter().chain(&NEEDED_LARGE) {
        must_be_violated(&format!("without {rule:?}"), bounds, Rules::protocol().without(*rule));
    }
    for (rule, reason) in &NOT_NEEDED {
        println!("{rule:?} has another reason: {reason}");
        must_hold(&format!("without {rule:?}"), &QUICK, Rules::protocol().without(*rule));
    }
    must_hold("the protocol with WentBack", &QUICK, Rules::everything());
    must_hold("the protocol", &QUICK, Rules::protocol());
    if std::env::args().any(|argument| argument == "--large") {
        for bounds in &LARGE {
            must_hold("the protocol", bounds, Rules::protocol());
        }
    }
}
