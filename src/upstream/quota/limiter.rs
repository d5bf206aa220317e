//! One limit: when the next call may be sent so that upstream accepts it. Pure: the time is an argument.
//!
//! A sliding log of send times: no window of the quota's length has more calls than the quota allows. That is right for
//! upstream's fixed windows, whenever they begin, and for sliding ones. Calls need not be spread over the window.
//!
//! Upstream counts a call when it arrives. So that calls of two windows do not arrive in one because some are delivered
//! faster, a call counts for a little longer than the window ([`Limiter::span`]).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Share;
use crate::catalogue::Quota;
use crate::upstream::key_breaker::ProcessId;

/// Calls that are sent within this part of a window have one place in the log, so that the log is small.
const PLACES: u32 = 512;
/// How much longer than the window a call counts: this part of the window, and at most [`MAX_MARGIN`].
const MARGIN_DIVISOR: u32 = 50;
const MAX_MARGIN: Duration = Duration::from_millis(100);
/// Of a shared limit, unknown callers get at most this part.
const UNKNOWN_DIVISOR: u32 = 4;
/// The most other gateways that share a quota.
const MAX_USERS: usize = 256;

/// Calls that were sent at nearly the same time.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// When the first and the last of them were sent.
    first: Instant,
    last: Instant,
    /// By [`Share`].
    calls: [u32; Share::COUNT],
}

#[derive(Clone, Debug)]
pub(super) struct Limiter {
    quota: Quota,
    /// The calls that count, oldest first.
    log: VecDeque<Place>,
    /// The sums of the log, by [`Share`].
    calls: [u32; Share::COUNT],
    /// Nothing is sent before this time. Others use the same quota, or upstream has said so.
    blocked_until: Option<Instant>,
    /// The other gateways of the fleet that use the quota, and until when they are thought to do so.
    users: Vec<(ProcessId, Instant)>,
}

impl Limiter {
    pub(super) fn new(quota: Quota) -> Self {
        Self { quota, log: VecDeque::new(), calls: [0; Share::COUNT], blocked_until: None, users: Vec::new() }
    }

    pub(super) fn quota(&self) -> Quota {
        self.quota
    }

    /// The calls in the log count for another quota from now on.
    pub(super) fn set_quota(&mut self, quota: Quota) {
        self.quota = quota;
    }

    /// How many calls this gateway may send in a window: an equal part for each gateway that uses the quota.
    fn calls(&self) -> u32 {
        let gateways = u32::try_from(self.users.len()).unwrap_or(u32::MAX).saturating_add(1);
        (self.quota.calls / gateways).max(1)
    }

    /// Another gateway uses the quota.
    pub(super) fn add_user(&mut self, process: ProcessId, until: Instant) {
        if let Some((_, known)) = self.users.iter_mut().find(|(known, _)| *known == process) {
            *known = until.max(*known);
        } else if self.users.len() < MAX_USERS {
            self.users.push((process, until));
        }
    }

    /// How long a call counts.
    fn span(&self) -> Duration {
        self.quota.window + (self.quota.window / MARGIN_DIVISOR).min(MAX_MARGIN)
    }

