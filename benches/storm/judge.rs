//! The judge: holds every answer against what was true, and against what the gateway promises of it.
//!
//! It sees what clients see. A client begins before the gateway hears of it and has its answer after the
//! gateway has decided, so "at some moment between" is exact and takes no allowance for slow machines; where
//! one is made, it is said why.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::client::{self, End, Exchange, RequestDirectives};
use super::lock;
use super::settings::{
    ANSWER_TIMEOUT, DENIAL_TTL, ERROR_TTL, GRANT_TTL, JITTER, OUTAGE_GRACE, RETRY_AFTER, STALE_IF_ERROR,
    STALE_WHILE_REVALIDATE, TTL, longest_life,
};
use super::told::{Source, Told};
use super::world::{CacheRequest, Caller, Journal, Timeline, Weather, World};

/// How much later than its deadline an answer may come on a machine that is busy with all of this.
const SLACK: Duration = Duration::from_secs(1);
/// How long it may take until the gateway knows that a connection is gone.
const NEWS: Duration = Duration::from_millis(250);

/// How much longer than its call may take a request waits, as `upstream.answer_timeout` is documented.
const DEADLINE_MARGIN: Duration = Duration::from_secs(1);

/// How long a call may take, waiting for its turn included.
const LONGEST_CALL: Duration = ANSWER_TIMEOUT.saturating_mul(2);

/// What the loads may do to a request.
const UNANSWERED: &str = "(no answer, or a part of one, under the loads)";

/// What an answer is, or what is wrong with it.
pub(crate) type Verdict = Result<String, String>;

pub(crate) struct Judge {
    world: Arc<World>,
    journal: Arc<Mutex<Journal>>,
    /// What upstream shows of a question in a version of the catalogue, to callers who are shown less or not.
    lists: HashMap<(usize, u32, bool), Option<Bytes>>,
    /// The latest request of a caller in a project's operation that upstream itself has answered well.
    proofs: HashMap<(usize, usize, usize), Span>,
    /// The latest request by whose own answer something was stored: of a question, and whose it is alone.
    stored: HashMap<(usize, Option<usize>), Span>,
    /// When a caller was last told by upstream that it is refused there, and for the how-manieth change.
    refused: HashMap<(usize, usize, usize), (Instant, usize)>,
    /// Since when nothing from before is fresh, and no grant from before is good: a clock has jumped.
    jumped: Option<Instant>,
    /// A clock is about to jump, or has jumped just now.
    is_jumping: bool,
    /// How many answers came from memory at once.
    hits: usize,
    /// Since when the loads are beside the clients.
    loaded: Option<Instant>,
}

/// A request, from its beginning until its answer was decided.
#[derive(Clone, Copy)]
struct Span {
    begun: Instant,
    decided: Instant,
}

/// An answer that is being judged.
struct Case<'a> {
    exchange: &'a Exchange,
    status: StatusCode,
    headers: &'a HeaderMap,
    body: &'a Bytes,
    told: &'a Told,
    source: Source,
    journal: &'a Journal,
    /// Whether these are the gateway's own words.
    is_own: bool,
}

impl Case<'_> {
    fn begun(&self) -> Instant {
        self.exchange.begun
    }

    fn decided(&self) -> Instant {
        self.exchange.decided
    }

    /// The caller's standing.
    fn standing(&self) -> &Timeline<bool> {
        &self.journal.standing[self.exchange.caller]
    }

    /// Whether upstream was like that so shortly before that it could have a part in this.
    fn was(&self, before: Duration, like: impl Fn(Weather) -> bool) -> bool {
        self.journal.was(ago(self.begun(), before + NEWS), self.decided(), like)
    }
}

fn ago(moment: Instant, span: Duration) -> Instant {
    moment.checked_sub(span).unwrap_or(moment)
}

