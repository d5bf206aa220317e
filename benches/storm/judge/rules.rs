//! What must hold for each response.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;

use super::super::cache_status::Source;
use super::super::client::{self, RequestDirectives};
use super::super::endpoint::Standing;
use super::super::settings::{
    ANSWER_TIMEOUT, BACKOFF, DENIAL_TTL, JITTER, Lifetimes, NOTICE, RETRY_AFTER, SLACK, STALE_IF_SLOW, SYNC,
};
use super::super::world::{Caller, Condition, Purge, Resource};
use super::case::{Case, LONGEST_CALL, ago, breaks, is_slow};
use super::{Judge, Refusal};

/// How much longer than `upstream.answer_timeout` a request waits, as documented: without a grant it waits for a proof
/// first.
const DEADLINE_MARGIN: Duration = Duration::from_secs(1).saturating_add(STALE_IF_SLOW);

/// How late a gateway may read what another one has told: longer than the engine is ever away.
const LATE_NOTICE: Duration = Duration::from_secs(10);

impl Judge {
    /// No response is later than its deadline. A hit may have waited for another request's fetch.
    pub(super) fn in_time(&self, case: &Case<'_>) -> Result<(), String> {
        let took = case.decided().saturating_duration_since(case.begun());
        let deadline = if case.source == Source::Relayed { LONGEST_CALL } else { ANSWER_TIMEOUT + DEADLINE_MARGIN };
        if took > deadline + SLACK { Err(format!("late: {took:?}")) } else { Ok(()) }
    }

    pub(super) fn obeys_directives(&self, case: &Case<'_>) -> Result<(), String> {
        let from_memory = case.source.is_memory();
        let has_cookie = case.headers.contains_key("set-cookie");
        if has_cookie && !matches!(case.source, Source::Upstream | Source::Relayed) {
            return Err("another client's cookie".to_owned());
        }
        if case.status == StatusCode::NOT_MODIFIED
            && !matches!(case.exchange.directives, RequestDirectives::IfNoneMatch(..))
        {
            return Err("a 304 without If-None-Match".to_owned());
        }
        let needs_no_call = from_memory
            && !matches!(case.source, Source::AfterProof | Source::Fleet | Source::StaleIfSlow | Source::Failure);
        let is_excused = matches!(case.source, Source::Failure | Source::Denial);
        let is_obeyed = match case.exchange.directives {
            RequestDirectives::None | RequestDirectives::IfNoneMatch(..) => true,
            RequestDirectives::NoCache | RequestDirectives::MaxAge(0) => !from_memory || is_excused,
            RequestDirectives::MaxAge(most) => {
                is_excused || !from_memory || self.age(case)?.is_some_and(|age| age <= Duration::from_secs(most))
            }
            RequestDirectives::OnlyIfCached => {
                needs_no_call || case.status == StatusCode::GATEWAY_TIMEOUT && case.is_own
            }
            RequestDirectives::NoStore => case.source == Source::Relayed || case.is_own,
        };
        if is_obeyed { Ok(()) } else { Err("against the request directives".to_owned()) }
    }

    fn age(&self, case: &Case<'_>) -> Result<Option<Duration>, String> {
        let Some(age) = case.headers.get("age") else { return Ok(None) };
        let seconds = age.to_str().ok().and_then(|age| age.parse().ok()).ok_or("Age is not a number")?;
        Ok(Some(Duration::from_secs(seconds)))
    }

