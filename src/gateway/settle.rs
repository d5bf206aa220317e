//! What the end of a call changes: who has a grant, what is kept, what is remembered of upstream.
//!
//! Only a caller that is proved or holds a grant changes what others meet.

use bytes::Bytes;
use http::header::{AUTHORIZATION, DATE, ETAG, Entry as Field};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::{Gateway, Question};
use crate::cache::admission::{self, Audience, Role, Unstorable, Verdict};
use crate::cache::entry::Entry;
use crate::cache::freshness::{Life, Lifetime};
use crate::cache::grants::{Departure, Proof, Standing};
use crate::cache::lifetime::{self, Times};
use crate::cache::pauses::{self, Cause};
use crate::cache::store::{Epoch, Kept, Slot};
use crate::cache::tripwire::{Digest, View};
use crate::catalogue::Operation;
use crate::request::caller::X_AUTH_TOKEN;
use crate::request::condition::Validator;
use crate::telemetry::events::Event;
use crate::upstream::{UpstreamError, client};

/// What is told of a caller that upstream has refused.
pub(super) const DENIED: &str = "upstream has refused a caller";

/// One call, as it was made.
pub(super) struct Call<'f> {
    pub(super) question: &'f Question,
    /// What others may have boarded for.
    pub(super) slot: &'f Slot,
    /// Whether nothing was sent but the key, the credential and constants.
    pub(super) is_plain: bool,
    /// Between which purges it was sent.
    pub(super) asked: Epoch,
    pub(super) times: Times,
}

/// A whole answer, and what was made of it.
pub(super) struct Answer {
    pub(super) response: Response<Bytes>,
    /// The status that upstream gave: 304, where the answer is the one that it was asked about.
    pub(super) said: StatusCode,
    pub(super) life: Life,
    /// Whether upstream has told the answer's age in a way that can be read.
    pub(super) age_is_known: bool,
    pub(super) verdict: Verdict,
    /// What the answer has proved, if it is a proof.
    pub(super) proof: Option<Proof>,
    /// Why it was not kept, if it wasn't.
    pub(super) not_kept: Option<&'static str>,
}

impl Gateway {
    /// Whether what a caller is answered may change what the others meet who boarded for a slot: it is
    /// its own, or the caller holds a grant to this moment.
    pub(super) fn is_trusted(&self, call: &Call<'_>) -> bool {
        call.slot.owner.is_some() || self.grants.stands(&call.question.asked.grantee, call.times.received)
    }

    /// Everything that an answer changes.
    pub(super) fn settle(
        &self,
        call: &Call<'_>,
        departure: Departure<'_>,
        mut response: Response<Bytes>,
        said: StatusCode,
    ) -> Answer {
        let times = call.times;
        // RFC 9110 §6.6.1: without one, an answer is dated when it comes, and not each time it is given.
        if let Field::Vacant(date) = response.headers_mut().entry(DATE)
            && let Ok(now) = HeaderValue::from_str(&httpdate::fmt_http_date(times.date))
        {
            date.insert(now);
        }
        let operation = call.question.asked.key.operation();
        let verdict = admission::judge(&response, &operation.body, |name| role(operation, name));
        let age_is_known = lifetime::age(response.headers()).is_some();
        let configured = call.question.live.lifetime(operation);
        let life = lifetime::life(response.headers(), times, configured);
        let mut proof = None;
        let not_kept = match verdict {
            Verdict::Proof(storable) => {
                let proved = departure.proved(times.received);
                self.metrics.proof(proved);
                proof = Some(proved);
                match (proved, storable) {
                    (Proof::Late, _) => Some("late"),
                    (_, Ok(audience)) => self.keep(call, &mut response, life, audience),
                    (_, Err(reason)) => {
                        let kept_in = self.store.slot(&call.question.asked.key, call.question.asked.grantee.caller);
                        self.store.mark_uncacheable(kept_in, reason, times.received);
                        Some(self.mark_uncacheable(call, reason))
                    }
                }
            }
            Verdict::NoList(reason) => Some(self.mark_uncacheable(call, reason)),
            Verdict::Denial => {
                self.metrics.denial("upstream");
                self.notable(Event::Denial, DENIED, Some(call.question.asked.key.scope()));
                let may_be_said_again = !lifetime::forbids_keeping(response.headers());
                departure.denied(may_be_said_again.then(|| Entry::new(&response, life, None)), times.received);
                Some("denied")
            }
            Verdict::Negative => self.keep_negative(call, &response),
            Verdict::Throttled | Verdict::Failure => {
                self.metrics.unstored(Unstorable::Status);
                self.pause(call, Some((response.status(), response.headers())));
                Some(Unstorable::Status.as_str())
            }
            // A no that is not to be kept is upstream's latest word all the same.
            Verdict::Personal if call.is_plain && admission::is_negative(response.status()) => {
                Some(self.mark_uncacheable(call, Unstorable::CacheDirectives))
            }
            Verdict::Personal => {
                self.metrics.unstored(Unstorable::Status);
                Some(Unstorable::Status.as_str())
            }
        };
        Answer { response, said, life, age_is_known, verdict, proof, not_kept }
    }

