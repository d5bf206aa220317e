//! Judges each response by the states of upstream and by what the gateway guarantees.
//!
//! It sees what clients see. A request begins before the gateway receives it, and its response arrives after the
//! gateway has decided. So a check for any moment between both is exact, even on a slow machine. Each tolerance is
//! explained.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use workspace_gateway::testing::clock::Clock;

use super::cache_status::{CacheStatus, Source};
use super::client::{self, End, Exchange, RequestDirectives};
use super::endpoint::{Endpoint, Standing, Told};
use super::lock;
use super::settings::{
    ANSWER_TIMEOUT, BACKOFF, DENIAL_TTL, JITTER, Lifetimes, NOTICE, RETRY_AFTER, SLACK, STALE_IF_SLOW, SYNC,
};
use super::world::{Caller, Condition, Journal, Purge, Resource, Timeline, World};

/// How much longer than `upstream.answer_timeout` a request waits, as documented: without a grant it waits for a proof
/// first.
const DEADLINE_MARGIN: Duration = Duration::from_secs(1).saturating_add(STALE_IF_SLOW);

/// The longest time of a call, including the queue.
const LONGEST_CALL: Duration = ANSWER_TIMEOUT.saturating_mul(2);

/// How late a gateway may read what another one has told: longer than the engine is ever away.
const LATE_NOTICE: Duration = Duration::from_secs(10);

/// The kind of a request that the loads have broken.
const INCOMPLETE: &str = "(no complete response, under the loads)";

/// The same for a gateway that was killed.
const KILLED: &str = "(no complete response, the gateway was killed)";

/// The kind of a response, or what is wrong with it.
pub(crate) type Verdict = Result<String, String>;

pub(crate) struct Judge {
    world: Arc<World>,
    journal: Arc<Mutex<Journal>>,
    gateways: Arc<[Endpoint]>,
    lifetimes: Lifetimes,
    /// Upstream's lists, by resource, version of the catalogue, and whether the caller is restricted.
    lists: HashMap<(usize, Instant, bool), Option<Bytes>>,
    /// The latest request that proved a caller in a scope, at each gateway.
    proofs: HashMap<(ScopeKey, usize), Span>,
    /// The latest request whose response was stored at a gateway, by resource, and by its owner if it is private.
    stored: HashMap<(usize, Option<usize>, usize), Span>,
    /// When upstream last refused a caller in a scope, at each gateway.
    refused: HashMap<ScopeKey, Vec<Refusal>>,
    /// How often a rule of the fleet was to be kept.
    pub(crate) fleet: FleetCounts,
    /// The time of the last jump of a gateway's clock. Its entries and grants from before are not valid.
    jumped: HashMap<usize, Instant>,
    /// Whether a clock is about to jump or has just jumped.
    is_jumping: bool,
    hits: usize,
    /// When the loads started.
    loaded: Option<Instant>,
    /// Gateways have what they got since then. `None`: they may lose it at any time, so no error is avoidable.
    kept_since: Option<Instant>,
    /// Whether the engine may not know callers. Only in the simulation.
    may_not_know_callers: bool,
}

/// A caller, its project and the number of the operation.
type ScopeKey = (usize, usize, usize);

/// The numbers of responses that depend on what gateways tell each other.
#[derive(Clone, Copy, Default)]
pub(crate) struct FleetCounts {
    /// For callers that only another gateway has been denied.
    pub(crate) denied: usize,
    /// Lists that could be older than a purge at another gateway.
    pub(crate) purged: usize,
    /// Lists that another gateway has stored, or for callers that it has proved.
    pub(crate) shared: usize,
}

/// A request, from its beginning to the head of its response.
#[derive(Clone, Copy)]
struct Span {
    begun: Instant,
    decided: Instant,
    standing: Standing,
}

/// A refusal of upstream, and the number of changes of the caller's token until then.
struct Refusal {
    gateway: usize,
    at: Instant,
    changes: usize,
    told: Told,
    /// Whether the gateway certainly had a grant of the caller. Else it tells the refusal only if the engine knows the caller
    /// (`deploy/fleet.md`, "Not covered").
    is_known: bool,
}

