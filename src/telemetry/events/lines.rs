//! The log lines of events, and how many of each kind there may be in a minute.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Detail, Event, REPEAT_INTERVAL};
use crate::catalogue::Service;

/// How many lines of one kind are logged in [`REPEAT_INTERVAL`].
pub(super) const MAX_LINES: u32 = 10;

/// One line.
#[derive(Debug)]
pub(super) struct EventLine {
    pub(super) event: Event,
    pub(super) what: Cow<'static, str>,
    pub(super) service: Option<Service>,
    pub(super) operation: Option<Arc<str>>,
    pub(super) project: Option<String>,
    /// How long what has ended took, or since when `count` counts.
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
        if self.event.is_for_somebody_to_act() {
            write_line!(warn, self);
        } else {
            write_line!(info, self);
        }
    }
}

/// What of one kind was logged lately.
pub(super) struct Bound {
    pub(super) event: Event,
    /// When the first line of the present interval was logged.
    began: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Bound {
    pub(super) fn new(event: Event) -> Self {
        Self { event, began: None, lines: 0, left_out: 0 }
    }

    /// Whether there may be another line. If so, it counts.
    pub(super) fn takes_another(&mut self, now: Instant) -> bool {
        if self.is_over(now) {
            (self.began, self.lines) = (Some(now), 0);
        }
        let takes = self.lines < MAX_LINES;
        self.lines += u32::from(takes);
        takes
    }

    /// Counts events that no line tells of.
    pub(super) fn leave_out(&mut self, events: u64) {
        self.left_out += events;
    }

    /// The line about those, once the interval is over.
    pub(super) fn left_out(&mut self, now: Instant) -> Option<EventLine> {
        if self.left_out == 0 || !self.is_over(now) || !self.takes_another(now) {
            return None;
        }
        self.rest()
    }

    /// The line about those, whatever was logged before.
    pub(super) fn rest(&mut self) -> Option<EventLine> {
        (self.left_out > 0).then(|| EventLine {
            event: self.event,
            what: "more events of this kind were not logged".into(),
            service: None,
            operation: None,
            project: None,
            duration: None,
            count: std::mem::take(&mut self.left_out),
            detail: Detail::default(),
        })
    }

    fn is_over(&self, now: Instant) -> bool {
        self.began.is_none_or(|began| now.saturating_duration_since(began) >= REPEAT_INTERVAL)
    }
}
