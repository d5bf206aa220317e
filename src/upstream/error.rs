//! What can go wrong between here and upstream, in the words of a metric label and of a person.

use std::error::Error;
use std::io;

use http::StatusCode;
use http::uri::Authority;
use hyper_util::client::legacy;
use thiserror::Error;

use super::causes::{causes, root_cause};
use super::failure::Failure;
use super::fault::{CallStage, Fault};
use super::hint::explained;
use crate::catalogue::Origin;
use crate::stream::BoxError;

/// Why upstream gave no whole answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UpstreamError {
    /// Not reached, or not in time.
    #[error("cannot connect to {0}")]
    Connect(String),
    /// The name was not resolved, or there is no route.
    #[error("cannot connect to {0}")]
    Unreachable(String),
    /// Reached, but its TLS fails.
    #[error("TLS failed with {0}")]
    Tls(String),
    /// Something on this side was missing or wrong: a descriptor, memory, a local port, a permission, a certificate.
    #[error("the gateway could not make the call: {0}")]
    Local(String),
    /// Not even an answer's head arrived in time.
    #[error("no answer begun in time (upstream.first_byte_timeout)")]
    FirstByte,
    /// The whole answer did not arrive in time.
    #[error("no whole answer in time (upstream.answer_timeout)")]
    Timeout,
    /// The time of the request that waits has passed. Upstream may have been asked only a moment ago.
    #[error("no whole answer in time (upstream.answer_timeout)")]
    Deadline,
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
    /// The client sent its body too slowly.
    #[error("the request's body brought less than 1 KiB/s over 10 s")]
    UploadSlow,
    /// The connection or the answer broke off, or was no HTTP.
    #[error("the answer broke off: {0}")]
    Broken(String),
    /// The answer's head is larger than is read.
    #[error("the answer broke off: {0}")]
    HeadTooLarge(String),
    /// Upstream has refused the caller with this status, 401 or 403, and the body that says why did not end in bounds.
    #[error("upstream refused the request with {} and did not end its answer within 2 s and 64 KiB", .0.as_u16())]
    RefusalIncomplete(StatusCode),
    /// The answer, of this status, is too large to hold. It is no refusal.
    #[error("the answer is too large to hold")]
    TooLarge(StatusCode),
    /// The memory budget has no room for the answer, of this status. It is no refusal.
    #[error("the memory budget has no room for the answer (limits.memory)")]
    NoMemory(StatusCode),
}

