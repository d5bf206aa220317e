//! THE property, judged from the history alone: what upstream held to be true and what it was asked,
//! but nothing of what the gateway or its model remember.
//!
//! For every product list served there is a moment within the last `grant_ttl` (or, when the caller's
//! own attempt has failed, within `outage_grace`) at which upstream would have proved this caller in this
//! scope, and no denial has come since; and the list was upstream's answer to this very key, asked for
//! within its ttl, or within the stale windows and for a reason that holds.
//!
//! And nobody's call is made twice: of those who may share an answer one asks at a time.

use super::driver::Done;
use super::script::Begun;
use super::settings::Settings;
use super::steps::Outcome;
use super::world::{Besides, CallerId, Failure, History, KeyId, Ms, Question, RequestId, Said, Version};
use super::world::{SCOPES, ScopeId, Truth, Wish, is_list, scope_of};

/// How often a request waits for another's call at most.
const ELECTIONS: usize = 4;

/// A call to upstream, what was true when it was sent, and its end once it has one.
struct Call {
    begun: Begun,
    /// Whether a request went on as it was: nobody reads such an answer whole, so that it proves nothing.
    is_relay: bool,
    /// Whether its answer is for all who have proof, and whether it may be one of several.
    is_shared: bool,
    may_be_alone: bool,
    sent: Ms,
    truth: Truth,
    end: Option<(Ms, Said)>,
    /// How many have ended before it, some perhaps at the same moment.
    place: usize,
    /// Whether its caller had proof when it ended.
    was_proved: bool,
}

impl Call {
    fn new(begun: Begun, is_relay: bool, sent: Ms, truth: Truth) -> Self {
        let (is_shared, may_be_alone, end, place, was_proved) = (false, is_relay, None, 0, false);
        Self { begun, is_relay, is_shared, may_be_alone, sent, truth, end, place, was_proved }
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
    questions: Vec<(Ms, Question)>,
    purged: [Option<Ms>; SCOPES.len()],
    last_purge: Option<Ms>,
}

impl Property {
    pub fn new(settings: Settings) -> Self {
        let (calls, questions) = (Vec::new(), Vec::new());
        Self { settings, calls, questions, purged: [None; SCOPES.len()], last_purge: None }
    }

    pub fn asked(&mut self, question: Question, at: Ms) {
        self.questions.push((at, question));
    }

    pub fn purged(&mut self, at: Ms, selected: impl Fn(ScopeId) -> bool) {
        self.last_purge = Some(at);
        (0..SCOPES.len()).filter(|scope| selected(*scope)).for_each(|scope| self.purged[scope] = Some(at));
    }

    /// A call begins: not for one who wanted none, nor beside another that would do.
    pub fn begun(&mut self, begun: Begun, is_private: bool, sent: Ms, history: &History) -> Result<(), String> {
        let Begun { id, caller, key, asked, .. } = begun;
        let (arrived, Question { wish, .. }) = self.questions[id as usize];
        if wish == Wish::OnlyIfCached {
            return Err(format!("PROPERTY: #{id} begins a call, and was only to be answered from memory"));
        }
        let is_proved = self.is_proved(caller, scope_of(key), self.settings.grant_ttl, sent);
        if asked.is_some() && !is_proved {
            return Err(format!("PROPERTY: #{id} asks about a list, but caller {caller} has no proof that holds"));
        }
        let is_shared = is_proved && !is_private;
        let may_be_alone =
            wish == Wish::NoCache || self.has_waited_enough(key, arrived, sent) || self.is_marked(key, sent);
        let is_bounded = self.settings.max_flights.min(self.settings.max_waiters) < 100;
        let another = self.calls.iter().find(|call| {
            let is_open = self.last_purge.is_none_or(|purge| purge < call.sent) && !call.may_be_alone;
            call.begun.key == key && call.end.is_none() && call.is_shared && is_open
        });
        if let Some(another) = another
            && is_shared
            && !(may_be_alone || is_bounded)
        {
            return Err(format!("PROPERTY: #{id} begins a call, and that of #{} would do", another.begun.id));
        }
        let call = Call::new(begun, false, sent, history.now().clone());
        self.calls.push(Call { is_shared, may_be_alone, ..call });
        Ok(())
    }

