//! What is remembered when a client asks, and what the client wishes. Data.

use std::fmt;

/// What there is when a client asks: a caller who stands in some way, an answer of some age, and what
/// happened a second ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) name: &'static str,
    pub(super) standing: GrantState,
    /// How old the kept answer is, if there is one. It was given to another caller.
    pub(super) age: Option<u64>,
    /// Whether upstream gave it an `ETag`.
    pub(super) has_tag: bool,
    pub(super) before: Before,
}

/// How a caller stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrantState {
    Granted,
    Grace,
    Unknown,
}

/// What the caller was answered a second ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Nothing,
    /// 500.
    Failure,
    /// 404.
    Negative,
    /// 401.
    Denial,
}

/// Seconds of the life of an answer of which upstream says nothing: the defaults.
pub(super) const TTL: u64 = 300;
pub(super) const STALE_WHILE_REVALIDATE: u64 = 600;
pub(super) const STALE_IF_ERROR: u64 = 3600;

const fn state(name: &'static str, standing: GrantState, age: Option<u64>) -> State {
    State { name, standing, age, has_tag: false, before: Before::Nothing }
}

pub(super) const STATES: [State; 13] = [
    state("unproved, nothing kept", GrantState::Unknown, None),
    state("unproved, fresh", GrantState::Unknown, Some(100)),
    state("nothing kept", GrantState::Granted, None),
    state("fresh", GrantState::Granted, Some(100)),
    state("stale", GrantState::Granted, Some(400)),
    state("old", GrantState::Granted, Some(1000)),
    State { has_tag: true, ..state("old with ETag", GrantState::Granted, Some(1000)) },
    State { before: Before::Failure, ..state("old, paused", GrantState::Granted, Some(1000)) },
    State { before: Before::Negative, ..state("old, negative", GrantState::Granted, Some(1000)) },
    state("gone", GrantState::Granted, Some(4000)),
    State { has_tag: true, ..state("gone with ETag", GrantState::Granted, Some(4000)) },
    state("lapsed", GrantState::Grace, Some(400)),
    State { before: Before::Denial, ..state("denied", GrantState::Granted, Some(100)) },
];

/// What a client wishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestDirectives {
    Nothing,
    NoCache,
    /// Less than the age of anything that is kept here, but for upstream's no.
    MaxAge,
    OnlyIfCached,
    NoStore,
    /// Naming every answer that there is.
    IfNoneMatch,
}

impl RequestDirectives {
    pub(super) const ALL: [Self; 6] =
        [Self::Nothing, Self::NoCache, Self::MaxAge, Self::OnlyIfCached, Self::NoStore, Self::IfNoneMatch];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::NoCache => "no-cache",
            Self::MaxAge => "max-age=50",
            Self::OnlyIfCached => "only-if-cached",
            Self::NoStore => "no-store",
            Self::IfNoneMatch => "if-none-match",
        }
    }

    /// Whether something of this age will do, if it is fresh.
    pub(super) fn accepts(self, age: u64) -> bool {
        match self {
            Self::NoCache | Self::NoStore => false,
            Self::MaxAge => age <= 50,
            Self::Nothing | Self::OnlyIfCached | Self::IfNoneMatch => true,
        }
    }

    /// Whether something stale will do though upstream hasn't failed.
    pub(super) fn takes_stale(self) -> bool {
        matches!(self, Self::Nothing | Self::OnlyIfCached | Self::IfNoneMatch)
    }
}

impl fmt::Display for RequestDirectives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if *self == Self::Nothing { "no wish" } else { self.as_str() })
    }
}
