//! What has happened lately that an operator would want to be told: events for the status page, each with its log line.
//!
//! This is the only place that makes either, so that they cannot differ. The first of an event is logged at once; the same
//! event again (same words, same scope) is counted, and logged at most once a minute with the number since its previous line. Of
//! each kind so many are remembered, and so many lines are logged in a minute, at most: what a single client can bring about
//! neither pushes out the rest nor floods the log. No credential is in them, and no whole project id.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::catalogue::Service;
use crate::request::key::Scope;
use crate::sync::{Mutex, MutexGuard};

mod lines;

use lines::{Bound, EventLine};
use strum::{IntoStaticStr, VariantArray};

/// How many are remembered of each kind.
const MAX_OF_A_KIND: usize = 16;

/// How long the same event is not logged again.
pub(crate) const REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// What kind of thing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "kebab-case")]
pub enum Event {
    /// Upstream has refused a caller.
    Denial,
    /// Callers are told different things, so that nothing is shared any more.
    PrivateScope,
    /// A service has failed a call.
    Outage,
    /// A service answers again.
    Recovery,
    /// Upstream is asked too often.
    Throttled,
    /// Somebody has asked the operator's listener who may not.
    AdminDenied,
    /// An access key is not used for a while.
    KeySuspended,
    /// The memory budget is used up.
    MemoryReached,
    /// The memory budget has room again.
    MemoryFree,
    /// Other settings are in force.
    Reload,
    /// Settings were read again and have a mistake.
    ReloadRefused,
    /// Something was removed from the cache.
    Purge,
    /// The cache was switched on or off.
    Mode,
    /// More or less is logged.
    LogLevel,
    /// The gateway is about to end.
    Stopping,
}

impl Event {
    /// Whether somebody should look into it.
    pub fn is_bad(self) -> bool {
        self == Self::Denial || self.is_for_somebody_to_act()
    }

    /// Whether somebody has to act: these are logged at `warn`, the others at `info`.
    fn is_for_somebody_to_act(self) -> bool {
        use Event::{AdminDenied, KeySuspended, MemoryReached, Outage, PrivateScope, ReloadRefused, Throttled};
        matches!(self, PrivateScope | Outage | Throttled | AdminDenied | KeySuspended | MemoryReached | ReloadRefused)
    }

    /// Whether an operator has brought it about: each is logged, also if it is the same again.
    fn is_operators(self) -> bool {
        use Event::{LogLevel, Mode, Purge, Reload, ReloadRefused, Stopping};
        matches!(self, Reload | ReloadRefused | Purge | Mode | LogLevel | Stopping)
    }

    /// What it ends.
    fn ends(self) -> Option<Self> {
        match self {
            Self::Recovery => Some(Self::Outage),
            Self::MemoryFree => Some(Self::MemoryReached),
            _ => None,
        }
    }
}

/// Something that happens.
#[derive(Clone, Debug)]
pub struct NewEvent<'h> {
    event: Event,
    what: Cow<'static, str>,
    scope: Option<&'h Scope>,
    service: Option<Service>,
    ended: Option<(Duration, u64)>,
    detail: Detail,
}

/// What only the log tells.
#[derive(Clone, Debug, Default)]
struct Detail {
    error: Option<String>,
    changed: Option<String>,
}

impl<'h> NewEvent<'h> {
    /// Something that happens everywhere.
    pub fn new(event: Event, what: impl Into<Cow<'static, str>>) -> Self {
        Self { event, what: what.into(), scope: None, service: None, ended: None, detail: Detail::default() }
    }

    /// In a scope, and at its service.
    #[must_use]
    pub fn in_scope(self, scope: Option<&'h Scope>) -> Self {
        let service = scope.map(|scope| scope.operation().service).or(self.service);
        Self { scope, service, ..self }
    }

    /// At a service.
    #[must_use]
    pub fn at(self, service: Service) -> Self {
        Self { service: Some(service), ..self }
    }

    /// After a time, and so many failures in it.
    #[must_use]
    pub fn after(self, duration: Duration, failures: u64) -> Self {
        Self { ended: Some((duration, failures)), ..self }
    }

    /// For this reason, which may be shown in the log alone.
    #[must_use]
    pub fn because(mut self, error: &dyn std::fmt::Display) -> Self {
        self.detail.error = Some(error.to_string());
        self
    }

    /// These settings have changed.
    #[must_use]
    pub fn changing(mut self, settings: String) -> Self {
        self.detail.changed = Some(settings);
        self
    }
}

/// Something that has happened, perhaps several times.
#[derive(Clone, Debug)]
pub struct EventRow {
    /// What kind of thing.
    pub event: Event,
    /// In words.
    pub what: Cow<'static, str>,
    /// At which service, if at one.
    pub service: Option<Service>,
    /// To which operation, if to one.
    pub operation: Option<Arc<str>>,
    /// In which project, shortened.
    pub project: Option<String>,
    /// When for the first time.
    pub first: SystemTime,
    /// When for the last time.
    pub last: SystemTime,
    /// How often.
    pub count: u64,
}

impl EventRow {
    fn is_same(&self, other: &Self) -> bool {
        (self.event, &self.what, self.service, &self.operation, &self.project)
            == (other.event, &other.what, other.service, &other.operation, &other.project)
    }
}

/// An event, and what of it is not logged yet.
struct Remembered {
    row: EventRow,
    logged_at: Option<Instant>,
    /// How often it has happened since its previous line. For one that ends another: the failures in those.
    unlogged: u64,
    ended: Option<Duration>,
    detail: Detail,
}

