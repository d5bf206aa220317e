//! Counts the answers that are given from one stored response, by their age.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Up to the ttl of the response, all bins have the same width. One bin has all later answers.
const BINS: usize = 13;
pub(super) const REGULAR: usize = BINS - 1;

/// How many answers were given from a stored response, by the time since its request was sent.
#[derive(Debug, Default)]
pub struct AnswerCounters {
    /// The width of a bin in milliseconds.
    width: u32,
    bins: [AtomicU32; BINS],
    /// The sum of the times of the answers in the last bin, in milliseconds.
    late: AtomicU64,
}

/// Answers whose times are spread evenly from `from` to `to`, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct AnswerBin {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) count: u32,
}

impl AnswerCounters {
    /// Counters for a response that stays fresh for `ttl` after its request was sent.
    pub fn new(ttl: Duration) -> Self {
        let width = u32::try_from(ttl.as_millis() / REGULAR as u128).unwrap_or(u32::MAX);
        Self { width: width.max(100), ..Self::default() }
    }

    /// Counts an answer, given this long after the request was sent.
    pub fn add(&self, since: Duration) {
        let millis = since.as_secs().saturating_mul(1000).saturating_add(u64::from(since.subsec_millis()));
        let bin = usize::try_from(millis / u64::from(self.width)).unwrap_or(REGULAR).min(REGULAR);
        self.bins[bin].fetch_add(1, Ordering::Relaxed);
        if bin == REGULAR {
            self.late.fetch_add(millis, Ordering::Relaxed);
        }
    }

    /// The number of answers so far.
    pub fn total(&self) -> u64 {
        self.bins.iter().map(|count| u64::from(count.load(Ordering::Relaxed))).sum()
    }

    /// The ttl in seconds.
    pub(super) fn ttl(&self) -> f64 {
        f64::from(self.width) * REGULAR as f64 / 1e3
    }

    /// The answers, by their time. `sent` is the time of the request in seconds.
    pub(super) fn by_time(&self, sent: f64) -> impl Iterator<Item = AnswerBin> {
        let width = f64::from(self.width) / 1e3;
        let all = self.bins.iter().enumerate().map(|(bin, count)| (bin, count.load(Ordering::Relaxed)));
        all.filter(|(_, count)| *count > 0).map(move |(bin, count)| {
            let (from, to) = if bin == REGULAR {
                let mean = self.late.load(Ordering::Relaxed) as f64 / 1e3 / f64::from(count);
                (mean, mean)
            } else {
                (bin as f64 * width, (bin + 1) as f64 * width)
            };
            AnswerBin { from: sent + from, to: sent + to, count }
        })
    }
}

impl AnswerBin {
    /// The same answers, if none was given after `end`.
    pub(super) fn until(self, end: f64) -> Self {
        Self { from: self.from.min(end), to: self.to.min(end), ..self }
    }

    /// The middle of the time span.
    pub(super) fn middle(&self) -> f64 {
        f64::midpoint(self.from, self.to)
    }

    /// The share that was given after `time`.
    pub(super) fn share_after(&self, time: f64) -> f64 {
        if self.to > self.from {
            ((self.to - time) / (self.to - self.from)).clamp(0.0, 1.0)
        } else if self.from > time {
            1.0
        } else {
            0.0
        }
    }
}
