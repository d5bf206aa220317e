//! What must hold in each state.

use super::rules::{Rule, Rules};
use super::state::{Denials, Gateway, Link, State};
use super::steps::{Bounds, Promise};

/// The gateway that shows an answer which it must not show, if there is one, and whether its grant is borrowed.
pub(crate) fn violation(state: &State, bounds: &Bounds, rules: Rules) -> Option<(usize, bool)> {
    let all = &state.gateways[..bounds.gateways];
    // A gateway whose link is broken, but not for long, tells what it knows before others have settled.
    let about_to_tell = all.iter().filter(|gateway| gateway.link == Link::Broken);
    let will_tell: Denials = about_to_tell.fold(0, |known, gateway| known | gateway.known);
    let has_to_wait = |pending: Denials, gateway: &Gateway| {
        if gateway.link == Link::Master { pending | gateway.pending & !gateway.strangers } else { pending }
    };
    let untold = if state.is_full_for_long { all.iter().fold(0, has_to_wait) } else { 0 };
    let lost = if matches!(bounds.promise, Promise::Lost | Promise::Crashed) { state.was_due } else { 0 };
    let due = state.master.due | untold | lost;
    let will_tell = state.was_due & will_tell & !state.master.told;
    for (place, gateway) in all.iter().enumerate() {
        let due_here = match (gateway.link, state.isolated) {
            (Link::Isolated, Some(isolated)) => due | isolated.due,
            (Link::Master, _) => due | will_tell,
            _ => due,
        };
        let is_in_sync = gateway.is_in_sync();
        if is_in_sync && gateway.own.is_some_and(|own| own.old & due_here != 0) {
            return Some((place, false));
        }
        let shows_borrowed = is_in_sync || !rules.has(Rule::BorrowedNeedsSync);
        if shows_borrowed && gateway.borrowed.is_some_and(|borrowed| borrowed.old & due_here != 0) {
            return Some((place, true));
        }
    }
    None
}
