//! Who asks: the credential of a request. A signature that claims a known access key is verified here, for
//! which its body may have to be read; what can't be verified is no credential.

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
use crate::reply::error::Problem;
use crate::request::caller::{Caller, Callers, Credential};
use crate::request::decide::{Presentation, PresentedCredential};
use crate::request::fingerprint::Fingerprints;
use crate::request::route;
use crate::signing::ring::{self, Claim, SignatureRejection, VerifiedRequest};
use crate::signing::{Payload, SignedTarget};
use crate::stream::{StreamBody, limited, stream};

/// The largest body that is read to verify its signature: upstream takes none that is larger.
const MAX_SIGNED_BODY: usize = 12 * 1024 * 1024;

/// A larger body is read only when the memory budget has room for all that it declares.
const SMALL_BODY: usize = 64 * 1024;

/// For a body to come, once there is room for it.
const READING: Duration = Duration::from_secs(60);

/// What identifying takes: the parts, and the keys by which callers are told apart.
pub(super) struct Identifying<'g> {
    pub(super) callers: &'g Callers,
    pub(super) fingerprints: &'g Fingerprints,
    pub(super) fetcher: &'g Fetcher,
    pub(super) observer: &'g Observer,
    pub(super) clock: &'g Clock,
}

impl Identifying<'_> {
    /// Whose a credential is. One that its connection has shown before is recognised without hashing it whole.
    pub(super) fn recognise(&self, credential: &Credential, connection: &Connection) -> Caller {
        self.callers.recognise(credential, self.fingerprints, &connection.credential)
    }

    /// Says who asks. A signature is verified for the request as it was typed, apart from what belongs to its connection.
    pub(super) async fn identify(
        &self,
        active: &Arc<ActiveConfig>,
        head: &Parts,
        body: StreamBody,
        (service, presentation): (Service, Presentation),
        connection: &Connection,
    ) -> Result<(ClientIdentity, StreamBody), Problem> {
        let Presentation { credential, typed, authorization } = presentation;
        let (credential, body) = match credential {
            Ok(PresentedCredential::Token(token)) => (Some(Credential::Token(token)), body),
            Ok(PresentedCredential::Signature(claim)) => {
                let (signed, body) =
                    self.verify(active, claim, head, &typed, body, (service, &connection.account)).await?;
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
        typed: &Uri,
        body: StreamBody,
        (service, account): (Service, &Account),
    ) -> Result<(VerifiedRequest, StreamBody), Problem> {
        let id = claim.key.id().to_owned();
        let refused = |refusal: SignatureRejection| {
            self.observer.metrics.signature(refusal.into_str());
            tracing::info!(access_key = id, reason = refusal.into_str(), "a signature is refused");
            Problem::Signature(refusal)
        };
        let examined = claim.examine(&head.headers, self.clock.date()).map_err(refused)?;
        let (payload, body) = if body.is_end_stream() {
            (Payload::of(b""), body)
        } else if ring::leaves_body_unsigned(&head.headers) {
            (Payload::unsigned(), body)
        } else {
            let bytes = read_signed(active, body, account).await?;
            let payload = ring::payload(&head.headers, &bytes).map_err(refused)?;
            (payload, stream(Full::new(bytes)))
        };
        let project = route::project(&active.catalogue, head.uri.path());
        let signed = examined.admit(&head.method, SignedTarget::from(typed), payload, project).map_err(refused)?;
        if self.fetcher.key_breaker.holds(&signed.key, service) {
            return Err(refused(SignatureRejection::Suspended));
        }
        self.observer.metrics.signature("verified");
        Ok((signed, body))
    }
}

/// Reads a body whole. Its bytes are charged to the memory budget as they come, until they have been sent on.
async fn read_signed(active: &ActiveConfig, body: StreamBody, account: &Account) -> Result<Bytes, Problem> {
    let too_large = || Problem::BodyTooLarge { limit: MAX_SIGNED_BODY };
    let size = body.size_hint();
    if size.lower() > MAX_SIGNED_BODY as u64 {
        return Err(too_large());
    }
    let most = usize::try_from(size.upper().unwrap_or(u64::MAX)).unwrap_or(usize::MAX).min(MAX_SIGNED_BODY);
    // Nothing is taken before the first byte comes: a declared length alone must not keep others out.
    if most > SMALL_BODY {
        let room = account.room_for(Purpose::Bodies, most);
        timeout(active.answer_timeout, room).await.map_err(|_| Problem::NoMemory)?;
    }
    let reading = async {
        let mut whole = Collected::with_capacity(account, Purpose::Bodies, 0, most).ok_or(Problem::NoMemory)?;
        let mut body = limited(body, MAX_SIGNED_BODY);
        while let Some(frame) = body.frame().await {
            let frame = frame
                .map_err(|error| if error.is::<LengthLimitError>() { too_large() } else { Problem::BodyIncomplete })?;
            let Ok(data) = frame.into_data() else { continue };
            if !whole.push(&data) {
                return Err(Problem::NoMemory);
            }
        }
        Ok(whole.finish())
    };
    timeout(READING, reading).await.map_err(|_| Problem::BodyIncomplete)?
}
