#!/usr/bin/env python3
"""Shows that the model of the sharing rules (tests/model) has teeth.

Each mutation breaks one rule in a scratch copy of the sources, and the model has to notice: a run that
passes or dies of something else is a survivor. A mutation whose text is not in the sources exactly once has been
overtaken by them and must be written anew.

All mutations are built together: the body of a function that they change becomes a `match` with one arm for each of
them, and an environment variable selects the arm (mutant schemata: Untch, Offutt and Harrold, ISSTA 1993).

    tests/mutants.py                 all of them
    tests/mutants.py NAME…           some
    SEQUENCES=9000 tests/mutants.py  look longer for each
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
# Always in the same place, so that only this crate is built again; and under a version of its own, so that what is built
# here is never taken for the real thing.
COPY = TARGET / "mutants"
BIN = '[[bin]]\nname = "workspace-gateway"\npath = "src/main.rs"\n'
PACKAGE = 'name = "workspace-gateway"\nversion = "'

GRANTS, STORE, TRIPWIRE = "src/cache/grants.rs", "src/cache/store.rs", "src/cache/divergence.rs"
PATH, FETCH, RELEASE = "src/gateway.rs", "src/gateway/fetch.rs", "src/gateway/release.rs"
QUESTION = "src/gateway/cache_request.rs"
LOOK_UP, SETTLE, ASSEMBLE = "src/gateway/look_up.rs", "src/gateway/settle.rs", "src/gateway/assemble.rs"
PRIVATE, SELECTION, INVALIDATE = "src/cache/store/private.rs", "src/cache/store/selection.rs", "src/gateway/invalidate.rs"
BODY, FRESHNESS, FLIGHTS = "src/cache/body.rs", "src/cache/freshness.rs", "src/cache/flights.rs"
PAUSES, WAIT, WISH = "src/cache/backoffs.rs", "src/gateway/wait.rs", "src/request/request_directives.rs"
VALIDATE, SUCCESSES = "src/request/validate.rs", "src/upstream/successes.rs"
SKEW, REMEMBERED = "src/clock/skew.rs", "src/gateway/remembered.rs"

# Name, what it breaks in DESIGN, file, text, text instead.
MUTATIONS = [
    (
        "an-error-proves",
        "§4 proof: a status alone proves nothing",
        BODY,
        "(true, false) => Ok(()),",
        "_ if true => Ok(()),",
    ),
    (
        "life-from-landing",
        "§4 a grant lives from when its proof was sent",
        FETCH,
        "self.memory.grants.begin_call(request.lookup.caller_scope.clone(), sent)",
        "self.memory.grants.begin_call(request.lookup.caller_scope.clone(), sent + request.active.answer_timeout / 2)",
    ),
    (
        "denial-keeps-the-grant",
        "§4 401/403 removes the grant at once",
        GRANTS,
        "            tables.grants.remove(&caller_scope);\n",
        "",
    ),
    (
        "late-answers-grant",
        "§4 what was sent before a denied request grants nothing",
        GRANTS,
        "any(|denied| denied >= sent)",
        "any(|_| false)",
    ),
    (
        "denial-forgotten",
        "§4 a denial is remembered for denial_ttl",
        GRANTS,
        "refusal.filter(|refusal| is_latest && refusal.size()",
        "refusal.filter(|refusal| false && is_latest && refusal.size()",
    ),
    (
        "denial-remembered-on",
        "§4 and no longer",
        GRANTS,
        "let until = now + tables.terms.denial_ttl;",
        "let until = now + 2 * tables.terms.denial_ttl;",
    ),
    (
        "old-denial-refuses",
        "§4 a denial of what was sent before the proof is not remembered",
        GRANTS,
        "let is_latest = !self.was_proved_later && tables.proved(&caller_scope).is_none_or(|proved| proved <= self.sent);",
        "let is_latest = true;",
    ),
    (
        "grant-in-every-scope",
        "§4 a grant and a denial are for operation and project",
        QUESTION,
        "CallerScope { caller, scope: key.scope().clone() };\n        Some(CacheRequest",
        "{\n            static FIRST: std::sync::OnceLock<crate::request::key::Scope> = std::sync::OnceLock::new();\n"
        "            CallerScope { caller, scope: FIRST.get_or_init(|| key.scope().clone()).clone() }\n        };\n        Some(CacheRequest",
    ),
    (
        "grant-for-every-caller",
        "§4 a grant and a denial are for one credential",
        QUESTION,
        "CallerScope { caller, scope: key.scope().clone() };\n        Some(CacheRequest",
        "{\n            static FIRST: std::sync::OnceLock<Caller> = std::sync::OnceLock::new();\n"
        "            CallerScope { caller: *FIRST.get_or_init(|| caller), scope: key.scope().clone() }\n        };\n        Some(CacheRequest",
    ),
    (
        "no-proof-needed",
        "§2.2 no proof, no share",
        LOOK_UP,
        "            GrantState::Granted => {\n                return",
        "            GrantState::Granted | GrantState::Unknown => {\n                return",
    ),
    (
        "lapsed-is-granted",
        "§4 a lapsed grant shows nothing until the caller's own call has failed",
        LOOK_UP,
        "            GrantState::Granted => {\n                return",
        "            GrantState::Granted | GrantState::Grace { .. } => {\n                return",
    ),
    (
        "unproved-board-shared-flights",
        "§5 a caller without a grant flies alone",
        LOOK_UP,
        "let cache_key = CacheKey { owner: Some(caller), key: Arc::clone(&request.lookup.key) };",
        "let cache_key = self.store.cache_key(&request.lookup.key, caller);",
    ),
    (
        "refusal-to-followers",
        "§5 nobody inherits another caller's refusal",
        RELEASE,
        "Verdict::Personal => is_own && is_valid(),",
        "Verdict::Personal => is_valid(),",
    ),
    (
        "not-rechecked-at-release",
        "§4 the grant is checked again when followers are released",
        RELEASE,
        "let may_share = || is_granted() && self.memory.store",
        "let may_share = || self.memory.store",
    ),
    (
        "failure-to-everyone",
        "§5 a failure goes to those whose grant is_granted",
        RELEASE,
        "Verdict::Throttled | Verdict::Failure => is_own || is_granted(),",
        "Verdict::Throttled | Verdict::Failure => true,",
    ),
    (
        "no-answer-to-everyone",
        "§5 neither is no answer at all for those whose grant is over",
        RELEASE,
        "Err(error) if is_own || is_granted() =>",
        "Err(error) =>",
    ),
    (
        "one-is-throttled-all-are",
        "§5 a 429 may be the leader's own",
        RELEASE,
        "None if answer.verdict == Verdict::Throttled && !is_own",
        "None if false && answer.verdict == Verdict::Throttled && !is_own",
    ),
    (
        "everyone-tries-in-turn",
        "§5 no thundering retry: after three throttled leaders the 429 is for all",
        RELEASE,
        "&& !is_own && !role.is_last => Release::Elect",
        "&& !is_own => Release::Elect",
    ),
    (
        "purge-ignored-at-release",
        "§4 purge epochs are checked when followers are released",
        STORE,
        "Epoch(self.purges) == epoch && (cache_key",
        "epoch.0 <= self.purges && (cache_key",
    ),
    (
        "purge-ignored-at-store",
        "§4 purge epochs are checked when an answer is stored",
        STORE,
        "if Epoch(rules.purges) != epoch {",
        "if false && Epoch(rules.purges) != epoch {",
    ),
    (
        "older-replaces-newer",
        "§4 newer means sent later",
        STORE,
        "|before| before.life().sent >= draft.sent()",
        "|before| false && before.life().sent >= draft.sent()",
    ),
    (
        "grace-for-another's-failure",
        "§4 grace is for the caller's own failed attempt",
        RELEASE,
        "Err(error) if is_own || is_granted() => return Release::Answer(self.failed(error, stale(), record)),",
        "Err(error) => {\n                let stale = self.stale_on_error(is_outside);\n"
        "                return Release::Answer(self.failed(error, stale, record));\n            }",
    ),
    (
        "grace-unbounded",
        "§4 grace ends outage_grace after the last proof",
        GRANTS,
        "outage_grace.is_some_and(|grace| age < grace)",
        "outage_grace.is_some()",
    ),
    (
        "grace-where-refused",
        '§4 on_outage = "refuse" turns grace off',
        ASSEMBLE,
        "(grants.on_outage == OnOutage::Serve).then_some(",
        "true.then_some(",
    ),
    (
        "stale-without-end",
        "§6 stale answers end stale_if_error after their ttl",
        FRESHNESS,
        "} else if age < ttl.saturating_add(stale_if_error) {",
        "} else if age < ttl.saturating_add(2 * stale_if_error) {",
    ),
    (
        "divergence-detection-off",
        "§4 alternating observations turn a scope private",
        STORE,
        "} else if observations.add(observation) {",
        "} else if observations.add(observation) && false {",
    ),
    (
        "tripwire-jumpy",
        "§4 a single difference is a catalogue change",
        TRIPWIRE,
        "self.0.len() >= MIN_ALTERNATIONS",
        "self.0.len() >= MIN_ALTERNATIONS / 2",
    ),
    (
        "overlaps-compared",
        "§4 overlapping requests are never compared",
        TRIPWIRE,
        "if observation.sent < last.received {",
        "if observation.sent < last.sent {",
    ),
    (
        "sharing-caller-ignored",
        '§4 sharing = "caller" keeps answers apart',
        PRIVATE,
        "scope.operation().sharing == Sharing::Caller\n            || self.0",
        "self.0",
    ),
    (
        "uncacheable-forgotten",
        "§5 what must not be shared is remembered",
        STORE,
        "filter(|mark| now < mark.until)",
        "filter(|mark| now > mark.until)",
    ),
    (
        "no-store-to-followers",
        "§5 what must not be shared goes to its leader",
        RELEASE,
        "Verdict::Proof(Err(_)) | Verdict::NoList(_) => false,",
        "Verdict::Proof(Err(_)) | Verdict::NoList(_) => is_granted(),",
    ),
    (
        "unproved-mark-for-all",
        "§2.3 an unproved caller marks nothing that others meet",
        SETTLE,
        "Verdict::NoList(reason) => Some(self.mark_uncacheable(reason)),",
        "Verdict::NoList(reason) => {\nself.mark(&self.kept_in(), reason);\nSome(reason)\n}",
    ),
    (
        "denied-leader-is-trusted",
        "§2.3 nor does one who has been denied meanwhile",
        SETTLE,
        "|| self.memory.grants.is_granted(&self.request.lookup.caller_scope, self.times.received)",
        "|| self.times.received >= self.times.sent",
    ),
    (
        "foul-404-for-all",
        "§2.1 what was sent besides the key decides nothing for others",
        FETCH,
        "!(is_plain && call.is_trusted())",
        "!(call.is_trusted() || is_plain)",
    ),
    (
        "streamed-denial-unheard",
        "§4 a denial ends the grant however the request got upstream",
        "src/gateway/forward.rs",
        "            denied(&self.memory, &self.observer, pending_grant, status);\n",
        "            let _ = pending_grant;\n",
    ),
    (
        "endless-denial-unheard",
        "§2.9 a 401 whose body does not end is one of the credential",
        SETTLE,
        "pending_grant.refused(RefusedBy::ApiGateway, None, self.times.received)",
        "pending_grant.refused(RefusedBy::Service, None, self.times.received)",
    ),
    (
        "elections-without-end",
        "§5 three elections at most, then alone",
        PATH,
        "rounds.number > MAX_ELECTIONS",
        "rounds.number > 1_000",
    ),
    (
        "deadline-ignored",
        "§5 followers wait until their own deadline",
        PATH,
        "Timers::begin(request.active.answer_timeout +",
        "Timers::begin(2 * request.active.answer_timeout +",
    ),
    (
        "waiters-unbounded",
        "§5 past the bounds a request flies uncoalesced",
        FLIGHTS,
        "caller, self.shared.bounds().waiting)",
        "caller, usize::MAX)",
    ),
    (
        "flights-unbounded",
        "§5 past the bounds a request flies uncoalesced",
        FLIGHTS,
        "take(caller, bounds.flights)",
        "take(caller, usize::MAX)",
    ),
    (
        "flights-survive-a-purge",
        "§4 nobody boards a flight from before a purge",
        ASSEMBLE,
        "        self.fetcher.shared_flights.close_all();\n",
        "",
    ),
    (
        "lone-flights-survive-a-purge",
        "§4 of whatever kind it is",
        ASSEMBLE,
        "        self.fetcher.lone_flights.close_all();\n",
        "",
    ),
    (
        "one-bound-for-all",
        "§5 callers without a grant take no room of others",
        "src/gateway/fetcher.rs",
        "if cache_key.owner.is_none() { &self.shared_flights } else { &self.lone_flights }",
        "&self.shared_flights",
    ),
    (
        "refreshed-without-end",
        "§6 stale-while-revalidate ends",
        FRESHNESS,
        "} else if age < ttl.saturating_add(stale_while_revalidate) {",
        "} else if age < ttl.saturating_add(2 * stale_while_revalidate) {",
    ),
    (
        "refreshed-twice",
        "§5 one request at a time, in the background too",
        PATH,
        "if let Some(leader) = self.fetcher.flights(&cache_key).begin(&cache_key, request.lookup.caller_scope.caller) {",
        "if let (_, Some(leader)) = self.fetcher.flights(&cache_key).solo(request.lookup.caller_scope.caller) {",
    ),
    (
        "latest-word-ignored",
        "§6 what upstream has just said no to is not given stale",
        LOOK_UP,
        "directives.takes_stale() && no.is_none() &&",
        "directives.takes_stale() &&",
    ),
    (
        "unkept-given-stale",
        "§6 nor is what can't be kept any more",
        LOOK_UP,
        "&& no.is_none() && !is_uncacheable();",
        "&& no.is_none();",
    ),
    (
        "no-without-end",
        "§6 a negative answer lives negative_ttl",
        LOOK_UP,
        "no.as_ref().filter(|no| accepted(no))",
        "no.as_ref().filter(|_| true)",
    ),
    (
        "no-from-anyone",
        "§6 and comes from those who are granted",
        SETTLE,
        "if !is_plain || !is_granted || life",
        "if !is_plain || life",
    ),
    (
        "foul-no-kept",
        "§2.1 and of nothing that was sent besides",
        SETTLE,
        "if !is_plain || !is_granted || life",
        "if !is_granted || life",
    ),
    (
        "older-no-replaces-yes",
        "§4 newer means sent later, of a no as well",
        STORE,
        "|known| known.life().sent >= no.life().sent",
        "|known| false && known.life().sent >= no.life().sent",
    ),
    (
        "impatient",
        "§5 nobody with something stale in hand waits before stale_if_slow is over",
        WAIT,
        "sleep(stale_if_slow)",
        "sleep(stale_if_slow / 2)",
    ),
    (
        "patient",
        "§5 nor any longer",
        WAIT,
        "sleep(stale_if_slow)",
        "sleep(2 * stale_if_slow)",
    ),
    (
        "strangers-ask-whether",
        "§4 proof flights are unconditional",
        LOOK_UP,
        "why, before: None,",
        "why, before: self.store.get(&self.store.cache_key(&request.lookup.key, caller)),",
    ),
    (
        "any-304-will-do",
        "§4 a 304 is proof of what was asked about",
        FETCH,
        "if validator.is_meant_by(response.headers()) => {",
        "if validator.is_meant_by(response.headers()) || true => {",
    ),
    (
        "no-cache-boards",
        "§6 no-cache joins no flight from before",
        PATH,
        "|| rounds.number > MAX_ELECTIONS || request.lookup.directives.no_cache;",
        "|| rounds.number > MAX_ELECTIONS;",
    ),
    (
        "no-cache-from-memory",
        "§6 and is not answered from memory",
        WISH,
        "!self.no_cache && self.accepts_age(age)",
        "self.accepts_age(age)",
    ),
    (
        "no-cache-given-stale",
        "§6 unless upstream fails",
        WISH,
        "!self.no_cache && self.max_age.is_none()",
        "self.max_age.is_none()",
    ),
    (
        "max-age-ignored",
        "§6 a client says how old is too old",
        WISH,
        "|max_age| age <= max_age",
        "|_| true",
    ),
    (
        "min-fresh-ignored",
        "§6 and how fresh it must be",
        WISH,
        "|min_fresh| left >= min_fresh",
        "|_| true",
    ),
    (
        "only-if-cached-asks",
        "§6 only-if-cached asks nobody",
        PATH,
        "if request.lookup.directives.only_if_cached {",
        "if false && request.lookup.directives.only_if_cached {",
    ),
    (
        "only-if-cached-refreshes",
        "§6 not even in the background",
        PATH,
        "if !request.lookup.directives.only_if_cached {",
        "if !request.lookup.directives.only_if_cached || true {",
    ),
    (
        "one-stops-all",
        "§6 who is throttled alone stops nobody else",
        PAUSES,
        "if self.failed.iter().any(|(failed, until)| *failed != caller && now < *until) {",
        "if true {",
    ),
    (
        "many-stop-none",
        "§6 when two are throttled all pause",
        PAUSES,
        "if self.failed.iter().any(",
        "if false && self.failed.iter().any(",
    ),
    (
        "paused-as-upstream-wishes",
        "§6 for a minute at most",
        PAUSES,
        "span.min(LONGEST)",
        "span.min(10 * LONGEST)",
    ),
    (
        "pause-cut-short",
        "§6 and no pause is cut short by another",
        PAUSES,
        "*before = until.max(*before)",
        "*before = until.min(*before)",
    ),
    (
        "retry-after-ignored",
        "§6 Retry-After is heard",
        SETTLE,
        "(BackoffCause::Throttled, wished.unwrap_or(backoff))",
        "(BackoffCause::Throttled, backoff)",
    ),
    (
        "foul-failure-backoffs",
        "§2.1 a failure of the client's own making backoffs nothing of others",
        SETTLE,
        "if self.is_plain || is_for_caller_alone {",
        "if true || is_for_caller_alone {",
    ),
    (
        "stranger-backoffs",
        "§2.3 nor does a stranger's",
        SETTLE,
        "GrantState::Grace { .. } => is_for_caller_alone,\n            GrantState::Unknown | GrantState::Denied { .. } => false,",
        "GrantState::Grace { .. } | GrantState::Unknown | GrantState::Denied { .. } => true,",
    ),
    (
        "backoffs-survive-a-purge",
        "§4 a purge forgets backoffs",
        ASSEMBLE,
        "        self.memory.backoffs.purge(selection);\n",
        "",
    ),
    (
        "fast-path-without-grant",
        "§4 the caller of a known head needs a grant, too",
        LOOK_UP,
        "if !self.grants.is_granted(&lookup.caller_scope, now) {",
        "if false {",
    ),
    (
        "fast-path-to-what-is-stale",
        "§6 what the fast path gives is fresh",
        LOOK_UP,
        "lookup.accepts(&entry, now).then_some(entry)",
        "Some(entry)",
    ),
    (
        "grace-without-attempt",
        "§4 grace takes an attempt of the caller's own",
        LOOK_UP,
        "&& self.backoffs.active_for_owner(&cache_key, now)\n",
        "&& !self.backoffs.active_for_owner(&cache_key, now)\n",
    ),
    (
        "no-store-kept",
        "§6 a client's no-store is obeyed",
        WISH,
        "if directives.has(\"no-store\") {",
        "if false && directives.has(\"no-store\") {",
    ),
    (
        "unsayable-denial-said",
        "§6 what must not be stored is not said again",
        SETTLE,
        "may_be_said_again.then(",
        "(may_be_said_again || true).then(",
    ),
    (
        "refusal-to-followers-of-before",
        "§3 what was sent before an invalidation is for the one who asked",
        RELEASE,
        "Verdict::Personal => is_own && is_valid(),",
        "Verdict::Personal => is_own,",
    ),
    (
        "no-from-before-followed",
        "§3 a no from before it, too",
        RELEASE,
        "Verdict::Negative => is_own && is_valid() || may_share(),",
        "Verdict::Negative => is_own || may_share(),",
    ),
    (
        "waiters-given-what-was-before",
        "§3 and a list above all",
        STORE,
        "rules.may_share(cache_key, epoch) && !rules.invalidations.cover(cache_key.key.scope(), sent)",
        "rules.may_share(cache_key, epoch) && sent == sent",
    ),
    (
        "sent-before-kept",
        "§3 calls sent before an invalidation are not kept",
        STORE,
        "let kept = if rules.invalidations.cover(scope, draft.sent()) {",
        "let kept = if false && rules.invalidations.cover(scope, draft.sent()) {",
    ),
    (
        "invalidated-given",
        "§3 entries sent before are not given",
        STORE,
        "self.entries.get(cache_key).filter(|entry| !self.is_invalidated(cache_key.key.scope(), entry.life().sent))",
        "self.entries.get(cache_key)",
    ),
    (
        "invalidated-given-in-an-outage",
        "§3 not even in an outage, nor to one whose grant has lapsed",
        LOOK_UP,
        "self.store.get(&self.store.cache_key(&request.lookup.key, request.lookup.caller_scope.caller))?;",
        "self.store.get_to_confirm(&self.store.cache_key(&request.lookup.key, request.lookup.caller_scope.caller))?;",
    ),
    (
        "invalidated-given-the-fast-path",
        "§3 nor to a head that is known",
        LOOK_UP,
        "let entry = self.store.get(&self.store.cache_key(&lookup.key,",
        "let entry = self.store.get_to_confirm(&self.store.cache_key(&lookup.key,",
    ),
    (
        "invalidated-no-said",
        "§3 nor is a no from before said again",
        STORE,
        "self.negatives.get(cache_key).filter(|no| !self.is_invalidated(cache_key.key.scope(), no.life().sent))",
        "self.negatives.get(cache_key)",
    ),
    (
        "invalidated-not-asked-about",
        "§3 upstream is asked whether it still holds",
        LOOK_UP,
        "entry.clone().or_else(|| self.store.get_to_confirm(&cache_key))",
        "entry.clone()",
    ),
    (
        "strangers-invalidate",
        "§3 only who holds a grant can invalidate",
        INVALIDATE,
        "if !is_good || !self.grants.is_granted(&self.caller_scope, at) {",
        "if !is_good {",
    ),
    (
        "errors-invalidate",
        "§3 and only a 2xx or 3xx does",
        INVALIDATE,
        "if !is_good || !self.grants.is_granted(",
        "if !self.grants.is_granted(",
    ),
    (
        "disguised-errors-invalidate",
        "§3 without an error_code",
        INVALIDATE,
        "self.is_error = admission::tells_error(&beginning);",
        "self.is_error = false && admission::tells_error(&beginning);",
    ),
    (
        "nothing-invalidates",
        "§3 an unsafe method invalidates",
        INVALIDATE,
        "if head.method.is_safe() {",
        "if head.method.is_safe() || true {",
    ),
    (
        "invalidated-elsewhere",
        "§3 in its own scope",
        "src/cache/store/invalidations.rs",
        "times.scopes.insert(scope.clone(), before.map_or(at, |before| before.max(at)));",
        "times.whole = times.whole.max(Some(at));",
    ),
    (
        "an-invalidation-purges",
        "§3 an invalidation is no purge",
        STORE,
        "self.write().invalidations.add(scope, at);",
        "{\nlet mut rules = self.write();\nrules.purges += 1;\nrules.invalidations.add(scope, at);\n}",
    ),
    (
        "one-callers-mark-for-all",
        "§2.3 a mark beside a fresh answer is its caller's own",
        SETTLE,
        "Some(entry) if is_fresh(&entry) => cache_key.of(self.request.lookup.caller_scope.caller),",
        "Some(entry) if false && is_fresh(&entry) => cache_key.of(self.request.lookup.caller_scope.caller),",
    ),
    (
        "own-mark-unheard",
        "§2.3 and its caller asks for itself",
        STORE,
        "mark(cache_key).or_else(|| mark(&cache_key.of(caller)))",
        "mark(cache_key).or_else(|| mark(&cache_key.of(caller)).filter(|_| cache_key.owner.is_some()))",
    ),
    (
        "vary-is-for-one-scope",
        "§3 an answer that varies on the credential makes its operation private",
        STORE,
        "let varies = audience == Audience::Caller && rules.private.add_operation(scope.operation());",
        "let varies = audience == Audience::Caller && rules.private.add(scope) == Reach::Scope;",
    ),
    (
        "vary-unheard",
        "§3 whoever else may share it",
        STORE,
        "let varies = audience == Audience::Caller && rules",
        "let varies = false && rules",
    ),
    (
        "project-purge-shares-again",
        "§3 a purge of a project does not undo what holds for all projects",
        SELECTION,
        "let names_it = self.operation.as_deref().is_none_or(|name| *name == *operation.name);\n"
        "        self.query.is_none() && self.project_id.is_none() && names_it",
        "let names_it = self.operation.as_deref().is_none_or(|name| *name == *operation.name);\n"
        "        self.query.is_none() && names_it",
    ),
    (
        "blanks-kept",
        "§2.8 a caller is told by its token, not by the blanks around it",
        VALIDATE,
        "head.headers.values_mut().filter(|value| has_blanks(value)).for_each(trim);",
        "",
    ),
    (
        "blanks-kept-at-the-end",
        "§2.8 on both sides of it",
        VALIDATE,
        "let end = text.len() - text",
        "let end = text.len() - 0 * text",
    ),
    (
        "blanks-in-http2",
        "§2.8 in HTTP/2 they are malformed",
        VALIDATE,
        "if head.version >= Version::HTTP_2 {",
        "if false {",
    ),
    (
        "second-token",
        "§2.8 two tokens are refused, even if they are equal",
        VALIDATE,
        "if tokens > 1 || !value",
        "if !value",
    ),
    (
        "underscored-token",
        "§2.8 and so is one that is spelled with _",
        VALIDATE,
        "} else if is_double(name.as_str(), catalogue) {",
        "} else if false && is_double(name.as_str(), catalogue) {",
    ),
    (
        "extended-grant-shows-newer",
        "§2.9 an extended grant shows nothing that was sent later than its regular end",
        LOOK_UP,
        "(life.sent <= sent_until && life",
        "(sent_until <= now && life",
    ),
    (
        "failure-here-extends",
        "§2.9 only a failure outside the gateway extends a grant",
        RELEASE,
        "self.stale_on_error(is_own && is_outside)",
        "self.stale_on_error(is_own)",
    ),
    (
        "failure-here-backoffs",
        "§2.9 a failure inside the gateway says nothing of upstream",
        SETTLE,
        "_ if !is_outside && self.cache_key.owner.is_some() => {}",
        "_ if !is_outside && self.cache_key.owner.is_some() && false => {}",
    ),
    (
        "unreachable-is-outside",
        "§2.9 no way to upstream counts only while nobody has reached it",
        "src/gateway/fetcher.rs",
        "Fault::Unreachable => !self.successes.is_reachable(service, now),",
        "Fault::Unreachable => true,",
    ),
    (
        "own-deadline-extends",
        "§2.9 the request's own deadline extends nothing",
        RELEASE,
        "self.stale_on_error(false)",
        "self.stale_on_error(true)",
    ),
    (
        "401-ends-one-grant",
        "§2.9 a 401 ends all grants of its caller in the service",
        GRANTS,
        "if status == StatusCode::UNAUTHORIZED {",
        "if false && status == StatusCode::UNAUTHORIZED {",
    ),
    (
        "services-401-ends-all",
        "§2.9 unless it is the service's own",
        "src/catalogue/error_code.rs",
        "is_service && !number.is_empty() &&",
        "false && is_service && !number.is_empty() &&",
    ),
    (
        "401-leaves-calls-in-flight",
        "§2.9 calls sent no later in other scopes are late",
        GRANTS,
        "in_scope.into_iter().chain(in_service).chain(suspended)",
        "in_scope.into_iter().chain(in_service.filter(|_| false)).chain(suspended.filter(|_| false))",
    ),
    (
        "waiters-stay-at-the-head",
        "§2.9 waiters are released at the head of a refusal",
        FLIGHTS,
        "self.tell(FlightState::Announced(result));",
        "let _ = result;",
    ),
    (
        "refused-caller-does-not-wait",
        "§2.9 the refused caller waits for the body",
        PATH,
        "if outcome.result.is_refusal_of(caller) => is_refused = true,",
        "if false && outcome.result.is_refusal_of(caller) => is_refused = true,",
    ),
    (
        "refusal-joined-after-its-head",
        "§2.9 nobody joins a flight that was refused at its head",
        FLIGHTS,
        "            self.close();\n            self.tell(FlightState::Announced(result));",
        "            self.tell(FlightState::Announced(result));",
    ),
    (
        "suspended-grant-shows",
        "§2.9 a 401 suspends the grants in its service at its head",
        GRANTS,
        "        self.suspensions > 0\n",
        "        self.suspensions > usize::MAX - 1\n",
    ),
    (
        "suspended-for-good",
        "§2.9 the service's own code brings suspended grants back",
        GRANTS,
        "if by == RefusedBy::ApiGateway\n            && let Some(ended)",
        "if let Some(ended)",
    ),
    (
        "late-calls-prove-while-suspended",
        "§2.9 calls sent no later are late from the head of a 401 on",
        GRANTS,
        "in_scope.into_iter().chain(in_service).chain(suspended).any(",
        "in_scope.into_iter().chain(in_service).chain(suspended.filter(|_| false)).any(",
    ),
    (
        "body-without-end-excuses",
        "§2.9 without a whole body, a 401 ends what it suspended",
        SETTLE,
        "pending_grant.refused(RefusedBy::ApiGateway, None, self.times.received)",
        "pending_grant.refused(RefusedBy::Service, None, self.times.received)",
    ),
    (
        "refusal-remembered-from-its-body",
        "§2.9 a refusal counts from its head on",
        SETTLE,
        "pending_grant.refused(RefusedBy::of(response.body()), refusal, times.received);",
        "pending_grant.refused(RefusedBy::of(response.body()), refusal, self.observer.clock.now());",
    ),
    (
        "second-call-in-an-outage",
        "§5 another call only while upstream answers others",
        WAIT,
        "() = another.successes.listed_since(another.service, sent) => {",
        "() = std::future::ready(()) => {\n                        let _ = (sent, another.service);",
    ),
    (
        "second-call-of-the-same-caller",
        "§5 another call of another caller",
        FLIGHTS,
        "self.callers.len() < MAX_CALLS && !self.callers.contains(&caller)",
        "self.callers.len() < MAX_CALLS && (!self.callers.contains(&caller) || true)",
    ),
    (
        "four-calls",
        "§5 three calls at most",
        FLIGHTS,
        "self.callers.len() < MAX_CALLS && ",
        "self.callers.len() <= MAX_CALLS && ",
    ),
    (
        "second-call-too-early",
        "§5 once the calls are slow",
        FETCH,
        "sleep(request.active.stale_if_slow) => {",
        "sleep(request.active.stale_if_slow / 2) => {",
    ),
    (
        "ended-grant-leads",
        "§2.3 a waiter whose grant has ended leads nobody",
        PATH,
        "matches!(found, LookupResult::Ask { cache_key, .. } if cache_key == role.cache_key)",
        "matches!(found, LookupResult::Ask { .. })",
    ),
    (
        "list-from-before-counts",
        "§5 a list that was sent later than the slow call",
        SUCCESSES,
        "latest.is_some_and(|sent| sent > moment)",
        "latest.is_some_and(|sent| sent > moment || true)",
    ),
    (
        "one-failure-ends-all",
        "§5 a failure ends only its own call",
        FLIGHTS,
        "let is_over = self.leave() || serves_all;",
        "let is_over = self.leave() || true;",
    ),
    (
        "second-answer-for-itself",
        "§5 the first good answer serves all",
        FLIGHTS,
        "let is_over = self.leave() || serves_all;",
        "let is_over = self.leave() || serves_all && false;",
    ),
    (
        "boot-clock-ignored",
        "§2 invariant 10: time includes suspension",
        SKEW,
        "self.suspended = self.suspended.max(reading.boot.saturating_sub(reading.monotonic));",
        "",
    ),
    (
        "wall-clock-ignored",
        "§2 invariant 10: a forward step of the wall clock is time that has passed",
        SKEW,
        "if ahead > DRIFT {",
        "if ahead > i64::MAX / 2 {",
    ),
    (
        "step-back-counts",
        "§2 invariant 10: a step back of the wall clock changes nothing",
        SKEW,
        "self.lowest = self.lowest.min(offset);",
        "(self.stepped, self.lowest) = (self.stepped + ahead.min(0), self.lowest.min(offset));",
    ),
    (
        "known-head-by-timers",
        "§2 invariant 10: a head that has come before is answered by the time of rules, too",
        REMEMBERED,
        "let now = self.clock.now();",
        "let now = self.clock.timer_now().into_std();",
    ),
]


SELECTED = "WORKSPACE_GATEWAY_TEST_MUTATION"
SELECT = f"""
/// The number of the mutation that is in force; 0 is none.
pub(crate) fn mutation() -> usize {{
    static SELECTED: std::sync::LazyLock<usize> = std::sync::LazyLock::new(|| {{
        std::env::var("{SELECTED}").map_or(0, |number| number.parse().expect("the number of a mutation"))
    }});
    *SELECTED
}}
"""

# What matters to find the bodies of functions. Comments, strings and characters are found so that their braces do not count.
TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|r(?P<hashes>\#*)".*?"(?P=hashes)|"(?:\\.|[^"\\])*"|'(?:\\[^']+|[^'\\])'"""
    r"""|(?P<fn>\bfn\s\w+)|(?P<open>[(\[])|(?P<close>[)\]])|(?P<semicolon>;)|(?P<begin>\{)|(?P<end>\})""",
    re.DOTALL,
)

