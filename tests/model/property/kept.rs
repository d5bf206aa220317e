//! What a process has from others: copies from a second tier, and what an earlier process has left in a snapshot.

use super::super::domain::{
    CacheRequest, CallerId, ExtraHeader, KeyId, Ms, RequestDirectives, RequestId, SCOPES, ScopeId, UpstreamResult,
    scope_of,
};
use super::super::scripted_upstream::UpstreamRequest;
use super::super::settings::Settings;
use super::{Call, Property};

/// A response that this gateway has got from a second tier.
pub struct Copy {
    pub key: KeyId,
    pub list: String,
    pub sent: Ms,
    /// The time from which its age counts at least. It is later than `sent` if clocks were set back.
    pub counts_from: Ms,
}

/// A call of an earlier process, of which a snapshot was left.
pub(super) struct EarlierCall {
    pub(super) call: Call,
    /// When its process ended.
    ended: Ms,
    /// Whether other callers may have its response.
    is_shared: bool,
    /// Whether nothing has made its response void.
    pub(super) has_response: bool,
}

impl Property {
    /// The process ends and leaves a snapshot to the next one. What that may show of it: responses, also those of a second
    /// tier, and a proof in place of one of its own, but only if the caller's own call has failed. It knows of no purge or
    /// change.
    pub fn restarted(mut self, at: Ms) -> Self {
        let is_shared = |call: &Call| {
            let UpstreamRequest { id, key, .. } = call.request;
            call.list(at).is_some() && self.shared(id).is_some() && !self.may_prevent_copy(key, call.sent, at)
        };
        let are_shared: Vec<bool> = self.calls.iter().map(is_shared).collect();
        let is_void = |call: &Call| self.is_denied_since(call, at);
        let are_void: Vec<bool> = self.calls.iter().map(is_void).collect();
        let calls = std::mem::take(&mut self.calls).into_iter().zip(are_shared.into_iter().zip(are_void));
        self.earlier.extend(calls.map(|(call, (is_shared, is_void))| {
            let is_void = is_void || call.is_void;
            EarlierCall { call: Call { is_void, ..call }, ended: at, is_shared, has_response: true }
        }));
        self.end_borrowed(at);
        let Self { purged, copies_since, changed, .. } = self;
        let is_known_void = |purged: [Option<Ms>; SCOPES.len()], key: KeyId, sent: Ms| {
            let scope = scope_of(key);
            purged[scope].is_some_and(|purge| sent < purge) || changed[scope].is_some_and(|change| sent <= change)
        };
        self.copies.retain(|copy| !is_known_void(copies_since, copy.key, copy.sent));
        for EarlierCall { call, has_response, .. } in &mut self.earlier {
            *has_response &= !is_known_void(purged, call.request.key, call.sent);
        }
        let never = [None; SCOPES.len()];
        Self { requests: Vec::new(), purged: never, copies_since: never, last_purge: None, changed: never, ..self }
    }

    /// When the latest response of an earlier process for a key was sent that other callers may have, if nothing else was
    /// stored for it.
    pub fn kept(&self, key: KeyId) -> Option<Ms> {
        let is_for = |earlier: &&EarlierCall| earlier.call.request.key == key;
        let latest = self.earlier.iter().filter(is_for).max_by_key(|earlier| earlier.call.sent)?;
        let is_kept = latest.is_shared && latest.has_response && !self.copies.iter().any(|copy| copy.key == key);
        is_kept.then_some(latest.call.sent)
    }

    /// Whether a request whose own call fails now gets what an earlier process has kept. Times seem earlier by `skew` at
    /// most.
    pub fn must_be_kept_for(&self, id: RequestId, skew: Ms, at: Ms) -> bool {
        let CacheRequest { caller, key, directives, is_unsafe, .. } = self.requests[id as usize].request;
        let Some(sent) = self.kept(key) else { return false };
        let is_covered = self.earlier_proof(caller, scope_of(key), at + skew).is_some_and(|until| sent <= until);
        let has_newer = self.calls.iter().any(|call| call.request.key == key && call.list(at).is_some());
        directives == RequestDirectives::None
            && !is_unsafe
            && is_covered
            && !has_newer
            && self.settings.serves_on_outage
            && sent + Settings::ttl(scope_of(key)) + self.settings.stale() > at + skew
            && !self.may_prevent_copy(key, sent.saturating_sub(skew), at)
    }

