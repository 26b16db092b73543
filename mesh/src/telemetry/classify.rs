//! Which [`Reason`] the errors of the other modules are.
//!
//! In: an error. Out: its reason. No `match` has a `_`, so that a new error asks for a reason.

use std::io;

use http::StatusCode;

use super::Reason;
use crate::{
    hbone::{Abort, AcceptError, OpenError, StreamError, TunnelError},
    identity::{HandshakeError, PeerError, Unavailable},
    policy::Denied,
};

impl From<&Denied> for Reason {
    fn from(error: &Denied) -> Self {
        match error {
            Denied::ByDeny { .. } => Self::PolicyDeny,
            Denied::Invalid { .. } => Self::PolicyInvalid,
            Denied::Missing { .. } => Self::PolicyMissing,
            Denied::NoAllow { .. } => Self::PolicyNoAllow,
        }
    }
}

impl From<&Unavailable> for Reason {
    fn from(error: &Unavailable) -> Self {
        match error {
            Unavailable::Failed { .. }
            | Unavailable::TimedOut { .. }
            | Unavailable::NotInFiles { .. }
            | Unavailable::Forgotten { .. } => Self::CertificateUnavailable,
        }
    }
}

impl From<&PeerError> for Reason {
    fn from(error: &PeerError) -> Self {
        match error {
            PeerError::NoCertificate => Self::NoPeerCertificate,
            PeerError::Malformed { .. } | PeerError::NoSpiffe | PeerError::NotAWorkload { .. } => {
                Self::CertificateInvalid
            }
            PeerError::Expired { .. } | PeerError::NotYetValid { .. } => Self::CertificateExpired,
            PeerError::TrustDomain { .. } => Self::TrustDomainUntrusted,
            PeerError::WrongPeer { .. } => Self::WrongPeer,
        }
    }
}

impl From<&HandshakeError> for Reason {
    fn from(error: &HandshakeError) -> Self {
        match error {
            HandshakeError::UnknownCa => Self::CertificateUntrusted,
            HandshakeError::Expired | HandshakeError::NotYetValid => Self::CertificateExpired,
            HandshakeError::Revoked => Self::CertificateRevoked,
            HandshakeError::NoCertificate => Self::NoPeerCertificate,
            HandshakeError::WrongUsage | HandshakeError::BadCertificate { .. } => {
                Self::CertificateInvalid
            }
            HandshakeError::Peer(error) => error.into(),
            HandshakeError::Refused { .. } => Self::TlsRefused,
            HandshakeError::Incompatible { .. }
            | HandshakeError::Protocol { .. }
            | HandshakeError::Closed
            | HandshakeError::Connection { .. } => Self::TlsFailed,
        }
    }
}

impl From<&OpenError> for Reason {
    fn from(error: &OpenError) -> Self {
        match error {
            OpenError::Closed => Self::PodRemoved,
            OpenError::Dial { source, .. } => of_tunnel_dial(source),
            OpenError::Handshake { source, .. } => source.as_ref().into(),
            OpenError::HandshakeTimeout { .. } => Self::TlsTimeout,
            OpenError::NotHttp2 { .. } => Self::Http2Failed,
            OpenError::WrongPeer { .. } => Self::WrongPeer,
            OpenError::Unidentified { source, .. } => source.into(),
            OpenError::Timeout { .. } => Self::TunnelTimeout,
            OpenError::Refused { status, .. } => of_answer(*status),
            OpenError::Reset { .. } => Self::TunnelReset,
            OpenError::Goaway { .. } | OpenError::Lost { .. } => Self::TunnelLost,
            OpenError::Misbehaved { .. } => Self::PeerMisbehaved,
        }
    }
}

impl From<&AcceptError> for Reason {
    fn from(error: &AcceptError) -> Self {
        match error {
            AcceptError::Connection { .. } => Self::ConnectionFailed,
            AcceptError::Timeout { .. } => Self::TlsTimeout,
            AcceptError::Handshake { source, .. } => source.into(),
            AcceptError::Unidentified { source, .. } => source.into(),
            AcceptError::NotHttp2 { .. } | AcceptError::Http2 { .. } => Self::Http2Failed,
        }
    }
}