impl Refusal {
    /// Whether the token is still invalid, and the gateway certainly knew it when the request began.
    fn is_certain(&self, case: &Case<'_>) -> bool {
        let Case { exchange, .. } = case;
        let is_told = || self.is_known && self.told.get().is_some_and(|told| *told + SYNC < exchange.begun);
        self.changes == case.token_states().count_by(exchange.decided)
            && match self.gateway == exchange.gateway {
                true => self.at < exchange.begun,
                false => exchange.standing == Standing::InSync && is_told(),
            }
    }
}

/// A response that is judged.
struct Case<'a> {
    exchange: &'a Exchange,
    status: StatusCode,
    headers: &'a HeaderMap,
    body: &'a Bytes,
    cache_status: &'a CacheStatus,
    source: Source,
    journal: &'a Journal,
    /// Whether it is the gateway's own error.
    is_own: bool,
}

impl Case<'_> {
    fn begun(&self) -> Instant {
        self.exchange.begun
    }

    fn decided(&self) -> Instant {
        self.exchange.decided
    }

    fn token_states(&self) -> &Timeline<bool> {
        &self.journal.token_states[self.exchange.caller]
    }

    /// Whether such a condition of upstream, at most this long before the request, can have affected the response.
    fn was(&self, before: Duration, like: impl Fn(Condition) -> bool) -> bool {
        self.journal.was(self.exchange.gateway, ago(self.begun(), before + NOTICE), self.decided(), like)
    }

    /// Whether the request may have waited for calls until its deadline. In a fleet it may wait for calls of other
    /// gateways, one after the other, that are slow or retried for upstream's throttling.
    fn has_waited(&self) -> bool {
        let links = &self.journal.links;
        let from = ago(self.begun(), LONGEST_CALL + NOTICE);
        let is_fleet = links.len() > 1 && self.cache_status.detail.as_deref() == Some("deadline");
        let is_slow_elsewhere = || links.iter().flat_map(|link| link.within(from, self.decided())).any(is_slow);
        self.was(LONGEST_CALL, is_slow) || is_fleet && (self.was_throttled() || is_slow_elsewhere())
    }

    /// Whether upstream has throttled this caller so shortly before that the gateway may send no call.
    fn was_throttled(&self) -> bool {
        self.was(RETRY_AFTER + LONGEST_CALL, |condition| match condition {
            Condition::Throttling => true,
            Condition::ThrottlingOne(caller) => caller == self.exchange.caller,
            _ => false,
        })
    }
}

fn ago(moment: Instant, span: Duration) -> Instant {
    moment.checked_sub(span).unwrap_or(moment)
}

impl Judge {
    pub(crate) fn new(
        world: Arc<World>,
        journal: Arc<Mutex<Journal>>,
        gateways: &Arc<[Endpoint]>,
        lifetimes: Lifetimes,
    ) -> Self {
        let (lists, proofs) = (HashMap::new(), HashMap::new());
        Self {
            world,
            journal,
            gateways: Arc::clone(gateways),
            lifetimes,
            lists,
            proofs,
            stored: HashMap::new(),
            refused: HashMap::new(),
            fleet: FleetCounts::default(),
            jumped: HashMap::new(),
            is_jumping: false,
            hits: 0,
            loaded: None,
            kept_since: Some(Clock::System.now()),
            may_not_know_callers: false,
        }
    }

    /// A gateway that has missed notices of its fleet removes its entries and proves its callers again. The judge does not
    /// know when. Errors must still be such as upstream's failures explain.
    pub(crate) fn expect_lost_entries(&mut self) {
        self.kept_since = None;
    }

    /// From now on gateways miss no notices.
    #[allow(dead_code)]
    pub(crate) fn expect_kept_entries(&mut self, now: Instant) {
        self.kept_since = Some(now);
    }

    /// The engine may not know a caller (`deploy/fleet.md`, "Not covered"). So a refusal counts for other gateways only if
    /// the gateway that saw it had proved the caller.
    #[allow(dead_code)]
    pub(crate) fn expect_unknown_callers(&mut self) {
        self.may_not_know_callers = true;
    }

    /// The loads start. From now on the gateway, and upstream on the same machine, may refuse requests, be late and
    /// close connections. Responses must still be correct, and only for callers that may see them.
    pub(crate) fn expect_loads(&mut self, now: Instant) {
        self.loaded = Some(now);
    }

