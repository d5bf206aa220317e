//! Determines on which side a call failed, from the causes of its error: outside the gateway or inside.
//!
//! Only the errors that are listed here count as outside. All other errors count as local, because a failure that the
//! gateway or one of its clients can cause must not extend a lapsed grant (invariant 9).

use std::error::Error;
use std::io::{self, ErrorKind};

use rustls::{AlertDescription, CertificateError};
use thiserror::Error;

use super::causes::causes;

/// The side on which a call to upstream has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Outside the gateway: the peer refused or reset the connection or did not answer, its TLS failed, its response
    /// was incomplete or malformed, or the proxy did not answer. Such a failure extends a lapsed grant.
    Outside,
    /// The host name was not resolved, or there was no route. A gateway without free resources can fail in the same
    /// way. So this counts as outside only if no call to that service succeeded within the last 10 s.
    Unreachable,
    /// In the gateway, its host or its configuration: no file descriptor, memory, local port or permission, a limit or
    /// deadline of the gateway, a wrong CA file, wrong credentials for the proxy. Such a failure extends no grant.
    Local,
}

/// An error whose fault is known where it occurs and cannot be determined from its causes.
#[derive(Debug, Error)]
#[error("{message}")]
pub(super) struct Attributed {
    pub(super) message: String,
    pub(super) fault: Fault,
}

/// The stage at which a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallStage {
    /// Resolving the host name or opening the connection, including the tunnel and TLS.
    Connecting,
    /// Sending the request or reading the response.
    Exchanging,
}

impl Fault {
    pub(super) fn of(error: &(dyn Error + 'static), stage: CallStage) -> Self {
        for cause in causes(error) {
            if let Some(attributed) = cause.downcast_ref::<Attributed>() {
                return attributed.fault;
            }
            if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
                return of_tls(tls);
            }
        }
        // The innermost I/O error is the cause. The others wrap it.
        if let Some(error) = causes(error).filter_map(|cause| cause.downcast_ref()).last() {
            return of_io(error, stage);
        }
        let of_peer = |error: &hyper::Error| {
            // A head that is too large exceeds a limit of the gateway.
            (error.is_parse() && !error.is_parse_too_large())
                || error.is_incomplete_message()
                // hyper reports these if the connection was closed before the request was written.
                || error.is_canceled()
                || error.is_closed()
        };
        let is_outside = causes(error).any(|cause| cause.downcast_ref().is_some_and(of_peer));
        if is_outside { Self::Outside } else { Self::Local }
    }

    /// The fault of a failed name resolution. `getaddrinfo` sets an errno only if a system call failed.
    pub(super) fn of_resolver(error: &io::Error) -> Self {
        if error.raw_os_error().is_some() { of_io(error, CallStage::Connecting) } else { Self::Unreachable }
    }
}

fn of_io(error: &io::Error, stage: CallStage) -> Fault {
    let has_errno = error.raw_os_error().is_some();
    match error.kind() {
        ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::BrokenPipe
        | ErrorKind::TimedOut
        | ErrorKind::UnexpectedEof => Fault::Outside,
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::NetworkDown => Fault::Unreachable,
        // hyper-util reports this if a name resolves to no address.
        ErrorKind::NotConnected if !has_errno && stage == CallStage::Connecting => Fault::Unreachable,
        // hyper reports these for malformed chunks.
        ErrorKind::InvalidData | ErrorKind::InvalidInput if !has_errno && stage == CallStage::Exchanging => {
            Fault::Outside
        }
        _ => Fault::Local,
    }
}

