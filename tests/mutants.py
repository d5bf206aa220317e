#!/usr/bin/env python3
"""Checks that the model of the sharing rules (tests/model) notices every broken rule.

Each mutation breaks one rule in a scratch copy of the sources. The model must fail. A mutation survives if the model
passes or fails for another reason. The text of a mutation must occur in the sources exactly once; otherwise the mutation
is outdated and must be rewritten. The first word of a rule says which kind of sequences must notice that it is broken.

All mutations are built together. The body of a function that they change becomes a `match` with one arm for each of
them, and an environment variable selects the arm (mutant schemata: Untch, Offutt and Harrold, ISSTA 1993).

    tests/mutants.py                  all mutations
    tests/mutants.py NAME…            some mutations
    SEQUENCES=90000 tests/mutants.py  more sequences for each mutation (default 40000)
"""

import collections
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
# Always in the same place, so that only this crate is built again. The version differs, so that its artifacts are never
# used in place of the real ones.
COPY = TARGET / "mutants"
BUILD = 'build = "deploy/build.rs"\n'
BIN = '[[bin]]\nname = "workspace-gateway"\npath = "src/main.rs"\n'
PACKAGE = 'name = "workspace-gateway"\nversion = "'

GRANTS, STORE, DIVERGENCE = "src/cache/grants.rs", "src/cache/store.rs", "src/cache/divergence.rs"
GATEWAY, FETCH, RELEASE = "src/gateway.rs", "src/gateway/fetch.rs", "src/gateway/release.rs"
CACHE_REQUEST = "src/gateway/cache_request.rs"
LOOK_UP, SETTLE, ASSEMBLE = "src/gateway/look_up.rs", "src/gateway/settle.rs", "src/gateway/assemble.rs"
PRIVATE, SELECTION, INVALIDATE = "src/cache/store/private.rs", "src/cache/store/selection.rs", "src/gateway/invalidate.rs"
BODY, FRESHNESS, FLIGHTS = "src/cache/body.rs", "src/cache/freshness.rs", "src/cache/flights.rs"
LEADER = "src/cache/flights/leader.rs"
BACKOFFS, WAIT, DIRECTIVES = "src/cache/backoffs.rs", "src/gateway/wait.rs", "src/request/request_directives.rs"
VALIDATE, SUCCESSES = "src/request/validate.rs", "src/upstream/successes.rs"
SKEW, REMEMBERED = "src/clock/skew.rs", "src/gateway/remembered.rs"
FETCHER, COALESCE = "src/gateway/fetcher.rs", "src/gateway/coalesce.rs"
PACING, SCHEDULE, LIMIT = "src/gateway/pacing.rs", "src/upstream/gate/schedule.rs", "src/upstream/quota/limit.rs"
LIMITS, LEARN, LIMITER = "src/upstream/quota/service.rs", "src/upstream/quota/learn.rs", "src/upstream/quota/limiter.rs"
RENEWAL, BACKGROUND = "src/cache/grants/renewal.rs", "src/gateway/background.rs"
PENDING = "src/cache/grants/pending.rs"
TIER, SECOND_TIER = "src/gateway/tier.rs", "src/gateway/second_tier.rs"
CLAIM, DENIAL, FLEET_LOG = "src/gateway/claim.rs", "src/gateway/denial.rs", "src/gateway/fleet_log.rs"
FLEET_GRANTS, FLEET_SYNC = "src/cache/grants/fleet.rs", "src/cache/fleet_sync.rs"
COPIES, RECORD = "src/cache/store/copies.rs", "src/cache/record.rs"
SNAPSHOT, RESTORE = "src/gateway/snapshot.rs", "src/cache/grants/restore.rs"
PROVE, ROLE, CALLS = "src/gateway/prove.rs", "src/gateway/role.rs", "src/cache/flights/calls.rs"