    /// A clock of the gateway will jump by far more than any lifetime. Until
    /// [`expect_nothing_from_before`](Self::expect_nothing_from_before), the gateway may use or drop what it has.
    pub(crate) fn expect_jump(&mut self) {
        self.is_jumping = true;
    }

    pub(crate) fn expect_nothing_from_before(&mut self, gateway: usize, now: Instant) {
        self.jumped.insert(gateway, now);
        self.is_jumping = false;
    }

    /// The number of hits so far, fresh or revalidated in the background.
    pub(crate) fn hits(&self) -> usize {
        self.hits
    }

    /// The earliest time that a response may come from: this long before the request, but not before the last jump of a
    /// clock. A shared fetch may have been sent before the jump. In a fleet, other clocks have not jumped.
    fn since(&self, case: &Case<'_>, span: Duration) -> Instant {
        let from = ago(case.begun(), span);
        let jumped = self.jumped.get(&case.exchange.gateway).filter(|_| self.gateways.len() == 1);
        let jumped = jumped.filter(|jumped| **jumped <= case.begun() && case.source != Source::Collapsed);
        jumped.map_or(from, |jumped| from.max(*jumped))
    }

    fn is_loaded(&self, exchange: &Exchange) -> bool {
        self.loaded.is_some_and(|since| exchange.decided >= since)
    }

    /// What a gateway knew is lost, because it was killed. With a snapshot, it must have kept refusals until this time.
    pub(crate) fn forget(&mut self, killed: usize, kept_until: Option<Instant>) {
        self.proofs.retain(|(_, gateway), _| *gateway != killed);
        self.stored.retain(|(_, _, gateway), _| *gateway != killed);
        self.refused.values_mut().for_each(|refusals| {
            refusals.retain(|refusal| refusal.gateway != killed || kept_until.is_some_and(|until| refusal.at < until))
        });
    }

    /// Whether the gateway has been down since the request began.
    fn was_killed(&self, exchange: &Exchange, journal: &Journal) -> bool {
        journal.down[exchange.gateway].within(exchange.begun, Clock::System.now()).any(|is_down| is_down)
    }

