//! One identity's certificate, ready for handshakes.
//!
//! In: a key and the chain issued for it, and what the node demands of peers. Out: a [`Credential`] with its two TLS
//! configurations, built once; another is built when the node's demands change. When to get another certificate is not
//! decided here.

use std::{
    fmt,
    sync::Arc,
    time::{Instant, SystemTime},
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{ClientSessionMemoryCache, Resumption, Tls12Resumption},
    crypto::aws_lc_rs::Ticketer,
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::CertificateDer;

use super::{
    IssueError, PeerChain, PeerError, Spiffe, Verification,
    chain::{IssuedChain, anchors},
    key::RequestedKey,
    peer::valid_names,
    tls,
    verifier::{ClientVerifier, ServerVerifier, Trusted},
};

/// How many sessions a client remembers for each identity: those of 128 servers, of which rustls keeps up to 8 each.
/// The oldest server is forgotten for a new one and costs a full handshake the next time.
const REMEMBERED_SESSIONS: usize = 128 * 8;

/// One identity's certificate. The private key stays inside.
pub struct Credential {
    spiffe: Spiffe,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    certified: Arc<CertifiedKey>,
    /// What came with the certificate.
    own_roots: Arc<[CertificateDer<'static>]>,
    trusted: Arc<Trusted>,
    not_before: SystemTime,
    not_after: SystemTime,
    built_at: Instant,
}

impl Credential {
    /// Joins a key with the chain issued for it, after the checks of [`IssuedChain`].
    pub(super) fn assemble(
        key: &RequestedKey,
        cert_chain: &[String],
        who: &Spiffe,
        verification: &Verification,
        now: SystemTime,
    ) -> Result<Self, IssueError> {
        let issued = IssuedChain::check(cert_chain, key.signing_key()?, who, now)?;
        Self::of_chain(issued, verification)
    }

    /// Takes a chain that was checked.
    pub(super) fn of_chain(
        issued: IssuedChain,
        verification: &Verification,
    ) -> Result<Self, IssueError> {
        let IssuedChain { certified, roots, leaf } = issued;
        Self::build(
            leaf.names.first,
            certified,
            roots.into(),
            verification,
            (leaf.not_before, leaf.not_after),
        )
    }

    /// The same certificate under other demands. No session outlives what it was verified under.
    pub(super) fn under(&self, verification: &Verification) -> Result<Self, IssueError> {
        Self::build(
            self.spiffe.clone(),
            self.certified.clone(),
            self.own_roots.clone(),
            verification,
            (self.not_before, self.not_after),
        )
    }

    fn build(
        spiffe: Spiffe,
        certified: Arc<CertifiedKey>,
        own_roots: Arc<[CertificateDer<'static>]>,
        verification: &Verification,
        (not_before, not_after): (SystemTime, SystemTime),
    ) -> Result<Self, IssueError> {
        let trusted = Arc::new(Trusted::new(&spiffe, &own_roots, verification));
        let anchors = Arc::new(anchors(&trusted.roots)?);
        let tls = |source| IssueError::Tls { who: spiffe.clone(), source };
        Ok(Self {
            client: client_config(&certified, &trusted, anchors.clone()).map_err(tls)?,
            server: server_config(&certified, &trusted, anchors).map_err(tls)?,
            spiffe,
            certified,
            own_roots,
            trusted,
            not_before,
            not_after,
            built_at: Instant::now(),
        })
    }

    /// Whose certificate it is.
    pub fn spiffe(&self) -> &Spiffe {
        &self.spiffe
    }

    /// For dialing: ALPN `h2`, TLS 1.3 (and 1.2 if [`TlsVersions`](super::TlsVersions) says so), our certificate,
    /// X25519MLKEM768 first, sessions resumed.
    ///
    /// The peer's chain, validity and usage are verified, but not who it is: call [`Credential::expect_peer`] after
    /// the handshake. Sessions are remembered by the server name given to rustls, which is never sent: give the
    /// address that is dialed.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    /// For accepting: as [`Credential::client_config`], and the client must present a certificate that names a
    /// workload of our trust domain or an alias of it.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// Checks that the peer of a handshake is one of `expected`, and says which of its names it is by: any URI of its
    /// leaf may match. The mesh's names for its own trust domain stand for one another.
    ///
    /// For the client, after every handshake, the resumed ones too.
    ///
    /// # Errors
    /// [`PeerError::WrongPeer`] when it is somebody else; otherwise as [`peer_identity`](super::peer_identity).
    pub fn expect_peer(
        &self,
        certs: &[CertificateDer<'_>],
        expected: &[Spiffe],
    ) -> Result<Spiffe, PeerError> {
        let names = valid_names(certs, SystemTime::now())?;
        let is_expected = |name: &&Spiffe| {
            expected.iter().any(|expected| self.trusted.is_same_workload(expected, name))
        };
        let matching = names.iter().find(is_expected).cloned();
        matching
            .ok_or_else(|| PeerError::WrongPeer { found: names.first, expected: expected.into() })
    }

    /// What the peer of a handshake of this credential presented.
    ///
    /// # Errors
    /// As [`PeerChain::of`].
    pub fn peer_chain(&self, certs: &[CertificateDer<'_>]) -> Result<PeerChain, PeerError> {
        Ok(PeerChain::of(certs)?.verified_under(self.trusted.node_roots()))
    }

    /// When the certificate's validity begins.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When the certificate's validity ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When it was put together: a later one of the same identity has a newer certificate, or demands other things of
    /// its peers.
    pub fn built_at(&self) -> Instant {
        self.built_at
    }

    /// What is presented to peers: the leaf, then the intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// What peers' chains must end in: the roots that came with the certificate, then others of the node.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.trusted.roots
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

fn client_config(
    certified: &Arc<CertifiedKey>,
    trusted: &Arc<Trusted>,
    anchors: Arc<RootCertStore>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(trusted.provider())
        .with_protocol_versions(trusted.protocols())?
        .dangerous()
        .with_custom_certificate_verifier(ServerVerifier::new(anchors, trusted.clone()))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
    config.alpn_protocols = vec![tls::ALPN.into()];
    config.enable_sni = false;
    let sessions = Arc::new(ClientSessionMemoryCache::new(REMEMBERED_SESSIONS));
    // A resumed session of TLS 1.2 has no key exchange of its own.
    config.resumption = Resumption::store(sessions).tls12_resumption(Tls12Resumption::Disabled);
    Ok(Arc::new(config))
}

/// Tickets are sealed with keys of this configuration alone, so a session ends with the certificate, the roots and the
/// revocation lists it was verified under, and none moves from one identity to another.
fn server_config(
    certified: &Arc<CertifiedKey>,
    trusted: &Arc<Trusted>,
    anchors: Arc<RootCertStore>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let verifier = ClientVerifier::new(anchors, trusted.clone())?;
    let mut config = ServerConfig::builder_with_provider(trusted.provider())
        .with_protocol_versions(trusted.protocols())?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
    config.alpn_protocols = vec![tls::ALPN.into()];
    config.ticketer = Ticketer::new()?;
    // The client keeps the ticket, so the server need not keep the session.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}
