//! A certificate authority in this process's memory.
//!
//! For a dedicated host that is a mesh of its own, and for tests: the root lives as long as the value, and nobody
//! outside can join. The control plane's authority, which keeps its root, is `pilot::ca`.

use std::time::{Duration, SystemTime};

use super::{
    Authority, AuthorityError, BoxFuture, CaError, CertificateSource, Credential, IssueError,
    PeerChain, SignError, Spiffe, Validity, Verification, key::RequestedKey,
};

/// The root outlives every process.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// What [`LocalCa::credential`] asks for: the default of the certificate service.
const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A self-signed root in memory that issues to whoever has a reference to it.
pub struct LocalCa {
    authority: Authority,
}

impl LocalCa {
    /// Makes a new root. The trust domain is its subject; names of other trust domains are signed as well.
    ///
    /// # Errors
    /// [`AuthorityError::Make`] when the random source or the library fails.
    pub fn new(trust_domain: &str) -> Result<Self, AuthorityError> {
        let validity = Validity::starting(SystemTime::now(), Duration::ZERO, ROOT_LIFETIME);
        Ok(Self { authority: Authority::create(trust_domain, validity)? })
    }

    /// Makes those who get certificates from here trust what `other` trusts too.
    #[must_use]
    pub fn trusting(mut self, other: &Self) -> Self {
        self.authority.trust(other.roots_pem());
        self
    }

    /// The root certificate in PEM, and those that are trusted besides.
    pub fn roots_pem(&self) -> &str {
        self.authority.roots_pem()
    }

    /// A credential for `who`, valid for a day from now.
    ///
    /// # Errors
    /// [`IssueError`] when the random source or the library fails.
    pub fn credential(&self, who: &Spiffe) -> Result<Credential, IssueError> {
        let now = SystemTime::now();
        self.credential_valid(who, Validity::starting(now, Duration::ZERO, LEAF_LIFETIME), &[])
    }

    /// A credential with the given validity, which may lie in the past, that as a server also accepts clients of
    /// the trust domains in `aliases`.
    ///
    /// # Errors
    /// As [`LocalCa::credential`].
    pub fn credential_valid(
        &self,
        who: &Spiffe,
        validity: Validity,
        aliases: &[String],
    ) -> Result<Credential, IssueError> {
        let key = RequestedKey::generate(who)?;
        let chain = self.authority.sign(&key.csr_pem(), who, validity).map_err(CaError::Local)?;
        let within = validity.not_before;
        let verification =
            Verification { trust_domain_aliases: aliases.into(), ..Verification::default() };
        Credential::assemble(&key, &chain, who, &verification, within)
    }

    /// A list, in PEM, by which the leaves of `revoked` are taken back.
    ///
    /// # Errors
    /// [`SignError`] when the library fails.
    pub fn revocation_list(&self, revoked: &[&Credential]) -> Result<String, SignError> {
        let now = SystemTime::now();
        let serials: Vec<_> = revoked
            .iter()
            .filter_map(|credential| PeerChain::of(credential.chain()).ok())
            .map(|chain| (chain.leaf().serial().to_vec(), now))
            .collect();
        let validity = Validity::starting(now, Duration::ZERO, LEAF_LIFETIME);
        self.authority.revocation_list(&serials, 1, validity)
    }
}

impl CertificateSource for LocalCa {
    fn issue<'a>(
        &'a self,
        csr_pem: String,
        who: &'a Spiffe,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, CaError>> {
        let validity = Validity::starting(SystemTime::now(), Duration::ZERO, lifetime);
        Box::pin(async move { Ok(self.authority.sign(&csr_pem, who, validity)?) })
    }
}