    pub(crate) fn judge(&mut self, exchange: &Exchange) -> Verdict {
        let (status, headers, body) = match &exchange.end {
            End::Broken(_) if self.is_loaded(exchange) => return Ok(INCOMPLETE.to_owned()),
            End::Aborted => return Ok("(the client aborted)".to_owned()),
            End::Broken(_) if self.was_killed(exchange, &lock(&self.journal)) => return Ok(KILLED.to_owned()),
            // The end of a relayed response may overtake its head: the reset in HTTP/2, and in HTTP/1 hyper drops a head
            // that it has not written yet.
            End::Broken(error)
                if exchange.directives == RequestDirectives::NoStore
                    && ["Reset(", "IncompleteMessage"].iter().any(|kind| error.contains(kind)) =>
            {
                let has_broken =
                    lock(&self.journal).was(exchange.gateway, ago(exchange.begun, NOTICE), exchange.decided, breaks);
                let kind = "(a relayed response has ended like upstream's)".to_owned();
                return if has_broken { Ok(kind) } else { Err(error.clone()) };
            }
            End::Broken(error) => return Err(error.clone()),
            End::Answered { status, headers, body } => (*status, headers, body),
        };
        let cache_status = CacheStatus::read(headers);
        let source = cache_status.source(status == StatusCode::OK || status == StatusCode::NOT_MODIFIED);
        let journal = Arc::clone(&self.journal);
        let journal = lock(&journal);
        let kind = format!("{} {cache_status}", status.as_u16());
        let body = match body {
            Ok(body) => body,
            // A relayed response ends where upstream's does.
            Err(_)
                if source == Source::Relayed
                    && journal.was(
                        exchange.gateway,
                        ago(exchange.begun, NOTICE),
                        exchange.decided + NOTICE,
                        breaks,
                    ) =>
            {
                return Ok(format!("{kind} (incomplete like upstream's)"));
            }
            Err(_) if self.is_loaded(exchange) => return Ok(INCOMPLETE.to_owned()),
            Err(_) if self.was_killed(exchange, &journal) => return Ok(KILLED.to_owned()),
            Err(error) => return Err(error.clone()),
        };
        let is_own = body.windows(32).any(|words| words == br#""error_msg":"workspace-gateway: "#.as_slice());
        let case =
            Case { exchange, status, headers, body, cache_status: &cache_status, source, journal: &journal, is_own };
        let is_exhausted = case.was(NOTICE, |condition| condition == Condition::Exhausted);
        if (self.is_loaded(exchange) || is_exhausted) && is_own && status.is_server_error() {
            return Ok(format!("{kind} (under the loads)"));
        }
        if !self.is_loaded(exchange) && !self.was_killed(exchange, &journal) {
            self.in_time(&case)?;
        }
        self.obeys_directives(&case)?;
        match status {
            StatusCode::OK | StatusCode::NOT_MODIFIED => {
                self.body_is_true(&case)?;
                self.may_see(&case)?;
                if !self.is_loaded(exchange) {
                    self.source_is_possible(&case)?;
                }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.is_refused(&case)?,
            _ => self.error_is_possible(&case)?,
        }
        self.count_for_fleet(&case);
        self.hits += usize::from(matches!(case.source, Source::Fresh | Source::AfterProof | Source::Revalidating));
        self.record(&case);
        Ok(kind)
    }

    fn scope_key(&self, exchange: &Exchange) -> ScopeKey {
        let resource = &self.world.resources[exchange.resource];
        (exchange.caller, resource.project, resource.scope)
    }

    fn entry_key(&self, exchange: &Exchange) -> (usize, Option<usize>, usize) {
        let is_private = self.world.resources[exchange.resource].is_private;
        (exchange.resource, is_private.then_some(exchange.caller), exchange.gateway)
    }

    /// The purges that can select this response.
    fn purges<'j>(&self, case: &Case<'j>) -> impl Iterator<Item = &'j Purge> {
        let project = self.world.resources[case.exchange.resource].project;
        let purges = case.journal.purges.iter();
        purges.filter(move |purge| purge.project.is_none_or(|purged| purged == project))
    }

    fn count_for_fleet(&mut self, case: &Case<'_>) {
        let refusals = self.refused.get(&self.scope_key(case.exchange)).into_iter().flatten();
        let mut certain = refusals.filter(|refusal| refusal.is_certain(case)).peekable();
        let is_told = certain.peek().is_some() && certain.all(|refusal| refusal.gateway != case.exchange.gateway);
        self.fleet.denied += usize::from(is_told && !case.is_own);
        self.fleet.shared += usize::from(case.source == Source::Fleet);
    }

    /// No response is later than its deadline. A hit may have waited for another request's fetch.
    fn in_time(&self, case: &Case<'_>) -> Result<(), String> {
        let took = case.decided().saturating_duration_since(case.begun());
        let deadline = if case.source == Source::Relayed { LONGEST_CALL } else { ANSWER_TIMEOUT + DEADLINE_MARGIN };
        if took > deadline + SLACK { Err(format!("late: {took:?}")) } else { Ok(()) }
    }

