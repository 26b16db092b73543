//! What is demanded of a server of the control plane: a chain to its roots, and one of the names it may go by.
//!
//! In: the certificates of a handshake. Out: whether it goes on. Servers prove themselves by DNS names or addresses, not
//! by identities of workloads, and revocation lists of the mesh are not about them.

use rustls::{
    DigitallySignedStruct, Error, PeerIncompatible, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{TlsVersions, tls};

/// Knows one server.
#[derive(Debug)]
pub(super) struct ControlPlaneVerifier {
    roots: RootCertStore,
    /// Accepted beside the host of the address.
    further: Option<ServerName<'static>>,
    versions: TlsVersions,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ControlPlaneVerifier {
    pub(super) fn new(
        roots: RootCertStore,
        further: Option<ServerName<'static>>,
        versions: TlsVersions,
    ) -> Self {
        let algorithms = tls::provider().signature_verification_algorithms;
        Self { roots, further, versions, algorithms }
    }
}

impl ServerCertVerifier for ControlPlaneVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        verify_server_name(&certificate, server_name).or_else(|error| match &self.further {
            Some(further) => verify_server_name(&certificate, further).map_err(|_| error),
            None => Err(error),
        })?;
        Ok(ServerCertVerified::assertion())
    }

    /// The gRPC library offers TLS 1.2 whenever it is compiled in. Every handshake of it comes here, since all of its
    /// suites sign their key exchange.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.versions {
            TlsVersions::Only13 => {
                Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
            }
            TlsVersions::From12 => {
                verify_tls12_signature(message, cert, signature, &self.algorithms)
            }
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        ClientConfig, ServerConfig, SupportedProtocolVersion, crypto::aws_lc_rs, version,
    };
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    const HOST: &str = "pilot.example.com";
    const FURTHER: &str = "istiod.istio-system.svc";

    /// How a handshake ends with a server that has `name` in its certificate and speaks `spoken`, dialed as [`HOST`].
    async fn check(
        name: &str,
        spoken: &'static SupportedProtocolVersion,
        versions: TlsVersions,
    ) -> String {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let certificate = CertificateDer::from(made.cert.der().to_vec());
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let further = Some(ServerName::try_from(FURTHER).unwrap());
        let provider = Arc::new(aws_lc_rs::default_provider());
        // As the gRPC library makes it.
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ControlPlaneVerifier::new(
                roots, further, versions,
            )))
            .with_no_client_auth();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[spoken])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let connector = TlsConnector::from(Arc::new(client));
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let host = ServerName::try_from(HOST).unwrap();
        let (client, _server) = tokio::join!(connector.connect(host, near), acceptor.accept(far));
        match client {
            Ok(client) => format!("{:?}", client.get_ref().1.protocol_version().unwrap()),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn the_host_of_the_address_and_the_further_name_are_both_accepted() {
        for name in [HOST, FURTHER] {
            assert_eq!(check(name, &version::TLS13, TlsVersions::Only13).await, "TLSv1_3");
        }
        let other = check("other.example.com", &version::TLS13, TlsVersions::Only13).await;
        assert!(other.contains("not valid for name \"pilot.example.com\""), "{other}");
    }

    #[tokio::test]
    async fn a_server_without_tls_13_is_refused_unless_12_is_spoken() {
        let refused = check(HOST, &version::TLS12, TlsVersions::Only13).await;
        assert_eq!(refused, "peer is incompatible: ServerTlsVersionIsDisabledByOurConfig");
        assert_eq!(check(HOST, &version::TLS12, TlsVersions::From12).await, "TLSv1_2");
    }
}
