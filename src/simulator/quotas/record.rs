//! The calls that a quota has accepted and refused, for benches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// The number of calls whose times are kept. About 40 bytes each.
const MAX_CALLS: usize = 100_000;

/// A call that a quota has counted or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedCall {
    pub at: Instant,
    /// The API, the user or the application. Empty for `ip`.
    pub name: Arc<str>,
    pub result: QuotaResult,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaResult {
    /// All quotas accepted the call, and this one counted it.
    Accepted,
    /// This quota was the first exceeded one.
    Refused,
    /// Others used this many calls.
    Elsewhere(u32),
}

/// What a quota has accepted and refused since it began.
#[derive(Clone, Debug, Default)]
pub struct QuotaRecord {
    /// Without those of others.
    pub accepted: u64,
    pub refused: u64,
    /// Calls of others that were accepted.
    pub elsewhere: u64,
    /// The last 100,000 calls, in order of time.
    pub calls: VecDeque<RecordedCall>,
}

impl QuotaRecord {
    pub(super) fn add(&mut self, call: RecordedCall) {
        match call.result {
            QuotaResult::Accepted => self.accepted += 1,
            QuotaResult::Refused => self.refused += 1,
            QuotaResult::Elsewhere(calls) => self.elsewhere += u64::from(calls),
        }
        if self.calls.len() == MAX_CALLS {
            self.calls.pop_front();
        }
        self.calls.push_back(call);
    }
}
