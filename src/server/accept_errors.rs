//! Accept errors: all are counted, and at most one line per minute is logged.

use std::io;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::time::Instant;

use crate::telemetry::metrics::Metrics;

/// The minimum time between two log lines. Without free file descriptors, there are thousands of errors per minute.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct AcceptErrors {
    listener: &'static str,
    counter: IntCounter,
    /// Errors since the last log line.
    unlogged: u64,
    logged_at: Option<Instant>,
}

impl AcceptErrors {
    pub(super) fn new(listener: &'static str, metrics: &Metrics) -> Self {
        let counter = metrics.accept_errors.with_label_values(&[listener]);
        Self { listener, counter, unlogged: 0, logged_at: None }
    }

    /// Counts an error. If the last log line is a minute old, logs the number of errors since then and returns `true`.
    pub(super) fn record(&mut self, error: &io::Error, now: Instant) -> bool {
        self.counter.inc();
        self.unlogged += 1;
        if self.logged_at.is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL) {
            return false;
        }
        self.logged_at = Some(now);
        let errors = std::mem::take(&mut self.unlogged);
        tracing::warn!(listener = self.listener, errors, %error, "cannot accept connections");
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[tokio::test]
    async fn errors_are_logged_once_a_minute_with_their_number_and_all_are_counted() {
        let metrics = Metrics::new().unwrap();
        let mut errors = AcceptErrors::new("proxy", &metrics);
        let (error, begin) = (io::Error::from_raw_os_error(24), Clock::System.timer_now());
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        assert!(errors.record(&error, at(0)));
        for milliseconds in [0, 1, 59_999] {
            assert!(!errors.record(&error, at(milliseconds)), "{milliseconds}");
        }
        assert_eq!(errors.unlogged, 3);
        assert!(errors.record(&error, at(60_000)));
        assert_eq!(errors.unlogged, 0);
        assert!(!errors.record(&error, at(60_001)));
        assert_eq!(metrics.accept_errors.with_label_values(&["proxy"]).get(), 6);
    }
}