# Name, the rule that it breaks (invariants are those of src/lib.rs), file, text, replacement.
MUTATIONS = [
    (
        "error-response-proves",
        "grants: a status alone proves nothing",
        BODY,
        "(true, false) => Ok(()),",
        "_ if true => Ok(()),",
    ),
    (
        "grant-lives-from-receipt",
        "grants: a grant lives from when its proof was sent",
        FETCH,
        "self.memory.grants.begin_call(request.lookup.caller_scope.clone(), sent)",
        "self.memory.grants.begin_call(request.lookup.caller_scope.clone(), sent + request.active.answer_timeout / 2)",
    ),
    (
        "denial-keeps-grant",
        "grants: a 401 or 403 ends the grant immediately",
        PENDING,
        "had.in_scope = tables.grants.remove(&caller_scope).is_some();",
        "had.in_scope = tables.grants.peek(&caller_scope).is_some();",
    ),
    (
        "late-response-grants",
        "grants: a call sent before a denied one grants nothing",
        GRANTS,
        "any(|denied| denied >= sent)",
        "any(|_| false)",
    ),
    (
        "denial-not-remembered",
        "grants: a denial is remembered for denial_ttl",
        PENDING,
        "refusal.filter(|refusal| is_latest && refusal.size()",
        "refusal.filter(|refusal| false && is_latest && refusal.size()",
    ),
    (
        "denial-remembered-too-long",
        "grants: a denial is not remembered for longer than denial_ttl",
        PENDING,
        "let until = now + tables.settings.denial_ttl;",
        "let until = now + 2 * tables.settings.denial_ttl;",
    ),
    (
        "old-denial-remembered",
        "grants: a denial of a call sent before the proof is not remembered",
        PENDING,
        "let is_latest = !self.was_proved_later && tables.proved(&caller_scope).is_none_or(|proved| proved <= self.sent);",
        "let is_latest = true;",
    ),
    (
        "grant-for-all-scopes",
        "grants: a grant and a denial are for one operation and project",
        CACHE_REQUEST,
        "CallerScope { caller, scope: key.scope().clone() };\n        Some(CacheRequest",
        "{\n            static FIRST: std::sync::OnceLock<crate::request::key::Scope> = std::sync::OnceLock::new();\n"
        "            CallerScope { caller, scope: FIRST.get_or_init(|| key.scope().clone()).clone() }\n        };\n        Some(CacheRequest",
    ),
    (
        "grant-for-all-callers",
        "grants: a grant and a denial are for one credential",
        CACHE_REQUEST,
        "CallerScope { caller, scope: key.scope().clone() };\n        Some(CacheRequest",
        "{\n            static FIRST: std::sync::OnceLock<Caller> = std::sync::OnceLock::new();\n"
        "            CallerScope { caller: *FIRST.get_or_init(|| caller), scope: key.scope().clone() }\n        };\n        Some(CacheRequest",
    ),
    (
        "no-proof-needed",
        "invariant 2: no proof, no share",
        LOOK_UP,
        "            GrantState::Granted => {\n                return",
        "            GrantState::Granted | GrantState::Unknown => {\n                return",
    ),
    (
        "lapsed-grant-counts",
        "grants: a lapsed grant shows nothing until the caller's own call has failed",
        LOOK_UP,
        "            GrantState::Granted => {\n                return",
        "            GrantState::Granted | GrantState::Lapsed { .. } => {\n                return",
    ),
    (
        "unproved-joins-shared-flight",
        "coalescing: a caller without a grant joins no shared flight",
        LOOK_UP,
        "let cache_key = CacheKey { owner: Some(caller), key: Arc::clone(&lookup.key) };",
        "let cache_key = self.store.cache_key(&lookup.key, caller);",
    ),
    (
        "refusal-to-all-waiters",
        "coalescing: nobody gets another caller's refusal",
        RELEASE,
        "Verdict::Personal => is_own && is_valid(),",
        "Verdict::Personal => is_valid(),",
    ),
    (
        "no-check-at-release",
        "grants: the grant is checked again when a waiter is released",
        RELEASE,
        "|| is_granted() && self.memory.store",
        "|| self.memory.store",
    ),
    (
        "failure-to-all-waiters",
        "coalescing: a failure goes to granted waiters only",
        RELEASE,
        "Verdict::Throttled | Verdict::Failure => is_own || is_granted(),",
        "Verdict::Throttled | Verdict::Failure => true,",
    ),
    (
        "call-error-to-all-waiters",
        "coalescing: a missing response goes to granted waiters only, too",
        RELEASE,
        "Err(error) if is_own || is_granted() =>",
        "Err(error) =>",
    ),
    (
        "leader-429-to-all-waiters",
        "coalescing: a 429 may concern the leader alone",
        RELEASE,
        "None if fetched.verdict == Verdict::Throttled && !is_own",
        "None if false && fetched.verdict == Verdict::Throttled && !is_own",
    ),
    (
        "every-waiter-retries-429",
        "coalescing: after three leaders with a 429, all waiters get the 429",
        RELEASE,
        "&& !is_own && !role.is_last => Release::ElectLeader",
        "&& !is_own => Release::ElectLeader",
    ),
    (
        "purge-ignored-at-release",
        "grants: the purge epoch is checked when a waiter is released",
        STORE,
        "Epoch(self.purges) == epoch && (cache_key",
        "epoch.0 <= self.purges && (cache_key",
    ),
    (
        "purge-ignored-at-store",
        "grants: the purge epoch is checked when a response is stored",
        STORE,
        "if Epoch(sharing.purges) != epoch {",
        "if false && Epoch(sharing.purges) != epoch {",
    ),
    (
        "older-replaces-newer",
        "freshness: a response that was sent for earlier does not replace a newer one",
        STORE,
        "|before| before.sent_by() >= builder.sent()",
        "|before| false && before.sent_by() >= builder.sent()",
    ),
    (
        "grace-after-another-failure",
        "grants: only a failure of the caller's own call gives grace",
        RELEASE,
        "Err(error) if is_own || is_granted() => {\n                "
        "return Release::Respond(self.error_response(error, stale(), record));\n            }",
        "Err(error) => {\n                let stale = self.stale_on_error(is_external);\n"
        "                return Release::Respond(self.error_response(error, stale, record));\n            }",
    ),
    (
        "grace-unbounded",
        "grants: grace ends outage_grace after the last proof",
        GRANTS,
        "outage_grace.is_none_or(|grace| now.saturating_duration_since(self.proved) >= grace)",
        "outage_grace.is_none()",
    ),
    (
        "grace-despite-refuse",
        'grants: on_outage = "refuse" switches grace off',
        ASSEMBLE,
        "(grants.on_outage == OnOutage::Serve).then_some(",
        "true.then_some(",
    ),
    (
        "stale-if-error-too-long",
        "freshness: stale responses end stale_if_error after their ttl",
        FRESHNESS,
        "} else if age < ttl.saturating_add(stale_if_error) {",
        "} else if age < ttl.saturating_add(2 * stale_if_error) {",
    ),
    (
        "divergence-detection-off",
        "divergence: alternating observations turn a scope private",
        STORE,
        "} else if observations.add(observation) {",
        "} else if observations.add(observation) && false {",
    ),
    (
        "divergence-detected-too-early",
        "divergence: a single difference is a catalogue change",
        DIVERGENCE,
        "self.0.len() >= MIN_ALTERNATIONS",
        "self.0.len() >= MIN_ALTERNATIONS / 2",
    ),
    (
        "overlapping-calls-compared",
        "divergence: overlapping calls are not compared",
        DIVERGENCE,
        "if observation.sent < last.received {",
        "if observation.sent < last.sent {",
    ),
    (
        "sharing-caller-ignored",
        'sharing: with sharing = "caller", entries belong to one caller',
        PRIVATE,
        "scope.operation().sharing == Sharing::Caller\n            || self.0",
        "self.0",
    ),
    (
        "uncacheable-not-remembered",
        "coalescing: a response that must not be stored is remembered as uncacheable",
        STORE,
        "filter(|mark| now < mark.until)",
        "filter(|mark| now > mark.until)",
    ),
    (
        "no-store-to-waiters",
        "coalescing: a response that must not be stored goes to its leader only",
        RELEASE,
        "Verdict::Proof(Err(_)) | Verdict::InvalidBody(_) => false,",
        "Verdict::Proof(Err(_)) | Verdict::InvalidBody(_) => is_granted(),",
    ),
    (
        "unproved-marks-for-all",
        "invariant 3: a caller without a grant marks nothing for others",
        SETTLE,
        "Verdict::InvalidBody(reason) => Some(self.mark_uncacheable(reason)),",
        "Verdict::InvalidBody(reason) => {\nself.mark(&self.current_cache_key(), reason);\nSome(reason)\n}",
    ),
    (
        "denied-leader-marks-for-all",
        "invariant 3: a caller that was denied meanwhile marks nothing for others",
        SETTLE,
        "|| self.memory.grants.is_granted(&self.request.lookup.caller_scope, self.times.received)",
        "|| self.times.received >= self.times.sent",
    ),
    (
        "extra-headers-404-for-all",
        "invariant 1: a call that sends more than its key stores no negative response for others",
        FETCH,
        "!(is_key_only && call.is_trusted())",
        "!(call.is_trusted() || is_key_only)",
    ),
    (
        "relayed-denial-ignored",
        "grants: a denial on a relayed request ends the grant, too",
        "src/gateway/forward.rs",
        "status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN && pending_grant.scope().is_some()",
        "pending_grant.scope().is_none() && status == StatusCode::UNAUTHORIZED",
    ),
    (
        "incomplete-401-keeps-grants",
        "invariant 9: a 401 with an incomplete body rejects the credential",
        SETTLE,
        "pending_grant.refused(RefusedBy::ApiGateway, None, self.times.received)",
        "pending_grant.refused(RefusedBy::Service, None, self.times.received)",
    ),
    (
        "elections-unbounded",
        "coalescing: after three elections a request makes its own call",
        GATEWAY,
        "attempts.number > MAX_ELECTIONS",
        "attempts.number > 1_000",
    ),
    (
        "deadline-too-late",
        "coalescing: a waiter waits until its own deadline",
        GATEWAY,
        "Timers::begin(request.active.answer_timeout +",
        "Timers::begin(2 * request.active.answer_timeout +",
    ),
    (
        "waiters-unbounded",
        "coalescing: beyond max_waiters a request makes its own call",
        FLIGHTS,
        "caller, self.shared.limits().waiting)",
        "caller, usize::MAX)",
    ),
    (
        "flights-unbounded",
        "coalescing: beyond max_flights a request makes its own call",
        FLIGHTS,
        "take(caller, limits.flights)",
        "take(caller, usize::MAX)",
    ),
    (
        "flights-survive-purge",
        "coalescing: nobody joins a flight from before a purge",
        ASSEMBLE,
        "        self.fetcher.shared_flights.close_all();\n",
        "",
    ),
    (
        "caller-flights-survive-purge",
        "coalescing: nobody joins a flight of a single caller from before a purge",
        ASSEMBLE,
        "        self.fetcher.lone_flights.close_all();\n",
        "",
    ),
    (
        "same-limit-for-all-flights",
        "coalescing: flights of a single caller do not count against the shared ones",
        "src/gateway/fetcher.rs",
        "if cache_key.owner.is_none() { &self.shared_flights } else { &self.lone_flights }",
        "&self.shared_flights",
    ),
    (
        "stale-while-revalidate-too-long",
        "freshness: stale-while-revalidate ends",
        FRESHNESS,
        "} else if age < ttl.saturating_add(stale_while_revalidate) {",
        "} else if age < ttl.saturating_add(2 * stale_while_revalidate) {",
    ),
    (
        "background-call-twice",
        "coalescing: there is one background call at a time, too",
        BACKGROUND,
        "if let Some(leader) = self.fetcher.flights(&cache_key).begin(&cache_key, caller) {",
        "if let (_, Some(leader)) = self.fetcher.flights(&cache_key).solo(caller.caller) {",
    ),
    (
        "stale-despite-negative",
        "freshness: a newer negative response prevents stale responses",
        LOOK_UP,
        "directives.takes_stale() && negative.is_none() &&",
        "directives.takes_stale() &&",
    ),
    (
        "stale-despite-uncacheable",
        "freshness: an uncacheable mark prevents stale responses",
        LOOK_UP,
        "&& negative.is_none() && !is_uncacheable();",
        "&& negative.is_none();",
    ),
    (
        "negative-ttl-ignored",
        "freshness: a negative response lives for negative_ttl",
        LOOK_UP,
        "negative.as_ref().filter(|negative| accepted(negative))",
        "negative.as_ref().filter(|_| true)",
    ),
    (
        "negative-from-any-caller",
        "freshness: only a granted caller stores a negative response",
        SETTLE,
        "if self.is_for_caller_alone || !is_key_only || !is_granted || fresh",
        "if self.is_for_caller_alone || !is_key_only || fresh",
    ),
    (
        "extra-headers-negative-stored",
        "invariant 1: a call that sends more than its key stores no negative response",
        SETTLE,
        "if self.is_for_caller_alone || !is_key_only || !is_granted || fresh",
        "if self.is_for_caller_alone || !is_granted || fresh",
    ),
    (
        "older-negative-replaces-newer",
        "freshness: a negative response that was sent for earlier does not replace a newer one",
        STORE,
        "|known| known.freshness_info().sent >= negative.freshness_info().sent",
        "|known| false && known.freshness_info().sent >= negative.freshness_info().sent",
    ),
    (
        "stale-if-slow-too-early",
        "coalescing: a request that may take a stale entry waits for stale_if_slow",
        WAIT,
        "sleep(stale_if_slow)",
        "sleep(stale_if_slow / 2)",
    ),
    (
        "stale-if-slow-too-late",
        "coalescing: a request that may take a stale entry waits no longer than stale_if_slow",
        WAIT,
        "sleep(stale_if_slow)",
        "sleep(2 * stale_if_slow)",
    ),
    (
        "unproved-call-conditional",
        "grants: a call that proves its caller is unconditional",
        LOOK_UP,
        "miss, stored: None,",
        "miss, stored: self.store.get(&self.store.cache_key(&lookup.key, caller)),",
    ),
    (
        "any-304-proves",
        "grants: a 304 proves its caller only if it names the list of the request",
        "src/gateway/upstream_result.rs",
        "if validator.is_meant_by(response.headers()) => {",
        "if validator.is_meant_by(response.headers()) || true => {",
    ),
    (
        "no-cache-joins",
        "directives: no-cache joins no earlier flight",
        GATEWAY,
        "|| attempts.number > MAX_ELECTIONS || request.lookup.directives.no_cache;",
        "|| attempts.number > MAX_ELECTIONS;",
    ),
    (
        "no-cache-hit",
        "directives: no-cache is not answered from memory",
        DIRECTIVES,
        "!self.no_cache && self.accepts_age(age)",
        "self.accepts_age(age)",
    ),
    (
        "no-cache-gets-stale",
        "directives: no-cache gets a stale response only if upstream fails",
        DIRECTIVES,
        "!self.no_cache && self.max_age.is_none()",
        "self.max_age.is_none()",
    ),
    (
        "max-age-ignored",
        "directives: max-age limits the age",
        DIRECTIVES,
        "|max_age| age <= max_age",
        "|_| true",
    ),
    (
        "min-fresh-ignored",
        "directives: min-fresh limits the remaining freshness",
        DIRECTIVES,
        "|min_fresh| left >= min_fresh",
        "|_| true",
    ),
    (
        "only-if-cached-calls",
        "directives: only-if-cached makes no call",
        GATEWAY,
        "if request.lookup.directives.only_if_cached {",
        "if false && request.lookup.directives.only_if_cached {",
    ),
    (
        "only-if-cached-refreshes",
        "directives: only-if-cached makes no background call",
        GATEWAY,
        "if !request.lookup.directives.only_if_cached {",
        "if !request.lookup.directives.only_if_cached || true {",
    ),
    (
        "one-caller-backs-off-all",
        "backoff: a 429 to one caller is no backoff for others",
        BACKOFFS,
        "for other in self.failed.iter().filter(|other| other.caller != added.caller) {",
        "self.all_callers = self.all_callers.max(Some(added.until));\n        for other in self.failed.iter().filter(|_| false) {",
    ),
    (
        "two-callers-back-off-none",
        "backoff: failures of two callers are a backoff for all",
        BACKOFFS,
        "if second.began < first.until {",
        "if false && second.began < first.until {",
    ),
    (
        "backoff-unbounded",
        "backoff: Retry-After counts for one minute at most",
        BACKOFFS,
        "span.min(LONGEST)",
        "span.min(10 * LONGEST)",
    ),
    (
        "backoff-shortened",
        "backoff: a shorter backoff does not end a longer one",
        BACKOFFS,
        "before.until = before.until.max(added.until);",
        "before.until = before.until.min(added.until);",
    ),
    (
        "retry-after-ignored",
        "backoff: Retry-After sets the length of a backoff",
        SETTLE,
        "(BackoffCause::Throttled, after.unwrap_or(backoff))",
        "(BackoffCause::Throttled, backoff)",
    ),
    (
        "extra-headers-failure-for-all",
        "invariant 1: a failed call that sent more than its key is no backoff for others",
        SETTLE,
        "let concerns_key = self.is_key_only || is_private;",
        "let concerns_key = true;",
    ),
    (
        "unproved-failure-for-all",
        "invariant 3: a failure of a caller without a grant is no backoff for others",
        SETTLE,
        "GrantState::Lapsed { .. } | GrantState::Unknown | GrantState::Denied { .. } => return,",
        "GrantState::Lapsed { .. } | GrantState::Unknown | GrantState::Denied { .. } => true,",
    ),
    (
        "backoffs-survive-purge",
        "backoff: a purge removes backoffs",
        ASSEMBLE,
        "        self.memory.backoffs.purge(selection);\n",
        "",
    ),
    (
        "fast-path-without-grant",
        "grants: the fast path checks the grant",
        LOOK_UP,
        "let GrantUse::Granted { until } = self.grants.use_grant(&lookup.caller_scope, now) else { return None };",
        "let until = match self.grants.use_grant(&lookup.caller_scope, now) {\n"
        "GrantUse::Granted { until } => until, GrantUse::NotGranted => now, GrantUse::RenewalDue => return None };",
    ),
    (
        "fast-path-gives-stale",
        "freshness: the fast path gives fresh responses only",
        LOOK_UP,
        "accepts(lookup.directives, &entry, now).then_some((entry, until))",
        "Some((entry, until))",
    ),
    (
        "remembered-entry-given-stale",
        "freshness: an entry that is remembered on the fast path is given while it is fresh",
        REMEMBERED,
        "return accepts(remembered.directives, &entry, now).then_some(entry);",
        "return Some(entry);",
    ),
    (
        "remembered-entry-after-revocation",
        "grants: an entry that is remembered on the fast path is not given after a revocation",
        REMEMBERED,
        "self.revision == revision && now < self.until",
        "now < self.until",
    ),
    (
        "remembered-entry-too-long",
        "renewals: an entry that is remembered on the fast path is given until a renewal may be due",
        REMEMBERED,
        "self.revision == revision && now < self.until",
        "self.revision == revision",
    ),
    (
        "remembered-entry-after-a-later-one",
        "freshness: an entry that is remembered on the fast path is not given after a later one was stored",
        REMEMBERED,
        "is_unchanged && !entry.is_replaced()",
        "is_unchanged",
    ),
    (
        "grace-without-own-call",
        "grants: grace needs a failed call of the caller's own",
        LOOK_UP,
        "&& self.backoffs.is_active_for_owner(&cache_key, now)\n",
        "&& !self.backoffs.is_active_for_owner(&cache_key, now)\n",
    ),
    (
        "client-no-store-ignored",
        "directives: the response to a request with no-store is not stored",
        DIRECTIVES,
        "if directives.has(\"no-store\") {",
        "if false && directives.has(\"no-store\") {",
    ),
    (
        "no-store-denial-remembered",
        "directives: a denial with no-store is not remembered",
        SETTLE,
        "may_store.then(",
        "(may_store || true).then(",
    ),
    (
        "own-error-before-invalidation",
        "invalidation: a response sent for before it goes to its leader only",
        RELEASE,
        "Verdict::Personal => is_own && is_valid(),",
        "Verdict::Personal => is_own,",
    ),
    (
        "negative-before-invalidation-shared",
        "invalidation: a negative response sent for before it goes to its leader only",
        RELEASE,
        "Verdict::Negative => is_own && is_valid() || may_share(),",
        "Verdict::Negative => is_own || may_share(),",
    ),
    (
        "list-before-invalidation-shared",
        "invalidation: a product list sent for before it is not shared",
        STORE,
        "sharing.may_share(cache_key, epoch) && !sharing.invalidations.covers(cache_key.key.scope(), sent)",
        "sharing.may_share(cache_key, epoch) && sent == sent",
    ),
    (
        "list-before-invalidation-stored",
        "invalidation: a product list sent for before it is not stored",
        STORE,
        "let result = if sharing.invalidations.covers(scope, builder.sent()) {",
        "let result = if false && sharing.invalidations.covers(scope, builder.sent()) {",
    ),
    (
        "invalidated-entry-given",
        "invalidation: entries sent for before it are not given",
        STORE,
        ".filter(|entry| !self.is_invalidated(cache_key.key.scope(), entry.freshness_info().sent))",
        "",
    ),
    (
        "invalidated-entry-on-error",
        "invalidation: they are not given in an outage or by grace either",
        LOOK_UP,
        "self.store.get(&self.store.cache_key(&lookup.key, lookup.caller_scope.caller))?;\n        let freshness_info",
        "self.store.get_for_validation(&self.store.cache_key(&lookup.key, lookup.caller_scope.caller))?;\n"
        "        let freshness_info",
    ),
    (
        "invalidated-entry-on-fast-path",
        "invalidation: they are not given on the fast path either",
        LOOK_UP,
        "self.store.get(&self.store.cache_key(&lookup.key, lookup.caller_scope.caller))?;\n        accepts(",
        "self.store.get_for_validation(&self.store.cache_key(&lookup.key, lookup.caller_scope.caller))?;\n        accepts(",
    ),
    (
        "invalidated-negative-given",
        "invalidation: negative responses sent for before it are not given",
        STORE,
        ".filter(|negative| !self.is_invalidated(cache_key.key.scope(), negative.freshness_info().sent))",
        "",
    ),
    (
        "invalidated-entry-not-validated",
        "invalidation: upstream is asked to confirm entries sent for before it",
        LOOK_UP,
        "entry.clone().or_else(|| self.store.get_for_validation(&cache_key))",
        "entry.clone()",
    ),
    (
        "unproved-invalidates",
        "invalidation: only a granted caller invalidates",
        INVALIDATE,
        "if !is_success || !self.memory.grants.is_granted(&self.caller_scope, at) {",
        "if !is_success {",
    ),
    (
        "error-status-invalidates",
        "invalidation: only a 2xx or 3xx invalidates",
        INVALIDATE,
        "if !is_success || !self.memory.grants.is_granted(",
        "if !self.memory.grants.is_granted(",
    ),
    (
        "error-code-invalidates",
        "invalidation: a body with error_code does not invalidate",
        INVALIDATE,
        "self.is_error = admission::has_error_code(&beginning);",
        "self.is_error = false && admission::has_error_code(&beginning);",
    ),
    (
        "nothing-invalidates",
        "invalidation: an unsafe method invalidates",
        INVALIDATE,
        "if head.method.is_safe() {",
        "if head.method.is_safe() || true {",
    ),
    (
        "all-scopes-invalidated",
        "invalidation: it concerns its own scope only",
        "src/cache/store/invalidations.rs",
        "times.scopes.insert(scope.clone(), before.map_or(at, |before| before.max(at)));",
        "times.operation = times.operation.max(Some(at));",
    ),
    (
        "invalidation-purges",
        "invalidation: it is not a purge",
        STORE,
        "self.write().invalidations.add(scope, at);",
        "{\nlet mut sharing = self.write();\nsharing.purges += 1;\nsharing.invalidations.add(scope, at);\n}",
    ),
    (
        "mark-beside-fresh-for-all",
        "invariant 3: a mark beside a fresh entry belongs to its caller",
        SETTLE,
        "Some(entry) if is_fresh(&entry) => cache_key.of(self.request.lookup.caller_scope.caller),",
        "Some(entry) if false && is_fresh(&entry) => cache_key.of(self.request.lookup.caller_scope.caller),",
    ),
    (
        "own-mark-ignored",
        "invariant 3: a caller with a mark of its own makes its own calls",
        STORE,
        "mark(cache_key).or_else(|| mark(&cache_key.of(caller)))",
        "mark(cache_key).or_else(|| mark(&cache_key.of(caller)).filter(|_| cache_key.owner.is_some()))",
    ),
    (
        "vary-only-for-scope",
        "divergence: a response that varies on the credential makes the whole operation private",
        STORE,
        "let varies = audience == Audience::Caller && sharing.private.add_operation(scope.operation());",
        "let varies = audience == Audience::Caller && sharing.private.add(scope) == PrivateExtent::Scope;",
    ),
    (
        "vary-ignored",
        "divergence: a response that varies on the credential is not shared",
        STORE,
        "let varies = audience == Audience::Caller && sharing",
        "let varies = false && sharing",
    ),
    (
        "project-purge-shares-operation",
        "divergence: a purge of a project does not make an operation shared again",
        SELECTION,
        "let matches_name = self.operation.as_deref().is_none_or(|name| *name == *operation.name);\n"
        "        self.query.is_none() && self.project_id.is_none() && matches_name",
        "let matches_name = self.operation.as_deref().is_none_or(|name| *name == *operation.name);\n"
        "        self.query.is_none() && matches_name",
    ),
    (
        "blanks-not-trimmed",
        "invariant 8: blanks around a token are not part of it",
        VALIDATE,
        "head.headers.values_mut().filter(|value| has_blanks(value)).for_each(trim);",
        "",
    ),
    (
        "trailing-blanks-not-trimmed",
        "invariant 8: blanks after a token are not part of it",
        VALIDATE,
        "let end = text.len() - text",
        "let end = text.len() - 0 * text",
    ),
    (
        "blanks-in-http2-accepted",
        "invariant 8: blanks around a value are malformed in HTTP/2",
        VALIDATE,
        "if head.version >= Version::HTTP_2 {",
        "if false {",
    ),
    (
        "two-tokens-accepted",
        "invariant 8: two token fields are rejected, even if they are equal",
        VALIDATE,
        "if tokens > 1 || !value",
        "if !value",
    ),
    (
        "underscore-token-accepted",
        "invariant 8: a token field spelled with _ is rejected",
        VALIDATE,
        "} else if is_underscore_variant(name.as_str(), catalogue) {",
        "} else if false && is_underscore_variant(name.as_str(), catalogue) {",
    ),
    (
        "extended-grant-shows-newer",
        "invariant 9: an extended grant shows nothing that was sent for after its regular end",
        LOOK_UP,
        "(entry.sent_by() <= latest_sent && fresh",
        "(latest_sent <= now && fresh",
    ),
    (
        "local-failure-extends",
        "invariant 9: only a failure outside the gateway extends a grant",
        RELEASE,
        "self.stale_on_error(is_own && is_external)",
        "self.stale_on_error(is_own)",
    ),
    (
        "local-failure-backs-off",
        "invariant 9: a failure inside the gateway is no backoff",
        SETTLE,
        "_ if !is_external && self.cache_key.owner.is_some() => {}",
        "_ if !is_external && self.cache_key.owner.is_some() && false => {}",
    ),
    (
        "unreachable-always-external",
        "invariant 9: an unreachable upstream counts only if no call has reached it lately",
        "src/gateway/fetcher.rs",
        "Fault::Unreachable => !self.successes.is_reachable(service, now),",
        "Fault::Unreachable => true,",
    ),
    (
        "own-deadline-extends",
        "invariant 9: the request's own deadline extends no grant",
        RELEASE,
        "self.stale_on_error(false)",
        "self.stale_on_error(true)",
    ),
    (
        "401-ends-one-grant",
        "invariant 9: a 401 ends all grants of its caller in the service",
        PENDING,
        "if status == StatusCode::UNAUTHORIZED {",
        "if false && status == StatusCode::UNAUTHORIZED {",
    ),
    (
        "service-401-ends-all-grants",
        "invariant 9: the service's own 401 ends the grant of its scope only",
        "src/catalogue/error_code.rs",
        "is_service && !number.is_empty() &&",
        "false && is_service && !number.is_empty() &&",
    ),
    (
        "401-keeps-calls-in-flight",
        "invariant 9: after a 401, earlier calls of its caller in other scopes prove nothing",
        GRANTS,
        "in_scope.into_iter().chain(in_service).chain(suspended)",
        "in_scope.into_iter().chain(in_service.filter(|_| false)).chain(suspended.filter(|_| false))",
    ),
    (
        "waiters-wait-for-refusal-body",
        "invariant 9: waiters of other callers are released at the head of a refusal",
        LEADER,
        "self.publish(FlightState::Announced(result));",
        "let _ = result;",
    ),
    (
        "refused-caller-does-not-wait",
        "invariant 9: requests of the refused caller wait for the body",
        GATEWAY,
        "if outcome.result.is_refusal_of(caller) => is_refused = true,",
        "if false && outcome.result.is_refusal_of(caller) => is_refused = true,",
    ),
    (
        "refused-flight-joinable",
        "invariant 9: nobody joins a flight after the head of a refusal",
        LEADER,
        "            self.close();\n            self.publish(FlightState::Announced(result));",
        "            self.publish(FlightState::Announced(result));",
    ),
    (
        "suspended-grant-counts",
        "invariant 9: the head of a 401 suspends the grants in its service",
        GRANTS,
        "*suspensions > 0 && service_calls",
        "*suspensions > usize::MAX - 1 && service_calls",
    ),
    (
        "suspension-never-lifted",
        "invariant 9: the service's own code restores the suspended grants",
        PENDING,
        "if by == RefusedBy::ApiGateway\n            && let Some(grants)",
        "if let Some(grants)",
    ),
    (
        "late-call-proves-in-suspension",
        "invariant 9: from the head of a 401 on, earlier calls prove nothing",
        GRANTS,
        "in_scope.into_iter().chain(in_service).chain(suspended).any(",
        "in_scope.into_iter().chain(in_service).chain(suspended.filter(|_| false)).any(",
    ),
    (
        "incomplete-401-restores-grants",
        "invariant 9: a 401 with an incomplete body ends the grants that it suspended",
        SETTLE,
        "pending_grant.refused(RefusedBy::ApiGateway, None, self.times.received)",
        "pending_grant.refused(RefusedBy::Service, None, self.times.received)",
    ),
    (
        "denial-ttl-from-body",
        "invariant 9: denial_ttl counts from the head of a refusal",
        SETTLE,
        "pending_grant.refused(by, refusal, times.received);",
        "pending_grant.refused(by, refusal, self.observer.clock.now());",
    ),
    (
        "additional-call-in-outage",
        "invariant 4: an additional call is made only while upstream answers others",
        WAIT,
        "fetcher.successes.listed_since(request.lookup.key.operation().service, sent).await;",
        "let _ = sent;\n            if !is_needed() {\n                std::future::pending::<()>().await;\n            }",
    ),
    (
        "additional-call-same-caller",
        "invariant 4: an additional call is made by another caller",
        CALLS,
        "self.callers.len() < MAX_CALLS && !self.callers.contains(&caller)",
        "self.callers.len() < MAX_CALLS && (!self.callers.contains(&caller) || true)",
    ),
    (
        "four-calls",
        "invariant 4: a flight has three calls at most",
        CALLS,
        "self.callers.len() < MAX_CALLS && ",
        "self.callers.len() <= MAX_CALLS && ",
    ),
    (
        "additional-call-too-early",
        "invariant 4: an additional call is made once all calls are slow",
        FETCH,
        "sleep(request.active.stale_if_slow) => {",
        "sleep(request.active.stale_if_slow / 2) => {",
    ),
    (
        "ended-grant-leads",
        "invariant 3: a waiter whose grant has ended leads nobody",
        GATEWAY,
        "matches!(found, LookupResult::Fetch { cache_key, .. } if cache_key == role.cache_key)",
        "matches!(found, LookupResult::Fetch { .. })",
    ),
    (
        "one-failure-ends-flight",
        "invariant 4: a failure ends only its own call",
        LEADER,
        "let is_over = self.finish_call() || serves_all;",
        "let is_over = self.finish_call() || true;",
    ),
    (
        "success-ends-own-call-only",
        "invariant 4: the first success serves all waiters",
        LEADER,
        "let is_over = self.finish_call() || serves_all;",
        "let is_over = self.finish_call() || serves_all && false;",
    ),
    (
        "boot-clock-ignored",
        "invariant 12: time includes suspension",
        SKEW,
        "self.suspended = self.suspended.max(reading.boot.saturating_sub(reading.monotonic));",
        "",
    ),
    (
        "wall-clock-ignored",
        "invariant 12: a forward step of the wall clock counts as time",
        SKEW,
        "if ahead > DRIFT {",
        "if ahead > i64::MAX / 2 {",
    ),
    (
        "step-back-counts",
        "invariant 12: a step back of the wall clock changes nothing",
        SKEW,
        "self.lowest = self.lowest.min(offset);",
        "(self.stepped, self.lowest) = (self.stepped + ahead.min(0), self.lowest.min(offset));",
    ),
    (
        "fast-path-uses-timer-clock",
        "invariant 12: the fast path uses the clock of rules, too",
        REMEMBERED,
        "let now = self.clock.now();",
        "let now = self.clock.timer_now().into_std();",
    ),
    (
        "renewal-too-early",
        "renewal: not before the caller's next request could come after the end of the grant",
        RENEWAL,
        "left <= lead + jitter &&",
        "left <= 2 * lead + jitter &&",
    ),
    (
        "renewal-in-backoff",
        "renewal: none during a backoff",
        BACKGROUND,
        "|| self.memory.backoffs.is_active_for(&shared_key, &lookup.caller_scope, now)",
        "",
    ),
    (
        "renewal-for-only-if-cached",
        "renewal: only-if-cached starts none",
        BACKGROUND,
        "if lookup.directives.only_if_cached {",
        "if false {",
    ),
    (
        "two-renewals",
        "renewal: one call at a time for a caller and scope",
        PROVE,
        "let proof = fetcher.proofs.begin(caller_scope, caller)?;",
        "let proof = fetcher.proofs.solo(caller.caller).1?;",
    ),
    (
        "no-wait-for-proof",
        "one proof: the other requests of a caller wait for its first proof in a scope",
        PROVE,
        ".join(caller_scope, FlightCaller { caller: caller_scope.caller, is_known: class != Class::Unknown }),",
        ".solo(caller_scope.caller),",
    ),
    (
        "one-shared-proof",
        "one proof: if a call proves nothing, one of the waiting requests makes the next",
        ROLE,
        "self.number >= MAX_PROOFS || self.has_timed_out",
        "self.number >= MAX_PROOFS - 2 || self.has_timed_out",
    ),
    (
        "same-request-waits-for-proof",
        "one proof: a request with the key of a call in flight gets its result",
        PROVE,
        "if waits.are_over() || fetcher.lone_flights.is_in_flight(cache_key) {",
        "if waits.are_over() {",
    ),
    (
        "held-extends-grant",
        "quotas: a call that is not sent extends no grant",
        "src/gateway/fetch_result.rs",
        "let (response, is_external, may_retry) = (Err(error), false, false);",
        "let (response, is_external, may_retry) = (Err(error), true, false);",
    ),
    (
        "held-unproved-gets-stale",
        "quotas: a caller without a grant that is held back gets nothing stale",
        LOOK_UP,
        "LookupResult::Fetch { cache_key, miss, stored: None, has_stale: false }",
        "let stored = self.store.get(&self.store.cache_key(&lookup.key, caller));\n"
        "        LookupResult::Fetch { cache_key, miss, has_stale: stored.is_some(), stored }",
    ),
    (
        "held-gets-no-stale",
        "quotas: a granted caller that is held back gets a stale response at once, if there is one",
        GATEWAY,
        "if let Some(entry) = stored.filter(|_| has_stale)",
        "if let Some(entry) = stored.filter(|_| has_stale && false)",
    ),
    (
        "stale-although-not-held",
        "quotas: only a caller that is held back gets a stale response for that reason",
        GATEWAY,
        "&& self.fetcher.held_for(request, self.memory.class_of(request, now)).is_some()\n",
        "",
    ),
    (
        "held-429-is-backoff",
        "quotas: the gateway's own 429 is remembered for nobody",
        FETCH,
        "let epoch = self.memory.store.epoch();\n                        return leader.end(",
        "let (epoch, now) = (self.memory.store.epoch(), self.clock.now());\n"
        "                        let (scope, span) = (&request.lookup.caller_scope, request.active.backoff);\n"
        "                        self.memory.backoffs.begin_for_caller(scope, span, now);\n"
        "                        return leader.end(",
    ),
    (
        "user-limit-holds-everybody",
        "quotas: a user's limit holds back that caller alone",
        LEARN,
        "Some(self.caller_limits(caller, draw.is_proved, now).slot(policy)),",
        "Some(&mut self.ip),",
    ),
    (
        "one-caller-learns-for-all",
        "quotas: a limit of all callers that one proved caller has met holds back no other proved caller",
        LIMIT,
        "Source::Learnt { only: Some(_), .. } if draw.is_proved => None,",
        "Source::Learnt { only: Some(_), .. } if draw.is_proved && false => None,",
    ),
    (
        "throttled-again-and-again",
        "quotas: a call is repeated once after a 429",
        FETCH,
        "is_waited_for && !has_stale && throttled.is_none()",
        "is_waited_for && !has_stale && (throttled.is_none() || true)",
    ),
    (
        "former-leader-repeats-again",
        "quotas: a call is repeated once after a 429, also if it led a flight",
        COALESCE,
        "self.throttled = Some(begun);",
        "self.throttled = Some(begun).filter(|_| false);",
    ),
    (
        "retry-after-not-waited-for",
        "quotas: a call is repeated after a 429 that names no limit when its `Retry-After` has passed",
        FETCH,
        "let wait = held.max(asked);",
        "let wait = held;",
    ),
    (
        "asked-caller-not-held",
        "quotas: a caller that upstream has asked to wait does so",
        FETCH,
        "if let Some(asked) = asked {",
        "if let Some(asked) = asked.filter(|_| false) {",
    ),
    (
        "repeated-despite-stale",
        "quotas: a call is not repeated if there is something stale",
        FETCH,
        "is_waited_for && !has_stale && throttled.is_none()",
        "is_waited_for && (!has_stale || true) && throttled.is_none()",
    ),
    (
        "repeated-without-wait",
        "quotas: a call is repeated only after the wait for its limit",
        FETCH,
        "throttled = Some(fetch_begun);\n",
        "throttled = Some(fetch_begun);\n                        turn = Some((key_turn, permit));\n",
    ),
    (
        "turn-after-deadline",
        "quotas: a call waits for its turn until the deadline only",
        FETCH,
        "request.active.answer_timeout.saturating_sub(self.clock.timer_now() - fetch_begun)",
        "(2 * request.active.answer_timeout).saturating_sub(self.clock.timer_now() - fetch_begun)",
    ),
    (
        "held-call-not-looked-up-again",
        "quotas: a call whose turn comes is not sent if it can be answered from memory",
        FETCH,
        "LookupResult::Hit(..) => return leader.end(FetchResult::NotSent { throttled }, false),",
        "LookupResult::Hit(entry, _) => Some(entry),",
    ),
    (
        "held-leader-leads",
        "quotas: a leader that a limit of its own holds back leads nobody",
        FETCHER,
        "self.gate.has_to_wait(service, &request.gate_call(class)) ||",
        "false && self.gate.has_to_wait(service, &request.gate_call(class)) ||",
    ),
    (
        "limit-exceeded",
        "quotas: no call is sent that upstream would refuse",
        LIMITER,
        "self.free_at_for(self.calls(), self.used(),",
        "self.free_at_for(self.calls() + 1, self.used(),",
    ),
    (
        "configured-limit-ends",
        "quotas: a configured limit is in force from the start",
        LIMITS,
        "self.create_configured(draw, now);",
        "",
    ),
    (
        "held-call-is-forgotten",
        "quotas: a call gets its turn when its limit allows it",
        SCHEDULE,
        "self.held_until.into_iter().chain(shared).min()",
        "self.held_until.into_iter().chain(shared.filter(|_| false)).min()",
    ),
    (
        "stale-beyond-lifetime-while-held",
        "quotas: a stale response while held is within its stale lifetime",
        LOOK_UP,
        "Freshness::Gone => {}",
        "Freshness::Gone => has_stale = true,",
    ),
    (
        "changed-limit-unnoticed",
        "quotas: a limit that upstream has changed releases the calls that it held back",
        PACING,
        "if !changes.is_empty() {",
        "if false && !changes.is_empty() {",
    ),
    (
        "tier-never-answers",
        "tier: what the second tier has is not fetched again",
        SECOND_TIER,
        "let is_answered = match purpose {",
        "let is_answered = false && match purpose {",
    ),
    (
        "tier-asked-before-proof",
        "tier: the second tier is asked for an entry only for callers with a grant",
        SECOND_TIER,
        "(grant.is_some() || for_all && entry.is_some());\n        let lease = match (&grant, &entry) {",
        "(grant.is_some() || entry.is_some());\n        let grant = grant.filter(|_| false);\n"
        "        let lease = match (&grant, &entry) {",
    ),
    (
        "age-in-tier-not-counted",
        "tier: the time that a record was in the tier counts as its age",
        SECOND_TIER,
        "configured, now.checked_sub(passed.longest)?)?",
        "configured, now)?",
    ),
    (
        "only-clock-of-tier-counts",
        "tier: the wall clock counts, too, so a tier whose clock is set back makes nothing younger",
        TIER,
        "written.moment.until(&now)?.max(on_tier)",
        "on_tier",
    ),
    (
        "only-wall-clock-counts",
        "tier: the clock of the tier counts, too, so a wall clock that is set back makes nothing younger",
        TIER,
        "written.moment.until(&now)?.max(on_tier)",
        "written.moment.until(&now)?",
    ),
    (
        "purge-not-told",
        "tier: a purge makes records void",
        ASSEMBLE,
        "        self.memory.second_tier.iter().for_each(|tier| tier.purged(selection));\n",
        "",
    ),
    (
        "invalidation-not-told",
        "fleet: an invalidation makes the records of its scope void",
        INVALIDATE,
        "            self.memory.second_tier.iter().for_each(|tier| tier.invalidated(&self.scope));\n",
        "",
    ),
    (
        "private-scope-not-told",
        "tier: records of what becomes private are void",
        SETTLE,
        "self.memory.second_tier.iter().for_each(|tier| match extent {",
        "self.memory.second_tier.iter().filter(|_| false).for_each(|tier| match extent {",
    ),
    (
        "record-in-no-project",
        "tier: a purge of a project makes its records void",
        TIER,
        "            selection(None, Some(project_id), None),\n",
        "            selection(Some(operation), None, None),\n",
    ),
    (
        "record-in-no-operation",
        "tier: a purge of an operation makes its records void",
        TIER,
        "            selection(Some(operation), None, None),\n",
        "            selection(None, Some(project_id), None),\n",
    ),
    (
        "ticket-not-sealed",
        "tier: a record is sealed with its ticket, so an old one cannot be given as a new one",
        TIER,
        "[&b\"entry\"[..], &incarnation, &number.to_le_bytes(),",
        "[&b\"entry\"[..], &incarnation, &[0; 8],",
    ),
    (
        "record-for-any-query",
        "tier: a record is named and sealed with its full key",
        RECORD,
        "std::iter::once(key.query().as_bytes()).chain(fields)",
        "std::iter::empty().chain(fields)",
    ),
    (
        "record-for-any-project",
        "tier: a record is named and sealed with its scope",
        RECORD,
        "[operation.service.as_str(), &meaning, &origin, scope.path()]",
        "[operation.service.as_str(), &meaning, &origin]",
    ),
    (
        "hanging-tier-delays",
        "tier: a request waits for the second tier for 8 ms at most",
        SECOND_TIER,
        "timeout(self.time_limit,",
        "timeout(1000 * self.time_limit,",
    ),
    (
        "copy-counts-as-older",
        "tier: a lapsed grant shows no copy that may have been sent for after its end",
        SECOND_TIER,
        "builder.sent_by(sent_by)",
        "builder",
    ),
    (
        "restored-grant-counts",
        "snapshot: a grant from a snapshot counts as lapsed",
        RESTORE,
        "Grant { basis, ..Grant::new(proved, sequence) }",
        "Grant::new(proved, sequence)",
    ),
    (
        "restored-grant-covers-newer",
        "snapshot: a grant from a snapshot covers nothing that was sent for later than the snapshot",
        RESTORE,
        "covers_until.map_or(written, |until| until.min(written))",
        "written + tables.settings.grant_ttl",
    ),
    (
        "time-between-processes-not-counted",
        "snapshot: the time until the next process starts counts",
        SNAPSHOT,
        "self.written = passed.and_then(|passed| self.now.checked_sub(passed));",
        "self.written = passed.map(|_| self.now);",
    ),
    (
        "private-scopes-not-restored",
        "snapshot: what has become private stays so",
        SNAPSHOT,
        "memory.store.restore_private(&scope.private(catalogue)?),",
        "drop(scope.private(catalogue)?),",
    ),
    (
        "entries-not-restored",
        "snapshot: what the snapshot has is not fetched again",
        SNAPSHOT,
        "memory.store.insert_copy((&key, owner), copy, self.epoch)",
        "false",
    ),
    (
        "proofs-not-restored",
        "snapshot: after a restart in an outage, callers get what they could see before",
        SNAPSHOT,
        "if written.is_some_and(|written| self.memory.grants.restore(proofs, written)) {",
        "if false && written.is_some_and(|written| self.memory.grants.restore(proofs, written)) {",
    ),
    (
        "void-proof-borrowed",
        "fleet: no proof is borrowed that a known denial makes void",
        FLEET_GRANTS,
        "if !is_better || !is_valid() {",
        "if !is_better {",
    ),
    (
        "borrowed-counts-out-of-sync",
        "fleet: a borrowed grant counts only in sync",
        GRANTS,
        "Self::Borrowed { .. } => sync.is_some_and(|sync| sync.is_in_sync(now)),",
        "Self::Borrowed { .. } => true,",
    ),
    (
        "in-sync-for-ever",
        "fleet: being in sync ends",
        FLEET_SYNC,
        "self.nanos(now) < self.until.load(Ordering::Acquire)",
        "self.until.load(Ordering::Acquire) > 0",
    ),
    (
        "borrowed-covers-later",
        "fleet: a borrowed grant covers nothing after the end of being in sync",
        GRANTS,
        "Self::Borrowed { at } => Some(sync.and_then(FleetSync::knows_until).map_or(at, |ended| ended.max(at))),",
        "Self::Borrowed { .. } => None,",
    ),
    (
        "borrowed-proof-becomes-own",
        "fleet: the time of a borrowed proof does not become the time of an own one",
        PENDING,
        "let own = tables.grant(&caller_scope).filter(|grant| matches!(grant.basis, Basis::Own));",
        "let own = tables.grant(&caller_scope);",
    ),
    (
        "borrowed-restored-as-own",
        "fleet: a borrowed grant in a snapshot covers nothing after the end of being in sync",
        RESTORE,
        "let covers_until = grant.basis.covers_until(self.sync()).map(|until| until.min(now));",
        "let until = grant.basis.covers_until(self.sync()).map(|until| until.min(now));\n"
        "                        let covers_until = until.filter(|_| !matches!(grant.basis, Basis::Borrowed { .. }));",
    ),
    (
        "borrowed-from-now",
        "fleet: a borrowed grant lives from when its proof was sent",
        FLEET_GRANTS,
        "let proved = proved.min(now);",
        "let proved = now;",
    ),
    (
        "told-denial-ignored",
        "fleet: a denial that another gateway tells ends the grant",
        FLEET_LOG,
        "memory.grants.told_denied(&CallerScope { caller: Caller::from_sealed(caller), scope }, now);",
        "let _ = CallerScope { caller: Caller::from_sealed(caller), scope };",
    ),
    (
        "told-denial-keeps-grant",
        "fleet: a told denial ends grants of all kinds",
        FLEET_GRANTS,
        "let had_grant = tables.grants.remove(caller_scope).is_some();",
        "let had_grant = tables.grants.peek(caller_scope).is_some();",
    ),
    (
        "told-denial-only-if-later",
        "fleet: a told denial counts whatever the time of the proof",
        FLEET_GRANTS,
        "let had_grant = tables.grants.remove(caller_scope).is_some();",
        "let is_own = tables.grants.peek(caller_scope).is_some_and(|grant| matches!(grant.basis, Basis::Own));\n        let had_grant = !is_own && tables.grants.remove(caller_scope).is_some();",
    ),
    (
        "told-denial-spares-calls",
        "fleet: calls in flight prove nothing after a told denial",
        FLEET_GRANTS,
        "        if let Some(calls) = tables.calls.get_mut(caller_scope) {\n            calls.denied = calls.denied.max(Some(now));\n        }\n",
        "",
    ),
    (
        "told-refusal-ignored",
        "fleet: a credential that was refused elsewhere ends its grants",
        FLEET_LOG,
        "memory.grants.told_refused(caller, service, now);",
        "",
    ),
    (
        "told-refusal-keeps-grants",
        "fleet: a told refusal ends the grants of the service",
        FLEET_GRANTS,
        "            grants.ended = sequence;\n",
        "",
    ),
    (
        "told-refusal-spares-calls",
        "fleet: calls in flight prove nothing after a told refusal",
        FLEET_GRANTS,
        "        if let Some(calls) = tables.service_calls.get_mut(&(caller, service)) {\n            calls.denied = calls.denied.max(Some(now));\n        }\n",
        "",
    ),
    (
        "denial-not-told",
        "fleet: a denial is told",
        DENIAL,
        "tier.denied(&CallerScope { caller, scope: scope.clone() }, had.in_scope, by);",
        "let _ = (tier, scope);",
    ),
    (
        "refusal-not-told",
        "fleet: a refusal of the credential is told",
        DENIAL,
        "tier.refused(self.caller, (self.service, &self.origin), known, self.by);",
        "let _ = tier;",
    ),
    (
        "services-own-refusal-told",
        "fleet: a 401 of the service itself is told for its scope only",
        DENIAL,
        "self.is_to_tell &= by == RefusedBy::ApiGateway;",
        "let _ = by;",
    ),
    (
        "intermediary-denies-everywhere",
        "fleet: a refusal by something before upstream ends no grant elsewhere",
        DENIAL,
        "let by = if headers.contains_key(X_REQUEST_ID) { DeniedBy::Upstream } else { DeniedBy::Intermediary };",
        "let by = DeniedBy::Upstream;",
    ),
    (
        "upstream-denial-taken-for-intermediary",
        "fleet: a denial of upstream ends grants elsewhere",
        DENIAL,
        "let by = if headers.contains_key(X_REQUEST_ID) { DeniedBy::Upstream } else { DeniedBy::Intermediary };",
        "let by = DeniedBy::Intermediary;",
    ),
    (
        "stranger-always-told",
        "fleet: the denial of a caller that nobody knows is not told",
        TIER,
        "let known: &[Name] = if is_known { &[] } else { &[self.names.grant(caller_scope)] };",
        "let known: &[Name] = &[];",
    ),
    (
        "known-told-as-stranger",
        "fleet: the denial of a caller with a grant is told in any case",
        TIER,
        "let known: &[Name] = if is_known { &[] } else { &[self.names.grant(caller_scope)] };",
        "let known: &[Name] = &[self.names.grant(caller_scope)];",
    ),
    (
        "refused-stranger-always-told",
        "fleet: the refusal of a credential that nobody knows is not told",
        TIER,
        "let known = if is_known { Box::default() } else { proving.into_iter().chain([marker]).collect() };",
        "let known = Box::default();",
    ),
    (
        "gap-keeps-grants",
        "fleet: after a gap in the log all grants have lapsed",
        FLEET_LOG,
        "        self.memory.grants.lapse_all(self.clock.now());\n",
        "",
    ),
    (
        "gap-keeps-entries",
        "fleet: after a gap in the log all entries are void",
        FLEET_LOG,
        "self.void_entries();\n        // Otherwise",
        "// Otherwise",
    ),
    (
        "gap-spares-calls",
        "fleet: calls in flight prove nothing after a gap",
        FLEET_GRANTS,
        "tables.all_lapsed = tables.all_lapsed.max(Some(now));",
        "",
    ),
    (
        "told-purge-ignored",
        "fleet: a purge at another gateway removes entries here",
        FLEET_LOG,
        "                self.purge_here(&selection.into());\n",
        "                let _ = selection;\n",
    ),
    (
        "told-invalidation-ignored",
        "fleet: an invalidation at another gateway counts here",
        FLEET_LOG,
        "memory.store.invalidate(&scope, now);",
        "let _ = scope;",
    ),
    (
        "told-private-ignored",
        "fleet: what has become private at another gateway is private here",
        FLEET_LOG,
        "memory.store.told_private(&name);",
        "let _ = name;",
    ),
    (
        "private-not-told",
        "fleet: what has become private is told",
        SETTLE,
        "PrivateExtent::Operation => tier.private(&PrivateName::Operation(Arc::clone(scope.operation()))),",
        "PrivateExtent::Operation => {}",
    ),
    (
        "proof-stored-as-new",
        "fleet: a stored proof has its true age",
        SECOND_TIER,
        "postcard::to_allocvec(&now.saturating_duration_since(proved))",
        "postcard::to_allocvec(&Duration::ZERO)",
    ),
    (
        "time-in-tier-no-age",
        "fleet: the time that a proof was in the tier counts",
        SECOND_TIER,
        "now.checked_sub(passed.longest)?.checked_sub(proved_before)",
        "now.checked_sub(passed.longest.min(Duration::ZERO))?.checked_sub(proved_before)",
    ),
    (
        "late-proof-stored",
        "fleet: a late proof is not shared",
        CLAIM,
        "fetched.proof.is_some_and(|proof| proof != Proof::Late)",
        "fetched.proof.is_some()",
    ),
    (
        "proof-of-any-scope",
        "fleet: a proof is named and sealed with its caller and scope",
        TIER,
        "[&caller.to_sealed()[..], &record::scope_name(scope)].concat()",
        "{\n        let _ = scope;\n        caller.to_sealed().to_vec()\n    }",
    ),
    (
        "proof-ticket-not-sealed",
        "fleet: a proof is sealed with its ticket",
        TIER,
        "[&b\"grant\"[..], &incarnation, &number.to_le_bytes(),",
        "[&b\"grant\"[..], &incarnation, &[0; 8],",
    ),
    (
        "proofs-never-borrowed",
        "fleet: a caller that another gateway has proved needs no call",
        SECOND_TIER,
        "proved.is_some_and(|proved| memory.grants.borrow(caller_scope, proved, is_current, now))",
        "proved.is_some_and(|_| false)",
    ),
    (
        "lease-not-released",
        "fleet: a lease is released when its call has failed",
        CLAIM,
        "        if let Some(lease) = lease {\n            tier.store.release(lease, ended.unshared);\n        }\n",
        "",
    ),
    (
        "lease-lost-without-call",
        "fleet: a lease is released if no call is made",
        TIER,
        "self.lease.take().into_iter().for_each(|lease| self.store.release(lease, None));",
        "",
    ),
    (
        "leases-ignored",
        "fleet: a gateway waits for the call of another one",
        CLAIM,
        "if lease != LeaseState::Elsewhere {",
        "if true {",
    ),
    (
        "unshared-waits",
        "fleet: after a call without a result for others, gateways make their own calls",
        CLAIM,
        "if lease != LeaseState::Elsewhere {",
        "if lease != LeaseState::Elsewhere && lease != LeaseState::Unshared {",
    ),
    (
        "follower-looks-too-late",
        "fleet: a gateway that waits for another one looks again soon",
        CLAIM,
        "sleep(if pauses <= FIRST_PAUSES { FIRST_PAUSE } else { PAUSE })",
        "sleep(20 * if pauses <= FIRST_PAUSES { FIRST_PAUSE } else { PAUSE })",
    ),
]