impl Remembered {
    fn is_due(&self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < REPEAT_INTERVAL;
        self.unlogged > 0 && (self.row.event.is_operators() || !self.logged_at.is_some_and(is_recent))
    }

    /// The line about what is not logged yet.
    fn line(&mut self, now: Instant) -> EventLine {
        let since_previous = self.logged_at.map(|at| now.saturating_duration_since(at));
        let EventRow { event, ref what, service, ref operation, ref project, .. } = self.row;
        self.logged_at = Some(now);
        EventLine {
            event,
            what: what.clone(),
            service,
            operation: operation.clone(),
            project: project.clone(),
            duration: self.ended.or(since_previous.filter(|_| !event.is_operators())),
            count: std::mem::take(&mut self.unlogged),
            detail: std::mem::take(&mut self.detail),
        }
    }
}

#[derive(Default)]
struct EventHistory {
    /// The latest first.
    recent: VecDeque<Remembered>,
    bounds: Vec<Bound>,
}

impl EventHistory {
    /// Notes something. Says what is to be logged.
    fn note(&mut self, new_event: NewEvent<'_>, date: SystemTime, now: Instant) -> Vec<EventLine> {
        let NewEvent { event, what, scope, service, ended, detail } = new_event;
        let row = EventRow {
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
        let mut new = Remembered { row, logged_at: None, unlogged, ended, detail };
        let before = self.recent.iter().position(|known| known.row.is_same(&new.row));
        if let Some(before) = before.and_then(|at| self.recent.remove(at)) {
            new.row.first = before.row.first;
            new.row.count += before.row.count;
            new.unlogged += before.unlogged;
            new.logged_at = before.logged_at;
        }
        if let Some(ended) = event.ends() {
            // What the end tells is not told of the beginning again.
            let of_it = |known: &&mut Remembered| known.row.event == ended && known.row.service == service;
            self.recent.iter_mut().filter(of_it).for_each(|known| known.unlogged = 0);
        }
        self.recent.push_front(new);
        let mut lines = Vec::from_iter(self.bound(event).left_out(now));
        lines.extend(self.log(0, now));
        let of_its_kind = self.recent.iter().filter(|known| known.row.event == event).count();
        if of_its_kind > MAX_OF_A_KIND
            && let Some(oldest) = self.recent.iter().rposition(|known| known.row.event == event)
            && let Some(forgotten) = self.recent.remove(oldest)
        {
            self.bound(event).leave_out(forgotten.unlogged);
        }
        lines
    }

    /// What has waited long enough, and what was left out.
    fn due(&mut self, now: Instant) -> Vec<EventLine> {
        let mut lines: Vec<EventLine> = self.bounds.iter_mut().filter_map(|bound| bound.left_out(now)).collect();
        for place in (0..self.recent.len()).rev() {
            lines.extend(self.log(place, now));
        }
        lines
    }

    /// What has not waited long enough, and what was left out. It is no more than what is remembered, and a line for each kind.
    fn rest(&mut self, now: Instant) -> Vec<EventLine> {
        let unlogged = self.recent.iter_mut().rev().filter(|known| known.unlogged > 0);
        let mut lines: Vec<EventLine> = unlogged.map(|known| known.line(now)).collect();
        lines.extend(self.bounds.iter_mut().filter_map(Bound::rest));
        lines
    }

    /// The line about one that is remembered, if it is due and within the bound of its kind.
    fn log(&mut self, place: usize, now: Instant) -> Option<EventLine> {
        let known = self.recent.get_mut(place).filter(|known| known.is_due(now))?;
        let (event, service) = (known.row.event, known.row.service);
        if !self.bound(event).takes_another(now) {
            let unlogged = self.recent.get_mut(place).map_or(0, |known| std::mem::take(&mut known.unlogged));
            self.bound(event).leave_out(unlogged);
            return None;
        }
        // Whoever reads that it has begun again is to read that it has ended again.
        for other in &mut self.recent {
            if other.row.event.ends() == Some(event) && other.row.service == service {
                (other.logged_at, other.unlogged) = (None, 0);
            }
        }
        self.recent.get_mut(place).map(|known| known.line(now))
    }

    fn bound(&mut self, event: Event) -> &mut Bound {
        let place = self.bounds.iter().position(|bound| bound.event == event).unwrap_or_else(|| {
            self.bounds.push(Bound::new(event));
            self.bounds.len() - 1
        });
        &mut self.bounds[place]
    }
}

/// What has happened lately.
#[derive(Default)]
pub struct Events(Mutex<EventHistory>);

impl Events {
    /// Notes something that happens now, and logs it unless it is a recent repetition. `date` is for people, `now` for the
    /// bounds.
    pub fn note(&self, new_event: NewEvent<'_>, date: SystemTime, now: Instant) {
        let mut state = self.state();
        // Below the lock, so that lines are in the order of events. Whoever reads the log cannot stop this.
        state.note(new_event, date, now).iter().for_each(EventLine::write);
    }

    /// Logs the repetitions that have waited for [`REPEAT_INTERVAL`].
    pub fn log_due(&self, now: Instant) {
        self.state().due(now).iter().for_each(EventLine::write);
    }

    /// Logs all that is not logged yet, at the end of the process.
    pub fn log_rest(&self, now: Instant) {
        self.state().rest(now).iter().for_each(EventLine::write);
    }

    /// All that is remembered, the latest first.
    pub fn recent(&self) -> Vec<EventRow> {
        self.state().recent.iter().map(|known| known.row.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, EventHistory> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests;
