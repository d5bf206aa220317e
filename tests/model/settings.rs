//! The settings of a sequence. They are short and differ from each other, so that each limit is reached separately.

use super::domain::{Ms, SCOPES, SECOND, ScopeId};

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub grant_ttl: Ms,
    /// The longest lead of a renewal. Zero: no renewals.
    pub renew_ahead: Ms,
    pub serves_on_outage: bool,
    pub max_flights: usize,
    pub max_waiters: usize,
    pub stale_while_revalidate: Ms,
    pub stale_if_error: Ms,
    pub negative_ttl: Ms,
    pub stale_if_slow: Ms,
}

/// `stale_while_revalidate`, `stale_if_error`, `negative_ttl` and `stale_if_slow`, in seconds. They include: no
/// revalidation window; a revalidation window longer than `stale_if_error`; a `stale_if_slow` that is reached, and one
/// longer than any request waits.
const LIFETIMES: [[Ms; 4]; 6] =
    [[0, 300, 5, 40], [0, 300, 20, 3], [40, 300, 5, 3], [40, 300, 5, 40], [90, 20, 5, 3], [40, 300, 0, 10]];

impl Settings {
    pub const OUTAGE_GRACE: Ms = 200 * SECOND;
    pub const DENIAL_TTL: Ms = 2 * SECOND;
    pub const ANSWER_TIMEOUT: Ms = 35 * SECOND;
    /// The deadline of a request: one second longer than a call that is sent immediately may take.
    pub const DEADLINE: Ms = Self::ANSWER_TIMEOUT + SECOND;
    /// For how long a service counts as reachable after an answer.
    pub const REACHABLE_FOR: Ms = 10 * SECOND;
    /// The next two are no settings: the lifetime of an uncacheable mark, and the maximum of a backoff.
    pub const MARK_TTL: Ms = 60 * SECOND;
    pub const MAX_BACKOFF: Ms = 60 * SECOND;

    pub fn ttl(scope: ScopeId) -> Ms {
        if SCOPES[scope].is_shared { 40 * SECOND } else { 30 * SECOND }
    }

    /// A request may wait for its caller's proof, then for two more, and then for its own call.
    pub fn longest_wait(&self) -> Ms {
        Self::DEADLINE + self.stale_if_slow
    }

    /// The lead of a renewal is the caller's pace, within these.
    pub fn renewal_leads(&self) -> (Ms, Ms) {
        let longest = self.renew_ahead.min(self.grant_ttl / 5);
        (longest / 4, longest)
    }

    /// The maximum time after its ttl for which an entry is used at all.
    pub fn stale(&self) -> Ms {
        self.stale_while_revalidate.max(self.stale_if_error)
    }

    /// Grants that end while a call is in flight, before and after the entries that they give access to; with and
    /// without grace; with limits that are reached or not.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (max_flights, max_waiters) in [(4096, 65536), (4096, 65536), (2, 65536), (4096, 2)] {
            for grant_ttl in [20 * SECOND, 45 * SECOND, 90 * SECOND, 180 * SECOND] {
                for (serves_on_outage, renew_ahead) in [(true, 12 * SECOND), (true, 0), (false, 30 * SECOND)] {
                    for [stale_while_revalidate, stale_if_error, negative_ttl, stale_if_slow] in LIFETIMES {
                        all.push(Self {
                            grant_ttl,
                            renew_ahead,
                            serves_on_outage,
                            max_flights,
                            max_waiters,
                            stale_while_revalidate: stale_while_revalidate * SECOND,
                            stale_if_error: stale_if_error * SECOND,
                            negative_ttl: negative_ttl * SECOND,
                            stale_if_slow: stale_if_slow * SECOND,
                        });
                    }
                }
            }
        }
        all
    }

    /// The settings in the format of the configuration file. There is no ttl jitter, because the model could not know
    /// it.
    pub fn to_toml(self) -> String {
        let seconds = |ms: Ms| format!("\"{}s\"", ms / SECOND);
        format!(
            "[cache]\nttl = {}\nttl_jitter = \"0%\"\nstale_while_revalidate = {}\nstale_if_error = {}\n\
             negative_ttl = {}\nbackoff = {}\nstale_if_slow = {}\n\
             [grants]\ngrant_ttl = {}\nrenew_ahead = {}\ndenial_ttl = {}\noutage_grace = {}\non_outage = \"{}\"\n\
             [[operation]]\nname = \"ListProduct\"\nttl = {}\nsharing = \"caller\"\n\
             [upstream]\nanswer_timeout = {}\n\
             [limits]\nmax_flights = {}\nmax_waiters = {}\n",
            seconds(Self::ttl(0)),
            seconds(self.stale_while_revalidate),
            seconds(self.stale_if_error),
            seconds(self.negative_ttl),
            seconds(self.negative_ttl),
            seconds(self.stale_if_slow),
            seconds(self.grant_ttl),
            seconds(self.renew_ahead),
            seconds(Self::DENIAL_TTL),
            seconds(Self::OUTAGE_GRACE),
            if self.serves_on_outage { "serve" } else { "refuse" },
            seconds(Self::ttl(2)),
            seconds(Self::ANSWER_TIMEOUT),
            self.max_flights,
            self.max_waiters,
        )
    }
}
