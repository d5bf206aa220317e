//! The state of the cache and the caller at a request, and the request directives. Data.

use std::fmt;

/// The state at a request: a grant state, an entry, and what happened a second before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) name: &'static str,
    pub(super) grant_state: GrantState,
    /// The age of the entry in seconds, if there is one. It was stored for another caller.
    pub(super) age: Option<u64>,
    pub(super) has_tag: bool,
    pub(super) before: Before,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrantState {
    Granted,
    Lapsed,
    Unknown,
}

/// The response to the caller a second before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    None,
    /// 500.
    Failure,
    /// 404.
    Negative,
    /// 401.
    Denial,
}

/// Seconds: the defaults for a response without lifetime.
pub(super) const TTL: u64 = 300;
pub(super) const STALE_WHILE_REVALIDATE: u64 = 600;
pub(super) const STALE_IF_ERROR: u64 = 3600;

const fn state(name: &'static str, grant_state: GrantState, age: Option<u64>) -> State {
    State { name, grant_state, age, has_tag: false, before: Before::None }
}

pub(super) const STATES: [State; 13] = [
    state("no grant, empty", GrantState::Unknown, None),
    state("no grant, fresh", GrantState::Unknown, Some(100)),
    state("empty", GrantState::Granted, None),
    state("fresh", GrantState::Granted, Some(100)),
    state("stale", GrantState::Granted, Some(400)),
    state("long stale", GrantState::Granted, Some(1000)),
    State { has_tag: true, ..state("long stale with ETag", GrantState::Granted, Some(1000)) },
    State { before: Before::Failure, ..state("long stale, backoff", GrantState::Granted, Some(1000)) },
    State { before: Before::Negative, ..state("long stale, negative", GrantState::Granted, Some(1000)) },
    state("expired", GrantState::Granted, Some(4000)),
    State { has_tag: true, ..state("expired with ETag", GrantState::Granted, Some(4000)) },
    state("lapsed", GrantState::Lapsed, Some(400)),
    State { before: Before::Denial, ..state("denied", GrantState::Granted, Some(100)) },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestDirectives {
    None,
    NoCache,
    /// Less than the age of any entry here, but more than that of a negative response.
    MaxAge,
    OnlyIfCached,
    NoStore,
    /// Names every response that there is.
    IfNoneMatch,
}

impl RequestDirectives {
    pub(super) const ALL: [Self; 6] =
        [Self::None, Self::NoCache, Self::MaxAge, Self::OnlyIfCached, Self::NoStore, Self::IfNoneMatch];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::NoCache => "no-cache",
            Self::MaxAge => "max-age=50",
            Self::OnlyIfCached => "only-if-cached",
            Self::NoStore => "no-store",
            Self::IfNoneMatch => "if-none-match",
        }
    }

    /// Whether a fresh response of this age is accepted.
    pub(super) fn accepts(self, age: u64) -> bool {
        match self {
            Self::NoCache | Self::NoStore => false,
            Self::MaxAge => age <= 50,
            Self::None | Self::OnlyIfCached | Self::IfNoneMatch => true,
        }
    }

    /// Whether a stale response is accepted although upstream has not failed.
    pub(super) fn takes_stale(self) -> bool {
        matches!(self, Self::None | Self::OnlyIfCached | Self::IfNoneMatch)
    }
}

impl fmt::Display for RequestDirectives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if *self == Self::None { "no directives" } else { self.as_str() })
    }
}
