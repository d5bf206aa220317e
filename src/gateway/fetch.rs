//! One call to upstream: from waiting for its turn to the result that all waiters get. What its answer changes, and
//! who else is given it, are steps of their own.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};

use super::fetch_result::{Additional, FetchResult};
use super::fetcher::NoTurn;
use super::look_up::LookupResult;
use super::second_tier::{adopt_record, tell};
use super::settle::{EndedCall, denied};
use super::{CacheRequest, Gateway};
use crate::cache::admission::Verdict;
use crate::cache::entry::Entry;
use crate::cache::flights::Leader;
use crate::cache::lifetime::ResponseTimes;
use crate::cache::store::CacheKey;
use crate::request::condition::Validator;
use crate::request::forwarded;
use crate::telemetry::record::RequestRecord;
use crate::upstream::client::FetchContext;
use crate::upstream::gate::Class;
use crate::upstream::key_breaker::SignatureOutcome;
use crate::upstream::{CallerRefusal, UpstreamError, UpstreamResponse};

/// A question that is going to be asked.
struct Fetch {
    request: CacheRequest,
    /// What others may have joined for.
    cache_key: CacheKey,
    context: FetchContext,
    /// Why it is made beside or after another caller's call, if it is.
    additional: Option<Additional>,
}

impl Gateway {
    /// Begins a call, in a task of its own: a client that hangs up neither cancels nor poisons it.
    pub(super) fn begin_fetch(
        self: &Arc<Self>,
        leader: Leader<CacheKey, FetchResult>,
        request: &CacheRequest,
        cache_key: CacheKey,
        headers: &HeaderMap,
        additional: Option<Additional>,
        record: &mut RequestRecord,
    ) {
        let context = FetchContext {
            credential: request.credential.kept(),
            date: self.clock.date(),
            request_id: record.request_id().to_owned(),
            via: self.via.trail(headers),
            validator: None,
            trace: record.traced(headers),
            forwarded: forwarded::select(request.lookup.key.operation(), headers),
        };
        let fetch = Fetch { request: request.clone(), cache_key, context, additional };
        tokio::spawn(Arc::clone(self).run_fetch(leader, fetch));
    }

