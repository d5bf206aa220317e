//! What has happened lately that an operator would want to be told: few lines, for a person.
//!
//! The same thing happening again is counted, not repeated; and of each kind there are so many at most, so that what a
//! single client can bring about doesn't push out the rest. No credential is in them, and no whole project id.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::request::key::Scope;

/// How many are remembered of each kind.
const MAX_OF_A_KIND: usize = 16;

/// What kind of thing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Upstream has refused a caller.
    Denial,
    /// Callers are told different things, so that nothing is shared any more.
    PrivateScope,
    /// A service has begun to fail.
    Outage,
    /// A service answers again.
    Recovery,
    /// Upstream is asked too often.
    Throttled,
    /// Somebody has asked the operator's listener who may not.
    Intruder,
    /// An access key is not used for a while.
    KeyHeld,
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
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denial => "denial",
            Self::PrivateScope => "private-scope",
            Self::Outage => "outage",
            Self::Recovery => "recovery",
            Self::Throttled => "throttled",
            Self::Intruder => "intruder",
            Self::KeyHeld => "key-held",
            Self::Reload => "reload",
            Self::ReloadRefused => "reload-refused",
            Self::Purge => "purge",
            Self::Mode => "mode",
            Self::LogLevel => "log-level",
            Self::Stopping => "stopping",
        }
    }

    /// Whether somebody should look into it.
    pub fn is_bad(self) -> bool {
        use Event::{Denial, Intruder, KeyHeld, Outage, PrivateScope, ReloadRefused, Throttled};
        matches!(self, Denial | PrivateScope | Outage | Throttled | Intruder | KeyHeld | ReloadRefused)
    }
}

/// Something that has happened, perhaps several times.
#[derive(Clone, Debug)]
pub struct Noted {
    /// What kind of thing.
    pub event: Event,
    /// In words.
    pub what: Cow<'static, str>,
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

impl Noted {
    fn is_same(&self, other: &Self) -> bool {
        (self.event, &self.what, &self.operation, &self.project)
            == (other.event, &other.what, &other.operation, &other.project)
    }
}

/// What has happened lately, the latest first.
#[derive(Default)]
pub struct Events(Mutex<VecDeque<Noted>>);

impl Events {
    /// Notes something that happens now, everywhere or in one scope.
    pub fn note(&self, event: Event, what: impl Into<Cow<'static, str>>, scope: Option<&Scope>, now: SystemTime) {
        let mut noted = Noted {
            event,
            what: what.into(),
            operation: scope.map(|scope| Arc::clone(&scope.operation().name)),
            project: scope.map(Scope::project_in_short).filter(|project| !project.is_empty()),
            first: now,
            last: now,
            count: 1,
        };
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = recent.iter().position(|known| known.is_same(&noted)).and_then(|at| recent.remove(at)) {
            noted.first = before.first;
            noted.count += before.count;
        }
        recent.push_front(noted);
        let of_its_kind = recent.iter().filter(|known| known.event == event).count();
        if of_its_kind > MAX_OF_A_KIND
            && let Some(oldest) = recent.iter().rposition(|known| known.event == event)
        {
            recent.remove(oldest);
        }
    }

    /// All that is remembered, the latest first.
    pub fn recent(&self) -> Vec<Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_happens_again_is_counted_and_comes_first() {
        let (events, at) = (Events::default(), |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second));
        for (second, event) in [(1, Event::Denial), (2, Event::Purge), (3, Event::Denial)] {
            events.note(event, "it", None, at(second));
        }
        let told: Vec<_> =
            events.recent().iter().map(|noted| (noted.event, noted.count, noted.first, noted.last)).collect();
        assert_eq!(told, [(Event::Denial, 2, at(1), at(3)), (Event::Purge, 1, at(2), at(2))]);
    }

    #[test]
    fn one_kind_does_not_push_out_another() {
        let (events, now) = (Events::default(), SystemTime::UNIX_EPOCH);
        events.note(Event::Reload, "at first", None, now);
        for number in 0..1_000 {
            events.note(Event::Denial, format!("of {number}"), None, now);
        }
        let recent = events.recent();
        assert_eq!((recent.len(), recent[0].what.as_ref()), (MAX_OF_A_KIND + 1, "of 999"));
        assert_eq!(recent.last().unwrap().event, Event::Reload);
    }
}
