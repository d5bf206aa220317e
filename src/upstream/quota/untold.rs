//! What the other gateways of the fleet do not know of a limit yet. Pure: the time is an argument.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::catalogue::Quota;
use crate::request::caller::Caller;

/// A gateway tells that it uses a limit at most so often, or once in a window if that is longer.
const MIN_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum What {
    /// There is this limit.
    Learnt,
    /// Nothing must be sent for this time. `is_refusal`: because upstream has refused a call.
    Met { is_refusal: bool, wait: Duration },
    /// Calls that count are sent.
    Used,
}

/// What the other gateways do not know of a limit yet, and what they were told last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Untold {
    pub(super) is_changed: bool,
    pub(super) is_met: bool,
    pub(super) is_refusal: bool,
    /// When this gateway has last told that it uses the limit.
    pub(super) used: Option<Instant>,
    /// Until when it has told that nothing must be sent, and which caller has met the limit.
    pub(super) met: Option<(Instant, Caller)>,
}

/// How often a gateway tells that it uses a limit, at most.
pub(super) fn interval(quota: Quota) -> Duration {
    quota.window.max(MIN_INTERVAL)
}
