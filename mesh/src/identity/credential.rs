//! One identity's certificate, ready for handshakes.
//!
//! In: a key and the chain issued for it. Out: a [`Credential`] with its two TLS configurations, built once. When to
//! get another is not decided here.

use std::{fmt, sync::Arc, time::SystemTime};

use rustls::{
    ClientConfig, ServerConfig,
    client::{ClientSessionMemoryCache, Resumption},
    crypto::aws_lc_rs::Ticketer,
    server::NoServerSessionStorage,
    sign::SingleCertAndKey,
    version::TLS13,
};
use rustls_pki_types::CertificateDer;

use super::{
    IssueError, Spiffe,
    chain::IssuedChain,
    key::RequestedKey,
    tls,
    verifier::{ClientVerifier, ServerVerifier},
};

/// How many sessions a client remembers for each identity: those of 128 servers, of which rustls keeps up to 8 each.
/// The oldest server is forgotten for a new one and costs a full handshake the next time.
const REMEMBERED_SESSIONS: usize = 128 * 8;

/// One identity's certificate. The private key stays inside.
pub struct Credential {
    spiffe: Spiffe,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Credential {
    /// Joins a key with the chain issued for it, after the checks of [`IssuedChain`].
    pub(super) fn assemble(
        key: &RequestedKey,
        cert_chain: &[String],
        who: &Spiffe,
        trust_domain_aliases: &Arc<[String]>,
        now: SystemTime,
    ) -> Result<Self, IssueError> {
        let issued = IssuedChain::check(cert_chain, key.signing_key()?, who, now)?;
        let tls = |source| IssueError::Tls { who: who.clone(), source };
        Ok(Self {
            spiffe: who.clone(),
            client: Arc::new(client_config(&issued).map_err(tls)?),
            server: Arc::new(
                server_config(&issued, who, trust_domain_aliases.clone()).map_err(tls)?,
            ),
            chain: issued.certified.cert.clone(),
            roots: issued.roots,
            not_before: issued.leaf.not_before,
            not_after: issued.leaf.not_after,
        })
    }

    /// Whose certificate it is.
    pub fn spiffe(&self) -> &Spiffe {
        &self.spiffe
    }

    /// For dialing: ALPN `h2`, TLS 1.3, our certificate, X25519MLKEM768 first, sessions resumed.
    ///
    /// The peer's chain, validity and usage are verified, but not who it is: call
    /// [`expect_peer`](super::expect_peer) after the handshake. Sessions are remembered by the server name given to
    /// rustls, which is never sent: give the address that is dialed.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    /// For accepting: as [`Credential::client_config`], and the client must present a certificate that names a
    /// workload of our trust domain or an alias of it.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// When the certificate's validity begins.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When the certificate's validity ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// What is presented to peers: the leaf, then the intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// What peers' chains must end in.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("spiffe", &self.spiffe)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn client_config(issued: &IssuedChain) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(ServerVerifier::new(issued.anchors.clone()))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(issued.certified.clone())));
    config.alpn_protocols = vec![tls::ALPN.into()];
    config.enable_sni = false;
    let sessions = Arc::new(ClientSessionMemoryCache::new(REMEMBERED_SESSIONS));
    config.resumption = Resumption::store(sessions);
    Ok(config)
}

/// Tickets are sealed with keys of this configuration alone, so a session ends with the certificate and the roots it
/// was verified under, and none moves from one identity to another.
fn server_config(
    issued: &IssuedChain,
    own: &Spiffe,
    trust_domain_aliases: Arc<[String]>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = ClientVerifier::new(issued.anchors.clone(), own.clone(), trust_domain_aliases)?;
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(issued.certified.clone())));
    config.alpn_protocols = vec![tls::ALPN.into()];
    config.ticketer = Ticketer::new()?;
    // The client keeps the ticket, so the server need not keep the session.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}
