//! Why a call to upstream failed, with a message for clients and operators. A message never contains a credential or
//! raw bytes of a client.

use std::error::Error;
use std::io;

use http::StatusCode;
use http::uri::Authority;
use hyper_util::client::legacy;
use thiserror::Error;

use super::causes::{causes, root_cause};
use super::failure::Failure;
use super::fault::{CallStage, Fault};
use super::hint::describe_error;
use crate::catalogue::{Origin, QuotaPolicy};
use crate::stream::BoxError;

/// Why a call returned no complete response.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UpstreamError {
    #[error("cannot connect to {0}")]
    Connect(String),
    /// The host name was not resolved, or there is no route.
    #[error("cannot connect to {0}")]
    Unreachable(String),
    #[error("TLS handshake failed with {0}")]
    Tls(String),
    /// The gateway or its host prevented the call: no file descriptor, no memory, no local port, no permission, a wrong
    /// certificate.
    #[error("the gateway could not make the call: {0}")]
    Local(String),
    #[error("no response header in time (upstream.first_byte_timeout)")]
    FirstByte,
    #[error("no complete response in time (upstream.answer_timeout)")]
    Timeout,
    /// The deadline of the waiting request has passed. The call itself may have been sent only a moment ago.
    #[error("no complete response in time (upstream.answer_timeout)")]
    Deadline,
    #[error("no data in either direction for too long (upstream.idle_timeout)")]
    Idle,
    #[error(
        "too many calls to upstream: this one got no call slot in time (upstream.max_calls, \
         upstream.max_calls_per_caller, upstream.answer_timeout)"
    )]
    Busy,
    /// Upstream would refuse the call, because this quota is used up.
    #[error(
        "The throttling threshold has been reached: policy {} over ratelimit: the gateway did not send the call, because \
         it would have had to wait too long (upstream.answer_timeout). Retry after {} s", .policy.into_str(), .retry_after
    )]
    Throttled {
        policy: QuotaPolicy,
        /// In seconds.
        retry_after: u64,
    },
    #[error("the request body is incomplete or malformed: {0}")]
    Upload(String),
    #[error("the request body arrived at less than 1 KiB/s over 10 s")]
    UploadSlow,
    /// The connection broke, or the response is incomplete or malformed.
    #[error("the response is incomplete or malformed: {0}")]
    Broken(String),
    #[error("the response header is too large: {0}")]
    HeadTooLarge(String),
    /// Upstream refused the caller with this status, 401 or 403, and the body did not end within the limits.
    #[error("upstream refused the request with {}, and the body did not end within 2 s and 64 KiB", .0.as_u16())]
    RefusalIncomplete(StatusCode),
    /// The response, which has this status, is too large. The status is neither 401 nor 403.
    #[error("the response is too large (cache.max_body_size)")]
    TooLarge(StatusCode),
    /// The memory budget has no room for the response, which has this status. The status is neither 401 nor 403.
    #[error("the memory budget has no room for the response (limits.memory)")]
    NoMemory(StatusCode),
}

impl UpstreamError {
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
            Self::Throttled { .. } => Failure::Throttled,
            Self::Upload(_) => Failure::Upload,
            Self::UploadSlow => Failure::UploadSlow,
            Self::Broken(_) | Self::HeadTooLarge(_) => Failure::Broken,
            Self::RefusalIncomplete(_) => Failure::RefusalIncomplete,
            Self::TooLarge(_) => Failure::TooLarge,
            Self::NoMemory(_) => Failure::Memory,
        }
    }

    /// On which side the call failed. It is `Outside` only if the failure is known to be outside the gateway.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Connect(_) | Self::Tls(_) | Self::FirstByte | Self::Timeout | Self::Broken(_) => Fault::Outside,
            Self::Unreachable(_) => Fault::Unreachable,
            Self::Local(_)
            | Self::Deadline
            | Self::Idle
            | Self::Busy
            | Self::Throttled { .. }
            | Self::Upload(_)
            | Self::UploadSlow
            | Self::HeadTooLarge(_)
            | Self::RefusalIncomplete(_)
            | Self::TooLarge(_)
            | Self::NoMemory(_) => Fault::Local,
        }
    }

    /// For a request that cannot be built.
    pub(super) fn unsendable(error: &dyn std::fmt::Display) -> Self {
        Self::Local(format!("the request cannot be built: {error}"))
    }

    /// Converts an error of the HTTP client, by the stage of the call and the side on which it failed.
    pub(super) fn of_client(error: &legacy::Error, origin: &Origin) -> Self {
        let mut own_errors = causes(error).filter_map(|cause| cause.downcast_ref::<Self>());
        if let Some(limit) = own_errors.find(|cause| matches!(cause, Self::Idle | Self::UploadSlow)) {
            return limit.clone();
        }
        // hyper reports an error of the request body as a user error.
        if causes(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_user)) {
            return Self::Upload(root_cause(error).to_string());
        }
        if !error.is_connect() {
            return Self::of_exchange(error);
        }
        Self::of_connecting(error, origin.authority())
    }

    /// Converts an error that occurred while a connection was being opened.
    pub(super) fn of_connecting(error: &(dyn Error + 'static), host: &Authority) -> Self {
        let root = describe_error(error);
        let is_tls = causes(error).any(|cause| cause.is::<rustls::Error>());
        match Fault::of(error, CallStage::Connecting) {
            Fault::Outside if is_tls => Self::Tls(format!("{host}: {root}")),
            Fault::Outside => Self::Connect(format!("{host}: {root}")),
            Fault::Unreachable => Self::Unreachable(format!("{host}: {root}")),
            Fault::Local if is_tls => Self::Local(format!("TLS handshake failed with {host}: {root}")),
            Fault::Local => Self::Local(format!("cannot connect to {host}: {root}")),
        }
    }

    /// Converts an error that occurred while the body of a response with this status was being read.
    pub(super) fn of_body(error: &BoxError, status: StatusCode) -> Self {
        if error.is::<http_body_util::LengthLimitError>() {
            return Self::TooLarge(status);
        }
        Self::of_exchange(error.as_ref())
    }

    /// Converts an error that occurred on an open connection.
    fn of_exchange(error: &(dyn Error + 'static)) -> Self {
        let message = describe_error(error);
        if causes(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_parse_too_large)) {
            return Self::HeadTooLarge(message);
        }
        match Fault::of(error, CallStage::Exchanging) {
            Fault::Outside => Self::Broken(message),
            Fault::Unreachable => {
                Self::Unreachable(format!("upstream, because the network became unreachable: {message}"))
            }
            Fault::Local => Self::Local(message),
        }
    }
}

