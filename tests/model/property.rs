//! THE property, judged from the history alone: what upstream held to be true and what it was asked,
//! but nothing of what the gateway or its model remember.
//!
//! For every product list served there is a moment within the last `grant_ttl` (or, when the caller's
//! own attempt has failed, within `outage_grace`) at which upstream would have proved this caller in this
//! scope, and no denial has come since; and the list was upstream's answer to this very key, asked for
//! within its ttl, or within the stale windows and for a reason that holds. A denial has come with its head. Until its
//! body tells otherwise, a 401 denies all that its caller has in the service.
//!
//! And nobody's call is made twice: of those who may share an answer one asks at a time.

use super::driver::Done;
use super::script::Begun;
use super::settings::Settings;
use super::steps::Outcome;
use super::world::{Besides, CacheRequest, CallerId, Failure, History, KeyId, Ms, RequestId, Said, Version};
use super::world::{RequestDirectives, SCOPES, ScopeId, Truth, is_list, scope_of, service_of};

/// How often a request waits for another's call at most.
const ELECTIONS: usize = 4;

/// How many calls there are for one key at most, while upstream is slow for some callers only.
const CALLS: usize = 3;

/// A call to upstream, what was true when it was sent, and its end once it has one.
struct Call {
    begun: Begun,
    /// Whether a request went on as it was: nobody reads such an answer whole, so that it proves nothing.
    is_relay: bool,
    /// Whether its answer is for all who have proof, and whether it may be one of several.
    is_shared: bool,
    may_be_alone: bool,
    sent: Ms,
    /// The same for timers: by so much later as clocks have jumped since.
    timer_sent: Ms,
    truth: Truth,
    /// A refusal, if its head has landed before its body.
    head: Option<(Ms, Said)>,
    end: Option<(Ms, Said)>,
    /// How many have been answered before it, some perhaps at the same moment.
    place: usize,
    /// Whether its caller had proof when it ended.
    was_proved: bool,
    /// Whether it proves nothing, whatever it has brought: its caller was denied when it ended, or was proved anew while
    /// this proof was denied.
    is_void: bool,
}

impl Call {
    fn new(begun: Begun, is_relay: bool, sent: Ms, truth: Truth) -> Self {
        let (is_shared, may_be_alone) = (false, is_relay);
        let (head, end, place, was_proved, is_void) = (None, None, 0, false, false);
        let timer_sent = sent;
        Self {
            begun,
            is_relay,
            is_shared,
            may_be_alone,
            sent,
            timer_sent,
            truth,
            head,
            end,
            place,
            was_proved,
            is_void,
        }
    }

    /// When its answer has come, be it only the head, if that was by then; and what it says so far.
    fn answered(&self, by: Ms) -> Option<(Ms, &Said)> {
        let (at, head) = self.head.as_ref().or(self.end.as_ref())?;
        let said = self.end.as_ref().map_or(head, |(_, said)| said);
        (*at <= by).then_some((*at, said))
    }

    /// Whether only the head of its answer has come.
    fn lacks_body(&self) -> bool {
        self.head.is_some() && self.end.is_none()
    }

    fn landed(&self, by: Ms) -> Option<(Ms, &Said)> {
        self.end.as_ref().filter(|(landed, _)| *landed <= by).map(|(landed, said)| (*landed, said))
    }

    /// The list it has brought by then.
    fn list(&self, by: Ms) -> Option<String> {
        self.landed(by).and_then(|(_, said)| said.list(self.begun.key, self.begun.asked))
    }

    fn has_failed(&self, since: Ms, by: Ms) -> bool {
        let end = self.landed(by).filter(|(landed, _)| *landed >= since && !self.is_relay);
        end.is_some_and(|(_, said)| said.is_failure(self.begun.asked))
    }
}

pub struct Property {
    settings: Settings,
    calls: Vec<Call>,
    questions: Vec<(Ms, CacheRequest)>,
    purged: [Option<Ms>; SCOPES.len()],
    last_purge: Option<Ms>,
    /// When someone who had proof has changed something.
    changed: [Option<Ms>; SCOPES.len()],
    /// Operations of which upstream has said, to someone who had proof, that their answers vary on the credential.
    varying: Vec<&'static str>,
}

