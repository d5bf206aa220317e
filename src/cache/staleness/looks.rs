//! The looks that are kept, by scope and cache key, and which of them make room for others.

use std::sync::Arc;

use super::answers::AnswerCounters;
use super::history::{KeyHistory, Look, MAX_RUNS, ScopeFindings};
use super::row::ALWAYS_DIFFERENT;
use super::{MAX_SCOPES, WINDOW};
use crate::cache::cache_key::CacheKey;
use crate::random::HashMap;
use crate::request::key::Scope;

/// The most keys of a scope, and the most keys.
pub(super) const MAX_KEYS_OF_SCOPE: usize = 64;
pub(super) const MAX_KEYS: usize = 2048;
/// If there are more runs, a key keeps only its latest ones.
pub(super) const MANY_RUNS: usize = 8192;
const FEW_RUNS: usize = 4;
/// The least time between two searches for keys without recent looks, in seconds.
const CLEAN_UP_INTERVAL: f64 = 60.0;

/// The looks of a scope.
#[derive(Default)]
pub(super) struct ScopeState {
    pub(super) keys: HashMap<CacheKey, KeyHistory>,
    pub(super) findings: ScopeFindings,
    /// Answers before this time are not judged, because looks of that time were dropped. In seconds.
    pub(super) judged_from: f64,
    pub(super) last_look: f64,
}

/// All looks.
#[derive(Default)]
pub(super) struct Looks {
    pub(super) scopes: HashMap<Scope, ScopeState>,
    pub(super) keys: usize,
    pub(super) runs: usize,
    /// When keys without recent looks were last removed, in seconds.
    cleaned_up: Option<f64>,
}

impl Looks {
    pub(super) fn add(&mut self, cache_key: &CacheKey, look: Look, counters: Arc<AnswerCounters>) {
        let scope = cache_key.key.scope();
        let known = self.scopes.get(scope);
        if cache_key
            .owner
            .is_some_and(|owner| known.is_some_and(|it| it.findings.odd_callers.contains(owner, look.sent)))
        {
            return;
        }
        if !known.is_some_and(|state| state.keys.contains_key(cache_key)) {
            self.make_room(scope, look.sent);
        }
        let scopes = self.scopes.len().max(1);
        let state = self.scopes.entry(scope.clone()).or_default();
        let ScopeState { keys, findings, judged_from, last_look } = state;
        // A scope with few runs does not pay for others with many.
        let are_many = self.runs >= MANY_RUNS && runs_of(keys) > MANY_RUNS / scopes;
        let key = keys.entry(cache_key.clone()).or_insert_with(|| {
            self.keys += 1;
            KeyHistory::default()
        });
        *last_look = last_look.max(look.sent);
        let before = key.runs.len();
        key.look(look, counters, findings);
        let most = if are_many { FEW_RUNS } else { MAX_RUNS };
        let dropped = key.limit(most, look.sent - WINDOW).filter(|_| key.left_out.is_none());
        *judged_from = dropped.map_or(*judged_from, |dropped| judged_from.max(dropped));
        self.runs = self.runs + key.runs.len() - before;
        if key.row.is_always_different() {
            self.always_different(cache_key, look.sent);
        }
    }

    /// The latest looks at a key were all different. The owner of a private list is odd. A shared list is left out if it
    /// is unusual among those of its scope. Its callers do not become odd, so their looks at other lists still count.
    fn always_different(&mut self, cache_key: &CacheKey, now: f64) {
        let Some(ScopeState { keys, findings, .. }) = self.scopes.get_mut(cache_key.key.scope()) else { return };
        if let Some(owner) = cache_key.owner {
            findings.odd_callers.mark(owner, now);
            findings.differences.retract(ALWAYS_DIFFERENT - 1);
            for (_, key) in keys.extract_if(|key, _| key.owner == Some(owner)) {
                self.keys -= 1;
                self.runs -= key.runs.len();
            }
            return;
        }
        let others = keys.iter().filter(|(other, _)| *other != cache_key).filter_map(|(_, other)| other.latest());
        let reason = keys.get(cache_key).and_then(|key| key.row.compare(others));
        if let (Some(reason), Some(key)) = (reason, keys.get_mut(cache_key)) {
            key.leave_out(reason, &mut findings.differences);
        }
    }