    fn obeys_directives(&self, case: &Case<'_>) -> Result<(), String> {
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
    fn body_is_true(&mut self, case: &Case<'_>) -> Result<(), String> {
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

    fn list(&mut self, resource: usize, version: Instant, restricted: bool) -> &Option<Bytes> {
        let world = &self.world;
        self.lists.entry((resource, version, restricted)).or_insert_with(|| {
            let Resource { project, targets, language, .. } = &world.resources[resource];
            let sees = |caller: &&Caller| caller.project == Some(*project) && caller.is_restricted == restricted;
            let Caller { token, .. } = world.callers.iter().find(sees)?;
            world.simulator.product_list_at(token, &targets[0], &client::language(*language), version)
        })
    }

    /// Upstream would have sent it to this caller within the lifetime of a grant.
    fn may_see(&self, case: &Case<'_>) -> Result<(), String> {
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
    fn source_is_possible(&self, case: &Case<'_>) -> Result<(), String> {
        let is_possible = match case.source {
            Source::Failure if case.cache_status.detail.as_deref() == Some("throttled") => case.was_throttled(),
            Source::Failure if case.cache_status.detail.as_deref() == Some("deadline") => case.has_waited(),
            Source::Failure => case.was(LONGEST_CALL, |condition| {
                match (case.cache_status.status, case.cache_status.detail.as_deref()) {
                    (Some(status), _) => gives(condition, status),
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
                let is_told = |condition: Condition| condition.fails() && condition != Condition::Exhausted;
                let from = ago(case.begun(), span + NOTICE);
                let links = case.journal.links.iter();
                case.was(span, Condition::fails)
                    || links.flat_map(|link| link.within(from, case.decided())).any(is_told)
            }
            _ => true,
        };
        if is_possible { Ok(()) } else { Err("upstream did not fail like this".to_owned()) }
    }

    /// Upstream refuses this caller, or did so shortly before.
    fn is_refused(&self, case: &Case<'_>) -> Result<(), String> {
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

    fn error_is_possible(&mut self, case: &Case<'_>) -> Result<(), String> {
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
            (_, 429) => case.was_throttled(),
            (true, _) => false,
            (false, _) => case.was(ANSWER_TIMEOUT, |condition| gives(condition, status)),
        };
        if !is_possible {
            return Err("upstream did not fail like this".to_owned());
        }
        // If the budget has no room for upstream's response, a request is relayed although an entry is stored.
        let is_relayed_without_budget = self.is_loaded(exchange) && case.source == Source::Relayed;
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
        let live = live && self.kept_since.is_some_and(|since| since < proof.begun && since < stored.begun);
        let live = live
            && self.jumped.get(&exchange.gateway).is_none_or(|jumped| *jumped < proof.begun && *jumped < stored.begun);
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

    /// Records what the response means for later ones.
    fn record(&mut self, case: &Case<'_>) {
        let (key, entry_key) = (self.scope_key(case.exchange), self.entry_key(case.exchange));
        let Exchange { gateway, standing, .. } = *case.exchange;
        let span = Span { begun: case.begun(), decided: case.decided(), standing };
        let is_late = case.cache_status.detail.as_deref() == Some("late");
        if is_late || self.was_killed(case.exchange, case.journal) {
            return;
        }
        let status = match case.source {
            Source::Upstream => case.cache_status.status,
            // It proves nobody, but it refuses.
            Source::Relayed => Some(case.status.as_u16()).filter(|status| matches!(status, 401 | 403)),
            _ => return,
        };
        match status {
            Some(200 | 304) if case.status != StatusCode::BAD_REQUEST => {
                self.proofs.insert((key, gateway), span);
                if case.cache_status.stored {
                    self.stored.insert(entry_key, span);
                }
            }
            // If the token was valid in between, the gateway may know that, too.
            Some(401 | 403) if case.token_states().within(span.begun, span.decided).count() == 1 => {
                let (at, changes) = (span.decided, case.token_states().count_by(span.decided));
                let proof = self.proofs.get(&(key, gateway));
                let is_known = proof.is_some_and(|proof| span.decided < proof.begun + self.lifetimes.grant_ttl);
                let jumped = self.jumped.get(&gateway);
                let is_known = is_known && jumped.is_none_or(|jumped| proof.is_some_and(|proof| *jumped < proof.begun));
                let is_known = is_known || !self.may_not_know_callers;
                let told = self.gateways[gateway].told();
                let refusal = Refusal { gateway, at, changes, told, is_known };
                let refusals = self.refused.entry(key).or_default();
                refusals.retain(|earlier| earlier.gateway != gateway);
                refusals.push(refusal);
            }
            _ => {}
        }
    }
}

/// Whether connections or responses are cut off.
fn breaks(condition: Condition) -> bool {
    matches!(
        condition,
        Condition::Resetting | Condition::Truncating | Condition::Dead | Condition::CutOff | Condition::Exhausted
    )
}

fn is_slow(condition: Condition) -> bool {
    matches!(condition, Condition::Slow | Condition::Stuck | Condition::CutOff | Condition::Exhausted)
}

fn gives(condition: Condition, status: u16) -> bool {
    match condition {
        Condition::Failing(failure) => failure.as_u16() == status,
        Condition::Throttling | Condition::ThrottlingOne(_) => status == 429,
        _ => false,
    }
}
