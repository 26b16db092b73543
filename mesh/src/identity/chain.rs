//! Checks what the certificate authority sent before it is used.
//!
//! In: `cert_chain` of the certificate service, the key and name it was asked for, the time. Out: an [`IssuedChain`]
//! that will work in a handshake, or the [`ChainError`] that says what is wrong with it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    server::{ParsedCertificate, WebPkiClientVerifier},
    sign::{CertifiedKey, SigningKey},
};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};

use super::{PeerError, Spiffe, peer::Leaf, tls};

/// What is wrong with a chain that the certificate authority sent.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// No certificate at all.
    #[error("the certificate authority sent an empty chain")]
    Empty,
    /// The last element is the bundle of roots; with one element there is none.
    #[error("the certificate authority sent no root certificate")]
    NoRoot,
    /// An element is not PEM, or has no certificate in it.
    #[error("element {element} of the chain is not a PEM certificate: {reason}")]
    Pem {
        /// Counted from 0.
        element: usize,
        /// What the parser found.
        reason: String,
    },
    /// The first element must be the leaf alone.
    #[error("the first element of the chain has {count} certificates, expected the leaf alone")]
    SeveralLeaves {
        /// How many.
        count: usize,
    },
    /// A root that cannot be a trust anchor.
    #[error("root {index} of the chain cannot be used")]
    Root {
        /// Among the roots, counted from 0.
        index: usize,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The leaf cannot be read or names no workload.
    #[error("the issued certificate cannot be used")]
    Leaf {
        /// What is wrong with it.
        source: PeerError,
    },
    /// The leaf names somebody else.
    #[error("the issued certificate is for {found}, asked for {requested}")]
    WrongIdentity {
        /// Whom we asked for.
        requested: Spiffe,
        /// Whom the leaf names first.
        found: Spiffe,
    },
    /// The leaf is for another key than the one we sent.
    #[error("the issued certificate is for another key than the one requested")]
    KeyMismatch,
    /// The leaf's validity is over: it came late, or one of the two clocks is wrong.
    #[error("the issued certificate expired {ago:?} ago by this machine's clock")]
    Expired {
        /// How long ago.
        ago: Duration,
    },
    /// The leaf's validity has not begun: one of the two clocks is wrong.
    #[error("the issued certificate is valid only in {ahead:?} by this machine's clock")]
    NotYetValid {
        /// How far ahead.
        ahead: Duration,
    },
    /// Peers would refuse it: it does not chain to the roots sent with it, or may not be used on both sides.
    #[error("the issued certificate does not stand as a {side} under the roots sent with it")]
    Untrusted {
        /// `server` or `client`.
        side: &'static str,
        /// Why.
        source: rustls::Error,
    },
}

/// A chain that passed every check.
pub(super) struct IssuedChain {
    /// What is presented to peers: leaf and intermediates, with the key.
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) leaf: Leaf,
}

impl IssuedChain {
    pub(super) fn check(
        cert_chain: &[String],
        key: Arc<dyn SigningKey>,
        requested: &Spiffe,
        now: SystemTime,
    ) -> Result<Self, ChainError> {
        let (presented, roots) = split(cert_chain)?;
        let anchors = Arc::new(anchors(&roots)?);
        let leaf = Leaf::parse(&presented[0]).map_err(|source| ChainError::Leaf { source })?;
        if leaf.names.first != *requested {
            let found = leaf.names.first;
            return Err(ChainError::WrongIdentity { requested: requested.clone(), found });
        }
        if let Ok(ahead) = leaf.not_before.duration_since(now)
            && ahead > Duration::ZERO
        {
            return Err(ChainError::NotYetValid { ahead });
        }
        if let Ok(ago) = now.duration_since(leaf.not_after)
            && ago > Duration::ZERO
        {
            return Err(ChainError::Expired { ago });
        }
        check_both_sides(&presented, &anchors, now)?;
        let certified = Arc::new(CertifiedKey::new(presented, key));
        certified.keys_match().map_err(|_| ChainError::KeyMismatch)?;
        Ok(Self { certified, roots, leaf })
    }
}

/// Separates what is presented (leaf, intermediates) from what is trusted (the last element).
fn split(
    cert_chain: &[String],
) -> Result<(Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>), ChainError> {
    let (last, presented_pem) = cert_chain.split_last().ok_or(ChainError::Empty)?;
    if presented_pem.is_empty() {
        return Err(ChainError::NoRoot);
    }
    let mut presented = Vec::new();
    for (element, pem) in presented_pem.iter().enumerate() {
        let certificates = certificates(element, pem)?;
        if element == 0 && certificates.len() > 1 {
            return Err(ChainError::SeveralLeaves { count: certificates.len() });
        }
        presented.extend(certificates);
    }
    Ok((presented, certificates(presented_pem.len(), last)?))
}

fn certificates(element: usize, pem: &str) -> Result<Vec<CertificateDer<'static>>, ChainError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| ChainError::Pem { element, reason: error.to_string() })?;
    if found.is_empty() {
        return Err(ChainError::Pem { element, reason: "no certificate in it".into() });
    }
    Ok(found)
}

/// # Errors
/// [`ChainError::Root`] for one that cannot be a trust anchor.
pub(super) fn anchors(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, ChainError> {
    let mut anchors = RootCertStore::empty();
    for (index, root) in roots.iter().enumerate() {
        anchors.add(root.clone()).map_err(|source| ChainError::Root { index, source })?;
    }
    Ok(anchors)
}

/// The same checks as our peers make, so that a bad chain is found here, once, and not in every handshake.
fn check_both_sides(
    presented: &[CertificateDer<'static>],
    anchors: &Arc<RootCertStore>,
    now: SystemTime,
) -> Result<(), ChainError> {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(since_epoch);
    let (leaf, intermediates) = presented.split_first().ok_or(ChainError::Empty)?;
    let server = |source| ChainError::Untrusted { side: "server", source };
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf).map_err(server)?,
        anchors,
        intermediates,
        now,
        tls::provider().signature_verification_algorithms.all,
    )
    .map_err(server)?;
    let client = |source| ChainError::Untrusted { side: "client", source };
    WebPkiClientVerifier::builder_with_provider(anchors.clone(), tls::provider())
        .build()
        .map_err(|error| client(rustls::Error::General(error.to_string())))?
        .verify_client_cert(leaf, intermediates, now)
        .map_err(client)?;
    Ok(())
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