impl From<&TunnelError> for Reason {
    fn from(error: &TunnelError) -> Self {
        match error {
            TunnelError::Stalled { .. } => Self::PeerStalled,
            TunnelError::Nuisance { .. } => Self::PeerMisbehaved,
            TunnelError::Ended { source, .. } => source.into(),
        }
    }
}

impl From<&StreamError> for Reason {
    fn from(error: &StreamError) -> Self {
        match error {
            StreamError::Reset { .. } => Self::TunnelReset,
            StreamError::Goaway { .. } | StreamError::Lost { .. } => Self::TunnelLost,
            StreamError::Misbehaved { .. } => Self::PeerMisbehaved,
        }
    }
}

impl From<Abort> for Reason {
    fn from(abort: Abort) -> Self {
        match abort {
            Abort::PolicyChanged => Self::PolicyChanged,
            Abort::CertificateRevoked => Self::CertificateRevoked,
            Abort::CertificateUntrusted => Self::CertificateUntrusted,
            Abort::PodRemoved => Self::PodRemoved,
            Abort::Shutdown => Self::Shutdown,
        }
    }
}

impl Reason {
    /// Why a TCP connection could not be made.
    pub fn of_dial(error: &io::Error) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "the standard library's, and it grows")]
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::DialRefused,
            io::ErrorKind::TimedOut => Self::DialTimeout,
            // Said by those who dial in the name of a pod that has its share.
            io::ErrorKind::QuotaExceeded => Self::PodTunnelLimit,
            // No port is left, no memory, no descriptor.
            io::ErrorKind::AddrInUse
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::OutOfMemory => Self::OutOfResources,
            _ if error.raw_os_error().is_some_and(|code| OUT_OF_DESCRIPTORS.contains(&code)) => {
                Self::OutOfResources
            }
            _ => Self::DialFailed,
        }
    }
}

/// `ENFILE` and `EMFILE` on Linux: the standard library has no kind for them.
const OUT_OF_DESCRIPTORS: [i32; 2] = [23, 24];

/// A tunnel's port that is silent, while the pod is there, is most often a NetworkPolicy that does not know of it.
fn of_tunnel_dial(error: &io::Error) -> Reason {
    let reason = Reason::of_dial(error);
    if reason == Reason::DialTimeout { Reason::NetworkPolicySuspected } else { reason }
}

fn of_answer(status: StatusCode) -> Reason {
    match status {
        StatusCode::UNAUTHORIZED => Reason::TunnelDenied,
        StatusCode::BAD_REQUEST => Reason::TunnelBadRequest,
        StatusCode::SERVICE_UNAVAILABLE => Reason::TunnelUnavailable,
        _ => Reason::TunnelRefused,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn dial(kind: io::ErrorKind) -> Reason {
        let source = Arc::new(io::Error::from(kind));
        Reason::from(&OpenError::Dial { dial: ([10, 0, 0, 1], 15008).into(), source })
    }

    #[test]
    fn a_silent_tunnel_port_suggests_a_network_policy() {
        assert_eq!(dial(io::ErrorKind::TimedOut), Reason::NetworkPolicySuspected);
        assert_eq!(Reason::of_dial(&io::ErrorKind::TimedOut.into()), Reason::DialTimeout);
        assert_eq!(dial(io::ErrorKind::ConnectionRefused), Reason::DialRefused);
    }

    #[test]
    fn running_out_of_descriptors_or_ports_is_our_own_fault() {
        for code in OUT_OF_DESCRIPTORS {
            let reason = Reason::of_dial(&io::Error::from_raw_os_error(code));
            assert_eq!(reason, Reason::OutOfResources, "{code}");
        }
        assert_eq!(dial(io::ErrorKind::AddrNotAvailable), Reason::OutOfResources);
    }

    #[test]
    fn each_answer_of_a_tunnel_has_its_reason() {
        let cases = [
            (400, Reason::TunnelBadRequest),
            (401, Reason::TunnelDenied),
            (503, Reason::TunnelUnavailable),
            (500, Reason::TunnelRefused),
        ];
        for (status, reason) in cases {
            assert_eq!(of_answer(StatusCode::from_u16(status).unwrap()), reason, "{status}");
        }
    }
}