Mutation = collections.namedtuple("Mutation", "name rule file text instead")


def copy_sources() -> None:
    COPY.mkdir(parents=True)
    # Not their times: what was built here before is older than any of it.
    shutil.copyfile(ROOT / "README.md", COPY / "README.md")
    for name in ["Cargo.toml", "Cargo.lock"]:
        text = (ROOT / name).read_text().replace(PACKAGE, PACKAGE + "0.0.0-mutant.")
        # The model does not start the program, which would be linked again for each.
        (COPY / name).write_text(text.replace("autotests = false", "autotests = false\nautobins = false").replace(BIN, ""))
    for name in ["src", "tests", "benches", "config"]:
        shutil.copytree(ROOT / name, COPY / name, copy_function=shutil.copyfile)
    # The model alone: the rest of the suite would be built again for each.
    suite = (ROOT / "tests/suite.rs").read_text()
    (COPY / "tests/suite.rs").write_text(re.sub(r"^mod (?!support|model)\w+;\n", "", suite, flags=re.MULTILINE))
    library = COPY / "src/lib.rs"
    # Broken rules leave variables unused and patterns unreachable.
    library.write_text("#![allow(warnings)]\n" + library.read_text() + SELECT)


def function_bodies(source: str) -> list[tuple[int, int]]:
    """Where function bodies begin and end, between their braces."""
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
    """The innermost function body that has the whole text of a mutation."""
    if source.count(mutation.text) != 1:
        sys.exit(f"overtaken: {mutation.name}: {mutation.file} has its text {source.count(mutation.text)} times")
    begin = source.index(mutation.text)
    end = begin + len(mutation.text)
    around = [body for body in function_bodies(source) if body[0] <= begin and end <= body[1]]
    return max(around, default=None) or sys.exit(f"{mutation.name}: its text is in no function body")


