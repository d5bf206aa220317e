//! Events that an operator should know: the status page shows the latest ones, and each has a log line.
//!
//! Both are made here, so that they cannot differ. The first occurrence of an event is logged at once. Repetitions
//! (same words, same scope) are counted, and logged at most once a minute with the number since the previous line. The
//! number of remembered events and of log lines in a minute is bounded for each kind. So the events that one client
//! causes neither push out other events nor flood the log. An event must not have a credential or a whole project id in
//! it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::catalogue::Service;
use crate::request::key::Scope;
use crate::sync::{Mutex, MutexGuard};

mod lines;

use lines::{EventLine, LineLimit};
use strum::{IntoStaticStr, VariantArray};

/// How many events of one kind are remembered.
const MAX_OF_A_KIND: usize = 16;

/// How long repetitions of an event are only counted.
pub(crate) const REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// A kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Event {
    /// Upstream has refused a caller.
    Denial,
    /// Callers get different responses to the same request, so that responses are no longer shared.
    PrivateScope,
    /// A call to a service has failed.
    Outage,
    /// A service answers again.
    Recovery,
    /// Upstream has answered 429, or 503 with `Retry-After`.
    Throttled,
    /// A limit of upstream has been learnt, has changed or has ended.
    Quota,
    /// A request is almost one for an operation.
    NearMiss,
    /// A request to the admin listener was refused.
    AdminDenied,
    /// An access key is not used for a while, because upstream refuses it.
    KeySuspended,
    /// Keep warm does not use an access key for now, because upstream has refused a call with it.
    KeepWarmStopped,
    /// The memory budget is used up.
    MemoryReached,
    /// The memory budget has room again.
    MemoryFree,
    /// A snapshot of an earlier process was restored.
    Snapshot,
    /// The snapshot cannot be read, written or removed.
    SnapshotFailed,
    /// The engine that gateways share is in use.
    Fleet,
    /// The engine that gateways share is not in use.
    FleetLost,
    /// Notices of other gateways were lost.
    FleetMissed,
    /// The receiver of spans or metrics accepts exports again.
    Otlp,
    /// An export of spans or metrics has failed.
    OtlpFailed,
    /// Other settings are in force.
    Reload,
    /// The configuration was read again and has a mistake.
    ReloadRefused,
    /// Entries were removed from the cache.
    Purge,
    /// The cache was switched on or off.
    Mode,
    /// The log level was changed.
    LogLevel,
    /// Something is wrong that the status page shows. The message begins with the cause.
    Condition,
    /// It is not wrong any more.
    ConditionEnded,
    /// The gateway shuts down.
    Stopping,
}

impl Event {
    /// Whether the status page shows it as a problem.
    pub fn is_bad(self) -> bool {
        self == Self::Denial || self.needs_action()
    }

    /// Whether an operator has to act. Such events are logged at `warn`, the others at `info`.
    fn needs_action(self) -> bool {
        use Event::{
            AdminDenied, Condition, FleetLost, FleetMissed, KeepWarmStopped, KeySuspended, MemoryReached, OtlpFailed,
            Outage, PrivateScope, ReloadRefused, SnapshotFailed, Throttled,
        };
        matches!(
            self,
            PrivateScope
                | Outage
                | Throttled
                | AdminDenied
                | Condition
                | KeySuspended
                | KeepWarmStopped
                | MemoryReached
                | ReloadRefused
                | SnapshotFailed
                | FleetLost
                | FleetMissed
                | OtlpFailed
        )
    }

    /// Whether an operator has caused it. Such events are logged each time.
    fn is_operator_action(self) -> bool {
        use Event::{LogLevel, Mode, Purge, Reload, ReloadRefused, Stopping};
        matches!(self, Reload | ReloadRefused | Purge | Mode | LogLevel | Stopping)
    }

    /// Whether a repetition says nothing new. It is counted, and logged when the process ends.
    fn is_logged_once(self) -> bool {
        self == Self::NearMiss
    }

    /// The kind of event that it is the end of.
    fn ends(self) -> Option<Self> {
        match self {
            Self::Recovery => Some(Self::Outage),
            Self::MemoryFree => Some(Self::MemoryReached),
            Self::Fleet => Some(Self::FleetLost),
            Self::Otlp => Some(Self::OtlpFailed),
            _ => None,
        }
    }
}

