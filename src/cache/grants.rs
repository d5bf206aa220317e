//! Who may be shown what is kept. A grant is made by proof and by nothing else: upstream has answered
//! this caller's own credential well, in this scope. It lives from when that call was *sent*: an
//! answer may have been long on its way, and the credential revoked meanwhile.
//!
//! A denial ends a grant at once, whatever other calls of the caller bring that were sent no later.
//! Losing a grant for want of room costs one upstream call. Time is an argument here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::entry::Entry;
use super::generations::Generations;
use crate::request::caller::Caller;
use crate::request::key::Scope;

/// How many refusals are remembered, and how large they may be. A loop with a dead token is few
/// callers; many are an attack, of which each costs a call.
const MAX_REFUSALS: usize = 2_048;
const MAX_REFUSAL_SIZE: usize = 8 * 1024;

/// What holds for every grant.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long a grant lives.
    pub grant_ttl: Duration,
    /// How long a refusal is given again without asking.
    pub denial_ttl: Duration,
    /// How long after the last proof an outage is bridged; `None` if it isn't.
    pub outage_grace: Option<Duration>,
    /// How many grants there may be. The most recently used half of them stay for sure.
    pub max_grants: usize,
}

/// Who may hold a grant: a caller in a scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grantee {
    /// Who asks.
    pub caller: Caller,
    /// Where.
    pub scope: Scope,
}

/// How a caller stands in a scope.
#[derive(Clone, Debug)]
pub enum Standing {
    /// Proved, and not long ago.
    Granted,
    /// Proved longer ago. If its own call fails for another reason than its credential, that is excused.
    Lapsed,
    /// Never proved, or too long ago, or denied since.
    Unproved,
    /// Denied just now.
    Denied {
        /// What upstream said.
        refusal: Arc<Entry>,
        /// How long that is said again.
        left: Duration,
    },
}

/// What a proof has brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A grant where there was none that lived.
    Granted,
    /// A longer life of one that did.
    Renewed,
    /// Nothing: a call that was sent no earlier has been denied meanwhile.
    Late,
}

impl Proof {
    /// All of them, for tables and tests.
    pub const ALL: [Self; 3] = [Self::Granted, Self::Renewed, Self::Late];

    /// The name used as metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Renewed => "renewed",
            Self::Late => "late",
        }
    }
}

/// All grants, and what was denied.
pub struct Grants {
    books: Mutex<Books>,
}

struct Books {
    terms: Terms,
    /// When the request of the latest proof was sent.
    proved: Generations<Grantee, Instant>,
    refused: Generations<Grantee, Refusal>,
    /// Who has calls in the air: as many as there are calls, and no more.
    aloft: HashMap<Grantee, Aloft>,
}

struct Refusal {
    answer: Arc<Entry>,
    until: Instant,
}

#[derive(Default)]
struct Aloft {
    calls: usize,
    /// When the latest request that was denied meanwhile had been sent.
    denied: Option<Instant>,
}

impl Grants {
    /// None so far.
    pub fn new(terms: Terms) -> Self {
        let books = Books {
            terms,
            proved: Generations::new(terms.max_grants),
            refused: Generations::new(MAX_REFUSALS),
            aloft: HashMap::new(),
        };
        Self { books: Mutex::new(books) }
    }

    /// Other terms from now on, for the grants there are too. A refusal is given again for as long as it was
    /// going to be.
    pub fn set_terms(&self, terms: Terms) {
        let mut books = self.books();
        if terms.max_grants != books.terms.max_grants {
            books.proved.resize(terms.max_grants);
        }
        books.terms = terms;
    }

    /// How a caller stands in a scope at a moment.
    pub fn standing(&self, grantee: &Grantee, now: Instant) -> Standing {
        let mut books = self.books();
        if let Some(refusal) = books.refused.get(grantee) {
            let left = refusal.until.saturating_duration_since(now);
            if !left.is_zero() {
                return Standing::Denied { refusal: Arc::clone(&refusal.answer), left };
            }
            books.refused.remove(grantee);
        }
        let Some(proved) = books.proved.get(grantee) else { return Standing::Unproved };
        let age = now.saturating_duration_since(*proved);
        if age < books.terms.grant_ttl {
            Standing::Granted
        } else if books.terms.outage_grace.is_some_and(|grace| age < grace) {
            Standing::Lapsed
        } else {
            Standing::Unproved
        }
    }

    /// Whether a caller has a grant in a scope at a moment.
    pub fn stands(&self, grantee: &Grantee, now: Instant) -> bool {
        matches!(self.standing(grantee, now), Standing::Granted)
    }