    /// The list is, byte for byte, what upstream would have sent this caller at a moment within the allowed age.
    pub(super) fn body_is_true(&mut self, case: &Case<'_>) -> Result<(), String> {
        let (exchange, lifetimes) = (case.exchange, self.lifetimes);
        let allowed = match case.source {
            Source::Fresh | Source::AfterProof | Source::Fleet => lifetimes.ttl,
            Source::Revalidating => lifetimes.ttl + lifetimes.stale_while_revalidate,
            Source::Backoff | Source::StaleIfSlow | Source::Failure => lifetimes.max_age(),
            Source::Upstream | Source::Relayed => Duration::ZERO,
            Source::Collapsed => ANSWER_TIMEOUT,
            Source::Denial | Source::Negative | Source::Unknown => {
                return Err("a list from an unexpected source".to_owned());
            }
        };
        // It is not older than its `Age`, which is in whole seconds.
        let stated = self.age(case)?.map_or(allowed, |age| age + Duration::from_secs(1));
        let mut from = self.since(case, allowed.min(stated));
        if case.source.is_memory()
            && let Some(purge) =
                self.purges(case).filter(|purge| purge.is_certain(exchange)).max_by_key(|purge| purge.begun)
            && purge.begun > from
        {
            from = purge.begun;
            self.fleet.purged += usize::from(purge.gateway != exchange.gateway);
        }
        let body = match (&exchange.directives, case.status) {
            (RequestDirectives::IfNoneMatch(_, body), StatusCode::NOT_MODIFIED) => body.clone(),
            _ => case.body.clone(),
        };
        let correct: Vec<_> = case.journal.versions.within(from, case.decided()).collect();
        let is_restricted = self.world.callers[exchange.caller].is_restricted;
        if correct.iter().any(|&version| self.list(exchange.resource, version, is_restricted).as_ref() == Some(&body)) {
            return Ok(());
        }
        let versions: Vec<_> = case.journal.versions.all().collect();
        let number = |version: &Instant| versions.partition_point(|other| other < version);
        for version in versions.iter().rev() {
            for resource in 0..self.world.resources.len() {
                for restricted in [false, true] {
                    if self.list(resource, *version, restricted).as_ref() == Some(&body) {
                        let view = if restricted == is_restricted { "" } else { ", as other callers see it" };
                        let correct: Vec<_> = correct.iter().map(number).collect();
                        return Err(format!(
                            "the list of resource {resource} in version {}{view}; correct within {allowed:?} are {correct:?}",
                            number(version)
                        ));
                    }
                }
            }
        }
        Err("a body that upstream never sent".to_owned())
    }

    pub(super) fn list(&mut self, resource: usize, version: Instant, restricted: bool) -> &Option<Bytes> {
        let world = &self.world;
        self.lists.entry((resource, version, restricted)).or_insert_with(|| {
            let Resource { project, targets, language, .. } = &world.resources[resource];
            let sees = |caller: &&Caller| caller.project == Some(*project) && caller.is_restricted == restricted;
            let Caller { token, .. } = world.callers.iter().find(sees)?;
            world.simulator.product_list_at(token, &targets[0], &client::language(*language), version)
        })
    }

    /// Upstream would have sent it to this caller within the lifetime of a grant.
    pub(super) fn may_see(&self, case: &Case<'_>) -> Result<(), String> {
        let exchange = case.exchange;
        if self.world.callers[exchange.caller].project != Some(self.world.resources[exchange.resource].project) {
            return Err("a list for a caller of another project".to_owned());
        }
        let life = match case.source {
            Source::Upstream | Source::Relayed => Duration::ZERO,
            // A failure of the gateway itself extends no grant.
            Source::Failure if case.cache_status.detail.as_deref() == Some("local") => self.lifetimes.grant_ttl,
            // The caller's own call has failed, now or shortly before.
            Source::Backoff | Source::Failure => self.lifetimes.outage_grace,
            _ => self.lifetimes.grant_ttl,
        };
        if !case.token_states().within(self.since(case, life), case.decided()).any(|is_good| is_good) {
            return Err(format!("a list for a caller whose token has been invalid for {life:?}"));
        }
        let mut refusals = self.refused.get(&self.scope_key(exchange)).into_iter().flatten();
        match refusals.find(|refusal| refusal.is_certain(case)) {
            Some(Refusal { gateway, at, .. }) => {
                let since = case.begun().saturating_duration_since(*at);
                Err(format!(
                    "a list for a caller that upstream refused {since:?} before at gateway {gateway}, and whose token is still invalid"
                ))
            }
            None => Ok(()),
        }
    }

    /// If the response says that upstream failed, it did fail.
    pub(super) fn source_is_possible(&self, case: &Case<'_>) -> Result<(), String> {
        let is_possible = match case.source {
            Source::Fresh | Source::AfterProof | Source::Fleet if case.cache_status.ttl.is_some_and(|ttl| ttl < 0) => {
                return Err("a stale list as a fresh one".to_owned());
            }
            Source::Failure if case.cache_status.detail.as_deref() == Some("throttled") => case.was_throttled(),
            Source::Failure if case.cache_status.detail.as_deref() == Some("deadline") => case.has_waited(),
            Source::Failure => case.was(LONGEST_CALL, |condition| {
                match (case.cache_status.status, case.cache_status.detail.as_deref()) {
                    // Its leader had another caller. A stale list takes nothing from this one.
                    (Some(429), _) if case.cache_status.collapsed => {
                        matches!(condition, Condition::Throttling | Condition::ThrottlingOne(_))
                    }
                    (Some(status), _) => case.gets(condition, status),
                    (None, Some("connect")) => matches!(condition, Condition::Dead | Condition::CutOff),
                    (None, Some("first-byte" | "timeout" | "idle" | "busy")) => is_slow(condition),
                    (None, Some("local")) => condition == Condition::Exhausted,
                    (None, Some("broken")) => breaks(condition),
                    (None, _) => false,
                }
            }),
            // Another gateway of the fleet may have failed, and told so. It does not tell its own failures.
            Source::Backoff => {
                let span = BACKOFF.max(RETRY_AFTER) + LONGEST_CALL;
                let fails = |condition: Condition| condition.fails() && case.concerns(condition);
                let is_told = |condition: Condition| fails(condition) && condition != Condition::Exhausted;
                let from = ago(case.begun(), span + NOTICE);
                let links = case.journal.links.iter();
                case.was(span, fails) || links.flat_map(|link| link.within(from, case.decided())).any(is_told)
            }
            _ => true,
        };
        if is_possible { Ok(()) } else { Err("upstream did not fail like this".to_owned()) }
    }

