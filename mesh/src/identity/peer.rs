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

pub(super) fn valid_names(
    certs: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<LeafNames, PeerError> {
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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
    const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

    /// A certificate with these URIs, valid for an hour before and after the present.
    fn certificate(uris: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.not_before = (SystemTime::now() - HOUR).into();
        params.not_after = (SystemTime::now() + HOUR).into();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().into()
    }

    fn text(result: Result<Spiffe, PeerError>) -> String {
        result.map_or_else(|error| error.to_string(), |name| name.to_string())
    }

    fn spiffe(uri: &str) -> Spiffe {
        Spiffe::parse(uri).unwrap()
    }

    #[test]
    fn the_first_workload_among_the_uris_is_the_peer() {
        let table: [(&[&str], &str); 5] = [
            (&[WEB], WEB),
            (&["https://web", WEB, CART], WEB),
            (&[CART, WEB], CART),
            (&["spiffe://cluster.local/web"], "the peer's certificate names no workload"),
            (&[], "the peer's certificate names no SPIFFE identity"),
        ];
        for (uris, expected) in table {
            assert_eq!(text(peer_identity(&[certificate(uris)])), expected, "{uris:?}");
        }
    }

    #[test]
    fn a_certificate_counts_while_it_is_valid() {
        let leaf = [certificate(&[WEB])];
        let at = |now| valid_names(&leaf, now).map(|names| names.first);
        let found = spiffe(WEB);
        let now = SystemTime::now();
        assert_eq!(at(now), Ok(found.clone()));
        assert_eq!(at(now + 2 * HOUR), Err(PeerError::Expired { found: found.clone() }));
        assert_eq!(at(now - 2 * HOUR), Err(PeerError::NotYetValid { found }));
    }

    #[test]
    fn what_is_no_certificate_is_malformed() {
        let long = [&*certificate(&[WEB]), b"!"].concat();
        for der in [b"".as_slice(), b"hello", &long] {
            let refusal = text(peer_identity(&[CertificateDer::from(der)]));
            assert!(refusal.starts_with("the peer's certificate cannot be read: "), "{refusal}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_damaged_certificate_never_panics(
            changes in proptest::collection::vec((0_usize..1000, 0_u8..), 1..8),
            length in 0_usize..1000,
        ) {
            let mut der = certificate(&["https://web", WEB]).to_vec();
            for (at, byte) in changes {
                let at = at % der.len();
                der[at] = byte;
            }
            der.truncate(length.max(der.len() / 2));
            let _ = peer_identity(&[CertificateDer::from(der)]);
        }

        #[test]
        fn any_bytes_are_read_or_refused(der in proptest::collection::vec(0_u8.., 0..200)) {
            let _ = peer_identity(&[CertificateDer::from(der)]);
        }
    }
}
