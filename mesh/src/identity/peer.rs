//! Who the far end of a tunnel is, by its certificate.
//!
//! In: the certificates of a finished handshake, leaf first. Out: the peer's [`Spiffe`], or the [`PeerError`] that
//! says what is wrong with it. The chain is not checked here: the handshake did that. Validity is checked again,
//! since a resumed handshake checks no chain.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, time::ASN1Time,
};

use super::{Spiffe, SpiffeError};

/// Why a peer's certificate does not say who it is, or says the wrong name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PeerError {
    /// The peer sent no certificate.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// The leaf is not a readable X.509 certificate.
    #[error("the peer's certificate cannot be read: {reason}")]
    Malformed {
        /// What the parser found.
        reason: String,
    },
    /// The leaf has no URI among its alternative names.
    #[error("the peer's certificate names no SPIFFE identity")]
    NoSpiffe,
    /// The leaf has URIs, and none of them is a workload's name.
    #[error("the peer's certificate names no workload")]
    NotAWorkload {
        /// What is wrong with the first of them.
        source: SpiffeError,
    },
    /// The leaf's validity is over.
    #[error("the certificate of {found} has expired")]
    Expired {
        /// The name in the leaf.
        found: Spiffe,
    },
    /// The leaf's validity has not begun.
    #[error("the certificate of {found} is not valid yet")]
    NotYetValid {
        /// The name in the leaf.
        found: Spiffe,
    },
    /// The name is of a trust domain that is not ours, nor one of our aliases.
    #[error("the peer is {found}, whose trust domain is not trusted by {own}")]
    TrustDomain {
        /// The name in the leaf.
        found: Spiffe,
        /// Our own name.
        own: Spiffe,
    },
    /// The peer is somebody else.
    #[error("the peer is {found}, expected {}", list(.expected))]
    WrongPeer {
        /// The first name in the leaf.
        found: Spiffe,
        /// The names that would have been accepted.
        expected: Box<[Spiffe]>,
    },
}

/// The peer's name: the first workload's name among the URIs of its leaf certificate.
///
/// # Errors
/// [`PeerError`] when the leaf is missing, unreadable, not valid at present, or names no workload.
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Result<Spiffe, PeerError> {
    valid_names(certs, SystemTime::now()).map(|names| names.first)
}

/// Checks that the peer is one of `expected` and says which: any URI of the leaf may match.
///
/// For the client, after every handshake, the resumed ones too.
///
/// # Errors
/// [`PeerError::WrongPeer`] when it is somebody else; otherwise as [`peer_identity`].
pub fn expect_peer(certs: &[CertificateDer<'_>], expected: &[Spiffe]) -> Result<Spiffe, PeerError> {
    let names = valid_names(certs, SystemTime::now())?;
    let matching = names.iter().find(|name| expected.contains(name)).cloned();
    matching.ok_or_else(|| PeerError::WrongPeer { found: names.first, expected: expected.into() })
}

/// The workload names in one leaf: never none.
pub(super) struct LeafNames {
    pub(super) first: Spiffe,
    others: Vec<Spiffe>,
}

impl LeafNames {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Spiffe> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

/// What a leaf certificate says of itself.
pub(super) struct Leaf {
    pub(super) names: LeafNames,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Leaf {
    /// Reads names and validity; checks nothing against a clock.
    pub(super) fn parse(der: &[u8]) -> Result<Self, PeerError> {
        let malformed = |reason: String| PeerError::Malformed { reason };
        let (rest, leaf) =
            X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed(format!("{} bytes follow the certificate", rest.len())));
        }
        let extension =
            leaf.subject_alternative_name().map_err(|error| malformed(error.to_string()))?;
        let general = extension.as_ref().map_or(&[][..], |san| &san.value.general_names);
        Ok(Self {
            names: workload_names(general)?,
            not_before: system_time(leaf.validity().not_before),
            not_after: system_time(leaf.validity().not_after),
        })
    }
}

fn valid_names(certs: &[CertificateDer<'_>], now: SystemTime) -> Result<LeafNames, PeerError> {
    let leaf = Leaf::parse(certs.first().ok_or(PeerError::NoCertificate)?)?;
    if now < leaf.not_before {
        return Err(PeerError::NotYetValid { found: leaf.names.first });
    }
    if now > leaf.not_after {
        return Err(PeerError::Expired { found: leaf.names.first });
    }
    Ok(leaf.names)
}

fn workload_names(general: &[GeneralName<'_>]) -> Result<LeafNames, PeerError> {
    let mut names = Vec::new();
    let mut first_error = None;
    for name in general {
        let GeneralName::URI(uri) = name else { continue };
        match Spiffe::parse(uri) {
            Ok(name) => names.push(name),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    let mut names = names.into_iter();
    match (names.next(), first_error) {
        (Some(first), _) => Ok(LeafNames { first, others: names.collect() }),
        (None, Some(source)) => Err(PeerError::NotAWorkload { source }),
        (None, None) => Err(PeerError::NoSpiffe),
    }
}

/// X.509 counts whole seconds; a time before 1970 is as far in the past as any.
pub(super) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn list(names: &[Spiffe]) -> String {
    match names {
        [] => "nobody".into(),
        names => names.iter().map(Spiffe::as_str).collect::<Vec<_>>().join(" or "),
    }
}
