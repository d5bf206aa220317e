//! THE property, judged from the history alone: what upstream held to be true and what it was asked,
//! but nothing of what the gateway or its model remember.
//!
//! For every product list served there is a moment within the last `grant_ttl` (or, when the caller's
//! own attempt has failed, within `outage_grace`) at which upstream would have proved this caller in this
//! scope, and no denial has come since; and the list was upstream's answer to this very key within its
//! ttl (or, after a failure, the stale window).

use super::driver::Done;
use super::script::Begun;
use super::steps::{Outcome, Settings};
use super::world::{CALLERS, Failure, History, Ms, RequestId, Said, Truth, scope_of};

/// A call to upstream, what was true when it was sent, and its end once it has one.
struct Call {
    begun: Begun,
    /// Whether a request went on as it was: nobody reads such an answer whole, so that it proves nothing.
    is_relay: bool,
    sent: Ms,
    truth: Truth,
    end: Option<(Ms, Said)>,
}

impl Call {
    fn landed(&self, by: Ms) -> Option<(Ms, &Said)> {
        self.end.as_ref().filter(|(landed, _)| *landed <= by).map(|(landed, said)| (*landed, said))
    }

    fn failed(&self, at: Ms) -> bool {
        matches!(&self.end, Some((landed, said)) if *landed == at && said.is_failure())
    }
}

pub struct Property {
    settings: Settings,
    calls: Vec<Call>,
}

impl Property {
    pub fn new(settings: Settings) -> Self {
        Self { settings, calls: Vec::new() }
    }

    pub fn begun(&mut self, begun: Begun, is_relay: bool, sent: Ms, history: &History) {
        self.calls.push(Call { begun, is_relay, sent, truth: history.now().clone(), end: None });
    }

    pub fn landed(&mut self, id: RequestId, at: Ms, said: &Said) {
        let call = self.calls.iter_mut().rfind(|call| call.begun.id == id).expect("it has begun");
        call.end = Some((at, said.clone()));
    }

    /// What upstream says at the end of a call.
    pub fn answer(&self, id: RequestId, outcome: &Outcome, history: &History) -> Said {
        let call = self.calls.iter().rfind(|call| call.begun.id == id).expect("it has begun");
        let Begun { caller, key, .. } = call.begun;
        let truth = |truth: &Truth| truth.answer(caller, key);
        match *outcome {
            Outcome::Truth { as_sent: true } => truth(&call.truth),
            Outcome::Truth { as_sent: false } => truth(history.now()),
            Outcome::NoStore => truth(history.now()).not_to_be_kept(),
            Outcome::Wordy => truth(history.now()).wordy(),
            Outcome::ErrorInDisguise => {
                Said::whole(200, format!(r#"{{"error_code":"WKS.00211401","error_msg":"to caller {caller}"}}"#))
            }
            Outcome::Status(status) => Said::whole(status, format!(r#"{{"error_code":"{status}","caller":{caller}}}"#)),
            Outcome::Unreachable => Said::Failed(Failure::Connect),
            Outcome::TimedOut => Said::Failed(Failure::Timeout),
            // What is streamed is never too large.
            Outcome::TooLarge if call.is_relay => truth(history.now()),
            Outcome::TooLarge => truth(history.now()).too_large(),
        }
    }

    /// Judges a list that was served, by another way than from upstream straight to the one who asked.
    pub fn check(&self, done: &Done, history: &History, is_private: bool) -> Result<(), String> {
        let Begun { id, caller, key, .. } = done.request;
        let scope = scope_of(key);
        let own = self.calls.iter().rfind(|call| call.begun.id == id).and_then(|call| call.landed(done.at));
        if own.is_some_and(|(_, said)| matches!(said, Said::Whole { body, .. } if *body == done.body)) {
            return Ok(());
        }

        // Whose call has failed just now, if that is why the list was served.
        let is_out_of_time = done.at >= done.arrived + Settings::ANSWER_TIMEOUT;
        let mut failed = self
            .calls
            .iter()
            .filter(|call| call.begun.key == key && (call.failed(done.at) || is_out_of_time && call.end.is_none()));
        let has_failed = failed.clone().next().is_some();
        let own_has_failed = failed.any(|call| call.begun.caller == caller);

        // Who: proved, not denied since, and truly so.
        let is_excused = own_has_failed && self.settings.serves_in_outage;
        let life =
            if is_excused { self.settings.grant_ttl.max(Settings::OUTAGE_GRACE) } else { self.settings.grant_ttl };
        let own_scope =
            || self.calls.iter().filter(|call| (call.begun.caller, scope_of(call.begun.key)) == (caller, scope));
        let is_denied_since = |sent: Ms, proved: Ms| {
            own_scope().any(|call| match call.landed(done.at) {
                Some((landed, said)) if said.is_denial() => landed > proved || landed > sent && call.sent >= sent,
                _ => false,
            })
        };
        let is_proved = own_scope().any(|call| match call.landed(done.at) {
            Some((landed, said)) => {
                said.is_list() && !call.is_relay && call.sent + life > done.at && !is_denied_since(call.sent, landed)
            }
            None => false,
        });
        if !is_proved {
            return Err(format!("PROPERTY: #{id} was served a list, but caller {caller} has no proof that holds"));
        }
        if !history.since(done.at.saturating_sub(life)).any(|truth| truth.proves(caller, scope)) {
            return Err(format!("PROPERTY: #{id} was served a list, and upstream would not have proved {caller}"));
        }

        // What: upstream's answer to this key, to this caller where it is theirs alone.
        let age = Settings::ttl(scope) + if has_failed { Settings::STALE_IF_ERROR } else { 0 };
        let carried = self.calls.iter().filter(|call| {
            let said = call.landed(done.at).filter(|(landed, _)| *landed == done.at).map(|(_, said)| said);
            call.begun.key == key && matches!(said, Some(Said::Whole { body, .. }) if *body == done.body)
        });
        let from = carried.map(|call| call.sent).chain([done.at.saturating_sub(age)]).min().unwrap_or_default();
        let viewers: Vec<_> = if is_private { vec![caller] } else { (0..CALLERS).collect() };
        let is_told = history.since(from).any(|truth| {
            viewers.iter().any(|&viewer| truth.proves(viewer, scope) && truth.list(viewer, key) == done.body)
        });
        if !is_told {
            return Err(format!("PROPERTY: #{id} was served what upstream has not told anyone since {from} ms"));
        }
        Ok(())
    }
}