# The batches of sequences that notice rare mutations. They are run first. If they notice nothing any more, because steps
# have changed, all are run.
SEEDS = {
    "backoff-shortened": 45,
    "backoff-unbounded": 38,
    "backoffs-survive-purge": 57,
    "former-leader-repeats-again": (1 << 32) + 5,
    "held-429-is-backoff": (1 << 32) + 5,
    "local-failure-backs-off": 38,
    "throttled-again-and-again": (1 << 32) + 5,
}

# In the replacement of a mutation: whether it is selected. For a function whose result has a type of its own (`impl`), which
# two arms cannot have.
IS_SELECTED = "IS_SELECTED"
SELECTED = "WORKSPACE_GATEWAY_TEST_MUTATION"
SELECT = f"""
/// The number of the selected mutation; 0 is none.
pub(crate) fn mutation() -> usize {{
    static SELECTED: std::sync::LazyLock<usize> = std::sync::LazyLock::new(|| {{
        std::env::var("{SELECTED}").map_or(0, |number| number.parse().expect("the number of a mutation"))
    }});
    *SELECTED
}}
"""

# The tokens that delimit function bodies. Comments, strings and characters are matched so that their braces are ignored.
TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|r(?P<hashes>\#*)".*?"(?P=hashes)|"(?:\\.|[^"\\])*"|'(?:\\[^']+|[^'\\])'"""
    r"""|(?P<fn>\bfn\s\w+)|(?P<open>[(\[])|(?P<close>[)\]])|(?P<semicolon>;)|(?P<begin>\{)|(?P<end>\})""",
    re.DOTALL,
)