impl Property {
    pub fn new(settings: Settings) -> Self {
        let (calls, questions, varying) = (Vec::new(), Vec::new(), Vec::new());
        let (purged, changed) = ([None; SCOPES.len()], [None; SCOPES.len()]);
        Self { settings, calls, questions, purged, last_purge: None, changed, varying }
    }

    /// A clock has jumped: so much time has passed that timers have not seen.
    pub fn jumped(&mut self, by: Ms) {
        self.calls.iter_mut().for_each(|call| call.timer_sent += by);
    }

    pub fn asked(&mut self, question: CacheRequest, at: Ms) {
        self.questions.push((at, question));
    }

    pub fn purged(&mut self, at: Ms, selected: impl Fn(ScopeId) -> bool) {
        self.last_purge = Some(at);
        (0..SCOPES.len()).filter(|scope| selected(*scope)).for_each(|scope| self.purged[scope] = Some(at));
    }

    /// All of an operation, or of every operation, was purged.
    pub fn purged_whole(&mut self, operation: Option<&str>) {
        self.varying.retain(|its| operation.is_some_and(|name| name != *its));
    }

    /// A call begins: not for one who wanted none, nor beside another that would do.
    pub fn begun(&mut self, begun: Begun, is_private: bool, sent: Ms, history: &History) -> Result<(), String> {
        let Begun { id, caller, key, asked, .. } = begun;
        let (arrived, CacheRequest { wish, spelling, .. }) = self.questions[id as usize];
        if spelling.is_ambiguous() {
            return Err(format!("PROPERTY: #{id} begins a call, and may be read in more than one way"));
        }
        if wish == RequestDirectives::OnlyIfCached {
            return Err(format!("PROPERTY: #{id} begins a call, and was only to be answered from memory"));
        }
        let is_proved = self.is_proved(caller, scope_of(key), self.settings.grant_ttl, sent);
        if asked.is_some() && !is_proved {
            return Err(format!("PROPERTY: #{id} asks about a list, but caller {caller} has no proof that holds"));
        }
        let is_shared = is_proved && !is_private;
        let may_be_alone = wish == RequestDirectives::NoCache
            || self.has_waited_enough(key, arrived, sent)
            || self.is_marked(key, sent);
        let is_bounded = self.settings.max_flights.min(self.settings.max_waiters) < 100;
        let others: Vec<&Call> = self
            .calls
            .iter()
            .filter(|call| {
                let is_open = self.last_purge.is_none_or(|purge| purge < call.sent) && !call.may_be_alone;
                let is_due = call.answered(sent).is_none();
                call.begun.key == key && is_due && call.is_shared && is_open && !self.is_superseded(call)
            })
            .collect();
        let may_be_beside = |another: &&&Call| {
            another.begun.caller != caller
                && another.timer_sent + self.settings.stale_if_slow <= sent
                && self.is_listed_since(another, sent)
        };
        let is_relief = others.len() < CALLS && others.iter().all(|another| may_be_beside(&another));
        if let Some(another) = others.first()
            && is_shared
            && !(may_be_alone || is_bounded || is_relief)
        {
            return Err(format!("PROPERTY: #{id} begins a call, and that of #{} would do", another.begun.id));
        }
        let call = Call::new(begun, false, sent, history.now().clone());
        self.calls.push(Call { is_shared, may_be_alone, ..call });
        Ok(())
    }

    /// Whether upstream has answered a list well that was sent after a call to the same service.
    fn is_listed_since(&self, call: &Call, by: Ms) -> bool {
        let service = service_of(call.begun.key);
        let mut others = self.calls.iter().filter(|other| service_of(other.begun.key) == service && !other.is_relay);
        others.any(|other| other.sent > call.sent && other.list(by).is_some())
    }

    /// Whether another call has ended the wait of all who waited for this one, and for whom this one goes on for nothing.
    fn is_superseded(&self, call: &Call) -> bool {
        let ends_wait = |said: &Said, other: &Call| {
            said.list(other.begun.key, other.begun.asked).is_some()
                || matches!(said, Said::Whole { status: 400 | 404 | 405, .. })
        };
        self.calls.iter().filter(|other| other.begun.key == call.begun.key && other.is_shared).any(|other| {
            other.end.as_ref().is_some_and(|(landed, said)| *landed >= call.sent && ends_wait(said, other))
        })
    }