    /// A request goes on as it is.
    pub fn relayed(&mut self, begun: Begun, sent: Ms, history: &History) {
        self.calls.push(Call::new(begun, true, sent, history.now().clone()));
    }

    pub fn landed(&mut self, id: RequestId, at: Ms, said: &Said) {
        let index = self.calls.iter().rposition(|call| call.begun.id == id).expect("it has begun");
        let Begun { caller, key, .. } = self.calls[index].begun;
        // Others may end at the same moment, and be a denial: it is this order that counts.
        let was_proved = self.is_proved(caller, scope_of(key), self.settings.grant_ttl, at);
        let place = self.calls.iter().filter(|call| call.end.is_some()).count();
        let call = &mut self.calls[index];
        (call.end, call.place, call.was_proved) = (Some((at, said.clone())), place, was_proved);
    }

    /// What upstream says at the end of a call.
    pub fn answer(&self, id: RequestId, outcome: &Outcome, history: &History) -> Said {
        let call = self.calls.iter().rfind(|call| call.begun.id == id).expect("it has begun");
        let Begun { caller, key, asked, .. } = call.begun;
        let truth = |truth: &Truth| truth.answer(caller, key, asked);
        let whole = || history.now().answer(caller, key, None);
        let error = |status| Said::whole(status, format!(r#"{{"error_code":"{status}","caller":{caller}}}"#));
        match *outcome {
            Outcome::Truth { as_sent: true } => truth(&call.truth),
            Outcome::Truth { as_sent: false } => truth(history.now()),
            Outcome::NoStore => whole().with(Besides::NoStore),
            Outcome::Wordy => whole().wordy(),
            Outcome::ErrorInDisguise => {
                Said::whole(200, format!(r#"{{"error_code":"WKS.00211401","error_msg":"to caller {caller}"}}"#))
            }
            Outcome::Status(status) => error(status),
            Outcome::RetryAfter(status, after) => error(status).with(Besides::RetryAfter(after)),
            // To one that has asked it names another list than that.
            Outcome::NotModified => {
                let another = asked.map(|asked| Version { catalogue: asked.catalogue + 10, ..asked });
                Said::NotModified(another)
            }
            Outcome::Unreachable => Said::Failed(Failure::Connect),
            Outcome::TimedOut => Said::Failed(Failure::Timeout),
            // What is streamed is never too large.
            Outcome::TooLarge if call.is_relay => truth(history.now()),
            Outcome::TooLarge => whole().too_large(),
        }
    }

    /// Judges what was served by another way than from upstream straight to the one who asked.
    pub fn check(&self, done: &Done, history: &History, is_private: bool) -> Result<(), String> {
        match (done.list(), done.status) {
            (Some(list), _) => self.check_list(done, list, history, is_private),
            (None, 400..=428 | 430..=499) => self.check_error(done, is_private),
            (None, _) => Ok(()),
        }
    }

    /// An error that depends on who asked is for the one who did. That there is no such thing is for those
    /// who have proof, from one who had it.
    fn check_error(&self, done: &Done, is_private: bool) -> Result<(), String> {
        let Done { at, status, .. } = *done;
        let Question { id, caller, key, .. } = done.request;
        let grant = self.settings.grant_ttl;
        let is_negative = matches!(status, 400 | 404 | 405);
        let life = if is_negative { self.settings.error_ttl } else { Settings::DENIAL_TTL };
        let is_told = self.calls.iter().any(|call| {
            let Begun { caller: leader, key: its, is_plain, .. } = call.begun;
            let Some((landed, Said::Whole { status: its_status, body, .. })) = call.landed(at) else { return false };
            let is_it = scope_of(its) == scope_of(key) && *its_status == status && *body == done.body;
            let since = if is_negative { call.sent } else { landed };
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
        let Done { arrived, at, .. } = *done;
        let Question { id, caller, key, wish, .. } = done.request;
        let scope = scope_of(key);
        let is_own = |call: &Call| call.is_relay && call.landed(at).is_some() || call.list(at).as_ref() == Some(&list);
        if self.calls.iter().rfind(|call| call.begun.id == id).is_some_and(is_own) {
            return Ok(());
        }

        // Whose call has failed just now, if that is why the list was served.
        let is_out_of_time = at >= arrived + Settings::ANSWER_TIMEOUT;
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
        let is_paused = done.detail() == Some("paused");

        // Who: proved, not denied since, and truly so.
        let is_excused = own_has_failed || is_paused && excuses.clone().any(own_excuses);
        let grant = self.settings.grant_ttl;
        let is_graced = is_excused && self.settings.serves_in_outage;
        let life = if is_graced { grant.max(Settings::OUTAGE_GRACE) } else { grant };
        if !self.is_proved(caller, scope, life, at) {
            return Err(format!("PROPERTY: #{id} was served a list, but caller {caller} has no proof that holds"));
        }
        if !history.since(at.saturating_sub(life)).any(|truth| truth.proves(caller, scope)) {
            return Err(format!("PROPERTY: #{id} was served a list, and upstream would not have proved {caller}"));
        }

        // What: upstream's answer to this key, to this caller where it is theirs alone, and so old as may be.
        let ttl = Settings::ttl(scope);
        let (is_right, more) = match done.detail() {
            Some("revalidating") => (done.is_hit(), self.settings.stale_while_revalidate),
            Some("paused") => {
                (done.is_hit() && excuses.any(|call| scope_of(call.begun.key) == scope), self.settings.stale())
            }
            Some("patience") => (at >= arrived + self.settings.patience, self.settings.stale()),
            _ if done.is_hit() => (true, 0),
            _ => (true, if has_failed { self.settings.stale() } else { 0 }),
        };
        if !is_right {
            return Err(format!("PROPERTY: #{id} was served a stale list for no reason"));
        }
        let is_wished = match wish {
            Wish::NoCache => own_has_failed,
            Wish::NoStore => false,
            Wish::Nothing | Wish::MaxAge(_) | Wish::MinFresh(_) | Wish::OnlyIfCached => true,
        };
        if !is_wished {
            return Err(format!("PROPERTY: #{id} was served a list from before it came in"));
        }
        let most = match wish {
            Wish::MaxAge(most) if !has_failed => most + 1,
            _ => Ms::MAX,
        };
        let is_told = self.calls.iter().any(|call| {
            let is_young = call.sent + (ttl + more).min(most) > at;
            let is_carried = !done.is_hit() && matches!(call.landed(at), Some((landed, _)) if landed == at);
            let is_for_all = !is_private || call.begun.caller == caller;
            let is_kept = !matches!(call.landed(at), Some((_, Said::Whole { besides: Besides::NoStore, .. })));
            let is_after_purge = self.purged[scope].is_none_or(|purge| call.sent >= purge);
            let may_be_it = call.begun.key == key && !call.is_relay && is_for_all && is_kept && is_after_purge;
            may_be_it && (is_young || is_carried) && call.list(at).as_ref() == Some(&list)
        });
        if !is_told {
            return Err(format!("PROPERTY: #{id} was served what upstream has not told anyone for so long"));
        }
        Ok(())
    }

    /// Whether upstream has proved a caller within so long, and has not denied it since.
    fn is_proved(&self, caller: CallerId, scope: ScopeId, life: Ms, at: Ms) -> bool {
        let own = || self.calls.iter().filter(|call| (call.begun.caller, scope_of(call.begun.key)) == (caller, scope));
        let is_denied_since = |proof: &Call| {
            own().any(|call| match call.landed(at) {
                Some((landed, said)) if said.is_denial() => {
                    call.place > proof.place || landed > proof.sent && call.sent >= proof.sent
                }
                _ => false,
            })
        };
        own().any(|call| {
            let is_proof = !call.is_relay && call.sent + life > at && call.list(at).is_some();
            is_proof && !is_denied_since(call)
        })
    }

    /// Whether so many calls have landed for a key while a request waited that it need not wait any more.
    fn has_waited_enough(&self, key: KeyId, arrived: Ms, at: Ms) -> bool {
        let landed = |call: &&Call| call.landed(at).is_some_and(|(landed, _)| landed >= arrived);
        self.calls.iter().filter(|call| call.begun.key == key).filter(landed).count() >= ELECTIONS
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