    /// Asks upstream, draws the consequences, and lets all waiters know.
    async fn run_fetch(self: Arc<Self>, mut leader: Leader<CacheKey, FetchResult>, fetch: Fetch) {
        let Fetch { request, cache_key, mut context, additional } = fetch;
        let caller = request.lookup.caller_scope.caller;
        let service = request.lookup.key.operation().service;
        let is_plain = self.via.is_own(&context.via) && context.forwarded.is_empty();
        let class = self.memory.class(Some(caller), Some(&request.lookup.caller_scope), self.clock.now());
        if leader.takes_others() && cache_key.owner.is_none() && self.fetcher.has_to_wait(&request) {
            return leader.end(FetchResult::NotSent, false);
        }
        let is_shared = leader.takes_others();
        if is_shared
            && let Some(tier) = &self.fetcher.second_tier
            && adopt_record(&**tier, (&self.memory, &self.observer.digests, &self.clock), &request, &cache_key).await
        {
            // All who wait look again, also if they wait for another call.
            return leader.end(FetchResult::NotSent, true);
        }
        let signed = context.credential.signed();
        let (key_permit, _permit) = tokio::select! {
            biased;
            turn = self.fetcher.turn(&request, signed, class, is_shared, &self.observer) => match turn {
                Ok(turn) => turn,
                Err(NoTurn::Suspended) => return leader.end(FetchResult::Suspended { leader: caller }, false),
                Err(NoTurn::Busy) => {
                    let epoch = self.memory.store.epoch();
                    return leader.end(FetchResult::unsent(caller, epoch, UpstreamError::Busy), false);
                }
            },
            // Nothing has been sent, and nobody is left who wants it.
            () = leader.deserted() => return,
        };
        leader.begin_call();
        let (sent, begun) = (self.clock.now(), self.clock.timer_now());
        let before = match self.memory.look_up(&request, sent) {
            LookupResult::FlightOutcome(..) => return leader.end(FetchResult::NotSent, false),
            LookupResult::Refresh(entry, _) => Some(entry),
            LookupResult::Ask { before, .. } => before,
        };
        let asked_about = before.and_then(|entry| entry.validator().cloned().map(|validator| (entry, validator)));
        context.validator = asked_about.as_ref().map(|(_, validator)| validator.clone());
        let epoch = self.memory.store.epoch();
        let mut pending_grant = self.memory.grants.begin_call(request.lookup.caller_scope.clone(), sent);
        let counted = self.observer.metrics.upstream_call(service);
        self.observer.fetches.count(request.lookup.key.operation());
        if let Some(additional) = additional {
            self.observer.metrics.additional_calls.with_label_values(&[additional.into_str()]).inc();
        }
        let request_id = context.request_id.clone();
        context.date = self.clock.date();
        let answer = ask(&request, context, sent, &mut leader).await;
        let times = ResponseTimes { sent, received: self.clock.now(), date: self.clock.date() };
        let status = answer.as_ref().map(UpstreamResponse::status).map_err(UpstreamError::failure);
        if status.is_ok_and(|status| !status.is_server_error()) {
            self.fetcher.successes.answered(service, times.received);
        }
        let answer = match answer {
            Ok(UpstreamResponse::Whole(response)) => Ok(response),
            // It counts from its head on, and nobody else has to wait for its body.
            Ok(UpstreamResponse::Refused(CallerRefusal { head, body })) => {
                denied(&self.memory, &self.observer, &mut pending_grant, head.status);
                leader.announce(FetchResult::Refused { leader: caller });
                let body = body.await.ok_or(UpstreamError::RefusalIncomplete(head.status));
                body.map(|body| Response::from_parts(head, body))
            }
            Err(error) => Err(error),
        };
        let took = self.clock.timer_now().saturating_duration_since(begun);
        counted.ended(status, took);
        if let Some(key_permit) = key_permit {
            self.observer.signature_ended(key_permit, reception(&answer));
        }

        let (memory, observer) = (&self.memory, &self.observer);
        let call = EndedCall { memory, observer, request: &request, cache_key: &cache_key, is_plain, epoch, times };
        let (answer, is_outside) = match answer.and_then(|response| whole(response, asked_about.as_ref())) {
            Ok((response, said)) => {
                let mut answer = call.settle(pending_grant, response, said);
                // It may be about what was sent besides, of which the others have sent nothing.
                if answer.verdict == Verdict::Negative && !(is_plain && call.is_trusted()) {
                    answer.verdict = Verdict::Personal;
                }
                (Ok(Arc::new(answer)), true)
            }
            Err(error) => {
                if !matches!(error, UpstreamError::TooLarge(_) | UpstreamError::NoMemory(_)) {
                    self.observer.call_failed(service, &request_id, &error);
                }
                let is_outside = self.fetcher.is_outside(service, &error, times.received);
                call.settle_failure(pending_grant, &error, is_outside);
                (Err(error), is_outside)
            }
        };
        let is_proved = answer.as_ref().is_ok_and(|answer| answer.proof.is_some());
        if is_proved {
            self.fetcher.successes.list(service, sent);
        }
        let is_kept = answer.as_ref().is_ok_and(|answer| answer.proof.is_some() && answer.not_kept.is_none());
        self.observer.heard(service, status, class != Class::Unknown || is_proved);
        let has_failed = answer.as_ref().is_ok_and(|answer| answer.verdict == Verdict::Failure);
        let is_repeat = additional == Some(Additional::Failed);
        let may_repeat = has_failed && !is_repeat && self.fetcher.successes.has_listed_since(service, sent);
        let result = FetchResult::Sent { leader: caller, epoch, answer, took: Some(took), is_outside, may_repeat };
        let serves_all = result.serves_all();
        leader.end(result, serves_all);
        if is_kept && let Some(tier) = &self.fetcher.second_tier {
            tell(&**tier, &self.memory, &request, &self.clock);
        }
    }
}

/// Asks upstream, and tells those who wait when that takes long.
async fn ask(
    request: &CacheRequest,
    context: FetchContext,
    sent: Instant,
    leader: &mut Leader<CacheKey, FetchResult>,
) -> Result<UpstreamResponse, UpstreamError> {
    let mut asking = request.active.upstream.ask(&request.lookup.key, context, &request.account);
    tokio::select! {
        biased;
        answer = asking.as_mut() => answer,
        () = tokio::time::sleep(request.active.stale_if_slow) => {
            leader.is_slow(sent);
            asking.await
        }
    }
}

/// What an answer tells of the signature that was sent.
fn reception(answer: &Result<Response<Bytes>, UpstreamError>) -> SignatureOutcome {
    match answer {
        Ok(response) => SignatureOutcome::of(response.status(), response.body()),
        Err(
            UpstreamError::TooLarge(status)
            | UpstreamError::NoMemory(status)
            | UpstreamError::RefusalIncomplete(status),
        ) => SignatureOutcome::of(*status, b""),
        Err(_) => SignatureOutcome::Unknown,
    }
}

/// The answer and the status that upstream gave: a 304 stands for the answer that it was asked about. One
/// that wasn't asked for is no answer; to some clients it would be an empty list.
fn whole(
    response: Response<Bytes>,
    asked_about: Option<&(Arc<Entry>, Validator)>,
) -> Result<(Response<Bytes>, StatusCode), UpstreamError> {
    let said = response.status();
    match asked_about {
        _ if said != StatusCode::NOT_MODIFIED => Ok((response, said)),
        Some((entry, validator)) if validator.is_meant_by(response.headers()) => {
            Ok((entry.revalidated(&response), said))
        }
        other => {
            if let Some((entry, _)) = other {
                entry.misunderstood();
            }
            Err(UpstreamError::Broken("a 304 that was not asked for".to_owned()))
        }
    }
}