    /// Whether the cause of a failed call lies outside the gateway. That there is no way to upstream counts only while
    /// nobody has reached it.
    fn is_outside(&self, call: &Call) -> bool {
        match &call.end {
            Some((_, Said::Failed(Failure::Local))) => false,
            Some((landed, Said::Failed(Failure::Unreachable))) => !self.calls.iter().any(|other| {
                let answered = other
                    .answered(*landed)
                    .filter(|(at, said)| said.has_answered() && *landed < at + Settings::REACHABLE_FOR);
                let is_before = answered.is_some() && other.place < call.place;
                service_of(other.begun.key) == service_of(call.begun.key) && is_before
            }),
            _ => true,
        }
    }

    /// A request goes on as it is.
    pub fn relayed(&mut self, begun: Begun, sent: Ms, history: &History) {
        self.calls.push(Call::new(begun, true, sent, history.now().clone()));
    }

    pub fn landed(&mut self, id: RequestId, at: Ms, said: &Said) {
        let index = self.calls.iter().position(|call| call.begun.id == id && call.end.is_none()).expect("it has begun");
        let Begun { caller, key, .. } = self.calls[index].begun;
        // Others may end at the same moment, and be a denial: it is this order that counts.
        let was_proved = self.is_proved(caller, scope_of(key), self.settings.grant_ttl, at);
        let place = self.answered_calls();
        let call = &mut self.calls[index];
        (call.end, call.was_proved) = (Some((at, said.clone())), was_proved);
        if call.head.is_none() {
            call.place = place;
        }
        self.calls[index].is_void = self.is_denied_since(&self.calls[index], at);
        let is_proof = said.list(key, self.calls[index].begun.asked).is_some();
        if is_proof && !self.calls[index].is_void && !self.calls[index].is_relay {
            let is_its = |call: &Call| (call.begun.caller, scope_of(call.begun.key)) == (caller, scope_of(key));
            let places = 0..self.calls.len();
            let replaced: Vec<usize> = places
                .filter(|&other| is_its(&self.calls[other]) && self.calls[other].end.is_some())
                .filter(|&other| self.is_denied_since(&self.calls[other], at))
                .collect();
            replaced.into_iter().for_each(|other| self.calls[other].is_void = true);
        }
        let call = &self.calls[index];
        let (is_unsafe, is_relay, sent) = (call.begun.is_unsafe, call.is_relay, call.sent);
        let scope = scope_of(key);
        if is_unsafe && was_proved && said.is_change() {
            self.changed[scope] = Some(at);
        }
        let varies = matches!(said, Said::Whole { status: 200, besides: Besides::Vary, .. }) && !is_relay;
        let is_after_purge = self.last_purge.is_none_or(|purge| sent > purge);
        if varies && is_after_purge && !self.calls[index].is_void {
            self.varying.push(SCOPES[scope].operation);
        }
    }

    /// The head of a refusal lands. From now on it counts.
    pub fn head_landed(&mut self, id: RequestId, at: Ms, said: &Said) {
        let place = self.answered_calls();
        let call = self.calls.iter_mut().find(|call| call.begun.id == id && call.end.is_none()).expect("it has begun");
        (call.head, call.place) = (Some((at, said.clone())), place);
    }

    fn answered_calls(&self) -> usize {
        self.calls.iter().filter(|call| call.answered(Ms::MAX).is_some()).count()
    }