fn of_tls(error: &rustls::Error) -> Fault {
    match error {
        rustls::Error::InappropriateMessage { .. }
        | rustls::Error::InappropriateHandshakeMessage { .. }
        | rustls::Error::InvalidMessage(_)
        | rustls::Error::NoCertificatesPresented
        | rustls::Error::DecryptError
        | rustls::Error::PeerIncompatible(_)
        | rustls::Error::PeerMisbehaved(_)
        | rustls::Error::PeerSentOversizedRecord => Fault::Outside,
        // The other alerts concern what the gateway sent: its certificate, versions or messages.
        rustls::Error::AlertReceived(
            AlertDescription::CloseNotify
            | AlertDescription::HandshakeFailure
            | AlertDescription::InternalError
            | AlertDescription::UserCanceled
            | AlertDescription::UnrecognisedName,
        ) => Fault::Outside,
        // An unknown issuer, a wrong name or a bad signature may also mean that the gateway's CA file or URL is wrong.
        // A certificate that is not valid yet may also mean that the gateway's clock is slow.
        rustls::Error::InvalidCertificate(
            CertificateError::BadEncoding | CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => Fault::Outside,
        _ => Fault::Local,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Error numbers of Linux.
    const ERRNOS: [(i32, Fault); 16] = [
        (111, Fault::Outside),     // ECONNREFUSED
        (104, Fault::Outside),     // ECONNRESET
        (110, Fault::Outside),     // ETIMEDOUT
        (32, Fault::Outside),      // EPIPE
        (101, Fault::Unreachable), // ENETUNREACH
        (113, Fault::Unreachable), // EHOSTUNREACH
        (100, Fault::Unreachable), // ENETDOWN
        (24, Fault::Local),        // EMFILE
        (23, Fault::Local),        // ENFILE
        (12, Fault::Local),        // ENOMEM
        (105, Fault::Local),       // ENOBUFS
        (99, Fault::Local),        // EADDRNOTAVAIL
        (13, Fault::Local),        // EACCES
        (1, Fault::Local),         // EPERM
        (22, Fault::Local),        // EINVAL
        (103, Fault::Local),       // ECONNABORTED: the kernel aborted the connection, for example after `ss -K`
    ];

    #[test]
    #[cfg(target_os = "linux")]
    fn a_system_error_is_outside_only_if_it_concerns_the_peer_or_the_network() {
        for (errno, fault) in ERRNOS {
            for stage in [CallStage::Connecting, CallStage::Exchanging] {
                let error = io::Error::other(io::Error::from_raw_os_error(errno));
                assert_eq!(Fault::of(&error, stage), fault, "{error:?}");
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_name_that_is_not_resolved_is_unreachable_unless_a_system_call_failed() {
        let unresolved = io::Error::other("failed to lookup address information: Temporary failure in name resolution");
        assert_eq!(Fault::of_resolver(&unresolved), Fault::Unreachable);
        for (errno, fault) in ERRNOS {
            assert_eq!(Fault::of_resolver(&io::Error::from_raw_os_error(errno)), fault);
        }
    }

    #[test]
    fn the_fault_of_an_io_error_without_errno_depends_on_the_stage() {
        for (kind, connecting, exchanging) in [
            (ErrorKind::UnexpectedEof, Fault::Outside, Fault::Outside),
            (ErrorKind::NotConnected, Fault::Unreachable, Fault::Local),
            (ErrorKind::InvalidInput, Fault::Local, Fault::Outside),
            (ErrorKind::InvalidData, Fault::Local, Fault::Outside),
            (ErrorKind::Other, Fault::Local, Fault::Local),
        ] {
            let of = |stage| Fault::of(&io::Error::new(kind, "x"), stage);
            assert_eq!((of(CallStage::Connecting), of(CallStage::Exchanging)), (connecting, exchanging), "{kind}");
        }
    }

    #[test]
    fn a_tls_error_is_outside_only_if_the_peer_must_be_wrong() {
        for (error, fault) in [
            (CertificateError::Expired, Fault::Outside),
            (CertificateError::BadEncoding, Fault::Outside),
            (CertificateError::NotValidYet, Fault::Local),
            (CertificateError::UnknownIssuer, Fault::Local),
            (CertificateError::BadSignature, Fault::Local),
            (CertificateError::NotValidForName, Fault::Local),
        ] {
            assert_eq!(of_tls(&rustls::Error::InvalidCertificate(error.clone())), fault, "{error:?}");
        }
        assert_eq!(of_tls(&rustls::Error::FailedToGetRandomBytes), Fault::Local);
        assert_eq!(of_tls(&rustls::Error::General("x".to_owned())), Fault::Local);
        assert_eq!(of_tls(&rustls::Error::AlertReceived(AlertDescription::InternalError)), Fault::Outside);
        assert_eq!(of_tls(&rustls::Error::AlertReceived(AlertDescription::UnknownCA)), Fault::Local);
    }

    #[test]
    fn an_unknown_error_is_local() {
        #[derive(Debug, Error)]
        #[error("x")]
        struct Unknown;
        assert_eq!(Fault::of(&Unknown, CallStage::Exchanging), Fault::Local);
    }
}
