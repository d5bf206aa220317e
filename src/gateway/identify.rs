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

use super::{Asked, Connection, Gateway, Live, Question};
use crate::budget::{Account, Collected, Purpose};
use crate::cache::grants::Grantee;
use crate::catalogue::Service;
use crate::reply::error::Problem;
use crate::request::caller::{Caller, Credential};
use crate::request::decide::{Authorization, Presentation, Presented};
use crate::request::half_close::HalfClose;
use crate::request::key::{Key, Scope};
use crate::request::route;
use crate::request::wish::Wish;
use crate::signing::ring::{self, Claim, Refusal, Signed};
use crate::signing::{Payload, Target};
use crate::stream::{StreamBody, limited, stream};
use crate::upstream::gate::Client;

/// The largest body that is read to verify its signature: upstream takes none that is larger.
const MAX_SIGNED_BODY: usize = 12 * 1024 * 1024;

/// A larger body is read only when the memory budget has room for all that it declares.
const SMALL_BODY: usize = 64 * 1024;

/// For a body to come, once there is room for it.
const READING: Duration = Duration::from_secs(60);

/// Who asks, and how.
pub(super) struct Asker {
    /// What was in force when the request came.
    pub(super) live: Arc<Live>,
    /// A credential that counts, and whose it is.
    pub(super) identity: Option<(Credential, Caller)>,
    /// With whom the request shares what is bounded.
    pub(super) client: Client,
    /// Where what is held for the request is charged.
    pub(super) account: Account,
    /// Of the connection that the request came by.
    pub(super) half_close: Arc<HalfClose>,
    /// What becomes of `Authorization` if the request is relayed.
    pub(super) authorization: Authorization,
}

impl Asker {
    /// The caller, if it is known who asks.
    pub(super) fn caller(&self) -> Option<Caller> {
        self.identity.as_ref().map(|(_, caller)| *caller)
    }

    /// What is asked, if it is known who asks.
    pub(super) fn question(&self, key: Key, wish: Wish) -> Option<Question> {
        let (credential, caller) = self.identity.clone()?;
        let grantee = Grantee { caller, scope: key.scope().clone() };
        Some(Question {
            live: Arc::clone(&self.live),
            credential,
            client: self.client,
            account: self.account.clone(),
            half_close: Arc::clone(&self.half_close),
            asked: Arc::new(Asked { grantee, key: Arc::new(key), wish }),
        })
    }

    /// Who asks where.
    pub(super) fn grantee(&self, scope: Scope) -> Option<Grantee> {
        self.caller().map(|caller| Grantee { caller, scope })
    }
}

impl Gateway {
    /// Says who asks. A signature is verified for the request as it was typed, apart from what belongs to its connection.
    pub(super) async fn identify(
        &self,
        live: &Arc<Live>,
        head: &Parts,
        body: StreamBody,
        (service, presentation): (Service, Presentation),
        connection: &Connection,
    ) -> Result<(Asker, StreamBody), Problem> {
        let Presentation { credential, typed, authorization } = presentation;
        let (credential, body) = match credential {
            Ok(Presented::Token(token)) => (Some(Credential::Token(token)), body),
            Ok(Presented::Signature(claim)) => {
                let (signed, body) =
                    self.verify(live, claim, head, &typed, body, (service, &connection.account)).await?;
                (Some(Credential::Signed(Arc::new(signed))), body)
            }
            Err(_) => (None, body),
        };
        let identity = credential.map(|credential| {
            let caller = self.callers.recognise(&credential, &self.fingerprints, &connection.credential);
            (credential, caller)
        });
        let client = connection.client(live, identity.as_ref().map(|(_, caller)| *caller));
        let (account, half_close) = (connection.account.clone(), Arc::clone(&connection.half_close));
        Ok((Asker { live: Arc::clone(live), identity, client, account, half_close, authorization }, body))
    }

    /// Verifies a signature that claims a configured access key.
    async fn verify(
        &self,
        live: &Live,
        claim: Claim,
        head: &Parts,
        typed: &Uri,
        body: StreamBody,
        (service, account): (Service, &Account),
    ) -> Result<(Signed, StreamBody), Problem> {
        let id = claim.key.id().to_owned();
        let refused = |refusal: Refusal| {
            self.observer.metrics.signature(refusal.as_str());
            tracing::info!(access_key = id, reason = refusal.as_str(), "a signature is refused");
            Problem::Signature(refusal)
        };
        let examined = claim.examine(&head.headers, self.clock.date()).map_err(refused)?;
        let (payload, body) = if body.is_end_stream() {
            (Payload::of(b""), body)
        } else if ring::leaves_body_unsigned(&head.headers) {
            (Payload::unsigned(), body)
        } else {
            let bytes = read_signed(live, body, account).await?;
            let payload = ring::payload(&head.headers, &bytes).map_err(refused)?;
            (payload, stream(Full::new(bytes)))
        };
        let project = route::project(&live.catalogue, head.uri.path());
        let signed = examined.admit(&head.method, Target::from(typed), payload, project).map_err(refused)?;
        if self.fetcher.probation.holds(&signed.key, service) {
            return Err(refused(Refusal::Held));
        }
        self.observer.metrics.signature("verified");
        Ok((signed, body))
    }
}

/// Reads a body whole. Its bytes are charged to the memory budget as they come, until they have been sent on.
async fn read_signed(live: &Live, body: StreamBody, account: &Account) -> Result<Bytes, Problem> {
    let too_large = || Problem::BodyTooLarge { limit: MAX_SIGNED_BODY };
    let size = body.size_hint();
    if size.lower() > MAX_SIGNED_BODY as u64 {
        return Err(too_large());
    }
    let most = usize::try_from(size.upper().unwrap_or(u64::MAX)).unwrap_or(usize::MAX).min(MAX_SIGNED_BODY);
    // Nothing is taken before the first byte comes: a declared length alone must not keep others out.
    if most > SMALL_BODY {
        let room = account.room_for(Purpose::Bodies, most);
        timeout(live.answer_timeout, room).await.map_err(|_| Problem::NoMemory)?;
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
