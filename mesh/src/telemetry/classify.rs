//! Which [`Reason`] the errors of the other modules are.
//!
//! In: an error. Out: its reason. No `match` has a `_`, so that a new error asks for a reason.

use super::Reason;
use crate::{
    identity::{HandshakeError, PeerError, Unavailable},
    policy::Denied,
};

impl From<&Denied> for Reason {
    fn from(error: &Denied) -> Self {
        match error {
            Denied::ByDeny { .. } => Self::PolicyDeny,
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
