//! What an operator is told of: events, and how upstream is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::Gateway;
use crate::cache::entry::Entry;
use crate::cache::store::Slot;
use crate::catalogue::Service;
use crate::request::key::Scope;
use crate::telemetry::events::{Event, Events};
use crate::telemetry::health::{Health, Turn};

impl Gateway {
    /// What has happened lately.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Notes something that happens now.
    pub fn notable(&self, event: Event, what: impl Into<std::borrow::Cow<'static, str>>, scope: Option<&Scope>) {
        self.events.note(event, what, scope, self.clock.date());
    }

    /// Notes what came of a call of a caller whom upstream knows, or doesn't.
    pub(super) fn heard(&self, service: Service, result: Result<StatusCode, &'static str>, is_known: bool) {
        match self.healths.heard(service, result, is_known, self.clock.now()) {
            None => {}
            Some(Turn::Fails(failure)) => {
                self.notable(Event::Outage, format!("{} has begun to fail: {failure}", service.as_str()), None);
            }
            Some(Turn::Recovers) => {
                self.notable(Event::Recovery, format!("{} answers again", service.as_str()), None);
            }
        }
    }

    /// How a service is, if it has been asked.
    pub fn health(&self, service: Service) -> Option<Health> {
        self.healths.of(service)
    }

    /// The present moment, by the clock that everything here goes by.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// How long it has been there.
    pub fn uptime(&self) -> Duration {
        self.clock.now().saturating_duration_since(self.started)
    }

    /// Each entry, and where it is kept. Takes its time where there are many.
    pub fn entries(&self) -> impl Iterator<Item = (Arc<Slot>, Arc<Entry>)> {
        self.store.entries()
    }
}
