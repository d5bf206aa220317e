//! The protocol by which gateways tell each other grants and denials, searched in all orders within small bounds.
//! `fleet_model/mod.rs` describes the model. `cargo test --test fleet_model -- --nocapture` prints the traces, and
//! `cargo bench --bench fleet_model` searches larger bounds.

#[path = "fleet_model/mod.rs"]
mod model;

use model::bounds::{EXCLUDED, NEEDED, NEEDED_LARGE, NOT_NEEDED, bounds, copied, must_be_violated, must_hold};
use model::rules::{Rule, Rules};
use model::steps::Bounds;

#[test]
fn no_gateway_in_sync_shows_answers_on_a_grant_older_than_a_told_denial() {
    let without_faults = Bounds { has_services: true, ..bounds(2, 2, 0, "") };
    for bounds in [without_faults, bounds(2, 2, 1, "gltq"), copied(2, 2, 1, "cefrsu")] {
        must_hold("the protocol", &bounds, Rules::protocol());
    }
}

#[test]
fn without_a_rule_the_protocol_is_violated() {
    for (rule, bounds) in &NEEDED {
        must_be_violated(&format!("without {rule:?}"), bounds, Rules::protocol().without(*rule));
    }
}

#[test]
fn each_rule_of_the_protocol_is_listed_once() {
    let needed = NEEDED.iter().chain(&NEEDED_LARGE).map(|(rule, _)| *rule);
    let listed: Vec<Rule> = needed.chain(NOT_NEEDED.iter().map(|(rule, _)| *rule)).collect();
    for rule in Rule::ALL {
        let times = listed.iter().filter(|listed| **listed == rule).count();
        assert_eq!(times, usize::from(rule != Rule::WentBack), "{rule:?}");
    }
}

#[test]
fn what_the_promise_excludes_does_happen() {
    for (name, bounds) in &EXCLUDED {
        must_be_violated(name, bounds, Rules::protocol());
    }
}
