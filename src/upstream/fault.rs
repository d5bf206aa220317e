//! Whose fault a failed call is: on which side of the gateway it has failed, as far as the error's causes tell.
//!
//! Only what is listed here as being outside is outside. Whatever is not understood is local, because a failure that
//! the gateway or one of its clients can bring about must not extend a lapsed grant (invariant 9).

use std::error::Error;
use std::io::{self, ErrorKind};

use rustls::{AlertDescription, CertificateError};
use thiserror::Error;

use super::causes::causes;

/// The side on which a call to upstream has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Outside the gateway: the peer refused, reset or did not answer, its TLS failed, its answer was incomplete or no
    /// HTTP, or the egress proxy did not answer. Such a failure extends a lapsed grant.
    Outside,
    /// The name was not resolved, or there was no route. An exhausted gateway can look the same, so this counts as
    /// outside only if no call to that service has succeeded within the last 10 s.
    Unreachable,
    /// Within the gateway, its host or its configuration: no descriptor, no memory, no local port, no permission, a
    /// limit or deadline of ours, our certificate or CA file, our credentials for the proxy. Extends nothing.
    Local,
}

/// An error whose fault is known where it arises, and can't be read off its cause.
#[derive(Debug, Error)]
#[error("{words}")]
pub(super) struct Attributed {
    pub(super) words: String,
    pub(super) fault: Fault,
}

/// What was being done when a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallStage {
    /// Resolving a name, or opening a connection, its tunnel and TLS included.
    Connecting,
    /// Sending a request or reading its answer.
    Exchanging,
}

impl Fault {
    /// The fault of an error that ended a call at this stage.
    pub(super) fn of(error: &(dyn Error + 'static), stage: CallStage) -> Self {
        for cause in causes(error) {
            if let Some(attributed) = cause.downcast_ref::<Attributed>() {
                return attributed.fault;
            }
            if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
                return of_tls(tls);
            }
        }
        // The innermost says what happened, the others are wrapped around it.
        if let Some(error) = causes(error).filter_map(|cause| cause.downcast_ref()).last() {
            return of_io(error, stage);
        }
        let of_peer = |error: &hyper::Error| {
            // Too large is a limit of ours.
            (error.is_parse() && !error.is_parse_too_large())
                || error.is_incomplete_message()
                // hyper's words for a connection that was closed before the request was written.
                || error.is_canceled()
                || error.is_closed()
        };
        let is_outside = causes(error).any(|cause| cause.downcast_ref().is_some_and(of_peer));
        if is_outside { Self::Outside } else { Self::Local }
    }

    /// The fault where a name was not resolved. `getaddrinfo` says in words of its own why, except for a failed
    /// system call.
    pub(super) fn of_resolver(error: &io::Error) -> Self {
        if error.raw_os_error().is_some() { of_io(error, CallStage::Connecting) } else { Self::Unreachable }
    }
}

fn of_io(error: &io::Error, stage: CallStage) -> Fault {
    let is_systems = error.raw_os_error().is_some();
    match error.kind() {
        ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::BrokenPipe
        | ErrorKind::TimedOut
        | ErrorKind::UnexpectedEof => Fault::Outside,
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::NetworkDown => Fault::Unreachable,
        // hyper-util's word for a name that resolves to no address.
        ErrorKind::NotConnected if !is_systems && stage == CallStage::Connecting => Fault::Unreachable,
        // hyper's words for chunks that are none.
        ErrorKind::InvalidData | ErrorKind::InvalidInput if !is_systems && stage == CallStage::Exchanging => {
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
        // The other alerts are about what we have sent: our certificate, our versions, our messages.
        rustls::Error::AlertReceived(
            AlertDescription::CloseNotify
            | AlertDescription::HandshakeFailure
            | AlertDescription::InternalError
            | AlertDescription::UserCanceled
            | AlertDescription::UnrecognisedName,
        ) => Fault::Outside,
        // An unknown issuer, a wrong name or a bad signature can't be told from a CA file or URL that is wrong here, nor
        // can a certificate that is not valid yet be told from a slow clock.
        rustls::Error::InvalidCertificate(
            CertificateError::BadEncoding | CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => Fault::Outside,
        _ => Fault::Local,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux's numbers.
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
        (103, Fault::Local),       // ECONNABORTED: the kernel gave the connection up, as it does with `ss -K`
    ];

    #[test]
    #[cfg(target_os = "linux")]
    fn what_the_system_says_is_outside_only_if_it_is_about_the_peer_or_the_way() {
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
        let said = io::Error::other("failed to lookup address information: Temporary failure in name resolution");
        assert_eq!(Fault::of_resolver(&said), Fault::Unreachable);
        for (errno, fault) in ERRNOS {
            assert_eq!(Fault::of_resolver(&io::Error::from_raw_os_error(errno)), fault);
        }
    }

    #[test]
    fn what_hyper_says_in_io_errors_of_its_own_depends_on_the_stage() {
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
    fn tls_is_outside_only_where_the_peer_is_known_to_be_wrong() {
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
    fn what_nothing_is_known_of_is_local() {
        #[derive(Debug, Error)]
        #[error("x")]
        struct Unknown;
        assert_eq!(Fault::of(&Unknown, CallStage::Exchanging), Fault::Local);
    }
}
