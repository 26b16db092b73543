//! What this node demands of peers, beside each certificate's own checks: the same for all of its identities.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::{CertificateName, Compliance, PeerChain, Revocations, TlsVersions};

/// What all identities of a node demand of their peers. It never changes; another takes its place.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// Trust domains that stand for the identity's own.
    pub(super) trust_domain_aliases: Arc<[String]>,
    /// The roots of all identities of the node. An identity trusts them beside those that came with its own
    /// certificate: one authority serves the node, and the root it adds for one it adds for all.
    pub(super) roots: Arc<[CertificateDer<'static>]>,
    /// Which cryptography tunnels use.
    pub(super) compliance: Compliance,
    /// Which versions of TLS tunnels speak.
    pub(super) versions: TlsVersions,
    /// Certificates that are not accepted any more.
    pub(super) revocations: Arc<Revocations>,
}

/// Why a peer that was let in is not accepted any more.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Objection {
    /// A certificate of its chain is revoked.
    Revoked {
        /// The first of them.
        certificate: CertificateName,
    },
    /// The root at the end of its chain is not trusted any more.
    Untrusted,
}

impl Verification {
    /// What is wrong with a peer that some handshake has verified, by what is demanded here.
    pub fn objection(&self, chain: &PeerChain) -> Option<Objection> {
        if let Some(certificate) = self.revoked(chain) {
            return Some(Objection::Revoked { certificate: certificate.clone() });
        }
        (!chain.ends_in(&self.roots)).then_some(Objection::Untrusted)
    }

    /// The first certificate of a peer's chain that is revoked.
    pub fn revoked<'a>(&self, chain: &'a PeerChain) -> Option<&'a CertificateName> {
        self.revocations.revoked(chain, &self.roots)
    }

    /// The revocation lists in force.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// Whether `found` stands for `own`: the same trust domain, or both among the mesh's names for itself.
    pub(super) fn is_same_trust_domain(&self, own: &str, found: &str) -> bool {
        own == found || self.trust_domain_aliases.iter().any(|alias| alias == found)
    }
}