impl Judge {
    pub(crate) fn new(world: Arc<World>, journal: Arc<Mutex<Journal>>) -> Self {
        let (lists, proofs) = (HashMap::new(), HashMap::new());
        Self {
            world,
            journal,
            lists,
            proofs,
            stored: HashMap::new(),
            refused: HashMap::new(),
            jumped: None,
            is_jumping: false,
            hits: 0,
            loaded: None,
        }
    }

    /// From now on the loads are beside the clients. The gateway may refuse requests, be late and close connections, and so
    /// may upstream, which has the same machine. Nothing else changes: what is shown has to be true, and the caller's to see.
    pub(crate) fn expect_loads(&mut self, now: Instant) {
        self.loaded = Some(now);
    }

    /// A clock of the gateway will jump by far more than anything lives. Until it is known to have jumped, the gateway need
    /// not have anything, and may have what it has.
    pub(crate) fn expect_jump(&mut self) {
        self.is_jumping = true;
    }

    /// The clock has jumped.
    pub(crate) fn expect_nothing_from_before(&mut self, now: Instant) {
        (self.jumped, self.is_jumping) = (Some(now), false);
    }

    /// How many answers came from memory at once so far, without a failure of upstream.
    pub(crate) fn hits(&self) -> usize {
        self.hits
    }

    /// A span before an answer was asked for, in which what it comes from may lie: not before the last jump if memory gave it.
    /// (A call that was sent before may end after, and be given to those who wait.)
    fn since(&self, case: &Case<'_>, span: Duration) -> Instant {
        let from = ago(case.begun(), span);
        let jumped = self.jumped.filter(|jumped| *jumped <= case.begun() && case.source != Source::Another);
        jumped.map_or(from, |jumped| jumped.max(from))
    }

    fn is_loaded(&self, exchange: &Exchange) -> bool {
        self.loaded.is_some_and(|since| exchange.decided >= since)
    }