    /// If an earlier process has proved a caller: until when a response may have been sent that this gives access to.
    pub(super) fn earlier_proof(&self, caller: CallerId, scope: ScopeId, at: Ms) -> Option<Ms> {
        let is_proof = |EarlierCall { call, .. }: &&EarlierCall| {
            let is_own = (call.request.caller, scope_of(call.request.key)) == (caller, scope);
            let is_valid = !call.is_relay && !call.is_void && call.sent + Settings::OUTAGE_GRACE > at;
            is_own && is_valid && call.list(at).is_some() && !self.is_denied_since(call, at)
        };
        let missed = self.fleet.missed.unwrap_or(Ms::MAX);
        let until = |earlier: &EarlierCall| {
            let until = earlier.ended.min(earlier.call.sent + self.settings.grant_ttl);
            if earlier.call.sent <= missed { until.min(missed) } else { until }
        };
        self.earlier.iter().filter(is_proof).map(until).max()
    }

    /// The gateway gets a response from a second tier.
    pub fn copied(&mut self, copy: Copy) {
        self.copies.push(copy);
    }

    /// The response to the last call of a request, and when it was sent, if other gateways may have it.
    pub fn shared(&self, id: RequestId) -> Option<(KeyId, String, Ms)> {
        let call = self.calls.iter().rfind(|call| call.request.id == id && call.end.is_some())?;
        let (key, (at, result)) = (call.request.key, call.end.as_ref()?);
        let is_storable = matches!(result, UpstreamResult::Complete { extra_header: ExtraHeader::None, .. });
        let is_shared = SCOPES[scope_of(key)].is_shared && !self.varies(scope_of(key));
        let list = call.list(*at).filter(|_| is_storable && is_shared && !call.is_void && !call.is_relay)?;
        Some((key, list, call.sent))
    }

    /// The last call of a request.
    pub fn request_of(&self, id: RequestId) -> UpstreamRequest {
        self.calls.iter().rfind(|call| call.request.id == id).expect("the call has started").request
    }

    /// Whom the last call of a request proves, and when it was sent.
    pub fn proof_of(&self, id: RequestId) -> Option<(CallerId, ScopeId, Ms)> {
        let call = self.calls.iter().rfind(|call| call.request.id == id && call.end.is_some())?;
        let UpstreamRequest { caller, key, .. } = call.request;
        let is_proof = !call.is_relay && !call.is_void && call.list(Ms::MAX).is_some();
        is_proof.then_some((caller, scope_of(key), call.sent))
    }

    /// Whether upstream has told a caller with a proof that the responses of an operation vary on the credential.
    pub fn varies(&self, scope: ScopeId) -> bool {
        self.varying.contains(&SCOPES[scope].operation)
    }

    /// The last change of a scope by a granted caller.
    pub fn changed(&self, scope: ScopeId) -> Option<Ms> {
        self.changed[scope]
    }

    /// Whether something that this gateway knows may prevent the use of a copy: a purge or a change later than `since`, or
    /// a response to the same key that was not stored as an entry.
    pub fn may_prevent_copy(&self, key: KeyId, since: Ms, at: Ms) -> bool {
        let scope = scope_of(key);
        let is_negative = |call: &Call| {
            matches!(call.end, Some((_, UpstreamResult::Complete { status: 400 | 404 | 405, .. })))
                && call.request.key == key
        };
        self.last_purge.is_some_and(|purge| purge >= since)
            || self.changed[scope].is_some_and(|change| change >= since)
            || self.varies(scope)
            || self.is_marked(key, at)
            || self.calls.iter().any(is_negative)
    }
}
