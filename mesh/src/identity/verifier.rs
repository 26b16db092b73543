//! What a handshake demands of the peer's certificate.
//!
//! Both sides: a chain to our roots, validity, the right usage. The server's side also demands a name of a trusted
//! trust domain. Whom a client expects is checked after the handshake, by [`expect_peer`](super::expect_peer), since
//! one configuration serves all destinations.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{PeerError, Spiffe, peer::Leaf, tls};

/// The client's view of a server: any workload under our roots.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    pub(super) fn new(roots: Arc<RootCertStore>) -> Arc<Self> {
        let algorithms = tls::provider().signature_verification_algorithms;
        Arc::new(Self { roots, algorithms })
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
    own: Spiffe,
    trust_domain_aliases: Arc<[String]>,
}

impl ClientVerifier {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        own: Spiffe,
        trust_domain_aliases: Arc<[String]>,
    ) -> Result<Arc<Self>, Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, tls::provider())
            // The list of acceptable roots would tell anybody who connects, and no client of ours reads it.
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Arc::new(Self { chain, own, trust_domain_aliases }))
    }

    fn trusts(&self, name: &Spiffe) -> bool {
        name.trust_domain() == self.own.trust_domain()
            || self.trust_domain_aliases.iter().any(|alias| alias == name.trust_domain())
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
        let leaf = Leaf::parse(end_entity).map_err(refused)?;
        // The first name is the one that policies see, so it is the one that must be trusted.
        if !self.trusts(&leaf.names.first) {
            let found = leaf.names.first;
            return Err(refused(PeerError::TrustDomain { found, own: self.own.clone() }));
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