Mutation = collections.namedtuple("Mutation", "name rule file text replacement")


def copy_sources() -> None:
    COPY.mkdir(parents=True)
    # Without modification times: the copies must be newer than earlier builds.
    for name in ["README.md", "rust-toolchain.toml"]:
        shutil.copyfile(ROOT / name, COPY / name)
    for name in ["Cargo.toml", "Cargo.lock"]:
        text = (ROOT / name).read_text().replace(PACKAGE, PACKAGE + "0.0.0-mutant.")
        # The model does not start the program, so the program is not linked.
        text = text.replace("autotests = false", "autotests = false\nautobins = false")
        (COPY / name).write_text(text.replace(BIN, "").replace(BUILD, ""))
    for name in ["src", "tests", "benches", "config"]:
        shutil.copytree(ROOT / name, COPY / name, copy_function=shutil.copyfile)
    # Only the model: the rest of the suite is not built. So much of what supports it is not used.
    suite = (ROOT / "tests/suite.rs").read_text().replace("#![allow(", "#![allow(dead_code, unused, ", 1)
    (COPY / "tests/suite.rs").write_text(re.sub(r"^mod (?!support|model)\w+;\n", "", suite, flags=re.MULTILINE))
    library = COPY / "src/lib.rs"
    # Mutations leave variables unused and patterns unreachable.
    library.write_text("#![allow(warnings)]\n" + library.read_text() + SELECT)