    /// Keeps an answer, for as many as may see it. Says why, if it wasn't kept.
    fn keep(
        &self,
        call: &Call<'_>,
        response: &mut Response<Bytes>,
        life: Life,
        audience: Audience,
    ) -> Option<&'static str> {
        let Call { question, slot, asked, times, .. } = call;
        let caller = question.asked.grantee.caller;
        let kept_in = self.store.slot(&question.asked.key, caller);
        for slot in [slot, &kept_in] {
            self.store.unmark(slot);
            self.pauses.end(slot);
        }
        let digest = *blake3::hash(response.body()).as_bytes();
        // Callers may be shown different things that were last modified at the same time.
        let is_own = kept_in.owner.is_some();
        let validator = Validator::of(response.headers()).filter(|it| is_own || matches!(it, Validator::EntityTag(_)));
        if let Field::Vacant(tag) = response.headers_mut().entry(ETAG) {
            tag.insert(entity_tag(&digest));
        }
        let entry = Entry::new(response, life, validator);
        let view = View { digest, caller, sent: times.sent, received: times.received };
        match self.store.keep(&question.asked.key, entry, audience, view, *asked) {
            Kept::Stored => None,
            Kept::Outdated => Some("outdated"),
            Kept::Purged => Some("purged"),
            Kept::Tripped => {
                let scope = question.asked.key.scope();
                let why = match audience {
                    Audience::All => "callers are given different answers to one question",
                    Audience::Caller => "upstream says that its answers vary on the credential",
                };
                tracing::error!(
                    operation = &*scope.operation().name,
                    project_id = scope.project_id(),
                    "{why}: from now on nothing is shared between callers here, until this is purged or the gateway \
                     restarted. Set sharing = \"caller\" for the operation if that is how it is meant to be"
                );
                self.notable(Event::PrivateScope, why, Some(scope));
                None
            }
        }
    }

    /// Keeps upstream's no for a while, if it can be about nothing but the question. Says why, if it
    /// wasn't kept.
    fn keep_negative(&self, call: &Call<'_>, response: &Response<Bytes>) -> Option<&'static str> {
        let Call { question, is_plain, asked, times, .. } = call;
        let error_ttl = question.live.error_ttl;
        let configured = Lifetime { ttl: error_ttl, ..Lifetime::default() };
        let mut life = lifetime::life(response.headers(), *times, configured);
        life.lifetime = Lifetime { ttl: life.lifetime.ttl.min(error_ttl), ..Lifetime::default() };
        let is_granted = self.grants.stands(&question.asked.grantee, times.received);
        if !is_plain || !is_granted || life.lifetime.ttl.is_zero() {
            self.metrics.unstored(Unstorable::Status);
            return Some(Unstorable::Status.as_str());
        }
        let kept_in = self.store.slot(&question.asked.key, question.asked.grantee.caller);
        match self.store.keep_negative(&kept_in, Entry::new(response, life, None), *asked) {
            Kept::Stored | Kept::Tripped => None,
            Kept::Outdated => Some("outdated"),
            Kept::Purged => Some("purged"),
        }
    }

    /// What changes though there is no whole answer.
    pub(super) fn settle_failure(&self, call: &Call<'_>, departure: Departure<'_>, error: &UpstreamError) {
        match error {
            UpstreamError::TooLarge(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                self.metrics.denial("upstream");
                self.notable(Event::Denial, DENIED, Some(call.question.asked.key.scope()));
                departure.denied(None, call.times.received);
            }
            UpstreamError::TooLarge(StatusCode::OK) => {
                self.mark_uncacheable(call, Unstorable::TooLarge);
            }
            UpstreamError::TooLarge(_) => self.metrics.unstored(Unstorable::Status),
            _ => self.pause(call, None),
        }
    }

    /// Leaves upstream alone for a while, where there is something stale to give. For the others only if
    /// the failure can't be of the caller's own making.
    fn pause(&self, call: &Call<'_>, said: Option<(StatusCode, &HeaderMap)>) {
        let Call { question, slot, times, .. } = call;
        let is_known = match self.grants.standing(&question.asked.grantee, times.received) {
            Standing::Granted => true,
            // What may be of the caller's own making is no excuse.
            Standing::Lapsed => slot.owner.is_some() && call.is_plain,
            Standing::Unproved | Standing::Denied { .. } => false,
        };
        if !is_known {
            return;
        }
        let scope = Some(question.asked.key.scope());
        let wished = said.and_then(|(_, headers)| pauses::retry_after(headers, times.date));
        let error_ttl = question.live.error_ttl;
        let (cause, span) = match (said.map(|(status, _)| status), wished) {
            (Some(StatusCode::TOO_MANY_REQUESTS), wished) => (Cause::Throttled, wished.unwrap_or(error_ttl)),
            (Some(StatusCode::SERVICE_UNAVAILABLE), Some(wished)) => (Cause::Unavailable, wished),
            _ => (Cause::Failure, error_ttl),
        };
        self.metrics.pause(cause);
        match cause {
            Cause::Failure => {}
            Cause::Throttled => self.notable(Event::Throttled, "upstream is asked too often (429)", scope),
            Cause::Unavailable => self.notable(Event::Throttled, "upstream wishes to be left alone (503)", scope),
        }
        // Nor is it anything to the others.
        if call.is_plain {
            self.pauses.begin(slot, &question.asked.grantee, cause, span, times.received);
        } else {
            self.pauses.begin_own(&question.asked.grantee, span, times.received);
        }
    }

    /// Lets nobody wait any more for answers that can't be kept.
    fn mark_uncacheable(&self, call: &Call<'_>, reason: Unstorable) -> &'static str {
        self.metrics.unstored(reason);
        if self.is_trusted(call) {
            self.store.mark_uncacheable(call.slot.clone(), reason, call.times.received);
        }
        reason.as_str()
    }
}

/// What a request header is to an answer that varies on it.
fn role(operation: &Operation, name: &HeaderName) -> Role {
    if client::is_constant(name) || operation.keyed_headers.contains(name) {
        Role::Fixed
    } else if *name == X_AUTH_TOKEN || *name == AUTHORIZATION {
        Role::Credential
    } else {
        Role::Free
    }
}

/// An entity tag for an answer to which upstream has given none: the same for the same bytes.
fn entity_tag(digest: &Digest) -> HeaderValue {
    let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    // Hex digits in quotes are a header's value.
    HeaderValue::try_from(format!("\"{hex}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}
