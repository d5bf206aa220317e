//! The identity of a client: its credential, and the caller that it belongs to. Signatures with a configured access key
//! are verified here, which may need the whole body. A signature that is not verified must not count as a credential.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http::request::Parts;
use http_body::Body as _;
use http_body_util::{BodyExt, Full, LengthLimitError};
use tokio::time::timeout;

use super::cache_request::ClientIdentity;
use super::fetcher::Fetcher;
use super::observer::Observer;
use super::{ActiveConfig, Connection};
use crate::budget::{Account, Collected, Purpose};
use crate::catalogue::Service;
use crate::clock::Clock;
use crate::reply::error::RequestError;
use crate::request::caller::{Caller, Callers, Credential};
use crate::request::decide::{Presentation, PresentedCredential};
use crate::request::fingerprint::Fingerprints;
use crate::request::route;
use crate::signing::ring::{self, Claim, SignatureRejection, VerifiedRequest};
use crate::signing::{Payload, SignedTarget};
use crate::stream::{StreamBody, limited, stream};

/// The largest signed body, in bytes. Upstream accepts no larger one.
const MAX_SIGNED_BODY: usize = 12 * 1024 * 1024;

/// A body of at most this size, in bytes, is read without waiting for memory for its whole declared length.
const MAX_SMALL_BODY: usize = 64 * 1024;

/// The time limit for reading a body, counted from when there is memory for it.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The parts that identifying a client needs.
pub(super) struct IdentityResolver<'g> {
    pub(super) callers: &'g Callers,
    pub(super) fingerprints: &'g Fingerprints,
    pub(super) fetcher: &'g Fetcher,
    pub(super) observer: &'g Observer,
    pub(super) clock: &'g Clock,
}

impl IdentityResolver<'_> {
    /// The caller of a credential. If the credential is the last one of its connection, the full keyed hash is not
    /// computed again.
    pub(super) fn recognise(&self, credential: &Credential, connection: &Connection) -> Caller {
        self.callers.recognise(credential, self.fingerprints, &connection.credential)
    }

    /// Returns the identity and the body to relay. A signature is verified for the target that the client sent.
    pub(super) async fn identify(
        &self,
        active: &Arc<ActiveConfig>,
        head: &Parts,
        body: StreamBody,
        service: Service,
        presentation: Presentation,
        connection: &Connection,
    ) -> Result<(ClientIdentity, StreamBody), RequestError> {
        let Presentation { credential, received_uri, authorization } = presentation;
        let (credential, body) = match credential {
            Ok(PresentedCredential::Token(token)) => (Some(Credential::Token(token)), body),
            Ok(PresentedCredential::Signature(claim)) => {
                let (signed, body) =
                    self.verify(active, claim, head, &received_uri, body, (service, &connection.account)).await?;
                (Some(Credential::Signed(Arc::new(signed))), body)
            }
            Err(_) => (None, body),
        };
        let identity = credential.map(|credential| {
            let caller = self.recognise(&credential, connection);
            (credential, caller)
        });
        let client = connection.client(active, identity.as_ref().map(|(_, caller)| *caller));
        let (account, half_close) = (connection.account.clone(), Arc::clone(&connection.half_close));
        Ok((ClientIdentity { active: Arc::clone(active), identity, client, account, half_close, authorization }, body))
    }

    /// Verifies a signature that claims a configured access key.
    async fn verify(
        &self,
        active: &ActiveConfig,
        claim: Claim,
        head: &Parts,
        received_uri: &Uri,
        body: StreamBody,
        (service, account): (Service, &Account),
    ) -> Result<(VerifiedRequest, StreamBody), RequestError> {
        let id = claim.key.id().to_owned();
        let reject = |rejection: SignatureRejection| {
            self.observer.metrics.signature(rejection.into_str());
            tracing::info!(access_key = id, reason = rejection.into_str(), "signature rejected");
            RequestError::Signature(rejection)
        };
        let examined = claim.examine(&head.headers, self.clock.date()).map_err(reject)?;
        let (payload, body) = if body.is_end_stream() {
            (Payload::of(b""), body)
        } else if ring::leaves_body_unsigned(&head.headers) {
            (Payload::unsigned(), body)
        } else {
            let bytes = read_signed(active, body, account).await?;
            let payload = ring::payload(&head.headers, &bytes).map_err(reject)?;
            (payload, stream(Full::new(bytes)))
        };
        let project = route::project(&active.catalogue, head.uri.path());
        let signed =
            examined.admit(&head.method, SignedTarget::from(received_uri), payload, project).map_err(reject)?;
        if self.fetcher.key_breaker.is_suspended(&signed.key, service) {
            return Err(reject(SignatureRejection::Suspended));
        }
        self.observer.metrics.signature("verified");
        Ok((signed, body))
    }
}

/// Reads a complete body. Its bytes are charged to the memory budget as they arrive, until they have been relayed.
async fn read_signed(active: &ActiveConfig, body: StreamBody, account: &Account) -> Result<Bytes, RequestError> {
    let too_large = || RequestError::BodyTooLarge { limit: MAX_SIGNED_BODY };
    let size = body.size_hint();
    if size.lower() > MAX_SIGNED_BODY as u64 {
        return Err(too_large());
    }
    let max_size = usize::try_from(size.upper().unwrap_or(u64::MAX)).unwrap_or(usize::MAX).min(MAX_SIGNED_BODY);
    // Memory is charged only for bytes that have arrived: a declared length alone must not block other requests.
    if max_size > MAX_SMALL_BODY {
        let room = account.room_for(Purpose::Bodies, max_size);
        timeout(active.answer_timeout, room).await.map_err(|_| RequestError::NoMemory)?;
    }
    let reading = async {
        let mut collected =
            Collected::with_capacity(account, Purpose::Bodies, 0, max_size).ok_or(RequestError::NoMemory)?;
        let mut body = limited(body, MAX_SIGNED_BODY);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                if error.is::<LengthLimitError>() { too_large() } else { RequestError::BodyIncomplete }
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if !collected.push(&data) {
                return Err(RequestError::NoMemory);
            }
        }
        Ok(collected.finish())
    };
    timeout(BODY_TIMEOUT, reading).await.map_err(|_| RequestError::BodyIncomplete)?
}
