//! What is searched, and what the searches must find.

use super::rules::Rule::{self, *};
use super::rules::Rules;
use super::search::{Found, search};
use super::steps::{Bounds, Promise};

pub(crate) const fn bounds(gateways: usize, calls: u8, faults: u8, kinds: &'static str) -> Bounds {
    Bounds { gateways, calls, faults, breaks: 0, copies: 0, has_services: false, kinds, promise: Promise::Told }
}

/// With one copy, in time, of what the master has.
pub(crate) const fn copied(gateways: usize, calls: u8, faults: u8, kinds: &'static str) -> Bounds {
    Bounds { copies: 1, ..bounds(gateways, calls, faults, kinds) }
}

/// With one link that breaks.
pub(crate) const fn broken(gateways: usize, calls: u8, faults: u8, kinds: &'static str) -> Bounds {
    Bounds { breaks: 1, ..bounds(gateways, calls, faults, kinds) }
}

/// Within these bounds a violation is found if the protocol lacks the rule. Debug builds search them in seconds.
pub(crate) const NEEDED: [(Rule, Bounds); 37] = [
    (DrawsBeforeCall, bounds(2, 2, 0, "")),
    (ReadsIncarnation, bounds(2, 2, 1, "c")),
    (ReadsVoidOfScope, bounds(2, 2, 0, "")),
    (ReadsVoidOfService, Bounds { has_services: true, ..bounds(2, 2, 0, "") }),
    (RaisesFloor, bounds(2, 2, 1, "q")),
    (TicketBoundToLink, bounds(2, 2, 1, "f")),
    (DeniesAtOnce, bounds(2, 2, 0, "")),
    (DeniesEarlierCalls, bounds(2, 2, 0, "")),
    (KeepsPending, broken(2, 2, 0, "")),
    (TellsVoid, bounds(2, 2, 0, "")),
    (TellsStrangersOfRecord, bounds(2, 2, 0, "")),
    (TellsStrangersOfLease, bounds(2, 2, 0, "")),
    (ReadsLog, bounds(2, 2, 0, "")),
    (ReadsFromBeginning, broken(2, 2, 0, "")),
    (EndsOwn, bounds(2, 2, 0, "")),
    (EndsBorrowed, bounds(2, 2, 0, "")),
    (MarksLate, bounds(2, 2, 0, "")),
    (IgnoresTickets, bounds(2, 2, 1, "f")),
    (ChecksApplied, bounds(2, 2, 0, "")),
    (ChecksPending, bounds(2, 2, 0, "")),
    (TellsAgain, copied(2, 2, 1, "f")),
    (TellsAgainRead, copied(2, 2, 1, "f")),
    (TellsAgainFirst, copied(2, 2, 1, "f")),
    (BorrowedNeedsSync, bounds(2, 2, 0, "")),
    (CountsFromSending, bounds(2, 2, 0, "")),
    (SyncExpires, bounds(2, 2, 0, "")),
    (NeedsWrite, bounds(2, 2, 1, "u")),
    (Settles, bounds(2, 2, 1, "f")),
    (AsksSentinels, bounds(2, 2, 1, "s")),
    (GapEndsOwn, bounds(2, 2, 1, "l")),
    (GapEndsBorrowed, bounds(2, 2, 1, "l")),
    (GapMarksLate, bounds(2, 2, 1, "l")),
    (GapEndsLookUps, bounds(2, 2, 1, "l")),
    (NumbersShowGap, bounds(2, 2, 1, "l")),
    (IncarnationShowsGap, bounds(2, 2, 2, "el")),
    (IncarnationEndsLink, bounds(2, 2, 2, "cl")),
    (IncarnationEndsBorrowed, bounds(2, 2, 2, "el")),
];

/// And these, which take an optimised build.
pub(crate) const NEEDED_LARGE: [(Rule, Bounds); 3] = [
    (TellsAgainAll, copied(2, 3, 1, "f")),
    (FirstLinkIsGap, bounds(2, 3, 2, "gl")),
    (LastEntryShowsGap, bounds(2, 3, 2, "fl")),
];

/// Nothing is violated without these, within all bounds that were searched. They have other reasons.
pub(crate) const NOT_NEEDED: [(Rule, &str); 3] = [
    (StoresInIncarnation, "a record that nobody can use does not replace one that counts"),
    (StoresIfLatest, "a later proof lasts longer"),
    (AppliesOnce, "a denial that is read again does not end newer grants"),
];

/// What the property excludes.
pub(crate) const EXCLUDED: [(&str, Bounds); 3] = [
    (
        "a denial that only a lost master and a gateway that is cut off know",
        Bounds { promise: Promise::Lost, ..bounds(2, 2, 1, "f") },
    ),
    (
        "a denial that only a lost master and a crashed gateway know",
        Bounds { promise: Promise::Crashed, ..bounds(2, 2, 2, "fg") },
    ),
    (
        "a denial of a caller without a grant at its gateway, after the record was evicted",
        Bounds { promise: Promise::Strangers, ..bounds(2, 2, 1, "r") },
    ),
];

/// Searches, and prints what was found.
pub(crate) fn report(name: &str, bounds: &Bounds, rules: Rules) -> Found {
    let found = search(bounds, rules);
    let end = if found.trace.is_some() { "VIOLATED" } else { "holds" };
    println!("{name}: {} states, {} steps deep: {end}", found.states, found.depth);
    for line in found.trace.iter().flatten() {
        println!("    {line}");
    }
    found
}

/// Fails unless the protocol holds.
pub(crate) fn must_hold(name: &str, bounds: &Bounds, rules: Rules) {
    let found = report(&format!("{name} {bounds:?}"), bounds, rules);
    assert!(found.trace.is_none(), "{name}: violated within {bounds:?}");
}

/// Fails unless a violation is found.
pub(crate) fn must_be_violated(name: &str, bounds: &Bounds, rules: Rules) {
    let found = report(name, bounds, rules);
    assert!(found.trace.is_some(), "{name}: not violated within {bounds:?}");
}
