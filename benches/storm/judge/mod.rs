//! Judges each response by the states of upstream and by what the gateway guarantees.
//!
//! It sees what clients see. A request begins before the gateway receives it, and its response arrives after the
//! gateway has decided. So a check for any moment between both is exact, even on a slow machine. Each tolerance is
//! explained.

mod case;
mod rules;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use workspace_gateway::testing::clock::Clock;

use super::cache_status::{CacheStatus, Source};
use super::client::{End, Exchange, RequestDirectives};
use super::endpoint::{Endpoint, Standing, Told};
use super::lock;
use super::settings::{Lifetimes, NOTICE, SYNC};
use super::world::{Condition, Journal, Purge, World};
use case::{Case, LONGEST_CALL, ago, breaks};

/// The kind of a request that the loads have broken.
const INCOMPLETE: &str = "(no complete response, under the loads)";

/// The same for a gateway that was killed.
const KILLED: &str = "(no complete response, the gateway was killed)";

/// A gateway without descriptors accepts a connection only later, also if its client has gone. As long as the longest fault.
const UNACCEPTED: Duration = Duration::from_secs(30);

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
    /// The latest time at which each gateway may have begun to serve a caller in a scope, whatever its response.
    asked: HashMap<(ScopeKey, usize), Instant>,
    /// Hits of callers that the gateway itself had to prove, but that have not asked it before. A request that is judged
    /// later may have begun before them.
    unproved: Vec<Unproved>,
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
    /// Each gateway has what it got since then, unless it misses notices.
    kept_since: Vec<Instant>,
    /// Since when each gateway misses no notices. `None`: it may miss some at any time, and lose what it has, so no error is
    /// avoidable.
    noticing_since: Vec<Option<Instant>>,
    /// The engine may have again what it had then.
    backup: Option<Instant>,
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