def function_bodies(source: str) -> list[tuple[int, int]]:
    """Start and end of the function bodies, between their braces."""
    bodies, blocks, function, depth = [], [], None, 0
    for token in TOKEN.finditer(source):
        if token["fn"]:
            function = depth
        elif token["open"] or token["close"]:
            depth += 1 if token["open"] else -1
        elif token["semicolon"] and function == depth:
            function = None
        elif token["begin"]:
            is_body = function == depth
            blocks.append(token.end() if is_body else None)
            function = None if is_body else function
        elif token["end"]:
            begin = blocks.pop()
            if begin is not None:
                bodies.append((begin, token.start()))
    return bodies


def body_of(mutation: Mutation, source: str) -> tuple[int, int]:
    """The innermost function body that contains the text of a mutation."""
    if source.count(mutation.text) != 1:
        sys.exit(f"outdated: {mutation.name}: {mutation.file} has its text {source.count(mutation.text)} times")
    begin = source.index(mutation.text)
    end = begin + len(mutation.text)
    around = [body for body in function_bodies(source) if body[0] <= begin and end <= body[1]]
    return max(around, default=None) or sys.exit(f"{mutation.name}: its text is in no function body")


def with_mutations(source: str, mutations: dict[int, Mutation]) -> str:
    """The source in which each function that these mutations change selects one of its bodies."""
    by_body, in_arms = collections.defaultdict(dict), {}
    for number, mutation in mutations.items():
        if IS_SELECTED in mutation.replacement:
            body_of(mutation, source)
            source = source.replace(mutation.text, mutation.replacement.replace(IS_SELECTED, f"crate::mutation() == {number}"))
        else:
            in_arms[number] = mutation
    for number, mutation in in_arms.items():
        by_body[body_of(mutation, source)][number] = mutation
    for (begin, end), mutated in sorted(by_body.items(), reverse=True):
        body = source[begin:end]
        arms = "".join(f"{number} => {{{body.replace(it.text, it.replacement)}}}\n" for number, it in mutated.items())
        source = f"{source[:begin]} match crate::mutation() {{\n{arms}_ => {{{body}}} }} {source[end:]}"
    return source


