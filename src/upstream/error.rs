//! What can go wrong between here and upstream, in the words of a metric label and of a person.

use std::error::Error;
use std::io;

use http::StatusCode;
use hyper_util::client::legacy;
use thiserror::Error;

use crate::catalogue::Origin;
use crate::stream::BoxError;

/// Why upstream gave no whole answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UpstreamError {
    /// Not resolved, not reached, or not in time.
    #[error("cannot connect to {0}")]
    Connect(String),
    /// Reached, but it is not whom it should be.
    #[error("TLS failed with {0}")]
    Tls(String),
    /// Not even an answer's head arrived in time.
    #[error("no answer begun in time (upstream.first_byte_timeout)")]
    FirstByte,
    /// The whole answer did not arrive in time.
    #[error("no whole answer in time (upstream.answer_timeout)")]
    Timeout,
    /// Nothing moved in either direction for too long.
    #[error("nothing moved for too long (upstream.idle_timeout)")]
    Idle,
    /// Too much is asked of upstream already.
    #[error(
        "too many calls to upstream are under way, and this one's turn has not come in time (upstream.max_calls, \
         upstream.max_calls_per_caller, upstream.answer_timeout)"
    )]
    Busy,
    /// The client's body broke off, or was no HTTP.
    #[error("the request's body broke off: {0}")]
    Upload(String),
    /// The connection or the answer broke off, or was no HTTP.
    #[error("the answer broke off: {0}")]
    Broken(String),
    /// The answer, of this status, is too large to hold.
    #[error("the answer is too large to hold")]
    TooLarge(StatusCode),
}

impl UpstreamError {
    /// The name used alike as metric label, log field and `Cache-Status` detail.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::FirstByte => "first-byte",
            Self::Timeout => "timeout",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Upload(_) => "upload",
            Self::Broken(_) => "broken",
            Self::TooLarge(_) => "too-large",
        }
    }

    /// Sorts a client's error by what was being done.
    pub(super) fn of_client(error: &legacy::Error, origin: &Origin) -> Self {
        if causes(error).any(|cause| matches!(cause.downcast_ref(), Some(Self::Idle))) {
            return Self::Idle;
        }
        let root = root_cause(error);
        let host = origin.authority();
        // What hyper calls the user's is here the body that it was given to send.
        if causes(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_user)) {
            return Self::Upload(root.to_string());
        }
        if !error.is_connect() {
            return Self::Broken(root.to_string());
        }
        if is_tls(error) { Self::Tls(format!("{host}: {root}")) } else { Self::Connect(format!("{host}: {root}")) }
    }

    /// Sorts an error met while the body of an answer of this status was read.
    pub(super) fn of_body(error: &BoxError, status: StatusCode) -> Self {
        if error.is::<http_body_util::LengthLimitError>() {
            return Self::TooLarge(status);
        }
        Self::Broken(root_cause(error.as_ref()).to_string())
    }
}

/// Whether a connection that was there broke while an answer's head was waited for: closed, reset, or
/// found dead. An answer that is wrong is none of this, nor is one that doesn't come.
pub(super) fn is_broken(error: &legacy::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    let broke = |kind| matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof);
    !error.is_connect()
        && causes(error).any(|cause| {
            let by_hyper = cause.downcast_ref::<hyper::Error>();
            by_hyper.is_some_and(|error| error.is_incomplete_message() || error.is_canceled() || error.is_closed())
                || cause.downcast_ref::<io::Error>().is_some_and(|error| broke(error.kind()))
        })
}

/// Whether nothing of the request was written: hyper says "canceled" only of a request that it could
/// give back whole (`TrySendError::message`).
pub(super) fn is_unsent(error: &legacy::Error) -> bool {
    causes(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_canceled))
}

/// An `io::Error` reports its inner error's source as its own, so the chain is followed into it.
fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

pub(super) fn root_cause<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    causes(error).last().unwrap_or(error)
}

fn is_tls(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<rustls::Error>())
}