/// Whether an open connection broke before a response head was complete: it was closed, reset or already dead. A
/// malformed response and a timeout do not count.
pub(super) fn is_broken(error: &legacy::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    let is_break =
        |kind| matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof);
    !error.is_connect()
        && causes(error).any(|cause| {
            let by_hyper = cause.downcast_ref::<hyper::Error>();
            by_hyper.is_some_and(|error| error.is_incomplete_message() || error.is_canceled() || error.is_closed())
                || cause.downcast_ref::<io::Error>().is_some_and(|error| is_break(error.kind()))
        })
}

/// Whether no byte of the request was written. hyper reports "canceled" only for a request that it can return
/// completely (`TrySendError::message`).
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

    /// What determines the fault of a variant.
    enum ErrorSource {
        /// `Fault::of` determines it from the causes of the error, and it determines the variant.
        Causes,
        /// It is the same for all causes.
        Variant(Fault),
    }

    /// Add a new variant here and to `VARIANTS`.
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
            | UpstreamError::Throttled { .. }
            | UpstreamError::Upload(_)
            | UpstreamError::UploadSlow
            | UpstreamError::HeadTooLarge(_)
            | UpstreamError::RefusalIncomplete(_)
            | UpstreamError::TooLarge(_)
            | UpstreamError::NoMemory(_) => ErrorSource::Variant(Fault::Local),
        }
    }

    const VARIANTS: [UpstreamError; 17] = [
        UpstreamError::Connect(String::new()),
        UpstreamError::Unreachable(String::new()),
        UpstreamError::Tls(String::new()),
        UpstreamError::Local(String::new()),
        UpstreamError::FirstByte,
        UpstreamError::Timeout,
        UpstreamError::Deadline,
        UpstreamError::Idle,
        UpstreamError::Busy,
        UpstreamError::Throttled { policy: QuotaPolicy::Ip, retry_after: 1 },
        UpstreamError::Upload(String::new()),
        UpstreamError::UploadSlow,
        UpstreamError::Broken(String::new()),
        UpstreamError::HeadTooLarge(String::new()),
        UpstreamError::RefusalIncomplete(StatusCode::UNAUTHORIZED),
        UpstreamError::TooLarge(StatusCode::OK),
        UpstreamError::NoMemory(StatusCode::OK),
    ];

    /// The error that hyper returns for these bytes as a response.
    async fn hyper_error(response: &[u8]) -> hyper::Error {
        let (stream, mut peer) = tokio::io::duplex(1 << 16);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let serving = async {
            assert!(peer.read(&mut [0; 1024]).await.unwrap() > 0, "hyper has sent the request");
            peer.write_all(response).await.unwrap();
            peer.shutdown().await.unwrap();
        };
        let sending = sender.send_request(Request::new(Empty::<Bytes>::new()));
        let (response, _, ()) = tokio::join!(sending, connection, serving);
        response.unwrap_err()
    }

    /// Errors of every kind that `Fault::of` distinguishes.
    async fn errors() -> Vec<Box<dyn Error>> {
        use std::io::ErrorKind as Kind;
        let mut errors: Vec<Box<dyn Error>> = Vec::new();
        for fault in [Fault::Outside, Fault::Unreachable, Fault::Local] {
            errors.push(Box::new(Attributed { message: "x".to_owned(), fault }));
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
        for response in [large.as_bytes(), b"what?\r\n\r\n", b"HTTP/1.1 200 O", b""] {
            errors.push(Box::new(hyper_error(response).await));
        }
        errors.push(Box::new(std::fmt::Error));
        errors
    }

    #[tokio::test]
    async fn an_error_becomes_a_variant_with_the_fault_that_its_causes_have() {
        let host = Authority::from_static("upstream.test");
        let mut seen: HashSet<Discriminant<UpstreamError>> = HashSet::new();
        for error in &errors().await {
            let error = &**error;
            for (stage, converted) in [
                (CallStage::Connecting, UpstreamError::of_connecting(error, &host)),
                (CallStage::Exchanging, UpstreamError::of_exchange(error)),
            ] {
                assert_eq!(converted.fault(), Fault::of(error, stage), "{error:?}, {stage:?}: {converted:?}");
                seen.insert(discriminant(&converted));
            }
        }
        for variant in VARIANTS {
            match source(&variant) {
                ErrorSource::Causes => {
                    assert!(seen.contains(&discriminant(&variant)), "no error becomes {variant:?}")
                }
                ErrorSource::Variant(fault) => assert_eq!(variant.fault(), fault, "{variant:?}"),
            }
        }
        assert_eq!(VARIANTS.iter().map(discriminant).collect::<HashSet<_>>().len(), VARIANTS.len());
        let head_too_large = discriminant(&UpstreamError::HeadTooLarge(String::new()));
        assert!(seen.contains(&head_too_large), "no error becomes HeadTooLarge");
    }
}