def write(chosen: dict[int, Mutation]) -> None:
    """Writes the sources with these mutations to the copy."""
    shutil.rmtree(COPY, ignore_errors=True)
    copy_sources()
    for file in {mutation.file for mutation in chosen.values()}:
        mutations = {number: mutation for number, mutation in chosen.items() if mutation.file == file}
        (COPY / file).write_text(with_mutations((ROOT / file).read_text(), mutations))


def build_model() -> pathlib.Path:
    """Builds the model in the copy. Returns the test program."""
    # Debug information would take half of the build time.
    environment = {"CARGO_PROFILE_DEV_DEBUG": "0", "CARGO_BIN_EXE_workspace-gateway": "not built"}
    # Optimized: the build takes longer, but the models together run for much longer than the build.
    optimized = ["--config", "profile.dev.package.workspace-gateway.opt-level=1"]
    return build(["test", "--test", "suite", *optimized], environment)


def build(what: list[str], environment: dict[str, str]) -> pathlib.Path:
    """Builds a program of the copy. Returns it."""
    command = ["cargo", *what, "--quiet", "--locked", "--no-run"]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(TARGET), **environment}
    built = subprocess.run(
        [*command, "--message-format=json-render-diagnostics"], cwd=COPY, env=environment, stdout=subprocess.PIPE, text=True
    )
    messages = map(json.loads, built.stdout.splitlines())
    programs = [message["executable"] for message in messages if message.get("executable")]
    if built.returncode != 0 or len(programs) != 1:
        sys.exit("The mutations do not compile.")
    return pathlib.Path(programs[0])


