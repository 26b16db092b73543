//! What a handshake demands of the peer's certificate.
//!
//! Both sides: a chain to our roots, validity, the right usage, and that no revocation list names a certificate of the
//! chain. The server's side also demands a name of a trusted trust domain. Whom a client expects is checked after the
//! handshake, by [`Credential::expect_peer`](super::Credential::expect_peer), since one configuration serves all
//! destinations.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme, SupportedProtocolVersion,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    },
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{PeerChain, PeerError, Spiffe, Verification, peer::Leaf, tls};

/// What one identity demands of its peers.
#[derive(Debug)]
pub(super) struct Trusted {
    own: Spiffe,
    /// Those that came with the identity's own certificate, then the node's others.
    pub(super) roots: Vec<CertificateDer<'static>>,
    verification: Verification,
}

impl Trusted {
    pub(super) fn new(
        own: &Spiffe,
        own_roots: &[CertificateDer<'static>],
        verification: &Verification,
    ) -> Self {
        let mut roots = own_roots.to_vec();
        roots.extend(verification.roots.iter().filter(|root| !own_roots.contains(root)).cloned());
        Self { own: own.clone(), roots, verification: verification.clone() }
    }

    /// The roots of the node, among which the identity's own are while its certificate is in use.
    pub(super) fn node_roots(&self) -> &Arc<[CertificateDer<'static>]> {
        &self.verification.roots
    }

    pub(super) fn provider(&self) -> Arc<CryptoProvider> {
        tls::provider_under(self.verification.compliance, self.verification.versions)
    }

    pub(super) fn protocols(&self) -> &'static [&'static SupportedProtocolVersion] {
        self.verification.versions.protocols()
    }

    /// Whether the peer's name is that of the workload expected: but for the mesh's names for its own trust domain,
    /// the same.
    pub(super) fn is_same_workload(&self, expected: &Spiffe, found: &Spiffe) -> bool {
        expected == found
            || (expected.namespace() == found.namespace()
                && expected.service_account() == found.service_account()
                && self.trusts(expected)
                && self.trusts(found))
    }

    /// Whether the name is of our trust domain or an alias of it.
    fn trusts(&self, name: &Spiffe) -> bool {
        self.verification.is_same_trust_domain(self.own.trust_domain(), name.trust_domain())
    }

    /// Refuses a chain of which a certificate is revoked.
    fn check_revocation(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        let revocations = &self.verification.revocations;
        if revocations.count() == 0 {
            return Ok(());
        }
        let presented: Vec<_> = std::iter::once(end_entity)
            .chain(intermediates)
            .map(|der| der.as_ref().into())
            .collect();
        let chain = PeerChain::of(&presented).map_err(refused)?;
        match revocations.revoked(&chain, &self.roots) {
            Some(_) => Err(CertificateError::Revoked.into()),
            None => Ok(()),
        }
    }
}

/// The client's view of a server: any workload under our roots.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    roots: Arc<RootCertStore>,
    trusted: Arc<Trusted>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    pub(super) fn new(roots: Arc<RootCertStore>, trusted: Arc<Trusted>) -> Arc<Self> {
        let algorithms = tls::provider().signature_verification_algorithms;
        Arc::new(Self { roots, trusted, algorithms })
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )
        .map_err(unknown_issuer)?;
        self.trusted.check_revocation(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The server's view of a client: a workload under our roots, of our trust domain or an alias of it.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trusted: Arc<Trusted>,
}

impl ClientVerifier {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        trusted: Arc<Trusted>,
    ) -> Result<Arc<Self>, Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, tls::provider())
            // The list of acceptable roots would tell anybody who connects, and no client of ours reads it.
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Arc::new(Self { chain, trusted }))
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)
            .map_err(unknown_issuer)?;
        self.trusted.check_revocation(end_entity, intermediates)?;
        let leaf = Leaf::parse(end_entity).map_err(refused)?;
        // The first name is the one that policies see, so it is the one that must be trusted.
        if !self.trusted.trusts(&leaf.names.first) {
            let (found, own) = (leaf.names.first, self.trusted.own.clone());
            return Err(refused(PeerError::TrustDomain { found, own }));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// All of Istio's roots have the same subject, so a stranger's chain shows as a bad signature under our root.
pub(super) fn unknown_issuer(error: Error) -> Error {
    if error == Error::InvalidCertificate(CertificateError::BadSignature) {
        CertificateError::UnknownIssuer.into()
    } else {
        error
    }
}

/// Carries our reason through rustls, for [`HandshakeError`](super::HandshakeError) to take out again.
fn refused(reason: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
}
