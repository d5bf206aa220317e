//! The verdict: what happens to a request, as a sentence and as an action for programs.

use std::fmt;

use serde::Serialize;

use crate::request::request_directives::RequestDirectives;

#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    #[serde(flatten)]
    pub(crate) action: VerdictAction,
    pub(crate) sentence: String,
}

#[derive(Debug, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub(crate) enum VerdictAction {
    /// Answered by the gateway, without an error.
    Answered,
    /// Answered by the gateway with an error.
    Refused { status: u16, reason: &'static str },
    /// Sent upstream unchanged.
    Relayed { reason: &'static str },
    /// Answered from memory, with the result that the log has.
    FromMemory { result: &'static str },
    /// Answered by a call to upstream. The reason is that of the miss.
    Upstream { reason: &'static str },
    /// From memory or by a call: only a running gateway knows.
    LookedUp,
}

impl Verdict {
    pub(super) fn answered(sentence: &str) -> Self {
        Self { action: VerdictAction::Answered, sentence: sentence.to_owned() }
    }

    pub(crate) fn refused(status: u16, reason: &'static str, sentence: String) -> Self {
        Self { action: VerdictAction::Refused { status, reason }, sentence }
    }

    pub(crate) fn relayed(reason: &'static str, sentence: String) -> Self {
        Self { action: VerdictAction::Relayed { reason }, sentence }
    }

    /// The verdict where nothing is known of memory. It depends on the request directives.
    pub(super) fn looked_up(directives: RequestDirectives) -> Self {
        let otherwise = if directives.only_if_cached {
            "answered 504 here: the request has only-if-cached"
        } else {
            "requested from upstream"
        };
        let limited = if directives.limits_age() { " and within its max-age and min-fresh" } else { "" };
        let sentence = match directives.no_cache {
            true => format!("{otherwise}; not answered from memory, because the request has no-cache or max-age=0"),
            false => format!(
                "answered from memory while fresh{limited}, if the caller has a grant in this scope; otherwise {otherwise}"
            ),
        };
        Self { action: VerdictAction::LookedUp, sentence }
    }

    pub(super) fn is_relayed(&self) -> bool {
        matches!(self.action, VerdictAction::Relayed { .. })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}