def kind_of(rule: str) -> str:
    """The kind of sequences that must notice that a rule is broken."""
    return {"fleet": "fleet", "quotas": "paced", "snapshot": "tiered", "tier": "tiered"}.get(rule.split(":")[0], "ordinary")


def run_model(
    program: pathlib.Path, sequences: int, number: int = 0, kind: str | None = None, seed: int | None = None
) -> tuple[str, str]:
    """The verdict (`passes`, `caught`, `hangs` or `broken`) and the output of the model."""
    environment = {
        **os.environ,
        SELECTED: str(number),
        "WORKSPACE_GATEWAY_TEST_MODEL_SEQUENCES": str(sequences),
        "WORKSPACE_GATEWAY_TEST_MODEL_AS_FOUND": "1",
    }
    if kind:
        environment["WORKSPACE_GATEWAY_TEST_MODEL_KIND"] = kind
    if seed:
        environment["WORKSPACE_GATEWAY_TEST_MODEL_SEED"] = str(seed)
    try:
        ran = subprocess.run([program, "model::"], cwd=COPY, env=environment, capture_output=True, text=True, timeout=1800)
    except subprocess.TimeoutExpired:
        return "hangs", ""
    if ran.returncode == 0:
        return "passes", ran.stdout
    output = ran.stdout + ran.stderr
    wrong = re.search(r"^(PROPERTY|RULES): .*", output, re.MULTILINE)
    seed = re.search(r"MODEL_SEED=(\d+)", output)
    return ("caught", f"{seed[0]} {wrong[0]}") if wrong and seed else ("broken", output)