    /// Upstream refuses this caller, or did so shortly before.
    pub(super) fn is_refused(&self, case: &Case<'_>) -> Result<(), String> {
        let before = match case.source {
            Source::Denial => DENIAL_TTL + ANSWER_TIMEOUT,
            // A caller without a grant waits for its own calls.
            Source::Collapsed => ANSWER_TIMEOUT,
            _ => Duration::ZERO,
        };
        let exchange = case.exchange;
        let is_foreign =
            self.world.callers[exchange.caller].project != Some(self.world.resources[exchange.resource].project);
        if is_foreign || case.token_states().within(ago(case.begun(), before), case.decided()).any(|is_good| !is_good) {
            return Ok(());
        }
        Err("refused, but upstream accepts the caller".to_owned())
    }

    pub(super) fn error_is_possible(&mut self, case: &Case<'_>) -> Result<(), String> {
        let exchange = case.exchange;
        let status = case.status.as_u16();
        if status == 400
            && self.list(exchange.resource, case.journal.versions.latest(), false).is_none()
            && !case.is_own
        {
            return Ok(());
        }
        if exchange.directives == RequestDirectives::OnlyIfCached && status == 504 && case.is_own {
            return Ok(());
        }
        let is_possible = match (case.is_own, status) {
            (true, 502) => case.was(ANSWER_TIMEOUT, breaks),
            (true, 503 | 504) => case.has_waited(),
            (true, 429) => case.was_throttled(),
            (true, _) => false,
            (false, _) => case.was(ANSWER_TIMEOUT, |condition| case.gets(condition, status)),
        };
        if !is_possible {
            return Err("upstream did not fail like this".to_owned());
        }
        // If the budget has no room for upstream's response, a request is relayed although an entry is stored.
        let has_no_budget = self.is_loaded(exchange) || case.was(NOTICE, |condition| condition == Condition::Exhausted);
        let is_relayed_without_budget = has_no_budget && case.source == Source::Relayed;
        if !is_relayed_without_budget && self.is_promised(case) {
            Err("an error, although an entry could have been sent".to_owned())
        } else {
            Ok(())
        }
    }

    /// Whether the caller certainly has a grant, and an entry that may be sent when upstream fails.
    fn is_promised(&self, case: &Case<'_>) -> bool {
        let exchange = case.exchange;
        if self.is_jumping
            || !matches!(exchange.directives, RequestDirectives::None | RequestDirectives::IfNoneMatch(..))
        {
            return false;
        }
        let proof = self.proofs.get(&(self.scope_key(exchange), exchange.gateway));
        let (Some(proof), Some(stored)) = (proof, self.stored.get(&self.entry_key(exchange))) else { return false };
        let are_complete = proof.decided <= case.begun() && stored.decided <= case.begun();
        let Lifetimes { ttl, stale_if_error, grant_ttl, .. } = self.lifetimes;
        let life = ttl * (100 - JITTER) / 100 + stale_if_error;
        let live = case.decided() < proof.begun + grant_ttl && case.decided() < stored.begun + life;
        let live = live && self.keeps(exchange.gateway, proof) && self.keeps(exchange.gateway, stored);
        // While one gateway misses notices, the log may be cut off for the others, too.
        let live = live && self.noticing_since.iter().all(|since| since.is_some_and(|since| since < stored.begun));
        // A refusal of an earlier call ends a grant, too, and so does one that another gateway has told.
        let late = if self.gateways.len() > 1 { LATE_NOTICE } else { Duration::ZERO };
        let since = ago(proof.begun, ANSWER_TIMEOUT + NOTICE + late);
        let is_applied = |purge: &Purge| match purge.gateway == exchange.gateway {
            true => purge.ended.is_some_and(|ended| ended < stored.begun),
            false => {
                stored.standing == Standing::InSync && purge.told.get().is_some_and(|told| *told + SYNC < stored.begun)
            }
        };
        let live = live && self.purges(case).all(is_applied);
        are_complete && live && case.token_states().within(since, case.decided()).all(|is_good| is_good)
    }
}