    /// Notes that a caller's own request is about to be sent.
    pub fn depart(&self, grantee: Grantee, sent: Instant) -> Departure<'_> {
        self.books().aloft.entry(grantee.clone()).or_default().calls += 1;
        Departure { grants: self, grantee, sent }
    }

    /// How many grants live at a moment.
    pub fn live(&self, now: Instant) -> usize {
        let books = self.books();
        let lives = |proved: &&Instant| now.saturating_duration_since(**proved) < books.terms.grant_ttl;
        books.proved.values().filter(lives).count()
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller's own request that is in the air. Dropped, it has brought neither proof nor denial.
pub struct Departure<'g> {
    grants: &'g Grants,
    grantee: Grantee,
    sent: Instant,
}

impl Departure<'_> {
    /// Upstream has answered it well, and now is the moment.
    pub fn proved(self, now: Instant) -> Proof {
        let mut books = self.grants.books();
        let denied = books.aloft.get(&self.grantee).and_then(|aloft| aloft.denied);
        if denied.is_some_and(|denied| denied >= self.sent) {
            return Proof::Late;
        }
        books.refused.remove(&self.grantee);
        let before = books.proved.get(&self.grantee).copied();
        let proved = before.map_or(self.sent, |before| before.max(self.sent));
        books.proved.insert(self.grantee.clone(), proved);
        let lived = before.is_some_and(|before| now.saturating_duration_since(before) < books.terms.grant_ttl);
        if lived { Proof::Renewed } else { Proof::Granted }
    }

    /// Upstream has refused the credential, and now is the moment. What it said is repeated for a
    /// while, where it is known.
    pub fn denied(self, refusal: Option<Entry>, now: Instant) {
        let mut books = self.grants.books();
        if let Some(aloft) = books.aloft.get_mut(&self.grantee) {
            aloft.denied = aloft.denied.max(Some(self.sent));
        }
        let proved = books.proved.remove(&self.grantee);
        // Where a later request has been proved, upstream has changed its mind since.
        let is_latest = proved.is_none_or(|proved| proved <= self.sent);
        if let Some(refusal) = refusal.filter(|refusal| is_latest && refusal.size() <= MAX_REFUSAL_SIZE) {
            let until = now + books.terms.denial_ttl;
            books.refused.insert(self.grantee.clone(), Refusal { answer: Arc::new(refusal), until });
        }
    }
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        let mut books = self.grants.books();
        if let Some(aloft) = books.aloft.get_mut(&self.grantee) {
            aloft.calls -= 1;
            if aloft.calls == 0 {
                books.aloft.remove(&self.grantee);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Response, StatusCode};

    use super::*;
    use crate::cache::freshness::{Life, Lifetime};
    use crate::catalogue::Catalogue;
    use crate::clock::Clock;
    use crate::request::caller::Callers;
    use crate::request::key::Key;

    const SECOND: Duration = Duration::from_secs(1);
    const TERMS: Terms = Terms {
        grant_ttl: Duration::from_secs(300),
        denial_ttl: Duration::from_secs(2),
        outage_grace: Some(Duration::from_secs(3600)),
        max_grants: 10,
    };

    fn grantee(token: &str, path: &str) -> Grantee {
        let catalogue = Catalogue::for_tests(Vec::new());
        let (operation, project_id) = catalogue.operation(path).unwrap();
        let key = Key::read(&catalogue, operation, project_id, None, &HeaderMap::new(), false).unwrap();
        let caller = Callers::new([0; 32]).of_token(&HeaderValue::from_str(token).unwrap());
        Grantee { caller, scope: key.scope().clone() }
    }

    fn refusal(body: &'static [u8], now: Instant) -> Option<Entry> {
        let mut answer = Response::new(Bytes::from_static(body));
        *answer.status_mut() = StatusCode::UNAUTHORIZED;
        let life = Life { sent: now, initial_age: Duration::ZERO, lifetime: Lifetime::default() };
        Some(Entry::new(&answer, life, None))
    }

    /// How the standing reads, second by second.
    fn standing(grants: &Grants, grantee: &Grantee, now: Instant) -> &'static str {
        match grants.standing(grantee, now) {
            Standing::Granted => "granted",
            Standing::Lapsed => "lapsed",
            Standing::Unproved => "unproved",
            Standing::Denied { .. } => "denied",
        }
    }

    #[test]
    fn a_grant_lives_from_when_its_proof_was_sent() {
        let grants = Grants::new(TERMS);
        let (me, begun) = (grantee("a", "/v2/p/products"), Clock::System.now());
        let at = |second: u32| begun + second * SECOND;
        assert_eq!(standing(&grants, &me, begun), "unproved");
        assert_eq!(grants.depart(me.clone(), begun).proved(at(30)), Proof::Granted);
        let expected = [(30, "granted"), (299, "granted"), (300, "lapsed"), (3599, "lapsed"), (3600, "unproved")];
        for (second, expected) in expected {
            assert_eq!(standing(&grants, &me, at(second)), expected, "{second}");
        }
        assert_eq!((grants.live(at(299)), grants.live(at(300))), (1, 0));
        for other in [grantee("b", "/v2/p/products"), grantee("a", "/v2/q/products"), grantee("a", "/v1/p/product")] {
            assert_eq!(standing(&grants, &other, begun), "unproved", "{other:?}");
        }
        // What was sent earlier and lands later shortens nothing.
        assert_eq!(grants.depart(me.clone(), at(200)).proved(at(201)), Proof::Renewed);
        assert_eq!(grants.depart(me.clone(), at(100)).proved(at(202)), Proof::Renewed);
        assert_eq!(standing(&grants, &me, at(499)), "granted");
    }

    #[test]
    fn without_grace_a_lapsed_grant_is_none() {
        let grants = Grants::new(Terms { outage_grace: None, ..TERMS });
        let (me, begun) = (grantee("a", "/v2/p/products"), Clock::System.now());
        grants.depart(me.clone(), begun).proved(begun);
        assert_eq!(standing(&grants, &me, begun + 300 * SECOND), "unproved");
    }

    #[test]
    fn a_denial_ends_the_grant_and_what_was_sent_before_it() {
        let grants = Grants::new(TERMS);
        let (me, begun) = (grantee("a", "/v2/p/products"), Clock::System.now());
        let at = |second: u32| begun + second * SECOND;
        grants.depart(me.clone(), begun).proved(begun);
        let [early, same, denied, later] = [1, 2, 2, 3].map(|second| grants.depart(me.clone(), at(second)));
        denied.denied(refusal(b"no", at(4)), at(4));
        assert_eq!((early.proved(at(5)), same.proved(at(5))), (Proof::Late, Proof::Late));
        assert_eq!(standing(&grants, &me, at(5)), "denied");
        assert_eq!(later.proved(at(5)), Proof::Granted);
        assert_eq!(standing(&grants, &me, at(5)), "granted");
        assert!(grants.books().aloft.is_empty(), "nothing is remembered of calls that have landed");
    }

    #[test]
    fn a_denial_that_an_older_call_brings_ends_the_grant_and_is_not_repeated() {
        let grants = Grants::new(TERMS);
        let (me, begun) = (grantee("a", "/v2/p/products"), Clock::System.now());
        let older = grants.depart(me.clone(), begun);
        grants.depart(me.clone(), begun + SECOND).proved(begun + SECOND);
        older.denied(refusal(b"no", begun), begun + 2 * SECOND);
        assert_eq!(standing(&grants, &me, begun + 2 * SECOND), "unproved");
    }

    #[test]
    fn a_denial_is_repeated_for_a_while() {
        let grants = Grants::new(TERMS);
        let (me, begun) = (grantee("a", "/v2/p/products"), Clock::System.now());
        grants.depart(me.clone(), begun).denied(refusal(b"no", begun), begun + SECOND);
        assert_eq!(standing(&grants, &me, begun + 2 * SECOND), "denied");
        assert_eq!(standing(&grants, &grantee("a", "/v2/q/products"), begun + 2 * SECOND), "unproved");
        assert_eq!(standing(&grants, &me, begun + 3 * SECOND), "unproved");
    }

    #[test]
    fn a_large_refusal_is_not_remembered() {
        let grants = Grants::new(TERMS);
        let (me, begun) = (grantee("a", "/v2/p/products"), Clock::System.now());
        grants.depart(me.clone(), begun).denied(refusal(&[b'x'; MAX_REFUSAL_SIZE], begun), begun);
        assert_eq!(standing(&grants, &me, begun), "unproved");
    }

    #[test]
    fn other_terms_hold_for_the_grants_there_are() {
        let grants = Grants::new(TERMS);
        let (me, begun) = (grantee("a", "/v2/p/products"), Clock::System.now());
        grants.depart(me.clone(), begun).proved(begun);
        grants.depart(grantee("b", "/v2/p/products"), begun).denied(refusal(b"no", begun), begun);
        grants.set_terms(Terms { grant_ttl: SECOND, denial_ttl: 9 * SECOND, outage_grace: None, max_grants: 2 });
        assert_eq!(standing(&grants, &me, begun), "granted");
        assert_eq!((standing(&grants, &me, begun + SECOND), grants.live(begun + SECOND)), ("unproved", 0));
        let refused = standing(&grants, &grantee("b", "/v2/p/products"), begun + 3 * SECOND);
        assert_eq!(refused, "unproved", "said again for longer than it was going to be");
        for number in 0..100 {
            grants.depart(grantee(&number.to_string(), "/v2/p/products"), begun).proved(begun);
        }
        assert_eq!(grants.live(begun), 2);
    }

    #[test]
    fn grants_are_bounded_and_the_used_ones_stay() {
        let grants = Grants::new(TERMS);
        let (me, begun) = (grantee("a", "/v2/p/products"), Clock::System.now());
        grants.depart(me.clone(), begun).proved(begun);
        for number in 0..100 {
            grants.depart(grantee(&number.to_string(), "/v2/p/products"), begun).proved(begun);
            assert!(grants.stands(&me, begun) && grants.live(begun) <= TERMS.max_grants);
        }
        assert!(!grants.stands(&grantee("0", "/v2/p/products"), begun));
    }
}