    /// What upstream says at the end of a call.
    pub fn answer(&self, id: RequestId, outcome: &Outcome, history: &History) -> Said {
        let call = self.calls.iter().find(|call| call.begun.id == id && call.end.is_none()).expect("it has begun");
        let Begun { caller, key, asked, .. } = call.begun;
        if let Some((_, head)) = &call.head {
            return body(head, outcome, caller, history.now().answer(caller, key, asked));
        }
        let truth = |truth: &Truth| truth.answer(caller, key, asked);
        let whole = || history.now().answer(caller, key, None);
        let error = |status| Said::whole(status, format!(r#"{{"error_code":"{status}","caller":{caller}}}"#));
        match *outcome {
            Outcome::Truth { as_sent: true } => truth(&call.truth),
            Outcome::Truth { as_sent: false } => truth(history.now()),
            Outcome::NoStore => whole().with(Besides::NoStore),
            Outcome::Vary => whole().with(Besides::Vary),
            Outcome::Wordy => whole().wordy(),
            Outcome::ErrorInDisguise => {
                Said::whole(200, format!(r#"{{"error_code":"WKS.00211401","error_msg":"to caller {caller}"}}"#))
            }
            Outcome::Status(status) if call.begun.is_unsafe => Said::whole(status, ""),
            Outcome::Status(status) => error(status),
            Outcome::RetryAfter(status, after) => error(status).with(Besides::RetryAfter(after)),
            // To one that has asked it names another list than that.
            Outcome::NotModified => {
                let another = asked.map(|asked| Version { catalogue: asked.catalogue + 10, ..asked });
                Said::NotModified(another)
            }
            Outcome::RefusedByService => refused_by_service(caller),
            Outcome::NotConnected => Said::Failed(Failure::Connect),
            Outcome::Unreachable => Said::Failed(Failure::Unreachable),
            Outcome::Local => Said::Failed(Failure::Local),
            Outcome::TimedOut => Said::Failed(Failure::Timeout),
            // What is streamed is never too large.
            Outcome::TooLarge if call.is_relay => truth(history.now()),
            Outcome::TooLarge => whole().too_large(),
        }
    }

    /// Judges what was served by another way than from upstream straight to the one who asked.
    pub fn check(&self, done: &Done, history: &History, is_private: bool) -> Result<(), String> {
        match (done.list(), done.status) {
            (None, 400) if done.request.spelling.is_ambiguous() => Ok(()),
            (..) if done.request.spelling.is_ambiguous() => {
                Err(format!("PROPERTY: #{} may be read in more than one way, and is answered", done.request.id))
            }
            (Some(list), _) => self.check_list(done, list, history, is_private),
            (None, 400..=428 | 430..=499) => self.check_error(done, is_private),
            (None, _) => Ok(()),
        }
    }

    /// An error that depends on who asked is for the one who did. That there is no such thing is for those
    /// who have proof, from one who had it.
    fn check_error(&self, done: &Done, is_private: bool) -> Result<(), String> {
        let Done { at, status, .. } = *done;
        let CacheRequest { id, caller, key, .. } = done.request;
        let grant = self.settings.grant_ttl;
        let is_negative = matches!(status, 400 | 404 | 405);
        let life = if is_negative { self.settings.negative_ttl } else { Settings::DENIAL_TTL };
        let is_told = self.calls.iter().any(|call| {
            let Begun { caller: leader, key: its, is_plain, .. } = call.begun;
            let Some((landed, said)) = call.landed(at) else { return false };
            let is_said = match said {
                Said::Whole { status: its_status, body, .. } => *its_status == status && *body == done.body,
                // In words of the gateway's own.
                Said::Failed(Failure::Refused(its_status)) => *its_status == status && !done.is_hit(),
                _ => false,
            };
            let is_it = scope_of(its) == scope_of(key) && is_said;
            let since = match call.answered(at) {
                _ if is_negative => call.sent,
                // A refusal counts from its head on.
                answered => answered.map_or(landed, |(answered, _)| answered),
            };
            let is_recent = call.begun.id == id || if done.is_hit() { since + life > at } else { landed == at };
            let may_be_all = is_negative && is_plain && its == key && !is_private && !call.is_relay;
            is_it && is_recent && (leader == caller || may_be_all && call.was_proved)
        });
        let has_proof = || self.is_proved(caller, scope_of(key), grant, at);
        if is_told && (!(is_negative && done.is_hit()) || has_proof()) {
            return Ok(());
        }
        Err(format!("PROPERTY: #{id} was refused, and upstream has not told so to caller {caller}"))
    }

    fn check_list(&self, done: &Done, list: String, history: &History, is_private: bool) -> Result<(), String> {
        let Done { waited, at, .. } = *done;
        let CacheRequest { id, caller, key, wish, .. } = done.request;
        let scope = scope_of(key);
        let is_own = |call: &Call| call.is_relay && call.landed(at).is_some() || call.list(at).as_ref() == Some(&list);
        if self.calls.iter().rfind(|call| call.begun.id == id).is_some_and(is_own) {
            return Ok(());
        }

        // Whose call has failed just now, if that is why the list was served.
        let is_out_of_time = waited >= Settings::DEADLINE;
        let mut failed = self
            .calls
            .iter()
            .filter(|call| call.begun.key == key && (call.has_failed(at, at) || is_out_of_time && call.end.is_none()));
        let has_failed = failed.clone().next().is_some();
        let own_has_failed = failed.any(|call| call.begun.caller == caller);
        // Or not long ago.
        let mut excuses =
            self.calls.iter().filter(|call| call.has_failed(at.saturating_sub(Settings::LONGEST_PAUSE), at));
        let own_excuses = |call: &Call| (call.begun.caller, call.begun.key) == (caller, key);
        let is_backing_off = done.detail() == Some("backoff");

        // Who: proved, not denied since, and truly so. Only the caller's own call that has failed outside the gateway
        // extends a grant, and then for nothing that was asked for after its end.
        let mut own_failures = excuses.clone().filter(|call| own_excuses(call) && self.is_outside(call));
        let is_excused = own_failures.any(|call| is_backing_off || call.has_failed(at, at));
        let grant = self.settings.grant_ttl;
        let is_graced = is_excused && self.settings.serves_in_outage;
        let is_granted = self.is_proved(caller, scope, grant, at);
        let grace = self.proof(caller, scope, Settings::OUTAGE_GRACE, at).filter(|_| is_graced);
        let (life, asked_until) = match grace {
            _ if is_granted => (grant, at),
            Some(proved) => (Settings::OUTAGE_GRACE, proved + grant),
            None => {
                return Err(format!("PROPERTY: #{id} was served a list, but caller {caller} has no proof that holds"));
            }
        };
        if !history.since(at.saturating_sub(life)).any(|truth| truth.proves(caller, scope)) {
            return Err(format!("PROPERTY: #{id} was served a list, and upstream would not have proved {caller}"));
        }

        // What: upstream's answer to this key, to this caller where it is theirs alone, and so old as may be.
        let ttl = Settings::ttl(scope);
        let (is_right, more) = match done.detail() {
            Some("revalidating") => (done.is_hit(), self.settings.stale_while_revalidate),
            Some("backoff") => {
                (done.is_hit() && excuses.any(|call| scope_of(call.begun.key) == scope), self.settings.stale())
            }
            Some("stale-if-slow") => (waited >= self.settings.stale_if_slow, self.settings.stale()),
            _ if done.is_hit() => (true, 0),
            _ => (true, if has_failed { self.settings.stale() } else { 0 }),
        };
        if !is_right {
            return Err(format!("PROPERTY: #{id} was served a stale list for no reason"));
        }
        let is_wished = match wish {
            RequestDirectives::NoCache => own_has_failed,
            RequestDirectives::NoStore => false,
            RequestDirectives::Nothing
            | RequestDirectives::MaxAge(_)
            | RequestDirectives::MinFresh(_)
            | RequestDirectives::OnlyIfCached => true,
        };
        if !is_wished {
            return Err(format!("PROPERTY: #{id} was served a list from before it came in"));
        }
        let most = match wish {
            RequestDirectives::MaxAge(most) if !has_failed => most + 1,
            _ => Ms::MAX,
        };
        let is_told = self.calls.iter().any(|call| {
            let is_young = call.sent + (ttl + more).min(most) > at;
            let is_carried = !done.is_hit() && matches!(call.landed(at), Some((landed, _)) if landed == at);
            let varies = self.varying.contains(&SCOPES[scope].operation);
            let is_for_all = !(is_private || varies) || call.begun.caller == caller;
            // In the moment of the change itself it is not known what came first.
            let is_after_change = self.changed[scope].is_none_or(|change| call.sent > change || at == change);
            let is_kept = !matches!(call.landed(at), Some((_, Said::Whole { besides: Besides::NoStore, .. })));
            let is_after_purge = self.purged[scope].is_none_or(|purge| call.sent >= purge);
            let may_be_it =
                call.begun.key == key && !call.is_relay && is_for_all && is_kept && is_after_purge && is_after_change;
            let is_covered = call.sent <= asked_until;
            may_be_it && is_covered && (is_young || is_carried) && call.list(at).as_ref() == Some(&list)
        });
        if !is_told {
            return Err(format!("PROPERTY: #{id} was served what upstream has not told anyone for so long"));
        }
        Ok(())
    }

    /// Whether upstream has proved a caller within so long, and has not denied it since.
    fn is_proved(&self, caller: CallerId, scope: ScopeId, life: Ms, at: Ms) -> bool {
        self.proof(caller, scope, life, at).is_some()
    }

    /// When the latest proof of a caller within so long was sent that upstream has not denied since. A 401 that is not the
    /// service's own denies all that the caller has in that service.
    fn proof(&self, caller: CallerId, scope: ScopeId, life: Ms, at: Ms) -> Option<Ms> {
        let is_proof = |call: &&Call| {
            let is_own = (call.begun.caller, scope_of(call.begun.key)) == (caller, scope);
            let is_one = !call.is_relay && !call.is_void && call.sent + life > at && call.list(at).is_some();
            is_own && is_one && !self.is_denied_since(call, at)
        };
        self.calls.iter().filter(is_proof).map(|call| call.sent).max()
    }

    /// Whether the caller of a call has been denied what it proves since, by one that was sent no earlier or was answered
    /// later. What is said to an unsafe method is about writing, unless it is about the credential. Whether it is, is
    /// not known of a 401 without a body: until then it counts as such.
    fn is_denied_since(&self, proof: &Call, at: Ms) -> bool {
        self.calls.iter().filter(|call| call.begun.caller == proof.begun.caller).any(|call| {
            let Some((answered, said)) = call.answered(at) else { return false };
            let Some(status) = said.denial() else { return false };
            let is_in_scope = scope_of(call.begun.key) == scope_of(proof.begun.key) && !call.begun.is_unsafe;
            let is_in_service = service_of(call.begun.key) == service_of(proof.begun.key);
            let is_of_credential = if call.lacks_body() { status == 401 } else { said.denies_credential() };
            let is_about_it = is_in_scope || is_in_service && is_of_credential;
            is_about_it && (call.place > proof.place || answered > proof.sent && call.sent >= proof.sent)
        })
    }

    /// Whether so many calls have landed for a key while a request waited that it need not wait any more.
    fn has_waited_enough(&self, key: KeyId, arrived: Ms, at: Ms) -> bool {
        let answered = |call: &&Call| call.answered(at).is_some_and(|(answered, _)| answered >= arrived);
        self.calls.iter().filter(|call| call.begun.key == key).filter(answered).count() >= ELECTIONS
    }

    /// Whether something was told not long ago that can't be kept.
    fn is_marked(&self, key: KeyId, at: Ms) -> bool {
        self.calls.iter().filter(|call| call.begun.key == key).filter_map(|call| call.landed(at)).any(
            |(landed, said)| {
                let is_unkept = match said {
                    Said::Whole { status: 200, body, besides, .. } => *besides == Besides::NoStore || !is_list(body),
                    Said::Failed(failure) => *failure == Failure::TooLarge(200),
                    _ => false,
                };
                is_unkept && landed + Settings::MARK_TTL > at
            },
        )
    }
}

/// The service's own 401, which is about the request and not about the credential.
fn refused_by_service(caller: CallerId) -> Said {
    Said::whole(401, format!(r#"{{"error_code":"WKS.00211302","caller":{caller}}}"#))
}

/// The end of a refusal whose head has landed: its body, or none. `truth` is what upstream would answer now.
fn body(head: &Said, outcome: &Outcome, caller: CallerId, truth: Said) -> Said {
    match outcome {
        Outcome::NotConnected | Outcome::Unreachable | Outcome::Local | Outcome::TimedOut | Outcome::TooLarge => {
            head.clone().without_end()
        }
        Outcome::RefusedByService => head.clone().with_body_of(refused_by_service(caller)),
        _ if truth.denial() == head.denial() => head.clone().with_body_of(truth),
        _ => head.clone(),
    }
}
