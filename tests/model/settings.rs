//! The settings that a sequence runs with: short and different, so that each limit is met apart from the
//! others.

use super::world::{Ms, SCOPES, SECOND, ScopeId};

/// The settings that the rules read.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub grant_ttl: Ms,
    pub serves_in_outage: bool,
    pub max_flights: usize,
    pub max_waiters: usize,
    pub stale_while_revalidate: Ms,
    pub stale_if_error: Ms,
    pub negative_ttl: Ms,
    pub stale_if_slow: Ms,
}

/// What becomes of answers that have expired: `stale_while_revalidate`, `stale_if_error`, `negative_ttl` and
/// `stale-if-slow`, in seconds. None without a refresh, one that is given longer than it is excused, patience that
/// runs out and patience longer than anyone waits.
const LIVES: [[Ms; 4]; 6] =
    [[0, 300, 5, 40], [0, 300, 20, 3], [40, 300, 5, 3], [40, 300, 5, 40], [90, 20, 5, 3], [40, 300, 0, 10]];

impl Settings {
    pub const OUTAGE_GRACE: Ms = 200 * SECOND;
    pub const DENIAL_TTL: Ms = 2 * SECOND;
    pub const ANSWER_TIMEOUT: Ms = 35 * SECOND;
    /// How long a request waits: a second longer than a call that is sent at once may take.
    pub const DEADLINE: Ms = Self::ANSWER_TIMEOUT + SECOND;
    /// How long a service that has answered counts as reachable.
    pub const REACHABLE_FOR: Ms = 10 * SECOND;
    /// Not settings: how long it is remembered that an answer can't be kept, and the longest time for which
    /// upstream may ask not to be asked.
    pub const MARK_TTL: Ms = 60 * SECOND;
    pub const LONGEST_PAUSE: Ms = 60 * SECOND;

    /// How long an answer in a scope is fresh.
    pub fn ttl(scope: ScopeId) -> Ms {
        if SCOPES[scope].is_shared { 40 * SECOND } else { 30 * SECOND }
    }

    /// How long beyond its ttl an answer may be given at all.
    pub fn stale(&self) -> Ms {
        self.stale_while_revalidate.max(self.stale_if_error)
    }

    /// Grants that end while a call is in the air, before and after the answers they give access to; with
    /// and without grace; with bounds that are met or not.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (max_flights, max_waiters) in [(4096, 65536), (4096, 65536), (2, 65536), (4096, 2)] {
            for grant_ttl in [20 * SECOND, 45 * SECOND, 90 * SECOND, 180 * SECOND] {
                for serves_in_outage in [true, true, false] {
                    for [stale_while_revalidate, stale_if_error, negative_ttl, stale_if_slow] in LIVES {
                        all.push(Self {
                            grant_ttl,
                            serves_in_outage,
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

    /// As the gateway's configuration file has them. Lives are not cut at random: the model could not tell
    /// by how much.
    pub fn to_toml(self) -> String {
        let seconds = |ms: Ms| format!("\"{}s\"", ms / SECOND);
        format!(
            "[cache]\nttl = {}\nttl_jitter = \"0%\"\nstale_while_revalidate = {}\nstale_if_error = {}\n\
             negative_ttl = {}\nbackoff = {}\nstale_if_slow = {}\n\
             [grants]\ngrant_ttl = {}\ndenial_ttl = {}\noutage_grace = {}\non_outage = \"{}\"\n\
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
            seconds(Self::DENIAL_TTL),
            seconds(Self::OUTAGE_GRACE),
            if self.serves_in_outage { "serve" } else { "refuse" },
            seconds(Self::ttl(2)),
            seconds(Self::ANSWER_TIMEOUT),
            self.max_flights,
            self.max_waiters,
        )
    }
}