impl UpstreamError {
    /// Why the call has failed, in one word.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Connect(_) | Self::Unreachable(_) => Failure::Connect,
            Self::Tls(_) => Failure::Tls,
            Self::Local(_) => Failure::Local,
            Self::FirstByte => Failure::FirstByte,
            Self::Timeout => Failure::Timeout,
            Self::Deadline => Failure::Deadline,
            Self::Idle => Failure::Idle,
            Self::Busy => Failure::Busy,
            Self::Upload(_) => Failure::Upload,
            Self::UploadSlow => Failure::UploadSlow,
            Self::Broken(_) | Self::HeadTooLarge(_) => Failure::Broken,
            Self::RefusalIncomplete(_) => Failure::RefusalIncomplete,
            Self::TooLarge(_) => Failure::TooLarge,
            Self::NoMemory(_) => Failure::Memory,
        }
    }

    /// Whose fault it is. Only what is known to have gone wrong outside the gateway is outside.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Connect(_) | Self::Tls(_) | Self::FirstByte | Self::Timeout | Self::Broken(_) => Fault::Outside,
            Self::Unreachable(_) => Fault::Unreachable,
            Self::Local(_)
            | Self::Deadline
            | Self::Idle
            | Self::Busy
            | Self::Upload(_)
            | Self::UploadSlow
            | Self::HeadTooLarge(_)
            | Self::RefusalIncomplete(_)
            | Self::TooLarge(_)
            | Self::NoMemory(_) => Fault::Local,
        }
    }

    /// A request that can't be built.
    pub(super) fn unsendable(error: &dyn std::fmt::Display) -> Self {
        Self::Local(format!("the request cannot be built: {error}"))
    }

    /// Sorts a client's error by what was being done, and whose fault it is.
    pub(super) fn of_client(error: &legacy::Error, origin: &Origin) -> Self {
        let mut ours = causes(error).filter_map(|cause| cause.downcast_ref::<Self>());
        if let Some(limit) = ours.find(|cause| matches!(cause, Self::Idle | Self::UploadSlow)) {
            return limit.clone();
        }
        // What hyper calls the user's is here the body that it was given to send.
        if causes(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_user)) {
            return Self::Upload(root_cause(error).to_string());
        }
        if !error.is_connect() {
            return Self::of_exchange(error);
        }
        Self::of_connecting(error, origin.authority())
    }

    /// Sorts an error met while a connection was made.
    pub(super) fn of_connecting(error: &(dyn Error + 'static), host: &Authority) -> Self {
        let root = explained(error);
        let is_tls = causes(error).any(|cause| cause.is::<rustls::Error>());
        match Fault::of(error, CallStage::Connecting) {
            Fault::Outside if is_tls => Self::Tls(format!("{host}: {root}")),
            Fault::Outside => Self::Connect(format!("{host}: {root}")),
            Fault::Unreachable => Self::Unreachable(format!("{host}: {root}")),
            Fault::Local if is_tls => Self::Local(format!("TLS failed with {host}: {root}")),
            Fault::Local => Self::Local(format!("cannot connect to {host}: {root}")),
        }
    }

    /// Sorts an error met while the body of an answer of this status was read.
    pub(super) fn of_body(error: &BoxError, status: StatusCode) -> Self {
        if error.is::<http_body_util::LengthLimitError>() {
            return Self::TooLarge(status);
        }
        Self::of_exchange(error.as_ref())
    }

    /// Sorts an error of a connection that was there.
    fn of_exchange(error: &(dyn Error + 'static)) -> Self {
        let words = explained(error);
        if causes(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_parse_too_large)) {
            return Self::HeadTooLarge(words);
        }
        match Fault::of(error, CallStage::Exchanging) {
            Fault::Outside => Self::Broken(words),
            Fault::Unreachable => Self::Unreachable(format!("upstream, the route is lost: {words}")),
            Fault::Local => Self::Local(words),
        }
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::mem::{Discriminant, discriminant};

    use bytes::Bytes;
    use http::Request;
    use http_body_util::Empty;
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use rustls::{AlertDescription, CertificateError};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::upstream::fault::Attributed;

    /// Where a variant's fault comes from.
    enum ErrorSource {
        /// `Fault::of` has read it off the error's causes, and the variant was chosen by it.
        Causes,
        /// It is the same whatever the causes are.
        Variant(Fault),
    }

    /// For a new variant, say here where its fault comes from, and add it to `VARIANTS`.
    fn source(error: &UpstreamError) -> ErrorSource {
        match error {
            UpstreamError::Connect(_)
            | UpstreamError::Unreachable(_)
            | UpstreamError::Tls(_)
            | UpstreamError::Local(_)
            | UpstreamError::Broken(_) => ErrorSource::Causes,
            UpstreamError::FirstByte | UpstreamError::Timeout => ErrorSource::Variant(Fault::Outside),
            UpstreamError::Deadline
            | UpstreamError::Idle
            | UpstreamError::Busy
            | UpstreamError::Upload(_)
            | UpstreamError::UploadSlow
            | UpstreamError::HeadTooLarge(_)
            | UpstreamError::RefusalIncomplete(_)
            | UpstreamError::TooLarge(_)
            | UpstreamError::NoMemory(_) => ErrorSource::Variant(Fault::Local),
        }
    }

    /// All variants.
    const VARIANTS: [UpstreamError; 16] = [
        UpstreamError::Connect(String::new()),
        UpstreamError::Unreachable(String::new()),
        UpstreamError::Tls(String::new()),
        UpstreamError::Local(String::new()),
        UpstreamError::FirstByte,
        UpstreamError::Timeout,
        UpstreamError::Deadline,
        UpstreamError::Idle,
        UpstreamError::Busy,
        UpstreamError::Upload(String::new()),
        UpstreamError::UploadSlow,
        UpstreamError::Broken(String::new()),
        UpstreamError::HeadTooLarge(String::new()),
        UpstreamError::RefusalIncomplete(StatusCode::UNAUTHORIZED),
        UpstreamError::TooLarge(StatusCode::OK),
        UpstreamError::NoMemory(StatusCode::OK),
    ];

    /// What hyper makes of an answer that goes like this.
    async fn of_hyper(answer: &[u8]) -> hyper::Error {
        let (stream, mut peer) = tokio::io::duplex(1 << 16);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let answering = async {
            assert!(peer.read(&mut [0; 1024]).await.unwrap() > 0, "hyper has sent the request");
            peer.write_all(answer).await.unwrap();
            peer.shutdown().await.unwrap();
        };
        let asking = sender.send_request(Request::new(Empty::<Bytes>::new()));
        let (answer, _, ()) = tokio::join!(asking, connection, answering);
        answer.unwrap_err()
    }

    /// Errors of every kind that `Fault::of` tells apart.
    async fn errors() -> Vec<Box<dyn Error>> {
        use std::io::ErrorKind as Kind;
        let mut errors: Vec<Box<dyn Error>> = Vec::new();
        for fault in [Fault::Outside, Fault::Unreachable, Fault::Local] {
            errors.push(Box::new(Attributed { words: "x".to_owned(), fault }));
        }
        for kind in [
            Kind::ConnectionRefused,
            Kind::ConnectionReset,
            Kind::BrokenPipe,
            Kind::TimedOut,
            Kind::UnexpectedEof,
            Kind::NetworkUnreachable,
            Kind::HostUnreachable,
            Kind::NetworkDown,
            Kind::NotConnected,
            Kind::InvalidData,
            Kind::InvalidInput,
            Kind::AddrNotAvailable,
            Kind::OutOfMemory,
            Kind::PermissionDenied,
            Kind::Other,
        ] {
            errors.push(Box::new(io::Error::new(kind, "x")));
        }
        for errno in 1..=133 {
            errors.push(Box::new(io::Error::from_raw_os_error(errno)));
        }
        for error in [
            rustls::Error::NoCertificatesPresented,
            rustls::Error::DecryptError,
            rustls::Error::FailedToGetRandomBytes,
            rustls::Error::AlertReceived(AlertDescription::InternalError),
            rustls::Error::AlertReceived(AlertDescription::UnknownCA),
            rustls::Error::InvalidCertificate(CertificateError::Expired),
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer),
        ] {
            errors.push(Box::new(io::Error::other(error.clone())));
            errors.push(Box::new(error));
        }
        let large = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(200));
        for answer in [large.as_bytes(), b"what?\r\n\r\n", b"HTTP/1.1 200 O", b""] {
            errors.push(Box::new(of_hyper(answer).await));
        }
        errors.push(Box::new(std::fmt::Error));
        errors
    }

    #[tokio::test]
    async fn a_failure_is_sorted_where_its_causes_say_whose_fault_it_is() {
        let host = Authority::from_static("upstream.test");
        let mut met: HashSet<Discriminant<UpstreamError>> = HashSet::new();
        for error in &errors().await {
            let error = &**error;
            for (stage, sorted) in [
                (CallStage::Connecting, UpstreamError::of_connecting(error, &host)),
                (CallStage::Exchanging, UpstreamError::of_exchange(error)),
            ] {
                assert_eq!(sorted.fault(), Fault::of(error, stage), "{error:?}, {stage:?}: {sorted:?}");
                met.insert(discriminant(&sorted));
            }
        }
        for variant in VARIANTS {
            match source(&variant) {
                ErrorSource::Causes => {
                    assert!(met.contains(&discriminant(&variant)), "no error is sorted as {variant:?}")
                }
                ErrorSource::Variant(fault) => assert_eq!(variant.fault(), fault, "{variant:?}"),
            }
        }
        assert_eq!(VARIANTS.iter().map(discriminant).collect::<HashSet<_>>().len(), VARIANTS.len());
        let head_too_large = discriminant(&UpstreamError::HeadTooLarge(String::new()));
        assert!(met.contains(&head_too_large), "a head that is too large was sorted otherwise");
    }
}
