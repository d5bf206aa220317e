//! What a hint of another gateway changes here: the same as if its call had been a call of this gateway.
//!
//! A hint may come late, twice, or after a later one. Each of the changes is such that this does no harm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ActiveConfig;
use super::fetcher::Fetcher;
use super::hint::{AccessKeyHint, BackoffHint, BackoffPlace, Hint, HintKind, LimitHint};
use super::memory::Memory;
use super::observer::Observer;
use crate::cache::backoffs;
use crate::cache::grants::CallerScope;
use crate::cache::store::CacheKey;
use crate::request::caller::Caller;

/// The parts of the gateway that a hint may change.
pub(super) struct HintTaker<'g> {
    pub(super) active: &'g ActiveConfig,
    pub(super) memory: &'g Memory,
    pub(super) fetcher: &'g Fetcher,
    pub(super) observer: &'g Observer,
    pub(super) now: Instant,
}

impl HintTaker<'_> {
    /// Takes a hint that was told this long ago. `None` if it means nothing here.
    pub(super) fn take(&self, hint: &Hint, age: Duration) -> Option<()> {
        let told = self.now.checked_sub(age)?;
        match &hint.0 {
            HintKind::Backoff(hint) => self.take_backoff(hint, told),
            HintKind::AccessKey(hint) => self.take_access_key(hint, told),
            HintKind::Limit(hint) => self.take_limit(hint, told),
        }
    }

    /// A backoff that has ended counts, too: it may overlap another one that has not.
    fn take_backoff(&self, hint: &BackoffHint, told: Instant) -> Option<()> {
        let (catalogue, backoffs) = (&self.active.catalogue, &self.memory.backoffs);
        let caller = Caller::from_sealed(hint.caller);
        let span = hint.span.min(backoffs::LONGEST);
        if self.now.saturating_duration_since(told) > backoffs::LONGEST {
            return None;
        }
        match &hint.place {
            BackoffPlace::Caller(scope) => {
                let scope = scope.find(catalogue)?;
                backoffs.begin_for_caller(&CallerScope { caller, scope }, span, told);
            }
            BackoffPlace::Shared(cause, key) => {
                let key = key.find(catalogue)?;
                let caller_scope = CallerScope { caller, scope: key.scope().clone() };
                backoffs.begin(&CacheKey { owner: None, key: Arc::new(key) }, &caller_scope, *cause, span, told);
            }
        }
        Some(())
    }

    fn take_limit(&self, LimitHint { service, news }: &LimitHint, told: Instant) -> Option<()> {
        let service = service.find(&self.active.catalogue)?;
        let changes = self.fetcher.ledger.told(service, news, told, self.now);
        let operation = news.operation();
        changes.iter().for_each(|change| self.observer.limit_changed(service, operation.as_ref(), change));
        if !changes.is_empty() {
            self.fetcher.limits_changed();
        }
        Some(())
    }

    /// The id may be of a key that is not configured here, or not yet. Its refusals count, and are not reported.
    fn take_access_key(&self, AccessKeyHint { upstream, news }: &AccessKeyHint, told: Instant) -> Option<()> {
        let own_upstream = match upstream {
            Some(upstream) => Some(upstream.find(&self.active.catalogue)?),
            None => None,
        };
        let change = self.fetcher.key_breaker.told(news, own_upstream, told);
        if self.active.keys.keys().any(|key| key.id() == news.access_key()) {
            self.fetcher.key_changed(&change, self.observer);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