/// An event that happens now.
#[derive(Clone, Debug)]
pub struct NewEvent<'h> {
    event: Event,
    what: Cow<'static, str>,
    scope: Option<&'h Scope>,
    service: Option<Service>,
    ended: Option<(Duration, u64)>,
    detail: Detail,
}

/// What is only in the log, because it may have a secret or be long.
#[derive(Clone, Debug, Default)]
struct Detail {
    error: Option<String>,
    changed: Option<String>,
}

impl<'h> NewEvent<'h> {
    /// An event that concerns the whole gateway.
    pub fn new(event: Event, what: impl Into<Cow<'static, str>>) -> Self {
        Self { event, what: what.into(), scope: None, service: None, ended: None, detail: Detail::default() }
    }

    /// The event concerns this scope and its service.
    #[must_use]
    pub fn in_scope(self, scope: Option<&'h Scope>) -> Self {
        let service = scope.map(|scope| scope.operation().service).or(self.service);
        Self { scope, service, ..self }
    }

    #[must_use]
    pub fn at(self, service: Service) -> Self {
        Self { service: Some(service), ..self }
    }

    /// What the event ends has lasted for this time, with this many failures.
    #[must_use]
    pub fn after(self, duration: Duration, failures: u64) -> Self {
        Self { ended: Some((duration, failures)), ..self }
    }

    /// The error is only shown in the log.
    #[must_use]
    pub fn with_error(mut self, error: &dyn std::fmt::Display) -> Self {
        self.detail.error = Some(error.to_string());
        self
    }

    #[must_use]
    pub fn with_changed_settings(mut self, settings: String) -> Self {
        self.detail.changed = Some(settings);
        self
    }
}

/// An event that has happened once or several times.
#[derive(Clone, Debug)]
pub struct RecordedEvent {
    pub event: Event,
    /// A sentence for people.
    pub what: Cow<'static, str>,
    pub service: Option<Service>,
    pub operation: Option<Arc<str>>,
    /// Shortened.
    pub project: Option<String>,
    pub first: SystemTime,
    pub last: SystemTime,
    pub count: u64,
}

impl RecordedEvent {
    fn is_same(&self, other: &Self) -> bool {
        (self.event, &self.what, self.service, &self.operation, &self.project)
            == (other.event, &other.what, other.service, &other.operation, &other.project)
    }
}

/// An event, and what has not been logged of it yet.
struct HistoryEntry {
    row: RecordedEvent,
    logged_at: Option<Instant>,
    /// Occurrences since the previous line. For the end of an outage: the failures in that outage.
    unlogged: u64,
    /// How long what it ends has lasted.
    ended: Option<Duration>,
    detail: Detail,
}

impl HistoryEntry {
    fn is_due(&self, now: Instant) -> bool {
        let is_once = self.row.event.is_logged_once();
        let is_recent = |at: Instant| is_once || now.saturating_duration_since(at) < REPEAT_INTERVAL;
        self.unlogged > 0 && (self.row.event.is_operator_action() || !self.logged_at.is_some_and(is_recent))
    }

    /// The log line for the occurrences that have not been logged yet.
    fn line(&mut self, now: Instant) -> EventLine {
        let since_previous = self.logged_at.map(|at| now.saturating_duration_since(at));
        let RecordedEvent { event, ref what, service, ref operation, ref project, .. } = self.row;
        self.logged_at = Some(now);
        EventLine {
            event,
            what: what.clone(),
            service,
            operation: operation.clone(),
            project: project.clone(),
            duration: self.ended.or(since_previous.filter(|_| !event.is_operator_action())),
            count: std::mem::take(&mut self.unlogged),
            detail: std::mem::take(&mut self.detail),
        }
    }
}

#[derive(Default)]
struct EventHistory {
    /// The latest first.
    recent: VecDeque<HistoryEntry>,
    limits: Vec<LineLimit>,
}

