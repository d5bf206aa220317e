//! The log lines of events, and how many lines of one kind there may be in a minute.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Detail, Event, REPEAT_INTERVAL};
use crate::catalogue::Service;

/// How many lines of one kind are logged in [`REPEAT_INTERVAL`].
pub(super) const MAX_LINES: u32 = 10;

#[derive(Debug)]
pub(super) struct EventLine {
    pub(super) event: Event,
    pub(super) what: Cow<'static, str>,
    pub(super) service: Option<Service>,
    pub(super) operation: Option<Arc<str>>,
    pub(super) project: Option<String>,
    /// How long what has ended lasted, or the time in which `count` was counted.
    pub(super) duration: Option<Duration>,
    pub(super) count: u64,
    pub(super) detail: Detail,
}

macro_rules! write_line {
    ($level:ident, $line:expr) => {
        tracing::$level!(
            event = $line.event.into_str(),
            service = $line.service.map(Service::as_str),
            operation = $line.operation.as_deref(),
            project = $line.project,
            duration_s = $line.duration.map(|duration| duration.as_secs()),
            count = $line.count,
            changed = $line.detail.changed,
            error = $line.detail.error,
            "{}",
            $line.what
        )
    };
}

impl EventLine {
    pub(super) fn write(&self) {
        if self.event.needs_action() {
            write_line!(warn, self);
        } else {
            write_line!(info, self);
        }
    }
}

/// Limits the lines of one kind.
pub(super) struct LineLimit {
    pub(super) event: Event,
    /// When the first line of the present interval was logged.
    began: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl LineLimit {
    pub(super) fn new(event: Event) -> Self {
        Self { event, began: None, lines: 0, suppressed: 0 }
    }

    /// Whether there may be another line. If so, the line is counted.
    pub(super) fn allows_line(&mut self, now: Instant) -> bool {
        if self.is_over(now) {
            (self.began, self.lines) = (Some(now), 0);
        }
        let is_allowed = self.lines < MAX_LINES;
        self.lines += u32::from(is_allowed);
        is_allowed
    }

    /// Counts events that get no line.
    pub(super) fn suppress(&mut self, events: u64) {
        self.suppressed += events;
    }

    /// The line with their number, once the interval is over.
    pub(super) fn summary(&mut self, now: Instant) -> Option<EventLine> {
        if self.suppressed == 0 || !self.is_over(now) || !self.allows_line(now) {
            return None;
        }
        self.take_summary()
    }

    /// The same regardless of the interval.
    pub(super) fn take_summary(&mut self) -> Option<EventLine> {
        (self.suppressed > 0).then(|| EventLine {
            event: self.event,
            what: "more events of this kind were not logged".into(),
            service: None,
            operation: None,
            project: None,
            duration: None,
            count: std::mem::take(&mut self.suppressed),
            detail: Detail::default(),
        })
    }

    fn is_over(&self, now: Instant) -> bool {
        self.began.is_none_or(|began| now.saturating_duration_since(began) >= REPEAT_INTERVAL)
    }
}
