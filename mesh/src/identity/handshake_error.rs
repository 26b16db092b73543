//! Why a TLS handshake failed, in the words an operator needs.
//!
//! In: the `io::Error` of tokio-rustls, from the handshake or from the first read after it (a TLS 1.3 server refuses a
//! client's certificate when the client has already finished). Out: a [`HandshakeError`], one variant for each thing
//! that somebody would do differently.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

use super::PeerError;

/// Why a TLS handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's certificate does not chain to our roots: another mesh, or roots not rotated yet.
    #[error("the peer's certificate is signed by an unknown authority")]
    UnknownCa,
    /// The peer's certificate has expired, or a clock is wrong.
    #[error("the peer's certificate has expired")]
    Expired,
    /// The peer's certificate is not valid yet: a clock is wrong.
    #[error("the peer's certificate is not valid yet")]
    NotYetValid,
    /// The peer's certificate, or one that it was issued by, has been taken back.
    #[error("the peer's certificate is revoked")]
    Revoked,
    /// The client showed no certificate: it is not of a mesh.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// The certificate may not be used on the peer's side of a connection.
    #[error("the peer's certificate is not for this use")]
    WrongUsage,
    /// The certificate stands, and the name in it does not.
    #[error(transparent)]
    Peer(PeerError),
    /// The certificate is unreadable, or its signature is wrong.
    #[error("the peer's certificate is invalid")]
    BadCertificate {
        /// What rustls says.
        source: Error,
    },
    /// The peer refused our certificate or parameters.
    #[error("the peer refused the handshake: {}", describe(*.alert))]
    Refused {
        /// The alert it sent.
        alert: AlertDescription,
    },
    /// No TLS version, suite or key exchange in common.
    #[error("the peer has no TLS parameters in common with us")]
    Incompatible {
        /// What rustls says.
        source: Error,
    },
    /// What the peer sent is not a TLS handshake, or breaks its rules.
    #[error("the peer does not speak TLS 1.3 correctly")]
    Protocol {
        /// What rustls says.
        source: Error,
    },
    /// The peer closed the connection in the middle.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// The connection failed below TLS.
    #[error("the connection failed during the handshake")]
    Connection {
        /// What the kernel says.
        source: io::Error,
    },
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        let kind = error.kind();
        match error.downcast::<Error>() {
            Ok(tls) => tls.into(),
            Err(_) if kind == io::ErrorKind::UnexpectedEof => Self::Closed,
            Err(source) => Self::Connection { source },
        }
    }
}

impl From<Error> for HandshakeError {
    fn from(source: Error) -> Self {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "rustls may add variants; all others are breaches of the protocol"
        )]
        match source {
            Error::InvalidCertificate(ref error) => {
                Self::of_certificate(error).unwrap_or(Self::BadCertificate { source })
            }
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::AlertReceived(alert) => Self::Refused { alert },
            Error::PeerIncompatible(_) => Self::Incompatible { source },
            _ => Self::Protocol { source },
        }
    }
}

impl HandshakeError {
    fn of_certificate(error: &CertificateError) -> Option<Self> {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "rustls may add variants; all others say that the certificate is bad"
        )]
        match error {
            CertificateError::UnknownIssuer => Some(Self::UnknownCa),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Some(Self::Expired)
            }
            CertificateError::Revoked => Some(Self::Revoked),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Some(Self::NotYetValid)
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Some(Self::WrongUsage)
            }
            CertificateError::Other(other) => {
                other.0.downcast_ref::<PeerError>().cloned().map(Self::Peer)
            }
            _ => None,
        }
    }
}

/// The alerts that certificates cause (RFC 8446 §6.2), said of ourselves.
fn describe(alert: AlertDescription) -> String {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the other alerts have no plainer words than their names"
    )]
    match alert {
        AlertDescription::UnknownCA => "it does not know the authority of our certificate".into(),
        AlertDescription::CertificateExpired => "our certificate has expired by its clock".into(),
        AlertDescription::CertificateRevoked => "it holds our certificate for revoked".into(),
        AlertDescription::CertificateRequired => "it requires a certificate".into(),
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            "it does not accept our identity".into()
        }
        AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate => {
            "it cannot use our certificate".into()
        }
        other => format!("{other:?}"),
    }
}