def with_mutations(source: str, mutations: dict[int, Mutation]) -> str:
    """A source in which a function that these mutations change selects one of its bodies."""
    by_body = collections.defaultdict(dict)
    for number, mutation in mutations.items():
        by_body[body_of(mutation, source)][number] = mutation
    for (begin, end), mutated in sorted(by_body.items(), reverse=True):
        body = source[begin:end]
        arms = "".join(f"{number} => {{{body.replace(it.text, it.instead)}}}\n" for number, it in mutated.items())
        source = f"{source[:begin]} match crate::mutation() {{\n{arms}_ => {{{body}}} }} {source[end:]}"
    return source


def build() -> pathlib.Path:
    """Builds the model in the copy. Returns the program."""
    environment = {
        **os.environ,
        "CARGO_TARGET_DIR": str(TARGET),
        # Half of the build would be for a debugger.
        "CARGO_PROFILE_DEV_DEBUG": "0",
        "CARGO_BIN_EXE_workspace-gateway": "there is none",
    }
    command = ["cargo", "test", "--quiet", "--locked", "--test", "suite", "--no-run"]
    # The longer build is repaid: all models together run for much longer.
    command += ["--config", "profile.dev.package.workspace-gateway.opt-level=1"]
    built = subprocess.run(
        [*command, "--message-format=json-render-diagnostics"], cwd=COPY, env=environment, stdout=subprocess.PIPE, text=True
    )
    messages = map(json.loads, built.stdout.splitlines())
    programs = [message["executable"] for message in messages if message.get("executable")]
    if built.returncode != 0 or len(programs) != 1:
        sys.exit("The mutations do not compile.")
    return pathlib.Path(programs[0])


