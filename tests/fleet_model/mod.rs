//! A model of how the gateways of a fleet tell each other grants and denials. It does not run the gateway: it is the
//! protocol as a state machine, and a search of all orders in which its steps may happen. `src/fleet` and
//! `src/cache/grants.rs` implement the same rules.
//!
//! # The model
//!
//! There is one caller in one scope. Gateways send calls, which upstream answers well or denies (with 403, for the
//! scope, or with 401, for the service). An engine has the control hash, the record of the grant, and the log. Each
//! arrow between a gateway and the engine takes two steps where the order can matter: look-ups, polls and stores are
//! answered at one moment and read at a later one. A store may arrive after its link broke.
//!
//! The faults are: a failover to a copy that lacks the last writes, or a backup that is restored, which are the same;
//! a failover after which gateways stay linked to the old master; an engine that restarts empty; the eviction of the
//! control hash, of the record or of the log; a log that is trimmed; voids that are removed because there are too
//! many; an engine that accepts no writes; links that break, for a moment or for long; and gateways that crash. A
//! gateway that gets another secret is the same as one that crashes. A gateway that is suspended, or whose engine
//! hangs, is one that takes no step.
//!
//! # Time
//!
//! There is no clock. A proof is older than a denial if its call was sent before the denial arrived; at the gateway of
//! the denial, if it was sent before the denied call. A denial that was told becomes *due* in a step of its own, which
//! means that `fleet.sync` has passed. This step ends the sync of each gateway whose last poll was answered before the
//! denial was told (rule 10 by its clock), and no poll that is under way then begins it again. So a gateway that is in
//! sync when a denial is due has polled after it was told. A gateway settles when each other one is linked, and has
//! told again what it knows, or is *cut off*: it takes longer than `settle`.
//!
//! # The property
//!
//! No gateway in sync shows answers on a grant, own or borrowed, that is older than a denial that is due at its engine,
//! or that was due before a failover and is known to a gateway that is about to link. While the engine is full, a
//! denial that waits for it is due, too. A gateway out of sync shows nothing on a borrowed grant; shown as lapsed,
//! after a failed call of the caller's own, it is invariant 9 of `src/lib.rs`, and not part of the model.
//!
//! # Not in the model
//!
//! Other callers and scopes; pending notices beyond their limit, which become one void of all grants; the two hours
//! after which a gateway forgets denials; purges, hints and entries; readers that see the control hash and the log at
//! two moments (read the hash first: then the log has no fewer entries than the hash says). Telling again on a new link
//! is one step.
//!
//! # What the property excludes
//!
//! `bounds::EXCLUDED` has a search for each: denials that only a lost master, and gateways that crashed or
//! are cut off, know; and denials of a caller without a grant at its gateway, after the record was evicted.
//!
//! # Bounds
//!
//! `tests/fleet_model.rs` searches small bounds, in a debug build. `benches/fleet_model.rs` searches larger ones. Both
//! run what `bounds.rs` lists, and print the shortest trace of each violation.

pub(crate) mod bounds;
mod engine;
mod faults;
mod links;
mod property;
pub(crate) mod rules;
pub(crate) mod search;
mod state;
pub(crate) mod steps;
