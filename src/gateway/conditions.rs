//! Gathers the facts that say what is wrong now. What follows from them is decided in `telemetry/conditions.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ActiveConfig, Gateway};
use crate::catalogue::Service;
use crate::config::Mode;
use crate::signing::AccessKey;
use crate::telemetry::condition_tracker::ConditionChange;
use crate::telemetry::conditions::{Condition, ConditionFacts, FleetFacts, ServiceFacts, conditions};
use crate::telemetry::events::{Event, NewEvent};
use crate::telemetry::logs;
use crate::telemetry::series::Series;
use crate::upstream::Failure;

/// Of these upstream is the cause. A client can cause others: it leaves, or its body is malformed.
const UPSTREAM_FAILURES: [Failure; 5] =
    [Failure::Connect, Failure::Tls, Failure::FirstByte, Failure::Timeout, Failure::Broken];

const MINUTE: Duration = Duration::from_secs(60);

impl Gateway {
    /// Has the metric of conditions filled in.
    pub(super) fn watch_conditions(self: &Arc<Self>) {
        let gateway = Arc::downgrade(self);
        let conditions = move || gateway.upgrade().map(|gateway| gateway.conditions()).unwrap_or_default();
        self.observer.metrics.watch_conditions(conditions);
    }

    /// Logs what has begun to be wrong and what has ended since the previous call.
    pub fn log_conditions(&self) {
        let conditions = self.conditions();
        for change in self.observer.conditions.changes(&conditions, self.clock.now()) {
            let (new_event, service) = match change {
                ConditionChange::Begun(it) => {
                    let what = format!("{}: {}", it.cause.into_str(), it.what);
                    (NewEvent::new(Event::Condition, what), it.service)
                }
                ConditionChange::Ended { cause, service, after } => {
                    let what = format!("{} has ended", cause.into_str());
                    (NewEvent::new(Event::ConditionEnded, what).after(after, 1), service)
                }
            };
            self.observer.record_event(match service {
                None => new_event,
                Some(service) => new_event.at(service),
            });
        }
    }

    /// All that is wrong now, the worst first, each with the time since when it is so.
    pub(crate) fn conditions(&self) -> Vec<Condition> {
        let (now, observer, active) = (self.clock.now(), &self.observer, self.active());
        let history = observer.history.lock();
        let (last_minute, last_five_minutes) = (history.recent(MINUTE, now), history.recent(5 * MINUTE, now));
        drop(history);
        let facts = ConditionFacts {
            now,
            date: self.clock.date(),
            services: active.catalogue().services().map(|service| self.service_facts(&active, service, now)).collect(),
            is_bypassing: self.mode() == Mode::Bypass,
            is_memory_reached: self.budget.is_reached(),
            fleet: self.memory.fleet.as_ref().map(|fleet| FleetFacts {
                state: fleet.state().describe(),
                is_lost: !fleet.is_in_use(),
                is_in_sync: fleet.sync().is_in_sync(now),
                sync_age: fleet.sync_age(now),
            }),
            certificate_not_after: observer.metrics.certificate_not_after.get(),
            refused_reload: observer.conditions.refused_reload(),
            stalled_log: logs::is_stalled().then(logs::dropped),
            last_minute,
            last_five_minutes,
            suspended_keys: self.suspended_keys(&active),
            keep_warm_stopped_keys: u64::try_from(observer.metrics.keep_warm_stopped_keys.get()).unwrap_or(0),
            private_scopes: self.memory.store.usage().private_scopes,
        };
        let mut found = conditions(&facts);
        observer.conditions.complete(&mut found, now);
        found
    }

    fn suspended_keys(&self, active: &ActiveConfig) -> Vec<String> {
        let is_suspended = |key: &AccessKey| {
            active.catalogue().services().any(|service| self.fetcher.key_breaker.is_suspended(key, service))
        };
        active.keys.keys().filter(|key| is_suspended(key)).map(|key| key.id().to_owned()).collect()
    }

    fn service_facts(&self, active: &ActiveConfig, service: Service, now: Instant) -> ServiceFacts {
        let (name, observer) = (service.as_str(), &self.observer);
        let by_status = Series::of(&observer.metrics.upstream_requests).by("status", &[("service", name)]);
        let calls = |is_chosen: &dyn Fn(&str) -> bool| -> u64 {
            by_status.iter().filter(|(status, _)| is_chosen(status)).map(|(_, calls)| calls).sum()
        };
        let is_refusal = |status: &str| status == "401" || status == "403";
        let is_accepted = |status: &str| status.starts_with(['2', '3']) || ["400", "404", "405"].contains(&status);
        ServiceFacts {
            service,
            origin: active.catalogue().origin(service).to_string(),
            health: observer.health(service),
            error: observer.conditions.call_error(service),
            local_failure: observer.conditions.local_failure(service),
            accepted: calls(&is_accepted),
            refused: calls(&is_refusal),
            failed: calls(&|status| {
                status.starts_with('5') || UPSTREAM_FAILURES.iter().any(|&it| status == <&str>::from(it))
            }),
            limits: self
                .fetcher
                .ledger
                .states(now)
                .into_iter()
                .filter(|(of, _)| *of == service)
                .flat_map(|(_, states)| states)
                .collect(),
            throttled: observer.conditions.last_throttled(service),
        }
    }
}
