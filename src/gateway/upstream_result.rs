//! What the result of a call to upstream means, before it changes anything.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};

use crate::cache::entry::Entry;
use crate::request::precondition::Validator;
use crate::upstream::UpstreamError;
use crate::upstream::key_breaker::SignatureOutcome;

/// Whether upstream accepted the signature of the request.
pub(super) fn signature_outcome(result: &Result<Response<Bytes>, UpstreamError>) -> SignatureOutcome {
    match result {
        Ok(response) => SignatureOutcome::of(response.status(), response.body()),
        Err(
            UpstreamError::TooLarge(status)
            | UpstreamError::NoMemory(status)
            | UpstreamError::RefusalIncomplete(status),
        ) => SignatureOutcome::of(*status, b""),
        Err(_) => SignatureOutcome::Unknown,
    }
}

/// Replaces a 304 by the entry that it revalidates. Returns the response and upstream's status. A 304 that does not
/// match the validator is an error: some clients would take it for an empty list.
pub(super) fn resolve_304(
    response: Response<Bytes>,
    revalidated: Option<&(Arc<Entry>, Validator)>,
) -> Result<(Response<Bytes>, StatusCode), UpstreamError> {
    let upstream_status = response.status();
    match revalidated {
        _ if upstream_status != StatusCode::NOT_MODIFIED => Ok((response, upstream_status)),
        Some((entry, validator)) if validator.is_meant_by(response.headers()) => {
            Ok((entry.revalidated(&response), upstream_status))
        }
        other => {
            if let Some((entry, _)) = other {
                entry.disable_validation();
            }
            Err(UpstreamError::Broken("the 304 does not match the request's validator".to_owned()))
        }
    }
}