    /// Judges what came of a request.
    pub(crate) fn judge(&mut self, exchange: &Exchange) -> Verdict {
        let (status, headers, body) = match &exchange.end {
            End::Broken(_) if self.is_loaded(exchange) => return Ok(UNANSWERED.to_owned()),
            End::HungUp => return Ok("(the client hung up)".to_owned()),
            // By HTTP/2 the end of what is streamed may overtake its head.
            End::Broken(error) if exchange.wish == RequestDirectives::NoStore && error.contains("Reset(") => {
                let has_broken = lock(&self.journal).was(ago(exchange.begun, NEWS), exchange.decided, breaks);
                let kind = "(what was streamed broke off as upstream did)".to_owned();
                return if has_broken { Ok(kind) } else { Err(error.clone()) };
            }
            End::Broken(error) => return Err(error.clone()),
            End::Answered { status, headers, body } => (*status, headers, body),
        };
        let told = Told::read(headers);
        let source = told.source(status == StatusCode::OK || status == StatusCode::NOT_MODIFIED);
        let journal = Arc::clone(&self.journal);
        let journal = lock(&journal);
        let kind = format!("{} {told}", status.as_u16());
        let body = match body {
            Ok(body) => body,
            // What is streamed breaks off where upstream's answer does.
            Err(_)
                if source == Source::Relayed
                    && journal.was(ago(exchange.begun, NEWS), exchange.decided + NEWS, breaks) =>
            {
                return Ok(format!("{kind} (and broke off as upstream did)"));
            }
            Err(_) if self.is_loaded(exchange) => return Ok(UNANSWERED.to_owned()),
            Err(error) => return Err(error.clone()),
        };
        let is_own = body.windows(32).any(|words| words == br#""error_msg":"workspace-gateway: "#.as_slice());
        let case = Case { exchange, status, headers, body, told: &told, source, journal: &journal, is_own };
        if self.is_loaded(exchange) && is_own && status.is_server_error() {
            return Ok(format!("{kind} (under the loads)"));
        }
        if !self.is_loaded(exchange) {
            self.in_time(&case)?;
        }
        self.as_wished(&case)?;
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
        self.hits += usize::from(matches!(case.source, Source::Fresh | Source::Revalidating));
        self.note(&case);
        Ok(kind)
    }

    fn key(&self, exchange: &Exchange) -> (usize, usize, usize) {
        let question = &self.world.questions[exchange.question];
        (exchange.caller, question.project, question.scope)
    }

    fn slot(&self, exchange: &Exchange) -> (usize, Option<usize>) {
        let is_private = self.world.questions[exchange.question].is_private;
        (exchange.question, is_private.then_some(exchange.caller))
    }

    /// No answer is later than its deadline. (One from memory may have waited for a call, too, of which
    /// another had the benefit.)
    fn in_time(&self, case: &Case<'_>) -> Result<(), String> {
        let took = case.decided().saturating_duration_since(case.begun());
        let deadline = if case.source == Source::Relayed { LONGEST_CALL } else { ANSWER_TIMEOUT + DEADLINE_MARGIN };
        if took > deadline + SLACK { Err(format!("it took {took:?}")) } else { Ok(()) }
    }

    fn as_wished(&self, case: &Case<'_>) -> Result<(), String> {
        let from_memory = !matches!(case.source, Source::Upstream | Source::Another | Source::Relayed | Source::Unsaid);
        let has_cookie = case.headers.contains_key("set-cookie");
        if has_cookie && !matches!(case.source, Source::Upstream | Source::Relayed) {
            return Err("a cookie that was another's".to_owned());
        }
        if case.status == StatusCode::NOT_MODIFIED && !matches!(case.exchange.wish, RequestDirectives::IfNoneMatch(..))
        {
            return Err("a 304 unasked".to_owned());
        }
        let is_at_hand = from_memory && !matches!(case.source, Source::StaleIfSlow | Source::Failure);
        let is_excused = matches!(case.source, Source::Failure | Source::Refusal);
        let is_as_wished = match case.exchange.wish {
            RequestDirectives::None | RequestDirectives::IfNoneMatch(..) => true,
            RequestDirectives::NoCache | RequestDirectives::MaxAge(0) => !from_memory || is_excused,
            RequestDirectives::MaxAge(most) => {
                is_excused || !from_memory || self.age(case)?.is_some_and(|age| age <= Duration::from_secs(most))
            }
            RequestDirectives::OnlyIfCached => is_at_hand || case.status == StatusCode::GATEWAY_TIMEOUT && case.is_own,
            RequestDirectives::NoStore => case.source == Source::Relayed || case.is_own,
        };
        if is_as_wished { Ok(()) } else { Err("not what the client wished".to_owned()) }
    }

    fn age(&self, case: &Case<'_>) -> Result<Option<Duration>, String> {
        let Some(age) = case.headers.get("age") else { return Ok(None) };
        let seconds = age.to_str().ok().and_then(|age| age.parse().ok()).ok_or("an Age that is no number")?;
        Ok(Some(Duration::from_secs(seconds)))
    }

    /// The list is, byte for byte, what upstream would have shown this caller of this question at a moment
    /// as long ago as the answer may be old.
    fn body_is_true(&mut self, case: &Case<'_>) -> Result<(), String> {
        let exchange = case.exchange;
        let allowed = match case.source {
            Source::Fresh => TTL,
            Source::Revalidating => TTL + STALE_WHILE_REVALIDATE,
            Source::Backoff | Source::StaleIfSlow | Source::Failure => longest_life(),
            Source::Upstream | Source::Relayed => Duration::ZERO,
            Source::Another => ANSWER_TIMEOUT,
            Source::Refusal | Source::Negative | Source::Unsaid => return Err("a list from nowhere".to_owned()),
        };
        // Nor is it older than it says. (Whole seconds are told, and the rest is not.)
        let told = self.age(case)?.map_or(allowed, |age| age + Duration::from_secs(1));
        let from = self.since(case, allowed.min(told));
        let body = match (&exchange.wish, case.status) {
            (RequestDirectives::IfNoneMatch(_, body), StatusCode::NOT_MODIFIED) => body.clone(),
            _ => case.body.clone(),
        };
        let versions: Vec<_> = case.journal.version.within(from, case.decided()).collect();
        let is_narrow = self.world.callers[exchange.caller].is_narrow;
        if versions.iter().any(|&version| self.list(exchange.question, version, is_narrow).as_ref() == Some(&body)) {
            return Ok(());
        }
        let latest = case.journal.version.latest();
        for version in (0..=latest).rev() {
            for question in 0..self.world.questions.len() {
                for narrow in [false, true] {
                    if self.list(question, version, narrow).as_ref() == Some(&body) {
                        let view = if narrow == is_narrow { "" } else { ", as others are shown it" };
                        return Err(format!(
                            "the list of question {question} in version {version}{view}; true since {allowed:?} before were {versions:?}"
                        ));
                    }
                }
            }
        }
        Err("a body that upstream has never had".to_owned())
    }

    fn list(&mut self, question: usize, version: u32, narrow: bool) -> &Option<Bytes> {
        let world = &self.world;
        self.lists.entry((question, version, narrow)).or_insert_with(|| {
            let CacheRequest { project, targets, language, .. } = &world.questions[question];
            let sees = |caller: &&Caller| caller.project == Some(*project) && caller.is_narrow == narrow;
            let Caller { token, .. } = world.callers.iter().find(sees)?;
            world.simulator.product_list(token, &targets[0], &client::language(*language), version)
        })
    }

    /// Upstream would have shown it to this very caller, as long ago as a grant lives.
    fn may_see(&self, case: &Case<'_>) -> Result<(), String> {
        let exchange = case.exchange;
        if self.world.callers[exchange.caller].project != Some(self.world.questions[exchange.question].project) {
            return Err("a list for one who has never had a right to it".to_owned());
        }
        let life = match case.source {
            Source::Upstream | Source::Relayed => Duration::ZERO,
            // Its own call has failed, now or just before.
            Source::Backoff | Source::Failure => OUTAGE_GRACE,
            _ => GRANT_TTL,
        };
        if !case.standing().within(self.since(case, life), case.decided()).any(|is_good| is_good) {
            return Err(format!("a list for one who has been refused for {life:?} and longer"));
        }
        let refused = self.refused.get(&self.key(exchange));
        match refused.filter(|(at, changes)| *at < case.begun() && *changes == case.standing().count_by(case.decided()))
        {
            Some((at, _)) => {
                let since = case.begun().saturating_duration_since(*at);
                Err(format!(
                    "a list for one whom upstream has refused {since:?} before, and who has not been good since"
                ))
            }
            None => Ok(()),
        }
    }

    /// Upstream has failed where it is said to have.
    fn source_is_possible(&self, case: &Case<'_>) -> Result<(), String> {
        let is_possible = match case.source {
            Source::Failure => {
                case.was(LONGEST_CALL, |weather| match (case.told.status, case.told.detail.as_deref()) {
                    (Some(status), _) => gives(weather, status),
                    (None, Some("connect")) => weather == Weather::Dead,
                    (None, Some("first-byte" | "timeout" | "idle" | "busy")) => is_slow(weather),
                    (None, Some("broken")) => breaks(weather),
                    (None, _) => false,
                })
            }
            Source::Backoff => case.was(ERROR_TTL.max(RETRY_AFTER) + LONGEST_CALL, Weather::fails),
            _ => true,
        };
        if is_possible { Ok(()) } else { Err("upstream has not failed like that".to_owned()) }
    }

    /// Upstream refuses this very caller, or has just now.
    fn is_refused(&self, case: &Case<'_>) -> Result<(), String> {
        let before = match case.source {
            Source::Refusal => DENIAL_TTL + ANSWER_TIMEOUT,
            // A caller without a grant waits for its own calls.
            Source::Another => ANSWER_TIMEOUT,
            _ => Duration::ZERO,
        };
        let exchange = case.exchange;
        let is_foreign =
            self.world.callers[exchange.caller].project != Some(self.world.questions[exchange.question].project);
        if is_foreign || case.standing().within(ago(case.begun(), before), case.decided()).any(|is_good| !is_good) {
            return Ok(());
        }
        Err("refused, and upstream had nothing against it".to_owned())
    }

    fn error_is_possible(&mut self, case: &Case<'_>) -> Result<(), String> {
        let exchange = case.exchange;
        let status = case.status.as_u16();
        if status == 400 && self.list(exchange.question, 0, false).is_none() && !case.is_own {
            return Ok(());
        }
        if exchange.wish == RequestDirectives::OnlyIfCached && status == 504 && case.is_own {
            return Ok(());
        }
        let is_possible = match (case.is_own, status) {
            (true, 502) => case.was(ANSWER_TIMEOUT, breaks),
            (true, 503 | 504) => case.was(LONGEST_CALL, is_slow),
            (true, _) => false,
            (false, _) => case.was(ANSWER_TIMEOUT, |weather| gives(weather, status)),
        };
        if !is_possible {
            return Err("upstream has not failed like that".to_owned());
        }
        // Without memory for what upstream answers, each request is relayed, whatever is stored.
        let is_relayed_for_want_of_memory = self.is_loaded(exchange) && case.source == Source::Relayed;
        if !is_relayed_for_want_of_memory && self.is_promised(case) {
            Err("an error, where there was something to be given".to_owned())
        } else {
            Ok(())
        }
    }

    /// Whether this caller has a grant for sure, and there is an answer for it that is not too old to be
    /// given when upstream fails.
    fn is_promised(&self, case: &Case<'_>) -> bool {
        let exchange = case.exchange;
        if self.is_jumping || !matches!(exchange.wish, RequestDirectives::None | RequestDirectives::IfNoneMatch(..)) {
            return false;
        }
        let (proof, stored) = (self.proofs.get(&self.key(exchange)), self.stored.get(&self.slot(exchange)));
        let (Some(proof), Some(stored)) = (proof, stored) else { return false };
        let are_done = proof.decided <= case.begun() && stored.decided <= case.begun();
        let life = TTL * (100 - JITTER) / 100 + STALE_IF_ERROR;
        let live = case.decided() < proof.begun + GRANT_TTL && case.decided() < stored.begun + life;
        let live = live && self.jumped.is_none_or(|jumped| jumped < proof.begun && jumped < stored.begun);
        // A refusal of a call from before is enough to end a grant.
        let since = ago(proof.begun, ANSWER_TIMEOUT + NEWS);
        are_done && live && case.standing().within(since, case.decided()).all(|is_good| is_good)
    }

    /// Remembers what the answer says about later ones.
    fn note(&mut self, case: &Case<'_>) {
        let (key, slot) = (self.key(case.exchange), self.slot(case.exchange));
        let span = Span { begun: case.begun(), decided: case.decided() };
        let is_late = case.told.detail.as_deref() == Some("late");
        if case.source != Source::Upstream || is_late {
            return;
        }
        match case.told.status {
            Some(200 | 304) if case.status != StatusCode::BAD_REQUEST => {
                self.proofs.insert(key, span);
                if case.told.stored {
                    self.stored.insert(slot, span);
                }
            }
            // If it was good meanwhile, that may have been found out, too.
            Some(401 | 403) if case.standing().within(span.begun, span.decided).count() == 1 => {
                self.refused.insert(key, (span.decided, case.standing().count_by(span.decided)));
            }
            _ => {}
        }
    }
}

/// Whether upstream breaks connections off, or off answers.
fn breaks(weather: Weather) -> bool {
    matches!(weather, Weather::Resetting | Weather::Truncating | Weather::Dead)
}

fn is_slow(weather: Weather) -> bool {
    matches!(weather, Weather::Slow | Weather::Stuck)
}

/// Whether upstream answers with this status.
fn gives(weather: Weather, status: u16) -> bool {
    match weather {
        Weather::Failing(failure) => failure.as_u16() == status,
        Weather::Throttling | Weather::ThrottlingOne(_) => status == 429,
        _ => false,
    }
}