impl EventHistory {
    /// Records an event. Returns the lines to log.
    fn note(&mut self, new_event: NewEvent<'_>, date: SystemTime, now: Instant) -> Vec<EventLine> {
        let NewEvent { event, what, scope, service, ended, detail } = new_event;
        let row = RecordedEvent {
            event,
            what,
            service,
            operation: scope.map(|scope| Arc::clone(&scope.operation().name)),
            project: scope.map(Scope::project_in_short).filter(|project| !project.is_empty()),
            first: date,
            last: date,
            count: 1,
        };
        let unlogged = ended.map_or(1, |(_, failures)| failures.max(1));
        let ended = ended.map(|(duration, _)| duration);
        let mut new = HistoryEntry { row, logged_at: None, unlogged, ended, detail };
        let before = self.recent.iter().position(|known| known.row.is_same(&new.row));
        if let Some(before) = before.and_then(|at| self.recent.remove(at)) {
            new.row.first = before.row.first;
            new.row.count += before.row.count;
            new.unlogged += before.unlogged;
            new.logged_at = before.logged_at;
        }
        if let Some(ended) = event.ends() {
            // The line of the end has the number of failures. So they need no line of their own.
            let of_it = |known: &&mut HistoryEntry| known.row.event == ended && known.row.service == service;
            self.recent.iter_mut().filter(of_it).for_each(|known| known.unlogged = 0);
        }
        self.recent.push_front(new);
        let mut lines = Vec::from_iter(self.limit(event).summary(now));
        lines.extend(self.log(0, now));
        let of_its_kind = self.recent.iter().filter(|known| known.row.event == event).count();
        if of_its_kind > MAX_OF_A_KIND
            && let Some(oldest) = self.recent.iter().rposition(|known| known.row.event == event)
            && let Some(forgotten) = self.recent.remove(oldest)
        {
            self.limit(event).suppress(forgotten.unlogged);
        }
        lines
    }

    /// The lines of events whose interval is over, and of suppressed events.
    fn due(&mut self, now: Instant) -> Vec<EventLine> {
        let mut lines: Vec<EventLine> = self.limits.iter_mut().filter_map(|limit| limit.summary(now)).collect();
        for place in (0..self.recent.len()).rev() {
            lines.extend(self.log(place, now));
        }
        lines
    }

    /// The lines of all events that have not been logged, at the end of the process: at most one for each remembered
    /// event and one for each kind.
    fn rest(&mut self, now: Instant) -> Vec<EventLine> {
        let unlogged = self.recent.iter_mut().rev().filter(|known| known.unlogged > 0);
        let mut lines: Vec<EventLine> = unlogged.map(|known| known.line(now)).collect();
        lines.extend(self.limits.iter_mut().filter_map(LineLimit::take_summary));
        lines
    }

    /// The line of one remembered event, if it is due and within the limit of its kind.
    fn log(&mut self, place: usize, now: Instant) -> Option<EventLine> {
        let known = self.recent.get_mut(place).filter(|known| known.is_due(now))?;
        let (event, service) = (known.row.event, known.row.service);
        if !self.limit(event).allows_line(now) {
            let unlogged = self.recent.get_mut(place).map_or(0, |known| std::mem::take(&mut known.unlogged));
            self.limit(event).suppress(unlogged);
            return None;
        }
        // If the log says that an outage has begun again, it must also say when it ends again.
        for other in &mut self.recent {
            if other.row.event.ends() == Some(event) && other.row.service == service {
                (other.logged_at, other.unlogged) = (None, 0);
            }
        }
        self.recent.get_mut(place).map(|known| known.line(now))
    }

    fn limit(&mut self, event: Event) -> &mut LineLimit {
        let place = self.limits.iter().position(|limit| limit.event == event).unwrap_or_else(|| {
            self.limits.push(LineLimit::new(event));
            self.limits.len() - 1
        });
        &mut self.limits[place]
    }
}

/// The latest events.
#[derive(Default)]
pub struct Events(Mutex<EventHistory>);

impl Events {
    /// Records an event, and logs it unless it is a recent repetition. `date` is shown, `now` is for the limits.
    pub fn note(&self, new_event: NewEvent<'_>, date: SystemTime, now: Instant) {
        let mut state = self.state();
        // While the lock is held, so that lines are in the order of events. Writing a line does not wait for the log's
        // reader.
        state.note(new_event, date, now).iter().for_each(EventLine::write);
    }

    /// Logs the repetitions that have been counted for [`REPEAT_INTERVAL`].
    pub fn log_due(&self, now: Instant) {
        self.state().due(now).iter().for_each(EventLine::write);
    }

    /// Logs all events that have not been logged, at the end of the process.
    pub fn log_rest(&self, now: Instant) {
        self.state().rest(now).iter().for_each(EventLine::write);
    }

    /// The latest first.
    pub fn recent(&self) -> Vec<RecordedEvent> {
        self.state().recent.iter().map(|known| known.row.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, EventHistory> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests;
