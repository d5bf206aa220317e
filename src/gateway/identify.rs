//! Who asks: the credential of a request. A signature that claims a known access key is verified here, for
//! which its body may have to be read; what can't be verified is no credential.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::request::Parts;
use http_body::Body as _;
use http_body_util::{BodyExt, Full, LengthLimitError};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::{Connection, Gateway, Live};
use crate::cache::grants::Grantee;
use crate::catalogue::{Operation, Place, Service};
use crate::reply::error::Problem;
use crate::request::BypassReason;
use crate::request::caller::{self, Caller, Credential};
use crate::request::key::Scope;
use crate::request::route;
use crate::signing::ring::{self, Refusal};
use crate::signing::{Changes, Payload, Target};
use crate::stream::{StreamBody, limited, stream};
use crate::upstream::UpstreamError;

/// The largest body that is read to verify its signature: upstream takes none that is larger.
const MAX_SIGNED_BODY: usize = 12 * 1024 * 1024;

/// For all bodies that are being read, or have been and are being sent on. Further ones wait for room.
pub(super) const SIGNED_BODIES: usize = 64 * 1024 * 1024;

/// What takes none of that room: such bodies are bounded by the number of connections.
const SMALL_BODY: usize = 64 * 1024;

/// For a body to come, once there is room for it.
const READING: Duration = Duration::from_secs(60);

/// Who asks, and how.
pub(super) struct Asker {
    /// What was in force when the request came.
    pub(super) live: Arc<Live>,
    /// A credential and whose it is, or why the request has none that counts.
    pub(super) identity: Result<(Credential, Caller), BypassReason>,
    /// How the request differs from the one that its client typed.
    pub(super) changes: Changes,
}

/// A request as its client typed it, where it differs.
pub(super) struct Typed {
    pub(super) uri: Uri,
    pub(super) changes: Changes,
}

impl Asker {
    /// Who asks where, of a request that can't be answered from memory: it may be denied.
    pub(super) fn grantee(&self, operation: &Arc<Operation>, place: Place<'_>) -> Option<Grantee> {
        let (_, caller) = *self.identity.as_ref().ok()?;
        let scope = Scope::read(&self.live.catalogue, operation, place).ok()?;
        Some(Grantee { caller, scope })
    }
}

impl Gateway {
    /// Says who asks. A request is signed as it was typed, apart from what belongs to its connection.
    pub(super) async fn identify(
        &self,
        live: &Arc<Live>,
        head: &Parts,
        typed: Typed,
        body: StreamBody,
        service: Service,
        connection: &Connection,
    ) -> Result<(Asker, StreamBody), Problem> {
        let (credential, body) = match caller::token(&head.headers) {
            Ok(token) => (Ok(Credential::Token(token.clone())), body),
            Err(BypassReason::UnverifiedSignature) => self.verify(live, head, &typed.uri, body, service).await?,
            Err(reason) => (Err(reason), body),
        };
        let identity = credential.map(|credential| {
            let caller = self.callers.recognise(&credential, &connection.credential);
            (credential, caller)
        });
        Ok((Asker { live: Arc::clone(live), identity, changes: typed.changes }, body))
    }

    /// Verifies a signature, if a known access key is claimed.
    async fn verify(
        &self,
        live: &Live,
        head: &Parts,
        typed: &Uri,
        body: StreamBody,
        service: Service,
    ) -> Result<(Result<Credential, BypassReason>, StreamBody), Problem> {
        let Some(claim) = live.keys.claim(&head.headers) else {
            return Ok((Err(BypassReason::UnverifiedSignature), body));
        };
        let id = claim.key.id().to_owned();
        let refused = |refusal: Refusal| {
            self.metrics.signature(refusal.as_str());
            tracing::info!(access_key = id, reason = refusal.as_str(), "a signature is refused");
            Problem::Signature(refusal)
        };
        let examined = claim.examine(&head.headers, self.clock.date()).map_err(refused)?;
        let (payload, body) = if body.is_end_stream() {
            (Payload::of(b""), body)
        } else if ring::leaves_body_unsigned(&head.headers) {
            (Payload::unsigned(), body)
        } else {
            let (bytes, room) = self.read_signed(live, body).await?;
            let payload = ring::payload(&head.headers, &bytes).map_err(refused)?;
            (payload, holding(bytes, room))
        };
        let signed = examined.verify(&head.method, Target::from(typed), payload).map_err(refused)?;
        if !signed.key.may_ask(route::project(&live.catalogue, head.uri.path()), &head.headers) {
            return Err(refused(Refusal::Project));
        }
        if self.probation.holds(&signed.key, service) {
            return Err(refused(Refusal::Held));
        }
        self.metrics.signature("verified");
        Ok((Ok(Credential::Signed(Arc::new(signed))), body))
    }

    /// Reads a body whole, when there is room for it.
    async fn read_signed(&self, live: &Live, body: StreamBody) -> Result<(Bytes, Room), Problem> {
        let too_large = || Problem::BodyTooLarge { limit: MAX_SIGNED_BODY };
        let size = body.size_hint();
        if size.lower() > MAX_SIGNED_BODY as u64 {
            return Err(too_large());
        }
        let most = usize::try_from(size.upper().unwrap_or(u64::MAX)).unwrap_or(usize::MAX).min(MAX_SIGNED_BODY);
        let room = if most <= SMALL_BODY { None } else { Some(self.room(live, most).await?) };
        let reading = limited(body, MAX_SIGNED_BODY).collect();
        let whole = timeout(READING, reading).await.map_err(|_| Problem::BodyIncomplete)?.map_err(|error| {
            let is_too_large = error.is::<LengthLimitError>();
            if is_too_large { too_large() } else { Problem::BodyIncomplete }
        })?;
        Ok((whole.to_bytes(), room))
    }

    /// Waits for room for a body.
    async fn room(&self, live: &Live, size: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let size = u32::try_from(size).map_err(|_| Problem::Internal)?;
        let room = Arc::clone(&self.signed_bodies).acquire_many_owned(size);
        let room = timeout(live.answer_timeout, room).await.map_err(|_| Problem::Upstream(UpstreamError::Busy))?;
        room.map_err(|_| Problem::Internal)
    }
}

/// What a body takes of the room for all; small ones take none.
type Room = Option<OwnedSemaphorePermit>;

/// The body again. The room is taken until it has been sent.
fn holding(bytes: Bytes, room: Room) -> StreamBody {
    stream(Full::new(bytes).map_frame(move |frame| {
        let _ = &room;
        frame
    }))
}