    /// Removes the calls that do not count any more.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(place) = self.log.front().filter(|place| now >= place.last + self.span()) {
            for (sum, calls) in self.calls.iter_mut().zip(place.calls) {
                *sum -= calls;
            }
            self.log.pop_front();
        }
        self.blocked_until = self.blocked_until.filter(|until| *until > now);
        self.users.retain(|(_, until)| *until > now);
    }

    /// Counts a call. Its time must not be before that of an earlier one.
    pub(super) fn add(&mut self, sent: Instant, share: Share) {
        let length = self.quota.window / PLACES;
        self.calls[share as usize] += 1;
        match self.log.back_mut() {
            Some(place) if sent.saturating_duration_since(place.first) <= length => {
                place.last = place.last.max(sent);
                place.calls[share as usize] += 1;
            }
            _ => {
                let mut calls = [0; Share::COUNT];
                calls[share as usize] = 1;
                self.log.push_back(Place { first: sent, last: sent, calls });
            }
        }
    }

    /// A call was not sent after all, or upstream has refused it because of this limit, so it does not count.
    pub(super) fn take_back(&mut self, sent: Instant, share: Share) {
        let place = self.log.iter_mut().rev().find(|place| place.first <= sent && place.calls[share as usize] > 0);
        if let Some(place) = place {
            place.calls[share as usize] -= 1;
            self.calls[share as usize] -= 1;
        }
    }

    /// Sends nothing for this time, or for one window if that is shorter. So one call in each window is tried.
    pub(super) fn block(&mut self, wait: Duration, now: Instant) {
        let until = now + wait.min(self.span());
        self.blocked_until = Some(self.blocked_until.map_or(until, |blocked| blocked.max(until)));
    }

    /// Upstream has refused a call although the log has room for more: others use the same quota, or calls of an earlier
    /// process count. All that is known is that one window later everything has expired.
    pub(super) fn refused_unexpectedly(&mut self, now: Instant) -> bool {
        let is_unexpected = self.used() < self.quota.calls;
        if is_unexpected {
            self.block(self.span(), now);
        }
        is_unexpected
    }

    /// The number of calls that count.
    pub(super) fn used(&self) -> u32 {
        self.calls.iter().sum()
    }

    /// How many calls may be sent now.
    pub(super) fn remaining(&self, now: Instant) -> u32 {
        let is_blocked = self.blocked_until.is_some_and(|until| until > now);
        if is_blocked { 0 } else { self.calls().saturating_sub(self.used()) }
    }

    /// When a call may be sent if `ahead` others are sent first. It is `now` or earlier if it may be sent now.
    pub(super) fn free_at(&self, ahead: u32, now: Instant) -> Instant {
        self.free_at_for(self.calls(), self.used(), |place| place.calls.iter().sum(), ahead, now)
    }

    /// The same for a call of an unknown caller, if the limit is shared.
    pub(super) fn free_at_for_unknown(&self, ahead: u32, now: Instant) -> Instant {
        let most = (self.calls() / UNKNOWN_DIVISOR).max(1);
        let share = self.free_at_of(Share::Unknown, most, ahead, now);
        share.max(self.free_at(ahead, now))
    }

    /// The same for a relayed request while product lists wait: relayed requests get at most half.
    pub(super) fn free_at_for_relayed(&self, ahead: u32, now: Instant) -> Instant {
        let share = self.free_at_of(Share::Relayed, self.most_relayed(), ahead, now);
        share.max(self.free_at(ahead, now))
    }

    /// The same for a product list while relayed requests wait: lists leave them their half.
    pub(super) fn free_at_for_lists(&self, ahead: u32, now: Instant) -> Instant {
        let most = self.calls().saturating_sub(self.most_relayed()).max(1);
        let lists = |calls: &[u32; Share::COUNT]| calls[Share::Known as usize] + calls[Share::Unknown as usize];
        self.free_at_for(most, lists(&self.calls), |place| lists(&place.calls), ahead, now)
    }

    fn most_relayed(&self) -> u32 {
        (self.calls() / 2).max(1)
    }

    /// The same, if a share may have at most so many calls.
    fn free_at_of(&self, share: Share, most: u32, ahead: u32, now: Instant) -> Instant {
        let used = self.calls[share as usize];
        self.free_at_for(most, used, |place| place.calls[share as usize], ahead, now)
    }

    /// The same, if at most so many of the counted calls may be in a window.
    fn free_at_for(&self, most: u32, used: u32, counted: impl Fn(&Place) -> u32, ahead: u32, now: Instant) -> Instant {
        let start = self.blocked_until.map_or(now, |until| until.max(now));
        // The calls in the log, and then those ahead, are numbered from 1. This one can be sent when a certain one of
        // them has expired, and each of those ahead when the one `most` numbers before it has expired.
        let Some(number) = used.saturating_add(ahead).saturating_add(1).checked_sub(most).filter(|number| *number > 0)
        else {
            return start;
        };
        let windows = number.saturating_sub(used).div_ceil(most);
        let mut counted_so_far = 0;
        let place = number.checked_sub(windows * most).filter(|number| *number > 0).and_then(|number| {
            self.log.iter().find(|place| {
                counted_so_far += counted(place);
                counted_so_far >= number
            })
        });
        let first = place.map_or(start, |place| (place.last + self.span()).max(start));
        first + self.span() * windows
    }
}