    /// Makes room for another key of this scope. Keys and scopes without a look within [`WINDOW`] are removed. If that is
    /// not enough, the least active scope makes room for a scope, and the least active key for a key: one of this scope,
    /// or of the scope with the most keys.
    fn make_room(&mut self, scope: &Scope, now: f64) {
        let has_room = |state: &Self| {
            let in_scope = state.scopes.get(scope).map(|scope| scope.keys.len());
            let has_scope = in_scope.is_some() || state.scopes.len() < MAX_SCOPES;
            (has_scope, in_scope.unwrap_or(0) < MAX_KEYS_OF_SCOPE, state.keys < MAX_KEYS)
        };
        if has_room(self) == (true, true, true) {
            return;
        }
        if self.cleaned_up.is_none_or(|last| now - last >= CLEAN_UP_INTERVAL) {
            self.cleaned_up = Some(now);
            self.scopes.retain(|_, scope| now - scope.last_look < WINDOW);
            for scope in self.scopes.values_mut() {
                scope.keys.retain(|_, key| now - key.last_look() < WINDOW);
            }
            self.count();
        }
        let (has_scope, has_key_of_scope, has_key) = has_room(self);
        if !has_scope {
            self.remove_least_active_scope(now);
        }
        if !has_key_of_scope {
            self.remove_least_active_key(scope, now);
        } else if !has_key && let Some(largest) = self.largest_scope() {
            self.remove_least_active_key(&largest, now);
        }
    }

    fn count(&mut self) {
        self.keys = self.scopes.values().map(|scope| scope.keys.len()).sum();
        self.runs = self.scopes.values().map(|scope| runs_of(&scope.keys)).sum();
    }

    fn largest_scope(&self) -> Option<Scope> {
        self.scopes.iter().max_by_key(|(_, state)| state.keys.len()).map(|(scope, _)| scope.clone())
    }

    /// Removes the scope with the fewest answers, of several the one with the oldest look.
    fn remove_least_active_scope(&mut self, now: f64) {
        let activity = |state: &ScopeState| state.keys.values().map(|key| key.activity(now)).sum::<f64>();
        let scopes = self.scopes.iter().map(|(scope, state)| (scope, activity(state), state.last_look));
        let least = scopes.min_by(|one, other| one.1.total_cmp(&other.1).then(one.2.total_cmp(&other.2)));
        if let Some(state) = least.map(|(scope, ..)| scope.clone()).and_then(|scope| self.scopes.remove(&scope)) {
            self.keys -= state.keys.len();
            self.runs -= runs_of(&state.keys);
        }
    }

    /// Removes the key of a scope with the fewest answers, of several the one with the oldest look.
    fn remove_least_active_key(&mut self, scope: &Scope, now: f64) {
        let Some(state) = self.scopes.get_mut(scope) else { return };
        let least = state.keys.iter().map(|(cache_key, key)| (cache_key, key.activity(now), key.last_look()));
        let least = least.min_by(|one, other| one.1.total_cmp(&other.1).then(one.2.total_cmp(&other.2)));
        let least = least.map(|(cache_key, ..)| cache_key.clone());
        if let Some(key) = least.and_then(|cache_key| state.keys.remove(&cache_key)) {
            self.keys -= 1;
            self.runs -= key.runs.len();
        }
    }

    pub(super) fn forget_shared(&mut self, is_private: impl Fn(&Scope) -> bool) {
        for (_, state) in self.scopes.iter_mut().filter(|(scope, _)| is_private(scope)) {
            state.keys.retain(|cache_key, _| cache_key.owner.is_some());
            let odd_callers = std::mem::take(&mut state.findings.odd_callers);
            state.findings = ScopeFindings { odd_callers, ..ScopeFindings::default() };
        }
        self.count();
    }
}

fn runs_of(keys: &HashMap<CacheKey, KeyHistory>) -> usize {
    keys.values().map(|key| key.runs.len()).sum()
}