struct Unproved {
    scope: (ScopeKey, usize),
    decided: Instant,
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
            asked: HashMap::new(),
            unproved: Vec::new(),
            stored: HashMap::new(),
            refused: HashMap::new(),
            fleet: FleetCounts::default(),
            jumped: HashMap::new(),
            is_jumping: false,
            hits: 0,
            loaded: None,
            kept_since: vec![Clock::System.now(); gateways.len()],
            noticing_since: vec![Some(Clock::System.now()); gateways.len()],
            backup: None,
            may_not_know_callers: false,
        }
    }

    /// A gateway that has missed notices of its fleet removes its entries and proves its callers again. The judge does not
    /// know when. Errors must still be such as upstream's failures explain.
    pub(crate) fn expect_missed_notices(&mut self, gateway: usize) {
        self.noticing_since[gateway] = None;
    }

    /// From now on no gateway misses notices.
    #[allow(dead_code)]
    pub(crate) fn expect_all_notices(&mut self, now: Instant) {
        self.noticing_since.fill(Some(now));
    }

    /// The engine may go back to what it has now. Gateways tell it again what it loses, unless they have been killed
    /// meanwhile. `None`: they have told it.
    #[allow(dead_code)]
    pub(crate) fn expect_backup(&mut self, taken: Option<Instant>) {
        self.backup = taken;
    }

    /// From `since` on, this gateway keeps what it gets.
    #[allow(dead_code)]
    pub(crate) fn expect_kept_entries(&mut self, gateway: usize, since: Instant) {
        self.kept_since[gateway] = since;
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

    /// Whether the gateway certainly has what it got by this request: since then it has neither started nor missed notices, and
    /// its clock has not jumped.
    fn keeps(&self, gateway: usize, got: &Span) -> bool {
        let is_since = |moment: &Instant| *moment < got.begun;
        let since = self.noticing_since[gateway].map(|since| since.max(self.kept_since[gateway]));
        since.as_ref().is_some_and(is_since) && self.jumped.get(&gateway).is_none_or(is_since)
    }

    /// The process of a gateway has ended. Refusals from before `kept_until` still count: its snapshot has them, or the next
    /// process has no grants. In a fleet, refusals and purges count only if the engine certainly knows them: the next process
    /// uses what the engine has.
    pub(crate) fn forget(&mut self, ended: usize, kept_until: Option<Instant>) {
        self.proofs.retain(|(_, gateway), _| *gateway != ended);
        self.asked.retain(|(_, gateway), _| *gateway != ended);
        self.stored.retain(|(_, _, gateway), _| *gateway != ended);
        // What the next process reads may be from before the jump: clocks that were set back and ahead show its true age.
        self.jumped.remove(&ended);
        let (is_alone, backup) = (self.gateways.len() == 1, self.backup);
        let is_told =
            |told: &Told| is_alone || told.get().is_some_and(|told| backup.is_none_or(|backup| *told < backup));
        self.refused.values_mut().for_each(|refusals| {
            // Another gateway may have proved a caller that this one did not know.
            let is_kept = |refusal: &Refusal| {
                refusal.is_known && is_told(&refusal.told) && kept_until.is_some_and(|until| refusal.at < until)
            };
            refusals.retain(|refusal| refusal.gateway != ended || is_kept(refusal))
        });
        let purges = &mut lock(&self.journal).purges;
        for purge in purges.iter_mut().filter(|purge| purge.gateway == ended && !is_told(&purge.told)) {
            purge.is_lost = true;
        }
    }

    /// Whether the gateway has been down since the request began.
    fn was_killed(&self, exchange: &Exchange, journal: &Journal) -> bool {
        journal.down[exchange.gateway].within(exchange.begun, Clock::System.now()).any(|is_down| is_down)
    }

    /// Hits for callers without a proof, with their times since the start. Complete after the last request.
    #[allow(dead_code)]
    pub(crate) fn unproved(&self, started: Instant) -> impl Iterator<Item = String> {
        self.unproved.iter().map(move |Unproved { scope, decided }| {
            let ((caller, project, operation), gateway) = scope;
            let at = (*decided - started).as_secs_f64();
            format!("gateway {gateway} gave caller {caller} of project {project} a hit of operation {operation} without a proof, at {at:.3} s")
        })
    }

    /// Whether the gateway itself may have proved this caller. A call for it begins with one of its requests.
    fn note_request(&mut self, exchange: &Exchange) -> bool {
        let scope = (self.scope_key(exchange), exchange.gateway);
        self.unproved.retain(|unproved| unproved.scope != scope || unproved.decided < exchange.begun);
        let since = ago(exchange.begun, self.lifetimes.grant_ttl + LONGEST_CALL);
        // Requests are judged when their bodies have ended, so not in order.
        let asked = self.asked.get(&scope).copied();
        let is_exhausted = |condition| condition == Condition::Exhausted;
        let waits = lock(&self.journal).was(exchange.gateway, exchange.begun, exchange.decided, is_exhausted);
        let latest = exchange.decided + if waits { UNACCEPTED } else { Duration::ZERO };
        self.asked.insert(scope, asked.map_or(latest, |asked| asked.max(latest)));
        asked.is_some_and(|asked| asked >= since)
    }

    pub(crate) fn judge(&mut self, exchange: &Exchange) -> Verdict {
        let may_be_proved = self.note_request(exchange);
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
        // In a fleet another gateway may have proved it, while this one is in sync.
        let needs_own_proof = self.gateways.len() == 1 || exchange.standing == Standing::OutOfSync;
        // If the process has ended since, earlier requests at it are forgotten.
        let needs_own_proof = needs_own_proof && !self.was_killed(exchange, &journal);
        if needs_own_proof && !may_be_proved && matches!(source, Source::Fresh | Source::Revalidating) {
            let scope = (self.scope_key(exchange), exchange.gateway);
            self.unproved.push(Unproved { scope, decided: exchange.decided });
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
                let is_known = is_known && proof.is_some_and(|proof| self.keeps(gateway, proof));
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
