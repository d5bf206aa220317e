//! What paces the calls of a gate. The schedule knows only the trait, so that its tests need no ledger.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use crate::upstream::quota::{Draw, Hold, LimitKind, LockedLimits};

/// What paces calls: the quota ledger.
pub(super) trait Pace {
    fn now(&self) -> Instant;

    /// Which limit of a kind holds a call back, if `ahead` other calls are sent before it. `None` if it may be sent now.
    fn hold(&self, draw: &Draw, kind: LimitKind, ahead: u32) -> Option<Hold>;

    /// Whether a limit of all callers may hold back the call.
    fn is_shared(&self, draw: &Draw) -> bool;

    /// Counts a call that is sent now.
    fn take(&self, draw: &Draw);
}

/// The limits of one service at one time. The other gate waits until this is dropped.
pub(super) struct ServicePace<'g> {
    pub(super) limits: RefCell<LockedLimits<'g>>,
    pub(super) now: Instant,
    /// Set if lists may be sent earlier, because a relayed request has been sent that they have left room for.
    pub(super) frees_lists: Cell<bool>,
}

impl Pace for ServicePace<'_> {
    fn now(&self) -> Instant {
        self.now
    }

    fn hold(&self, draw: &Draw, kind: LimitKind, ahead: u32) -> Option<Hold> {
        self.limits.borrow_mut().hold_call(draw, kind, ahead, self.now)
    }

    fn is_shared(&self, draw: &Draw) -> bool {
        self.limits.borrow_mut().has_shared_limit(draw, self.now)
    }

    fn take(&self, draw: &Draw) {
        if self.limits.borrow_mut().take(draw, self.now) {
            self.frees_lists.set(true);
        }
    }
}