def main() -> int:
    all_mutations = [Mutation(*mutation) for mutation in MUTATIONS]
    chosen = dict(enumerate((it for it in all_mutations if not sys.argv[1:] or it.name in sys.argv[1:]), 1))
    # The model stops at the first failure. Sequences are random, and some rules rarely apply. The rarest was noticed after
    # 12,000 sequences.
    sequences = int(os.environ.get("SEQUENCES", "40000"))
    write(chosen)
    started = time.monotonic()
    program = build_model()
    verdict, output = run_model(program, 100)
    print(f"{verdict:<9} {time.monotonic() - started:4.0f} s  (none, and the build)", flush=True)
    if verdict != "passes":
        print(output)
        return 1

    def is_caught(number: int) -> bool:
        started = time.monotonic()
        name, rule, *_ = chosen[number]
        verdict, output = run_model(program, sequences, number, kind_of(rule), SEEDS.get(name))
        if verdict == "passes" and name in SEEDS:
            verdict, output = run_model(program, sequences, number, kind_of(rule))
        line = f"{verdict:<9} {time.monotonic() - started:4.0f} s  {name:<35} {rule}"
        print(f"{line}\n{'':17} {(output.strip() or '-').splitlines()[-1][:110]}", flush=True)
        return verdict == "caught"

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as models:
        caught = sum(models.map(is_caught, chosen))
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