def run_model(program: pathlib.Path, sequences: int, number: int = 0) -> tuple[str, str]:
    """What came of the model: `passes`, `caught`, or what else went wrong; and its words."""
    environment = {
        **os.environ,
        SELECTED: str(number),
        "WORKSPACE_GATEWAY_TEST_MODEL_SEQUENCES": str(sequences),
        "WORKSPACE_GATEWAY_TEST_MODEL_AS_FOUND": "1",
    }
    try:
        ran = subprocess.run([program, "model::"], cwd=COPY, env=environment, capture_output=True, text=True, timeout=1800)
    except subprocess.TimeoutExpired:
        return "hangs", ""
    if ran.returncode == 0:
        return "passes", ran.stdout
    wrong = re.search(r"^(PROPERTY|RULES): .*", ran.stdout + ran.stderr, re.MULTILINE)
    return ("caught", wrong[0]) if wrong else ("broken", ran.stdout + ran.stderr)


def main() -> int:
    every = [Mutation(*mutation) for mutation in MUTATIONS]
    chosen = dict(enumerate((it for it in every if not sys.argv[1:] or it.name in sys.argv[1:]), 1))
    sequences = int(os.environ.get("SEQUENCES", "2000"))
    shutil.rmtree(COPY, ignore_errors=True)
    copy_sources()
    for file in {mutation.file for mutation in chosen.values()}:
        mutations = {number: mutation for number, mutation in chosen.items() if mutation.file == file}
        (COPY / file).write_text(with_mutations((ROOT / file).read_text(), mutations))
    begun = time.monotonic()
    program = build()
    came, words = run_model(program, 100)
    print(f"{came:<9} {time.monotonic() - begun:4.0f} s  (none, and the build)", flush=True)
    if came != "passes":
        print(words)
        return 1

    def is_caught(number: int) -> bool:
        begun = time.monotonic()
        came, words = run_model(program, sequences, number)
        if came == "passes":
            # Sequences are random, and some rules seldom matter: those get a longer look. The rarest took 12,000 once.
            came, words = run_model(program, 20 * sequences, number)
        name, rule, *_ = chosen[number]
        line = f"{came:<9} {time.monotonic() - begun:4.0f} s  {name:<31} {rule}"
        print(f"{line}\n{'':17} {(words.strip() or '-').splitlines()[-1][:110]}", flush=True)
        return came == "caught"

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as models:
        caught = sum(models.map(is_caught, chosen))
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
